"""Shared by the tests of the LangGraph saver: checkpoints, configs, calls."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Awaitable
from typing import Annotated, Any, TypedDict

import msgspec
from adapters_support import needs
from support.compression import plain

base: Any = needs("langgraph.checkpoint.base", "langgraph")
ids: Any = needs("langgraph.checkpoint.base.id", "langgraph")
adapter: Any = needs("sessionstore.adapters.langgraph", "langgraph")
stored: Any = needs("sessionstore.adapters.checkpoints", "langgraph")
graphs: Any = needs("langgraph.graph", "langgraph")

THREAD = {"configurable": {"thread_id": "t1"}}


def checkpoint(number: int = 0, **values: Any) -> Any:
    """A checkpoint; later calls give higher ids."""
    made = base.empty_checkpoint()
    return {
        **made,
        "id": str(ids.uuid6(clock_seq=number)),
        "channel_values": values,
        "channel_versions": dict.fromkeys(values, number + 1),
        "versions_seen": {"node": {"channel": number}},
    }


def place(
    checkpoint_id: str | None = None, namespace: str = "", thread_id: Any = "t1"
) -> dict[str, Any]:
    configurable = {"thread_id": thread_id, "checkpoint_ns": namespace}
    if checkpoint_id is not None:
        configurable["checkpoint_id"] = checkpoint_id
    return {"configurable": configurable}


async def put(saver: Any, made: Any, parent: Any = None, **where: Any) -> Any:
    metadata = {"source": "loop", "step": 1}
    config = place(parent and parent["id"], **where)
    return await saver.aput(config, made, metadata, made["channel_versions"])


async def listed(saver: Any, config: Any, **options: Any) -> list[Any]:
    return [found async for found in saver.alist(config, **options)]


async def call(service: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    result = getattr(service, name)(*args, **kwargs)
    return await result if isinstance(result, Awaitable) else result


async def session_of(service: Any, **where: Any) -> Any:
    key = {"app_name": "langgraph", "user_id": "threads", "session_id": "t1", **where}
    return await call(service, "get_session", **key)


def seen(snapshot: Any) -> Any:
    """What of a snapshot does not differ from run to run."""
    metadata = {
        key: value
        for key, value in snapshot.metadata.items()
        if key not in ("parents", "run_id", "thread_id")
    }
    tasks = [
        (
            task.name,
            str(task.error),
            [interrupt.value for interrupt in task.interrupts],
            task.result,
            seen(task.state) if hasattr(task.state, "values") and task.state.metadata else None,
        )
        for task in snapshot.tasks
        if not isinstance(task.state, dict)
    ]
    return snapshot.values, snapshot.next, metadata, tasks


class Calls:
    """A graph's methods with await, or those without behind the same names."""

    def __init__(self, graph: Any, awaited: bool) -> None:
        self._graph = graph
        self._awaited = awaited

    async def invoke(self, *args: Any, **kwargs: Any) -> Any:
        if self._awaited:
            return await self._graph.ainvoke(*args, **kwargs)
        return await asyncio.to_thread(self._graph.invoke, *args, **kwargs)

    async def state(self, *args: Any, **kwargs: Any) -> Any:
        if self._awaited:
            return await self._graph.aget_state(*args, **kwargs)
        return self._graph.get_state(*args, **kwargs)

    async def history(self, *args: Any, **kwargs: Any) -> list[Any]:
        if self._awaited:
            return [found async for found in self._graph.aget_state_history(*args, **kwargs)]
        return list(self._graph.get_state_history(*args, **kwargs))

    async def update(self, *args: Any, **kwargs: Any) -> Any:
        if self._awaited:
            return await self._graph.aupdate_state(*args, **kwargs)
        return self._graph.update_state(*args, **kwargs)


async def fields_of(service: Any, kind: str = "", **where: Any) -> set[str]:
    """Names of the saver's fields that are stored, without the parts that they are spelled of."""
    session = await session_of(service, **where)
    return {name for name in session.state if name.startswith(kind)} if session else set()


def unwrap(_: bytes, data: bytes) -> bytes:
    """The encoded value in the bytes of a field or of an entry."""
    return plain(data)


async def check_no_orphans(service: Any, **where: Any) -> None:
    """Every part of a value that is stored belongs to a checkpoint or a write, and is there."""
    state = (await session_of(service, **where)).state
    names = b"\0" + state.get("langgraph/namespaces", b"")
    for name, _ in stored.decode_namespaces(stored.NAMESPACES, names, unwrap):
        fields = stored.Fields(name)
        prefix = fields.part("").decode()[1:]
        found = {field for field in state if field.startswith(prefix)}
        space = msgspec.convert(state[fields.space.decode()[1:]], stored.Space)
        ids: set[str] = set()
        for field in fields.all_ids(space.count):
            ids.update(stored.decode_ids(field, b"\0" + state[field.decode()[1:]], unwrap))
        assert (len(ids), max(ids)) == (space.count, space.head)
        needed: set[str] = set()
        for each in ids:
            record = msgspec.convert(state[fields.point(each).decode()[1:]], stored.Record)
            field = fields.writes(each)
            needed |= record.parts()
            needed |= stored.all_parts(field, b"\0" + state.get(field.decode()[1:], b""), unwrap)
        assert found == {prefix + part for part in needed}
        points = fields.point("").decode()[1:]
        assert len([field for field in state if field.startswith(points)]) == len(ids)


class Log(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]


def chat(saver: Any) -> Any:
    builder = graphs.StateGraph(Log)
    builder.add_node("answer", lambda state: {"log": [len(state["log"])]})
    builder.add_edge(graphs.START, "answer")
    return builder.compile(checkpointer=saver)


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
