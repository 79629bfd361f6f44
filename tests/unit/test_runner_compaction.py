"""Runners with a Compactor: it works after the answer, in the background."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from runner_support import APP, KEY, USER, all_of, make_service, read, until
from support.compactors import Summarizer
from support.events import numbers_of
from support.waiting import wait_until

import sessionstore.sync
from sessionstore import (
    Compactor,
    Event,
    InMemorySessionService,
    InvalidArgument,
    RunContext,
    Runner,
    Summary,
    Window,
)
from sessionstore.runner import _GRACE_S

SIX: dict[str, Any] = {"trigger": Window(max_turns=6), "keep": Window(max_turns=2)}


async def echo(context: RunContext) -> AsyncIterator[Event]:
    yield Event("agent", f"to {context.message}")


def contents(*numbers: int) -> list[Any]:
    return [part for number in numbers for part in (number, f"to {number}")]


async def summary_of(service: Any) -> Summary | None:
    return (await read(service)).summary


class TestRunner:
    async def test_the_session_is_compacted_after_a_turn(self) -> None:
        service, _ = make_service()
        seen: list[tuple[Summary | None, list[Any]]] = []

        async def agent(context: RunContext) -> AsyncIterator[Event]:
            seen.append((context.session.summary, numbers_of(context.session)))
            yield Event("agent", f"to {context.message}")

        summarize = Summarizer()
        compactor = Compactor(service, summarize, **SIX)
        async with Runner(
            APP, agent, service, history=Window(max_turns=20), compactor=compactor
        ) as runner:
            for number in range(8):
                await all_of(runner.run(USER, "sid", number))
                if number == 6:
                    await until(lambda: summary_of(service), "the summary")
        assert summarize.calls == [(None, contents(0, 1, 2, 3, 4))]
        summary, events = seen[-1]
        assert summary is not None
        assert summary.content == {"covers": contents(0, 1, 2, 3, 4)}
        assert events == [*contents(5, 6), 7]
        assert seen[-2][0] is None

    async def test_the_answer_does_not_wait_for_it(self) -> None:
        service, _ = make_service()
        entered, may_end = asyncio.Event(), asyncio.Event()
        calls: list[int] = []

        async def summarize(_: Summary | None, events: list[Event]) -> Any:
            calls.append(len(events))
            entered.set()
            await may_end.wait()
            return "summary"

        compactor = Compactor(service, summarize, **SIX)
        async with Runner(APP, echo, service, compactor=compactor) as runner:
            for number in range(7):
                await all_of(runner.run(USER, "sid", number))
            await entered.wait()
            for number in range(7, 12):  # runs go on, and the next compaction waits
                await all_of(runner.run(USER, "sid", number))
            assert calls == [10]
            may_end.set()
        assert calls == [10, 10]
        assert numbers_of(await read(service)) == contents(10, 11)
        assert len((await service.get_events(KEY)).events) == 24

    async def test_close_cancels_what_takes_longer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sessionstore.runner._GRACE_S", 0.01)
        service, _ = make_service()
        ended: list[str] = []

        async def summarize(_: Summary | None, __: list[Event]) -> Any:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("cancelled")

        compactor = Compactor(service, summarize, **SIX)
        async with Runner(APP, echo, service, compactor=compactor) as runner:
            for number in range(7):
                await all_of(runner.run(USER, "sid", number))
        assert ended == ["cancelled"]
        assert len(asyncio.all_tasks()) == 1
        assert (await read(service)).summary is None
        assert await Compactor(service, Summarizer(), **SIX).compact(KEY)  # the lease is free
        await all_of(runner.run(USER, "sid", 7))  # runs still work, and start no task
        assert len(asyncio.all_tasks()) == 1

    async def test_errors_are_logged_without_content(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        service, _ = make_service()
        results: Iterator[Any] = iter([ValueError("secret"), "", "x" * 10_000])

        async def summarize(_: Summary | None, __: list[Event]) -> Any:
            result = next(results)
            if isinstance(result, Exception):
                raise result
            return result

        compactor = Compactor(service, summarize, **SIX)
        with caplog.at_level(logging.DEBUG, logger="sessionstore"):
            for number in range(9):
                async with Runner(APP, echo, service, compactor=compactor) as runner:
                    await all_of(runner.run(USER, "sid", number))
        first, second, third = caplog.records
        assert first.getMessage() == "a compaction failed: ValueError"
        assert first.exc_info is None
        assert second.getMessage() == (
            "a compaction failed: InvalidArgument: summarize returned an empty summary"
        )
        assert third.getMessage().startswith(
            "a compaction failed: LimitExceeded: summarize returned a summary of 10002 bytes, more "
        )
        assert {record.levelno for record in caplog.records} == {logging.WARNING}

    async def test_a_session_that_was_deleted_is_no_failure(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        service, _ = make_service()
        async with Runner(
            APP, echo, service, compactor=Compactor(service, Summarizer(), **SIX)
        ) as runner:
            await all_of(runner.run(USER, "sid", "x"))
            await service.delete_session(app_name=APP, user_id=USER, session_id="sid")
        assert caplog.records == []

    async def test_a_run_that_fails_compacts_nothing(self) -> None:
        service, store = make_service()

        async def agent(_: RunContext) -> AsyncIterator[Event]:
            yield Event("agent", 1)
            raise ValueError

        compactor = Compactor(service, Summarizer(), **SIX)
        async with Runner(APP, agent, service, compactor=compactor) as runner:
            with pytest.raises(ValueError, match=r"^$"):
                await all_of(runner.run(USER, "sid", 0))
        assert "get_session" not in store.names

    async def test_with_turns(self) -> None:
        service, _ = make_service()
        compactor = Compactor(service, Summarizer(), **SIX)
        async with Runner(APP, echo, service, compactor=compactor, serialize_turns=True) as runner:
            runs = (all_of(runner.run(USER, "sid", number)) for number in range(20))
            await asyncio.gather(*runs)
        await compactor.compact(KEY)
        session = await read(service)
        assert session.summary is not None
        covered = session.summary.content["covers"]
        assert sorted(map(str, covered + numbers_of(session))) == sorted(
            map(str, contents(*range(20)))
        )

    async def test_thousands_of_turns_leave_no_task(self) -> None:
        service, _ = make_service()
        summarize = Summarizer()

        async def short(previous: Summary | None, events: list[Event]) -> Any:
            await summarize(None, events)
            return {"turns": len(events) // 2 + (previous.content["turns"] if previous else 0)}

        compactor = Compactor(service, short, **SIX, drop=True)
        num_turns = 0
        async with Runner(APP, echo, service, compactor=compactor) as runner:
            for number in range(2000):
                await all_of(runner.run(USER, f"s{number % 50}", number))
                num_turns += 1
                await asyncio.sleep(0)  # in memory, tasks run only then
            assert len(asyncio.all_tasks()) < 60
        gc.collect()
        assert len(asyncio.all_tasks()) == 1
        assert not runner._compactions._tasks
        found = [await read(service, f"s{number}") for number in range(50)]
        covered = sum(each.summary.content["turns"] for each in found if each.summary)
        assert covered + sum(len(each.events) // 2 for each in found) == num_turns == 2000
        assert len(summarize.calls) > 100

    def test_wrong_arguments(self) -> None:
        service, other = make_service()[0], InMemorySessionService()
        compactor = Compactor(service, Summarizer(), **SIX)
        with pytest.raises(InvalidArgument, match=r"compactor must be a .*Compactor"):
            Runner(APP, echo, service, compactor=Summarizer())  # type: ignore[arg-type]
        for wrong in (other, None):
            with pytest.raises(InvalidArgument, match="must have the Runner's session_service"):
                Runner(APP, echo, wrong, compactor=compactor)
        assert _GRACE_S == 5


class TestThreads:
    def agent(self, context: RunContext) -> Iterator[Event]:
        yield Event("agent", f"to {context.message}")

    def test_the_answer_does_not_wait_and_close_does(self) -> None:
        entered, may_end = threading.Event(), threading.Event()

        def summarize(_: Summary | None, __: list[Event]) -> Any:
            entered.set()
            may_end.wait()
            return "summary"

        with sessionstore.sync.InMemorySessionService() as service:
            compactor = sessionstore.sync.Compactor(service, summarize, **SIX)
            with sessionstore.sync.Runner(APP, self.agent, service, compactor=compactor) as runner:
                for number in range(7):
                    list(runner.run(USER, "sid", number))
                entered.wait()
                for number in range(7, 10):
                    list(runner.run(USER, "sid", number))
                may_end.set()
            session = service.get_session(app_name=APP, user_id=USER, session_id="sid")
        assert session is not None
        assert session.summary is not None
        assert session.summary.content == "summary"

    def test_close_does_not_wait_for_ever(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("sessionstore.sync.runner._GRACE_S", 0.01)
        may_end = threading.Event()

        def summarize(_: Summary | None, __: list[Event]) -> Any:
            may_end.wait()
            raise ValueError("secret")

        with sessionstore.sync.InMemorySessionService() as service:
            compactor = sessionstore.sync.Compactor(service, summarize, **SIX)
            with sessionstore.sync.Runner(APP, self.agent, service, compactor=compactor) as runner:
                for number in range(7):
                    list(runner.run(USER, "sid", number))
            assert [each.daemon for each in runner._compactions._threads.values()] == [True]
            may_end.set()
            wait_until(lambda: not runner._compactions._threads, "the end of the thread")
        assert {record.getMessage() for record in caplog.records} == {
            "a compaction failed: ValueError"
        }

    def test_many_turns_leave_no_thread(self) -> None:
        calls: list[int] = []

        def summarize(_: Summary | None, events: list[Event]) -> Any:
            calls.append(len(events))
            return "summary"

        with sessionstore.sync.InMemorySessionService() as service:
            compactor = sessionstore.sync.Compactor(service, summarize, **SIX)
            with sessionstore.sync.Runner(APP, self.agent, service, compactor=compactor) as runner:
                for number in range(200):
                    list(runner.run(USER, f"s{number % 5}", number))
            names = [each.name for each in threading.enumerate()]
        assert not [name for name in names if name.startswith("sessionstore-")]
        assert calls
