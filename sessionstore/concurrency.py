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

from .errors import BackendError, InvalidArgument, TurnTaken
from .model import Event, SessionKey, Turn
from .run_context import TurnQueues, poll_delays
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


async def _finish(task: asyncio.Task[T]) -> T:
    """The task's result. If the caller is cancelled, the task still ends before this raises."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):  # cancelled again
                await asyncio.wait([task])
        raise
