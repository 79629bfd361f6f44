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
from typing import Any, TypeVar

import hiredis

from ..calls import Call
from .address import Address
from .durability import Durability
from .failures import CLOSED, CLOSED_BY_SERVER, ConnectFailed, ConnectionLost, NotSentInTime
from .redis_py import close_without_loop, forget_async, open_async
from .reply_sizes import LARGE_BYTES, ReplySizes
from .retry import Send
from .topology import SILENCE_S
from .wire import pack, reply_count

T = TypeVar("T")

CALLS_IN_FLIGHT_LIMIT = 4096
"""Most calls that wait for replies on one connection. Further calls wait before they are sent."""

BYTES_IN_FLIGHT_LIMIT = 16 << 20
"""Most bytes of requests that wait for replies on one connection."""

_CLOSE_TIMEOUT_S = 1.0  # for calls in flight when a service is closed

NOTHING = object()  # returned by the reader if it has no complete reply

_Reply = asyncio.Future[list[Any]]
# Count of replies, deadline, bytes of the request, the Call if its reply is to be measured.
_Pending = tuple[_Reply, int, float, int, Call[Any] | None]
_Queued = tuple[_Reply, Call[Any], Send | None, float]  # deadline


class SharedConnection(asyncio.Protocol):
    """A connection, which starts to open at once, and the calls that wait on it.

    `timeout_s` is how long a call may take. `count_calls` counts the calls that wait for this node,
    for the log. Calls may be sent while `is_open`.
    """

    def __init__(
        self,
        address: Address,
        timeout_s: float,
        count_calls: Callable[[], int],
        reply_sizes: ReplySizes,
    ) -> None:
        self.is_open = False
        self.created_at = time.monotonic()
        self._is_retired = False
        self._must_close = False
        self._address = address
        self._history = address.history
        self._timeout_s = timeout_s
        self._count_calls = count_calls
        self._reply_sizes = reply_sizes
        self._num_received = 0  # bytes of the reply that is being received
        self.find_bulk_connection: Callable[[Call[Any]], SharedConnection | None] | None = None
        self._loop = asyncio.get_running_loop()
        self._connection = address.new_connection()
        self._reader = hiredis.Reader(notEnoughData=NOTHING)
        self._transport: Any = None
        self._out: list[bytes] = []
        self._pending: deque[_Pending] = deque()
        self._partial: list[Any] = []
        self._bytes_in_flight = 0
        self._active_at = self.created_at  # when it began to connect or received something
        self._timer: asyncio.TimerHandle | None = None
        self._queue: deque[_Queued] = deque()
        self._num_unsent = 0  # calls that wait until the connection is open
        self._sent_wait: asyncio.Task[Any] | None = None
        self._next_wait: asyncio.Task[Any] | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._opening = self._loop.create_task(self._open())
        self._opening.add_done_callback(self._report_opened)

    # -- opening -------------------------------------------------------------------------------

    async def _open(self) -> None:
        deadline = self._active_at + min(self._timeout_s, self._address.connect_timeout_s)
        self._transport, unread = await open_async(
            self._connection, self, deadline, self._address.greeting
        )
        if self._must_close:  # connecting may succeed although it was cancelled
            self._transport.abort()
            return
        self.is_open = True
        self._active_at = time.monotonic()
        if unread:
            self.data_received(unread)

    def _report_opened(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        failure = task.exception()
        if failure is None:
            self._address.report_connected()
        elif isinstance(failure, ConnectFailed):
            self._address.report_not_connected(failure, self._count_calls())

    @property
    def is_usable(self) -> bool:
        """Whether it is open or opening."""
        return self.is_open or not self._opening.done()

    async def wait_until_open(self) -> None:
        """Wait until calls may be sent; raises ConnectFailed."""
        if not self.is_open:
            self._num_unsent += 1
            try:
                await wait_shared(self._opening)
            finally:
                self._num_unsent -= 1

    # -- sending -------------------------------------------------------------------------------

    def submit(self, call: Call[Any], deadline: float, attempt: Send | None = None) -> _Reply:
        """Send a Call in this tick of the loop, or when there is room for it.

        Returns:
            The replies, or ConnectionLost. ConnectFailed or NotSentInTime: nothing was sent.
        """
        reply: _Reply = self._loop.create_future()
        if self._queue or not self.has_room:
            self._queue.append((reply, call, attempt, deadline))
        else:
            self._pack_and_send(reply, call, attempt, deadline)
        return reply

    def _pack_and_send(
        self, reply: _Reply, call: Call[Any], attempt: Send | None, deadline: float
    ) -> None:
        if attempt is None:
            payload = pack(call, "EVALSHA")
            count = reply_count(call, "EVALSHA") if call.commands else 1
        else:
            form, asking = attempt.form, attempt.is_asking
            payload = pack(call, form, asking=asking, began_at=attempt.began_at)
            count = reply_count(call, form, asking=asking)
        connection = self
        if len(payload) >= LARGE_BYTES and self.find_bulk_connection is not None:
            connection = self.find_bulk_connection(call) or self
        connection._send(payload, count, deadline, reply, call if call.commands else None)

    def _send(
        self,
        payload: bytes,
        count: int,
        deadline: float,
        reply: _Reply,
        read: Call[Any] | None = None,
    ) -> None:
        size = len(payload)
        pending = self._pending
        pending.append((reply, count, deadline, size, read))
        self._bytes_in_flight += size
        if len(pending) == 1:
            # Nothing else is in flight, so there is nothing to wait for: send at once. Further
            # calls of this tick are sent together.
            if self._timer is None:
                self._timer = self._loop.call_at(deadline, self._check_deadlines)
            self._history.sent += size
            self._transport.write(payload)
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(payload)

    @property
    def has_room(self) -> bool:
        """Whether fewer calls and bytes are in flight than the limits allow."""
        return (
            len(self._pending) < CALLS_IN_FLIGHT_LIMIT
            and self._bytes_in_flight < BYTES_IN_FLIGHT_LIMIT
        )

    def _flush(self) -> None:
        if self.is_open:
            out = self._out
            payload = out[0] if len(out) == 1 else b"".join(out)
            self._history.sent += len(payload)
            self._transport.write(payload)
        self._out.clear()

    def _send_queued(self) -> None:
        """Send the calls that wait for room, first come first served, as far as there is room."""
        while self._queue and self.has_room:
            reply, call, attempt, deadline = self._queue.popleft()
            if not reply.done():
                self._pack_and_send(reply, call, attempt, deadline)

    def was_sent(self, reply: _Reply) -> bool:
        """False: the Call still waits for room."""
        return all(queued[0] is not reply for queued in self._queue)

    async def wait_for_replicas(self, durability: Durability, deadline: float) -> Any:
        """The reply to a WAIT for all writes that were answered so far; None if it is late.

        One WAIT is in flight at a time. Callers share the next one until it is sent.
        """
        if self._next_wait is None:
            self._next_wait = self._loop.create_task(self._send_wait(durability))
            self._next_wait.add_done_callback(consume_exception)
        try:
            async with asyncio.timeout_at(deadline):
                return await wait_shared(self._next_wait)
        except TimeoutError:
            return None

    async def _send_wait(self, durability: Durability) -> Any:
        if self._sent_wait is not None:
            await asyncio.wait([self._sent_wait])
        self._sent_wait, self._next_wait = self._next_wait, None
        if not self.is_open:
            raise ConnectionLost(CLOSED_BY_SERVER)
        reply: _Reply = self._loop.create_future()
        self._send(durability.request, 1, time.monotonic() + durability.timeout_s, reply)
        [answer] = await reply
        return answer

    # -- receiving -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Give complete replies to the calls that wait for them."""
        pending, partial = self._pending, self._partial
        self._active_at = time.monotonic()
        num_new = len(data)
        self._history.received += num_new
        try:
            self._reader.feed(data)
            next_reply = self._reader.gets
            while (reply := next_reply()) is not NOTHING:
                if isinstance(reply, hiredis.PushNotification):
                    continue
                waiter, count, _, size, read = pending[0]
                if count == 1:
                    replies = [reply]
                else:
                    partial.append(reply)
                    if len(partial) < count:
                        continue
                    replies, partial = partial, []
                pending.popleft()
                self._bytes_in_flight -= size
                if read is not None:
                    # Only earlier pieces count: this one may hold many replies.
                    self._reply_sizes.note(read, self._num_received >= LARGE_BYTES)
                self._num_received = num_new = 0
                if not waiter.done():
                    waiter.set_result(replies)
        except (hiredis.ProtocolError, IndexError):
            # Not RESP, or a reply without a request: replies no longer match requests.
            self.close("the server's answer is not RESP")
        self._partial = partial
        self._num_received += num_new
        if self._queue:
            self._send_queued()
        if self._is_retired and not pending:
            self.close(CLOSED, is_intended=True)

    @property
    def is_busy(self) -> bool:
        """Whether calls wait for replies."""
        return bool(self._pending)

    @property
    def num_calls(self) -> int:
        """Calls that wait for the connection or a reply."""
        return self._num_unsent + sum(not waiter.done() for waiter, *_ in self._pending)

    def is_silent(self, now: float) -> bool:
        """Whether calls wait, or it is opening, and nothing was received for a while."""
        return self.was_used_since(now) and now - self._active_at > SILENCE_S

    def was_used_since(self, then: float) -> bool:
        """Whether calls wait, it is opening, or something was received since then."""
        return bool(self._pending) or not self._opening.done() or self._active_at > then

    def _check_deadlines(self) -> None:
        """Fail the calls whose deadline has passed; close the connection if it is silent."""
        self._timer = None
        now = time.monotonic()
        is_silent = now - self._active_at > self._timeout_s / 4
        if is_silent and self._pending and self._pending[0][2] <= now:
            self.close("no answer in time", timed_out=True)
            return
        while self._queue and (self._queue[0][-1] <= now or self._queue[0][0].done()):
            waiter, *_ = self._queue.popleft()
            if not waiter.done():
                waiter.set_exception(NotSentInTime())
        for waiter, _, deadline, *_ in self._pending:
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
        if not self._closed.done():
            self._closed.set_result(None)

    def close(self, reason: str, *, timed_out: bool = False, is_intended: bool = False) -> None:
        """Close at once; calls that wait fail with ConnectionLost."""
        self._must_close = True
        self._opening.cancel()
        self._fail(reason, timed_out=timed_out, is_intended=is_intended)
        if self._transport is not None:
            self._transport.abort()

    def retire(self, reason: str) -> None:
        """Take no more calls, and close when the calls in flight have their replies."""
        if self.is_open:
            self._flush()
            self._address.report_lost(reason, self._count_calls())
            self.is_open, self._is_retired = False, True
            self._fail_queued(reason)
        if not self._pending:
            self.close(reason, is_intended=True)

    def close_without_loop(self) -> None:
        """Close the socket after the event loop was closed. No caller waits any more."""
        self.is_open = False
        self._pending.clear()
        self._queue.clear()
        if self._transport is not None:
            close_without_loop(self._transport)

    async def aclose(self) -> None:
        """Close when the calls that wait have their replies or a second has passed."""
        self._opening.cancel()
        await asyncio.wait([self._opening])
        if self._pending:
            await asyncio.wait([self._pending[-1][0]], timeout=_CLOSE_TIMEOUT_S)
        self.close(CLOSED, is_intended=True)
        await self.wait_until_closed()

    async def wait_until_closed(self) -> None:
        """Wait until the socket is closed."""
        await asyncio.wait([self._opening])
        if self._transport is not None:
            await self._closed

    def _fail(self, reason: str, *, timed_out: bool = False, is_intended: bool = False) -> None:
        if self.is_open and not is_intended:
            self._address.report_lost(reason, self._count_calls())
        self.is_open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for waiter, *_ in self._pending:
            if not waiter.done():
                waiter.set_exception(ConnectionLost(reason, timed_out=timed_out))
        self._pending.clear()
        self._bytes_in_flight = 0
        self._fail_queued(reason)

    def _fail_queued(self, reason: str) -> None:
        for waiter, *_ in self._queue:
            if not waiter.done():
                waiter.set_exception(ConnectFailed(reason, final=False))
        self._queue.clear()


def consume_exception(task: asyncio.Task[Any]) -> None:
    """Mark the exception as retrieved; the waiters have received it, if there were any."""
    if not task.cancelled():
        task.exception()


async def wait_shared(task: asyncio.Task[T]) -> T:
    """The result of a task that others wait for too. Cancelling a waiter does not stop the task."""
    await asyncio.wait([task])
    if task.cancelled():
        raise ConnectFailed("connecting was cancelled", final=False)
    return task.result()
