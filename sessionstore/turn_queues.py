"""The runs of a process that wait for the turn of a session. Both Runners use it. No I/O here."""

from __future__ import annotations

import copy
import random
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, TypeVar

from .errors import BackendError

L = TypeVar("L")

_FIRST_POLL_S = 0.02
_LONGEST_POLL_S = 0.25
_LONGEST_STREAK_S = 10.0  # how long a process may pass a turn from run to run without a pause


def poll_delays() -> Iterator[float]:
    """Seconds to wait between attempts to get a turn: random, growing to about 0.25 s."""
    delay_s = _FIRST_POLL_S
    while True:
        yield delay_s * random.uniform(0.5, 1.5)
        delay_s = min(delay_s * 2, _LONGEST_POLL_S)


class TurnQueue(Generic[L]):
    """The runs of one process that want the turn of one session.

    The run that holds `lock` asks the store for the turn and keeps the lock as long as the turn.
    The others wait for the lock: they cost the store nothing, and get the turn without a delay.

    Args:
        lock: an asyncio.Lock or a threading.Lock.
    """

    def __init__(self, lock: L) -> None:
        self.lock = lock
        self.num_runs = 0
        self._streak_began = time.monotonic()
        self._failure: BackendError | None = None
        self._failed_at = 0.0

    def fail(self, error: BackendError) -> None:
        """Note that a request for the turn failed, so that the waiting runs fail at once too."""
        self._failure, self._failed_at = error, time.monotonic()

    def raise_failure(self, joined_at: float) -> None:
        """Raise the error of a run that failed while this one was in the queue, if one did."""
        if self._failure is not None and self._failed_at >= joined_at:
            raise copy.copy(self._failure)

    def pause_s(self) -> float:
        """Seconds to wait before asking for the turn: 0, but from time to time a short pause.

        A run in another process polls. Without pauses it would never find the turn free while this
        process passes it from run to run.
        """
        now = time.monotonic()
        if now - self._streak_began < _LONGEST_STREAK_S:
            return 0.0
        self._streak_began = now
        return 1.5 * _LONGEST_POLL_S


class TurnQueues(Generic[L]):
    """All queues of this process. Thread-safe.

    Args:
        new_lock: makes the lock of a queue.
    """

    def __init__(self, new_lock: Callable[[], L]) -> None:
        self._new_lock = new_lock
        self._guard = threading.Lock()
        self._by_service: weakref.WeakKeyDictionary[Any, dict[Hashable, TurnQueue[L]]] = (
            weakref.WeakKeyDictionary()
        )

    def join(self, service: object, name: Hashable) -> TurnQueue[L]:
        """The queue of this name, which counts one more run."""
        with self._guard:
            queues = self._by_service.setdefault(service, {})
            queue = queues.setdefault(name, TurnQueue(self._new_lock()))
            queue.num_runs += 1
            return queue

    def leave(self, service: object, name: Hashable) -> None:
        """Count one run less. A queue without runs is dropped."""
        with self._guard:
            queues = self._by_service[service]
            queues[name].num_runs -= 1
            if not queues[name].num_runs:
                del queues[name]
