"""Shared by the tests of the tRPC-Agent adapter: events, a scripted agent, runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import pytest
from adapters_support import WITH_TTL, making
from support.servers import Server
from trpc_agent_sdk.agents import LlmAgent
from trpc_agent_sdk.context import InvocationContext
from trpc_agent_sdk.events import Event
from trpc_agent_sdk.models import LLMModel, LlmResponse
from trpc_agent_sdk.runners import Runner
from trpc_agent_sdk.sessions import (
    DefaultSessionSummarizer,
    DefaultSessionSummarizerManager,
    InMemorySessionService,
    RedisSessionService,
    SessionServiceConfig,
)
from trpc_agent_sdk.tools import FunctionTool
from trpc_agent_sdk.types import Content, EventActions, FunctionCall, Part

import sessionstore
from sessionstore.adapters.trpc_agent import TrpcSessionService

Make = Callable[..., TrpcSessionService]
"""Makes adapters: the fixture `make`."""

Open = Callable[..., Any]
"""Opens a session service of the framework or ours: `open_service(manager, **limits)`."""

OWNER: dict[str, Any] = {"app_name": "app", "user_id": "user"}
IDS: dict[str, Any] = {**OWNER, "session_id": "sid"}


def said(text: str, author: str = "user", **fields: Any) -> Any:
    """An event that says something."""
    content = Content(role="user", parts=[Part(text=text)])
    return Event(author=author, invocation_id="run", content=content, **fields)


def texts(session: Any) -> list[str]:
    """What the events of a session say, and "call" or "result" for those of a tool."""
    found = []
    for event in session.events:
        parts = (event.content and event.content.parts) or []
        found += [part.text or ("call" if part.function_call else "result") for part in parts]
    return found


@pytest.fixture
async def make(place: Server | None) -> AsyncIterator[Make]:
    """Makes adapters with services of their own; in memory they share the first one's."""
    async with making(TrpcSessionService, place) as make:
        yield make


@pytest.fixture
def sessions(make: Make) -> TrpcSessionService:
    """An adapter with default options but for a TTL in every tier."""
    return make()


def changed(**delta: Any) -> Any:
    """An event with a state delta; `__` in a key stands for its colon."""
    delta = {key.replace("__", ":"): value for key, value in delta.items()}
    return Event(author="agent", actions=EventActions(state_delta=delta))


def summary(text: str) -> Any:
    """The event that stands for those before it."""
    event = said(text, author="system")
    event.set_summary_event(True)
    return event


def texts_of(events: Any) -> list[str]:
    """What events say."""
    return [event.get_text() for event in events]


async def read(sessions: TrpcSessionService) -> Any:
    """The session, which must be there."""
    found = await sessions.get_session(**IDS)
    assert found is not None
    return found


async def filled(sessions: TrpcSessionService, count: int) -> Any:
    """A new session in which a user said 0, 1, ..."""
    session = await sessions.create_session(**IDS)
    for number in range(count):
        await sessions.append_event(session, said(str(number)))
    return session


@pytest.fixture
async def open_ours(place: Server | None) -> AsyncIterator[Open]:
    """Opens adapters that share what they store."""
    store: sessionstore.SessionService = (
        sessionstore.InMemorySessionService(**WITH_TTL)
        if place is None
        else sessionstore.RedisSessionService(place.url, key_prefix="ours:", **WITH_TTL)
    )

    def open_ours(manager: Any = None, **limits: Any) -> TrpcSessionService:
        limits = {"store_historical_events": True, **limits}
        return TrpcSessionService(store, manager, SessionServiceConfig(**limits))

    async with store:
        yield open_ours


class ToolUser(LLMModel):
    """Calls the tool with what the user said, and then says what the tool returned."""

    pause_s = 0.0

    @classmethod
    def supported_models(cls) -> list[str]:
        """Its own name only."""
        return ["scripted"]

    async def _generate_async_impl(
        self, request: Any, stream: bool = False, ctx: Any = None
    ) -> AsyncGenerator[LlmResponse, None]:
        del stream, ctx
        check_pairs(request.contents)
        await asyncio.sleep(self.pause_s)
        last = request.contents[-1].parts[-1]
        if last.function_response:
            part = Part(text=f"noted {last.function_response.response['count']}")
        else:
            call = FunctionCall(id=f"call {last.text}", name="note", args={"text": last.text})
            part = Part(function_call=call)
        yield LlmResponse(content=Content(role="model", parts=[part]))


def check_pairs(contents: list[Any]) -> None:
    """Every function response has its call before it. Models refuse other requests."""
    called = set()
    for content in contents:
        for part in content.parts or []:
            if part.function_call:
                called.add(part.function_call.id)
            elif part.function_response:
                assert part.function_response.id in called, "a response without its call"


async def note(text: str, tool_context: InvocationContext) -> dict[str, Any]:
    """Count a note."""
    state = tool_context.state
    state["count"] = state.get("count", 0) + 1
    state["last"] = text
    return {"count": state["count"]}


def new_runner(sessions: Any, model: ToolUser | None = None, **options: Any) -> Runner:
    """A runner of an agent that uses the tool."""
    agent = LlmAgent(name="agent", model=model or ToolUser("scripted"), tools=[FunctionTool(note)])
    return Runner(app_name="app", agent=agent, session_service=sessions, **options)


async def say(runner: Runner, text: str, run: Any = None, **ids: Any) -> list[Any]:
    """The events of one run, through `run`: `sessions.run` or a runner's own."""
    message = Content(role="user", parts=[Part(text=text)])
    ids = {"user_id": "user", "session_id": "sid", **ids}
    if run is not None:
        return [event async for event in run(runner, new_message=message, **ids)]
    return [event async for event in runner.run_async(new_message=message, **ids)]


def recent_events_only(sessions: Any, number: int) -> dict[str, Any]:
    """Arguments of a run whose agent sees so many events."""
    sessions.session_config.num_recent_events = number
    return {}


def config(ttl_s: int = 0, **limits: Any) -> Any:
    """The framework's configuration, for its own services."""
    ttl = SessionServiceConfig.create_ttl_config(enable=ttl_s > 0, ttl_seconds=ttl_s or 1)
    return SessionServiceConfig(ttl=ttl, **{"store_historical_events": True, **limits})


def theirs(place: Server | None, manager: Any = None, **limits: Any) -> Any:
    """The framework's own service that belongs to a place."""
    if place is None:
        return InMemorySessionService(manager, config(**limits))
    # Its own asynchronous client would not close its connections.
    return RedisSessionService(place.url, manager, config(600, **limits), decode_responses=True)


def answered(text: str, **fields: Any) -> Any:
    """An agent's event."""
    return said(text, author="agent", **fields)


def setting(state: dict[str, Any]) -> Any:
    """An agent's event with a state delta."""
    return answered("set", actions=EventActions(state_delta=state))


class Counting(LLMModel):
    """Says how many summaries it has written."""

    num_calls = 0

    @classmethod
    def supported_models(cls) -> list[str]:
        """Its own name only."""
        return ["counting"]

    async def _generate_async_impl(
        self, request: Any, stream: bool = False, ctx: Any = None
    ) -> Any:
        del request, stream, ctx
        self.num_calls += 1
        text = f"summary {self.num_calls}"
        yield LlmResponse(content=Content(role="model", parts=[Part(text=text)]))


def summarizing(keep_recent_count: int = 2, **options: Any) -> Any:
    """A manager whose model counts."""
    model = Counting("counting")
    summarizer = DefaultSessionSummarizer(
        model=model, keep_recent_count=keep_recent_count, **options
    )
    return DefaultSessionSummarizerManager(model, summarizer=summarizer)
