"""Flows that watch a session: cursors, and what is new in a log. watchers.py waits between them.

A watcher has a place: it was shown every event up to a position, every change of older events up to
a version and, if it wants them, every fragment up to a sequence. It reads what came later. A cursor
is this place as text, so it works in any process.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

import msgspec

from ..calls import Flow, describe
from ..errors import EventsMissing, InvalidArgument, SessionNotFound
from ..model import Session, SessionKey, WatchChange, Watched, WatchEnd, WatchEntry
from ..ops import Ops, ids_of
from ..ops.stream import Fragment
from ..ops.watching import EVENTS_PER_READ, Change, Head, LogRead
from ..options import check_bool, check_int
from .shared import created_us_of, session_key
from .stream import drop_obsolete

CHANGES_LIMIT = 8
"""How many changes of older events the header of a session remembers."""

_UNKNOWN = -1  # as `change`: the watcher was shown nothing yet, so earlier changes do not matter

_NO_FRAGMENTS = -1  # as `sequence`: the watcher wants none

_is_cursor = re.compile(r"(\d{16})-(\d{16})-(\d{16})(?:-(\d{16}))?", re.ASCII).fullmatch


class Place(NamedTuple):
    """How far a watcher has read.

    Attributes:
        created_us: when its session was created; 0 = any session with this name.
        position: it was shown every event up to here.
        change: it was shown every change up to this version.
        sequence: it was shown every fragment up to here; negative = it wants none.
    """

    created_us: int
    position: int
    change: int
    sequence: int = _NO_FRAGMENTS

    @classmethod
    def of(cls, head: Head) -> Place:
        """The end of a log."""
        return cls(head.created_us, head.last_us, head.change)

    @property
    def cursor(self) -> str:
        """The place as text. Cursors of a session sort like the entries."""
        numbers = self if self.has_fragments else self[:3]
        return "-".join(f"{number:016d}" for number in numbers)

    @property
    def has_fragments(self) -> bool:
        """Whether the watcher wants fragments."""
        return self.sequence >= 0

    def has_seen(self, other: Place) -> bool:
        """Whether nothing up to another place is new here."""
        is_same = self.created_us == other.created_us
        has_all = not self.has_fragments or self.sequence >= other.sequence
        is_behind = self.position < other.position or self.change < other.change
        return is_same and has_all and not is_behind

    def moved_to(self, place: Place) -> Place:
        """The place of this watcher after it was shown everything up to another place."""
        if not self.has_fragments:
            return place._replace(sequence=_NO_FRAGMENTS)
        return place._replace(sequence=max(self.sequence, place.sequence))


class News(msgspec.Struct, frozen=True):
    """What a watcher reads at once.

    Attributes:
        items: what is new, and the place after each item.
        start: the place before.
        place: the place after all of it.
        version: the session's version.
        is_complete: there was no more.
        end: the session is gone.
    """

    items: list[tuple[Place, Watched]]
    start: Place
    place: Place
    version: int
    is_complete: bool
    end: Literal["deleted", "recreated"] | None = None

    def seen_from(self, place: Place) -> list[Watched]:
        """The items that are new after a place. No cursor leads back to fragments before it."""
        return [
            item if after.sequence >= place.sequence else _with_sequence(item, place.sequence)
            for after, item in self.items
            if _is_new(item, after, place)
        ]


def _is_new(item: Watched, after: Place, place: Place) -> bool:
    """Whether an item is new at a place. `after` is the place after it."""
    if not isinstance(item, WatchEntry):
        return after.change > place.change
    if item.event.partial:
        return place.has_fragments and after.sequence > place.sequence
    return after.position > place.position


def _with_sequence(item: Watched, sequence: int) -> Watched:
    """An item for a watcher that was shown more fragments than the one that read it."""
    if isinstance(item, WatchEnd):
        return item
    place = _parse_cursor(item.cursor)._replace(sequence=sequence)
    return msgspec.structs.replace(item, cursor=place.cursor)


def _parse_cursor(cursor: str) -> Place:
    """The place of a cursor; without fragments if it does not say up to where they were shown."""
    found = _is_cursor(cursor)
    if found is None:
        raise InvalidArgument("after must be a cursor or a position, not this text")
    return Place(*(_NO_FRAGMENTS if number is None else int(number) for number in found.groups()))


def start(
    ops: Ops, session: Session | SessionKey, after: str | int | None, partial: bool
) -> tuple[SessionKey, Place]:
    """The session to watch, and the place where the watcher begins.

    Raises:
        InvalidArgument: an argument is not valid.
    """
    key = session_key(session)
    ops.options.keys.session(*ids_of(key))  # checks the ids
    created_us = int(created_us_of(session) or 0)
    sequence = 0 if check_bool("partial", partial) else _NO_FRAGMENTS
    if after is None:
        return key, Place(created_us, 0, _UNKNOWN, sequence)
    if isinstance(after, int):
        return key, Place(created_us, check_int("after", after, low=0), _UNKNOWN, sequence)
    if not isinstance(after, str):
        kind = type(after).__name__
        raise InvalidArgument(f"after must be a cursor or a position, not {kind}")
    place = _parse_cursor(after)
    return key, place._replace(sequence=max(place.sequence, 0) if partial else _NO_FRAGMENTS)


def read_news(ops: Ops, key: SessionKey, place: Place) -> Flow[News]:
    """Read what is new at a place: changes of events that were shown, then events and fragments.

    Raises:
        SessionNotFound: there is no session, and the watcher does not know that there was one.
        EventsMissing: events after the place were trimmed, or the server lost events.
    """
    began = place
    is_first = place.change == _UNKNOWN
    read: LogRead | None = yield ops.read_log(
        key, place.position, is_first=is_first, sequence=place.sequence
    )
    if read is None:
        if not place.created_us:
            raise SessionNotFound(f"{describe(key)} does not exist")
        return News([], began, place, 0, True, "deleted")
    head = read.head
    if place.created_us not in (0, head.created_us):
        return News([], began, place, 0, True, "recreated")
    if is_first:
        place = place._replace(change=head.change)
    place = place._replace(created_us=head.created_us)
    changes = _changes_since(head, place)
    if place.position or not is_first:  # otherwise the watcher asked for the oldest event
        _check_trimmed(ops, key, place, read, is_first)
    items: list[tuple[Place, Watched]] = []
    if len(changes) > CHANGES_LIMIT:  # there may be more, which the header no longer has
        changes = [Change(head.change, 0, place.position)]
    for change in changes:
        last = min(change.last, place.position)
        if change.first <= last:
            items += yield from _read_change(ops, key, place, change._replace(last=last))
        place = place._replace(change=change.version)
    for position, event in read.entries:
        place = place._replace(position=position)
        items.append((place, WatchEntry(event, position, place.cursor)))
    is_complete = len(read.entries) < EVENTS_PER_READ
    if is_complete and head.last_us > place.position:
        place = place._replace(position=head.last_us)
    if is_complete and read.fragments:
        for fragment in (yield from _not_obsolete(ops, key, began.position, read)):
            place = place._replace(sequence=fragment.sequence)
            items.append((place, WatchEntry(fragment.event, fragment.log_end, place.cursor)))
        place = place._replace(sequence=read.fragments[-1].sequence)
    return News(items, began, place, head.version, is_complete)


def _not_obsolete(ops: Ops, key: SessionKey, position: int, read: LogRead) -> Flow[list[Fragment]]:
    """The fragments of a read that are not obsolete. It had the events after a position."""
    fragments = read.fragments
    if read.is_full and read.oldest is not None:  # older events may have been trimmed
        fragments = [each for each in fragments if each.log_end >= read.oldest]
    events = list(read.entries)
    first = min((each.log_end for each in fragments), default=position) + 1
    while first <= position:
        older = yield ops.read_range(key, first, position)
        events += older
        first = older[-1][0] + 1 if len(older) == EVENTS_PER_READ else position + 1
    return drop_obsolete(fragments, events)


def _read_change(
    ops: Ops, key: SessionKey, place: Place, change: Change
) -> Flow[list[tuple[Place, Watched]]]:
    """The events that a changed part of the log now holds. A large part becomes several items."""
    items: list[tuple[Place, Watched]] = []
    first = change.first
    while True:
        entries = yield ops.read_range(key, first, change.last)
        is_last = len(entries) < EVENTS_PER_READ
        last = change.last if is_last else entries[-1][0]
        # Before the last item the change is not complete, so its cursor repeats it.
        after = place._replace(change=change.version) if is_last else place
        events, positions = [event for _, event in entries], [position for position, _ in entries]
        items.append(
            (
                place._replace(change=change.version),
                WatchChange(first, last, events, positions, after.cursor),
            )
        )
        if is_last:
            return items
        first = last + 1


def _changes_since(head: Head, place: Place) -> list[Change]:
    """The changes that the watcher has not received."""
    return [change for change in head.changes if change.version > place.change]


def _check_trimmed(ops: Ops, key: SessionKey, place: Place, read: LogRead, is_first: bool) -> None:
    """EventsMissing if events after the place were trimmed.

    If no process has watched the session before, they may have been trimmed if the log begins after
    the place, and is full or without events that a summary covers.
    """
    begins_later = read.oldest is None or read.oldest > place.position
    is_cut = read.is_full or read.dropped_us > place.position
    if read.trimmed_us <= place.position and not (is_first and begins_later and is_cut):
        return
    where = ops.options.keys.session(*ids_of(key)).events.decode("utf-8", "replace")
    raise EventsMissing(
        f"{where}: events after the cursor have been trimmed; read the session again",
        expected=len(read.entries) + 1,
        actual=len(read.entries),
        key=where,
    )
