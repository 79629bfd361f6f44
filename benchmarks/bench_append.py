"""How fast are appends, compared with redis-py, with the bare bytes, and with raw commands?

An append is `await service.append_event(session.key, Event("agent", <1 KB>))`. The measured time
includes making, encoding and checking the event. "redis-py, same script" also makes and encodes
its event, without checks. The other variants send requests that were made before. All sessions
are at their event limit, so every append trims one event; only with 512 agents they start empty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis
import redis.asyncio

import sessionstore.sync
from sessionstore import SessionKey

from .bare import BareSocket, Request
from .harness import Harness, Server, Variant, main
from .results import (
    Figure,
    Group,
    Result,
    Target,
    bars_of,
    busier_cpu_of,
    server_cpu_of,
    time_of,
)
from .workload import (
    EVENT_LIMIT,
    Recorder,
    by_hand,
    evalsha,
    make_sessions,
    new_event,
    options,
    raw_append,
    read,
    request_of,
    service_of,
    split,
    transaction,
)

OURS = "sessionstore"
OURS_HANDLE = "sessionstore, Session handle"
PLAIN = "redis-py, same script"
PLAIN_MADE = "redis-py, same script, events made before"
CEILING = "ceiling: same bytes, bare hiredis"
RAW = "raw commands in MULTI, bare hiredis"
SYNC_CEILING = "ceiling: same bytes, bare socket"
AGAINST_PLAIN = "against redis-py asyncio"

# redis-py's default pool raises an error when more connections than this are needed.
_POOL_LIMIT = 100


class _Setup:
    """The sessions and clients of one group."""

    def __init__(self, harness: Harness, server: Server, agents: int, stored: int) -> None:
        self.harness = harness
        self.server = server
        self.agents = agents
        self.service = service_of(server.url)
        self.recorder = Recorder()
        self.keys: dict[str, list[SessionKey]] = {}
        harness.at_end(self.service.aclose)
        for number, name in enumerate((OURS, OURS_HANDLE, PLAIN, CEILING, RAW)):
            app = f"append{number}-{agents:03}"
            sessions = harness.run(make_sessions(self.service, app, agents, stored))
            self.keys[name] = [session.key for session in sessions]
        self.bare = harness.connect_bare(server)
        self.note = ""
        self.requests: list[list[Request]] = []
        self.calls: list[list[tuple[Any, ...]]] = []

    # -- ours ----------------------------------------------------------------------------------

    def ours(self, count: int) -> Variant:
        """Every agent appends to its session by key."""
        each = split(count, self.agents)
        append = self.service.append_event

        async def agent(key: SessionKey) -> None:
            for _ in range(each):
                await append(key, new_event())

        async def work() -> None:
            await asyncio.gather(*map(agent, self.keys[OURS]))

        return Variant(OURS, each * self.agents, work)

    def ours_with_handle(self, count: int) -> Variant:
        """Every agent appends through a Session object, which each append updates."""
        each = split(count, self.agents)
        append = self.service.append_event
        run = self.harness.run
        handles = [run(read(self.service, key, None)) for key in self.keys[OURS_HANDLE]]

        async def agent(handle: Any) -> None:
            for _ in range(each):
                await append(handle, new_event())

        async def work() -> None:
            await asyncio.gather(*map(agent, handles))

        return Variant(OURS_HANDLE, each * self.agents, work)

    # -- for comparison ------------------------------------------------------------------------

    def connect_plain(self) -> Any:
        """redis-py's asyncio client with its defaults, or a waiting pool for many agents."""
        alone, crowd = self.agents == 1, self.agents > _POOL_LIMIT
        kind: Any = redis.asyncio.BlockingConnectionPool if crowd else redis.asyncio.ConnectionPool
        pool = kind.from_url(self.server.url, **({"timeout": None} if crowd else {}))
        client = redis.asyncio.Redis(connection_pool=pool, single_connection_client=alone)
        self.harness.at_end(pool.aclose)
        self.harness.at_end(client.aclose)
        self.note = f"a pool of {pool.max_connections} that waits" if crowd else ""
        return client

    def plain(self, count: int) -> Variant:
        """Every agent makes and encodes an event and calls redis-py's `evalsha`."""
        each, client = split(count, self.agents), self.connect_plain()
        makers: list[Callable[[], Sequence[Any]]] = [
            by_hand(self.harness.run(self.recorder.appends(key, 1))[0]) for key in self.keys[PLAIN]
        ]

        async def agent(make: Callable[[], Sequence[Any]]) -> None:
            for _ in range(each):
                await client.evalsha(*make())

        async def work() -> None:
            await asyncio.gather(*map(agent, makers))

        return Variant(PLAIN, each * self.agents, work, note=self.note)

    def plain_made(self, count: int) -> Variant:
        """The same with arguments that were made before."""
        each, client = split(count, self.agents), self.connect_plain()

        async def prepare() -> None:
            self.calls = [
                [evalsha(call) for call in await self.recorder.appends(key, each)]
                for key in self.keys[PLAIN]
            ]

        async def agent(calls: Sequence[tuple[Any, ...]]) -> None:
            for call in calls:
                await client.evalsha(*call)

        async def work() -> None:
            await asyncio.gather(*map(agent, self.calls))

        return Variant(PLAIN_MADE, each * self.agents, work, prepare, self.note)

    def ceiling(self, count: int) -> Variant:
        """The bytes that sessionstore sends, made before."""
        each = split(count, self.agents)

        async def prepare() -> None:
            self.requests = [
                [request_of(call) for call in await self.recorder.appends(key, each)]
                for key in self.keys[CEILING]
            ]

        async def work() -> None:
            await self.bare.run_agents(self.requests)

        return Variant(CEILING, each * self.agents, work, prepare)

    def raw(self, count: int) -> Variant:
        """The writes of the script as plain commands, made before."""
        each = split(count, self.agents)

        def prepare() -> None:
            self.requests = [
                [transaction(*raw_append(key, new_event(), number)) for number in range(each)]
                for key in self.keys[RAW]
            ]

        async def work() -> None:
            await self.bare.run_agents(self.requests)

        return Variant(RAW, each * self.agents, work, prepare)


def measure_async(harness: Harness, server: Server, agents: int) -> list[Group]:
    """Appends by one task or many."""
    stored = EVENT_LIMIT if agents <= _POOL_LIMIT else 0
    setup = _Setup(harness, server, agents, harness.pick(stored, 20))
    count = harness.pick(2000 if agents == 1 else 8192, agents * 2)
    fewer = count if agents == 1 else harness.pick(2048, count)
    variants = [
        setup.ours(count),
        setup.plain(fewer),
        setup.plain_made(fewer),
        setup.ceiling(count),
        setup.ours_with_handle(count),
        setup.raw(count),
    ]
    name = "asyncio, 1 agent" if agents == 1 else f"asyncio, {agents} agents"
    return _measure(harness, server, name, variants, alone=agents == 1)


def _measure(
    harness: Harness, server: Server, name: str, variants: list[Variant], *, alone: bool
) -> list[Group]:
    """Measure. With one call at a time, measure twice: on two cores, and on one."""
    if not alone:
        return [harness.measure(server, name, "append", variants)]
    groups = [harness.measure(server, f"{name}, a core each", "append", variants)]
    with harness.shared_core():
        groups.append(harness.measure(server, f"{name}, one core for both", "append", variants))
    return groups


def measure_sync(harness: Harness, server: Server, threads: int) -> list[Group]:
    """Appends by threads."""
    service = sessionstore.sync.RedisSessionService(server.url, **options())
    recorder = Recorder()
    client: Any = redis.Redis.from_url(server.url)
    pool = ThreadPoolExecutor(threads)
    for close in (service.close, client.close, pool.shutdown):
        harness.at_end(close)
    each = split(harness.pick(2000, 8), threads)
    filler = service_of(server.url)
    stored = harness.pick(EVENT_LIMIT, 20)
    keys = {
        name: [
            session.key
            for session in harness.run(
                make_sessions(filler, f"sync-{number}-{threads}", threads, stored)
            )
        ]
        for number, name in enumerate((OURS, PLAIN, SYNC_CEILING))
    }
    harness.run(filler.aclose())
    makers = [by_hand(harness.run(recorder.appends(key, 1))[0]) for key in keys[PLAIN]]
    calls: list[list[tuple[Any, ...]]] = []
    requests: list[list[Request]] = []
    sockets = [BareSocket(server.socket_path) for _ in range(threads)]
    for bare in sockets:
        harness.at_end(bare.close)

    def ours(key: SessionKey) -> None:
        for _ in range(each):
            service.append_event(key, new_event())

    def plain(make: Callable[[], Sequence[Any]]) -> None:
        for _ in range(each):
            client.evalsha(*make())

    def plain_made(calls: list[tuple[Any, ...]]) -> None:
        for call in calls:
            client.evalsha(*call)

    async def prepare() -> None:
        calls[:] = [
            [evalsha(call) for call in await recorder.appends(key, each)] for key in keys[PLAIN]
        ]

    async def prepare_bytes() -> None:
        requests[:] = [
            [request_of(call) for call in await recorder.appends(key, each)]
            for key in keys[SYNC_CEILING]
        ]

    def bare_one(number: int) -> None:
        sockets[number].run(requests[number])

    def spread(work: Any, items: Sequence[Any]) -> None:
        if threads == 1:
            work(items[0])
        else:
            list(pool.map(work, items))

    count = each * threads
    variants = [
        Variant(OURS, count, lambda: spread(ours, keys[OURS])),
        Variant(PLAIN, count, lambda: spread(plain, makers)),
        Variant(PLAIN_MADE, count, lambda: spread(plain_made, calls), prepare),
        Variant(SYNC_CEILING, count, lambda: spread(bare_one, range(threads)), prepare_bytes),
    ]
    name = "sync, 1 thread" if threads == 1 else f"sync, {threads} threads"
    return _measure(harness, server, name, variants, alone=threads == 1)


def _targets(many: Group, by_cores: dict[str, tuple[Group, Group]]) -> list[Target]:
    """The targets.

    Args:
        many: appends of 64 agents.
        by_cores: appends of one agent and of one thread, by cores: "a core each", "one core".
    """
    targets = [
        Target(
            f"append throughput, 64 agents, {AGAINST_PLAIN} with the same script",
            many.ratio(PLAIN, OURS, time_of),
            ">=",
            5,
        ),
        Target(
            "append throughput, 64 agents, against the bare hiredis ceiling",
            many.ratio(CEILING, OURS, time_of),
            ">=",
            0.6,
        ),
    ]
    for cores, (one, _) in by_cores.items():
        name = f"append latency, one agent, {AGAINST_PLAIN}, {cores}"
        targets.append(Target(name, one.ratio(OURS, PLAIN, time_of), "<=", 0.6))
    for cores, (_, sync_one) in by_cores.items():
        name = f"append time, sync, one thread, against redis-py sync, {cores}"
        targets.append(Target(name, sync_one.ratio(OURS, PLAIN, time_of), "<=", 0.8))
    ratio = many.ratio(CEILING, RAW, server_cpu_of)
    name = "server CPU per append, against MULTI/EXEC of the same writes"
    return [*targets, Target(name, ratio, "<=", 1.5)]


def run(harness: Harness) -> Result:
    """Measure."""
    server = harness.start_server()
    one, one_core = measure_async(harness, server, 1)
    [many] = measure_async(harness, server, harness.pick(64, 8))
    [crowd] = measure_async(harness, server, harness.pick(512, 128))
    sync_one, sync_one_core = measure_sync(harness, server, 1)
    [sync_many] = measure_sync(harness, server, 8)
    by_cores = {"a core each": (one, sync_one), "one core": (one_core, sync_one_core)}
    return harness.result(
        "bench_append",
        "How fast are appends of 1 KB events?",
        groups=[one, one_core, many, crowd, sync_one, sync_one_core, sync_many],
        figures=[
            Figure(
                f"64 agents, {AGAINST_PLAIN}, by CPU time of the busier side",
                many.ratio(PLAIN, OURS, busier_cpu_of),
                "x",
            ),
            Figure(
                "64 agents, against the ceiling, by CPU time of the busier side",
                many.ratio(CEILING, OURS, busier_cpu_of),
                "x",
            ),
        ],
        targets=_targets(many, by_cores),
        notes=[
            "The time of sessionstore includes making, encoding and checking every event. The time "
            "of `redis-py, same script` includes making and encoding it. The other variants send "
            "requests that were made before.",
            "Server CPU is compared between the two variants that send requests made before, "
            "because they keep the server equally busy.",
            "redis-py's default pool raises an error at 512 agents, so a waiting pool is used.",
        ],
        panels=[
            bars_of(many, (OURS, PLAIN, CEILING)),
            bars_of(one_core, (OURS, PLAIN, CEILING)),
            bars_of(sync_one_core, (OURS, PLAIN, SYNC_CEILING)),
        ],
        reading_hint="Time per append. Less is better. The ceiling sends the same bytes, made "
        "before, and does nothing else.",
    )


if __name__ == "__main__":
    main(run)
