"""The executor for asyncio. Tasks of an event loop share one connection to each node.

There is a second connection to each node for large transfers, and a third for writes that wait for
replicas.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Coroutine
from functools import partial
from typing import Any

from ..calls import Call
from ..drive import drive_async
from ..errors import BackendUnavailable
from .address import Deployment
from .channel import Channel, NodeChannels, consume_exception, wait_shared
from .durability import Durability
from .failures import AttemptFailed, ConnectFailed
from .retry import (
    CLOSED,
    Attempts,
    Discover,
    Pause,
    Send,
    Step,
    not_sent_in_time,
    run_async,
)
from .topology import DISCOVERY_TIMEOUT_S, PROBE_TIMEOUT_S, SILENCE_S, Node, Probe
from .wire import Form, pack, reply_count, unpack


class Router:
    """Sends the Calls of one event loop to their nodes and retries them.

    Args:
        deployment: the servers.
        timeout_s: how long a call may take, retries included.
        durability: what writes wait for.
    """

    def __init__(
        self, deployment: Deployment, timeout_s: float, durability: Durability | None
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.is_closed = False
        self._deployment = deployment
        self._timeout_s = timeout_s
        self._durability = durability
        self._topology = deployment.new_topology()
        self._by_node: dict[Node, NodeChannels] = {}
        self._discovery: asyncio.Task[None] | None = None
        self._end_of_loop: AsyncGenerator[None] | None = None
        # Silence is checked while calls are made. The next call has to start that.
        self._must_start_checks = self._topology.is_routed
        self._checked_at = 0.0

    async def execute(self, call: Call[Any]) -> list[Any]:
        """One reply per command of the Call."""
        deadline = time.monotonic() + self._timeout_s
        failure: AttemptFailed | None = None
        node: Node | None = None
        if self._must_start_checks:
            self._schedule_check()
        if self._topology.is_known and not (self._durability and call.writes):
            node = self._topology.node_for(call)
            channels = self._by_node.get(node)
            if channels is not None:
                connection = (channels.bulk if call.is_bulk else channels.small).connection
                if connection is not None and connection.is_open:
                    # Fast path: the topology is known and the connection is open.
                    try:
                        if connection.is_full:
                            await connection.wait_for_room(deadline)
                        payload = pack(call, Form.EVALSHA)
                        count = reply_count(call, Form.EVALSHA)
                        reply = connection.submit(payload, count, deadline)
                        return unpack(await reply, Form.EVALSHA)
                    except TimeoutError:
                        raise not_sent_in_time(call) from None
                    except AttemptFailed as error:
                        failure = error
        # Slow path: discover, connect, retry.
        if self._end_of_loop is None:
            await self._close_with_loop()
        attempts = Attempts(call, deadline, self._topology, self._deployment.history)
        perform = partial(self._perform, call, deadline)
        return await run_async(attempts.steps(failure, node), perform)

    async def _perform(self, call: Call[Any], deadline: float, step: Step) -> Any:
        """Carry out one step of the attempts at a Call."""
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if self.is_closed:
            raise ConnectFailed(CLOSED, final=True)
        try:
            if isinstance(step, Discover):
                async with asyncio.timeout_at(deadline):
                    return await self._discover()
            return await self._channel(step.node, call).send(call, step, deadline)
        except ConnectFailed:
            if self.is_closed:  # which is why it failed
                raise ConnectFailed(CLOSED, final=True) from None
            raise

    def _channel(self, node: Node, call: Call[Any]) -> Channel:
        channels = self._by_node.get(node)
        if channels is None:
            address = self._deployment.address_of(node)
            count_calls = partial(self._count_calls, node)
            small, bulk, confirmed = (
                Channel(address, self._timeout_s, count_calls, durability)
                for durability in (None, None, self._durability)
            )
            channels = self._by_node[node] = NodeChannels(small, bulk, confirmed)
        if self._durability and call.writes:
            return channels.confirmed
        return channels.bulk if call.is_bulk else channels.small

    def _count_calls(self, node: Node) -> int:
        return sum(channel.num_calls for channel in self._by_node[node])

    # -- discovery -----------------------------------------------------------------------------

    async def _discover(self) -> None:
        """Make the topology known. If many calls need it at once, they share one discovery."""
        if not self._topology.is_known:
            await wait_shared(self._start_discovery())

    def _start_discovery(self) -> asyncio.Task[None]:
        if self._discovery is None:
            executor = _ProbeExecutor(self, time.monotonic() + DISCOVERY_TIMEOUT_S)
            flow = drive_async(self._topology.discover(), executor)
            self._discovery = self.loop.create_task(flow)
            self._discovery.add_done_callback(self._discovered)
        return self._discovery

    async def probe(self, call: Probe, deadline: float) -> list[Any]:
        """Send a question about the topology; raises AttemptFailed or TimeoutError."""
        timeout_s = min(self._timeout_s, PROBE_TIMEOUT_S)
        deadline = min(time.monotonic() + timeout_s, deadline)
        attempt = Send(call.node, Form.EVALSHA, is_asking=False)
        return await self._channel(call.node, call).send(call, attempt, deadline)

    def _discovered(self, task: asyncio.Task[None]) -> None:
        self._discovery = None
        consume_exception(task)
        now = time.monotonic()
        for node, channels in self._by_node.items():
            if node not in self._topology.nodes and not node.is_sentinel:
                for channel in channels:
                    if channel.is_silent(now):
                        channel.give_up("the node has been replaced")

    # -- silent nodes --------------------------------------------------------------------------

    def _schedule_check(self) -> None:
        self._must_start_checks = False
        self._checked_at = time.monotonic()
        self.loop.call_later(SILENCE_S, self._check_silence)

    def _check_silence(self) -> None:
        """Discover again if a node is silent: it may have been replaced without closing anything.

        This goes on every SILENCE_S as long as calls are made.
        """
        if self.is_closed:
            return
        now, then = time.monotonic(), self._checked_at
        used = [
            node
            for node, channels in self._by_node.items()
            if any(channel.was_used_since(then) for channel in channels)
        ]
        if all(node.is_sentinel for node in used):
            self._must_start_checks = True
            return
        silent = [
            node for node in used if any(channel.is_silent(now) for channel in self._by_node[node])
        ]
        for node in silent:
            self._topology.report_silence(node)
            if node.is_replica:  # the primary can answer its calls instead
                for channel in self._by_node[node]:
                    channel.give_up("a replica does not answer")
        if silent or self._topology.is_polled:
            self._start_discovery()
        self._schedule_check()

    # -- the end -------------------------------------------------------------------------------

    async def _close_with_loop(self) -> None:
        """Arrange that the connections are closed when the event loop ends.

        A loop that ends closes the asynchronous generators that were started on it. There is no
        other public way to run something then.
        """

        async def wait_for_end() -> AsyncGenerator[None]:
            try:
                yield
            finally:
                self._close("the event loop has ended")

        self._end_of_loop = wait_for_end()
        await anext(self._end_of_loop)

    def _channels(self) -> list[Channel]:
        return [channel for channels in self._by_node.values() for channel in channels]

    def _close(self, reason: str) -> None:
        for channel in self._channels():
            channel.close(reason)

    async def aclose(self) -> None:
        """Close; called on the router's own loop."""
        self.is_closed = True
        if self._discovery is not None:
            self._discovery.cancel()
            await asyncio.wait([self._discovery])
        await asyncio.gather(*(channel.aclose() for channel in self._channels()))

    def close_from_elsewhere(self) -> None:
        """Close at once; called on another loop or thread."""
        self.is_closed = True
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._close, CLOSED)


class _ProbeExecutor:
    """Runs a discovery: sends every Probe to its node, until a deadline."""

    def __init__(self, router: Router, deadline: float) -> None:
        self._router = router
        self._deadline = deadline

    async def execute(self, call: Call[Any]) -> list[Any]:
        assert isinstance(call, Probe)
        return await self._router.probe(call, self._deadline)

    async def aclose(self) -> None:
        """Nothing to close."""


class AsyncRedisExecutor:
    """Executes Calls from any number of tasks, event loops and threads.

    Args:
        deployment: the servers.
        timeout_s: how long a call may take, retries included.
        durability: what writes wait for; None = nothing.
    """

    def __init__(
        self, deployment: Deployment, timeout_s: float, durability: Durability | None = None
    ) -> None:
        self.is_cluster = deployment.is_cluster
        self._deployment = deployment
        self._timeout_s = timeout_s
        self._durability = durability
        self._by_loop: weakref.WeakKeyDictionary[Any, Router] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._latest: Router | None = None
        self._is_closed = False

    def execute(self, call: Call[Any]) -> Coroutine[Any, Any, list[Any]]:
        """One reply per command of the Call."""
        router = self._latest
        if router is None or router.loop is not asyncio.get_running_loop():
            router = self._router()
        return router.execute(call)

    def _router(self) -> Router:
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._is_closed:
                raise BackendUnavailable(CLOSED)
            router = self._by_loop.get(loop)
            if router is None:
                router = Router(self._deployment, self._timeout_s, self._durability)
                self._by_loop[loop] = router
            self._latest = router
        return router

    async def aclose(self) -> None:
        """Wait up to a second for calls in flight, then close every connection."""
        with self._lock:
            self._is_closed = True
            self._latest = None
            routers = list(self._by_loop.values())
            self._by_loop.clear()
        for router in routers:
            if router.loop is asyncio.get_running_loop():
                await router.aclose()
            else:
                router.close_from_elsewhere()
