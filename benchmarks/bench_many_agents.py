"""Do 10,000 agents in one process all finish, with nothing lost and bounded memory?

Every agent is a task with its own session. It creates the session, makes its turns (two appends,
one read of the newest two) and reads everything back at the end. All agents start at once on one
service. Then the same fleet does four times the work, and should not need more memory.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

from sessionstore import Event, RedisSessionService

from .harness import Harness, Server, main
from .payload import TEXT
from .results import Figure, Result, Target
from .workload import read, service_of

_SAMPLE_SECONDS = 0.02


async def agent(service: RedisSessionService, app: str, number: int, turns: int) -> bool:
    """Run an agent. Returns whether it read back all its events, in order."""
    session = await service.create_session(app_name=app, user_id=f"agent{number:05}")
    written: list[str] = []
    for turn in range(turns):
        for part in range(2):
            event = Event("agent", TEXT, state_delta={"turn": turn} if part else {})
            written.append((await service.append_event(session.key, event)).id)
        found = await read(service, session.key, 2)
        if found is None or [event.id for event in found.events] != written[-2:]:
            return False
    found = await read(service, session.key, None)
    return (
        found is not None
        and [event.id for event in found.events] == written
        and found.state == {"turn": turns - 1}
    )


async def peak_while_running() -> int:
    """The highest memory use until cancelled, in bytes."""
    most = resident_bytes()
    with suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(_SAMPLE_SECONDS)
            most = max(most, resident_bytes())
    return most


def resident_bytes() -> int:
    """Memory of this process now, or its peak if the system reports only that."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:
        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return highest if sys.platform == "darwin" else highest * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


async def fleet(server: Server, app: str, agents: int, turns: int) -> tuple[int, float, int]:
    """Run a fleet. Returns how many agents found all events, seconds, bytes at the peak."""
    gc.collect()
    before = resident_bytes()
    async with service_of(server.url) as service:
        watch = asyncio.create_task(peak_while_running())
        start = time.perf_counter()
        tasks = [agent(service, app, number, turns) for number in range(agents)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        seconds = time.perf_counter() - start
        watch.cancel()
        peak = await watch
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results.count(True), seconds, peak - before


def run(harness: Harness) -> Result:
    """Measure."""
    server = harness.start_server()
    agents = harness.pick(10_000, 200)
    harness.run(fleet(server, "warm-up", agents // 10, 1))
    ended, seconds, memory = harness.run(fleet(server, "short", agents, 1))
    ended_longer, seconds_longer, memory_longer = harness.run(fleet(server, "long", agents, 4))
    keys = server.client.dbsize()
    figures = [
        Figure("agents that found all their events, one turn", ended, "agents"),
        Figure("the same, four turns", ended_longer, "agents"),
        Figure("operations per second, four turns", agents * 14 / seconds_longer, "a second"),
        Figure("operations per second, one turn", agents * 5 / seconds, "a second"),
        Figure("memory of the process, one turn", memory / agents / 1024, "KiB per agent"),
        Figure("the same, four turns", memory_longer / agents / 1024, "KiB per agent"),
        Figure("keys on the server", keys, "keys"),
    ]
    growth = max(memory_longer, 1) / max(memory, 1)
    targets = [
        Target(
            f"{agents:,} agents in one process: found all their events",
            ended_longer,
            ">=",
            agents,
            "agents",
        ),
        Target("the same: memory at four times the work against once", growth, "<=", 1.5),
    ]
    return harness.result(
        "bench_many_agents",
        f"Do {agents:,} agents in one process all finish, with nothing lost and bounded memory?",
        figures=figures,
        targets=targets,
        notes=["Memory is the growth of the process since the fleet started."],
    )


if __name__ == "__main__":
    main(run)
