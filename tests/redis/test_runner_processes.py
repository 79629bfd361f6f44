"""Runs of several processes on one session: nothing is lost, and a dead holder loses the turn."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.servers import Server
from support.waiting import wait_until

from sessionstore import Event, RedisSessionService, RunContext, Runner, SessionKey, TurnTaken

PROJECT = Path(__file__).parents[2]
KEY = SessionKey("app", "user", "sid")
IDS: dict[str, Any] = {"app_name": "app", "user_id": "user", "session_id": "sid"}
TTL: dict[str, Any] = {"session_ttl": 600, "user_state_ttl": 600, "app_state_ttl": 600}
WAIT_LIMIT_S = 30.0

# A process that runs an agent, and prints when the agent waits and how each run ended.
PROGRAM = """
import asyncio, json, sys
from sessionstore import Event, RedisSessionService, Runner

url, name, options, num_runs, num_events, stops_at = json.loads(sys.argv[1])

async def agent(context):
    for number in range(num_events):
        if number == stops_at:
            print("waiting", flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        yield Event("agent", [context.message, number], state_delta={context.message: number})
        await asyncio.sleep(0)

async def hold(runner, message):
    try:
        async for event in runner.run("user", "sid", message):
            pass
    except Exception as error:
        return type(error).__name__
    return "done"

async def main():
    ttl = {"session_ttl": 600, "user_state_ttl": 600, "app_state_ttl": 600}
    async with RedisSessionService(url, **ttl) as service:
        runner = Runner("app", agent, service, **options)
        runs = (hold(runner, f"{name}-{number}") for number in range(num_runs))
        print(json.dumps(await asyncio.gather(*runs)))

asyncio.run(main())
"""

# The same in threads.
PROGRAM_FOR_THREADS = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from sessionstore import Event
from sessionstore.sync import RedisSessionService, Runner

url, name, options, num_runs, num_events, stops_at = json.loads(sys.argv[1])

def agent(context):
    for number in range(num_events):
        if number == stops_at:
            print("waiting", flush=True)
            sys.stdin.readline()
        yield Event("agent", [context.message, number], state_delta={context.message: number})

def hold(runner, message):
    try:
        for event in runner.run("user", "sid", message):
            pass
    except Exception as error:
        return type(error).__name__
    return "done"

ttl = {"session_ttl": 600, "user_state_ttl": 600, "app_state_ttl": 600}
with RedisSessionService(url, **ttl) as service, ThreadPoolExecutor(num_runs) as pool:
    runner = Runner("app", agent, service, **options)
    runs = [pool.submit(hold, runner, f"{name}-{number}") for number in range(num_runs)]
    print(json.dumps([run.result() for run in runs]))
"""

PROGRAMS = {"async": PROGRAM, "sync": PROGRAM_FOR_THREADS}


@contextmanager
def started(
    server: Server,
    name: str,
    *,
    num_runs: int = 1,
    num_events: int = 3,
    stops_at: int | None = None,
    mode: str = "async",
    **options: Any,
) -> Iterator[subprocess.Popen[str]]:
    """A process with runs of an agent. Before event `stops_at` it waits for a line on stdin."""
    arguments = json.dumps([server.url, name, options, num_runs, num_events, stops_at])
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAMS[mode], arguments],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_until_waiting(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"


def outcomes_of(process: subprocess.Popen[str]) -> list[str]:
    stdout, _ = process.communicate("\n", timeout=WAIT_LIMIT_S)
    assert process.returncode == 0
    outcomes: list[str] = json.loads(stdout.splitlines()[-1])
    return outcomes


def end_of_lease_us(server: Server) -> int:
    return int(server.raw.hget("session:{app:user}:sid", "turn_until_us") or 0)


async def contents(service: RedisSessionService) -> list[Any]:
    session = await service.get_session(**IDS)
    assert session is not None
    return [event.content for event in session.events]


async def answer(context: RunContext) -> AsyncIterator[Event]:
    yield Event("agent", [context.message, 0])


def blocks(found: list[Any], length: int) -> list[str]:
    """The messages of runs that did not interleave, in order."""
    order = found[::length]
    expected = [(name, *([name, n] for n in range(length - 1))) for name in order]
    assert found == [part for block in expected for part in block]
    return order


both_modes = pytest.mark.parametrize("mode", ["async", "sync"])


@both_modes
@pytest.mark.parametrize("serialize_turns", [False, True])
async def test_two_processes_lose_nothing(server: Server, serialize_turns: bool, mode: str) -> None:
    num_runs = 15
    arguments: dict[str, Any] = {
        "num_runs": num_runs,
        "serialize_turns": serialize_turns,
        "mode": mode,
    }
    with started(server, "a", **arguments) as first, started(server, "b", **arguments) as second:
        for process in (first, second):
            assert outcomes_of(process) == ["done"] * num_runs
    names = [f"{name}-{number}" for name in "ab" for number in range(num_runs)]
    async with RedisSessionService(server.url, **TTL) as service:
        session = await service.get_session(**IDS)
        assert session is not None
        assert session.state == dict.fromkeys(names, 2)
        found = await contents(service)
    if serialize_turns:
        assert sorted(blocks(found, 4)) == sorted(names)
        return
    for name in names:
        own = [one for one in found if one == name or one[0] == name]
        assert own == [name, *([name, number] for number in range(3))]


@both_modes
async def test_a_holder_that_is_killed_frees_the_turn_after_its_lease(
    server: Server, mode: str
) -> None:
    lease_s = 2.0
    options: dict[str, Any] = {"serialize_turns": True, "turn_lease": lease_s, "mode": mode}
    async with RedisSessionService(server.url, **TTL) as service:
        with started(server, "killed", stops_at=1, **options) as process:
            wait_until_waiting(process)
            first_end_us = end_of_lease_us(server)
            wait_until(lambda: end_of_lease_us(server) > first_end_us + 1e6, "the renewals")
            with pytest.raises(TurnTaken):
                await service.acquire_turn(KEY)
            process.send_signal(signal.SIGKILL)
            assert process.wait(WAIT_LIMIT_S) == -signal.SIGKILL
        killed = time.monotonic()
        with pytest.raises(TurnTaken) as raised:
            await service.acquire_turn(KEY)
        left_s = raised.value.expires_at.timestamp() - time.time()
        assert 0 < left_s <= lease_s

        runner = Runner("app", answer, service, serialize_turns=True)
        seen = [event.content async for event in runner.run("user", "sid", "next")]
        waited_s = time.monotonic() - killed
        assert seen == [["next", 0]]
        assert waited_s >= left_s - 0.1
        assert waited_s < left_s + 10  # soon, also on a busy machine
        # The events that the dead process had shown are stored, and no later ones.
        assert await contents(service) == ["killed-0", ["killed-0", 0], "next", ["next", 0]]


@both_modes
async def test_a_holder_that_was_stopped_too_long_is_refused(server: Server, mode: str) -> None:
    """When it continues, it still has its old token, which the store refuses."""
    async with RedisSessionService(server.url, **TTL) as service:
        options: dict[str, Any] = {"serialize_turns": True, "turn_lease": 0.5, "mode": mode}
        with started(server, "stopped", stops_at=1, **options) as process:
            wait_until_waiting(process)
            process.send_signal(signal.SIGSTOP)
            runner = Runner("app", answer, service, serialize_turns=True)
            run = runner.run("user", "sid", "next")
            assert (await anext(run)).content == ["next", 0]
            process.send_signal(signal.SIGCONT)
            assert outcomes_of(process) == ["TurnLost"]
            with pytest.raises(TurnTaken):  # the run in this process still holds it
                await service.acquire_turn(KEY)
            with pytest.raises(StopAsyncIteration):
                await anext(run)
        found = await contents(service)
        assert found == ["stopped-0", ["stopped-0", 0], "next", ["next", 0]]
        await service.acquire_turn(KEY)


async def test_a_process_that_is_killed_in_the_midst_of_its_runs_leaves_whole_ones(
    server: Server,
) -> None:
    """Without turns, each run has stored its first events, and every event is whole."""
    with started(server, "killed", num_runs=20, num_events=10_000) as process:
        wait_until(lambda: server.raw.zcard("events:{app:user}:sid") > 200, "the events")
        os.kill(process.pid, signal.SIGKILL)
        process.wait(WAIT_LIMIT_S)
    async with RedisSessionService(server.url, **TTL) as service:
        session = await service.get_session(**IDS)
        assert session is not None
        events = session.events
        last: dict[str, int] = {}
        for event in events:
            if isinstance(event.content, str):
                continue
            name, number = event.content
            assert number == last.get(name, number - 1) + 1
            last[name] = number
        # State and events are written together. The oldest events may have been trimmed.
        assert last.items() <= session.state.items()
        runner = Runner("app", answer, service)
        assert len([event async for event in runner.run("user", "sid", "next")]) == 1


async def test_services_share_turns(server: Server) -> None:
    async with (
        RedisSessionService(server.url, **TTL) as first,
        RedisSessionService(server.url, **TTL) as second,
    ):
        await first.create_session(**IDS)
        turn = await first.acquire_turn(KEY)
        with pytest.raises(TurnTaken):
            await second.acquire_turn(KEY)
        await second.append_event(KEY, Event("user"), turn=turn)
        await second.release_turn(turn)
        await second.acquire_turn(KEY)
