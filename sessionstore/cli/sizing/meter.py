"""Agents that make calls on a server, and the costs of these calls."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

from ... import RedisSessionService
from ...calls import AsyncExecutor
from ..store import Store, read_infos

APP = "size"
AGENTS = 64
CONNECTIONS = 16  # one for each of as many processes
BUSY_CALLS = 1280
ALONE_CALLS = 256
ALONE_PER_SECOND = 800
IDLE_S = 1.0
SMALL_LIMIT = 20
"""The event limit of the service that trims with each append."""

_TTL_S = 600  # if the command is killed, its keys expire

Operation = Callable[[int], Awaitable[Any]]
"""A call that the agent with this number makes."""


class Usage(NamedTuple):
    """Counters of all primaries together, or how much they grew."""

    cpu_us: float
    memory_bytes: float
    in_bytes: float
    out_bytes: float  # without replication
    replicated_bytes: float  # to each replica; does not grow without a replica

    @classmethod
    async def read(cls, executor: AsyncExecutor) -> Usage:
        """The counters now."""
        infos = await read_infos(executor)

        def total(*names: str) -> float:
            return sum(float(info.get(name, "0")) for info in infos for name in names)

        return cls(
            total("used_cpu_user", "used_cpu_sys") * 1e6,
            total("used_memory"),
            total("total_net_input_bytes"),
            total("total_net_output_bytes") - total("total_net_repl_output_bytes"),
            total("master_repl_offset"),
        )

    def less(self, other: Usage) -> Usage:
        """The difference of every counter."""
        return Usage(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))

    def times(self, factor: float) -> Usage:
        """Every counter, multiplied."""
        return Usage(*(each * factor for each in self))


def medians(usages: list[Usage]) -> Usage:
    """The median of each counter."""
    return Usage(*map(median, zip(*usages, strict=True)))


NOTHING = Usage(0.0, 0.0, 0.0, 0.0, 0.0)


class Meter:
    """Makes calls on a server and measures their cost. Use `opened`.

    Attributes:
        idle: what the server uses in a second without calls of this meter.
    """

    def __init__(
        self, executor: AsyncExecutor, connect: Callable[..., RedisSessionService]
    ) -> None:
        self.services = [connect() for _ in range(CONNECTIONS)]
        self.limited = [connect(session_event_limit=SMALL_LIMIT) for _ in range(CONNECTIONS)]
        self.idle = NOTHING
        self._executor = executor
        self._reading = NOTHING  # what it costs to read the counters
        self._users: set[str] = set()

    @classmethod
    @asynccontextmanager
    async def opened(cls, store: Store) -> AsyncIterator[Meter]:
        """Connected, with the costs of an idle server known. Deletes all keys at the end."""
        prefix = f"size:{secrets.token_hex(4)}:"
        ttls: Any = dict.fromkeys(("session_ttl", "user_state_ttl", "app_state_ttl"), _TTL_S)

        def connect(session_event_limit: int | None = None) -> RedisSessionService:
            # One slot: in a cluster, one primary does all the work, like a single server.
            return RedisSessionService(
                store.url,
                key_prefix=prefix,
                partition_by="app",
                session_event_limit=session_event_limit,
                **ttls,
            )

        assert store.executor is not None
        meter = cls(store.executor, connect)
        async with AsyncExitStack() as stack:
            for service in (*meter.services, *meter.limited):
                await stack.enter_async_context(service)
            try:
                await meter._look_at_idle_server()
                yield meter
            finally:
                await meter.clean_up()

    async def _look_at_idle_server(self) -> None:
        readings = [await self.read() for _ in range(6)]
        self._reading = medians([after.less(before) for before, after in pairwise(readings)])
        before = await self.read()
        await asyncio.sleep(IDLE_S)
        idle = (await self.read()).less(before).less(self._reading)
        self.idle = idle.times(1 / IDLE_S)

    def service(self, agent: int) -> RedisSessionService:
        """The service of an agent."""
        return self.services[agent % CONNECTIONS]

    async def read(self) -> Usage:
        """The counters now."""
        return await Usage.read(self._executor)

    async def create(self, number: int, state: Mapping[str, Any], user: str | None = None) -> Any:
        """A new session, which `clean_up` deletes."""
        user = f"user{number}" if user is None else user
        self._users.add(user)
        return await self.service(number).create_session(
            app_name=APP, user_id=user, session_id=f"session{number}", state=state
        )

    async def clean_up(self) -> None:
        """Delete all that was created."""
        users = list(self._users)
        for first in range(0, len(users), AGENTS):
            await asyncio.gather(
                *(
                    self.service(number).delete_user(app_name=APP, user_id=user)
                    for number, user in enumerate(users[first : first + AGENTS])
                )
            )
        self._users.clear()
        state = await self.service(0).get_app_state(APP)
        if state:
            await self.service(0).delete_app_state(APP, *state)

    async def cost_alone(self, call: Operation) -> Usage:
        """The cost of a call that arrives at a random moment, when the server has little to do."""
        return await self._cost(lambda agent: self._with_pauses(call, agent), ALONE_CALLS)

    async def cost_busy(self, call: Operation) -> Usage:
        """The cost of a call when many agents call without a pause."""
        return await self._cost(lambda agent: self._in_a_row(call, agent), BUSY_CALLS)

    async def _with_pauses(self, call: Operation, agent: int) -> None:
        for _ in range(ALONE_CALLS // AGENTS):
            await asyncio.sleep(random.expovariate(ALONE_PER_SECOND / AGENTS))
            await call(agent)

    async def _in_a_row(self, call: Operation, agent: int) -> None:
        for _ in range(BUSY_CALLS // AGENTS):
            await call(agent)

    async def _cost(self, work: Operation, calls: int) -> Usage:
        loop = asyncio.get_running_loop()
        before, start = await self.read(), loop.time()
        await asyncio.gather(*(work(agent) for agent in range(AGENTS)))
        after, elapsed = await self.read(), loop.time() - start
        used = after.less(before).less(self._reading).less(self.idle.times(elapsed))
        return used.times(1 / calls)
