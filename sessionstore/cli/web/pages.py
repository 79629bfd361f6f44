"""The pages. They read with a service for threads, each in a thread of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ...errors import (
    BackendError,
    BackendRejected,
    CorruptData,
    InvalidArgument,
    SessionNotFound,
    SessionStoreError,
)
from ...model import SessionKey
from ...replies import members_with_scores
from ...sync import SessionService
from ...times import from_us
from ..keyspace import Node, ask, ask_each, primaries
from ..ls import read_sessions
from .access import Access
from .addresses import address, ids_in
from .conversation import ShownEvent, value_parts
from .rendering import Renderer
from .survey import Survey

_ROWS = 50


class Server(NamedTuple):
    """A primary, as the overview shows it."""

    name: str
    memory: int
    memory_limit: int
    policy: str
    clients: int
    uptime_days: int


class Pages:
    """The pages about the store, its applications and its users, and those about errors.

    Args:
        service: reads the data.
        survey: scans the keys and checks the server, in the background.
        access: the link and the cookie.
        url: the server, without credentials.
        allow_delete: the pages can delete.
    """

    def __init__(
        self,
        service: SessionService,
        survey: Survey,
        access: Access,
        url: str,
        allow_delete: bool = False,
    ) -> None:
        self.service = service
        self.survey = survey
        self.access = access
        self.allow_delete = allow_delete
        self.renderer = Renderer(store=url, allow_delete=allow_delete, form_token=access.form_token)

    def enter(self, request: Request) -> Response:
        """The page behind the link: it sets the cookie."""
        is_allowed = self.access.has_cookie(request)
        if not is_allowed and request.method == "GET":
            is_allowed = self.access.use_link(request.query_params.get("token", ""))
        if not is_allowed:
            return self.renderer.page("refused.html", 403, is_old=True)
        response = RedirectResponse("/", 303)
        self.access.set_cookie(response)
        return response

    def refused(self, _: Request) -> Response:
        """The page for a request without the cookie."""
        return self.renderer.page("refused.html", 403, is_old=False)

    def overview(self, request: Request) -> Response:
        """Applications, memory and health."""
        self.survey.keys.start(again="again" in request.query_params)
        self.survey.health.start(again="again" in request.query_params)
        servers = []
        problem = ""
        try:
            servers = [_server(Node(self.service, slot)) for slot in primaries(self.service)]
        except BackendRejected as error:
            problem = str(error)
        return self.renderer.page(
            "overview.html",
            keys=self.survey.keys,
            health=self.survey.health,
            apps=self.survey.keys.apps(),
            servers=servers,
            problem=problem,
        )

    def health(self, request: Request) -> Response:
        """The findings of the doctor."""
        self.survey.health.start(again="again" in request.query_params)
        return self.renderer.page("health.html", health=self.survey.health)

    def go(self, request: Request) -> Response:
        """Redirects to the application, user or session whose ids were entered."""
        ids = [request.query_params.get(name, "") for name in ("app", "user", "session")]
        given = ids[: ids.index("")] if "" in ids else ids
        pages = ("", "users", "sessions", "session")
        return RedirectResponse(address(pages[len(given)], *given), 303)

    def users(self, request: Request) -> Response:
        """The users of an application, by id."""
        [app_name] = ids_in(request.query_params, 1)
        self.survey.keys.start(again="again" in request.query_params)
        text, after = request.query_params.get("text", ""), request.query_params.get("after")
        found, num_found = self.survey.keys.users(app_name, text, after, _ROWS + 1)
        keys = self.service._ops.options.keys
        indexes = [keys.user(app_name, user.user_id).session_index for user in found[:_ROWS]]
        newest = ask_each(
            self.service, (("ZRANGE", index, 0, 0, "REV", "WITHSCORES") for index in indexes)
        )
        updated = [
            from_us(int(entries[0][1])) if entries else None
            for entries in map(members_with_scores, newest)
        ]
        return self.renderer.page(
            "users.html",
            app_name=app_name,
            keys=self.survey.keys,
            rows=list(zip(found, updated, strict=False)),
            num_found=num_found,
            text=text,
            after=after,
            next_after=found[_ROWS - 1].user_id if len(found) > _ROWS else None,
        )

    def sessions(self, request: Request) -> Response:
        """The sessions of a user, last updated first."""
        app_name, user_id = ids_in(request.query_params, 2)
        after = request.query_params.get("after")
        rows, cursor = read_sessions(self.service, app_name, user_id, _ROWS, after)
        state: dict[str, Any] = {}
        problem = ""
        try:
            state = self.service.get_user_state(app_name, user_id)
        except CorruptData as error:
            problem = str(error)
        return self.renderer.page(
            "sessions.html",
            500 if problem else 200,
            app_name=app_name,
            user_id=user_id,
            rows=rows,
            num_sessions=self._num_sessions(app_name, user_id),
            after=after,
            cursor=cursor,
            state=value_parts(state),
            problem=problem,
        )

    def event_html(self, key: SessionKey, event: ShownEvent) -> str:
        """An event as it stands in the page of its session."""
        return self.renderer.text("event.html", {"key": key, "event": event})

    async def problem(self, _: Request, error: Exception) -> Response:
        """The page for an error."""
        title, status_code = "This is a bug in sessionstore", 500
        for kind, text, code in (
            (InvalidArgument, "This address is not valid", 400),
            (SessionNotFound, "There is no such session", 404),
            (CorruptData, "Stored data is damaged", 500),
            (BackendRejected, "The server refused the request", 503),
            (BackendError, "The server cannot be reached", 503),
        ):
            if isinstance(error, kind):
                title, status_code = text, code
                break
        text = str(error) if isinstance(error, SessionStoreError) else type(error).__name__
        return self.renderer.page("problem.html", status_code, title=title, text=text)

    async def missing(self, _: Request, error: Exception) -> Response:
        """The page for an address that does not exist."""
        status_code = getattr(error, "status_code", 404)
        title = "There is no such page"
        return self.renderer.page("problem.html", status_code, title=title, text="")

    def _num_sessions(self, app_name: str, user_id: str) -> int:
        """How many sessions the index of a user has. Expired ones may count."""
        index = self.service._ops.options.keys.user(app_name, user_id).session_index
        [number] = ask(self.service, ("ZCARD", index))
        return int(number)


def _server(node: Node) -> Server:
    info = node.info
    valkey = info.get("valkey_version")
    name = f"Valkey {valkey}" if valkey else f"Redis {info.get('redis_version', '')}"
    return Server(
        name,
        node.number("used_memory"),
        node.number("maxmemory"),
        info.get("maxmemory_policy", "unknown"),
        node.number("connected_clients"),
        node.number("uptime_in_days"),
    )
