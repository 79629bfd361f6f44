"""Reads and writes the fields of a thread, as flows. checkpoints.py has the layout.

Each field, and each entry of a field that consists of entries, is compressed and encrypted alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from functools import partial, wraps
from typing import Concatenate, ParamSpec, TypeVar

from .. import flows
from ..calls import Flow
from ..codec import corrupt
from ..flows.data_keys import run_keyed
from ..flows.shared import from_primary
from ..model import SessionKey
from ..ops import Ops, ids_of
from ..tiers import Delta
from . import checkpoints as stored
from .checkpoints import Blob, Fields, part_names
from .session_flows import create_if_missing

_FIELDS_PER_READ = 500  # parts of values: up to 8 MiB


class Plan:
    """A change of a thread, which is applied in one atomic step."""

    def __init__(self) -> None:
        self.compared: list[tuple[bytes, bytes | None]] = []
        self.extended: list[tuple[bytes, bytes]] = []  # with the entry to add
        self.set: dict[bytes, bytes] = {}
        self.removed: set[bytes] = set()

    def set_parts(self, fields: Fields, parts: Mapping[str, bytes]) -> None:
        """Store parts of values."""
        self.set.update((fields.part(name), stored.encode_raw(parts[name])) for name in parts)


P = ParamSpec("P")
T = TypeVar("T")
ThreadT = TypeVar("ThreadT", bound="ThreadFields")


def with_data_key(
    method: Callable[Concatenate[ThreadT, P], Flow[T]],
) -> Callable[Concatenate[ThreadT, P], Flow[T]]:
    """The flow of a thread, run with the data key of its user: see flows/data_keys.py."""

    @wraps(method)
    def run(self: ThreadT, /, *args: P.args, **kwargs: P.kwargs) -> Flow[T]:
        def run_with(ops: Ops) -> Flow[T]:
            thread = copy(self)
            thread.ops = ops
            return method(thread, *args, **kwargs)

        return run_keyed(self.ops, self.key, run_with)

    return run


class ThreadFields:
    """The fields of a thread: state of one session.

    Args:
        ops: builds the Calls.
        key: the session.
        convert: converts what release 0.1.0 stored of a thread.
    """

    def __init__(
        self, ops: Ops, key: SessionKey, convert: Callable[[ThreadFields], Flow[None]]
    ) -> None:
        self.ops = ops
        self.key = key
        self._convert = convert

    def create(self) -> Flow[None]:
        """Create the thread unless it exists."""
        layout = {stored.LAYOUT[1:].decode(): int(stored.LAYOUT_VALUE)}
        yield from create_if_missing(self.ops, self.key, layout)

    def delete(self) -> Flow[None]:
        """Remove the thread."""
        yield from flows.delete_session(self.ops, *ids_of(self.key))

    def read(self, fields: Sequence[bytes]) -> Flow[dict[bytes, bytes]]:
        """Fields that exist, by name, as they are stored.

        Runs continue from what they read, so it reads no replica: replicas lag behind.
        """
        found: dict[bytes, bytes] = {}
        for first in range(0, len(fields), _FIELDS_PER_READ):
            names = [stored.LAYOUT, *fields[first : first + _FIELDS_PER_READ]]
            values = yield from_primary(self.ops.read_fields(self.key, names))
            if values is not None and values[0] is None:
                yield from self._convert(self)
                values = yield from_primary(self.ops.read_fields(self.key, names))
            pairs = zip(names, values or (), strict=False)
            found.update((name, value) for name, value in pairs if value is not None)
        return found

    def read_parts(self, namespace: str, blobs: Iterable[Blob]) -> Flow[dict[str, bytes]]:
        """The parts of values that exist, by name."""
        fields = Fields(namespace)
        names = {fields.part(name): name for name in part_names(blobs)}
        found = yield from self.read(list(names))
        return {
            name: self.unwrap(field, found[field])[1:]
            for field, name in names.items()
            if field in found
        }

    def write(self, plan: Plan) -> Flow[None]:
        """Apply a plan. If it is large, parts of values are stored before what refers to them."""
        now = {field: self.wrap(field, value) for field, value in plan.set.items()}
        if sum(map(len, now.values())) > stored.BYTES_PER_WRITE:
            early = {field: now.pop(field) for field in [*now] if field.startswith(b".data/")}
            yield from self._write_in_batches(early)
        extended = [
            (field, stored.framed(self._wrap_part(field, entry))) for field, entry in plan.extended
        ]
        pairs = [part for pair in now.items() for part in pair]
        delta = Delta(pairs, sorted(plan.removed - now.keys()))
        yield self.ops.change_fields(self.key, plan.compared, extended, delta)

    @with_data_key
    def read_all(self) -> Flow[dict[bytes, bytes]]:
        """All fields, with values that are neither compressed nor encrypted; {}: no thread."""
        if not (yield from self.read([stored.LAYOUT])):
            return {}
        found: dict[bytes, bytes] = yield from_primary(self.ops.read_all_fields(self.key))
        ours = sorted(field for field in found if field.startswith(stored.OURS))
        return {field: self._changed(field, found[field], self.unwrap) for field in ours}

    @with_data_key
    def write_all(self, values: Mapping[bytes, bytes]) -> Flow[None]:
        """Store what `read_all` returned of another thread. What makes it visible comes last."""
        ours = sorted(values, key=lambda field: field.startswith((stored.NAMESPACES, b".space/")))
        wrapped = {field: self.wrap(field, values[field]) for field in ours}
        yield from self._write_in_batches(wrapped)

    def _write_in_batches(self, values: Mapping[bytes, bytes]) -> Flow[None]:
        for pairs in stored.batches(values):
            yield self.ops.change_fields(self.key, [], [], Delta(pairs))

    def wrap(self, field: bytes, value: bytes) -> bytes:
        """An encoded value as it is stored in a field."""
        if field == stored.LAYOUT:  # a number
            return value
        return self._changed(field, value, self._wrap_part)

    def unwrap(self, field: bytes, value: bytes) -> bytes:
        """The encoded value in the bytes of a field, or of one of its entries."""
        try:
            return self.ops.options.codec.unwrap(value, self.key, "state", field[1:].decode())
        except ValueError as error:
            raise corrupt(field, error) from None

    def _wrap_part(self, field: bytes, value: bytes) -> bytes:
        return self.ops.options.codec.wrap(value, self.key, "state", field[1:].decode())

    def _changed(
        self, field: bytes, value: bytes, change: Callable[[bytes, bytes], bytes]
    ) -> bytes:
        """A value, changed; of one that consists of entries each."""
        if stored.is_of_entries(field):
            return stored.change_entries(value, partial(change, field))
        return change(field, value)
