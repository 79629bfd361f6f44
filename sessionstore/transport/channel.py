"""The connections from one event loop to one node. Each is opened on demand and again if lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from ..calls import Call
from .address import Address
from .durability import Durability
from .failures import CLOSED_BY_SERVER, ConnectFailed, ConnectionLost
from .retry import Send
from .shared_connection import SharedConnection
from .topology import SILENCE_S
from .wire import pack, reply_count, unpack

T = TypeVar("T")


class Channel:
    """Sends Calls to one node over a connection that is opened on demand.

    Args:
        address: where to connect to.
        timeout_s: how long a call may take.
        count_calls: the number of calls that wait for this node, on all channels to it.
        durability: what writes on this channel wait for.

    Attributes:
        connection: the last connection that was opened; it may be closed.
    """

    def __init__(
        self,
        address: Address,
        timeout_s: float,
        count_calls: Callable[[], int],
        durability: Durability | None = None,
    ) -> None:
        self.connection: SharedConnection | None = None
        self._address = address
        self._timeout_s = timeout_s
        self._count_calls = count_calls
        self._durability = durability
        self._waits: SharedWaits | None = None
        self._opening: asyncio.Task[SharedConnection] | None = None
        self._opening_since = 0.0
        self._num_unsent = 0  # calls that wait until a connection is open

    async def send(self, call: Call[Any], attempt: Send, deadline: float) -> list[Any]:
        """Send a Call once; returns one reply per command.

        Raises:
            TimeoutError: the deadline passed before it was sent.
            AttemptFailed: it did not succeed.
            NotReplicated: it succeeded, but too few replicas confirmed it.
        """
        form, asking = attempt.form, attempt.is_asking
        async with asyncio.timeout_at(deadline):
            connection = await self._open_connection()
            if connection.is_full:
                await connection.wait_for_room(deadline)
        if not connection.is_open:
            raise ConnectFailed(CLOSED_BY_SERVER, final=False)
        payload = pack(call, form, asking=asking)
        reply = connection.submit(payload, reply_count(call, form, asking=asking), deadline)
        try:
            async with asyncio.timeout_at(deadline):
                replies = unpack(await reply, form, asking=asking)
        except TimeoutError:
            raise ConnectionLost("no answer in time", timed_out=True) from None
        if self._durability is not None:
            answer = await self._wait_for_replicas(connection, self._durability, deadline)
            self._durability.check_confirmed(call, replies, answer)
        return replies

    async def _wait_for_replicas(
        self, connection: SharedConnection, durability: Durability, deadline: float
    ) -> Any:
        """The reply to a WAIT that is sent after the write; None if none comes in time."""
        if self._waits is None or self._waits.connection is not connection:
            self._waits = SharedWaits(connection, durability)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._waits.next_answer()
        except TimeoutError:
            return None

    async def _open_connection(self) -> SharedConnection:
        """The open connection. If many tasks need one at once, they share one attempt."""
        if self.connection is not None and self.connection.is_open:
            return self.connection
        if self._opening is None:
            self._opening_since = time.monotonic()
            self._opening = asyncio.get_running_loop().create_task(self._open())
            self._opening.add_done_callback(self._opened)
        self._num_unsent += 1
        try:
            return await wait_shared(self._opening)
        finally:
            self._num_unsent -= 1

    async def _open(self) -> SharedConnection:
        address = self._address
        connection = SharedConnection(address.new_connection(), self._timeout_s, self._lost)
        timeout_s = min(self._timeout_s, address.connect_timeout_s)
        deadline = self._opening_since + timeout_s
        await connection.open(deadline)
        if address.first_request:
            try:
                [reply] = await connection.submit(address.first_request, 1, deadline)
                address.check_first_reply(reply)
            except BaseException:
                connection.close("the connection could not be set up")
                raise
        self.connection = connection
        return connection

    def _opened(self, task: asyncio.Task[SharedConnection]) -> None:
        self._opening = None
        if task.cancelled():
            return
        failure = task.exception()
        if failure is None:
            self._address.report_connected()
        elif isinstance(failure, ConnectFailed):
            self._address.report_not_connected(failure, self._count_calls())

    def _lost(self, reason: str) -> None:
        self._address.log.lost(reason, self._count_calls())

    @property
    def num_calls(self) -> int:
        """Calls that wait for a connection or a reply."""
        connection = self.connection
        return self._num_unsent + (connection.num_calls if connection is not None else 0)

    async def aclose(self) -> None:
        """Close when the calls in flight have their replies or a second has passed."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self.connection is not None and not self.connection.closed.done():
            await self.connection.drain()

    def is_silent(self, now: float) -> bool:
        """Whether calls wait and the server, or the attempt to connect, was silent for a while."""
        if self._opening is not None:
            return now - self._opening_since > SILENCE_S
        return self.connection is not None and self.connection.is_silent(now)

    def was_used_since(self, then: float) -> bool:
        """Whether calls wait, or something was received since then."""
        if self._opening is not None:
            return True
        return self.connection is not None and self.connection.was_used_since(then)

    def give_up(self, reason: str) -> None:
        """Close at once because the node does not answer."""
        if self._opening is not None:
            self._opening.cancel()
        if self.connection is not None:
            self.connection.give_up(reason)

    def close(self, reason: str) -> None:
        """Close at once, as intended."""
        if self._opening is not None:
            self._opening.cancel()
        if self.connection is not None:
            self.connection.close(reason)


class SharedWaits:
    """The WAITs on one connection: one at a time, for all writes that were answered before it.

    Args:
        connection: where the writes were sent.
        durability: what they wait for.
    """

    def __init__(self, connection: SharedConnection, durability: Durability) -> None:
        self.connection = connection
        self._durability = durability
        self._sent: asyncio.Task[Any] | None = None
        self._next: asyncio.Task[Any] | None = None

    async def next_answer(self) -> Any:
        """The reply to the next WAIT, shared by all callers that ask before it is sent.

        Raises:
            ConnectionLost: no reply.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._send_next())
            self._next.add_done_callback(consume_exception)
        return await wait_shared(self._next)

    async def _send_next(self) -> Any:
        if self._sent is not None:
            await asyncio.wait([self._sent])
        self._sent, self._next = self._next, None
        if not self.connection.is_open:
            raise ConnectionLost(CLOSED_BY_SERVER)
        deadline = time.monotonic() + self._durability.timeout_s
        [answer] = await self.connection.submit(self._durability.request, 1, deadline)
        return answer


class NodeChannels(NamedTuple):
    """The channels to one node.

    There are three, so that small calls wait neither behind a long history nor behind a WAIT.
    """

    small: Channel
    bulk: Channel
    confirmed: Channel


def consume_exception(task: asyncio.Task[Any]) -> None:
    """Mark the exception as retrieved; the waiters have received it, if there were any."""
    if not task.cancelled():
        task.exception()


async def wait_shared(task: asyncio.Task[T]) -> T:
    """The result of a task that others wait for too. It goes on if one of them is cancelled."""
    await asyncio.wait([task])
    if task.cancelled():
        raise ConnectFailed("the attempt to connect was given up", final=False)
    return task.result()
