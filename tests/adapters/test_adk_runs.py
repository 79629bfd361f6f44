"""Runs of ADK agents on AdkSessionService: stale sessions, rewinding, turns, `adk web`."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import pytest
from adapters_support import needs
from support.servers import Server
from support.waiting import wait_until

import sessionstore
from sessionstore import InvalidArgument, SessionKey, TurnLost

needs("google.adk", "adk")
with warnings.catch_warnings(action="ignore"):  # of the framework
    from adk_support import IDS, OWNER, Make, ToolUser, new_runner, said, say, texts
    from adk_support import make as make
    from google.adk.cli.service_registry import get_service_registry
    from google.adk.errors import StaleSessionError
    from google.adk.errors.session_not_found_error import SessionNotFoundError
    from google.adk.events.event import Event
    from google.adk.events.event_actions import EventActions
    from google.adk.sessions import InMemorySessionService
    from google.adk.sessions.base_session_service import GetSessionConfig

    from sessionstore.adapters import adk
    from sessionstore.adapters.adk import AdkSessionService

pytestmark = pytest.mark.filterwarnings("ignore:.EXPERIMENTAL:UserWarning")  # older ADK says so


async def read(sessions: AdkSessionService, **config: Any) -> Any:
    """The session, which must be there."""
    found = await sessions.get_session(**IDS, config=GetSessionConfig(**config))
    assert found is not None
    return found


# -- stale sessions, repeated appends ----------------------------------------------------------


async def test_a_repeated_append_does_not_make_the_next_one_stale(make: Make) -> None:
    sessions, other = make({"reject_stale": True}), make()
    session = await sessions.create_session(**IDS)
    before = session.model_copy(deep=True)
    event = said("one", actions=EventActions(state_delta={"a": 1, "temp:t": 1}))
    await sessions.append_event(session, event.model_copy(deep=True))
    # The reply was lost: the caller's Session shows nothing of it, and appends again.
    await sessions.append_event(before, event)
    assert before.state == {"a": 1, "temp:t": 1}
    assert before.events == [event]
    await sessions.append_event(before, said("two"))
    with pytest.raises(StaleSessionError):
        await sessions.append_event(session, said("stale"))
    # What others wrote between the attempts is shown, so it is not overwritten unseen.
    late = said("three")
    await sessions.append_event(before.model_copy(deep=True), late.model_copy(deep=True))
    await other.append_event(await read(other), said("foreign"))
    await sessions.append_event(before, late)
    assert texts(before) == ["one", "two", "three", "foreign"]
    assert before.events[2] is late
    await sessions.append_event(before, said("four"))
    assert texts(await read(other)) == ["one", "two", "three", "foreign", "four"]


async def test_two_workers_store_an_event_once(make: Make) -> None:
    # Whatever each of them has stored before.
    first, second = make(), make()
    await first.create_session(**IDS)
    event = said("x", custom_metadata={"tags": {"a", "b", "c"}}, long_running_tool_ids={"1", "2"})
    await first.append_event(await read(first), said("warm", custom_metadata={"y": 1}))
    for sessions in (first, second):
        await sessions.append_event(await read(sessions), event.model_copy(deep=True))
    found = await read(first)
    assert texts(found) == ["warm", "x"]
    assert found.events[1].custom_metadata == {"tags": ["a", "b", "c"]}


@pytest.mark.parametrize("reject_stale", [False, True])
async def test_a_session_that_was_made_anew_is_stale(make: Make, reject_stale: bool) -> None:
    sessions = make({"reject_stale": reject_stale})
    old = await sessions.create_session(**IDS)
    copy = old.model_copy(deep=True)
    await sessions.delete_session(**IDS)
    with pytest.raises(SessionNotFoundError):
        await sessions.append_event(old, said("gone"))
    new = await sessions.create_session(**IDS)
    for session in (old, copy):
        with pytest.raises(StaleSessionError, match="modified in storage"):
            await sessions.append_event(session, said("late"))
    await sessions.append_event(new, said("new"))
    with pytest.raises(StaleSessionError):
        await sessions.append_event(old, said("late"))
    assert texts(await read(sessions)) == ["new"]


# -- rewinding ---------------------------------------------------------------------------------


def setting(invocation: str, **state: Any) -> Event:
    """What a user said in a run, with its state."""
    return said(invocation, invocation_id=invocation, actions=EventActions(state_delta=state))


async def rewind(sessions: AdkSessionService, invocation: str) -> dict[str, Any]:
    """The state after a rewind."""
    runner = new_runner(sessions)
    await runner.rewind_async(
        user_id="user", session_id="sid", rewind_before_invocation_id=invocation
    )
    state: dict[str, Any] = (await read(sessions)).state
    return state


async def test_rewinding_a_whole_log_is_adks(make: Make) -> None:
    states = []
    for sessions in (make(), InMemorySessionService()):
        session = await sessions.create_session(**IDS)
        for event in (
            setting("one", a=1, b=1),
            setting("two", a=2, c=2),
            setting("three", b=None, d=3),
        ):
            await sessions.append_event(session, event.model_copy(deep=True))
        found: Any = sessions
        states.append([await rewind(found, "three"), await rewind(found, "two")])
    assert states[0] == states[1]
    assert states[0][1] == {"a": 1, "b": 1, "c": None, "d": None}


async def test_a_rewind_that_is_repeated_is_stored_once(make: Make) -> None:
    sessions = make()
    session = await sessions.create_session(**IDS)
    for event in (setting("one", a=1, b=1), setting("two", a=2, c=2, d=None)):
        await sessions.append_event(session, event)
    lost = await read(sessions)
    actions = EventActions(rewind_before_invocation_id="two", state_delta={"a": 1, "c": None})
    event = Event(author="user", invocation_id="three", actions=actions)
    await sessions.append_event(session, event.model_copy(deep=True))
    await sessions.append_event(session, setting("four", b=4))
    await sessions.append_event(lost, event)
    found = await read(sessions)
    assert len(found.events) == 4
    assert found == lost == session
    assert found.state == {"a": 1, "b": 4, "c": None, "d": None}


async def test_rewinding_never_erases_what_was_trimmed(make: Make) -> None:
    sessions = make(session_event_limit=4)
    session = await sessions.create_session(**IDS, state={"initial": 1, "user:u": 1})
    for event in (
        setting("one", trimmed=1, changed=1),
        setting("two", kept=2),
        setting("three", kept=3),
        setting("four", kept=4, changed=4),
        setting("five", kept=5),
    ):
        await sessions.append_event(session, event)
    kept = {"initial": 1, "user:u": 1, "trimmed": 1}
    assert await rewind(sessions, "five") == {**kept, "changed": 4, "kept": 4}
    before = await read(sessions)
    with pytest.raises(InvalidArgument, match=r"cannot rewind session 'sid': .*'changed'"):
        await rewind(sessions, "four")
    assert await read(sessions) == before


async def test_rewinding_never_erases_what_was_trimmed_before_a_removal(make: Make) -> None:
    sessions = make(session_event_limit=3)
    session = await sessions.create_session(**IDS)
    for event in (setting("one", a=1), setting("two", b=2), setting("three", a=3), said("four")):
        await sessions.append_event(session, event)
    await sessions._service.pop_event(SessionKey(**IDS))
    with pytest.raises(InvalidArgument, match=r"cannot rewind session 'sid': .*'a'"):
        await rewind(sessions, "three")
    assert (await read(sessions)).state == {"a": 3, "b": 2}


async def test_rewinding_never_erases_what_a_summary_covers(make: Make) -> None:
    sessions, key = make(), SessionKey(**IDS)
    session = await sessions.create_session(**IDS)
    for event in (setting("one", a=1, b=1), setting("two", a=2), setting("three", b=3)):
        await sessions.append_event(session, event)
    positions = (await sessions._service.get_events(key)).positions
    await sessions._service.compact_session(key, upto=positions[0], summary="so far")
    assert texts(await read(sessions)) == ["two", "three"]
    with pytest.raises(InvalidArgument, match=r"cannot rewind session 'sid': .*'b'"):
        await rewind(sessions, "three")
    assert (await read(sessions)).state == {"a": 2, "b": 3}


async def test_rewinding_with_whole_turns_sees_the_whole_log(make: Make) -> None:
    sessions = make({"whole_turns": True}, session_event_limit=20)
    session = await sessions.create_session(**IDS)
    await sessions.append_event(session, setting("zero", cut=1).model_copy(update={"author": "a"}))
    await sessions.append_event(session, setting("one", a=1))
    await sessions.append_event(session, setting("two", a=2, cut=2))
    assert texts(await read(sessions)) == ["one", "two"]
    assert await rewind(sessions, "two") == {"a": 1, "cut": 1}


# -- whole turns -------------------------------------------------------------------------------


async def test_history_begins_with_a_whole_turn(make: Make) -> None:
    sessions = make({"whole_turns": True}, session_event_limit=10)
    plain = make(session_event_limit=10)
    await sessions.create_session(**IDS)
    runner = new_runner(sessions)
    for number in range(6):
        await say(runner, f"q{number}")  # four events; the model checks what it is sent
        found = await read(sessions)
        assert texts(found)[0].startswith("q")
        assert texts(found)[-1] == f"noted {number + 1}"
    assert texts(await read(plain))[0] == "result"
    assert texts(await read(sessions))[::4] == ["q4", "q5"]
    assert len(texts(await read(sessions))) == 8
    assert texts(await read(sessions, num_recent_events=6)) == ["q5", "call", "result", "noted 6"]
    assert texts(await read(sessions, num_recent_events=0)) == []


# -- one run at a time -------------------------------------------------------------------------


async def test_one_run_at_a_time_works_on_a_session(make: Make) -> None:
    services = [make({"serialize_turns": True}) for _ in range(3)]
    await services[0].create_session(**IDS)
    runners = [new_runner(service, ToolUser(pause_s=0.002)) for service in services]

    async def work(number: int) -> None:
        place = number % 3
        events = await say(runners[place], f"q{number}", services[place].run)
        assert len(events) == 3

    await asyncio.gather(*(work(number) for number in range(6)))
    found = await read(services[0])
    asked = texts(found)[::4]
    assert sorted(asked) == [f"q{number}" for number in range(6)]
    assert texts(found)[1::4] == ["call"] * 6
    assert texts(found)[3::4] == [f"noted {number}" for number in range(1, 7)]
    assert found.state["count"] == 6


async def test_turns_and_stale_sessions_go_together(make: Make) -> None:
    sessions = make({"serialize_turns": True, "reject_stale": True})
    await sessions.create_session(**IDS)
    old = await read(sessions)
    await say(new_runner(sessions), "x", sessions.run)
    assert texts(await read(sessions)) == ["x", "call", "result", "noted 1"]
    with pytest.raises(StaleSessionError):
        await sessions.append_event(old, Event(author="agent"))


async def test_a_run_begins_in_run_only(make: Make) -> None:
    sessions = make({"serialize_turns": True})
    session = await sessions.create_session(**IDS)
    with pytest.raises(InvalidArgument, match=r"sessions\.run\(runner"):
        await say(new_runner(sessions), "outside")
    # What is not the beginning of a run is stored.
    await sessions.append_event(session, Event(author="user", actions=EventActions(escalate=True)))
    assert texts(await read(sessions)) == []
    # Without serialize_turns `run` is the runner's.
    plain = make()
    assert len(await say(new_runner(plain), "x", plain.run)) == 3


async def test_run_says_what_the_runner_says(make: Make) -> None:
    sessions = make({"serialize_turns": True})
    with pytest.raises(SessionNotFoundError):
        await say(new_runner(sessions), "x", sessions.run)
    created = new_runner(sessions, auto_create_session=True)
    assert len(await say(created, "x", sessions.run)) == 3


async def test_a_turn_ends_with_its_run_however_it_ends(make: Make) -> None:
    sessions = make({"serialize_turns": True, "turn_lease": 60})
    await sessions.create_session(**IDS)
    service = sessions._service
    message = said("x").content

    def started(model: ToolUser) -> Any:
        return sessions.run(
            new_runner(sessions, model), user_id="user", session_id="sid", new_message=message
        )

    stopped = started(ToolUser())
    await anext(stopped)
    await stopped.aclose()
    cancelled = started(ToolUser(pause_s=0.01))
    await anext(cancelled)
    task = asyncio.create_task(anext(cancelled))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(RuntimeError, match="it broke"):
        assert [event async for event in started(BrokenModel())]
    await service.release_turn(await service.acquire_turn(SessionKey(**IDS), lease=1))


class BrokenModel(ToolUser):
    """Fails."""

    async def generate_content_async(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("it broke")
        yield


async def test_a_run_that_lost_its_turn_stores_nothing_more(make: Make) -> None:
    sessions = make({"serialize_turns": True, "turn_lease": 60})
    await sessions.create_session(**IDS)
    message = said("x").content
    events = sessions.run(
        new_runner(sessions), user_id="user", session_id="sid", new_message=message
    )
    await anext(events)
    await sessions._service.free_turn(SessionKey(**IDS))
    turn = await sessions._service.acquire_turn(SessionKey(**IDS), lease=60)
    with pytest.raises(TurnLost):
        async for _ in events:
            pass
    assert "noted 1" not in texts(await read(sessions))
    await sessions._service.release_turn(turn)


# -- adk web -----------------------------------------------------------------------------------


async def test_a_uri_names_a_service(server: Server) -> None:
    adk.register()
    registry = get_service_registry()
    mark = "&" if "?" in server.url else "?"
    uri = f"sessionstore+{server.url}{mark}session_ttl=600&key_prefix=web:"
    sessions: Any = registry.create_session_service(uri, agents_dir="/nowhere")
    assert isinstance(sessions, AdkSessionService)
    async with sessions:
        await sessions.create_session(**OWNER)
        assert len((await sessions.list_sessions(**OWNER)).sessions) == 1
    with pytest.raises(sessionstore.BackendUnavailable):
        await sessions.list_sessions(**OWNER)
    with pytest.raises(InvalidArgument, match="session_ttl in the URI must be a number"):
        registry.create_session_service("sessionstore+redis://localhost?session_ttl=x")
    for uri in ("sessionstore+redis+cluster://localhost:1", "sessionstore+unix:///tmp/x.sock?db=1"):
        assert isinstance(registry.create_session_service(uri), AdkSessionService)


AGENT = """
from adk_support import ToolUser, note
from google.adk.agents import LlmAgent

root_agent = LlmAgent(name="agent", model=ToolUser(), tools=[note])
"""


def test_adk_api_server_keeps_its_sessions_here(server: Server, tmp_path: Path) -> None:
    agents = tmp_path / "agents"
    (agents / "shop").mkdir(parents=True)
    (agents / "shop" / "__init__.py").write_text("from . import agent\n")
    (agents / "shop" / "agent.py").write_text(AGENT)
    (agents / "services.py").write_text("from sessionstore.adapters import adk; adk.register()\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mark = "&" if "?" in server.url else "?"
    uri = f"sessionstore+{server.url}{mark}session_ttl=600"
    command = [sys.executable, "-m", "google.adk.cli", "api_server", f"--port={port}"]
    command += [f"--session_service_uri={uri}", str(agents)]
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    base = f"http://127.0.0.1:{port}"

    def request(path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(base + path, data, headers)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return json.load(answer)

    def is_up() -> bool:
        assert process.poll() is None, process.stdout and process.stdout.read().decode()
        try:
            return bool(request("/list-apps"))
        except OSError:
            return False

    try:
        wait_until(is_up, "the server")
        path = "/apps/shop/users/ann/sessions/today"
        request(path, {})
        message = {"role": "user", "parts": [{"text": "hello"}]}
        body = {"appName": "shop", "userId": "ann", "sessionId": "today", "newMessage": message}
        events = request("/run", body)
        assert events[-1]["content"]["parts"] == [{"text": "noted 1"}]
        shown = request(path)
        assert len(shown["events"]) == 4
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert asyncio.run(stored_texts(server.url)) == ["hello", "call", "result", "noted 1"]


async def stored_texts(url: str) -> list[str]:
    """What the session of the server says."""
    async with sessionstore.RedisSessionService(url, session_ttl=600) as service:
        ids: dict[str, Any] = {"app_name": "shop", "user_id": "ann", "session_id": "today"}
        return texts(await AdkSessionService(service).get_session(**ids))
