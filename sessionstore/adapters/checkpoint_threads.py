"""What a LangGraph saver reads and changes of threads, as flows. checkpoints.py has the layout."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec

from .. import flows
from ..calls import Flow
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
    Record,
    Space,
    Write,
    all_parts,
    decode_ids,
    decode_namespaces,
    decode_record,
    decode_space,
    decode_writes,
    encode,
    encode_changed,
    encode_entries,
    encode_entry,
    encode_ids,
    encode_raw,
    part_names,
)
from .flows import create_if_missing

_ATTEMPTS = 1_000
"""Others may change a namespace between a read and what builds on it. Then it is read again."""

_THREADS_PER_READ = 100
_CHECKPOINTS_PER_READ = 20  # of a listing
_HISTORY_PER_READ = 64  # checkpoints of which only the records are read
_FIELDS_PER_READ = 500  # parts of values: up to 8 MiB
_BYTES_PER_WRITE = 16 << 20
_KNOWN_LIMIT = 2_000  # namespaces that a saver remembers

Build = Callable[[Record | None], tuple[Record, Mapping[str, bytes]]]
"""Makes a record and the parts of its values, given an earlier record that may share values."""


class CheckpointRemoved(SessionStoreError):
    """The checkpoint existed. Retention (`keep_checkpoints`) or `prune` has removed it."""


class Found(NamedTuple):
    """A checkpoint with its pending writes, and the parts of their values, once they are read."""

    record: Record
    writes: list[Write]
    parts: Mapping[str, bytes] = {}


class _Known(NamedTuple):
    """A namespace as this saver has last seen it, which may be outdated: changes compare it.

    Attributes:
        stored: the stored bytes of its Space; None = there is no such namespace.
        space: its Space.
        head: the checkpoint with the highest id, if it is known.
    """

    stored: bytes | None
    space: Space
    head: Record | None = None


class _Plan:
    """A change of a thread, which is applied in one atomic step."""

    def __init__(self) -> None:
        self.compared: list[tuple[bytes, bytes | None]] = []
        self.extended: list[tuple[bytes, bytes]] = []
        self.set: dict[bytes, bytes] = {}
        self.removed: set[bytes] = set()


class Threads:
    """The threads of a saver.

    Args:
        app_name: the application.
        user_id: the user whose sessions the threads are, or a function that tells it.
        keep: how many of the newest checkpoints of a namespace are kept; None = all.
        import_thread: imports what release 0.1.0 stored of a thread.
    """

    def __init__(
        self,
        app_name: str,
        user_id: str | Callable[[str], str],
        keep: int | None,
        import_thread: Callable[[Ops, SessionKey], Flow[None]],
    ) -> None:
        self._app_name = app_name
        self._user_id = user_id
        self._keep = keep
        self._import = import_thread
        self._known: dict[tuple[SessionKey, str], _Known] = {}

    def key(self, thread_id: object) -> SessionKey:
        """The session of a thread."""
        thread = str(thread_id)
        user_id = self._user_id if isinstance(self._user_id, str) else self._user_id(thread)
        return SessionKey(self._app_name, user_id, thread)

    # -- reading -------------------------------------------------------------------------------

    def page(self, ops: Ops, after: Place | None) -> Flow[list[Place]]:
        """Threads that may exist, last written first; empty at the end.

        Raises:
            InvalidArgument: every thread may belong to another user.
        """
        if not isinstance(self._user_id, str):
            raise InvalidArgument(
                "config must name a thread: with a function as user_id, threads cannot be listed"
            )
        return (yield ops.list_places(self._app_name, self._user_id, _THREADS_PER_READ, after))

    def get(
        self, ops: Ops, key: SessionKey, namespace: str, checkpoint_id: str | None
    ) -> Flow[Found | None]:
        """A checkpoint, without an id the newest one; None if there is no such checkpoint.

        Raises:
            CheckpointRemoved: retention has removed it.
        """
        fields = Fields(namespace)
        known = self._known.get((key, namespace))
        wanted = checkpoint_id or (known.space.head if known else "")
        for _ in range(_ATTEMPTS):
            names = [fields.space, fields.point(wanted), fields.writes(wanted)]
            stored, point, writes = yield from self._read(ops, key, names)
            if stored is None:
                return None
            space = decode_space(fields.space, stored)
            if checkpoint_id is None and wanted != space.head:
                wanted = space.head
                continue
            if point is None:
                self._check_removed(namespace, space, wanted)
                return None
            record = decode_record(names[1], point)
            if wanted == space.head:
                self._note(key, namespace, _Known(stored, space, record))
            found = Found(record, decode_writes(names[2], writes))
            for complete in (yield from self.complete(ops, key, fields, [found])):
                return complete
        raise _broken(key, namespace)

    def namespaces(self, ops: Ops, key: SessionKey) -> Flow[dict[str, str]]:
        """The namespaces of a thread, each with the root checkpoint that it belongs to."""
        [stored] = yield from self._read(ops, key, [NAMESPACES])
        return decode_namespaces(stored)

    def ids(self, ops: Ops, key: SessionKey, namespace: str) -> Flow[list[str]]:
        """The ids of all checkpoints of a namespace, in ascending order."""
        fields = Fields(namespace)
        known = yield from self._load(ops, key, fields)
        stored = yield from self._read_many(ops, key, fields.all_ids(known.space.count))
        return sorted({each for field, ids in stored.items() for each in decode_ids(field, ids)})

    def records(
        self, ops: Ops, key: SessionKey, fields: Fields, ids: Iterable[str]
    ) -> Flow[dict[str, Found]]:
        """Checkpoints by id with their writes and no values, without those that do not exist."""
        names = [(each, fields.point(each), fields.writes(each)) for each in ids]
        wanted = [field for _, point, writes in names for field in (point, writes)]
        stored = yield from self._read_many(ops, key, wanted)
        return {
            each: Found(
                decode_record(point, stored[point]), decode_writes(writes, stored.get(writes))
            )
            for each, point, writes in names
            if point in stored
        }

    def complete(
        self, ops: Ops, key: SessionKey, fields: Fields, found: Sequence[Found]
    ) -> Flow[list[Found]]:
        """Checkpoints with their values, without those that were removed in between."""
        needed = [
            part_names([*each.record.values.values(), *(write.value for write in each.writes)])
            for each in found
        ]
        parts = yield from self._parts(ops, key, fields, set[str]().union(*needed))
        return [
            each._replace(parts=parts)
            for each, names in zip(found, needed, strict=True)
            if names <= parts.keys()
        ]

    def _parts(
        self, ops: Ops, key: SessionKey, fields: Fields, names: Iterable[str]
    ) -> Flow[dict[str, bytes]]:
        """Parts of values by name, without those that are missing."""
        of_parts = {fields.part(name): name for name in names}
        stored = yield from self._read_many(ops, key, list(of_parts))
        return {of_parts[field]: value[1:] for field, value in stored.items()}

    def history(
        self,
        ops: Ops,
        key: SessionKey,
        namespace: str,
        checkpoint_id: str | None,
        channels: Iterable[str],
    ) -> Flow[tuple[dict[str, Base], Record | None, dict[str, bytes]]]:
        """What delta channels are rebuilt from: as `_walk`, and the parts of the values."""
        found = yield from self.get(ops, key, namespace, checkpoint_id)
        if found is None:
            return {}, None, {}
        bases, cut = yield from self._walk(ops, key, namespace, found.record, channels, {})
        names = part_names(blob for base in bases.values() for blob in base.blobs())
        parts = yield from self._parts(ops, key, Fields(namespace), names)
        if len(parts) < len(names):
            raise _broken(key, namespace)
        return bases, cut, parts

    def _walk(
        self,
        ops: Ops,
        key: SessionKey,
        namespace: str,
        record: Record,
        channels: Iterable[str],
        known: Mapping[str, Found],
    ) -> Flow[tuple[dict[str, Base], Record | None]]:
        """What delta channels are rebuilt from: a walk from a checkpoint to its parents.

        If the walk comes to a checkpoint whose history is missing, it returns that one, too. Then
        it leaves out the channels whose beginning is missing. `known` were read before.
        """
        seeds: dict[str, Blob] = {}
        writes: dict[str, list[Write]] = {channel: [] for channel in channels}  # newest first
        missing = set(writes)
        cut = None
        ids: list[str] = []
        while missing and (record.base is not None or record.parent is not None):
            if record.base is not None:
                for channel in missing & record.base.keys():
                    base = record.base[channel]
                    writes[channel] += reversed(base.writes)
                    if base.seed is not None:
                        seeds[channel] = base.seed
                missing -= record.base.keys()
                cut = record if missing else None
                break
            parent = str(record.parent)
            if parent not in known:
                ids = ids or (yield from self.ids(ops, key, namespace))
                end = bisect_right(ids, parent)
                wanted = ids[max(end - _HISTORY_PER_READ, 0) : end]
                known = yield from self.records(ops, key, Fields(namespace), wanted)
            if parent not in known:
                cut = record
                break
            record = known[parent].record
            for write in reversed(known[parent].writes):
                if write.channel in missing:
                    writes[write.channel].append(write)
            for channel in missing & record.values.keys():
                seeds[channel] = record.values[channel]
            missing -= record.values.keys()
        return {
            channel: Base(seeds.get(channel), found[::-1])
            for channel, found in writes.items()
            if cut is None or channel not in missing
        }, cut

    # -- writing -------------------------------------------------------------------------------

    def put(self, ops: Ops, key: SessionKey, namespace: str, root: str, build: Build) -> Flow[None]:
        """Store a checkpoint, then remove those that are too many.

        Args:
            ops: builds the Calls.
            key: the thread.
            namespace: the namespace.
            root: the root checkpoint that the namespace belongs to, if it is new.
            build: makes the record.
        """
        fields = Fields(namespace)
        known = self._known.get((key, namespace))
        for _ in range(_ATTEMPTS):
            known = known or (yield from self._load(ops, key, fields))
            record, parts = build(known.head)
            space, plan = known.space, _Plan()
            old = None
            if record.id <= space.head:  # it is put again, or late
                found = yield from self.records(ops, key, fields, [record.id])
                old = found[record.id].record if found else None
            if old is None:
                plan.extended.append((fields.ids(space.count), encode_entry(record.id)))
                highest = max(space.head, record.id)
                space = msgspec.structs.replace(space, head=highest, count=space.count + 1)
            else:
                record = record.put_over(old)
                if record == old:
                    break
            if known.stored is None:
                plan.set[LAYOUT] = b"%d" % LAYOUT_VALUE
                plan.extended.append((NAMESPACES, encode_entry((namespace, root))))
            there = known.head.parts() if known.head else set()
            for name in parts.keys() - there:
                plan.set[fields.part(name)] = encode_raw(parts[name])
            plan.set[fields.point(record.id)] = encode(record)
            plan.set[fields.space] = stored = encode_changed(space)
            plan.compared.append((fields.space, known.stored))
            head = record if record.id == space.head else known.head
            known = None
            try:
                yield from self._write(ops, key, plan)
            except StaleVersion:
                continue
            except SessionNotFound:
                yield from self._create(ops, key)
                continue
            self._note(key, namespace, _Known(stored, space, head))
            break
        else:
            raise _contended(key)
        # Removing several at once makes it cheap: it reads all records of the namespace.
        keep = self._keep
        if keep is not None and space.count > keep + keep // 4:
            yield from self.remove(ops, key, namespace, lambda ids: ids[:-keep])

    def put_writes(
        self,
        ops: Ops,
        key: SessionKey,
        namespace: str,
        checkpoint_id: str,
        writes: Sequence[Write],
        parts: Mapping[str, bytes],
    ) -> Flow[None]:
        """Store what a task wrote. A repeat changes nothing, unless a write is a special one."""
        fields = Fields(namespace)
        is_special = any(write.index < 0 for write in writes)
        entry = encode_entry((uuid4().hex if is_special else "", writes))
        for _ in range(_ATTEMPTS):
            plan = _Plan()
            plan.extended.append((fields.writes(checkpoint_id), entry))
            plan.set.update((fields.part(name), encode_raw(parts[name])) for name in parts)
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
        choose: Callable[[list[str]], Iterable[str]],
        *,
        is_retention: bool = True,
    ) -> Flow[None]:
        """Remove checkpoints of a namespace.

        Args:
            ops: builds the Calls.
            key: the thread.
            namespace: the namespace.
            choose: the ids to remove, given all ids in ascending order.
            is_retention: reading one of them will raise CheckpointRemoved.
        """
        for _ in range(_ATTEMPTS):
            plan = _Plan()
            [stored] = yield from self._read(ops, key, [NAMESPACES])
            names = decode_namespaces(stored)
            victims, kept = yield from self._plan_removal(
                ops, key, namespace, choose, is_retention, plan
            )
            if not victims:
                return
            gone = set() if kept else {namespace}
            if not namespace:
                # A call of a subgraph goes with the root checkpoint that it started from.
                last = max(victims)
                calls = {name for name, root in names.items() if root and root <= last}
                for name in sorted(name for name in calls if names[name] not in kept):
                    yield from self._plan_removal(ops, key, name, list, is_retention, plan)
                    gone.add(name)
            if gone:
                plan.compared.append((NAMESPACES, stored))
                left = [(name, root) for name, root in names.items() if name not in gone]
                if left:
                    plan.set[NAMESPACES] = encode_entries(left)
                else:
                    plan.removed.add(NAMESPACES)
            try:
                yield from self._write(ops, key, plan)
            except StaleVersion:
                continue
            except SessionNotFound:
                return
            finally:
                for name in {namespace, *gone}:
                    self._known.pop((key, name), None)
            return
        raise _contended(key)

    def _plan_removal(
        self,
        ops: Ops,
        key: SessionKey,
        namespace: str,
        choose: Callable[[list[str]], Iterable[str]],
        is_retention: bool,
        plan: _Plan,
    ) -> Flow[tuple[set[str], set[str]]]:
        """Plan the removal of checkpoints, and of what no other one needs. Those and the others."""
        fields = Fields(namespace)
        known = yield from self._load(ops, key, fields)
        ids = yield from self.ids(ops, key, namespace)
        victims = set(choose(ids)) & set(ids)
        kept = set(ids) - victims
        if not victims:
            return victims, kept
        found = yield from self.records(ops, key, fields, ids)
        records = {each: found[each].record for each in found if each in kept}
        deltas = {channel for record in records.values() for channel in record.deltas}
        for record in [*records.values()]:
            if record.parent in victims:
                channels = deltas - record.values.keys()
                base, _ = yield from self._walk(ops, key, namespace, record, channels, found)
                changed = msgspec.structs.replace(record, parent=None, base=base)
                records[record.id] = changed
                plan.set[fields.point(record.id)] = encode(changed)
        of_writes = [fields.writes(victim) for victim in victims]
        writes = yield from self._read_many(ops, key, of_writes)
        parts = {part for field in writes for part in all_parts(field, writes[field])}
        parts.update(*(found[victim].record.parts() for victim in victims & found.keys()))
        parts.difference_update(*(record.parts() for record in records.values()))
        plan.removed.update(map(fields.part, parts), of_writes, map(fields.point, victims))
        plan.removed.update(fields.all_ids(known.space.count))
        plan.compared.append((fields.space, known.stored))
        if kept:
            removed = max(known.space.removed, *victims) if is_retention else known.space.removed
            space = Space(max(kept), len(kept), removed)
            plan.set.update(
                {**encode_ids(fields, sorted(kept)), fields.space: encode_changed(space)}
            )
        else:
            plan.removed.add(fields.space)
        return victims, kept

    def store(
        self,
        ops: Ops,
        key: SessionKey,
        roots: Mapping[str, str],
        checkpoints: Mapping[str, Sequence[Found]],
        replaced: Iterable[str],
    ) -> Flow[None]:
        """Store a whole thread in place of state with other names. StaleVersion if it is stored.

        Args:
            ops: builds the Calls.
            key: the thread.
            roots: its namespaces, each with the root checkpoint that it belongs to.
            checkpoints: by namespace.
            replaced: the names of the state to remove.
        """
        plan = _Plan()
        for namespace, found in checkpoints.items():
            fields = Fields(namespace)
            ids = [each.record.id for each in found]
            for each in found:
                plan.set[fields.point(each.record.id)] = encode(each.record)
                if each.writes:
                    plan.set[fields.writes(each.record.id)] = encode_entries([("", each.writes)])
                for name, part in each.parts.items():
                    plan.set[fields.part(name)] = encode_raw(part)
            space = Space(max(ids), len(ids))
            plan.set.update({**encode_ids(fields, ids), fields.space: encode_changed(space)})
        plan.set[NAMESPACES] = encode_entries(roots.items())
        plan.set[LAYOUT] = b"%d" % LAYOUT_VALUE
        plan.removed.update(b"." + name.encode() for name in replaced)
        plan.compared.append((LAYOUT, None))
        yield from self._write(ops, key, plan)

    def copy(self, ops: Ops, source: SessionKey, target: SessionKey) -> Flow[None]:
        """Copy a thread in place of another one."""
        [layout] = yield from self._read(ops, source, [LAYOUT])
        if source == target or layout is None:
            return
        stored: dict[bytes, bytes] = yield from_primary(ops.read_all_fields(source))
        yield from flows.delete_session(ops, target.app_name, target.user_id, target.session_id)
        yield from self._create(ops, target)
        ours = {field: stored[field] for field in stored if field.startswith(OURS)}
        index = {field for field in ours if field.startswith((NAMESPACES, b".space/"))}
        for pairs in _batches({field: ours[field] for field in ours.keys() - index}):
            yield ops.change_fields(target, [], [], Delta(pairs))
        pairs = [part for field in index for part in (field, ours[field])]
        yield ops.change_fields(target, [], [], Delta(pairs))

    # -- fields --------------------------------------------------------------------------------

    def _read(self, ops: Ops, key: SessionKey, fields: Sequence[bytes]) -> Flow[list[bytes | None]]:
        """Stored fields, all None without a thread. Imports what release 0.1.0 stored.

        Runs go on from what they read, so a replica that lags behind is not asked.
        """
        found = yield from_primary(ops.read_fields(key, [LAYOUT, *fields]))
        if found is not None and found[0] is None:
            yield from self._import(ops, key)
            found = yield from_primary(ops.read_fields(key, [LAYOUT, *fields]))
        values: list[bytes | None] = found[1:] if found else [None] * len(fields)
        return values

    def _read_many(
        self, ops: Ops, key: SessionKey, fields: Sequence[bytes]
    ) -> Flow[dict[bytes, bytes]]:
        """Fields that exist, by name."""
        found: dict[bytes, bytes] = {}
        for first in range(0, len(fields), _FIELDS_PER_READ):
            names = fields[first : first + _FIELDS_PER_READ]
            values: Any = (yield from_primary(ops.read_fields(key, names))) or ()
            pairs = zip(names, values, strict=False)
            found.update((name, value) for name, value in pairs if value is not None)
        return found

    def _load(self, ops: Ops, key: SessionKey, fields: Fields) -> Flow[_Known]:
        [stored] = yield from self._read(ops, key, [fields.space])
        return _Known(stored, decode_space(fields.space, stored) if stored else Space())

    def _write(self, ops: Ops, key: SessionKey, plan: _Plan) -> Flow[None]:
        """Apply a plan. If it is large, parts of values are stored before what refers to them."""
        now = plan.set
        if sum(map(len, now.values())) > _BYTES_PER_WRITE:
            early = {field: now[field] for field in now if field.startswith(b".data/")}
            now = {field: now[field] for field in now.keys() - early.keys()}
            for pairs in _batches(early):
                yield ops.change_fields(key, [], [], Delta(pairs))
        pairs = [part for pair in now.items() for part in pair]
        delta = Delta(pairs, sorted(plan.removed - plan.set.keys()))
        yield ops.change_fields(key, plan.compared, plan.extended, delta)

    def _create(self, ops: Ops, key: SessionKey) -> Flow[None]:
        yield from create_if_missing(ops, key, {LAYOUT[1:].decode(): LAYOUT_VALUE})

    def _note(self, key: SessionKey, namespace: str, known: _Known) -> None:
        if len(self._known) >= _KNOWN_LIMIT:
            self._known.clear()
        self._known[key, namespace] = known

    def _check_removed(self, namespace: str, space: Space, checkpoint_id: str) -> None:
        if checkpoint_id <= space.removed:
            kept = "prune" if self._keep is None else f"keep_checkpoints={self._keep}, or prune"
            raise CheckpointRemoved(
                f"checkpoint {checkpoint_id!r} of namespace {namespace!r} is not stored: "
                f"retention ({kept}) has removed checkpoints up to {space.removed!r}"
            )


Listed = tuple[str, str, Found]
"""A thread id, a namespace, and a checkpoint."""


class Listing:
    """A listing of checkpoints, newest first, that is read page by page.

    Args:
        threads: reads them.
        thread_id: the thread; None = all threads, the one written last first.
        namespace: the namespace; None = all.
        checkpoint_id: the only checkpoint to list; None = all.
        before: list only checkpoints with lower ids; None = all.
        limit: how many to list; None = all.
        matches: whether to list a checkpoint. Values of others are not read.
    """

    def __init__(
        self,
        threads: Threads,
        thread_id: str | None,
        namespace: str | None,
        checkpoint_id: str | None,
        before: str | None,
        limit: int | None,
        matches: Callable[[Record], bool],
    ) -> None:
        self._threads = threads
        self._namespace = namespace
        self._id = checkpoint_id
        self._before = before
        self._left = max(limit, 0) if limit is not None else 1 << 62
        self._matches = matches
        self._thread_ids = iter(() if thread_id is None else (thread_id,))
        self._has_more_threads = thread_id is None
        self._after: Place | None = None
        self._seen: set[str] = set()
        self._thread_id = ""
        self._waiting: list[tuple[str, str]] = []  # ids and namespaces of its checkpoints

    def next(self, ops: Ops) -> Flow[list[Listed]]:
        """The next checkpoints; empty at the end."""
        while self._left and (self._waiting or (yield from self._open_thread(ops))):
            size = min(self._left, _CHECKPOINTS_PER_READ)
            page, self._waiting = self._waiting[:size], self._waiting[size:]
            key = self._threads.key(self._thread_id)
            found: dict[tuple[str, str], Listed] = {}
            for namespace in {name for _, name in page}:
                fields = Fields(namespace)
                wanted = [each for each, name in page if name == namespace]
                records = yield from self._threads.records(ops, key, fields, wanted)
                matching = [each for each in records.values() if self._matches(each.record)]
                for each in (yield from self._threads.complete(ops, key, fields, matching)):
                    found[each.record.id, namespace] = (self._thread_id, namespace, each)
            if found:
                self._left -= len(found)
                return [found[place] for place in page if place in found]
        return []

    def _open_thread(self, ops: Ops) -> Flow[bool]:
        """Read the ids of the next thread that has any; False at the end."""
        while not self._waiting:
            thread_id = next(self._thread_ids, None)
            if thread_id is not None:
                self._thread_id = thread_id
                yield from self._read_ids(ops)
            elif self._has_more_threads:
                page = yield from self._threads.page(ops, self._after)
                self._after = page[-1] if page else None
                self._has_more_threads = bool(page)
                # A thread that is written meanwhile moves from page to page.
                unseen = [each.session_id for each in page if each.session_id not in self._seen]
                self._seen.update(unseen)
                self._thread_ids = iter(unseen)
            else:
                return False
        return True

    def _read_ids(self, ops: Ops) -> Flow[None]:
        key = self._threads.key(self._thread_id)
        names: Iterable[str] = yield from self._threads.namespaces(ops, key)
        for name in names if self._namespace is None else [self._namespace]:
            ids = [self._id] if self._id else (yield from self._threads.ids(ops, key, name))
            self._waiting += [(each, name) for each in ids]
        if self._before is not None:
            self._waiting = [place for place in self._waiting if place[0] < self._before]
        self._waiting.sort(reverse=True)


def _batches(fields: Mapping[bytes, bytes]) -> Iterator[list[bytes]]:
    """Fields and their values, in batches that are sent together."""
    pairs: list[bytes] = []
    size = 0
    for field, value in fields.items():
        pairs += (field, value)
        size += len(value)
        if size > _BYTES_PER_WRITE:
            yield pairs
            pairs, size = [], 0
    if pairs:
        yield pairs


def _contended(key: SessionKey) -> BackendUnavailable:
    return BackendUnavailable(
        f"others change thread {key.session_id!r} all the time; nothing was written",
        maybe_applied=False,
    )


def _broken(key: SessionKey, namespace: str) -> CorruptData:
    where = f"namespace {namespace!r} of thread {key.session_id!r}"
    return CorruptData(f"{where} lacks values of its checkpoints", key=where)
