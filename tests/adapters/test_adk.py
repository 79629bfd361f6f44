"""AdkSessionService does what ADK's own session services do, in memory and on every server."""

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
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from adapters_support import OLD, needs, outputs, run_example, write_golden
from support.servers import Server
from support.services import WITH_TTL

import sessionstore.sync
from sessionstore import CorruptData, InvalidArgument, SessionKey
from sessionstore import Event as StoredEvent

needs("google.adk", "adk")
with warnings.catch_warnings(action="ignore"):  # of the framework
    from google.adk.agents import LlmAgent, RunConfig
    from google.adk.errors import StaleSessionError
    from google.adk.errors.already_exists_error import AlreadyExistsError
    from google.adk.errors.session_not_found_error import SessionNotFoundError
    from google.adk.events.event import Event
    from google.adk.events.event_actions import EventActions
    from google.adk.models.base_llm import BaseLlm
    from google.adk.models.llm_response import LlmResponse
    from google.adk.runners import Runner
    from google.adk.sessions import DatabaseSessionService, InMemorySessionService
    from google.adk.sessions.base_session_service import GetSessionConfig
    from google.adk.sessions.session import Session
    from google.adk.tools.tool_confirmation import ToolConfirmation
    from google.genai import types

    from sessionstore.adapters.adk import AdkSessionService

OWNER: dict[str, Any] = {"app_name": "app", "user_id": "user"}
IDS: dict[str, Any] = {**OWNER, "session_id": "sid"}

Make = Callable[..., AdkSessionService]

pytestmark = pytest.mark.filterwarnings("ignore:.EXPERIMENTAL:UserWarning")  # older ADK says so


@pytest.fixture
async def make(place: Server | None) -> AsyncIterator[Make]:
    """Makes adapters, each with a service of its own; in memory they share the first one's."""
    shared: list[sessionstore.SessionService] = []
    async with AsyncExitStack() as stack:

        def make(*, reject_stale: bool = False, **options: Any) -> AdkSessionService:
            options = {**WITH_TTL, **options}
            service: sessionstore.SessionService
            if place is not None:
                service = sessionstore.RedisSessionService(place.url, **options)
            elif shared:
                service = shared[0]
            else:
                service = sessionstore.InMemorySessionService(**options)
            shared.append(service)
            adapter = AdkSessionService(service, reject_stale=reject_stale)
            stack.push_async_callback(service.aclose)
            return adapter

        yield make


@pytest.fixture
def sessions(make: Make) -> AdkSessionService:
    """An adapter with default options but for a TTL in every tier."""
    return make()


def said(text: str, **fields: Any) -> Event:
    """A user's event."""
    content = types.Content(role="user", parts=[types.Part(text=text)])
    return Event(author="user", invocation_id="run", content=content, **fields)


def changed(**delta: Any) -> Event:
    """An event with a state delta; `__` in a key stands for its colon."""
    delta = {key.replace("__", ":"): value for key, value in delta.items()}
    return Event(author="agent", actions=EventActions(state_delta=delta))


def texts(session: Session | None) -> list[str | None]:
    """What the events of a session say."""
    assert session is not None
    found = []
    for event in session.events:
        assert event.content is not None
        assert event.content.parts is not None
        found.append(event.content.parts[0].text)
    return found


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
    monkeypatch.setattr("sessionstore.adapters.flows.SESSIONS_PER_PAGE_LIMIT", 3)
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


# -- events ------------------------------------------------------------------------------------


async def test_a_complete_event_is_read_as_it_was(sessions: AdkSessionService) -> None:
    session = await sessions.create_session(**IDS)
    event = Event(
        author="agent",
        invocation_id="run",
        branch="root.agent",
        content=types.Content(
            role="model",
            parts=[
                types.Part.from_bytes(data=b"\x89PNG\xff\x00", mime_type="image/png"),
                types.Part(text="thinking", thought=True, thought_signature=b"\xfe\x01"),
                types.Part(function_call=types.FunctionCall(id="1", name="f", args={"n": 1.5})),
                types.Part(
                    function_response=types.FunctionResponse(
                        id="1", name="f", response={"nothing": None, "empty": {}, "big": 1 << 80}
                    )
                ),
            ],
        ),
        turn_complete=True,
        partial=False,
        error_code="code",
        error_message="message",
        interrupted=True,
        finish_reason=types.FinishReason.MAX_TOKENS,
        grounding_metadata=types.GroundingMetadata(
            web_search_queries=["q"],
            search_entry_point=types.SearchEntryPoint(sdk_blob=b"\xff\xfe"),
        ),
        usage_metadata=types.GenerateContentResponseUsageMetadata(prompt_token_count=1),
        citation_metadata=types.CitationMetadata(),
        custom_metadata={"key": ["value"]},
        input_transcription=types.Transcription(text="in", finished=True),
        long_running_tool_ids={"b", "a"},
        avg_logprobs=-0.25,
        timestamp=1_700_000_000.123_456_7,
        actions=EventActions(
            artifact_delta={"file": 3},
            transfer_to_agent="other",
            escalate=True,
            skip_summarization=True,
            requested_tool_confirmations={"c": ToolConfirmation(hint="?", payload={"id": 1})},
            agent_state={"step": 1},
            state_delta={"a": None, "user:b": "x"},
        ),
    )
    await sessions.append_event(session, event)
    found = await sessions.get_session(**IDS)
    assert found == session
    assert found.events == [event]
    assert session.last_update_time == 1_700_000_000.123_456_7


def heard(*parts: Any, **fields: Any) -> Event:
    """An agent's event."""
    return Event(author="agent", content=types.Content(role="model", parts=[*parts]), **fields)


COMMON = [
    heard(types.Part(text="Hello")),
    heard(types.Part(text="?", thought=True), types.Part(text="!", thought_signature=b"\xfb\xff")),
    heard(
        types.Part(
            function_call=types.FunctionCall(id="1", name="f", args={"a": [1, {"b": None}]})
        ),
        long_running_tool_ids={"2", "1"},
        branch="root.agent",
    ),
    heard(
        types.Part(
            function_response=types.FunctionResponse(id="1", name="f", response={"rows": [1.5]})
        )
    ),
    heard(
        types.Part(text="Paid for"),
        model_version="model",
        finish_reason=types.FinishReason.STOP,
        avg_logprobs=-0.5,
        usage_metadata=types.GenerateContentResponseUsageMetadata(
            prompt_token_count=3,
            prompt_tokens_details=[
                types.ModalityTokenCount(modality=types.MediaModality.TEXT, token_count=3)
            ],
        ),
    ),
    heard(types.Part(inline_data=types.Blob(data=b"\x89PNG\xff", mime_type="image/png"))),
    Event(
        author="agent",
        grounding_metadata=types.GroundingMetadata(
            web_search_queries=["q"],
            grounding_chunks=[types.GroundingChunk(web=types.GroundingChunkWeb(uri="u"))],
        ),
    ),
    Event(author="agent", actions=EventActions(artifact_delta={"f": 1}, escalate=True)),
    heard(types.Part(text="State"), actions=EventActions(state_delta={"a": {"b": [1]}})),
    Event(author="agent", output={"x": [1]}, custom_metadata={"y": {}}),
]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_common_events_are_stored_as_adks_json(make: Make, codec: str) -> None:
    sessions = make(codec=codec)
    session = await sessions.create_session(**IDS)
    for _ in range(2):
        for event in COMMON:
            again = event.model_copy(deep=True, update={"id": f"{event.id}/{len(session.events)}"})
            await sessions.append_event(session, again)
    found = await sessions.get_session(**IDS)
    assert found == session
    stored = await sessions._service.get_events(SessionKey(**OWNER, session_id="sid"))
    for kept, event in zip(stored.events, session.events, strict=True):
        read = Event.model_validate_json(msgspec.json.encode(kept.content))
        read.actions.state_delta = event.actions.state_delta
        assert read == event
        assert "patches" not in kept.metadata


async def test_events_that_were_stored_as_text_are_read(sessions: AdkSessionService) -> None:
    session = await sessions.create_session(**IDS)
    events = [heard(types.Part(text="x", thought_signature=b"\xff")), changed(a=1)]
    for event in events:
        delta = event.actions.state_delta
        exclude = {"actions": {"state_delta"}} if delta else None
        text = event.model_dump_json(exclude_none=True, exclude=exclude)
        await sessions._service.append_event(
            SessionKey(**OWNER, session_id=session.id),
            StoredEvent("agent", text, event.id, state_delta=delta),
        )
    found = await sessions.get_session(**IDS)
    assert found is not None
    assert found.events == events
    assert found.last_update_time == events[-1].timestamp


def test_bytes_depend_on_the_event_alone() -> None:
    """The program encodes the same events in 20 orders and prints what all of them gave."""
    [printed] = outputs("bytes_of_adk.py", "adk")
    events = [msgspec.json.decode(line) for line in printed.splitlines()]
    words = sorted(f"word {number}" for number in range(40))
    assert events[3]["content"]["long_running_tool_ids"] == words
    assert (
        events[2]["content"]["content"]["parts"][0]["function_response"]["response"]["all"] == words
    )
    assert events[6]["state_delta"]["tags"] == words


async def test_what_release_0_1_0_stored_is_read(sessions: AdkSessionService) -> None:
    await write_golden(sessions._service, "adk", IDS)
    found = await sessions.get_session(**IDS)
    assert found is not None
    assert found.state == {"odd": OLD, "a": b"\xff", "user:b": (1,)}
    text, call, delta, output = found.events
    assert text.content is not None
    assert text.content.parts == [types.Part(text="Hello", thought_signature=b"\xff")]
    assert call.get_function_calls()[0].args == {"at": OLD["at"]}
    assert call.long_running_tool_ids == {"a"}
    assert delta.actions.state_delta == {"a": b"\xff", "user:b": (1,)}
    assert output.output == (1, 2)
    assert output.custom_metadata == {"deep": [{"blob": b"\x80"}]}
    assert [event.timestamp for event in found.events] == [1.7e9 + n for n in range(1, 5)]
    await sessions.append_event(found, said("more"))
    assert await sessions.get_session(**IDS) == found


async def test_an_event_without_an_id_is_refused(sessions: AdkSessionService) -> None:
    session = await sessions.create_session(**IDS)
    event = heard(types.Part(text="x"))
    await sessions.append_event(session, event)
    nameless = event.model_copy(update={"id": ""})
    with pytest.raises(InvalidArgument, match=r"^event\.id"):
        await sessions.append_event(session, nameless)
    assert (await sessions.get_session(**IDS)) == session


# What ADK's DatabaseSessionService makes of values that are not JSON.
NOT_JSON: dict[str, Any] = {
    "naive": datetime(2024, 5, 15, 12, 0, 0, 5),
    "aware": datetime(2024, 5, 15, 12, 0, 0, 5, tzinfo=UTC),
    "date": date(2024, 5, 15),
    "span": timedelta(days=-1, microseconds=3),
    "tuple": (1, [(2, "x")]),
    "decimal": Decimal("1.10"),
    "uuid": UUID(int=7),
    "keys": {1: "int", None: "none"},
    "big": 1 << 90,
    "$": {"$": "bytes", "value": "no"},
    "plain": [1, "two", None, True, {"x": 1.5}],
}


class Opaque:
    """Nothing serializes this."""

    def __repr__(self) -> str:
        return "an opaque thing"


@pytest.mark.parametrize("extra", [{}, {"object": Opaque()}, {"function": [print, 1]}], ids=str)
async def test_state_is_converted_as_adks_database_service_converts_it(
    sessions: AdkSessionService, extra: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("aiosqlite")
    state = {**NOT_JSON, **extra, "user:kept": (1,), "app:kept": extra}
    only_state = {"text": b"text", "model": types.Part(text="x")}  # in events they differ
    stamp, states = time.time(), []
    async with DatabaseSessionService(f"sqlite+aiosqlite:///{tmp_path}/adk.db") as own:
        for service in (sessions, own):
            created = await service.create_session(**IDS, state={**state, **only_state})
            actions = EventActions(state_delta=dict(state))
            event = Event(author="agent", id="event", timestamp=stamp, actions=actions)
            await service.append_event(created, event)
            found = await service.get_session(**IDS)
            assert found is not None
            states.append((found.state, found.events[0].model_dump()))
    assert states[0] == states[1]
    assert states[0][0]["tuple"] == [1, [[2, "x"]]]


async def test_a_state_value_that_is_not_json_is_warned_about(
    sessions: AdkSessionService, caplog: pytest.LogCaptureFixture
) -> None:
    session = await sessions.create_session(**IDS, state={"a": Opaque()})
    assert session.state == {"a": "an opaque thing"}
    await sessions.append_event(session, changed(b=[Opaque()], c=b"\xff", d=math.nan, e="\ud800!"))
    found = await sessions.get_session(**IDS)
    assert found is not None
    assert found.state["b"] == ["an opaque thing"]
    assert found.state["c"] == "_w=="
    assert found.state["d"] is None
    assert found.state["e"] == "\ufffd!"
    warned = [record.getMessage() for record in caplog.records if record.name == "sessionstore"]
    assert len(warned) == 4
    assert all("is not JSON" in message and "opaque" not in message for message in warned)


async def test_events_are_converted_as_adk_writes_them(sessions: AdkSessionService) -> None:
    session = await sessions.create_session(**IDS)
    await sessions.append_event(session, said("half \ud83d of a pair"))
    event = Event(
        author="agent",
        output=(1, {2}),
        custom_metadata={"bytes": b"\xff", "nan": math.nan},
        avg_logprobs=-math.inf,
        actions=EventActions(agent_state={"f": [Opaque()]}),
    )
    await sessions.append_event(session, event)
    found = await sessions.get_session(**IDS)
    assert found is not None
    assert found.events[0].message.parts[0].text == "half \ufffd of a pair"
    assert found.events[1].output == [1, [2]]
    assert found.events[1].custom_metadata == {"bytes": "_w==", "nan": None}
    assert found.events[1].avg_logprobs is None
    assert found.events[1].actions.agent_state == {"f": ["an opaque thing"]}


async def test_an_inline_image_of_two_megabytes_is_stored(sessions: AdkSessionService) -> None:
    session = await sessions.create_session(**IDS)
    part = types.Part.from_bytes(data=random.Random(1).randbytes(2 << 20), mime_type="image/png")
    await sessions.append_event(session, heard(part))
    assert await sessions.get_session(**IDS) == session


@dataclass
class Counted:
    """Something of the caller's, which is not for us to make."""

    x: the_x_of_it = 1  # type: ignore[name-defined]  # noqa: F821  # legal for dataclasses
    made = 0

    def __post_init__(self) -> None:
        type(self).made += 1


@dataclass
class Number:
    """Compared, and so not hashable."""

    x: int


class Numbers(Number, Enum):
    """Members that are not hashable either."""

    ONE = 1


async def test_what_is_odd_is_stored_as_adk_writes_it(
    sessions: AdkSessionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counted, "made", 0)
    session = await sessions.create_session(**IDS)
    for output in (Counted(), Numbers.ONE):
        await sessions.append_event(session, Event(author="agent", output=output))
    assert Counted.made == 1
    found = await sessions.get_session(**IDS)
    assert found is not None
    assert [event.output for event in found.events] == [{"x": 1}, {"x": 1}]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        (
            {"custom_metadata": {"a": [Opaque()]}},
            r"event\.custom_metadata\['a'\]\[0\] cannot be serialized by",
        ),
        ({"output": print}, r"event\.output cannot be serialized by google-adk \(Pydantic"),
        ({"timestamp": math.nan}, r"event\.timestamp"),
        ({"timestamp": math.inf}, r"event\.timestamp"),
    ],
)
async def test_what_adk_cannot_serialize_is_refused_with_its_field(
    sessions: AdkSessionService, fields: dict[str, Any], path: str
) -> None:
    session = await sessions.create_session(**IDS)
    event = Event(author="agent", **fields)
    event.actions.state_delta["temp:x"] = 1
    with pytest.raises(InvalidArgument, match=path):
        await sessions.append_event(session, event)
    assert await sessions.get_session(**IDS) == session
    assert "temp:x" in event.actions.state_delta
    assert session.state == {}


async def test_values_of_the_wrong_type_or_depth_are_refused(sessions: AdkSessionService) -> None:
    session = await sessions.create_session(**IDS)
    event: Any = said("x")
    event.timestamp = datetime.now(UTC)
    with pytest.raises(InvalidArgument, match=r"event\.timestamp"):
        await sessions.append_event(session, event)
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    for value in (deep, {"itself": deep}):
        with pytest.raises(InvalidArgument, match="event"):
            await sessions.append_event(session, Event(author="x", output=value))
    deep.append(deep)
    with pytest.raises(InvalidArgument, match=r"event\.custom_metadata"):
        await sessions.append_event(session, Event(author="x", custom_metadata={"a": deep}))
    with pytest.raises(InvalidArgument, match=r"state\['deep'\]"):
        await sessions.create_session(**OWNER, state={"deep": deep})
    assert await sessions.get_session(**IDS) == session


async def test_an_event_on_the_edge_of_depth_is_stored_or_refused(
    sessions: AdkSessionService,
) -> None:
    session = await sessions.create_session(**IDS)
    value: Any = 1
    for _ in range(220):
        value = [value]
        event = Event(author="x", output=value)
        try:
            await sessions.append_event(session, event)
        except InvalidArgument:
            continue
    found = await sessions.get_session(**IDS)
    assert found == session
    assert len(session.events) > 150


async def test_partial_events_are_not_stored(sessions: AdkSessionService) -> None:
    session = await sessions.create_session(**IDS)
    event = said("fragment", partial=True, actions=EventActions(state_delta={"a": 1, "temp:b": 1}))
    assert await sessions.append_event(session, event) is event
    assert session.events == []
    assert session.state == {}
    assert await sessions.get_session(**IDS) == session


async def test_the_last_update_is_the_last_events(sessions: AdkSessionService) -> None:
    session = await sessions.create_session(**IDS)
    stamp = session.last_update_time + 10
    await sessions.append_event(session, said("x", timestamp=stamp))
    assert session.last_update_time == stamp
    for config in (None, GetSessionConfig(num_recent_events=0)):
        found = await sessions.get_session(**IDS, config=config)
        assert found is not None
        assert found.last_update_time == stamp
    found = await sessions.get_session(**IDS, config=GetSessionConfig(after_timestamp=stamp * 2))
    assert found is not None
    assert found.events == []
    assert found.last_update_time == stamp


async def test_filters_of_a_read(sessions: AdkSessionService) -> None:
    session = await sessions.create_session(**IDS)
    for number in range(1, 6):
        await sessions.append_event(session, said(str(number), timestamp=number))

    async def read(**config: Any) -> list[str | None]:
        return texts(await sessions.get_session(**IDS, config=GetSessionConfig(**config)))

    assert await read() == ["1", "2", "3", "4", "5"]
    assert await read(num_recent_events=0) == []
    assert await read(num_recent_events=3) == ["3", "4", "5"]
    assert await read(num_recent_events=9) == ["1", "2", "3", "4", "5"]
    assert await read(after_timestamp=4.0) == ["4", "5"]
    assert await read(after_timestamp=4.5) == ["5"]
    assert await read(after_timestamp=50) == []
    assert await read(after_timestamp=0) == ["1", "2", "3", "4", "5"]
    assert await read(after_timestamp=math.inf) == []
    assert await read(after_timestamp=4.0, num_recent_events=3) == ["4", "5"]
    assert await read(after_timestamp=2.0, num_recent_events=1) == ["5"]


async def test_a_filter_by_time_goes_by_the_timestamp_of_the_event(
    sessions: AdkSessionService,
) -> None:
    # A clock that is ahead of the store's, and an event that arrives late.
    session = await sessions.create_session(**IDS)
    now = time.time()
    for number, stamp in enumerate((now + 3600, now + 7200, now - 5, now + 7201)):
        await sessions.append_event(session, said(str(number), timestamp=stamp))
    config = GetSessionConfig(after_timestamp=now + 7200)
    assert texts(await sessions.get_session(**IDS, config=config)) == ["1", "3"]


async def test_timestamps_beyond_the_calendar(sessions: AdkSessionService) -> None:
    session = await sessions.create_session(**IDS)
    for stamp in (-1e15, -1.0, 0.0, 1e15):
        await sessions.append_event(session, said("x", timestamp=stamp))
    found = await sessions.get_session(**IDS)
    assert found == session
    assert [event.timestamp for event in found.events] == [-1e15, -1.0, 0.0, 1e15]


async def test_an_unknown_session_takes_no_events(sessions: AdkSessionService) -> None:
    ghost = Session(id="never", app_name="app", user_id="user")
    with pytest.raises(SessionNotFoundError, match="never"):
        await sessions.append_event(ghost, changed(a=1, user__b=1))
    assert ghost.events == []
    assert ghost.state == {}
    assert await sessions.get_user_state(**OWNER) == {}


async def test_an_event_that_is_sent_again_is_stored_once(make: Make) -> None:
    sessions = make()
    session = await sessions.create_session(**IDS)
    event = changed(a=1)
    for _ in range(2):
        assert await sessions.append_event(session, event) is event
    assert session.events == [event]
    # As after an outcome that is unknown: stored, and not in the caller's Session.
    copy = await sessions.get_session(**IDS)
    assert copy is not None
    late = changed(a=2, temp__t=1)
    await sessions.append_event(copy, late.model_copy(deep=True))
    await sessions.append_event(copy, changed(a=3))
    await sessions.append_event(session, late)
    assert session.state.pop("temp:t") == 1
    assert session.events[1] is late
    found = await sessions.get_session(**IDS)
    assert found == session
    assert [other.id for other in found.events[:2]] == [event.id, late.id]
    assert found.state == {"a": 3}
    assert len(found.events) == 3


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
    sessions = make(reject_stale=True)
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
