"""OpenAI Agents SDK: the kinds of tests that its own sessions pass, with its session and ours.

Left out are tests of what only SQLite has: files, tables, branches, usage, text search.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import pytest
from adapters_support import Backend, needs, opened

agents: Any = needs("agents", "openai-agents")
adapter: Any = needs("sessionstore.adapters.openai_agents", "openai-agents")
support: Any = needs("openai_agents_support", "openai-agents")


@pytest.fixture(params=["SQLiteSession", "StoredSession"])
async def make_session(request: pytest.FixtureRequest, backend: Backend) -> AsyncIterator[Any]:
    """Opens a session by its id, as often as needed."""
    if request.param == "SQLiteSession":
        if backend != ("async", None):
            pytest.skip("once is enough")
        opened_sessions: dict[str, Any] = {}

        def make_own(session_id: str = "one", **options: Any) -> Any:
            session = opened_sessions.setdefault(session_id, agents.SQLiteSession(session_id))
            if options:
                session.session_settings = options["session_settings"]
            return session

        yield make_own
        for session in opened_sessions.values():
            session.close()
        return
    async with opened(backend) as service:

        def make(session_id: str = "one", **options: Any) -> Any:
            return adapter.StoredSession(
                session_id, service, app_name="shop", user_id="ann", **options
            )

        yield make


def agent() -> Any:
    model = support.ScriptedModel()
    return agents.Agent(name="shop", model=model, tools=[model.tool])


async def run(runner: Any, asked: Any, session: Any, **config: Any) -> Any:
    return await agents.Runner.run(
        runner,
        asked,
        session=session,
        run_config=agents.RunConfig(tracing_disabled=True, **config),
    )


def pairs(*numbers: int) -> list[dict[str, Any]]:
    return [
        {"role": role, "content": f"{text} {number}"}
        for number in numbers
        for role, text in (("user", "Message"), ("assistant", "Response"))
    ]


async def test_a_run_with_a_tool_stores_every_item(make_session: Any) -> None:
    for number in range(3):
        result = await run(agent(), f"turn {number}", make_session())
        assert result.final_output == f"answer {number}"
    items = await make_session().get_items()
    kinds = [item.get("type", item.get("role")) for item in items]
    turn = ["user", "reasoning", "function_call", "function_call_output", "message"]
    assert kinds == turn * 3
    assert [item.get("call_id") for item in items if item.get("call_id")] == [
        f"call_{number}" for number in (0, 0, 1, 1, 2, 2)
    ]


async def test_the_model_is_sent_the_history_before_the_question(make_session: Any) -> None:
    runner = agent()
    await run(runner, "turn 0", make_session())
    await run(runner, "turn 1", make_session())
    sent = runner.model.sent[2]
    assert [item.get("type", item.get("role")) for item in sent] == [
        *("user", "reasoning", "function_call", "function_call_output", "message"),
        "user",
    ]
    assert sent[-1]["content"] == "turn 1"


async def test_a_list_as_input_is_added_to_the_history(make_session: Any) -> None:
    await run(agent(), "turn 0", make_session())
    asked = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "turn 1"}]
    await run(agent(), asked, make_session())
    contents = [item.get("content") for item in await make_session().get_items()]
    assert contents[5:7] == ["Be brief.", "turn 1"]


async def test_a_callback_chooses_what_the_model_is_sent(make_session: Any) -> None:
    runner = agent()
    await run(runner, "turn 0", make_session())

    def newest_only(_: list[Any], new: list[Any]) -> list[Any]:
        return new

    await run(runner, "turn 1", make_session(), session_input_callback=newest_only)
    assert [item["content"] for item in runner.model.sent[2]] == ["turn 1"]
    assert len(await make_session().get_items()) == 10


@pytest.mark.parametrize("as_dict", [True, False])
async def test_settings_of_a_run_override_those_of_the_session(
    make_session: Any, as_dict: bool
) -> None:
    runner = agent()
    for number in range(3):
        await run(runner, f"turn {number}", make_session())
    settings = {"limit": 5} if as_dict else agents.SessionSettings(limit=5)
    session = make_session(session_settings=agents.SessionSettings(limit=10))
    runner.model.sent.clear()
    await run(runner, "turn 3", session, session_settings=settings)
    assert len(runner.model.sent[0]) == 6
    await run(runner, "turn 4", session)
    assert len(runner.model.sent[2]) == 11


@pytest.mark.parametrize(
    ("limit", "expected"), [(2, pairs(3)), (4, pairs(2, 3)), (10, pairs(1, 2, 3)), (0, [])]
)
async def test_a_limit_gives_the_newest_items(
    make_session: Any, limit: int, expected: list[dict[str, Any]]
) -> None:
    await make_session().add_items(pairs(1, 2, 3))
    assert await make_session().get_items(limit) == expected
    assert await make_session().get_items() == pairs(1, 2, 3)


async def test_a_question_is_corrected_by_popping_the_answer(make_session: Any) -> None:
    await run(agent(), "turn 0", make_session())
    await run(agent(), "turn 1", make_session())
    for _ in range(5):
        assert await make_session().pop_item() is not None
    await run(agent(), "turn 2", make_session())
    items = await make_session().get_items()
    assert [item["content"] for item in items if item.get("role") == "user"] == [
        "turn 0",
        "turn 2",
    ]


async def test_popping_more_than_there_is_gives_none(make_session: Any) -> None:
    session = make_session()
    await session.add_items(pairs(1))
    assert [await session.pop_item() for _ in range(3)] == [*pairs(1)[::-1], None]
    await session.add_items(pairs(2))
    assert await session.get_items() == pairs(2)


@pytest.mark.parametrize(
    "content",
    [
        "\u2615 \U0001f600 \u05e9\u05dc\u05d5\u05dd \u4f60\u597d",
        "'; DROP TABLE agent_messages; --",
        '{"role": "user"}',
        'line\nline\r\n\ttab \\ "quoted" \x00 \x1f',
        "x" * 100_000,
        "",
    ],
)
async def test_text_is_given_back_as_it_was(make_session: Any, content: str) -> None:
    session = make_session(f"id {content[:40]} \u2615/'\"")
    items = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    await session.add_items(items)
    assert await session.get_items() == items
    assert await make_session("another").get_items() == []


async def test_the_sdk_encrypts_items_over_any_session(make_session: Any) -> None:
    encrypt = needs("agents.extensions.memory.encrypt_session", "openai-agents").EncryptedSession
    session = encrypt(session_id="one", underlying_session=make_session(), encryption_key="key")
    await session.add_items(pairs(1, 2))
    assert await session.get_items() == pairs(1, 2)
    assert await session.pop_item() == pairs(2)[1]
    assert "Message" not in repr(await make_session().get_items())


async def test_a_streamed_run_stores_its_items(make_session: Any) -> None:
    result = agents.Runner.run_streamed(
        agent(),
        "turn 0",
        session=make_session(),
        run_config=agents.RunConfig(tracing_disabled=True),
    )
    async for _ in result.stream_events():
        pass
    assert len(await make_session().get_items()) == 5


def test_closing_is_not_needed() -> None:
    with closing(agents.SQLiteSession("one")) as session:
        assert isinstance(session, agents.Session)
    assert not hasattr(adapter.StoredSession, "close")
