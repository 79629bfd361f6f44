"""LangChain: a `BaseChatMessageHistory` that is kept in sessionstore."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

import sessionstore.sync

from ..calls import Flow
from ..errors import CorruptData, InvalidArgument, LimitExceeded
from ..model import Event, SessionKey
from ..ops import Ops
from . import framework
from .flows import AnyService, Services, append, clear_events, read_events
from .packing import pack, unpack

with framework("langchain-core", extra="langchain", tested=">=0.3,<2"):
    from langchain_core.chat_history import BaseChatMessageHistory
    from langchain_core.messages import BaseMessage, message_to_dict, messages_from_dict

_PACKED = {"packed": True}  # metadata of an event whose content went through `pack`


class StoredChatMessageHistory(BaseChatMessageHistory):
    """The messages of one conversation, of every type that LangChain can read back.

    Every message is one event; the session is created by the first. TTL and event limit are the
    service's. Bytes, instants and tuples inside a message come back as what they were; a pydantic
    model inside one comes back as a dict, which is what LangChain makes of it.

    Args:
        session_id: the conversation, 1 to 256 bytes of UTF-8.
        service: a service of `sessionstore.sync`, with which the asynchronous methods run in
            threads; or one for asyncio, which has only those.
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

        Raises:
            CorruptData: what is stored is no message.
            BackendError: the store could not be read.

        One round trip, O(messages).
        """
        return await self._services.arun(self._read)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages. See `aadd_messages`.

        Raises:
            NotImplementedError: there is only a service for asyncio.
        """
        events = _events(messages)
        try:
            self._services.run(append, self._key, events)
        except InvalidArgument as refusal:
            self._services.run(append, self._key, _packed(events, refusal))

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages; up to 500 in one atomic step.

        Raises:
            InvalidArgument: a message holds what cannot be stored; names the path. Or it is of a
                class that LangChain would read back as another. LimitExceeded if too large.
            BackendError: the store did not carry it out, or (maybe_applied) did not say so.

        One round trip, O(log N) a message; the first message of a session takes three.
        """
        events = _events(messages)
        try:
            await self._services.arun(append, self._key, events)
        except InvalidArgument as refusal:
            await self._services.arun(append, self._key, _packed(events, refusal))

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
        events = yield from read_events(ops, self._key)
        return [_message(event, self._key) for event in events]


_proven: set[type[BaseMessage]] = set()  # classes that LangChain reads back as themselves


def _events(messages: Sequence[BaseMessage]) -> list[Event]:
    for number, message in enumerate(messages):
        if type(message) not in _proven:
            _prove(message, number)
    return [Event(message.type, message_to_dict(message)) for message in messages]


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


def _packed(events: list[Event], refusal: InvalidArgument) -> list[Event]:
    """Events that were refused in a form that any codec carries.

    Appending them all again is safe: one that was stored before another was refused is the same,
    so it is found to be there.

    Raises:
        InvalidArgument: the refusal, if that would not help.
    """
    if isinstance(refusal, LimitExceeded):
        raise refusal
    try:
        contents = [pack(event.content) for event in events]
    except RecursionError:
        raise refusal from None
    if all(event.content == content for event, content in zip(events, contents, strict=True)):
        raise refusal
    return [
        event
        if event.content == content
        else msgspec.structs.replace(event, content=content, metadata=_PACKED)
        for event, content in zip(events, contents, strict=True)
    ]


def _message(event: Event, key: SessionKey) -> BaseMessage:
    try:
        content = unpack(event.content) if event.metadata.get("packed") else event.content
        [message] = messages_from_dict([content])
    except (KeyError, TypeError, ValueError) as error:
        where = f"event {event.id!r} of session {key.session_id!r}"
        raise CorruptData(
            f"{where} is no LangChain message ({type(error).__name__})", key=where
        ) from None
    return message
