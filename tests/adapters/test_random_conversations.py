"""What each adapter shows a model of random conversations, whose oldest part may be trimmed.

Runs overlap; calls of tools are parallel, answered late or never. No result is without its call,
and no history begins inside a turn unless its beginning is no longer stored.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from adapters_support import needs
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from support.conversations import Step, conversations

from sessionstore import InMemorySessionService

OWNER: dict[str, Any] = {"app_name": "app", "user_id": "user"}
IDS: dict[str, Any] = {**OWNER, "session_id": "sid"}

LIMITS = st.integers(1, 12) | st.none()


@dataclass(frozen=True)
class Item:
    """What a framework stores as one item: a step, or a part of it."""

    number: int
    kind: str  # of a Step, or "reasoning"
    calls: tuple[str, ...] = ()


def items_of(steps: list[Step], *, apart: bool = False) -> list[Item]:
    """The items of a conversation. `apart`: each call and result is one, after reasoning."""
    items: list[Item] = []
    for step in steps:
        parts: list[tuple[str, tuple[str, ...]]] = [(step.kind, step.calls)]
        if apart and step.calls:
            parts = [(step.kind, (call_id,)) for call_id in step.calls]
        if apart and step.kind == "calls":
            parts.insert(0, ("reasoning", ()))
        for kind, calls in parts:
            items.append(Item(len(items), kind, calls))
    return items


def check(items: list[Item], shown: list[int], kept: int | None, limit: int | None) -> None:
    """Check the numbers of the items that an adapter shows."""
    oldest = 0 if kept is None else max(len(items) - kept, 0)
    known: set[str] = set()
    for number in shown:
        if items[number].kind == "results":
            assert known.issuperset(items[number].calls), "a result without its call"
        else:
            known.update(items[number].calls)
    assert shown == sorted(set(shown) & set(range(oldest, len(items))))
    starts = [n for n in range(oldest, len(items)) if items[n].kind == "user"]
    if not oldest and (limit is None or len(items) <= limit):
        event("everything")
        assert shown == list(range(len(items)))
    elif shown and items[shown[0]].kind == "user":
        event("from a user's message on")
        left_out = set(range(shown[0], len(items))) - set(shown)
        assert all(items[number].kind == "results" for number in left_out)
    else:
        event("inside a turn")
        assert all(_is_between(items, oldest, start) for start in starts)


def _is_between(items: list[Item], oldest: int, start: int) -> bool:
    """Whether a call before a place is answered after it, so that no turn can begin there."""
    opened = {c for item in items[oldest:start] if item.kind == "calls" for c in item.calls}
    closed = {c for item in items[start:] if item.kind == "results" for c in item.calls}
    return bool(opened & closed)


Show = Callable[[InMemorySessionService, list[Item], Any], Awaitable[list[int]]]
"""Stores a conversation, and gives the numbers of the items that are shown, with a limit."""


def run(show: Show, items: list[Item], kept: int | None, limit: int | None) -> None:
    """Store a conversation through an adapter, and check what it shows."""

    async def shown() -> list[int]:
        async with InMemorySessionService(session_event_limit=kept) as service:
            return await show(service, items, limit)

    check(items, asyncio.run(shown()), kept, limit)


quick = settings(
    max_examples=30, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
)


# -- OpenAI Agents SDK -----------------------------------------------------------------------------


def openai_item(item: Item) -> dict[str, Any]:
    number = str(item.number)
    if item.kind == "user":
        return {"role": "user", "content": number}
    if item.kind == "reasoning":
        return {"id": number, "type": "reasoning", "summary": []}
    if item.kind == "calls":
        fields = {"name": "add", "arguments": "{}", "id": number}
        return {"type": "function_call", "call_id": item.calls[0], **fields}
    if item.kind == "results":
        return {"type": "function_call_output", "call_id": item.calls[0], "output": number}
    return {"type": "message", "role": "assistant", "id": number, "content": []}


async def openai_shows(
    service: InMemorySessionService, items: list[Item], limit: int | None
) -> list[int]:
    adapter = needs("sessionstore.adapters.openai_agents", "openai-agents")
    session = adapter.StoredSession("sid", service, **OWNER)
    for item in items:
        await session.add_items([openai_item(item)])
    found = await session.get_items(limit)
    return [int(each.get("id") or each.get("output") or each["content"]) for each in found]


@quick
@given(conversations(min_runs=2, max_runs=5), LIMITS, LIMITS)
def test_openai_agents(steps: list[Step], kept: int | None, limit: int | None) -> None:
    needs("agents", "openai-agents")
    run(openai_shows, items_of(steps, apart=True), kept, limit)


# -- LangChain ------------------------------------------------------------------------------------


async def langchain_shows(service: InMemorySessionService, items: list[Item], _: None) -> list[int]:
    messages = needs("langchain_core.messages", "langchain")
    adapter = needs("sessionstore.adapters.langchain", "langchain")
    history = adapter.StoredChatMessageHistory("sid", service, **OWNER)
    for item in items:
        number = str(item.number)
        if item.kind == "user":
            message = messages.HumanMessage(number, id=number)
        elif item.kind == "results":
            message = messages.ToolMessage(number, id=number, tool_call_id=item.calls[0])
        else:
            calls = [{"name": "add", "args": {}, "id": call_id} for call_id in item.calls]
            message = messages.AIMessage(number, id=number, tool_calls=calls)
        await history.aadd_messages([message])
    return [int(message.id) for message in await history.aget_messages()]


@quick
@given(conversations(min_runs=2, max_runs=5), LIMITS)
def test_langchain(steps: list[Step], kept: int | None) -> None:
    needs("langchain_core", "langchain")
    whole = [step for step in steps if step.kind != "results" or len(step.calls) == 1]
    run(langchain_shows, items_of(whole), kept, None)


# -- Pydantic AI ----------------------------------------------------------------------------------


async def pydantic_ai_shows(
    service: InMemorySessionService, items: list[Item], limit: int | None
) -> list[int]:
    m = needs("pydantic_ai.messages", "pydantic-ai")
    adapter = needs("sessionstore.adapters.pydantic_ai", "pydantic-ai")
    history = adapter.StoredMessageHistory("sid", service, **OWNER)
    for item in items:
        parts: list[Any]
        if item.kind == "user":
            message = m.ModelRequest([m.UserPromptPart(str(item.number))])
        elif item.kind == "results":
            parts = [m.ToolReturnPart("add", item.number, call_id) for call_id in item.calls]
            message = m.ModelRequest(parts)
        else:
            parts = [m.ToolCallPart("add", {}, call_id) for call_id in item.calls]
            message = m.ModelResponse([m.TextPart(str(item.number)), *parts])
        await history.store([message])
    return [int(message.parts[0].content) for message in await history.load(limit)]


@quick
@given(conversations(min_runs=2, max_runs=5), LIMITS, LIMITS)
def test_pydantic_ai(steps: list[Step], kept: int | None, limit: int | None) -> None:
    needs("pydantic_ai", "pydantic-ai")
    run(pydantic_ai_shows, items_of(steps), kept, limit)


# -- ADK and tRPC-Agent ---------------------------------------------------------------------------


def genai_event(event_type: Any, types: Any, item: Item) -> Any:
    """An item as the event of a framework that uses the types of Google's SDK."""
    if item.kind == "results":
        parts = [
            types.Part(function_response=types.FunctionResponse(id=c, name="add", response={}))
            for c in item.calls
        ]
    elif item.kind == "calls":
        parts = [
            types.Part(function_call=types.FunctionCall(id=c, name="add", args={}))
            for c in item.calls
        ]
    else:
        parts = [types.Part(text=str(item.number))]
    author = "user" if item.kind == "user" else "agent"
    content = types.Content(role="model", parts=parts)
    return event_type(author=author, invocation_id="i", id=str(item.number), content=content)


async def adk_shows(
    service: InMemorySessionService, items: list[Item], limit: int | None
) -> list[int]:
    from google.adk.events.event import Event
    from google.adk.sessions.base_session_service import GetSessionConfig
    from google.genai import types

    from sessionstore.adapters.adk import AdkSessionService

    sessions = AdkSessionService(service, whole_turns=True)
    session = await sessions.create_session(**IDS)
    for item in items:
        await sessions.append_event(session, genai_event(Event, types, item))
    config = GetSessionConfig(num_recent_events=limit)
    found = await sessions.get_session(**IDS, config=config)
    assert found is not None
    return [int(event.id) for event in found.events]


@quick
@given(conversations(min_runs=2, max_runs=5), LIMITS, LIMITS)
def test_adk_with_whole_turns(steps: list[Step], kept: int | None, limit: int | None) -> None:
    with warnings.catch_warnings(action="ignore"):  # of the framework
        needs("google.adk.sessions", "adk")
        needs("sessionstore.adapters.adk", "adk")
    items = items_of(steps)
    run(adk_shows, items, min(kept or len(items), limit or len(items)), None)


async def trpc_shows(service: InMemorySessionService, items: list[Item], _: None) -> list[int]:
    from trpc_agent_sdk import types
    from trpc_agent_sdk.events import Event

    from sessionstore.adapters.trpc_agent import TrpcSessionService

    sessions = TrpcSessionService(service, whole_turns=True)
    session = await sessions.create_session(**IDS)
    for item in items:
        await sessions.append_event(session, genai_event(Event, types, item))
    found = await sessions.get_session(**IDS)
    assert found is not None
    return [int(event.id) for event in found.events]


@quick
@given(conversations(min_runs=2, max_runs=5), LIMITS)
def test_trpc_agent_with_whole_turns(steps: list[Step], kept: int | None) -> None:
    with warnings.catch_warnings(action="ignore"):  # of the framework
        needs("trpc_agent_sdk.sessions", "trpc-agent")
        needs("sessionstore.adapters.trpc_agent", "trpc-agent")
    run(trpc_shows, items_of(steps), kept, None)
