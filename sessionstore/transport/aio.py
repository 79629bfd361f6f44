"""The executor for asyncio. Tasks of an event loop share one connection to each node.

There is a second connection to each node for large transfers, and a third for writes that wait for
replicas.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine
from functools import partial
from types import SimpleNamespace
from typing import Any

from ..calls import Call, Signal
from ..drive import drive_async
from ..errors import BackendUnavailable
from .address import Deployment
from .durability import Durability
from .failures import (
    CLOSED,
    CLOSED_BY_SERVER,
    AttemptFailed,
    ConnectFailed,
    ConnectionLost,
    NotSentInTime,
)
from .listening import Listener
from .reply_sizes import ReplySizes
from .retry import Attempts, Discover, Pause, Reconnect, Send, Step, Traffic, run_async
from .shared_connection import SharedConnection, consume_exception, wait_shared
from .topology import DISCOVERY_TIMEOUT_S, PROBE_TIMEOUT_S, SILENCE_S, Node, Probe
from .wire import unpack

# The connections to a node: for small Calls, for large ones, for writes that wait for replicas.
_SMALL, _BULK, _CONFIRMED = range(3)


class Router:
    """Sends the Calls of one event loop to their nodes and retries them."""

    def __init__(
        self,
        deployment: Deployment,
        timeout_s: float,
        durability: Durability | None,
        on_end: Callable[[Router], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.is_closed = False
        self._deployment = deployment
        self._timeout_s = timeout_s
        self._durability = durability
        self._on_end = on_end
        self._topology = deployment.new_topology()
        # One connection for each node and lane, so that small calls do not wait for a long history
        # or a WAIT.
        self._by_node: dict[Node, dict[int, SharedConnection]] = {}
        self._retired: weakref.WeakSet[SharedConnection] = weakref.WeakSet()
        self._reply_sizes = ReplySizes()
        self.listener = Listener(deployment, self._topology, self._discover, timeout_s)
        self._discovery: asyncio.Task[None] | None = None
        self._end_of_loop: AsyncGenerator[None] | None = None
        # Silence is checked while calls are made. True: the next call starts the checks.
        self._must_start_checks = self._topology.is_routed
        self._checked_at = 0.0

    async def execute(self, call: Call[Any]) -> list[Any]:
        """One reply per command of the Call."""
        now = time.monotonic()
        deadline = now + self._timeout_s
        failure: AttemptFailed | None = None
        node: Node | None = None
        if self._must_start_checks:
            self._schedule_check()
        if self._topology.is_known and not (self._durability and call.writes):
            node = self._topology.node_for(call)
            lanes = self._by_node.get(node)
            connection = lanes.get(self._lane(call)) if lanes is not None else None
            if connection is not None and connection.is_open:
                # Fast path: the topology is known and the connection is open.
                reply = connection.submit(call, deadline)
                try:
                    return unpack(await reply, "EVALSHA")
                except AttemptFailed as error:
                    failure = error
        # Slow path: discover, connect, retry.
        if self._end_of_loop is None:
            await self._close_with_loop()
        attempts = Attempts(call, deadline, self._topology, self._deployment.history)
        perform = partial(self._perform, call, deadline)
        return await run_async(attempts.steps(failure, node, now), perform)

    async def _perform(self, call: Call[Any], deadline: float, step: Step) -> Any:
        """Carry out one step of the attempts at a Call."""
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, Reconnect):
            return self._reconnect(step)
        if not self.is_closed:
            try:
                if isinstance(step, Discover):
                    return await self._discover(deadline)
                return await self._send(step.call or call, step, deadline)
            except ConnectFailed:
                if not self.is_closed:
                    raise
        raise ConnectFailed(CLOSED, final=True)

    async def _send(self, call: Call[Any], attempt: Send, deadline: float) -> list[Any]:
        """Send a Call once; returns one reply per command.

        Raises:
            AttemptFailed: it did not succeed.
            NotReplicated: it succeeded, but too few replicas confirmed it.
        """
        if attempt.is_alone:
            connection = self._new_connection(attempt.node)
            self._retired.add(connection)
            try:
                return await self._send_over(connection, call, attempt, deadline)
            finally:
                connection.close("the call has ended", is_intended=True)
        lane = _CONFIRMED if self._durability and call.writes else self._lane(call)
        connection = self._connection(attempt.node, lane)
        return await self._send_over(connection, call, attempt, deadline)

    async def _send_over(
        self, connection: SharedConnection, call: Call[Any], attempt: Send, deadline: float
    ) -> list[Any]:
        durability = self._durability if call.writes else None
        try:
            async with asyncio.timeout_at(deadline):
                await connection.wait_until_open()
        except TimeoutError:
            raise NotSentInTime from None
        if not connection.is_open:
            raise ConnectFailed(CLOSED_BY_SERVER, final=False)
        reply = connection.submit(call, deadline, attempt)
        try:
            async with asyncio.timeout_at(deadline):
                replies = unpack(await reply, attempt.form, asking=attempt.is_asking)
        except TimeoutError:
            if not connection.was_sent(reply):
                raise NotSentInTime from None
            raise ConnectionLost("no answer in time", timed_out=True) from None
        if durability is not None:
            answer = await connection.wait_for_replicas(durability, deadline)
            durability.check_confirmed(call, replies, answer)
        return replies

    def _lane(self, call: Call[Any]) -> int:
        if call.is_bulk:
            if call.writes:
                self._reply_sizes.forget(call)
            return _BULK
        return _BULK if call.commands and self._reply_sizes.may_be_large(call) else _SMALL

    def _connection(self, node: Node, lane: int) -> SharedConnection:
        lanes = self._by_node.setdefault(node, {})
        connection = lanes.get(lane)
        if connection is None or not connection.is_usable:
            connection = lanes[lane] = self._new_connection(node)
            if lane == _SMALL:
                connection.find_bulk_connection = partial(self._find_bulk_connection, node)
        return connection

    def _find_bulk_connection(self, node: Node, call: Call[Any]) -> SharedConnection | None:
        """The bulk connection for a large request, if it is open and has room."""
        self._reply_sizes.forget(call)
        connection = self._connection(node, _BULK)
        return connection if connection.is_open and connection.has_room else None

    def _new_connection(self, node: Node) -> SharedConnection:
        address = self._deployment.address_of(node)
        count_calls = partial(self._count_calls, node)
        return SharedConnection(address, self._timeout_s, count_calls, self._reply_sizes)

    def _reconnect(self, step: Reconnect) -> None:
        lanes = self._by_node.get(step.node, {})
        for lane, connection in list(lanes.items()):
            if connection.created_at < step.opened_before:
                del lanes[lane]
                self._retired.add(connection)
                connection.retire("the server has become a replica")

    def _count_calls(self, node: Node) -> int:
        return sum(connection.num_calls for connection in self._by_node.get(node, {}).values())

    # -- discovery -----------------------------------------------------------------------------

    async def _discover(self, deadline: float) -> None:
        """Make the topology known. If many calls need it at once, they share one discovery."""
        if not self._topology.is_known:
            try:
                async with asyncio.timeout_at(deadline):
                    await wait_shared(self._start_discovery())
            except TimeoutError:
                raise NotSentInTime from None

    def _start_discovery(self) -> asyncio.Task[None]:
        if self._discovery is None:
            send_probe = partial(self._send_probe, time.monotonic() + DISCOVERY_TIMEOUT_S)
            executor: Any = SimpleNamespace(execute=send_probe)
            flow = drive_async(self._topology.discover(), executor)
            self._discovery = self.loop.create_task(flow)
            self._discovery.add_done_callback(self._discovered)
        return self._discovery

    async def _send_probe(self, deadline: float, call: Probe) -> list[Any]:
        timeout_s = min(self._timeout_s, PROBE_TIMEOUT_S)
        deadline = min(time.monotonic() + timeout_s, deadline)
        return await self._send(call, Send(call.node), deadline)

    def _discovered(self, task: asyncio.Task[None]) -> None:
        self._discovery = None
        consume_exception(task)
        now = time.monotonic()
        for node, lanes in self._by_node.items():
            if node not in self._topology.nodes and not node.is_sentinel:
                for connection in lanes.values():
                    if connection.is_silent(now):
                        connection.close("the node has been replaced")

    # -- silent nodes --------------------------------------------------------------------------

    def _schedule_check(self) -> None:
        self._must_start_checks = False
        self._checked_at = time.monotonic()
        self.loop.call_later(SILENCE_S, self._check_silence)

    def _check_silence(self) -> None:
        """Discover again if a node is silent: another node may have replaced it.

        Runs every SILENCE_S while calls are made.
        """
        if self.is_closed:
            return
        now, then = time.monotonic(), self._checked_at
        is_used, must_discover = False, self._topology.is_polled
        for node, lanes in self._by_node.items():
            connections = lanes.values()
            is_used |= not node.is_sentinel and any(c.was_used_since(then) for c in connections)
            if any(connection.is_silent(now) for connection in connections):
                must_discover = True
                self._topology.report_silence(node)
                if node.is_replica:  # the primary can answer its calls instead
                    for connection in connections:
                        connection.close("a replica does not answer")
        self._must_start_checks = not is_used
        if is_used:
            if must_discover:
                self._start_discovery()
            self._schedule_check()

    # -- the end -------------------------------------------------------------------------------

    async def _close_with_loop(self) -> None:
        """Arrange that the connections are closed when the event loop ends.

        A loop that ends closes the asynchronous generators that were started on it. There is no
        other public way to run code at that time.
        """

        async def wait_for_end() -> AsyncGenerator[None]:
            try:
                yield
            finally:
                self._close("the event loop has ended")
                self._on_end(self)
                for connection in self._connections():
                    await connection.wait_until_closed()

        self._end_of_loop = wait_for_end()
        await anext(self._end_of_loop)

    def _connections(self) -> list[SharedConnection]:
        used = [connection for lanes in self._by_node.values() for connection in lanes.values()]
        return [*used, *self._retired, *self.listener.connections()]

    def open_connections(self) -> list[SharedConnection]:
        """The connections that are open. Any thread may call it."""
        used = [each for lanes in list(self._by_node.values()) for each in list(lanes.values())]
        return [each for each in [*used, *self.listener.used_connections()] if each.is_open]

    def _close(self, reason: str) -> None:
        for connection in self._connections():
            connection.close(reason, is_intended=True)

    async def aclose(self) -> None:
        """Close; called on the router's own loop."""
        self.is_closed = True
        await self.listener.aclose()
        if self._discovery is not None:
            self._discovery.cancel()
            await asyncio.wait([self._discovery])
        await asyncio.gather(*(connection.aclose() for connection in self._connections()))

    def close_from_elsewhere(self) -> None:
        """Close at once; called on another loop or thread."""
        self.is_closed = True
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._close, CLOSED)
        else:
            for connection in self._connections():
                connection.close_without_loop()


class AsyncRedisExecutor:
    """Executes Calls from any number of tasks, event loops and threads.

    A call takes `timeout_s` at most, retries included. Writes wait for `durability`.
    """

    def __init__(
        self, deployment: Deployment, timeout_s: float, durability: Durability | None
    ) -> None:
        self.is_cluster = deployment.is_cluster
        self._deployment = deployment
        self._timeout_s = timeout_s
        self._durability = durability
        self._by_loop: dict[asyncio.AbstractEventLoop, Router] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def execute(self, call: Call[Any]) -> Coroutine[Any, Any, list[Any]]:
        """One reply per command of the Call."""
        return self._router().execute(call)

    def traffic(self) -> Traffic:
        """What the connections have done, and how many are open now. Any thread may call it."""
        routers = list(self._by_loop.values())
        found = [each for router in routers for each in router.open_connections()]
        num_used = sum(each.is_busy for each in found)
        return self._deployment.traffic(num_used, len(found) - num_used)

    def listen(self, channel: bytes, notify: Callable[[Signal], None]) -> Callable[[], None]:
        """Receive the messages of a channel on the running loop. See `calls.Listen`."""
        return self._router().listener.listen(channel, notify)

    def _router(self) -> Router:
        loop = asyncio.get_running_loop()
        router = self._by_loop.get(loop)
        if router is not None:
            return router
        with self._lock:
            if self._is_closed:
                raise BackendUnavailable(CLOSED)
            self._forget_closed_loops()
            router = self._by_loop[loop] = Router(
                self._deployment, self._timeout_s, self._durability, self._forget
            )
        return router

    def _forget(self, router: Router) -> None:
        """Drop what belongs to an event loop that has ended."""
        with self._lock:
            self._by_loop.pop(router.loop, None)

    def _forget_closed_loops(self) -> None:
        """Drop routers whose loop was closed without `shutdown_asyncgens`, so without `_forget`."""
        for loop in [loop for loop in self._by_loop if loop.is_closed()]:
            self._by_loop.pop(loop).close_from_elsewhere()

    async def aclose(self) -> None:
        """Wait up to a second for calls in flight, then close every connection."""
        with self._lock:
            self._is_closed = True
            routers = list(self._by_loop.values())
            self._by_loop.clear()
        for router in routers:
            if router.loop is asyncio.get_running_loop():
                await router.aclose()
            else:
                router.close_from_elsewhere()
