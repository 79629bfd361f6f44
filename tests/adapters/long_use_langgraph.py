"""Long use of the LangGraph saver: memory of threads, and thousands of turns.

    python -m tests.adapters.long_use_langgraph memory [KEEP_CHECKPOINTS ...]
    python -m tests.adapters.long_use_langgraph turns [TURNS]

The first prints memory beside LangGraph's own savers; a row takes minutes. The second takes 2,000
turns with tools, restarts its process every 100 turns, and kills a worker in a turn.
Both start a server of their own.
"""

from __future__ import annotations

import itertools
import multiprocessing
import operator
import os
import random
import signal
import sqlite3
import sys
import time
from collections import Counter
from typing import Annotated, Any, TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from sessionstore.adapters.langgraph import StoredCheckpointSaver
from sessionstore.embedded import EmbeddedServer
from sessionstore.sync import InMemorySessionService, RedisSessionService, SessionService

THREAD: Any = {"configurable": {"thread_id": "t"}, "recursion_limit": 50}
COUNTS = (50, 150, 1_000)


class Chat(TypedDict, total=False):
    """A conversation."""

    messages: Annotated[list[Any], add_messages]


def text(number: int, size: int) -> str:
    """Text that does not repeat."""
    return random.Random(number).randbytes(size // 2).hex()


def chat(saver: Any) -> Any:
    """One node that answers with a message of 2 KB."""
    numbers = itertools.count(1)
    builder = StateGraph(Chat)
    builder.add_node("answer", lambda _: {"messages": [("ai", text(-next(numbers), 2_000))]})
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=saver)


class Calls(TypedDict, total=False):
    """A conversation of texts, and how often each tool ran."""

    log: Annotated[list[str], operator.add]
    charged: Annotated[int, operator.add]


def agent(saver: Any) -> Any:
    """An agent that calls two tools in parallel, and a subgraph."""
    inner = StateGraph(Calls)
    inner.add_node("charge", lambda _: {"log": ["charged"], "charged": 1})
    inner.add_edge(START, "charge")

    def charge(_: Any) -> Any:
        found = subgraph.invoke({"log": []})
        return {"log": found["log"], "charged": found["charged"]}

    subgraph = inner.compile()
    builder: Any = StateGraph(Calls)
    builder.add_node("plan", lambda state: {"log": [f"plan {len(state['log'])}"]})
    builder.add_node("search", lambda state: {"log": [text(len(state["log"]), 500)]})
    builder.add_node("charge", charge)
    builder.add_node("answer", lambda state: {"log": [text(-len(state["log"]), 200)]})
    builder.add_edge(START, "plan")
    for tool in ("search", "charge"):
        builder.add_edge("plan", tool)
    builder.add_edge(["search", "charge"], "answer")
    builder.add_edge("answer", END)
    return builder.compile(checkpointer=saver)


def take_turns(service: SessionService, first: int, end: int) -> None:
    """Turns of the agent. A turn that a crash has stopped is finished first."""
    graph = agent(StoredCheckpointSaver(service))
    if graph.get_state(THREAD).tasks:
        graph.invoke(None, THREAD)
    for turn in range(first, end):
        if not any(
            entry == f"turn {turn}" for entry in graph.get_state(THREAD).values.get("log", ())
        ):
            graph.invoke({"log": [f"turn {turn}"]}, THREAD, durability="sync")


def check_turns(service: SessionService, turns: int) -> None:
    """Nothing is lost or doubled."""
    state = agent(StoredCheckpointSaver(service)).get_state(THREAD).values
    taken = Counter(entry for entry in state["log"] if entry.startswith("turn "))
    assert taken == {f"turn {turn}": 1 for turn in range(turns)}, {
        turn: number for turn, number in taken.items() if number > 1
    } or len(taken)
    assert state["charged"] == turns, state["charged"]
    assert len(state["log"]) == 5 * turns


def _worker(url: str, first: int, end: int) -> None:
    with RedisSessionService(url) as service:
        take_turns(service, first, end)


def turns(total: str = "2000") -> None:
    """Turns with tools. The process restarts every 100 turns; one worker is killed in a turn."""
    count, restart = int(total), 100
    context = multiprocessing.get_context("spawn")
    with EmbeddedServer() as server, RedisSessionService(server.url) as service:
        for first in range(0, count, restart):
            worker = context.Process(target=_worker, args=(server.url, first, first + restart))
            worker.start()
            if first == restart and worker.pid is not None:
                time.sleep(3)
                os.kill(worker.pid, signal.SIGKILL)
                worker.join()
                worker = context.Process(target=_worker, args=(server.url, first, first + restart))
                worker.start()
            worker.join()
            assert worker.exitcode == 0
            if not (first + restart) % 500 or first < 200:
                size = _usage(server.url)
                print(f"{first + restart:5} turns: {size / 1e6:6.2f} MB in the server", flush=True)
        check_turns(service, count)
        print("nothing is lost or doubled")


def _usage(url: str) -> int:
    import redis

    client = redis.Redis.from_url(url, protocol=2)
    return sum(int(client.memory_usage(key, samples=0) or 0) for key in client.scan_iter())


def _in_memory_size(saver: InMemorySaver) -> int:
    size = sum(len(data) for _, data in saver.blobs.values())
    for spaces in saver.storage.values():
        for points in spaces.values():
            size += sum(len(head[1]) + len(meta[1]) for head, meta, _ in points.values())
    return size + sum(len(row[2][1]) for rows in saver.writes.values() for row in rows.values())


def memory(*keeps: str) -> None:
    """Memory of one thread whose node answers with 2 KB, by number of turns."""
    from langgraph.checkpoint.sqlite import SqliteSaver

    print("one thread, a message of 2 KB and an answer of 2 KB in a turn; MB")
    print(
        "saver                                " + "".join(f"{count:>9} turns" for count in COUNTS)
    )
    for keep in map(int, keeps or ("50", "200", "1000")):
        with EmbeddedServer() as server, RedisSessionService(server.url) as service:
            graph, row = chat(StoredCheckpointSaver(service, keep_checkpoints=keep)), ""
            for turn in range(1, COUNTS[-1] + 1):
                graph.invoke({"messages": [("user", text(turn, 2_000))]}, THREAD)
                if turn in COUNTS:
                    row += f"{_usage(server.url) / 1e6:15.1f}"
        print(f"StoredCheckpointSaver, keep {keep!s:8}{row}", flush=True)
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    own = InMemorySaver()
    savers: dict[str, tuple[Any, Any]] = {
        "SqliteSaver": (
            SqliteSaver(connection),
            lambda: connection.execute("pragma page_count").fetchone()[0] * 4096,
        ),
        "InMemorySaver": (own, lambda: _in_memory_size(own)),
    }
    for name, (saver, size_of) in savers.items():
        graph, sizes = chat(saver), []
        for turn in range(1, 151):
            graph.invoke({"messages": [("user", text(turn, 2_000))]}, THREAD)
            if turn in COUNTS:
                sizes.append(size_of())
        # Every turn stores the whole list, so the size is a * turns**2 + b * turns.
        square = (sizes[1] / 150 - sizes[0] / 50) / 100
        sizes.append(square * 1_000**2 + (sizes[0] / 50 - 50 * square) * 1_000)
        row = "".join(f"{size / 1e6:15.1f}" for size in sizes)
        print(f"{name:36}{row}  (computed)", flush=True)


def short() -> None:
    """A short form for the test suite, in memory."""
    with InMemorySessionService() as service:
        for first in range(0, 60, 10):
            take_turns(service, first, first + 10)
        check_turns(service, 60)


if __name__ == "__main__":
    commands: dict[str, Any] = {"memory": memory, "turns": turns}
    commands[sys.argv[1]](*sys.argv[2:])
