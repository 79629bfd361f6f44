"""What several adapters do with a service, as flows, and which service runs them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

import sessionstore.sync

from .. import flows
from ..app_tier import write_apart
from ..calls import Flow
from ..drive import drive, drive_async
from ..errors import InvalidArgument, SessionNotFound
from ..model import Event, EventPage, Session, SessionKey, VerifiedEvent
from ..ops import EVENTS_PER_CALL_LIMIT, Ops
from ..replies import WriteResult
from ..service import SessionService
from ..tiers import NO_CHANGE, check_call_size, encode_change
from ..times import to_us

P = ParamSpec("P")
T = TypeVar("T")

AnyService = SessionService | sessionstore.sync.SessionService
"""A service for asyncio or one of `sessionstore.sync`."""

_ATTEMPTS = 3  # a session may be deleted again right after its creation, but not for ever


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

    def __repr__(self) -> str:
        return repr(self._for_asyncio or self._for_threads)

    async def arun(
        self, flow: Callable[Concatenate[Ops, P], Flow[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What a flow returns. Without a service for asyncio it runs in a thread."""
        service = self._for_asyncio
        if service is None:
            return await asyncio.to_thread(lambda: self.run(flow, *args, **kwargs))
        return await drive_async(flow(service._ops, *args, **kwargs), service._executor)

    def run(
        self, flow: Callable[Concatenate[Ops, P], Flow[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What a flow returns.

        Raises:
            NotImplementedError: there is only a service for asyncio.
        """
        service = self._for_threads
        if service is None:
            raise NotImplementedError(
                f"this {self._adapter} has a service for asyncio: await its asynchronous methods, "
                "or give it one of sessionstore.sync"
            )
        return drive(flow(service._ops, *args, **kwargs), service._executor)


def append(
    ops: Ops, key: SessionKey, events: Sequence[Event], parent: SessionKey | None = None
) -> Flow[None]:
    """Append events to a session, which is created if it does not exist.

    Up to 500 events go in one atomic step; more are appended in order, 500 at a time.

    Args:
        ops: builds the Calls.
        key: the session.
        events: what to append.
        parent: a session to create too, if this one is created.
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
            # Plain Events are verified again: their values may have changed meanwhile.
            batch = [
                Event(**msgspec.structs.asdict(event)) if type(event) is VerifiedEvent else event
                for event in batch
            ]
            if parent is not None:
                yield from create_if_missing(ops, parent)
            yield from create_if_missing(ops, key)


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
    change = encode_change(codec, state)
    encoded = [codec.encode_event(each, f"events[{n}]") for n, each in enumerate(events)]
    check_call_size("events", change.size + sum(len(data) for data, _ in encoded))
    changes = [*[NO_CHANGE] * (len(events) - 1), change]
    rows = [
        (data, event.timestamp, each) for (data, event), each in zip(encoded, changes, strict=True)
    ]
    created_us = to_us(session.created_at)
    call = ops.append_events(session.key, rows, session.version, None, created_us)
    written: WriteResult
    if ops.app_in_own_slot:
        written, _ = yield from write_apart(ops, call, session.key, changes, (), session.version)
    else:
        written = yield call
    session.version = written.version
    return written


def create_if_missing(ops: Ops, key: SessionKey, state: dict[str, Any] | None = None) -> Flow[None]:
    """Create a session unless it exists."""
    yield from flows.get_or_create_session(
        ops, key.app_name, key.user_id, key.session_id, state, 0, None
    )


def read_events(ops: Ops, key: SessionKey, event_num: int | None = None) -> Flow[list[Event]]:
    """The newest events of a session, None = all, oldest first; empty without a session."""
    session = yield from flows.get_session(ops, key, event_num, None)
    return session.events if session else []


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
) -> list[T]:
    """The items from the first place on at which a model may begin to read them.

    That is the first start of a turn that is not between a call and its result. Without one it is
    the first start of a turn, and without that the first item. Results whose call is not among the
    returned items are left out.

    Args:
        items: the newest items of a conversation, oldest first.
        starts_turn: whether a turn starts at an item.
        calls: the ids of the calls that an item makes, and of those whose results it holds.
        is_cut: items before the first one were trimmed or not read. If not, all are returned.

    O(items).
    """
    if not is_cut:
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
    first = next(iter(whole or starts), 0)
    known: set[str] = set()
    found = []
    for item, (opened, closed) in zip(items[first:], ids[first:], strict=True):
        if closed <= known:
            found.append(item)
            known |= opened
    return found
