"""Receives the messages of scripts, for asyncio. All channels share one connection to each node.

Channels are sharded: a message stays on the node that has the channel's slot. A message only wakes
up a watcher, so it may be lost. After a failure a channel is subscribed to again soon.
"""

from __future__ import annotations

import asyncio
import random
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import hiredis

from ..calls import Call, Signal, signal_of
from ..errors import SessionStoreError
from .address import Deployment
from .failures import AttemptFailed, ConnectionLost, ErrorReply, NotSentInTime
from .log import logger
from .reply_sizes import ReplySizes
from .shared_connection import NOTHING, SharedConnection
from .topology import Node, Topology
from .wire import pack_command

_CHECK_S = 1.0  # how often connections are checked
_SILENCE_S = 2.5  # how long a server may take to answer; then the connection is replaced
_FIRST_DELAY_S = 0.02  # before another attempt to connect or subscribe
_LONGEST_DELAY_S = 1.0

_SUBSCRIBE, _UNSUBSCRIBE = b"SSUBSCRIBE", b"SUNSUBSCRIBE"
# Unsubscribing from this channel tests the connection. PING would need another permission.
_NO_CHANNEL = b"none"


class ChannelConnection(SharedConnection):
    """A connection that only receives messages. It calls `owner` on every event."""

    def __init__(self, deployment: Deployment, node: Node, timeout_s: float, owner: Any) -> None:
        super().__init__(deployment.address_of(node), timeout_s, lambda: 0, ReplySizes())
        self.node = node
        self._owner = owner
        # Commands whose reply is awaited, and when they were sent. An error reply names no channel,
        # but replies come in the order of the commands.
        self._asked: deque[tuple[bytes, bytes, float]] = deque()

    def ask(self, verb: bytes, channel: bytes) -> None:
        """Send a command at the end of this tick of the loop."""
        self._asked.append((verb, channel, time.monotonic()))
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(pack_command((verb, channel)))

    def check(self, now: float) -> None:
        """Test the connection; close it if the server does not answer."""
        if self._asked and now - max(self._active_at, self._asked[0][2]) > _SILENCE_S:
            self.close("no answer in time", timed_out=True)
        elif self.is_open and not self._asked and now - self._active_at > _CHECK_S / 2:
            self.ask(_UNSUBSCRIBE, _NO_CHANNEL)

    def data_received(self, data: bytes) -> None:
        """Pass on messages and replies."""
        self._active_at = time.monotonic()
        self._history.received += len(data)
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not NOTHING:
                self._receive(reply)
        except (hiredis.ProtocolError, IndexError, TypeError):
            self.close("the server's answer is not RESP")

    def _receive(self, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            _, channel, _ = self._asked.popleft()
            self._owner.refused(self, channel, ErrorReply(str(reply)))
            return
        kind, channel = reply[0], reply[1]
        if kind == b"smessage":
            self._owner.received(channel, reply[2])
        elif kind == b"ssubscribe":
            self._asked.popleft()
            self._owner.confirmed(self, channel)
        elif kind == b"sunsubscribe":
            if self._asked and self._asked[0][:2] == (_UNSUBSCRIBE, channel):
                self._asked.popleft()
            else:  # the node no longer has the slot
                self._owner.dropped(self, channel)

    def _fail(self, reason: str, *, timed_out: bool = False, is_intended: bool = False) -> None:
        super()._fail(reason, timed_out=timed_out, is_intended=is_intended)
        self._owner.lost(self, ConnectionLost(reason, timed_out=timed_out), is_intended=is_intended)


class _Channel:
    """A channel and its listeners."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[Signal], None]] = []
        self.connection: ChannelConnection | None = None  # None: it has to be subscribed to

    def notify(self, signal: Signal) -> None:
        """Call all listeners."""
        for notify in list(self.listeners):
            notify(signal)


class Listener:
    """The channels of one event loop.

    Args:
        deployment: how to connect.
        topology: where the slots are.
        discover: makes the topology known by a deadline.
        timeout_s: how long connecting may take.
    """

    def __init__(
        self,
        deployment: Deployment,
        topology: Topology,
        discover: Callable[[float], Awaitable[None]],
        timeout_s: float,
    ) -> None:
        self._deployment = deployment
        self._topology = topology
        self._discover = discover
        self._timeout_s = timeout_s
        self._channels: dict[bytes, _Channel] = {}
        self._waiting: set[bytes] = set()  # channels that have to be subscribed to
        self._by_node: dict[Node, ChannelConnection] = {}
        self._closing: weakref.WeakSet[ChannelConnection] = weakref.WeakSet()
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    def listen(self, channel: bytes, notify: Callable[[Signal], None]) -> Callable[[], None]:
        """Receive messages of a channel until the returned function is called."""
        entry = self._channels.setdefault(channel, _Channel())
        entry.listeners.append(notify)
        if entry.connection is None:
            self._want(channel)
        else:  # once more, for the reply
            entry.connection.ask(_SUBSCRIBE, channel)
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._run())

        def stop() -> None:
            if notify in entry.listeners:
                entry.listeners.remove(notify)
            if not entry.listeners and self._channels.get(channel) is entry:
                del self._channels[channel]
                self._waiting.discard(channel)
                if entry.connection is not None and entry.connection.is_open:
                    entry.connection.ask(_UNSUBSCRIBE, channel)
                self._changed.set()

        return stop

    def _want(self, channel: bytes) -> None:
        self._waiting.add(channel)
        self._changed.set()

    # -- the task ------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Subscribe, and watch the connections, while there are channels."""
        delay_s = _FIRST_DELAY_S
        try:
            while self._channels and not self._is_closed:
                self._changed.clear()
                try:
                    await self._subscribe_to_all()
                except (AttemptFailed, SessionStoreError) as failure:
                    kind = getattr(failure, "kind", type(failure).__name__)
                    logger.debug("listening failed (%s); retry in %.3f s", kind, delay_s)
                    await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))
                    delay_s = min(delay_s * 2, _LONGEST_DELAY_S)
                    continue
                delay_s = _FIRST_DELAY_S
                self._check_connections()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_CHECK_S):
                        await self._changed.wait()
        finally:
            self.close()

    async def _subscribe_to_all(self) -> None:
        """Subscribe to the channels that wait for it. Raises the first failure at the end."""
        if not self._waiting:
            return
        if not self._topology.is_known:
            await self._discover(time.monotonic() + self._timeout_s)
        by_node: dict[Node, list[bytes]] = {}
        for channel in self._waiting:
            call = Call("ssubscribe", list, commands=((_SUBSCRIBE, channel),))
            by_node.setdefault(self._topology.node_for(call), []).append(channel)
        attempts = (self._subscribe(node, channels) for node, channels in by_node.items())
        for failure in await asyncio.gather(*attempts, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _subscribe(self, node: Node, channels: list[bytes]) -> None:
        connection = self._by_node.get(node)
        if connection is None or not connection.is_usable:
            connection = ChannelConnection(self._deployment, node, self._timeout_s, self)
            self._by_node[node] = connection
        try:
            async with asyncio.timeout(self._timeout_s):
                await connection.wait_until_open()
        except TimeoutError:
            raise NotSentInTime from None
        except AttemptFailed as failure:
            self._topology.report_failure(failure, node)
            raise
        if not connection.is_open:
            raise ConnectionLost("the connection was closed at once")
        for channel in channels:
            entry = self._channels.get(channel)
            if entry is not None and channel in self._waiting:
                self._waiting.discard(channel)
                entry.connection = connection
                connection.ask(_SUBSCRIBE, channel)

    def _check_connections(self) -> None:
        """Replace connections that are silent, and close those that are no longer needed."""
        now = time.monotonic()
        used = {entry.connection for entry in self._channels.values()}
        for node, connection in list(self._by_node.items()):
            is_gone = self._topology.is_known and node not in self._topology.nodes
            if is_gone and self._topology.is_routed:
                connection.close("the node has been replaced", is_intended=True)
            elif connection.is_open and connection not in used and not self._waiting:
                connection.close("it is not needed", is_intended=True)
            else:
                connection.check(now)

    # -- what connections report ---------------------------------------------------------------

    def received(self, channel: bytes, message: bytes) -> None:
        """A message was received."""
        entry = self._channels.get(channel)
        if entry is not None:
            entry.notify(signal_of(message))

    def confirmed(self, connection: ChannelConnection, channel: bytes) -> None:
        """The node has confirmed a subscription."""
        entry = self._channels.get(channel)
        if entry is not None and entry.connection is connection:
            entry.notify("listening")

    def dropped(self, connection: ChannelConnection, channel: bytes) -> None:
        """The node has dropped a channel, because its slot has moved."""
        entry = self._channels.get(channel)
        if entry is not None and entry.connection is connection:
            self._topology.is_known = not self._topology.is_routed
            self._lose(channel, entry)

    def refused(self, connection: ChannelConnection, channel: bytes, failure: ErrorReply) -> None:
        """The node refused a subscription."""
        entry = self._channels.get(channel)
        if entry is None or entry.connection is not connection:
            return
        self._topology.report_failure(failure, connection.node)
        if failure.is_redirection or failure.is_transient:
            entry.connection = None
            entry.notify("lost")
            # Two nodes may redirect to each other for a while.
            self._loop.call_later(_FIRST_DELAY_S * random.uniform(1, 3), self._want_again, channel)
            if failure.needs_new_connection:
                connection.close(f"the server replied {failure.kind}", is_intended=True)
        else:
            entry.notify("refused")

    def _want_again(self, channel: bytes) -> None:
        entry = self._channels.get(channel)
        if entry is not None and entry.connection is None:
            self._want(channel)

    def lost(
        self, connection: ChannelConnection, failure: AttemptFailed, *, is_intended: bool
    ) -> None:
        """A connection is closed."""
        if self._by_node.get(connection.node) is not connection:
            return
        del self._by_node[connection.node]
        self._closing.add(connection)
        if not is_intended:
            self._topology.report_failure(failure, connection.node)
        for channel, entry in list(self._channels.items()):
            if entry.connection is connection:
                self._lose(channel, entry)

    def _lose(self, channel: bytes, entry: _Channel) -> None:
        entry.connection = None
        entry.notify("lost")
        self._want(channel)

    # -- the end -------------------------------------------------------------------------------

    def used_connections(self) -> list[ChannelConnection]:
        """The connections that receive messages, or will. Any thread may call it."""
        return list(self._by_node.values())

    def connections(self) -> list[ChannelConnection]:
        """The connections whose socket may still be open."""
        return [*self._by_node.values(), *self._closing]

    def close(self) -> None:
        """Close all connections. Channels receive no more messages."""
        for connection in list(self._by_node.values()):
            connection.close("nobody listens", is_intended=True)

    async def aclose(self) -> None:
        """Close all connections, and wait until they are closed."""
        self._is_closed = True
        self._channels.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self.close()
        for connection in self.connections():
            await connection.wait_until_closed()
