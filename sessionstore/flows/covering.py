"""Flows that find the events that the next summary of a session should cover."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ..calls import Flow, R, describe
from ..errors import InvalidArgument, LimitExceeded, SessionNotFound
from ..model import Event, EventPage, Session, SessionKey, Summary, num_after_summary
from ..ops import Ops
from ..summaries import is_empty
from ..windows import Window, find_end, find_start, json_size
from .events import get_events
from .sessions import get_session
from .shared import from_primary

_FIRST_PAGE = 64  # newest events to read first
_LARGEST_PAGE = 1024
_PAGE = 256  # older events to read at once
_LIMITS = ("max_turns", "max_events", "max_tokens")


class Part(msgspec.Struct, frozen=True):
    """The events that a summary should cover, and what it replaces.

    Attributes:
        previous: the summary so far.
        events: the events after it that are not covered yet, oldest first.
        upto: the position of the last one.
        newest: the position of the newest event of the session.
    """

    previous: Summary | None
    events: list[Event]
    upto: int
    newest: int


def check_windows(trigger: object, keep: object) -> None:
    """Check the windows of a Compactor.

    Raises:
        InvalidArgument: one is not a Window, `trigger` has no limit, or `keep` is not smaller.
    """
    for name, window in (("trigger", trigger), ("keep", keep)):
        if not isinstance(window, Window):
            raise InvalidArgument(f"{name} must be a Window, not {type(window).__name__}")
    limits = [(getattr(trigger, name), getattr(keep, name)) for name in _LIMITS]
    if all(limit is None for limit, _ in limits):
        raise InvalidArgument("trigger must have a limit: max_turns, max_events or max_tokens")
    if all(kept is None or (limit is not None and kept >= limit) for limit, kept in limits):
        raise InvalidArgument("keep must be smaller than trigger")


def check_content(content: Any, part: Part) -> None:
    """Check what `summarize` returned for a part.

    Raises:
        InvalidArgument: it is empty.
        LimitExceeded: it is larger than what it covers.
    """
    if is_empty(content):
        raise InvalidArgument("summarize returned an empty summary")
    size = json_size(content)
    covered = sum(map(json_size, part.events))
    if part.previous is not None:
        covered += json_size(part.previous.content)
    if size > covered:
        raise LimitExceeded(
            f"summarize returned a summary of {size} bytes, more than the {covered} bytes that it "
            "covers",
            limit=covered,
            actual=size,
        )


def on_primary(flow: Flow[R]) -> Flow[R]:
    """The same flow, reading from the primary: a replica may not have the last summary yet."""
    try:
        step = next(flow)
        while True:
            calls = step if isinstance(step, tuple) else (step,)
            sent = tuple(map(from_primary, calls))
            try:
                result = yield sent if isinstance(step, tuple) else sent[0]
            except Exception as error:
                step = flow.throw(error)
            else:
                step = flow.send(result)
    except StopIteration as end:
        found: R = end.value
        return found


def is_due(ops: Ops, key: SessionKey, trigger: Window, keep: Window) -> Flow[bool]:
    """Whether the events that no summary covers are too many, and some of them can be covered."""
    session = yield from _read_header(ops, key)
    return (yield from _find_kept(ops, session, trigger, keep)) is not None


def find_part(
    ops: Ops, key: SessionKey, trigger: Window, keep: Window, events_limit: int
) -> Flow[Part | None]:
    """The part to cover next: whole turns before those to keep. None if there is nothing to do.

    Args:
        ops: the builders of Calls.
        key: the session.
        trigger: only if the events that no summary covers do not fit.
        keep: the newest turns, which are not covered.
        events_limit: most events of the part, unless its first turn is longer.
    """
    session = yield from _read_header(ops, key)
    kept = yield from _find_kept(ops, session, trigger, keep)
    if kept is None:
        return None
    after = 0 if session.summary is None else session.summary.upto
    num_events = events_limit
    while True:
        page, later = yield from _read_before(ops, key, after, kept, num_events, keep)
        events = page.events
        end = find_end(keep, [*events, *later], min(events_limit, len(events)))
        if 0 < end <= len(events):
            upto, newest = page.positions[end - 1], kept.positions[-1]
            return Part(session.summary, events[:end], upto, newest)
        if len(events) < num_events:
            return None
        num_events *= 2  # the first turn is longer


def check_part(ops: Ops, key: SessionKey, part: Part, keep: Window) -> Flow[None]:
    """Check that no event of the turns of a part was appended since it was read.

    Raises:
        InvalidArgument: an event was appended.
    """
    after = part.newest
    while True:
        page = yield from get_events(ops, key, after, None, _LARGEST_PAGE)
        if _related(part.events, page.events, keep, is_first=False):
            raise InvalidArgument("a turn that the summary covers got more events meanwhile")
        if len(page.events) < _LARGEST_PAGE:
            return
        after = page.positions[-1]


def _read_header(ops: Ops, key: SessionKey) -> Flow[Session]:
    session = yield from get_session(ops, key, 0, None)
    if session is None:
        raise SessionNotFound(f"{describe(key)} does not exist")
    return session


def _find_kept(ops: Ops, session: Session, trigger: Window, keep: Window) -> Flow[EventPage | None]:
    """The newest events, which are kept. None if the trigger fits, or if all must be kept."""
    num_events = num_after_summary(session)
    most = [limit for name in _LIMITS if (limit := getattr(trigger, name)) is not None]
    if trigger.max_tokens is None and num_events <= min(most):
        return None
    after = None if session.summary is None else session.summary.upto
    found = EventPage([], None, None)
    limit = _FIRST_PAGE
    while True:
        page = yield from get_events(ops, session.key, after, found.first, limit, newest=True)
        found = EventPage(
            page.events + found.events,
            page.first,
            found.last,
            page.positions + found.positions,
        )
        is_whole = len(page.events) < limit or len(found.events) >= num_events
        first_fitting = find_start(trigger, found.events, is_whole_log=is_whole)
        first_kept = find_start(keep, found.events, is_whole_log=is_whole)
        if is_whole and (not first_fitting or not first_kept):
            return None
        if first_fitting is not None and first_kept is not None:
            return EventPage(found.events[first_kept:], None, None, found.positions[first_kept:])
        limit = min(2 * limit, _LARGEST_PAGE)


def _read_before(
    ops: Ops, key: SessionKey, after: int, kept: EventPage, num_events: int, rules: Window
) -> Flow[tuple[EventPage, list[Event]]]:
    """The oldest events between a position and those to keep, and what must not be cut from them.

    The later events are read too, but only those are returned that belong to the same turns, and
    the first one.
    """
    events: list[Event] = []
    positions: list[int] = []
    later: list[Event] = []
    while True:
        page = yield from get_events(ops, key, after, kept.positions[0], _PAGE)
        room = max(num_events - len(events), 0)
        events += page.events[:room]
        positions += page.positions[:room]
        later += _related(events, page.events[room:], rules, is_first=not later)
        if len(page.events) < _PAGE:
            later += _related(events, kept.events, rules, is_first=not later)
            return EventPage(events, None, None, positions), later
        after = page.positions[-1]


def _related(
    events: Sequence[Event], later: Sequence[Event], rules: Window, *, is_first: bool
) -> list[Event]:
    """The later events of the same invocations or calls; with `is_first` also the first one."""
    if not later:
        return []
    invocations = {event.invocation_id for event in events} - {""}
    calls = _calls_in(events, rules)
    return [
        event
        for number, event in enumerate(later)
        if (is_first and number == 0)
        or event.invocation_id in invocations
        or not calls.isdisjoint(_calls_in([event], rules))
    ]


def _calls_in(events: Iterable[Event], rules: Window) -> set[str]:
    """The ids of the calls that events open or close."""
    if rules.calls is None:
        return set()
    return {each for event in events for side in rules.calls(event) for each in side}
