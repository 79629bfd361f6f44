"""Reads SqliteSaver and AsyncSqliteSaver of LangGraph, for `import --from langgraph`.

Values stay serialized. Only the outer MessagePack of a checkpoint is decoded and encoded again;
extensions in it (messages, objects of the application) are copied unchanged. So the classes of the
application are not needed.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from ..adapters.checkpoint_threads import CheckpointRemoved
from ..adapters.checkpoints import Parts, Write
from ..drive import drive
from ..sync import SessionService
from .sqlite_file import check_sqlite_file, columns_of, sqlite_file
from .store import CannotStart

APP, USER = "langgraph", "threads"  # where StoredCheckpointSaver keeps threads by default

_THREADS = "SELECT thread_id FROM checkpoints GROUP BY thread_id ORDER BY max(checkpoint_id)"
_CHECKPOINTS = (
    "SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata"
    " FROM checkpoints WHERE thread_id = ? ORDER BY checkpoint_id, checkpoint_ns"
)
_WRITES = (
    "SELECT task_id, idx, {path}, channel, type, value FROM writes"
    " WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?"
    " ORDER BY {path}, task_id, idx"
)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Imported(msgspec.Struct):
    """What happened to a thread."""

    session: str
    status: str
    checkpoints: int
    writes: int
    sha256: str


class _Row(NamedTuple):
    """A checkpoint of the file, with its pending writes."""

    namespace: str
    id: str
    parent: str | None
    checkpoint: tuple[str, bytes]
    metadata: dict[str, Any]
    writes: list[Write]
    parts: dict[str, dict[str, bytes]]  # of the values of the writes, by task


class _Raw:
    """A serializer of LangGraph that does not decode extensions of MessagePack.

    Args:
        other: for values of old versions, which are not MessagePack.
    """

    def __init__(self, other: Any) -> None:
        self._other = other

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """The value, with extensions as msgspec.msgpack.Ext."""
        return _decode(data[1]) if data[0] == "msgpack" else self._other.loads_typed(data)

    def dumps_typed(self, value: Any) -> tuple[str, bytes]:
        """The type and the bytes of a value."""
        if value is None or isinstance(value, (bytes, bytearray)):
            typed: tuple[str, bytes] = self._other.dumps_typed(value)
            return typed
        return "msgpack", _encode(value)


def import_langgraph(
    service: SessionService, path: str, app_name: str, user_id: str, *, verifies: bool
) -> Iterator[Imported]:
    """Store all threads of a file as StoredCheckpointSaver does, in the order of their last writes.

    Checkpoints and writes that are stored already do not change. With `verifies` each thread is
    read back and compared.

    Raises:
        CannotStart: the file cannot be read or is not of LangGraph, or the extra is missing.
    """
    check_sqlite_file(path)  # before the extra is installed for nothing
    try:
        from ..adapters.langgraph import StoredCheckpointSaver
    except ImportError as error:
        raise CannotStart(str(error)) from error
    options: dict[str, Any] = {"app_name": app_name, "user_id": user_id, "keep_checkpoints": None}
    plain = StoredCheckpointSaver(service, **options)
    raw = StoredCheckpointSaver(service, **options, serde=_Raw(plain.serde))
    with sqlite_file(path) as database:
        if not columns_of(database, "checkpoints"):
            raise CannotStart(f"{path}: this is not a database of LangGraph's SqliteSaver")
        for (thread_id,) in database.execute(_THREADS):
            imported = _import_thread(service, database, thread_id, raw, plain)
            if verifies and imported.status == "written":
                again = _import_thread(service, database, thread_id, raw, plain)
                if again.status != "unchanged":
                    imported.status = "conflicts"
            yield imported


def _import_thread(
    service: SessionService, database: sqlite3.Connection, thread_id: str, raw: Any, plain: Any
) -> Imported:
    digest = hashlib.sha256()
    found = Imported(thread_id, "unchanged", 0, 0, "")
    for row in _rows(database, thread_id):
        found.checkpoints += 1
        found.writes += len(row.writes)
        digest.update(_encode(row))
        saver = raw if row.checkpoint[0] == "msgpack" else plain
        status = _import_checkpoint(service, saver, thread_id, row)
        if status != "unchanged" and found.status != "conflicts":
            found.status = status
    found.sha256 = digest.hexdigest()
    return found


def _import_checkpoint(service: SessionService, saver: Any, thread_id: str, row: _Row) -> str:
    """Store a checkpoint and the writes that are missing. Returns what happened to it."""
    place = {"thread_id": thread_id, "checkpoint_ns": row.namespace}
    config = {"configurable": {**place, "checkpoint_id": row.id}}
    checkpoint = saver.serde.loads_typed(row.checkpoint)
    try:
        stored = saver.get_tuple(config)
    except CheckpointRemoved:  # it was imported, and removed by keep_checkpoints
        return "unchanged"
    thread = saver._threads.at(service._ops, thread_id)
    known: set[tuple[str, int]] = set()
    status = "unchanged"
    if stored is None:
        parent = {"configurable": {**place, "checkpoint_id": row.parent}}
        saver.put(parent, checkpoint, row.metadata, {})
        status = "written"
    elif stored.checkpoint != checkpoint or stored.metadata != row.metadata:
        return "conflicts"
    records = drive(thread.records(row.namespace, [row.id]), service._executor)
    if row.id in records:
        known = {(write.task_id, write.index) for write in records[row.id].writes}
    for task_id, parts in row.parts.items():
        wanted = [write for write in row.writes if write.task_id == task_id]
        missing = [write for write in wanted if (task_id, write.index) not in known]
        if missing:
            flow = thread.put_writes(row.namespace, row.id, missing, parts)
            drive(flow, service._executor)
            status = "written"
    return status


def _rows(database: sqlite3.Connection, thread_id: str) -> Iterator[_Row]:
    path = "task_path" if "task_path" in columns_of(database, "writes") else "''"
    query = _WRITES.format(path=path)
    for namespace, name, parent, kind, data, metadata in database.execute(
        _CHECKPOINTS, (thread_id,)
    ):
        writes: list[Write] = []
        parts: dict[str, Parts] = {}
        for task_id, index, task_path, channel, write_kind, value in database.execute(
            query, (thread_id, namespace, name)
        ):
            of_task = parts.setdefault(task_id, Parts(f"{name}/{task_id}"))
            blob = of_task.blob(write_kind, value or b"")
            writes.append(Write(task_id, index, task_path, channel, blob))
        yield _Row(
            namespace,
            name,
            parent,
            (kind, data),
            json.loads(metadata) if metadata is not None else {},
            writes,
            {task_id: of_task.data for task_id, of_task in parts.items()},
        )
