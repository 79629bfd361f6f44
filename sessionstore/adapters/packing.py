"""Values that have a form of their own: `{"$": kind, "value": ...}`. Release 0.1.0 had many."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

_READERS: dict[str, Callable[[Any], Any]] = {
    "bytes": b64decode,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda parts: timedelta(*parts),
    "decimal": Decimal,
    "uuid": UUID,
    "int": int,
    "float": float,
    "tuple": lambda items: tuple(unpack(items)),
    "set": lambda items: set(unpack(items)),
    "frozenset": lambda items: frozenset(unpack(items)),
    "dict": lambda pairs: {unpack(key): unpack(value) for key, value in pairs},
}


def unpack(value: Any) -> Any:
    """The value that was stored.

    Raises:
        LookupError, TypeError, ValueError: it was not stored by an adapter.
    """
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$" in value:
        return _READERS[value["$"]](value["value"])
    return {key: unpack(item) for key, item in value.items()}


def pack(value: Any) -> Any:
    """A copy of a JSON value for `unpack`: dicts with a key "$" as items, large integers as text.

    MessagePack has integers of 64 bits only.
    """
    if isinstance(value, list):
        return [pack(item) for item in value]
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return {"$": "int", "value": str(value)}
    if not isinstance(value, dict):
        return value
    if "$" in value:
        return {"$": "dict", "value": [[key, pack(value[key])] for key in value]}
    return {key: pack(value[key]) for key in value}
