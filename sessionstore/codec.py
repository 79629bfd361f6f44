"""Values <-> bytes. Stored bytes say themselves how they are to be read.

    first byte >= 0x20    JSON text
    0x00                  raw bytes follow (a top-level `bytes` state value)
    0x01                  MessagePack follows

What is read equals what was written, or the write is refused: everything encoded is decoded once
more and compared before it is sent. The decoded copy is what callers get back, so nothing that a
caller holds aliases what is stored. Only a VerifiedEvent and its state are taken as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from datetime import datetime
from typing import Any, Literal

import msgspec

from .errors import CorruptData, InvalidArgument, LimitExceeded
from .model import Event, VerifiedEvent

Format = Literal["json", "msgpack"]

_RAW = b"\x00"
_MSGPACK = b"\x01"

# The encoders are reused by all services; encode() keeps no state between calls.
_encode_json = msgspec.json.Encoder().encode
_encode_msgpack = msgspec.msgpack.Encoder().encode
_decode_json = msgspec.json.Decoder().decode
_decode_msgpack = msgspec.msgpack.Decoder().decode
_decode_event_json = msgspec.json.Decoder(Event).decode
_decode_event_msgpack = msgspec.msgpack.Decoder(Event).decode

# What an encoder raises for a value that it does not carry.
_UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError)

DEPTH_LIMIT = 200
"""Most levels of lists and dicts in a value. More could be read back only from a shallow stack."""


class Codec:
    """Encodes for one service; decodes whatever any service has written.

    Args:
        format: what is written: "json", or "msgpack", which also carries nested bytes, aware
            datetimes and int keys.
        event_size_limit: largest encoded event, in bytes.
        value_size_limit: largest encoded state value, in bytes.
    """

    def __init__(
        self,
        format: Format = "json",  # noqa: A002  # the option's natural name; nothing formats here
        event_size_limit: int = 1 << 20,
        value_size_limit: int = 1 << 20,
    ) -> None:
        if format not in ("json", "msgpack"):
            raise InvalidArgument(f'codec must be "json" or "msgpack", not {format!r}')
        self._json = format == "json"
        self._encode: Callable[[Any], bytes] = (
            _encode_json if self._json else lambda value: _MSGPACK + _encode_msgpack(value)
        )
        self._decode_event: Callable[[bytes], Event] = (
            _decode_event_json if self._json else decode_event
        )
        self._event_size_limit = event_size_limit
        self._value_size_limit = value_size_limit
        self._reads_back = True
        self._trusting = copy(self)
        self._trusting._reads_back = False

    def for_event(self, event: Event) -> Codec:
        """The codec of an event and its state: for a VerifiedEvent one that does not read back.

        Nor does that one copy: what it gives as a copy is what it was given.
        """
        return self._trusting if type(event) is VerifiedEvent else self

    def encode_value(self, value: Any, path: str) -> tuple[bytes, Any]:
        """The bytes of a state value, and a copy that shares nothing with it.

        Raises:
            InvalidArgument: the value would not be read as it was written; names the path.
            LimitExceeded: it is larger than `value_size_limit`.
        """
        if isinstance(value, bytes):
            data, found = _RAW + value, value
        else:
            try:
                data = self._encode(value)
                found = decode_value(data) if self._reads_back else value
                same = (found is value or found == value) and not self._is_too_deep(data, value)
            except _UNENCODABLE:
                same = False
            if not same:
                raise self._refusal(value, path)
        if len(data) > self._value_size_limit:
            raise _too_large(path, self._value_size_limit, len(data))
        return data, found

    def encode_event(self, event: Event, path: str) -> tuple[bytes, Event]:
        """The bytes of an event, and a copy that shares nothing with it.

        Raises:
            InvalidArgument: a field has the wrong type, or would not be read as it was written;
                names the path.
            LimitExceeded: it is larger than `event_size_limit`.
        """
        try:
            data = self._encode(event)
            if self._reads_back:
                found = self._decode_event(data)
                same = found == event and not (
                    self._is_too_deep(data, event.content)
                    or self._is_too_deep(data, event.state_delta)
                    or self._is_too_deep(data, event.metadata)
                )
            else:
                found, same = event, True
        except _UNENCODABLE:
            same = False
        if not same:
            raise self._event_refusal(event, path)
        if len(data) > self._event_size_limit:
            raise _too_large(path, self._event_size_limit, len(data))
        return data, found

    def _is_too_deep(self, data: bytes, value: Any) -> bool:
        """Whether a value, encoded as `data` or part of it, has too many levels."""
        # Nearly always the value, the size or in JSON the number of brackets rules it out.
        if not value or type(value) is str or len(data) <= DEPTH_LIMIT:
            return False
        if self._json:
            # Counted so because `replace` leaps from one to the next, where `count` walks.
            others = len(data.replace(b"[", b"")) + len(data.replace(b"{", b""))
            if 2 * len(data) - others <= DEPTH_LIMIT:
                return False
        return is_deeper(value, DEPTH_LIMIT)

    def _event_refusal(self, event: Event, path: str) -> InvalidArgument:
        for name in ("content", "state_delta", "metadata"):
            found = self._search(getattr(event, name), f"{path}.{name}", 0)
            if found:
                return InvalidArgument(found)
        for field in msgspec.structs.fields(Event):
            value = getattr(event, field.name)
            try:
                msgspec.convert(value, field.type, strict=True)
            except msgspec.ValidationError as error:
                return InvalidArgument(f"{path}.{field.name}: {error}")
            if field.name == "timestamp":
                if not isinstance(value, datetime):
                    kind = type(value).__name__
                    return InvalidArgument(f"{path}.timestamp must be a datetime, not {kind}")
            else:
                found = self._search(value, f"{path}.{field.name}", 0)
                if found:
                    return InvalidArgument(found)
        return InvalidArgument(f"{path} would not be read as it was written")

    def _refusal(self, value: Any, path: str) -> InvalidArgument:
        found = self._search(value, path, 0)
        return InvalidArgument(found or f"{path} would not be read as it was written")

    def _search(self, value: Any, path: str, depth: int) -> str | None:
        """Why a value cannot be stored, with the path to the innermost part that is at fault."""
        if depth > DEPTH_LIMIT:
            return f"{path} is nested more than {DEPTH_LIMIT} levels deep"
        parts: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, dict):
            parts = value.items()
            for key in value:
                if not self._survives({key: None}):
                    name = type(key).__name__
                    return f"{path} has the {name} key {key!r}, which would not come back"
        elif isinstance(value, list):
            parts = enumerate(value)
        for key, item in parts:
            found = self._search(item, f"{path}[{key!r}]", depth + 1)
            if found:
                return found
        if self._survives(value):
            return None
        kind: type[Any] = type(value)
        if kind is float:
            return f"{path} is {value!r}, which is not a finite number"
        if kind is str:
            return f"{path} is not valid Unicode: it holds a lone surrogate"
        if kind is int:
            return f"{path} is an integer of {value.bit_length()} bits; at most 64 can be stored"
        codec = "json" if self._json else "msgpack"
        return f"{path} is a {kind.__name__}, which the {codec} codec would not give back"

    def _survives(self, value: Any) -> bool:
        try:
            return bool(decode_value(self._encode(value)) == value)
        except _UNENCODABLE:
            return False


def is_deeper(value: Any, limit: int) -> bool:
    """Whether a value has more levels of lists and dicts than `limit`."""
    level = [value]
    for _ in range(limit + 1):
        level = [item for part in level for item in _parts(part)]
        if not level:
            return False
    return True


def _parts(value: Any) -> Iterable[Any]:
    """What a value consists of, one level down."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def decode_value(data: bytes) -> Any:
    """The value of stored bytes, of any format.

    Raises:
        ValueError: the bytes are no value.
    """
    return _decode(data, _decode_json, _decode_msgpack, raw=True)


def decode_event(data: bytes) -> Event:
    """The event of stored bytes, of any format.

    Raises:
        ValueError: the bytes are no event.
    """
    event: Event = _decode(data, _decode_event_json, _decode_event_msgpack)
    return event


def decode_events(members: Iterable[bytes]) -> list[Event]:
    """The events of stored bytes.

    Raises:
        ValueError: one of them is no event.
    """
    decode = _decode_event_json  # what most are, without a call of ours between
    try:
        return [decode(data) if data[:1] >= b"\x20" else decode_event(data) for data in members]
    except RecursionError:
        raise ValueError("nested too deeply") from None


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
    raise ValueError("no known format" if first else "no bytes")


def corrupt(key: bytes, error: Exception, field: bytes | None = None) -> CorruptData:
    """The exception for stored bytes that do not decode. Quotes the key, never the bytes."""
    where = key.decode("utf-8", "replace")
    if field is not None:
        where += f" field {field.decode('utf-8', 'replace')}"
    return CorruptData(f"{where} does not decode ({type(error).__name__})", key=where)


def _too_large(path: str, limit: int, actual: int) -> LimitExceeded:
    message = f"{path} is {actual} bytes long when encoded; at most {limit} are allowed"
    return LimitExceeded(message, limit=limit, actual=actual)
