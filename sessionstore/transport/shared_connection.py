"""One connection over asyncio that many tasks share.

Calls of one tick of the event loop are sent in one write. Replies come in the order of the
requests, so each one belongs to the oldest call that waits. If a caller is cancelled, the reply to
its call is still read, and dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis

from .failures import CLOSED_BY_SERVER, ConnectFailed, ConnectionLost
from .redis_py import forget_async, open_async
from .retry import CLOSED
from .topology import SILENCE_S

CALLS_IN_FLIGHT_LIMIT = 4096
"""Most calls that wait for replies on one connection. Further calls wait before they are sent."""

BYTES_IN_FLIGHT_LIMIT = 16 << 20
"""Most bytes of requests that wait for replies on one connection."""

_CLOSE_TIMEOUT_S = 1.0  # for calls in flight when a service is closed

_NOTHING = object()  # returned by the reader if it has no complete reply

_Entry = tuple["asyncio.Future[list[Any]]", int, float, int]  # reply, count, deadline, bytes


class SharedConnection(asyncio.Protocol):
    """An open connection and the calls that wait on it.

    Args:
        connection: redis-py's connection, not yet connected.
        timeout_s: how long a call may take.
        on_lost: called with the reason if the connection ends though nobody closed it, before the
            calls that wait on it fail.

    Attributes:
        is_open: calls may be sent.
        closed: done when the socket is closed.
    """

    def __init__(self, connection: Any, timeout_s: float, on_lost: Callable[[str], None]) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._transport: Any = None
        self._out: list[bytes] = []
        self._pending: deque[_Entry] = deque()
        self._partial: list[Any] = []
        self._bytes_in_flight = 0
        self._received_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._queue: deque[tuple[asyncio.Future[None], float]] = deque()
        self._num_admitted = 0
        self.is_open = False
        self.closed: asyncio.Future[None] = self._loop.create_future()

    async def open(self, deadline: float) -> None:
        """Connect.

        Raises:
            ConnectFailed: no connection.
        """
        self._transport, unread = await open_async(self._connection, self, deadline)
        self.is_open = True
        if unread:
            self.data_received(unread)

    # -- sending -------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether a new call has to wait before it is sent."""
        return (
            len(self._pending) + self._num_admitted >= CALLS_IN_FLIGHT_LIMIT
            or self._bytes_in_flight >= BYTES_IN_FLIGHT_LIMIT
            or bool(self._queue)
        )

    async def wait_for_room(self, deadline: float) -> None:
        """Wait until a call may be sent, first come first served.

        Raises:
            ConnectFailed: the connection was closed.
            TimeoutError: the deadline passed.
        """
        admission = self._loop.create_future()
        self._queue.append((admission, deadline))
        try:
            await admission
        except asyncio.CancelledError:
            # If the call was not admitted yet, `_admit` will skip it.
            if not admission.cancelled() and admission.exception() is None and self.is_open:
                self._num_admitted -= 1
                self._admit()
            raise
        if not self.is_open:
            raise ConnectFailed(CLOSED_BY_SERVER, final=False)
        self._num_admitted -= 1

    def submit(self, payload: bytes, count: int, deadline: float) -> asyncio.Future[list[Any]]:
        """Send in this tick of the loop; the future yields `count` replies or ConnectionLost."""
        reply: asyncio.Future[list[Any]] = self._loop.create_future()
        size = len(payload)
        if not self._pending:
            # Nothing is in flight, so there is nothing to wait for: send at once. Further calls of
            # this tick are sent together.
            self._pending.append((reply, count, deadline, size))
            self._bytes_in_flight = size
            if self._timer is None:
                self._timer = self._loop.call_at(deadline, self._check_deadlines)
            self._transport.write(payload)
            return reply
        self._pending.append((reply, count, deadline, size))
        self._bytes_in_flight += size
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(payload)
        return reply

    def _flush(self) -> None:
        if self.is_open:
            out = self._out
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        self._out.clear()

    def _admit(self) -> None:
        """Let calls that wait for room go on, as far as there is room."""
        while (
            self._queue
            and len(self._pending) + self._num_admitted < CALLS_IN_FLIGHT_LIMIT
            and self._bytes_in_flight < BYTES_IN_FLIGHT_LIMIT
        ):
            admission, _ = self._queue.popleft()
            if not admission.done():
                self._num_admitted += 1
                admission.set_result(None)

    # -- receiving -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Give complete replies to the calls that wait for them."""
        pending, partial = self._pending, self._partial
        self._received_at = time.monotonic()
        try:
            self._reader.feed(data)
            next_reply = self._reader.gets
            while (reply := next_reply()) is not _NOTHING:
                if isinstance(reply, hiredis.PushNotification):
                    continue
                waiter, count, _, size = pending[0]
                if count == 1:
                    replies = [reply]
                else:
                    partial.append(reply)
                    if len(partial) < count:
                        continue
                    replies, partial = partial, []
                pending.popleft()
                self._bytes_in_flight -= size
                if not waiter.done():
                    waiter.set_result(replies)
        except (hiredis.ProtocolError, IndexError):
            # Not RESP, or a reply without a request: the connection is out of step.
            self.give_up("the server's answer is not RESP")
        self._partial = partial
        if self._queue:
            self._admit()

    @property
    def num_calls(self) -> int:
        """Calls that wait for a reply."""
        return sum(not waiter.done() for waiter, *_ in self._pending)

    def is_silent(self, now: float) -> bool:
        """Whether calls wait and nothing was received for a while."""
        return bool(self._pending) and now - self._received_at > SILENCE_S

    def was_used_since(self, then: float) -> bool:
        """Whether calls wait, or something was received since then."""
        return bool(self._pending) or self._received_at > then

    def _check_deadlines(self) -> None:
        """Fail the calls whose deadline has passed; give up the connection if it is silent."""
        self._timer = None
        now = time.monotonic()
        is_silent = now - self._received_at > self._timeout_s / 4
        if is_silent and self._pending and self._pending[0][2] <= now:
            self.give_up("no answer in time", timed_out=True)
            return
        while self._queue and (self._queue[0][1] <= now or self._queue[0][0].done()):
            admission, _ = self._queue.popleft()
            if not admission.done():
                admission.set_exception(TimeoutError())
        for waiter, _, deadline, _ in self._pending:
            if deadline > now:
                self._timer = self._loop.call_at(deadline, self._check_deadlines)
                return
            # The server works but is slow. Its late reply will be read and dropped.
            if not waiter.done():
                waiter.set_exception(ConnectionLost("no answer in time", timed_out=True))
        if self._pending:
            self._timer = self._loop.call_later(self._timeout_s / 4, self._check_deadlines)

    # -- the end -------------------------------------------------------------------------------

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is closed. asyncio calls this."""
        self._fail(f"connection lost ({error})" if error else CLOSED_BY_SERVER)
        forget_async(self._connection)
        if not self.closed.done():
            self.closed.set_result(None)

    def give_up(self, reason: str, *, timed_out: bool = False) -> None:
        """Close at once because something is wrong; calls that wait fail with ConnectionLost."""
        self._fail(reason, timed_out=timed_out)
        if self._transport is not None:
            self._transport.abort()

    def close(self, reason: str) -> None:
        """Close at once, as intended; calls that wait fail with ConnectionLost."""
        self._fail(reason, is_intended=True)
        if self._transport is not None:
            self._transport.abort()

    async def drain(self) -> None:
        """Close when the calls that wait have their replies, within a second."""
        if self._pending:
            last = self._pending[-1][0]
            await asyncio.wait([last], timeout=_CLOSE_TIMEOUT_S)
        self.close(CLOSED)
        await self.closed

    def _fail(self, reason: str, *, timed_out: bool = False, is_intended: bool = False) -> None:
        if self.is_open and not is_intended:
            self._on_lost(reason)
        self.is_open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for waiter, *_ in self._pending:
            if not waiter.done():
                waiter.set_exception(ConnectionLost(reason, timed_out=timed_out))
        self._pending.clear()
        self._bytes_in_flight = 0
        for admission, _ in self._queue:
            if not admission.done():
                admission.set_result(None)
        self._queue.clear()
