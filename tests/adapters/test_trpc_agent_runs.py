"""Runs of tRPC agents on TrpcSessionService: sessions made anew, summaries, turns."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from adapters_support import WITH_TTL, needs
from support.servers import Server

import sessionstore
from sessionstore import InvalidArgument, SessionKey, SessionNotFound, TurnLost

needs("trpc_agent_sdk", "trpc-agent")
with warnings.catch_warnings(action="ignore"):  # of the framework
    from trpc_agent_sdk.sessions import Session, SessionServiceConfig
    from trpc_agent_sdk.types import EventActions
    from trpc_support import IDS, OWNER, ToolUser, new_runner, said, say, texts

    from sessionstore.adapters.trpc_agent import TrpcSessionService

Make = Callable[..., TrpcSessionService]


@pytest.fixture
async def make(place: Server | None) -> AsyncIterator[Make]:
    """Makes adapters with services of their own; in memory they share the first one's."""
    shared: list[sessionstore.SessionService] = []
    async with AsyncExitStack() as stack:

        def make(adapter: dict[str, Any] | None = None, **options: Any) -> TrpcSessionService:
            options = {**WITH_TTL, **options}
            service: sessionstore.SessionService
            if place is not None:
                service = sessionstore.RedisSessionService(place.url, **options)
            elif shared:
                service = shared[0]
            else:
                service = sessionstore.InMemorySessionService(**options)
            shared.append(service)
            stack.push_async_callback(service.aclose)
            return TrpcSessionService(service, **(adapter or {}))

        yield make


async def read(sessions: TrpcSessionService) -> Any:
    """The session, which must be there."""
    found = await sessions.get_session(**IDS)
    assert found is not None
    return found


def summary(text: str) -> Any:
    """The event that stands for those before it."""
    event = said(text, author="system")
    event.set_summary_event(True)
    return event


# -- the same event twice, sessions made anew --------------------------------------------------


async def test_two_workers_store_an_event_once(make: Make) -> None:
    # Whatever each of them has stored before, and however many runs its Session counts.
    first, second = make(), make()
    await first.create_session(**IDS)
    event = said("x", custom_metadata={"tags": {"a", "b", "c"}})
    await first.append_event(await read(first), said("warm", custom_metadata={"y": 1}))
    for number, sessions in enumerate((first, second)):
        session = await read(sessions)
        session.conversation_count = number
        await sessions.append_event(session, event.model_copy(deep=True))
    found = await read(first)
    assert texts(found) == ["warm", "x"]
    assert found.events[1].custom_metadata == {"tags": ["a", "b", "c"]}
    assert found.conversation_count == 1


async def test_a_session_writes_only_to_what_it_shows(make: Make) -> None:
    sessions = make()
    old = await sessions.create_session(**IDS)
    await sessions.delete_session(**IDS)
    await sessions.create_session(**IDS)
    for session in (old, old.model_copy(deep=True)):
        with pytest.raises(SessionNotFound):
            await sessions.append_event(session, said("late"))
        with pytest.raises(SessionNotFound):
            await sessions.update_session_state(session, {"a": 1})
        session.state["a"] = 1
        with pytest.raises(SessionNotFound):
            await sessions.update_session(session)
    # A Session of which nothing is known writes to whatever session there is.
    plain = Session.model_validate_json(old.model_dump_json())
    await sessions.append_event(plain, said("new"))
    assert texts(await read(sessions)) == ["new"]


async def test_state_that_is_not_json_is_stored_as_its_text(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = make()
    session = await sessions.create_session(**IDS, state={"a": print, "b": (1, {2})})
    assert session.state == {"a": "<built-in function print>", "b": [1, [2]]}
    delta = EventActions(state_delta={"c": [print], "d": "\ud800"})
    await sessions.append_event(session, said("half \ud83d of a pair", actions=delta))
    session.state["e"] = print
    await sessions.update_session(session)
    found = await read(sessions)
    assert texts(found) == ["half \ufffd of a pair"]
    assert found.state["c"] == ["<built-in function print>"]
    assert found.state["d"] == "\ufffd"
    assert found.state["e"] == "<built-in function print>"
    assert "sessionstore" in {record.name for record in caplog.records}


# -- what update_session stores ----------------------------------------------------------------


async def test_summaries_do_not_pile_up(make: Make) -> None:
    sessions = make(session_event_limit=20)
    session = await sessions.create_session(**IDS)
    sizes = []
    for number in range(60):
        for step in range(3):
            await sessions.append_event(session, said(f"{number}/{step}"))
        session = await read(sessions)
        last = session.events[-2].id
        session.compact_events(summary(f"sum {number}"), last, compaction_id=str(number))
        await sessions.update_session(session)
        found = await read(sessions)
        assert texts(found) == [f"sum {number}", f"{number}/2"]
        historical = texts(type(found)(**{**found.model_dump(), "events": found.historical_events}))
        assert len(historical) == len(set(historical))
        stored = await sessions._service.get_session(**IDS, event_num=0)
        assert stored is not None
        sizes.append(len(str(stored.state)))
        session = found
    assert max(sizes[30:]) < 1.1 * max(sizes[10:20])


async def test_the_view_is_not_shown_as_state(make: Make) -> None:
    sessions = make()
    session = await sessions.create_session(**IDS, state={"a": 1})
    await say(new_runner(sessions), "x")
    session = await read(sessions)
    session.compact_events(summary("sum"), session.events[1].id, compaction_id="c")
    await sessions.update_session(session)
    assert (await read(sessions)).state == {"a": 1, "count": 1, "last": "x"}
    [listed] = (await sessions.list_sessions(**OWNER)).sessions
    assert listed.state == {"a": 1, "count": 1, "last": "x"}
    assert listed.conversation_count == 1


async def test_an_event_that_is_gone_is_not_historical(make: Make) -> None:
    sessions = make()
    session = await sessions.create_session(**IDS)
    for number in range(4):
        await sessions.append_event(session, said(str(number)))
    del session.events[1]
    await sessions.update_session(session)
    found = await read(sessions)
    assert texts(found) == ["0", "2", "3"]
    assert found.historical_events == []
    found.compact_events(summary("sum"), found.events[1].id, compaction_id="c")
    await sessions.update_session(found)
    found = await read(sessions)
    assert texts(found) == ["sum", "3"]
    assert [event.get_text() for event in found.historical_events] == ["0", "2"]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_a_changed_event_may_have_whatever_an_event_may_have(make: Make, codec: str) -> None:
    sessions = make(codec=codec)
    session = await sessions.create_session(**IDS)
    odd = {"big": 1 << 90, "$": {"$": "bytes", "value": "no"}}
    actions = EventActions(state_delta={"odd": odd})
    await sessions.append_event(session, said("x", custom_metadata=odd, actions=actions))
    session.events[0].visible = False
    await sessions.update_session(session)
    found = await read(sessions)
    assert found == session
    assert found.events[0].visible is False
    assert found.events[0].custom_metadata == found.state["odd"] == odd


@pytest.mark.parametrize("number", range(9))
async def test_an_event_that_is_deleted_leaves_the_others(make: Make, number: int) -> None:
    # As a redaction does, also of the last event that `update_session` saw.
    sessions, key = make(), SessionKey(**IDS)
    session = await sessions.create_session(**IDS)
    for text in range(7):
        await sessions.append_event(session, said(str(text)))
    session.compact_events(summary("sum"), session.events[2].id, compaction_id="c")
    del session.events[2]
    await sessions.update_session(session)
    for text in (7, 8):
        await sessions.append_event(session, said(str(text)))
    page = await sessions._service.get_events(key)
    assert await sessions._service.delete_event(key, page.positions[number], page.events[number])
    found = await read(sessions)
    shown = [text for text in ("sum", "3", "5", "6", "7", "8") if text != str(number)]
    assert texts(found) == shown
    historical = [event.get_text() for event in found.historical_events]
    assert historical == [text for text in "012" if text != str(number)]


async def test_events_that_are_rewound_are_not_shown(make: Make) -> None:
    sessions, key = make(), SessionKey(**IDS)
    session = await sessions.create_session(**IDS)
    for text in range(7):
        await sessions.append_event(session, said(str(text)))
    session.compact_events(summary("sum"), session.events[2].id, compaction_id="c")
    await sessions.update_session(session)
    positions = (await sessions._service.get_events(key)).positions
    await sessions._service.rewind_session(key, to=positions[4])
    assert texts(await read(sessions)) == ["sum", "3", "4"]
    await sessions.append_event(await read(sessions), said("next"))
    assert texts(await read(sessions)) == ["sum", "3", "4", "next"]


async def test_what_a_summary_replaced_stays_away_if_its_end_is_deleted(make: Make) -> None:
    sessions, key = make(), SessionKey(**IDS)
    session = await sessions.create_session(**IDS)
    for text in range(4):
        await sessions.append_event(session, said(str(text)))
    session.compact_events(summary("sum"), session.events[3].id, compaction_id="c")
    await sessions.update_session(session)
    await sessions.append_event(session, said("next"))
    page = await sessions._service.get_events(key)
    await sessions._service.delete_event(key, page.positions[3], page.events[3])
    found = await read(sessions)
    assert texts(found) == ["sum", "next"]
    assert [event.get_text() for event in found.historical_events] == ["0", "1", "2"]


# -- whole turns -------------------------------------------------------------------------------


async def test_history_begins_with_a_whole_turn(make: Make) -> None:
    sessions = make({"whole_turns": True}, session_event_limit=10)
    plain = make(session_event_limit=10)
    runner = new_runner(sessions)
    for number in range(6):
        await say(runner, f"q{number}")  # four events; the model checks what it is sent
        assert texts(await read(sessions))[0].startswith("q")
    assert texts(await read(plain))[0] == "result"
    assert texts(await read(sessions))[::4] == ["q4", "q5"]
    config = SessionServiceConfig(num_recent_events=2)
    recent = make({"whole_turns": True, "session_config": config})
    assert texts(await read(recent)) == ["q5"]
    session = await read(sessions)
    session.compact_events(summary("sum"), session.events[1].id, compaction_id="c")
    await sessions.update_session(session)
    assert texts(await read(sessions)) == ["sum", "noted 5", "q5", "call", "result", "noted 6"]


# -- one run at a time -------------------------------------------------------------------------


@pytest.mark.parametrize("deferred", [False, True])
async def test_one_run_at_a_time_works_on_a_session(make: Make, deferred: bool) -> None:
    services = [make({"serialize_turns": True}) for _ in range(3)]
    model = ToolUser("scripted")
    model.pause_s = 0.002
    options = {"defer_post_turn_processing": deferred}
    runners = [new_runner(service, model, **options) for service in services]

    async def work(number: int) -> None:
        place = number % 3
        assert await say(runners[place], f"q{number}", services[place].run)

    await asyncio.gather(*(work(number) for number in range(6)))
    for runner in runners:
        await runner.close()
    found = await read(services[0])
    assert sorted(texts(found)[::4]) == [f"q{number}" for number in range(6)]
    assert texts(found)[1::4] == ["call"] * 6
    assert texts(found)[3::4] == [f"noted {number}" for number in range(1, 7)]
    assert found.state["count"] == 6
    assert found.conversation_count == 6


async def test_a_run_begins_in_run_only(make: Make) -> None:
    sessions = make({"serialize_turns": True})
    with pytest.raises(InvalidArgument, match=r"sessions\.run\(runner"):
        await say(new_runner(sessions), "outside")
    plain = make()
    assert await say(new_runner(plain), "x", plain.run)


async def test_a_run_that_lost_its_turn_stores_nothing_more(make: Make) -> None:
    sessions = make({"serialize_turns": True, "turn_lease": 60})
    events = sessions.run(
        new_runner(sessions), user_id="user", session_id="sid", new_message=said("x").content
    )
    await anext(events)
    await sessions._service.free_turn(SessionKey(**IDS))
    turn = await sessions._service.acquire_turn(SessionKey(**IDS), lease=60)
    with pytest.raises(TurnLost):
        async for _ in events:
            pass
    assert "noted 1" not in texts(await read(sessions))
    await sessions._service.release_turn(turn)
