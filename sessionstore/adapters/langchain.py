"""LangChain: a `BaseChatMessageHistory` that is kept in sessionstore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..calls import Flow
from ..errors import InvalidArgument
from ..model import Event
from ..ops import Ops
from . import framework
from .histories import HistoryAdapter, Turns, read_turns
from .json_events import REFUSALS, dict_of, json_event, not_read, with_sorted_sets
from .packing import unpack
from .session_flows import clear_events

with framework("langchain-core", extra="langchain", tested=">=0.3,<2"):
    from langchain_core.chat_history import BaseChatMessageHistory
    from langchain_core.messages import BaseMessage, message_to_dict, messages_from_dict
    from pydantic_core import to_jsonable_python


class StoredChatMessageHistory(HistoryAdapter, BaseChatMessageHistory):
    """The messages of one conversation, of every type that LangChain can read back.

    Every message is one event, the JSON of LangChain's `message_to_dict`. What JSON lacks is stored
    as pydantic writes it: bytes as Base64 text, a datetime as ISO text, a tuple or a set as a list.

    The arguments, and what all methods raise, are those of `HistoryAdapter`.
    """

    @property
    def messages(self) -> list[BaseMessage]:
        """All messages, oldest first. See `aget_messages`."""
        return self._services.run(self._read)

    @messages.setter
    def messages(self, messages: list[BaseMessage]) -> None:
        raise NotImplementedError("messages cannot be assigned: use clear and add_messages")

    async def aget_messages(self) -> list[BaseMessage]:
        """All messages, oldest first.

        If older messages were trimmed, the first message is from a person or the application, and
        no result of a tool is without its call.

        Raises:
            CorruptData: what is stored is not a message.

        One round trip, O(messages).
        """
        return await self._services.arun(self._read)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages. See `aadd_messages`."""
        self._append(_events(messages), _have_ids(messages))

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages; up to 500 in one atomic step. A repeat stores nothing twice.

        Raises:
            InvalidArgument: a message holds what cannot be stored; names the path. Or it is of a
                class that LangChain would read back as another. LimitExceeded if too large.

        One round trip, O(log N) a message; the first message of a session takes three. One more if
        it is the first call of this object and all messages have ids: it looks for a repeat.
        """
        await self._aappend(_events(messages), _have_ids(messages))

    def clear(self) -> None:
        """Remove all messages. See `aclear`."""
        self._services.run(clear_events, self._key)

    async def aclear(self) -> None:
        """Remove all messages; state that was stored with the session stays. One round trip."""
        await self._services.arun(clear_events, self._key)

    def _read(self, ops: Ops) -> Flow[list[BaseMessage]]:
        return (yield from read_turns(ops, self._key, None, self._message, _TURNS)).shown

    def _message(self, event: Event) -> BaseMessage:
        content = dict_of(event, self._key, "a LangChain message")
        try:
            if event.metadata.get("packed"):  # by release 0.1.0
                content = unpack(content)
            return messages_from_dict([content])[0]
        except REFUSALS:
            raise not_read(event, self._key, "a LangChain message") from None


def _events(messages: Sequence[BaseMessage]) -> list[Event]:
    return [_event(message, f"messages[{number}]") for number, message in enumerate(messages)]


def _event(message: BaseMessage, path: str) -> Event:
    kind = type(message)
    if not isinstance(message, BaseMessage):
        raise InvalidArgument(f"{path} must be a BaseMessage, not {kind.__name__}")
    content = message_to_dict(message)
    try:
        [back] = messages_from_dict([content])
    except ValueError:
        raise InvalidArgument(
            f"{path} is a {kind.__name__}, which LangChain cannot read back"
        ) from None
    if type(back) is not kind:
        raise InvalidArgument(
            f"{path} is a {kind.__name__}, which LangChain would read back as {type(back).__name__}"
        )
    return json_event(message.type, content, path, _to_json_values)


def _to_json_values(value: Any) -> Any:
    return to_jsonable_python(with_sorted_sets(value), bytes_mode="base64")


def _have_ids(messages: Sequence[BaseMessage]) -> bool:
    return all(message.id for message in messages)


# -- where a model may begin to read ---------------------------------------------------------------


def _starts_turn(message: BaseMessage) -> bool:
    """Whether a person or the application speaks."""
    role = getattr(message, "role", "")
    return message.type in ("human", "system") or role in ("user", "system", "developer")


def _calls(message: BaseMessage) -> tuple[list[str], list[str]]:
    """The ids of the calls that a message makes, and of the call whose result it is."""
    made = [*getattr(message, "tool_calls", ()), *getattr(message, "invalid_tool_calls", ())]
    result = getattr(message, "tool_call_id", None)
    return [call["id"] for call in made if call["id"]], [] if result is None else [result]


_TURNS: Turns[BaseMessage] = Turns(
    _starts_turn, _calls, is_inside=lambda message: any(_calls(message))
)
