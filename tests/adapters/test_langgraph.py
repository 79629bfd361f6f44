"""LangGraph: its conformance kit, graphs and random calls beside its own saver, limits."""

from __future__ import annotations

import asyncio
import dataclasses
import operator
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypedDict

import pytest
from adapters_support import Backend, needs, opened, run_example
from langgraph_support import (
    THREAD,
    Calls,
    adapter,
    base,
    call,
    checkpoint,
    listed,
    place,
    put,
    seen,
    session_of,
)

import sessionstore
import sessionstore.sync
from sessionstore import InvalidArgument, SessionKey

memory: Any = needs("langgraph.checkpoint.memory", "langgraph")
types: Any = needs("langgraph.types", "langgraph")
graphs: Any = needs("langgraph.graph", "langgraph")
messages: Any = needs("langchain_core.messages", "langgraph")

INSTANT = datetime(2024, 5, 15, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
async def service(backend: Backend) -> AsyncIterator[Any]:
    async with opened(backend) as service:
        yield service


@pytest.fixture
def saver(service: Any) -> Any:
    return adapter.StoredCheckpointSaver(service)


def saver_in_memory(**options: Any) -> Any:
    return adapter.StoredCheckpointSaver(sessionstore.sync.InMemorySessionService(**options))


# -- LangGraph's conformance kit -------------------------------------------------------------------


async def test_conformance(backend: Backend) -> None:
    kit: Any = needs("langgraph.checkpoint.conformance", "langgraph-checkpoint-conformance")

    async def make() -> AsyncIterator[Any]:
        async with opened(backend) as service:
            yield adapter.StoredCheckpointSaver(service)

    report = await kit.validate(kit.checkpointer_test(name="StoredCheckpointSaver")(make))
    results = {name: result.failures for name, result in report.results.items() if result.detected}
    names = ["put", "put_writes", "get_tuple", "list", "delete_thread"]
    names += ["delete_for_runs", "copy_thread", "prune"]
    assert results == {name: [] for name in names}


# -- whole graphs, beside LangGraph's own saver ----------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Address:
    """Something of the application's in a channel."""

    city: str


class State(TypedDict, total=False):
    messages: Annotated[list[Any], operator.add]
    raw: bytes
    at: datetime
    anything: Any
    count: int


def think(state: State) -> State:
    return {
        "messages": [messages.AIMessage("hm", id="a", usage_metadata=None)],
        "raw": b"\xff\x00",
        "at": INSTANT,
        "anything": {1: {2, 3}, "b": [1, b"x"], "id": uuid.UUID(int=5), "d": timedelta(days=1)},
        "count": state.get("count", 0) + 1,
    }


def ask(state: State) -> State:
    answer = types.interrupt(f"Go on after {state['count']}?")
    return {"messages": [messages.HumanMessage(answer, id="h")]}


def work(state: State) -> State:
    return {"messages": [f"worked on {state['count']}"]}


def spread(state: State) -> list[Any]:
    del state
    return [types.Send("work", {"count": number}) for number in range(5)]


def compiled(saver: Any, sub_saver: bool | None = None) -> Any:
    """Fan-out, a human in the loop, and a subgraph with another."""
    inner = graphs.StateGraph(State)
    inner.add_node("think", think)
    inner.add_node("ask", ask)
    inner.add_edge(graphs.START, "think")
    inner.add_edge("think", "ask")
    outer = graphs.StateGraph(State)
    for name, node in (("think", think), ("work", work), ("ask", ask)):
        outer.add_node(name, node)
    outer.add_node("inner", inner.compile(checkpointer=sub_saver))
    outer.add_edge(graphs.START, "think")
    outer.add_conditional_edges("think", spread, ["work"])
    outer.add_edge("work", "ask")
    outer.add_edge("ask", "inner")
    outer.add_edge("inner", graphs.END)
    return outer.compile(checkpointer=saver)


async def live(saver: Any, *, awaited: bool, durability: str, sub_saver: bool | None) -> list[Any]:
    """All that a life of a thread shows: runs, interrupts, resumption, time travel, a fork."""
    graph = Calls(compiled(saver, sub_saver), awaited)
    resume = types.Command
    shown: list[Any] = []

    async def run(asked: Any, config: Any = THREAD) -> None:
        result = await graph.invoke(asked, config, durability=durability)
        shown.append({key: value for key, value in result.items() if key != "__interrupt__"})

    await run({"messages": [messages.HumanMessage("hi", id="u")]})
    await run(resume(resume="yes"))
    shown.append(seen(await graph.state(THREAD, subgraphs=True)))
    await run(resume(resume="again"))
    await run({"messages": [messages.HumanMessage("more", id="u2")]})
    history = await graph.history(THREAD)
    shown.append([seen(found) for found in history])
    fork = await graph.update(history[len(history) // 2].config, {"count": 100})
    shown.append(seen(await graph.state(fork)))
    await run(None, fork)
    await run(resume(resume="forked"))
    shown.append([seen(found) for found in await graph.history(THREAD)])
    shown.append([seen(found) for found in await graph.history(THREAD, limit=2)])
    filtered = await graph.history(THREAD, filter={"source": "input"})
    shown.append([seen(found) for found in filtered])
    return shown


@pytest.mark.parametrize("sub_saver", [None, True])
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_thread_lives_as_with_langgraphs_own_saver(
    backend: Backend, saver: Any, durability: str, sub_saver: bool | None
) -> None:
    how: dict[str, Any] = {"durability": durability, "sub_saver": sub_saver}
    for awaited in (True, False) if backend[0] == "sync" else (True,):
        await saver.adelete_thread("t1")
        assert await live(saver, awaited=awaited, **how) == await live(
            memory.InMemorySaver(), awaited=awaited, **how
        )


async def test_another_process_goes_on(service: Any) -> None:
    first = compiled(adapter.StoredCheckpointSaver(service))
    await first.ainvoke({"messages": []}, THREAD)
    second = compiled(adapter.StoredCheckpointSaver(service))
    found = await second.ainvoke(types.Command(resume="yes"), THREAD)
    assert found["raw"] == b"\xff\x00"
    assert found["at"] == INSTANT
    assert found["anything"] == think({})["anything"]
    assert [getattr(message, "content", message) for message in found["messages"]] == [
        "hm",
        *(f"worked on {number}" for number in range(5)),
        "yes",
    ]


async def test_a_failed_step_resumes_without_doing_again_what_succeeded(service: Any) -> None:
    done: list[int] = []

    def sometimes(state: State) -> State:
        done.append(state["count"])
        if state["count"] == 3 and done.count(3) == 1:
            raise RuntimeError("out of order")
        return {"messages": [state["count"]]}

    def build() -> Any:
        builder = graphs.StateGraph(State)
        builder.add_node("work", sometimes)
        builder.add_conditional_edges(graphs.START, spread, ["work"])
        return builder.compile(checkpointer=adapter.StoredCheckpointSaver(service))

    with pytest.raises(RuntimeError, match="out of order"):
        await build().ainvoke({"messages": []}, THREAD)
    found = await build().ainvoke(None, THREAD)
    assert found["messages"] == [0, 1, 2, 3, 4]
    assert done.count(3) == 2
    assert all(done.count(number) <= 2 for number in range(5))


# -- random calls, beside LangGraph's own saver ----------------------------------------------------


# LangGraph's own saver once gave pending writes in the order of their arrival.
IN_ORDER = hasattr(memory.InMemorySaver, "_ordered_writes")


def alike(answer: Any) -> Any:
    """An answer as it has to be, whichever saver gave it."""
    if isinstance(answer, list):
        return [alike(found) for found in answer]
    if IN_ORDER or not isinstance(answer, base.CheckpointTuple):
        return answer
    return answer._replace(pending_writes=sorted(answer.pending_writes or [], key=repr))


class Twin:
    """Two savers that are asked the same and have to answer the same."""

    def __init__(self, ours: Any, theirs: Any, chance: random.Random) -> None:
        self.savers = ours, theirs
        self.chance = chance
        self.made: list[tuple[str, str, str]] = []

    async def both(self, ask: Callable[[Any], Awaitable[Any]]) -> None:
        ours, theirs = self.savers
        assert alike(await ask(ours)) == alike(await ask(theirs))

    def config(self) -> dict[str, Any]:
        thread_id, namespace = self.chance.choice("ab"), self.chance.choice(["", "sub", "sub|x:1"])
        return place(None, namespace, thread_id)

    def known(self) -> dict[str, Any]:
        if not self.made:
            return self.config()
        thread_id, namespace, checkpoint_id = self.chance.choice(self.made)
        return place(checkpoint_id, namespace, thread_id)

    async def put(self) -> None:
        config = self.known() if self.chance.random() < 0.8 else self.config()
        number = len(self.made)
        made = checkpoint(number, n=number, data={"x": [number, b"\x00"]})
        metadata = {"source": self.chance.choice(["loop", "input"]), "step": number % 3}
        await self.both(lambda saver: saver.aput(config, made, metadata, made["channel_versions"]))
        where = config["configurable"]
        self.made.append((where["thread_id"], where["checkpoint_ns"], made["id"]))

    async def put_writes(self) -> None:
        config = self.known()
        if "checkpoint_id" not in config["configurable"]:
            return
        task, path = self.chance.choice([("t1", "~b"), ("t2", "~a"), ("t3", "")])
        # What a task writes on a regular channel is the same whenever it writes it.
        count = self.chance.randint(0, 3)
        writes: list[tuple[str, Any]] = [(f"c{number}", [task, number]) for number in range(count)]
        if self.chance.random() < 0.4:
            special = self.chance.choice(["__error__", "__interrupt__", "__resume__"])
            writes.append((special, self.chance.randint(0, 2)))
        await self.both(lambda saver: saver.aput_writes(config, writes, task, path))

    async def get(self) -> None:
        config = self.known() if self.chance.random() < 0.6 else self.config()
        await self.both(lambda saver: saver.aget_tuple(config))

    async def list(self) -> None:
        config = self.known() if self.chance.random() < 0.3 else self.config()
        options = {
            "filter": self.chance.choice(
                [None, {"source": "loop"}, {"step": 1, "source": "input"}]
            ),
            "before": self.chance.choice([None, self.known()]),
            "limit": self.chance.choice([None, 0, 1, 2, 5]),
        }
        await self.both(lambda saver: listed(saver, config, **options))

    async def delete(self) -> None:
        thread_id = self.chance.choice("ab")
        await self.both(lambda saver: saver.adelete_thread(thread_id))
        self.made = [entry for entry in self.made if entry[0] != thread_id]


@pytest.mark.parametrize("seed", range(4))
async def test_random_calls_are_answered_as_by_langgraphs_own_saver(saver: Any, seed: int) -> None:
    twin = Twin(saver, memory.InMemorySaver(), random.Random(seed))
    for _ in range(150):
        step = twin.chance.choices(
            [twin.put, twin.put_writes, twin.get, twin.list, twin.delete], [4, 4, 4, 2, 0.1]
        )[0]
        await step()
    everything = [
        sorted([found.checkpoint["id"] for found in await listed(one, None)]) for one in twin.savers
    ]
    assert everything[0] == everything[1]


# -- put and put_writes ----------------------------------------------------------------------------


async def test_the_newest_is_the_highest_id_whatever_the_order(saver: Any) -> None:
    first, second, third = checkpoint(1), checkpoint(2), checkpoint(3)
    await put(saver, second, first)
    await put(saver, third, second)
    await put(saver, first)
    found = await saver.aget_tuple(THREAD)
    assert found.checkpoint == third
    assert found.parent_config == place(second["id"])
    assert [each.checkpoint["id"] for each in await listed(saver, THREAD)] == [
        third["id"],
        second["id"],
        first["id"],
    ]


async def test_writes_may_come_before_their_checkpoint(service: Any, saver: Any) -> None:
    first, second = checkpoint(1), checkpoint(2)
    await put(saver, first)
    await saver.aput_writes(place(second["id"]), [("a", 1)], "task")
    assert (await saver.aget_tuple(THREAD)).checkpoint == first
    await put(saver, second, first)
    for each in (saver, adapter.StoredCheckpointSaver(service)):
        assert (await each.aget_tuple(THREAD)).pending_writes == [("task", "a", 1)]
        assert (await each.aget_tuple(place(second["id"]))).pending_writes == [("task", "a", 1)]


async def state_of(service: Any) -> dict[str, Any]:
    """State without what is new with every change."""
    state: dict[str, Any] = (await session_of(service)).state
    return {name: part[:-1] if name.startswith("space/") else part for name, part in state.items()}


@pytest.mark.parametrize("has_parent", [True, False])
async def test_the_same_again_is_stored_once(service: Any, saver: Any, has_parent: bool) -> None:
    first, made = checkpoint(0), checkpoint(1, a=1)
    await put(saver, first)
    await saver.aput_writes(place(first["id"]), [("a", 0)], "task")
    states: list[Any] = []
    for _ in range(3):
        await put(saver, made, first if has_parent else None)
        await saver.aput_writes(place(made["id"]), [("a", 1), ("b", 2)], "task", "path")
        states.append(await state_of(service))
    assert states[0] == states[1] == states[2]
    for _ in range(2):  # another saver does not know what is there
        other = adapter.StoredCheckpointSaver(service)
        await put(other, made, first if has_parent else None)
    assert await state_of(service) == states[0]
    assert (await saver.aget_tuple(THREAD)).pending_writes == [("task", "a", 1), ("task", "b", 2)]


async def test_an_error_may_come_back(saver: Any) -> None:
    made = checkpoint(1)
    await put(saver, made)
    for error in ("one", "two", "one"):
        await saver.aput_writes(place(made["id"]), [("__error__", error)], "task")
    assert (await saver.aget_tuple(THREAD)).pending_writes == [("task", "__error__", "one")]


async def test_writes_are_ordered_by_path_task_and_number(saver: Any) -> None:
    made = checkpoint(1)
    await put(saver, made)
    for task, path in (("t2", "~b"), ("t3", "~a"), ("t1", "~b"), ("t0", "")):
        await saver.aput_writes(place(made["id"]), [("a", task), ("b", task)], task, path)
    found = (await saver.aget_tuple(THREAD)).pending_writes
    assert [(task, channel) for task, channel, _ in found] == [
        (task, channel) for task in ("t0", "t3", "t1", "t2") for channel in "ab"
    ]


async def test_nothing_written_is_nothing_stored(service: Any, saver: Any) -> None:
    await saver.aput_writes(place(checkpoint()["id"]), [], "task")
    assert await session_of(service) is None


async def test_writes_of_many_tasks_are_all_kept(backend: Backend, saver: Any) -> None:
    made = checkpoint(1)
    await put(saver, made)
    config = place(made["id"])
    await asyncio.gather(
        *(saver.aput_writes(config, [("a", number)], f"t{number:03}") for number in range(40))
    )
    if backend[0] == "sync":
        with ThreadPoolExecutor(8) as pool:
            for number in range(40, 80):
                pool.submit(saver.put_writes, config, [("a", number)], f"t{number:03}")
    found = (await saver.aget_tuple(THREAD)).pending_writes
    assert [value for _, _, value in found] == list(range(80 if backend[0] == "sync" else 40))


async def test_metadata_is_what_langgraph_makes_of_it(saver: Any) -> None:
    config = {**place(), "metadata": {"who": "ann", "odd": object(), "__private": 1}}
    config["configurable"]["locale"] = "en"
    made = checkpoint(1)
    await saver.aput(config, made, {"source": "input", "step": -1}, {})
    found = await saver.aget_tuple(THREAD)
    assert found.metadata == base.get_checkpoint_metadata(config, {"source": "input", "step": -1})
    assert found.metadata["who"] == "ann"
    assert await listed(saver, None, filter={"locale": "en"}) == [found]
    assert await listed(saver, None, filter={"locale": "de"}) == []


@pytest.mark.parametrize("thread_id", [0, 7, uuid.UUID(int=7), "a/b:{c}*"])
async def test_thread_ids_of_any_kind(saver: Any, thread_id: Any) -> None:
    await put(saver, checkpoint(2), thread_id="another")
    made = checkpoint(1)
    config = await put(saver, made, thread_id=thread_id)
    assert config == place(made["id"], thread_id=thread_id)
    found = await saver.aget_tuple(config)
    assert found.checkpoint == made
    assert await listed(saver, place(thread_id=thread_id)) == [found]
    await saver.adelete_thread(thread_id)
    assert await saver.aget_tuple(config) is None


async def test_long_namespaces(saver: Any) -> None:
    long = "|".join(f"node{number}:{uuid.UUID(int=number)}" for number in range(12))
    for number, namespace in enumerate((long, long + "x", "short")):
        await put(saver, checkpoint(number, n=number), namespace=namespace)
    for number, namespace in enumerate((long, long + "x", "short")):
        found = await saver.aget_tuple(place(namespace=namespace))
        assert found.checkpoint["channel_values"] == {"n": number}
        assert found.config["configurable"]["checkpoint_ns"] == namespace
    names = {found.config["configurable"]["checkpoint_ns"] for found in await listed(saver, THREAD)}
    assert names == {long, long + "x", "short"}


# -- limits ----------------------------------------------------------------------------------------


async def test_the_services_ttl_expires() -> None:
    now = [1_700_000_000.0]
    saver = saver_in_memory(session_ttl=60, clock=lambda: now[0])
    made = checkpoint(1)
    await put(saver, made)
    now[0] += 59
    assert (await saver.aget_tuple(THREAD)).checkpoint == made
    now[0] += 62
    assert await saver.aget_tuple(THREAD) is None
    assert await listed(saver, THREAD) == []
    await put(saver, made)
    assert (await saver.aget_tuple(THREAD)).checkpoint == made


async def test_deletion_leaves_nothing(server: Any) -> None:
    async with sessionstore.RedisSessionService(server.url, session_ttl=600) as service:
        saver = adapter.StoredCheckpointSaver(service)
        await compiled(saver).ainvoke({"messages": []}, THREAD)
        for number in range(3):
            await put(saver, checkpoint(number), namespace=f"sub{number}")
        assert server.all_keys()
        await saver.adelete_thread("t1")
        await saver.adelete_thread("t1")
        assert server.all_keys() == []


# -- threads ---------------------------------------------------------------------------------------


async def test_all_threads_are_listed(backend: Backend) -> None:
    async with opened(backend) as service:
        saver = adapter.StoredCheckpointSaver(service)
        for number in range(230):
            await put(saver, checkpoint(number), thread_id=f"t{number}")
        found = [each.config["configurable"]["thread_id"] for each in await listed(saver, None)]
        assert found == [f"t{number}" for number in range(229, -1, -1)]
        newest = await listed(saver, None, limit=3)
        assert [each.config["configurable"]["thread_id"] for each in newest] == found[:3]


async def test_savers_of_other_applications_and_users_are_apart(service: Any) -> None:
    made = [checkpoint(number) for number in range(3)]
    savers = [
        adapter.StoredCheckpointSaver(service),
        adapter.StoredCheckpointSaver(service, app_name="other"),
        adapter.StoredCheckpointSaver(service, user_id="other"),
    ]
    for saver, each in zip(savers, made, strict=True):
        await put(saver, each)
    for saver, each in zip(savers, made, strict=True):
        assert [found.checkpoint for found in await listed(saver, None)] == [each]


async def test_threads_may_belong_to_users(service: Any) -> None:
    saver = adapter.StoredCheckpointSaver(
        service, app_name="shop", user_id=lambda thread_id: thread_id.partition("/")[0]
    )
    await compiled(saver).ainvoke({"messages": []}, place(thread_id="ann/1"))
    sessions = await call(service, "list_sessions", app_name="shop", user_id="ann")
    assert [session.id for session in sessions] == ["ann/1"]
    with pytest.raises(InvalidArgument, match="config must name a thread"):
        await listed(saver, None)
    await saver.adelete_thread("ann/1")
    assert await call(service, "list_sessions", app_name="shop", user_id="ann") == []


async def test_a_copy_is_complete_and_apart(saver: Any) -> None:
    graph = compiled(saver)
    await graph.ainvoke({"messages": []}, THREAD)
    await graph.ainvoke(types.Command(resume="yes"), THREAD)
    await saver.acopy_thread("t1", "t2")
    other = place(thread_id="t2")
    del other["configurable"]["checkpoint_ns"]

    def but_thread(found: list[Any]) -> list[Any]:
        return [
            (
                each.checkpoint,
                each.metadata,
                each.pending_writes,
                each.config["configurable"]["checkpoint_ns"],
            )
            for each in found
        ]

    assert but_thread(await listed(saver, other)) == but_thread(await listed(saver, THREAD))
    assert (
        len({each.config["configurable"]["checkpoint_ns"] for each in await listed(saver, other)})
        == 2
    )
    before = await listed(saver, THREAD)
    found = await graph.ainvoke(types.Command(resume="again"), other)
    assert found["messages"][-1].content == "again"
    assert await listed(saver, THREAD) == before


async def test_pruning_keeps_the_newest(service: Any, saver: Any) -> None:
    parent = None
    for number in range(5):
        made = checkpoint(number)
        await put(saver, made, parent)
        await saver.aput_writes(place(made["id"]), [("a", number)], "task")
        parent = made
    other = adapter.StoredCheckpointSaver(service)
    await other.aprune(["t1", "missing"])
    for each in (saver, other):
        found = await each.aget_tuple(THREAD)
        assert found.checkpoint == made
        assert found.pending_writes == [("task", "a", 4)]
        assert await listed(each, THREAD) == [found]
    with pytest.raises(InvalidArgument, match="strategy"):
        await saver.aprune(["t1"], strategy="odd")


# -- delta channels --------------------------------------------------------------------------------


def extend(state: list[Any] | None, writes: list[list[Any]]) -> list[Any]:
    return [*(state or []), *(item for write in writes for item in write)]


def delta_graph(saver: Any, every: int) -> Any:
    channels: Any = needs("langgraph.channels.delta", "langgraph, a newer version")
    channel = channels.DeltaChannel(extend, list, snapshot_frequency=every)
    kind: Any = type("Log", (), {"__annotations__": {"log": Annotated[list[Any], channel]}})
    builder = graphs.StateGraph(kind)
    builder.add_node("one", lambda state: {"log": [len(state["log"])]})
    builder.add_node("two", lambda state: {"log": [len(state["log"])]})
    builder.add_edge(graphs.START, "one")
    builder.add_edge("one", "two")
    return builder.compile(checkpointer=saver)


@pytest.mark.parametrize("every", [3, 1000])
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_delta_channels_are_rebuilt(service: Any, every: int, durability: str) -> None:
    graph = delta_graph(adapter.StoredCheckpointSaver(service), every)
    for turn in range(4):
        graph = delta_graph(adapter.StoredCheckpointSaver(service), every)
        found = await graph.ainvoke({"log": ["u"]}, THREAD, durability=durability)
        assert len(found["log"]) == 3 * (turn + 1)
    ours = [snapshot.values async for snapshot in graph.aget_state_history(THREAD)]
    beside = delta_graph(memory.InMemorySaver(), every)
    for _ in range(4):
        await beside.ainvoke({"log": ["u"]}, THREAD, durability=durability)
    assert ours == [snapshot.values async for snapshot in beside.aget_state_history(THREAD)]


async def test_no_delta_channels_asked_for(saver: Any) -> None:
    config = {"config": THREAD, "channels": ["a"]}
    assert await saver.aget_delta_channel_history(**config) == {"a": {"writes": []}}
    assert await saver.aget_delta_channel_history(config=THREAD, channels=[]) == {}


# -- services and refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        lambda saver: saver.get_tuple(THREAD),
        lambda saver: saver.get(THREAD),
        lambda saver: list(saver.list(THREAD)),
        lambda saver: saver.put(THREAD, checkpoint(), {}, {}),
        lambda saver: saver.put_writes(place("1"), [("a", 1)], "t"),
        lambda saver: saver.delete_thread("t1"),
        lambda saver: saver.copy_thread("t1", "t2"),
        lambda saver: saver.prune(["t1"]),
        lambda saver: saver.get_delta_channel_history(config=THREAD, channels=["a"]),
        lambda saver: compiled(saver).invoke({"messages": []}, THREAD),
    ],
)
def test_a_service_for_asyncio_alone_has_only_the_methods_with_await(
    ask: Callable[[Any], Any],
) -> None:
    saver = adapter.StoredCheckpointSaver(sessionstore.InMemorySessionService())
    with pytest.raises(NotImplementedError, match=r"give it one of sessionstore\.sync"):
        ask(saver)


def test_the_methods_without_await() -> None:
    saver = saver_in_memory()
    made = checkpoint(1)
    config = saver.put(THREAD, made, {"source": "loop"}, {})
    saver.put_writes(config, [("a", 1)], "task")
    found = saver.get_tuple(THREAD)
    assert found.pending_writes == [("task", "a", 1)]
    assert saver.get(THREAD) == made
    assert list(saver.list(None)) == list(saver.list(THREAD)) == [found]
    saver.copy_thread("t1", "t2")
    saver.prune(["t1"])
    saver.delete_thread("t2")
    assert list(saver.list(None)) == [found]
    assert saver.get_delta_channel_history(config=THREAD, channels=[]) == {}


async def test_both_kinds_of_services(server: Any) -> None:
    options: dict[str, Any] = {"session_ttl": 600}
    async with sessionstore.RedisSessionService(server.url, **options) as service:
        with sessionstore.sync.RedisSessionService(server.url, **options) as beside:
            saver = adapter.StoredCheckpointSaver(service, sync_service=beside)
            saver.put(THREAD, checkpoint(1), {}, {})
            assert await saver.aget_tuple(THREAD) == saver.get_tuple(THREAD) is not None


class Odd:
    """Nothing that anybody serialises."""


async def test_what_cannot_be_serialised_is_refused_with_its_path(service: Any, saver: Any) -> None:
    with pytest.raises(
        InvalidArgument,
        match=r"checkpoint\['channel_values'\]\['a'\]\['x'\]\[1\] is a Odd, which JsonPlusSerializ",
    ):
        await put(saver, checkpoint(1, a={"x": [1, Odd()]}))
    with pytest.raises(InvalidArgument, match=r"writes\[1\]\['x'\] is a Odd"):
        await saver.aput_writes(place(checkpoint()["id"]), [("a", 1), ("b", {"x": Odd()})], "t")
    with pytest.raises(InvalidArgument, match=r"metadata\['a'\] is a Odd"):
        await saver.aput(THREAD, checkpoint(1), {"a": Odd()}, {})
    assert await session_of(service) is None


async def test_a_config_must_name_what_is_needed(saver: Any) -> None:
    configs: list[dict[str, Any]] = [{}, {"configurable": {}}]
    for config in configs:
        with pytest.raises(InvalidArgument, match="thread_id is missing"):
            await saver.aget_tuple(config)
        with pytest.raises(InvalidArgument, match="thread_id is missing"):
            await saver.aput(config, checkpoint(), {}, {})
    with pytest.raises(InvalidArgument, match="checkpoint_id is missing"):
        await saver.aput_writes(THREAD, [("a", 1)], "task")


async def test_other_state_of_the_session_is_left_alone(service: Any, saver: Any) -> None:
    made = checkpoint(1)
    await put(saver, made)
    key = SessionKey("langgraph", "threads", "t1")
    await call(service, "update_session_state", key, {"title": "mine", "user:name": "Ann"})
    await put(saver, checkpoint(2), made)
    await saver.aprune(["t1"])
    await saver.acopy_thread("t1", "t2")
    state = (await session_of(service)).state
    assert (state["title"], state["user:name"]) == ("mine", "Ann")
    assert "title" not in (await session_of(service, session_id="t2")).state


def test_the_example_runs() -> None:
    assert run_example("langgraph_example.py").splitlines() == [
        "Buy two mugs?",
        "{'item': 'two mugs', 'approved': True}",
        "4 checkpoints are stored",
    ]


def test_the_example_runs_on_a_server(server: Any) -> None:
    assert "4 checkpoints are stored" in run_example("langgraph_example.py", server.url)
