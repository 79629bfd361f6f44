"""Prints how events of Google ADK and tRPC-Agent are stored, encoded in many orders.

python bytes_of_adk.py adk|trpc_agent
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from pydantic import BaseModel

from sessionstore.codec import Codec
from sessionstore.transform import TierOwner

OWNER = TierOwner("app", "user")
WORDS = [f"word {number}" for number in range(40)]


class Found(BaseModel):
    """What a tool may return."""

    tags: set[str]
    pairs: frozenset[tuple[str, int]]


def adk_events(words: list[str]) -> list[Any]:
    """Events of ADK whose sets were made in this order."""
    types: Any = import_module("google.genai.types")
    event: Any = import_module("google.adk.events.event").Event
    actions: Any = import_module("google.adk.events.event_actions").EventActions
    return [
        *_common_events(event, types, actions, words),
        event(author="agent", output={"deep": [frozenset(words)]}),
        event(author="agent", actions=actions(agent_state={"seen": set(words)})),
    ]


def trpc_agent_events(words: list[str]) -> list[Any]:
    """Events of tRPC-Agent whose sets were made in this order."""
    types: Any = import_module("trpc_agent_sdk.types")
    event: Any = import_module("trpc_agent_sdk.events").Event
    return _common_events(event, types, types.EventActions, words)


def _common_events(event: Any, types: Any, actions: Any, words: list[str]) -> list[Any]:
    found = Found(tags=set(words), pairs=frozenset((word, len(word)) for word in words))
    answer = types.FunctionResponse(id="1", name="f", response={"found": found, "all": set(words)})
    call = types.FunctionCall(id="1", name="f", args={"deep": ({1, 2}, [set(words)])})
    return [
        event(author="user", content=types.Content(role="user", parts=[types.Part(text="Hi")])),
        event(author="agent", content=types.Content(parts=[types.Part(function_call=call)])),
        event(author="agent", content=types.Content(parts=[types.Part(function_response=answer)])),
        event(author="agent", long_running_tool_ids=set(words)),
        event(author="agent", custom_metadata={"tags": {"a": frozenset(words)}}),
        event(author="agent", custom_metadata={"half": "\ud83d", "more": [set(words)]}),
        event(
            author="agent",
            actions=actions(state_delta={"tags": set(words), "user:found": found, "n": 1}),
        ),
        event(author="agent", actions=actions(state_delta={"odd": [set(words), Ellipsis]})),
    ]


def main(adapter: str) -> None:
    """Every event alone and in turn, in 20 orders, under both codecs."""
    make: Callable[[list[str]], list[Any]] = globals()[f"{adapter}_events"]
    events: Any = import_module(f"sessionstore.adapters.{adapter}")._EVENTS
    found: dict[int, set[bytes]] = {}
    for seed in range(20):
        each = list(enumerate(make(random.Random(seed).sample(WORDS, len(WORDS)))))
        random.Random(-seed).shuffle(each)
        for number, event in each:
            event.id, event.timestamp = str(number), 1.7e9 + number
            stored = events.store(event)
            for codec in (Codec("json"), Codec("msgpack")):
                data, _ = codec.for_event(stored).encode_event(stored, "event", OWNER)
                found.setdefault(number, set()).add(data)
    for number in sorted(found):
        [data] = found[number]
        sys.stdout.buffer.write(data + b"\n")


if __name__ == "__main__":
    main(sys.argv[1])
