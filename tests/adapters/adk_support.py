"""Shared by the tests of the ADK adapter: events, a scripted agent, runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest
from adapters_support import making
from google.adk.agents import LlmAgent, RunConfig
from google.adk.events.event import Event
from google.adk.events.event_actions import EventActions
from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_response import LlmResponse
from google.adk.runners import Runner
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.sessions.session import Session
from google.adk.tools.tool_context import ToolContext
from google.genai import types

from sessionstore.adapters.adk import AdkSessionService

if TYPE_CHECKING:  # the commands of long use run without the folder tests/ on their path
    from support.servers import Server

Make = Callable[..., AdkSessionService]
"""Makes adapters: the fixture `make`."""

OWNER: dict[str, Any] = {"app_name": "app", "user_id": "user"}
IDS: dict[str, Any] = {**OWNER, "session_id": "sid"}


def said(text: str, **fields: Any) -> Event:
    """A user's event."""
    fields = {"author": "user", "invocation_id": "run", **fields}
    content = types.Content(role="user", parts=[types.Part(text=text)])
    return Event(content=content, **fields)


def texts(session: Session | None) -> list[str]:
    """What the events of a session say, and "call" or "result" for those of a tool."""
    assert session is not None
    found = []
    for event in session.events:
        parts = (event.content and event.content.parts) or []
        found += [part.text or ("call" if part.function_call else "result") for part in parts]
    return found


@pytest.fixture
async def make(place: Server | None) -> AsyncIterator[Make]:
    """Makes adapters with services of their own; in memory they share the first one's."""
    async with making(AdkSessionService, place) as make:
        yield make


@pytest.fixture
def sessions(make: Make) -> AdkSessionService:
    """An adapter with default options but for a TTL in every tier."""
    return make()


def changed(**delta: Any) -> Event:
    """An event with a state delta; `__` in a key stands for its colon."""
    delta = {key.replace("__", ":"): value for key, value in delta.items()}
    return Event(author="agent", actions=EventActions(state_delta=delta))


class ToolUser(BaseLlm):
    """Calls the tool with what the user said, and then says what the tool returned."""

    model: str = "scripted"
    pause_s: float = 0.0

    async def generate_content_async(
        self,
        llm_request: Any,
        stream: bool = False,
    ) -> AsyncGenerator[LlmResponse, None]:
        del stream
        check_pairs(llm_request.contents)
        await asyncio.sleep(self.pause_s)
        last = (llm_request.contents[-1].parts or [types.Part()])[-1]
        if last.function_response:
            part = types.Part(text=f"noted {(last.function_response.response or {})['count']}")
        else:
            call = types.FunctionCall(name="note", args={"text": last.text})
            part = types.Part(function_call=call)
        yield LlmResponse(content=types.Content(role="model", parts=[part]))


def check_pairs(contents: list[types.Content]) -> None:
    """Every function response has its call before it. Models refuse other requests."""
    called = 0
    for content in contents:
        for part in content.parts or []:
            called += bool(part.function_call) - bool(part.function_response)
            assert called >= 0, "a function response without its call"


def note(text: str, tool_context: ToolContext) -> dict[str, Any]:
    """Count a note."""
    state = tool_context.state
    state["count"] = state.get("count", 0) + 1
    state["last"] = text
    return {"count": state["count"]}


def new_runner(sessions: Any, model: ToolUser | None = None, **options: Any) -> Runner:
    """A runner of an agent that uses the tool."""
    agent = LlmAgent(name="agent", model=model or ToolUser(), tools=[note])
    return Runner(app_name="app", agent=agent, session_service=sessions, **options)


async def say(runner: Runner, text: str, run: Any = None, **ids: Any) -> list[Event]:
    """The events of one run, through `run`: `sessions.run` or a runner's own."""
    message = types.Content(role="user", parts=[types.Part(text=text)])
    ids = {"user_id": "user", "session_id": "sid", **ids}
    events = (
        run(runner, new_message=message, **ids)
        if run
        else runner.run_async(new_message=message, **ids)
    )
    return [event async for event in events]


def recent_events_only(_: Any, number: int) -> dict[str, Any]:
    """Arguments of a run whose agent sees so many events."""
    config = GetSessionConfig(num_recent_events=number)
    return {"run_config": RunConfig(get_session_config=config)}
