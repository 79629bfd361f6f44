"""Every way in which a run can end: errors, callers who stop early, cancellation."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
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
    failing,
    make_service,
    read,
    said,
    until,
)

from sessionstore import (
    BackendTimeout,
    BackendUnavailable,
    Event,
    InvalidArgument,
    LimitExceeded,
    RunContext,
    Runner,
    SessionNotFound,
    TurnTaken,
)
from sessionstore.calls import Call


class TestErrors:
    @pytest.mark.parametrize("after", [0, 1, 2])
    async def test_an_error_is_stored_and_raised(self, after: int) -> None:
        error = ValueError("out of paper")
        events = [Event("agent", number) for number in range(after)]
        agent = ScriptedAgent(*events, error)
        async with Runner(APP, agent) as runner:
            run = runner.run(USER, "sid", "x")
            for number in range(after):
                assert (await anext(run)).content == number
            with pytest.raises(ValueError, match="out of paper") as raised:
                await anext(run)
            assert raised.value is error
            assert not hasattr(error, "__notes__")
            *_, last = stored = (await read(runner.session_service)).events
        assert len(stored) == after + 2
        assert last.content == {"error": {"type": "ValueError", "message": "out of paper"}}
        assert (last.author, last.metadata) == ("agent", {"error": True})
        assert last.invocation_id == run.invocation_id
        assert agent.finished == 1

    async def test_one_raised_before_there_are_events_too(self) -> None:
        def agent(_: RunContext) -> AsyncIterator[Event]:
            raise ValueError("no model")

        async with Runner(APP, agent) as runner:
            with pytest.raises(ValueError, match="no model"):
                await all_of(runner.run(USER, "sid", "x"))
            [_, (_, content)] = await said(runner.session_service)
            assert content == {"error": {"type": "ValueError", "message": "no model"}}

    async def test_a_message_that_is_no_text_is_stored_all_the_same(self) -> None:
        async with Runner(APP, ScriptedAgent(ValueError("/tmp/\udcff"))) as runner:
            with pytest.raises(ValueError, match="/tmp/"):
                await all_of(runner.run(USER, "sid", "x"))
            [_, (_, content)] = await said(runner.session_service)
            assert content["error"]["message"] == "/tmp/\\udcff"

    async def test_an_error_of_a_store_that_the_agent_uses_is_its_own(self) -> None:
        async with Runner(APP, ScriptedAgent(BackendTimeout("of the agent"))) as runner:
            with pytest.raises(BackendTimeout, match="of the agent"):
                await all_of(runner.run(USER, "sid", "x"))
            [_, (_, content)] = await said(runner.session_service)
            assert content["error"]["type"] == "BackendTimeout"

    async def test_what_is_no_event_is_an_error_of_the_agent(self) -> None:
        wrong: Any = {"author": "agent", "content": "Hello"}
        agent = ScriptedAgent(Event("agent", 1), wrong, Event("agent", 2))
        async with Runner(APP, agent) as runner:
            with pytest.raises(InvalidArgument, match="the agent must yield Events, not dict"):
                await all_of(runner.run(USER, "sid", "x"))
            contents = [content for _, content in await said(runner.session_service)]
            assert contents[:2] == ["x", 1]
            assert contents[2]["error"]["type"] == "InvalidArgument"
            assert len(contents) == 3
        assert agent.finished == 1

    @pytest.mark.parametrize(
        ("event", "error"),
        [(Event("agent", float("nan")), InvalidArgument), (Event("a", "x" * 2**23), LimitExceeded)],
    )
    async def test_so_is_an_event_that_cannot_be_stored(
        self, event: Event, error: type[Exception]
    ) -> None:
        agent = ScriptedAgent(event, Event("agent", 2))
        async with Runner(APP, agent) as runner:
            with pytest.raises(error):
                await all_of(runner.run(USER, "sid", "x"))
            [_, (_, content)] = await said(runner.session_service)
            assert content["error"]["type"] == error.__name__
        assert agent.finished == 1

    async def test_a_failed_append_of_the_message_fails_the_run(self) -> None:
        service, store = make_service()
        store.hook = failing("append_event", BackendTimeout("planted"), times=1)
        agent = ScriptedAgent(Event("agent", 1))
        with pytest.raises(BackendTimeout, match="planted"):
            await all_of(Runner(APP, agent, service).run(USER, "sid", "x"))
        assert agent.started == 0
        assert await said(service) == []

    async def test_a_failed_append_of_an_event_fails_the_run_and_is_not_stored(self) -> None:
        service, store = make_service()
        agent = ScriptedAgent(Event("agent", 1), Event("agent", 2))
        run = Runner(APP, agent, service).run(USER, "sid", "x")
        assert (await anext(run)).content == 1
        store.hook = failing("append_event", BackendTimeout("planted"), times=1)
        with pytest.raises(BackendTimeout, match="planted") as raised:
            await anext(run)
        assert not hasattr(raised.value, "__notes__")
        assert agent.finished == 1
        assert await said(service) == [("user", "x"), ("agent", 1)]
        with pytest.raises(StopAsyncIteration):
            await anext(run)

    async def test_an_error_that_cannot_be_stored_is_raised_with_a_note(self) -> None:
        service, store = make_service()
        agent = ScriptedAgent(ValueError("out of paper"))
        run = Runner(APP, agent, service).run(USER, "sid", "x")

        async def hook(number: int, *_: Any) -> None:
            if number > 2:
                raise BackendTimeout("planted")

        store.hook = hook
        with pytest.raises(ValueError, match="out of paper") as raised:
            await all_of(run)
        assert raised.value.__notes__ == [
            "the last event of the run could not be stored: BackendTimeout: planted"
        ]
        assert agent.finished == 1

    async def test_a_session_deleted_during_the_run_raises_session_not_found(self) -> None:
        async with Runner(APP, ScriptedAgent(Event("agent", 1), Event("agent", 2))) as runner:
            run = runner.run(USER, "sid", "x")
            await anext(run)
            await runner.session_service.delete_session(**IDS)
            with pytest.raises(SessionNotFound):
                await anext(run)
            assert await runner.session_service.get_session(**IDS) is None

    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("serialize_turns", [False, True])
    async def test_every_call_of_a_run_may_fail(self, when: str, serialize_turns: bool) -> None:
        """Nothing is stored twice, and the same message may be given again."""
        events = [Event("agent", number, state_delta={"n": number}) for number in range(3)]
        expected = ["x", *range(3)]
        for number in itertools.count(1):
            service, store = make_service()
            agent = ScriptedAgent(*events)
            runner = Runner(APP, agent, service, serialize_turns=serialize_turns)

            async def hook(count: int, call: Call[Any], now: str, at: int = number) -> None:
                if count == at and now == when and call.name != "renew_turn":
                    raise BackendUnavailable("planted", maybe_applied=now == "after")

            store.hook = hook
            message = Event("user", "x")
            try:
                await all_of(runner.run(USER, "sid", message))
            except BackendUnavailable:
                has_failed = True
            else:
                has_failed = False
            assert agent.finished == agent.started
            store.hook = None
            if "acquire_turn" in store.names[:number]:
                # The turn is free, unless the answer to acquire_turn was lost.
                assert (number, when) == (2, "after") or await service.acquire_turn(KEY, lease=1e-3)
            found = await service.get_session(**IDS)
            contents = [event.content for event in found.events] if found else []
            assert contents == expected[: len(contents)]
            if not has_failed:
                assert contents == expected
                break
            if (number, when, serialize_turns) != (2, "after", True):
                await all_of(runner.run(USER, "sid", message))
                again = [event.content for event in (await read(service)).events]
                # The agent's events are the same, too.
                assert again == expected
        assert number > 5


class TestEnds:
    async def test_a_caller_who_breaks_off_ends_the_run(self) -> None:
        agent = ScriptedAgent(*(Event("agent", number) for number in range(5)))
        async with Runner(APP, agent, serialize_turns=True) as runner:
            service = runner.session_service
            async for event in runner.run(USER, "sid", "x"):
                if event.content == 2:
                    break
            del event
            gc.collect()
            await until(lambda: agent.finished, "the end of the agent")
            assert [content for _, content in await said(service)] == ["x", 0, 1, 2]

            async def is_free() -> bool:
                try:
                    await service.acquire_turn(KEY)
                except TurnTaken:
                    return False
                return True

            deadline = time.monotonic() + DEADLINE_S
            while not await is_free():
                assert time.monotonic() < deadline
                await asyncio.sleep(0)

    async def test_aclose_ends_the_run(self) -> None:
        agent = ScriptedAgent(*(Event("agent", number) for number in range(5)))
        async with Runner(APP, agent, serialize_turns=True) as runner:
            service = runner.session_service
            async with aclosing(runner.run(USER, "sid", "x")) as run:
                async for event in run:
                    if event.content == 2:
                        break
            assert agent.finished == 1
            assert [content for _, content in await said(service)] == ["x", 0, 1, 2]
            await service.acquire_turn(KEY)
            assert await all_of(run) == []
            await run.aclose()

    @pytest.mark.parametrize("store_interrupted", [False, True])
    @pytest.mark.parametrize("serialize_turns", [False, True])
    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_a_run_may_be_cancelled_in_every_call(
        self, when: str, serialize_turns: bool, store_interrupted: bool
    ) -> None:
        events = [Event("agent", number) for number in range(3)]
        expected = ["x", *range(3)]
        for number in itertools.count(1):
            service, store = make_service()
            gate = store.hook = Gate(when, number=number)
            agent = ScriptedAgent(*events)
            seen: list[Any] = []

            async def hold(runner: Runner, seen: list[Any] = seen) -> None:
                async for event in runner.run(USER, "sid", "x"):
                    seen.append(event.content)

            runner = Runner(
                APP,
                agent,
                service,
                serialize_turns=serialize_turns,
                store_interrupted=store_interrupted,
            )
            task = asyncio.create_task(hold(runner))
            reached = asyncio.create_task(gate.reached.wait())
            await asyncio.wait([task, reached], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                reached.cancel()
                break
            task.cancel()
            await asyncio.sleep(0)
            gate.opened.set()  # requests and releases of turns are completed
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
            assert agent.finished == agent.started
            await until(lambda: len(asyncio.all_tasks()) == 1, "the end of all tasks")
            found = await service.get_session(**IDS)
            contents = [event.content for event in found.events] if found else []
            assert contents == expected[: len(contents)]
            assert seen == expected[1 : 1 + len(seen)]
            assert len(contents) >= len(seen) + bool(seen)
            if found:
                await service.acquire_turn(KEY)
        assert task.exception() is None
        assert number == (9 if serialize_turns else 6)

    async def test_a_run_may_be_cancelled_in_its_agent(self) -> None:
        waiting = asyncio.Event()
        notes = []

        async def agent(_: RunContext) -> AsyncIterator[Event]:
            yield Event("agent", 1)
            try:
                waiting.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                notes.append("cancelled")
                raise

        async with Runner(APP, agent, serialize_turns=True) as runner:
            task = asyncio.create_task(all_of(runner.run(USER, "sid", "x")))
            await waiting.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert notes == ["cancelled"]
            assert [content for _, content in await said(runner.session_service)] == ["x", 1]
            await runner.session_service.acquire_turn(KEY)

    async def test_a_timeout_of_the_caller_is_one(self) -> None:
        async def agent(_: RunContext) -> AsyncIterator[Event]:
            yield Event("agent", "Hel", partial=True)
            await asyncio.Event().wait()

        service, store = make_service()
        runner = Runner(APP, agent, service, store_interrupted=True)
        run = runner.run(USER, "sid", "x")
        await anext(run)
        store.hook = failing("append_event", BackendTimeout("planted"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(run)


class TestInterrupted:
    """`store_interrupted=True`"""

    async def interrupt(
        self, *events: Event, how: str = "aclose", store_interrupted: bool = True
    ) -> list[Event]:
        """What is stored of a run that is interrupted after these events, without the message."""
        end = asyncio.Event()

        async def agent(_: RunContext) -> AsyncIterator[Event]:
            for event in events:
                yield event
            end.set()
            await asyncio.Event().wait()

        async with Runner(APP, agent, store_interrupted=store_interrupted) as runner:
            run = runner.run(USER, "sid", "x")
            if how == "aclose":
                for _ in events:
                    await anext(run)
                await run.aclose()
            else:
                task = asyncio.create_task(all_of(run))
                await end.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            _, *stored = (await read(runner.session_service)).events
            assert all(event.invocation_id == run.invocation_id for event in stored)
            return stored

    @staticmethod
    def fragments(*contents: Any, author: str = "agent") -> list[Event]:
        return [Event(author, content, partial=True, branch="b") for content in contents]

    @pytest.mark.parametrize("how", ["aclose", "cancel"])
    async def test_the_text_so_far_is_stored(self, how: str) -> None:
        [event] = await self.interrupt(*self.fragments("Hel", "lo ", "Wor"), how=how)
        assert (event.author, event.content, event.branch) == ("agent", "Hello Wor", "b")
        assert event.metadata == {"interrupted": True}
        assert not event.partial

    @pytest.mark.parametrize("how", ["aclose", "cancel"])
    async def test_not_unless_it_is_asked_for(self, how: str) -> None:
        fragments = self.fragments("Hel", "lo")
        assert await self.interrupt(*fragments, how=how, store_interrupted=False) == []

    async def test_what_is_no_text_is_kept_as_a_list(self) -> None:
        [event] = await self.interrupt(*self.fragments("Hel", {"delta": "lo"}))
        assert event.content == ["Hel", {"delta": "lo"}]

    async def test_only_what_came_behind_the_last_complete_event(self) -> None:
        events = [*self.fragments("Hel", "lo"), Event("agent", "Hello"), *self.fragments("Wor")]
        stored = await self.interrupt(*events)
        assert [event.content for event in stored] == ["Hello", "Wor"]

    async def test_nothing_where_nothing_was_streamed(self) -> None:
        assert await self.interrupt(how="cancel") == []

    @pytest.mark.parametrize("how", ["aclose", "cancel"])
    async def test_nothing_where_nothing_was_streamed_since(self, how: str) -> None:
        [event] = await self.interrupt(*self.fragments("Hel"), Event("agent", "Hello"), how=how)
        assert event.content == "Hello"

    async def test_an_error_is_no_interruption(self) -> None:
        agent = ScriptedAgent(*self.fragments("Hel"), ValueError("out of paper"))
        async with Runner(APP, agent, store_interrupted=True) as runner:
            with pytest.raises(ValueError, match="out of paper"):
                await all_of(runner.run(USER, "sid", "x"))
            [_, (_, content)] = await said(runner.session_service)
            assert content["error"]["message"] == "out of paper"

    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_a_complete_event_that_is_being_stored_is_stored_once(self, when: str) -> None:
        service, store = make_service()
        gate = store.hook = Gate(when, name="append_event", number=4)
        agent = ScriptedAgent(
            *self.fragments("Hel", "lo"), Event("agent", "Hello", state_delta={"n": 1})
        )
        runner = Runner(APP, agent, service, store_interrupted=True)
        task = asyncio.create_task(all_of(runner.run(USER, "sid", "x")))
        await gate.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await said(service) == [("user", "x"), ("agent", "Hello")]
        session = await read(service)
        assert session.state == {"n": 1}

    @pytest.mark.parametrize("how", ["aclose", "cancel"])
    async def test_a_store_that_fails_does_not_hide_the_interruption(self, how: str) -> None:
        service, store = make_service()
        agent = ScriptedAgent(*self.fragments("Hel", "lo"), Event("agent", "Hello"))
        run = Runner(APP, agent, service, store_interrupted=True).run(USER, "sid", "x")
        await anext(run)
        if how == "aclose":
            store.hook = failing("append_event", BackendTimeout("planted"))
            await run.aclose()
        else:
            gate = store.hook = Gate("before", name="append_event")
            task = asyncio.create_task(all_of(run))
            await gate.reached.wait()
            store.hook = failing("append_event", BackendTimeout("planted"))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
        assert agent.finished == 1
        assert await said(service) == [("user", "x")]
