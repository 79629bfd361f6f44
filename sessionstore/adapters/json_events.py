"""Events whose content is JSON: what a framework's own storage would read back.

The bytes of an event depend on the event alone, so sets are sorted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import fields, is_dataclass
from datetime import datetime
from types import NoneType
from typing import Any

import msgspec

from ..codec import DEPTH_LIMIT
from ..errors import CorruptData, InvalidArgument
from ..model import Event, JsonEvent, SessionKey

# Most values are of these types, and looking into them takes most of the time.
_WITHOUT_PARTS = frozenset({str, bytes, bool, int, float, NoneType, datetime})

REFUSALS = (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError)
"""What a framework raises for a value that it cannot serialize, or cannot read."""


def json_event(
    author: str,
    value: Any,
    path: str,
    default: Callable[[Any], Any] | None = None,
    **others: Any,
) -> JsonEvent:
    """An event of what Python's `json` makes of a value.

    Numbers that are not finite and halves of surrogate pairs are not valid JSON. A value with these
    is stored as a text, which is the JSON of Python.

    Args:
        author: the event's author.
        value: what to store.
        path: what an error calls it.
        default: makes JSON values of others, as in `json.dumps`.
        others: other fields of the event.

    Raises:
        InvalidArgument: the value is not JSON; names the part.
    """

    def encode(part: Any) -> bytes:
        return msgspec.json.encode(json.dumps(part, default=default))

    try:
        try:
            text = json.dumps(
                value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=default
            ).encode()
        except ValueError:
            text = encode(value)
    except RecursionError:
        raise InvalidArgument(f"{path} is nested too deeply") from None
    except REFUSALS:
        where, part = find_fault(value, path, encode)
        raise InvalidArgument(f"{where} is a {type(part).__name__}, which is not JSON") from None
    return JsonEvent(author, msgspec.Raw(text), **others)


def text_of(value: Mapping[str, object], *names: str) -> str:
    """The first of these fields that is a valid text and not empty; "" if none is."""
    for name in names:
        text = value.get(name)
        if isinstance(text, str) and text and text.isprintable():
            return text
    return ""


def dict_of(event: Event, key: SessionKey, what: str) -> dict[str, Any]:
    """The dict that an event of `json_event` was made from.

    Raises:
        CorruptData: the event does not hold one; `what` is what it should be.
    """
    value = event.content
    with suppress(ValueError):
        if isinstance(value, str):
            value = json.loads(value)
    if not isinstance(value, dict):
        raise not_read(event, key, what)
    return value


def not_read(event: Event, key: SessionKey, what: str) -> CorruptData:
    """The exception for an event that is not what an adapter stores."""
    where = f"event {event.id!r} of session {key.session_id!r}"
    return CorruptData(f"{where} is not {what}", key=where)


def with_sorted_sets(value: Any) -> Any:
    """A value in which sorted lists take the place of sets. What contains no set is not copied."""
    if isinstance(value, (set, frozenset)):
        return sorted(map(with_sorted_sets, value), key=_sort_key)
    parts = _parts_of(value)
    changed = {
        name: new
        for name, part in parts.items()
        if type(part) not in _WITHOUT_PARTS and (new := with_sorted_sets(part)) is not part
    }
    if not changed:
        return value
    if isinstance(value, (dict, list, tuple)):
        parts = {**parts, **changed}
        return parts if isinstance(value, dict) else list(parts.values())
    if hasattr(value, "model_copy"):
        return value.model_copy(update=changed)
    value = copy(value)
    for name, item in changed.items():
        object.__setattr__(value, name, item)  # it may be frozen
    return value


def _parts_of(value: Any) -> Mapping[Any, Any]:
    """The items of a dict or a list, or the fields of a dataclass or of a model of pydantic."""
    kind = type(value)
    if isinstance(value, dict):
        return value
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    if hasattr(kind, "model_copy"):
        return {**value.__dict__, **(value.model_extra or {})}
    names = [field.name for field in fields(value)] if is_dataclass(kind) else []
    return {name: getattr(value, name, None) for name in names}


def _sort_key(value: Any) -> str:
    return json.dumps(value, default=repr, sort_keys=True)


def find_fault(value: Any, path: str, encode: Callable[[Any], object]) -> tuple[str, Any]:
    """The innermost part of a value that cannot be encoded, and the path to it."""
    for _ in range(DEPTH_LIMIT):
        has_items = isinstance(value, (dict, list, tuple))
        for name, part in _parts_of(value).items():
            try:
                encode(part)
            except Exception:  # of a serializer that may be the application's
                path, value = f"{path}[{name!r}]" if has_items else f"{path}.{name}", part
                break
        else:
            break
    return path, value


def without_surrogates(value: Any) -> Any:
    """A copy of JSON values in which U+FFFD replaces lone surrogates."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(value[key]) for key in value}
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    return value
