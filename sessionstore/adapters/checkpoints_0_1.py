"""Converts the threads of LangGraph that release 0.1.0 stored.

It kept a session per namespace: events were the history, and state held the newest checkpoint. The
sessions of subgraphs belonged to the user `USER/THREAD`, which may also be a user with threads of
its own. The namespace in a checkpoint tells which one it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from .. import flows
from ..calls import Flow
from ..errors import CorruptData, InvalidArgument, StaleVersion
from ..model import Session, SessionKey
from ..ops import Ops, ids_of
from . import checkpoints as stored
from .checkpoint_fields import Plan, ThreadFields
from .checkpoints import Fields, Parts, Record, Space, Write
from .session_flows import clear_events, list_all

# State `checkpoint/ID` is a checkpoint, `write/[CHECKPOINT_ID, TASK_ID, INDEX]` a write.
_decode_json = msgspec.json.Decoder(tuple[str, str, int]).decode


Serialized = tuple[str, bytes]
"""A serialized value: type and bytes, which are base64 in JSON."""


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
    """Checkpoints and writes of one session, by checkpoint id."""

    checkpoints: dict[str, StoredCheckpoint] = {}
    writes: dict[str, dict[tuple[str, int], StoredWrite]] = {}

    @property
    def namespace(self) -> str:
        """The namespace; "" if there are no checkpoints."""
        return max((each.namespace for each in self.checkpoints.values()), default="")

    def add(self, state: Mapping[str, Any], key: SessionKey) -> None:
        """Add a state, or the change of one. CorruptData if the saver did not write it."""
        for name in filter(_is_ours, state):
            kind, _, rest = name.partition("/")
            try:
                if kind == "checkpoint":
                    self.checkpoints[rest] = msgspec.convert(state[name], StoredCheckpoint)
                else:
                    checkpoint_id, task_id, index = _decode_json(rest)
                    write = msgspec.convert(state[name], StoredWrite)
                    self.writes.setdefault(checkpoint_id, {})[task_id, index] = write
            except (TypeError, ValueError) as error:
                where = f"{name!r} of session {key.session_id!r}"
                raise CorruptData(
                    f"{where} was not written by StoredCheckpointSaver ({type(error).__name__})",
                    key=where,
                ) from None


def _is_ours(name: str) -> bool:
    """Whether state of this name is one of the saver."""
    return name.startswith(("checkpoint/", "write/"))


def read_thread(ops: Ops, key: SessionKey) -> Flow[list[tuple[Session, History]]]:
    """The session of a thread, if it exists, and those of its subgraphs."""
    keys = [key]
    with suppress(InvalidArgument):  # if the name of the user is too long, there are none
        others = yield from list_all(ops, key.app_name, f"{key.user_id}/{key.session_id}")
        keys += [session.key for session in others]
    thread = []
    for each in keys:
        session = yield from flows.get_session(ops, each, None, None)
        if session is None:
            continue
        history = History()
        # State is newer than the log.
        for state in (*(event.state_delta for event in session.events), session.state):
            history.add(state, each)
        if history.namespace or each == key:
            thread.append((session, history))
    return thread


def remove_rest(ops: Ops, thread: Iterable[tuple[Session, History]]) -> Flow[None]:
    """Remove the log of a thread, and the sessions of its subgraphs."""
    for session, history in thread:
        if history.namespace:
            yield from flows.delete_session(ops, *ids_of(session.key))
        elif all(event.author in ("checkpoint", "writes") for event in session.events):
            yield from clear_events(ops, session.key)


def convert(
    thread: ThreadFields,
    load: Callable[[Serialized], Any],
    build: Callable[..., tuple[Record, Mapping[str, bytes]]],
    root_of: Callable[[str, Any], str],
) -> Flow[None]:
    """Store a thread in the present layout, in one atomic step, then remove the rest.

    If another process converts it at the same time, one of them does it. A session of something
    else does not change.

    Args:
        thread: the thread.
        load: reads a serialized value.
        build: makes the record of a checkpoint and the parts of its values, given its parent's id,
            checkpoint, metadata, channels that changed, and the record of its parent.
        root_of: the root checkpoint that a namespace belongs to, given metadata of a checkpoint.
    """
    old = yield from read_thread(thread.ops, thread.key)
    plan = Plan()
    roots: dict[str, str] = {}
    for _, history in old:
        fields = Fields(history.namespace)
        ids = sorted(history.checkpoints)
        record: Record | None = None
        for checkpoint_id in ids:
            found = history.checkpoints[checkpoint_id]
            metadata = load(found.metadata)
            roots.setdefault(found.namespace, root_of(found.namespace, metadata))
            record, data = build(found.parent, load(found.checkpoint), metadata, {}, record)
            parts = Parts(checkpoint_id)
            writes = [
                Write(task_id, index, write.path, write.channel, parts.blob(*write.value))
                for (task_id, index), write in history.writes.get(checkpoint_id, {}).items()
            ]
            plan.set[fields.point(checkpoint_id)] = stored.encode(record)
            if writes:
                plan.set[fields.writes(checkpoint_id)] = stored.encode_entries([("", writes)])
            plan.set_parts(fields, {**data, **parts.data})
        if ids:
            plan.set.update(stored.encode_ids(fields, ids))
            plan.set[fields.space] = stored.encode_changed(Space(ids[-1], len(ids)))
    if roots:
        plan.set[stored.NAMESPACES] = stored.encode_entries(roots.items())
        plan.set[stored.LAYOUT] = stored.LAYOUT_VALUE
        plan.compared.append((stored.LAYOUT, None))
        session, _ = old[0]
        plan.removed.update(b"." + name.encode() for name in filter(_is_ours, session.state))
        with suppress(StaleVersion):
            yield from thread.write(plan)
        yield from remove_rest(thread.ops, old)
