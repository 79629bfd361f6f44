"""What ADK's own tests demand of every session service, in our own words, on every backend.

The rest of it is in test_adk.py and test_adk_events.py: ids, lists, tiers, complete events, stale
sessions.
"""

from __future__ import annotations

import asyncio
import math
import time
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest
from adapters_support import WITH_TTL, needs
from support.servers import Server

import sessionstore

needs("google.adk", "adk")
with warnings.catch_warnings(action="ignore"):  # of the framework
    from adk_support import IDS, OWNER, ToolUser, note, said, texts
    from google.adk.agents import LlmAgent, SequentialAgent
    from google.adk.artifacts import InMemoryArtifactService
    from google.adk.errors import StaleSessionError
    from google.adk.events.event import Event
    from google.adk.events.event_actions import EventActions
    from google.adk.runners import Runner
    from google.adk.sessions.base_session_service import GetSessionConfig
    from google.adk.tools.function_tool import FunctionTool
    from google.adk.tools.tool_confirmation import ToolConfirmation
    from google.genai import types

    from sessionstore.adapters.adk import AdkSessionService

pytestmark = pytest.mark.filterwarnings("ignore:.EXPERIMENTAL:UserWarning")


@pytest.fixture
async def sessions(place: Server | None) -> AsyncIterator[AdkSessionService]:
    """An adapter that rejects stale sessions, as ADK's DatabaseSessionService does."""
    service: sessionstore.SessionService
    if place is None:
        service = sessionstore.InMemorySessionService(**WITH_TTL)
    else:
        service = sessionstore.RedisSessionService(place.url, **WITH_TTL)
    async with service:
        yield AdkSessionService(service, reject_stale=True)


def setting(**state: Any) -> Event:
    """An event with a state delta."""
    return Event(author="user", invocation_id="run", actions=EventActions(state_delta=state))


async def read(sessions: AdkSessionService) -> Any:
    """The session, which must be there."""
    found = await sessions.get_session(**IDS)
    assert found is not None
    return found


async def test_the_same_id_of_two_users_is_two_sessions(sessions: AdkSessionService) -> None:
    mine = await sessions.create_session(**IDS)
    await sessions.append_event(mine, said("mine"))
    await sessions.create_session(app_name="app", user_id="other", session_id="sid")
    theirs = await sessions.get_session(app_name="app", user_id="other", session_id="sid")
    assert theirs is not None
    assert theirs.user_id == "other"
    assert theirs.events == []


async def test_of_two_stale_writers_one_is_rejected_each_time(sessions: AdkSessionService) -> None:
    await sessions.create_session(**IDS)
    for number in range(8):
        latest = await read(sessions)
        copies = [latest.model_copy(deep=True) for _ in range(2)]
        outcomes = await asyncio.gather(
            *(
                sessions.append_event(copy, setting(**{f"{number}/{place}": place}))
                for place, copy in enumerate(copies)
            ),
            return_exceptions=True,
        )
        [error] = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        assert isinstance(error, StaleSessionError)
        assert isinstance(error, ValueError)
        assert "modified in storage" in str(error)
    found = await read(sessions)
    assert len(found.events) == len(found.state) == 8


async def test_the_marker_decides_not_the_clock(sessions: AdkSessionService) -> None:
    session = await sessions.create_session(**IDS)
    await sessions.append_event(session, said("1", timestamp=session.last_update_time + 10))
    session.last_update_time -= 0.0001
    await sessions.append_event(session, said("2"))
    session._storage_update_marker = None  # of a Session that was made by hand
    await sessions.append_event(session, said("3"))
    await sessions.append_event(session, said("4"))
    assert texts(await read(sessions)) == ["1", "2", "3", "4"]


async def test_confirmations_of_tools_are_read_as_models(sessions: AdkSessionService) -> None:
    session = await sessions.create_session(**IDS)
    asked = {
        "1": ToolConfirmation(confirmed=False, hint="First?"),
        "2": ToolConfirmation(confirmed=True, hint="Second?", payload={"amount": 100}),
    }
    actions = EventActions(requested_tool_confirmations=asked)
    await sessions.append_event(session, Event(author="agent", actions=actions))
    [event] = (await read(sessions)).events
    assert event.actions.requested_tool_confirmations == asked


async def test_a_tool_waits_for_its_confirmation_in_another_run(
    sessions: AdkSessionService,
) -> None:
    await sessions.create_session(**IDS)
    tool = FunctionTool(note, require_confirmation=True)
    agent = LlmAgent(name="agent", model=ToolUser(), tools=[tool])
    runner = Runner(app_name="app", agent=agent, session_service=sessions)

    async def run(*parts: types.Part) -> list[Event]:
        message = types.Content(role="user", parts=[*parts])
        return [
            event
            async for event in runner.run_async(
                user_id="user", session_id="sid", new_message=message
            )
        ]

    events = await run(types.Part(text="buy"))
    assert (await read(sessions)).state == {}
    [confirmation] = [
        call
        for event in events
        for call in event.get_function_calls()
        if call.name == "adk_request_confirmation"
    ]
    answer = types.FunctionResponse(
        id=confirmation.id, name=confirmation.name, response={"confirmed": True}
    )
    await run(types.Part(function_response=answer))
    found = await read(sessions)
    assert found.state == {"count": 1, "last": "buy"}
    assert texts(found)[-1] == "noted 1"


@pytest.mark.filterwarnings("ignore:SequentialAgent is deprecated")
async def test_temporary_state_reaches_the_next_agent_of_a_run(
    sessions: AdkSessionService,
) -> None:
    await sessions.create_session(**IDS)
    seen = []

    async def look(callback_context: Any) -> None:
        seen.append(callback_context.state.get("temp:said"))

    first = LlmAgent(name="first", model=ToolUser(), tools=[note], output_key="temp:said")
    second = LlmAgent(name="second", model=ToolUser(), tools=[note], before_agent_callback=look)
    agents = SequentialAgent(name="both", sub_agents=[first, second])
    runner = Runner(app_name="app", agent=agents, session_service=sessions)
    async for _ in runner.run_async(
        user_id="user", session_id="sid", new_message=said("x").content
    ):
        pass
    assert seen == ["noted 1"]
    assert "temp:said" not in (await read(sessions)).state


async def test_a_rewind_restores_state_and_artifacts(sessions: AdkSessionService) -> None:
    session = await sessions.create_session(**IDS)
    artifacts = InMemoryArtifactService()
    for number, invocation in enumerate(("one", "two")):
        name = {**IDS, "filename": "report"}
        part = types.Part(text=f"report {number}")
        version = await artifacts.save_artifact(**name, artifact=part)
        actions = EventActions(
            state_delta={"k": number, f"only {number}": 1, "app:k": number},
            artifact_delta={"report": version},
        )
        event = said(invocation, invocation_id=invocation, actions=actions)
        await sessions.append_event(session, event)
    runner = Runner(
        app_name="app",
        agent=LlmAgent(name="agent", model=ToolUser()),
        session_service=sessions,
        artifact_service=artifacts,
    )
    await runner.rewind_async(user_id="user", session_id="sid", rewind_before_invocation_id="two")
    found = await read(sessions)
    assert found.state == {"k": 0, "only 0": 1, "only 1": None, "app:k": 1}
    assert found.events[-1].actions.rewind_before_invocation_id == "two"
    restored = await artifacts.load_artifact(**IDS, filename="report")
    assert restored is not None
    assert restored.text == "report 0"
    with pytest.raises(ValueError, match="Invocation ID not found"):
        await runner.rewind_async(
            user_id="user", session_id="sid", rewind_before_invocation_id="never"
        )


async def test_state_of_users_is_read_without_a_session(sessions: AdkSessionService) -> None:
    assert await sessions.get_user_state(**OWNER) == {}
    session = await sessions.create_session(**IDS)
    for value in (1, 2):
        await sessions.append_event(session, setting(**{"user:counter": value, "own": 1}))
    assert await sessions.get_user_state(**OWNER) == {"counter": 2}
    assert await sessions.get_user_state(app_name="other", user_id="user") == {}
    assert await sessions.get_user_state(app_name="app", user_id="other") == {}


async def test_large_state_is_written_as_what_changed(sessions: AdkSessionService) -> None:
    large = {f"key {number}": "x" * 1000 for number in range(500)}
    session = await sessions.create_session(**IDS, state=large)
    await sessions.append_event(session, setting(small=1))
    assert (await read(sessions)).state == {**large, "small": 1}


async def test_the_last_update_is_the_last_events(sessions: AdkSessionService) -> None:
    session = await sessions.create_session(**IDS)
    stamp = session.last_update_time + 10
    await sessions.append_event(session, said("x", timestamp=stamp))
    assert session.last_update_time == stamp
    for config in (None, GetSessionConfig(num_recent_events=0)):
        found = await sessions.get_session(**IDS, config=config)
        assert found is not None
        assert found.last_update_time == stamp
    found = await sessions.get_session(**IDS, config=GetSessionConfig(after_timestamp=stamp * 2))
    assert found is not None
    assert found.events == []
    assert found.last_update_time == stamp


async def test_filters_of_a_read(sessions: AdkSessionService) -> None:
    session = await sessions.create_session(**IDS)
    for number in range(1, 6):
        await sessions.append_event(session, said(str(number), timestamp=number))

    async def read(**config: Any) -> list[str]:
        return texts(await sessions.get_session(**IDS, config=GetSessionConfig(**config)))

    assert await read() == ["1", "2", "3", "4", "5"]
    assert await read(num_recent_events=0) == []
    assert await read(num_recent_events=3) == ["3", "4", "5"]
    assert await read(num_recent_events=9) == ["1", "2", "3", "4", "5"]
    assert await read(after_timestamp=4.0) == ["4", "5"]
    assert await read(after_timestamp=4.5) == ["5"]
    assert await read(after_timestamp=50) == []
    assert await read(after_timestamp=0) == ["1", "2", "3", "4", "5"]
    assert await read(after_timestamp=math.inf) == []
    assert await read(after_timestamp=4.0, num_recent_events=3) == ["4", "5"]
    assert await read(after_timestamp=2.0, num_recent_events=1) == ["5"]


async def test_a_filter_by_time_goes_by_the_timestamp_of_the_event(
    sessions: AdkSessionService,
) -> None:
    # A clock that is ahead of the store's, and an event that arrives late.
    session = await sessions.create_session(**IDS)
    now = time.time()
    for number, stamp in enumerate((now + 3600, now + 7200, now - 5, now + 7201)):
        await sessions.append_event(session, said(str(number), timestamp=stamp))
    config = GetSessionConfig(after_timestamp=now + 7200)
    assert texts(await sessions.get_session(**IDS, config=config)) == ["1", "3"]


async def test_timestamps_beyond_the_calendar(sessions: AdkSessionService) -> None:
    session = await sessions.create_session(**IDS)
    for stamp in (-1e15, -1.0, 0.0, 1e15):
        await sessions.append_event(session, said("x", timestamp=stamp))
    found = await sessions.get_session(**IDS)
    assert found == session
    assert [event.timestamp for event in found.events] == [-1e15, -1.0, 0.0, 1e15]
