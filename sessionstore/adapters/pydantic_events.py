"""Events that are pydantic models, and their state: for Google ADK and tRPC-Agent.

The framework's own serializer defines an event's JSON, which is embedded in the stored event. Its
state delta is stored next to it, where the store applies it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from pydantic import BaseModel
from pydantic_core import to_json, to_jsonable_python

from ..errors import InvalidArgument
from ..model import Event as StoredEvent
from ..model import JsonEvent
from .json_events import REFUSALS, find_fault, with_sorted_sets, without_surrogates
from .packing import pack, unpack

_log = logging.getLogger("sessionstore")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

_STATE_DELTA = {"actions": {"state_delta"}}
_EARLIEST, _LATEST = -62135596800, 253402300799  # seconds of the years 1 and 9999


class EventFormat:
    """Events of a framework as stored events, and back.

    Args:
        event: the framework's class. Events of subclasses are stored as this one.
        framework: the framework's name, for error messages.
    """

    def __init__(self, event: Any, framework: str) -> None:
        self._event = event
        self._serializer = event.__pydantic_serializer__
        self._framework = framework

    def store(self, event: Any) -> JsonEvent:
        """The event to store.

        Raises:
            InvalidArgument: the framework cannot serialize a part of it; names the part.
        """
        delta = to_json_state(event.actions.state_delta, "event.actions.state_delta")
        return JsonEvent(
            event.author or "unknown",
            msgspec.Raw(self.to_json(event, "event")),
            event.id,
            to_instant(event.timestamp, "event.timestamp"),
            event.invocation_id,
            event.branch or "",
            state_delta=delta,
        )

    def restore(self, stored: StoredEvent) -> Any:
        """The framework's event of a stored one.

        Raises:
            ValueError, TypeError, LookupError, AttributeError: it is not one of the framework.
        """
        patches = stored.metadata.get("patches", [])
        return self.from_json(stored.content, stored.state_delta, patches)

    def to_json(self, event: Any, path: str) -> bytes:
        """The framework's JSON of an event, without its state delta.

        Sets are sorted. A lone surrogate becomes U+FFFD.

        Raises:
            InvalidArgument: the framework cannot serialize a part of it; names the part.
        """
        options: dict[str, Any] = {"exclude_none": True, "warnings": False}
        if event.actions.state_delta:
            options["exclude"] = _STATE_DELTA
        try:
            event = with_sorted_sets(event)
            try:
                return bytes(self._serializer.to_json(event, **options))
            except ValueError:  # a lone surrogate, perhaps
                values = self._serializer.to_python(event, mode="json", **options)
                return _encode(without_surrogates(values))
        except REFUSALS as error:
            where, _ = find_fault(event, path, to_jsonable_python)
            message = f"{where} cannot be serialized by {self._framework} ({type(error).__name__})"
            raise InvalidArgument(message) from None

    def from_json(
        self, content: Any, state_delta: Mapping[str, Any], patches: Iterable[Any] = ()
    ) -> Any:
        """The event of stored content and its state delta.

        Args:
            content: JSON values; release 0.1.0 also stored JSON text.
            state_delta: the stored state delta.
            patches: values that release 0.1.0 kept next to the content, with their paths.

        Raises:
            ValueError, TypeError, LookupError, AttributeError: this is not an event.
        """
        text = content if isinstance(content, str) else _encode(content)
        event = self._event.model_validate_json(text)
        for (*steps, last), packed in patches:
            holder: Any = event
            for step in steps:
                holder = _parts(holder)[step]
            _parts(holder)[last] = unpack(packed)
        if state_delta:
            event.actions.state_delta = from_json_state(state_delta)
        return event


def _parts(holder: Any) -> Any:
    return holder.__dict__ if isinstance(holder, BaseModel) else holder


def to_json_state(state: Mapping[str, Any], path: str) -> dict[str, Any]:
    """State as the JSON values that are stored, without `temp:` keys.

    What pydantic cannot serialize becomes `str(value)`, and a warning is logged.

    Args:
        state: values by key.
        path: what an error calls it.

    Raises:
        InvalidArgument: a value contains itself or is nested too deeply; names the key.
    """
    return {
        key: _to_json_value(value, f"{path}[{key!r}]")
        for key, value in state.items()
        if not (isinstance(key, str) and key.startswith("temp:"))
    }


def _to_json_value(value: Any, path: str) -> Any:
    try:
        value = with_sorted_sets(value)
        try:
            data = to_json(value, inf_nan_mode="null")
        except ValueError as error:
            data = _encode(without_surrogates(_to_plain(value)))
            # What the framework could not serialize may be a secret, so it is not named.
            name = type(error).__name__
            _log.warning("a state value is not JSON (%s): stored as its text, or parts of it", name)
        return pack(_decode(data))
    except REFUSALS as error:
        message = f"{path} cannot be serialized ({type(error).__name__})"
        raise InvalidArgument(message) from None


def _to_plain(value: Any) -> Any:
    try:
        return to_jsonable_python(value, serialize_unknown=True)
    except UnicodeDecodeError:  # bytes that are not UTF-8
        return to_jsonable_python(value, serialize_unknown=True, bytes_mode="base64")


def from_json_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """State of stored values. Release 0.1.0 packed values that are not JSON.

    Raises:
        ValueError, TypeError, LookupError: a value was not stored by an adapter.
    """
    return {key: unpack(value) for key, value in state.items()}


def to_instant(timestamp: float, path: str) -> datetime:
    """Seconds since 1970, as the frameworks stamp events, moved to where a datetime can be.

    Raises:
        InvalidArgument: it is not a finite number; `path` is what the error calls it.
    """
    try:
        if math.isfinite(timestamp):
            return datetime.fromtimestamp(min(max(timestamp, _EARLIEST), _LATEST), UTC)
    except TypeError:
        pass
    raise InvalidArgument(f"{path} is {timestamp!r}, which is not a time")
