"""Makes up conversations with the roles and sizes of recorded ones."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache

import msgspec

from ...model import SessionKey
from .workload import Conversation, Message, initial_state

NUM_SHARED_APP_KEYS = 16
"""Sessions that write to the app tier. Every session of the app reads all of it."""

# Sizes of recorded messages in bytes of JSON, by role, at these quantiles. With the weights of
# _TOOL_ROUNDS, the median of all messages is about 210, the 99th percentile about 6,300.
_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
_MESSAGE_BYTES = {
    "system": (6263, 6263, 6263, 6263, 6263, 6263, 6263, 6263),
    "user": (38, 70, 92, 122, 160, 196, 274, 330),
    "assistant": (77, 163, 210, 300, 443, 628, 992, 1317),
    "tool_call": (164, 195, 199, 201, 370, 495, 745, 1243),
    "tool": (90, 98, 164, 890, 1069, 1217, 5445, 7747),
}
# How often an agent calls a tool before it answers: 0, 1, 2, ... times, in percent of turns.
_TOOL_ROUNDS = (58, 23, 9, 5, 5)

# Some sort before "assistant" as text and some after it: an order that is only alphabetical shows.
_TOOLS = ("account_details", "add_note", "calculate", "list_orders", "search", "update_order")
_VOCABULARY = (
    "the of to and a in is it you that was for on are with as be this have from or had by hot "
    "word but what some we can out other were all there when up use your how said an each she "
    "which do their time if will way about many then them would write like so these her long "
    "make thing see him two has look more day could go come did my sound no most number who "
    "over know water than call first people may down side been now find café naïve Zürich "
    "reservation flight baggage passenger certificate membership 東京 confirmed cancelled 🙂"
)
_PROSE_CHARACTERS = 1 << 17


def synthetic_conversations(
    num_sessions: int, *, num_turns: int, sessions_per_user: int, seed: int
) -> list[Conversation]:
    """Conversations, each of which depends on the seed and its own number only.

    A turn has about 3.5 events. `sessions_per_user` consecutive sessions share a user.
    """

    def conversation(index: int) -> Conversation:
        session_id = f"session-{index:06d}"
        tiers = ("user", "app") if index < NUM_SHARED_APP_KEYS else ("user",)
        return Conversation(
            SessionKey("fleet", f"user-{index // sessions_per_user:06d}", session_id),
            initial_state("synthetic"),
            num_turns,
            messages=lambda: _messages(random.Random(f"{seed}/{index}"), num_turns),
            shared_keys=tuple(f"{tier}:last_{session_id}" for tier in tiers),
        )

    return [conversation(index) for index in range(num_sessions)]


def _messages(rng: random.Random, num_turns: int) -> Iterator[Message]:
    def plain(role: str, **fields: str) -> Message:
        message = {"role": role, **fields, "content": ""}
        return {**message, "content": _text(rng, role, message)}

    yield plain("system")
    for _ in range(num_turns):
        yield plain("user")
        (num_rounds,) = rng.choices(range(len(_TOOL_ROUNDS)), _TOOL_ROUNDS)
        for _ in range(num_rounds):
            call_id, tool = f"call_{rng.getrandbits(64):016x}", rng.choice(_TOOLS)
            function = {"name": tool, "arguments": ""}
            calls = [{"id": call_id, "type": "function", "function": function}]
            call = {"role": "assistant", "content": None, "tool_calls": calls}
            # Arguments are JSON inside a JSON string: 14 characters around the text.
            arguments = {"query": _text(rng, "tool_call", call, 14)}
            function["arguments"] = msgspec.json.encode(arguments).decode()
            yield call
            yield plain("tool", tool_call_id=call_id, name=tool)
        yield plain("assistant")


def _text(rng: random.Random, kind: str, message: Message, overhead: int = 0) -> str:
    """Text that brings a message to a size drawn for its kind; at least one character.

    Between the quantiles the logarithm of the size is interpolated.
    """
    sizes = _MESSAGE_BYTES[kind]
    position = rng.random()
    upper = bisect_right(_QUANTILES, position)
    low, high = _QUANTILES[upper - 1], _QUANTILES[upper]
    ratio = sizes[upper] / sizes[upper - 1]
    size = sizes[upper - 1] * math.pow(ratio, (position - low) / (high - low))
    length = max(1, round(size) - len(msgspec.json.encode(message)) - overhead)
    start = rng.randrange(_PROSE_CHARACTERS - length)
    return _prose()[start : start + length]


@cache
def _prose() -> str:
    """Long text. A slice of it is faster than joined words."""
    rng = random.Random(0)
    words = rng.choices(_VOCABULARY.split(), k=_PROSE_CHARACTERS // 4)
    text = " ".join(word + (".\n" if rng.random() < 0.05 else "") for word in words)
    return text[:_PROSE_CHARACTERS]
