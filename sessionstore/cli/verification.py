"""What was sent, what was read back, and the difference.

A ledger keeps the outcome of every write of one session in a compact form: ids, digests of
events, and the state. Comparing needs nothing from the store but what it read.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec

from ..model import Event, Session, SessionKey
from .workload import Conversation, Step

_DIGEST_BYTES = 16
# Keys of objects may come back in any order; everything else counts, 1 and 1.0 apart.
_encode = msgspec.json.Encoder(order="deterministic").encode


def event_digest(event: Event) -> bytes:
    """16 bytes that stand for all fields of the event."""
    return hashlib.blake2b(_encode(event), digest_size=_DIGEST_BYTES).digest()


@dataclass(slots=True)
class Discrepancies:
    """Differences between what was sent and what was read. All zero = nothing was lost.

    Attributes:
        lost: events sent and accepted, not found. Those that the event limit drops do not count.
        duplicated: surplus copies of an event.
        out_of_order: places where an event is followed by one that was sent before it.
        altered: events found with other fields than they were sent with.
        unexpected: events found that nobody sent to the session, or that the event limit should
            have dropped.
        state_mismatches: state keys with another value than the last one written, missing, or
            left over, after the run.
        version_mismatches: sessions whose version is not 1 and one more for each accepted write:
            a write was carried out twice, or counted wrongly.
        read_mismatches: reads between writes whose events, state or version were not the newest,
            and runs that handed on other events than their agent had said.
        list_mismatches: sessions missing from their user's list, listed twice or though never
            created, or listed before one that was updated later.
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
        """The number of differences of any kind."""
        return sum(getattr(self, name) for name in self.__slots__)

    def add(self, other: Discrepancies) -> None:
        """Adds the counts of another comparison."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class SharedKeys:
    """Which keys of the app and user tiers a session may see though others wrote them."""

    def __init__(self, conversations: Iterable[Conversation]) -> None:
        self._by_app: dict[str, set[str]] = {}
        self._by_user: dict[tuple[str, str], set[str]] = {}
        for conversation in conversations:
            key = conversation.key
            app_keys = self._by_app.setdefault(key.app_name, set())
            user_keys = self._by_user.setdefault((key.app_name, key.user_id), set())
            for name in conversation.shared_keys:
                (app_keys if name.startswith("app:") else user_keys).add(name)

    def may_see(self, key: SessionKey, name: str) -> bool:
        """True when the state key is one of the session's app or of its user."""
        user = (key.app_name, key.user_id)
        return name in self._by_app[key.app_name] or name in self._by_user[user]


@dataclass(slots=True)
class Content:
    """What a session should hold.

    Attributes:
        digests: event id to event digest, in the order sent, those beyond the limit included.
        state: the session's own keys and those shared keys that only this session writes.
        version: 1 after the create, and one more after each step.
    """

    digests: dict[str, bytes]
    state: dict[str, Any]
    version: int = 1

    def apply(self, step: Step) -> None:
        """Adds the events of a step and their state deltas."""
        self.version += 1
        for event in step:
            self.digests[event.id] = event_digest(event)
            self.state.update(event.state_delta)
            for name in event.state_removed:
                self.state.pop(name, None)


@dataclass(slots=True)
class Ledger:
    """Keeps account of one session's writes, of a write whose outcome is unknown too.

    Every write is announced first, then confirmed or, when it failed, rejected.

    Attributes:
        conversation: what is written.
        content: what is known to be stored; None before the session was created.
    """

    conversation: Conversation
    content: Content | None = None
    _pending_create: bool = False
    _pending_step: Step = field(default_factory=list)

    def announce_create(self) -> None:
        """The session is about to be created, with the conversation's first state."""
        self._pending_create = True

    def announce_step(self, step: Step) -> None:
        """The events are about to be appended, all or none of them."""
        self._pending_step = step

    def confirm(self) -> None:
        """The announced write was accepted."""
        self.content = self._apply_pending(self.content)
        self._forget_pending()

    def reject(self, *, maybe_applied: bool) -> None:
        """The announced write failed; nothing more may be announced. It may have been applied."""
        if not maybe_applied:
            self._forget_pending()

    def outcomes(self) -> list[Content | None]:
        """What the session may hold: one entry, or two while the outcome of a write is unknown."""
        before = self.content
        if not self._pending_create and not self._pending_step:
            return [before]
        if before is None:
            return [None, self._apply_pending(None)]
        copy = Content(dict(before.digests), dict(before.state), before.version)
        return [before, self._apply_pending(copy)]

    @property
    def may_exist(self) -> bool:
        """True unless the session was certainly never created."""
        return self.content is not None or self._pending_create

    @property
    def must_exist(self) -> bool:
        """True when the session was certainly created."""
        return self.content is not None

    def _apply_pending(self, content: Content | None) -> Content:
        if content is None:
            return Content({}, dict(self.conversation.initial_state))
        content.apply(self._pending_step)
        return content

    def _forget_pending(self) -> None:
        self._pending_create = False
        self._pending_step = []


def compare_events(
    digests: Mapping[str, bytes], found: Sequence[Event], *, limit: int | None
) -> Discrepancies:
    """The differences between the events sent and those found.

    Args:
        digests: event id to digest of all events sent, in the order sent.
        found: the events read, in the order read.
        limit: only so many of the newest are expected; None = all.
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
    """The number of state keys that are missing, have another value, or should not be there.

    Args:
        expected: the session's own keys and the shared keys that only it writes.
        found: the merged state as read.
        key: the session that was read.
        shared: the shared keys that other sessions write; their writers check the values.
    """
    num_wrong = sum(
        name not in found or _encode(found[name]) != _encode(value)
        for name, value in expected.items()
    )
    return num_wrong + sum(name not in expected and not shared.may_see(key, name) for name in found)


def compare_session(
    ledger: Ledger, found: Session | None, *, limit: int | None, shared: SharedKeys
) -> Discrepancies:
    """The differences between what was sent to a session and what it holds.

    Where the outcome of the last write is unknown, the session must be as before the write or as
    after it, as a whole; the outcome with fewer differences counts.

    Args:
        ledger: what was sent.
        found: the session as read; None when the store has no such session.
        limit: how many events were asked for, or are kept, whichever is less; None = all.
        shared: the shared keys of the whole fleet.
    """
    key = ledger.conversation.key
    comparisons = [
        _compare_content(content, found, key=key, limit=limit, shared=shared)
        for content in ledger.outcomes()
    ]
    return min(comparisons, key=lambda discrepancies: discrepancies.total)


def _compare_content(
    expected: Content | None,
    found: Session | None,
    *,
    key: SessionKey,
    limit: int | None,
    shared: SharedKeys,
) -> Discrepancies:
    if expected is None and found is None:
        return Discrepancies()
    # What should not be there is compared with nothing, and so is what is not there but should be.
    expected = expected or Content({}, {}, version=0)
    events, state, version = (found.events, found.state, found.version) if found else ([], {}, 0)
    discrepancies = compare_events(expected.digests, events, limit=limit)
    discrepancies.version_mismatches = int(version != expected.version)
    discrepancies.state_mismatches = count_state_mismatches(
        expected.state, state, key=key, shared=shared
    )
    return discrepancies
