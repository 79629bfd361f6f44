"""Compares what was sent to a session with what it holds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import msgspec

from ...model import Event, Session, SessionKey
from .workload import Conversation

KINDS = {
    "lost": "lost",  # accepted and not found; what the event limit removes is not lost
    "duplicated": "duplicated",  # surplus copies
    "out_of_order": "out of order",  # events that follow one that was sent later
    "altered": "altered",  # events with a field that differs from what was sent
    # Events that nobody sent to the session, or that the event limit should have removed.
    "unexpected": "unexpected",
    # State keys that are missing, left over, or have another value than the last one written.
    "state_mismatches": "state mismatches",
    # Sessions whose version is not the one that the last accepted write reported: a write was
    # executed twice or later.
    "version_mismatches": "version mismatches",
    # Reads that did not show the newest events, state and version, and runs that yielded other
    # events than their agent.
    "read_mismatches": "wrong reads during the run",
    # Sessions that are missing from their user's list, listed twice, listed but never created, or
    # listed before one that was updated later.
    "list_mismatches": "wrong session lists",
}
"""Kinds of differences, and how the report names them. A Counter counts differences by kind."""

SharedKeys = frozenset[tuple[str, str, str]]
"""State keys of the app and user tiers, as (app name, user id or "" for the app tier, key)."""

# Keys of objects may come back in any order. Everything else matters: 1 and 1.0 differ.
_encode = msgspec.json.Encoder(order="deterministic").encode


def _digest(event: Event) -> bytes:
    return hashlib.blake2b(_encode(event), digest_size=16).digest()


def shared_keys(conversations: Iterable[Conversation]) -> SharedKeys:
    """State keys in the user and app tiers: one session writes each, other sessions see it."""
    return frozenset(
        (each.key.app_name, "" if name.startswith("app:") else each.key.user_id, name)
        for each in conversations
        for name in each.shared_keys
    )


@dataclass(slots=True)
class Ledger:
    """The accepted writes of one session, in compact form, and one that may still fail.

    Every write is announced, then confirmed. After a write of unknown outcome, no other write may
    follow. The first write creates the session with the conversation's first state.
    """

    conversation: Conversation
    # Event id -> digest, in the order sent, also of events that the event limit has removed.
    digests: dict[str, bytes] = field(default_factory=dict)
    # The session's own keys, and the shared keys that only this session writes.
    state: dict[str, Any] = field(default_factory=dict)
    is_created: bool = False
    version: int | None = 0  # what the last write reported; None = unknown
    pending: Sequence[Event] | None = None  # the events of the announced write

    @property
    def key(self) -> SessionKey:
        """The session."""
        return self.conversation.key

    def announce(self, *events: Event) -> None:
        """The events will be appended now, all or none of them."""
        self.pending = events

    def confirm(self, version: int | None = None) -> None:
        """The announced write was accepted and reported this version; None = unknown.

        Does nothing if no write is announced.
        """
        if self.pending is None:
            return
        if not self.is_created:
            self.state.update(self.conversation.initial_state)
        self.is_created, self.version = True, version
        for event in self.pending:
            self.digests[event.id] = _digest(event)
            self.state.update(event.state_delta)
            for name in event.state_removed:
                self.state.pop(name, None)
        self.pending = None

    def differences(
        self, found: Session | None, *, limit: int | None, shared: SharedKeys
    ) -> Counter[str]:
        """How a session differs from what was sent to it. None = the store has no such session.

        If the outcome of the last write is unknown, the session must be as before the write or as
        after it, as a whole: the outcome with fewer differences counts. `limit` is the number of
        newest events that were read or are kept, whichever is less.
        """
        outcomes = [self]
        if self.pending is not None:
            after = replace(self, digests=dict(self.digests), state=dict(self.state))
            after.confirm()
            outcomes.append(after)
        events, state, version = (
            (found.events, found.state, found.version) if found else ([], {}, 0)
        )
        return min(
            (
                compare_events(each.digests, events, limit=limit)
                + compare_state(each.state, state, key=self.key, shared=shared)
                + Counter(version_mismatches=int(each.version not in (None, version)))
                for each in outcomes
            ),
            key=Counter.total,
        )


def compare_events(
    digests: Mapping[str, bytes], found: Sequence[Event], *, limit: int | None
) -> Counter[str]:
    """How the newest events that were sent, at most `limit`, differ from those found."""
    expected = list(digests)[-limit:] if limit is not None else list(digests)
    positions = {event_id: position for position, event_id in enumerate(expected)}
    copies = Counter(event.id for event in found)
    order = [positions[event_id] for event_id in copies if event_id in positions]
    return Counter(
        lost=sum(event_id not in copies for event_id in expected),
        duplicated=copies.total() - len(copies),
        out_of_order=sum(later < earlier for earlier, later in pairwise(order)),
        altered=sum(
            event.id in positions and _digest(event) != digests[event.id] for event in found
        ),
        unexpected=sum(event_id not in positions for event_id in copies),
    )


def compare_state(
    expected: Mapping[str, Any], found: Mapping[str, Any], *, key: SessionKey, shared: SharedKeys
) -> Counter[str]:
    """Number of state keys that are missing, have another value, or should not be there.

    Shared keys of other sessions may be there. The sessions that write them check their values.
    """
    num_wrong = sum(
        name not in found or _encode(found[name]) != _encode(value)
        for name, value in expected.items()
    )
    num_foreign = sum(
        name not in expected
        and (key.app_name, "", name) not in shared
        and (key.app_name, key.user_id, name) not in shared
        for name in found
    )
    return Counter(state_mismatches=num_wrong + num_foreign)
