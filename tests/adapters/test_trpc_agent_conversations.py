"""The same conversations on TrpcSessionService and on tRPC-Agent's own services.

What is not compared, and why, is in test_trpc_agent_contract.py.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from adapters_support import needs
from support.servers import Server

needs("trpc_agent_sdk", "trpc-agent")
with warnings.catch_warnings(action="ignore"):  # of the framework
    from trpc_agent_sdk.sessions import (
        InMemorySessionService,
        SessionServiceConfig,
        SqlSessionService,
    )
    from trpc_agent_sdk.types import Content, EventActions, FunctionCall, FunctionResponse, Part
    from trpc_support import (
        IDS,
        Open,
        answered,
        config,
        read,
        said,
        setting,
        summarizing,
        summary,
        theirs,
    )
    from trpc_support import open_ours as open_ours


@pytest.fixture
def sessions(open_ours: Open) -> Any:
    """An adapter that shows everything."""
    return open_ours()


async def one_turn(_: Any, append: Any) -> None:
    await append(said("hello"))
    await append(answered("hello, how can I help?"))


async def fragments(_: Any, append: Any) -> None:
    await append(said("first"))
    await append(answered("cut off", partial=True))
    await append(answered("whole"))


async def overwritten_state(_: Any, append: Any) -> None:
    for delta in ({"n": 1}, {"n": 2, "user:n": "1"}, {"n": 3, "flag": True, "app:n": "2"}):
        await append(setting(dict(delta)))


async def tools(_: Any, append: Any) -> None:
    call = Part(function_call=FunctionCall(id="1", name="f", args={"city": "Ulm"}))
    answer = Part(function_response=FunctionResponse(id="1", name="f", response={"temp": 26}))
    await append(said("the weather?"))
    for part in (call, answer, Part(text="26 degrees")):
        event = answered("")
        event.content = Content(role="model", parts=[part])
        await append(event)


async def summary_and_more(sessions: Any, append: Any) -> None:
    for number in range(4):
        await append(said(str(number)))
    handle = await read(sessions)
    await sessions.summarizer_manager.create_session_summary(handle, force=True)
    handle = await read(sessions)
    for number in range(4, 6):
        await sessions.append_event(handle, said(str(number)))


@pytest.mark.parametrize(
    "conversation",
    [one_turn, fragments, overwritten_state, tools, summary_and_more],
    ids=lambda conversation: conversation.__name__,
)
async def test_all_services_show_the_same(
    place: Server | None, open_ours: Open, conversation: Callable[[Any, Any], Awaitable[None]]
) -> None:
    services = [open_ours(summarizing()), theirs(place, summarizing())]
    if conversation is not summary_and_more:
        services.append(SqlSessionService("sqlite:///:memory:", session_config=config()))
    shown = []
    for service in services:
        handle = await service.create_session(**IDS)
        await conversation(service, partial(service.append_event, handle))
        found = await read(service)
        fields = {"author", "content", "partial", "invocation_id"}
        told = [event.model_dump(include=fields) for event in found.events]
        historical = [event.model_dump(include=fields) for event in found.historical_events]
        summary = await service.get_session_summary(found)
        shown.append((told, historical, found.state, found.conversation_count, summary))
        await service.close()
    assert all(each == shown[0] for each in shown)


@pytest.mark.parametrize("seed", range(5))
async def test_it_answers_as_the_frameworks_own_service(sessions: Any, seed: int) -> None:
    print("seed", seed)
    dice = random.Random(seed)
    own = InMemorySessionService(
        session_config=SessionServiceConfig(
            store_historical_events=True, ttl=SessionServiceConfig.create_ttl_config(enable=False)
        )
    )
    handles: dict[str, tuple[Any, Any]] = {}
    stamp = time.time() - 86_400

    def same(ours: Any, theirs: Any) -> None:
        assert (ours is None) == (theirs is None)
        if ours is not None:  # the framework's own service does not keep the time up to date
            shown = {"last_update_time"}
            assert ours.model_dump(exclude=shown) == theirs.model_dump(exclude=shown)

    for step in range(150):
        user = {"app_name": "app", "user_id": dice.choice(["u1", "u2"])}
        ids = {**user, "session_id": dice.choice("abc")}
        slot = "/".join(ids.values())
        key = dice.choice(["", "user:", "app:", "temp:"]) + dice.choice("xyz")
        state = {key: dice.choice([1, None, "s", [1, {"a": 1.5}], {"$": "x"}])}
        action = dice.choice(["create", "append", "append", "update", "state", "get", "delete"])
        if action == "create" and slot not in handles:  # theirs overwrites a session that is there
            handles[slot] = (
                await sessions.create_session(**ids, state=dict(state)),
                await own.create_session(**ids, state=dict(state)),
            )
            same(*handles[slot])
        elif action == "append" and slot in handles:
            stamp += dice.choice([0, 0.000_001, 1, 60])
            event = said(
                str(stamp),
                timestamp=stamp,
                partial=dice.random() < 0.1,
                actions=EventActions(state_delta=state),
            )
            for service, handle in zip((sessions, own), handles[slot], strict=True):
                handle.conversation_count = step
                await service.append_event(handle, event.model_copy(deep=True))
        elif action == "update" and slot in handles and handles[slot][0].events:
            # A fresh Session: theirs would drop state that other sessions have set.
            place = dice.randrange(len(handles[slot][0].events))
            note = summary(f"sum {step}")
            fresh = []
            for service in (sessions, own):
                session: Any = await service.get_session(**ids)
                session.compact_events(
                    note.model_copy(deep=True), session.events[place].id, compaction_id=str(step)
                )
                session.state["updated"] = step
                await service.update_session(session)
                fresh.append(await service.get_session(**ids))
            handles[slot] = fresh[0], fresh[1]
        elif action == "state" and slot in handles and ":" not in key:
            for service, handle in zip((sessions, own), handles[slot], strict=True):
                await service.update_session_state(handle, dict(state))
        elif action == "get":
            found: list[Any] = [await service.get_session(**ids) for service in (sessions, own)]
            if slot in handles:
                assert found[0].events == found[1].events
                assert found[0].historical_events == found[1].historical_events
                bare = [
                    {key: session.state[key] for key in session.state if ":" not in key}
                    for session in found
                ]
                assert bare[0] == bare[1]
            else:
                assert found == [None, None]
        elif action == "delete" and dice.random() < 0.3:
            for service in (sessions, own):
                await service.delete_session(**ids)
            handles.pop(slot, None)
    await own.close()
