"""The links from one event loop to one node, each made anew when it is lost."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple, TypeVar

from ..calls import Call
from .address import Address
from .durability import Durability
from .retry import ConnectFailed, ConnectionLost, check_greeting
from .shared_connection import SILENCE_S, SharedConnection
from .wire import Form, pack, reply_count, unpack

T = TypeVar("T")


class Channel:
    """The link to one node from one event loop, made anew when it is lost.

    Args:
        address: where to connect to.
        timeout_s: time that a call may take.
        durability: what calls on this channel wait for.
    """

    def __init__(
        self, address: Address, timeout_s: float, durability: Durability | None = None
    ) -> None:
        self.link: SharedConnection | None = None
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._timeout_s = timeout_s
        self._durability = durability
        self._confirmations: Confirmations | None = None
        self._opening: asyncio.Task[SharedConnection] | None = None
        self._opening_since = 0.0

    async def ask(
        self, call: Call[Any], form: Form, deadline: float, *, asking: bool = False
    ) -> list[Any]:
        """One attempt at a call: one reply per command.

        Raises:
            TimeoutError: nothing was sent by the deadline.
            ConnectFailed, ConnectionLost, ReplyRefused: it did not succeed.
            NotReplicated: it did, but was not confirmed.
        """
        async with asyncio.timeout_at(deadline):
            link = await self._open_link()
            if link.is_full:
                await link.wait_for_room(deadline)
        if not link.is_open:
            raise ConnectFailed("connection closed by the server", final=False)
        payload = pack(call, form, asking=asking)
        reply = link.submit(payload, reply_count(call, form, asking=asking), deadline)
        try:
            async with asyncio.timeout_at(deadline):
                replies = unpack(await reply, form, asking=asking)
        except TimeoutError:
            raise ConnectionLost("no answer in time", silent=True) from None
        if self._durability is not None:
            answer = await self._confirmation(link, self._durability, deadline)
            self._durability.judge(call, replies, answer)
        return replies

    async def _confirmation(
        self, link: SharedConnection, durability: Durability, deadline: float
    ) -> Any:
        """The answer to a WAIT that was sent by now or later; None if there is none in time."""
        if self._confirmations is None or self._confirmations.link is not link:
            self._confirmations = Confirmations(link, durability)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._confirmations.next_answer()
        except TimeoutError:
            return None

    async def _open_link(self) -> SharedConnection:
        """The live link; of many that ask for it at once, one connects."""
        if self.link is not None and self.link.is_open:
            return self.link
        if self._opening is None:
            self._opening_since = self._loop.time()
            self._opening = self._loop.create_task(self._open())
            self._opening.add_done_callback(self._opened)
        return await wait_shared(self._opening)

    async def _open(self) -> SharedConnection:
        link = SharedConnection(self._address.new_connection(), self._timeout_s)
        await link.open()
        if self._address.greeting:
            deadline = self._loop.time() + self._timeout_s
            check_greeting(await link.submit(self._address.greeting, 1, deadline))
        self._address.history.has_connected = True
        self.link = link
        return link

    def _opened(self, task: asyncio.Task[SharedConnection]) -> None:
        self._opening = None
        consume_exception(task)

    async def aclose(self) -> None:
        """Close, once the calls in flight have their replies or a second has passed."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self.link is not None and not self.link.closed.done():
            await self.link.drain()

    def is_silent(self, now: float) -> bool:
        """Whether calls wait and nothing has been heard for a while, if only of a connection."""
        if self._opening is not None:
            return now - self._opening_since > SILENCE_S
        return self.link is not None and self.link.is_silent(now)

    def was_used(self, since: float) -> bool:
        """Whether calls wait, or something was heard."""
        is_heard = self.link is not None and self.link.was_used(since)
        return is_heard or self._opening is not None

    def abort(self, reason: str) -> None:
        """Close at once."""
        if self._opening is not None:
            self._opening.cancel()
        if self.link is not None:
            self.link.abort(reason)


class Confirmations:
    """The WAITs on one link: one at a time, for all writes answered before it is sent.

    Args:
        link: where the writes were sent.
        durability: what is waited for.
    """

    def __init__(self, link: SharedConnection, durability: Durability) -> None:
        self.link = link
        self._durability = durability
        self._sent: asyncio.Task[Any] | None = None
        self._next: asyncio.Task[Any] | None = None

    async def next_answer(self) -> Any:
        """The answer to the next WAIT; who asks while it is held back shares it.

        Raises:
            ConnectionLost: there is none.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._ask())
            self._next.add_done_callback(consume_exception)
        return await wait_shared(self._next)

    async def _ask(self) -> Any:
        if self._sent is not None:
            await asyncio.wait([self._sent])
        self._sent, self._next = self._next, None
        if not self.link.is_open:
            raise ConnectionLost("connection closed by the server")
        deadline = asyncio.get_running_loop().time() + self._durability.timeout_s
        [answer] = await self.link.submit(self._durability.request, 1, deadline)
        return answer


class Lanes(NamedTuple):
    """The channels to one node: a long history must not hold up small calls behind it, nor a
    write that waits for replicas."""

    small: Channel
    bulk: Channel
    confirmed: Channel


def consume_exception(task: asyncio.Task[Any]) -> None:
    """Take note of a failure. Those who waited have been told; there may be none."""
    if not task.cancelled():
        task.exception()


async def wait_shared(task: asyncio.Task[T]) -> T:
    """The result of a task that others wait for too: it goes on when one of them is cancelled."""
    await asyncio.wait([task])
    if task.cancelled():
        raise ConnectFailed("given up", final=False)
    return task.result()
