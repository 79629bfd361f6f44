"""What does encryption cost?

The same agents append events of 1 KB and read the newest 20, with a plain service, with a key ring,
and with a key ring and a key store on a server of its own.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from sessionstore import KeyRing, RedisSessionService, Session
from sessionstore.transform import Context

from .harness import Harness, Server, Variant, main
from .results import Figure, Group, Result, Target, bars_of, time_of
from .workload import fill, make_sessions, new_event, options, read, split

PLAIN = "without encryption"
RING = "with a key ring"
DATA_KEYS = "with a key store"

_AGENTS = 64
_READ = 20  # newest events
_STORED = 200


class _Store:
    """Three services on a server, and sessions of each."""

    def __init__(self, harness: Harness, server: Server, ring: KeyRing, key_store: str) -> None:
        self.harness = harness
        self.server = server
        self.services: dict[str, RedisSessionService] = {}
        self.sessions: dict[str, list[Session]] = {}
        kinds: dict[str, dict[str, Any]] = {
            PLAIN: {},
            RING: {"encryption": ring},
            DATA_KEYS: {"encryption": ring, "key_store": key_store},
        }
        for name, stored_as in kinds.items():
            service = RedisSessionService(server.url, **stored_as, **options(_STORED))
            harness.at_end(service.aclose)
            self.services[name] = service
            app = "app-" + name.replace(" ", "-")
            self.sessions[name] = harness.run(make_sessions(service, app, _AGENTS))
            for session in self.sessions[name]:
                harness.run(fill(service, session.key, _READ))

    def measure(self, operation: str, work: Callable[..., Any], count: int) -> Group:
        """Let 64 agents do the same with each service."""
        each = split(count, _AGENTS)

        async def agent(name: str, session: Session) -> None:
            for _ in range(each):
                await work(self.services[name], session.key)

        async def fleet(name: str) -> None:
            await asyncio.gather(*(agent(name, session) for session in self.sessions[name]))

        variants = [Variant(name, each * _AGENTS, partial(fleet, name)) for name in self.services]
        return self.harness.measure(self.server, f"{operation}, 64 agents", operation, variants)


async def _append(service: RedisSessionService, key: Any) -> None:
    await service.append_event(key, new_event())


async def _read(service: RedisSessionService, key: Any) -> None:
    assert await read(service, key, _READ) is not None


def us_per(work: Callable[[], object], rounds: int) -> float:
    """Microseconds of a call: the fastest round of 1,000."""
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(1000):
            work()
        found.append((time.perf_counter() - began) * 1e3)
    return min(found)


def run(harness: Harness) -> Result:
    """Measure."""
    server, keys = harness.start_server(), harness.start_server()
    ring = KeyRing({"bench": os.urandom(64)})
    store = _Store(harness, server, ring, keys.url)
    groups = appends, reads = [
        store.measure("append", _append, harness.pick(8192, 4 * _AGENTS)),
        store.measure("read of 20 events", _read, harness.pick(2048, _AGENTS)),
    ]
    place = Context("shop", "ann", "event", "")
    value = os.urandom(1000)
    sealed = ring.wrap(value, place)
    per_user = float(sum(keys.client.memory_usage(key) for key in keys.client.keys("*")))
    return harness.result(
        "bench_encryption",
        "What does encryption cost?",
        groups=groups,
        figures=[
            Figure("encrypting 1,000 bytes", us_per(lambda: ring.wrap(value, place), 5), "µs"),
            Figure("decrypting them", us_per(lambda: ring.unwrap(sealed, place), 5), "µs"),
            Figure("a key store's memory for a user", per_user / _AGENTS, "bytes"),
            *(
                Figure(
                    f"throughput of reads of 20 events, 64 agents, {name} against without",
                    1 / reads.ratio(name, PLAIN, time_of),
                    "x",
                )
                for name in (RING, DATA_KEYS)
            ),
        ],
        targets=[
            Target(
                f"throughput of appends, 64 agents, {name} against without",
                1 / appends.ratio(name, PLAIN, time_of),
                ">=",
                0.75,
                "x",
            )
            for name in (RING, DATA_KEYS)
        ],
        panels=[bars_of(group) for group in groups],
        reading_hint="Time per operation. Less is better.",
    )


if __name__ == "__main__":
    main(run)
