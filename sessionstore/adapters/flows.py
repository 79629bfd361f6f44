"""What several adapters do with a service, as flows, and which service runs them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from hashlib import blake2b
from inspect import Signature, signature
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import msgspec

import sessionstore.sync

from .. import flows
from ..app_tier import write_apart
from ..calls import Flow
from ..errors import InvalidArgument, SessionNotFound
from ..flows import created_us_of
from ..keyed import keyed
from ..model import Event, Session, SessionKey, SessionPage, num_after_summary
from ..ops import EVENTS_PER_CALL_LIMIT, SESSIONS_PER_PAGE_LIMIT, Ops
from ..replies import WriteResult
from ..service import SessionService
from ..tiers import NO_CHANGE, check_call_size, encode_change
from ..windows import Window, choose, may_be_trimmed

P = ParamSpec("P")
T = TypeVar("T")

AnyService = SessionService | sessionstore.sync.SessionService
"""A service for asyncio or one of `sessionstore.sync`."""

_ATTEMPTS = 3  # a session may be deleted again right after its creation, but not for ever
_UNKNOWN_LIMIT = 1000  # sessions of a service of which an append with an unknown outcome is kept
_PAGE = 64  # events of the first read that looks for the start of a turn


class Services:
    """Runs flows on the services that an adapter was given.

    Args:
        adapter: the adapter's name, for error messages.
        service: a service for asyncio or one of `sessionstore.sync`.
        sync_service: one of `sessionstore.sync` beside one for asyncio.

    Raises:
        InvalidArgument: these are not services, or both are of one kind.
    """

    def __init__(
        self,
        adapter: str,
        service: AnyService,
        sync_service: sessionstore.sync.SessionService | None = None,
    ) -> None:
        if not isinstance(service, AnyService):
            kind = type(service).__name__
            raise InvalidArgument(f"service must be a service of sessionstore, not {kind}")
        self._adapter = adapter
        self._service = service
        self._for_asyncio = service if isinstance(service, SessionService) else None
        self._for_threads = sync_service if isinstance(service, SessionService) else service
        # Where methods without await run, called from other threads.
        self._loop = _running_loop()
        if sync_service is not None:
            if not isinstance(sync_service, sessionstore.sync.SessionService):
                raise InvalidArgument("sync_service must be a service of sessionstore.sync")
            if self._for_asyncio is None:
                raise InvalidArgument("beside sync_service, service must be one for asyncio")

    def __repr__(self) -> str:
        return repr(self._service)

    async def arun(
        self, flow: Callable[Concatenate[Ops, P], Flow[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What a flow returns. Without a service for asyncio it runs in a thread."""
        service = self._for_asyncio
        if service is None:
            return await asyncio.to_thread(lambda: self.run(flow, *args, **kwargs))
        self._loop = asyncio.get_running_loop()
        return await service._run(flow(service._ops, *args, **kwargs))

    def run(
        self, flow: Callable[Concatenate[Ops, P], Flow[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What a flow returns. With only a service for asyncio, it runs on that one's loop.

        Raises:
            NotImplementedError: there is only a service for asyncio, and its loop does not run, or
                runs in this thread.
        """
        service = self._for_threads
        if service is None:
            loop = self._loop
            if loop is None or not loop.is_running() or loop is _running_loop():
                raise NotImplementedError(
                    f"this {self._adapter} has a service for asyncio: await its asynchronous "
                    "methods, or give it one of sessionstore.sync"
                )
            waiting = self.arun(flow, *args, **kwargs)
            return asyncio.run_coroutine_threadsafe(waiting, loop).result()
        return service._run(flow(service._ops, *args, **kwargs))


def both(
    flow: Callable[Concatenate[Any, Ops, P], Flow[T]],
) -> tuple[Callable[Concatenate[Any, P], T], Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]]:
    """The methods without and with await that run a flow of an adapter on its `_services`.

    They have the docstring of the flow, and its arguments without `ops`.
    """

    def run(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        found: T = self._services.run(partial(flow, self), *args, **kwargs)
        return found

    async def arun(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        found: T = await self._services.arun(partial(flow, self), *args, **kwargs)
        return found

    parameters = [each for name, each in signature(flow).parameters.items() if name != "ops"]
    methods: tuple[Any, Any] = (run, arun)
    for method, prefix in zip(methods, ("", "a"), strict=True):
        method.__doc__ = flow.__doc__
        method.__name__ = prefix + flow.__name__.removeprefix("_")
        method.__qualname__ = flow.__qualname__.replace(flow.__name__, method.__name__)
        method.__signature__ = Signature(parameters)
    return methods


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread, if one does."""
    with suppress(RuntimeError):
        return asyncio.get_running_loop()
    return None


# -- histories -----------------------------------------------------------------------------------


class _Unknown(NamedTuple):
    """An append whose outcome is unknown: what it was to store, and the identity of its events."""

    digest: bytes
    identities: list[tuple[str, datetime]]


_unknown: WeakKeyDictionary[AnyService, dict[SessionKey, _Unknown]] = WeakKeyDictionary()


class HistoryAdapter:
    """A conversation whose items are the events of one session.

    `_append` and `_aappend` append events that have no ids of their own, so that a repeat stores
    nothing twice. A repeat is recognized if an append failed with an unknown outcome, was of the
    same events but for their ids and timestamps, and is the newest append of the service to the
    session. It is also recognized if it is the first append of this object, the framework gave an
    id to each of its items, and they are the newest ones of the session.
    """

    def __init__(
        self,
        session_id: str,
        service: AnyService,
        *,
        app_name: str,
        user_id: str,
        sync_service: sessionstore.sync.SessionService | None = None,
    ) -> None:
        self.session_id = session_id
        self._key = SessionKey(app_name, user_id, session_id)
        self._services = Services(type(self).__name__, service, sync_service)
        self._has_appended = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._key!r})"

    async def _aappend(self, events: Sequence[Event], have_ids: bool) -> Sequence[Event]:
        """Append events, and return them as they are stored.

        Args:
            events: JsonEvents; up to 500 go in one atomic step.
            have_ids: the framework gave an id to each of the items.
        """
        with self._recognized(events, have_ids) as arguments:
            return await self._services.arun(_append_unless_newest, self._key, *arguments)

    def _append(self, events: Sequence[Event], have_ids: bool) -> None:
        """Append events. See `_aappend`."""
        with self._recognized(events, have_ids) as arguments:
            self._services.run(_append_unless_newest, self._key, *arguments)

    @contextmanager
    def _recognized(
        self, events: Sequence[Event], have_ids: bool
    ) -> Iterator[tuple[Sequence[Event], bool]]:
        """The events to append: those of the earlier call, if this one is its repeat."""
        may_be_stored = have_ids and not self._has_appended
        self._has_appended = True
        unknown = _unknown.setdefault(self._services._service, {})
        earlier = unknown.get(self._key)
        if earlier is not None and earlier.digest == _digest(events):
            events = [
                msgspec.structs.replace(event, id=event_id, timestamp=timestamp)
                for event, (event_id, timestamp) in zip(events, earlier.identities, strict=True)
            ]
        try:
            yield events, may_be_stored
        except InvalidArgument:
            raise
        except BaseException:  # a cancelled call may be stored, too
            identities = [(event.id, event.timestamp) for event in events]
            unknown[self._key] = _Unknown(_digest(events), identities)
            if len(unknown) > _UNKNOWN_LIMIT:
                unknown.pop(next(iter(unknown)), None)
            raise
        if unknown.get(self._key) is earlier:
            unknown.pop(self._key, None)


def _digest(events: Iterable[Event]) -> bytes:
    """The same for events that differ only in ids and timestamps."""
    parts = [(event.author, event.metadata, event.content) for event in events]
    return blake2b(msgspec.json.encode(parts, enc_hook=repr)).digest()


def _append_unless_newest(
    ops: Ops, key: SessionKey, events: Sequence[Event], may_be_stored: bool
) -> Flow[Sequence[Event]]:
    """Append events, and return them as they are stored.

    If they may be stored already, look first whether they are the newest ones.
    """
    if may_be_stored and 0 < len(events) <= EVENTS_PER_CALL_LIMIT:
        session = yield from flows.get_session(ops, key, len(events), None)
        if session is not None and _digest(session.events) == _digest(map(_decoded, events)):
            return session.events
    yield from append(ops, key, events)
    return events


def _decoded(event: Event) -> Event:
    return msgspec.structs.replace(event, content=msgspec.json.decode(event.content))


# -- writes ----------------------------------------------------------------------------------------


def append(ops: Ops, key: SessionKey, events: Sequence[Event]) -> Flow[None]:
    """Append events, 500 in one atomic step, to a session that is created if it does not exist."""
    for first in range(0, len(events), EVENTS_PER_CALL_LIMIT):
        batch = events[first : first + EVENTS_PER_CALL_LIMIT]
        for attempts_left in range(_ATTEMPTS, -1, -1):
            try:
                if len(batch) == 1:  # a third faster
                    yield from flows.append_event(ops, key, batch[0], None)
                else:
                    yield from flows.append_events(ops, key, batch, None)
                break
            except SessionNotFound:
                if not attempts_left:
                    raise
            yield from create_if_missing(ops, key)


@keyed
def append_with_state(
    ops: Ops, session: Session, events: Sequence[Event], state: dict[str, Any]
) -> Flow[WriteResult]:
    """Append 1 to 500 events and set state, in one step, unless others wrote since the read.

    The state belongs to the call and not to an event, so the bytes of the events do not depend on
    it. It is set unless the last event was stored before.

    Args:
        ops: builds the Calls.
        session: the session as it was read. It gets the new version.
        events: what to append: JsonEvents.
        state: keys of the session tier.

    Raises:
        StaleVersion: others wrote to the session. SessionNotFound: it was deleted.
    """
    codec = ops.options.codec.for_event(events[-1])
    key, version = session.key, session.version
    change = encode_change(codec, key, state)
    encoded = [codec.encode_event(each, f"events[{n}]", key) for n, each in enumerate(events)]
    check_call_size("events", change.size + sum(len(data) for data, _ in encoded))
    changes = [*[NO_CHANGE] * (len(events) - 1), change]
    stamps = [event.timestamp for _, event in encoded]
    rows = list(zip([data for data, _ in encoded], stamps, changes, strict=True))
    call = ops.append_events(key, rows, version, None, created_us_of(session))
    written: WriteResult
    if ops.app_in_own_slot:
        written, _ = yield from write_apart(ops, call, key, changes, (), version)
    else:
        written = yield call
    session.version = written.version
    return written


def create_if_missing(ops: Ops, key: SessionKey, state: dict[str, Any] | None = None) -> Flow[None]:
    """Create a session unless it exists."""
    yield from flows.get_or_create_session(
        ops, key.app_name, key.user_id, key.session_id, state, 0, None
    )


def pop_event(ops: Ops, key: SessionKey) -> Flow[Event | None]:
    """Remove the newest event and return it; None without an event or a session."""
    with suppress(SessionNotFound):
        return (yield from flows.pop_event(ops, key, None))
    return None


def clear_events(ops: Ops, key: SessionKey) -> Flow[None]:
    """Remove all events; a missing session is fine."""
    with suppress(SessionNotFound):
        yield from flows.clear_events(ops, key, None)


# -- reads -----------------------------------------------------------------------------------------


def list_all(
    ops: Ops,
    app_name: str,
    user_id: str,
    event_num: int = 0,
    limit: int | None = None,
    convert: Callable[[Session], Any] = lambda session: session,
) -> Flow[list[Any]]:
    """The sessions of a user, the one updated last first, each with its newest events.

    Args:
        ops: builds the Calls.
        app_name: the application.
        user_id: the user.
        event_num: newest events to read of each.
        limit: where to stop, about; None = all.
        convert: what to return of a session; None = leave it out.
    """
    found: dict[str, Any] = {}  # a session that is written meanwhile is read again
    cursor = None
    while limit is None or len(found) < limit:
        page: SessionPage = yield from flows.list_sessions(
            ops, app_name, user_id, SESSIONS_PER_PAGE_LIMIT, 0, event_num, cursor
        )
        converted = ((session.id, convert(session)) for session in page)
        found.update((name, value) for name, value in converted if value is not None)
        cursor = page.cursor
        if cursor is None:
            break
    return list(found.values())


@dataclass(frozen=True)
class Turns(Generic[T]):
    """The rules of a framework: where a model may begin to read its items.

    Args:
        starts_turn: whether a turn starts at an item.
        calls: the ids of the calls that an item makes, and of those whose results it holds.
        is_inside: whether an item needs others before it, so that something is missing if it is
            the first one.
        rest: what a model can read of a turn whose start was trimmed, if there is no other.
    """

    starts_turn: Callable[[T], bool]
    calls: Callable[[T], tuple[Iterable[str], Iterable[str]]]
    is_inside: Callable[[T], bool]
    rest: Callable[[list[T]], list[T]] = list


class History(NamedTuple, Generic[T]):
    """The newest items of a session.

    Attributes:
        session: with the events of `items`; None = there is no session.
        items: what was read, oldest first.
        shown: the newest of them, from a place on at which a model may begin to read.
    """

    session: Session | None
    items: list[T]
    shown: list[T]


def read_turns(
    ops: Ops, key: SessionKey, limit: int | None, read: Callable[[Event], T], turns: Turns[T]
) -> Flow[History[T]]:
    """The newest items of a session: a Window of them. A log that was never trimmed is shown whole.

    Args:
        ops: builds the Calls.
        key: the session.
        limit: most items to show; None = all. The newest turn is shown even if it has more.
        read: the item of an event.
        turns: the rules.

    One round trip, O(items read). More if the newest turn has more items than the limit.
    """
    rules: Any = {"starts_turn": turns.starts_turn, "calls": turns.calls}
    window = Window(max_events=limit, **rules)
    event_num = None if limit is None else limit + 1  # one more tells whether that is all
    while True:
        session = yield from flows.get_session(ops, key, event_num, None)
        if session is None:
            return History(None, [], [])
        items = [read(event) for event in session.events]
        is_whole = len(items) >= num_after_summary(session)
        is_full = is_whole and may_be_trimmed(session)
        is_trimmed = is_full or any(map(turns.is_inside, items[:1]))
        if is_whole and not is_trimmed and (limit is None or len(items) <= limit):
            return History(session, items, items)
        is_rest = is_full and not any(map(turns.starts_turn, items))
        left = turns.rest(items) if is_rest else items
        shown = choose(window, left, is_whole_log=is_whole, is_trimmed=is_trimmed)
        if shown is not None:
            return History(session, items, shown)
        event_num = max(_PAGE, 2 * len(items))
