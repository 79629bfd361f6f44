"""Shared by the tests of the LangGraph saver: checkpoints, configs, calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from adapters_support import needs

base: Any = needs("langgraph.checkpoint.base", "langgraph")
ids: Any = needs("langgraph.checkpoint.base.id", "langgraph")
adapter: Any = needs("sessionstore.adapters.langgraph", "langgraph")

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
