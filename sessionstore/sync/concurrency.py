"""What the Runner for threads does differently from the Runner for asyncio.

sessionstore/concurrency.py has the same names for asyncio.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from inspect import isawaitable
from typing import Any, Self, TypeVar

import sessionstore.service

from ..calls import Flow
from ..errors import BackendError, InvalidArgument, LimitExceeded, TurnTaken
from ..flows import acquire_turn, release_turn, renew_turn
from ..model import Event, Session, SessionKey, Turn
from ..ops import LeaseName
from ..run_context import BATCH_S, log_failed_compaction, log_lost_fragments
from ..turn_queues import TurnQueues, poll_delays
from .service import SessionService

T = TypeVar("T")

AgentEvents = Iterable[Event]
"""What an agent's `run` returns: a generator or another iterable."""

INTERRUPTIONS = (KeyboardInterrupt, GeneratorExit)
"""Exceptions that stop a run although it has not failed."""


def start_agent(events: AgentEvents) -> Iterator[Event]:
    """An iterator over what an agent's `run` returned.

    Raises:
        InvalidArgument: the agent returned something else.
    """
    if not isinstance(events, Iterable):
        kind = type(events).__name__
        raise InvalidArgument(
            "the agent must be a generator function (sessionstore.Runner runs async ones): "
            f"run(context) returned {kind}"
        )
    return iter(events)


def check_service(service: object) -> SessionService:
    """The service that a Runner was given.

    Raises:
        InvalidArgument: it is not a service for threads.
    """
    if isinstance(service, SessionService):
        return service
    kind = type(service)
    message = f"session_service must be a SessionService, not {kind.__module__}.{kind.__qualname__}"
    if isinstance(service, sessionstore.service.SessionService):
        message += (
            " (this one is for asyncio: use sessionstore.Runner, or a service of sessionstore.sync)"
        )
    raise InvalidArgument(message)


def summary_of(result: Any) -> Any:
    """What a Compactor's `summarize` returned.

    Raises:
        InvalidArgument: it is an async function.
    """
    if isawaitable(result):
        if isinstance(result, Coroutine):
            result.close()
        raise InvalidArgument(
            f"summarize must be a plain function: it returned {type(result).__name__}"
        )
    return result


_queues = TurnQueues(threading.Lock)


class HeldLease:
    """A lease of a session: acquired once, renewed in a thread, and released at the end.

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
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self.turn = self._acquire()
        # A daemon: a run that was left open must not keep the process alive.
        self._renewing = threading.Thread(
            target=self._renew, name=f"sessionstore-renew-{self.name}", daemon=True
        )
        self._renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        # The garbage collector may close a run in any thread.
        if self._renewing is not threading.current_thread():
            self._renewing.join()
        with suppress(BackendError):  # otherwise the lease is free when it ends
            self._run(release_turn, self.turn)

    def _acquire(self) -> Turn:
        return self._run(acquire_turn, self._key, self._lease)

    def _run(self, flow: Callable[..., Flow[T]], *args: object) -> T:
        service = self._service
        return service._run(flow(service._ops, *args, self.name))

    def _renew(self) -> None:
        """Renew until the end, or until the lease is lost."""
        while not self._ended.wait(self._lease.total_seconds() / 3):
            try:
                self.turn = self._run(renew_turn, self.turn, self._lease)
            except BackendError:
                continue
            except Exception:  # the lease is lost, or the session was deleted
                return


class HeldTurn(HeldLease):
    """A session's turn: waits for it, renews it in a thread, and releases it at the end.

    One run of this process asks the store at a time. The others wait in a queue. If the turn is
    lost, the next append raises.
    """

    def _acquire(self) -> Turn:
        self._leaving = threading.Lock()
        self._queue = _queues.join(self._service, self._key)
        self._is_in_queue, self._is_first = True, False
        joined_at = time.monotonic()
        try:
            self._is_first = self._queue.lock.acquire()
            self._queue.raise_failure(joined_at)
            time.sleep(self._queue.pause_s())
            delays_s = poll_delays()
            while True:  # a run of another process may have the turn
                with suppress(TurnTaken):
                    return super()._acquire()
                time.sleep(next(delays_s))
        except BaseException as error:
            if isinstance(error, BackendError):
                self._queue.fail(error)
            self._leave_queue()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            super().__exit__()
        finally:
            self._leave_queue()

    def _renew(self) -> None:
        super()._renew()
        if not self._ended.is_set():  # the turn is lost
            self._leave_queue()

    def _leave_queue(self) -> None:
        """Let the next run ask for the turn. Safe to repeat, in any thread."""
        with self._leaving:
            is_in_queue, self._is_in_queue = self._is_in_queue, False
        if is_in_queue:
            _queues.leave(self._service, self._key)
            if self._is_first:
                self._queue.lock.release()


class FragmentWriter:
    """Stores the fragments of a run in a thread, in batches, so that its caller does not wait.

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
        self._timer: threading.Timer | None = None
        self._is_waiting = False  # the timer will store what is pending
        self._failure: Exception | None = None
        # The garbage collector may close a run in any thread, also in one that has these locks.
        self._changing = threading.RLock()
        self._storing = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def add(self, fragment: Event) -> None:
        """Store a fragment soon."""
        self._raise_failure()
        if not self._is_on:
            return
        with self._changing:
            self._pending.append(fragment)
            if not self._is_waiting:
                self._is_waiting = True
                self._timer = threading.Timer(BATCH_S, self._store_pending)
                self._timer.name = "sessionstore-store-fragments"
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Return when all fragments are stored."""
        self._store_pending()
        self._raise_failure()

    def stop(self) -> None:
        """Leave out the fragments that are not stored yet. Safe to repeat."""
        self._take_pending()
        if self._timer is not None and self._timer is not threading.current_thread():
            self._timer.join()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _take_pending(self) -> list[Event]:
        with self._changing:
            batch, self._pending = self._pending, []
            self._is_waiting = False
            if self._timer is not None:
                self._timer.cancel()
            return batch

    def _store_pending(self) -> None:
        with self._storing:
            batch = self._take_pending()
            try:
                if batch:
                    self._store(batch)
            except Exception as error:
                self._failure = error

    def _store(self, batch: list[Event]) -> None:
        turn = self._held.turn if self._held else None
        try:
            self._service.append_events(self._session, batch, turn=turn)
        except BackendError as error:
            log_lost_fragments(error)
        except LimitExceeded:
            half = len(batch) // 2
            if not half:
                raise
            self._store(batch[:half])
            self._store(batch[half:])


class Compactions:
    """The compactions that runs have started, each in a thread: one at a time for each session.

    A thread, because the run that has ended must not wait for a model. A daemon, because neither
    must the end of the process: the lease of the compaction ends by itself.
    """

    def __init__(self) -> None:
        self._threads: dict[SessionKey, threading.Thread] = {}
        self._again: set[SessionKey] = set()
        self._guard = threading.Lock()
        self._is_closed = False

    def start(self, compact: Callable[[SessionKey], object], key: SessionKey) -> None:
        """Compact a session in the background. If that is going on already, do it again then."""
        with self._guard:
            if self._is_closed:
                return
            if key in self._threads:
                self._again.add(key)
                return
            thread = threading.Thread(
                target=self._compact, args=(compact, key), name="sessionstore-compact", daemon=True
            )
            thread.start()
            self._threads[key] = thread

    def _compact(self, compact: Callable[[SessionKey], object], key: SessionKey) -> None:
        while True:
            try:
                compact(key)
            except Exception as error:
                log_failed_compaction(error)
            with self._guard:
                if key not in self._again:
                    del self._threads[key]
                    return
                self._again.discard(key)

    def close(self, grace_s: float) -> None:
        """Start no more compactions. Wait for those that run, up to a time."""
        with self._guard:
            self._is_closed = True
            threads = list(self._threads.values())
        end = time.monotonic() + grace_s
        for thread in threads:
            thread.join(max(end - time.monotonic(), 0))
