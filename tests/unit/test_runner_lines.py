"""Runs that wait for one turn: one asks the store, the others stand in line, and nobody starves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from runner_support import APP, IDS, KEY, USER, Store, all_of, echo, make_service, said, until
from support.services import make_ops
from support.waiting import wait_until

from sessionstore import BackendUnavailable, Event, RunContext, Runner, SessionService, turn_queues
from sessionstore.calls import Call, SyncExecutor
from sessionstore.concurrency import _queues
from sessionstore.observe import wrap_executor
from sessionstore.sync import InMemorySessionService
from sessionstore.sync import Runner as SyncRunner


def asked(store: Store) -> int:
    return store.names.count("acquire_turn")


async def test_hundreds_of_runs_ask_as_often_as_one() -> None:
    service, store = make_service()
    await service.create_session(**IDS)
    held = await service.acquire_turn(KEY, lease=600)
    before = asked(store)
    runner = Runner(APP, echo, service, serialize_turns=True)
    runs = [asyncio.create_task(all_of(runner.run(USER, "sid", n))) for n in range(300)]
    started = time.monotonic()
    await until_asked(store, before + 8)
    assert time.monotonic() - started > 0.5, "eight questions of one run take this long"
    await service.release_turn(held)
    released = time.monotonic()
    await asyncio.gather(*runs)
    assert asked(store) - before < 300 + 30
    assert time.monotonic() - released < 10, "runs in line get the turn without a delay"
    contents = [content for _, content in await said(service)]
    assert sorted(contents[::2]) == list(range(300))


async def until_asked(store: Store, count: int) -> None:
    async def is_asked() -> bool:
        return asked(store) >= count

    await until(is_asked, "questions to the store")


async def test_runs_get_the_turn_in_the_order_in_which_they_came() -> None:
    service, _ = make_service()
    runner = Runner(APP, echo, service, serialize_turns=True)
    await asyncio.gather(*(all_of(runner.run(USER, "sid", n)) for n in range(20)))
    assert [content for _, content in await said(service)][::2] == list(range(20))


async def test_a_line_is_dropped_with_its_last_run() -> None:
    service, _ = make_service()
    runner = Runner(APP, echo, service, serialize_turns=True)
    await asyncio.gather(*(all_of(runner.run(USER, f"s{n % 3}", n)) for n in range(9)))
    assert _queues._by_service[service] == {}


async def test_a_cancelled_run_leaves_the_line() -> None:
    service, store = make_service()
    await service.create_session(**IDS)
    held = await service.acquire_turn(KEY, lease=600)
    runner = Runner(APP, echo, service, serialize_turns=True)
    runs = [asyncio.create_task(all_of(runner.run(USER, "sid", n))) for n in range(4)]
    await until_asked(store, 3)
    for number in (0, 2):  # the one that asks, and one in line
        runs[number].cancel()
    await service.release_turn(held)
    outcomes = await asyncio.gather(*runs, return_exceptions=True)
    assert [isinstance(each, asyncio.CancelledError) for each in outcomes] == [True, False] * 2
    assert _queues._by_service[service] == {}


async def test_a_store_that_is_down_fails_all_runs_at_once() -> None:
    service, store = make_service()
    runner = Runner(APP, echo, service, serialize_turns=True)

    async def fail(_: int, call: Call[Any], when: str) -> None:
        if call.name == "acquire_turn" and when == "before":
            await asyncio.sleep(0.1)
            raise BackendUnavailable("down")

    store.hook = fail
    outcomes = await asyncio.gather(
        *(all_of(runner.run(USER, "sid", n)) for n in range(50)), return_exceptions=True
    )
    assert {type(each) for each in outcomes} == {BackendUnavailable}
    assert asked(store) < 5
    store.hook = None
    await all_of(runner.run(USER, "sid", "again"))


async def test_a_run_whose_turn_is_lost_does_not_hold_up_the_line() -> None:
    service, _ = make_service()
    is_stuck = asyncio.Event()

    async def agent(context: RunContext) -> AsyncIterator[Event]:
        if context.message == "stuck":
            is_stuck.set()
            await asyncio.sleep(600)
        yield Event("agent", context.message)

    runner = Runner(APP, agent, service, serialize_turns=True, turn_lease=0.06)
    stuck = asyncio.create_task(all_of(runner.run(USER, "sid", "stuck")))
    await is_stuck.wait()
    waiting = asyncio.create_task(all_of(runner.run(USER, "sid", "next")))
    await asyncio.sleep(0)
    await service.free_turn(KEY)
    assert [event.content for event in await waiting] == ["next"]
    stuck.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stuck


async def test_a_run_of_another_process_is_not_starved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two services on one store stand for two processes. One of them always has runs in line."""
    monkeypatch.setattr(turn_queues, "_LONGEST_STREAK_S", 0.2)
    service, store = make_service()
    other = SessionService(make_ops(), store)
    is_done = False

    async def slow(context: RunContext) -> AsyncIterator[Event]:
        await asyncio.sleep(0.01)
        yield Event("agent", context.message)

    runner = Runner(APP, slow, service, serialize_turns=True)

    async def keep_running() -> None:
        while not is_done:
            await all_of(runner.run(USER, "sid", "mine"))

    busy = [asyncio.create_task(keep_running()) for _ in range(3)]
    await until_asked(store, 3)
    async with asyncio.timeout(20):
        await all_of(Runner(APP, echo, other, serialize_turns=True).run(USER, "sid", "theirs"))
    is_done = True
    await asyncio.gather(*busy)


def test_threads_stand_in_line_too() -> None:
    service = InMemorySessionService()
    num_asked = 0

    class Counter:
        def __init__(self, inner: SyncExecutor) -> None:
            self.inner = inner

        def execute(self, call: Call[Any]) -> list[Any]:
            nonlocal num_asked
            num_asked += call.name == "acquire_turn"
            return self.inner.execute(call)

        def close(self) -> None:
            self.inner.close()

    wrap_executor(service, Counter)
    service.create_session(**IDS)
    held = service.acquire_turn(KEY, lease=600)

    def agent(context: RunContext) -> Iterator[Event]:
        yield Event("agent", context.message)

    runner = SyncRunner(APP, agent, service, serialize_turns=True)
    threads = [
        threading.Thread(target=lambda n=n: list(runner.run(USER, "sid", n))) for n in range(40)
    ]
    for thread in threads:
        thread.start()
    started = time.monotonic()
    wait_until(lambda: num_asked >= 8, "questions to the store")
    assert time.monotonic() - started > 0.4
    service.release_turn(held)
    for thread in threads:
        thread.join(20)
    assert num_asked < 40 + 30
    session = service.get_session(**IDS)
    assert session is not None
    assert session.event_count == 80
