"""The conversations that a fleet of simulated agents holds: made up from a seed, or replayed.

A conversation is a session's key, its first state and a stream of messages in the OpenAI chat
format. Every message becomes an event. What is written for a message depends on nothing but the
conversation, so a run can be repeated, and a checker knows the outcome without asking the store.
"""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from ..errors import InvalidArgument
from ..keys import encode_id
from ..model import Event, SessionKey

Message = dict[str, Any]
"""One message as recorded: `role` and whatever else the recording holds."""

Step = list[Event]
"""Events that are appended together, in one atomic call."""

Turn = list[Event]
"""A user message, and all that the agent says and does about it."""

NUM_SHARED_APP_KEYS = 16
"""So many synthetic sessions write to the app tier: every session of the app reads all of it."""

TOOL_ROLES = ("tool", "function")
ROLES = ("system", "developer", "user", "assistant", *TOOL_ROLES)

# Sizes of recorded messages in bytes of JSON, by role, at these quantiles. Together, in the mix
# that the weights of _TOOL_ROUNDS give, the median is about 210, the 99th percentile about 6,300.
_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
_MESSAGE_BYTES = {
    "system": (6263, 6263, 6263, 6263, 6263, 6263, 6263, 6263),
    "user": (38, 70, 92, 122, 160, 196, 274, 330),
    "assistant": (77, 163, 210, 300, 443, 628, 992, 1317),
    "tool_call": (164, 195, 199, 201, 370, 495, 745, 1243),
    "tool": (90, 98, 164, 890, 1069, 1217, 5445, 7747),
}
# How many times an agent calls a tool before it answers: 0, 1, 2, ... times, in percent of turns.
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

_encode_json = msgspec.json.Encoder().encode


class TraceError(Exception):
    """A trace cannot be replayed. The message says the file, the line and what is wrong."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One session's worth of messages.

    Attributes:
        key: the session that the conversation is held in.
        initial_state: the state to create the session with.
        num_turns: how many turns `replay` gives.
        messages: yields the messages from the first on, the same ones every time.
        shared_keys: keys of the app and user tiers (`app:...`, `user:...`) that every tool
            result of this conversation writes. No other conversation writes them.
    """

    key: SessionKey
    initial_state: dict[str, Any]
    num_turns: int
    messages: Callable[[], Iterator[Message]]
    shared_keys: tuple[str, ...] = ()

    def replay(self) -> tuple[list[Event], Iterator[Turn]]:
        """What was said before the first user message, if anything, and the turns in order.

        Events are ready to append. They carry the time at which they are asked for.
        """
        writer = _EventWriter(self.key, self.shared_keys)
        parts = (
            [writer.event(message, number) for message in messages]
            for number, messages in enumerate(_split_turns(self.messages()))
        )
        return next(parts), parts


class _EventWriter:
    """Turns the messages of one conversation into events with state deltas."""

    def __init__(self, key: SessionKey, shared_keys: tuple[str, ...]) -> None:
        self._id_seed = "\0".join((key.app_name, key.user_id, key.session_id))
        self._shared_keys = shared_keys
        self._num_events = 0
        self._num_tool_results = 0

    def event(self, message: Message, turn: int) -> Event:
        """The event for the next message. A tool call sets a key that its result removes."""
        delta: dict[str, Any] = {}
        removed: list[str] = []
        if message["role"] in TOOL_ROLES:
            delta = self._tool_result_delta(message)
            removed = ["pending_call"]
        elif message.get("tool_calls"):
            delta = {"pending_call": {"turn": turn}}
        return Event(
            message.get("name") or message["role"],
            message,
            id=self._next_id(),
            invocation_id=f"turn-{turn}",
            state_delta=delta,
            state_removed=removed,
        )

    def _next_id(self) -> str:
        seed = f"{self._id_seed}\0{self._num_events}".encode()
        self._num_events += 1
        return hashlib.blake2b(seed, digest_size=16).hexdigest()

    def _tool_result_delta(self, message: Message) -> dict[str, Any]:
        self._num_tool_results += 1
        result = {"tool": message.get("name"), "call": message.get("tool_call_id")}
        delta: dict[str, Any] = {
            "num_tool_results": self._num_tool_results,
            "last_result": result,
        }
        for key in self._shared_keys:
            delta[key] = {"result": self._num_tool_results, **result}
        return delta


def _split_turns(messages: Iterable[Message]) -> Iterator[list[Message]]:
    """What comes before the first user message, be it nothing; then a part for each of them."""
    part: list[Message] = []
    for message in messages:
        if message["role"] == "user":
            yield part
            part = []
        part.append(message)
    yield part


def _initial_state(source: str) -> dict[str, Any]:
    """The first state of a session: nested values, a float, a None, text that is not ASCII."""
    return {
        "source": source,
        "num_tool_results": 0,
        "settings": {"language": "français", "temperature": 0.7, "tools": list(_TOOLS)},
        "closed_at": None,
    }


def synthetic_conversations(
    num_sessions: int, *, num_turns: int, sessions_per_user: int, seed: int
) -> list[Conversation]:
    """Conversations whose roles and sizes follow recorded ones; the same for the same arguments.

    Args:
        num_sessions: how many, at least 1.
        num_turns: user messages in each, at least 1. A turn makes about 3.5 events.
        sessions_per_user: consecutive sessions that share a user, at least 1.
        seed: any integer. A conversation depends on the seed and on its own number only.

    Returns:
        The conversations. Their messages are made up when asked for, not kept.
    """
    return [
        _synthetic_conversation(index, num_turns, index // sessions_per_user, seed)
        for index in range(num_sessions)
    ]


def _synthetic_conversation(index: int, num_turns: int, user: int, seed: int) -> Conversation:
    session_id = f"session-{index:06d}"
    shared_keys = [f"user:last_{session_id}"]
    if index < NUM_SHARED_APP_KEYS:
        shared_keys.append(f"app:last_{session_id}")
    return Conversation(
        key=SessionKey("fleet", f"user-{user:06d}", session_id),
        initial_state=_initial_state("synthetic"),
        num_turns=num_turns,
        messages=lambda: _synthetic_messages(random.Random(f"{seed}/{index}"), num_turns),
        shared_keys=tuple(shared_keys),
    )


def _synthetic_messages(rng: random.Random, num_turns: int) -> Iterator[Message]:
    yield _sized(rng, "system", {"role": "system", "content": ""})
    for _ in range(num_turns):
        yield _sized(rng, "user", {"role": "user", "content": ""})
        (num_rounds,) = rng.choices(range(len(_TOOL_ROUNDS)), _TOOL_ROUNDS)
        for _ in range(num_rounds):
            yield from _tool_round(rng)
        yield _sized(rng, "assistant", {"role": "assistant", "content": ""})


def _tool_round(rng: random.Random) -> Iterator[Message]:
    call_id = f"call_{rng.getrandbits(64):016x}"
    tool = rng.choice(_TOOLS)
    function = {"name": tool, "arguments": ""}
    calls = [{"id": call_id, "type": "function", "function": function}]
    call = {"role": "assistant", "content": None, "tool_calls": calls}
    # Arguments are JSON inside a JSON string: 14 characters around the text, quotes escaped.
    num_characters = draw_message_bytes(rng, "tool_call") - len(_encode_json(call)) - 14
    function["arguments"] = _encode_json({"query": _prose(rng, num_characters)}).decode()
    yield call
    yield _sized(
        rng, "tool", {"role": "tool", "tool_call_id": call_id, "name": tool, "content": ""}
    )


def _sized(rng: random.Random, kind: str, message: Message) -> Message:
    """The message with as much text for content as makes it the size drawn for its kind."""
    num_characters = draw_message_bytes(rng, kind) - len(_encode_json(message))
    return {**message, "content": _prose(rng, num_characters)}


def draw_message_bytes(rng: random.Random, kind: str) -> int:
    """A message size in bytes of JSON, drawn from the recorded sizes of its kind.

    Between two recorded quantiles the logarithm of the size is interpolated.

    Args:
        rng: where the randomness comes from; one number is drawn.
        kind: "system", "user", "assistant", "tool_call" or "tool".
    """
    sizes = _MESSAGE_BYTES[kind]
    position = rng.random()
    upper = bisect_right(_QUANTILES, position)
    low, high = _QUANTILES[upper - 1], _QUANTILES[upper]
    ratio = sizes[upper] / sizes[upper - 1]
    return round(sizes[upper - 1] * math.pow(ratio, (position - low) / (high - low)))


def _prose(rng: random.Random, num_characters: int) -> str:
    """A stretch of text of that length, at least one character."""
    length = max(1, num_characters)
    start = rng.randrange(_PROSE_CHARACTERS - length)
    return _long_prose()[start : start + length]


@cache
def _long_prose() -> str:
    """Slicing one long text is many times faster than joining words for every message."""
    rng = random.Random(0)
    vocabulary = _VOCABULARY.split()
    words: list[str] = []
    num_characters = 0
    while num_characters < _PROSE_CHARACTERS:
        words.append(rng.choice(vocabulary) + (".\n" if rng.random() < 0.05 else ""))
        num_characters += len(words[-1]) + 1
    return " ".join(words)


class _TraceLine(msgspec.Struct):
    """One recorded conversation as it stands in the file. Further fields are ignored."""

    app_name: str
    user_id: str
    session_id: str
    messages: list[dict[str, Any]]


_decode_trace_line = msgspec.json.Decoder(_TraceLine).decode


def load_trace(path: Path) -> list[Conversation]:
    """The recorded conversations of a file with one session a line.

    A line is an object {"app_name", "user_id", "session_id", "messages": [...]}, a message an
    object with at least a `role`. Empty lines are skipped. The lines are kept in memory as they
    are and decoded again when their conversation is replayed.

    Args:
        path: a file of JSON lines in UTF-8.

    Raises:
        TraceError: the file cannot be read, holds no conversation, or a line is not one; the
            message says `file:line` and what is wrong.
    """
    conversations: list[Conversation] = []
    line_numbers: dict[SessionKey, int] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                conversation = _trace_conversation(line, f"{path}:{number}")
                earlier = line_numbers.setdefault(conversation.key, number)
                if earlier != number:
                    raise TraceError(f"{path}:{number}: the same session as in line {earlier}")
                conversations.append(conversation)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not conversations:
        raise TraceError(f"{path}: holds no conversation")
    return conversations


def _trace_conversation(line: bytes, place: str) -> Conversation:
    try:
        recorded = _decode_trace_line(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TraceError(f"{place}: {error}") from error
    for name in ("app_name", "user_id", "session_id"):
        try:
            encode_id(name, getattr(recorded, name))
        except InvalidArgument as error:
            raise TraceError(f"{place}: {error}") from error
    for number, message in enumerate(recorded.messages):
        _check_message(message, f"{place}: messages[{number}]")
    return Conversation(
        key=SessionKey(recorded.app_name, recorded.user_id, recorded.session_id),
        initial_state=_initial_state("trace"),
        num_turns=sum(message["role"] == "user" for message in recorded.messages),
        messages=lambda: iter(_decode_trace_line(line).messages),
    )


def _check_message(message: Message, place: str) -> None:
    role = message.get("role")
    if role is None:
        raise TraceError(f"{place} has no role")
    if role not in ROLES:
        raise TraceError(f"{place} has the role {role!r}, not one of {', '.join(ROLES)}")
    name = message.get("name")
    if name is not None and not isinstance(name, str):
        raise TraceError(f"{place} has a name that is not text")
