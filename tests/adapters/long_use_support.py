"""Drives a framework through many turns: restarts, workers that are killed, checks, memory."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import redis

from sessionstore import RedisSessionService
from sessionstore.embedded import EmbeddedServer

TURN = 4  # messages of a turn: a prompt, a call, its result, an answer


class Case(Protocol):
    """A framework's agent and our adapter, on one session."""

    async def make(self, number: int) -> str:
        """A turn, as text that a worker can store. It reads what was stored."""

    async def store(self, turn: str) -> None:
        """Store a turn. It may be stored already."""

    async def found(self) -> list[str]:
        """Everything that is loaded, each message as text that no other message has."""

    def expected(self, turn: str) -> list[str]:
        """The messages of a turn, likewise."""


MakeCase = Callable[[RedisSessionService], Case]


def stored_bytes(url: str) -> int:
    """Memory of all keys."""
    client: Any = redis.Redis.from_url(url)
    with client:
        return sum(client.memory_usage(key, samples=0) for key in client.scan_iter(count=1000))


def _killed_worker(program: str, name: str, url: str, turn: str, seed: int) -> None:
    """A process that begins to store a turn and is killed."""
    command = [sys.executable, "-W", "ignore", program, name, "--store", url]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as worker:
        assert worker.stdin
        assert worker.stdout
        worker.stdin.write(turn)
        worker.stdin.close()
        assert worker.stdout.readline() == "storing\n"
        time.sleep(random.Random(seed).uniform(0, 0.01))
        worker.kill()


async def _worker(make_case: MakeCase, url: str, turn: str) -> None:
    async with RedisSessionService(url) as service:
        case = make_case(service)
        print("storing", flush=True)
        await case.store(turn)
        await asyncio.sleep(60)  # until it is killed


async def run(
    program: str,
    name: str,
    make_case: MakeCase,
    url: str,
    turns: int,
    *,
    restart_every: int = 100,
    kill_every: int = 500,
    limit: int = 1000,
    begins_with_turn: bool = True,
    options: dict[str, Any] | None = None,
) -> list[int]:
    """Take turns, and check after each restart what is stored.

    Args:
        program: the file that is run for workers.
        name: the case's name in it.
        make_case: makes it.
        url: a server of its own.
        turns: how many.
        restart_every: turns between two restarts: a new service and new adapter objects.
        kill_every: turns between two workers that are killed.
        limit: how many messages are kept.
        begins_with_turn: what is loaded begins with a turn.
        options: of the service.

    Returns:
        The memory of all keys after each restart, in bytes.
    """
    expected: list[str] = []
    sizes: list[int] = []
    for first in range(0, turns, restart_every):
        async with RedisSessionService(url, **options or {}) as service:
            case = make_case(service)
            for number in range(first, min(first + restart_every, turns)):
                turn = await case.make(number)
                if number % kill_every == kill_every // 2:
                    await asyncio.to_thread(_killed_worker, program, name, url, turn, number)
                await case.store(turn)
                expected += case.expected(turn)
            found = await make_case(service).found()
        assert len(set(expected)) == len(expected)
        assert found == expected[-len(found) :], f"after {first + restart_every} turns"
        assert len(found) > min(limit, len(expected)) - TURN
        if begins_with_turn:
            assert len(found) % TURN == 0
        sizes.append(stored_bytes(url))
    return sizes


def main(program: str, cases: dict[str, MakeCase], kept_whole: Sequence[str] = ()) -> None:
    """Run a case by its name; `kept_whole` may begin inside a turn, as the framework wants it."""
    parser = argparse.ArgumentParser(description="Drive a framework through many turns.")
    parser.add_argument("name", choices=cases)
    parser.add_argument("--turns", type=int, default=2000)
    parser.add_argument("--store", metavar="URL", help="store the turn on stdin, as a worker")
    arguments = parser.parse_args()
    make_case = cases[arguments.name]
    if arguments.store:
        asyncio.run(_worker(make_case, arguments.store, sys.stdin.read()))
        return
    started = time.monotonic()
    with EmbeddedServer() as server:
        sizes = asyncio.run(
            run(
                str(Path(program).resolve()),
                arguments.name,
                make_case,
                server.url,
                arguments.turns,
                begins_with_turn=arguments.name not in kept_whole,
            )
        )
    print(f"{arguments.name}: {arguments.turns} turns in {time.monotonic() - started:.0f} s")
    for at, size in enumerate(sizes, 1):
        if at in (1, 2, 3) or at % 5 == 0:
            print(f"  after {100 * at} turns: {size / 1000:.0f} kB in the store")
