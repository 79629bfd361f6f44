"""Reads the threads of LangGraph that release 0.1.0 stored.

It kept a session per namespace: events were the history, and state held the newest checkpoint. The
sessions of subgraphs belonged to the user `USER/THREAD`, which may also be a user with threads of
its own. The namespace in a checkpoint tells which one it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .. import flows
from ..calls import Flow
from ..errors import CorruptData, InvalidArgument
from ..model import SessionKey
from ..ops import Ops
from .checkpoints import LAYOUT
from .flows import clear_events, read_log

_CHECKPOINT = "checkpoint/"  # + checkpoint id
_WRITE = "write/"  # + [checkpoint id, task id, index] as JSON
_AUTHORS = ("checkpoint", "writes")
_PAGE_LIMIT = 100

_decode_json = msgspec.json.Decoder().decode


class Serialized(msgspec.Struct, array_like=True):
    """A serialized value; as JSON a list of type and base64."""

    type: str
    data: bytes


class StoredCheckpoint(msgspec.Struct):
    """A checkpoint, with the values of its channels."""

    namespace: str
    parent: str | None
    checkpoint: Serialized
    metadata: Serialized


class StoredWrite(msgspec.Struct):
    """A write."""

    channel: str
    path: str
    value: Serialized

    @property
    def value_parts(self) -> tuple[str, bytes]:
        """The type and the bytes of its value."""
        return self.value.type, self.value.data


class History(msgspec.Struct):
    """Checkpoints and writes of one namespace, by checkpoint id."""

    checkpoints: dict[str, StoredCheckpoint] = {}
    writes: dict[str, dict[tuple[str, int], StoredWrite]] = {}

    def add(self, state: Mapping[str, Any], key: SessionKey) -> None:
        """Add a state, or the change of one. CorruptData if the saver did not write it."""
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


class Thread(msgspec.Struct):
    """What was stored of a thread: its namespaces, and keys of state to remove."""

    namespaces: dict[str, History] = {}
    state_keys: list[str] = []


def read_thread(ops: Ops, key: SessionKey) -> Flow[Thread]:
    """A thread with its namespaces."""
    history, names = yield from _read_history(ops, key)
    thread = Thread({"": history}, names)
    for each in (yield from _subgraphs(ops, key)):
        history, _ = yield from _read_history(ops, each)
        for stored in history.checkpoints.values():
            if stored.namespace:
                thread.namespaces[stored.namespace] = history
    return thread


def remove_rest(ops: Ops, key: SessionKey) -> Flow[None]:
    """Remove the log of a thread, and the sessions of its subgraphs."""
    for each in (yield from _subgraphs(ops, key)):
        history, _ = yield from _read_history(ops, each)
        if history.checkpoints and all(one.namespace for one in history.checkpoints.values()):
            yield from flows.delete_session(ops, each.app_name, each.user_id, each.session_id)
    if all(event.author in _AUTHORS for event in (yield from read_log(ops, key, _PAGE_LIMIT))):
        yield from clear_events(ops, key)


def delete_subgraphs(ops: Ops, key: SessionKey) -> Flow[None]:
    """Remove the sessions of the subgraphs of a thread, if it has the layout of release 0.1.0."""
    found = yield ops.read_fields(key, [LAYOUT])
    if found is not None and found[0] is None:
        yield from remove_rest(ops, key)


def _read_history(ops: Ops, key: SessionKey) -> Flow[tuple[History, list[str]]]:
    """What a session holds, and the names of its state. What state has is newer than the log."""
    history = History()
    for event in (yield from read_log(ops, key, _PAGE_LIMIT)):
        history.add(event.state_delta, key)
    session = yield from flows.get_session(ops, key, 0, None)
    if session is None:
        return history, []
    names = [name for name in session.state if name.startswith((_CHECKPOINT, _WRITE))]
    history.add({name: session.state[name] for name in names}, key)
    return history, names


def _subgraphs(ops: Ops, key: SessionKey) -> Flow[list[SessionKey]]:
    """Sessions that may be those of a thread's subgraphs."""
    user_id = f"{key.user_id}/{key.session_id}"
    found: list[SessionKey] = []
    cursor = None
    while True:
        try:
            page = yield from flows.list_sessions(
                ops, key.app_name, user_id, _PAGE_LIMIT, 0, 0, cursor
            )
        except InvalidArgument:  # the name is too long, so there were none
            return found
        found += [session.key for session in page]
        cursor = page.cursor
        if cursor is None:
            return found
