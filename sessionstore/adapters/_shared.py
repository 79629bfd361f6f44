"""Events that are pydantic models, their state, and runs in turn: for Google ADK and tRPC-Agent.

The framework's own serializer defines an event's JSON, which is embedded in the stored event. Its
state delta stands beside it, where the store applies it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, contextmanager, suppress
from copy import copy
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

import msgspec
from pydantic import BaseModel
from pydantic_core import to_json, to_jsonable_python

from ..concurrency import HeldTurn
from ..errors import CorruptData, InvalidArgument, SessionNotFound
from ..model import Event as StoredEvent
from ..model import JsonEvent, Session, SessionKey, Turn
from ..options import Duration, check_bool, check_milliseconds
from ..service import SessionService
from ..windows import may_be_trimmed
from .flows import list_all
from .json_events import REFUSALS, with_sorted_sets
from .packing import unpack

M = TypeVar("M", bound=BaseModel)

_log = logging.getLogger("sessionstore")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

ANY = datetime(1970, 1, 1, tzinfo=UTC)
"""Stands for whatever session there is, as the creation time of a Session."""

_STATE_DELTA = {"actions": {"state_delta"}}


class EventFormat(Generic[M]):
    """Events of a framework as stored events, and back.

    Args:
        event: the framework's class. Events of subclasses are stored as this one.
        framework: the framework's name, for error messages.
    """

    def __init__(self, event: type[M], framework: str) -> None:
        self._event = event
        self._serializer = event.__pydantic_serializer__
        self._framework = framework

    def store(self, event: Any) -> JsonEvent:
        """The event to store.

        Raises:
            InvalidArgument: the framework cannot serialize a part of it; names the field.
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

    def restore(self, stored: StoredEvent) -> M:
        """The framework's event of a stored one.

        Raises:
            ValueError, TypeError, LookupError, AttributeError: it is not one of the framework.
        """
        patches = stored.metadata.get("patches", [])
        return self.from_json(stored.content, stored.state_delta, patches)

    def to_json(self, event: Any, path: str) -> bytes:
        """The framework's JSON of an event, without its state delta.

        Sets are sorted. A lone surrogate becomes U+FFFD.

        Args:
            event: the event.
            path: what an error calls it.

        Raises:
            InvalidArgument: the framework cannot serialize a part of it; names the field.
        """
        options: dict[str, Any] = {"exclude_none": True, "warnings": False}
        if event.actions.state_delta:
            options["exclude"] = _STATE_DELTA
        try:
            event = with_sorted_sets(event)
            try:
                data: bytes = self._serializer.to_json(event, **options)
            except ValueError:  # a lone surrogate, perhaps
                values = self._serializer.to_python(event, mode="json", **options)
                data = _encode(_without_surrogates(values))
        except REFUSALS as error:
            kind = type(error).__name__
            where = path + self._field_at_fault(event)
            message = f"{where} cannot be serialized by {self._framework} ({kind})"
            raise InvalidArgument(message) from None
        return data

    def from_json(
        self, content: Any, state_delta: Mapping[str, Any], patches: Iterable[Any] = ()
    ) -> M:
        """The event of stored content and its state delta.

        Args:
            content: JSON values; release 0.1.0 also stored JSON text.
            state_delta: the stored state delta.
            patches: values that release 0.1.0 kept beside the content, with their paths.

        Raises:
            ValueError, TypeError, LookupError, AttributeError: this is not an event.
        """
        text = content if type(content) is str else _encode(content)
        event: Any = self._event.model_validate_json(text)
        for path, packed in patches:
            _patch(event, path, unpack(packed))
        if state_delta:
            event.actions.state_delta = from_json_state(state_delta)
        restored: M = event
        return restored

    def _field_at_fault(self, event: Any) -> str:
        """The first field that cannot be serialized, with a dot before it; "" if unclear."""
        for name in self._event.model_fields:
            try:
                self._serializer.to_python(event, mode="json", include={name}, warnings=False)
            except REFUSALS:
                return f".{name}"
        return ""


def _patch(event: Any, path: list[Any], value: Any) -> None:
    *steps, last = path
    holder = event
    for step in steps:
        holder = getattr(holder, step) if isinstance(holder, BaseModel) else holder[step]
    if isinstance(holder, BaseModel):
        setattr(holder, last, value)
    else:
        holder[last] = value


def _without_surrogates(value: Any) -> Any:
    """A copy of JSON values in which U+FFFD takes the place of lone surrogates."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(value[key]) for key in value}
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    return value


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
    kind = type(value)
    if kind is bool or value is None or (kind is str and value.isascii()):
        return value
    try:
        value = with_sorted_sets(value)
        try:
            data = to_json(value, inf_nan_mode="null")
        except ValueError as error:
            data = _encode(_without_surrogates(_to_plain(value)))
            # What the framework could not serialize may be a secret, so it is not named.
            name = type(error).__name__
            _log.warning("a state value is not JSON (%s): stored as its text, or parts of it", name)
        plain = _decode(data)
    except REFUSALS as error:
        message = f"{path} cannot be serialized ({type(error).__name__})"
        raise InvalidArgument(message) from None
    return _escape(plain)


def _to_plain(value: Any) -> Any:
    try:
        return to_jsonable_python(value, serialize_unknown=True)
    except UnicodeDecodeError:  # bytes that are not UTF-8
        return to_jsonable_python(value, serialize_unknown=True, bytes_mode="base64")


def _escape(value: Any) -> Any:
    """A copy for `unpack`: dicts with a key "$" as items, and large integers as text.

    Release 0.1.0 packed values in dicts with a key "$". MessagePack has integers of 64 bits only.
    """
    if isinstance(value, list):
        return [_escape(item) for item in value]
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return {"$": "int", "value": str(value)}
    if not isinstance(value, dict):
        return value
    if "$" in value:
        return {"$": "dict", "value": [[key, _escape(value[key])] for key in value]}
    return {key: _escape(value[key]) for key in value}


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
        return datetime.fromtimestamp(timestamp, UTC)
    except (ValueError, OverflowError, OSError):
        if not math.isfinite(timestamp):
            raise InvalidArgument(f"{path} is {timestamp!r}, which is not a time") from None
        edge = datetime.max if timestamp > 0 else datetime.min
        return edge.replace(tzinfo=UTC)
    except TypeError:
        kind = type(timestamp).__name__
        raise InvalidArgument(f"{path} must be a float, not {kind}") from None


class _Stamp(msgspec.Struct):
    timestamp: float


_decode_stamp = msgspec.json.Decoder(_Stamp).decode


def timestamp_of(content: Any) -> float:
    """The timestamp of an event, of its stored content.

    Raises:
        ValueError, TypeError: this is not an event.
    """
    if isinstance(content, str):
        return _decode_stamp(content).timestamp
    return msgspec.convert(content, _Stamp).timestamp


def check_service(adapter: str, service: object) -> SessionService:
    """The service that an adapter was given.

    Raises:
        InvalidArgument: it is not a service for asyncio.
    """
    if not isinstance(service, SessionService):
        kind = type(service)
        raise InvalidArgument(
            f"{adapter} needs a RedisSessionService or an InMemorySessionService of sessionstore, "
            f"not {kind.__module__}.{kind.__name__}"
        )
    return service


async def all_sessions(
    service: SessionService, app_name: str, user_id: str | None
) -> list[Session]:
    """All sessions of a user, the last updated first, with their newest event; None = of all."""
    if user_id is None:
        all_found = []
        for user in await service.list_users(app_name):
            all_found += await all_sessions(service, app_name, user)
        return sorted(all_found, key=lambda session: session.updated_at, reverse=True)
    found = await service._run(list_all(service._ops, app_name, user_id, event_num=1))
    return sorted(found, key=lambda session: session.updated_at, reverse=True)


@contextmanager
def reading(session: Session, what: str, adapter: str) -> Iterator[None]:
    """Turn what reading a part of a stored session raises into CorruptData."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError):
        where = f"session {session.id!r} of user {session.user_id!r}: {what}"
        raise CorruptData(f"{where} was not written by {adapter}", key=where) from None


def handle_of(key: SessionKey, created_at: datetime | None) -> Session:
    """An empty Session that writes only to the session that was created then; None = to any."""
    created_at = created_at or ANY
    return Session(key.app_name, key.user_id, key.session_id, {}, [], 0, created_at, created_at)


def is_maybe_trimmed(found: Session, starts_turn: Callable[[StoredEvent], bool]) -> bool:
    """Whether events may have been trimmed from a session that was read with all its events.

    That is so if the log is full, or does not begin with a turn.
    """
    if found.events and not starts_turn(found.events[0]):
        return True
    return may_be_trimmed(found)


def function_calls(event: Any) -> tuple[list[str], list[str]]:
    """The ids of the function calls that an event makes, and of those that it answers."""
    opened = [call.id for call in event.get_function_calls() if call.id]
    return opened, [answer.id for answer in event.get_function_responses() if answer.id]


class RunsInTurn:
    """For the adapters: with `serialize_turns`, one run at a time works on a session.

    The frameworks' interface shows where a run begins, but not where it ends. So `run` wraps a
    runner: it gives the runner a copy of the adapter that holds the turn.
    """

    _service: SessionService
    _held: HeldTurn | None = None

    def _set_turns(self, serialize_turns: bool, turn_lease: Duration) -> None:
        """Check and keep the options."""
        self._serialize_turns = check_bool("serialize_turns", serialize_turns)
        lease_ms = check_milliseconds("turn_lease", turn_lease)
        self._lease = timedelta(milliseconds=lease_ms)

    def _check_turn(self, event: Any) -> Turn | None:
        """The turn for an append; None without `serialize_turns`.

        Raises:
            InvalidArgument: a user's message begins a run that does not hold the turn.
        """
        if self._held is not None:
            return self._held.turn
        if self._serialize_turns and event.author == "user" and event.content is not None:
            raise InvalidArgument(
                "with serialize_turns=True a run holds a turn: "
                "use sessions.run(runner, ...) instead of runner.run_async(...)"
            )
        return None

    async def run(
        self, runner: Any, *, user_id: str, session_id: str, **arguments: Any
    ) -> AsyncGenerator[Any, None]:
        """The events of `runner.run_async(...)`, which takes the same arguments.

        With `serialize_turns` the run waits until it has the turn of the session, in any process,
        renews it, and releases it at the end. Without, this is `runner.run_async`.

        Args:
            runner: the framework's Runner, with this adapter as its session service.
            user_id: the user.
            session_id: the session.
            arguments: all else that `run_async` takes.

        Raises:
            TurnLost: another run took the turn over, because it could not be renewed in time.
            BackendError: the store refused the call or did not answer.
        """
        async with AsyncExitStack() as stack:
            if self._serialize_turns:
                key = SessionKey(runner.app_name, user_id, session_id.strip())
                if getattr(runner, "auto_create_session", True):
                    await self._service.get_or_create_session(
                        app_name=key.app_name,
                        user_id=key.user_id,
                        session_id=key.session_id,
                        event_num=0,
                    )
                held = HeldTurn(self._service, key, self._lease)
                with suppress(SessionNotFound):  # the runner says so
                    runner = self._runner_in_turn(runner, await stack.enter_async_context(held))
            events = runner.run_async(user_id=user_id, session_id=session_id, **arguments)
            async for event in await stack.enter_async_context(aclosing(events)):
                yield event

    def _runner_in_turn(self, runner: Any, held: HeldTurn) -> Any:
        """A copy of the runner whose session service holds the turn."""
        sessions = copy(self)
        sessions._held = held
        runner = copy(runner)
        runner.session_service = sessions
        return runner
