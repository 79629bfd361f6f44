"""The Compactor in memory: its arguments, cancellation, and a lease that is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from runner_support import KEY, failing, make_service, until
from support.compactors import Summarizer, make_turns

import sessionstore.sync
from sessionstore import (
    BackendTimeout,
    Compactor,
    Event,
    InMemorySessionService,
    InvalidArgument,
    SessionService,
    Summary,
    Window,
)
from sessionstore.calls import Call
from sessionstore.flows.covering import check_windows

SIX: dict[str, Any] = {"trigger": Window(max_turns=6), "keep": Window(max_turns=2)}


class Stuck:
    """A summarize that waits until it is cancelled or let go."""

    def __init__(self) -> None:
        self.entered, self.may_end = asyncio.Event(), asyncio.Event()

    async def __call__(self, _: Summary | None, __: list[Event]) -> Any:
        self.entered.set()
        await self.may_end.wait()
        return "summary"


async def filled() -> tuple[SessionService, Any]:
    service, store = make_service()
    await service.create_session(app_name="app", user_id="user", session_id="sid")
    await service.append_events(KEY, make_turns(range(7)))
    store.names.clear()
    return service, store


class TestCalls:
    async def test_nothing_to_do_costs_one_read_of_the_header(self) -> None:
        service, store = await filled()
        for trigger in (Window(max_turns=14), Window(max_events=20, max_turns=15)):
            assert await Compactor(service, Summarizer(), trigger=trigger).compact(KEY) is None
        assert store.names == ["get_session"] * 2

    async def test_a_compaction_takes_these_calls(self) -> None:
        service, store = await filled()
        assert await Compactor(service, Summarizer(), **SIX).compact(KEY)
        assert store.names == [
            *["get_session", "get_events"],  # is it due?
            "acquire_turn",
            *["get_session", "get_events", "get_events"],
            "get_events",  # has a covered turn gone on?
            *["compact_session", "compact_session"],
            "renew_turn",  # with a lease of 0, which releases it
        ]

    async def test_what_is_covered_is_read_from_the_primary(self) -> None:
        """A replica may not have the last summary yet."""
        service, store = await filled()
        calls: list[Call[Any]] = []

        async def hook(_: int, call: Call[Any], when: str) -> None:
            calls.extend([call] if when == "before" else [])

        store.hook = hook
        assert await Compactor(service, Summarizer(), **SIX).compact(KEY)
        names = [call.name for call in calls]
        reads = [call for call in calls[names.index("acquire_turn") :] if call.name[:4] == "get_"]
        assert len(reads) == 4
        assert all(call.from_primary for call in reads)

    async def test_summarize_may_change_the_list_that_it_gets(self) -> None:
        async def summarize(_: Summary | None, events: list[Event]) -> Any:
            events.clear()
            return "summary"

        service, _ = await filled()
        assert await Compactor(service, summarize, **SIX).compact(KEY)


class TestCancelled:
    async def test_nothing_is_stored_and_the_lease_is_free(self) -> None:
        service, _ = await filled()
        summarize = Stuck()
        task = asyncio.create_task(Compactor(service, summarize, **SIX).compact(KEY))
        await summarize.entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1
        assert await Compactor(service, Summarizer(), **SIX).compact(KEY)

    @pytest.mark.parametrize("number", range(1, 11))
    async def test_at_every_call(self, number: int) -> None:
        service, store = await filled()
        task: Any = None

        async def hook(at: int, _: Any, when: str) -> None:
            if at == number and when == "after":
                task.cancel()
                await asyncio.sleep(0)

        store.hook = hook
        task = asyncio.create_task(Compactor(service, Summarizer(), **SIX).compact(KEY))
        await asyncio.wait([task])
        store.hook = None
        assert len(asyncio.all_tasks()) == 1
        session = await service.get_session(app_name="app", user_id="user", session_id="sid")
        assert session is not None
        if session.summary is None:
            assert await Compactor(service, Summarizer(), **SIX).compact(KEY)


class TestFailingCalls:
    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("number", range(1, 12))
    async def test_the_session_is_as_before_or_as_after(self, number: int, when: str) -> None:
        service, store = await filled()

        async def hook(at: int, call: Any, now: str) -> None:
            if (at, now) == (number, when):
                raise BackendTimeout("planted", maybe_applied=when == "after" and call.writes)

        store.hook = hook
        summarize = Summarizer()
        outcome: Any = None
        try:
            outcome = await Compactor(service, summarize, **SIX, lease=0.05).compact(KEY)
        except BackendTimeout as error:
            outcome = error
        store.hook = None
        assert len(summarize.calls) == (1 if number > 6 else 0)
        assert len(asyncio.all_tasks()) == 1
        session = await service.get_session(app_name="app", user_id="user", session_id="sid")
        assert session is not None
        is_stored = number > 9 or (number, when) == (9, "after")
        assert (session.summary is not None) == is_stored
        assert isinstance(outcome, Summary) == (number > 9)  # the release may fail
        assert len(session.events) == (4 if is_stored else 14)
        if is_stored and number == 9:
            assert outcome.maybe_applied
        await service.append_events(KEY, make_turns(range(7, 12)))

        async def is_compacted() -> bool:
            return await Compactor(service, Summarizer(), **SIX).compact(KEY) is not None

        await until(is_compacted, "the end of the lease")


class TestLostLease:
    async def test_the_one_that_has_it_now_wins(self) -> None:
        """As if the process stood still for longer than its lease."""
        service, store = await filled()
        summarize = Stuck()
        slow = Compactor(service, summarize, **SIX, lease=0.05)
        store.hook = failing("renew_turn", BackendTimeout("planted"))
        task = asyncio.create_task(slow.compact(KEY))
        await summarize.entered.wait()
        found: list[Summary] = []

        async def is_compacted() -> bool:
            summary = await Compactor(service, Summarizer(), **SIX).compact(KEY)
            found.extend([summary] if summary else [])
            return bool(found)

        await until(is_compacted, "the end of the lease")
        summarize.may_end.set()
        assert await task is None
        session = await service.get_session(app_name="app", user_id="user", session_id="sid")
        assert session is not None
        assert [session.summary] == found

    async def test_an_event_that_was_replaced_meanwhile_is_in_no_summary(self) -> None:
        service, _ = await filled()
        summarize = Stuck()
        task = asyncio.create_task(Compactor(service, summarize, **SIX).compact(KEY))
        await summarize.entered.wait()
        page = await service.get_events(KEY, limit=1)
        [secret] = page.events
        await service.replace_event(KEY, page.positions[0], secret, Event("user", "redacted"))
        summarize.may_end.set()
        assert await task is None
        summary = await Compactor(service, Summarizer(), **SIX).compact(KEY)
        assert summary is not None
        assert summary.content["covers"][0] == "redacted"


class TestArguments:
    @pytest.mark.parametrize(
        ("trigger", "keep"),
        [
            (Window(max_turns=2), Window(max_turns=1)),
            (Window(max_tokens=100), Window(max_turns=5)),
            (Window(max_turns=9, max_tokens=100), Window(max_turns=5, max_tokens=100)),
            (Window(max_turns=2), Window(max_turns=5, max_events=3)),
        ],
    )
    def test_windows(self, trigger: Window, keep: Window) -> None:
        check_windows(trigger, keep)

    @pytest.mark.parametrize(
        ("trigger", "keep", "message"),
        [
            (6, Window(), "trigger must be a Window, not int"),
            (Window(max_turns=6), None, "keep must be a Window, not NoneType"),
            (Window(), Window(max_turns=2), "trigger must have a limit"),
            (Window(max_turns=5), Window(max_turns=5), "keep must be smaller than trigger"),
            (Window(max_turns=5), Window(), "keep must be smaller than trigger"),
            (
                Window(max_turns=5, max_events=8),
                Window(max_turns=6, max_events=8),
                "keep must be smaller than trigger",
            ),
        ],
    )
    def test_wrong_windows(self, trigger: Any, keep: Any, message: str) -> None:
        with pytest.raises(InvalidArgument, match=message):
            check_windows(trigger, keep)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"summarize": "text"}, "summarize must be a function"),
            ({"drop": 1}, "drop must be True or False"),
            ({"events_limit": 0}, "events_limit must be at least 1"),
            ({"lease": 0}, "lease must be"),
            ({"session_service": None}, "session_service must be a SessionService"),
        ],
    )
    def test_wrong_arguments(self, options: dict[str, Any], message: str) -> None:
        service, _ = make_service()
        arguments: dict[str, Any] = {"session_service": service, "summarize": Summarizer(), **SIX}
        with pytest.raises(InvalidArgument, match=message):
            Compactor(**{**arguments, **options})

    async def test_summarize_must_fit_the_kind_of_service(self) -> None:
        def plain(_: Summary | None, __: list[Event]) -> Any:
            return "summary"

        service, _ = await filled()
        wrong: Any = plain
        compactor = Compactor(service, wrong, **SIX)
        with pytest.raises(InvalidArgument, match="summarize must be an async function: it ret"):
            await compactor.compact(KEY)
        with sessionstore.sync.InMemorySessionService() as threads:
            threads.create_session(app_name="app", user_id="user", session_id="sid")
            threads.append_events(KEY, make_turns(range(7)))
            wrong = Summarizer()
            other = sessionstore.sync.Compactor(threads, wrong, **SIX)
            with pytest.raises(InvalidArgument, match="summarize must be a plain function"):
                other.compact(KEY)
            wrong = InMemorySessionService()
            with pytest.raises(InvalidArgument, match="session_service"):
                sessionstore.sync.Compactor(wrong, plain, **SIX)
