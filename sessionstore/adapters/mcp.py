"""Model Context Protocol: an `EventStore`, with which clients resume a lost connection."""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import msgspec

from .. import flows
from ..calls import Flow
from ..errors import InvalidArgument, SessionNotFound
from ..model import Event, JsonEvent, SessionKey
from ..ops import Ops
from . import framework
from .json_events import not_read
from .services import AnyService, Services
from .session_flows import append

with framework("mcp", extra="mcp", tested=">=1.23,<3"):
    from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from mcp.types import JSONRPCMessage
    from pydantic import TypeAdapter

_message_type: TypeAdapter[Any] = TypeAdapter(JSONRPCMessage)

_PAGE = 100  # events of one read


class StoredEventStore(EventStore):
    """The messages of one MCP session, as events of one session; TTL and limit are the service's.

    The SDK starts numbering streams again in each MCP session, so each needs its own
    event store: `StoredSessionManager` makes them.

    Args:
        session_id: the MCP session, 1 to 256 bytes of UTF-8.
        service: a service for asyncio, or one of `sessionstore.sync`, which runs in threads.
        app_name: 1 to 256 bytes of UTF-8.
        user_id: likewise.

    Raises:
        InvalidArgument: the service is not valid. Methods: an id is not valid, or a second MCP
            session uses this event store. LimitExceeded: a message is too large.
        BackendError: methods: the store refused the call or did not answer.
    """

    def __init__(
        self, session_id: str, service: AnyService, *, app_name: str, user_id: str
    ) -> None:
        self._key = SessionKey(app_name, user_id, session_id)
        self._services = Services("StoredEventStore", service)
        self._is_initialized = False

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        """Store a message and return its event id. None stands for an id without a message.

        lua/append_event.lua; one round trip. The first event of an MCP session takes three.
        """
        content = None
        if message is not None:
            self._check_only_session(message)
            content = msgspec.Raw(message.model_dump_json(by_alias=True, exclude_unset=True))
        event = JsonEvent("mcp", content, branch=stream_id)
        await self._services.arun(append, self._key, [event])
        return _event_id(event)

    async def replay_events_after(
        self, last_event_id: str, send_callback: EventCallback
    ) -> str | None:
        """Send the later messages of the same stream, in order. Returns the stream.

        It returns None if the event is not stored: trimmed, expired, or of another MCP session.

        Plain reads. Two round trips for every 100 later events of the MCP session, and one more.
        """
        try:
            stream_id, position = await self._services.arun(self._find, last_event_id)
            while True:  # more may arrive while these are sent
                read = partial(flows.get_events, after=position, before=None, limit=_PAGE)
                page = await self._services.arun(read, self._key)
                for event in page.events:
                    if event.branch == stream_id and event.content is not None:
                        await send_callback(EventMessage(self._message(event), _event_id(event)))
                if not page.events:
                    return stream_id
                position = page.positions[-1]
        except SessionNotFound:
            return None

    def _find(self, ops: Ops, event_id: str) -> Flow[tuple[str | None, int]]:
        """The stream and the position of an event. It reads from the newest event back."""
        before = None
        while True:
            page = yield from flows.get_events(ops, self._key, None, before, _PAGE, before is None)
            for event, position in zip(page.events, page.positions, strict=True):
                if _event_id(event) == event_id:
                    return event.branch, position
            if not page.events:
                raise SessionNotFound(f"there is no event {event_id!r}")
            before = page.first

    def _message(self, event: Event) -> JSONRPCMessage:
        try:
            return _message_type.validate_python(event.content)
        except ValueError:
            raise not_read(event, self._key, "a message of MCP") from None

    def _check_only_session(self, message: Any) -> None:
        """Refuse a second MCP session, whose streams would be mixed up with those of the first."""
        result = getattr(getattr(message, "root", message), "result", None)
        if isinstance(result, dict) and "protocolVersion" in result:
            if self._is_initialized:
                raise InvalidArgument("each MCP session needs its own: use StoredSessionManager")
            self._is_initialized = True


def _event_id(event: Event) -> str:
    """The id that clients see. It names the stream."""
    return f"{quote(event.branch, safe='')}:{event.id}"


class StoredSessionManager(StreamableHTTPSessionManager):
    """A `StreamableHTTPSessionManager` that gives each MCP session a `StoredEventStore`.

    Args:
        app: a `Server`, a `FastMCP`, or, in version 2 of the SDK, an `MCPServer`.
        service: a service for asyncio, or one of `sessionstore.sync`, which runs in threads.
        app_name: 1 to 256 bytes of UTF-8.
        user_id: likewise. The MCP sessions are sessions of this user.
        options: the other arguments of `StreamableHTTPSessionManager`.
    """

    def __init__(
        self, app: Any, service: AnyService, *, app_name: str, user_id: str, **options: Any
    ) -> None:
        Services("StoredSessionManager", service)  # checks it
        self._new = partial(StoredEventStore, service=service, app_name=app_name, user_id=user_id)
        for name in ("_mcp_server", "_lowlevel_server"):
            app = getattr(app, name, app)
        super().__init__(app, **options)

    @property
    def event_store(self) -> EventStore | None:
        """A new event store. The SDK reads this once for each MCP session."""
        return self._new(uuid4().hex)

    @event_store.setter
    def event_store(self, event_store: EventStore | None) -> None:
        if event_store is not None:
            raise InvalidArgument("event_store is not an option: each MCP session gets its own")
