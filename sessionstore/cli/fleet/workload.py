"""Conversations: messages in the OpenAI chat format that become a session's events.

The events depend on the conversation only. So a run can be repeated, and a checker knows the
outcome without reading the store. Recorded conversations are loaded here; synthetic.py makes
others up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import asdict, astuple

from ...keys import encode_id
from ...model import Event, SessionKey

Message = dict[str, Any]
"""A message as recorded: `role` and any other fields."""

Step = list[Event]
"""Events that one atomic call appends."""

Turn = list[Event]
"""A user message and all that the agent adds in reply."""

TOOL_ROLES = ("tool", "function")
ROLES = ("system", "developer", "user", "assistant", *TOOL_ROLES)

TRACE_LINE = (
    '{"app_name": "shop", "user_id": "ann", "session_id": "1", "messages":'
    ' [{"role": "user", "content": "Hi"}, ...]}'
)
"""What a line of a trace looks like, for help texts."""


class TraceError(Exception):
    """A trace cannot be replayed. The message names the file, the line and the problem."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of one session.

    Attributes:
        key: the session.
        initial_state: the state to create the session with.
        num_turns: number of user messages.
        messages: returns the messages in order, the same ones at every call.
        shared_keys: keys of the app and user tiers (`app:...`, `user:...`) that every tool
            result writes. No other conversation writes them.
    """

    key: SessionKey
    initial_state: dict[str, Any]
    num_turns: int
    messages: Callable[[], Iterable[Message]]
    shared_keys: tuple[str, ...] = ()

    def prepared(self) -> Conversation:
        """The same conversation with its messages in memory."""
        messages = list(self.messages())
        return replace(self, messages=lambda: messages)

    def replay(self) -> tuple[Step, Iterator[Turn]]:
        """The events before the first user message, perhaps none, and the turns in order.

        Events get their time when their turn is taken from the iterator.
        """
        turns = self._turns()
        return next(turns), turns

    def _turns(self) -> Iterator[Turn]:
        turn: Turn = []
        num_turns = num_tool_results = 0
        for number, message in enumerate(self.messages()):
            if message["role"] == "user":
                yield turn
                turn = []
                num_turns += 1
            is_tool_result = message["role"] in TOOL_ROLES
            num_tool_results += is_tool_result
            delta: dict[str, Any] = {}
            if is_tool_result:
                delta = self._tool_result_delta(message, num_tool_results)
            elif message.get("tool_calls"):
                delta = {"pending_call": {"turn": num_turns}}
            id_seed = "\0".join((*astuple(self.key), str(number)))
            event = Event(
                message.get("name") or message["role"],
                message,
                id=hashlib.blake2b(id_seed.encode(), digest_size=16).hexdigest(),
                invocation_id=f"turn-{num_turns}",
                state_delta=delta,
                state_removed=["pending_call"] if is_tool_result else [],
            )
            turn.append(event)
        yield turn

    def _tool_result_delta(self, message: Message, number: int) -> dict[str, Any]:
        result = {"tool": message.get("name"), "call": message.get("tool_call_id")}
        shared = {name: {"result": number, **result} for name in self.shared_keys}
        return {"num_tool_results": number, "last_result": result, **shared}


def initial_state(source: str) -> dict[str, Any]:
    """The first state of a session: nested values, a float, a None, text that is not ASCII."""
    settings = {"language": "français", "temperature": 0.7, "tools": ["search", "calculate"]}
    return {"source": source, "num_tool_results": 0, "settings": settings, "closed_at": None}


class _TraceLine(msgspec.Struct):
    """A recorded conversation. Other fields of the line are ignored."""

    app_name: str
    user_id: str
    session_id: str
    messages: list[dict[str, Any]]


_decode_trace_line = msgspec.json.Decoder(_TraceLine).decode


def load_trace(path: Path) -> list[Conversation]:
    """The conversations of a file of JSON lines in UTF-8, one session a line.

    A line looks like TRACE_LINE. Empty lines are skipped. The lines are kept in memory as bytes
    and decoded again when a conversation is replayed.

    Raises:
        TraceError: the file cannot be read, has no conversation, or a line is not valid.
    """
    conversations: list[Conversation] = []
    line_numbers: dict[SessionKey, int] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                place = f"{path}:{number}"
                try:
                    conversation = _trace_conversation(line)
                except (msgspec.DecodeError, ValueError, RecursionError) as error:
                    raise TraceError(f"{place}: {error}") from error
                earlier = line_numbers.setdefault(conversation.key, number)
                if earlier != number:
                    raise TraceError(f"{place}: the same session as in line {earlier}")
                conversations.append(conversation)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not conversations:
        raise TraceError(f"{path}: contains no conversation")
    return conversations


def _trace_conversation(line: bytes) -> Conversation:
    """The conversation of a line.

    Raises:
        msgspec.DecodeError, ValueError, RecursionError: the line is not valid.
    """
    recorded = _decode_trace_line(line)
    key = SessionKey(recorded.app_name, recorded.user_id, recorded.session_id)
    for name, value in asdict(key).items():
        encode_id(name, value)
    for number, message in enumerate(recorded.messages):
        role, author = message.get("role"), message.get("name")
        if role is None:
            raise ValueError(f"messages[{number}] has no role")
        if role not in ROLES:
            allowed = ", ".join(ROLES)
            raise ValueError(f"messages[{number}] has the role {role!r}, not one of {allowed}")
        if author is not None and not isinstance(author, str):
            raise ValueError(f"messages[{number}] has a name that is not text")
    return Conversation(
        key=key,
        initial_state=initial_state("trace"),
        num_turns=sum(message["role"] == "user" for message in recorded.messages),
        messages=lambda: _decode_trace_line(line).messages,
    )
