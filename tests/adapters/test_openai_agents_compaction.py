"""OpenAI Agents SDK: its compaction over our session replaces items in one step, or none."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from adapters_support import Backend, losing_replies, needs, opened

from sessionstore import BackendTimeout, SessionKey, StaleVersion

agents: Any = needs("agents", "openai-agents")
adapter: Any = needs("sessionstore.adapters.openai_agents", "openai-agents")
memory: Any = needs("agents.memory", "openai-agents")
support: Any = needs("openai_agents_support", "openai-agents")

if not hasattr(needs("agents.memory.session", "openai-agents"), "_CompactionSnapshot"):
    pytest.skip("this version of the SDK compacts in two steps", allow_module_level=True)

KEY = SessionKey("shop", "ann", "one")
SUMMARY = {"type": "compaction", "encrypted_content": "summary", "id": "cmp_1"}


@pytest.fixture
async def service(backend: Backend) -> AsyncIterator[Any]:
    async with opened(backend) as service:
        yield service


def stored(service: Any, kind: Any = adapter.StoredSession, **options: Any) -> Any:
    return kind("one", service, app_name="shop", user_id="ann", **options)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def turn(number: int) -> list[dict[str, Any]]:
    call_id = f"call_{number}"
    return [
        user(f"turn {number}"),
        {"type": "reasoning", "id": f"rs_{number}", "summary": []},
        {"type": "function_call", "call_id": call_id, "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": call_id, "output": "done"},
        {"role": "assistant", "content": f"answer {number}"},
    ]


def turns(*numbers: int) -> list[dict[str, Any]]:
    return [item for number in numbers for item in turn(number)]


class Client:
    """Compacts to the user's words and a summary; `meanwhile` runs before it answers."""

    def __init__(self, meanwhile: Any = None) -> None:
        self.responses = self
        self.meanwhile = meanwhile
        self.asked: list[Any] = []

    async def compact(self, **asked: Any) -> Any:
        self.asked.append(asked)
        if self.meanwhile is not None:
            await self.meanwhile()
        said = [item for item in asked.get("input", ()) if item.get("role") == "user"]
        return SimpleNamespace(output=[*said, SUMMARY], usage=None)


def compacting(session: Any, client: Client) -> Any:
    return memory.OpenAIResponsesCompactionSession(
        "one", session, client=client, compaction_mode="input"
    )


# -- by hand ---------------------------------------------------------------------------------------


async def test_all_items_are_replaced(service: Any) -> None:
    session = compacting(stored(service), Client())
    await session.add_items(turns(0, 1))
    await session.run_compaction({"force": True})
    compacted = [user("turn 0"), user("turn 1"), SUMMARY]
    assert await stored(service).get_items() == compacted
    await session.add_items(turn(2))
    assert await stored(service).get_items() == [*compacted, *turn(2)]
    await session.run_compaction({"force": True})
    assert len(await stored(service).get_items()) == 4


@pytest.mark.parametrize("reads_first", [True, False])
async def test_what_others_write_meanwhile_is_not_lost(service: Any, reads_first: bool) -> None:
    async def others_write() -> None:
        await stored(service).add_items([user("meanwhile")])

    session = compacting(stored(service), Client(others_write))
    if reads_first:
        assert await session.get_items() == []
    await session.add_items(turns(0, 1))
    with pytest.raises(StaleVersion, match="nothing was replaced"):
        await session.run_compaction({"force": True})
    assert await stored(service).get_items() == [*turns(0, 1), user("meanwhile")]
    session = compacting(stored(service), Client())
    await session.run_compaction({"force": True})
    assert len(await stored(service).get_items()) == 4


async def test_items_that_the_wrapper_has_cached_are_checked_too(service: Any) -> None:
    session = compacting(stored(service), Client())
    await session.add_items(turn(0))
    await session.run_compaction({"force": True})  # which caches the items
    await session.add_items(turn(1))
    await stored(service).add_items([user("of others")])
    with pytest.raises(StaleVersion):
        await session.run_compaction({"force": True})
    assert (await stored(service).get_items())[-1] == user("of others")


@pytest.mark.parametrize("applies", [True, False])
async def test_a_lost_reply_leaves_all_or_the_summary(service: Any, applies: bool) -> None:
    session = compacting(stored(service), Client())
    await session.add_items(turns(0, 1))
    client_asked = session.client.asked

    async def lose() -> None:
        session.client.lost = losing_replies(service, applies=applies)
        session.client.lost.__enter__()

    session.client.meanwhile = lose
    with pytest.raises(BackendTimeout):
        await session.run_compaction({"force": True})
    session.client.lost.__exit__(None, None, None)
    assert len(client_asked) == 1
    expected = [user("turn 0"), user("turn 1"), SUMMARY] if applies else turns(0, 1)
    assert await stored(service).get_items() == expected


async def test_a_session_that_does_not_exist_is_created(service: Any) -> None:
    assert await stored(service)._atomic_replace_items([user("a"), SUMMARY])
    assert await stored(service).get_items() == [user("a"), SUMMARY]
    assert await stored(service)._atomic_replace_items([])
    assert await stored(service).get_items() == []
    await stored(service).add_items([user("b")])
    assert await stored(service).get_items() == [user("b")]


async def test_state_and_ttl_stay(backend: Backend) -> None:
    if backend[0] == "sync":
        pytest.skip("the fixture checks the deadlines of both kinds alike")
    async with opened(backend) as service:
        await service.create_session(
            app_name="shop", user_id="ann", session_id="one", state={"cart": [1]}
        )
        await stored(service).add_items(turn(0))
        assert await stored(service)._atomic_replace_items([SUMMARY])
        session = await service.get_session(app_name="shop", user_id="ann", session_id="one")
    assert session.state == {"cart": [1]}
    assert [event.content for event in session.events] == [SUMMARY]
    assert session.event_count == 1


# -- after a run: a part of the items, from a snapshot ---------------------------------------------


@pytest.mark.parametrize("limit", [3, 5, 7, 10, 12, 99])
@pytest.mark.parametrize("start", [0, 1, 4])
async def test_the_newest_items_are_replaced(service: Any, limit: int, start: int) -> None:
    await stored(service).add_items(turns(0, 1, 2))
    snapshot = await stored(service)._get_compaction_snapshot(limit)
    assert snapshot.complete == (limit >= 15)
    assert snapshot.items == turns(0, 1, 2)[-(limit // 5) * 5 :] if limit >= 5 else snapshot.items
    if start >= len(snapshot.items):
        assert not await snapshot.replace_suffix(start, [SUMMARY])
        return
    kept = turns(0, 1, 2)[: 15 - len(snapshot.items) + start]
    assert await snapshot.replace_suffix(start, [SUMMARY, user("new")])
    if limit >= 5:  # otherwise the snapshot holds a part of a turn
        assert await stored(service).get_items() == [*kept, SUMMARY, user("new")]
    assert not await snapshot.replace_suffix(start, [])  # a second time


@pytest.mark.parametrize("write", ["add", "pop", "clear", "delete", "state"])
async def test_a_stale_snapshot_replaces_nothing(service: Any, write: str) -> None:
    await stored(service).add_items(turns(0, 1))
    snapshot = await stored(service)._get_compaction_snapshot(11)
    if write == "add":
        await stored(service).add_items([user("meanwhile")])
    elif write == "pop":
        await stored(service).pop_item()
    elif write == "clear":
        await stored(service).clear_session()
    elif write == "delete":
        await _call(service.delete_session(app_name="shop", user_id="ann", session_id="one"))
    else:
        await _call(service.update_session_state(KEY, {"n": 1}))
    before = await stored(service).get_items()
    assert not await snapshot.replace_suffix(0, [SUMMARY])
    assert await stored(service).get_items() == before


async def test_items_that_are_not_shown_do_not_come_back(backend: Backend) -> None:
    async with opened(backend, session_event_limit=12) as service:
        await stored(service).add_items(turns(0, 1, 2))
        session = stored(service)
        assert await session.get_items() == turns(1, 2)
        snapshot = await session._get_compaction_snapshot(99)
        assert (snapshot.items, snapshot.complete) == (turns(1, 2), True)
        assert await snapshot.replace_suffix(5, [SUMMARY])
        assert await session.get_items() == [*turn(1), SUMMARY]


async def test_a_snapshot_of_a_trimmed_session_begins_with_a_turn(backend: Backend) -> None:
    async with opened(backend, session_event_limit=12) as service:
        session = stored(service)
        await session.add_items(turns(0, 1, 2))
        await session.pop_item()
        snapshot = await session._get_compaction_snapshot(99)
    assert snapshot.items == turns(1, 2)[:-1]


async def test_a_replacement_keeps_to_the_limit(backend: Backend) -> None:
    async with opened(backend, session_event_limit=5) as service:
        await stored(service).add_items(turn(0))
        assert await stored(service)._atomic_replace_items([user(str(n)) for n in range(8)])
        assert await stored(service).get_items() == [user(str(n)) for n in range(3, 8)]


async def test_subclasses_are_left_to_the_sdk(service: Any) -> None:
    session = stored(service, type("Own", (adapter.StoredSession,), {}))
    await session.add_items(turn(0))
    assert await session._get_compaction_snapshot(9) is None
    assert not await session._atomic_replace_items([SUMMARY])
    assert await session.get_items() == turn(0)


async def _call(result: Any) -> Any:
    return await result if hasattr(result, "__await__") else result


def test_the_sdk_still_looks_for_the_names_that_we_offer() -> None:
    source = inspect.getsource(memory.openai_responses_compaction_session)
    for name in ("_get_compaction_snapshot", "_atomic_replace_items"):
        assert hasattr(adapter.StoredSession, name)
        assert f'"{name}"' in source


# -- with the Runner -------------------------------------------------------------------------------


async def test_the_runner_compacts_in_one_step(service: Any) -> None:
    client = Client()
    writes: list[str] = []
    session = compacting(stored(service), client)
    session.should_trigger_compaction = lambda context: (
        len(context["compaction_candidate_items"]) > 8
    )
    inner = service._executor

    class Watching:
        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def execute(self, call: Any) -> Any:
            if call.writes:
                writes.append(call.name)
            return inner.execute(call)

    service._executor = Watching()
    model = support.ScriptedModel()
    agent = agents.Agent(name="shop", model=model, tools=[model.tool])
    for number in range(8):
        await agents.Runner.run(
            agent,
            f"turn {number}",
            session=session,
            run_config=agents.RunConfig(tracing_disabled=True),
        )
    service._executor = inner
    assert len(client.asked) >= 2
    assert "clear_events" not in writes
    assert writes.count("replace_newest") == len(client.asked)
    items = await stored(service).get_items()
    said = [item["content"] for item in items if item.get("role") == "user"]
    assert said == [f"turn {number}" for number in range(8)]
    assert sum(item.get("type") == "compaction" for item in items) >= 1
