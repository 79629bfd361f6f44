"""Print a digest of every sample as it is stored. It must not depend on the process or the order.

    python bytes_of_histories.py openai-agents

Samples are encoded in 20 orders; each must give the same bytes in all of them.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from hashlib import blake2b
from typing import Any

import msgspec

from sessionstore import InMemorySessionService
from sessionstore.model import Event
from sessionstore.transform import TierOwner

NUM_ORDERS = 20
OWNER = TierOwner("app", "user")

Samples = dict[str, Callable[[], Event]]

_chosen = random.Random(1)


def words() -> list[str]:
    """The same words in another order each time."""
    return _chosen.sample([f"word {number}" for number in range(20)], 20)


def openai_agents() -> Samples:
    """Items of the SDK: plain ones, and those that are kept as a text."""
    from sessionstore.adapters.openai_agents import _event

    def make(value: Any) -> Event:
        item: Any = {"type": "function_call_output", "call_id": "call_1", "output": value}
        return _event(item, "item")

    values = ["plain \u2615", "\ud800", float("nan"), (1, [2]), {2: "b", 1: "a"}]
    return {
        f"item {number}": lambda value=value: make(value)  # type: ignore[misc]  # one value each
        for number, value in enumerate(values)
    }


def langchain() -> Samples:
    """Messages: plain ones, those with values that JSON lacks, and sets."""
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

    from sessionstore.adapters.langchain import _event

    def result() -> Event:
        artifact: dict[str, Any] = {
            "set": set(words()),
            "frozenset": frozenset((word, 1) for word in words()),
            "at": datetime(2024, 5, 15, tzinfo=UTC),
            "keys": {2: b"b", 1: b"a"},
        }
        return _event(ToolMessage("\ud800", tool_call_id="call_1", artifact=artifact), "message")

    call = {"name": "add", "args": {"item": "mug"}, "id": "call_1"}
    return {
        "human": lambda: _event(HumanMessage("plain \u2615"), "message"),
        "ai": lambda: _event(AIMessage("", tool_calls=[call], id="run-1"), "message"),
        "tool": result,
    }


def claude_agent() -> Samples:
    """Entries: plain ones, and those that are kept as a text."""
    from sessionstore.adapters.claude_agent import _events

    def make(value: Any, place: int) -> Event:
        entry: Any = {"type": "user", "uuid": "1", "message": {"role": "user", "content": value}}
        return _events([entry, {"type": "mode"}])[place]

    samples: Samples = {}
    for number, value in enumerate(["plain \u2615", "\ud800", float("nan"), {"b": 1, "a": [2]}]):
        for place in (0, 1):
            samples[f"entry {number} {place}"] = partial(make, value, place)
    return samples


def main(framework: str) -> None:
    """Encode all samples in many orders, through both codecs, and print a digest of each."""
    samples = {
        "openai-agents": openai_agents,
        "langchain": langchain,
        "claude-agent": claude_agent,
    }[framework]()
    codecs = [
        InMemorySessionService()._ops.options.codec,
        InMemorySessionService(codec="msgpack")._ops.options.codec,
    ]
    found: dict[str, bytes] = {}
    for _ in range(NUM_ORDERS):
        for name in _chosen.sample(list(samples), len(samples)):
            event = samples[name]()
            if framework != "claude-agent":  # which makes ids and timestamps from the entries
                at = datetime(2024, 5, 15, tzinfo=UTC)
                event = msgspec.structs.replace(event, id="1", timestamp=at)
            for codec in codecs:
                data, _ = codec.for_event(event).encode_event(event, "event", OWNER)
                assert data.startswith(b"{"), "an event of an adapter is JSON"
                assert found.setdefault(name, data) == data, name
    for name, data in sorted(found.items()):
        print(name, blake2b(data).hexdigest())


if __name__ == "__main__":
    main(sys.argv[1])
