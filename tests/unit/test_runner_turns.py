"""Runs with `serialize_turns=True`: how they wait for their turn, keep it and lose it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from runner_support import (
    APP,
    DEADLINE_S,
    IDS,
    KEY,
    USER,
    Gate,
    ScriptedAgent,
    all_of,
    echo,
    failing,
    make_service,
    said,
    until,
)

from sessionstore import (
    BackendTimeout,
    BackendUnavailable,
    Event,
    RunContext,
    Runner,
    SessionNotFound,
    SessionService,
    TurnLost,
    TurnTaken,
)
from sessionstore.calls import Call


class TestTurns:
    async def test_no_call_of_turns_without_serialize_turns(self) -> None:
        service, store = make_service()
        await all_of(Runner(APP, echo, service).run(USER, "sid", "x"))
        assert store.names == ["get_or_create_session", "append_event", "append_event"]

    async def test_a_run_has_its_turn_before_it_reads(self) -> None:
        service, store = make_service()
        await all_of(Runner(APP, echo, service, serialize_turns=True).run(USER, "sid", "x"))
        assert store.names == [
            "get_or_create_session",
            "acquire_turn",
            "get_session",
            "append_event",
            "append_event",
            "renew_turn",  # with a lease of 0, which releases it
        ]

    async def test_a_run_that_waits_sees_what_the_other_wrote(self) -> None:
        service, _ = make_service()
        seen = []

        async def agent(context: RunContext) -> AsyncIterator[Event]:
            seen.append(([event.content for event in context.session.events], dict(context.state)))
            yield Event("agent", f"to {context.message}")
            await asyncio.sleep(0.01)
            context.state["count"] = context.state.get("count", 0) + 1
            yield Event("agent", "done")

        runner = Runner(APP, agent, service, serialize_turns=True)
        await asyncio.gather(*(all_of(runner.run(USER, "sid", number)) for number in range(4)))
        contents = [content for _, content in await said(service)]
        order = contents[::3]
        assert sorted(order) == list(range(4))
        assert contents == [part for n in order for part in (n, f"to {n}", "done")]
        for number, (history, state) in enumerate(seen):
            assert history == contents[: 3 * number + 1]
            assert state == ({"count": number} if number else {})

    async def test_a_turn_is_renewed_while_the_run_lives(self) -> None:
        service, store = make_service()
        may_end = asyncio.Event()

        async def agent(_: RunContext) -> AsyncIterator[Event]:
            yield Event("agent", 1)
            await may_end.wait()
            yield Event("agent", 2)

        store.hook = failing("renew_turn", BackendTimeout("planted"), times=1)
        runner = Runner(APP, agent, service, serialize_turns=True, turn_lease=0.3)
        run = runner.run(USER, "sid", "x")
        await anext(run)
        await until(lambda: store.names.count("renew_turn") > 4, "the renewals")
        with pytest.raises(TurnTaken):
            await service.acquire_turn(KEY)
        may_end.set()
        assert [event.content async for event in run] == [2]
        num_calls = len(store.names)
        await service.acquire_turn(KEY)
        assert len(asyncio.all_tasks()) == 1
        assert len(store.names) == num_calls + 1

    async def test_a_run_that_lost_its_turn_is_refused(self) -> None:
        service, store = make_service()
        agent = ScriptedAgent(*(Event("agent", number) for number in range(3)))
        runner = Runner(APP, agent, service, serialize_turns=True, turn_lease=0.02)
        store.hook = failing("renew_turn", BackendTimeout("planted"))
        run = runner.run(USER, "sid", "x")
        await anext(run)
        turn = await self.taken_over(service)
        with pytest.raises(TurnLost) as raised:
            await anext(run)
        assert not hasattr(raised.value, "__notes__")
        assert agent.finished == 1
        assert [content for _, content in await said(service)] == ["x", 0]
        with pytest.raises(TurnTaken):  # the lost turn did not release the new one
            await service.acquire_turn(KEY)
        await service.append_event(KEY, Event("other"), turn=turn)

    @pytest.mark.parametrize("ends", ["error", "aclose"])
    async def test_nothing_more_is_stored_once_the_turn_is_lost(self, ends: str) -> None:
        service, store = make_service()
        agent = ScriptedAgent(Event("agent", "Hel", partial=True), ValueError("out of paper"))
        runner = Runner(
            APP, agent, service, serialize_turns=True, turn_lease=0.02, store_interrupted=True
        )
        store.hook = failing("renew_turn", BackendTimeout("planted"))
        run = runner.run(USER, "sid", "x")
        await anext(run)
        await self.taken_over(service)
        if ends == "error":
            with pytest.raises(ValueError, match="out of paper") as raised:
                await anext(run)
            [note] = raised.value.__notes__
            assert "TurnLost" in note
        else:
            await run.aclose()
        assert await said(service) == [("user", "x")]

    @staticmethod
    async def taken_over(service: SessionService) -> Any:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                return await service.acquire_turn(KEY)
            except TurnTaken:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.001)

    async def test_a_store_whose_clock_is_behind_is_not_asked_all_the_time(self) -> None:
        service, store = make_service(clock=lambda: time.time() - 3600)
        await service.create_session(**IDS)
        await service.acquire_turn(KEY)
        runner = Runner(APP, echo, service, serialize_turns=True)
        start = time.monotonic()
        task = asyncio.create_task(all_of(runner.run(USER, "sid", "x")))
        await until(lambda: store.names.count("acquire_turn") == 6, "six attempts")
        assert time.monotonic() - start > 0.1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    @pytest.mark.parametrize("outcome", ["taken", "failed"])
    async def test_cancelled_while_it_requests_a_turn_that_is_taken(self, outcome: str) -> None:
        service, store = make_service()
        await service.create_session(**IDS)
        await service.acquire_turn(KEY)
        gate = Gate("before", name="acquire_turn")

        async def hook(number: int, call: Call[Any], when: str) -> None:
            await gate(number, call, when)
            if outcome == "failed" and call.name == "acquire_turn":
                raise BackendTimeout("planted")

        store.hook = hook
        runner = Runner(APP, echo, service, serialize_turns=True)
        task = asyncio.create_task(all_of(runner.run(USER, "sid", "x")))
        await gate.reached.wait()
        task.cancel()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    @pytest.mark.parametrize("name", ["acquire_turn", "renew_turn"])
    async def test_cancelled_twice_it_releases_the_turn(self, name: str) -> None:
        """While it acquires the turn, and while it releases it."""
        service, store = make_service()
        gate = store.hook = Gate("before", name=name)
        runner = Runner(APP, echo, service, serialize_turns=True)
        task = asyncio.create_task(all_of(runner.run(USER, "sid", "x")))
        await gate.reached.wait()
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await service.acquire_turn(KEY)

    async def test_cancelled_again_while_it_releases_what_it_just_acquired(self) -> None:
        service, store = make_service()
        acquiring, releasing = (
            Gate("before", name=name) for name in ("acquire_turn", "renew_turn")
        )

        async def hook(number: int, call: Call[Any], when: str) -> None:
            await acquiring(number, call, when)
            await releasing(number, call, when)

        store.hook = hook
        runner = Runner(APP, echo, service, serialize_turns=True)
        task = asyncio.create_task(all_of(runner.run(USER, "sid", "x")))
        for gate in (acquiring, releasing):
            await gate.reached.wait()
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await service.acquire_turn(KEY)

    async def test_a_turn_that_cannot_be_given_back_does_not_fail_the_run(self) -> None:
        service, store = make_service()
        store.hook = failing("renew_turn", BackendUnavailable("planted"))
        runner = Runner(APP, echo, service, serialize_turns=True)
        assert len(await all_of(runner.run(USER, "sid", "x"))) == 1

    async def test_a_session_deleted_while_a_run_waits_raises_session_not_found(self) -> None:
        service, store = make_service()
        gate = store.hook = Gate("after", name="get_or_create_session")
        runner = Runner(APP, echo, service, serialize_turns=True)
        task = asyncio.create_task(all_of(runner.run(USER, "sid", "x")))
        await gate.reached.wait()
        await service.delete_session(**IDS)
        gate.opened.set()
        with pytest.raises(SessionNotFound):
            await task

    async def test_a_session_deleted_after_acquiring_raises_and_releases_the_turn(self) -> None:
        service, store = make_service()
        gate = store.hook = Gate("after", name="acquire_turn")
        runner = Runner(APP, echo, service, serialize_turns=True)
        task = asyncio.create_task(all_of(runner.run(USER, "sid", "x")))
        await gate.reached.wait()
        await service.delete_session(**IDS)
        gate.opened.set()
        with pytest.raises(SessionNotFound, match="deleted while the run waited"):
            await task
        assert store.names[-1] == "renew_turn"
