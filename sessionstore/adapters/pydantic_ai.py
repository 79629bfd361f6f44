"""Pydantic AI: the message history of a conversation, loaded and stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

import sessionstore.sync

from ..calls import Flow
from ..errors import CorruptData, InvalidArgument
from ..model import Event, SessionKey, VerifiedEvent
from ..ops import Ops
from . import framework
from .flows import AnyService, Services, append, clear_events, read_events
from .packing import is_carried, pack, unpack
from .shapes import Shapes

with framework("pydantic-ai-slim", extra="pydantic-ai", tested=">=1.5,<3"):
    from pydantic_ai import messages as messages_module
    from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelRequest, ModelResponse
    from pydantic_core import to_jsonable_python

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage


class StoredMessageHistory:
    """The messages of one conversation, as `new_messages()` gives, `message_history=` takes them.

        history = StoredMessageHistory("today", service, app_name="shop", user_id="ann")
        result = await agent.run("Hi", message_history=await history.load())
        await history.store(result.new_messages())

    Every message is one event, JSON that Pydantic AI's own `ModelMessagesTypeAdapter` reads; the
    session is created by the first. TTL and event limit are the service's. Where that would lose
    something, such as bytes that a tool returned, it is kept all the same. What remains is what
    Pydantic AI makes of it: a model that a tool returned comes back as a dict, an image given as
    `BinaryContent` as a `BinaryImage`.

    Args:
        session_id: the conversation, 1 to 256 bytes of UTF-8.
        service: a service for asyncio, which has only the asynchronous methods; or one of
            `sessionstore.sync`, with which those run in threads.
        app_name: 1 to 256 bytes of UTF-8.
        user_id: likewise.
        sync_service: one of `sessionstore.sync` beside one for asyncio, to have both kinds of
            methods without threads. In memory the two would share nothing.

    Raises:
        InvalidArgument: a service is none, or both are of one kind.
    """

    def __init__(
        self,
        session_id: str,
        service: AnyService,
        *,
        app_name: str,
        user_id: str,
        sync_service: sessionstore.sync.SessionService | None = None,
    ) -> None:
        self.session_id = session_id
        self._key = SessionKey(app_name, user_id, session_id)
        self._services = Services("StoredMessageHistory", service, sync_service)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._key!r})"

    async def load(self, limit: int | None = None) -> list[ModelMessage]:
        """The newest messages, oldest first; none if nothing was stored.

        Args:
            limit: most messages to return; None = all. The first may then be the result of a tool
                whose call is left out, which models refuse.

        Raises:
            InvalidArgument: `limit` is negative.
            CorruptData: what is stored is no message.
            BackendError: the store could not be read.

        One round trip, O(messages read).
        """
        return await self._services.arun(self._load, limit)

    def load_sync(self, limit: int | None = None) -> list[ModelMessage]:
        """The newest messages. See `load`.

        Raises:
            NotImplementedError: there is only a service for asyncio.
        """
        return self._services.run(self._load, limit)

    async def store(self, messages: Sequence[ModelMessage]) -> None:
        """Append messages; up to 500 in one atomic step.

        Args:
            messages: a run's `new_messages()`.

        Raises:
            InvalidArgument: a message cannot be serialised or stored; names the path within it.
                LimitExceeded if too large.
            BackendError: the store did not carry it out, or (maybe_applied) did not say so.

        One round trip, O(log N) a message; the first message of a session takes three.
        """
        await self._services.arun(append, self._key, _events(messages))

    def store_sync(self, messages: Sequence[ModelMessage]) -> None:
        """Append messages. See `store`.

        Raises:
            NotImplementedError: there is only a service for asyncio.
        """
        self._services.run(append, self._key, _events(messages))

    async def clear(self) -> None:
        """Remove all messages. State that was stored with the session stays.

        Raises:
            BackendError: the store did not carry it out, or did not say so.

        One round trip, O(1).
        """
        await self._services.arun(clear_events, self._key)

    def clear_sync(self) -> None:
        """Remove all messages. See `clear`.

        Raises:
            NotImplementedError: there is only a service for asyncio.
        """
        self._services.run(clear_events, self._key)

    def _load(self, ops: Ops, limit: int | None) -> Flow[list[ModelMessage]]:
        events = yield from read_events(ops, self._key, limit)
        try:
            return _messages(events)
        except (LookupError, TypeError, ValueError) as error:
            where = f"session {self._key.session_id!r}"
            raise CorruptData(
                f"{where} holds what is no message of Pydantic AI ({type(error).__name__})",
                key=where,
            ) from None


def _events(messages: Iterable[ModelMessage]) -> list[Event]:
    return [_event(message, f"messages[{number}]") for number, message in enumerate(messages)]


def _event(message: ModelMessage, path: str) -> Event:
    """A message as an event.

    Raises:
        InvalidArgument: it cannot be serialised; names the path.
    """
    if not isinstance(message, (ModelRequest, ModelResponse)):
        raise InvalidArgument(f"{path} must be a ModelMessage, not {type(message).__name__}")
    content = _SHAPES.plain(message)
    return _read_back(message, path) if content is None else VerifiedEvent(message.kind, content)


def _comes_back(content: dict[str, Any], message: ModelMessage) -> bool:
    try:
        return _messages([Event(message.kind, content)]) == [message]
    except (LookupError, TypeError, ValueError):
        return False


# Those of which `__post_init__` looks at the types of parts, or notes something of its own.
_HARMLESS = {
    getattr(getattr(messages_module, name, None), "__post_init__", None)
    for name in ("ModelRequest", "ModelResponse", "UserPromptPart", "BaseToolCallPart")
}

_SHAPES = Shapes(_comes_back, harmless=_HARMLESS)


def _read_back(message: ModelMessage, path: str) -> Event:
    """A message as an event, of which nothing is known before."""
    try:
        [content] = ModelMessagesTypeAdapter.dump_python([message], mode="json", warnings=False)
    except (ValueError, TypeError) as error:
        where, part = _search(message, path)
        raise InvalidArgument(
            f"{where} is a {type(part).__name__}, which Pydantic AI does not serialise "
            f"({type(error).__name__})"
        ) from None
    event = Event(message.kind, content)
    try:
        if _messages([event]) == [message] and is_carried(content):
            return event
    except UnicodeEncodeError:
        return event  # to be refused with the path
    except ValueError as error:
        raise InvalidArgument(
            f"{path} would not be read back by Pydantic AI ({type(error).__name__})"
        ) from None
    content = _packed(message)
    if content is None:
        return event
    return Event(message.kind, content, metadata={"packed": True})


def _packed(message: ModelMessage) -> Any:
    """A message with all that its JSON loses; None if that does not give it back either."""
    try:
        [content] = ModelMessagesTypeAdapter.dump_python([message], warnings=False)
        packed = pack(content)
        same = is_carried(packed)
        [back] = ModelMessagesTypeAdapter.validate_python([unpack(packed)])
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    return packed if same and back == message else None


def _messages(events: Sequence[Event]) -> list[ModelMessage]:
    """The messages of events.

    Raises:
        LookupError, TypeError, ValueError: one of them holds none.
    """
    # As JSON, in which bytes are base64.
    plain = [event.content for event in events if not event.metadata.get("packed")]
    found = iter(ModelMessagesTypeAdapter.validate_json(msgspec.json.encode(plain)))
    packed = [unpack(event.content) for event in events if event.metadata.get("packed")]
    revived = iter(ModelMessagesTypeAdapter.validate_python(packed))
    return [next(revived if event.metadata.get("packed") else found) for event in events]


def _search(value: Any, path: str) -> tuple[str, Any]:
    """The innermost part that is at fault of a value which cannot be serialised."""
    parts: Iterable[tuple[str, Any]] = ()
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        parts = [(f".{field.name}", getattr(value, field.name)) for field in fields]
    elif isinstance(value, dict):
        parts = [(f"[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"[{number}]", part) for number, part in enumerate(value)]
    for step, part in parts:
        try:
            to_jsonable_python(part)
        except (ValueError, TypeError):
            return _search(part, path + step)
    return path, value
