"""Prints how messages of Pydantic AI are stored, encoded in many orders."""

from __future__ import annotations

import random
import sys
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel
from pydantic_ai.messages import (
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from sessionstore.adapters.pydantic_ai import message_events
from sessionstore.codec import Codec
from sessionstore.transform import TierOwner

AT = datetime(2024, 5, 15, 12, tzinfo=UTC)
OWNER = TierOwner("app", "user")
WORDS = [f"word {number}" for number in range(40)]


class Found(BaseModel):
    """What a tool may return."""

    tags: set[str]
    pairs: frozenset[tuple[str, int]]


def messages(seed: int) -> list[Any]:
    """The same messages, whose sets are made in another order."""
    words = random.Random(seed).sample(WORDS, len(WORDS))
    results: list[Any] = [
        set(words),
        {"deep": [frozenset(words), {"more": set(words)}], "other": ({1, 2}, words[0] != "")},
        Found(tags=set(words), pairs=frozenset((word, len(word)) for word in words)),
        {frozenset({word, "x"}) for word in words},
    ]
    return [
        ModelRequest(parts=[UserPromptPart("Hi", timestamp=AT)]),
        ModelResponse(parts=[TextPart("x"), ToolCallPart("look", {"at": 1}, "1")], timestamp=AT),
        *(
            ModelRequest(parts=[ToolReturnPart("look", result, "1", timestamp=AT)])
            for result in results
        ),
    ]


def main() -> None:
    """Every message alone and in turn, in 20 orders, under both codecs."""
    found: dict[int, set[bytes]] = {}
    for seed in range(20):
        each = list(enumerate(messages(seed)))
        random.Random(-seed).shuffle(each)
        for number, message in each:
            [event] = message_events([message], "messages")
            for codec in (Codec("json"), Codec("msgpack")):
                data, _ = codec.for_event(event).encode_event(event, "event", OWNER)
                found.setdefault(number, set()).add(data)
    for number in sorted(found):
        [data] = found[number]
        sys.stdout.buffer.write(data + b"\n")


if __name__ == "__main__":
    main()
