"""What does watching cost, and how fast is a watcher woken up?

Appends of 1 KB events are recorded and sent over a bare connection, 64 at a time, so that the
server is always busy. Compare the server CPU of sessions that nobody watches with that of sessions
that are watched. "Nobody watches" runs twice: the difference is the noise.

For the wake-ups, another process watches a session while events are appended one at a time.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

from sessionstore import Event, SessionKey, WatchEntry

from .bare import Request
from .harness import Harness, Server, Variant, main
from .results import Figure, Result, Target, bars_of, server_cpu_of
from .workload import (
    EVENT_LIMIT,
    Recorder,
    make_sessions,
    new_event,
    request_of,
    service_of,
    split,
)

UNWATCHED = "nobody watches"
AGAIN = "nobody watches, again"
WATCHED = "watched"
EARLIER = "watched earlier"

_AGENTS = 64
_LEASE_MS = 3_600_000
_PAUSE_S = 0.005  # between two events whose wake-up is measured
_KEY = SessionKey("woken", "user", "s")


class _Bench:
    """One server with sessions for each variant."""

    def __init__(self, harness: Harness, server: Server, stored: int) -> None:
        self.harness = harness
        self.recorder = Recorder()
        self.bare = harness.connect_bare(server)
        self.service = service_of(server.url)
        harness.at_end(self.service.aclose)
        self.agents = harness.pick(_AGENTS, 2)
        self.stored = stored
        self.requests: list[list[Request]] = []

    def variant(self, name: str, count: int) -> Variant:
        """Appends to sessions of their own."""
        app = f"{name.replace(' ', '-')}-{self.stored}"
        made = self.harness.run(make_sessions(self.service, app, self.agents, self.stored))
        keys = [session.key for session in made]
        if name in (WATCHED, EARLIER):
            self.harness.run(self._listen(keys, _LEASE_MS if name == WATCHED else 1))
        each = split(count, self.agents)

        async def prepare() -> None:
            self.requests = [
                [request_of(await self.recorder.append(key, new_event())) for _ in range(each)]
                for key in keys
            ]

        async def work() -> None:
            await self.bare.run_agents(self.requests)

        return Variant(name, each * self.agents, work, prepare)

    async def _listen(self, keys: Sequence[SessionKey], lease_ms: int) -> None:
        for key in keys:
            call = self.service._ops.listen_session(key, lease_ms)
            await self.service._executor.execute(call)
            await self.service.append_event(key, new_event())


async def _wake_ups(url: str, count: int) -> list[float]:
    """Seconds from the start of an append until another process has the event."""
    async with service_of(url) as service:
        await service.create_session(
            app_name=_KEY.app_name, user_id=_KEY.user_id, session_id=_KEY.session_id
        )
        watcher = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.bench_watching", "--watch", url),
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )
        assert watcher.stdout is not None
        found = []
        for number in range(count + 20):  # the first ones are a warm-up
            await service.append_event(_KEY, Event("agent", time.monotonic()))
            seconds = float(await watcher.stdout.readline())
            if number >= 20:
                found.append(seconds)
            await asyncio.sleep(_PAUSE_S)
        await service.delete_session(
            app_name=_KEY.app_name, user_id=_KEY.user_id, session_id=_KEY.session_id
        )
        await watcher.wait()
    return found


async def _watch(url: str) -> None:
    """In the other process: print how long each event took."""
    async with service_of(url) as service:
        async for item in service.watch_events(_KEY):
            if isinstance(item, WatchEntry):
                print(time.monotonic() - float(item.event.content), flush=True)


def run(harness: Harness) -> Result:
    """Measure."""
    server = harness.start_server()
    count = harness.pick(8192, 4)
    groups = []
    for name, stored in (("an empty log", 0), ("a full log", harness.pick(EVENT_LIMIT, 20))):
        bench = _Bench(harness, server, stored)
        names = (UNWATCHED, WATCHED, EARLIER, AGAIN)
        variants = [bench.variant(each, count) for each in names]
        groups.append(harness.measure(server, f"append to {name}", "append", variants))
    latencies = harness.run(_wake_ups(server.url, harness.pick(1000, 3)))
    cuts = quantiles(latencies, n=100)
    figures: list[Any] = [
        Figure(f"{group.name}: server CPU, {name} / {UNWATCHED}", ratio * 100, "%")
        for group in groups
        for name in (WATCHED, EARLIER, AGAIN)
        for ratio in [group.ratio(name, UNWATCHED, server_cpu_of)]
    ]
    return harness.result(
        "bench_watching",
        "What does watching cost, and how fast is a watcher woken up?",
        groups=groups,
        figures=[
            *figures,
            Figure("append to a watcher in another process, median", cuts[49] * 1000, "ms"),
            Figure("append to a watcher in another process, 99 of 100", cuts[98] * 1000, "ms"),
        ],
        targets=[
            Target("append to a watcher in another process, median", cuts[49] * 1000, "<=", 2, "ms")
        ],
        panels=[bars_of(group, of=server_cpu_of) for group in groups],
        reading_hint="Server CPU per append. Less is better.",
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watch"]:
        asyncio.run(_watch(sys.argv[2]))
    else:
        main(run)
