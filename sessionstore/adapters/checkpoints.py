"""LangGraph's checkpoints and writes as they stand in the log and the state of sessions."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Any

import msgspec

from .. import flows
from ..calls import Flow
from ..errors import CorruptData, InvalidArgument, SessionNotFound
from ..model import SessionKey
from ..ops import Ops
from .flows import append, create_if_missing, read_log

_CHECKPOINT = "checkpoint/"  # + checkpoint id
_WRITE = "write/"  # + [checkpoint id, task id, index] as JSON

PAGE_LIMIT = 100
"""Events of a log, or sessions of an index, that are read at once."""

_ID_LIMIT = 256  # bytes of a session id
_REMOVED_LIMIT = 5_000  # state keys that one call removes
_SESSIONS_LIMIT = 10_000  # sessions whose state keys are remembered

_UUID6 = re.compile("([0-9a-f]{8})-([0-9a-f]{4})-6([0-9a-f]{3})-[0-9a-f]{4}-[0-9a-f]{12}")
_UUID_EPOCH = datetime(1582, 10, 15, tzinfo=UTC)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_decode_json = msgspec.json.Decoder().decode
_encode_json = msgspec.json.Encoder().encode


class Serialized(msgspec.Struct, array_like=True):
    """What the saver's serde made of a value; as JSON a list of type and base64."""

    type: str
    data: bytes


class StoredCheckpoint(msgspec.Struct):
    """A checkpoint as it is stored, under `checkpoint/ID`.

    Attributes:
        namespace: its namespace.
        parent: id of the checkpoint that it follows.
        checkpoint: what was put.
        metadata: likewise.
        parent_writes: writes that its parent had by then, as far as the saver knew.
    """

    namespace: str
    parent: str | None
    checkpoint: Serialized
    metadata: Serialized
    parent_writes: int = 0


class StoredWrite(msgspec.Struct):
    """A write as it is stored, under `write/[CHECKPOINT, TASK, INDEX]`."""

    channel: str
    path: str
    value: Serialized


class History(msgspec.Struct):
    """Checkpoints and writes of one thread and namespace, by checkpoint id."""

    checkpoints: dict[str, StoredCheckpoint] = {}
    writes: dict[str, dict[tuple[str, int], StoredWrite]] = {}

    def add(self, state: Mapping[str, Any], key: SessionKey) -> None:
        """Take in a state, or the change of one.

        Raises:
            CorruptData: it was not written by the saver.
        """
        for name, value in state.items():
            try:
                if name.startswith(_CHECKPOINT):
                    found = msgspec.convert(value, StoredCheckpoint)
                    self.checkpoints[name.removeprefix(_CHECKPOINT)] = found
                elif name.startswith(_WRITE):
                    checkpoint_id, task_id, index = _decode_json(name.removeprefix(_WRITE))
                    written = self.writes.setdefault(checkpoint_id, {})
                    written[task_id, index] = msgspec.convert(value, StoredWrite)
            except (TypeError, ValueError) as error:
                where = f"{name!r} of session {key.session_id!r}"
                raise CorruptData(
                    f"{where} was not written by StoredCheckpointSaver ({type(error).__name__})",
                    key=where,
                ) from None

    @property
    def newest(self) -> str:
        """The highest checkpoint id, which is the last; "" if there is none."""
        return max(self.checkpoints, default="")

    def writes_of(self, checkpoint_id: str) -> list[tuple[str, StoredWrite]]:
        """Task and write, in the order in which a run applies them."""
        written = self.writes.get(checkpoint_id, {})
        order = sorted(written, key=lambda place: (written[place].path, *place))
        return [(place[0], written[place]) for place in order]


Put = tuple[str, int]
"""A checkpoint, and how many writes of its parent were known when it was put."""


class StateKeys(msgspec.Struct):
    """State keys of one session that a saver has put or read, so that a put can remove some.

    Only a help to keep state small: one that is not known stays until it is read.

    Attributes:
        owners: the keys, and the checkpoint that each belongs to.
        last_put: the checkpoint that was put last.
        superseded: what that put removed.
        parent_writes: writes that its parent had.
    """

    owners: dict[str, str] = {}
    last_put: str = ""
    superseded: list[str] = []
    parent_writes: int = 0

    def replace(self, gone: list[str], names: Iterable[str], put: Put | None = None) -> None:
        """Forget keys that were removed, remember keys that are there.

        Args:
            gone: what was removed.
            names: what is there.
            put: the checkpoint that was put, if one was, and the writes that its parent had.
        """
        for name in gone:
            self.owners.pop(name, None)
        for name in names:
            self.owners[name] = owner_of(name)
        if put is not None:
            self.last_put, self.parent_writes = put
            self.superseded = gone

    def before(self, checkpoint_id: str, parent: str | None = None) -> tuple[set[str], int]:
        """Those of earlier checkpoints: their writes, and themselves even if not known.

        And how many writes of the parent are known. For the checkpoint that was put last, both
        as they were then: so putting it again is nothing new.
        """
        if checkpoint_id == self.last_put:
            return {*self.superseded}, self.parent_writes
        found: set[str] = set()
        writes = 0
        for name, owner in list(self.owners.items()):  # of which other threads may add some
            if owner < checkpoint_id:
                found.update((name, checkpoint_name(owner)))
            if owner == parent and name.startswith(_WRITE):
                writes += 1
        return found, writes


class Threads:
    """Where a saver's threads are, and what can be done with them whole.

    Flows, but for `known`, `key` and `parent`.

    Args:
        app_name: the application.
        user_id: the user whose sessions the threads are, or a function that tells it.
    """

    def __init__(self, app_name: str, user_id: str | Callable[[str], str]) -> None:
        self._app_name = app_name
        self._user_id = user_id
        self._known: OrderedDict[SessionKey, StateKeys] = OrderedDict()
        self._lock = Lock()

    def known(self, key: SessionKey) -> StateKeys:
        """What is known of a session; of the sessions used last, the others are forgotten."""
        with self._lock:
            found = self._known.get(key)
            if found is None:
                found = self._known[key] = StateKeys()
                if len(self._known) > _SESSIONS_LIMIT:
                    self._known.popitem(last=False)
            else:
                self._known.move_to_end(key)
            return found

    def key(self, thread_id: object, namespace: str) -> SessionKey:
        """The session of a thread's namespace."""
        thread = str(thread_id)
        user_id = self._user_id if isinstance(self._user_id, str) else self._user_id(thread)
        if not namespace:
            return SessionKey(self._app_name, user_id, thread)
        name = namespace.encode()
        if len(name) > _ID_LIMIT:
            namespace = f"sha256:{hashlib.sha256(name).hexdigest()}"
        return SessionKey(self._app_name, f"{user_id}/{thread}", namespace)

    def parent(self, thread_id: object, key: SessionKey) -> SessionKey | None:
        """The thread's own session, if `key` is that of a subgraph's namespace."""
        root = self.key(thread_id, "")
        return None if key == root else root

    def keys(self, ops: Ops, thread_id: str) -> Flow[list[SessionKey]]:
        """A thread's sessions: its own first, then those of its subgraphs."""
        root = self.key(thread_id, "")
        user_id = f"{root.user_id}/{root.session_id}"
        keys = {root: None}
        cursor = None
        while True:
            page = yield from flows.list_sessions(
                ops, self._app_name, user_id, PAGE_LIMIT, 0, 0, cursor
            )
            keys.update((session.key, None) for session in page)
            cursor = page.cursor
            if cursor is None:
                return [*keys]

    def page(self, ops: Ops, offset: int) -> Flow[tuple[list[str], int | None]]:
        """A page of thread ids, the last written first, and where the next page begins, if any.

        Raises:
            InvalidArgument: it cannot be known which threads there are.
        """
        user_id = self._user_id
        if not isinstance(user_id, str):
            raise InvalidArgument("config must name a thread: with a user_id for each, none is all")
        sessions = yield from flows.list_sessions(
            ops, self._app_name, user_id, PAGE_LIMIT, offset, 0
        )
        threads = [session.id for session in sessions]
        return threads, offset + PAGE_LIMIT if len(sessions) == PAGE_LIMIT else None

    def read_state(self, ops: Ops, key: SessionKey) -> Flow[History]:
        """The newest checkpoint with its writes, and what has not been removed yet."""
        history = History()
        session = yield from flows.get_session(ops, key, 0, None)
        if session is not None:
            history.add(session.state, key)
            self.known(key).replace([], filter(is_ours, session.state))
        return history

    def read_history(self, ops: Ops, key: SessionKey) -> Flow[History]:
        """Everything that is there. What the state has is newer than what the log has."""
        history = History()
        events = yield from read_log(ops, key, PAGE_LIMIT)
        for event in events:
            history.add(event.state_delta, key)
        session = yield from flows.get_session(ops, key, 0, None)
        if session is not None:
            history.add(session.state, key)
        return history

    def delete(self, ops: Ops, thread_id: str) -> Flow[None]:
        """Remove a thread with all its namespaces."""
        for key in reversed((yield from self.keys(ops, thread_id))):
            yield from flows.delete_session(ops, key.app_name, key.user_id, key.session_id)

    def copy(self, ops: Ops, source_id: str, target_id: str) -> Flow[None]:
        """Copy a thread with all its namespaces."""
        for source in (yield from self.keys(ops, source_id)):
            session = yield from flows.get_session(ops, source, 0, None)
            if session is None:
                continue
            events = yield from read_log(ops, source, PAGE_LIMIT)
            target = self.key(target_id, "")
            if source.user_id != self.key(source_id, "").user_id:
                target = SessionKey(
                    source.app_name, f"{target.user_id}/{target_id}", source.session_id
                )
            yield from append(ops, target, events, self.parent(target_id, target))
            # The newest may stand in the state only, when the log was trimmed or pruned.
            state = {name: value for name, value in session.state.items() if is_ours(name)}
            yield from _update_state(ops, target, state)

    def remove_state(self, ops: Ops, key: SessionKey, names: Sequence[str]) -> Flow[None]:
        """Remove state keys of a session that is there."""
        for first in range(0, len(names), _REMOVED_LIMIT):
            removed = names[first : first + _REMOVED_LIMIT]
            yield from flows.update_session_state(ops, key, {}, removed, None)
        self.known(key).replace([*names], ())


def checkpoint_name(checkpoint_id: str) -> str:
    """The state key of a checkpoint."""
    return _CHECKPOINT + checkpoint_id


def write_name(checkpoint_id: str, task_id: str, index: int) -> str:
    """The state key of a write."""
    return _WRITE + _encode_json([checkpoint_id, task_id, index]).decode()


def is_ours(name: str) -> bool:
    """Whether a state key is that of a checkpoint or a write."""
    return name.startswith((_CHECKPOINT, _WRITE))


def owner_of(name: str) -> str:
    """The checkpoint that a state key belongs to."""
    if name.startswith(_CHECKPOINT):
        return name.removeprefix(_CHECKPOINT)
    checkpoint_id, _, _ = _decode_json(name.removeprefix(_WRITE))
    return str(checkpoint_id)


def instant_of(checkpoint_id: str) -> datetime:
    """When a checkpoint was made, as LangGraph's ids (UUIDs of version 6) tell; else 1970.

    Always the same for an id, so that what is stored again is found to be there.
    """
    found = _UUID6.fullmatch(checkpoint_id)
    if not found:
        return _EPOCH
    ticks = int("".join(found.groups()), 16)
    return _UUID_EPOCH + timedelta(microseconds=ticks // 10)


def _update_state(ops: Ops, key: SessionKey, state: dict[str, Any]) -> Flow[None]:
    try:
        yield from flows.update_session_state(ops, key, state, (), None)
    except SessionNotFound:  # a source without events
        yield from create_if_missing(ops, key, state)
