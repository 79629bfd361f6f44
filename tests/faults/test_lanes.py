"""Small calls do not wait behind large ones, although all tasks share connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from faults_support import make_event
from support.servers import Server
from support.services import make_service

from sessionstore import Event, SessionKey
from sessionstore.calls import Call
from sessionstore.transport.reply_sizes import ReplySizes

LARGE = SessionKey("a", "large", "s")
EVENT = "x" * 100_000
BYTES_PER_S = 4_000_000
AGENTS = 20


@asynccontextmanager
async def slow_network(server: Server, directory: Path) -> AsyncIterator[str]:
    """A URL of the server; each connection carries 4 MB a second in each direction."""
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(len(data) / BYTES_PER_S)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_unix_connection(server.embedded.socket_path)
        pumps = [asyncio.create_task(pump(reader, there[1]))]
        pumps.append(asyncio.create_task(pump(there[0], writer)))
        tasks.update(pumps)
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for each in (there[1], writer):
            each.transport.abort()
        await asyncio.gather(*pumps, return_exceptions=True)

    path = directory / "slow"
    listening = await asyncio.start_unix_server(accept, str(path))
    try:
        yield f"unix://{path}"
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def longest_small_call(service: Any, large: Any) -> tuple[float, float]:
    """How long a large call takes, and the longest small call of 20 agents meanwhile."""
    is_over = False
    longest_s = 0.0

    async def agent(number: int) -> None:
        nonlocal longest_s
        key = SessionKey("a", f"u{number}", "s")
        count = 0
        while not is_over:
            for call in (
                service.append_event(key, make_event(count)),
                service.get_session(app_name="a", user_id=key.user_id, session_id="s", event_num=2),
                service.get_events(key, limit=2, before=1 << 52),
                service.get_user_state("a", key.user_id),
            ):
                started = time.monotonic()
                await call
                longest_s = max(longest_s, time.monotonic() - started)
            count += 1
            await asyncio.sleep(0.05)

    agents = [asyncio.create_task(agent(number)) for number in range(AGENTS)]
    await asyncio.sleep(0.5)  # all have been here before
    longest_s = 0.0
    started = time.monotonic()
    await large
    duration_s = time.monotonic() - started
    is_over = True
    await asyncio.gather(*agents)
    return duration_s, longest_s


@pytest.mark.parametrize("what", ["first read", "later read", "page", "list", "append", "state"])
async def test_small_calls_do_not_wait_behind_large_ones(
    server: Server, tmp_path_factory: pytest.TempPathFactory, what: str
) -> None:
    direct = make_service("async", server.url)
    for number in range(AGENTS):
        await direct.create_session(app_name="a", user_id=f"u{number}", session_id="s")
    await direct.create_session(app_name="a", user_id="large", session_id="s")
    for _ in range(10):
        await direct.append_events(LARGE, [Event("user", EVENT) for _ in range(10)])
    if what == "list":
        for name in range(40):
            state = {"large": "x" * 200_000}
            await direct.create_session(
                app_name="a", user_id="list", session_id=str(name), state=state
            )
    await direct.aclose()
    async with slow_network(server, tmp_path_factory.mktemp("s")) as url:
        service = make_service("async", url, call_timeout=30)
        await service.get_user_state("a", "u")

        def read() -> Any:
            ids = {"app_name": "a", "user_id": "large", "session_id": "s"}
            return service.get_session(**ids, event_num=100)

        if what == "first read":
            large = read()
        elif what == "later read":
            await read()
            large = read()
        elif what == "page":
            large = service.get_events(LARGE, limit=100)
        elif what == "list":
            large = service.list_sessions(app_name="a", user_id="list")
        elif what == "append":
            large = service.append_events(LARGE, [Event("user", EVENT) for _ in range(40)])
        else:
            large = service.update_session_state(LARGE, {f"{n}": EVENT for n in range(40)})
        duration_s, longest_s = await longest_small_call(service, large)
        print(f"{what}: {duration_s:.2f} s, longest small call {longest_s:.3f} s")
        assert duration_s > 0.8
        assert longest_s < duration_s / 2
        await service.aclose()


def read_call(name: str, number: int = 20) -> Call[Any]:
    return Call("read", list, commands=(("HGETALL", b"s"), ("ZRANGE", name.encode(), -number, -1)))


def test_reads_use_the_bulk_connection_until_they_were_measured() -> None:
    sizes = ReplySizes()
    assert sizes.may_be_large(read_call("a"))
    sizes.note(read_call("a"), is_large=False)
    assert not sizes.may_be_large(read_call("a"))
    assert sizes.may_be_large(read_call("a", 100))
    sizes.note(read_call("a"), is_large=True)
    assert sizes.may_be_large(read_call("a"))
    state = Call("state", list, commands=(("HGETALL", b"u"),))
    assert not sizes.may_be_large(state)
    sizes.note(state, is_large=True)
    assert sizes.may_be_large(state)


def test_commands_without_keys_are_small() -> None:
    assert not ReplySizes().may_be_large(Call("role", list, commands=(("ROLE",),)))


def test_a_large_write_makes_sizes_unknown() -> None:
    sizes = ReplySizes()
    sizes.note(read_call("a"), is_large=False)
    sizes.forget(Call("write", list, keys=(b"s", b"a")))
    assert sizes.may_be_large(read_call("a"))


def test_the_memory_of_sizes_is_bounded() -> None:
    sizes = ReplySizes()
    for number in range(11_000):
        sizes.note(read_call(f"{number}"), is_large=False)
    assert len(sizes._is_large) == 10_000
    for number in range(1, 1000):
        sizes.note(read_call("a", number), is_large=False)
    assert len(sizes._is_large[b"a",]) <= 16
