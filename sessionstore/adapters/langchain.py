"""LangChain: a `BaseChatMessageHistory` that is kept in sessionstore."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec

import sessionstore.sync

from ..calls import Flow
from ..errors import CorruptData, InvalidArgument
from ..model import Event, JsonEvent, SessionKey
from ..ops import Ops
from . import framework
from .flows import AnyService, Services, Turns, clear_events, read_turns
from .packing import is_carried, pack, unpack

with framework("langchain-core", extra="langchain", tested=">=0.3,<2"):
    from langchain_core.chat_history import BaseChatMessageHistory
    from langchain_core.messages import BaseMessage, message_to_dict, messages_from_dict

_PACKED = {"packed": True}  # metadata of an event whose content went through `pack`
_TEXT = {"packed": True, "json": True}  # and is JSON, as a text


class StoredChatMessageHistory(BaseChatMessageHistory):
    """The messages of one conversation, of every type that LangChain can read back.

    Every message is one event, the JSON of LangChain's `message_to_dict`. The session is created by
    the first. TTL and event limit are the service's. Bytes, datetimes and tuples inside a message
    keep their type; a pydantic model inside one is read back as a dict, as LangChain does it.

    Args:
        session_id: the conversation, 1 to 256 bytes of UTF-8.
        service: a service of `sessionstore.sync`, with which the asynchronous methods run in
            threads; or one for asyncio, which has only those.
        app_name: 1 to 256 bytes of UTF-8.
        user_id: likewise.
        sync_service: one of `sessionstore.sync` beside one for asyncio, to have both kinds of
            methods without threads. In memory the two would share nothing.

    Raises:
        InvalidArgument: a service is not valid, or both are of one kind.
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
        super().__init__()
        self.session_id = session_id
        self._key = SessionKey(app_name, user_id, session_id)
        self._services = Services("StoredChatMessageHistory", service, sync_service)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._key!r})"

    @property
    def messages(self) -> list[BaseMessage]:
        """All messages, oldest first. See `aget_messages`.

        Raises:
            NotImplementedError: there is only a service for asyncio.
        """
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
            BackendError: the store could not be read.

        One round trip, O(messages).
        """
        return await self._services.arun(self._read)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages. See `aadd_messages`.

        Raises:
            NotImplementedError: there is only a service for asyncio.
        """
        self._services.append(self._key, _events(messages), have_ids=_have_ids(messages))

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages; up to 500 in one atomic step. A repeat stores nothing twice.

        Raises:
            InvalidArgument: a message holds what cannot be stored; names the path. Or it is of a
                class that LangChain would read back as another. LimitExceeded if too large.
            BackendError: the store did not carry it out, or (maybe_applied) did not say so. The
                same call may be repeated.

        One round trip, O(log N) a message; the first message of a session takes three. One more if
        it is the first call of this object and all messages have ids: it looks for a repeat.
        """
        events = _events(messages)
        await self._services.aappend(self._key, events, have_ids=_have_ids(messages))

    def clear(self) -> None:
        """Remove all messages. See `aclear`.

        Raises:
            NotImplementedError: there is only a service for asyncio.
        """
        self._services.run(clear_events, self._key)

    async def aclear(self) -> None:
        """Remove all messages. State that was stored with the session stays.

        Raises:
            BackendError: the store did not carry it out, or did not say so.

        One round trip, O(1).
        """
        await self._services.arun(clear_events, self._key)

    def _read(self, ops: Ops) -> Flow[list[BaseMessage]]:
        def read(event: Event) -> BaseMessage:
            return _message(event, self._key)

        return (yield from read_turns(ops, self._key, None, read, _TURNS)).shown


_proven: set[type[BaseMessage]] = set()  # classes that LangChain reads back as themselves


def _events(messages: Sequence[BaseMessage]) -> list[Event]:
    for number, message in enumerate(messages):
        if type(message) not in _proven:
            _prove(message, number)
    return [_event(message) for message in messages]


def _have_ids(messages: Sequence[BaseMessage]) -> bool:
    return all(message.id for message in messages)


def _prove(message: BaseMessage, number: int) -> None:
    kind = type(message)
    if not isinstance(message, BaseMessage):
        raise InvalidArgument(f"messages[{number}] must be a BaseMessage, not {kind.__name__}")
    try:
        [back] = messages_from_dict([message_to_dict(message)])
    except ValueError:
        raise InvalidArgument(
            f"messages[{number}] is a {kind.__name__}, which LangChain cannot read back"
        ) from None
    if type(back) is not kind:
        raise InvalidArgument(
            f"messages[{number}] is a {kind.__name__}, which LangChain would read back as "
            f"{type(back).__name__}"
        )
    _proven.add(kind)


def _event(message: BaseMessage) -> Event:
    """A message as an event, packed if JSON would not give it back."""
    content = message_to_dict(message)
    if is_carried(content):
        return JsonEvent(message.type, msgspec.Raw(msgspec.json.encode(content)))
    try:
        content = pack(content)
        text = json.dumps(content)
    except (TypeError, ValueError, RecursionError):
        return JsonEvent(message.type, content)  # to be refused with the path
    try:
        return JsonEvent(message.type, msgspec.Raw(msgspec.json.encode(content)), metadata=_PACKED)
    except UnicodeEncodeError:  # a part of a surrogate pair
        return JsonEvent(message.type, msgspec.Raw(msgspec.json.encode(text)), metadata=_TEXT)


def _message(event: Event, key: SessionKey) -> BaseMessage:
    try:
        content = event.content
        if event.metadata.get("json"):
            content = json.loads(content)
        if event.metadata.get("packed"):
            content = unpack(content)
        [message] = messages_from_dict([content])
    except (KeyError, TypeError, ValueError) as error:
        where = f"event {event.id!r} of session {key.session_id!r}"
        raise CorruptData(
            f"{where} is not a LangChain message ({type(error).__name__})", key=where
        ) from None
    return message


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
