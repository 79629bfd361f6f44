"""The parts of a run that need no I/O: state, context, events. Both Runners use them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from typing import Any, Final

import msgspec

from .errors import BackendError, InvalidArgument, SessionNotFound
from .model import Event, Session

_logger = logging.getLogger("sessionstore")

BATCH_S = 0.04
"""How long a fragment waits for others that are stored with it."""

_REMOVED: Final[Any] = object()  # stands for the value of a removed state key


class RunState(MutableMapping[str, Any]):
    """The session's state, as the agent reads and changes it.

    Changes are stored together with the next event that the agent yields, in one atomic write.
    Changes after the last event are stored with an event of their own, without content. Only
    setting and deleting keys is a change; changing a value in place stores nothing until the key is
    set again. Keys have the prefixes of `Session.state`; `temp:` keys live as long as the run.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._changes: dict[str, Any] = {}
        self._pending: dict[str, Any] = {}  # changes in an event that is not stored yet

    def __getitem__(self, key: str) -> Any:
        value = self._changes[key] if key in self._changes else self._session.state[key]
        if value is _REMOVED:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise InvalidArgument(f"a state key must be a str, not {type(key).__name__}")
        self._changes[key] = value

    def __delitem__(self, key: str) -> None:
        self[key]  # raises KeyError for a missing key
        self._changes[key] = _REMOVED

    def __iter__(self) -> Iterator[str]:
        keys = self._session.state | self._changes
        return iter([key for key, value in keys.items() if value is not _REMOVED])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} keys, {len(self._changes)} changed)"

    @property
    def is_changed(self) -> bool:
        """Whether there are changes to store."""
        return any(not key.startswith("temp:") for key in self._changes)

    def add_changes(self, event: Event) -> Event:
        """The event with the changes so far; where both set a key, the event's value wins."""
        delta, removed = event.state_delta, event.state_removed
        self._pending = dict(self._changes)
        if not self._pending or not isinstance(delta, dict) or not isinstance(removed, list):
            return event  # the store refuses an event with wrong types and names the field
        in_event = [*delta, *removed]  # a list: the store refuses a key that is not hashable
        changes = {key: value for key, value in self._pending.items() if key not in in_event}
        return msgspec.structs.replace(
            event,
            state_delta={k: v for k, v in changes.items() if v is not _REMOVED} | delta,
            state_removed=removed + [k for k, v in changes.items() if v is _REMOVED],
        )

    def clear_stored_changes(self) -> None:
        """Forget the changes that the last `add_changes` put into an event: it is stored now."""
        for key, value in self._pending.items():
            if self._changes.get(key) is value:
                del self._changes[key]


class RunContext(msgspec.Struct, frozen=True):
    """What an agent gets for one run.

    Attributes:
        session: the session with merged state and its newest events, the user's message last.
        message: what the user said, as given to `Runner.run`.
        invocation_id: the id of this run; events without an invocation id get it.
        state: the state to read and change.
    """

    session: Session
    message: Any
    invocation_id: str
    state: RunState

    def __repr__(self) -> str:
        return f"RunContext({self.session!r}, invocation_id={self.invocation_id!r})"


def with_invocation_id(event: Event, invocation_id: str) -> Event:
    """The event with the run's invocation id, unless it has one of its own."""
    if event.invocation_id:
        return event
    return msgspec.structs.replace(event, invocation_id=invocation_id)


def error_event(error: Exception, invocation_id: str) -> Event:
    """The event that records why a run failed."""
    # Replace what UTF-8 cannot encode, such as surrogates from a path that is not UTF-8.
    message = str(error).encode(errors="backslashreplace").decode()
    content = {"error": {"type": type(error).__name__, "message": message}}
    return Event("agent", content, metadata={"error": True}, invocation_id=invocation_id)


def interrupted_event(streamed: list[Event], invocation_id: str) -> Event:
    """One event for an interrupted stream: its texts joined, or a list of its fragments."""
    fragments = [event.content for event in streamed]
    is_text = all(isinstance(fragment, str) for fragment in fragments)
    content: Any = "".join(fragments) if is_text else fragments
    return Event(
        streamed[-1].author,
        content,
        metadata={"interrupted": True},
        invocation_id=invocation_id,
        branch=streamed[-1].branch,
    )


def log_failed_compaction(error: Exception) -> None:
    """Log why a compaction in the background failed: the type, as the text may have content."""
    if isinstance(error, SessionNotFound):
        return  # deleted or expired meanwhile
    reason = f": {error}" if isinstance(error, InvalidArgument) else ""
    _logger.warning("a compaction failed: %s%s", type(error).__name__, reason)


def log_lost_fragments(error: BackendError) -> None:
    """Log that fragments could not be stored. The run continues: its events do not need them."""
    _logger.warning("fragments of a run could not be stored: %s", type(error).__name__)
