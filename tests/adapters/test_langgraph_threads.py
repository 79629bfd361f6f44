"""LangGraph: threads of earlier releases and other savers, other services and serializers."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
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
    graphs,
    listed,
    place,
    put,
    session_of,
)

import sessionstore.sync
from sessionstore import Event, InvalidArgument
from sessionstore.observe import wrap_executor

memory: Any = needs("langgraph.checkpoint.memory", "langgraph")
types: Any = needs("langgraph.types", "langgraph")

GOLDEN = Path(__file__).parent / "golden" / "langgraph_0_1.json"


@pytest.fixture
async def service(backend: Backend) -> AsyncIterator[Any]:
    async with opened(backend) as service:
        yield service


def saver_in_memory(**options: Any) -> Any:
    return adapter.StoredCheckpointSaver(sessionstore.sync.InMemorySessionService(), **options)


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


async def test_a_thread_of_0_1_0_is_converted_once(service: Any, stored_by_0_1: Any) -> None:
    savers = [adapter.StoredCheckpointSaver(service) for _ in range(4)]
    found = await asyncio.gather(*(saver.aget_tuple(THREAD) for saver in savers))
    assert found[1:] == found[:-1]
    assert found[0].checkpoint["channel_values"]["log"] == stored_by_0_1["values"]["log"]
    assert len(await listed(savers[0], place())) == len(stored_by_0_1["history"])
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


async def test_listing_reads_no_more_than_it_returns(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(backend) as service:
        saver = adapter.StoredCheckpointSaver(service, keep_checkpoints=None)
        parent = None
        for number in range(200):
            made = checkpoint(number, big=random.Random(number).randbytes(20_000))
            await put(saver, made, parent)
            parent = made
        read: list[int] = []
        thread: Any = needs("sessionstore.adapters.checkpoint_threads", "langgraph").Thread
        records = thread.records

        def counting(self: Any, namespace: str, wanted: Any) -> Any:
            wanted = list(wanted)
            read.append(len(wanted))
            return records(self, namespace, wanted)

        monkeypatch.setattr(thread, "records", counting)
        found = await listed(saver, place(), limit=7)
        assert found[0].checkpoint["id"] == made["id"]
        assert read == [7]


def test_long_use_in_short() -> None:
    long_use: Any = needs("long_use_langgraph", "langgraph")
    long_use.short()
