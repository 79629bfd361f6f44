"""Values <-> bytes. Stored values are self-describing.

    first byte >= 0x20    JSON text
    0x00                  raw bytes follow (a top-level `bytes` state value)
    0x01                  MessagePack follows
    0x02                  one of these, compressed: transform.py
    0x03                  one of these, encrypted

State values that are integers below 2**53 are JSON text under every codec, so that scripts can add
to them. They are neither compressed nor encrypted.

A value is read back equal to what was written, or the write is refused: everything is decoded again
and compared before it is sent. Callers get the decoded copy, so that nothing they hold is shared
with what is stored.

Compared means `==`, which ignores types: an IntEnum is read back as an int, an OrderedDict as a
dict, and with MessagePack a bytearray as bytes. Comparing types too would slow down appends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Literal

import msgspec

from .compression import Zstd
from .encryption import name_of_key
from .errors import CorruptData, InvalidArgument, LimitExceeded
from .model import Event, JsonEvent, made_defaults
from .transform import COMPRESSED, ENCRYPTED, Context, Kind, Owner, Transform, Unreadable

Format = Literal["json", "msgpack"]

_RAW = b"\x00"
_MSGPACK = b"\x01"
_WRAPPED = (COMPRESSED, ENCRYPTED)

# All services share these: encoding and decoding keep no state between calls.
_encode_json = msgspec.json.Encoder().encode
_encode_msgpack = msgspec.msgpack.Encoder().encode
_decode_json = msgspec.json.Decoder().decode
_decode_msgpack = msgspec.msgpack.Decoder().decode
_decode_event_json = msgspec.json.Decoder(Event).decode
_decode_event_msgpack = msgspec.msgpack.Decoder(Event).decode


class _Required(msgspec.Struct):
    """What a stored event must have."""

    id: str
    timestamp: datetime


_decode_required_json = msgspec.json.Decoder(_Required).decode
_decode_required_msgpack = msgspec.msgpack.Decoder(_Required).decode

# What encoders raise for a value that they cannot encode.
_ENCODE_ERRORS = (TypeError, ValueError, OverflowError, RecursionError)

SIZE_LIMIT = 8 << 20
"""Maximum size of an encoded event or state value by default, in bytes. An image fits."""

SUMMARY_SIZE_LIMIT = 16 << 10
"""Maximum size of an encoded summary by default, in bytes. Every read and list carries it."""

CALL_SIZE_LIMIT = 64 << 20
"""Maximum size of the state or the events that one call writes, in bytes, encoded."""

DEPTH_LIMIT = 200
"""Maximum nesting of lists and dicts. Deeper values may exceed the stack when they are decoded."""


class Codec:
    """Encodes the values of one service, and decodes those of every service.

    Each value has an owner, which a transform needs to know.

    Args:
        format: "json", or "msgpack", which can also store nested bytes, timezone-aware datetimes
            and int keys.
        event_size_limit: maximum size of an encoded event, in bytes.
        value_size_limit: maximum size of an encoded state value, in bytes.
        compression: compresses what is written, and reads what is compressed.
        encryption: encrypts what is written, and reads what is encrypted. It comes after
            compression.
    """

    def __init__(
        self,
        format: Format = "json",  # noqa: A002  # the natural name of the option
        event_size_limit: int = SIZE_LIMIT,
        value_size_limit: int = SIZE_LIMIT,
        compression: Zstd | None = None,
        encryption: Transform | None = None,
    ) -> None:
        if format not in ("json", "msgpack"):
            raise InvalidArgument(f'codec must be "json" or "msgpack", not {format!r}')
        self._format: Format = format
        self._encode: Callable[[Any], bytes] = _encode_json
        self._decode_event: Callable[[bytes], Event] = _decode_event_json
        if format == "msgpack":
            self._encode = lambda value: _MSGPACK + _encode_msgpack(value)
            self._decode_event = decode_event
        self._event_size_limit = event_size_limit
        self._value_size_limit = value_size_limit
        self._compression, self._encryption = compression, encryption
        self._wraps = compression is not None or encryption is not None

    def with_format(self, format: Format) -> Codec:  # noqa: A002  # as in __init__
        """The same codec, but it writes another format."""
        sizes = self._event_size_limit, self._value_size_limit
        return Codec(format, *sizes, self._compression, self._encryption)

    def with_encryption(self, encryption: Transform) -> Codec:
        """The same codec with another encryption."""
        sizes = self._event_size_limit, self._value_size_limit
        return Codec(self._format, *sizes, self._compression, encryption)

    def for_event(self, event: Event) -> Codec:
        """The codec for an event and its state: JSON for a JsonEvent."""
        if type(event) is not JsonEvent or self._format == "json":
            return self
        return self.with_format("json")

    def encode_value(
        self,
        value: Any,
        path: str,
        owner: Owner,
        name: str,
        *,
        kind: Kind = "state",
        size_limit: int | None = None,
    ) -> tuple[bytes, Any]:
        """The bytes of a state value, and a copy that shares nothing with it.

        Args:
            value: what to encode.
            path: its name in error messages.
            owner: whose value it is.
            name: the key with the prefix of its tier.
            kind: "state", or what else it is.
            size_limit: maximum size of its encoding; None = `value_size_limit`.

        Raises:
            InvalidArgument: the value would change in a round trip; names the path.
            LimitExceeded: it is larger than the limit.
        """
        try:
            data = self._encode_value(value)
        except _ENCODE_ERRORS:
            raise self._value_error(value, path) from None
        # Checked first: in a large value, looking for a part that is not valid takes long.
        limit = self._value_size_limit if size_limit is None else size_limit
        if len(data) > limit:
            raise _too_large(path, limit, len(data))
        if isinstance(value, bytes):
            return self.wrap(data, owner, kind, name), value
        try:
            decoded = decode_value(data)
            is_valid = decoded == value and not self._is_too_deep(data, value)
        except _ENCODE_ERRORS:
            is_valid = False
        if not is_valid:
            raise self._value_error(value, path)
        if self._wraps and not _is_number(value):
            data = self.wrap(data, owner, kind, name)
        return data, decoded

    def wrap(self, data: bytes, owner: Owner, kind: Kind, name: str = "") -> bytes:
        """An encoded value as it is stored."""
        if self._compression is not None:
            data = self._compression.wrap(data)
        if self._encryption is not None:
            data = self._encryption.wrap(data, _context(owner, kind, name))
        return data

    def _encode_value(self, value: Any) -> bytes:
        if isinstance(value, bytes):
            return _RAW + value
        # As JSON under every codec, so that scripts can increment it.
        if _is_number(value):
            return _encode_json(value)
        return self._encode(value)

    def encode_event(self, event: Event, path: str, owner: Owner) -> tuple[bytes, Event]:
        """The bytes of an event of this owner, and a copy that shares nothing with it.

        Raises:
            InvalidArgument: a field has the wrong type or would change in a round trip; names the
                path.
            LimitExceeded: it is larger than `event_size_limit`.
        """
        try:
            data = self._encode(event)
        except _ENCODE_ERRORS:
            raise self._event_error(event, path) from None
        if len(data) > self._event_size_limit:
            raise _too_large(path, self._event_size_limit, len(data))
        try:
            decoded = self._decode_event(data)
            if type(event) is JsonEvent:
                event = _with_decoded_content(event, decoded)
            is_valid = decoded == event and not (
                self._is_too_deep(data, event.content)
                or self._is_too_deep(data, event.state_delta)
                or self._is_too_deep(data, event.metadata)
            )
        except _ENCODE_ERRORS:
            is_valid = False
        if not is_valid:
            raise self._event_error(event, path)
        if self._wraps:
            data = self.wrap(data, owner, "fragment" if event.partial else "event")
        return data, decoded

    def decode_value(self, data: bytes, owner: Owner, name: str, kind: Kind = "state") -> Any:
        """A stored value; see `encode_value`. ValueError if the bytes are not valid."""
        if data[:1] in _WRAPPED:
            data = self.unwrap(data, owner, kind, name)
        return _decode(data, _decode_json, _decode_msgpack, raw=True)

    def decode_event(self, data: bytes, owner: Owner) -> Event:
        """A stored event. ValueError if the bytes are not valid."""
        return decode_event(self.unwrap(data, owner, "event"))

    def decode_events(
        self, members: Iterable[bytes], owner: Owner, kind: Kind = "event"
    ) -> list[Event]:
        """Stored events or fragments. ValueError if the bytes of one are not valid."""
        members = list(members)
        if self._wraps:
            members = self._unwrap_all(members, owner, kind)
        num_made = next(made_defaults)
        try:
            events = list(map(_decode_event_json, members))  # fast path: most logs are all JSON
        except (ValueError, RecursionError):
            if not self._wraps:
                members = self._unwrap_all(members, owner, kind)
            events = list(map(decode_event, members))
        if next(made_defaults) != num_made + 1:
            # A default was made meanwhile, perhaps for a stored event that lacks its id or
            # timestamp. It would get another one with every read.
            for data in members:
                _decode(data, _decode_required_json, _decode_required_msgpack)
        return events

    def unwrap(self, data: bytes, owner: Owner, kind: Kind, name: str = "") -> bytes:
        """The encoded value in stored bytes. Raises Unreadable if that is not possible."""
        if data[:1] in _WRAPPED:
            [data] = self._unwrap_all([data], owner, kind, name)
        return data

    def _unwrap_all(
        self, members: list[bytes], owner: Owner, kind: Kind, name: str = ""
    ) -> list[bytes]:
        tags = {data[:1] for data in members}
        if ENCRYPTED in tags:
            if self._encryption is None:
                name = next(name_of_key(data) for data in members if data[:1] == ENCRYPTED)
                raise Unreadable(f"it is encrypted with {name!r}: the option encryption is needed")
            decrypt, context = self._encryption.unwrap, _context(owner, kind, name)
            members = [
                decrypt(data, context) if data[:1] == ENCRYPTED else data for data in members
            ]
            tags = {data[:1] for data in members}
        if COMPRESSED in tags:
            members = (self._compression or _read_compressed()).unwrap_all(members)
        return members

    def resealed(self, data: bytes, owner: Owner, kind: Kind, name: str = "") -> bytes:
        """Stored bytes, encrypted as this codec encrypts now.

        A compressed value stays compressed. Integers that scripts can add to are not encrypted.

        Raises:
            Unreadable: the bytes cannot be decrypted.
        """
        encryption = self._encryption
        if encryption is None or (kind == "state" and _is_number_text(data)):
            return data
        context = _context(owner, kind, name)
        if data[:1] == ENCRYPTED:
            data = encryption.unwrap(data, context)
        return encryption.wrap(data, context)

    def _is_too_deep(self, data: bytes, value: Any) -> bool:
        """Whether a value is nested too deeply. `data` is its encoded form, or contains it."""
        # Fast path: most values are too small, or contain too few brackets, to be too deep.
        if not value or type(value) is str or len(data) <= DEPTH_LIMIT:
            return False
        if self._format == "json":
            # bytes.replace finds brackets faster than bytes.count.
            num_brackets = 2 * len(data)
            num_brackets -= len(data.replace(b"[", b"")) + len(data.replace(b"{", b""))
            if num_brackets <= DEPTH_LIMIT:
                return False
        return is_deeper(value, DEPTH_LIMIT)

    def _event_error(self, event: Event, path: str) -> InvalidArgument:
        for field in msgspec.structs.fields(Event):
            value = getattr(event, field.name)
            where = f"{path}.{field.name}"
            if field.name == "timestamp":
                if not isinstance(value, datetime):
                    kind = type(value).__name__
                    return InvalidArgument(f"{where} must be a datetime, not {kind}")
            elif fault := self._find_fault(value, where, 0):
                return InvalidArgument(fault)
            try:
                msgspec.convert(value, field.type, strict=True)
            except msgspec.ValidationError as error:
                return InvalidArgument(f"{where}: {error}")
        return InvalidArgument(f"{path} would change when stored")

    def _value_error(self, value: Any, path: str) -> InvalidArgument:
        fault = self._find_fault(value, path, 0)
        return InvalidArgument(fault or f"{path} would change when stored")

    def _find_fault(self, value: Any, path: str, depth: int) -> str | None:
        """Why a value cannot be stored, with the path to the innermost part that is not valid."""
        if depth > DEPTH_LIMIT:
            return f"{path} is nested more than {DEPTH_LIMIT} levels deep"
        names: Sequence[Any] = ()
        items: list[Any] = []
        if isinstance(value, dict):
            names, items = list(value), list(value.values())
            place = _first_fault([{name: None} for name in names], self._round_trips)
            if place is not None:
                key = names[place]
                kind_of_key = type(key).__name__
                return f"{path} has the {kind_of_key} key {key!r}, which would change when stored"
        elif isinstance(value, list):
            names, items = range(len(value)), value
        place = _first_fault(items, self._round_trips)
        if place is None:
            place = _first_fault(items, lambda some: not is_deeper(some, DEPTH_LIMIT - depth))
        if place is not None:
            return self._find_fault(items[place], f"{path}[{names[place]!r}]", depth + 1)
        if self._round_trips(value):
            return None
        kind: type[Any] = type(value)
        if kind is msgspec.Raw:
            return f"{path} is not valid JSON"
        if kind is float:
            return f"{path} is {value!r}, which is not a finite number"
        if kind is str:
            return f"{path} is not valid Unicode: it contains a lone surrogate"
        if kind is int:
            limit = "up to 4300 digits" if self._format == "json" else "from -2**63 to 2**64 - 1"
            bits = value.bit_length()
            return f"{path} is an integer of {bits} bits; the {self._format} codec stores {limit}"
        return f"{path} is a {kind.__name__}, which the {self._format} codec cannot store unchanged"

    def _round_trips(self, value: Any) -> bool:
        try:
            decoded = decode_value(self._encode(value))
        except _ENCODE_ERRORS:
            return False
        return type(value) is msgspec.Raw or bool(decoded == value)


def _with_decoded_content(event: JsonEvent, decoded: Event) -> Event:
    """What a JsonEvent should be read back as. JSON text is valid if it decodes."""
    fields = msgspec.structs.asdict(event)
    if type(event.content) is msgspec.Raw:
        fields["content"] = decoded.content
    return Event(**fields)


def _first_fault(items: list[Any], is_good: Callable[[list[Any]], bool]) -> int | None:
    """The index of the first item that makes `is_good` false; None if there is none.

    A binary search: encoding half of the items at once is much faster than one by one.
    """
    if is_good(items):
        return None
    low, high = 0, len(items)
    while high - low > 1:
        middle = (low + high) // 2
        if is_good(items[low:middle]):
            low = middle
        else:
            high = middle
    return low


def is_deeper(value: Any, limit: int) -> bool:
    """Whether a value has more levels of lists and dicts than `limit`."""
    level = [value]
    for _ in range(limit + 1):
        level = [item for part in level for item in _children(part)]
        if not level:
            return False
    return True


def _children(value: Any) -> Iterable[Any]:
    """The items of a list or the values of a dict; of other values nothing."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _is_number(value: object) -> bool:
    """Whether it is an integer that scripts can add to."""
    return type(value) is int and -(2**53) < value < 2**53


_is_integer = re.compile(rb"-?[0-9]{1,16}").fullmatch


def _is_number_text(data: bytes) -> bool:
    return bool(_is_integer(data)) and _is_number(int(data))


@cache
def _read_compressed() -> Zstd:
    """Reads values that were compressed without a dictionary."""
    try:
        return Zstd(read_only=True)
    except ImportError as error:
        raise Unreadable(str(error)) from None


def _context(owner: Owner, kind: Kind, name: str) -> Context:
    user_id = "" if kind == "state" and name.startswith("app:") else owner.user_id
    return Context(owner.app_name, user_id, kind, name)


def decode_value(data: bytes) -> Any:
    """An encoded value of any format. ValueError if the bytes are not valid."""
    return _decode(data, _decode_json, _decode_msgpack, raw=True)


def decode_event(data: bytes) -> Event:
    """An encoded event of any format. ValueError if the bytes are not valid."""
    event: Event = _decode(data, _decode_event_json, _decode_event_msgpack)
    return event


def _decode(
    data: bytes,
    json: Callable[[bytes], Any],
    msgpack: Callable[[bytes], Any],
    *,
    raw: bool = False,
) -> Any:
    first = data[:1]
    try:
        if first >= b"\x20":
            return json(data)
        if first == _MSGPACK:
            return msgpack(data[1:])
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if raw and first == _RAW:
        return data[1:]
    raise ValueError("unknown format" if first else "empty")


def corrupt(key: bytes, error: Exception, field: bytes | None = None) -> CorruptData:
    """The exception for stored bytes that do not decode. It names the key, not the bytes."""
    where = key.decode("utf-8", "replace")
    if field is not None:
        where += f" field {field.decode('utf-8', 'replace')}"
    reason = str(error) if isinstance(error, Unreadable) else type(error).__name__
    return CorruptData(f"{where} does not decode ({reason})", key=where)


def _too_large(path: str, limit: int, actual: int) -> LimitExceeded:
    message = f"{path} is {actual} bytes long when encoded; at most {limit} are allowed"
    return LimitExceeded(message, limit=limit, actual=actual)
