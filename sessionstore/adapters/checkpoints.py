"""How LangGraph's checkpoints are stored: as single fields of a session's state. No I/O here.

A thread is one session. All of this is in its state, so it has one deadline and one deletion:

    langgraph/layout         the layout: 2
    langgraph/namespaces     entries: the names of the namespaces
    space/NS                 Space: the index of a namespace, with the ids of its checkpoints
    page/NS/NUMBER           a list: earlier ids, of a namespace with many
    point/NS/ID              Record: a checkpoint
    writes/NS/ID             entries: the pending writes of a checkpoint, one per call of put_writes
    data/NS/NAME             raw bytes: up to 16 KiB of a serialized value

NS is a digest of the namespace. A serialized value is cut every 16 KiB, and each part is stored
once per namespace under a digest of its bytes. So checkpoints share the values that did not change,
and the versions of a list that grows share all but the first and the last part.

Every change of a namespace compares its Space with the one that the change was computed from. So no
part is removed that a checkpoint needs. Storing writes compares nothing: the digests that name
their parts include the id of the checkpoint, so no two checkpoints share such a part.
"""

from __future__ import annotations

import hashlib
import os
from base64 import urlsafe_b64encode
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from ..codec import corrupt

T = TypeVar("T")

LAYOUT = b".langgraph/layout"
LAYOUT_VALUE = 2
NAMESPACES = b".langgraph/namespaces"

PART_BYTES = 16 << 10
_INLINE_BYTES = (
    200  # smaller values stand in the record; a field of their own costs about 100 bytes
)
_PAGE_IDS = 64
_PLAIN_ID_BYTES = 256

_encode_msgpack = msgspec.msgpack.Encoder().encode


class Blob(msgspec.Struct, array_like=True, frozen=True):
    """A serialized value: its bytes, or the names of the fields that hold their parts."""

    type: str
    data: bytes = b""
    parts: tuple[str, ...] = ()


class Write(msgspec.Struct, array_like=True, frozen=True):
    """What a task wrote to a channel. A negative index is a special write: it may be replaced."""

    task_id: str
    index: int
    path: str
    channel: str
    value: Blob


class Base(msgspec.Struct, array_like=True):
    """What a delta channel was when its history was removed: a value, and writes after it."""

    seed: Blob | None = None
    writes: list[Write] = []


class Record(msgspec.Struct, array_like=True, frozen=True):
    """A checkpoint.

    Attributes:
        id: its id.
        parent: id of the checkpoint that it follows; None = none, or one that was removed.
        checkpoint: what was put, without the values of the channels.
        metadata: what was put.
        values: the values of the channels.
        run_id: the run that made it.
        deltas: channels whose values are rebuilt from the writes of earlier checkpoints.
        base: how earlier checkpoints that were removed left the delta channels; None = none was
            removed.
    """

    id: str
    parent: str | None
    checkpoint: Blob
    metadata: Blob
    values: dict[str, Blob]
    run_id: str | None = None
    deltas: tuple[str, ...] = ()
    base: dict[str, Base] | None = None

    def content(self) -> list[Blob]:
        """What was put, serialized."""
        return [self.checkpoint, self.metadata, *self.values.values()]

    def blobs(self) -> Iterator[Blob]:
        """Everything serialized that it refers to."""
        yield from self.content()
        for base in (self.base or {}).values():
            if base.seed is not None:
                yield base.seed
            yield from (write.value for write in base.writes)


class Space(msgspec.Struct, array_like=True):
    """The index of a namespace.

    Attributes:
        name: the namespace.
        ids: its newest checkpoints, in the order of their ids.
        num_pages: earlier ids stand on pages 0 to `num_pages` - 1, 64 on each.
        removed: the highest id that retention has removed.
        change: random, new with every change: so equal bytes mean that nothing has changed, not
            even if the thread was deleted and stored again.
    """

    name: str
    ids: list[str] = []
    num_pages: int = 0
    removed: str = ""
    change: str = ""

    @property
    def num_ids(self) -> int:
        """How many checkpoints the namespace has."""
        return self.num_pages * _PAGE_IDS + len(self.ids)

    def add(self, checkpoint_id: str) -> list[str] | None:
        """Add an id above the lowest of `ids`. Returns the ids of page `num_pages` - 1, if new."""
        if checkpoint_id not in self.ids:
            insort(self.ids, checkpoint_id)
        if len(self.ids) < 2 * _PAGE_IDS:
            return None
        page, self.ids = self.ids[:_PAGE_IDS], self.ids[_PAGE_IDS:]
        self.num_pages += 1
        return page

    def replace(self, ids: list[str]) -> list[list[str]]:
        """Set all ids. Returns all pages."""
        self.num_pages = max(len(ids) // _PAGE_IDS - 1, 0)
        end = self.num_pages * _PAGE_IDS
        self.ids = ids[end:]
        return [ids[first : first + _PAGE_IDS] for first in range(0, end, _PAGE_IDS)]


class Fields:
    """The names of the fields of a namespace.

    Args:
        namespace: its name.
    """

    def __init__(self, namespace: str) -> None:
        self._token = _digest(namespace.encode(), 12) if namespace else "-"
        self.space = f".space/{self._token}".encode()

    def page(self, number: int) -> bytes:
        """The field of a page of ids."""
        return f".page/{self._token}/{number}".encode()

    def checkpoint(self, checkpoint_id: str) -> bytes:
        """The field of a checkpoint."""
        return f".point/{self._token}/{_short(checkpoint_id)}".encode()

    def writes(self, checkpoint_id: str) -> bytes:
        """The field of the writes of a checkpoint."""
        return f".writes/{self._token}/{_short(checkpoint_id)}".encode()

    def part(self, name: str) -> bytes:
        """The field of a part of a value."""
        return f".data/{self._token}/{name}".encode()


OURS = (LAYOUT, NAMESPACES, b".space/", b".page/", b".point/", b".writes/", b".data/")
"""How the names of all fields of the saver begin."""


class Parts:
    """Serialized values as Blobs, and the parts that are to be stored for them.

    Args:
        owner: makes the names of parts unique to it; empty = values of one namespace share parts.
    """

    def __init__(self, owner: str = "") -> None:
        self._key = hashlib.blake2b(owner.encode()).digest() if owner else b""
        self.data: dict[str, bytes] = {}

    def blob(self, kind: str, data: bytes) -> Blob:
        """A serialized value as a Blob."""
        if len(data) <= _INLINE_BYTES:
            return Blob(kind, bytes(data))
        names = []
        for first in range(0, len(data), PART_BYTES):
            part = bytes(data[first : first + PART_BYTES])
            names.append(_digest(part, 16, self._key))
            self.data[names[-1]] = part
        return Blob(kind, b"", tuple(names))


def part_names(blobs: Iterable[Blob]) -> set[str]:
    """The names of all parts of some values."""
    return {name for blob in blobs for name in blob.parts}


def encode(value: object) -> bytes:
    """A Struct or a list as a stored value."""
    return b"\x01" + _encode_msgpack(value)


def encode_changed(space: Space) -> bytes:
    """A Space that is changed, as a stored value."""
    space.change = os.urandom(6).hex()
    return encode(space)


def encode_raw(data: bytes) -> bytes:
    """Bytes as a stored value."""
    return b"\0" + data


def encode_entry(value: object) -> bytes:
    """An entry of a field that is extended."""
    data = _encode_msgpack(value)
    return len(data).to_bytes(4, "big") + data


def _decoder(kind: type[T]) -> Callable[[bytes, bytes], T]:
    decode = msgspec.msgpack.Decoder(kind).decode

    def decode_field(field: bytes, stored: bytes) -> T:
        """A stored value. CorruptData names the field."""
        try:
            return decode(stored.removeprefix(b"\x01"))
        except ValueError as error:
            raise corrupt(field, error) from None

    return decode_field


decode_space = _decoder(Space)
decode_record = _decoder(Record)
decode_page = _decoder(list[str])

_decode_writes = msgspec.msgpack.Decoder(tuple[str, list[Write]]).decode
_decode_name = msgspec.msgpack.Decoder(tuple[str, str]).decode


def _entries(field: bytes, stored: bytes | None, decode: Callable[[bytes], T]) -> Iterator[T]:
    at = 1
    while stored and at < len(stored):
        end = at + 4 + int.from_bytes(stored[at : at + 4], "big")
        try:
            yield decode(stored[at + 4 : end])
        except ValueError as error:
            raise corrupt(field, error) from None
        at = end


def decode_namespaces(stored: bytes | None) -> dict[str, str]:
    """The names of namespaces, each with the checkpoint of the root graph that it belongs to."""
    return dict(_entries(NAMESPACES, stored, _decode_name))


def encode_namespaces(names: Mapping[str, str]) -> bytes:
    """What `decode_namespaces` reads."""
    return b"\0" + b"".join(encode_entry(pair) for pair in names.items())


def decode_writes(field: bytes, stored: bytes | None) -> list[Write]:
    """The writes of a checkpoint, in the order in which a run applies them.

    Of a regular write that was stored twice the first one counts, of a special one the last.
    """
    found: dict[tuple[str, int], Write] = {}
    for _, writes in _entries(field, stored, _decode_writes):
        for write in writes:
            place = (write.task_id, write.index)
            if write.index < 0 or place not in found:
                found[place] = write
    return sorted(found.values(), key=lambda write: (write.path, write.task_id, write.index))


def all_parts(field: bytes, stored: bytes | None) -> set[str]:
    """The names of all parts of stored writes, of those that do not count too."""
    entries = _entries(field, stored, _decode_writes)
    return part_names(write.value for _, writes in entries for write in writes)


class History:
    """The history of delta channels, read from a checkpoint towards the first one.

    Args:
        channels: their names.

    Attributes:
        found: the value that each channel begins with, and its writes since, newest first.
        missing: channels whose beginning was not found yet.
        cut: the checkpoint whose history was removed, if the walk has reached one, and channels
            are missing.
    """

    def __init__(self, channels: Iterable[str]) -> None:
        self.found = {channel: Base(None, []) for channel in channels}
        self.missing = set(self.found)
        self.cut: Record | None = None

    def walk(
        self, start: Record, records: Mapping[str, Record], writes: Mapping[str, list[Write]]
    ) -> str | None:
        """Walk from a checkpoint to its parents. The id of one that `records` lacks, or None.

        Call it again, from the last checkpoint that it reached, to go on.
        """
        self.last = start
        while self.missing:
            if self.last.base is not None:
                self._end(self.last, self.last.base)
                return None
            parent = self.last.parent
            if parent is None or parent not in records:
                return parent
            self.last = records[parent]
            for write in reversed(writes.get(parent, [])):
                if write.channel in self.missing:
                    self.found[write.channel].writes.append(write)
            for channel in self.missing & self.last.values.keys():
                self.found[channel].seed = self.last.values[channel]
                self.missing.discard(channel)
        return None

    def _end(self, record: Record, base: dict[str, Base]) -> None:
        for channel in self.missing & base.keys():
            self.found[channel].seed = base[channel].seed
            self.found[channel].writes += reversed(base[channel].writes)
            self.missing.discard(channel)
        if self.missing:
            self.cut = record

    def bases(self) -> dict[str, Base]:
        """What was found, with the oldest write first."""
        return {
            channel: Base(base.seed, base.writes[::-1])
            for channel, base in self.found.items()
            if channel not in self.missing or self.cut is None
        }


def _short(checkpoint_id: str) -> str:
    """An id, or a digest of a long one. None that is short begins like a digest."""
    data = checkpoint_id.encode()
    if len(data) > _PLAIN_ID_BYTES or data[:1] == b"~":
        return f"~{_digest(data, 24)}"
    return checkpoint_id


def _digest(data: bytes, size: int, key: bytes = b"") -> str:
    digest = hashlib.blake2b(data, digest_size=size, key=key).digest()
    return urlsafe_b64encode(digest).decode().rstrip("=")


def is_call(namespace: str) -> bool:
    """Whether a namespace belongs to one call of a subgraph: it then contains the id of a task."""
    return ":" in namespace


def root_of(metadata: Mapping[str, Any]) -> str:
    """The checkpoint of the root graph that a subgraph was called from; "" = not known."""
    parents = metadata.get("parents")
    root = parents.get("") if isinstance(parents, dict) else None
    return root if isinstance(root, str) else ""
