"""2,000 turns of a conversation with tools, for Google ADK or tRPC-Agent, on a server of its own.

python long_use_adk.py adk|trpc_agent [turns]

Every 100 turns a new service and a new adapter continue. Once this is a process, which is killed in
the middle of a turn. Each time the events of the store are compared with what was said.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import redis

from sessionstore import RedisSessionService
from sessionstore.embedded import EmbeddedServer

CLASSES = {"adk": "AdkSessionService", "trpc_agent": "TrpcSessionService"}
SUPPORT = {"adk": "adk_support", "trpc_agent": "trpc_support"}
TURN = 4  # events of a turn: the message, a call, its result, the answer


class Conversation:
    """A session of one framework.

    Args:
        framework: "adk" or "trpc_agent".
        service: where it is stored.
    """

    def __init__(self, framework: str, service: RedisSessionService) -> None:
        adapter = import_module(f"sessionstore.adapters.{framework}")
        self.sessions: Any = getattr(adapter, CLASSES[framework])(service)
        self.support: Any = import_module(SUPPORT[framework])
        self._runner = self.support.new_runner(self.sessions)
        self._options: dict[str, Any] = {}

    def see_recent_events_only(self) -> None:
        """Let the agent see 40 events. Nearly all of the time goes into what it sees."""
        self._options = self.support.recent_events_only(self.sessions, 40)

    async def say(self, number: int, show: Callable[..., None]) -> None:
        """One turn. Shows what was said, and every event after it was stored."""
        show(f"q{number}", flush=True)
        message = self.support.said(f"q{number}").content
        async for event in self._runner.run_async(
            user_id="user", session_id="sid", new_message=message, **self._options
        ):
            show(event.id, flush=True)

    async def read(self) -> Any:
        """The session, created if it does not exist."""
        ids = self.support.IDS
        found = await self.sessions.get_session(**ids)
        return found or await self.sessions.create_session(**ids)


async def work(
    framework: str,
    url: str,
    options: dict[str, Any],
    first: int,
    count: int,
    show: Callable[..., None] = lambda *_, **__: None,
) -> None:
    """Some turns, with a service and an adapter of their own."""
    async with RedisSessionService(url, **options) as service:
        conversation = Conversation(framework, service)
        await conversation.read()
        conversation.see_recent_events_only()
        for number in range(first, first + count):
            await conversation.say(number, show)


def work_until_killed(
    framework: str, url: str, options: dict[str, Any], first: int, count: int
) -> list[str]:
    """What a process has printed that worked and was killed."""
    code = (
        f"import asyncio, warnings; warnings.simplefilter('ignore'); import logging; "
        f"logging.disable(); from long_use_adk import work; "
        f"asyncio.run(work({framework!r}, {url!r}, {options!r}, {first}, {count}, print))"
    )
    environment = {"PYTHONPATH": ":".join([str(Path(__file__).parent), *sys.path])}
    printed: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout or ():
            printed.append(line.strip())
            if len(printed) == 5 * count // 2:
                process.kill()
    assert process.returncode != 0
    return printed


class Expected:
    """What the store must hold."""

    def __init__(self) -> None:
        self.shown: list[str] = []  # texts of events
        self.count = 0
        self.num_killed = 0

    def check(self, session: Any, found: list[str]) -> None:
        """Compare the newest events."""
        assert found == self.shown[-len(found) :], "events were lost, doubled or moved"
        assert len({event.id for event in session.events}) == len(session.events)
        assert session.state.get("count", 0) == self.count

    def add_turns(self, first: int, count: int) -> None:
        """Whole turns."""
        for number in range(first, first + count):
            self.count += 1
            self.shown += [f"q{number}", "call", "result", f"noted {self.count}"]

    def add_killed(self, found: list[str], printed: list[str], first: int) -> int:
        """What a killed process has stored. Returns the number of turns that it began."""
        begun = [line for line in printed if line.startswith("q")]
        start = found.index(f"q{first}")
        stored = found[start:]
        num_whole = len(stored) // TURN
        self.add_turns(first, num_whole)
        rest = stored[num_whole * TURN :]
        expected = [f"q{first + num_whole}", "call", "result", f"noted {self.count + 1}"]
        assert rest == expected[: len(rest)], "a turn of a killed process is not a prefix"
        # Whatever was shown is stored; at most the last message is not there yet.
        assert len(stored) >= len(printed) - 1, "shown events were lost"
        self.shown += rest
        self.count += "result" in rest
        self.num_killed += 1
        return len(begun)


async def check(conversation: Conversation, expected: Expected, limit: int) -> list[str]:
    """Compare what is stored with what is expected. Returns the texts."""
    session = await conversation.read()
    found: list[str] = conversation.support.texts(session)
    assert len(found) <= limit
    expected.check(session, found)
    return found


def memory(client: Any) -> tuple[int, int]:
    """Bytes of all keys of the server, and their number."""
    keys = client.keys("*")
    return sum(client.memory_usage(key, samples=0) for key in keys), len(keys)


async def main(
    framework: str, turns: int = 2000, per_process: int = 100, seed: int = 1, **options: Any
) -> list[tuple[int, int]]:
    """The conversation. Returns the number of turns and the bytes that the server held then."""
    dice, expected, rows = random.Random(seed), Expected(), []
    limit = options.get("session_event_limit", 1000)
    killed_at = dice.randrange(1, max(turns // per_process - 1, 2))
    with EmbeddedServer() as server:
        client: Any = redis.Redis.from_url(server.url)
        number = 0
        while number < turns:
            is_killed = number // per_process == killed_at and not expected.num_killed
            printed = []
            if is_killed:
                printed = work_until_killed(framework, server.url, options, number, per_process)
            else:
                await work(framework, server.url, options, number, per_process)
                expected.add_turns(number, per_process)
            async with RedisSessionService(server.url, **options) as service:
                conversation = Conversation(framework, service)
                if is_killed:
                    found = conversation.support.texts(await conversation.read())
                    number += expected.add_killed(found, printed, number)
                else:
                    number += per_process
                await check(conversation, expected, limit)
            num_bytes, num_keys = memory(client)
            assert num_keys == 3, client.keys("*")  # session, events, index
            rows.append((number, num_bytes))
            print(f"{framework}: {number} turns, {num_bytes / 1024:.0f} KiB", file=sys.stderr)
        client.close()
    assert expected.num_killed == 1
    return rows


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2000))
