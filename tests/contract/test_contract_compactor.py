"""The Compactor: whole old turns are summarized, once, whatever else happens to the session."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
from contract_support import results_of, run_all
from support.compactors import Summarizer, make_compactor, make_turns
from support.events import numbers_of
from support.services import ServiceFactory
from support.sessions import IDS, KEY, append_many, create, read
from support.waiting import poll_until

from sessionstore import (
    Event,
    InvalidArgument,
    LimitExceeded,
    SessionNotFound,
    StaleVersion,
    Summary,
    Window,
)

SIX: dict[str, Any] = {"trigger": Window(max_turns=6), "keep": Window(max_turns=2)}


def contents(*numbers: int, size: int = 2) -> list[Any]:
    return [f"{number}.{part}" for number in numbers for part in range(size)]


async def log_of(service: Any) -> list[Any]:
    """The contents of the whole log."""
    return numbers_of((await service.get_events(KEY, limit=10_000)).events)


async def summary_of(service: Any) -> Summary:
    summary = (await read(service)).summary
    assert summary is not None
    return summary


async def fill(service: Any, *numbers: int, size: int = 2) -> None:
    await append_many(service, KEY, make_turns(numbers, size))


class TestWhatIsCovered:
    async def test_old_turns_are_covered_and_the_newest_stay(self, service: Any) -> None:
        session = await create(service)
        summarize = Summarizer()
        compactor = make_compactor(service, summarize, **SIX)
        await fill(service, *range(6))
        assert await compactor.compact(KEY) is None  # all turns fit
        assert summarize.calls == []
        await fill(service, 6)
        summary = await compactor.compact(session)
        assert isinstance(summary, Summary)
        assert summarize.calls == [(None, contents(0, 1, 2, 3, 4))]
        assert summary.content == {"covers": contents(0, 1, 2, 3, 4)}
        assert session.summary == summary
        found = await read(service)
        assert found.summary == summary
        assert found.version == session.version
        assert numbers_of(found) == contents(5, 6)
        assert await log_of(service) == contents(*range(7))

    async def test_the_next_summary_gets_the_last_one_and_only_new_events(
        self, service: Any
    ) -> None:
        await create(service)
        summarize = Summarizer()
        compactor = make_compactor(service, summarize, **SIX)
        await fill(service, *range(7))
        first = await compactor.compact(KEY)
        await fill(service, *range(7, 11))
        assert await compactor.compact(KEY) is None
        await fill(service, 11)
        second = await compactor.compact(KEY)
        assert [previous for previous, _ in summarize.calls] == [None, first]
        assert summarize.calls[1][1] == contents(*range(5, 10))
        assert second.content == {"covers": contents(*range(10))}
        assert numbers_of(await read(service)) == contents(10, 11)

    @pytest.mark.parametrize(
        "trigger",
        [
            Window(max_events=11),
            Window(max_tokens=110, count_tokens=lambda _: 10),
            Window(max_turns=5, max_events=100),
        ],
    )
    async def test_each_limit_triggers(self, service: Any, trigger: Window) -> None:
        await create(service)
        summarize = Summarizer()
        compactor = make_compactor(service, summarize, trigger=trigger, keep=Window(max_turns=3))
        await fill(service, *range(5))
        assert await compactor.compact(KEY) is None
        await fill(service, 5)
        assert (await compactor.compact(KEY)).content == {"covers": contents(0, 1, 2)}

    async def test_a_first_page_that_just_holds_all(self, service: Any) -> None:
        await create(service)
        summarize = Summarizer()
        options: dict[str, Any] = {"trigger": Window(max_turns=32), "keep": Window(max_turns=31)}
        compactor = make_compactor(service, summarize, **options)
        await fill(service, *range(32))
        assert await compactor.compact(KEY) is None
        await fill(service, 32)
        assert await compactor.compact(KEY)
        assert summarize.calls == [(None, contents(0, 1))]

    async def test_a_turn_that_still_runs_is_not_covered_in_part(self, service: Any) -> None:
        """Turn 1 goes on after the turns that are kept, so turns 1 to 6 are one."""
        await create(service)
        summarize = Summarizer()
        await fill(service, *range(7))
        await service.append_event(KEY, Event("agent", "late", invocation_id="t1"))
        assert await make_compactor(service, summarize, **SIX).compact(KEY) is None
        options: dict[str, Any] = {"trigger": Window(max_turns=1), "keep": Window(max_events=1)}
        assert await make_compactor(service, summarize, **options).compact(KEY)
        await fill(service, *range(7, 13))
        assert await make_compactor(service, summarize, **SIX).compact(KEY)
        first, *rest = [covered for _, covered in summarize.calls]
        assert first == contents(0)
        assert rest == [[*contents(*range(1, 7)), "late", *contents(*range(7, 11))]]

    async def test_a_late_event_beyond_the_limit_of_events(self, service: Any) -> None:
        await create(service)
        await fill(service, *range(150))
        await service.append_event(KEY, Event("agent", "late", invocation_id="t5"))
        await fill(service, *range(150, 300))
        summarize = Summarizer()
        compactor = make_compactor(service, summarize, **SIX, events_limit=20)
        assert await compactor.compact(KEY)
        assert await compactor.compact(KEY)
        first, second = [covered for _, covered in summarize.calls]
        assert first == contents(*range(5))
        assert second[: 2 * 145 + 1] == [*contents(*range(5, 150)), "late"]

    async def test_a_call_is_covered_with_its_result(self, service: Any) -> None:
        def calls(event: Event) -> tuple[Iterable[str], Iterable[str]]:
            return event.metadata.get("opens", ()), event.metadata.get("closes", ())

        await create(service)
        events = make_turns(range(4), 1)
        events.append(Event("agent", "call", invocation_id="x", metadata={"opens": ["c"]}))
        events += make_turns(range(4, 6), 1)
        events.append(Event("tool", "result", invocation_id="y", metadata={"closes": ["c"]}))
        await service.append_events(KEY, events)
        rules: dict[str, Any] = {
            "trigger": Window(max_turns=3, calls=calls),
            "keep": Window(max_turns=1),  # the rule of the trigger holds for it, too
        }
        summarize = Summarizer()
        await make_compactor(service, summarize, **rules).compact(KEY)
        assert summarize.calls == [(None, contents(*range(4), size=1))]
        assert numbers_of(await read(service)) == ["call", *contents(4, 5, size=1), "result"]

    async def test_a_backlog_is_covered_in_steps(self, make_service: ServiceFactory) -> None:
        service = make_service(session_event_limit=None)
        await create(service)
        await fill(service, *range(300), size=3)
        summarize = Summarizer()
        compactor = make_compactor(service, summarize, **SIX, events_limit=400)
        while await compactor.compact(KEY):
            pass
        # 133 turns of 3 events are the most below 400.
        assert [len(covered) for _, covered in summarize.calls] == [399, 399, 96]
        assert (await summary_of(service)).content["covers"] == contents(*range(298), size=3)

    async def test_a_turn_that_is_longer_than_the_limit_is_covered_as_a_whole(
        self, make_service: ServiceFactory
    ) -> None:
        service = make_service(session_event_limit=None)
        await create(service)
        await fill(service, 0, size=300)
        await fill(service, *range(1, 7))
        summarize = Summarizer()
        compactor = make_compactor(service, summarize, **SIX, events_limit=10)
        assert await compactor.compact(KEY)
        assert summarize.calls == [(None, contents(0, size=300))]

    async def test_covered_events_can_be_removed(self, service: Any) -> None:
        await create(service)
        await fill(service, *range(7))
        compactor = make_compactor(service, Summarizer(), **SIX, drop=True)
        assert (await compactor.compact(KEY)).num_events == 0
        assert await log_of(service) == contents(5, 6)
        await fill(service, *range(7, 12))
        assert (await compactor.compact(KEY)).content == {"covers": contents(*range(10))}
        assert await log_of(service) == contents(10, 11)

    async def test_a_log_that_was_trimmed_inside_a_turn(self, make_service: ServiceFactory) -> None:
        service = make_service(session_event_limit=13)
        await create(service)
        await fill(service, *range(8))
        summarize = Summarizer()
        await make_compactor(service, summarize, **SIX).compact(KEY)
        assert summarize.calls == [(None, contents(*range(1, 6))[1:])]


class TestRefused:
    """Nothing is stored, and the lease is free."""

    async def check(self, service: Any, summarize: Any, *kinds: type[Exception]) -> str:
        await create(service)
        await fill(service, *range(7))
        before = await read(service)
        with pytest.raises(kinds) as raised:
            await make_compactor(service, summarize, **SIX).compact(KEY)
        assert await read(service) == before
        assert await make_compactor(service, Summarizer(), **SIX).compact(KEY)
        return str(raised.value)

    @pytest.mark.parametrize("content", [None, "", " \n", [], {}, b""])
    async def test_an_empty_summary(self, service: Any, content: Any) -> None:
        async def summarize(_: Summary | None, __: list[Event]) -> Any:
            return content

        message = await self.check(service, summarize, InvalidArgument)
        assert message == "summarize returned an empty summary"

    async def test_a_summary_that_is_larger_than_what_it_covers(self, service: Any) -> None:
        async def summarize(_: Summary | None, __: list[Event]) -> Any:
            return "x" * 5000

        message = await self.check(service, summarize, LimitExceeded)
        assert message.startswith("summarize returned a summary of 5002 bytes, more than the ")

    async def test_a_summary_above_the_limit(self, service: Any) -> None:
        async def summarize(_: Summary | None, __: list[Event]) -> Any:
            return "x" * 20_000

        await create(service)
        turns = [Event("user", "y" * 8000, invocation_id=str(number)) for number in range(7)]
        await service.append_events(KEY, turns)
        with pytest.raises(LimitExceeded):
            await make_compactor(service, summarize, **SIX).compact(KEY)
        assert (await read(service)).summary is None

    async def test_an_error(self, service: Any) -> None:
        async def summarize(_: Summary | None, __: list[Event]) -> Any:
            raise ValueError("the model is away")

        assert await self.check(service, summarize, ValueError) == "the model is away"

    async def test_a_value_that_cannot_be_stored(self, service: Any) -> None:
        async def summarize(_: Summary | None, __: list[Event]) -> Any:
            return {"set": {1}}

        await self.check(service, summarize, InvalidArgument)

    async def test_a_session_that_does_not_exist(self, service: Any) -> None:
        with pytest.raises(SessionNotFound):
            await make_compactor(service, Summarizer(), **SIX).compact(KEY)


Change = Callable[[Any], Awaitable[object]]


class TestMeanwhile:
    """What others do while the summary is made."""

    async def compact(self, service: Any, change: Change) -> Summary | None:
        async def summarize(previous: Summary | None, events: list[Event]) -> Any:
            await change(service)
            return await Summarizer()(previous, events)

        await create(service)
        await fill(service, *range(7))
        found: Summary | None = await make_compactor(service, summarize, **SIX).compact(KEY)
        return found

    async def test_appended_events_are_neither_lost_nor_covered(self, service: Any) -> None:
        summary = await self.compact(service, lambda service: fill(service, 7, 8))
        assert summary
        assert summary.content == {"covers": contents(*range(5))}
        assert numbers_of(await read(service)) == contents(5, 6, 7, 8)

    async def test_a_covered_turn_goes_on(self, service: Any) -> None:
        async def change(service: Any) -> None:
            await append_many(service, KEY, make_turns(range(7, 60)))
            await service.append_event(KEY, Event("agent", "late", invocation_id="t1"))

        with pytest.raises(InvalidArgument, match="a turn that the summary covers got more events"):
            await self.compact(service, change)
        assert (await read(service)).summary is None

    async def test_another_summary_wins(self, service: Any) -> None:
        async def change(service: Any) -> None:
            page = await service.get_events(KEY, limit=4)
            await service.compact_session(KEY, upto=page.last, summary="other")

        with pytest.raises(StaleVersion):
            await self.compact(service, change)
        assert (await summary_of(service)).content == "other"

    async def test_the_session_is_deleted(self, service: Any) -> None:
        with pytest.raises(SessionNotFound):
            await self.compact(service, lambda service: service.delete_session(**IDS))

    async def test_the_covered_events_are_removed(self, service: Any) -> None:
        with pytest.raises(InvalidArgument, match="there is no event at position"):
            await self.compact(service, lambda service: service.clear_events(KEY))
        assert (await read(service)).summary is None

    @pytest.mark.parametrize("new", [Event("user", "redacted", invocation_id="t1"), None])
    async def test_an_event_that_was_redacted_is_in_no_summary(
        self, service: Any, new: Event | None
    ) -> None:
        async def change(service: Any) -> None:
            page = await service.get_events(KEY, limit=3)
            where = (KEY, page.positions[2], page.events[2])
            await (service.replace_event(*where, new) if new else service.delete_event(*where))

        assert await self.compact(service, change) is None
        assert (await read(service)).summary is None
        summary = await make_compactor(service, Summarizer(), **SIX).compact(KEY)
        expected = [*contents(0), *(["redacted"] if new else []), "1.1", *contents(2, 3, 4)]
        assert summary.content == {"covers": expected}


class TestLease:
    async def test_of_many_one_calls_summarize(self, service: Any) -> None:
        await create(service)
        await fill(service, *range(7))
        entered, may_end = asyncio.Event(), asyncio.Event()
        summarizer = Summarizer()

        async def summarize(previous: Summary | None, events: list[Event]) -> Any:
            entered.set()
            await may_end.wait()
            return await summarizer(previous, events)

        compactors = [make_compactor(service, summarize, **SIX) for _ in range(8)]
        tasks = [asyncio.create_task(each.compact(KEY)) for each in compactors]
        await entered.wait()
        await poll_until(lambda: sum(task.done() for task in tasks) == 7, "the others")
        may_end.set()
        summaries = [found for found in results_of(await run_all(tasks)) if found]
        assert len(summaries) == len(summarizer.calls) == 1

    async def test_a_turn_is_free_meanwhile(self, service: Any) -> None:
        async def summarize(previous: Summary | None, events: list[Event]) -> Any:
            turn = await service.acquire_turn(KEY)
            await service.append_event(KEY, Event("user", "7.0"), turn=turn)
            await service.release_turn(turn)
            return await Summarizer()(previous, events)

        await create(service)
        await fill(service, *range(7))
        assert await make_compactor(service, summarize, **SIX).compact(KEY)

    async def test_the_lease_is_renewed_while_the_summary_is_made(self, service: Any) -> None:
        await create(service)
        await fill(service, *range(7))
        others: list[Summary | None] = []

        async def summarize(previous: Summary | None, events: list[Event]) -> Any:
            other = make_compactor(service, Summarizer(), **SIX)
            for _ in range(20):
                await asyncio.sleep(0.02)
                others.append(await other.compact(KEY))
            return await Summarizer()(previous, events)

        assert await make_compactor(service, summarize, **SIX, lease=0.3).compact(KEY)
        assert others == [None] * 20
