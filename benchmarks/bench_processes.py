"""How much more do several processes do than one?

An asyncio process uses one core. Agents read the newest 20 events of their session and append two
events of 1 KB, in one process or in several. Every process has a service of its own and the same
number of agents. The server has a core, too, so on two cores a second process cannot double the
throughput.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from sessionstore import RedisSessionService, SessionKey

from .harness import Harness, Timing, Variant, main
from .results import Figure, Result, bars_of, client_cpu_of, time_of
from .workload import EVENT_LIMIT, make_sessions, new_event, read, service_of, split

ONE = "1 process"
TWO = "2 processes"

_AGENTS = 32
_READ_EVENTS = 20


def _serve(link: Connection, number: int) -> None:
    """Run the agents of one process. It gets the URL, and then numbers of turns until None."""

    async def turn(service: RedisSessionService, key: SessionKey) -> None:
        await read(service, key, _READ_EVENTS)
        await service.append_event(key, new_event())
        await service.append_event(key, new_event())

    async def run(url: str, agents: int, stored: int) -> None:
        async with service_of(url) as service:
            sessions = await make_sessions(service, f"process{number}", agents, stored)

            async def agent(key: SessionKey, turns: int) -> None:
                for _ in range(turns):
                    await turn(service, key)

            link.send(None)
            while (turns := link.recv()) is not None:
                began = time.process_time()
                await asyncio.gather(*(agent(session.key, turns) for session in sessions))
                link.send(time.process_time() - began)

    asyncio.run(run(*link.recv()))


class _Processes:
    """Processes that wait for work. They are started before the server takes its core."""

    def __init__(self, harness: Harness, count: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._links: list[Connection] = []
        for number in range(count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(theirs, number), daemon=True)
            process.start()
            self._links.append(ours)
            harness.at_end(process.join)
            harness.at_end(partial(ours.send, None))

    def connect(self, *arguments: Any) -> None:
        """Let every process make its service and its sessions."""
        for link in self._links:
            link.send(arguments)
        for link in self._links:
            link.recv()

    def work(self, count: int, turns: int) -> Callable[[], Timing]:
        """A function that lets the first `count` processes run turns."""

        def work() -> Timing:
            began = time.perf_counter()
            for link in self._links[:count]:
                link.send(turns)
            cpu_s = sum(link.recv() for link in self._links[:count])
            return Timing(time.perf_counter() - began, cpu_s)

        return work


def run(harness: Harness) -> Result:
    """Measure."""
    processes = _Processes(harness, 2)
    server = harness.start_server()
    agents = harness.pick(_AGENTS, 4)
    processes.connect(server.url, agents, harness.pick(EVENT_LIMIT, 20))
    turns = split(harness.pick(6400, 8), agents)
    variants = [
        Variant(name, turns * agents * count, processes.work(count, turns))
        for count, name in ((1, ONE), (2, TWO))
    ]
    group = harness.measure(server, f"turns of {agents} agents in each process", "turn", variants)
    one = group.rows[0]
    return harness.result(
        "bench_processes",
        "How much more do several processes do than one?",
        groups=[group],
        figures=[
            Figure("turns per second, 2 processes / 1", group.ratio(ONE, TWO, time_of), "x"),
            Figure(
                "client CPU per turn, 2 processes / 1", group.ratio(TWO, ONE, client_cpu_of), "x"
            ),
            Figure(
                "busy processes that one server can serve: client CPU / server CPU",
                one.client_cpu_us / (one.server_cpu_us or 1.0),
                "x",
            ),
        ],
        notes=[
            "Agents that do anything else, such as to call a model, use more of the client's CPU "
            "and none of the server's. So one server can serve more processes of them.",
        ],
        panels=[bars_of(group)],
        reading_hint="Time per turn: the inverse of the total throughput. Less is better.",
    )


if __name__ == "__main__":
    main(run)
