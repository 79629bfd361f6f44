"""Compactors of several processes: one calls the model, and one that is killed leaves no trace."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.compactors import Summarizer, make_turns
from support.events import numbers_of
from support.servers import Server
from support.services import WITH_TTL
from support.sessions import IDS, KEY, read
from support.waiting import poll_until

from benchmarks.chaos import compaction
from sessionstore import Compactor, RedisSessionService, Summary, Window

PROJECT = Path(__file__).parents[2]
LEASE_S = 0.1
SIX: dict[str, Any] = {"trigger": Window(max_turns=6), "keep": Window(max_turns=2)}

# Forks processes that compact the session. For each line of stdin it prints one: the exit statuses,
# and how often the model was called.
PROGRAM = """
import asyncio, json, os, signal, sys
from sessionstore import Compactor, RedisSessionService, SessionKey, Window
from sessionstore.observe import wrap_executor

url, ttl = json.loads(sys.argv[1])

class Killing:
    def __init__(self, inner, at, when):
        self.inner, self.at, self.when, self.count = inner, at, when, 0

    async def execute(self, call):
        self.count += 1
        self.kill("before")
        replies = await self.inner.execute(call)
        self.kill("after")
        return replies

    def kill(self, when):
        if (self.count, when) == (self.at, self.when):
            os.kill(os.getpid(), signal.SIGKILL)

    async def aclose(self):
        await self.inner.aclose()

async def main(at, when, pause_s, lease_s, calls):
    async def summarize(previous, events):
        os.write(calls, b"x")
        await asyncio.sleep(pause_s)
        return {"covers": [event.content for event in events]}

    async with RedisSessionService(url, **ttl) as service:
        wrap_executor(service, lambda inner: Killing(inner, at, when))
        windows = {"trigger": Window(max_turns=6), "keep": Window(max_turns=2)}
        compactor = Compactor(service, summarize, **windows, lease=lease_s)
        await compactor.compact(SessionKey("app", "user", "sid"))

for line in sys.stdin:
    num_processes, *arguments = json.loads(line)
    reading, writing = os.pipe()
    pids = []
    for _ in range(num_processes):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                asyncio.run(main(*arguments, writing))
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    os.close(writing)
    with open(reading, "rb") as calls:
        print(json.dumps([statuses, len(calls.read())]), flush=True)
"""

Compact = Callable[..., tuple[list[int], int]]
"""Takes the number of processes, at which call to kill them and whether before or after it, how
long the model takes, and the lease. Returns the exit statuses, and the calls of the model."""


@contextmanager
def forking(server: Server) -> Iterator[Compact]:
    """Runs compactions in processes of their own, and kills them at a call."""
    arguments = json.dumps([server.url, WITH_TTL])
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, arguments],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def compact(*arguments: object) -> tuple[list[int], int]:
            print(json.dumps(arguments), file=stdin, flush=True)
            statuses, num_calls = json.loads(stdout.readline())
            return statuses, num_calls

        try:
            yield compact
        finally:
            stdin.close()
            process.wait(30)


async def begin(service: RedisSessionService) -> None:
    """A new session with seven turns."""
    await service.delete_session(**IDS)
    await service.create_session(**IDS)
    await service.append_events(KEY, make_turns(range(7)))


async def test_of_eight_processes_one_calls_the_model(server: Server) -> None:
    async with RedisSessionService(server.url, **WITH_TTL) as service:
        with forking(server) as compact:
            for _ in range(3):
                await begin(service)
                statuses, num_calls = compact(8, 0, "", 0.3, 30)
                assert (statuses, num_calls) == ([0] * 8, 1)
                assert len((await read(service)).events) == 4


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_process_that_is_killed_at_a_call(server: Server, when: str) -> None:
    """The session is as before or as after, and another process can compact it soon."""
    contents = [event.content for event in make_turns(range(7))]
    outcomes: list[bool] = []
    async with RedisSessionService(server.url, **WITH_TTL) as service:
        compactor = Compactor(service, Summarizer(), **SIX)
        with forking(server) as compact:
            for at in range(1, 100):
                await begin(service)
                [status], _ = compact(1, at, when, 0, LEASE_S)
                if status == 0:
                    break
                assert status == -signal.SIGKILL
                session = await read(service)
                assert numbers_of((await service.get_events(KEY)).events) == contents
                is_stored = session.summary is not None
                outcomes.append(is_stored)
                assert numbers_of(session) == (contents[10:] if is_stored else contents)
                await service.append_events(KEY, make_turns(range(7, 12)))
                found: list[Summary] = []

                async def is_compacted() -> bool:
                    summary = await compactor.compact(KEY)
                    found.extend([summary] if summary else [])  # noqa: B023  # of this round
                    return bool(summary)

                await poll_until(is_compacted, "the end of the lease")
                expected = make_turns(range(10))
                assert found[0].content["covers"] == [event.content for event in expected]
    assert len(outcomes) >= 9
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


async def test_appends_of_many_while_several_processes_compact(server: Server) -> None:
    """`python -m benchmarks.chaos.compaction` does the same for longer."""
    outcome = await compaction.run(server.url, seed=7, seconds=2, appenders=64, compactors=2)
    assert not outcome.is_broken, compaction.as_text(outcome)
    assert outcome.stored == outcome.appended
