"""Compares what was sent to a session with what it holds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import msgspec

from ...model import Event, Session, SessionKey, Summary
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
    # Summaries that do not cover exactly the oldest events that were sent.
    "summary_mismatches": "wrong summaries",
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


async def summarize(previous: Summary | None, events: list[Event]) -> dict[str, Any]:
    """A summary that tells which events it covers: their number, and a digest of them in order."""
    digest = previous.content["digest"] if previous else ""
    return {
        "num_events": num_covered_by(previous) + len(events),
        "digest": _digest_of_all(digest, map(_digest, events)),
    }


def _digest_of_all(start: str, digests: Iterable[bytes]) -> str:
    for digest in digests:
        start = hashlib.blake2b(start.encode() + digest, digest_size=16).hexdigest()
    return start


def shared_keys(conversations: Iterable[Conversation]) -> SharedKeys:
    """State keys in the user and app tiers: one session writes each, other sessions see it."""
    return frozenset(
        (each.key.app_name, "" if name.startswith("app:") else each.key.user_id, name)
        for each in conversations
        for name in each.shared_keys
    )


@dataclass
class Rewind:
    """A write that removes the newest events, and what the session's own state is then."""

    num_events: int
    state: dict[str, Any]


@dataclass(slots=True)
class Ledger:
    """The accepted writes of one session, in compact form, and one that may still fail.

    Every write is announced, then confirmed. After a write of unknown outcome, no other write may
    follow. The first write creates the session with the conversation's first state.
    """

    conversation: Conversation
    event_limit: int | None = None  # of the session
    is_dropped: bool = False  # events that a summary covers are removed
    # Event id -> digest, in the order sent, also of events that the event limit has removed, but
    # not of those that were rewound.
    digests: dict[str, bytes] = field(default_factory=dict)
    num_trimmed: int = 0  # how many of these the event limit has removed
    num_dropped: int = 0  # how many of these were removed with a summary, as the check found
    # The session's own keys, and the shared keys that only this session writes.
    state: dict[str, Any] = field(default_factory=dict)
    is_created: bool = False
    version: int | None = 0  # what the last write reported; None = unknown
    pending: Sequence[Event] | Rewind | None = None  # the announced write

    @property
    def key(self) -> SessionKey:
        """The session."""
        return self.conversation.key

    def announce(self, *events: Event) -> None:
        """The events will be appended now, all or none of them."""
        self.pending = events

    def announce_rewind(self, num_events: int, state: dict[str, Any]) -> None:
        """The newest events will be removed now, and the session's own state replaced."""
        self.pending = Rewind(num_events, state)

    def confirm(self, version: int | None = None) -> None:
        """The announced write was accepted and reported this version; None = unknown.

        Does nothing if no write is announced.
        """
        if self.pending is None:
            return
        if not self.is_created:
            self.state.update(self.conversation.initial_state)
        self.is_created, self.version = True, version
        if isinstance(self.pending, Rewind):
            for event_id in list(self.digests)[len(self.digests) - self.pending.num_events :]:
                del self.digests[event_id]
            shared = {name: value for name, value in self.state.items() if ":" in name}
            self.state = {**self.pending.state, **shared}
        else:
            for event in self.pending:
                self.digests[event.id] = _digest(event)
                self.state.update(event.state_delta)
                for name in event.state_removed:
                    self.state.pop(name, None)
        if self.event_limit is not None:
            self.num_trimmed = max(self.num_trimmed, len(self.digests) - self.event_limit)
        self.pending = None

    @property
    def own_state(self) -> dict[str, Any]:
        """The state of the session alone."""
        return {name: value for name, value in self.state.items() if ":" not in name}

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
        summary = found.summary if found else None
        num_covered = num_covered_by(summary)
        return min(
            (
                compare_events(each.digests, events, limit=each._num_left(limit, num_covered))
                + Counter(summary_mismatches=int(not each._is_right(summary)))
                + compare_state(each.state, state, key=self.key, shared=shared)
                + Counter(version_mismatches=int(each.version not in (None, version)))
                for each in outcomes
            ),
            key=Counter.total,
        )

    def log_differences(self, log: Sequence[Event], summary: Summary | None) -> Counter[str]:
        """How the whole log differs, with the events that the summary covers unless dropped.

        The outcome of the last write must be known.
        """
        num_dropped = num_covered_by(summary) if self.is_dropped else 0
        return compare_events(self.digests, log, limit=self._num_left(None, num_dropped))

    def _num_left(self, limit: int | None, num_removed: int) -> int:
        """How many of the newest events there are, at most `limit`, without the first ones."""
        num_left = len(self.digests) - max(self.num_trimmed, num_removed)
        return max(num_left if limit is None else min(limit, num_left), 0)

    def _is_right(self, summary: Summary | None) -> bool:
        """Whether a summary covers the first events."""
        if summary is None:
            return True
        covered = list(self.digests.values())[: num_covered_by(summary)]
        return bool(summary.content["digest"] == _digest_of_all("", covered))


def num_covered_by(summary: Summary | None) -> int:
    """How many events a summary covers, those included that are no longer in the log."""
    return summary.content["num_events"] if summary else 0


def compare_events(
    digests: Mapping[str, bytes], found: Sequence[Event], *, limit: int | None
) -> Counter[str]:
    """How the newest events that were sent, at most `limit`, differ from those found."""
    expected = list(digests)
    if limit is not None:
        expected = expected[max(len(expected) - limit, 0) :]
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
