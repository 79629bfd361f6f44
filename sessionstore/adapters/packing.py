"""Values that JSON does not carry, as values that it does, and back.

For adapters whose messages may hold anything: with these, bytes and instants come back from a
service of any codec as what they were. What no pair of functions below knows stays as it is, for
the codec to refuse with its path.
"""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

_TAG = "$"  # {"$": kind, "value": how the kind writes it}; a dict with such a key is a kind itself
_LARGEST = 1 << 63

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_encode_msgpack = msgspec.msgpack.Encoder().encode


def _write_items(value: dict[Any, Any]) -> list[Any]:
    return [[pack(key), pack(item)] for key, item in value.items()]


def _read_items(pairs: list[Any]) -> dict[Any, Any]:
    return {unpack(key): unpack(item) for key, item in pairs}


def _write_list(value: Any) -> list[Any]:
    return [pack(item) for item in value]


def _write_set(value: Any) -> list[Any]:
    """In an order that does not depend on hashes, which differ from process to process."""
    return sorted(_write_list(value), key=repr)


def _read_list(items: list[Any]) -> list[Any]:
    return [unpack(item) for item in items]


_KINDS: dict[type[Any], tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    bytes: ("bytes", lambda value: b64encode(value).decode(), b64decode),
    datetime: ("datetime", datetime.isoformat, datetime.fromisoformat),
    date: ("date", date.isoformat, date.fromisoformat),
    time: ("time", time.isoformat, time.fromisoformat),
    timedelta: (
        "timedelta",
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda parts: timedelta(*parts),
    ),
    Decimal: ("decimal", str, Decimal),
    UUID: ("uuid", str, UUID),
    int: ("int", str, int),  # those that are too large
    float: ("float", repr, float),  # those that are no finite numbers
    tuple: ("tuple", _write_list, lambda items: tuple(_read_list(items))),
    set: ("set", _write_set, lambda items: set(_read_list(items))),
    frozenset: ("frozenset", _write_set, lambda items: frozenset(_read_list(items))),
    dict: ("dict", _write_items, _read_items),  # those with keys that JSON would not give back
}
_READERS = {kind: read for kind, _, read in _KINDS.values()}


def pack(value: Any) -> Any:
    """A copy of a value in which JSON carries all of which the kind is known."""
    kind = type(value)
    if kind is dict:
        if all(type(key) is str and key != _TAG for key in value):
            return {key: pack(item) for key, item in value.items()}
    elif kind is list:
        return _write_list(value)
    elif (
        kind not in _KINDS
        or (kind is int and -_LARGEST <= value < 2 * _LARGEST)
        or (kind is float and math.isfinite(value))
    ):
        return value
    name, write, _ = _KINDS[kind]
    return {_TAG: name, "value": write(value)}


def unpack(value: Any) -> Any:
    """What `pack` was given.

    Raises:
        KeyError, TypeError, ValueError: the value did not come from `pack`.
    """
    if isinstance(value, list):
        return _read_list(value)
    if not isinstance(value, dict):
        return value
    if _TAG in value:
        return _READERS[value[_TAG]](value["value"])
    return {key: unpack(item) for key, item in value.items()}


def is_carried(value: Any) -> bool:
    """Whether a service gives a value back as it is, whatever its codec."""
    try:
        _encode_msgpack(value)
        return bool(_decode(_encode(value)) == value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False
