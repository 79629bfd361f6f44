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
from itertools import accumulate
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import msgspec

import sessionstore.sync

from .. import flows
from ..calls import Flow
from ..drive import drive, drive_async
from ..errors import InvalidArgument, SessionNotFound
from ..listing import read_whole
from ..model import Event, EventPage, Session, SessionKey, SessionPage
from ..ops import EVENTS_PER_CALL_LIMIT, SESSIONS_PER_PAGE_LIMIT, Ops
from ..replies import hash_items
from ..service import SessionService
from ..windows import may_be_trimmed

P = ParamSpec("P")
T = TypeVar("T")

AnyService = SessionService | sessionstore.sync.SessionService
"""A service for asyncio or one of `sessionstore.sync`."""

_ATTEMPTS = 3  # a session may be deleted again right after its creation, but not for ever
_UNKNOWN_LIMIT = 1000  # sessions of a service of which an append with an unknown outcome is kept
_PAGE = 64  # events of the first read that looks for the start of a turn


class _Unknown(NamedTuple):
    """An append whose outcome is unknown: what it was to store, and the identity of its events."""

    digest: bytes
    identities: list[tuple[str, datetime]]


_unknown: WeakKeyDictionary[AnyService, dict[SessionKey, _Unknown]] = WeakKeyDictionary()


class Services:
    """Runs flows on the services that an adapter was given.

    Args:
        adapter: the adapter's name, for error messages.
        service: a service for asyncio or one of `sessionstore.sync`.
        sync_service: a service of `sessionstore.sync` for the methods without await, next to a
            service for asyncio.

    Raises:
        InvalidArgument: these are not services, or both are of one kind.
    """

    def __init__(
        self,
        adapter: str,
        service: AnyService,
        sync_service: sessionstore.sync.SessionService | None = None,
    ) -> None:
        self._adapter = adapter
        # Where methods without await run, called from other threads.
        self._loop = _running_loop()
        self._for_asyncio = service if isinstance(service, SessionService) else None
        if not isinstance(service, AnyService):
            kind = type(service).__name__
            raise InvalidArgument(f"service must be a service of sessionstore, not {kind}")
        if sync_service is None:
            self._for_threads = None if isinstance(service, SessionService) else service
            return
        if not isinstance(sync_service, sessionstore.sync.SessionService):
            raise InvalidArgument("sync_service must be a service of sessionstore.sync")
        if self._for_asyncio is None:
            raise InvalidArgument("beside sync_service, service must be one for asyncio")
        self._for_threads = sync_service

    _has_appended = False

    def __repr__(self) -> str:
        return repr(self._for_asyncio or self._for_threads)

    async def arun(
        self, flow: Callable[Concatenate[Ops, P], Flow[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What a flow returns. Without a service for asyncio it runs in a thread."""
        service = self._for_asyncio
        if service is None:
            return await asyncio.to_thread(lambda: self.run(flow, *args, **kwargs))
        self._loop = asyncio.get_running_loop()
        return await drive_async(flow(service._ops, *args, **kwargs), service._executor)

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
        return drive(flow(service._ops, *args, **kwargs), service._executor)

    async def aappend(
        self, key: SessionKey, events: Sequence[Event], *, have_ids: bool = False
    ) -> Sequence[Event]:
        """Append events to a session, which is created if it does not exist, and return them.

        A repeat stores nothing twice. It is recognized if an append failed with an unknown outcome,
        was of the same events but for their ids and timestamps, and is the newest append of the
        service to the session. It is also recognized if it is the first append of this object, the
        framework gave an id to each of its items, and they are the newest ones of the session.

        Args:
            key: the session.
            events: JsonEvents; up to 500 go in one atomic step.
            have_ids: the framework gave an id to each of the items.
        """
        with self._recognized(key, events) as recognized:
            is_first, self._has_appended = not self._has_appended, True
            return await self.arun(append_once, key, recognized, have_ids and is_first)

    def append(self, key: SessionKey, events: Sequence[Event], *, have_ids: bool = False) -> None:
        """Append events. See `aappend`.

        Raises:
            NotImplementedError: there is only a service for asyncio.
        """
        with self._recognized(key, events) as recognized:
            is_first, self._has_appended = not self._has_appended, True
            self.run(append_once, key, recognized, have_ids and is_first)

    @contextmanager
    def _recognized(self, key: SessionKey, events: Sequence[Event]) -> Iterator[Sequence[Event]]:
        """The events to append: those of the earlier call, if this one is its repeat."""
        service = self._for_asyncio or self._for_threads
        assert service is not None
        unknown = _unknown.setdefault(service, {})
        earlier = unknown.get(key)
        if earlier is not None and earlier.digest == _digest(events):
            events = [
                msgspec.structs.replace(event, id=event_id, timestamp=timestamp)
                for event, (event_id, timestamp) in zip(events, earlier.identities, strict=True)
            ]
        try:
            yield events
        except InvalidArgument:
            raise
        except BaseException:  # a cancelled call may be stored, too
            identities = [(event.id, event.timestamp) for event in events]
            unknown[key] = _Unknown(_digest(events), identities)
            if len(unknown) > _UNKNOWN_LIMIT:
                del unknown[next(iter(unknown))]
            raise
        if unknown.get(key) is earlier:
            unknown.pop(key, None)


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


def _digest(events: Iterable[Event]) -> bytes:
    """The same for events that differ only in ids and timestamps."""
    found = blake2b()
    for event in events:
        content = event.content
        data = bytes(content) if isinstance(content, msgspec.Raw) else repr(content).encode()
        for part in (event.author.encode(errors="replace"), repr(event.metadata).encode(), data):
            found.update(b"%d:%b" % (len(part), part))
    return found.digest()


def append_once(
    ops: Ops, key: SessionKey, events: Sequence[Event], may_be_stored: bool
) -> Flow[Sequence[Event]]:
    """Append events, and return them as they are stored.

    If they may be stored already, look first whether they are the newest ones.
    """
    if may_be_stored and 0 < len(events) <= EVENTS_PER_CALL_LIMIT:
        newest = yield from read_events(ops, key, len(events))
        if len(newest) == len(events) and all(map(_is_same, newest, events)):
            return newest
    yield from append(ops, key, events)
    return events


def _is_same(stored: Event, event: Event) -> bool:
    """Whether an event has the same content as one that is to be stored."""
    if not isinstance(event.content, msgspec.Raw) or stored.author != event.author:
        return False
    with suppress(msgspec.DecodeError):
        return bool(msgspec.json.decode(event.content) == stored.content)
    return False


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread, if one does."""
    with suppress(RuntimeError):
        return asyncio.get_running_loop()
    return None


def append(ops: Ops, key: SessionKey, events: Sequence[Event]) -> Flow[None]:
    """Append events to a session, which is created if it does not exist.

    Up to 500 events go in one atomic step; more are appended in order, 500 at a time.

    Args:
        ops: builds the Calls.
        key: the session.
        events: what to append.
    """
    for first in range(0, len(events), EVENTS_PER_CALL_LIMIT):
        batch = events[first : first + EVENTS_PER_CALL_LIMIT]
        for attempts_left in range(_ATTEMPTS, -1, -1):
            try:
                if len(batch) == 1:
                    yield from flows.append_event(ops, key, batch[0], None)
                else:
                    yield from flows.append_events(ops, key, batch, None)
                break
            except SessionNotFound:
                if not attempts_left:
                    raise
            yield from create_if_missing(ops, key)


def create_if_missing(ops: Ops, key: SessionKey, state: dict[str, Any] | None = None) -> Flow[None]:
    """Create a session unless it exists."""
    yield from flows.get_or_create_session(
        ops, key.app_name, key.user_id, key.session_id, state, 0, None
    )


def list_all(ops: Ops, app_name: str, user_id: str, event_num: int = 0) -> Flow[list[Session]]:
    """All sessions of a user, each with its newest events."""
    found: dict[str, Session] = {}
    cursor = None
    while True:
        page: SessionPage = yield from flows.list_sessions(
            ops, app_name, user_id, SESSIONS_PER_PAGE_LIMIT, 0, event_num, cursor
        )
        found.update((session.id, session) for session in page)  # some may be repeated
        cursor = page.cursor
        if cursor is None:
            return list(found.values())


def read_events(ops: Ops, key: SessionKey, event_num: int | None = None) -> Flow[list[Event]]:
    """The newest events of a session, None = all, oldest first; empty without a session."""
    session = yield from flows.get_session(ops, key, event_num, None)
    return session.events if session else []


class Newest(NamedTuple):
    """The newest events of a session.

    Attributes:
        session: with these events, and without the state of the application.
        is_partial: there are older events, which were not read.
        is_full: the log holds as many events as it may, so older ones may have been trimmed.
        has_removed: events were removed from it, so it may have been full before.
    """

    session: Session
    is_partial: bool
    is_full: bool
    has_removed: bool


def read_newest(ops: Ops, key: SessionKey, event_num: int | None = None) -> Flow[Newest | None]:
    """The newest events of a session, None = all; None without a session."""
    call = ops.get_session(key, event_num, None)

    def decode(replies: list[Any]) -> Newest | None:
        session = call.decode(replies)
        if session is None:
            return None
        header = dict(hash_items(replies[0 if call.script is None else 1]))
        return Newest(
            session,
            len(session.events) < session.event_count,
            may_be_trimmed(session),
            b"removed_us" in header,
        )

    read = msgspec.structs.replace(call, decode=decode)
    return (yield from read_whole(read))  # type: ignore[no-any-return]  # any Call


@dataclass(frozen=True)
class Turns(Generic[T]):
    """The rules of a framework: where a model may begin to read its items.

    Args:
        starts_turn: whether a turn starts at an item.
        calls: the ids of the calls that an item makes, and of those whose results it holds.
        is_inside: whether an item needs others before it, so that something is missing if it is
            the first one.
        only_turn: what a model can read of the only turn, if its start was trimmed.
    """

    starts_turn: Callable[[T], bool]
    calls: Callable[[T], tuple[Iterable[str], Iterable[str]]]
    is_inside: Callable[[T], bool]
    only_turn: Callable[[list[T]], list[T]] = list

    def cut(self, items: list[T], newest: Newest, limit: int | None = None) -> list[T]:
        """The items to show of those that were read. See `whole_turns`."""
        is_cut = newest.is_partial or newest.is_full
        if is_cut and not newest.is_partial and not any(map(self.starts_turn, items)):
            items = self.only_turn(items)
        is_cut = is_cut or newest.has_removed or (bool(items) and self.is_inside(items[0]))
        return whole_turns(items, self.starts_turn, self.calls, is_cut=is_cut, limit=limit)


def read_turns(
    ops: Ops, key: SessionKey, limit: int | None, read: Callable[[Event], T], turns: Turns[T]
) -> Flow[list[T]]:
    """The newest items of a session, oldest first, from a place on at which a model may begin.

    Args:
        ops: builds the Calls.
        key: the session.
        limit: most items to return; None = all. The newest turn is returned even if it has more.
        read: the item of an event.
        turns: the rules. A log that was never trimmed is returned from its beginning.

    One round trip, O(items read). More if the newest turn has more items than the limit.
    """
    event_num = limit
    while True:
        newest = yield from read_newest(ops, key, event_num)
        if newest is None:
            return []
        items = [read(event) for event in newest.session.events]
        found = turns.cut(items, newest, limit)
        # The start of the newest turn, or the call of a result, may not have been read yet.
        if not newest.is_partial or (
            found and turns.starts_turn(found[0]) and found[0] is items[len(items) - len(found)]
        ):
            return found
        event_num = max(_PAGE, 2 * len(items))


def read_log(ops: Ops, key: SessionKey, page_limit: int) -> Flow[list[Event]]:
    """All events of a session, oldest first, read in pages; empty without a session."""
    events: list[Event] = []
    after: int | None = None
    while True:
        try:
            page: EventPage = yield from flows.get_events(ops, key, after, None, page_limit)
        except SessionNotFound:
            return events
        events += page.events
        if len(page.events) < page_limit:
            return events
        after = page.last


def pop_event(ops: Ops, key: SessionKey) -> Flow[Event | None]:
    """Remove the newest event and return it; None without an event or a session."""
    with suppress(SessionNotFound):
        return (yield from flows.pop_event(ops, key, None))
    return None


def clear_events(ops: Ops, key: SessionKey) -> Flow[None]:
    """Remove all events; a missing session is fine."""
    with suppress(SessionNotFound):
        yield from flows.clear_events(ops, key, None)


def whole_turns(
    items: Sequence[T],
    starts_turn: Callable[[T], bool],
    calls: Callable[[T], tuple[Iterable[str], Iterable[str]]],
    *,
    is_cut: bool,
    limit: int | None = None,
) -> list[T]:
    """The items from the first place on at which a model may begin to read them.

    That is the first start of a turn that is not between a call and its result. Without one it is
    the first start of a turn, and without that the first item. Results whose call is not among the
    returned items are left out.

    Args:
        items: the newest items of a conversation, oldest first.
        starts_turn: whether a turn starts at an item.
        calls: the ids of the calls that an item makes, and of those whose results it holds.
        is_cut: items before the first one were trimmed or not read. If not, the first item is such
            a place too, and nothing is left out after it.
        limit: most items to return; None = all. The newest turn is returned even if it has more.

    O(items).
    """
    if not is_cut and (limit is None or len(items) <= limit):
        return list(items)
    ids = [(set(opened), set(closed)) for opened, closed in map(calls, items)]
    called_at: dict[str, int] = {}  # by call
    splits = [0] * (len(items) + 1)  # at a place: pairs that begin just before it, less those ended
    for place, (opened, closed) in enumerate(ids):
        for call in closed & called_at.keys():
            splits[called_at[call] + 1] += 1
            splits[place + 1] -= 1
        called_at.update(dict.fromkeys(opened, place))
    num_split = list(accumulate(splits))
    starts = [place for place, item in enumerate(items) if starts_turn(item)]
    whole = [place for place in starts if not num_split[place]]
    if not is_cut and whole[:1] != [0]:
        whole.insert(0, 0)
    earliest = 0 if limit is None else len(items) - limit
    first = next((place for place in whole if place >= earliest), (whole or starts[:1] or [0])[-1])
    if first == 0 and not is_cut:
        return list(items)
    known: set[str] = set()
    found = []
    for item, (opened, closed) in zip(items[first:], ids[first:], strict=True):
        if closed <= known:
            found.append(item)
            known |= opened
    return found
