"""Pydantic AI: the message history of a conversation, loaded and stored."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from ..calls import Flow
from ..errors import InvalidArgument
from ..model import Event, JsonEvent, SessionKey
from ..ops import Ops
from . import framework
from .histories import HistoryAdapter, Turns, read_turns
from .json_events import REFUSALS, find_fault, not_read, with_sorted_sets
from .packing import unpack
from .session_flows import append, clear_events

with framework("pydantic-ai-slim", extra="pydantic-ai", tested=">=1.5,<3"):
    from pydantic_ai import messages as m
    from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelRequest, ModelResponse
    from pydantic_core import to_json

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class StoredMessageHistory(HistoryAdapter):
    """The messages of one conversation, as `new_messages()` gives them.

        history = StoredMessageHistory("today", service, app_name="shop", user_id="ann")
        result = await agent.run("Hi", message_history=await history.load())
        await history.store(result.new_messages())

    Every message is one event. Its content is the JSON of Pydantic AI's `ModelMessagesTypeAdapter`,
    so what is loaded is what that adapter gives back: bytes in a tool's result become Base64 text,
    a model becomes a dict, NaN becomes None.

    The arguments, and what all methods raise, are those of `HistoryAdapter`.
    """

    async def load(self, limit: int | None = None) -> list[ModelMessage]:
        """The newest messages, oldest first; empty if nothing was stored.

        They never begin inside a turn, or with the result of a tool whose call was left out. So
        there may be fewer than `limit`. The newest turn is always whole, so there may be more.

        Args:
            limit: about how many messages to return; None = all.

        Raises:
            InvalidArgument: `limit` is negative.
            CorruptData: what is stored is not a message.

        One round trip, a few more if the newest turn is longer than `limit`; O(messages read).
        """
        return await self._services.arun(self._load, limit)

    def load_sync(self, limit: int | None = None) -> list[ModelMessage]:
        """The newest messages. See `load`."""
        return self._services.run(self._load, limit)

    async def store(self, messages: Sequence[ModelMessage]) -> None:
        """Append messages; up to 500 in one atomic step.

        It is safe to repeat after any error: a message that is stored already is not stored again.
        Messages are the same if their JSON is, with ids and timestamps, and they stand in the same
        place among their equals in the call.

        Args:
            messages: a run's `new_messages()`.

        Raises:
            InvalidArgument: Pydantic AI cannot serialize a message, or could not read it back;
                names the part. LimitExceeded if it is too large.

        One round trip, O(log N) a message; the first message of a session takes three.
        """
        await self._services.arun(append, self._key, message_events(messages, "messages"))

    def store_sync(self, messages: Sequence[ModelMessage]) -> None:
        """Append messages. See `store`."""
        self._services.run(append, self._key, message_events(messages, "messages"))

    async def clear(self) -> None:
        """Remove all messages; state that was stored with the session stays. One round trip."""
        await self._services.arun(clear_events, self._key)

    def clear_sync(self) -> None:
        """Remove all messages. See `clear`."""
        self._services.run(clear_events, self._key)

    def _load(self, ops: Ops, limit: int | None) -> Flow[list[ModelMessage]]:
        if limit == 0:
            return []
        read = partial(read_message, key=self._key)
        return (yield from read_turns(ops, self._key, limit, read, _TURNS)).shown


# -- turns ---------------------------------------------------------------------------------------


def _starts_turn(message: ModelMessage) -> bool:
    """Whether a message is a prompt, and not the result of a tool."""
    kinds = (m.UserPromptPart, m.SystemPromptPart)
    is_prompt = any(isinstance(part, kinds) for part in message.parts)
    return is_prompt and not _calls(message)[1]


def _calls(message: ModelMessage) -> tuple[list[str], list[str]]:
    """The ids of the tool calls that a message makes, and of those whose results it holds."""
    opened, closed = [], []
    for part in message.parts:
        if isinstance(part, m.ToolCallPart):
            opened.append(part.tool_call_id)
        elif isinstance(part, m.ToolReturnPart) or (
            isinstance(part, m.RetryPromptPart) and part.tool_name is not None
        ):
            closed.append(part.tool_call_id)
    return opened, closed


def _is_inside(message: ModelMessage) -> bool:
    """Whether a message needs others before it.

    A response that belongs to no run and calls no tool may be a greeting of the application.
    """
    is_of_run = message.kind == "response" and getattr(message, "run_id", None) is not None
    return is_of_run or any(_calls(message))


_TURNS = Turns(_starts_turn, _calls, _is_inside)


# -- events --------------------------------------------------------------------------------------


def message_events(messages: Iterable[ModelMessage], path: str) -> list[Event]:
    """Messages as events, whose ids are hashes of their JSON.

    Raises:
        InvalidArgument: Pydantic AI cannot serialize a message, or could not read it back; names
            the part. `path` is what an error calls the messages.
    """
    events: list[Event] = []
    seen: Counter[str] = Counter()
    at = _EPOCH
    for number, message in enumerate(messages):
        data = _dump(message, f"{path}[{number}]")
        at = _timestamp(message) or at
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        event_id = f"{digest}-{seen[digest]}" if seen[digest] else digest
        seen[digest] += 1
        events.append(JsonEvent(message.kind, msgspec.Raw(data), id=event_id, timestamp=at))
    return events


def _dump(message: ModelMessage, path: str) -> bytes:
    """The JSON of a message, by Pydantic AI's own serializer. Sets are sorted."""
    if not isinstance(message, (ModelRequest, ModelResponse)):
        raise InvalidArgument(f"{path} must be a ModelMessage, not {type(message).__name__}")
    try:
        data = ModelMessagesTypeAdapter.dump_json([with_sorted_sets(message)], warnings=False)
    except REFUSALS as error:
        where, part = find_fault(message, path, partial(to_json, bytes_mode="base64"))
        raise InvalidArgument(
            f"{where} is a {type(part).__name__} that Pydantic AI cannot serialize "
            f"({type(error).__name__})"
        ) from None
    try:
        ModelMessagesTypeAdapter.validate_json(data)
    except ValueError as error:
        raise InvalidArgument(
            f"{path} would not be read back by Pydantic AI ({type(error).__name__})"
        ) from None
    return bytes(data[1:-1])


def _timestamp(message: ModelMessage) -> datetime | None:
    """When a message was made, as it or a part of it says."""
    for each in (message, *message.parts):
        at = getattr(each, "timestamp", None)
        if isinstance(at, datetime):
            return at if at.tzinfo else at.replace(tzinfo=UTC)
    return None


def read_message(event: Event, key: SessionKey) -> ModelMessage:
    """The message of an event, by Pydantic AI's own reader.

    Raises:
        CorruptData: the event is not a message.
    """
    try:
        if event.metadata.get("packed"):  # by release 0.1.0
            return ModelMessagesTypeAdapter.validate_python([unpack(event.content)])[0]
        return ModelMessagesTypeAdapter.validate_json(msgspec.json.encode([event.content]))[0]
    except REFUSALS:
        raise not_read(event, key, "a message of Pydantic AI") from None
