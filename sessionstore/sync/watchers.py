"""Waits for what is new in a session, for threads. sessionstore/watchers.py is for asyncio.

Each watcher looks at the header of its session, often while events come and about every second when
none do. In memory it is woken up instead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from typing import Any

from ..calls import Flow, Listen, Signal
from ..errors import BackendUnavailable
from ..flows.watching import News, Place, read_news
from ..model import SessionKey, Watched, WatchEnd
from ..ops import Ops, ids_of
from ..ops.watching import Head

_LEASE_MS = 30_000
_READ_S = 1.0  # how often a session is looked at, at least
_FIRST_POLL_S = 0.05  # after news; doubled up to _READ_S
_CLOSED = "the session service is closed"


class Watchers:
    """The watchers of a service.

    Args:
        ops: builds the Calls.
        run: runs a flow.
        listen: receives messages; None = it polls.
    """

    def __init__(self, ops: Ops, run: Callable[[Flow[Any]], Any], listen: Listen | None) -> None:
        self._ops = ops
        self._run = run
        self._listen = listen
        self._waiting: set[threading.Event] = set()
        self._is_closed = False

    @property
    def count(self) -> int:
        """How many watchers there are."""
        return len(self._waiting)

    def watch(
        self, key: SessionKey, place: Place, idle_s: float | None
    ) -> Generator[Watched, None, None]:
        """What is new in a session after a place, until its end."""
        woken = threading.Event()
        stop: Callable[[], None] | None = None
        self._waiting.add(woken)
        idle_from = time.monotonic()
        pause_s = _FIRST_POLL_S
        try:
            while True:
                woken.clear()
                news: News = self._run(read_news(self._ops, key, place))
                for item in news.seen_from(place):
                    yield item
                    idle_from = time.monotonic()
                pause_s = _FIRST_POLL_S if news.items else min(pause_s * 2, _READ_S)
                place = place.moved_to(news.place)
                if news.end:
                    yield WatchEnd(news.end)
                    return
                if not news.is_complete:
                    continue
                if self._listen is not None and stop is None:
                    stop = self._start_listening(self._listen, key, woken)
                idle_at = None if idle_s is None else idle_from + idle_s
                if stop is not None:
                    pause_s = _READ_S
                fragments_s = pause_s if place.has_fragments else None
                polls = stop is None
                if not self._wait(key, news.version, woken, idle_at, fragments_s, polls=polls):
                    yield WatchEnd("idle")
                    return
        finally:
            self._waiting.discard(woken)
            if stop is not None:
                stop()

    def _start_listening(
        self, listen: Listen, key: SessionKey, woken: threading.Event
    ) -> Callable[[], None]:
        def notify(signal: Signal) -> None:
            if signal == "message":
                woken.set()

        return listen(self._ops.options.keys.session(*ids_of(key)).channel, notify)

    def _wait(
        self,
        key: SessionKey,
        version: int,
        woken: threading.Event,
        idle_at: float | None,
        fragments_s: float | None,
        *,
        polls: bool,
    ) -> bool:
        """Wait until the session may have something new; False if it has not at `idle_at`.

        Fragments do not change its version. `fragments_s`: when to look for them; None = never.
        """
        pause_s = fragments_s or (_FIRST_POLL_S if polls else _READ_S)
        while True:
            head: Head | None = self._look(key, polls=polls)
            if head is None or head.version != version:
                return True
            left_s = pause_s if idle_at is None else idle_at - time.monotonic()
            if left_s <= 0:
                return False
            woken.wait(min(pause_s, left_s))
            if self._is_closed:
                raise BackendUnavailable(_CLOSED)
            if fragments_s is not None:
                return True
            woken.clear()
            pause_s = min(pause_s * 2, _READ_S)

    def _look(self, key: SessionKey, *, polls: bool) -> Head | None:
        """The header. Where messages can come, it asks for them."""

        def flow() -> Flow[Head | None]:
            call = self._ops.read_head(key)
            head: Head | None = yield call if polls else self._ops.listen_session(key, _LEASE_MS)
            return head

        found: Head | None = self._run(flow())
        return found

    def close(self) -> None:
        """End all watchers with BackendUnavailable."""
        self._is_closed = True
        for woken in list(self._waiting):
            woken.set()
