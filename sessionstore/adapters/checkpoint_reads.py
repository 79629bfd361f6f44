"""What a LangGraph saver reads of threads, as flows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Lock
from typing import NamedTuple

from ..calls import Call, Flow
from ..errors import (
    CorruptData,
    InvalidArgument,
    SessionStoreError,
)
from ..listing import from_primary
from ..model import SessionKey
from ..ops import Ops
from ..replies import Place
from .checkpoints import (
    LAYOUT,
    NAMESPACES,
    Base,
    Blob,
    Fields,
    History,
    Record,
    Space,
    Write,
    decode_namespaces,
    decode_page,
    decode_record,
    decode_space,
    decode_writes,
    part_names,
)

PAGE_LIMIT = 100
"""Threads of an index that are read at once."""

ATTEMPTS = 1_000
"""Others may change a namespace between a read and what builds on it. Then it is read again."""

_FIELDS_PER_READ = 500  # parts of values: up to 8 MiB
_HISTORY_STEP = 64  # checkpoints that a walk through a history reads at once
_SPACES_LIMIT = 2_000  # namespaces that a saver remembers

Import = Callable[[Ops, SessionKey], Flow[None]]
"""Reads what release 0.1.0 stored of a thread, and stores it again."""


class CheckpointRemoved(SessionStoreError):
    """The checkpoint existed. Retention (`keep_checkpoints`) or `prune` has removed it."""


class Found(NamedTuple):
    """A checkpoint with its pending writes, and the parts of all their values."""

    record: Record
    writes: list[Write]
    parts: Mapping[str, bytes]

    def data(self, blob: Blob) -> bytes:
        """The bytes of a value."""
        return b"".join([self.parts[name] for name in blob.parts]) if blob.parts else blob.data


class Known(NamedTuple):
    """A namespace as this saver has last seen it. Changes compare it, so it may be outdated.

    Attributes:
        stored: the stored bytes of its Space; None = there is no such namespace.
        space: its Space.
        last: the checkpoint that was read or put last, if any.
        versions: the channel versions of `last`.
    """

    stored: bytes | None
    space: Space
    last: Record | None = None
    versions: Mapping[str, object] = {}


class ThreadReader:
    """Reads the threads of a saver.

    Args:
        app_name: the application.
        user_id: the user whose sessions the threads are, or a function that tells it.
        keep: how many of the newest checkpoints of a namespace are kept; None = all.
        import_thread: imports a thread that release 0.1.0 stored.
    """

    def __init__(
        self,
        app_name: str,
        user_id: str | Callable[[str], str],
        keep: int | None,
        import_thread: Import,
    ) -> None:
        self._app_name = app_name
        self._user_id = user_id
        self._keep = keep
        self._import = import_thread
        self._known: OrderedDict[tuple[SessionKey, str], Known] = OrderedDict()
        self._lock = Lock()

    def key(self, thread_id: object) -> SessionKey:
        """The session of a thread."""
        thread = str(thread_id)
        user_id = self._user_id if isinstance(self._user_id, str) else self._user_id(thread)
        return SessionKey(self._app_name, user_id, thread)

    # -- reading -------------------------------------------------------------------------------

    def page(self, ops: Ops, after: Place | None) -> Flow[list[Place]]:
        """Threads that may exist, last written first.

        Raises:
            InvalidArgument: every thread may belong to another user.
        """
        if not isinstance(self._user_id, str):
            raise InvalidArgument(
                "config must name a thread: with a function as user_id, threads cannot be listed"
            )
        return (yield ops.list_places(self._app_name, self._user_id, PAGE_LIMIT, after))

    def get(
        self, ops: Ops, key: SessionKey, namespace: str, checkpoint_id: str | None
    ) -> Flow[Found | None]:
        """A checkpoint; without an id the newest one. None if there is no such checkpoint.

        Raises:
            CheckpointRemoved: retention has removed it.
        """
        fields = Fields(namespace)
        for _ in range(ATTEMPTS):
            known = self._last_known(key, namespace)
            guess = checkpoint_id or (known.space.ids[-1] if known and known.space.ids else None)
            names = [fields.space]
            if guess is not None:
                names += [fields.checkpoint(guess), fields.writes(guess)]
            found = yield from self._read(ops, key, names)
            stored, *rest = found or [None]
            if stored is None:
                return None
            space = decode_space(fields.space, stored)
            if not space.ids:
                return None
            wanted = checkpoint_id or space.ids[-1]
            if wanted != guess:
                names = [fields.checkpoint(wanted), fields.writes(wanted)]
                rest = (yield from self._read(ops, key, names)) or [None, None]
            if rest[0] is None:
                if checkpoint_id is None:
                    continue  # it was removed in between
                self._check_removed(space, checkpoint_id)
                return None
            record = decode_record(fields.checkpoint(wanted), rest[0])
            writes = decode_writes(fields.writes(wanted), rest[1])
            blobs = [*record.content(), *(write.value for write in writes)]
            parts = yield from self._read_parts(ops, key, fields, blobs)
            if parts is None:
                continue
            if checkpoint_id is None:
                self._note(key, namespace, Known(stored, space, record))
            return Found(record, writes, parts)
        raise self._broken(key, namespace)

    def exists(self, ops: Ops, key: SessionKey) -> Flow[bool]:
        """Whether there is such a thread."""
        return (yield from self._read(ops, key, [])) is not None

    def parts(
        self, ops: Ops, key: SessionKey, fields: Fields, blobs: Iterable[Blob]
    ) -> Flow[dict[str, bytes]]:
        """The parts of some values, without those that are missing."""
        of_parts = {fields.part(name): name for name in part_names(blobs)}
        stored = yield from self._read_many(ops, key, list(of_parts))
        return {of_parts[field]: value[1:] for field, value in stored.items()}

    def namespaces(self, ops: Ops, key: SessionKey) -> Flow[dict[str, str]]:
        """The namespaces of a thread, each with the root checkpoint that it belongs to."""
        found = yield from self._read(ops, key, [NAMESPACES])
        return decode_namespaces(found[0]) if found else {}

    def spaces(self, ops: Ops, key: SessionKey, names: Sequence[str]) -> Flow[list[Space]]:
        """The indexes of some namespaces, without those that do not exist."""
        fields = [Fields(name).space for name in names]
        stored = yield from self._read_many(ops, key, fields)
        return [decode_space(field, stored[field]) for field in fields if stored.get(field)]

    def earlier_ids(self, ops: Ops, key: SessionKey, space: Space, number: int) -> Flow[list[str]]:
        """The ids of a page of a namespace."""
        field = Fields(space.name).page(number)
        found = yield _read_call(ops, key, [field])
        return decode_page(field, found[0]) if found and found[0] else []

    def all_ids(self, ops: Ops, key: SessionKey, space: Space) -> Flow[list[str]]:
        """The ids of all checkpoints of a namespace, in their order."""
        fields = [Fields(space.name).page(number) for number in range(space.num_pages)]
        stored = yield from self._read_many(ops, key, fields)
        pages = [decode_page(field, stored[field]) for field in fields if field in stored]
        return [checkpoint_id for page in pages for checkpoint_id in page] + space.ids

    def records(
        self, ops: Ops, key: SessionKey, fields: Fields, ids: Iterable[str]
    ) -> Flow[dict[str, Record]]:
        """Checkpoints by id, without those that do not exist."""
        names = {fields.checkpoint(checkpoint_id): checkpoint_id for checkpoint_id in ids}
        stored = yield from self._read_many(ops, key, list(names))
        return {names[field]: decode_record(field, value) for field, value in stored.items()}

    def complete(
        self, ops: Ops, key: SessionKey, fields: Fields, records: Sequence[Record]
    ) -> Flow[list[Found]]:
        """Checkpoints with their writes and values, without those removed in between."""
        names = {fields.writes(record.id): record.id for record in records}
        stored = yield from self._read_many(ops, key, list(names))
        writes = {names[field]: decode_writes(field, value) for field, value in stored.items()}
        found = []
        for record in records:
            mine = writes.get(record.id, [])
            blobs = [*record.content(), *(write.value for write in mine)]
            parts = yield from self._read_parts(ops, key, fields, blobs)
            if parts is not None:
                found.append(Found(record, mine, parts))
        return found

    def history(
        self, ops: Ops, key: SessionKey, namespace: str, checkpoint_id: str | None, names: set[str]
    ) -> Flow[tuple[History, Found] | None]:
        """The history of delta channels before a checkpoint, and a Found with all its parts."""
        fields = Fields(namespace)
        target = yield from self.get(ops, key, namespace, checkpoint_id)
        if target is None:
            return None
        history = History(names)
        records: dict[str, Record] = {}
        writes: dict[str, list[Write]] = {}
        ids: list[str] | None = None
        missing = history.walk(target.record, records, writes)
        while missing is not None:
            if ids is None:
                [space] = (yield from self.spaces(ops, key, [namespace])) or [Space(namespace)]
                ids = yield from self.all_ids(ops, key, space)
            at = ids.index(missing) if missing in ids else 0
            wanted = ids[max(at + 1 - _HISTORY_STEP, 0) : at + 1] if at else [missing]
            found = yield from self.records(ops, key, fields, wanted)
            if missing not in found:
                history.cut = history.last  # release 0.1.0 trimmed histories
                break
            records |= found
            of_writes = {fields.writes(each): each for each in found}
            stored = yield from self._read_many(ops, key, list(of_writes))
            for field, value in stored.items():
                writes[of_writes[field]] = decode_writes(field, value)
            missing = history.walk(history.last, records, writes)
        blobs = [blob for base in history.found.values() for blob in _base_blobs(base)]
        if history.cut is not None:
            blobs.append(history.cut.checkpoint)
        parts = yield from self._read_parts(ops, key, fields, blobs)
        if parts is None:
            raise self._broken(key, namespace)
        return history, Found(target.record, [], parts)

    # -- fields --------------------------------------------------------------------------------

    def _read(
        self, ops: Ops, key: SessionKey, fields: Sequence[bytes]
    ) -> Flow[list[bytes | None] | None]:
        """Stored fields; None without a thread. Imports what release 0.1.0 stored."""
        found: list[bytes | None] | None = yield _read_call(ops, key, [LAYOUT, *fields])
        if found is not None and found[0] is None:
            yield from self._import(ops, key)
            found = yield _read_call(ops, key, [LAYOUT, *fields])
        return None if found is None else found[1:]

    def _read_many(
        self, ops: Ops, key: SessionKey, fields: Sequence[bytes]
    ) -> Flow[dict[bytes, bytes]]:
        """Fields that exist, by name."""
        found: dict[bytes, bytes] = {}
        for first in range(0, len(fields), _FIELDS_PER_READ):
            names = fields[first : first + _FIELDS_PER_READ]
            values: list[bytes | None] | None = yield _read_call(ops, key, names)
            pairs = zip(names, values or (), strict=False)
            found.update((name, value) for name, value in pairs if value is not None)
        return found

    def _read_parts(
        self, ops: Ops, key: SessionKey, fields: Fields, blobs: Sequence[Blob]
    ) -> Flow[dict[str, bytes] | None]:
        """Parts of values by name; None if one is missing."""
        found = yield from self.parts(ops, key, fields, blobs)
        return found if part_names(blobs) <= found.keys() else None

    # -- what is known -------------------------------------------------------------------------

    def _load(self, ops: Ops, key: SessionKey, namespace: str) -> Flow[Known]:
        field = Fields(namespace).space
        found = yield from self._read(ops, key, [field])
        if found is None or found[0] is None:
            return Known(None, Space(namespace))
        return Known(found[0], decode_space(field, found[0]))

    def _last_known(self, key: SessionKey, namespace: str) -> Known | None:
        with self._lock:
            known = self._known.get((key, namespace))
            if known is not None:
                self._known.move_to_end((key, namespace))
            return known

    def note_versions(
        self, key: SessionKey, namespace: str, checkpoint_id: str, versions: Mapping[str, object]
    ) -> None:
        """Remember the channel versions of a checkpoint, if it is the last one that is known."""
        known = self._last_known(key, namespace)
        if known is not None and known.last is not None and known.last.id == checkpoint_id:
            self._note(key, namespace, known._replace(versions=versions))

    def _note(self, key: SessionKey, namespace: str, known: Known) -> None:
        with self._lock:
            self._known[key, namespace] = known
            self._known.move_to_end((key, namespace))
            if len(self._known) > _SPACES_LIMIT:
                self._known.popitem(last=False)

    def _forget(self, key: SessionKey, namespace: str) -> None:
        with self._lock:
            self._known.pop((key, namespace), None)

    def _check_removed(self, space: Space, checkpoint_id: str) -> None:
        if checkpoint_id <= space.removed:
            kept = "prune" if self._keep is None else f"keep_checkpoints={self._keep}, or prune"
            raise CheckpointRemoved(
                f"checkpoint {checkpoint_id!r} of namespace {space.name!r} is not stored: "
                f"retention ({kept}) has removed checkpoints up to {space.removed!r}"
            )

    def _broken(self, key: SessionKey, namespace: str) -> CorruptData:
        where = f"namespace {namespace!r} of thread {key.session_id!r}"
        return CorruptData(f"{where} lacks values of its checkpoints", key=where)


def _read_call(
    ops: Ops, key: SessionKey, fields: Sequence[bytes]
) -> Call[list[bytes | None] | None]:
    """Runs go on from what they read, so a replica that lags behind is not asked."""
    return from_primary(ops.read_fields(key, fields))


def _base_blobs(base: Base) -> list[Blob]:
    blobs = [write.value for write in base.writes]
    return blobs if base.seed is None else [base.seed, *blobs]
