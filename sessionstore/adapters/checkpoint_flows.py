"""What a LangGraph saver does with threads, as flows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Lock
from typing import NamedTuple
from uuid import uuid4

import msgspec

from .. import flows
from ..calls import Call, Flow
from ..errors import (
    BackendUnavailable,
    CorruptData,
    InvalidArgument,
    SessionNotFound,
    SessionStoreError,
    StaleVersion,
)
from ..listing import from_primary
from ..model import SessionKey
from ..ops import Ops
from ..replies import Place
from ..tiers import Delta
from .checkpoints import (
    LAYOUT,
    LAYOUT_VALUE,
    NAMESPACES,
    OURS,
    Base,
    Blob,
    Fields,
    History,
    Parts,
    Record,
    Space,
    Write,
    all_parts,
    decode_namespaces,
    decode_page,
    decode_record,
    decode_space,
    decode_writes,
    encode,
    encode_entry,
    encode_namespaces,
    encode_raw,
    is_call,
    part_names,
)

PAGE_LIMIT = 100
"""Threads of an index that are read at once."""

_ATTEMPTS = 1_000  # each that fails means that another writer has changed the namespace
_FIELDS_PER_READ = 500  # parts of values: up to 8 MiB
_BYTES_PER_WRITE = 16 << 20
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


class New(NamedTuple):
    """A checkpoint to put.

    Attributes:
        namespace: its namespace.
        root: the checkpoint of the root graph that the namespace was first used from.
        versions: its channel versions.
        build: makes the record, given the last known checkpoint of the namespace if that is its
            parent, and its channel versions. Adds the parts of values.
    """

    namespace: str
    root: str
    versions: Mapping[str, object]
    build: Callable[[Record | None, Mapping[str, object], Parts], Record]


class _Plan:
    """A change of a thread's fields."""

    def __init__(self) -> None:
        self.compared: list[tuple[bytes, bytes | None]] = []
        self.extended: list[tuple[bytes, bytes]] = []
        self.set: dict[bytes, bytes] = {}
        self.removed: set[bytes] = set()

    def delta(self) -> Delta:
        pairs = [part for pair in self.set.items() for part in pair]
        return Delta(pairs, sorted(self.removed - self.set.keys()))


class Threads:
    """The threads of a saver.

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
        for _ in range(_ATTEMPTS):
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

    # -- writing -------------------------------------------------------------------------------

    def put(self, ops: Ops, key: SessionKey, new: New) -> Flow[None]:
        """Store a checkpoint, and remove those that are too many."""
        fields = Fields(new.namespace)
        for attempt in range(_ATTEMPTS):
            known = self._last_known(key, new.namespace)
            if known is None or attempt:
                known = yield from self._load(ops, key, new.namespace)
            parts = Parts()
            record = new.build(known.last, known.versions, parts)
            space = msgspec.structs.replace(known.space, ids=[*known.space.ids])
            plan = _Plan()
            plan.compared.append((fields.space, known.stored))
            if known.stored is None:
                plan.set[LAYOUT] = b"%d" % LAYOUT_VALUE
                entry = encode_entry((new.namespace, new.root if is_call(new.namespace) else ""))
                plan.extended.append((NAMESPACES, entry))
            record = yield from self._plan_put(ops, key, space, record, plan)
            there = part_names(known.last.blobs()) if known.last is not None else set()
            for name in parts.data.keys() - there:
                plan.set[fields.part(name)] = encode_raw(parts.data[name])
            stored = encode(space)
            plan.set[fields.checkpoint(record.id)] = encode(record)
            plan.set[fields.space] = stored
            try:
                yield from self._write(ops, key, plan)
            except StaleVersion:
                self._forget(key, new.namespace)
                continue
            except SessionNotFound:
                self._forget(key, new.namespace)
                yield from self._create(ops, key)
                continue
            last = record if record.id in space.ids else None
            self._note(key, new.namespace, Known(stored, space, last, new.versions))
            return
        raise _contended(key)

    def put_writes(
        self,
        ops: Ops,
        key: SessionKey,
        namespace: str,
        checkpoint_id: str,
        writes: Sequence[Write],
        parts: Parts,
    ) -> Flow[None]:
        """Store what a task wrote. A repeat changes nothing, unless a write is a special one."""
        fields = Fields(namespace)
        is_special = any(write.index < 0 for write in writes)
        plan = _Plan()
        entry = encode_entry((uuid4().hex if is_special else "", writes))
        plan.extended.append((fields.writes(checkpoint_id), entry))
        for name, data in parts.data.items():
            plan.set[fields.part(name)] = encode_raw(data)
        for _ in range(_ATTEMPTS):
            try:
                yield from self._write(ops, key, plan)
            except SessionNotFound:
                yield from self._create(ops, key)
                continue
            return
        raise _contended(key)

    def remove(
        self,
        ops: Ops,
        key: SessionKey,
        namespace: str,
        choose: Callable[[Mapping[str, Record]], Iterable[str]],
        *,
        is_retention: bool,
    ) -> Flow[None]:
        """Remove checkpoints of a namespace.

        Args:
            ops: builds the Calls.
            key: the thread.
            namespace: the namespace.
            choose: the ids to remove, given all checkpoints in their order.
            is_retention: reading one of them will raise CheckpointRemoved.
        """
        fields = Fields(namespace)
        for _ in range(_ATTEMPTS):
            known = yield from self._load(ops, key, namespace)
            if known.stored is None:
                return
            space = known.space
            ids = yield from self.all_ids(ops, key, space)
            records = yield from self.records(ops, key, fields, ids)
            victims = set(choose({each: records[each] for each in ids if each in records}))
            if not victims:
                return
            plan = _Plan()
            plan.compared.append((fields.space, known.stored))
            removed = space.removed
            yield from self._plan_removal(ops, key, space, records, victims, plan)
            if not is_retention:
                space.removed = removed
            if space.ids:
                plan.set[fields.space] = encode(space)
            else:
                yield from self._plan_namespaces(ops, key, {namespace}, plan)
            try:
                yield from self._write(ops, key, plan)
            except StaleVersion:
                continue
            except SessionNotFound:
                return
            finally:
                self._forget(key, namespace)
            return
        raise _contended(key)

    def delete(self, ops: Ops, key: SessionKey) -> Flow[None]:
        """Remove a thread."""
        yield from flows.delete_session(ops, key.app_name, key.user_id, key.session_id)

    def copy(self, ops: Ops, source: SessionKey, target: SessionKey) -> Flow[None]:
        """Copy a thread in place of another one."""
        if source == target or not (yield from self.exists(ops, source)):
            return
        stored: dict[bytes, bytes] = yield from_primary(ops.read_all_fields(source))
        yield from self.delete(ops, target)
        yield from self._create(ops, target)
        plan, last = _Plan(), _Plan()
        for field, value in stored.items():
            if field.startswith(OURS):
                is_index = field == NAMESPACES or field.startswith(b".space/")
                (last if is_index else plan).set[field] = value
        yield from self._write(ops, target, plan)
        yield from self._write(ops, target, last)

    def mark(self, ops: Ops, key: SessionKey, removed: Sequence[str]) -> Flow[None]:
        """Note that a thread has the present layout, and remove state of the one before."""
        plan = _Plan()
        plan.set[LAYOUT] = b"%d" % LAYOUT_VALUE
        plan.removed.update(b"." + name.encode() for name in removed)
        yield from self._write(ops, key, plan)

    # -- plans ---------------------------------------------------------------------------------

    def _plan_put(
        self, ops: Ops, key: SessionKey, space: Space, record: Record, plan: _Plan
    ) -> Flow[Record]:
        """Add a checkpoint to an index, and plan what goes. The record as it is to be stored."""
        fields = Fields(space.name)
        is_old = record.id in space.ids
        if not is_old and space.num_pages and record.id < space.ids[0]:
            ids = yield from self.all_ids(ops, key, space)
            is_old = record.id in ids
            for number, page in enumerate(space.replace(sorted({*ids, record.id}))):
                plan.set[fields.page(number)] = encode(page)
        elif (new_page := space.add(record.id)) is not None:
            plan.set[fields.page(space.num_pages - 1)] = encode(new_page)
        keep = self._keep
        # Removing several at once makes it cheap: it reads all records of the namespace.
        is_full = keep is not None and space.num_ids > keep + keep // 4
        if not is_old and not is_full:
            return record
        ids = yield from self.all_ids(ops, key, space)
        for field, data in plan.set.items():  # pages that are planned, and not stored
            if field != LAYOUT:
                ids = sorted({*ids, *decode_page(field, data)})
        records = yield from self.records(ops, key, fields, ids)
        old = records.get(record.id)
        if old is not None and old.base is not None and record.parent not in records:
            record = msgspec.structs.replace(record, parent=None, base=old.base)
        records[record.id] = record
        victims = set(ids[:-keep]) - {record.id} if is_full and keep else set()
        yield from self._plan_removal(ops, key, space, records, victims, plan, old)
        rewritten = plan.set.get(fields.checkpoint(record.id))
        return decode_record(fields.checkpoint(record.id), rewritten) if rewritten else record

    def _plan_removal(
        self,
        ops: Ops,
        key: SessionKey,
        space: Space,
        records: dict[str, Record],
        victims: set[str],
        plan: _Plan,
        replaced: Record | None = None,
    ) -> Flow[None]:
        """Plan the removal of checkpoints, and of what no other one needs.

        Args:
            ops: builds the Calls.
            key: the thread.
            space: the index, which is changed.
            records: all checkpoints of the namespace.
            victims: ids of those to remove.
            plan: what to add to.
            replaced: an earlier form of one of the others.
        """
        fields = Fields(space.name)
        of_writes = {fields.writes(victim): victim for victim in victims}
        stored = yield from self._read_many(ops, key, list(of_writes))
        writes = {of_writes[field]: decode_writes(field, data) for field, data in stored.items()}
        kept = {each: record for each, record in records.items() if each not in victims}
        deltas = {channel for record in kept.values() for channel in record.deltas}
        for record in list(kept.values()):
            if record.parent in victims:
                history = History(deltas - record.values.keys())
                history.walk(record, records, writes)
                changed = msgspec.structs.replace(record, parent=None, base=history.bases())
                kept[record.id] = changed
                plan.set[fields.checkpoint(record.id)] = encode(changed)
        gone = [records[victim] for victim in victims if victim in records]
        names = part_names(blob for record in gone for blob in record.blobs())
        if replaced is not None:
            names |= part_names(replaced.blobs())
        for field, data in stored.items():
            names |= all_parts(field, data)
        names -= part_names(blob for record in kept.values() for blob in record.blobs())
        plan.removed.update(fields.part(name) for name in names)
        plan.removed.update(of_writes)
        plan.removed.update(fields.checkpoint(victim) for victim in victims)
        if not victims:
            return
        old_pages = space.num_pages
        for number, page in enumerate(space.replace(sorted(kept))):
            plan.set[fields.page(number)] = encode(page)
        for number in range(space.num_pages, old_pages):
            plan.set.pop(fields.page(number), None)
            plan.removed.add(fields.page(number))
        space.removed = max(space.removed, *victims)
        if not space.name:
            # A call of a subgraph goes with the checkpoint of the root graph that it started from.
            namespaces = yield from self.namespaces(ops, key)
            calls = {
                name
                for name, root in namespaces.items()
                if root in victims or (root and root <= space.removed and root not in kept)
            }
            if calls:
                yield from self._plan_namespaces(ops, key, calls, plan)

    def _plan_namespaces(
        self, ops: Ops, key: SessionKey, names: set[str], plan: _Plan
    ) -> Flow[None]:
        """Plan the removal of namespaces with all that they hold."""
        if NAMESPACES not in plan.set and NAMESPACES not in plan.removed:
            found = yield from self._read(ops, key, [NAMESPACES])
            plan.compared.append((NAMESPACES, found[0] if found else None))
            plan.set[NAMESPACES] = (found[0] if found else None) or encode_namespaces({})
        left = decode_namespaces(plan.set.pop(NAMESPACES, None))
        for name in names:
            left.pop(name, None)
        if left:
            plan.set[NAMESPACES] = encode_namespaces(left)
        else:
            plan.removed.add(NAMESPACES)
        compared = {field for field, _ in plan.compared}
        spaces = yield from self._read_many(ops, key, [Fields(name).space for name in names])
        for field, data in spaces.items():
            space = decode_space(field, data)
            fields = Fields(space.name)
            plan.removed.add(field)
            if field in compared:
                continue
            plan.compared.append((field, data))
            ids = yield from self.all_ids(ops, key, space)
            records = yield from self.records(ops, key, fields, ids)
            of_writes = [fields.writes(each) for each in ids]
            writes = yield from self._read_many(ops, key, of_writes)
            parts = part_names(blob for record in records.values() for blob in record.blobs())
            for writes_field, value in writes.items():
                parts |= all_parts(writes_field, value)
            plan.removed.update(fields.part(part) for part in parts)
            plan.removed.update(of_writes)
            plan.removed.update(fields.checkpoint(each) for each in ids)
            plan.removed.update(fields.page(number) for number in range(space.num_pages))
            self._forget(key, space.name)

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

    def _write(self, ops: Ops, key: SessionKey, plan: _Plan) -> Flow[None]:
        """Apply a plan. If it is large, what nothing refers to yet is stored before the rest."""
        early, size = Delta(), 0
        if sum(map(len, plan.set.values())) > _BYTES_PER_WRITE:
            is_copy = not plan.compared and not plan.extended
            for field in [field for field in plan.set if is_copy or field.startswith(b".data/")]:
                size += len(plan.set[field])
                early.pairs += (field, plan.set.pop(field))
                if size > _BYTES_PER_WRITE:
                    yield ops.change_fields(key, [], [], early)
                    early, size = Delta(), 0
        if early:
            yield ops.change_fields(key, [], [], early)
        yield ops.change_fields(key, plan.compared, plan.extended, plan.delta())

    def _create(self, ops: Ops, key: SessionKey) -> Flow[None]:
        state = {LAYOUT[1:].decode(): LAYOUT_VALUE}
        yield from flows.get_or_create_session(
            ops, key.app_name, key.user_id, key.session_id, state, 0, None
        )

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


def _contended(key: SessionKey) -> BackendUnavailable:
    return BackendUnavailable(
        f"others change thread {key.session_id!r} all the time; nothing was written",
        maybe_applied=False,
    )


def _base_blobs(base: Base) -> list[Blob]:
    blobs = [write.value for write in base.writes]
    return blobs if base.seed is None else [base.seed, *blobs]
