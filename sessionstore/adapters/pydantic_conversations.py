"""Pydantic AI: a `ConversationStore`, which it has since release 2.68."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from .. import flows
from ..calls import Flow
from ..errors import CorruptData, SessionExists, SessionNotFound, StaleVersion
from ..model import EventPage, Session, SessionKey
from ..ops import EVENTS_PER_CALL_LIMIT, Ops, ids_of
from ..times import to_us
from . import framework
from .json_events import with_sorted_sets
from .pydantic_ai import message_events, read_message
from .services import AnyService, Services
from .session_flows import append_with_state, list_all

with framework("pydantic-ai-slim", extra="pydantic-ai", tested=">=1.5,<3"):
    from pydantic import ConfigDict, TypeAdapter
    from pydantic_ai.conversation_store import (
        ConversationConflict,
        ConversationEntry,
        ConversationRecord,
        ConversationStore,
    )

_RECORD = "record"  # the state key; None = the conversation is being deleted
_ATTEMPTS = 5  # others may create and delete the session in between, but not forever
_HOMES_LIMIT = 10_000
_PAGES = (64, 1000)  # events in the first page of a history, and in the others

_records = TypeAdapter(
    list[ConversationRecord],
    config=ConfigDict(defer_build=True, ser_json_bytes="base64", val_json_bytes="base64"),
)


class StoredConversationStore(ConversationStore):
    """Pydantic AI's `ConversationStore` on Redis or in memory: whole conversations, with branches.

        store = StoredConversationStore(service, app_name="shop", user_id="ann")
        conversation = await store.load("today") or Conversation(conversation_id="today")
        result = await agent.run("Hi", conversation=conversation)
        await store.save(result)

    A conversation is a session, an entry is an event, and the record is state of the session. An
    entry and the record that points at it are written in one atomic step, up to 500 entries a step.
    A fork gets copies of the entries, so a conversation shares nothing: it expires and is deleted
    alone, with all of its messages. TTL and event limit are those of the service; if a conversation
    has more entries than the limit, abandoned branches included, its oldest are trimmed and
    its history begins later.

    Args:
        service: a service for asyncio, or one of `sessionstore.sync`, which runs in threads.
        app_name: 1 to 256 bytes of UTF-8.
        user_id: likewise; whose conversations they are. `scope` divides these further.

    Raises:
        InvalidArgument: a service is not valid. Methods: an id is not valid, or Pydantic AI cannot
            serialize a message. LimitExceeded: it is too large.
        CorruptData: methods: what is stored is not a conversation.
        BackendError: methods: the store refused the call, or did not answer.
    """

    def __init__(self, service: AnyService, *, app_name: str, user_id: str) -> None:
        self._app_name = app_name
        self._user_id = user_id
        self._services = Services("StoredConversationStore", service)
        # In which conversation an entry is: a hint that saves a search.
        self._homes: dict[str, str] = {}

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}({self._services!r}, app_name={self._app_name!r}, user_id={self._user_id!r})"

    async def read_record(self, conversation_id: str) -> ConversationRecord | None:
        """The record of a conversation; None if it is not stored. One round trip."""
        _, record = await self._services.arun(self._read_stored, self._key(conversation_id))
        return record

    async def read_records(
        self, *, scope: str | None = None, limit: int | None = None
    ) -> list[ConversationRecord]:
        """The records, or those with the given scope, the last saved first.

        Two round trips for every 1,000 conversations; it stops when it has found `limit` of them.
        """
        found = await self._services.arun(self._list, scope, limit)
        found.sort(key=lambda record: record.updated_at, reverse=True)
        return found[:limit]

    async def write_record(
        self,
        record: ConversationRecord,
        *,
        new_entries: Sequence[ConversationEntry] = (),
        expected_revision: str | None,
    ) -> None:
        """Store a record and its new entries. Two round trips.

        Raises:
            ConversationConflict: the stored revision is not the expected one, or the head is not
                stored.
        """
        await self._services.arun(self._write, record, list(new_entries), expected_revision)

    async def delete_record(self, conversation_id: str, *, expected_revision: str) -> None:
        """Delete a conversation with all of its entries. Three round trips.

        Raises:
            ConversationConflict: the stored revision is not the expected one.
        """
        await self._services.arun(self._delete, conversation_id, expected_revision)

    async def read_entry(self, entry_id: str) -> ConversationEntry:
        """An entry. See `read_history`.

        Raises:
            LookupError: it is not stored: deleted, or trimmed.
        """
        [entry] = await self.read_history(entry_id, limit=1)
        return entry

    async def read_history(
        self, head_id: str | None, *, limit: int | None = None
    ) -> list[ConversationEntry]:
        """The entries up to one of them, oldest first, or only the last `limit` of these.

        One round trip for every 1,000 entries. If the store object has not loaded the entry, it
        searches all conversations of the user.

        Raises:
            LookupError: the entry is not stored: deleted, or trimmed.
        """
        if head_id is None or limit == 0:
            return []
        return await self._services.arun(self._find_history, head_id, limit)

    # -- flows -----------------------------------------------------------------------------------

    def _key(self, conversation_id: str) -> SessionKey:
        return SessionKey(self._app_name, self._user_id, conversation_id)

    def _read_stored(
        self, ops: Ops, key: SessionKey
    ) -> Flow[tuple[Session | None, ConversationRecord | None]]:
        """The session of a conversation, without events, and its record."""
        session = yield from flows.get_session(ops, key, 0, None)
        if session is not None and session.state.get(_RECORD, _RECORD) is None:
            yield from _drop(ops, session)  # a deletion was begun
            session = None
        return session, None if session is None else self._record(session)

    def _list(
        self, ops: Ops, scope: str | None, limit: int | None
    ) -> Flow[list[ConversationRecord]]:
        def convert(session: Session) -> ConversationRecord | None:
            record = self._record(session)
            return record if record and scope in (None, record.scope) else None

        return (yield from list_all(ops, self._app_name, self._user_id, 0, limit, convert))

    def _write(
        self,
        ops: Ops,
        record: ConversationRecord,
        entries: list[ConversationEntry],
        expected: str | None,
    ) -> Flow[None]:
        key = self._key(record.conversation_id)
        is_sent = False
        for _ in range(_ATTEMPTS):
            session, stored = yield from self._read_stored(ops, key)
            revision = None if stored is None else stored.revision
            if is_sent and revision == record.revision:
                return
            if revision != expected:
                break
            try:
                if session is None:
                    session = yield from flows.create_session(ops, *ids_of(key), None)
                missing = yield from self._missing(ops, key, record.head_id, entries)
                is_sent = True
                if (yield from _write_to(ops, session, record, [*missing, *entries])):
                    self._remember(key.session_id, (record.head_id, *record.branches))
                    return
            except (SessionExists, SessionNotFound, StaleVersion):
                continue
        raise ConversationConflict(record.conversation_id)

    def _missing(
        self, ops: Ops, key: SessionKey, head_id: str | None, entries: list[ConversationEntry]
    ) -> Flow[list[ConversationEntry]]:
        """The entries of a history that are stored only in other conversations: that of a fork."""
        if head_id is None or any(entry.id == head_id for entry in entries):
            return []
        if (yield from self._read_history(ops, key, head_id, 1)):
            return []
        try:
            return (yield from self._find_history(ops, head_id, None))
        except LookupError:
            raise ConversationConflict(key.session_id) from None

    def _delete(self, ops: Ops, conversation_id: str, expected: str) -> Flow[None]:
        for _ in range(_ATTEMPTS):
            session, stored = yield from self._read_stored(ops, self._key(conversation_id))
            if session is None or stored is None or stored.revision != expected:
                break
            try:
                yield from flows.update_session_state(
                    ops, session, {_RECORD: None}, (), session.version
                )
            except (SessionNotFound, StaleVersion):
                continue
            yield from _drop(ops, session)
            return
        raise ConversationConflict(conversation_id)

    def _find_history(
        self, ops: Ops, head_id: str, limit: int | None
    ) -> Flow[list[ConversationEntry]]:
        """The history of an entry, in whichever conversation it is."""
        if head_id in self._homes:
            key = self._key(self._homes[head_id])
            if found := (yield from self._read_history(ops, key, head_id, limit)):
                return found
        for record in (yield from self._list(ops, None, None)):
            key = self._key(record.conversation_id)
            if found := (yield from self._read_history(ops, key, head_id, limit)):
                return found
        raise LookupError(f"entry {head_id!r} is not stored: it was deleted or trimmed")

    def _read_history(
        self, ops: Ops, key: SessionKey, head_id: str, limit: int | None
    ) -> Flow[list[ConversationEntry]]:
        """The history of an entry in one conversation; empty if it is not there.

        A parent is stored before its children, so one walk backwards meets all of them.
        """
        found: list[ConversationEntry] = []
        wanted: str | None = head_id
        before: int | None = None
        size = _PAGES[0]
        while wanted is not None and (limit is None or len(found) < limit):
            try:
                page: EventPage = yield from flows.get_events(
                    ops, key, None, before, size, newest=before is None
                )
            except SessionNotFound:
                break
            for event in reversed(page.events):
                if event.id == wanted and (limit is None or len(found) < limit):
                    wanted = event.metadata.get("parent")
                    message = read_message(event, key)
                    found.append(ConversationEntry(id=event.id, parent_id=wanted, message=message))
            if len(page.events) < size:
                break
            before, size = page.first, _PAGES[1]
        self._remember(key.session_id, (entry.id for entry in found))
        return found[::-1]

    def _record(self, session: Session) -> ConversationRecord | None:
        """The record in a session; None without one."""
        value = session.state.get(_RECORD)
        if value is None:
            return None
        try:
            [record] = _records.validate_json(msgspec.json.encode([value]))
        except ValueError as error:
            where = f"session {session.id!r}"
            raise CorruptData(
                f"{where} holds a record that is not of Pydantic AI ({type(error).__name__})",
                key=where,
            ) from None
        self._remember(session.id, (record.head_id, *record.branches))
        return record

    def _remember(self, home: str, entry_ids: Iterable[str | None]) -> None:
        if len(self._homes) > _HOMES_LIMIT:
            self._homes.clear()
        self._homes.update((each, home) for each in entry_ids if each is not None)


def _write_to(
    ops: Ops, session: Session, record: ConversationRecord, entries: list[ConversationEntry]
) -> Flow[bool]:
    """Write a record and entries to a session as it was read.

    Returns:
        Whether the record was written. If not, the last entry was stored before: by an attempt
        whose reply was lost, which has written the record.
    """
    [value] = msgspec.json.decode(_records.dump_json([with_sorted_sets(record)], warnings=False))
    state = {_RECORD: value}
    made = message_events([entry.message for entry in entries], "new_entries")
    events = [
        msgspec.structs.replace(event, id=entry.id, metadata={"parent": entry.parent_id})
        for event, entry in zip(made, entries, strict=True)
    ]
    if not events:
        yield from flows.update_session_state(ops, session, state, (), session.version)
        return True
    while len(events) > EVENTS_PER_CALL_LIMIT:
        batch, events = events[:EVENTS_PER_CALL_LIMIT], events[EVENTS_PER_CALL_LIMIT:]
        yield from flows.append_events(ops, session, batch, session.version)
    written = yield from append_with_state(ops, session, events, state)
    return not written.num_duplicates


def _drop(ops: Ops, session: Session) -> Flow[None]:
    """Delete a session, and not one that was created under its id since."""
    existed_us = to_us(session.created_at)
    yield ops.delete_sessions(session.app_name, session.user_id, existed_us, [session.id])
