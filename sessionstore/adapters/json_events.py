"""Events whose content is JSON: what a framework's own storage would read back.

The bytes of an event depend on the event alone, so sets are sorted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from copy import copy
from dataclasses import fields, is_dataclass
from datetime import datetime
from types import NoneType
from typing import Any

import msgspec

from ..errors import CorruptData, InvalidArgument
from ..model import Event, JsonEvent, SessionKey

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


def text_of(value: dict[str, Any], *names: str) -> str:
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
    if type(value) in _WITHOUT_PARTS:
        return value
    if isinstance(value, (set, frozenset)):
        return sorted(map(with_sorted_sets, value), key=_sort_key)
    if isinstance(value, (list, tuple)):
        changed = _changed(enumerate(value))
        return [changed.get(place, item) for place, item in enumerate(value)] if changed else value
    if isinstance(value, dict):
        changed = _changed(value.items())
        return {**value, **changed} if changed else value
    if hasattr(type(value), "model_copy"):  # a model of pydantic
        changed = _changed({**value.__dict__, **(value.model_extra or {})}.items())
        return value.model_copy(update=changed) if changed else value
    if is_dataclass(value) and not isinstance(value, type):
        parts = [(field.name, getattr(value, field.name, None)) for field in fields(value)]
        changed = _changed(parts)
        if changed:
            value = copy(value)
            for name, item in changed.items():
                object.__setattr__(value, name, item)  # it may be frozen
    return value


def _changed(items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """The items that contain sets, with sorted lists in their place."""
    new = ((name, item, with_sorted_sets(item)) for name, item in items)
    return {name: changed for name, item, changed in new if changed is not item}


def _sort_key(value: Any) -> str:
    return json.dumps(value, default=repr, sort_keys=True)


def find_fault(value: Any, path: str, encode: Callable[[Any], object]) -> tuple[str, Any]:
    """The innermost part of a value that cannot be encoded, and the path to it."""
    parts: Iterable[tuple[str, Any]] = ()
    if is_dataclass(value) and not isinstance(value, type):
        parts = [(f".{field.name}", getattr(value, field.name)) for field in fields(value)]
    elif isinstance(value, dict):
        parts = [(f"[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"[{number}]", part) for number, part in enumerate(value)]
    for step, part in parts:
        try:
            encode(part)
        except REFUSALS:
            return find_fault(part, path + step, encode)
    return path, value
