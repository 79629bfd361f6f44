"""TrpcSessionService does what tRPC-Agent's own services do, in memory and on every server."""

from __future__ import annotations

import asyncio
import math
import random
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from adapters_support import OLD, needs, outputs, run_example, write_golden
from support.servers import Server
from support.services import WITH_TTL

import sessionstore.sync
from sessionstore import CorruptData, InvalidArgument, SessionKey, SessionNotFound
from sessionstore import Event as StoredEvent

needs("trpc_agent_sdk", "trpc-agent")
with warnings.catch_warnings(action="ignore"):  # of the framework
    from trpc_agent_sdk.agents import LlmAgent
    from trpc_agent_sdk.events import Event
    from trpc_agent_sdk.models import LLMModel, LlmResponse
    from trpc_agent_sdk.runners import Runner
    from trpc_agent_sdk.sessions import (
        DefaultSessionSummarizer,
        DefaultSessionSummarizerManager,
        InMemorySessionService,
        Session,
        SessionServiceConfig,
        set_summarizer_events_count_threshold,
    )
    from trpc_agent_sdk.types import (
        Content,
        EventActions,
        FunctionCall,
        FunctionResponse,
        GenerateContentResponseUsageMetadata,
        Part,
    )

    from sessionstore.adapters.trpc_agent import TrpcSessionService

OWNER: dict[str, Any] = {"app_name": "app", "user_id": "user"}
IDS: dict[str, Any] = {**OWNER, "session_id": "sid"}

Make = Callable[..., TrpcSessionService]


@pytest.fixture
async def make(place: Server | None) -> AsyncIterator[Make]:
    """Makes adapters, each with a service of its own; in memory they share the first one's."""
    shared: list[sessionstore.SessionService] = []
    async with AsyncExitStack() as stack:

        def make(
            session_config: Any = None, summarizer_manager: Any = None, **options: Any
        ) -> TrpcSessionService:
            options = {**WITH_TTL, **options}
            service: sessionstore.SessionService
            if place is not None:
                service = sessionstore.RedisSessionService(place.url, **options)
            elif shared:
                service = shared[0]
            else:
                service = sessionstore.InMemorySessionService(**options)
            shared.append(service)
            adapter = TrpcSessionService(
                service, summarizer_manager=summarizer_manager, session_config=session_config
            )
            stack.push_async_callback(service.aclose)
            return adapter

        yield make


@pytest.fixture
def sessions(make: Make) -> TrpcSessionService:
    """An adapter with default options but for a TTL in every tier."""
    return make()


def said(text: str, author: str = "user", **fields: Any) -> Any:
    """An event that says something."""
    content = Content(role="user", parts=[Part(text=text)])
    return Event(author=author, invocation_id="run", content=content, **fields)


def changed(**delta: Any) -> Any:
    """An event with a state delta; `__` in a key stands for its colon."""
    delta = {key.replace("__", ":"): value for key, value in delta.items()}
    return Event(author="agent", actions=EventActions(state_delta=delta))


def summary(text: str) -> Any:
    """The event that stands for those before it."""
    event = said(text, author="system")
    event.set_summary_event(True)
    return event


def texts(events: Any) -> list[str]:
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
    monkeypatch.setattr("sessionstore.adapters.flows.SESSIONS_PER_PAGE_LIMIT", 2)
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


# -- update_session ----------------------------------------------------------------------------


async def test_a_summary_takes_the_place_of_events(sessions: TrpcSessionService) -> None:
    session = await filled(sessions, 6)
    session.compact_events(summary("sum"), session.events[3].id, compaction_id="c1")
    session.conversation_count = 0
    await sessions.update_session(session)
    found = await read(sessions)
    assert found == session
    assert texts(found.events) == ["sum", "4", "5"]
    assert texts(found.historical_events) == ["0", "1", "2", "3"]
    for number in (6, 7):
        await sessions.append_event(session, said(str(number)))
    session.compact_events(summary("again"), session.events[2].id, compaction_id="c2")
    await sessions.update_session(session)
    found = await read(sessions)
    assert found == session
    assert texts(found.events) == ["again", "6", "7"]
    assert texts(found.historical_events) == ["0", "1", "2", "3", "sum", "4", "5"]


async def test_events_and_state_may_be_changed_anyhow(sessions: TrpcSessionService) -> None:
    session = await filled(sessions, 4)
    await sessions.append_event(session, changed(a=[1], b=1, user__c=1, app__d=1))
    session.events[1].content.parts = [Part(text="changed", inline_data=None)]
    del session.events[2]
    session.insert_events([said("first"), said("second", custom_metadata={"b": "x"})])
    session.events.append(said("last", actions=EventActions(state_delta={"n": 1})))
    session.state["a"].append(2)
    session.state["e"] = ("x",)
    session.state["user:c"] = 2
    session.state["temp:t"] = object()
    del session.state["b"]
    await sessions.update_session(session)
    del session.state["temp:t"]
    found = await read(sessions)
    session.historical_events, session.state = found.historical_events, found.state
    assert found.model_dump() == session.model_dump()
    assert texts(found.events) == ["first", "second", "0", "changed", "3", "", "last"]
    assert found.state == {"a": [1, 2], "e": ["x"], "user:c": 2, "app:d": 1}
    assert (await sessions.create_session(**OWNER)).state == {"user:c": 2, "app:d": 1}


async def test_nothing_changed_is_nothing_written(sessions: TrpcSessionService) -> None:
    session = await filled(sessions, 3)
    session.compact_events(summary("sum"), session.events[0].id, compaction_id="c")
    await sessions.update_session(session)
    before = await sessions._service.get_session(**IDS)
    await sessions.update_session(session)
    await sessions.update_session(await read(sessions))
    after = await sessions._service.get_session(**IDS)
    assert before is not None
    assert after is not None
    assert after.version == before.version


async def test_what_others_wrote_meanwhile_stays(make: Make) -> None:
    ours, theirs = make(), make()
    mine = await filled(ours, 4)
    other = await read(theirs)
    await theirs.append_event(other, said("foreign"))
    await theirs.update_session_state(other, {"theirs": 1, "both": 1})
    await ours.append_event(mine, said("own"))
    mine.compact_events(summary("sum"), mine.events[2].id, compaction_id="c")
    mine.state["mine"] = 1
    await ours.update_session(mine)
    found = await read(ours)
    assert texts(found.events) == ["sum", "3", "foreign", "own"]
    assert found.state == {"theirs": 1, "both": 1, "mine": 1}
    # Also by way of a copy, which the service does not know.
    copy = mine.model_copy(deep=True)
    copy.insert_events([said("note")])
    copy.state["copy"] = 1
    await ours.update_session(copy)
    found = await read(theirs)
    assert texts(found.events)[:3] == ["note", "sum", "3"]
    assert texts(found.events)[-1] == "own"
    assert found.state == {"theirs": 1, "both": 1, "mine": 1, "copy": 1}


async def test_updates_at_once_are_all_applied(make: Make) -> None:
    services = [make() for _ in range(4)]
    await filled(services[0], 4)
    handles = [await read(service) for service in services]

    async def work(number: int) -> None:
        session, service = handles[number], services[number]
        del session.events[number]
        session.state[f"w{number}"] = number
        await service.update_session(session)
        await service.append_event(session, said(f"by {number}"))

    await asyncio.gather(*(work(number) for number in range(4)))
    found = await read(services[0])
    assert sorted(texts(found.events)) == [f"by {number}" for number in range(4)]
    assert found.state == {f"w{number}": number for number in range(4)}


async def test_a_refused_update_changes_nothing(sessions: TrpcSessionService) -> None:
    session = await filled(sessions, 2)
    before = await read(sessions)
    session.state["f"] = NESTED
    with pytest.raises(InvalidArgument, match=r"session\.state\['f'\] cannot be serialized"):
        await sessions.update_session(session)
    del session.state["f"]
    session.insert_events([said("x", custom_metadata={"f": Opaque()})])
    with pytest.raises(InvalidArgument, match=r"session\.events\[0\]\.custom_metadata"):
        await sessions.update_session(session)
    assert await read(sessions) == before


async def test_an_update_survives_trimming(make: Make) -> None:
    sessions = make(session_event_limit=5)
    session = await filled(sessions, 5)
    session.compact_events(summary("sum"), session.events[3].id, compaction_id="c")
    await sessions.update_session(session)
    assert texts((await read(sessions)).events) == ["sum", "4"]
    for number in (5, 6, 7):
        await sessions.append_event(session, said(str(number)))
    assert texts((await read(sessions)).events) == ["sum", "4", "5", "6", "7"]
    await sessions.append_event(session, said("8"))
    assert texts((await read(sessions)).events)[-4:] == ["5", "6", "7", "8"]
    await sessions.update_session(session)  # what was trimmed does not come back
    for number in range(9, 15):
        await sessions.append_event(session, said(str(number)))
    # A summary is not trimmed.
    found = await read(sessions)
    assert texts(found.events) == ["sum", "10", "11", "12", "13", "14"]
    assert texts(found.historical_events) == []
    found.compact_events(summary("again"), found.events[2].id, compaction_id="d")
    await sessions.update_session(found)
    found = await read(sessions)
    assert texts(found.events) == ["again", "12", "13", "14"]
    assert texts(found.historical_events) == ["10", "11"]  # what it followed is gone, and so is sum
    for number in range(15, 20):
        await sessions.append_event(found, said(str(number)))
    found = await read(sessions)
    assert texts(found.events) == ["again", "15", "16", "17", "18", "19"]
    assert texts(found.historical_events) == []


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
    recent = make(SessionServiceConfig(num_recent_events=3))
    assert texts((await read(recent)).events) == ["1", "2", "3"]
    short = make(SessionServiceConfig(max_events=3, store_historical_events=True))
    found = await read(short)
    assert texts(found.events) == ["1", "2", "3"]
    assert texts(found.historical_events) == ["0"]
    await short.append_event(found, said("4"))
    assert found == await read(short)
    assert texts(found.events) == ["4"]  # the window starts with the user
    await short.update_session(found)
    old = make(SessionServiceConfig(event_ttl_seconds=3600))
    await old.append_event(await read(old), said("old", timestamp=time.time() - 7200))
    assert "old" not in texts((await read(old)).events)
    forgetful = make(SessionServiceConfig())
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
        make(config)


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
    agent = LlmAgent(name="agent", model=Answering("answering"))
    await Runner(app_name="app", agent=agent, session_service=sessions).close()
    await sessions.close()
    assert await sessions.get_session(**IDS) is not None
    await service.aclose()


# -- beside the framework's own ----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
async def test_it_answers_as_the_frameworks_own_service(
    sessions: TrpcSessionService, seed: int
) -> None:
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
    await summarise(lambda **options: TrpcSessionService(service, **options), deferred=True)


async def summarise(make: Make, *, deferred: bool) -> None:
    """Five runs, with a summary as soon as there are more than four events."""
    summarizer = DefaultSessionSummarizer(
        model=Answering("answering"),
        check_summarizer_functions=[set_summarizer_events_count_threshold(4)],
        keep_recent_count=2,
    )
    manager = DefaultSessionSummarizerManager(summarizer.model, summarizer=summarizer)
    sessions = make(summarizer_manager=manager)
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
    assert texts(found.events)[-2].startswith("question 4")
    assert len(found.events) <= 5
    assert "question 0" in texts(found.historical_events)
    assert found.state["last"].startswith("answer to")
    assert await sessions.get_session_summary(found) == "answer to 1"


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
