"""Conversations: messages in the OpenAI chat format that become a session's events.

The events depend on the conversation only. So a run can be repeated, and a checker knows the
outcome without reading the store. Recorded conversations are loaded here; synthetic.py makes
others up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.structs import asdict, astuple

from ...keys import encode_id
from ...model import Event, SessionKey
from ..store import CannotStart

Message = dict[str, Any]
"""A message as recorded: `role` and any other fields."""

_EXPORTED = {"app_state", "user_state", "encoded_state", "created_at"}  # `export` writes them

_TOOL_ROLES = ("tool", "function")

TRACE_LINE = (
    '{"app_name": "shop", "user_id": "ann", "session_id": "1", "messages":'
    ' [{"role": "user", "content": "Hi"}, ...]}'
)
"""What a line of a trace looks like, for help texts."""


@dataclass(slots=True)
class Conversation:
    """The messages of one session."""

    key: SessionKey
    initial_state: dict[str, Any]
    num_turns: int  # user messages
    messages: Callable[[], Iterable[Message]]  # in order, the same ones at every call
    # Keys of the app and user tiers (`app:...`, `user:...`) that every tool result writes. No other
    # conversation writes them.
    shared_keys: tuple[str, ...] = ()

    def prepare(self) -> None:
        """Make the messages now and keep them in memory."""
        messages = list(self.messages())
        self.messages = lambda: messages

    def turns(self) -> Iterator[list[Event]]:
        """The events before the first user message, perhaps none, then each turn in order.

        A turn is a user message and all that the agent adds in reply. Its events get their time
        when it is taken from the iterator.
        """
        turn: list[Event] = []
        num_turns = num_results = 0
        for number, message in enumerate(self.messages()):
            delta: dict[str, Any] = {}
            removed: list[str] = []
            if message["role"] == "user":
                yield turn
                turn = []
                num_turns += 1
            if message["role"] in _TOOL_ROLES:
                num_results += 1
                result = {"tool": message.get("name"), "call": message.get("tool_call_id")}
                delta = {name: {"result": num_results, **result} for name in self.shared_keys}
                delta |= {"num_tool_results": num_results, "last_result": result}
                removed = ["pending_call"]
            elif message.get("tool_calls"):
                delta = {"pending_call": {"turn": num_turns}}
            id_seed = "\0".join((*astuple(self.key), str(number)))
            event = Event(
                message.get("name") or message["role"],
                message,
                id=hashlib.blake2b(id_seed.encode(), digest_size=16).hexdigest(),
                invocation_id=f"turn-{num_turns}",
                state_delta=delta,
                state_removed=removed,
            )
            turn.append(event)
        yield turn


def initial_state(source: str) -> dict[str, Any]:
    """The first state of a session: nested values, a float, a None, text that is not ASCII."""
    settings = {"language": "français", "temperature": 0.7, "tools": ["search", "calculate"]}
    return {"source": source, "num_tool_results": 0, "settings": settings, "closed_at": None}


class _CheckedMessage(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    name: str | None = None


class _TraceLine(msgspec.Struct):
    app_name: str
    user_id: str
    session_id: str
    messages: list[_CheckedMessage]


def load_trace(path: Path) -> list[Conversation]:
    """The conversations of a file of JSON lines in UTF-8, one session a line, as TRACE_LINE.

    Empty lines are skipped, and state and empty sessions, which `export` writes. The other lines
    stay in memory as bytes and are decoded again for a replay.

    Raises:
        CannotStart: the trace is not valid; names the file, the line and the problem.
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
                    raise CannotStart(f"{place}: {error}") from error
                if conversation is None:
                    continue
                earlier = line_numbers.setdefault(conversation.key, number)
                if earlier != number:
                    raise CannotStart(f"{place}: the same session as in line {earlier}")
                conversations.append(conversation)
    except OSError as error:
        raise CannotStart(f"{path}: cannot be read: {error.strerror or error}") from error
    if not conversations:
        raise CannotStart(f"{path}: contains no conversation")
    return conversations


def _trace_conversation(line: bytes) -> Conversation | None:
    """The conversation of a line; None for state and empty sessions, which `export` writes."""
    found = msgspec.json.decode(line)
    if isinstance(found, dict) and "messages" not in found and not _EXPORTED.isdisjoint(found):
        return None
    checked = msgspec.convert(found, _TraceLine)
    key = SessionKey(checked.app_name, checked.user_id, checked.session_id)
    for name, value in asdict(key).items():
        encode_id(name, value)
    return Conversation(
        key,
        initial_state("trace"),
        num_turns=sum(message.role == "user" for message in checked.messages),
        messages=lambda: msgspec.json.decode(line)["messages"],
    )
