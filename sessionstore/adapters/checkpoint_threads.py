"""What a LangGraph saver reads and changes of threads, as flows. checkpoints.py has the layout."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

from msgspec.structs import replace

from .. import errors, flows
from ..calls import Call, Flow
from ..listing import from_primary
from ..model import SessionKey
from ..ops import Ops
from ..replies import Place
from ..tiers import Delta
from . import checkpoints as stored
from .checkpoints import NAMESPACES, Base, Blob, Fields, Record, Space, Write, part_names
from .flows import create_if_missing

_ATTEMPTS = 1_000
"""Others may change a namespace between a read and what builds on it. Then it is read again."""

_THREADS_PER_READ = 100
_CHECKPOINTS_PER_READ = 20  # of a listing
_HISTORY_PER_READ = 64  # checkpoints without the values of their channels
_FIELDS_PER_READ = 500  # parts of values: up to 8 MiB
_BYTES_PER_WRITE = 16 << 20
_KNOWN_LIMIT = 2_000  # namespaces that a saver remembers

Build = Callable[[Record | None], tuple[Record, Mapping[str, bytes]]]
"""Makes a record and the parts of its values, given an earlier record that may share values."""


class CheckpointRemoved(errors.SessionStoreError):
    """The checkpoint existed. Retention (`keep_checkpoints`) or `prune` has removed it."""


class Found(NamedTuple):
    """A checkpoint with its pending writes, and the parts of their values, once they are read."""

    record: Record
    writes: list[Write]
    parts: Mapping[str, bytes] = {}

    def blobs(self) -> list[Blob]:
        """The values of channels and writes."""
        return [*self.record.values.values(), *(write.value for write in self.writes)]


Listed = tuple[str, str, Found]
"""A thread id, a namespace, and a checkpoint."""


Paged = Generator[Call[Any] | tuple[Call[Any], ...] | list[Listed], Any, None]
"""A flow that also yields pages of what it lists."""


class Pages:
    """Runs a listing page by page."""

    def __init__(self, listing: Callable[[Ops], Paged]) -> None:
        self._listing = listing
        self._paged: Paged | None = None

    def next(self, ops: Ops) -> Flow[list[Listed]]:
        """The next checkpoints; empty at the end."""
        self._paged = self._paged or self._listing(ops)
        result = None
        try:
            while True:
                step = self._paged.send(result)
                if isinstance(step, list):
                    if step:
                        return step
                    result = None
                else:
                    result = yield step
        except StopIteration:
            return []


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

    def set_parts(self, fields: Fields, parts: Mapping[str, bytes]) -> None:
        """Store parts of values."""
        self.set.update((fields.part(name), stored.encode_raw(parts[name])) for name in parts)


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
            point, writes = fields.point(wanted), fields.writes(wanted)
            found = yield from self._read(ops, key, [fields.space, point, writes])
            if fields.space not in found:
                return None
            space = stored.decode_space(fields.space, found[fields.space])
            if checkpoint_id is None and wanted != space.head:
                wanted = space.head
                continue
            if point not in found:
                self._check_removed(namespace, space, wanted)
                return None
            record = stored.decode_record(point, found[point])
            if wanted == space.head:
                self._note(key, namespace, _Known(found[fields.space], space, record))
            pending = stored.decode_writes(writes, found.get(writes))
            complete = yield from self._complete(ops, key, fields, [Found(record, pending)])
            if complete:
                return complete[0]
        raise _broken(key, namespace)

    def listing(
        self,
        ops: Ops,
        thread_id: str | None,
        namespace: str | None,
        checkpoint_id: str | None,
        before: str | None,
        limit: int | None,
        matches: Callable[[Record], bool],
    ) -> Paged:
        """Checkpoints, newest first. Values of those that do not match are not read.

        Without a thread it lists all threads, the one written last first. Without a namespace it
        lists all namespaces. `before` and `limit` may be None, too.
        """
        left = 1 << 62 if limit is None else limit
        threads = [] if thread_id is None else [thread_id]
        seen: set[str] = set()
        place: Place | None = None
        while left > 0:
            if thread_id is None:
                places = yield from self._places(ops, place)
                place = places[-1] if places else None
                # A thread that is written meanwhile moves from page to page.
                threads = [each.session_id for each in places if each.session_id not in seen]
                seen.update(threads)
            for thread in threads:
                key = self.key(thread)
                names = list((yield from self.namespaces(ops, key)))
                waiting: list[tuple[str, str]] = []
                for name in names if namespace is None else [namespace]:
                    one = [checkpoint_id] if checkpoint_id else None
                    ids = one or (yield from self.ids(ops, key, name))
                    waiting += [(each, name) for each in ids if before is None or each < before]
                waiting.sort(reverse=True)
                while waiting and left > 0:
                    size = min(left, _CHECKPOINTS_PER_READ)
                    page, waiting = waiting[:size], waiting[size:]
                    found = yield from self._page(ops, key, page, matches)
                    left -= len(found)
                    yield [(thread, name, each) for name, each in found]
            if place is None:
                return

    def _page(
        self,
        ops: Ops,
        key: SessionKey,
        page: Sequence[tuple[str, str]],
        matches: Callable[[Record], bool],
    ) -> Flow[list[tuple[str, Found]]]:
        """Checkpoints of these ids and namespaces that match, each with its namespace."""
        found: dict[tuple[str, str], tuple[str, Found]] = {}
        for namespace in {name for _, name in page}:
            fields = Fields(namespace)
            wanted = [each for each, name in page if name == namespace]
            records = yield from self.records(ops, key, fields, wanted)
            matching = [each for each in records.values() if matches(each.record)]
            for each in (yield from self._complete(ops, key, fields, matching)):
                found[each.record.id, namespace] = (namespace, each)
        return [found[place] for place in page if place in found]

    def _places(self, ops: Ops, after: Place | None) -> Flow[list[Place]]:
        """Sessions of the user, last written first; empty at the end."""
        if not isinstance(self._user_id, str):
            raise errors.InvalidArgument(
                "config must name a thread: with a function as user_id, threads cannot be listed"
            )
        return (yield ops.list_places(self._app_name, self._user_id, _THREADS_PER_READ, after))

    def namespaces(self, ops: Ops, key: SessionKey) -> Flow[dict[str, str]]:
        """The namespaces of a thread, each with the root checkpoint that it belongs to."""
        found = yield from self._read(ops, key, [NAMESPACES])
        return stored.decode_namespaces(found.get(NAMESPACES))

    def ids(self, ops: Ops, key: SessionKey, namespace: str) -> Flow[list[str]]:
        """The ids of all checkpoints of a namespace, in ascending order."""
        fields = Fields(namespace)
        known = yield from self._load(ops, key, fields)
        found = yield from self._read(ops, key, fields.all_ids(known.space.count))
        return sorted({each for field in found for each in stored.decode_ids(field, found[field])})

    def records(
        self, ops: Ops, key: SessionKey, fields: Fields, ids: Iterable[str]
    ) -> Flow[dict[str, Found]]:
        """Checkpoints by id with their writes and no values, without those that do not exist."""
        names = {each: (fields.point(each), fields.writes(each)) for each in ids}
        found = yield from self._read(
            ops, key, [field for pair in names.values() for field in pair]
        )
        return {
            each: Found(
                stored.decode_record(point, found[point]),
                stored.decode_writes(writes, found.get(writes)),
            )
            for each, (point, writes) in names.items()
            if point in found
        }

    def history(
        self,
        ops: Ops,
        key: SessionKey,
        namespace: str,
        checkpoint_id: str | None,
        channels: Iterable[str],
    ) -> Flow[tuple[dict[str, Base], Record | None, dict[str, bytes]]]:
        """What `_walk` returns from a checkpoint on, and the parts of its values."""
        found = yield from self.get(ops, key, namespace, checkpoint_id)
        if found is None:
            return {}, None, {}
        bases, cut = yield from self._walk(ops, key, namespace, found.record, channels, {})
        blobs = [blob for base in bases.values() for blob in base.blobs()]
        parts = yield from self._parts(ops, key, Fields(namespace), blobs)
        if not part_names(blobs) <= parts.keys():
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
        while missing and record.base is None and record.parent is not None:
            if record.parent not in known:
                ids = ids or (yield from self.ids(ops, key, namespace))
                end = bisect_right(ids, record.parent)
                wanted = ids[max(end - _HISTORY_PER_READ, 0) : end]
                known = yield from self.records(ops, key, Fields(namespace), wanted)
            if record.parent not in known:
                cut = record
                break
            record, pending, _ = known[record.parent]
            for write in reversed(pending):
                if write.channel in missing:
                    writes[write.channel].append(write)
            seeds.update(
                (channel, record.values[channel]) for channel in missing & {*record.values}
            )
            missing -= seeds.keys()
        if missing and record.base is not None:
            for channel in missing & record.base.keys():
                base = record.base[channel]
                writes[channel] += reversed(base.writes)
                if base.seed is not None:
                    seeds[channel] = base.seed
            missing -= record.base.keys()
            cut = record if missing else None
        return {
            channel: Base(seeds.get(channel), found[::-1])
            for channel, found in writes.items()
            if cut is None or channel not in missing
        }, cut

    # -- writing -------------------------------------------------------------------------------

    def put(self, ops: Ops, key: SessionKey, namespace: str, root: str, build: Build) -> Flow[None]:
        """Store a checkpoint, then remove those that are too many.

        `root` is the root checkpoint to which the namespace belongs if it is new.
        """
        fields = Fields(namespace)
        known = self._known.get((key, namespace))
        for _ in range(_ATTEMPTS):
            known = known or (yield from self._load(ops, key, fields))
            record, parts = build(known.head)
            space, plan, old = known.space, _Plan(), None
            if record.id <= space.head:  # it is put again, or late
                found = yield from self.records(ops, key, fields, [record.id])
                old = found[record.id].record if found else None
            if old is None:
                plan.extended.append((fields.ids(space.count), stored.encode_entry(record.id)))
                space = replace(space, head=max(space.head, record.id), count=space.count + 1)
            else:
                record = record.put_over(old)
            if record == old:
                break
            if known.stored is None:
                plan.set[stored.LAYOUT] = stored.LAYOUT_VALUE
                plan.extended.append((NAMESPACES, stored.encode_entry((namespace, root))))
            there = known.head.parts() if known.head else set()
            plan.set_parts(fields, {name: parts[name] for name in parts.keys() - there})
            plan.set[fields.point(record.id)] = stored.encode(record)
            plan.set[fields.space] = changed = stored.encode_changed(space)
            plan.compared.append((fields.space, known.stored))
            head = record if record.id == space.head else known.head
            known = None
            try:
                yield from self._write(ops, key, plan)
            except errors.StaleVersion:
                continue
            except errors.SessionNotFound:
                yield from self._create(ops, key)
                continue
            self._note(key, namespace, _Known(changed, space, head))
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
        fields, plan = Fields(namespace), _Plan()
        is_special = any(write.index < 0 for write in writes)
        entry = stored.encode_entry((uuid4().hex if is_special else "", writes))
        plan.extended.append((fields.writes(checkpoint_id), entry))
        plan.set_parts(fields, parts)
        for _ in range(_ATTEMPTS):
            try:
                return (yield from self._write(ops, key, plan))
            except errors.SessionNotFound:
                yield from self._create(ops, key)
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

        `choose` gets all ids in ascending order, and returns those to remove. With `is_retention`
        reading one of them will raise CheckpointRemoved.
        """
        for _ in range(_ATTEMPTS):
            plan = _Plan()
            there = (yield from self._read(ops, key, [NAMESPACES])).get(NAMESPACES)
            names = stored.decode_namespaces(there)
            victims, kept = yield from self._plan_removal(
                ops, key, namespace, choose, is_retention, plan
            )
            if not victims:
                return
            gone = set() if kept else {namespace}
            if not namespace:  # calls of subgraphs go with the checkpoint that they started from
                highest = max(victims)
                for name, root in names.items():
                    if root and root <= highest and root not in kept:
                        gone.add(name)
                        yield from self._plan_removal(ops, key, name, list, is_retention, plan)
            if gone:
                plan.compared.append((NAMESPACES, there))
                left = [(name, root) for name, root in names.items() if name not in gone]
                if left:
                    plan.set[NAMESPACES] = stored.encode_entries(left)
                else:
                    plan.removed.add(NAMESPACES)
            for name in {namespace, *gone}:
                self._known.pop((key, name), None)
            try:
                return (yield from self._write(ops, key, plan))
            except (errors.StaleVersion, errors.SessionNotFound):
                continue
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
        """Plan the removal of checkpoints, and of what no other one needs. Returns both ids."""
        fields = Fields(namespace)
        known = yield from self._load(ops, key, fields)
        ids = yield from self.ids(ops, key, namespace)
        victims = set(choose(ids)).intersection(ids)
        kept = set(ids) - victims
        if not victims:
            return victims, kept
        found = yield from self.records(ops, key, fields, ids)
        records = {each: found[each].record for each in kept & found.keys()}
        deltas = {channel for record in records.values() for channel in record.deltas}
        for record in [each for each in records.values() if each.parent in victims]:
            channels = deltas - record.values.keys()
            base, _ = yield from self._walk(ops, key, namespace, record, channels, found)
            records[record.id] = replace(record, parent=None, base=base)
            plan.set[fields.point(record.id)] = stored.encode(records[record.id])
        of_writes = [fields.writes(victim) for victim in victims]
        writes = yield from self._read(ops, key, of_writes)
        parts = {part for field in writes for part in stored.all_parts(field, writes[field])}
        parts.update(*(found[victim].record.parts() for victim in victims & found.keys()))
        parts.difference_update(*(record.parts() for record in records.values()))
        plan.removed.update(map(fields.part, parts), of_writes, map(fields.point, victims))
        plan.removed.update(fields.all_ids(known.space.count))
        plan.compared.append((fields.space, known.stored))
        if kept:
            removed = max(victims) if is_retention else ""
            space = Space(max(kept), len(kept), max(removed, known.space.removed))
            plan.set.update(stored.encode_ids(fields, sorted(kept)))
            plan.set[fields.space] = stored.encode_changed(space)
        else:
            plan.removed.add(fields.space)
        return victims, kept

    def store(
        self,
        ops: Ops,
        key: SessionKey,
        roots: Mapping[str, str],
        checkpoints: Mapping[str, Sequence[Found]],
        replaced: Iterable[bytes],
    ) -> Flow[None]:
        """Store a whole thread in place of other fields. StaleVersion if it is stored already.

        `roots` are its namespaces, each with the root checkpoint to which it belongs.
        """
        plan = _Plan()
        for namespace, found in checkpoints.items():
            fields = Fields(namespace)
            ids = [each.record.id for each in found]
            for each, (record, writes, parts) in zip(ids, found, strict=True):
                plan.set[fields.point(each)] = stored.encode(record)
                if writes:
                    plan.set[fields.writes(each)] = stored.encode_entries([("", writes)])
                plan.set_parts(fields, parts)
            plan.set.update(stored.encode_ids(fields, ids))
            plan.set[fields.space] = stored.encode_changed(Space(max(ids), len(ids)))
        plan.set[NAMESPACES] = stored.encode_entries(roots.items())
        plan.set[stored.LAYOUT] = stored.LAYOUT_VALUE
        plan.compared.append((stored.LAYOUT, None))
        plan.removed.update(replaced)
        yield from self._write(ops, key, plan)

    def copy(self, ops: Ops, source: SessionKey, target: SessionKey) -> Flow[None]:
        """Copy a thread in place of another one."""
        if source == target or not (yield from self._read(ops, source, [stored.LAYOUT])):
            return
        found: dict[bytes, bytes] = yield from_primary(ops.read_all_fields(source))
        yield from flows.delete_session(ops, target.app_name, target.user_id, target.session_id)
        yield from self._create(ops, target)
        # What makes checkpoints visible comes last.
        ours = sorted(field for field in found if field.startswith(stored.OURS))
        ours.sort(key=lambda field: field.startswith((NAMESPACES, b".space/")))
        for pairs in _batches({field: found[field] for field in ours}):
            yield ops.change_fields(target, [], [], Delta(pairs))

    # -- fields --------------------------------------------------------------------------------

    def _read(self, ops: Ops, key: SessionKey, fields: Sequence[bytes]) -> Flow[dict[bytes, bytes]]:
        """Fields that exist, by name. Imports what release 0.1.0 stored.

        Runs go on from what they read, so a replica that lags behind is not asked.
        """
        found: dict[bytes, bytes] = {}
        for first in range(0, len(fields), _FIELDS_PER_READ):
            names = [stored.LAYOUT, *fields[first : first + _FIELDS_PER_READ]]
            values = yield from_primary(ops.read_fields(key, names))
            if values is not None and values[0] is None:
                yield from self._import(ops, key)
                values = yield from_primary(ops.read_fields(key, names))
            pairs = zip(names, values or (), strict=False)
            found.update((name, value) for name, value in pairs if value is not None)
        return found

    def _load(self, ops: Ops, key: SessionKey, fields: Fields) -> Flow[_Known]:
        found = (yield from self._read(ops, key, [fields.space])).get(fields.space)
        return _Known(found, stored.decode_space(fields.space, found) if found else Space())

    def _complete(
        self, ops: Ops, key: SessionKey, fields: Fields, found: Sequence[Found]
    ) -> Flow[list[Found]]:
        """Checkpoints with their values, without those that were removed in between."""
        blobs = [blob for each in found for blob in each.blobs()]
        parts = yield from self._parts(ops, key, fields, blobs)
        there = [each for each in found if part_names(each.blobs()) <= parts.keys()]
        return [each._replace(parts=parts) for each in there]

    def _parts(
        self, ops: Ops, key: SessionKey, fields: Fields, blobs: Iterable[Blob]
    ) -> Flow[dict[str, bytes]]:
        """The parts of values, by name."""
        names = {fields.part(name): name for name in part_names(blobs)}
        found = yield from self._read(ops, key, list(names))
        return {name: found[field][1:] for field, name in names.items() if field in found}

    def _write(self, ops: Ops, key: SessionKey, plan: _Plan) -> Flow[None]:
        """Apply a plan. If it is large, parts of values are stored before what refers to them."""
        now = plan.set
        if sum(map(len, now.values())) > _BYTES_PER_WRITE:
            early = {field: now[field] for field in now if field.startswith(b".data/")}
            now = {field: now[field] for field in now.keys() - early.keys()}
            for pairs in _batches(early):
                yield ops.change_fields(key, [], [], Delta(pairs))
        delta = Delta(
            [part for pair in now.items() for part in pair], sorted(plan.removed - {*now})
        )
        yield ops.change_fields(key, plan.compared, plan.extended, delta)

    def _create(self, ops: Ops, key: SessionKey) -> Flow[None]:
        layout = {stored.LAYOUT[1:].decode(): int(stored.LAYOUT_VALUE)}
        yield from create_if_missing(ops, key, layout)

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
    yield pairs


def _contended(key: SessionKey) -> errors.BackendUnavailable:
    return errors.BackendUnavailable(
        f"others change thread {key.session_id!r} all the time; nothing was written",
        maybe_applied=False,
    )


def _broken(key: SessionKey, namespace: str) -> errors.CorruptData:
    where = f"namespace {namespace!r} of thread {key.session_id!r}"
    return errors.CorruptData(f"{where} lacks values of its checkpoints", key=where)
