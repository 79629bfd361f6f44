"""The pages that delete. They exist only with --allow-delete."""

from __future__ import annotations

from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from ...errors import InvalidArgument
from ..erase import erase_user
from .addresses import ids_in, place
from .pages import Pages

_FORM_BYTES = 16_384


class DeletingPages:
    """Asks for a confirmation, and deletes a session or all data of a user.

    Args:
        pages: has the service, and renders.
    """

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._service = pages.service

    def ask_session(self, request: Request) -> Response:
        """The form before a session is deleted."""
        return self._form(ids_in(request.query_params, 3))

    def ask_user(self, request: Request) -> Response:
        """The form before a user is erased."""
        return self._form(ids_in(request.query_params, 2))

    async def delete_session(self, request: Request) -> Response:
        """Delete the session, if the form was confirmed."""
        return await self._confirmed(request, 3)

    async def erase_user(self, request: Request) -> Response:
        """Delete all data of the user, if the form was confirmed, and count what is left."""
        return await self._confirmed(request, 2)

    async def _confirmed(self, request: Request, num_ids: int) -> Response:
        ids = ids_in(request.query_params, num_ids)
        form = await _read_form(request)
        if not self._pages.access.is_own_form(request, form.get("form_token", "")):
            return self._form(ids, 403, "The form is too old. Confirm it again.")
        if form.get("id", "").strip() not in (ids[-1], place(ids[-1])):
            return self._form(ids, 400, "That is another id. Nothing was deleted.")
        return await run_in_threadpool(self._delete, ids)

    def _delete(self, ids: list[str]) -> Response:
        left: list[str] = []
        if len(ids) == 3:
            app_name, user_id, session_id = ids
            self._service.delete_session(app_name=app_name, user_id=user_id, session_id=session_id)
            text = "The session was deleted."
        else:
            erased = erase_user(self._service, *ids)
            left = [key.key.decode("utf-8", "replace") for key in erased.left]
            text = f"{erased}"
            if not left:
                self._pages.survey.keys.forget(*ids)
        return self._pages.renderer.page("deleted.html", ids=ids, text=text, left=left)

    def _form(self, ids: list[str], status_code: int = 200, problem: str = "") -> Response:
        return self._pages.renderer.page(
            "delete.html", status_code, ids=ids, to_type=place(ids[-1]), problem=problem
        )


async def _read_form(request: Request) -> dict[str, str]:
    """The fields of a form.

    Raises:
        InvalidArgument: it is not a form of these pages.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _FORM_BYTES:
            raise InvalidArgument("the form is too large")
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=10)
    except ValueError:
        raise InvalidArgument("the form is not valid") from None
    return {name: values[-1] for name, values in fields.items()}
