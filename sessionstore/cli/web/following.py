"""Follows a session for a page: each item of `watch_events` as a server-sent event."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ... import SessionService
from ...errors import CorruptData, SessionNotFound, SessionStoreError
from ...model import SessionKey, WatchChange, Watched, WatchEnd
from ..transcript import to_json
from .addresses import ids_in
from .conversation import plain_text, shown_events

if TYPE_CHECKING:
    from .pages import Pages

_ENDS = {
    "deleted": "The session was deleted, or it expired.",
    "recreated": "The session was deleted and created again. Reload the page to see the new one.",
}


class Following:
    """The stream of new events of a session.

    Args:
        service: an asyncio service, which watches.
        pages: renders events.
    """

    def __init__(self, service: SessionService, pages: Pages) -> None:
        self._service = service
        self._pages = pages

    async def follow(self, request: Request) -> Response:
        """New events after the cursor `after`, or after the header Last-Event-ID."""
        key = SessionKey(*ids_in(request.query_params, 3))
        after = request.headers.get("last-event-id") or request.query_params.get("after")
        watched = self._service.watch_events(key, after=after, partial=True)
        messages = self._messages(key, watched)
        return StreamingResponse(messages, media_type="text/event-stream")

    async def _messages(self, key: SessionKey, watched: Any) -> AsyncIterator[str]:
        yield "retry: 1000\n\n"
        try:
            await self._service.ping()
            yield _text(kind="ready")
            async with aclosing(watched):
                async for item in watched:
                    yield await run_in_threadpool(self._message, key, item)
        except (CorruptData, SessionNotFound) as error:
            yield _text(kind="end", text=f"The session cannot be followed: {error}")
        except SessionStoreError as error:
            # The browser connects again, with its last cursor.
            yield _text(kind="problem", text=str(error))

    def _message(self, key: SessionKey, item: Watched) -> str:
        if isinstance(item, WatchEnd):
            return _text(kind="end", text=_ENDS[item.reason])
        if isinstance(item, WatchChange):
            return _text(
                item.cursor,
                kind="change",
                first=item.first,
                last=item.last,
                html=[
                    self._pages.event_html(key, each)
                    for each in shown_events(item.positions, item.events)
                ],
                positions=item.positions,
            )
        event = item.event
        writer = to_json([event.invocation_id, event.author, event.branch])
        if event.partial:
            return _text(
                item.cursor,
                kind="fragment",
                writer=writer,
                author=event.author,
                text=plain_text(event),
            )
        [shown] = shown_events([item.position], [event])
        html = self._pages.event_html(key, shown)
        return _text(item.cursor, kind="event", position=item.position, writer=writer, html=html)


def _text(cursor: str | None = None, **data: Any) -> str:
    """A server-sent event. JSON has no line breaks."""
    head = "" if cursor is None else f"id: {cursor}\n"
    return f"{head}data: {to_json(data)}\n\n"
