"""Claude Agent SDK: its conformance kit and helpers, repeats, summaries, trimming, deletion."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from adapters_support import Backend, needs, opened, run_example
from long_use_support import run as run_long_use

import sessionstore
from sessionstore import BackendUnavailable, CorruptData, Event, InvalidArgument, SessionKey
from sessionstore.calls import AsyncExecutor, Call
from sessionstore.observe import wrap_executor

sdk: Any = needs("claude_agent_sdk", "claude-agent")
testing: Any = needs("claude_agent_sdk.testing", "claude-agent")
adapter: Any = needs("sessionstore.adapters.claude_agent", "claude-agent")

MAIN = {"project_key": "-home-ann-shop", "session_id": str(UUID(int=1))}
SUB = {**MAIN, "subpath": "subagents/agent-1"}


def stored(service: Any, app_name: str = "shop") -> Any:
    return adapter.ClaudeSessionStore(service, app_name=app_name)


@pytest.fixture
async def service(backend: Backend) -> AsyncIterator[Any]:
    async with opened(backend) as service:
        yield service


def entry(number: int, **fields: Any) -> dict[str, Any]:
    """An entry with a uuid and a timestamp."""
    stamp = f"2024-05-15T12:{number // 60 % 60:02}:{number % 60:02}.000Z"
    return {"type": "user", "uuid": str(UUID(int=number)), "timestamp": stamp, **fields}


def turns(num_turns: int, first: int = 1) -> list[dict[str, Any]]:
    """Prompts, calls, results and answers, each of which follows the one before."""
    found: list[dict[str, Any]] = []
    for turn in range(num_turns):
        call = f"toolu_{first}_{turn}"
        contents: list[tuple[str, Any]] = [
            ("user", f"prompt {turn}"),
            ("assistant", [{"type": "tool_use", "id": call, "name": "look", "input": {}}]),
            ("user", [{"type": "tool_result", "tool_use_id": call, "content": "x"}]),
            ("assistant", [{"type": "text", "text": f"answer {turn}"}]),
        ]
        for role, content in contents:
            parent = found[-1]["uuid"] if found else None
            message = {"role": role, "content": content}
            made = entry(first + len(found), type=role, parentUuid=parent, message=message)
            found.append(made)
    return found


class Failing:
    """Fails Calls of a name: the first of them, before or after it was carried out."""

    def __init__(self, inner: AsyncExecutor, name: str, after: bool) -> None:
        self._inner, self._name, self._after = inner, name, after

    async def execute(self, call: Call[Any]) -> list[Any]:
        if call.name != self._name:
            return await self._inner.execute(call)
        self._name = ""
        if self._after:
            await self._inner.execute(call)
        raise BackendUnavailable("the connection was lost", maybe_applied=True)

    async def aclose(self) -> None:
        await self._inner.aclose()


# -- the SDK's own tests and helpers ---------------------------------------------------------------


async def test_the_sdks_conformance_kit_passes(service: Any) -> None:
    await testing.run_session_store_conformance(lambda: stored(service, f"shop-{uuid4()}"))


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A project of which Claude Code has a transcript on disk, with that of a subagent."""
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "config"))
    project = tmp_path / "project"
    project.mkdir()
    folder = tmp_path / "config" / "projects" / sdk.project_key_for_directory(str(project))
    agents = folder / MAIN["session_id"] / "subagents"
    agents.mkdir(parents=True)
    for path, entries in [
        (folder / f"{MAIN['session_id']}.jsonl", turns(3)),
        (agents / "agent-1.jsonl", turns(1, first=100)),
    ]:
        path.write_text("".join(json.dumps(each) + "\n" for each in entries))
    (agents / "agent-1.meta.json").write_text(json.dumps({"agentType": "helper"}))
    return str(project)


async def test_the_sdks_helpers_work(service: Any, directory: str) -> None:
    store = stored(service)
    session_id = MAIN["session_id"]
    where = {"directory": directory}
    for _ in range(2):  # an import may be repeated
        await sdk.import_session_to_store(session_id, store, **where)
    key = {"project_key": sdk.project_key_for_directory(directory), "session_id": session_id}
    assert await store.load(key) == turns(3)
    assert await store.list_subkeys(key) == ["subagents/agent-1"]
    sub = {**key, "subpath": "subagents/agent-1"}
    assert (await store.load(sub))[:4] == turns(1, first=100)

    [info] = await sdk.list_sessions_from_store(store, **where)
    assert (info.session_id, info.first_prompt) == (session_id, "prompt 0")
    await sdk.rename_session_via_store(store, session_id, "Mugs", **where)
    await sdk.tag_session_via_store(store, session_id, "blue", **where)
    info = await sdk.get_session_info_from_store(store, session_id, **where)
    assert (info.custom_title, info.tag) == ("Mugs", "blue")
    [info] = await sdk.list_sessions_from_store(store, **where)
    assert (info.custom_title, info.tag) == ("Mugs", "blue")

    messages = await sdk.get_session_messages_from_store(store, session_id, **where)
    assert [message.type for message in messages] == ["user", "assistant"] * 6
    fork = await sdk.fork_session_via_store(store, session_id, **where)
    forked = await sdk.get_session_messages_from_store(store, fork.session_id, **where)
    assert [each.message for each in forked] == [each.message for each in messages]
    assert len(await sdk.list_sessions_from_store(store, **where)) == 2
    await sdk.delete_session_via_store(store, session_id, **where)
    assert await store.load(key) is None
    assert await store.load(sub) is None
    assert len(await sdk.list_sessions_from_store(store, **where)) == 1


def test_the_example_runs() -> None:
    assert run_example("claude_agent_example.py").splitlines() == [
        "Do you remember me? The transcript has 1 messages.",
        "And now? The transcript has 3 messages.",
        "The store has one session: Do you remember me?",
    ]


def test_the_example_runs_on_a_server(server: Any) -> None:
    assert "The transcript has 3 messages." in run_example("claude_agent_example.py", server.url)


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "half of a pair: \ud83d",
        {"\udc00": ["\ud800", "x\udfff"]},
        float("inf"),
        1 << 200,
        -0.0,
        [1.0, 1, True, None, 1e-300],
        {"": {}, "$": [[]]},
        "\x00\u2028\x7f\U0001f600",
        [[["x"]]] * 3,
    ],
    ids=ascii,
)
@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_entries_are_loaded_as_json_gives_them_back(
    backend: Backend, codec: str, value: Any
) -> None:
    entries = [entry(1, found=value), entry(2), {"type": "custom-title", "customTitle": value}]
    async with opened(backend, codec=codec) as service:
        store = stored(service)
        for key in (MAIN, SUB):
            await store.append(key, entries)
            found = await store.load(key)
            assert found == entries
            assert json.dumps(found) == json.dumps(entries)
        [summary] = await store.list_session_summaries(MAIN["project_key"])
        assert summary["data"] == sdk.fold_session_summary(None, MAIN, entries)["data"]


@pytest.mark.parametrize("odd", ["text", None, {"type": "x", "raw": b"x"}, {"type": {1, 2}}])
async def test_what_is_no_entry_is_refused(service: Any, odd: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^entries\[1\]"):
        await stored(service).append(MAIN, [entry(1), odd])
    assert await stored(service).load(MAIN) is None
    assert await stored(service).list_sessions(MAIN["project_key"]) == []


async def test_types_and_times_that_are_odd_are_stored(service: Any) -> None:
    entries = [
        {"type": ""},
        {"type": 5, "uuid": 7},
        {"uuid": "", "timestamp": "soon"},
        {"type": "x", "uuid": "1", "timestamp": "2024-01-01T00:00:00"},
        {"type": "\ud800", "uuid": "\ud800"},
        {},
    ]
    await stored(service).append(MAIN, entries)
    assert await stored(service).load(MAIN) == entries


@pytest.mark.parametrize(
    "key",
    [
        {**MAIN, "subpath": ""},
        {**MAIN, "session_id": ""},
        {**MAIN, "project_key": ""},
        {**MAIN, "subpath": "x" * 257},
        {**MAIN, "project_key": None},
    ],
)
async def test_a_key_that_is_not_valid_is_refused(service: Any, key: Any) -> None:
    for ask in (stored(service).append(key, [entry(1)]), stored(service).load(key)):
        with pytest.raises(InvalidArgument):
            await ask
    assert await stored(service).list_sessions(MAIN["project_key"]) == []


async def test_keys_do_not_collide(service: Any) -> None:
    keys = [
        {"project_key": "a", "session_id": "b"},
        {"project_key": "a", "session_id": "b/c"},
        {"project_key": "a", "session_id": "b", "subpath": "c"},
        {"project_key": "a", "session_id": "b", "subpath": "c/d"},
        {"project_key": "a", "session_id": "b/c", "subpath": "d"},
        {"project_key": "a/b", "session_id": "c"},
        {"project_key": "a/b", "session_id": "c", "subpath": "d"},
        {"project_key": "a%2Fb", "session_id": "c"},
        {"project_key": "-" * 207, "session_id": str(UUID(int=1)), "subpath": "subagents/1"},
    ]
    store = stored(service)
    for number, key in enumerate(keys):
        await store.append(key, [entry(number)])
    for number, key in enumerate(keys):
        assert await store.load(key) == [entry(number)]
    assert sorted(each["session_id"] for each in await store.list_sessions("a")) == ["b", "b/c"]
    assert [each["session_id"] for each in await store.list_sessions("a/b")] == ["c"]
    assert sorted(await store.list_subkeys(keys[0])) == ["c", "c/d"]
    await store.delete(keys[0])
    left = [number for number, key in enumerate(keys) if await store.load(key) is not None]
    assert left == [1, 4, 5, 6, 7, 8]


async def test_what_is_no_transcript_is_not_read_as_one(service: Any) -> None:
    await stored(service).append(MAIN, [entry(1)])
    key = SessionKey("shop", MAIN["project_key"], MAIN["session_id"])
    for content in ("Hi", None, "[1]"):
        appended = service.append_event(key, Event("user", content))
        if isinstance(appended, Awaitable):
            await appended
        with pytest.raises(CorruptData, match="is not an entry of a transcript"):
            await stored(service).load(MAIN)


# -- repeats ---------------------------------------------------------------------------------------


async def test_entries_with_a_uuid_are_stored_once(service: Any) -> None:
    store = stored(service)
    entries = [entry(number) for number in range(6)]
    for key in (MAIN, SUB):
        await store.append(key, entries[:4])
        await store.append(key, entries[:4])
        await store.append(key, entries[2:] + entries[:1])  # a part of it is new
        await store.append(key, [{**entries[1], "changed": True}])
        assert await store.load(key) == entries


async def test_entries_without_a_uuid_are_all_stored(service: Any) -> None:
    store = stored(service)
    tags = [{"type": "tag", "tag": tag} for tag in "aba"]
    for key in (MAIN, SUB):
        for tag in tags:
            await store.append(key, [tag])
        await store.append(key, [tags[0], tags[0]])
        assert await store.load(key) == [*tags, tags[0], tags[0]]


async def test_a_repeated_batch_stores_its_entries_without_a_uuid_once(service: Any) -> None:
    store = stored(service)
    batch = [{"type": "mode"}, entry(1), {"type": "mode"}, {"type": "mode"}]
    for _ in range(3):
        await store.append(MAIN, batch)
    assert await store.load(MAIN) == batch
    await store.append(MAIN, [{"type": "mode"}, entry(2)])
    assert await store.load(MAIN) == [*batch, {"type": "mode"}, entry(2)]


@pytest.mark.parametrize("is_applied", [False, True])
@pytest.mark.parametrize("name", ["append_events", "get_or_create_session"])
@pytest.mark.parametrize("key", [MAIN, SUB], ids=["main", "sub"])
async def test_a_batch_whose_append_failed_can_be_appended_again(
    key: Any, name: str, is_applied: bool
) -> None:
    batch = [entry(1), {"type": "custom-title", "customTitle": "Mugs"}, {"type": "mode"}]
    async with sessionstore.InMemorySessionService() as service:
        wrap_executor(service, lambda inner: Failing(inner, name, is_applied))
        with pytest.raises(BackendUnavailable):
            await stored(service).append(key, batch)
        await stored(service).append(key, batch)
        assert await stored(service).load(key) == batch
        if key is MAIN:
            [summary] = await stored(service).list_session_summaries(MAIN["project_key"])
            assert summary["data"] == sdk.fold_session_summary(None, MAIN, batch)["data"]


# -- summaries -------------------------------------------------------------------------------------


async def test_concurrent_appends_lose_nothing_and_the_summary_fits(service: Any) -> None:
    """Whatever the order of the appends was, the summary is that of the stored order."""
    batches = [
        [
            entry(10 * task + number, message={"content": f"prompt {task}"}, customTitle=str(task))
            for number in range(5)
        ]
        for task in range(12)
    ]
    await asyncio.gather(*(stored(service).append(MAIN, batch) for batch in batches))
    found = await stored(service).load(MAIN)
    assert sorted(each["uuid"] for each in found) == sorted(
        each["uuid"] for batch in batches for each in batch
    )
    [summary] = await stored(service).list_session_summaries(MAIN["project_key"])
    expected = sdk.fold_session_summary(None, MAIN, found)
    assert summary["data"] == expected["data"]
    assert summary["data"]["custom_title"] == found[-1]["customTitle"]
    [listed] = await stored(service).list_sessions(MAIN["project_key"])
    assert summary["mtime"] == listed["mtime"]


async def test_more_entries_than_go_in_one_call(service: Any) -> None:
    entries = [entry(number, customTitle=str(number)) for number in range(700)]
    for key in (MAIN, SUB):
        await stored(service).append(key, entries[:500])  # as if the second call had failed
        await stored(service).append(key, entries)
        assert await stored(service).load(key) == entries
    [summary] = await stored(service).list_session_summaries(MAIN["project_key"])
    assert summary["data"]["custom_title"] == "699"


async def test_a_summary_is_folded_from_entries_that_are_new_before_a_stored_one(
    service: Any,
) -> None:
    """The last entry of the batch was stored before, so it brings no state."""
    await stored(service).append(MAIN, [entry(3)])
    await stored(service).append(MAIN, [entry(1, customTitle="Mugs"), entry(3)])
    [summary] = await stored(service).list_session_summaries(MAIN["project_key"])
    assert summary["data"]["custom_title"] == "Mugs"


# -- trimming and deletion -------------------------------------------------------------------------


@pytest.mark.parametrize("event_limit", range(4, 13))
async def test_a_trimmed_transcript_begins_with_a_turn(event_limit: int) -> None:
    written = [{"type": "mode"}, *turns(3)]
    async with sessionstore.InMemorySessionService(session_event_limit=event_limit) as service:
        await stored(service).append(MAIN, written)
        found = await stored(service).load(MAIN)
    assert found == written[-(event_limit // 4 * 4) :]


async def test_a_transcript_that_was_not_trimmed_is_loaded_whole(service: Any) -> None:
    written = [{"type": "mode"}, {"type": "summary", "leafUuid": "x"}, *turns(2)]
    await stored(service).append(MAIN, written)
    assert await stored(service).load(MAIN) == written


async def test_not_one_turn_is_left(backend: Backend) -> None:
    written = turns(2)
    async with opened(backend, session_event_limit=2) as service:
        await stored(service).append(MAIN, written)
        assert await stored(service).load(MAIN) == written[-1:]  # the result has no call


async def test_a_deletion_that_failed_is_completed_by_a_repeat() -> None:
    async with sessionstore.InMemorySessionService() as service:
        store = stored(service)
        for key in (MAIN, SUB):
            await store.append(key, [entry(1)])
        wrap_executor(service, lambda inner: Failing(inner, "delete_session", False))
        with pytest.raises(BackendUnavailable):
            await store.delete(MAIN)
        assert await store.load(MAIN) == [entry(1)]
        await store.delete(MAIN)
        assert await service.list_users("shop") == []


async def test_an_idle_transcript_expires() -> None:
    now = [1_700_000_000.0]
    service = sessionstore.InMemorySessionService(session_ttl=60, clock=lambda: now[0])
    for key in (MAIN, SUB):
        await stored(service).append(key, [entry(1)])
    now[0] += 59
    assert await stored(service).load(SUB) == [entry(1)]
    now[0] += 30
    assert await stored(service).load(SUB) == [entry(1)]
    assert await stored(service).load(MAIN) is None
    assert await stored(service).list_sessions(MAIN["project_key"]) == []


async def test_long_use_in_short(server: Any) -> None:
    """24 turns with restarts and killed workers; long_use_claude_agent.py takes 2,000."""
    transcripts = needs("long_use_claude_agent", "claude-agent")
    sizes = await run_long_use(
        transcripts.__file__,
        "transcripts",
        transcripts.Transcripts,
        server.url,
        turns=24,
        restart_every=6,
        kill_every=24,
        limit=30,
        options={"session_event_limit": 30, "session_ttl": 600},
    )
    assert sizes[-1] < 2 * sizes[1]


def test_the_repr_names_the_service() -> None:
    text = repr(stored(sessionstore.InMemorySessionService()))
    assert text == "ClaudeSessionStore(InMemorySessionService(), app_name='shop')"
