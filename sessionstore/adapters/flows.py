"""What the adapters do with a service, written once for asyncio and for threads.

A flow is a generator that yields steps and is sent their results. A step takes the service and
calls one of its methods; `Services` carries flows out on whatever service there is.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import msgspec

import sessionstore.sync

from ..errors import InvalidArgument, SessionNotFound
from ..model import Event, EventPage, Session, SessionKey
from ..ops import EVENTS_PER_CALL_LIMIT
from ..service import SessionService

T = TypeVar("T")

Step = Callable[[Any], Any]
"""Calls one method of the service that it is given."""

Flow = Generator[Step, Any, T]

AnyService = SessionService | sessionstore.sync.SessionService
"""A service for asyncio or one of `sessionstore.sync`."""

_ATTEMPTS = 3  # a session that vanishes again as soon as it is created is not created for ever


class Services:
    """The services that an adapter was given.

    Args:
        adapter: the adapter's name, for error messages.
        service: one for asyncio or one of `sessionstore.sync`.
        sync_service: one of `sessionstore.sync` for the methods without await, beside one for
            asyncio.

    Raises:
        InvalidArgument: these are no services, or both are of one kind.
    """

    def __init__(
        self,
        adapter: str,
        service: AnyService,
        sync_service: sessionstore.sync.SessionService | None = None,
    ) -> None:
        self._adapter = adapter
        self._for_asyncio: Any = None
        self._for_threads: Any = sync_service
        if sync_service is not None and _is_async(sync_service, "sync_service"):
            raise InvalidArgument("sync_service must be a service of sessionstore.sync")
        if _is_async(service, "service"):
            self._for_asyncio = service
        elif sync_service is None:
            self._for_threads = service
        else:
            raise InvalidArgument("beside sync_service, service must be one for asyncio")

    async def arun(self, flow: Flow[T]) -> T:
        """What a flow returns. Without a service for asyncio it runs in a thread."""
        service = self._for_asyncio
        if service is None:
            return await asyncio.to_thread(self.run, flow)
        try:
            step = next(flow)
            while True:
                try:
                    result = await step(service)
                except Exception as error:  # handed to the flow, which may know it
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # what the flow returned

    def run(self, flow: Flow[T]) -> T:
        """What a flow returns.

        Raises:
            NotImplementedError: there is only a service for asyncio.
        """
        service = self._for_threads
        if service is None:
            flow.close()
            raise NotImplementedError(
                f"this {self._adapter} has a service for asyncio: await its asynchronous methods, "
                "or give it one of sessionstore.sync"
            )
        try:
            step = next(flow)
            while True:
                try:
                    result = step(service)
                except Exception as error:  # handed to the flow, which may know it
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # what the flow returned

    async def aappend(
        self, key: SessionKey, events: Sequence[Event], parent: SessionKey | None = None
    ) -> None:
        """Carry out `append`; one event to a session that is there with nothing in between."""
        service = self._for_asyncio
        if service is not None and len(events) == 1:
            try:
                await service.append_event(key, events[0])
            except SessionNotFound:
                events = _checked(events)
            else:
                return
        await self.arun(append(key, events, parent))

    def append(
        self, key: SessionKey, events: Sequence[Event], parent: SessionKey | None = None
    ) -> None:
        """Carry out `append`.

        Raises:
            NotImplementedError: there is only a service for asyncio.
        """
        self.run(append(key, events, parent))


def append(
    key: SessionKey, events: Sequence[Event], parent: SessionKey | None = None
) -> Flow[None]:
    """Append events to a session, which is created if there is none.

    Up to 500 go in one atomic step; more are appended in order, 500 at a time.

    Args:
        key: the session.
        events: what to append.
        parent: a session that is created too, if this one is.
    """
    for first in range(0, len(events), EVENTS_PER_CALL_LIMIT):
        yield from _append_batch(key, events[first : first + EVENTS_PER_CALL_LIMIT], parent)


def _append_batch(
    key: SessionKey, events: Sequence[Event], parent: SessionKey | None
) -> Flow[None]:
    def step(service: Any) -> Any:
        if len(events) == 1:
            return service.append_event(key, events[0])
        return service.append_events(key, events)

    for _ in range(_ATTEMPTS):
        try:
            yield step
        except SessionNotFound:
            events = _checked(events)
            if parent is not None:
                yield _creation(parent)
            yield _creation(key)
        else:
            return
    yield step


def _checked(events: Sequence[Event]) -> Sequence[Event]:
    """The same to be encoded again: what they hold may have been changed meanwhile."""
    return [Event(**msgspec.structs.asdict(event)) for event in events]


def _creation(key: SessionKey) -> Step:
    return lambda service: service.get_or_create_session(
        app_name=key.app_name, user_id=key.user_id, session_id=key.session_id, event_num=0
    )


def read_session(key: SessionKey, event_num: int | None) -> Flow[Session | None]:
    """A session with its newest events, None = all; None if there is none."""
    session: Session | None = yield lambda service: service.get_session(
        app_name=key.app_name, user_id=key.user_id, session_id=key.session_id, event_num=event_num
    )
    return session


def read_events(key: SessionKey, event_num: int | None = None) -> Flow[list[Event]]:
    """The newest events of a session, None = all, oldest first; none if there is no session."""
    session = yield from read_session(key, event_num)
    return session.events if session else []


def read_log(key: SessionKey, page_limit: int) -> Flow[list[Event]]:
    """All events of a session, oldest first, in pages; none if there is no session."""
    events: list[Event] = []
    after: int | None = None

    def step(service: Any) -> Any:
        return service.get_events(key, after=after, limit=page_limit)

    while True:
        try:
            page: EventPage = yield step
        except SessionNotFound:
            return events
        events += page.events
        if len(page.events) < page_limit:
            return events
        after = page.last


def pop_event(key: SessionKey) -> Flow[Event | None]:
    """Remove the newest event; None if there is none, or no session."""
    try:
        event: Event | None = yield lambda service: service.pop_event(key)
    except SessionNotFound:
        return None
    return event


def clear_events(key: SessionKey) -> Flow[None]:
    """Remove all events; no session is fine."""
    try:
        yield lambda service: service.clear_events(key)
    except SessionNotFound:
        return


def _is_async(service: object, name: str) -> bool:
    method = getattr(service, "append_event", None)
    if not callable(method):
        kind = type(service).__name__
        raise InvalidArgument(f"{name} must be a service of sessionstore, not {kind}")
    return inspect.iscoroutinefunction(method)
