"""What does a cluster cost the client?

The same appends of 1 KB events go to one server, to three servers with one service each, and to a
cluster of three primaries, all over TCP on loopback. The client's CPU time per append is compared,
because the servers work in parallel. With three servers fewer calls share a socket read or write,
so the client needs more of them than with one. Routing adds to that.

A read in a cluster asks two servers, because the app state has a slot of its own, unless the
service keeps a copy (`app_state_max_age`). The reads are of sessions with the newest 20 events.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import sessionstore.sync
from sessionstore import RedisSessionService, SessionKey
from sessionstore.keys import Keys
from sessionstore.transport.topology import SLOTS, slot_of_key

from .harness import Harness, Variant, main
from .results import Figure, Result, Target, bars_of, client_cpu_of, time_of
from .results import Group as Measured
from .rigs.clusters import Cluster
from .rigs.nodes import CONFIG, HOST, Group
from .workload import EVENT_LIMIT, make_sessions, new_event, options, read, service_of, split

ONE = "one server"
THREE = "three servers, a service each"
CLUSTER = "cluster of three primaries"
COPIED = "cluster, app_state_max_age=60"

_USERS = 10_000
_PRIMARIES = 3
_READ_EVENTS = 20


class Servers(Group):
    """Servers that are not connected to each other.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        super().__init__(None)
        self._count = count

    @property
    def urls(self) -> list[str]:
        """The URL of each."""
        return [f"redis://{HOST}:{node.port}" for node in self.nodes]

    def _form(self) -> None:
        for node in self._add([f"server-{number}" for number in range(self._count)], CONFIG):
            node.wait_for_answer()

    def _is_settled(self) -> bool:
        return all(node.client.ping() for node in self.nodes)


class _Setting:
    """The URLs and the sessions of each variant."""

    def __init__(self, harness: Harness, agents: int) -> None:
        self.harness = harness
        self.agents = agents
        one, three, cluster = Servers(1), Servers(_PRIMARIES), Cluster(_PRIMARIES, replicas=0)
        for group in (one, three, cluster):
            harness.at_end(group.close)
            group.start()
        self.urls = {ONE: one.urls, THREE: three.urls, CLUSTER: [cluster.url]}
        stored = harness.pick(EVENT_LIMIT, 4)
        self.keys = {
            name: harness.run(self._fill(urls, stored)) for name, urls in self.urls.items()
        }

    async def _fill(self, urls: Sequence[str], stored: int) -> list[list[SessionKey]]:
        """New sessions, the same number on each URL."""
        found = []
        for url in urls:
            async with service_of(url) as service:
                count = split(self.agents, len(urls))
                sessions = await make_sessions(service, "routing", count, stored)
                found.append([session.key for session in sessions])
        return found

    def variant(self, name: str, count: int) -> Variant:
        """Every agent is a task and appends to its own session."""
        services = [service_of(url) for url in self.urls[name]]
        for service in services:
            self.harness.at_end(service.aclose)
        pairs = list(zip(services, self.keys[name], strict=True))
        agents = sum(len(keys) for _, keys in pairs)
        each = split(count, agents)

        async def agent(service: RedisSessionService, key: SessionKey) -> None:
            for _ in range(each):
                await service.append_event(key, new_event())

        async def work() -> None:
            await asyncio.gather(*(agent(service, key) for service, keys in pairs for key in keys))

        return Variant(name, each * agents, work)

    def read_variant(self, name: str, count: int) -> Variant:
        """Every agent is a task and reads its own session."""
        changed: dict[str, Any] = {"app_state_max_age": 60} if name == COPIED else {}
        place = CLUSTER if name == COPIED else name
        [url], [keys] = self.urls[place], self.keys[place]
        service = RedisSessionService(url, **options(), **changed)
        self.harness.at_end(service.aclose)
        each = split(count, len(keys))

        async def agent(key: SessionKey) -> None:
            for _ in range(each):
                await read(service, key, _READ_EVENTS)

        async def work() -> None:
            await asyncio.gather(*map(agent, keys))

        return Variant(name, each * len(keys), work)

    def sync_variant(self, name: str, count: int) -> Variant:
        """One thread appends to all sessions in turn."""
        pairs: list[tuple[Any, SessionKey]] = []
        for url, keys in zip(self.urls[name], self.keys[name], strict=True):
            service = sessionstore.sync.RedisSessionService(url, **options())
            self.harness.at_end(service.close)
            pairs += [(service, key) for key in keys]
        each = split(count, len(pairs))

        def work() -> None:
            for _ in range(each):
                for service, key in pairs:
                    service.append_event(key, new_event())

        return Variant(name, each * len(pairs), work)


def shares(users: int, primaries: int, seed: int) -> list[float]:
    """The share of random users on each primary, with equal numbers of slots."""
    chosen, keys = random.Random(seed), Keys()
    bounds = [SLOTS * part // primaries for part in range(1, primaries + 1)]
    held: Counter[int] = Counter()
    for _ in range(users):
        slot = slot_of_key(keys.user("app", f"user-{chosen.getrandbits(64):x}").user)
        held[next(at for at, bound in enumerate(bounds) if slot < bound)] += 1
    return [held[at] / users for at in range(primaries)]


def run(harness: Harness) -> Result:
    """Measure."""
    setting = _Setting(harness, harness.pick(63, 6))
    count = harness.pick(12_600, 12)
    sync_count = harness.pick(3_150, 6)
    names = (ONE, THREE, CLUSTER)
    variants = [setting.variant(name, count) for name in names]
    tasks = harness.measure(None, f"asyncio, {setting.agents} agents", "append", variants)
    variants = [setting.sync_variant(name, sync_count) for name in names]
    thread = harness.measure(None, "sync, 1 thread", "append", variants)
    variants = [setting.read_variant(name, count // 3) for name in (ONE, CLUSTER, COPIED)]
    reads = harness.measure(None, f"reads, {setting.agents} agents", "read", variants)
    held = shares(_USERS, _PRIMARIES, 1)
    pairs = [(CLUSTER, THREE), (THREE, ONE), (CLUSTER, ONE)]
    return harness.result(
        "bench_routing",
        "What does a cluster cost the client?",
        groups=[tasks, thread, reads],
        figures=[
            *(_figure(group, *pair) for group in (tasks, thread) for pair in pairs),
            Figure(
                "reads per second in a cluster, with app_state_max_age / without",
                reads.ratio(CLUSTER, COPIED, time_of),
                "x",
            ),
            Figure(
                f"{_USERS:,} users on {_PRIMARIES} primaries, largest deviation from a third",
                max(abs(share * _PRIMARIES - 1) for share in held) * 100,
                "%",
            ),
        ],
        targets=[
            Target(
                f"{tasks.name}: client CPU per append, cluster against one server",
                tasks.ratio(CLUSTER, ONE, client_cpu_of),
                "<=",
                1.15,
            ),
            Target(
                f"{thread.name}: client CPU per append, cluster against three servers",
                thread.ratio(CLUSTER, THREE, client_cpu_of),
                "<=",
                1.15,
            ),
        ],
        notes=[
            "Compare the client CPU. The times also include the work of the servers.",
            "A single thread waits for every answer. Three servers are slower for it than one, "
            "with or without a cluster: each has been idle for longer and wakes up more slowly.",
        ],
        panels=[bars_of(group, of=client_cpu_of) for group in (tasks, thread)],
        reading_hint="Client CPU per append. Less is better.",
    )


def _figure(group: Measured, one: str, other: str) -> Figure:
    percent = group.ratio(one, other, client_cpu_of) * 100
    return Figure(f"{group.name}: client CPU per append, {one} / {other}", percent, "%")


if __name__ == "__main__":
    main(run)
