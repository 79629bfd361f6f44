"""How LangGraph's checkpoints are stored: as single fields of a session's state. No I/O here.

A thread is one session. All of this is in its state, so it has one deadline and one deletion:

    langgraph/layout         the layout: 2
    langgraph/namespaces     entries: each namespace, and the root checkpoint that it belongs to
    space/NS                 Space: a summary of a namespace
    ids/NS/NUMBER            entries: the ids of up to 256 checkpoints
    point/NS/ID              Record: a checkpoint
    writes/NS/ID             entries: the pending writes of a checkpoint, one per call of put_writes
    data/NS/NAME             raw bytes: up to 16 KiB of a serialized value

NS is a digest of the namespace. A serialized value is cut every 16 KiB, and each part is stored
once per namespace under a digest of its bytes. So checkpoints share the values that did not change,
and the versions of a list that grows share all but the first and the last part.

Every change of a namespace compares its Space with the one that the change was computed from, and
replaces it. So no part is removed that a checkpoint needs. Storing writes compares nothing: the
digests that name their parts include the ids of checkpoint and task, so nothing else has such
parts.
"""

from __future__ import annotations

import hashlib
import os
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from ..codec import corrupt

T = TypeVar("T")

LAYOUT = b".langgraph/layout"
LAYOUT_VALUE = b"2"
NAMESPACES = b".langgraph/namespaces"
OURS = (LAYOUT, NAMESPACES, b".space/", b".ids/", b".point/", b".writes/", b".data/")
"""How the names of all fields of the saver begin."""

PART_BYTES = 16 << 10
_INLINE_BYTES = 200  # smaller values stand in the record: a field of their own costs 100 bytes
_IDS_PER_FIELD = 256
BYTES_PER_WRITE = 16 << 20

_encode_msgpack = msgspec.msgpack.Encoder().encode


class Blob(msgspec.Struct, array_like=True, frozen=True):
    """A serialized value: its bytes, or the names of the fields that hold their parts.

    Attributes:
        version: of the value of a channel, its version.
    """

    type: str
    data: bytes = b""
    parts: tuple[str, ...] = ()
    version: int | float | str | None = None

    def join(self, parts: Mapping[str, bytes]) -> bytes:
        """The bytes of the value."""
        return b"".join([parts[name] for name in self.parts]) if self.parts else self.data


class Write(msgspec.Struct, array_like=True, frozen=True):
    """What a task wrote to a channel. A negative index is a special write: it may be replaced."""

    task_id: str
    index: int
    path: str
    channel: str
    value: Blob


class Base(msgspec.Struct, array_like=True, frozen=True):
    """What a delta channel is rebuilt from: its last snapshot, and the writes since, in order."""

    seed: Blob | None = None
    writes: Sequence[Write] = ()

    def blobs(self) -> list[Blob]:
        """All values."""
        return [*([self.seed] if self.seed else []), *(write.value for write in self.writes)]


class Record(msgspec.Struct, array_like=True, frozen=True):
    """A checkpoint.

    Attributes:
        id: its id.
        parent: id of the checkpoint that it follows; None = none, or one that was removed.
        checkpoint: what was put, without the values of the channels.
        metadata: what was put.
        values: the values of the channels.
        deltas: channels whose values are rebuilt from the writes of earlier checkpoints.
        base: what delta channels were when earlier checkpoints were removed; None = none was.
        replaced: parts of values that this checkpoint had, before it was stored again.
    """

    id: str
    parent: str | None
    checkpoint: tuple[str, bytes]
    metadata: tuple[str, bytes]
    values: dict[str, Blob]
    deltas: tuple[str, ...] = ()
    base: dict[str, Base] | None = None
    replaced: tuple[str, ...] = ()

    def parts(self) -> set[str]:
        """The names of all parts that it needs."""
        names = part_names(self.values.values()).union(self.replaced)
        for base in (self.base or {}).values():
            names |= part_names(base.blobs())
        return names

    def put_over(self, old: Record) -> Record:
        """This checkpoint, in place of an earlier form of it."""
        replaced = tuple(sorted((part_names(old.values.values()) - self.parts()) | {*old.replaced}))
        new = msgspec.structs.replace(self, replaced=replaced)
        if old.base is not None:
            new = msgspec.structs.replace(new, parent=None, base=old.base)
        return new


class Space(msgspec.Struct, array_like=True, frozen=True):
    """A summary of a namespace.

    Attributes:
        head: the highest id of its checkpoints.
        count: how many checkpoints it has.
        removed: the highest id that retention has removed.
        change: random, new with every change. So equal bytes mean that nothing has changed, not
            even if the thread was deleted and stored again.
    """

    head: str = ""
    count: int = 0
    removed: str = ""
    change: str = ""


class Fields:
    """The names of the fields of a namespace."""

    def __init__(self, namespace: str) -> None:
        self._token = _digest(namespace.encode(), 12) if namespace else "-"
        self.space = f".space/{self._token}".encode()

    def ids(self, number: int) -> bytes:
        """The field of the id with this number, counted from 0."""
        return f".ids/{self._token}/{number // _IDS_PER_FIELD}".encode()

    def all_ids(self, count: int) -> list[bytes]:
        """The fields of the first ids."""
        return [self.ids(number) for number in range(0, count, _IDS_PER_FIELD)]

    def point(self, checkpoint_id: str) -> bytes:
        """The field of a checkpoint."""
        return f".point/{self._token}/{checkpoint_id}".encode()

    def writes(self, checkpoint_id: str) -> bytes:
        """The field of the writes of a checkpoint."""
        return f".writes/{self._token}/{checkpoint_id}".encode()

    def part(self, name: str) -> bytes:
        """The field of a part of a value."""
        return f".data/{self._token}/{name}".encode()


class Parts:
    """Serialized values as Blobs, and the parts that are to be stored for them.

    Args:
        owner: makes the names of parts unique to it; empty = values of one namespace share parts.
    """

    def __init__(self, owner: str = "") -> None:
        self._key = hashlib.blake2b(owner.encode()).digest() if owner else b""
        self.data: dict[str, bytes] = {}

    def blob(self, kind: str, data: bytes, version: Any = None) -> Blob:
        """A serialized value as a Blob."""
        version = version if isinstance(version, (int, float, str)) else None
        if len(data) <= _INLINE_BYTES:
            return Blob(kind, bytes(data), (), version)
        names = []
        for first in range(0, len(data), PART_BYTES):
            part = bytes(data[first : first + PART_BYTES])
            names.append(_digest(part, 16, self._key))
            self.data[names[-1]] = part
        return Blob(kind, b"", tuple(names), version)


def part_names(blobs: Iterable[Blob]) -> set[str]:
    """The names of all parts of some values."""
    return {name for blob in blobs for name in blob.parts}


def encode(value: object) -> bytes:
    """A Struct as an encoded value."""
    return b"\x01" + _encode_msgpack(value)


def encode_changed(space: Space) -> bytes:
    """A Space that was changed, as an encoded value."""
    return encode(msgspec.structs.replace(space, change=os.urandom(6).hex()))


def encode_raw(data: bytes) -> bytes:
    """Bytes as an encoded value."""
    return b"\0" + data


def encode_entry(value: object) -> bytes:
    """An entry of a field that consists of entries."""
    return _encode_msgpack(value)


def framed(entry: bytes) -> bytes:
    """An entry with its size before it, as it stands in a field."""
    return len(entry).to_bytes(4, "big") + entry


def encode_entries(values: Iterable[object]) -> bytes:
    """Entries as an encoded value."""
    return encode_raw(b"".join(framed(encode_entry(value)) for value in values))


def is_of_entries(field: bytes) -> bool:
    """Whether a field consists of entries. Scripts add to it, so each entry is wrapped alone."""
    return field.startswith((NAMESPACES, b".ids/", b".writes/"))


def change_entries(stored: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A stored value that consists of entries, with each of them changed."""
    return encode_raw(b"".join(framed(change(entry)) for entry in _entries(stored)))


def _entries(stored: bytes | None) -> Iterator[bytes]:
    """The entries of a stored value, without their sizes."""
    at = 1
    while stored and at < len(stored):
        end = at + 4 + int.from_bytes(stored[at : at + 4], "big")
        yield stored[at + 4 : end]
        at = end


def encode_ids(fields: Fields, ids: Sequence[str]) -> dict[bytes, bytes]:
    """All ids of a namespace, as encoded values by field."""
    return {
        fields.ids(first): encode_entries(ids[first : first + _IDS_PER_FIELD])
        for first in range(0, len(ids), _IDS_PER_FIELD)
    }


Unwrap = Callable[[bytes, bytes], bytes]
"""The encoded value in the stored bytes of a field, or of an entry: see Codec.unwrap."""


def _decoder(kind: type[T]) -> Callable[[bytes, bytes, Unwrap], T]:
    decode = msgspec.msgpack.Decoder(kind).decode

    def decode_field(field: bytes, stored: bytes, unwrap: Unwrap) -> T:
        """A stored value or an entry. CorruptData names the field."""
        try:
            return decode(unwrap(field, stored).removeprefix(b"\x01"))
        except ValueError as error:
            raise corrupt(field, error) from None

    return decode_field


def _decoder_of_entries(kind: type[T]) -> Callable[[bytes, bytes | None, Unwrap], list[T]]:
    decode = _decoder(kind)

    def decode_field(field: bytes, stored: bytes | None, unwrap: Unwrap) -> list[T]:
        """The entries of a stored value. CorruptData names the field."""
        return [decode(field, entry, unwrap) for entry in _entries(stored)]

    return decode_field


decode_space = _decoder(Space)
decode_record = _decoder(Record)
decode_ids = _decoder_of_entries(str)
decode_namespaces = _decoder_of_entries(tuple[str, str])
_decode_writes = _decoder_of_entries(tuple[str, list[Write]])


def decode_writes(field: bytes, stored: bytes | None, unwrap: Unwrap) -> list[Write]:
    """The writes of a checkpoint, in the order in which a run applies them.

    Of a regular write that was stored twice the first one counts, of a special one the last.
    """
    found: dict[tuple[str, int], Write] = {}
    for _, writes in _decode_writes(field, stored, unwrap):
        for write in writes:
            place = (write.task_id, write.index)
            if write.index < 0 or place not in found:
                found[place] = write
    return sorted(found.values(), key=lambda write: (write.path, write.task_id, write.index))


def all_parts(field: bytes, stored: bytes | None, unwrap: Unwrap) -> set[str]:
    """The names of all parts of stored writes, of those that do not count too."""
    entries = _decode_writes(field, stored, unwrap)
    return part_names(write.value for _, writes in entries for write in writes)


def batches(fields: Mapping[bytes, bytes]) -> Iterator[list[bytes]]:
    """Fields and their values, in batches that are sent together."""
    pairs: list[bytes] = []
    size = 0
    for field, value in fields.items():
        pairs += (field, value)
        size += len(value)
        if size > BYTES_PER_WRITE:
            yield pairs
            pairs, size = [], 0
    yield pairs


def _digest(data: bytes, size: int, key: bytes = b"") -> str:
    digest = hashlib.blake2b(data, digest_size=size, key=key).digest()
    return urlsafe_b64encode(digest).decode().rstrip("=")
