"""What a LangGraph saver reads and changes of threads, as flows. checkpoints.py has the layout."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple
from uuid import uuid4

from msgspec.structs import replace

from .. import errors
from ..calls import Flow
from ..model import SessionKey
from ..ops import Ops
from ..replies import Place
from . import checkpoints as stored
from .checkpoint_fields import Plan, ThreadFields, with_data_key
from .checkpoints import NAMESPACES, Base, Blob, Fields, Record, Space, Write, part_names

_ATTEMPTS = 1_000
"""Others may change a namespace between a read and what builds on it. Then it is read again."""

_THREADS_PER_READ = 1_000
_HISTORY_PER_READ = 64  # checkpoints without the values of their channels
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


class _Known(NamedTuple):
    """A namespace as this saver has last seen it, which may be outdated: changes compare it."""

    stored: bytes | None  # its Space; None = there is no such namespace
    space: Space
    head: Record | None = None  # the checkpoint with the highest id, if it is known


class Thread(ThreadFields):
    """A thread: one session.

    Args:
        ops: builds the Calls.
        key: the session.
        threads: the options of the saver, and what it knows.
    """

    def __init__(self, ops: Ops, key: SessionKey, threads: Threads) -> None:
        super().__init__(ops, key, threads.convert)
        self.threads = threads

    # -- reading -------------------------------------------------------------------------------

    @with_data_key
    def get(self, namespace: str, checkpoint_id: str | None) -> Flow[Found | None]:
        """A checkpoint, without an id the newest one; None if there is no such checkpoint.

        Raises:
            CheckpointRemoved: retention has removed it.
        """
        fields = Fields(namespace)
        known = self.threads.known.get((self.key, namespace))
        wanted = checkpoint_id or (known.space.head if known else "")
        for _ in range(_ATTEMPTS):
            point, writes = fields.point(wanted), fields.writes(wanted)
            found = yield from self.read([fields.space, point, writes])
            if fields.space not in found:
                return None
            space = stored.decode_space(fields.space, found[fields.space], self.unwrap)
            if checkpoint_id is None and wanted != space.head:
                wanted = space.head
                continue
            if point not in found:
                if wanted > space.removed:
                    return None
                raise CheckpointRemoved(
                    f"checkpoint {wanted!r} of namespace {namespace!r} is not stored: retention "
                    f"({self.threads.retention}) has removed checkpoints up to {space.removed!r}"
                )
            record = stored.decode_record(point, found[point], self.unwrap)
            if wanted == space.head:
                self.threads.note(self.key, namespace, _Known(found[fields.space], space, record))
            pending = stored.decode_writes(writes, found.get(writes), self.unwrap)
            complete = yield from self.complete(namespace, [Found(record, pending)])
            if complete:
                return complete[0]
        raise self._broken(namespace)

    @with_data_key
    def namespaces(self) -> Flow[dict[str, str]]:
        """The namespaces of a thread, each with the root checkpoint that it belongs to."""
        found = yield from self.read([NAMESPACES])
        return dict(stored.decode_namespaces(NAMESPACES, found.get(NAMESPACES), self.unwrap))

    @with_data_key
    def ids(self, namespace: str) -> Flow[list[str]]:
        """The ids of all checkpoints of a namespace, in ascending order."""
        fields = Fields(namespace)
        known = yield from self._load(namespace)
        found = yield from self.read(fields.all_ids(known.space.count))
        return sorted(
            {
                each
                for field in found
                for each in stored.decode_ids(field, found[field], self.unwrap)
            }
        )

    @with_data_key
    def records(self, namespace: str, ids: Iterable[str]) -> Flow[dict[str, Found]]:
        """Checkpoints by id with their writes and no values, without those that do not exist."""
        fields = Fields(namespace)
        names = {each: (fields.point(each), fields.writes(each)) for each in ids}
        found = yield from self.read([field for pair in names.values() for field in pair])
        return {
            each: Found(
                stored.decode_record(point, found[point], self.unwrap),
                stored.decode_writes(writes, found.get(writes), self.unwrap),
            )
            for each, (point, writes) in names.items()
            if point in found
        }

    @with_data_key
    def history(
        self, namespace: str, checkpoint_id: str | None, channels: Iterable[str]
    ) -> Flow[tuple[dict[str, Base], Record | None, dict[str, bytes]]]:
        """What `_walk` returns from a checkpoint on, and the parts of its values."""
        for _ in range(2):  # a removal in between may cut the history
            found = yield from self.get(namespace, checkpoint_id)
            if found is None:
                return {}, None, {}
            bases, cut = yield from self._walk(namespace, found.record, channels, {})
            blobs = [blob for base in bases.values() for blob in base.blobs()]
            parts = yield from self.read_parts(namespace, blobs)
            is_complete = part_names(blobs) <= parts.keys()
            if is_complete and cut is None:
                break
        if not is_complete:
            raise self._broken(namespace)
        return bases, cut, parts

    def _walk(
        self, namespace: str, record: Record, channels: Iterable[str], known: Mapping[str, Found]
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
                ids = ids or (yield from self.ids(namespace))
                end = bisect_right(ids, record.parent)
                wanted = ids[max(end - _HISTORY_PER_READ, 0) : end]
                known = yield from self.records(namespace, wanted)
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

    @with_data_key
    def put(self, namespace: str, root: str, build: Build) -> Flow[None]:
        """Store a checkpoint, then remove those that are too many.

        `root` is the root checkpoint to which the namespace belongs if it is new.
        """
        fields = Fields(namespace)
        known = self.threads.known.get((self.key, namespace))
        for _ in range(_ATTEMPTS):
            known = known or (yield from self._load(namespace))
            record, parts = build(known.head)
            space, plan, old = known.space, Plan(), None
            if record.id <= space.head:  # it is stored again, or late
                found = yield from self.records(namespace, [record.id])
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
            changed = self.wrap(fields.space, changed)  # as it will be read
            plan.compared.append((fields.space, known.stored))
            head = record if record.id == space.head else known.head
            known = None
            try:
                yield from self.write(plan)
            except errors.StaleVersion:
                continue
            except errors.SessionNotFound:
                yield from self.create()
                continue
            self.threads.note(self.key, namespace, _Known(changed, space, head))
            break
        else:
            raise self._contended()
        # Removing several at once makes it cheap: it reads all records of the namespace.
        keep = self.threads.keep
        if keep is not None and space.count > keep + keep // 4:
            with suppress(errors.BackendError):  # this one is stored; the next put removes them
                yield from self.remove(namespace, lambda ids: ids[:-keep])

    @with_data_key
    def put_writes(
        self,
        namespace: str,
        checkpoint_id: str,
        writes: Sequence[Write],
        parts: Mapping[str, bytes],
    ) -> Flow[None]:
        """Store what a task wrote. A repeat changes nothing, unless a write is a special one."""
        fields, plan = Fields(namespace), Plan()
        is_special = any(write.index < 0 for write in writes)
        entry = stored.encode_entry((uuid4().hex if is_special else "", writes))
        plan.extended.append((fields.writes(checkpoint_id), entry))
        plan.set_parts(fields, parts)
        for _ in range(_ATTEMPTS):
            try:
                return (yield from self.write(plan))
            except errors.SessionNotFound:
                yield from self.create()
        raise self._contended()

    @with_data_key
    def remove(
        self,
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
            plan = Plan()
            there = (yield from self.read([NAMESPACES])).get(NAMESPACES)
            names = dict(stored.decode_namespaces(NAMESPACES, there, self.unwrap))
            victims, kept = yield from self._plan_removal(namespace, choose, is_retention, plan)
            if not victims:
                return
            gone = set() if kept else {namespace}
            if not namespace:  # calls of subgraphs go with the checkpoint that they started from
                highest = max(victims)
                for name, root in names.items():
                    if root and root <= highest and root not in kept:
                        gone.add(name)
                        yield from self._plan_removal(name, list, is_retention, plan)
            if gone:
                plan.compared.append((NAMESPACES, there))
                left = [(name, root) for name, root in names.items() if name not in gone]
                if left:
                    plan.set[NAMESPACES] = stored.encode_entries(left)
                else:
                    plan.removed.add(NAMESPACES)
            for name in {namespace, *gone}:
                self.threads.known.pop((self.key, name), None)
            try:
                return (yield from self.write(plan))
            except (errors.StaleVersion, errors.SessionNotFound):
                continue
        raise self._contended()

    def _plan_removal(
        self,
        namespace: str,
        choose: Callable[[list[str]], Iterable[str]],
        is_retention: bool,
        plan: Plan,
    ) -> Flow[tuple[set[str], set[str]]]:
        """Plan the removal of checkpoints, and of what no other one needs. Returns both ids."""
        fields = Fields(namespace)
        known = yield from self._load(namespace)
        ids = yield from self.ids(namespace)
        victims = set(choose(ids)).intersection(ids)
        kept = set(ids) - victims
        if not victims:
            return victims, kept
        found = yield from self.records(namespace, ids)
        records = {each: found[each].record for each in kept & found.keys()}
        deltas = {channel for record in records.values() for channel in record.deltas}
        for record in [each for each in records.values() if each.parent in victims]:
            channels = deltas - record.values.keys()
            base, _ = yield from self._walk(namespace, record, channels, found)
            records[record.id] = replace(record, parent=None, base=base)
            plan.set[fields.point(record.id)] = stored.encode(records[record.id])
        of_writes = [fields.writes(victim) for victim in victims]
        writes = yield from self.read(of_writes)
        parts = {
            part for field in writes for part in stored.all_parts(field, writes[field], self.unwrap)
        }
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

    def copy_to(self, target: Thread) -> Flow[None]:
        """Store a copy in place of another thread."""
        if target.key == self.key:
            return
        if values := (yield from self.read_all()):
            yield from target.delete()
            yield from target.create()
            yield from target.write_all(values)

    def _load(self, namespace: str) -> Flow[_Known]:
        fields = Fields(namespace)
        found = (yield from self.read([fields.space])).get(fields.space)
        return _Known(
            found, stored.decode_space(fields.space, found, self.unwrap) if found else Space()
        )

    @with_data_key
    def complete(self, namespace: str, found: Sequence[Found]) -> Flow[list[Found]]:
        """Checkpoints with their values, without those that were removed in between."""
        blobs = [blob for each in found for blob in each.blobs()]
        parts = yield from self.read_parts(namespace, blobs)
        there = [each for each in found if part_names(each.blobs()) <= parts.keys()]
        return [each._replace(parts=parts) for each in there]

    def _contended(self) -> errors.BackendUnavailable:
        return errors.BackendUnavailable(
            f"others changed thread {self.key.session_id!r} in every attempt; nothing was written",
            maybe_applied=False,
        )

    def _broken(self, namespace: str) -> errors.CorruptData:
        where = f"namespace {namespace!r} of thread {self.key.session_id!r}"
        return errors.CorruptData(f"{where} lacks values of its checkpoints", key=where)


class Threads:
    """The threads of a saver.

    Args:
        app_name: the application.
        user_id: the user whose sessions the threads are, or a function that tells it.
        keep: how many of the newest checkpoints of a namespace are kept; None = all.
        convert: converts what release 0.1.0 stored of a thread.
    """

    def __init__(
        self,
        app_name: str,
        user_id: str | Callable[[str], str],
        keep: int | None,
        convert: Callable[[ThreadFields], Flow[None]],
    ) -> None:
        self._app_name = app_name
        self._user_id = user_id
        self.keep = keep
        self.retention = f"keep_checkpoints={keep}, or prune" if keep else "prune"
        self.convert = convert
        self.known: dict[tuple[SessionKey, str], _Known] = {}

    def at(self, ops: Ops, thread_id: object) -> Thread:
        """A thread."""
        thread = str(thread_id)
        user_id = self._user_id if isinstance(self._user_id, str) else self._user_id(thread)
        return Thread(ops, SessionKey(self._app_name, user_id, thread), self)

    def ids(self, ops: Ops) -> Flow[list[str]]:
        """All threads, the last written at the end. Some may no longer exist.

        Raises:
            InvalidArgument: every thread may belong to another user.
        """
        if not isinstance(self._user_id, str):
            raise errors.InvalidArgument(
                "config must name a thread: with a function as user_id, threads cannot be listed"
            )
        places: list[Place] = []
        while True:
            after = places[-1] if places else None
            page = yield ops.list_places(self._app_name, self._user_id, _THREADS_PER_READ, after)
            places += page
            if len(page) < _THREADS_PER_READ:
                # A thread that is written meanwhile may be read twice.
                return list(dict.fromkeys(place.session_id for place in reversed(places)))

    def note(self, key: SessionKey, namespace: str, known: _Known) -> None:
        """Remember a namespace."""
        if len(self.known) >= _KNOWN_LIMIT:
            self.known.clear()
        self.known[key, namespace] = known
