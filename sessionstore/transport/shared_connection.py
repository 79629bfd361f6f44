"""One connection over asyncio, shared by many tasks.

Calls made in one tick of the loop leave in one write. Replies come in the order of the requests,
so each belongs to the oldest call that waits. A caller that is cancelled stops waiting; its reply
is read and dropped like any other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import hiredis

from .redis_py import forget_async, open_async
from .retry import ConnectionLost

CALLS_IN_FLIGHT_LIMIT = 4096
"""Most calls that wait for replies on one connection; further ones wait to be sent."""

BYTES_IN_FLIGHT_LIMIT = 16 << 20
"""Most bytes of requests that wait for replies on one connection, likewise."""

SILENCE_S = 0.5
"""Time without a word from a server that has calls to answer, after which others are asked whether
it still is the one to ask, where there are others."""

_CLOSE_TIMEOUT_S = 1.0  # for calls in flight when a service is closed

_NOTHING = object()  # what the reader gives when it has no whole reply

_Entry = tuple["asyncio.Future[list[Any]]", int, float, int]  # reply, count, deadline, bytes


class SharedConnection(asyncio.Protocol):
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
        self._room: deque[tuple[asyncio.Future[None], float]] = deque()
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

    async def wait_for_room(self, deadline: float) -> None:
        """Wait until a call may be sent, first come first served; or until the link is closed.

        Raises:
            TimeoutError: the deadline passed.
        """
        turn = self._loop.create_future()
        self._room.append((turn, deadline))
        try:
            await turn
        except asyncio.CancelledError:
            # Those that are done stay in the queue until `_grant` passes over them.
            if not turn.cancelled() and turn.exception() is None and self.is_open:
                self._granted -= 1
                self._grant()
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
            turn, _ = self._room.popleft()
            if not turn.done():
                self._granted += 1
                turn.set_result(None)

    def is_silent(self, now: float) -> bool:
        """Whether calls wait and nothing has been heard for a while."""
        return bool(self._pending) and now - self._heard_at > SILENCE_S

    def was_used(self, since: float) -> bool:
        """Whether calls wait, or something was heard."""
        return bool(self._pending) or self._heard_at > since

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
        while self._room and (self._room[0][1] <= now or self._room[0][0].done()):
            turn, _ = self._room.popleft()
            if not turn.done():
                turn.set_exception(TimeoutError())
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
        for turn, _ in self._room:
            if not turn.done():
                turn.set_result(None)
        self._room.clear()
