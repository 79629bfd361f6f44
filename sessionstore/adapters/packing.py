"""Reads values that release 0.1.0 stored in a form of its own: `{"$": kind, "value": ...}`."""

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
