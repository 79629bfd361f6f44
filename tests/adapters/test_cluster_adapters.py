"""Adapters on a real cluster, where scripts cannot use the app tier with other keys."""

from __future__ import annotations

import inspect
import warnings
from importlib import import_module
from typing import Any

import pytest
from adapters_support import EXAMPLES, WITH_TTL, needs

from benchmarks.rigs.clusters import Cluster
from sessionstore import RedisSessionService

NAMED: dict[str, Any] = {"app_name": "app", "user_id": "user", "session_id": "sid"}

pytestmark = pytest.mark.filterwarnings("ignore:.EXPERIMENTAL:UserWarning")  # of older ADK

by_user_and_by_app = pytest.mark.parametrize("partition_by", ["user", "app"])


@by_user_and_by_app
async def test_adk_runs_on_a_cluster(cluster: Cluster, partition_by: Any) -> None:
    needs("google.adk", "adk")
    with warnings.catch_warnings(action="ignore"):  # of the framework
        support: Any = import_module("adk_support")
        adk: Any = import_module("sessionstore.adapters.adk")
    actions: Any = import_module("google.adk.events.event_actions")
    async with RedisSessionService(cluster.url, partition_by=partition_by, **WITH_TTL) as service:
        sessions = adk.AdkSessionService(service, serialize_turns=True, reject_stale=True)
        for number in range(8):  # users of different slots
            ids = {"app_name": "app", "user_id": f"user {number}", "session_id": "sid"}
            await sessions.create_session(**ids, state={"user:is": number})
            runner = support.new_runner(sessions)
            await support.say(runner, "one", sessions.run, user_id=ids["user_id"])
            session = await sessions.get_session(**ids)
            delta = {"app:last": number, "count": 7, "temp:t": 1}
            event = support.said("x", author="a", invocation_id="two")
            event.actions = actions.EventActions(state_delta=delta)
            for attempt in (event.model_copy(deep=True), event):  # the first reply was lost
                shown = session if attempt is event else session.model_copy(deep=True)
                await sessions.append_event(shown, attempt)
            assert session.state["temp:t"] == 1
            await runner.rewind_async(
                user_id=ids["user_id"], session_id="sid", rewind_before_invocation_id="two"
            )
            found = await sessions.get_session(**ids)
            assert support.texts(found) == ["one", "call", "result", "noted 1", "x"]
            state = {"count": 1, "last": "one", "user:is": number, "app:last": number}
            assert found.state == state
        listed = (await sessions.list_sessions(app_name="app")).sessions
        assert [session.user_id for session in listed] == [f"user {n}" for n in range(8)]
        assert all(session.state["app:last"] == 7 for session in listed)


@by_user_and_by_app
async def test_trpc_agents_run_on_a_cluster(cluster: Cluster, partition_by: Any) -> None:
    needs("trpc_agent_sdk", "trpc-agent")
    with warnings.catch_warnings(action="ignore"):  # of the framework
        support: Any = import_module("trpc_support")
        trpc: Any = import_module("sessionstore.adapters.trpc_agent")
    async with RedisSessionService(cluster.url, partition_by=partition_by, **WITH_TTL) as service:
        sessions = trpc.TrpcSessionService(service, serialize_turns=True)
        for number in range(8):  # users of different slots
            ids = {"app_name": "app", "user_id": f"user {number}", "session_id": "sid"}
            runner = support.new_runner(sessions)
            for text in ("one", "two"):
                await support.say(runner, text, sessions.run, user_id=ids["user_id"])
            session = await sessions.get_session(**ids)
            assert session.conversation_count == 2
            summary = support.said("sum", author="system")
            session.compact_events(summary, session.events[3].id, compaction_id="c")
            session.state |= {"app:last": number, "user:is": number}
            await sessions.update_session(session)
            found = await sessions.get_session(**ids)
            assert support.texts(found) == ["sum", "two", "call", "result", "noted 2"]
            assert len(found.historical_events) == 4
            state = {"count": 2, "last": "two", "user:is": number, "app:last": number}
            assert found.state == state
        listed = (await sessions.list_sessions(app_name="app")).sessions
        assert [session.user_id for session in listed] == [f"user {n}" for n in range(7, -1, -1)]


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("claude_agent_sdk", "claude-agent"),
        ("langchain_core", "langchain"),
        ("langgraph.graph", "langgraph"),
        ("agents", "openai-agents"),
        ("pydantic_ai", "pydantic-ai"),
    ],
    ids=lambda name: name,
)
async def test_the_example_runs_on_a_cluster(
    cluster: Cluster,
    package: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    needs(package, extra)
    monkeypatch.syspath_prepend(EXAMPLES)
    with warnings.catch_warnings(action="ignore"):  # of the framework
        example: Any = import_module(f"{extra.replace('-', '_')}_example")
    printed = []
    for url in (None, cluster.url):
        result = example.main(url)
        if inspect.isawaitable(result):
            await result
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != ""
