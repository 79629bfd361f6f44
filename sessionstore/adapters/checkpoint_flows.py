"""What a LangGraph saver changes of threads, as flows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple
from uuid import uuid4

import msgspec

from .. import flows
from ..calls import Flow
from ..errors import (
    BackendUnavailable,
    SessionNotFound,
    StaleVersion,
)
from ..listing import from_primary
from ..model import SessionKey
from ..ops import Ops
from ..tiers import Delta
from .checkpoint_reads import ATTEMPTS, Known, ThreadReader
from .checkpoints import (
    LAYOUT,
    LAYOUT_VALUE,
    NAMESPACES,
    OURS,
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
    encode_changed,
    encode_entry,
    encode_namespaces,
    encode_raw,
    is_call,
    part_names,
)
from .flows import create_if_missing

_BYTES_PER_WRITE = 16 << 20


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


class Threads(ThreadReader):
    """The threads of a saver."""

    # -- writing -------------------------------------------------------------------------------

    def put(self, ops: Ops, key: SessionKey, new: New) -> Flow[None]:
        """Store a checkpoint, and remove those that are too many."""
        fields = Fields(new.namespace)
        for attempt in range(ATTEMPTS):
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
            stored_parts = part_names(known.last.blobs()) if known.last is not None else set()
            for name in parts.data.keys() - stored_parts:
                plan.set[fields.part(name)] = encode_raw(parts.data[name])
            stored = encode_changed(space)
            plan.set[fields.checkpoint(record.id)] = encode(record)
            plan.set[fields.space] = stored
            try:
                yield from self._write(ops, key, plan)
            except StaleVersion:
                self._forget(key, new.namespace)
                field = fields.checkpoint(record.id)
                there = yield from self._read(ops, key, [field])
                if there and there[0] == plan.set[field]:
                    return  # an earlier attempt has stored it, and its reply was lost
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
        for _ in range(ATTEMPTS):
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
        for _ in range(ATTEMPTS):
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
                plan.set[fields.space] = encode_changed(space)
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
        yield from create_if_missing(ops, key, state)


def _contended(key: SessionKey) -> BackendUnavailable:
    return BackendUnavailable(
        f"others change thread {key.session_id!r} all the time; nothing was written",
        maybe_applied=False,
    )
