"""What several adapters do with a service, as flows, and which service runs them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

import sessionstore.sync

from .. import flows
from ..calls import Flow
from ..drive import drive, drive_async
from ..errors import InvalidArgument, SessionNotFound
from ..model import Event, EventPage, SessionKey
from ..ops import EVENTS_PER_CALL_LIMIT, Ops
from ..service import SessionService

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


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread, if one does."""
    with suppress(RuntimeError):
        return asyncio.get_running_loop()
    return None


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
            batch = [Event(**msgspec.structs.asdict(event)) for event in batch]
            if parent is not None:
                yield from create_if_missing(ops, parent)
            yield from create_if_missing(ops, key)


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
