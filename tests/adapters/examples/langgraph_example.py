"""LangGraph: a graph that waits for a human, and goes on in another process.

python langgraph_example.py [redis://localhost:6379]
"""

from __future__ import annotations

import sys
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from sessionstore.adapters.langgraph import StoredCheckpointSaver
from sessionstore.sync import InMemorySessionService, RedisSessionService, SessionService


class Order(TypedDict, total=False):
    """What the graph knows."""

    item: str
    approved: bool


def propose(state: Order) -> Order:
    """A step that needs nobody."""
    return {"item": f"two {state['item']}"}


def approve(state: Order) -> Order:
    """A step that waits for a human."""
    return {"approved": interrupt(f"Buy {state['item']}?") == "yes"}


def build(service: SessionService) -> Any:
    """The graph; every process builds it anew."""
    builder = StateGraph(Order)
    builder.add_node("propose", propose)
    builder.add_node("approve", approve)
    builder.add_edge(START, "propose")
    builder.add_edge("propose", "approve")
    builder.add_edge("approve", END)
    return builder.compile(checkpointer=StoredCheckpointSaver(service))


def main(url: str | None) -> None:
    """A run that stops at the question, and one that answers it: only the store is shared."""
    service = RedisSessionService(url, session_ttl=3600) if url else InMemorySessionService()
    config = {"configurable": {"thread_id": "order-1"}}
    with service:
        stopped = build(service).invoke({"item": "mugs"}, config)
        print(stopped["__interrupt__"][0].value)
        print(build(service).invoke(Command(resume="yes"), config))
        print(len(list(build(service).get_state_history(config))), "checkpoints are stored")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
