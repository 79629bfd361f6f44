"""Calls over asyncio: tasks of an event loop share a connection to each node, and one for bulk."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from ..calls import Call
from ..errors import BackendUnavailable
from .address import Deployment
from .channel import Channel, Lanes, consume_exception, wait_shared
from .durability import Durability
from .retry import Attempts, ConnectFailed, ConnectionLost
from .shared_connection import SILENCE_S
from .topology import ANSWER_TIMEOUT_S, DISCOVERY_TIMEOUT_S, Node, redirection
from .wire import Form, ReplyRefused, pack, reply_count, unpack


class Router:
    """Finds the node of every call made in one event loop, and tries until it is answered.

    Args:
        deployment: the servers.
        timeout_s: time that a call may take, retries included.
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
        self._by_node: dict[Node, Lanes] = {}
        self._discovering: asyncio.Task[None] | None = None
        self._guard: AsyncGenerator[None] | None = None
        self._is_unwatched = self._topology.is_routed
        self._looked_at = 0.0

    async def execute(self, call: Call[Any]) -> list[Any]:
        """One reply per command of the Call."""
        deadline = self.loop.time() + self._timeout_s
        problem: Exception | None = None
        if self._is_unwatched:
            self._watch()
        if self._topology.is_known and not (self._durability and call.writes):
            node = self._topology.node_for(call)
            lanes = self._by_node.get(node)
            if lanes is not None:
                link = (lanes.bulk if call.is_bulk else lanes.small).link
                if link is not None and link.is_open:
                    # The way of nearly every call: nothing to find or to open.
                    try:
                        if link.is_full:
                            await link.wait_for_room(deadline)
                            if not link.is_open:
                                return await self._execute_with_retries(call, deadline, None)
                        payload = pack(call, Form.EVALSHA)
                        reply = link.submit(payload, reply_count(call, Form.EVALSHA), deadline)
                        return unpack(await reply, Form.EVALSHA)
                    except TimeoutError:
                        raise Attempts(call, deadline, is_routed=False).timed_out() from None
                    except (ReplyRefused, ConnectionLost) as error:
                        self._topology.notice(error, node)
                        problem = error
        return await self._execute_with_retries(call, deadline, problem)

    async def _execute_with_retries(
        self, call: Call[Any], deadline: float, problem: Exception | None
    ) -> list[Any]:
        """What `execute` does when it is not all plain: discover, connect, wait, try again."""
        attempts = Attempts(call, deadline, is_routed=self._topology.is_routed)
        node = None
        while True:
            if problem is not None:
                delay_s = attempts.next_delay(problem, self.loop.time())
                if delay_s:
                    await asyncio.sleep(delay_s)
            if self.is_closed:
                raise attempts.closed()
            try:
                asking = attempts.ask_at
                if asking is not None and node is not None:
                    node = redirection(ReplyRefused(asking), node)[1]
                else:
                    async with asyncio.timeout_at(deadline):
                        await self._discover()
                    node = self._topology.node_for(call)
                channel = self._channel(node, call)
                is_asking = asking is not None
                return await channel.ask(call, attempts.form, deadline, asking=is_asking)
            except TimeoutError:
                raise attempts.timed_out() from None
            except (ReplyRefused, ConnectionLost, ConnectFailed) as error:
                if isinstance(error, ConnectFailed) and self.is_closed:
                    raise attempts.closed() from None
                if isinstance(error, ConnectFailed) and not self._deployment.has_connected:
                    # One that was never there is a wrong address; the caller wants to know now.
                    error.final = True
                if node is not None:
                    self._topology.notice(error, node)
                problem = error

    def _channel(self, node: Node, call: Call[Any]) -> Channel:
        lanes = self._by_node.get(node)
        if lanes is None:
            address = self._deployment.address_of(node)
            small, bulk = (Channel(address, self._timeout_s) for _ in range(2))
            confirmed = Channel(address, self._timeout_s, self._durability)
            lanes = self._by_node[node] = Lanes(small, bulk, confirmed)
        if self._durability and call.writes:
            return lanes.confirmed
        return lanes.bulk if call.is_bulk else lanes.small

    async def _discover(self) -> None:
        """Let the topology be known; of many that need it at once, one asks."""
        if self._guard is None:
            self._guard = self._end_with_loop()
            await anext(self._guard)
        if not self._topology.is_known:
            await wait_shared(self._ask_anew())

    def _ask_anew(self) -> asyncio.Task[None]:
        if self._discovering is None:
            self._discovering = self.loop.create_task(self._ask_around())
            self._discovering.add_done_callback(self._discovered)
        return self._discovering

    async def _ask_around(self) -> None:
        flow = self._topology.discover()
        end = self.loop.time() + DISCOVERY_TIMEOUT_S
        outcome: Any = None
        while True:
            try:
                node, call = flow.send(outcome)
            except StopIteration:
                return
            deadline = min(self.loop.time() + min(self._timeout_s, ANSWER_TIMEOUT_S), end)
            try:
                channel = self._channel(node, call)
                outcome = await channel.ask(call, Form.EVALSHA, deadline)
            except (ReplyRefused, ConnectionLost, ConnectFailed, TimeoutError) as error:
                outcome = error

    def _discovered(self, task: asyncio.Task[None]) -> None:
        self._discovering = None
        consume_exception(task)
        now = self.loop.time()
        for node, lanes in self._by_node.items():
            if node not in self._topology.nodes and not node.is_sentinel:
                for channel in lanes:
                    if channel.is_silent(now):
                        channel.abort("the node has been replaced")

    def _watch(self) -> None:
        """Look, as long as calls are made, whether nodes that say nothing have been replaced."""
        self._is_unwatched = False
        self._looked_at = self.loop.time()
        self.loop.call_later(SILENCE_S, self._look)

    def _look(self) -> None:
        if self.is_closed:
            return
        since, now = self._looked_at, self.loop.time()
        used = [node for node, lanes in self._by_node.items() if _any_used(lanes, since)]
        if all(node.is_sentinel for node in used):
            self._is_unwatched = True  # until the next call
            return
        silent = [node for node in used if _any_silent(self._by_node[node], now)]
        for node in silent:
            self._topology.suspect(node)
            if node.is_replica:  # a primary can answer what it was asked
                for channel in self._by_node[node]:
                    channel.abort("no answer from a replica")
        if silent or self._topology.is_polled:
            self._ask_anew()
        self._watch()

    async def _end_with_loop(self) -> AsyncGenerator[None]:
        """Close the links when the loop ends, though nobody closed the service.

        A loop that ends closes the asynchronous generators that were started on it: the one
        public way to be told.
        """
        try:
            yield
        finally:
            for channel in self._channels():
                channel.abort("the event loop has ended")

    def _channels(self) -> list[Channel]:
        return [channel for lanes in self._by_node.values() for channel in lanes]

    async def aclose(self) -> None:
        """Close; from the loop that the router belongs to."""
        self.is_closed = True
        if self._discovering is not None:
            self._discovering.cancel()
            await asyncio.wait([self._discovering])
        await asyncio.gather(*(channel.aclose() for channel in self._channels()))

    def abandon(self) -> None:
        """Close at once, from another loop or thread."""
        self.is_closed = True
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._abort)

    def _abort(self) -> None:
        for channel in self._channels():
            channel.abort("the session service is closed")


class AsyncRedisExecutor:
    """Carries out Calls, from any number of tasks, loops and threads.

    Args:
        deployment: the servers.
        timeout_s: time that a call may take, retries included.
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
                raise BackendUnavailable("the session service is closed")
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
                router.abandon()


def _any_used(lanes: Lanes, since: float) -> bool:
    return any(channel.was_used(since) for channel in lanes)


def _any_silent(lanes: Lanes, now: float) -> bool:
    return any(channel.is_silent(now) for channel in lanes)
