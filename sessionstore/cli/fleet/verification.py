"""Compares what was sent with what was read back.

A ledger keeps the outcome of every write of one session in compact form: ids, digests of events,
and the state.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec

from ...model import Event, Session, SessionKey
from .workload import Conversation, Step

# Keys of objects may come back in any order. Everything else matters: 1 and 1.0 differ.
_encode = msgspec.json.Encoder(order="deterministic").encode


def event_digest(event: Event) -> bytes:
    """16 bytes that stand for all fields of the event."""
    return hashlib.blake2b(_encode(event), digest_size=16).digest()


@dataclass(slots=True)
class Discrepancies:
    """Differences between what was sent and what was read. All zero = nothing was lost.

    Attributes:
        lost: events that were accepted and not found. What the event limit removes is not lost.
        duplicated: surplus copies of an event.
        out_of_order: places where an event is followed by one that was sent earlier.
        altered: events with a field that differs from what was sent.
        unexpected: events that nobody sent to the session, or that the event limit should have
            removed.
        state_mismatches: state keys that are missing, left over, or have another value than the
            last one written, after the run.
        version_mismatches: sessions whose version is not the one that the last accepted write
            reported: a write was executed twice, or another one was executed later.
        read_mismatches: reads during the run that did not show the newest events, state and
            version, and runs that yielded other events than their agent.
        list_mismatches: sessions that are missing from their user's list, listed twice, listed
            but never created, or listed before one that was updated later.
    """

    lost: int = 0
    duplicated: int = 0
    out_of_order: int = 0
    altered: int = 0
    unexpected: int = 0
    state_mismatches: int = 0
    version_mismatches: int = 0
    read_mismatches: int = 0
    list_mismatches: int = 0

    @property
    def total(self) -> int:
        """Differences of any kind."""
        return sum(getattr(self, name) for name in self.__slots__)

    def add(self, other: Discrepancies) -> None:
        """Add the counts of another comparison."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


SharedKeys = frozenset[tuple[str, str, str]]
"""State keys of the app and user tiers, as (app name, user id or "" for the app tier, key)."""


def shared_keys(conversations: Iterable[Conversation]) -> SharedKeys:
    """The state keys that the sessions of a user or an app see though one session writes them."""
    return frozenset(
        (each.key.app_name, "" if name.startswith("app:") else each.key.user_id, name)
        for each in conversations
        for name in each.shared_keys
    )


@dataclass(slots=True)
class Content:
    """What a session should hold.

    Attributes:
        digests: event id -> digest, in the order sent, also of events beyond the event limit.
        state: the session's own keys and the shared keys that only this session writes.
        version: what the last write reported; None = not known.
    """

    digests: dict[str, bytes]
    state: dict[str, Any]
    version: int | None = None

    def apply(self, step: Step) -> None:
        """Add the events of a step and their state deltas."""
        self.version = None
        for event in step:
            self.digests[event.id] = event_digest(event)
            self.state.update(event.state_delta)
            for name in event.state_removed:
                self.state.pop(name, None)


@dataclass(slots=True)
class Ledger:
    """Records the writes of one session, also a write with unknown outcome.

    Every write is announced first, then confirmed, or rejected if it failed. The first write
    creates the session with the conversation's first state.

    Attributes:
        conversation: what is written.
        content: what is stored for certain; None before the session was created.
    """

    conversation: Conversation
    content: Content | None = None
    _pending: Step | None = None

    def announce(self, step: Step) -> None:
        """The events will be appended now, all or none of them; [] = the session is created."""
        self._pending = step

    def confirm(self, version: int | None = None) -> None:
        """The announced write was accepted, and reported this version; None = not known."""
        self.content = self._apply_pending(self.content)
        self.content.version = version
        self._pending = None

    def reject(self, *, maybe_applied: bool) -> None:
        """The announced write failed. If it may have been applied, nothing may follow."""
        if not maybe_applied:
            self._pending = None

    def outcomes(self) -> list[Content | None]:
        """What the session may hold: one entry, or two if the outcome of a write is unknown."""
        if self._pending is None:
            return [self.content]
        copy = self.content and Content(
            dict(self.content.digests), dict(self.content.state), self.content.version
        )
        return [self.content, self._apply_pending(copy)]

    @property
    def may_exist(self) -> bool:
        """Whether the session was created, or may have been."""
        return self.content is not None or self._pending is not None

    def _apply_pending(self, content: Content | None) -> Content:
        if content is None:
            return Content({}, dict(self.conversation.initial_state))
        content.apply(self._pending or [])
        return content


def compare_events(
    digests: Mapping[str, bytes], found: Sequence[Event], *, limit: int | None
) -> Discrepancies:
    """The differences between the events sent and those found.

    Args:
        digests: event id -> digest of all events sent, in the order sent.
        found: the events read, in the order read.
        limit: number of newest events that are expected; None = all.
    """
    expected = list(digests)[-limit:] if limit is not None else list(digests)
    positions = {event_id: position for position, event_id in enumerate(expected)}
    copies = Counter(event.id for event in found)
    order = [positions[event_id] for event_id in copies if event_id in positions]
    return Discrepancies(
        lost=sum(event_id not in copies for event_id in expected),
        duplicated=copies.total() - len(copies),
        out_of_order=sum(later < earlier for earlier, later in pairwise(order)),
        altered=sum(
            event.id in positions and event_digest(event) != digests[event.id] for event in found
        ),
        unexpected=sum(event_id not in positions for event_id in copies),
    )


def count_state_mismatches(
    expected: Mapping[str, Any], found: Mapping[str, Any], *, key: SessionKey, shared: SharedKeys
) -> int:
    """Number of state keys that are missing, have another value, or should not be there.

    Args:
        expected: the session's own keys and the shared keys that only this session writes.
        found: the merged state as read.
        key: the session.
        shared: shared keys of the whole fleet. The sessions that write them check their values.
    """
    num_wrong = sum(
        name not in found or _encode(found[name]) != _encode(value)
        for name, value in expected.items()
    )
    owners = ("", key.user_id)
    return num_wrong + sum(
        name not in expected and not any((key.app_name, owner, name) in shared for owner in owners)
        for name in found
    )


def compare_session(
    ledger: Ledger, found: Session | None, *, limit: int | None, shared: SharedKeys
) -> Discrepancies:
    """The differences between what was sent to a session and what it holds.

    If the outcome of the last write is unknown, the session must be as before the write or as
    after it, as a whole: the outcome with fewer differences counts.

    Args:
        ledger: what was sent.
        found: the session as read; None if the store has no such session.
        limit: number of events that were read or are kept, whichever is less; None = all.
        shared: the shared keys of the whole fleet.
    """
    comparisons = []
    for content in ledger.outcomes():
        if content is None and found is None:
            return Discrepancies()
        # A session that should not exist is compared with nothing, and so is one that is missing.
        sent = content or Content({}, {}, version=0)
        comparison = compare_events(sent.digests, found.events if found else [], limit=limit)
        version = found.version if found else 0
        comparison.version_mismatches = int(sent.version not in (None, version))
        comparison.state_mismatches = count_state_mismatches(
            sent.state, found.state if found else {}, key=ledger.conversation.key, shared=shared
        )
        comparisons.append(comparison)
    return min(comparisons, key=lambda comparison: comparison.total)
