"""LangGraph: what is kept of a thread, what is removed, and what it takes."""

from __future__ import annotations

import asyncio
import json
import operator
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
import pytest
from adapters_support import Backend, needs, opened
from langgraph_support import (
    THREAD,
    adapter,
    call,
    checkpoint,
    listed,
    place,
    put,
    session_of,
)

import sessionstore.sync
from sessionstore import CorruptData, Event, InvalidArgument, SessionKey
from sessionstore.adapters import checkpoints as stored
from sessionstore.observe import wrap_executor

graphs: Any = needs("langgraph.graph", "langgraph")
memory: Any = needs("langgraph.checkpoint.memory", "langgraph")
types: Any = needs("langgraph.types", "langgraph")

GOLDEN = Path(__file__).parent / "golden" / "langgraph_0_1.json"
KEY = SessionKey("langgraph", "threads", "t1")


@pytest.fixture
async def service(backend: Backend) -> AsyncIterator[Any]:
    async with opened(backend) as service:
        yield service


def saver_in_memory(**options: Any) -> Any:
    return adapter.StoredCheckpointSaver(sessionstore.sync.InMemorySessionService(), **options)


async def fields_of(service: Any, kind: str = "", **where: Any) -> set[str]:
    """Names of the saver's fields that are stored, without the parts that they are spelled of."""
    session = await session_of(service, **where)
    return {name for name in session.state if name.startswith(kind)} if session else set()


async def check_no_orphans(service: Any, **where: Any) -> None:
    """Every part of a value that is stored belongs to a checkpoint or a write, and is there."""
    state = (await session_of(service, **where)).state
    for name in stored.decode_namespaces(b"\0" + state.get("langgraph/namespaces", b"")):
        fields = stored.Fields(name)
        prefix = fields.part("").decode()[1:]
        found = {field for field in state if field.startswith(prefix)}
        ids = state[fields.space.decode()[1:]][1]
        for number in range(state[fields.space.decode()[1:]][2]):
            ids = ids + state[fields.page(number).decode()[1:]]
        needed: set[str] = set()
        for each in ids:
            record = msgspec.convert(state[fields.checkpoint(each).decode()[1:]], stored.Record)
            field = fields.writes(each)
            needed |= stored.part_names(record.blobs())
            needed |= stored.all_parts(field, b"\0" + state.get(field.decode()[1:], b""))
        assert found == {prefix + part for part in needed}
        points = fields.checkpoint("").decode()[1:]
        assert len([field for field in state if field.startswith(points)]) == len(ids)


# -- how many checkpoints are kept -----------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 3, 10, 150])
async def test_the_newest_checkpoints_are_kept(service: Any, keep: int) -> None:
    saver = adapter.StoredCheckpointSaver(service, keep_checkpoints=keep)
    made = [checkpoint(number, n=number, long="x" * 500) for number in range(2 * keep + 5)]
    for number, each in enumerate(made):
        await put(saver, each, made[number - 1] if number else None)
        await saver.aput_writes(place(each["id"]), [("a", number), ("b", "y" * 400)], "task")
    found = await listed(saver, THREAD)
    assert keep <= len(found) <= keep + keep // 4
    assert [each.checkpoint for each in found] == made[: -len(found) - 1 : -1]
    assert found[-1].parent_config is None
    assert [each.pending_writes[0][2] for each in found] == list(
        range(2 * keep + 4, 2 * keep + 4 - len(found), -1)
    )
    assert (await adapter.StoredCheckpointSaver(service).aget_tuple(THREAD)) == found[0]
    assert len(await fields_of(service, "writes/")) == len(found)
    await check_no_orphans(service)


async def test_none_keeps_all(service: Any) -> None:
    saver = adapter.StoredCheckpointSaver(service, keep_checkpoints=None)
    made = [checkpoint(number, n=number) for number in range(300)]
    for number, each in enumerate(made):
        await put(saver, each, made[number - 1] if number else None)
    found = [each.checkpoint for each in await listed(saver, THREAD)]
    assert found == made[::-1]
    first, middle = place(made[0]["id"]), place(made[150]["id"])
    assert (await saver.aget_tuple(first)).checkpoint == made[0]
    earlier = await listed(saver, THREAD, before=middle, limit=3)
    assert [each.checkpoint for each in earlier] == made[149:146:-1]


@pytest.mark.parametrize("keep", [0, -1, True, 1.5, "3"])
def test_keep_checkpoints_must_be_a_number(keep: Any) -> None:
    with pytest.raises(InvalidArgument, match="keep_checkpoints"):
        saver_in_memory(keep_checkpoints=keep)


@pytest.mark.parametrize("seed", range(3))
async def test_any_order_of_ids(service: Any, seed: int) -> None:
    chance = random.Random(seed)
    made = [checkpoint(number, n=number) for number in range(200)]
    order = made[:]
    for at in range(0, 200, 40):
        order[at : at + 40] = chance.sample(order[at : at + 40], 40)
    order[150], order[3] = order[3], order[150]
    saver = adapter.StoredCheckpointSaver(service, keep_checkpoints=None)
    for each in order:
        await put(saver, each)
    assert [each.checkpoint for each in await listed(saver, THREAD)] == made[::-1]
    await saver.aprune(["t1"], keep_last=100)
    assert [each.checkpoint for each in await listed(saver, THREAD)] == made[:99:-1]
    await check_no_orphans(service)


async def test_a_value_is_stored_once_for_all_its_checkpoints(service: Any) -> None:
    saver = adapter.StoredCheckpointSaver(service)
    values = {"big": random.Random(0).randbytes(100_000), "n": 0}
    parent = None
    for number in range(5):
        made = checkpoint(number, **values, m=number)
        made["channel_versions"] = {"big": 1, "n": 1, "m": number}
        await saver.aput(
            place(parent and parent["id"]), made, {}, {"m": number} if number else {"big": 1}
        )
        parent = made
    assert len(await fields_of(service, "data/")) <= 7 + 5  # 100,000 bytes, and what is small
    for each in await listed(saver, THREAD):
        assert each.checkpoint["channel_values"]["big"] == values["big"]
    await check_no_orphans(service)


async def test_a_list_that_grows_shares_its_parts(service: Any) -> None:
    saver = adapter.StoredCheckpointSaver(service)
    items = [random.Random(number).randbytes(1_000).hex() for number in range(120)]
    parent = None
    for number in range(60, 120):
        made = checkpoint(number, items=items[:number])
        await put(saver, made, parent)
        parent = made
    size = sum(
        len(value)
        for name, value in (await session_of(service)).state.items()
        if name.startswith("data/")
    )
    assert size < 240_000 + 60 * 34_000  # whole lists would be 60 * 180,000 bytes
    assert (await saver.aget_tuple(THREAD)).checkpoint == made


async def test_no_value_is_too_large(backend: Backend) -> None:
    limits = {"event_size_limit": 4_000, "value_size_limit": 4_000}
    async with opened(backend, **limits) as service:
        saver = adapter.StoredCheckpointSaver(service)
        made = checkpoint(1, text="x" * 3_000_000, raw=random.Random(0).randbytes(20_000_000))
        await put(saver, made)
        written = [("a", random.Random(1).randbytes(20_000_000))]
        await saver.aput_writes(place(made["id"]), written, "task")
        found = await adapter.StoredCheckpointSaver(service).aget_tuple(THREAD)
        assert found.checkpoint == made
        assert found.pending_writes == [("task", *written[0])]
        await check_no_orphans(service)


# -- a checkpoint that was removed -----------------------------------------------------------------


class Log(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]


def chat(saver: Any) -> Any:
    builder = graphs.StateGraph(Log)
    builder.add_node("answer", lambda state: {"log": [len(state["log"])]})
    builder.add_edge(graphs.START, "answer")
    return builder.compile(checkpointer=saver)


async def test_going_on_from_a_removed_checkpoint_names_the_cause(service: Any) -> None:
    saver = adapter.StoredCheckpointSaver(service, keep_checkpoints=6)
    graph = chat(saver)
    await graph.ainvoke({"log": ["first"]}, THREAD)
    first = (await graph.aget_state(THREAD)).config
    for number in range(5):
        await graph.ainvoke({"log": [number]}, THREAD)
    before = await graph.aget_state(THREAD)
    with pytest.raises(adapter.CheckpointRemoved, match="keep_checkpoints=6"):
        await graph.ainvoke({"log": ["again"]}, first)
    with pytest.raises(adapter.CheckpointRemoved):
        await graph.aupdate_state(first, {"log": ["edited"]})
    assert (await graph.aget_state(THREAD)) == before
    unknown = place(str(checkpoint(99)["id"]))
    assert await saver.aget_tuple(unknown) is None
    oldest = [each async for each in graph.aget_state_history(THREAD)][-1]
    assert oldest.parent_config is None
    forked = await graph.ainvoke({"log": ["fork"]}, oldest.config)
    assert forked["log"][-2:] == ["fork", len(forked["log"]) - 1]
    await saver.aprune(["t1"], keep_last=2)
    with pytest.raises(adapter.CheckpointRemoved):
        await graph.ainvoke(None, oldest.config)


async def test_unknown_ids_of_a_whole_thread_give_none(service: Any) -> None:
    saver = adapter.StoredCheckpointSaver(service)
    made = checkpoint(2)
    await put(saver, made)
    assert await saver.aget_tuple(place("0")) is None
    assert await saver.aget_tuple(place("zzz")) is None
    assert await saver.aget_tuple(place(made["id"], namespace="other")) is None


# -- prune and delete_for_runs ---------------------------------------------------------------------


async def test_prune_keeps_the_last_ones_of_each_namespace(service: Any) -> None:
    saver = adapter.StoredCheckpointSaver(service)
    for namespace in ("", "child"):
        parent = None
        for number in range(10):
            made = checkpoint(number, n=number, long="z" * 300 + str(number))
            await put(saver, made, parent, namespace=namespace)
            parent = made
    await saver.aprune(["t1", "missing"], keep_last=4)
    for namespace in ("", "child"):
        found = await listed(saver, place(namespace=namespace))
        assert [each.checkpoint["channel_values"]["n"] for each in found] == [9, 8, 7, 6]
    await check_no_orphans(service)
    with pytest.raises(InvalidArgument, match="keep_last"):
        await saver.aprune(["t1"], keep_last=0)


async def test_runs_are_deleted_from_all_threads(service: Any) -> None:
    saver = adapter.StoredCheckpointSaver(service)
    for thread_id in ("t1", "t2"):
        graph = chat(saver)
        for number, run_id in enumerate(("one", "two", "one")):
            config = {**place(thread_id=thread_id), "metadata": {"run_id": run_id}}
            del config["configurable"]["checkpoint_ns"]
            await graph.ainvoke({"log": [number]}, config)
    await saver.adelete_for_runs(["one"])
    for thread_id in ("t1", "t2"):
        found = await listed(saver, place(thread_id=thread_id))
        assert [each.metadata["run_id"] for each in found] == ["two"] * 3
        assert found[0].checkpoint["channel_values"]["log"] == [0, 1, 1, 3]
    await check_no_orphans(service)
    await saver.adelete_for_runs(["two"])
    assert await listed(saver, None) == []
    assert await saver.aget_tuple(THREAD) is None
    assert await fields_of(service) == {"langgraph/layout"}


async def test_runs_are_not_looked_for_with_a_user_for_each_thread() -> None:
    saver = saver_in_memory()
    each = adapter.StoredCheckpointSaver(
        sessionstore.sync.InMemorySessionService(), user_id=lambda thread_id: thread_id
    )
    await saver.adelete_for_runs([])
    with pytest.raises(InvalidArgument, match="cannot be listed"):
        await each.adelete_for_runs(["one"])


# -- subgraphs -------------------------------------------------------------------------------------


def nested(saver: Any, sub_saver: bool | None = None) -> Any:
    inner = graphs.StateGraph(Log)
    inner.add_node("step", lambda _: {"log": ["in"]})
    inner.add_node("ask", lambda _: {"log": [types.interrupt("?")]})
    inner.add_edge(graphs.START, "step")
    inner.add_edge("step", "ask")
    outer = graphs.StateGraph(Log)
    outer.add_node("inner", inner.compile(checkpointer=sub_saver))
    outer.add_edge(graphs.START, "inner")
    return outer.compile(checkpointer=saver)


async def test_calls_of_subgraphs_go_with_the_checkpoint_that_they_started_from(
    service: Any,
) -> None:
    saver = adapter.StoredCheckpointSaver(service, keep_checkpoints=8)
    graph = nested(saver)
    counts = []
    for number in range(12):
        await graph.ainvoke({"log": [number]}, THREAD)
        await graph.ainvoke(types.Command(resume="yes"), THREAD)
        counts.append(len(await fields_of(service, "space/")))
    assert max(counts[6:]) <= 6
    await check_no_orphans(service)
    history = [each async for each in graph.aget_state_history(THREAD)]
    asked = [each for each in history if each.next == ("inner",)]
    for each in asked:
        found = await graph.aget_state(each.config, subgraphs=True)
        assert found.tasks[0].name == "inner"


async def test_a_stateful_subgraph_keeps_its_state(service: Any) -> None:
    saver = adapter.StoredCheckpointSaver(service, keep_checkpoints=4)
    own = adapter.StoredCheckpointSaver(service, app_name="beside", keep_checkpoints=None)
    results = []
    for each in (saver, own):
        graph = nested(each, sub_saver=True)
        for number in range(6):
            await graph.ainvoke({"log": [number]}, THREAD)
            found = await graph.ainvoke(types.Command(resume="yes"), THREAD)
        results.append(found["log"])
    assert results[0] == results[1]
    assert await fields_of(service, "space/") == {
        name for name in await fields_of(service, "space/") if name
    }
    assert len(await fields_of(service, "space/")) == 2
    await check_no_orphans(service)


async def test_a_thread_is_one_session(service: Any) -> None:
    saver = adapter.StoredCheckpointSaver(service)
    await nested(saver).ainvoke({"log": []}, THREAD)
    assert len(await listed(saver, place(namespace=""))) < len(await listed(saver, THREAD))
    ids = {"app_name": "langgraph", "user_id": "threads"}
    sessions = await call(service, "list_sessions", **ids)
    assert [session.id for session in sessions] == ["t1"]
    assert await call(service, "list_sessions", app_name="langgraph", user_id="threads/t1") == []


def test_all_namespaces_expire_together() -> None:
    now = [1_700_000_000.0]
    service = sessionstore.sync.InMemorySessionService(session_ttl=60, clock=lambda: now[0])
    graph = nested(adapter.StoredCheckpointSaver(service))
    graph.invoke({"log": ["a"]}, THREAD)
    for _ in range(4):
        now[0] += 50
        assert graph.get_state(THREAD).next == ("inner",)
    assert graph.invoke(types.Command(resume="yes"), THREAD)["log"].count("yes") == 1
    now[0] += 70
    assert graph.get_state(THREAD).values == {}


async def test_users_and_threads_with_slashes_are_apart(service: Any) -> None:
    savers = [
        adapter.StoredCheckpointSaver(service, user_id="a"),
        adapter.StoredCheckpointSaver(service, user_id="a/b"),
    ]
    made = [checkpoint(1, of="a"), checkpoint(2, of="a/b")]
    await put(savers[0], made[0], thread_id="b", namespace="c")
    await put(savers[1], made[1], thread_id="c")
    await put(savers[1], made[1], thread_id="c", namespace="c")
    found = await savers[0].aget_tuple(place(thread_id="b", namespace="c"))
    assert found.checkpoint == made[0]
    assert [each.checkpoint for each in await listed(savers[0], None)] == [made[0]]
    await savers[0].adelete_thread("b")
    assert len(await listed(savers[1], None)) == 2


@pytest.mark.parametrize("length", [1, 249, 256])
async def test_ids_up_to_the_limit(service: Any, length: int) -> None:
    saver = adapter.StoredCheckpointSaver(service, user_id="u" * length)
    made = checkpoint(1) | {"id": "i" * 3_000}
    thread_id = "é" * (length // 2) or "e"
    await put(saver, made, thread_id=thread_id, namespace="n" * 3_000)
    await saver.aput_writes(
        place(made["id"], "n" * 3_000, thread_id), [("c" * 3_000, 1)], "t" * 3_000
    )
    [found] = await listed(saver, None)
    assert found.checkpoint == made
    assert found == await saver.aget_tuple(place(made["id"], "n" * 3_000, thread_id))
    assert found.pending_writes == [("t" * 3_000, "c" * 3_000, 1)]


# -- delta channels --------------------------------------------------------------------------------


def extend(state: list[Any] | None, writes: list[list[Any]]) -> list[Any]:
    return [*(state or []), *(item for write in writes for item in write)]


def delta_graph(saver: Any, every: int) -> Any:
    channels: Any = needs("langgraph.channels.delta", "langgraph, a newer version")
    fields = {
        "rare": Annotated[list[Any], channels.DeltaChannel(extend, list, snapshot_frequency=every)],
        "log": Annotated[list[Any], channels.DeltaChannel(extend, list, snapshot_frequency=every)],
        "left": int,
    }
    builder = graphs.StateGraph(type("Deltas", (), {"__annotations__": fields}))
    builder.add_node("one", lambda state: {"log": [state["left"]], "left": state["left"] - 1})
    builder.add_edge(graphs.START, "one")
    builder.add_conditional_edges("one", lambda state: "one" if state["left"] > 0 else graphs.END)
    return builder.compile(checkpointer=saver)


@pytest.mark.parametrize("keep", [1, 2, 5, 200])
@pytest.mark.parametrize("every", [4, 1000])
@pytest.mark.parametrize("durability", ["async", "exit"])
async def test_what_delta_channels_need_is_kept(
    service: Any, keep: int, every: int, durability: str
) -> None:
    beside = delta_graph(memory.InMemorySaver(), every)
    for turn in range(12):
        value = {"log": [f"u{turn}"], "left": 2}
        if turn in (0, 7):
            value["rare"] = [f"file {turn}"]
        saver = adapter.StoredCheckpointSaver(service, keep_checkpoints=keep)
        graph = delta_graph(saver, every)
        ours = await graph.ainvoke(value, THREAD, durability=durability)
        assert ours == await beside.ainvoke(value, THREAD, durability=durability)
    history = [each.values async for each in graph.aget_state_history(THREAD)]
    theirs = [each.values async for each in beside.aget_state_history(THREAD)]
    assert history == theirs[: len(history)]
    await check_no_orphans(service)
    await saver.aprune(["t1"])
    assert (await graph.aget_state(THREAD)).values == ours
    await check_no_orphans(service)
    await saver.acopy_thread("t1", "t2")
    assert (await graph.aget_state({"configurable": {"thread_id": "t2"}})).values == ours


async def test_forks_of_delta_channels(service: Any) -> None:
    savers = [
        adapter.StoredCheckpointSaver(service, keep_checkpoints=8),
        memory.InMemorySaver(),
    ]
    shown: list[list[Any]] = [[], []]
    for saver, results in zip(savers, shown, strict=True):
        graph = delta_graph(saver, 1000)
        for turn in range(6):
            await graph.ainvoke({"log": [turn], "left": 1, "rare": [turn]}, THREAD)
            history = [each async for each in graph.aget_state_history(THREAD, limit=4)]
            fork = await graph.aupdate_state(history[2].config, {"log": [f"edit {turn}"]})
            results.append((await graph.aget_state(fork)).values)
            results.append(await graph.ainvoke({"log": ["on"], "left": 1}, fork))
    assert shown[0] == shown[1]
    await check_no_orphans(service)


async def test_deleted_runs_leave_what_delta_channels_need(service: Any) -> None:
    saver = adapter.StoredCheckpointSaver(service)
    graph = delta_graph(saver, 1000)
    for turn, run_id in enumerate(("one", "two", "three")):
        config = {**THREAD, "metadata": {"run_id": run_id}}
        result = await graph.ainvoke({"log": [turn], "left": 1, "rare": [turn]}, config)
    await saver.adelete_for_runs(["one", "two"])
    assert (await graph.aget_state(THREAD)).values == result
    await check_no_orphans(service)


async def test_channels_that_were_not_known_to_be_delta_channels_are_not_rebuilt_wrongly(
    service: Any,
) -> None:
    saver = adapter.StoredCheckpointSaver(service, keep_checkpoints=1)
    parent = None
    for number in range(3):
        made = checkpoint(number) | {"channel_versions": {"log": number}}
        await put(saver, made, parent)
        await saver.aput_writes(place(made["id"]), [("log", [number])], "task")
        parent = made
    with pytest.raises(CorruptData, match=r"\['log'\] are rebuilt"):
        await saver.aget_delta_channel_history(config=THREAD, channels=["log"])
    history = await saver.aget_delta_channel_history(config=THREAD, channels=["other"])
    assert history == {"other": {"writes": []}}


async def test_a_history_whose_beginning_is_missing_is_not_rebuilt_wrongly(service: Any) -> None:
    saver = adapter.StoredCheckpointSaver(service)
    missing, made = checkpoint(1), checkpoint(2) | {"channel_versions": {"log": 2}}
    await put(saver, made, missing)
    with pytest.raises(CorruptData, match=r"\['log'\] are rebuilt"):
        await saver.aget_delta_channel_history(config=THREAD, channels=["log"])


def test_thousands_of_supersteps_between_snapshots() -> None:
    service = sessionstore.sync.InMemorySessionService()
    saver = adapter.StoredCheckpointSaver(service)
    graph = delta_graph(saver, 10_000)
    config = {**THREAD, "recursion_limit": 2_000}
    expected: list[Any] = []
    for turn in range(4):  # 6,000 supersteps: LangGraph writes a snapshot after 5,000
        value = {"log": ["u"], "left": 1_500, **({} if turn else {"rare": ["file"]})}
        expected += ["u", *range(1_500, 0, -1)]
        graph.invoke(value, config)
    found = delta_graph(adapter.StoredCheckpointSaver(service), 10_000).get_state(THREAD)
    assert found.values == {"rare": ["file"], "log": expected, "left": 0}


# -- threads of release 0.1.0 ----------------------------------------------------------------------


def graph_of_0_1(saver: Any) -> Any:
    inner = graphs.StateGraph(Log)
    outer = graphs.StateGraph(Log)
    for builder in (inner, outer):
        builder.add_node("think", lambda state: {"log": [f"thought {len(state['log'])}"]})
        builder.add_edge(graphs.START, "think")
    inner.add_node("ask", lambda _: {"log": [types.interrupt("Go on?")]})
    inner.add_edge("think", "ask")
    outer.add_node("inner", inner.compile())
    outer.add_edge("think", "inner")
    return outer.compile(checkpointer=saver)


@pytest.fixture
async def stored_by_0_1(service: Any) -> Any:
    golden = json.loads(GOLDEN.read_text())
    for each in golden["sessions"]:
        ids = {"user_id": each["user_id"], "session_id": each["session_id"]}
        session = await call(
            service, "create_session", app_name="langgraph", **ids, state=each["state"]
        )
        events = [msgspec.convert(event, Event, strict=False) for event in each["events"]]
        await call(service, "append_events", session, events)
        await call(service, "update_session_state", session, each["state"])
        if each["user_id"] == "threads":
            await call(service, "update_session_state", session, {"title": "mine"})
    return golden["expected"]


async def test_threads_of_0_1_0_are_read_and_continued(service: Any, stored_by_0_1: Any) -> None:
    # The user of another thread may have the name that subgraphs had.
    beside = adapter.StoredCheckpointSaver(service, user_id="threads/t1")
    await put(beside, checkpoint(1), thread_id="mine")
    graph = graph_of_0_1(adapter.StoredCheckpointSaver(service))
    assert (await graph.aget_state(THREAD)).values == stored_by_0_1["values"]
    history = [each.values async for each in graph.aget_state_history(THREAD)]
    assert history == stored_by_0_1["history"][: len(history)]
    assert len(history) == len(stored_by_0_1["history"])
    state = await graph.aget_state(THREAD, subgraphs=True)
    assert state.tasks[0].state.next == ("ask",)
    found = await graph.ainvoke(types.Command(resume="at last"), THREAD)
    assert found["log"][-2:] == [found["log"][-2], "at last"]
    assert found["log"][: len(stored_by_0_1["values"]["log"])] == stored_by_0_1["values"]["log"]
    session = await session_of(service)
    assert session.events == []
    assert session.state["title"] == "mine"
    assert not [name for name in session.state if name.startswith(("checkpoint/", "write/"))]
    left = await call(service, "list_sessions", app_name="langgraph", user_id="threads/t1")
    assert [session.id for session in left] == ["mine"]
    await check_no_orphans(service)


async def test_threads_of_0_1_0_are_deleted_and_copied(service: Any, stored_by_0_1: Any) -> None:
    saver = adapter.StoredCheckpointSaver(service)
    await saver.acopy_thread("t1", "t2")
    other = {"configurable": {"thread_id": "t2"}}
    assert (await graph_of_0_1(saver).aget_state(other)).values == stored_by_0_1["values"]


async def test_a_deleted_thread_of_0_1_0_leaves_nothing(service: Any, stored_by_0_1: Any) -> None:
    del stored_by_0_1
    await adapter.StoredCheckpointSaver(service).adelete_thread("t1")
    for user_id in ("threads", "threads/t1"):
        ids = {"app_name": "langgraph", "user_id": user_id}
        assert await call(service, "list_sessions", **ids) == []


async def test_sessions_of_something_else_are_left_alone(service: Any) -> None:
    session = await call(
        service, "create_session", app_name="langgraph", user_id="threads", session_id="t1"
    )
    await call(service, "append_event", session, Event("user", "Hello"))
    saver = adapter.StoredCheckpointSaver(service)
    assert await saver.aget_tuple(THREAD) is None
    assert await listed(saver, None) == []
    await saver.adelete_for_runs(["one"])
    await saver.aprune(["t1"])
    found = await session_of(service)
    assert ([event.content for event in found.events], found.state) == (["Hello"], {})
    made = checkpoint(1)
    await saver.aput_writes(place(made["id"]), [("a", 1)], "task")
    await put(saver, made)
    found = await adapter.StoredCheckpointSaver(service).aget_tuple(THREAD)
    assert found.pending_writes == [("task", "a", 1)]
    assert [event.content for event in (await session_of(service)).events] == ["Hello"]


class Repeating:
    """Runs every write twice, as if the reply to the first attempt had been lost."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def execute(self, call: Any) -> Any:
        if call.writes and call.idempotent:
            self.inner.execute(call)
        return self.inner.execute(call)

    def close(self) -> None:
        self.inner.close()


def test_writes_that_are_sent_again_are_stored_once() -> None:
    shown = []
    for wrap in (False, True):
        service = sessionstore.sync.InMemorySessionService()
        if wrap:
            wrap_executor(service, Repeating)
        graph = delta_graph(adapter.StoredCheckpointSaver(service, keep_checkpoints=5), 4)
        results = [graph.invoke({"log": [n], "left": 2}, THREAD) for n in range(6)]
        session = service.get_session(app_name="langgraph", user_id="threads", session_id="t1")
        assert session is not None
        kinds = [name.split("/")[0] for name in session.state]
        shown.append((results, sorted(kinds)))
    assert shown[0] == shown[1]


# -- other savers, services and serializers --------------------------------------------------------


@pytest.mark.parametrize("theirs", ["memory", "sqlite"])
async def test_threads_of_other_savers_are_continued(service: Any, theirs: str) -> None:
    if theirs == "memory":
        other = memory.InMemorySaver()
    else:
        sqlite3: Any = needs("sqlite3", "langgraph")
        sqlite: Any = needs("langgraph.checkpoint.sqlite", "langgraph-checkpoint-sqlite")
        other = sqlite.SqliteSaver(sqlite3.connect(":memory:", check_same_thread=False))
    graph = chat(other)
    for number in range(3):
        await asyncio.to_thread(graph.invoke, {"log": [number]}, THREAD)
    saver = adapter.StoredCheckpointSaver(service)
    for found in reversed([*other.list(THREAD)]):
        parent = found.parent_config or place()
        await saver.aput(parent, found.checkpoint, found.metadata, {})
        for task_id, channel, value in found.pending_writes:
            await saver.aput_writes(found.config, [(channel, value)], task_id)
    after = await chat(saver).ainvoke({"log": ["on"]}, THREAD)
    before = graph.get_state(THREAD).values["log"]
    assert after["log"] == [*before, "on", len(before) + 1]


def test_versions_continue() -> None:
    saver = saver_in_memory()
    assert saver.get_next_version(None, None) == 1
    assert saver.get_next_version(7, None) == 8
    theirs = memory.InMemorySaver()
    version = theirs.get_next_version(None, None)
    for _ in range(12):
        following = saver.get_next_version(version, None)
        assert following > version
        version = theirs.get_next_version(following, None)
        assert version > following


async def test_repeated_writes_are_kept_as_by_langgraphs_own_savers(service: Any) -> None:
    ours, theirs = adapter.StoredCheckpointSaver(service), memory.InMemorySaver()
    made = checkpoint(1)
    for saver in (ours, theirs):
        await put(saver, made)
        config = place(made["id"])
        await saver.aput_writes(config, [("a", "first"), ("__error__", "e1")], "t")
        await saver.aput_writes(
            config, [("a", "second"), ("__error__", "e2"), ("__interrupt__", "i")], "t"
        )
        await saver.aput_writes(config, [("b", "x"), ("b", "y")], "t")
        await saver.aput_writes(config, [("__error__", "e1")], "t")
    found = [(await saver.aget_tuple(THREAD)).pending_writes for saver in (ours, theirs)]
    assert sorted(found[0]) == sorted(found[1])


async def test_synchronous_methods_run_on_the_loop_of_the_service(backend: Backend) -> None:
    if backend[0] == "sync":
        pytest.skip("a service for threads has synchronous methods")
    async with opened(backend) as service:
        saver = adapter.StoredCheckpointSaver(service)
        inner = chat(saver)

        def calls_a_graph(state: Log) -> Log:
            found = inner.invoke({"log": state["log"]}, {"configurable": {"thread_id": "inner"}})
            return {"log": [sum(1 for _ in found["log"])]}

        builder = graphs.StateGraph(Log)
        builder.add_node("calls", calls_a_graph)
        builder.add_edge(graphs.START, "calls")
        graph = builder.compile(checkpointer=saver)
        assert (await graph.ainvoke({"log": ["a"]}, THREAD))["log"] == ["a", 2]
        history = await asyncio.to_thread(lambda: [*saver.list(THREAD)])
        assert len(history) == 3
        with pytest.raises(NotImplementedError, match="await its asynchronous methods"):
            saver.get_tuple(THREAD)


async def test_errors_of_a_serde_keep_their_cause(service: Any) -> None:
    class Broken:
        def dumps_typed(self, _: Any) -> Any:
            raise OSError("no key for tenant 7")

        def loads_typed(self, _: Any) -> Any:
            raise OSError("no key for tenant 7")

    saver = adapter.StoredCheckpointSaver(service, serde=Broken())
    with pytest.raises(InvalidArgument) as caught:
        await put(saver, checkpoint(1, a=1))
    assert isinstance(caught.value.__cause__, OSError)
    await put(adapter.StoredCheckpointSaver(service), checkpoint(1))
    with pytest.raises(OSError, match="tenant 7"):
        await saver.aget_tuple(THREAD)


async def test_a_thread_that_others_have_stored_again_is_read_again(service: Any) -> None:
    one, other = (adapter.StoredCheckpointSaver(service) for _ in range(2))
    made = checkpoint(1, text="x" * 500)
    await put(one, made)
    await other.adelete_thread("t1")
    await put(other, {**made, "channel_values": {"text": "y" * 500}})
    following = {**checkpoint(2, text="x" * 500), "channel_versions": made["channel_versions"]}
    await one.aput(place(made["id"]), following, {}, {})
    assert (await other.aget_tuple(THREAD)).checkpoint == following
    await check_no_orphans(service)


async def test_writers_in_parallel_lose_nothing(service: Any) -> None:
    savers = [adapter.StoredCheckpointSaver(service, keep_checkpoints=None) for _ in range(3)]
    made = [checkpoint(number, n=number, long="q" * 300) for number in range(60)]
    await asyncio.gather(*(put(savers[n % 3], each) for n, each in enumerate(made)))
    found = [each.checkpoint for each in await listed(savers[0], THREAD)]
    assert found == made[::-1]
    await asyncio.gather(
        *(
            savers[number % 3].aput_writes(
                place(made[-1]["id"]), [("a", number), ("b", "w" * 400)], f"t{number:02}"
            )
            for number in range(60)
        )
    )
    writes = (await savers[1].aget_tuple(THREAD)).pending_writes
    assert [value for _, channel, value in writes if channel == "a"] == list(range(60))
    await check_no_orphans(service)


async def test_listing_reads_no_more_than_it_returns(backend: Backend) -> None:
    async with opened(backend) as service:
        saver = adapter.StoredCheckpointSaver(service, keep_checkpoints=None)
        parent = None
        for number in range(200):
            made = checkpoint(number, big=random.Random(number).randbytes(20_000))
            await put(saver, made, parent)
            parent = made
        read: list[int] = []
        records = saver._threads.records

        def counting(ops: Any, key: Any, fields: Any, wanted: Any) -> Any:
            wanted = list(wanted)
            read.append(len(wanted))
            return records(ops, key, fields, wanted)

        saver._threads.records = counting
        found = await listed(saver, place(), limit=7)
        assert found[0].checkpoint["id"] == made["id"]
        assert read == [7]


def test_long_use_in_short() -> None:
    long_use: Any = needs("long_use_langgraph", "langgraph")
    long_use.short()
