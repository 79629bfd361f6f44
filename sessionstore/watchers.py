"""Waits for what is new in a session, for asyncio. sessionstore/sync/watchers.py is for threads.

The log is the truth. A message only says when to read it, and without any message a session is
still read about every second. All watchers of a session in an event loop share its reads: each one
has a place of its own, and nothing is queued for it, so a slow watcher delays nobody.
"""

from __future__ import annotations

import asyncio
import copy
import random
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from .calls import Call, Flow, Listen, R, Signal
from .errors import BackendRejected, BackendUnavailable
from .flows.watching import News, Place, read_news
from .model import SessionKey, Watched, WatchEnd
from .ops import Ops, ids_of
from .ops.watching import Head

LEASE_S = 30.0
"""How long writes to a session publish messages after a watcher has requested it."""

READ_S = 1.0
"""Seconds between reads of a header without a message, while up to 1,000 sessions are watched."""

_SESSIONS_PER_READ_S = 1000  # with more sessions, each header is read less often
_FIRST_POLL_S = 0.05  # without messages: between reads, doubled up to READ_S
_KEPT_ITEMS = 256  # of a session, for watchers that are a little behind
_CLOSED = "the session service is closed"

Run = Callable[[Flow[Any]], Awaitable[Any]]


class Watchers:
    """The watchers of a service.

    Args:
        ops: builds the Calls.
        run: runs a flow.
        listen: receives messages; None = it polls.
    """

    def __init__(self, ops: Ops, run: Run, listen: Listen | None) -> None:
        self._ops = ops
        self._run = run
        self._listen = listen
        self._by_loop: dict[asyncio.AbstractEventLoop, dict[SessionKey, _Shared]] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    async def watch(
        self, key: SessionKey, place: Place, idle_s: float | None
    ) -> AsyncGenerator[Watched, None]:
        """What is new in a session after a place, until its end."""
        shared: _Shared | None = None
        idle_from = time.monotonic()
        try:
            while True:
                # At first without `shared`: reading what is there already needs no messages.
                news = None if shared is None else shared.news_at(place)
                if news is None and shared is not None:
                    news = await shared.read(place)
                elif news is None:
                    news = await self._run(read_news(self._ops, key, place))
                for item in news.seen_from(place):
                    yield item
                    idle_from = time.monotonic()
                place = place.moved_to(news.place)
                if news.end:
                    yield WatchEnd(news.end)
                    return
                if not news.is_complete:
                    continue
                if shared is not None and shared.is_over:
                    self._leave(key, shared)
                    shared = None
                if shared is None:
                    shared = self._join(key)
                    if place.has_fragments:
                        shared.follow_fragments()
                left_s = None if idle_s is None else idle_from + idle_s - time.monotonic()
                try:
                    async with asyncio.timeout(left_s):
                        await shared.wait_for_news(place)
                except TimeoutError:
                    yield WatchEnd("idle")
                    return
        finally:
            if shared is not None:
                self._leave(key, shared)

    @property
    def count(self) -> int:
        """How many watchers there are, but for those that have just started. For any thread."""
        by_loop = list(self._by_loop.values())
        return sum(each.num_watchers for sessions in by_loop for each in list(sessions.values()))

    def _join(self, key: SessionKey) -> _Shared:
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._is_closed:
                raise BackendUnavailable(_CLOSED)
            for ended in [loop for loop in self._by_loop if loop.is_closed()]:
                del self._by_loop[ended]
            sessions = self._by_loop.setdefault(loop, {})
        shared = sessions.get(key)
        if shared is None or shared.is_over:
            shared = sessions[key] = _Shared(self._ops, self._run, self._listen, key, sessions)
        shared.num_watchers += 1
        return shared

    def _leave(self, key: SessionKey, shared: _Shared) -> None:
        shared.num_watchers -= 1
        if not shared.num_watchers:
            shared.close(None)
            sessions = self._by_loop.get(shared.loop, {})
            if sessions.get(key) is shared:
                del sessions[key]

    def releases(self, key: SessionKey) -> Releases:
        """A signal for a run that waits for the turn of a session: when to try to acquire it."""
        return Releases(self._ops, self._run, self._listen, key)

    async def aclose(self) -> None:
        """End all watchers with BackendUnavailable."""
        with self._lock:
            self._is_closed = True
            by_loop, self._by_loop = self._by_loop, {}
        for loop, sessions in by_loop.items():
            shared = list(sessions.values())
            if loop is asyncio.get_running_loop():
                _close_all(shared)
                await asyncio.gather(*(each.wait_until_closed() for each in shared))
            elif not loop.is_closed():
                with suppress(RuntimeError):  # it is closed by now
                    loop.call_soon_threadsafe(_close_all, shared)


class _Shared:
    """Shared by the watchers of a session: a task that follows the log, and its last read."""

    def __init__(
        self,
        ops: Ops,
        run: Run,
        listen: Listen | None,
        key: SessionKey,
        others: dict[SessionKey, _Shared],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.num_watchers = 0
        self.failure: Exception | None = None
        self._ops = ops
        self._run = run
        self._listen = listen
        self._key = key
        self._others = others  # the sessions that this loop watches
        self._place: Place | None = None  # up to where the task has read
        self._version = 0
        self._kept: deque[News] = deque()  # what it read last
        self._num_kept = 0
        self._has_ended = False
        self._follows_fragments = False
        self._advanced = asyncio.Event()  # replaced each time that it is set
        self._reads: dict[Place, asyncio.Task[News]] = {}
        self._woken = asyncio.Event()
        self._has_message = False
        self._is_listening = False
        self._can_listen = listen is not None
        self._renew_at = 0.0
        self._task = self.loop.create_task(self._follow())

    # -- for watchers --------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether the task has stopped following the log."""
        return self._has_ended or self.failure is not None or self._task.done()

    def news_at(self, place: Place) -> News | None:
        """What was read last and is new at a place; None if the log has to be read."""
        for news in self._kept:
            if place.has_fragments and not news.place.has_fragments and not news.end:
                return None
            if place.has_seen(news.place) and not news.end:
                continue
            start = news.start
            is_ahead = place.position > start.position and place.change < news.place.change
            if not place.has_seen(start) or is_ahead:
                return None
            return news
        return None

    def follow_fragments(self) -> None:
        """Read fragments, too: a watcher wants them."""
        if not self._follows_fragments:
            self._follows_fragments = True
            self._kept.clear()
            self._num_kept = 0
            self._set_place(self._place)
            self._woken.set()

    def _set_place(self, place: Place | None) -> None:
        if place is not None and self._follows_fragments and not place.has_fragments:
            place = place._replace(sequence=0)
        self._place = place

    async def read(self, place: Place) -> News:
        """Read what is new at a place. Watchers at the same place share the read."""
        task = self._reads.get(place)
        if task is None:
            task = self.loop.create_task(self._read(place))
            self._reads[place] = task
            task.add_done_callback(lambda task: self._read_ended(place, task))
        return await _wait_shared(task)

    def _read_ended(self, place: Place, task: asyncio.Task[News]) -> None:
        del self._reads[place]
        if not task.cancelled():
            task.exception()  # mark it as retrieved: all waiters may have been cancelled

    async def _read(self, place: Place) -> News:
        news: News = await self._run(read_news(self._ops, self._key, place))
        return news

    async def wait_for_news(self, place: Place) -> None:
        """Return when something may be new at a place. Raises what ended the task."""
        while True:
            found = self._place
            if self._has_ended or (found is not None and not place.has_seen(found)):
                return
            if self.failure is not None:
                raise copy.copy(self.failure) from self.failure
            await self._advanced.wait()

    def close(self, failure: Exception | None) -> None:
        """Stop following the log."""
        self.failure = self.failure or failure
        self._task.cancel()
        for task in self._reads.values():
            task.cancel()
        self._wake_watchers()

    async def wait_until_closed(self) -> None:
        """Wait until its tasks have ended."""
        await asyncio.wait([self._task, *self._reads.values()])

    # -- the task ------------------------------------------------------------------------------

    async def _follow(self) -> None:
        stop: Callable[[], None] | None = None
        try:
            if self._listen is not None:
                channel = self._ops.options.keys.session(*ids_of(self._key)).channel
                stop = self._listen(channel, self._notify)
            await self._follow_log()
        except Exception as error:
            self.failure = error
        finally:
            if stop is not None:
                stop()
            if not self._has_ended and self.failure is None:
                self.failure = BackendUnavailable("watching was cancelled")
            self._wake_watchers()

    async def _follow_log(self) -> None:
        pause_s = _FIRST_POLL_S
        while not self._has_ended:
            self._woken.clear()
            has_message, self._has_message = self._has_message, False
            has_news = has_message and self._place is not None
            if not has_news or self._must_renew():
                has_news = self._learn(await self._look()) or has_news
            follows = self._follows_fragments and not self._has_ended
            if has_news or follows:  # fragments do not change the header
                has_news = await self._read_news() or has_news
            if has_news:
                pause_s = _FIRST_POLL_S
                continue
            pause_s = min(pause_s * 2, READ_S)
            rate = max(len(self._others) / _SESSIONS_PER_READ_S, 1.0)
            wait_s = READ_S * rate * random.uniform(0.8, 1.0) if self._can_listen else pause_s
            try:
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()
            except TimeoutError:
                self._kept.clear()  # nobody has needed it for a while
                self._num_kept = 0

    def _must_renew(self) -> bool:
        return self._is_listening and time.monotonic() >= self._renew_at

    async def _look(self) -> Head | None:
        """The header. If messages can come, it renews the lease when that is due."""
        if self._must_renew():
            self._renew_at = time.monotonic() + LEASE_S / 3
            try:
                return await self._head(self._ops.listen_session(self._key, _LEASE_MS))
            except BackendRejected:
                self._can_listen = self._is_listening = False
        return await self._head(self._ops.read_head(self._key))

    async def _head(self, call: Call[Head | None]) -> Head | None:
        head: Head | None = await self._run(_one(call))
        return head

    def _learn(self, head: Head | None) -> bool:
        """Whether the header says that there is something to read."""
        if head is None and self._place is None:
            self._place = Place(0, 0, 0)  # the watchers, which know more, find out
            self._has_ended = True
        elif head is not None and self._place is None:
            self._set_place(Place.of(head))
            self._version = head.version
        else:
            return head is None or head.version != self._version
        self._wake_watchers()
        return False

    async def _read_news(self) -> bool:
        """Read what is new, and keep it for the watchers; False if there was nothing."""
        assert self._place is not None
        news: News = await self._read(self._place)
        self._set_place(news.place)
        self._version = news.version
        self._has_ended = news.end is not None
        if not news.is_complete:
            self._has_message = True
        if news.items or news.end:
            self._kept.append(news)
            self._num_kept += len(news.items)
            while self._num_kept > _KEPT_ITEMS and len(self._kept) > 1:
                self._num_kept -= len(self._kept.popleft().items)
            self._wake_watchers()
        return bool(news.items or news.end)

    def _wake_watchers(self) -> None:
        self._advanced.set()
        self._advanced = asyncio.Event()

    def _notify(self, signal: Signal) -> None:
        """Receive a signal of the listener."""
        if signal == "released":
            return
        if signal == "message":
            self._has_message = True
        elif signal == "listening":
            self._is_listening, self._can_listen, self._renew_at = True, True, 0.0
        else:
            self._is_listening = False
            self._can_listen = signal == "lost"
        self._woken.set()


class Releases:
    """Wakes up a run that waits for the turn of a session. Close it after use.

    Args:
        ops: builds the Calls.
        run: runs a flow.
        listen: receives messages; None = the run polls.
        key: the session.
    """

    def __init__(self, ops: Ops, run: Run, listen: Listen | None, key: SessionKey) -> None:
        self._ops = ops
        self._run = run
        self._key = key
        self._may_be_free = asyncio.Event()
        self._is_listening = False
        self._renew_at = 0.0
        channel = ops.options.keys.session(*ids_of(key)).channel
        self._stop = None if listen is None else listen(channel, self._notify)

    async def wait(self, poll_s: float, expires_at: datetime) -> None:
        """Return when the turn may be free: it was released, its lease ends, or some time passed.

        Args:
            poll_s: how long to wait at most if no message can come.
            expires_at: when the lease ends.
        """
        if self._is_listening and time.monotonic() >= self._renew_at:
            self._renew_at = time.monotonic() + LEASE_S / 3
            try:
                await self._run(_one(self._ops.listen_session(self._key, _LEASE_MS)))
            except BackendRejected:
                self._is_listening = False
            else:
                return  # a release before this was not published
        if self._is_listening:
            left_s = (expires_at - datetime.now(UTC)).total_seconds()
            poll_s = max(min(left_s, READ_S), poll_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(poll_s):
                await self._may_be_free.wait()
        self._may_be_free.clear()

    def close(self) -> None:
        """Stop listening."""
        if self._stop is not None:
            self._stop()

    def _notify(self, signal: Signal) -> None:
        if signal == "message":
            return
        if signal != "released":
            self._is_listening, self._renew_at = signal == "listening", 0.0
        self._may_be_free.set()


_LEASE_MS = round(LEASE_S * 1000)


def _one(call: Call[R]) -> Flow[R]:
    result: R = yield call
    return result


def _close_all(watched: list[_Shared]) -> None:
    for each in watched:
        each.close(BackendUnavailable(_CLOSED))


async def _wait_shared(task: asyncio.Task[News]) -> News:
    """The result of a task that others wait for too. Cancelling a waiter does not stop the task."""
    await asyncio.wait([task])
    if task.cancelled():
        raise BackendUnavailable(_CLOSED)
    return task.result()
