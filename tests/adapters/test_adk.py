"""AdkSessionService does what ADK's own session services do, in memory and on every server."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
import warnings
from typing import Any

import pytest
from adapters_support import needs, run_example
from support.servers import Server

import sessionstore.sync
from sessionstore import CorruptData, InvalidArgument, SessionKey
from sessionstore import Event as StoredEvent

needs("google.adk", "adk")
with warnings.catch_warnings(action="ignore"):  # of the framework
    from adk_support import IDS, OWNER, Make, changed, said, texts
    from adk_support import make as make
    from adk_support import sessions as sessions
    from google.adk.agents import LlmAgent, RunConfig
    from google.adk.errors import StaleSessionError
    from google.adk.errors.already_exists_error import AlreadyExistsError
    from google.adk.errors.session_not_found_error import SessionNotFoundError
    from google.adk.events.event_actions import EventActions
    from google.adk.models.base_llm import BaseLlm
    from google.adk.models.llm_response import LlmResponse
    from google.adk.runners import Runner
    from google.adk.sessions import InMemorySessionService
    from google.adk.sessions.base_session_service import GetSessionConfig
    from google.adk.sessions.session import Session
    from google.genai import types

    from sessionstore.adapters.adk import AdkSessionService


pytestmark = pytest.mark.filterwarnings("ignore:.EXPERIMENTAL:UserWarning")  # older ADK says so


# -- sessions ----------------------------------------------------------------------------------


async def test_a_session_is_read_as_it_was_created(sessions: AdkSessionService) -> None:
    before = time.time()
    created = await sessions.create_session(**OWNER, state={"a": 1, "user:b": [2], "app:c": {}})
    assert created.id
    assert created.state == {"a": 1, "user:b": [2], "app:c": {}}
    assert before - 1 <= created.last_update_time <= time.time() + 1
    assert await sessions.get_session(**OWNER, session_id=created.id) == created


async def test_what_is_not_there_is_none(sessions: AdkSessionService) -> None:
    assert await sessions.get_session(**IDS) is None
    await sessions.delete_session(**IDS)
    await sessions.create_session(**IDS)
    await sessions.delete_session(**IDS)
    assert await sessions.get_session(**IDS) is None


async def test_an_id_is_used_once(make: Make) -> None:
    await make().create_session(**IDS, state={"a": 1})
    with pytest.raises(AlreadyExistsError, match="sid"):
        await make().create_session(**IDS, state={"a": 2})
    outcomes = await asyncio.gather(
        *(make().create_session(**OWNER, session_id="race") for _ in range(8)),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, Session) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, AlreadyExistsError) for outcome in outcomes) == 7


async def test_white_space_around_ids_is_ignored(sessions: AdkSessionService) -> None:
    created = await sessions.create_session(**OWNER, session_id="  sid ")
    assert created.id == "sid"
    assert await sessions.get_session(**OWNER, session_id=" sid") == created
    assert (await sessions.create_session(**OWNER, session_id="  ")).id
    await sessions.delete_session(**OWNER, session_id="sid  ")
    assert await sessions.get_session(**IDS) is None


async def test_lists_are_ordered_by_the_last_event(sessions: AdkSessionService) -> None:
    for name in ("a", "b", "c"):
        await sessions.create_session(**OWNER, session_id=name, state={"name": name, "user:x": 1})
    session = await sessions.get_session(**OWNER, session_id="a")
    assert session is not None
    await sessions.append_event(session, said("hi", timestamp=time.time() + 10))
    found = (await sessions.list_sessions(**OWNER)).sessions
    assert [session.id for session in found] == ["b", "c", "a"]
    assert [session.events for session in found] == [[], [], []]
    assert found[2].state == {"name": "a", "user:x": 1}
    assert found[2].last_update_time == session.last_update_time
    assert (await sessions.list_sessions(app_name="app", user_id="other")).sessions == []


async def test_a_list_may_be_longer_than_a_page(
    sessions: AdkSessionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessionstore.adapters.session_flows.SESSIONS_PER_PAGE_LIMIT", 3)
    for number in range(7):
        await sessions.create_session(**OWNER, session_id=str(number))
    found = (await sessions.list_sessions(**OWNER)).sessions
    assert [session.id for session in found] == [str(number) for number in range(7)]


async def test_sessions_of_all_users_are_listed(sessions: AdkSessionService) -> None:
    assert (await sessions.list_sessions(app_name="app")).sessions == []
    for app, user, name in (("app", "a", "1"), ("app", "b:*", "2"), ("other", "a", "3")):
        ids = {"app_name": app, "user_id": user, "session_id": name}
        await sessions.create_session(**ids, state={"name": name, "user:is": user, "app:x": 1})
    session = await sessions.get_session(app_name="app", user_id="a", session_id="1")
    assert session is not None
    await sessions.append_event(session, said("hi", timestamp=time.time() + 10))
    found = (await sessions.list_sessions(app_name="app")).sessions
    assert [(session.user_id, session.id) for session in found] == [("b:*", "2"), ("a", "1")]
    assert found[1].state == {"name": "1", "user:is": "a", "app:x": 1}
    assert [session.events for session in found] == [[], []]


# -- state -------------------------------------------------------------------------------------


async def test_tiers_are_shared_as_their_prefix_says(sessions: AdkSessionService) -> None:
    first = await sessions.create_session(**IDS, state={"app:a": 1, "user:b": 1, "c": 1})
    await sessions.append_event(first, changed(app__d=2, user__e=2, f=2))
    assert first.state == {"app:a": 1, "app:d": 2, "user:b": 1, "user:e": 2, "c": 1, "f": 2}
    same_user = await sessions.create_session(**OWNER)
    assert same_user.state == {"app:a": 1, "app:d": 2, "user:b": 1, "user:e": 2}
    other_user = await sessions.create_session(app_name="app", user_id="other")
    assert other_user.state == {"app:a": 1, "app:d": 2}
    other_app = await sessions.create_session(app_name="other", user_id="user")
    assert other_app.state == {}
    assert await sessions.get_user_state(**OWNER) == {"b": 1, "e": 2}
    assert await sessions.get_user_state(app_name="app", user_id="nobody") == {}


async def test_temporary_state_is_not_stored(sessions: AdkSessionService) -> None:
    session = await sessions.create_session(**IDS, state={"temp:start": 1, "a": 1})
    assert session.state == {"a": 1}
    event = changed(temp__out=object(), b=2)
    assert await sessions.append_event(session, event) is event
    assert event.actions.state_delta == {"b": 2}
    assert session.state.keys() == {"a", "b", "temp:out"}
    found = await sessions.get_session(**IDS)
    assert found is not None
    assert found.state == {"a": 1, "b": 2}
    assert found.events == [event]


async def test_a_session_object_does_not_alias_what_is_stored(
    sessions: AdkSessionService,
) -> None:
    session = await sessions.create_session(**IDS, state={"list": [1]})
    session.state["list"].append(2)
    event = changed(items=[1])
    await sessions.append_event(session, event)
    event.actions.state_delta["items"].append(2)
    found = await sessions.get_session(**IDS)
    assert found is not None
    assert found.state == {"list": [1], "items": [1]}
    assert found.events[0].actions.state_delta == {"items": [1]}


# -- many workers ------------------------------------------------------------------------------


async def test_workers_with_sessions_of_their_own_lose_no_event(make: Make) -> None:
    workers = [make(), make()]
    await workers[0].create_session(**IDS)
    handles = [await worker.get_session(**IDS) for worker in workers]
    count = 50

    async def work(number: int) -> None:
        session = handles[number]
        assert session is not None
        for step in range(count):
            delta = {f"w{number}": step, f"user:u{number}": step}
            event = said(f"{number}/{step}", actions=EventActions(state_delta=delta))
            await workers[number].append_event(session, event)
        assert texts(session) == [f"{number}/{step}" for step in range(count)]

    await asyncio.gather(work(0), work(1))
    found = await workers[0].get_session(**IDS)
    assert found is not None
    assert sorted(map(str, texts(found))) == sorted(
        f"{number}/{step}" for number in range(2) for step in range(count)
    )
    for number in range(2):  # and each worker's in its order
        own = [text for text in texts(found) if str(text).startswith(f"{number}/")]
        assert own == [f"{number}/{step}" for step in range(count)]
    last = count - 1
    assert found.state == {"w0": last, "w1": last, "user:u0": last, "user:u1": last}


async def test_a_stale_session_is_rejected_if_asked(make: Make) -> None:
    sessions = make({"reject_stale": True})
    created = await sessions.create_session(**IDS)
    stale = await sessions.get_session(**IDS)
    assert stale == created
    await sessions.append_event(created, changed(a=1))
    await sessions.append_event(created, changed(a=2))
    event = changed(b=1, temp__c=1)
    with pytest.raises(StaleSessionError, match="modified in storage"):
        await sessions.append_event(stale, event)
    assert stale.events == []
    assert stale.state == {}
    assert event.actions.state_delta == {"b": 1, "temp:c": 1}
    fresh = await sessions.get_session(**IDS)
    assert fresh == created
    copies = [fresh.model_copy(deep=True) for _ in range(2)]
    outcomes = await asyncio.gather(
        *(sessions.append_event(copy, changed(c=1)) for copy in copies), return_exceptions=True
    )
    assert sum(isinstance(outcome, StaleSessionError) for outcome in outcomes) == 1
    plain = await make().get_session(**IDS)
    assert plain is not None
    assert len(plain.events) == 3
    await sessions.append_event(plain, changed(d=1))  # a Session of unknown age is taken


# -- the service's options ---------------------------------------------------------------------


async def test_the_limit_of_events_is_the_services(make: Make) -> None:
    sessions = make(session_event_limit=3)
    session = await sessions.create_session(**IDS)
    for number in range(5):
        event = said(str(number), actions=EventActions(state_delta={str(number): number}))
        await sessions.append_event(session, event)
    found = await sessions.get_session(**IDS)
    assert texts(found) == ["2", "3", "4"]
    assert found is not None
    assert found.state == {str(number): number for number in range(5)}


async def test_ttls_are_the_services(make: Make) -> None:
    sessions = make(session_ttl=0.05, user_state_ttl=600, refresh_ttl_on_read=False)
    session = await sessions.create_session(**IDS, state={"user:kept": 1})
    await sessions.append_event(session, said("x"))
    async with asyncio.timeout(20):
        while await sessions.get_session(**IDS) is not None:  # noqa: ASYNC110  # the store's clock
            await asyncio.sleep(0.01)
    assert (await sessions.list_sessions(**OWNER)).sessions == []
    assert await sessions.get_user_state(**OWNER) == {"kept": 1}
    with pytest.raises(SessionNotFoundError):
        await sessions.append_event(session, said("late"))


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_the_codec_is_the_services(make: Make, codec: str) -> None:
    sessions = make(codec=codec)
    state = {"big": 1 << 90, "$": {"$": "bytes", "value": "no"}, "plain": [1, None, 1.5]}
    session = await sessions.create_session(**IDS, state=state)
    await sessions.append_event(session, said("x", custom_metadata={"state": state}))
    assert session.state == state
    assert await sessions.get_session(**IDS) == session


async def test_what_others_wrote_is_refused(make: Make) -> None:
    sessions = make()
    await sessions.create_session(**IDS)
    service = sessions._service
    await service.append_event(SessionKey("app", "user", "sid"), StoredEvent("user", "plain text"))
    with pytest.raises(CorruptData, match="not written by AdkSessionService"):
        await sessions.get_session(**IDS)
    with pytest.raises(CorruptData, match="sid"):
        await sessions.list_sessions(**OWNER)


def test_only_services_for_asyncio_will_do() -> None:
    service: Any = sessionstore.sync.InMemorySessionService()
    with service, pytest.raises(InvalidArgument, match=r"sessionstore\.sync"):
        AdkSessionService(service)
    with pytest.raises(InvalidArgument, match="str"):
        AdkSessionService("redis://")  # type: ignore[arg-type]  # wrong on purpose


# -- beside ADK's own --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
async def test_it_answers_as_adks_own_service(sessions: AdkSessionService, seed: int) -> None:
    print("seed", seed)
    dice = random.Random(seed)
    own = InMemorySessionService()
    handles: dict[str, tuple[Session, Session]] = {}
    stamp = 1_700_000_000.0

    def same(ours: Session | None, theirs: Session | None) -> None:
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            if not theirs.events:  # the time of its creation, which is each service's own
                ours = ours.model_copy(update={"last_update_time": theirs.last_update_time})
            assert ours.model_dump() == theirs.model_dump()

    for _ in range(150):
        name = dice.choice("abc")
        user = {"app_name": "app", "user_id": dice.choice(["u1", "u2"])}
        ids = {**user, "session_id": name}
        slot = "/".join(ids.values())
        key = dice.choice(["", "user:", "app:", "temp:"]) + dice.choice("xyz")
        state = {key: dice.choice([1, None, "s", [1, {"a": 1.5}], {"$": "x"}])}
        action = dice.choice(["create", "append", "append", "append", "get", "list", "delete"])
        if action == "create":
            outcomes = await asyncio.gather(
                sessions.create_session(**ids, state=state),
                own.create_session(**ids, state=state),
                return_exceptions=True,
            )
            assert type(outcomes[0]) is type(outcomes[1])
            if isinstance(outcomes[0], Session) and isinstance(outcomes[1], Session):
                same(outcomes[0], outcomes[1])
                handles[slot] = outcomes[0], outcomes[1]
        elif action == "append" and slot in handles:
            stamp += dice.choice([0, 0.000_001, 1, 60])
            partial = dice.random() < 0.1
            actions = EventActions(state_delta=state)
            event = said(str(stamp), timestamp=stamp, partial=partial, actions=actions)
            # One after the other: a service may take temporary state out of the event.
            for service, handle in zip((sessions, own), handles[slot], strict=True):
                await service.append_event(handle, event.model_copy(deep=True))
            same(*handles[slot])
        elif action == "get":
            config = GetSessionConfig(
                num_recent_events=dice.choice([None, 0, 1, 3]),
                after_timestamp=dice.choice([None, None, stamp - 60, stamp, stamp + 1]),
            )
            ours = await sessions.get_session(**ids, config=config)
            theirs = await own.get_session(**ids, config=config)
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                assert ours.events == theirs.events
                assert ours.state == theirs.state
                if slot in handles and handles[slot][0].events:
                    assert ours.last_update_time == theirs.last_update_time
        elif action == "list":
            listed = [(await service.list_sessions(**user)).sessions for service in (sessions, own)]
            app_name = user["app_name"]
            listed += [
                (await service.list_sessions(app_name=app_name)).sessions
                for service in (sessions, own)
            ]
            states = [
                {(session.user_id, session.id): session.state for session in found}
                for found in listed
            ]
            assert states[0] == states[1]
            assert states[2] == states[3]
            assert await sessions.get_user_state(**user) == await own.get_user_state(**user)
        elif action == "delete":
            for service in (sessions, own):
                await service.delete_session(**ids)
            handles.pop(slot, None)


class Streaming(BaseLlm):
    """Says a fragment, then the whole."""

    model: str = "streaming"

    async def generate_content_async(
        self,
        llm_request: Any,
        stream: bool = False,
    ) -> Any:
        del stream
        number = sum(1 for content in llm_request.contents if content.role == "user")
        for text, partial in ((f"answer {number}"[:3], True), (f"answer {number}", False)):
            content = types.Content(role="model", parts=[types.Part(text=text)])
            yield LlmResponse(content=content, partial=partial)


async def test_a_runner_streams_and_rewinds(sessions: AdkSessionService) -> None:
    agent = LlmAgent(name="agent", model=Streaming(), output_key="last")
    runner = Runner(app_name="app", agent=agent, session_service=sessions)
    await sessions.create_session(**IDS)
    runs = []
    for text in ("one", "two"):
        message = types.Content(role="user", parts=[types.Part(text=text)])
        events = [
            event
            async for event in runner.run_async(
                user_id="user",
                session_id="sid",
                new_message=message,
                run_config=RunConfig.model_validate({"streaming_mode": "sse"}),
            )
        ]
        assert [event.partial for event in events] == [True, False]
        runs.append(events[0].invocation_id)
    session = await sessions.get_session(**IDS)
    assert texts(session) == ["one", "answer 1", "two", "answer 2"]
    assert session is not None
    assert session.state == {"last": "answer 2"}
    await runner.rewind_async(user_id="user", session_id="sid", rewind_before_invocation_id=runs[1])
    session = await sessions.get_session(**IDS)
    assert session is not None
    assert session.state == {"last": "answer 1"}
    assert session.events[-1].actions.rewind_before_invocation_id == runs[1]
    await runner.close()


@pytest.mark.without_ttl
async def test_the_example_runs(place: Server | None) -> None:
    arguments = [place.url] if place else []
    printed = await asyncio.to_thread(run_example, "adk_example.py", *arguments)
    assert printed.splitlines() == [
        "assistant: In the cart: two blue mugs.",
        "assistant: In the cart: two blue mugs, a teapot.",
        "8 events, {'cart': ['two blue mugs', 'a teapot'], 'user:last_item': 'a teapot'}",
    ]


def test_without_its_extra_the_adapter_names_it() -> None:
    code = (
        "import sys; sys.modules['google.adk'] = None\n"
        "try: import sessionstore.adapters.adk\n"
        "except ImportError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "pip install 'sessionstore[adk]'" in result.stdout
