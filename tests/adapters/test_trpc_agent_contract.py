"""What tRPC-Agent's own tests demand of every session service, in our own words.

Each test runs on TrpcSessionService and on the framework's own services: InMemorySessionService
where the place is memory, RedisSessionService on servers. test_trpc_agent_conversations.py runs the
same conversations on all of them and on SqlSessionService, and compares.

Left out of the framework's suite: its TTLs and the task that removes what is expired (the store
does that), its storage classes, and its helpers that no session service can change.

Where the adapter differs from the framework's services on purpose:
* A session that does not exist: `append_event` and `update_session` raise SessionNotFound. The
  framework logs a warning and drops what it was given.
* `create_session` with an id that exists keeps the session and sets the state, as
  SqlSessionService does. The other two replace the session.
* `max_events` limits what one reader is shown of the log, so it applies to the whole log at each
  read. RedisSessionService and SqlSessionService apply it at each append, and store what is left.
Not compared, because the framework's services differ from each other: app and user state that is
not text (RedisSessionService gives text back), a Session object that is used after
`update_session` (InMemorySessionService keeps that object itself), and summaries in
SqlSessionService (it sorts events by time; the framework's own suite notes that as known).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from adapters_support import needs
from support.servers import Server

from sessionstore import SessionNotFound

needs("trpc_agent_sdk", "trpc-agent")
with warnings.catch_warnings(action="ignore"):  # of the framework
    from trpc_agent_sdk.cancel import cleanup_incomplete_function_calls
    from trpc_agent_sdk.events import Event
    from trpc_agent_sdk.sessions import (
        InMemorySessionService,
        RedisSessionService,
        Session,
        set_summarizer_conversation_threshold,
    )
    from trpc_agent_sdk.types import Content, EventActions, FunctionCall, FunctionResponse, Part
    from trpc_support import IDS, OWNER, Open, answered, said, setting, summarizing, texts, theirs
    from trpc_support import open_ours as open_ours

    from sessionstore.adapters.trpc_agent import TrpcSessionService


@pytest.fixture(params=["ours", "theirs"])
async def open_service(
    request: pytest.FixtureRequest, place: Server | None, open_ours: Open
) -> AsyncIterator[Open]:
    """Opens services: the adapter, and the framework's own."""
    async with AsyncExitStack() as stack:

        def open_theirs(manager: Any = None, **limits: Any) -> Any:
            service = theirs(place, manager, **limits)
            stack.push_async_callback(service.close)
            return service

        yield open_ours if request.param == "ours" else open_theirs


@pytest.fixture
def sessions(open_service: Open) -> Any:
    """A service that shows everything."""
    return open_service()


async def read(sessions: Any) -> Any:
    """The session, which must be there."""
    found = await sessions.get_session(**IDS)
    assert found is not None
    return found


# -- create, get, list, delete -----------------------------------------------------------------


async def test_a_new_session_has_the_ids_that_were_asked_for(sessions: Any) -> None:
    named = await sessions.create_session(**IDS)
    assert (named.app_name, named.user_id, named.id) == ("app", "user", "sid")
    assert named.events == named.historical_events == []
    assert named.conversation_count == 0
    for blank in (None, "", "   "):
        session = await sessions.create_session(**OWNER, session_id=blank)
        assert session.id == session.id.strip() != ""


async def test_state_is_shown_with_its_prefixes(sessions: Any) -> None:
    state = {"own": "s", "app:shared": "a", "user:shared": "u"}
    created = await sessions.create_session(**IDS, state=dict(state))
    assert created.state == state
    assert (await read(sessions)).state == state
    same_user = await sessions.create_session(**OWNER, session_id="second")
    assert same_user.state == {"app:shared": "a", "user:shared": "u"}
    same_app = await sessions.create_session(app_name="app", user_id="other")
    assert same_app.state == {"app:shared": "a"}
    other_app = await sessions.create_session(app_name="other", user_id="user")
    assert other_app.state == {}


async def test_a_session_object_is_a_copy(sessions: Any) -> None:
    created = await sessions.create_session(**IDS, state={"key": ["value"]})
    created.state["key"].append("changed")
    created.events.append(said("never appended"))
    found = await read(sessions)
    assert found.state == {"key": ["value"]}
    assert found.events == []
    found.state["new"] = True
    found.events.append(said("never appended"))
    assert (await read(sessions)).state == {"key": ["value"]}
    assert (await read(sessions)).events == []


async def test_what_does_not_exist_is_not_found(sessions: Any) -> None:
    assert await sessions.get_session(**IDS) is None
    assert (await sessions.list_sessions(**OWNER)).sessions == []
    assert (await sessions.list_sessions(app_name="app")).sessions == []
    await sessions.delete_session(**IDS)


async def test_lists_have_state_and_no_events(sessions: Any) -> None:
    for name in ("one", "two"):
        session = await sessions.create_session(**OWNER, session_id=name, state={"is": name})
        await sessions.append_event(session, setting({"app:a": "1", "user:u": "2"}))
    found = (await sessions.list_sessions(**OWNER)).sessions
    assert {session.id: session.state for session in found} == {
        name: {"is": name, "app:a": "1", "user:u": "2"} for name in ("one", "two")
    }
    assert all(session.events == session.historical_events == [] for session in found)


async def test_lists_are_of_a_user_or_of_an_application(sessions: Any) -> None:
    for app, user, name in (("app", "user", "a"), ("app", "other", "b"), ("else", "user", "c")):
        await sessions.create_session(app_name=app, user_id=user, session_id=name)

    async def listed(**owner: Any) -> list[str]:
        found = (await sessions.list_sessions(**owner)).sessions
        return sorted(session.id for session in found)

    assert await listed(app_name="app", user_id="user") == ["a"]
    assert await listed(app_name="app", user_id=None) == ["a", "b"]
    assert await listed(app_name="app", user_id="nobody") == []
    assert await listed(app_name="nothing", user_id="user") == []


async def test_a_deleted_session_is_gone_and_its_user_stays(sessions: Any) -> None:
    session = await sessions.create_session(**IDS, state={"user:kept": "1", "own": 1})
    await sessions.append_event(session, said("gone"))
    await sessions.create_session(**OWNER, session_id="other")
    await sessions.delete_session(**IDS)
    assert await sessions.get_session(**IDS) is None
    [left] = (await sessions.list_sessions(**OWNER)).sessions
    assert left.id == "other"
    again = await sessions.create_session(**IDS)
    assert again.events == []
    assert again.state == {"user:kept": "1"}


# -- append_event ------------------------------------------------------------------------------


async def test_an_event_is_in_the_session_object_and_in_the_store(sessions: Any) -> None:
    session = await sessions.create_session(**IDS)
    events = [said("question"), answered("answer"), Event(author="agent", invocation_id="run")]
    for event in events:
        assert await sessions.append_event(session, event) is event
        assert session.events[-1] is event
        assert session.last_update_time == event.timestamp
    assert (await read(sessions)).events == events


async def test_a_fragment_is_neither_shown_nor_stored(sessions: Any) -> None:
    session = await sessions.create_session(**IDS)
    event = answered("frag", partial=True, actions=EventActions(state_delta={"a": 1}))
    assert await sessions.append_event(session, event) is event
    assert (session.events, session.state) == ([], {})
    assert (await read(sessions)).events == []


async def test_the_last_of_several_deltas_wins(sessions: Any) -> None:
    session = await sessions.create_session(**IDS, state={"counter": 0})
    for delta in ({"counter": 1}, {}, {"counter": 2, "app:a": "1"}, {"flag": True, "app:a": "2"}):
        await sessions.append_event(session, setting(dict(delta)))
    assert session.state == {"counter": 2, "flag": True, "app:a": "2"}
    found = await read(sessions)
    assert found.state == session.state
    assert [event.actions.state_delta for event in found.events] == [
        {"counter": 1},
        {},
        {"counter": 2, "app:a": "1"},
        {"flag": True, "app:a": "2"},
    ]


async def test_temporary_state_is_seen_by_the_run_only(sessions: Any) -> None:
    session = await sessions.create_session(**IDS)
    event = setting({"temp:t": "now", "kept": "later"})
    await sessions.append_event(session, event)
    assert session.state == {"temp:t": "now", "kept": "later"}
    assert event.actions.state_delta == {"kept": "later"}
    found = await read(sessions)
    assert found.state == {"kept": "later"}
    assert found.events[0].actions.state_delta == {"kept": "later"}


async def test_tool_calls_are_read_as_they_were(sessions: Any) -> None:
    session = await sessions.create_session(**IDS)
    call = FunctionCall(id="1", name="weather", args={"city": "北京", "days": [1, 2.5, None]})
    answer = FunctionResponse(id="1", name="weather", response={"temp": 26, "sky": {"is": "晴"}})
    for part in (Part(function_call=call), Part(function_response=answer)):
        event = answered("")
        event.content = Content(role="model", parts=[part])
        event.long_running_tool_ids = {"1"}
        await sessions.append_event(session, event)
    asked, told = (await read(sessions)).events
    assert asked.get_function_calls() == [call]
    assert told.get_function_responses() == [answer]
    assert asked.long_running_tool_ids == {"1"}


async def test_the_count_of_conversations_is_stored(sessions: Any) -> None:
    session = await sessions.create_session(**IDS)
    session.conversation_count = 5
    await sessions.append_event(session, said("x"))
    assert (await read(sessions)).conversation_count == 5
    session.conversation_count = 0
    await sessions.update_session(session)
    assert (await read(sessions)).conversation_count == 0


# -- update_session, update_session_state ------------------------------------------------------


async def test_changed_state_and_events_are_stored(sessions: Any) -> None:
    session = await sessions.create_session(**IDS, state={"a": 1, "b": 1})
    for text in ("0", "1", "2"):
        await sessions.append_event(session, said(text))
    session.state["a"] = 2
    del session.state["b"]
    session.events[0].content.parts[0].text = "changed"
    del session.events[1]
    session.insert_events([said("first")])
    await sessions.update_session(session)
    found = await read(sessions)
    assert found.state == {"a": 2}
    assert texts(found) == ["first", "changed", "2"]
    await sessions.append_event(found, said("3"))
    assert texts(await read(sessions)) == ["first", "changed", "2", "3"]


async def test_state_is_patched_without_the_events(sessions: Any) -> None:
    session = await sessions.create_session(**IDS, state={"a": 1})
    await sessions.append_event(session, said("kept"))
    session.events.clear()
    await sessions.update_session_state(session, {"b": 2})
    assert session.state == {"a": 1, "b": 2}
    found = await read(sessions)
    assert found.state == {"a": 1, "b": 2}
    assert texts(found) == ["kept"]


async def test_calls_without_a_result_are_removed(sessions: Any) -> None:
    # As the framework's Runner does when a run is cancelled.
    session = await sessions.create_session(**IDS)
    for name in ("answered", "cut off"):
        event = said(name)
        call = FunctionCall(id=name, name="f", args={})
        event.content.parts.append(Part(function_call=call))
        await sessions.append_event(session, event)
    answer = answered("")
    response = FunctionResponse(id="answered", name="f", response={})
    answer.content = Content(role="user", parts=[Part(function_response=response)])
    await sessions.append_event(session, answer)
    await cleanup_incomplete_function_calls(session)
    await sessions.update_session(session)
    found = await read(sessions)
    assert texts(found) == ["answered", "call", "cut off", "result"]


# -- what is shown -----------------------------------------------------------------------------


async def test_recent_events_begin_with_the_user(open_service: Open) -> None:
    session = await open_service().create_session(**IDS)
    for number in range(10):
        event = said(str(number)) if number == 7 else answered(str(number))
        await open_service().append_event(session, event)
    if not isinstance(open_service(), InMemorySessionService):  # those share nothing
        assert texts(await read(open_service(num_recent_events=3))) == ["7", "8", "9"]
        assert texts(await read(open_service(num_recent_events=4))) == ["7", "8", "9"]
        assert texts(await read(open_service(num_recent_events=2))) == ["7"]
        assert len((await read(open_service())).events) == 10


async def test_a_limit_at_read_keeps_the_summary(open_service: Open) -> None:
    sessions = open_service(num_recent_events=3)
    session = await sessions.create_session(**IDS)
    event = answered("summary")
    event.set_summary_event(True)
    await sessions.append_event(session, event)
    for number in range(5):
        await sessions.append_event(session, answered(str(number)))
    assert texts(await read(sessions)) == ["summary"]
    assert (await read(sessions)).historical_events == []


async def test_old_events_are_not_shown(open_service: Open) -> None:
    sessions = open_service(event_ttl_seconds=60)
    session = await sessions.create_session(**IDS)
    for text, age_s in (("old", 1000), ("new", 0)):
        await sessions.append_event(session, said(text, timestamp=time.time() - age_s))
    assert texts(session) == texts(await read(sessions)) == ["new"]


async def test_events_beyond_the_limit_are_historical(open_service: Open) -> None:
    sessions = open_service(max_events=2)
    session = await sessions.create_session(**IDS)
    for number in range(4):
        event = said(str(number)) if number == 2 else answered(str(number))
        await sessions.append_event(session, event)
    assert texts(session) == ["2", "3"]
    assert [event.get_text() for event in session.historical_events] == ["0", "1"]
    if not isinstance(sessions, InMemorySessionService):  # that stores all as active
        found = await read(sessions)
        assert texts(found) == ["2", "3"]
        assert [event.get_text() for event in found.historical_events] == ["0", "1"]


# -- summaries ---------------------------------------------------------------------------------


async def test_a_manager_is_set_once_unless_forced(open_service: Open) -> None:
    first, second = summarizing(), summarizing()
    sessions = open_service(first)
    sessions.set_summarizer_manager(second)
    assert sessions.summarizer_manager is first
    sessions.set_summarizer_manager(second, force=True)
    assert sessions.summarizer_manager is second
    without = open_service()
    session = await without.create_session(**IDS)
    await without.create_session_summary(session)
    assert await without.get_session_summary(session) is None
    without.set_summarizer_manager(first)
    assert without.summarizer_manager is first


async def test_a_summary_replaces_the_events_that_it_summarizes(open_service: Open) -> None:
    manager = summarizing()
    sessions = open_service(manager)
    session = await sessions.create_session(**IDS)
    for number in range(3):
        await sessions.append_event(session, said(f"q{number}"))
        await sessions.append_event(session, answered(f"a{number}"))
    session.conversation_count = 3
    await manager.create_session_summary(session, force=True)
    found = await read(sessions)
    assert found.events == session.events
    assert found.events[0].is_summary_event()
    assert texts(found)[1:] == ["q2", "a2"]
    assert [event.get_text() for event in found.historical_events] == ["q0", "a0", "q1", "a1"]
    assert found.conversation_count == 0
    assert await sessions.get_session_summary(found) == "summary 1"
    # The conversation goes on, and the summary is part of the next one.
    session = found
    await sessions.append_event(session, said("q3"))
    await sessions.append_event(session, answered("a3"))
    await manager.create_session_summary(session, force=True)
    found = await read(sessions)
    assert "summary 2" in texts(found)[0]
    assert texts(found)[1:] == ["q3", "a3"]
    historical = [event.get_text() for event in found.historical_events]
    assert "summary 1" in historical[4]
    assert historical[5:] == ["q2", "a2"]


async def test_without_history_replaced_events_are_gone(open_service: Open) -> None:
    manager = summarizing()
    sessions = open_service(manager, store_historical_events=False)
    session = await sessions.create_session(**IDS)
    for number in range(4):
        await sessions.append_event(session, said(str(number)))
    await manager.create_session_summary(session, force=True)
    found = await read(sessions)
    assert found.events[0].is_summary_event()
    assert texts(found)[1:] == ["2", "3"]
    assert found.historical_events == []


async def test_a_short_history_is_not_summarized(open_service: Open) -> None:
    checks = [set_summarizer_conversation_threshold(3)]
    manager = summarizing(check_summarizer_functions=checks)
    sessions = open_service(manager)
    session = await sessions.create_session(**IDS)
    await sessions.append_event(session, said("0"))
    await manager.create_session_summary(session)
    assert texts(await read(sessions)) == ["0"]
    assert await sessions.get_session_summary(session) is None


async def test_the_same_compaction_is_applied_once(sessions: Any) -> None:
    session = await sessions.create_session(**IDS)
    for number in range(4):
        await sessions.append_event(session, said(str(number)))
    boundary = session.events[1].id
    for _ in range(2):
        session.compact_events(answered("sum"), boundary, compaction_id="c")
        await sessions.update_session(session)
        session = await read(sessions)
        assert texts(session) == ["sum", "2", "3"]
    with pytest.raises(ValueError, match="boundary"):
        session.compact_events(answered("other"), boundary, compaction_id="d")


# -- what differs ------------------------------------------------------------------------------


async def test_a_session_that_does_not_exist_takes_nothing(open_service: Open) -> None:
    sessions = open_service()
    is_ours = isinstance(sessions, TrpcSessionService)
    await sessions.create_session(**OWNER, session_id="other")
    for app, user, name in (("no", "user", "sid"), ("app", "no", "sid"), ("app", "user", "no")):
        ghost = Session(id=name, app_name=app, user_id=user, save_key="key")
        for write in (sessions.append_event(ghost, said("x")), sessions.update_session(ghost)):
            if is_ours:
                with pytest.raises(SessionNotFound, match=name):
                    await write
            else:
                await write
        assert await sessions.get_session(app_name=app, user_id=user, session_id=name) is None


async def test_creating_a_session_again_replaces_it_only_in_theirs(open_service: Open) -> None:
    sessions = open_service()
    session = await sessions.create_session(**IDS, state={"a": 1, "b": 1})
    await sessions.append_event(session, said("before"))
    again = await sessions.create_session(**IDS, state={"b": 2})
    if isinstance(sessions, TrpcSessionService):
        assert again.state == {"a": 1, "b": 2}
        assert texts(again) == ["before"]
    else:
        assert again.state == {"b": 2}
        assert again.events == []
    assert (await read(sessions)).state == again.state


async def test_each_reader_applies_its_own_event_limit(open_service: Open) -> None:
    sessions = open_service(max_events=2)
    session = await sessions.create_session(**IDS)
    for number in range(6):
        event = said(str(number)) if number == 2 else answered(str(number))
        await sessions.append_event(session, event)
    assert texts(session) == ["2", "5"]
    if isinstance(sessions, TrpcSessionService):
        assert texts(await read(sessions)) == ["2"]
        assert len((await read(open_service())).events) == 6
    elif isinstance(sessions, RedisSessionService):
        assert texts(await read(sessions)) == ["2", "5"]
