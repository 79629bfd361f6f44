"""The Runner for asyncio and for threads: what a caller has seen is stored, once, in order."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, Literal

import pytest
from contract_support import results_of, run_all
from runner_sides import (
    AwaitedRunner,
    Tamper,
    TamperedAsync,
    TamperedSync,
    losing,
    twice,
    without_renewals,
)
from support.events import numbers_of
from support.servers import Server
from support.services import WITH_TTL, Awaited
from support.sessions import APP, KEY, OWNER, USER, create, read

import sessionstore.sync
from sessionstore import (
    BackendUnavailable,
    Event,
    RunContext,
    Runner,
    SessionKey,
    SessionService,
    TurnLost,
    TurnTaken,
)
from sessionstore.observe import wrap_executor

_THREADS = 64  # more than the runs of any test: each run that waits for its turn holds one


class Side:
    """Makes services and Runners for asyncio, or for threads with an async API."""

    def __init__(self, mode: Literal["async", "sync"], pool: ThreadPoolExecutor) -> None:
        self.mode = mode
        self._pool = pool

    def service(self, place: Server | None) -> Any:
        module: Any = sessionstore if self.mode == "async" else sessionstore.sync
        if place is None:
            return module.InMemorySessionService(**WITH_TTL)
        return module.RedisSessionService(place.url, **WITH_TTL)

    def runner(self, agent: Any, service: Any, **options: Any) -> Any:
        if self.mode == "async":
            return Runner(APP, agent, service, **options)
        return AwaitedRunner(APP, agent, service, self._pool, **options)

    def tampered(self, service: Any, tamper: Tamper) -> Any:
        """A service that shares the data of another one, and tampers with calls."""
        found = copy.copy(service)
        kind: Any = TamperedAsync if self.mode == "async" else TamperedSync
        wrap_executor(found, lambda inner: kind(inner, tamper))
        return found


@pytest.fixture(params=["async", "sync"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    with ThreadPoolExecutor(_THREADS) as pool:
        yield Side(request.param, pool)


@pytest.fixture
async def plain(place: Server | None, side: Side) -> AsyncIterator[Any]:
    """A service of the side that is tested."""
    service = side.service(place)
    async with AsyncExitStack() as stack:
        if side.mode == "async":
            await stack.enter_async_context(service)
        else:
            stack.enter_context(service)
        yield service


@pytest.fixture
def service(plain: Any, side: Side) -> Any:
    """The same with an async API. Replaces the fixture of the other contract tests."""
    return plain if side.mode == "async" else Awaited(plain)


MakeRunner = Callable[..., Any]


@pytest.fixture
async def make_runner(place: Server | None, plain: Any, side: Side) -> AsyncIterator[MakeRunner]:
    """Makes Runners. Each has its own service, except in memory, where they share one."""
    async with AsyncExitStack() as stack:

        def make(agent: Any, **options: Any) -> Any:
            if place is None:
                return side.runner(agent, plain, **options)
            own = side.service(place)
            if side.mode == "async":
                stack.push_async_callback(own.aclose)
            else:
                stack.callback(own.close)
            return side.runner(agent, own, **options)

        yield make


async def all_of(run: Any) -> list[Event]:
    return [event async for event in run]


async def count(context: RunContext) -> AsyncIterator[Event]:
    """Five events that contain the message."""
    for number in range(5):
        await asyncio.sleep(0)
        yield Event("agent", [context.message, number], state_delta={f"{context.message}": number})


def in_turn(contents: list[Any]) -> list[Any]:
    """The messages of runs of `count` that did not interleave, in order."""
    order = contents[::6]
    assert contents == [
        part for message in order for part in (message, *([message, number] for number in range(5)))
    ]
    return order


class TestOneRun:
    async def test_a_session_is_created_loaded_and_updated(
        self, make_runner: MakeRunner, service: SessionService
    ) -> None:
        async def shop(context: RunContext) -> AsyncIterator[Event]:
            cart = context.state.get("cart", [])
            yield Event("shop", {"tool_call": "add", "item": context.message})
            context.state["cart"] = [*cart, context.message]
            context.state["user:orders"] = context.state.get("user:orders", 0) + 1
            context.state["app:sold"] = context.state.get("app:sold", 0) + 1
            yield Event("add", {"tool_result": len(cart) + 1})
            yield Event("shop", f"Your cart: {context.state['cart']}")

        runner = make_runner(shop)
        first = await all_of(runner.run(USER, "sid", "mug", state={"language": "en"}))
        assert first[-1].content == "Your cart: ['mug']"
        second = await all_of(runner.run(USER, "sid", "cup", state={"language": "fr"}))
        assert second[-1].content == "Your cart: ['mug', 'cup']"
        [third] = (await all_of(runner.run(USER, "other", "cup")))[-1:]
        assert third.content == "Your cart: ['cup']"

        session = await read(service)
        assert session.state == {
            "language": "en",
            "cart": ["mug", "cup"],
            "user:orders": 3,
            "app:sold": 3,
        }
        assert [event.content for event in session.events] == [
            "mug",
            *(event.content for event in first),
            "cup",
            *(event.content for event in second),
        ]

    async def test_a_new_session_has_a_new_id(
        self, make_runner: MakeRunner, service: SessionService
    ) -> None:
        runner = make_runner(count)
        run = runner.run(USER, "", "x")
        await all_of(run)
        found = await read(service, run.key)
        assert len(found.events) == 6
        [listed] = await service.list_sessions(**OWNER)
        assert listed.key == run.key

    async def test_what_the_caller_has_seen_is_stored(
        self, make_runner: MakeRunner, service: SessionService
    ) -> None:
        async def agent(_: RunContext) -> AsyncIterator[Event]:
            for number in range(4):
                yield Event("agent", f"{number}", partial=True)
                yield Event("agent", number)

        seen = []
        async for event in make_runner(agent).run(USER, "sid", "x"):
            stored = (await read(service)).events
            if event.partial:
                assert event not in stored
            else:
                seen.append(event)
            assert stored[1:] == seen
        assert len(seen) == 4

    async def test_the_agent_sees_so_much_of_the_history(
        self, make_runner: MakeRunner, service: SessionService
    ) -> None:
        seen = []

        async def agent(context: RunContext) -> AsyncIterator[Event]:
            seen.append(numbers_of(context.session))
            yield Event("agent", "done")

        session = await create(service)
        await service.append_events(session, [Event("user", number) for number in range(30)])
        for limit, serialize_turns in ((4, False), (4, True), (0, False), (0, True)):
            runner = make_runner(agent, history_limit=limit, serialize_turns=serialize_turns)
            await all_of(runner.run(USER, "sid", "x"))
        assert seen == [[27, 28, 29, "x"], [29, "x", "done", "x"], ["x"], ["x"]]

    async def test_an_error_is_stored_and_raised(
        self, make_runner: MakeRunner, service: SessionService
    ) -> None:
        async def agent(_: RunContext) -> AsyncIterator[Event]:
            yield Event("agent", 1)
            raise ZeroDivisionError("by zero")

        with pytest.raises(ZeroDivisionError, match="by zero"):
            await all_of(make_runner(agent, serialize_turns=True).run(USER, "sid", "x"))
        *_, last = (await read(service)).events
        assert last.content == {"error": {"type": "ZeroDivisionError", "message": "by zero"}}
        await service.acquire_turn(KEY)

    @pytest.mark.parametrize("how", ["cancel", "aclose"])
    async def test_an_interrupted_run_keeps_what_was_said(
        self, side: Side, make_runner: MakeRunner, service: SessionService, how: str
    ) -> None:
        if how == "cancel" and side.mode == "sync":
            pytest.skip("a thread cannot be cancelled")
        streamed = asyncio.Event()

        async def agent(_: RunContext) -> AsyncIterator[Event]:
            yield Event("agent", "Once upon", partial=True)
            yield Event("agent", " a time", partial=True)
            streamed.set()
            await asyncio.Event().wait()

        runner = make_runner(agent, serialize_turns=True, store_interrupted=True)
        run = runner.run(USER, "sid", "x")
        if how == "cancel":
            task = asyncio.create_task(all_of(run))
            await streamed.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await anext(run)
            await anext(run)
            await run.aclose()
        _, event = (await read(service)).events
        assert (event.content, event.metadata) == ("Once upon a time", {"interrupted": True})
        assert event.invocation_id == run.invocation_id
        await service.acquire_turn(KEY)


class TestExactlyOnce:
    @pytest.mark.parametrize("serialize_turns", [False, True])
    @pytest.mark.parametrize("name", ["append_event", "get_or_create_session", "acquire_turn"])
    async def test_a_call_that_is_sent_twice_counts_once(
        self, side: Side, plain: Any, service: SessionService, name: str, serialize_turns: bool
    ) -> None:
        repeating = side.tampered(plain, twice(name))
        runner = side.runner(count, repeating, serialize_turns=serialize_turns)
        seen = await all_of(runner.run(USER, "sid", "x"))
        found = await read(service)
        assert found.events[1:] == seen
        assert found.state == {"x": 4}

    async def test_a_run_may_be_repeated_with_its_message(
        self, side: Side, plain: Any, service: SessionService
    ) -> None:
        """Whichever answer is lost, the message and every event are stored once."""

        async def agent(_: RunContext) -> AsyncIterator[Event]:
            for number in range(5):
                yield Event("agent", number)

        for number in range(1, 8):
            key = SessionKey(APP, USER, f"session {number}")
            message = Event("user", "x")
            interrupted = side.runner(agent, side.tampered(plain, losing(number)))
            with pytest.raises(BackendUnavailable):
                await all_of(interrupted.run(USER, key.session_id, message))
            first = ["x", *range(5)][: number - 1]
            assert numbers_of(await read(service, key)) == first
            await all_of(side.runner(agent, plain).run(USER, key.session_id, message))
            assert numbers_of(await read(service, key)) == [*(first or ["x"]), *range(5)]


class TestManyRuns:
    async def test_fifty_runs_on_one_session_lose_nothing(
        self, make_runner: MakeRunner, service: SessionService
    ) -> None:
        runners = [make_runner(count) for _ in range(5)]
        runs = [runners[number % 5].run(USER, "sid", f"run {number}") for number in range(50)]
        seen = results_of(await run_all(map(all_of, runs)))
        found = await read(service)
        assert len(found.events) == 50 * 6
        assert found.state == {f"run {number}": 4 for number in range(50)}
        for number, (run, events) in enumerate(zip(runs, seen, strict=True)):
            own = [event for event in found.events if event.invocation_id == run.invocation_id]
            assert own[0].content == f"run {number}"
            assert own[1:] == events
        names = [event.invocation_id for event in found.events]
        assert names != sorted(names, key=names.index), "the runs did not interleave"

    async def test_fifty_runs_in_turn_do_not_interleave(
        self, make_runner: MakeRunner, service: SessionService
    ) -> None:
        runners = [make_runner(count, serialize_turns=True) for _ in range(5)]
        runs = [runners[number % 5].run(USER, "sid", f"run {number}") for number in range(50)]
        results_of(await run_all(map(all_of, runs)))
        order = in_turn(numbers_of(await read(service)))
        assert sorted(order) == sorted(f"run {number}" for number in range(50))

    async def test_a_counter_in_turn_counts_every_run(
        self, make_runner: MakeRunner, service: SessionService
    ) -> None:
        """Each run reads what the run before it wrote, without conditions."""

        async def agent(context: RunContext) -> AsyncIterator[Event]:
            so_far = context.state.get("runs", 0)
            await asyncio.sleep(0)
            context.state["runs"] = so_far + 1
            yield Event("agent", so_far)

        runners = [make_runner(agent, serialize_turns=True) for _ in range(3)]
        runs = [runners[number % 3].run(USER, "sid", number) for number in range(12)]
        results_of(await run_all(map(all_of, runs)))
        assert (await read(service)).state == {"runs": 12}

    async def test_sessions_do_not_wait_for_each_other(
        self, make_runner: MakeRunner, service: SessionService
    ) -> None:
        may_end = asyncio.Event()

        async def agent(context: RunContext) -> AsyncIterator[Event]:
            if context.message == "slow":
                await may_end.wait()
            yield Event("agent", "done")

        runner = make_runner(agent, serialize_turns=True)
        slow = asyncio.create_task(all_of(runner.run(USER, "slow", "slow")))
        for user, session_id in ((USER, "sid"), ("other", "slow")):
            [event] = await all_of(runner.run(user, session_id, "fast"))
            assert event.content == "done"
        assert not slow.done()
        may_end.set()
        await slow
        assert len(await service.list_sessions(**OWNER)) == 2

    async def test_runs_that_fail_or_are_cancelled_let_the_next_one_begin(
        self, make_runner: MakeRunner, service: SessionService
    ) -> None:
        async def agent(context: RunContext) -> AsyncIterator[Event]:
            yield Event("agent", [context.message, 0])
            if context.message % 3 == 0:
                raise ZeroDivisionError
            await asyncio.sleep(0)
            yield Event("agent", [context.message, 1])

        async def hold(runner: Any, number: int) -> None:
            run = runner.run(USER, "sid", number)
            async for event in run:
                if number % 3 == 1 and event.content == [number, 0]:
                    await run.aclose()

        runners = [make_runner(agent, serialize_turns=True) for _ in range(3)]
        outcomes = await run_all(hold(runners[number % 3], number) for number in range(15))
        failed = [isinstance(outcome, ZeroDivisionError) for outcome in outcomes]
        assert failed == [number % 3 == 0 for number in range(15)]
        events = (await read(service)).events
        runs = [list(run) for _, run in itertools.groupby(events, lambda one: one.invocation_id)]
        assert len(runs) == 15
        for said, *answers in runs:
            assert len(answers) == (1 if said.content % 3 == 1 else 2)

    async def test_a_run_whose_turn_was_taken_is_refused(
        self, side: Side, plain: Any, make_runner: MakeRunner, service: SessionService
    ) -> None:
        """If the renewals of a holder do not arrive, the next run gets the turn."""
        lonely = side.tampered(plain, without_renewals)
        first = side.runner(count, lonely, serialize_turns=True, turn_lease=0.05)
        run = first.run(USER, "sid", "first")
        await anext(run)
        second = make_runner(count, serialize_turns=True)
        assert len(await all_of(second.run(USER, "sid", "second"))) == 5
        with pytest.raises(TurnLost):
            await anext(run)
        contents = numbers_of(await read(service))
        assert contents[:2] == ["first", ["first", 0]]
        assert in_turn(contents[2:]) == ["second"]

    async def test_others_may_append_to_a_session_whose_turn_is_held(
        self, make_runner: MakeRunner, service: SessionService
    ) -> None:
        run = make_runner(count, serialize_turns=True).run(USER, "sid", "x")
        await anext(run)
        with pytest.raises(TurnTaken):
            await service.acquire_turn(KEY)
        await service.append_event(KEY, Event("operator", "a note"))
        assert len(await all_of(run)) == 4
        assert numbers_of(await read(service))[2] == "a note"
