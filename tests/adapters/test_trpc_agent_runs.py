"""Runs of tRPC agents on TrpcSessionService: sessions made anew, summaries, turns."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import pytest
from adapters_support import needs

import sessionstore
from sessionstore import InvalidArgument, SessionKey, SessionNotFound, TurnLost

needs("trpc_agent_sdk", "trpc-agent")
with warnings.catch_warnings(action="ignore"):  # of the framework
    from trpc_agent_sdk.agents import LlmAgent
    from trpc_agent_sdk.models import LLMModel, LlmResponse
    from trpc_agent_sdk.runners import Runner
    from trpc_agent_sdk.sessions import (
        DefaultSessionSummarizer,
        DefaultSessionSummarizerManager,
        Session,
        SessionServiceConfig,
        set_summarizer_events_count_threshold,
    )
    from trpc_agent_sdk.types import Content, EventActions, Part
    from trpc_support import IDS, Make, ToolUser, new_runner, read, said, say, summary, texts
    from trpc_support import make as make

    from sessionstore.adapters.trpc_agent import TrpcSessionService

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


# -- summaries -------------------------------------------------------------------------------


class Answering(LLMModel):
    """Says a fragment, then the whole."""

    @classmethod
    def supported_models(cls) -> list[str]:
        return ["answering"]

    async def _generate_async_impl(
        self, request: Any, stream: bool = False, ctx: Any = None
    ) -> Any:
        del ctx
        text = f"answer to {len(request.contents)}"
        if stream:
            content = Content(role="model", parts=[Part(text=text[:3])])
            yield LlmResponse(content=content, partial=True)
        yield LlmResponse(content=Content(role="model", parts=[Part(text=text)]), partial=False)


async def test_a_runner_streams_and_summarises(make: Make) -> None:
    await summarise(make, deferred=False)


async def test_a_runner_summarises_in_a_thread_of_its_own() -> None:
    # In memory only: that thread ends its event loop with the connection of a server open.
    service = sessionstore.InMemorySessionService()
    await summarise(lambda arguments: TrpcSessionService(service, **arguments), deferred=True)


async def summarise(make: Make, *, deferred: bool) -> None:
    """Five runs, with a summary as soon as there are more than four events."""
    summarizer = DefaultSessionSummarizer(
        model=Answering("answering"),
        check_summarizer_functions=[set_summarizer_events_count_threshold(4)],
        keep_recent_count=2,
    )
    manager = DefaultSessionSummarizerManager(summarizer.model, summarizer=summarizer)
    sessions = make({"summarizer_manager": manager})
    for number in range(5):
        runner = Runner(
            app_name="app",
            agent=LlmAgent(name="agent", model=Answering("answering"), output_key="last"),
            session_service=sessions,
            defer_post_turn_processing=deferred,
            close_session_service_on_close=False,
        )
        message = Content(role="user", parts=[Part(text=f"question {number}")])
        events = [
            event
            async for event in runner.run_async(
                user_id="user", session_id="sid", new_message=message
            )
        ]
        assert events[-1].get_text().startswith("answer to")
        await runner.close()
    found = await read(sessions)
    assert found.events[0].is_summary_event()
    assert found.events[0].get_text().startswith("Previous conversation summary: answer to 1")
    assert texts(found)[-2].startswith("question 4")
    assert len(found.events) <= 5
    assert found.historical_events[0].get_text().startswith("question 0")
    assert found.state["last"].startswith("answer to")
    assert await sessions.get_session_summary(found) == "answer to 1"


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
