"""What the Runner for threads does differently from the Runner for asyncio.

sessionstore/concurrency.py has the same names for asyncio.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Self

import sessionstore.service

from ..errors import BackendError, InvalidArgument, LimitExceeded, TurnTaken
from ..model import Event, Session, SessionKey, Turn
from ..run_context import BATCH_S, TurnQueues, log_lost_fragments, poll_delays
from .service import SessionService

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
        raise InvalidArgument(f"the agent must yield Events: run(context) returned {kind}")
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


_queues = TurnQueues(threading.Lock)


class HeldTurn:
    """A session's turn: waits for it, renews it in a thread, and releases it at the end.

    One run of this process asks the store at a time. The others wait in a queue.

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
        self._ended = threading.Event()
        self._leaving = threading.Lock()

    def __enter__(self) -> Self:
        self._queue = _queues.join(self._service, self._key)
        self._is_in_queue, self._is_first = True, False
        joined_at = time.monotonic()
        try:
            self._is_first = self._queue.lock.acquire()
            self._queue.raise_failure(joined_at)
            time.sleep(self._queue.pause_s())
            self._wait()
        except BaseException as error:
            if isinstance(error, BackendError):
                self._queue.fail(error)
            self._leave_queue()
            raise
        # A daemon: a run that was left open must not keep the process alive.
        self._renewing = threading.Thread(
            target=self._renew, name="sessionstore-renew-turn", daemon=True
        )
        self._renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        # The garbage collector may close a run in any thread.
        if self._renewing is not threading.current_thread():
            self._renewing.join()
        try:
            with suppress(BackendError):  # the turn is free when its lease ends
                self._service.release_turn(self.turn)
        finally:
            self._leave_queue()

    def _wait(self) -> None:
        """Ask for the turn until it is free: a run of another process may have it."""
        for delay_s in poll_delays():
            with suppress(TurnTaken):
                self.turn = self._service.acquire_turn(self._key, lease=self._lease)
                return
            time.sleep(delay_s)

    def _leave_queue(self) -> None:
        """Let the next run ask for the turn. Safe to repeat, in any thread."""
        with self._leaving:
            is_in_queue, self._is_in_queue = self._is_in_queue, False
        if is_in_queue:
            _queues.leave(self._service, self._key)
            if self._is_first:
                self._queue.lock.release()

    def _renew(self) -> None:
        """Renew until the end, or until the turn is lost; the next append then raises."""
        while not self._ended.wait(self._lease.total_seconds() / 3):
            try:
                self.turn = self._service.renew_turn(self.turn, lease=self._lease)
            except BackendError:
                continue
            except Exception:  # the turn is lost, or the session was deleted
                self._leave_queue()
                return


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
