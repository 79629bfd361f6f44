"""What the Runner for asyncio does differently from the Runner for threads.

sessionstore/sync/concurrency.py has the same names for threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable
from contextlib import suppress
from datetime import timedelta
from inspect import isawaitable
from typing import Self, TypeVar

from .errors import BackendError, InvalidArgument, LimitExceeded, TurnTaken
from .model import Event, Session, SessionKey, Turn
from .run_context import BATCH_S, TurnQueues, log_lost_fragments, poll_delays
from .service import SessionService

T = TypeVar("T")

AgentEvents = AsyncIterable[Event] | Awaitable[AsyncIterable[Event]]
"""What an agent's `run` returns: an async generator, or a coroutine that returns an iterable."""

INTERRUPTIONS = (asyncio.CancelledError, GeneratorExit)
"""Exceptions that stop a run although it has not failed."""


async def start_agent(events: AgentEvents) -> AsyncIterator[Event]:
    """An iterator over what an agent's `run` returned.

    Raises:
        InvalidArgument: the agent returned something else.
    """
    if isawaitable(events):
        events = await events
    if not isinstance(events, AsyncIterable):
        kind = type(events).__name__
        raise InvalidArgument(f"the agent must yield Events: run(context) returned {kind}")
    return aiter(events)


def check_service(service: object) -> SessionService:
    """The service that a Runner was given.

    Raises:
        InvalidArgument: it is not a service for asyncio.
    """
    if isinstance(service, SessionService):
        return service
    kind = type(service)
    message = f"session_service must be a SessionService, not {kind.__module__}.{kind.__qualname__}"
    if any(base.__module__ == "sessionstore.sync.service" for base in kind.__mro__):
        message += (
            " (this one is for threads: use sessionstore.sync.Runner, or a service of sessionstore)"
        )
    raise InvalidArgument(message)


_queues = TurnQueues(asyncio.Lock)


class HeldTurn:
    """A session's turn: waits for it, renews it in a task, and releases it at the end.

    One run of the event loop asks the store at a time. The others wait in a queue.

    Args:
        service: the service.
        key: the session.
        lease: time after which the turn is free again unless it is renewed.
    """

    turn: Turn

    def __init__(self, service: SessionService, key: SessionKey, lease: timedelta) -> None:
        self._service = service
        self._key = key
        self._lease = lease

    async def __aenter__(self) -> Self:
        self._name = (asyncio.get_running_loop(), self._key)
        self._queue = _queues.join(self._service, self._name)
        self._is_in_queue, self._is_first = True, False
        joined_at = time.monotonic()
        try:
            self._is_first = await self._queue.lock.acquire()
            self._queue.raise_failure(joined_at)
            await asyncio.sleep(self._queue.pause_s())
            await self._wait()
        except BaseException as error:
            if isinstance(error, BackendError):
                self._queue.fail(error)
            self._leave_queue()
            raise
        self._renewing = asyncio.create_task(self._renew())
        return self

    async def __aexit__(self, *_: object) -> None:
        await _finish(asyncio.create_task(self._stop()))

    async def _wait(self) -> None:
        """Ask for the turn until it is free: a run of another process may have it."""
        for delay_s in poll_delays():
            with suppress(TurnTaken):
                self.turn = await self._acquire()
                return
            await asyncio.sleep(delay_s)

    def _leave_queue(self) -> None:
        """Let the next run ask for the turn. Safe to repeat."""
        if self._is_in_queue:
            self._is_in_queue = False
            _queues.leave(self._service, self._name)
            if self._is_first:
                self._queue.lock.release()

    async def _acquire(self) -> Turn:
        """The turn, if it is free. If the caller is cancelled, the turn is released."""
        acquiring = asyncio.create_task(self._service.acquire_turn(self._key, lease=self._lease))
        try:
            return await _finish(acquiring)
        except asyncio.CancelledError:
            if not acquiring.cancelled() and acquiring.exception() is None:
                await _finish(asyncio.create_task(self._release(acquiring.result())))
            raise

    async def _stop(self) -> None:
        self._renewing.cancel()
        await asyncio.wait([self._renewing])
        try:
            await self._release(self.turn)
        finally:
            self._leave_queue()

    async def _release(self, turn: Turn) -> None:
        with suppress(BackendError):  # otherwise the turn is free when its lease ends
            await self._service.release_turn(turn)

    async def _renew(self) -> None:
        """Renew until cancelled, or until the turn is lost; the next append then raises."""
        while True:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            try:
                self.turn = await self._service.renew_turn(self.turn, lease=self._lease)
            except BackendError:
                continue
            except Exception:  # the turn is lost, or the session was deleted
                self._leave_queue()
                return


class FragmentWriter:
    """Stores the fragments of a run in a task, in batches, so that its caller does not wait.

    Without `stream_ttl` it does nothing. A batch that the store does not take is left out, with a
    warning in the log. Other errors are raised by the next call.

    Args:
        service: the service.
        session: the session.
        held: the turn of the run.
    """

    def __init__(self, service: SessionService, session: Session, held: HeldTurn | None) -> None:
        self._service = service
        self._session = session
        self._held = held
        self._is_on = service._ops.options.stream_ttl_ms > 0
        self._pending: list[Event] = []
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._failure: Exception | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def add(self, fragment: Event) -> None:
        """Store a fragment soon."""
        self._raise_failure()
        if self._is_on:
            self._pending.append(fragment)
            if self._task is None:
                self._task = asyncio.create_task(self._store_batches())

    async def flush(self) -> None:
        """Return when all fragments are stored."""
        if self._task is not None:
            self._hurry.set()
            await asyncio.wait([self._task])
        self._raise_failure()

    async def stop(self) -> None:
        """Leave out the fragments that are not stored yet. Safe to repeat."""
        self._pending = []
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    async def _store_batches(self) -> None:
        try:
            while self._pending:
                with suppress(TimeoutError):
                    async with asyncio.timeout(BATCH_S):
                        await self._hurry.wait()
                batch, self._pending = self._pending, []
                await self._store(batch)
        except Exception as error:
            self._pending, self._failure = [], error
        finally:
            self._task = None
            self._hurry.clear()

    async def _store(self, batch: list[Event]) -> None:
        turn = self._held.turn if self._held else None
        try:
            await self._service.append_events(self._session, batch, turn=turn)
        except BackendError as error:
            log_lost_fragments(error)
        except LimitExceeded:
            half = len(batch) // 2
            if not half:
                raise
            await self._store(batch[:half])
            await self._store(batch[half:])


async def _finish(task: asyncio.Task[T]) -> T:
    """The task's result. If the caller is cancelled, the task still ends before this raises."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):  # cancelled again
                await asyncio.wait([task])
        raise
