"""LangGraph: what is kept of a thread, what is removed, and what it takes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from adapters_support import Backend, needs, opened
from langgraph_support import (
    THREAD,
    Log,
    adapter,
    call,
    chat,
    check_no_orphans,
    checkpoint,
    delta_graph,
    fields_of,
    graphs,
    listed,
    place,
    put,
    session_of,
)

import sessionstore.sync
from sessionstore import BackendUnavailable, CorruptData, InvalidArgument
from sessionstore.observe import wrap_executor

memory: Any = needs("langgraph.checkpoint.memory", "langgraph")
types: Any = needs("langgraph.types", "langgraph")


@pytest.fixture
async def service(backend: Backend) -> AsyncIterator[Any]:
    async with opened(backend) as service:
        yield service


def saver_in_memory(**options: Any) -> Any:
    return adapter.StoredCheckpointSaver(sessionstore.sync.InMemorySessionService(), **options)


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


def test_a_checkpoint_is_stored_even_if_others_cannot_be_removed() -> None:
    class FailsOnce:
        """Loses the connection before the third write: the removal after the second put."""

        writes = 0

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def execute(self, called: Any) -> Any:
            FailsOnce.writes += called.name == "change_fields"
            if FailsOnce.writes == 3:
                FailsOnce.writes += 1
                raise BackendUnavailable("no connection", maybe_applied=False)
            return self.inner.execute(called)

        def close(self) -> None:
            self.inner.close()

    service = sessionstore.sync.InMemorySessionService()
    saver = adapter.StoredCheckpointSaver(service, keep_checkpoints=1)
    made = [checkpoint(number, n=number) for number in range(3)]
    service.get_or_create_session(app_name="langgraph", user_id="threads", session_id="t1")
    saver.put(place(), made[0], {}, {})
    wrap_executor(service, FailsOnce)
    FailsOnce.writes = 1
    saver.put(place(made[0]["id"]), made[1], {}, {})
    assert FailsOnce.writes == 4
    assert [each.checkpoint for each in saver.list(THREAD)] == made[1::-1]
    saver.put(place(made[1]["id"]), made[2], {}, {})
    assert [each.checkpoint for each in saver.list(THREAD)] == made[2:]


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


async def test_a_checkpoint_that_is_put_again_with_other_values(service: Any) -> None:
    saver = adapter.StoredCheckpointSaver(service)
    first, second, third = (checkpoint(number, text=f"{number}" * 500) for number in range(3))
    await put(saver, first)
    await put(saver, third, second)
    await put(saver, second, first)  # late
    for text in ("x" * 40_000, "y" * 500, "z" * 500):
        second = {**second, "channel_values": {"text": text}}
        await put(saver, second, first)
        await put(adapter.StoredCheckpointSaver(service), second, first)
        assert (await saver.aget_tuple(place(second["id"]))).checkpoint == second
        await check_no_orphans(service)
    assert [each.checkpoint for each in await listed(saver, THREAD)] == [third, second, first]
    assert len(await fields_of(service, "data/")) == 8  # of 40,000 letters three, else one
    await saver.aprune(["t1"])
    assert [each.checkpoint for each in await listed(saver, THREAD)] == [third]
    assert len(await fields_of(service, "data/")) == 1
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
