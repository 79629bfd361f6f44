"""Pydantic AI: agents that remember, every kind of message, fidelity, recordings, refusals."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from adapters_support import Backend, needs, opened, recordings, run_example

import sessionstore
import sessionstore.sync
from sessionstore import CorruptData, Event, InvalidArgument, LimitExceeded, SessionKey

pydantic_ai: Any = needs("pydantic_ai", "pydantic-ai")
messages: Any = needs("pydantic_ai.messages", "pydantic-ai")
models: Any = needs("pydantic_ai.models.test", "pydantic-ai")
usage: Any = needs("pydantic_ai.usage", "pydantic-ai")
adapter: Any = needs("sessionstore.adapters.pydantic_ai", "pydantic-ai")

INSTANT = datetime(2024, 5, 15, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=-4)))


def every_message() -> list[Any]:
    """Requests and responses with parts of every kind, everything filled in."""
    m = messages
    image = m.BinaryContent(b"\xff\x00", media_type="image/png")
    if hasattr(m, "BinaryImage"):  # not in the earliest versions
        image = m.BinaryContent.narrow_type(image)
    user = [
        "What is this? \u2615 \U0001f600",
        image,
        m.BinaryContent(b"\x00%PDF", media_type="application/pdf"),
        m.ImageUrl("https://example.com/a.png", vendor_metadata={"detail": "high"}),
        m.DocumentUrl("https://example.com/a.pdf"),
        m.AudioUrl("https://example.com/a.mp3"),
        m.VideoUrl("https://example.com/a.mp4"),
    ]
    request = m.ModelRequest(
        parts=[
            m.SystemPromptPart("Be brief.", timestamp=INSTANT, dynamic_ref="ref"),
            m.UserPromptPart("Hi", timestamp=INSTANT),
            m.UserPromptPart(user, timestamp=INSTANT),
        ],
        instructions="Answer.",
    )
    response = m.ModelResponse(
        parts=[
            m.ThinkingPart("hm", id="t", signature="x", provider_name="test"),
            m.TextPart("Let me see.", id="1"),
            m.ToolCallPart("look", {"at": ["a", 1, None]}, "call_1"),
            m.ToolCallPart("look", '{"at": "b"}', "call_2"),
            m.FilePart(image),
        ],
        usage=usage.RequestUsage(input_tokens=3, output_tokens=5, details={"reasoning": 1}),
        model_name="m",
        timestamp=INSTANT,
        provider_details={"logprobs": [-0.5]},
        finish_reason="tool_call",
    )
    results = m.ModelRequest(
        parts=[
            m.ToolReturnPart("look", {"found": [1, 2.5]}, "call_1", metadata={"n": 1}),
            m.ToolReturnPart("look", "No.", "call_2", timestamp=INSTANT),
        ]
    )
    return [request, response, results, m.ModelResponse(parts=[m.TextPart("Done.")])]


def said(text: str) -> Any:
    return messages.ModelRequest(parts=[messages.UserPromptPart(text)])


def returned(content: Any) -> Any:
    return messages.ModelRequest(parts=[messages.ToolReturnPart("look", content, "call_1")])


def used(call_id: str) -> Any:
    return messages.ModelResponse(parts=[messages.ToolCallPart("look", {"at": 1}, call_id)])


def as_persisted(written: list[Any]) -> list[Any]:
    """Messages as Pydantic AI's own persistence gives them back."""
    kind = messages.ModelMessagesTypeAdapter
    found: list[Any] = kind.validate_json(kind.dump_json(written))
    return found


def stored(service: Any, session_id: str = "one", user_id: str = "ann", **options: Any) -> Any:
    return adapter.StoredMessageHistory(
        session_id, service, app_name="shop", user_id=user_id, **options
    )


async def call(service: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    result = getattr(service, name)(*args, **kwargs)
    return await result if isinstance(result, Awaitable) else result


@pytest.fixture
async def service(backend: Backend) -> AsyncIterator[Any]:
    async with opened(backend) as service:
        yield service


# -- agents ----------------------------------------------------------------------------------------


async def test_an_agent_remembers(service: Any) -> None:
    agent = pydantic_ai.Agent(models.TestModel(), tools=[_look])
    expected: list[Any] = []
    for question in ("one", "two", "three"):
        history = stored(service)
        result = await agent.run(question, message_history=await history.load())
        await history.store(result.new_messages())
        expected += as_persisted(result.new_messages())
        assert await stored(service).load() == expected == as_persisted(result.all_messages())
    assert len(expected) == 8
    assert [type(message) for message in await stored(service).load()] == [
        type(message) for message in expected
    ]


def _look(at: str) -> dict[str, Any]:
    """Look."""
    return {"at": at, "when": INSTANT, "raw": b"ok", "of": (1, 2)}


async def test_streamed_runs(service: Any) -> None:
    agent = pydantic_ai.Agent(models.TestModel())
    async with agent.run_stream("Hi") as result:
        await result.get_output()
    await stored(service).store(result.new_messages())
    assert await stored(service).load() == result.all_messages()


def test_runs_without_await() -> None:
    history = stored(sessionstore.sync.InMemorySessionService())
    written = [said("Hi"), used("call_1"), returned({"found": [1, 2.5]}), *every_message()[-1:]]
    history.store_sync(written)
    assert history.load_sync() == written
    assert history.load_sync(1) == written  # the newest turn is whole
    history.clear_sync()
    assert history.load_sync() == []


# -- messages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_every_message_comes_back_equal(backend: Backend, codec: str) -> None:
    written = every_message()
    async with opened(backend, codec=codec) as service:
        await stored(service).store(written[:1])
        await stored(service).store([])
        await stored(service).store(written[1:])
        found = await stored(service).load()
    assert found == as_persisted(written)
    assert [type(message) for message in found] == [type(message) for message in written]


async def test_a_message_is_stored_as_pydantic_ai_reads_it(service: Any) -> None:
    await stored(service).store(every_message())
    [session] = await call(service, "list_sessions", app_name="shop", user_id="ann", event_num=9)
    assert [event.author for event in session.events] == ["request", "response"] * 2
    assert (
        messages.ModelMessagesTypeAdapter.validate_json(
            msgspec.json.encode([event.content for event in session.events])
        )
        == await stored(service).load()
    )


@pytest.mark.parametrize(
    "change",
    [
        {"parts": [messages.TextPart(5)]},
        {"finish_reason": "whatever"},
        {"timestamp": "yesterday"},
    ],
    ids=repr,
)
async def test_what_would_not_be_read_back_is_refused(service: Any, change: dict[str, Any]) -> None:
    filled = {"finish_reason": "stop", "model_name": "m"}
    known = messages.ModelResponse(parts=[messages.TextPart("x")], **filled)
    await stored(service).store([known])
    odd = dataclasses.replace(known, **change)
    with pytest.raises(InvalidArgument, match=r"^messages\[1\] "):
        await stored(service).store([known, odd])
    assert await stored(service).load() == [known]


@pytest.mark.parametrize(
    "part",
    [
        messages.BinaryContent(b"x", media_type="audio/wav", identifier="mine"),
        messages.BinaryImage(b"x", media_type="image/png", identifier="mine"),
        messages.ImageUrl("https://a.example/b.png", media_type="image/jpeg", identifier="mine"),
        messages.BinaryContent(b"x", media_type="audio/wav"),
        messages.ImageUrl("https://a.example/b.png"),
    ],
    ids=repr,
)
async def test_what_equality_does_not_look_at_comes_back_too(service: Any, part: Any) -> None:
    asked = messages.ModelRequest(parts=[messages.UserPromptPart([part])])
    written = [asked, used("call_1"), returned(part)]
    await stored(service).store(written)
    expected = as_persisted(written)
    found = await stored(service).load()
    assert found == expected
    for first, _, last in (found, expected):
        asked_with = first.parts[0].content[0]
        assert (asked_with.identifier, asked_with.media_type) == (part.identifier, part.media_type)
        if isinstance(last.parts[0].content, type(part)):  # a dict in the earliest versions
            assert last.parts[0].content.identifier == part.identifier


@pytest.mark.skipif(not hasattr(messages, "Citation"), reason="this Pydantic AI has no citations")
async def test_citations_that_would_not_be_read_back_are_refused(service: Any) -> None:
    def cited() -> Any:
        source = messages.DocumentCitationSource(title="x")
        anchor = messages.ContentCitationAnchor(start=0, end=2)
        part = messages.TextPart("abc", citations=[messages.Citation([source], anchor=anchor)])
        return messages.ModelResponse(parts=[part])

    known, changed, emptied = cited(), cited(), cited()
    await stored(service).store([known])
    changed.parts[0].citations[0].anchor.end = 0
    emptied.parts[0].citations[0].sources.clear()
    for message in (changed, emptied):
        with pytest.raises(InvalidArgument, match=r"^messages\[0\] would not be read back"):
            await stored(service).store([message])
    assert await stored(service).load() == [known]


@dataclasses.dataclass
class Found:
    """What a tool may return."""

    rows: list[int]
    raw: bytes = b"\xff"


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\x00",
        {"raw": b"\xff", "at": INSTANT, "of": (1, 2), "only": {3}},
        INSTANT,
        timedelta(seconds=1),
        {1: "a"},
        float("nan"),
        [float("inf"), 1 << 200, -0.0, 1e300],
        {"n": 1 << 200},
        {"$": "bytes"},
        Found([1], b"ok"),
        {"found": Found([1], b"ok"), "raw": b"\xff"},
        messages.BinaryContent(b"\xff", media_type="image/png"),
        [messages.BinaryContent(b"\xff", media_type="image/png"), b"\xff"],
        "\x00\u2028\U0001f600",
        {"a": [], "": {}},
    ],
    ids=repr,
)
@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_what_a_tool_returned_comes_back_as_from_pydantic_ais_own_persistence(
    backend: Backend, codec: str, content: Any
) -> None:
    written = [said("Hi"), used("call_1"), returned(content), said("again")]
    async with opened(backend, codec=codec) as service:
        await stored(service).store(written)
        found = await stored(service).load()
    expected = as_persisted(written)
    assert found == expected
    assert repr(found[2].parts[0].content) == repr(expected[2].parts[0].content)


# -- turns -----------------------------------------------------------------------------------------


def turn(number: int) -> list[Any]:
    """A prompt, a call, its result, an answer."""
    call = f"call_{number}"
    result = messages.ModelRequest(parts=[messages.ToolReturnPart("look", number, call)])
    answer = messages.ModelResponse(parts=[messages.TextPart(str(number))])
    if hasattr(answer, "run_id"):  # not in the earliest versions
        answer.run_id = str(number)
    return [said(str(number)), used(call), result, answer]


@pytest.mark.parametrize(
    ("limit", "first_turn"),
    [(1, 4), (3, 4), (4, 4), (5, 4), (7, 4), (8, 3), (19, 1), (20, 0), (99, 0), (None, 0)],
)
async def test_what_is_loaded_begins_with_a_turn(
    service: Any, limit: int | None, first_turn: int
) -> None:
    written = [message for number in range(5) for message in turn(number)]
    await stored(service).store(written)
    assert await stored(service).load(limit) == written[4 * first_turn :]


@pytest.mark.parametrize("event_limit", range(1, 9))
async def test_what_is_left_after_trimming_begins_with_a_turn(event_limit: int) -> None:
    written = turn(1) + turn(2) + turn(3)
    async with sessionstore.InMemorySessionService(session_event_limit=event_limit) as service:
        await stored(service).store(written)
        found = await stored(service).load()
    if event_limit >= 4:
        assert found == written[-(event_limit // 4 * 4) :]
    else:  # Not even one turn is left: no result without its call.
        assert found == written[-min(event_limit, 1) if event_limit < 3 else -3 :]


@pytest.mark.parametrize("first", range(1, 4))
async def test_a_log_that_begins_inside_a_turn_is_cut_whatever_its_limit(first: int) -> None:
    """As one that was trimmed, and whose limit was raised then."""
    written = turn(1) + turn(2)
    if first == 3 and not hasattr(written[3], "run_id"):
        pytest.skip("this Pydantic AI does not say of which run a response is")
    async with sessionstore.InMemorySessionService() as service:
        await stored(service).store(written[first:])
        assert await stored(service).load() == written[4:]


async def test_a_greeting_of_the_application_is_kept(service: Any) -> None:
    written = [messages.ModelResponse(parts=[messages.TextPart("Welcome!")]), *turn(1)]
    await stored(service).store(written)
    assert await stored(service).load() == written


async def test_a_prompt_beside_results_starts_no_turn(service: Any) -> None:
    """As of a run that was paused for a tool and continued with a new prompt."""
    resumed = messages.ModelRequest(
        parts=[
            messages.ToolReturnPart("look", 1, "call_9"),
            messages.UserPromptPart("And this?"),
        ]
    )
    written = [said("Hi"), used("call_9"), resumed, messages.ModelResponse(parts=[])]
    await stored(service).store(turn(1) + written)
    assert await stored(service).load(2) == written


# -- repeats ---------------------------------------------------------------------------------------


async def test_a_repeat_of_a_run_stores_nothing_twice(service: Any) -> None:
    agent = pydantic_ai.Agent(models.TestModel(), tools=[_look])
    runs = [await agent.run("Hi") for _ in range(2)]  # the same text, said twice
    for run in runs:
        await stored(service).store(run.new_messages())
        await stored(service).store(run.new_messages())
    written = [message for run in runs for message in run.new_messages()]
    await stored(service).store(written)
    assert await stored(service).load() == as_persisted(written)
    assert len(written) == 8


async def test_equal_messages_of_a_call_are_as_many_as_were_given(service: Any) -> None:
    answer = messages.ModelResponse(parts=[messages.TextPart("Yes.")], timestamp=INSTANT)
    written = [said("Hi"), answer, answer, answer]
    for _ in range(3):
        await stored(service).store(written)
    assert await stored(service).load() == written


async def test_a_repeat_of_more_messages_than_go_in_one_call_completes_it(service: Any) -> None:
    written = [said(str(number)) for number in range(700)]
    await stored(service).store(written[:500])  # as if the second call had failed
    await stored(service).store(written)
    assert await stored(service).load() == written


async def test_a_naive_timestamp_is_stored(service: Any) -> None:
    naive = messages.ModelResponse(parts=[], timestamp=datetime(2024, 1, 1))
    await stored(service).store([said("Hi"), naive])
    assert (await stored(service).load())[1:] == as_persisted([naive])


async def test_messages_without_a_timestamp_take_that_of_the_one_before() -> None:
    bare = messages.ModelRequest(parts=[])
    async with sessionstore.InMemorySessionService() as service:
        await stored(service).store([bare, said("Hi"), bare])
        await stored(service).store([bare, said("Hi"), bare][:1])
        session = await service.get_session(app_name="shop", user_id="ann", session_id="one")
    assert session is not None
    first, second, third = [event.timestamp for event in session.events]
    assert first.year == 1970
    assert second == third


# -- stored bytes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hash_seed", ["0", "1", "2", "random"])
def test_bytes_depend_on_the_message_alone(hash_seed: str) -> None:
    """The program encodes the same messages in 20 orders and prints what all of them gave."""
    program = Path(__file__).with_name("bytes_of_pydantic_ai.py")
    outcome = subprocess.run(
        [sys.executable, "-W", "ignore", str(program)],
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    [_, _, *results] = outcome.stdout.splitlines()
    contents = [msgspec.json.decode(line)["content"]["parts"][0]["content"] for line in results]
    words = [f"word {number}" for number in range(40)]
    assert contents[0] == sorted(words)
    assert contents[1]["deep"] == [sorted(words), {"more": sorted(words)}]
    assert contents[2]["tags"] == sorted(words)
    assert [pair[0] for pair in contents[2]["pairs"]] == sorted(words)
    assert sorted(contents[3]) == contents[3] != []


async def test_what_release_010_stored_is_read(service: Any) -> None:
    """Messages that JSON does not give back were stored packed, with bytes and tuples."""
    for line in (Path(__file__).parent / "golden" / "pydantic_ai.jsonl").read_bytes().splitlines():
        event = msgspec.json.decode(line, type=Event)
        if not (await call(service, "count_sessions", app_name="shop", user_id="ann")):
            where = {"app_name": "shop", "user_id": "ann", "session_id": "one"}
            await call(service, "create_session", **where)
        await call(service, "append_event", SessionKey("shop", "ann", "one"), event)
    asked, used, first, second, answer = await stored(service).load()
    assert asked.parts[1].content[1].data == b"\xff\x00"
    assert [part.tool_call_id for part in used.parts[1:]] == ["call_1", "call_2"]
    assert first.parts[0].content == {"raw": b"\xff", "at": INSTANT, "of": (1, 2)}
    assert first.parts[1].content == [float("inf"), 1 << 200]
    assert second.parts[0].content == {1: "a", "$": b"x"}
    assert answer.parts[0].content == "Done."


# -- limits ----------------------------------------------------------------------------------------


async def test_limits_and_clearing(service: Any) -> None:
    written = [said(str(number)) for number in range(5)]
    history = stored(service)
    assert await history.load() == []
    await history.clear()
    await history.store(written)
    assert await history.load(2) == written[-2:]
    assert await history.load(9) == written
    assert await history.load(0) == []
    with pytest.raises(InvalidArgument):
        await history.load(-1)
    await history.clear()
    assert await history.load() == []


async def test_histories_are_apart(service: Any) -> None:
    places = [("one", "ann"), ("two", "ann"), ("one", "bob")]
    written = [said(str(number)) for number in range(3)]
    for where, message in zip(places, written, strict=True):
        await stored(service, *where).store([message])
    for where, message in zip(places, written, strict=True):
        assert await stored(service, *where).load() == [message]


async def test_the_services_limit_trims(backend: Backend) -> None:
    written = [said(str(number)) for number in range(9)]
    async with opened(backend, session_event_limit=3) as service:
        await stored(service).store(written)
        assert await stored(service).load() == written[-3:]


async def test_the_services_ttl_expires() -> None:
    now = [1_700_000_000.0]
    service = sessionstore.InMemorySessionService(session_ttl=60, clock=lambda: now[0])
    await stored(service).store([said("Hi")])
    now[0] += 59
    assert len(await stored(service).load()) == 1
    now[0] += 62
    assert await stored(service).load() == []


async def test_recorded_conversations_come_back_equal(service: Any) -> None:
    conversations = [(found, _as_messages(found["messages"])) for found in recordings()]
    for found, written in conversations:
        where = {"app_name": found["app_name"], "user_id": found["user_id"]}
        history = adapter.StoredMessageHistory(found["session_id"], service, **where)
        await history.store(written)
    for found, written in conversations:
        where = {"app_name": found["app_name"], "user_id": found["user_id"]}
        history = adapter.StoredMessageHistory(found["session_id"], service, **where)
        assert await history.load() == written


def _as_messages(chat: list[dict[str, Any]]) -> list[Any]:
    """A conversation in OpenAI's chat format as messages of Pydantic AI."""
    m = messages
    found: list[Any] = []
    for entry in chat:
        content = entry.get("content") or ""
        if entry["role"] == "system":
            found.append(m.ModelRequest(parts=[m.SystemPromptPart(content)]))
        elif entry["role"] == "user":
            found.append(m.ModelRequest(parts=[m.UserPromptPart(content)]))
        elif entry["role"] == "tool":
            part = m.ToolReturnPart(entry.get("name") or "tool", content, entry["tool_call_id"])
            found.append(m.ModelRequest(parts=[part]))
        else:
            calls = [
                m.ToolCallPart(each["function"]["name"], each["function"]["arguments"], each["id"])
                for each in entry.get("tool_calls") or []
            ]
            found.append(
                m.ModelResponse(parts=[*([m.TextPart(content)] if content else []), *calls])
            )
    return found


# -- services and refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        lambda history: history.load_sync(),
        lambda history: history.store_sync([said("Hi")]),
        lambda history: history.clear_sync(),
    ],
)
def test_a_service_for_asyncio_alone_has_only_the_methods_with_await(
    ask: Callable[[Any], Any],
) -> None:
    with pytest.raises(NotImplementedError, match=r"give it one of sessionstore\.sync"):
        ask(stored(sessionstore.InMemorySessionService()))


class Odd:
    """Nothing that anybody serialises."""


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: returned(Odd()), r"messages\[1\]\.parts\[0\]\.content is a Odd that"),
        (
            lambda: returned({"a": [1, Odd()]}),
            r"messages\[1\]\.parts\[0\]\.content\['a'\]\[1\] is a Odd",
        ),
        (lambda: said("\ud800"), r"messages\[1\]\.parts\[0\]\.content is a str that Pydantic AI"),
        (lambda: "Hi", r"messages\[1\] must be a ModelMessage, not str"),
        (lambda: {"kind": "request"}, r"messages\[1\] must be a ModelMessage, not dict"),
    ],
)
async def test_what_cannot_be_stored_is_refused_with_its_path(
    service: Any, make: Callable[[], Any], says: str
) -> None:
    with pytest.raises(InvalidArgument, match=says):
        await stored(service).store([said("Hi"), make()])
    assert await stored(service).load() == []


async def test_what_is_too_large_is_refused(backend: Backend) -> None:
    async with opened(backend, event_size_limit=1000) as service:
        with pytest.raises(LimitExceeded):
            await stored(service).store([said("x" * 1000)])


@pytest.mark.parametrize(
    ("content", "metadata"),
    [("Hi", {}), ({"kind": "no"}, {}), (None, {}), ({"$": "odd", "value": 1}, {"packed": True})],
)
async def test_what_is_no_message_is_not_read_as_one(
    service: Any, content: Any, metadata: dict[str, Any]
) -> None:
    await stored(service).store([said("Hi")])
    event = Event("user", content, metadata=metadata)
    await call(service, "append_event", SessionKey("shop", "ann", "one"), event)
    with pytest.raises(CorruptData, match="not a message of Pydantic AI"):
        await stored(service).load()


def test_the_example_runs() -> None:
    assert run_example("pydantic_ai_example.py").splitlines() == [
        "Do you remember me? I was sent 1 messages.",
        "And now? I was sent 3 messages.",
        "4 messages are stored",
    ]


def test_the_example_runs_on_a_server(server: Any) -> None:
    assert "4 messages are stored" in run_example("pydantic_ai_example.py", server.url)
