"""OpenAI Agents SDK: what a model is sent after items were trimmed, and repeated calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from adapters_support import WITH_TTL, Backend, losing_replies, needs, opened

import sessionstore
from sessionstore import BackendTimeout, CorruptData, Event, InvalidArgument, SessionKey

agents: Any = needs("agents", "openai-agents")
adapter: Any = needs("sessionstore.adapters.openai_agents", "openai-agents")

KEY = SessionKey("shop", "ann", "one")


@pytest.fixture
async def service(backend: Backend) -> AsyncIterator[Any]:
    async with opened(backend) as service:
        yield service


def stored(service: Any, session_id: str = "one", **options: Any) -> Any:
    return adapter.StoredSession(session_id, service, app_name="shop", user_id="ann", **options)


def user(text: str = "Hi") -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(number: int | str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": f"answer {number}", "annotations": []}]
    return {"id": f"msg_{number}", "type": "message", "role": "assistant", "content": content}


def reasoning(number: int | str) -> dict[str, Any]:
    return {"id": f"rs_{number}", "type": "reasoning", "summary": []}


def call(number: int | str) -> dict[str, Any]:
    ids = {"id": f"fc_{number}", "call_id": f"call_{number}"}
    return {**ids, "type": "function_call", "name": "add", "arguments": "{}"}


def output(number: int | str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": f"call_{number}", "output": "done"}


def turn(number: int) -> list[dict[str, Any]]:
    """A turn with two calls at once and then a third."""
    a, b, c = f"{number}a", f"{number}b", f"{number}c"
    first = [reasoning(a), call(a), call(b), output(a), output(b)]
    return [user(f"turn {number}"), *first, reasoning(c), call(c), output(c), answer(number)]


def turns(*numbers: int) -> list[dict[str, Any]]:
    return [item for number in numbers for item in turn(number)]


def check(items: list[dict[str, Any]]) -> None:
    """Fail as the API does: a result without its call, a call without its reasoning."""
    seen: set[str] = set()
    for number, item in enumerate(items):
        kind = item.get("type")
        if kind == "function_call_output":
            assert item["call_id"] in seen
        elif kind == "function_call":
            seen.add(item["call_id"])
            before = [other["type"] for other in items[:number] if "type" in other]
            assert before[-1] == "reasoning" or before[-2:] == ["reasoning", "function_call"]


# -- where a model begins to read ------------------------------------------------------------------


@pytest.mark.parametrize("limit", range(1, 32))
async def test_a_trimmed_session_begins_with_a_turn(limit: int) -> None:
    service = sessionstore.InMemorySessionService(session_event_limit=limit)
    session = stored(service)
    for number in range(3):
        await session.add_items(turn(number))
    items = await session.get_items()
    check(items)
    num_whole = min(limit // 10, 3)
    if num_whole:
        assert items == turns(0, 1, 2)[-10 * num_whole :]
    else:  # what is left of the only turn
        assert items == [] or items[-1] == answer(2)


@pytest.mark.parametrize("by", ["argument", "settings", "dict", "dict later"])
@pytest.mark.parametrize("limit", [1, 9, 10, 11, 19, 20, 29, 30, 31])
async def test_a_limit_takes_whole_turns(service: Any, limit: int, by: str) -> None:
    await stored(service).add_items(turns(0, 1, 2))
    if by == "argument":
        items = await stored(service).get_items(limit)
    elif by == "settings":
        settings = agents.SessionSettings(limit=limit)
        items = await stored(service, session_settings=settings).get_items()
    elif by == "dict":
        items = await stored(service, session_settings={"limit": limit}).get_items()
    else:
        session = stored(service)
        session.session_settings = {"limit": limit}
        items = await session.get_items()
    assert items == turns(0, 1, 2)[-10 * max(1, limit // 10) :]


async def test_a_turn_that_is_longer_than_a_page_is_whole(service: Any) -> None:
    steps = [item for number in range(150) for item in (call(number), output(number))]
    await stored(service).add_items([user("before"), answer(1)])
    await stored(service).add_items([user(), *steps, answer(2)])
    assert await stored(service).get_items(5) == [user(), *steps, answer(2)]


async def test_a_result_of_an_earlier_turn_keeps_its_call(service: Any) -> None:
    items = [
        *turn(0),
        user("Pay."),
        reasoning("p"),
        call("p"),
        user("Yes."),
        output("p"),
        answer(1),
    ]
    await stored(service).add_items(items)
    assert await stored(service).get_items(3) == items[-6:]


@pytest.mark.parametrize("approved", [True, False])
async def test_an_approval_keeps_its_request(service: Any, approved: bool) -> None:
    request = {"type": "mcp_approval_request", "id": "mcpr_1", "name": "pay", "arguments": "{}"}
    response = {
        "type": "mcp_approval_response",
        "approval_request_id": "mcpr_1",
        "approve": approved,
    }
    items = [*turn(0), user("Pay."), request, user("Well"), response, answer(1)]
    await stored(service).add_items(items)
    assert await stored(service).get_items(3) == items[-5:]


@pytest.mark.parametrize(
    "items",
    [
        [{"role": "assistant", "content": "How can I help?"}, user(), answer(1)],
        [answer(1)],
        [call(1)],
        [{"role": "developer", "content": "Be brief."}, user()],
        [reasoning(1), call(1), output(1), answer(1)],
        [user(), output(1)],
        [{"role": "assistant", "content": "one"}, {"role": "assistant", "content": "two"}],
    ],
)
async def test_an_untouched_session_is_returned_as_it_is(
    service: Any, items: list[dict[str, Any]]
) -> None:
    await stored(service).add_items(items)
    assert await stored(service).get_items() == items


async def test_the_limit_of_the_session_counts_not_that_of_the_reader(backend: Backend) -> None:
    without_id = {"role": "assistant", "content": "Hello"}
    async with opened(backend, session_event_limit=3) as service:
        await stored(service).add_items([user("one"), without_id, user("two"), without_id])
        assert await stored(service).get_items() == [user("two"), without_id]
    now = [1_700_000_000.0]
    service = sessionstore.InMemorySessionService(clock=lambda: now[0])
    await stored(service).add_items([without_id, user("two"), without_id])
    assert len(await stored(service).get_items()) == 3


async def test_a_greeting_is_shown_although_items_were_removed_before(service: Any) -> None:
    session = stored(service)
    greeting = {"role": "assistant", "content": "How can I help?"}
    await session.add_items([user("before"), answer(1)])
    await session.clear_session()
    await session.add_items([greeting, user(), answer(2)])
    await session.pop_item()
    assert await session.get_items() == [greeting, user()]


@pytest.mark.parametrize("removed", range(1, 9))
async def test_items_that_were_popped_do_not_show_the_rest_of_a_turn(
    backend: Backend, removed: int
) -> None:
    async with opened(backend, session_event_limit=25) as service:
        session = stored(service)
        await session.add_items(turns(0, 1, 2))
        for _ in range(removed):
            await session.pop_item()
        assert await session.get_items() == turns(1, 2)[:-removed]


async def test_a_limit_that_was_raised_does_not_show_the_rest_of_a_turn(backend: Backend) -> None:
    mode, server = backend
    if server is None or mode == "sync":
        pytest.skip("needs two services on one server")
    for limit in range(21, 30):
        async with opened(backend, session_event_limit=limit) as service:
            await stored(service, f"raised {limit}").add_items(turns(0, 1, 2))
        async with opened(backend, session_event_limit=100) as service:
            session = stored(service, f"raised {limit}")
            await session.add_items([user("one more")])
            assert await session.get_items() == [*turns(1, 2), user("one more")]


async def test_settings_that_are_not_valid_are_refused(service: Any) -> None:
    for wrong in ({"limits": 1}, {"limit": "many"}):
        with pytest.raises(InvalidArgument, match="session_settings"):
            stored(service, session_settings=wrong)


# -- what is given back ----------------------------------------------------------------------------

ODD: list[Any] = [
    "\ud800",
    "half \udfff of a pair",
    float("nan"),
    float("-inf"),
    ("a", ["b"]),
    {1: "int", None: "None", 1.5: "float"},
    1 << 200,
    -0.0,
    1e-320,
    "\u2028 \x00 \x7f \U0001f600",
    {"\ud800": ["\udc00"]},
]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_odd_values_are_given_back_as_the_sdk_does(backend: Backend, codec: str) -> None:
    items = [{**output(number), "output": value} for number, value in enumerate(ODD)]
    items = [user(), *(call(number) for number in range(len(ODD))), *items]
    sqlite = agents.SQLiteSession("one")
    await sqlite.add_items(items)
    async with opened(backend, codec=codec) as service:
        await stored(service).add_items(items)
        found = await stored(service).get_items()
        popped = await stored(service).pop_item()
    assert repr(found) == repr(await sqlite.get_items())
    assert repr(popped) == repr(await sqlite.pop_item())
    sqlite.close()


async def test_an_item_is_stored_as_json(backend: Backend) -> None:
    if backend[1] is None or backend[0] == "sync":
        pytest.skip("looks at stored bytes")
    async with opened(backend, codec="msgpack") as service:
        await stored(service).add_items(turn(0))
        page = await service.get_events(KEY)
    assert [event.content for event in page.events] == turn(0)
    assert {event.author for event in page.events} == {
        "user",
        "assistant",
        "reasoning",
        "function_call",
        "function_call_output",
    }


@pytest.mark.parametrize(
    ("content", "metadata"), [("Hi", {}), (None, {}), ("{", {"json": True}), ("1", {"json": True})]
)
async def test_what_is_not_an_item_is_not_read_as_one(content: Any, metadata: Any) -> None:
    service = sessionstore.InMemorySessionService()
    await stored(service).add_items([user()])
    event = Event("user", content, metadata=metadata)
    await service.append_event(KEY, event)
    with pytest.raises(CorruptData, match=event.id):
        await stored(service).get_items()


# -- repeated calls --------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", ["same object", "new object"])
@pytest.mark.parametrize("lost", ["reply", "request"])
@pytest.mark.parametrize("items", [[user("yes")], turn(0), [answer(1)], [user(), user()]])
async def test_a_repeat_after_a_lost_reply_stores_nothing_twice(
    service: Any, items: list[dict[str, Any]], lost: str, fresh: str
) -> None:
    session = stored(service)
    await session.add_items([user("before")])
    with losing_replies(service, applies=lost == "reply"), pytest.raises(BackendTimeout) as caught:
        await session.add_items(items)
    assert caught.value.maybe_applied
    if fresh == "new object":
        session = stored(service)
    await session.add_items(json.loads(json.dumps(items)))
    assert await session.get_items() == [user("before"), *items]
    await session.add_items(items[:1])  # which is not a repeat
    assert await session.get_items() == [user("before"), *items, *items[:1]]


async def test_a_repeat_is_recognized_although_others_wrote_meanwhile(service: Any) -> None:
    await stored(service).add_items([user("before")])
    with losing_replies(service), pytest.raises(BackendTimeout):
        await stored(service).add_items([user("yes")])
    await _append(service, Event("note", {"role": "developer", "content": "note"}))
    await stored(service).add_items([user("yes")])
    assert len(await stored(service).get_items()) == 3


async def test_the_same_words_in_a_later_turn_are_stored(service: Any) -> None:
    session = stored(service)
    await session.add_items([user("before")])
    with losing_replies(service), pytest.raises(BackendTimeout):
        await session.add_items([user("yes")])
    await session.add_items([answer(1)])
    await session.add_items([user("yes")])
    assert await session.get_items() == [user("before"), user("yes"), answer(1), user("yes")]


async def test_yes_twice_is_two_items(service: Any) -> None:
    for _ in range(2):
        await stored(service).add_items([user("yes")])
        await stored(service).add_items([{**answer(1), "id": "__fake_id__"}])
        await stored(service).add_items([{**answer(1), "id": "__fake_id__"}])
    assert len(await stored(service).get_items()) == 6


async def test_items_with_ids_are_recognized_in_another_process(backend: Backend) -> None:
    mode, server = backend
    if server is None or mode == "sync":
        pytest.skip("needs two services on one server")
    items = [reasoning(1), call(1), output(1)]
    async with opened(backend) as service:
        await stored(service).add_items([user()])
        with losing_replies(service), pytest.raises(BackendTimeout):
            await stored(service).add_items(items)
    async with sessionstore.RedisSessionService(server.url, **WITH_TTL) as service:
        session = stored(service)
        await session.add_items(items)
        assert await session.get_items() == [user(), *items]
        await session.add_items(items)  # somebody who means it
        assert await session.get_items() == [user(), *items, *items]


async def test_a_cancelled_call_can_be_repeated(service: Any) -> None:
    session = stored(service)
    await session.add_items([user("before")])
    error = asyncio.CancelledError()
    with losing_replies(service, error=error), pytest.raises(asyncio.CancelledError):
        await session.add_items([user("yes")])
    await session.add_items([user("yes")])
    assert await session.get_items() == [user("before"), user("yes")]


async def _append(service: Any, event: Event) -> None:
    result = service.append_event(KEY, event)
    if not isinstance(result, Event):
        await result
