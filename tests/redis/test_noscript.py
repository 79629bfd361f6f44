"""A server that has forgotten the scripts, because it was flushed or restarted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import redis
from redis_support import IDS, USER
from support.events import ids_of, make_event
from support.operations import Operation, each_operation
from support.scene import KEY, prepare, shown
from support.servers import Server
from support.services import both_modes, make_service

from sessionstore.embedded import EmbeddedServer


@both_modes
@each_operation()
async def test_every_operation_right_after_a_flush(
    server: Server, mode: str, operation: Operation
) -> None:
    service = make_service(mode, server.url)
    scene = await prepare(service, server, operation)
    expected = shown(await operation.run(service, scene))
    keys = sorted(server.snapshot())
    scene = await prepare(service, server, operation)
    server.raw.script_flush()
    assert shown(await operation.run(service, scene)) == expected
    assert sorted(server.snapshot()) == keys
    await service.aclose()


@both_modes
async def test_two_hundred_calls_at_once_right_after_a_flush(server: Server, mode: str) -> None:
    service = make_service(mode, server.url)
    await service.create_session(**IDS)
    for _ in range(3):
        server.raw.flushall()
        await service.create_session(**IDS)
        await service.update_user_state("a", "u", {"k": 1})
        server.raw.script_flush()
        results = await asyncio.gather(
            *(
                service.append_event(KEY, make_event(f"{number:03}"))
                if number % 2
                else service.get_user_state("a", "u")
                for number in range(200)
            )
        )
        for number, result in enumerate(results):
            if number % 2:
                assert result.id == f"{number:03}"
            else:
                assert result == {"k": 1}
        found = await service.get_session(**IDS)
        assert sorted(ids_of(found.events)) == [f"{number:03}" for number in range(1, 200, 2)]
    await service.aclose()


@both_modes
async def test_flushes_in_the_midst_of_calls(server: Server, mode: str) -> None:
    service = make_service(mode, server.url)
    await service.create_session(**IDS)
    is_over = asyncio.Event()

    async def flush() -> int:
        count = 0
        while not is_over.is_set():
            await asyncio.to_thread(server.raw.script_flush)
            count += 1
        return count

    flushing = asyncio.create_task(flush())

    async def append(agent: int) -> None:
        for number in range(25):
            await service.append_event(KEY, make_event(f"{agent}-{number:02}"))

    await asyncio.gather(*(append(agent) for agent in range(4)))
    is_over.set()
    assert await flushing > 0
    found = await service.get_session(**IDS)
    for agent in range(4):
        own = [name for name in ids_of(found.events) if name.startswith(f"{agent}-")]
        assert own == [f"{agent}-{number:02}" for number in range(25)]
    await service.aclose()


@both_modes
async def test_a_restart_between_any_two_calls(server: Server, tmp_path: Path, mode: str) -> None:
    own = EmbeddedServer(tmp_path / "data", executable=server.embedded.executable)
    await asyncio.to_thread(own.start)
    try:
        path = own.socket_path

        async def restart() -> None:
            await asyncio.to_thread(own.stop)
            await asyncio.to_thread(own.start)
            assert own.socket_path == path

        service = make_service(mode, own.url)
        await service.create_session(**IDS, state={"k": 1, "user:k": 2, "app:k": 3})
        await restart()
        await service.append_event(KEY, make_event("e1", state_delta={"k": 2}))
        await restart()
        await service.append_event(KEY, make_event("e2"))
        await restart()
        assert len(await service.list_sessions(**USER)) == 1
        await restart()
        # Not idempotent, but safe: the lost connection is noticed before the call is sent.
        event = await service.pop_event(KEY)
        assert event.id == "e2"
        await restart()
        await service.update_session_state(KEY, {"n": 1})
        await restart()
        found = await service.get_session(**IDS)
        assert ids_of(found.events) == ["e1"]
        assert found.state == {"k": 2, "n": 1, "user:k": 2, "app:k": 3}
        await restart()
        with redis.Redis(unix_socket_path=path) as raw:
            # Deadlines survive a restart, too.
            deadline = raw.pexpiretime("session:{a:u}:s")
            assert deadline == raw.pexpiretime("events:{a:u}:s") > 0
        await service.aclose()
    finally:
        await asyncio.to_thread(own.stop)
