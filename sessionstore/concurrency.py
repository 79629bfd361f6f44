"""What the Runner for asyncio does differently from the Runner for threads.

sessionstore/sync/concurrency.py has the same names for threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from inspect import isawaitable
from typing import Any, Self, TypeVar

from .calls import Flow
from .errors import BackendError, InvalidArgument, LimitExceeded, TurnTaken
from .flows import acquire_turn, release_turn, renew_turn
from .model import Event, Session, SessionKey, Turn
from .ops import LeaseName
from .run_context import BATCH_S, log_failed_compaction, log_lost_fragments
from .service import SessionService
from .turn_queues import TurnQueues, poll_delays
from .watchers import Releases

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
        raise InvalidArgument(
            "the agent must be an async generator function "
            f"(sessionstore.sync.Runner runs plain ones): run(context) returned {kind}"
        )
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


async def summary_of(result: Awaitable[Any]) -> Any:
    """What a Compactor's `summarize` returned.

    Raises:
        InvalidArgument: it is not an async function.
    """
    if not isawaitable(result):
        raise InvalidArgument(
            f"summarize must be an async function: it returned {type(result).__name__}"
        )
    return await result


_queues = TurnQueues(asyncio.Lock)


class HeldLease:
    """A lease of a session: acquired once, renewed in a task, and released at the end.

    Args:
        service: the service.
        key: the session.
        lease: time after which the lease is free again unless it is renewed.
        name: which lease.

    Raises:
        TurnTaken: on entry; another holder has it.
    """

    turn: Turn

    def __init__(
        self, service: SessionService, key: SessionKey, lease: timedelta, name: LeaseName = "turn"
    ) -> None:
        self._service = service
        self._key = key
        self._lease = lease
        self.name = name

    async def __aenter__(self) -> Self:
        self.turn = await self._acquire()
        self._renewing = asyncio.create_task(self._renew())
        return self

    async def __aexit__(self, *_: object) -> None:
        await finish(asyncio.create_task(self._stop()))

    async def _run(self, flow: Callable[..., Flow[T]], *args: object) -> T:
        service = self._service
        return await service._run(flow(service._ops, *args, self.name))

    async def _acquire(self) -> Turn:
        """The lease, if it is free. If the caller is cancelled, the lease is released."""
        acquiring = asyncio.create_task(self._run(acquire_turn, self._key, self._lease))
        try:
            return await finish(acquiring)
        except asyncio.CancelledError:
            if not acquiring.cancelled() and acquiring.exception() is None:
                await finish(asyncio.create_task(self._release(acquiring.result())))
            raise

    async def _stop(self) -> None:
        self._renewing.cancel()
        await asyncio.wait([self._renewing])
        await self._release(self.turn)

    async def _release(self, turn: Turn) -> None:
        with suppress(BackendError):  # otherwise the lease is free when it ends
            await self._run(release_turn, turn)

    async def _renew(self) -> None:
        """Renew until cancelled, or until the lease is lost."""
        while True:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            try:
                self.turn = await self._run(renew_turn, self.turn, self._lease)
            except BackendError:
                continue
            except Exception:  # the lease is lost, or the session was deleted
                return


class HeldTurn(HeldLease):
    """A session's turn: waits for it, renews it in a task, and releases it at the end.

    One run of the event loop asks the store at a time. The others wait in a queue. If the turn is
    lost, the next append raises.
    """

    async def _acquire(self) -> Turn:
        self._name = (asyncio.get_running_loop(), self._key)
        self._queue = _queues.join(self._service, self._name)
        self._is_in_queue, self._is_first = True, False
        joined_at = time.monotonic()
        try:
            self._is_first = await self._queue.lock.acquire()
            self._queue.raise_failure(joined_at)
            await asyncio.sleep(self._queue.pause_s())
            return await self._wait()
        except BaseException as error:
            if isinstance(error, BackendError):
                self._queue.fail(error)
            self._leave_queue()
            raise

    async def _wait(self) -> Turn:
        """Ask for the turn until it is free: a run of another process may have it."""
        releases: Releases | None = None
        try:
            delays_s = poll_delays()
            while True:
                try:
                    return await super()._acquire()
                except TurnTaken as taken:
                    if releases is None:
                        releases = self._service._watchers.releases(self._key)
                    await releases.wait(next(delays_s), taken.expires_at)
        finally:
            if releases is not None:
                releases.close()

    async def _stop(self) -> None:
        try:
            await super()._stop()
        finally:
            self._leave_queue()

    async def _renew(self) -> None:
        await super()._renew()
        self._leave_queue()  # the turn is lost

    def _leave_queue(self) -> None:
        """Let the next run ask for the turn. Safe to repeat."""
        if self._is_in_queue:
            self._is_in_queue = False
            _queues.leave(self._service, self._name)
            if self._is_first:
                self._queue.lock.release()


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


class Compactions:
    """The compactions that runs have started, each in a task: one at a time for each session."""

    def __init__(self) -> None:
        self._tasks: dict[SessionKey, asyncio.Task[None]] = {}
        self._again: set[SessionKey] = set()
        self._is_closed = False

    def start(self, compact: Callable[[SessionKey], Awaitable[object]], key: SessionKey) -> None:
        """Compact a session in the background. If that is going on already, do it again then."""
        if self._is_closed:
            return
        if key in self._tasks:
            self._again.add(key)
            return
        task = asyncio.create_task(self._compact(compact, key))
        self._tasks[key] = task
        task.add_done_callback(lambda task: self._forget(key, task))

    async def _compact(
        self, compact: Callable[[SessionKey], Awaitable[object]], key: SessionKey
    ) -> None:
        while True:
            self._again.discard(key)
            try:
                await compact(key)
            except Exception as error:
                log_failed_compaction(error)
            if key not in self._again:
                del self._tasks[key]
                return

    def _forget(self, key: SessionKey, task: asyncio.Task[None]) -> None:
        """Drop what a task that was cancelled has left."""
        if self._tasks.get(key) is task:
            del self._tasks[key]
            self._again.discard(key)

    async def aclose(self, grace_s: float) -> None:
        """Start no more compactions. Wait for those that run, and cancel them after a time."""
        self._is_closed = True
        tasks = list(self._tasks.values())
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=grace_s)
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)


async def finish(task: asyncio.Task[T]) -> T:
    """The task's result. If the caller is cancelled, the task still ends before this raises."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):  # cancelled again
                await asyncio.wait([task])
        raise
