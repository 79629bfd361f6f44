"""A run that waits for a turn is woken up by its release. It does not poll."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from support.servers import Server, acl_user
from support.services import make_service
from support.sessions import KEY, create
from support.waiting import poll_until
from support.watching import watch_first

from sessionstore import Event, InMemorySessionService, Runner, SessionService, watchers
from sessionstore.calls import AsyncExecutor, Call
from sessionstore.observe import wrap_executor

LEASE = timedelta(minutes=10)


class Counted:
    """Counts the Calls of a service."""

    def __init__(self, service: SessionService) -> None:
        self.calls: Counter[str] = Counter()
        wrap_executor(service, self._around)

    def _around(self, inner: AsyncExecutor) -> AsyncExecutor:
        self._inner = inner
        return self

    async def execute(self, call: Call[Any]) -> list[Any]:
        replies = await self._inner.execute(call)
        self.calls[call.name] += 1
        return replies

    async def aclose(self) -> None:
        await self._inner.aclose()


@pytest.fixture(autouse=True)
def _no_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "READ_S", 3600.0)


async def answer(context: Any) -> AsyncIterator[Event]:
    yield Event("agent", context.message)


async def run_once(service: SessionService) -> list[Any]:
    runner = Runner(KEY.app_name, answer, service, serialize_turns=True)
    run = runner.run(KEY.user_id, KEY.session_id, "hello")
    return [event.content async for event in run]


@pytest.mark.parametrize("how", ["release", "free"])
async def test_a_release_wakes_the_run_that_waits(place: Server | None, how: str) -> None:
    one: Any
    one = make_service("async", place.url) if place else InMemorySessionService(session_ttl=600)
    other = make_service("async", place.url) if place else one
    await create(one)
    turn = await one.acquire_turn(KEY, lease=LEASE)
    counted = Counted(other)
    runs = [asyncio.create_task(run_once(other)) for _ in range(5)]
    await poll_until(lambda: counted.calls["listen_session"] == 1, "the run that waits")
    await poll_until(lambda: counted.calls["acquire_turn"] >= 2, "its last attempt")
    for number in range(20):  # appends wake nobody who waits for the turn
        await one.append_event(KEY, Event("agent", number), turn=turn)
    assert counted.calls["acquire_turn"] <= 3
    if how == "release":
        await one.release_turn(turn)
    else:
        await one.free_turn(KEY)
    async with asyncio.timeout(20):
        assert await asyncio.gather(*runs) == [["hello"]] * 5
    for service in {id(each): each for each in (one, other)}.values():
        await service.aclose()


async def test_a_watcher_and_a_run_that_waits_share_a_channel(server: Server) -> None:
    async with make_service("async", server.url) as one, make_service("async", server.url) as other:
        await create(one)
        turn = await one.acquire_turn(KEY, lease=LEASE)
        counted = Counted(other)
        watching = asyncio.create_task(watch_first(other, KEY, 3, idle_timeout=20))
        run = asyncio.create_task(run_once(other))
        await poll_until(lambda: counted.calls["listen_session"] >= 2, "both")
        await one.append_event(KEY, Event("user", 1), turn=turn)
        await one.release_turn(turn)
        async with asyncio.timeout(20):
            assert await run == ["hello"]
            assert len(await watching) == 3


async def test_the_end_of_the_lease_wakes_it_too(server: Server) -> None:
    async with make_service("async", server.url) as one, make_service("async", server.url) as other:
        await create(one)
        await one.acquire_turn(KEY, lease=timedelta(seconds=0.7))
        async with asyncio.timeout(20):
            assert await run_once(other) == ["hello"]


async def test_without_rights_to_channels_it_polls(server: Server) -> None:
    command: Any = server.raw.execute_command
    command("ACL", "SETUSER", *acl_user())
    url = server.url.replace("://", "://agent:password@")
    try:
        async with make_service("async", url) as one, make_service("async", url) as other:
            await create(one)
            turn = await one.acquire_turn(KEY, lease=LEASE)
            counted = Counted(other)
            run = asyncio.create_task(run_once(other))
            await poll_until(lambda: counted.calls["acquire_turn"] >= 3, "attempts")
            assert not counted.calls["listen_session"]
            await one.release_turn(turn)
            async with asyncio.timeout(20):
                assert await run == ["hello"]
    finally:
        command("ACL", "DELUSER", "agent")
