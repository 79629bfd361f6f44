"""Calls over asyncio: one connection per event loop, shared by all its tasks, and one for bulk.

Calls made in one tick of the loop leave in one write. Replies come in the order of the requests,
so each belongs to the oldest call that waits. A caller that is cancelled stops waiting; its reply
is read and dropped like any other.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import hiredis

from ..calls import Call
from ..errors import BackendUnavailable
from .address import Address
from .redis_py import forget_async, open_async
from .retry import Attempts, ConnectFailed, ConnectionLost
from .wire import Form, ReplyRefused, pack, reply_count, unpack

CALLS_IN_FLIGHT_LIMIT = 4096
"""Most calls that wait for replies on one connection; further ones wait to be sent."""

BYTES_IN_FLIGHT_LIMIT = 16 << 20
"""Most bytes of requests that wait for replies on one connection, likewise."""

_CLOSE_TIMEOUT_S = 1.0  # for calls in flight when a service is closed

_NOTHING = object()  # what the reader gives when it has no whole reply

_Entry = tuple["asyncio.Future[list[Any]]", int, float, int]  # reply, count, deadline, bytes


class Link(asyncio.Protocol):
    """A live connection and the calls that wait on it.

    Args:
        connection: redis-py's connection, which made the socket.
        timeout_s: silence, while calls wait, after which the connection is given up.
    """

    def __init__(self, connection: Any, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._transport: Any = None
        self._out: list[bytes] = []
        self._pending: deque[_Entry] = deque()
        self._partial: list[Any] = []
        self._bytes = 0
        self._heard_at = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._room: deque[asyncio.Future[None]] = deque()
        self._granted = 0
        self.is_open = False
        self.closed: asyncio.Future[None] = self._loop.create_future()

    async def open(self) -> None:
        """Connect.

        Raises:
            ConnectFailed: no connection.
        """
        timeout_s = min(self._timeout_s, self._connection.socket_connect_timeout)
        self._transport, early = await open_async(self._connection, self, timeout_s)
        self.is_open = True
        if early:
            self.data_received(early)

    # -- sending -------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether a new call has to wait before it is sent."""
        return (
            len(self._pending) + self._granted >= CALLS_IN_FLIGHT_LIMIT
            or self._bytes >= BYTES_IN_FLIGHT_LIMIT
            or bool(self._room)
        )

    async def wait_for_room(self) -> None:
        """Wait until a call may be sent, first come first served; or until the link is closed."""
        turn = self._loop.create_future()
        self._room.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and self.is_open:
                self._granted -= 1
                self._grant()
            elif turn in self._room:
                self._room.remove(turn)
            raise
        if self.is_open:
            self._granted -= 1

    def submit(self, payload: bytes, count: int, deadline: float) -> asyncio.Future[list[Any]]:
        """Send in this tick of the loop; the future gives `count` replies, or ConnectionLost."""
        reply: asyncio.Future[list[Any]] = self._loop.create_future()
        size = len(payload)
        if not self._pending:
            # Nothing to wait for: the first call of a tick leaves at once, the others together.
            self._pending.append((reply, count, deadline, size))
            self._bytes = size
            if self._watch is None:
                self._watch = self._loop.call_at(deadline, self._check_silence)
            self._transport.write(payload)
            return reply
        self._pending.append((reply, count, deadline, size))
        self._bytes += size
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(payload)
        return reply

    def _flush(self) -> None:
        if self.is_open:
            out = self._out
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        self._out.clear()

    def _grant(self) -> None:
        while (
            self._room
            and len(self._pending) + self._granted < CALLS_IN_FLIGHT_LIMIT
            and self._bytes < BYTES_IN_FLIGHT_LIMIT
        ):
            turn = self._room.popleft()
            if not turn.done():
                self._granted += 1
                turn.set_result(None)

    # -- receiving -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Hand whole replies to the calls that wait for them."""
        pending, partial = self._pending, self._partial
        self._heard_at = self._loop.time()
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
                self._bytes -= size
                if not waiter.done():
                    waiter.set_result(replies)
        except (hiredis.ProtocolError, IndexError):
            # Not RESP, or a reply that nobody asked for: nothing on this link can be trusted.
            self.abort("the server's answer is not RESP")
        self._partial = partial
        if self._room:
            self._grant()

    def _check_silence(self) -> None:
        """Fail the calls whose time is up; give up the link if the server is silent."""
        self._watch = None
        now = self._loop.time()
        is_silent = now - self._heard_at > self._timeout_s / 4
        if is_silent and self._pending and self._pending[0][2] <= now:
            self.abort("no answer in time", silent=True)
            return
        for waiter, _, deadline, _ in self._pending:
            if deadline > now:
                self._watch = self._loop.call_at(deadline, self._check_silence)
                return
            # The server is at work, only slow: its late reply is awaited and dropped.
            if not waiter.done():
                waiter.set_exception(ConnectionLost("no answer in time", silent=True))
        if self._pending:
            self._watch = self._loop.call_later(self._timeout_s / 4, self._check_silence)

    # -- the end -------------------------------------------------------------------------------

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is closed."""
        self._fail(f"connection lost ({error})" if error else "connection closed by the server")
        forget_async(self._connection)
        if not self.closed.done():
            self.closed.set_result(None)

    def abort(self, reason: str, *, silent: bool = False) -> None:
        """Close at once; calls that wait fail with ConnectionLost."""
        self._fail(reason, silent=silent)
        if self._transport is not None:
            self._transport.abort()

    async def drain(self) -> None:
        """Close once the calls that wait have their replies, within a second."""
        if self._pending:
            last = self._pending[-1][0]
            await asyncio.wait([last], timeout=_CLOSE_TIMEOUT_S)
        self.abort("the session service is closed")
        await self.closed

    def _fail(self, reason: str, *, silent: bool = False) -> None:
        self.is_open = False
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        for waiter, *_ in self._pending:
            if not waiter.done():
                waiter.set_exception(ConnectionLost(reason, silent=silent))
        self._pending.clear()
        self._bytes = 0
        for turn in self._room:
            if not turn.done():
                turn.set_result(None)
        self._room.clear()


class Channel:
    """The link of one event loop, made anew when it is lost.

    Args:
        address: where to connect to.
        timeout_s: time that a call may take.
    """

    def __init__(self, address: Address, timeout_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self._address = address
        self._timeout_s = timeout_s
        self._link: Link | None = None
        self._connecting: asyncio.Task[Link] | None = None
        self._guard: AsyncGenerator[None] | None = None
        self.is_closed = False

    async def execute(self, call: Call[Any]) -> list[Any]:
        """One reply per command of the Call."""
        deadline = self.loop.time() + self._timeout_s
        link = self._link
        problem: Exception | None = None
        if link is not None and link.is_open and not link.is_full:
            try:
                payload = pack(call, Form.BRIEF)
                reply = link.submit(payload, reply_count(call, Form.BRIEF), deadline)
                return unpack(await reply, Form.BRIEF)
            except (ReplyRefused, ConnectionLost) as error:
                problem = error
        return await self._persist(Attempts(call, deadline), call, problem)

    async def _persist(
        self, attempts: Attempts, call: Call[Any], problem: Exception | None
    ) -> list[Any]:
        """What `execute` does when it is not all plain: connect, wait for room, try again."""
        while True:
            if problem is not None:
                delay_s = attempts.next_delay(problem, self.loop.time())
                if delay_s:
                    await asyncio.sleep(delay_s)
            if self.is_closed:
                raise attempts.closed()
            try:
                async with asyncio.timeout_at(attempts.deadline):
                    link = await self._open_link()
                    if link.is_full:
                        await link.wait_for_room()
                if not link.is_open:
                    problem = ConnectFailed("connection closed by the server", final=False)
                    continue
            except TimeoutError:
                raise attempts.timed_out() from None
            except ConnectFailed as error:
                problem = error
                continue
            form = attempts.form
            reply = link.submit(pack(call, form), reply_count(call, form), attempts.deadline)
            try:
                async with asyncio.timeout_at(attempts.deadline):
                    return unpack(await reply, form)
            except TimeoutError:
                problem = ConnectionLost("no answer in time", silent=True)
            except (ReplyRefused, ConnectionLost) as error:
                problem = error

    async def _open_link(self) -> Link:
        """The live link; of many that ask for it at once, one connects."""
        if self._link is not None and self._link.is_open:
            return self._link
        if self._connecting is None:
            self._connecting = self.loop.create_task(self._connect())
            self._connecting.add_done_callback(self._connected)
        task = self._connecting
        await asyncio.wait([task])  # unlike awaiting it, leaves it alone when the caller goes
        if task.cancelled():
            raise ConnectFailed("the session service is closed", final=True)
        return task.result()

    async def _connect(self) -> Link:
        link = Link(self._address.new_connection(), self._timeout_s)
        try:
            await link.open()
        except ConnectFailed as error:
            # A server that was there comes back, after a restart or failover; one that never
            # was is a wrong address, and the caller wants to know at once.
            final = error.final or not self._address.was_reached
            raise ConnectFailed(str(error), final=final) from None
        self._address.was_reached = True
        self._link = link
        if self._guard is None:
            self._guard = self._end_with_loop()
            await anext(self._guard)
        return link

    async def _end_with_loop(self) -> AsyncGenerator[None]:
        """Close the link when the loop ends, though nobody closed the service.

        A loop that ends closes the asynchronous generators that were started on it: the one
        public way to be told.
        """
        try:
            yield
        finally:
            if self._link is not None:
                self._link.abort("the event loop has ended")

    def _connected(self, task: asyncio.Task[Link]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # those who wait have been told; nobody may be left waiting

    async def aclose(self) -> None:
        """Close; from the loop that the channel belongs to."""
        self.is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._link is not None and not self._link.closed.done():
            await self._link.drain()

    def abandon(self) -> None:
        """Close at once, from another loop or thread."""
        self.is_closed = True
        link = self._link
        if link is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(link.abort, "the session service is closed")


class Lanes(NamedTuple):
    """The channels of one event loop: a long history must not hold up small calls behind it."""

    small: Channel
    bulk: Channel


class AsyncRedisExecutor:
    """Carries out Calls on a server, from any number of tasks, loops and threads.

    Args:
        address: where to connect to.
        timeout_s: time that a call may take, retries included.
    """

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._by_loop: weakref.WeakKeyDictionary[Any, Lanes] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._latest: Lanes | None = None
        self._is_closed = False

    async def execute(self, call: Call[Any]) -> list[Any]:
        """One reply per command of the Call."""
        lanes = self._latest
        if lanes is None or lanes.small.loop is not asyncio.get_running_loop():
            lanes = self._lanes()
        return await (lanes.bulk if call.is_bulk else lanes.small).execute(call)

    def _lanes(self) -> Lanes:
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._is_closed:
                raise BackendUnavailable("the session service is closed")
            lanes = self._by_loop.get(loop)
            if lanes is None:
                small, bulk = (Channel(self._address, self._timeout_s) for _ in range(2))
                lanes = self._by_loop[loop] = Lanes(small, bulk)
            self._latest = lanes
        return lanes

    async def aclose(self) -> None:
        """Wait up to a second for calls in flight, then close every connection."""
        with self._lock:
            self._is_closed = True
            self._latest = None
            channels = [channel for lanes in self._by_loop.values() for channel in lanes]
            self._by_loop.clear()
        here = [channel for channel in channels if channel.loop is asyncio.get_running_loop()]
        for channel in channels:
            if channel not in here:
                channel.abandon()
        await asyncio.gather(*(channel.aclose() for channel in here))
