"""TrpcSessionService does what tRPC-Agent's own services do, in memory and on every server."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
import warnings
from typing import Any

import msgspec
import pytest
from adapters_support import OLD, needs, outputs, run_example, write_golden
from support.servers import Server

import sessionstore.sync
from sessionstore import CorruptData, InvalidArgument, SessionKey, SessionNotFound
from sessionstore import Event as StoredEvent

needs("trpc_agent_sdk", "trpc-agent")
with warnings.catch_warnings(action="ignore"):  # of the framework
    from trpc_agent_sdk.events import Event
    from trpc_agent_sdk.sessions import (
        Session,
        SessionServiceConfig,
    )
    from trpc_agent_sdk.types import (
        Content,
        EventActions,
        FunctionCall,
        FunctionResponse,
        GenerateContentResponseUsageMetadata,
        Part,
    )
    from trpc_support import IDS, OWNER, Make, changed, filled, new_runner, read, said, summary
    from trpc_support import make as make
    from trpc_support import sessions as sessions
    from trpc_support import texts_of as texts

    from sessionstore.adapters.trpc_agent import TrpcSessionService


# -- sessions and state ------------------------------------------------------------------------


async def test_a_session_is_read_as_it_was_created(sessions: TrpcSessionService) -> None:
    before = time.time()
    created = await sessions.create_session(
        **OWNER, state={"a": 1, "user:b": [2], "app:c": {}, "temp:d": 1}
    )
    assert created.id
    assert created.save_key == "app/user"
    assert created.state == {"a": 1, "user:b": [2], "app:c": {}}
    assert before - 1 <= created.last_update_time <= time.time() + 1
    assert await sessions.get_session(**OWNER, session_id=created.id) == created
    assert (await sessions.create_session(**OWNER, session_id=" padded ")).id == "padded"


async def test_what_is_not_there_is_none(sessions: TrpcSessionService) -> None:
    assert await sessions.get_session(**IDS) is None
    await sessions.delete_session(**IDS)
    await sessions.create_session(**IDS)
    await sessions.delete_session(**IDS)
    assert await sessions.get_session(**IDS) is None


async def test_creating_again_overwrites_nothing(make: Make) -> None:
    first, second = make(), make()
    session = await first.create_session(**IDS, state={"a": 1, "b": 1})
    await first.append_event(session, said("kept"))
    again = await second.create_session(**IDS, state={"b": 2, "user:c": 3})
    assert texts(again.events) == ["kept"]
    assert again.state == {"a": 1, "b": 2, "user:c": 3}
    found = await asyncio.gather(
        *(
            make().create_session(**OWNER, session_id="race", state={str(number): 1})
            for number in range(8)
        )
    )
    assert {session.id for session in found} == {"race"}
    race: Any = await first.get_session(**OWNER, session_id="race")
    assert race.state == {"user:c": 3, **{str(number): 1 for number in range(8)}}


async def test_sessions_are_listed_without_events(
    sessions: TrpcSessionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessionstore.adapters.session_flows.SESSIONS_PER_PAGE_LIMIT", 2)
    for name in ("a", "b", "c", "d", "e"):
        session = await sessions.create_session(**OWNER, session_id=name, state={"is": name})
        session.conversation_count = 2
        await sessions.append_event(session, said("x", actions=EventActions(state_delta={"n": 1})))
    found = (await sessions.list_sessions(**OWNER)).sessions
    assert {session.id: session.state for session in found} == {
        name: {"is": name, "n": 1} for name in "abcde"
    }
    assert all(session.events == [] for session in found)
    assert all(session.conversation_count == 2 for session in found)
    assert (await sessions.list_sessions(app_name="app", user_id="other")).sessions == []
    await sessions.create_session(app_name="app", user_id="other", session_id="f")
    await sessions.create_session(app_name="another", user_id="other", session_id="g")
    everybodys = (await sessions.list_sessions(app_name="app")).sessions
    assert [session.id for session in everybodys] == ["f", "e", "d", "c", "b", "a"]


async def test_tiers_are_shared_as_their_prefix_says(sessions: TrpcSessionService) -> None:
    first = await sessions.create_session(**IDS, state={"app:a": 1, "user:b": 1, "c": 1})
    event = changed(app__d=2, user__e=2, f=2, temp__g=2)
    assert await sessions.append_event(first, event) is event
    assert "temp:g" not in event.actions.state_delta
    assert first.state.pop("temp:g") == 2
    assert first.state == {"app:a": 1, "app:d": 2, "user:b": 1, "user:e": 2, "c": 1, "f": 2}
    assert (await read(sessions)) == first
    same_user = await sessions.create_session(**OWNER)
    assert same_user.state == {"app:a": 1, "app:d": 2, "user:b": 1, "user:e": 2}
    other_user = await sessions.create_session(app_name="app", user_id="other")
    assert other_user.state == {"app:a": 1, "app:d": 2}


async def test_state_is_set_without_an_event(sessions: TrpcSessionService) -> None:
    session = await filled(sessions, 1)
    await sessions.update_session_state(session, {"a": (1, "x"), "user:b": 1, "temp:c": 1})
    assert session.state == {"a": (1, "x"), "user:b": 1, "temp:c": 1}
    assert (await read(sessions)).state == {"a": [1, "x"], "user:b": 1}
    await sessions.update_session_state(session, {})
    with pytest.raises(InvalidArgument, match=r"state_delta\['f'\]"):
        await sessions.update_session_state(session, {"f": NESTED})
    await sessions.delete_session(**IDS)
    with pytest.raises(SessionNotFound):
        await sessions.update_session_state(session, {"a": 1})


# -- events ------------------------------------------------------------------------------------

JSON: dict[str, Any] = {
    "big": 1 << 90,
    "$": {"$": "bytes", "value": "no"},
    "plain": [1, "two", None, True, {"x": 1.5}],
}
NESTED: list[Any] = []
NESTED.append(NESTED)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_a_complete_event_is_read_as_it_was(make: Make, codec: str) -> None:
    sessions = make(codec=codec)
    session = await sessions.create_session(**IDS, state={"odd": JSON})
    session.conversation_count = 3
    event = Event(
        author="agent",
        invocation_id="run",
        branch="root.agent",
        content=Content(
            role="model",
            parts=[
                Part.from_bytes(data=b"\x89PNG\xff\x00", mime_type="image/png"),
                Part(function_call=FunctionCall(id="1", name="f", args={"n": 1.5, "odd": JSON})),
                Part(function_response=FunctionResponse(id="1", name="f", response=dict(JSON))),
            ],
        ),
        turn_complete=True,
        partial=False,
        error_code="code",
        error_message="message",
        usage_metadata=GenerateContentResponseUsageMetadata(prompt_token_count=1),
        custom_metadata={"key": ["value"], "when": 1},
        long_running_tool_ids={"b", "a"},
        request_id="r",
        parent_invocation_id="p",
        tag="t",
        filter_key="k",
        object="graph.node.start",
        requires_completion=True,
        version=2,
        visible=False,
        timestamp=1_700_000_000.123_456_7,
        actions=EventActions(
            artifact_delta={"file": 3},
            transfer_to_agent="other",
            escalate=True,
            skip_summarization=True,
            state_delta={"a": None, "user:odd": JSON, "b": [1.5]},
        ),
    )
    whole = event.model_copy(deep=True)
    await sessions.append_event(session, event)
    found = await read(sessions)
    assert found == session
    assert found.events == [whole]
    assert found.state == {"odd": JSON, "user:odd": JSON, "a": None, "b": [1.5]}
    assert found.conversation_count == 3
    assert found.last_update_time == 1_700_000_000.123_456_7


async def test_events_are_stored_as_the_frameworks_json(sessions: TrpcSessionService) -> None:
    session = await sessions.create_session(**IDS)
    session.conversation_count = 2
    call = Part(function_call=FunctionCall(id="1", name="f", args={"a": [1]}))
    for event in (
        said("x"),
        Event(author="agent", content=Content(parts=[call]), long_running_tool_ids={"1"}),
        changed(a=[1.5], user__b=1),
        summary("so far"),
    ):
        await sessions.append_event(session, event)
    assert await read(sessions) == session
    stored = await sessions._service.get_events(SessionKey(**OWNER, session_id="sid"))
    for kept, event in zip(stored.events, session.events, strict=True):
        found = Event.model_validate_json(msgspec.json.encode(kept.content))
        found.actions.state_delta = event.actions.state_delta
        assert found == event
        assert kept.metadata == {}


async def test_events_that_were_stored_as_text_are_read(sessions: TrpcSessionService) -> None:
    session = await sessions.create_session(**IDS)
    key = SessionKey(**OWNER, session_id="sid")
    old = said("x")
    text = old.model_dump_json(exclude_none=True)
    await sessions._service.append_event(key, StoredEvent("user", text, old.id))
    found = await read(sessions)
    assert found.events == [old]
    assert found.last_update_time == old.timestamp
    found.events = [summary("so far")]
    await sessions.update_session(found)
    assert (await read(sessions)).events == found.events
    assert session.events == []


def test_bytes_depend_on_the_event_alone() -> None:
    """The program encodes the same events in 20 orders and prints what all of them gave."""
    [printed] = outputs("bytes_of_adk.py", "trpc_agent")
    events = [msgspec.json.decode(line) for line in printed.splitlines()]
    words = sorted(f"word {number}" for number in range(40))
    assert events[3]["content"]["long_running_tool_ids"] == words
    assert (
        events[2]["content"]["content"]["parts"][0]["function_response"]["response"]["all"] == words
    )
    assert events[6]["state_delta"]["tags"] == words


async def test_what_release_0_1_0_stored_is_read(sessions: TrpcSessionService) -> None:
    await write_golden(sessions._service, "trpc_agent", IDS)
    found = await read(sessions)
    assert found.state == {"odd": OLD, "late": (1,), "n": b"\xff"}
    assert found.conversation_count == 2
    assert texts(found.events) == ["sum", "3", "4"]
    assert texts(found.historical_events) == ["0", "1", "2"]
    assert found.events[0].custom_metadata["k"] == b"\x80"
    assert found.events[0].is_summary_event()
    assert found.events[1].custom_metadata == {"b": (b"\xff",)}
    assert found.events[2].actions.state_delta == {"n": b"\xff"}
    # It can be changed and continued.
    found.compact_events(summary("again"), found.events[1].id, compaction_id="d")
    found.state["odd"] = 1
    await sessions.update_session(found)
    await sessions.append_event(found, said("5"))
    found = await read(sessions)
    assert texts(found.events) == ["again", "4", "5"]
    assert texts(found.historical_events) == ["0", "1", "2", "sum", "3"]
    assert found.state == {"odd": 1, "late": (1,), "n": b"\xff"}


class Opaque:
    """Nothing serializes this."""


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        (
            {"custom_metadata": {"a": [Opaque()]}},
            r"event\.custom_metadata\['a'\]\[0\] cannot be serialized by",
        ),
        (
            {"actions": EventActions(state_delta={"user:f": NESTED})},
            r"event\.actions\.state_delta\['user:f'\] cannot be serialized",
        ),
        ({"timestamp": math.nan}, r"event\.timestamp"),
    ],
)
async def test_what_cannot_be_serialized_is_refused_with_its_field(
    sessions: TrpcSessionService, fields: dict[str, Any], path: str
) -> None:
    session = await sessions.create_session(**IDS)
    event = Event(author="agent", **fields)
    event.actions.state_delta["temp:x"] = 1
    with pytest.raises(InvalidArgument, match=path):
        await sessions.append_event(session, event)
    assert await read(sessions) == session
    assert "temp:x" in event.actions.state_delta
    assert session.state == {}


async def test_partial_events_are_not_stored(sessions: TrpcSessionService) -> None:
    session = await sessions.create_session(**IDS)
    event = said("fragment", partial=True, actions=EventActions(state_delta={"a": 1}))
    assert await sessions.append_event(session, event) is event
    assert session.events == []
    assert await read(sessions) == session


async def test_an_unknown_session_takes_no_events(sessions: TrpcSessionService) -> None:
    ghost = Session(id="never", app_name="app", user_id="user", save_key="app/user")
    with pytest.raises(SessionNotFound, match="never"):
        await sessions.append_event(ghost, changed(a=1, user__b=1))
    with pytest.raises(SessionNotFound, match="never"):
        await sessions.update_session(ghost)
    assert ghost.events == []
    assert ghost.state == {}


async def test_an_event_that_is_sent_again_is_stored_once(sessions: TrpcSessionService) -> None:
    session = await sessions.create_session(**IDS)
    event = changed(a=1)
    for _ in range(2):
        assert await sessions.append_event(session, event) is event
    assert session.events == [event]
    # As after an outcome that is unknown: stored, and not in the caller's Session.
    copy = await read(sessions)
    late = changed(a=2)
    await sessions.append_event(copy, late.model_copy(deep=True))
    await sessions.append_event(copy, changed(a=3))
    await sessions.append_event(session, late)
    assert session.events[1] is late
    assert session.state == {"a": 3}
    assert session == await read(sessions)
    assert len(session.events) == 3


# -- many workers, options ---------------------------------------------------------------------


async def test_workers_with_sessions_of_their_own_lose_no_event(make: Make) -> None:
    workers = [make(), make()]
    await workers[0].create_session(**IDS)
    handles = [await read(worker) for worker in workers]
    count = 50

    async def work(number: int) -> None:
        for step in range(count):
            delta = {f"w{number}": step, f"user:u{number}": step}
            event = said(f"{number}/{step}", actions=EventActions(state_delta=delta))
            await workers[number].append_event(handles[number], event)

    await asyncio.gather(work(0), work(1))
    found = await read(workers[0])
    for number in range(2):
        own = [text for text in texts(found.events) if text.startswith(f"{number}/")]
        assert own == [f"{number}/{step}" for step in range(count)]
    assert len(found.events) == 2 * count
    last = count - 1
    assert found.state == {"w0": last, "w1": last, "user:u0": last, "user:u1": last}


async def test_what_is_shown_is_the_configs(make: Make) -> None:
    session = await filled(make(), 2)
    for text in ("2", "3"):
        await make().append_event(session, said(text, author="agent"))
    recent = make({"session_config": SessionServiceConfig(num_recent_events=3)})
    assert texts((await read(recent)).events) == ["1", "2", "3"]
    short = make(
        {"session_config": SessionServiceConfig(max_events=3, store_historical_events=True)}
    )
    found = await read(short)
    assert texts(found.events) == ["1", "2", "3"]
    assert texts(found.historical_events) == ["0"]
    await short.append_event(found, said("4"))
    assert found == await read(short)
    assert texts(found.events) == ["4"]  # the window starts with the user
    await short.update_session(found)
    old = make({"session_config": SessionServiceConfig(event_ttl_seconds=3600)})
    await old.append_event(await read(old), said("old", timestamp=time.time() - 7200))
    assert "old" not in texts((await read(old)).events)
    forgetful = make({"session_config": SessionServiceConfig()})
    assert (await read(forgetful)).historical_events == []


async def test_a_ttl_is_the_services(make: Make) -> None:
    sessions = make(session_ttl=0.05, refresh_ttl_on_read=False)
    session = await filled(sessions, 1)
    async with asyncio.timeout(20):
        while await sessions.get_session(**IDS) is not None:  # noqa: ASYNC110  # the store's clock
            await asyncio.sleep(0.01)
    with pytest.raises(SessionNotFound):
        await sessions.append_event(session, said("late"))
    config = SessionServiceConfig(ttl=SessionServiceConfig.create_ttl_config(ttl_seconds=60))
    with pytest.raises(InvalidArgument, match="session_ttl"):
        make({"session_config": config})


async def test_what_others_wrote_is_refused(sessions: TrpcSessionService) -> None:
    await sessions.create_session(**IDS)
    key = SessionKey("app", "user", "sid")
    await sessions._service.append_event(key, StoredEvent("user", ["no", "text"]))
    with pytest.raises(CorruptData, match="not written by TrpcSessionService"):
        await sessions.get_session(**IDS)
    with pytest.raises(CorruptData, match="sid"):
        await sessions.list_sessions(**OWNER)


def test_only_services_for_asyncio_will_do() -> None:
    service: Any = sessionstore.sync.InMemorySessionService()
    with service, pytest.raises(InvalidArgument, match=r"sessionstore\.sync"):
        TrpcSessionService(service)


async def test_closing_leaves_the_service_open() -> None:
    service = sessionstore.InMemorySessionService(session_ttl=60)
    sessions = TrpcSessionService(service)
    await sessions.create_session(**IDS)
    await new_runner(sessions).close()
    await sessions.close()
    assert await sessions.get_session(**IDS) is not None
    await service.aclose()


@pytest.mark.without_ttl
async def test_the_example_runs(place: Server | None) -> None:
    arguments = [place.url] if place else []
    printed = await asyncio.to_thread(run_example, "trpc_agent_example.py", *arguments)
    lines = [line for line in printed.splitlines() if not line.startswith("Skipping")]
    assert lines == [
        "assistant: In the cart: two blue mugs.",
        "assistant: In the cart: two blue mugs, a teapot.",
        "8 events, {'cart': ['two blue mugs', 'a teapot'], 'user:last_item': 'a teapot'}",
    ]


def test_without_its_extra_the_adapter_names_it() -> None:
    code = (
        "import sys; sys.modules['trpc_agent_sdk'] = None\n"
        "try: import sessionstore.adapters.trpc_agent\n"
        "except ImportError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "pip install 'sessionstore[trpc-agent]'" in result.stdout
