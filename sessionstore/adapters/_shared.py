"""Pydantic models and state values as JSON, without loss: for frameworks whose events are models.

Most events are stored as JSON values that are known to give them back, see shapes.py. A framework
keeps arguments and results of tools, state and metadata as `Any`, and what stands there need not be
JSON: bytes, datetimes, tuples. Such an event is stored as the framework's own JSON, a text, and for
each value that this does not give back, a patch: the path to it and the value, packed.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, time, timedelta
from enum import Enum
from types import NoneType
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

import msgspec
import pydantic_core
from pydantic import BaseModel, ValidationError

from ..errors import CorruptData, InvalidArgument
from ..model import Event as StoredEvent
from ..model import Session, VerifiedEvent
from ..ops import SESSIONS_PER_PAGE_LIMIT
from ..service import SessionService
from .packing import pack, unpack
from .shapes import Shapes

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

Patch = list[Any]
"""Two things: the path to a value that JSON alone does not give back, and the value, packed."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_encode_msgpack = msgspec.msgpack.Encoder().encode

_ANY = datetime(1970, 1, 1, tzinfo=UTC)  # stands for any session, see flows.py
_STATE_DELTA = {"actions": {"state_delta"}}  # what is left out of an event that has one

# What serialisers and readers raise on purpose, for what they are given.
_REFUSALS = (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError)

# Annotations whose values the framework's own JSON always gives back.
_CLOSED = (str, bool, int, bytes, datetime, date, time, timedelta, Enum, NoneType)


class JsonForm(Generic[M]):
    """Writes events of a framework as JSON and reads them back.

    Its `actions.state_delta` is no part of an event's JSON: it stands beside it, where the store
    applies it.

    Args:
        event: their class. Those of its subclasses are written as this one.
        actions: the class of their `actions`.
        framework: the framework's name, for error messages.
    """

    def __init__(self, event: type[M], actions: type[BaseModel], framework: str) -> None:
        self._to_json = event.__pydantic_serializer__.to_json
        self._from_json = event.model_validate_json
        self._event = event
        self._framework = framework
        self._apart = {(actions, "state_delta"), (event, "timestamp")}
        self._shapes = Shapes(self._comes_back, {(actions, "state_delta")})
        # Fields that may hold something which JSON does not give back, by class.
        self._open: dict[type[Any], tuple[str, ...]] = {}

    def store(self, event: Any, metadata: dict[str, Any] | None = None) -> StoredEvent:
        """What is to be stored of an event.

        Args:
            event: the event.
            metadata: what else is stored with it, JSON.

        Raises:
            InvalidArgument: the framework cannot serialise a part of it; names the path.
        """
        delta = event.actions.state_delta
        kind: type[StoredEvent] = VerifiedEvent
        content: Any = self._shapes.plain(event) if type(event) is self._event else None
        if content is None or not event.id:
            kind = StoredEvent
            content, patches = self.encode(event, "event")
            if patches:
                metadata = {**(metadata or {}), "patches": patches}
        return kind(
            event.author or "unknown",
            content,
            event.id,
            to_instant(event.timestamp, "event.timestamp"),
            event.invocation_id,
            event.branch or "",
            state_delta=self.freeze_all(delta, "event.actions.state_delta") if delta else {},
            metadata=metadata or {},
        )

    def restore(self, stored: StoredEvent) -> M:
        """The event of what `store` gave.

        Raises:
            ValueError, TypeError, LookupError, AttributeError: it did not come from there.
        """
        return self.decode(stored.content, stored.metadata.get("patches", []), stored.state_delta)

    def encode(self, event: Any, path: str) -> tuple[str, list[Patch]]:
        """The framework's JSON of an event, and what is to be patched when it is read.

        Args:
            event: the event.
            path: what an error calls it.

        Raises:
            InvalidArgument: the framework cannot serialise a part of it; names the path.
        """
        exclude = _STATE_DELTA if event.actions.state_delta else None
        patches: list[Patch] = []
        with self._refusing(path):
            self._search(event, path, [], patches)
            text = self._to_json(event, exclude=exclude, exclude_none=True, warnings=False)
            self.decode(text.decode(), patches, {})
        return text.decode(), patches

    def decode(self, content: Any, patches: Iterable[Patch], delta: Mapping[str, Any]) -> M:
        """The event of what `encode` gave, or of JSON values, with its state delta.

        Raises:
            ValueError, TypeError, LookupError, AttributeError: it did not come from there.
        """
        event: Any = self._from_json(content if type(content) is str else _encode(content))
        for path, packed in patches:
            holder: Any = event
            for step in path[:-1]:
                holder = getattr(holder, str(step)) if _is_model(holder) else holder[step]
            if _is_model(holder):
                setattr(holder, str(path[-1]), unpack(packed))
            else:
                holder[path[-1]] = unpack(packed)
        if delta:
            event.actions.state_delta = thaw_all(delta)
        found: M = event
        return found

    def _comes_back(self, content: dict[str, Any], event: Any) -> bool:
        try:
            found: Any = self.decode(content, [], {})
            found.actions.state_delta = event.actions.state_delta
            return bool(found == event)
        except _REFUSALS:
            return False

    def freeze(self, value: Any, path: str) -> Any:
        """A state value as JSON carries it, for `unpack`.

        Raises:
            InvalidArgument: the framework cannot serialise a part of it; names the path.
        """
        if type(value) in (str, bool, NoneType):
            return value
        with suppress(*_REFUSALS):
            data = _encode(value)
            _encode_msgpack(value)  # whatever the service's codec is
            if _decode(data) == value and b'"$":' not in data:
                return value
        with self._refusing(path):
            packed = pack(value)
            if _is_json(packed):
                return packed
            self._search(value, path, [], [])
            return pack(
                pydantic_core.to_jsonable_python(value, by_alias=False, bytes_mode="base64")
            )

    def freeze_all(self, state: Mapping[str, Any], path: str) -> dict[str, Any]:
        """Every value of a state but those of `temp:` keys, which are never stored.

        Raises:
            InvalidArgument: as for `freeze`.
        """
        return {
            key: self.freeze(value, f"{path}[{key!r}]")
            for key, value in state.items()
            if not (isinstance(key, str) and key.startswith("temp:"))
        }

    @contextmanager
    def _refusing(self, path: str) -> Iterator[None]:
        """Turn what serialising and reading back raise into InvalidArgument."""
        try:
            yield
        except InvalidArgument:
            raise
        except ValidationError as error:
            steps = error.errors()[0]["loc"]
            where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
            raise InvalidArgument(
                f"{path}{where} is of a type, or so deep, that {self._framework} could not read it"
            ) from None
        except RecursionError:
            raise InvalidArgument(f"{path} is nested too deeply") from None
        except _REFUSALS as error:
            kind = type(error).__name__
            raise InvalidArgument(
                f"{path} cannot be serialised by {self._framework} ({kind})"
            ) from None

    def _search(self, value: Any, where: str, path: list[str | int], patches: list[Patch]) -> None:
        """Note what JSON does not give back.

        Raises:
            InvalidArgument: the framework cannot serialise a part; names the path.
        """
        if _is_model(value):
            kind = type(value)
            names = self._open_fields(kind)
            for name in kind.model_fields:
                if (kind, name) not in self._apart:
                    part = getattr(value, name)
                    noted = patches if name in names else []
                    self._search(part, f"{where}.{name}", [*path, name], noted)
        elif isinstance(value, str):
            self._check_leaf(value, where)
        elif isinstance(value, dict) and all(isinstance(key, str) for key in value):
            for key, item in value.items():
                self._search(item, f"{where}[{key!r}]", [*path, key], patches)
        elif isinstance(value, list):
            for number, item in enumerate(value):
                self._search(item, f"{where}[{number}]", [*path, number], patches)
        elif not _is_json(value):
            packed = pack(value)
            if packed is not value and _is_json(packed):
                patches.append([path, packed])
            else:
                self._check_leaf(value, where)

    def _check_leaf(self, value: Any, where: str) -> None:
        """Refuse what the framework cannot serialise. The rest is read as the framework's JSON."""
        if isinstance(value, (tuple, set, frozenset)):
            for number, item in enumerate(value):
                self._check_leaf(item, f"{where}[{number}]")
        elif isinstance(value, dict):
            for key, item in value.items():
                self._check_leaf(key, f"{where} key {key!r}")
                self._check_leaf(item, f"{where}[{key!r}]")
        else:
            try:
                pydantic_core.to_json(value, bytes_mode="base64")
            except _REFUSALS:
                kind = type(value).__name__
                raise InvalidArgument(
                    f"{where} is a {kind} that {self._framework} cannot serialise"
                ) from None

    def _open_fields(self, model: type[Any]) -> tuple[str, ...]:
        if model not in self._open:
            # A class that contains itself takes itself for open, which only costs time.
            self._open[model] = tuple(model.model_fields)
            self._open[model] = tuple(
                name
                for name, field in model.model_fields.items()
                if (model, name) not in self._apart and self._is_open(field.annotation)
            )
        return self._open[model]

    def _is_open(self, annotation: Any) -> bool:
        """Whether a value of this annotation may be something which JSON does not give back."""
        if get_origin(annotation) is Literal:
            return False
        parts = get_args(annotation)
        if parts:
            return any(self._is_open(part) for part in parts if part is not Ellipsis)
        if not isinstance(annotation, type):
            return True
        if issubclass(annotation, BaseModel):
            return bool(self._open_fields(annotation))
        return not issubclass(annotation, _CLOSED)


class _Stamp(msgspec.Struct):
    timestamp: float


_decode_stamp = msgspec.json.Decoder(_Stamp).decode


def timestamp_of(content: Any) -> float:
    """The timestamp of an event, of what is stored of it.

    Raises:
        ValueError, TypeError: it did not come from `JsonForm`.
    """
    if isinstance(content, str):
        return _decode_stamp(content).timestamp
    return msgspec.convert(content, _Stamp).timestamp


def thaw_all(state: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of a state, as it was before `JsonForm.freeze`.

    Raises:
        ValueError, TypeError, LookupError: a value did not come from there.
    """
    return {key: unpack(value) for key, value in state.items()}


def to_instant(timestamp: float, path: str) -> datetime:
    """Seconds since 1970, as the frameworks stamp events, moved to where a datetime can be.

    Raises:
        InvalidArgument: it is no finite number; `path` is what the error calls it.
    """
    try:
        return datetime.fromtimestamp(timestamp, UTC)
    except (ValueError, OverflowError, OSError):
        if not math.isfinite(timestamp):
            raise InvalidArgument(f"{path} is {timestamp!r}, which is no time") from None
        edge = datetime.max if timestamp > 0 else datetime.min
        return edge.replace(tzinfo=UTC)
    except TypeError:
        kind = type(timestamp).__name__
        raise InvalidArgument(f"{path} must be a float, not {kind}") from None


def check_service(adapter: str, service: object) -> SessionService:
    """The service that an adapter was given.

    Raises:
        InvalidArgument: it is none for asyncio.
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
    found: dict[str, Session] = {}
    cursor = None
    while True:
        page = await service.list_sessions(
            app_name=app_name,
            user_id=user_id,
            limit=SESSIONS_PER_PAGE_LIMIT,
            event_num=1,
            after=cursor,
        )
        found.update((session.id, session) for session in page)  # some may be repeated
        cursor = page.cursor
        if cursor is None:
            return sorted(found.values(), key=lambda session: session.updated_at, reverse=True)


@contextmanager
def reading(session: Session, what: str, adapter: str) -> Iterator[None]:
    """Turn what reading a part of a stored session raises into CorruptData."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError):
        where = f"session {session.id!r} of user {session.user_id!r}: {what}"
        raise CorruptData(f"{where} was not written by {adapter}", key=where) from None


def _is_model(value: Any) -> bool:
    return isinstance(value, BaseModel)


def _is_json(value: Any) -> bool:
    try:
        return bool(_decode(_encode(value)) == value)
    except _REFUSALS:
        return False


class Handles(Generic[T]):
    """What an adapter knows of the framework's objects that are in use. Copies are not known."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], T]] = {}

    def put(self, handle: object, known: T) -> None:
        """Remember something for as long as the object lives."""
        number = id(handle)
        forget = self._known.pop
        self._known[number] = weakref.ref(handle, lambda _: forget(number, None)), known

    def get(self, handle: object) -> T | None:
        """What was remembered; None if the object is not known."""
        reference, known = self._known.get(id(handle), (None, None))
        return known if reference is not None and reference() is handle else None


def written_through(handle: Any, created: Handles[datetime]) -> Session:
    """An empty Session for a write through a framework's object, only to the session it shows.

    An object that the adapter does not know, such as a copy, writes to whatever session is there.
    """
    created_at = created.get(handle) or _ANY
    return Session(handle.app_name, handle.user_id, handle.id, {}, [], 0, created_at, created_at)
