"""LangChain: every message type, both kinds of methods, fidelity, recordings, refusals."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from adapters_support import (
    WITH_TTL,
    Backend,
    losing_replies,
    needs,
    opened,
    recordings,
    run_example,
)

import sessionstore
import sessionstore.sync
from sessionstore import (
    BackendTimeout,
    CorruptData,
    Event,
    InvalidArgument,
    LimitExceeded,
    SessionKey,
)
from sessionstore.adapters.packing import unpack

messages: Any = needs("langchain_core.messages", "langchain")
history_module: Any = needs("langchain_core.chat_history", "langchain")
adapter: Any = needs("sessionstore.adapters.langchain", "langchain")

# Early versions of LangChain use what pydantic has deprecated since.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields':DeprecationWarning")

INSTANT = datetime(2024, 5, 15, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=-4)))

TOOL_CALL = {"name": "add", "args": {"item": "mug", "count": 2}, "id": "call_1"}


def every_message() -> list[Any]:
    """One of every class that LangChain reads back, with everything filled in."""
    m = messages
    common = {
        "additional_kwargs": {"cache": {"type": "ephemeral"}},
        "response_metadata": {"model": "m", "logprobs": [-0.5], "finish_reason": None},
        "name": "someone",
        "id": "id-1",
    }
    usage = {
        "input_tokens": 3,
        "output_tokens": 5,
        "total_tokens": 8,
        "input_token_details": {"cache_read": 1},
    }
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    return [
        m.HumanMessage("Two blue mugs, please. \u2615 \U0001f600"),
        m.HumanMessage([{"type": "text", "text": "What is this?"}, image], **common),
        m.AIMessage("Added.", usage_metadata=usage, **common),
        m.AIMessage("", tool_calls=[TOOL_CALL, {**TOOL_CALL, "id": None}]),
        m.AIMessage(
            "",
            invalid_tool_calls=[{"name": "add", "args": "{", "id": "1", "error": "not JSON"}],
        ),
        m.AIMessage([{"type": "thinking", "thinking": "hm", "signature": "x"}, "text"]),
        m.SystemMessage("Be brief.", **common),
        m.ToolMessage("done", tool_call_id="call_1", artifact={"rows": [1, 2]}, status="error"),
        m.ToolMessage([{"type": "text", "text": "a"}, image], tool_call_id="call_2", name="t"),
        m.FunctionMessage("done", name="add"),
        m.ChatMessage("Hello", role="critic", **common),
        m.RemoveMessage("id-7"),
        m.AIMessageChunk(
            "Ad",
            tool_call_chunks=[{"name": "add", "args": '{"it', "id": "c", "index": 0}],
            usage_metadata=usage,
        ),
        m.HumanMessageChunk("Two"),
        m.SystemMessageChunk("Be"),
        m.ToolMessageChunk("do", tool_call_id="call_1"),
        m.FunctionMessageChunk("do", name="add"),
        m.ChatMessageChunk("He", role="critic"),
    ]


def hello() -> Any:
    return messages.HumanMessage("Hello")


def stored(service: Any, session_id: str = "one", user_id: str = "ann", **options: Any) -> Any:
    return adapter.StoredChatMessageHistory(
        session_id, service, app_name="shop", user_id=user_id, **options
    )


@pytest.fixture
async def service(backend: Backend) -> AsyncIterator[Any]:
    async with opened(backend) as service:
        yield service


class Sync:
    """The methods without await under the names of those with it, for one body of tests."""

    def __init__(self, history: Any) -> None:
        self._history = history

    async def aget_messages(self) -> Any:
        return self._history.messages

    async def aadd_messages(self, added: Any) -> None:
        self._history.add_messages(added)

    async def aclear(self) -> None:
        self._history.clear()


@pytest.fixture(params=["own", "awaited", "called"])
async def history(request: pytest.FixtureRequest, backend: Backend, service: Any) -> Any:
    """LangChain's own history in memory and ours, by its methods with await and without."""
    if request.param == "own":
        with warnings.catch_warnings(action="ignore"):  # deprecated by its successor, LangGraph
            return history_module.InMemoryChatMessageHistory()
    if request.param == "awaited":
        return stored(service)
    if backend[0] == "async":
        pytest.skip("a service for asyncio has no methods without await")
    return Sync(stored(service))


# -- what LangChain's own history does, ours does --------------------------------------------------


async def test_a_new_history_is_empty(history: Any) -> None:
    assert await history.aget_messages() == []
    await history.aclear()
    assert await history.aget_messages() == []


async def test_every_message_comes_back_equal_and_of_its_class(history: Any) -> None:
    written = every_message()
    await history.aadd_messages(written[:5])
    await history.aadd_messages([])
    await history.aadd_messages(written[5:])
    found = await history.aget_messages()
    assert found == written
    assert [type(message) for message in found] == [type(message) for message in written]
    assert [repr(message) for message in found] == [repr(message) for message in written]


async def test_clear_removes_all(history: Any) -> None:
    await history.aadd_messages(every_message())
    await history.aclear()
    assert await history.aget_messages() == []
    await history.aadd_messages([hello()])
    assert await history.aget_messages() == [hello()]


async def test_equal_messages_are_kept_each(history: Any) -> None:
    await history.aadd_messages([hello(), hello()])
    await history.aadd_messages([hello()])
    assert await history.aget_messages() == [hello()] * 3


# -- LangChain's ways to use it --------------------------------------------------------------------


def sync_service() -> Any:
    return sessionstore.sync.InMemorySessionService()


def test_it_is_a_history() -> None:
    assert isinstance(stored(sync_service()), history_module.BaseChatMessageHistory)


def test_single_messages() -> None:
    history = stored(sync_service())
    history.add_message(messages.SystemMessage("Be brief."))
    history.add_user_message("Hi")
    history.add_user_message(messages.HumanMessage("there"))
    history.add_ai_message("Hello")
    history.add_ai_message(messages.AIMessage("you"))
    assert [message.content for message in history.messages] == [
        "Be brief.",
        "Hi",
        "there",
        "Hello",
        "you",
    ]
    assert str(history).splitlines()[1] == "Human: Hi"


def test_messages_cannot_be_assigned() -> None:
    with pytest.raises(NotImplementedError, match="add_messages"):
        stored(sync_service()).messages = []


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_runnable_remembers(service: Any, backend: Backend, mode: str) -> None:
    if mode == "invoke" and backend[0] == "async":
        pytest.skip("a service for asyncio has no methods without await")
    runnables: Any = needs("langchain_core.runnables", "langchain")
    with_history: Any = needs("langchain_core.runnables.history", "langchain")

    def count(asked: Any) -> Any:
        return messages.AIMessage(f"I was sent {len(asked)} messages.")

    chain = with_history.RunnableWithMessageHistory(
        runnables.RunnableLambda(count), lambda session_id: stored(service, session_id)
    )
    config = {"configurable": {"session_id": "one"}}
    answers = []
    for question in ("one", "two", "three"):
        asked = [messages.HumanMessage(question)]
        answer = (
            chain.invoke(asked, config) if mode == "invoke" else await chain.ainvoke(asked, config)
        )
        answers.append(answer.content)
    assert answers == [f"I was sent {number} messages." for number in (1, 3, 5)]
    assert len(await stored(service).aget_messages()) == 6


# -- which service has which methods ---------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda history: history.messages,
        lambda history: history.add_messages([hello()]),
        lambda history: history.add_message(hello()),
        lambda history: history.clear(),
    ],
)
def test_a_service_for_asyncio_alone_has_only_the_methods_with_await(
    call: Callable[[Any], Any],
) -> None:
    history = stored(sessionstore.InMemorySessionService())
    with pytest.raises(NotImplementedError, match=r"give it one of sessionstore\.sync"):
        call(history)


async def test_both_kinds_of_services(server: Any) -> None:
    options: dict[str, Any] = {"session_ttl": 600}
    async with sessionstore.RedisSessionService(server.url, **options) as service:
        with sessionstore.sync.RedisSessionService(server.url, **options) as beside:
            history = stored(service, sync_service=beside)
            history.add_messages([hello()])
            await history.aadd_messages([hello()])
            assert history.messages == await history.aget_messages() == [hello()] * 2


def test_services_of_the_same_kind_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="service must be one for asyncio"):
        stored(sync_service(), sync_service=sync_service())
    with pytest.raises(InvalidArgument, match=r"sync_service must be a service of sessionstore\."):
        stored(
            sessionstore.InMemorySessionService(),
            sync_service=sessionstore.InMemorySessionService(),
        )
    with pytest.raises(InvalidArgument, match="service must be a service of sessionstore"):
        stored("redis://localhost")


# -- what ours does besides ------------------------------------------------------------------------


async def test_histories_are_apart_and_can_be_opened_again(service: Any) -> None:
    places = [("one", "ann"), ("two", "ann"), ("one", "bob")]
    for number, place in enumerate(places):
        await stored(service, *place).aadd_messages([messages.HumanMessage(str(number))])
    for number, place in enumerate(places):
        [found] = await stored(service, *place).aget_messages()
        assert found.content == str(number)


async def test_the_services_limit_trims(backend: Backend) -> None:
    async with opened(backend, session_event_limit=3) as service:
        await stored(service).aadd_messages(turn(0) + turn(1)[:1])
        assert await stored(service).aget_messages() == turn(1)[:1]


def turn(number: int) -> list[Any]:
    call = {"name": "add", "args": {}, "id": f"call_{number}", "type": "tool_call"}
    return [
        messages.HumanMessage(f"turn {number}"),
        messages.AIMessage("", tool_calls=[call], id=f"run-{number}a"),
        messages.ToolMessage("done", tool_call_id=f"call_{number}"),
        messages.AIMessage(f"answer {number}", id=f"run-{number}b"),
    ]


@pytest.mark.parametrize("limit", range(1, 14))
def test_trimmed_messages_begin_with_a_turn(limit: int) -> None:
    history = stored(sessionstore.sync.InMemorySessionService(session_event_limit=limit))
    for number in range(3):
        history.add_messages(turn(number))
    found = history.messages
    written = turn(0) + turn(1) + turn(2)
    num_whole = min(limit // 4, 3)
    assert found == (written[-4 * num_whole :] if num_whole else turn(2)[-limit:][limit == 2 :])


@pytest.mark.parametrize("number", range(3))
def test_an_untouched_history_is_returned_as_it_is(number: int) -> None:
    written = [
        [messages.AIMessage("How can I help?", id="run-1"), *turn(0)],
        turn(0)[1:],
        [messages.SystemMessage("Be brief."), messages.AIMessage("Yes.")],
    ][number]
    history = stored(sync_service())
    history.add_messages(written)
    assert history.messages == written


# -- repeated calls --------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("applies", [True, False])
async def test_a_repeat_after_a_lost_reply_stores_nothing_twice(
    service: Any, applies: bool, fresh: bool
) -> None:
    history = stored(service)
    await history.aadd_messages([hello()])
    with losing_replies(service, applies=applies), pytest.raises(BackendTimeout):
        await history.aadd_messages(turn(0))
    history = stored(service) if fresh else history
    await history.aadd_messages(turn(0))
    assert await history.aget_messages() == [hello(), *turn(0)]
    await history.aadd_messages(turn(0))  # which is not a repeat
    assert await history.aget_messages() == [hello(), *turn(0), *turn(0)]


def test_the_methods_without_await_recognize_a_repeat() -> None:
    service = sync_service()
    history = stored(service)
    history.add_messages([hello()])
    with losing_replies(service), pytest.raises(BackendTimeout):
        history.add_messages([hello()])
    history.add_messages([hello()])
    assert history.messages == [hello()] * 2


async def test_messages_with_ids_are_recognized_in_another_process(server: Any) -> None:
    async with sessionstore.RedisSessionService(server.url, **WITH_TTL) as service:
        await stored(service).aadd_messages(turn(0)[:1])
        with losing_replies(service), pytest.raises(BackendTimeout):
            await stored(service).aadd_messages(turn(0)[1:2])
    async with sessionstore.RedisSessionService(server.url, **WITH_TTL) as service:
        history = stored(service)
        await history.aadd_messages(turn(0)[1:2])
        await history.aadd_messages(turn(0)[2:])
        assert await history.aget_messages() == turn(0)


async def test_the_services_ttl_expires() -> None:
    now = [1_700_000_000.0]
    service = sessionstore.InMemorySessionService(session_ttl=60, clock=lambda: now[0])
    await stored(service).aadd_messages([hello()])
    now[0] += 59
    assert await stored(service).aget_messages() == [hello()]
    now[0] += 62
    assert await stored(service).aget_messages() == []


async def test_messages_of_many_tasks_are_all_kept(service: Any) -> None:
    added: list[Awaitable[None]] = [
        stored(service).aadd_messages([messages.HumanMessage(str(number))]) for number in range(50)
    ]
    await asyncio.gather(*added)
    found = {message.content for message in await stored(service).aget_messages()}
    assert found == {str(number) for number in range(50)}


# -- fidelity --------------------------------------------------------------------------------------

# What a tool may return, and what is read back.
VALUES: list[tuple[Any, Any]] = [
    (b"\xff\x00", "_wA="),
    (INSTANT, "2024-05-15T12:00:00.123456-04:00"),
    (date(2024, 5, 15), "2024-05-15"),
    (time(12, 30, tzinfo=UTC), "12:30:00Z"),
    (timedelta(days=-1, microseconds=7), "-PT23H59M59.999993S"),
    (Decimal("1.10"), "1.10"),
    (UUID(int=7), str(UUID(int=7))),
    ((1, (2, [b"x"])), [1, [2, ["eA=="]]]),
    ({"b", "c", "a"}, ["a", "b", "c"]),
    ({"deep": [frozenset(["y", "x"])]}, {"deep": [["x", "y"]]}),
    (float("inf"), float("inf")),
    (1 << 200, 1 << 200),
    ({1: "a", None: "b"}, {"1": "a", "null": "b"}),
    ({"$": "bytes", "value": "eA=="}, {"$": "bytes", "value": "eA=="}),
    ({"plain": [1, 2.5, None, True, "x", {}]}, {"plain": [1, 2.5, None, True, "x", {}]}),
]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_values_that_json_lacks_are_stored_as_pydantic_writes_them(
    backend: Backend, codec: str
) -> None:
    def made(value: Any) -> list[Any]:
        return [
            messages.ToolMessage("done", tool_call_id="1", artifact=value),
            messages.AIMessage("Hi", response_metadata={"at": [value]}),
            messages.HumanMessage([{"type": "image", "source": {"bytes": value}}]),
        ]

    written = [message for value, _ in VALUES for message in made(value)]
    expected = [message for _, value in VALUES for message in made(value)]
    async with opened(backend, codec=codec) as service:
        await stored(service).aadd_messages([hello(), *written])
        [_, *found] = await stored(service).aget_messages()
    assert found == expected
    assert [repr(message) for message in found] == [repr(message) for message in expected]


async def test_what_json_dumps_keeps_is_kept(service: Any) -> None:
    written = [
        messages.HumanMessage("\ud800 \U0001f600"),
        messages.ToolMessage("half \udfff", tool_call_id="1", artifact={"at": 1}),
        messages.AIMessage("a", response_metadata={"\ud800": float("inf")}),
    ]
    await stored(service).aadd_messages(written)
    assert await stored(service).aget_messages() == written


# As release 0.1.0 stored them.
PACKED: list[tuple[Any, Any]] = [
    ({"$": "bytes", "value": "/wA="}, b"\xff\x00"),
    ({"$": "datetime", "value": INSTANT.isoformat()}, INSTANT),
    ({"$": "date", "value": "2024-05-15"}, date(2024, 5, 15)),
    ({"$": "time", "value": "12:30:00+00:00"}, time(12, 30, tzinfo=UTC)),
    ({"$": "timedelta", "value": [-1, 0, 7]}, timedelta(days=-1, microseconds=7)),
    ({"$": "decimal", "value": "1.10"}, Decimal("1.10")),
    ({"$": "uuid", "value": str(UUID(int=7))}, UUID(int=7)),
    ({"$": "int", "value": str(1 << 200)}, 1 << 200),
    ({"$": "float", "value": "inf"}, float("inf")),
    ([{"$": "tuple", "value": [1, {"$": "tuple", "value": [2]}]}], [(1, (2,))]),
    ({"a": {"$": "set", "value": [4, 3]}}, {"a": {3, 4}}),
    ({"$": "frozenset", "value": [5]}, frozenset([5])),
    ({"$": "dict", "value": [[1, "a"], [{"$": "tuple", "value": []}, 2]]}, {1: "a", (): 2}),
]


@pytest.mark.parametrize(("packed", "value"), PACKED, ids=repr)
def test_packed_values_of_0_1_0_are_unpacked(packed: Any, value: Any) -> None:
    assert repr(unpack(packed)) == repr(value)


async def test_a_message_is_stored_as_langchain_writes_it(service: Any) -> None:
    await stored(service).aadd_messages(every_message()[:3])
    [session] = await _call(service, "list_sessions", app_name="shop", user_id="ann", event_num=9)
    assert [event.author for event in session.events] == ["human", "human", "ai"]
    assert [event.content for event in session.events] == [
        messages.message_to_dict(message) for message in every_message()[:3]
    ]


async def _call(service: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    result = getattr(service, name)(*args, **kwargs)
    return await result if isinstance(result, Awaitable) else result


async def test_more_messages_than_go_in_one_call(
    backend: Backend,
) -> None:
    written = [messages.HumanMessage(str(number)) for number in range(700)]
    written.append(messages.ToolMessage("done", tool_call_id="1", artifact=[1]))
    async with opened(backend, session_event_limit=None) as service:
        await stored(service).aadd_messages(written)
        assert await stored(service).aget_messages() == written


async def test_recorded_conversations_come_back_equal(service: Any) -> None:
    conversations = recordings()
    for found in conversations:
        history = _of(found, service)
        await history.aadd_messages(messages.convert_to_messages(found["messages"]))
    for found in conversations:
        back = await _of(found, service).aget_messages()
        assert back == messages.convert_to_messages(found["messages"])
        assert messages.convert_to_openai_messages(back) == messages.convert_to_openai_messages(
            messages.convert_to_messages(found["messages"])
        )


def _of(found: dict[str, Any], service: Any) -> Any:
    return adapter.StoredChatMessageHistory(
        found["session_id"], service, app_name=found["app_name"], user_id=found["user_id"]
    )


# -- refusals --------------------------------------------------------------------------------------


class Odd:
    """Nothing that anybody serialises."""


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: messages.ToolMessage("a", tool_call_id="1", artifact={"x": [Odd()]}),
            r"\['data'\]\['artifact'\]\['x'\]\[0\] is a Odd",
        ),
        (
            lambda: messages.AIMessage("a", additional_kwargs={"a": b"x", "b": Odd()}),
            r"\['data'\]\['additional_kwargs'\]\['b'\] is a Odd",
        ),
        (lambda: {"role": "user", "content": "Hi"}, r"messages\[1\] must be a BaseMessage, not di"),
        (lambda: "Hi", r"messages\[1\] must be a BaseMessage, not str"),
        (
            lambda: type("Own", (messages.AIMessage,), {})("a"),
            r"messages\[1\] is a Own, which LangChain would read back as AIMessage",
        ),
        (
            lambda: messages.BaseMessage("a", type="other"),
            r"messages\[1\] is a BaseMessage, which LangChain cannot read back",
        ),
    ],
)
async def test_what_cannot_be_stored_is_refused_with_its_path(
    service: Any, make: Callable[[], Any], says: str
) -> None:
    history = stored(service)
    with pytest.raises(InvalidArgument, match=says):
        await history.aadd_messages([hello(), make()])
    assert await history.aget_messages() == []


async def test_what_is_nested_too_deeply_is_refused(service: Any) -> None:
    deep: Any = []
    for _ in range(5_000):
        deep = [deep]
    message = messages.ToolMessage("a", tool_call_id="1")
    message.artifact = deep
    with pytest.raises(InvalidArgument):
        await stored(service).aadd_messages([message])


async def test_what_is_too_large_is_refused(backend: Backend) -> None:
    async with opened(backend, event_size_limit=1000) as service:
        with pytest.raises(LimitExceeded):
            await stored(service).aadd_messages([messages.HumanMessage("x" * 1000)])


@pytest.mark.parametrize(
    ("content", "metadata"),
    [("Hi", {}), ({"type": "no"}, {}), ({"$": "odd", "value": 1}, {"packed": True}), (None, {})],
)
async def test_what_is_no_message_is_not_read_as_one(
    service: Any, content: Any, metadata: dict[str, Any]
) -> None:
    await stored(service).aadd_messages([hello()])
    event = Event("user", content, metadata=metadata)
    await _call(service, "append_event", SessionKey("shop", "ann", "one"), event)
    with pytest.raises(CorruptData, match=event.id):
        await stored(service).aget_messages()


def test_the_example_runs() -> None:
    assert run_example("langchain_example.py").splitlines() == [
        "Two blue mugs, please. Two blue mugs, noted.",
        "What did I want? You wanted two blue mugs.",
        "4 messages are stored",
    ]


def test_the_example_runs_on_a_server(server: Any) -> None:
    assert "4 messages are stored" in run_example("langchain_example.py", server.url)
