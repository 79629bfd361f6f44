"""How AdkSessionService stores events and reads them back, in memory and on every server."""

from __future__ import annotations

import math
import random
import time
import warnings
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from adapters_support import OLD, needs, outputs, write_golden

from sessionstore import Event as StoredEvent
from sessionstore import InvalidArgument, SessionKey

needs("google.adk", "adk")
with warnings.catch_warnings(action="ignore"):  # of the framework
    from adk_support import IDS, OWNER, Make, changed, said
    from adk_support import make as make
    from adk_support import sessions as sessions
    from google.adk.errors.session_not_found_error import SessionNotFoundError
    from google.adk.events.event import Event
    from google.adk.events.event_actions import EventActions
    from google.adk.sessions import DatabaseSessionService
    from google.adk.sessions.session import Session
    from google.adk.tools.tool_confirmation import ToolConfirmation
    from google.genai import types

    from sessionstore.adapters.adk import AdkSessionService


pytestmark = pytest.mark.filterwarnings("ignore:.EXPERIMENTAL:UserWarning")  # older ADK says so


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


async def test_unusual_values_are_stored_as_adk_writes_them(
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
