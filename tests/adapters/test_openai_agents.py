"""OpenAI Agents SDK: the behaviour of its own session, its Runner, recordings, refusals."""

from __future__ import annotations

import asyncio
import runpy
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import pytest
from adapters_support import EXAMPLES, Backend, needs, opened, recordings, run_example

import sessionstore
from sessionstore import InvalidArgument, LimitExceeded

agents: Any = needs("agents", "openai-agents")
adapter: Any = needs("sessionstore.adapters.openai_agents", "openai-agents")

ITEMS: list[dict[str, Any]] = [
    {"role": "user", "content": "Two blue mugs, please. \u2615 \U0001f600"},
    {
        "id": "rs_1",
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "mugs"}],
        "encrypted_content": "gAAAA==",
    },
    {
        "arguments": '{"item": "mug", "count": 2}',
        "call_id": "call_1",
        "name": "add",
        "type": "function_call",
        "id": "fc_1",
        "status": "completed",
    },
    {"call_id": "call_1", "output": "done", "type": "function_call_output"},
    {
        "id": "msg_1",
        "content": [
            {"annotations": [], "text": "Added.", "type": "output_text", "logprobs": [{"p": -0.5}]}
        ],
        "role": "assistant",
        "status": "completed",
        "type": "message",
    },
    {"role": "user", "content": [{"type": "input_image", "detail": "auto", "image_url": "data:,"}]},
    {"type": "compaction", "encrypted_content": "x", "n": None, "deep": {"a": [[], {}, 0.1, True]}},
]


@pytest.fixture
async def service(backend: Backend) -> AsyncIterator[Any]:
    async with opened(backend) as service:
        yield service


@pytest.fixture(params=["SQLiteSession", "StoredSession"])
async def session(request: pytest.FixtureRequest, service: Any) -> AsyncIterator[Any]:
    """The SDK's session and ours, which have to behave the same."""
    if request.param == "StoredSession":
        yield stored(service)
        return
    with closing(agents.SQLiteSession("one")) as session:
        yield session


def stored(service: Any, session_id: str = "one", user_id: str = "ann", **options: Any) -> Any:
    return adapter.StoredSession(session_id, service, app_name="shop", user_id=user_id, **options)


# -- what the SDK's own session does, ours does ----------------------------------------------------


async def test_it_is_a_session(session: Any) -> None:
    assert isinstance(session, agents.Session)
    assert session.session_id == "one"
    assert session.session_settings == agents.SessionSettings()


async def test_a_new_session_is_empty(session: Any) -> None:
    assert await session.get_items() == []
    assert await session.pop_item() is None
    await session.clear_session()
    assert await session.get_items() == []


async def test_items_come_back_equal_and_in_order(session: Any) -> None:
    await session.add_items(ITEMS[:3])
    await session.add_items([])
    await session.add_items(ITEMS[3:])
    assert await session.get_items() == ITEMS


@pytest.mark.parametrize("limit", [None, 0, 1, 3, 7, 100])
async def test_limit_gives_the_newest_in_order(session: Any, limit: int | None) -> None:
    await session.add_items(ITEMS)
    expected = ITEMS if limit is None else ITEMS[len(ITEMS) - limit :] if limit < 7 else ITEMS
    if limit == 3 and not isinstance(session, agents.SQLiteSession):
        expected = expected[1:]  # an answer without its question is left out
    assert await session.get_items(limit) == expected


async def test_the_settings_limit_holds_unless_one_is_given(session: Any) -> None:
    await session.add_items(ITEMS)
    session.session_settings = agents.SessionSettings(limit=2)
    assert await session.get_items() == ITEMS[-2:]
    assert await session.get_items(7) == ITEMS


async def test_pop_removes_the_newest(session: Any) -> None:
    await session.add_items(ITEMS)
    assert await session.pop_item() == ITEMS[-1]
    assert await session.pop_item() == ITEMS[-2]
    assert await session.get_items() == ITEMS[:-2]


async def test_clear_removes_all(session: Any) -> None:
    await session.add_items(ITEMS)
    await session.clear_session()
    assert await session.get_items() == []
    await session.add_items(ITEMS[:1])
    assert await session.get_items() == ITEMS[:1]


async def test_equal_items_are_kept_each(session: Any) -> None:
    await session.add_items([ITEMS[0], ITEMS[0]])
    await session.add_items([ITEMS[0]])
    assert await session.get_items() == [ITEMS[0]] * 3


# -- the Runner ------------------------------------------------------------------------------------


async def test_the_runner_remembers(session: Any) -> None:
    model = runpy.run_path(str(EXAMPLES / "openai_agents_example.py"))["CountingModel"]()
    agent = agents.Agent(name="counter", model=model)
    quiet = agents.RunConfig(tracing_disabled=True)
    outputs = []
    for question in ("one", "two", "three"):
        result = await agents.Runner.run(agent, question, session=session, run_config=quiet)
        outputs.append(result.final_output)
    assert outputs == [f"I was sent {count} items." for count in (1, 3, 5)]
    roles = [item["role"] for item in await session.get_items()]
    assert roles == ["user", "assistant"] * 3
    # Early versions of the SDK give the last turn only.
    assert (await session.get_items())[-2:] == result.to_input_list()[-2:]


async def test_the_runner_takes_settings(service: Any) -> None:
    model = runpy.run_path(str(EXAMPLES / "openai_agents_example.py"))["CountingModel"]()
    agent = agents.Agent(name="counter", model=model)
    session = stored(service, session_settings=agents.SessionSettings(limit=2))
    quiet = agents.RunConfig(tracing_disabled=True)
    for expected in (1, 3, 3):
        result = await agents.Runner.run(agent, "Hi", session=session, run_config=quiet)
        assert result.final_output == f"I was sent {expected} items."


# -- what ours does besides ------------------------------------------------------------------------


async def test_sessions_are_apart_and_can_be_opened_again(service: Any) -> None:
    await stored(service).add_items(ITEMS[:1])
    await stored(service, "two").add_items(ITEMS[1:2])
    await stored(service, user_id="bob").add_items(ITEMS[2:3])
    assert await stored(service).get_items() == ITEMS[:1]
    assert await stored(service, "two").get_items() == ITEMS[1:2]
    assert await stored(service, user_id="bob").get_items() == ITEMS[2:3]


async def test_more_items_than_go_in_one_call(backend: Backend) -> None:
    items = [{"role": "user", "content": str(number)} for number in range(1203)]
    async with opened(backend, session_event_limit=None) as service:
        await stored(service).add_items(items)
        assert await stored(service).get_items() == items


async def test_the_services_limit_trims(backend: Backend) -> None:
    async with opened(backend, session_event_limit=3) as service:
        await stored(service).add_items(ITEMS)
        assert await stored(service).get_items() == ITEMS[-2:]


async def test_the_services_ttl_expires() -> None:
    now = [1_700_000_000.0]
    service = sessionstore.InMemorySessionService(session_ttl=60, clock=lambda: now[0])
    await stored(service).add_items(ITEMS)
    now[0] += 59
    assert await stored(service).get_items() == ITEMS
    now[0] += 62
    assert await stored(service).get_items() == []
    await stored(service).add_items(ITEMS[:1])
    assert await stored(service).get_items() == ITEMS[:1]


async def test_items_of_many_tasks_are_all_kept(service: Any) -> None:
    tasks = [stored(service).add_items([{"role": "user", "content": str(n)}]) for n in range(50)]
    await asyncio.gather(*tasks)
    contents = {item["content"] for item in await stored(service).get_items()}
    assert contents == {str(number) for number in range(50)}


async def test_what_is_read_is_the_callers_own(service: Any) -> None:
    await stored(service).add_items(ITEMS)
    for item in await stored(service).get_items():
        item.clear()
    assert await stored(service).get_items() == ITEMS


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"role": "user", "content": [{"data": b"\xff"}]}, r"\['content'\]\[0\]\['data'\] is a by"),
        ({"role": "user", "content": object()}, r"\['content'\] is a object"),
        ({"role": "user", "content": [{"a", "b"}]}, r"\['content'\]\[0\] is a set"),
        ("Hi", r"items\[1\] must be a dict, not str"),
    ],
)
async def test_what_cannot_be_stored_is_refused_with_its_path(
    service: Any, item: Any, says: str
) -> None:
    session = stored(service)
    with pytest.raises(InvalidArgument, match=says):
        await session.add_items([ITEMS[0], item])
    assert await session.get_items() == []


async def test_what_is_too_large_is_refused(backend: Backend) -> None:
    async with opened(backend, event_size_limit=1000) as service:
        with pytest.raises(LimitExceeded):
            await stored(service).add_items([{"role": "user", "content": "x" * 1000}])


@pytest.mark.parametrize("wrong", [None, "redis://localhost", object()])
def test_what_is_no_service_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match="service must be a service of sessionstore"):
        stored(wrong)


async def test_recorded_conversations_come_back_equal(service: Any) -> None:
    conversations = recordings()
    for found in conversations:
        session = adapter.StoredSession(
            found["session_id"], service, app_name=found["app_name"], user_id=found["user_id"]
        )
        await session.add_items(found["messages"])
    for found in conversations:
        session = adapter.StoredSession(
            found["session_id"], service, app_name=found["app_name"], user_id=found["user_id"]
        )
        assert await session.get_items() == found["messages"]


def test_the_example_runs() -> None:
    assert run_example("openai_agents_example.py").splitlines() == [
        "Do you remember me? I was sent 1 items.",
        "And now? I was sent 3 items.",
        "4 items are stored",
    ]


def test_the_example_runs_on_a_server(server: Any) -> None:
    assert "4 items are stored" in run_example("openai_agents_example.py", server.url)
