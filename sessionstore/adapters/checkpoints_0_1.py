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
from .flows import clear_events, list_all, read_log

_CHECKPOINT = "checkpoint/"  # + checkpoint id
_WRITE = "write/"  # + [checkpoint id, task id, index] as JSON

_decode_json = msgspec.json.Decoder(tuple[str, str, int]).decode


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


class History(msgspec.Struct):
    """What a session holds.

    Attributes:
        checkpoints: by id.
        writes: by checkpoint id, then by task id and index.
        names: of the state in which they stand.
        is_log_ours: no one else has appended events.
    """

    checkpoints: dict[str, StoredCheckpoint] = {}
    writes: dict[str, dict[tuple[str, int], StoredWrite]] = {}
    names: list[str] = []
    is_log_ours: bool = True

    @property
    def namespace(self) -> str:
        """The namespace; "" if there are no checkpoints."""
        return max((each.namespace for each in self.checkpoints.values()), default="")

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


def read_thread(ops: Ops, key: SessionKey) -> Flow[dict[SessionKey, History]]:
    """The session of a thread, and those of its subgraphs."""
    thread = {key: (yield from _read(ops, key))}
    try:
        others = yield from list_all(ops, key.app_name, f"{key.user_id}/{key.session_id}")
    except InvalidArgument:  # the name of the user is too long, so there are none
        others = []
    for session in others:
        history = yield from _read(ops, session.key)
        if history.namespace:
            thread[session.key] = history
    return thread


def remove_rest(ops: Ops, thread: Mapping[SessionKey, History]) -> Flow[None]:
    """Remove the log of a thread, and the sessions of its subgraphs."""
    for key, history in thread.items():
        if history.namespace:
            yield from flows.delete_session(ops, key.app_name, key.user_id, key.session_id)
        elif history.is_log_ours:
            yield from clear_events(ops, key)


def _read(ops: Ops, key: SessionKey) -> Flow[History]:
    history = History()
    for event in (yield from read_log(ops, key, 100)):
        history.add(event.state_delta, key)
        history.is_log_ours &= event.author in ("checkpoint", "writes")
    session = yield from flows.get_session(ops, key, 0, None)
    if session is not None:  # state is newer than the log
        history.names = [each for each in session.state if each.startswith((_CHECKPOINT, _WRITE))]
        history.add({name: session.state[name] for name in history.names}, key)
    return history
