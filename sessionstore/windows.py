"""Windows: the newest part of a log that an agent should see, cut only between turns.

A window is chosen by the client, from a page of the newest events. Nothing is stored for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import msgspec

from .errors import InvalidArgument
from .model import Event, Session, is_full
from .options import check_int

T = TypeVar("T")

_PAGE = 64  # newest events to read first
_encode = msgspec.json.Encoder(enc_hook=repr).encode


def json_size(value: Any) -> int:
    """How many bytes a value has as JSON."""
    return len(_encode(value))


def estimate_tokens(event: Event) -> int:
    """About how many tokens an event has: a quarter of its bytes as JSON, at least 1."""
    return json_size(event) // 4 or 1


def tokens_in_metadata(*path: str) -> Callable[[Event], int]:
    """Counts tokens by what an event's metadata says, for `Window(count_tokens=)`.

    Args:
        path: the keys that lead to the number: `tokens_in_metadata("usage", "total_tokens")`.
            Events without such a number are estimated: see `estimate_tokens`.

    Returns:
        A function from an Event to its number of tokens.
    """
    if not path or not all(isinstance(key, str) for key in path):
        raise InvalidArgument("path must be one or more keys of metadata, as text")

    def count(event: Event) -> int:
        value: Any = event.metadata
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        return int(value) if is_count else estimate_tokens(event)

    return count


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """The newest whole turns of a session that fit, for `get_session(window=)` and Runner.

    A turn is one run of an agent: the user's message and all that the agent adds in reply. The
    newest turn is always whole, even if it does not fit. Runs that overlap count as one turn. One
    exception: a run may be cut where it paused, if others added more events during the pause than
    follow it.

    Attributes:
        max_turns: at most this many turns, from 1; None = any number.
        max_events: at most this many events, from 0; None = any number.
        max_tokens: at most this many tokens, from 0; None = any number.
        count_tokens: the tokens of an event. By default a quarter of its bytes: `estimate_tokens`.
            `tokens_in_metadata` reads the usage that events carry.
        starts_turn: whether an event starts a turn. By default an event does if its
            `invocation_id` differs from that of the event before it; an event without one does if
            its author is "user". There is never a cut between events of one invocation. If an
            invocation begins with another author than "user", or overlaps others, further reads
            may be needed to find where it begins.
        calls: the ids of the tool calls that an event opens, and of those that it closes. There is
            never a cut between a call and its result, and a result whose call is no longer stored
            is left out. By default no event has calls.

    Raises:
        InvalidArgument: a number is out of range, or a rule is not a function.
    """

    max_turns: int | None = None
    max_events: int | None = None
    max_tokens: int | None = None
    count_tokens: Callable[[Event], int] = estimate_tokens
    starts_turn: Callable[[Event], bool] | None = None
    calls: Callable[[Event], tuple[Iterable[str], Iterable[str]]] | None = None

    def __post_init__(self) -> None:
        for name, low in (("max_turns", 1), ("max_events", 0), ("max_tokens", 0)):
            value = getattr(self, name)
            if value is not None:
                check_int(name, value, low=low)
        for name in ("count_tokens", "starts_turn", "calls"):
            rule = getattr(self, name)
            if not (callable(rule) or (rule is None and name != "count_tokens")):
                raise InvalidArgument(f"{name} must be a function, not {type(rule).__name__}")


def check_window(window: object) -> Window:
    """A window argument. InvalidArgument unless it is a Window."""
    if not isinstance(window, Window):
        raise InvalidArgument(f"window must be a Window, not {type(window).__name__}")
    return window


def first_page(window: Window) -> int:
    """How many of the newest events to read first."""
    if window.max_turns is None and window.max_tokens is None and window.max_events is not None:
        return max(window.max_events, 1) + 1  # one more tells whether a turn starts at the oldest
    return _PAGE


def may_be_trimmed(session: Session) -> bool:
    """Whether older events may have been trimmed: the log is full, or was full before.

    With a summary, events that it does not cover: those that it covers go first.
    """
    if session.summary is not None and session.summary.num_events > 0:
        return False
    return session.was_full or is_full(session)


def is_cut(window: Window, events: Sequence[Event], number: int) -> bool:
    """Whether a turn ends before the event of this number. `events` is a part of a log."""
    cuts, _ = _find_cuts(window, events, begins_turn=False)
    return number in cuts


def choose(
    window: Window, events: Sequence[T], *, is_whole_log: bool, is_trimmed: bool
) -> list[T] | None:
    """The events of a window, oldest first; None if it may need older ones than the page has.

    Args:
        window: what to choose.
        events: the newest events of a log, oldest first. Or what an adapter made of them, if the
            window has a `starts_turn` for it; what is not an Event belongs to no invocation.
        is_whole_log: the log has no older events.
        is_trimmed: older events may have been trimmed, so the log may begin inside a turn.
    """
    if not events:
        return []
    begins_turn = is_whole_log and not is_trimmed
    start, orphans = _find_start(window, events, begins_turn, is_whole_log)
    if start is None:
        return None
    return [events[number] for number in range(start, len(events)) if number not in orphans]


def find_start(window: Window, events: Sequence[Event], *, is_whole_log: bool) -> int | None:
    """The index of the first event of a window; None if that may be an older event.

    Before it only whole turns are left out, so 0 means that all events fit.

    Args:
        window: what to find.
        events: the newest events of a log, oldest first.
        is_whole_log: the log has no older events. They begin with a turn or with the rest of one.
    """
    start, _ = _find_start(window, events, is_whole_log, is_whole_log) if events else (0, set())
    # Only an older event can tell whether a turn starts with the first one.
    return start if start or is_whole_log else None


def find_end(window: Window, events: Sequence[Event], limit: int) -> int:
    """How many events the oldest whole turns have: at most `limit`, or one turn if it is longer.

    0 = no turn ends before the last of the events.
    """
    cuts, _ = _find_cuts(window, events, begins_turn=True)
    ends = [cut for cut in cuts if cut > 0]
    return max((end for end in ends if end <= limit), default=min(ends, default=0))


def _find_start(
    window: Window, events: Sequence[Any], begins_turn: bool, is_whole_log: bool
) -> tuple[int | None, set[int]]:
    """Where the window starts, None if before the events, and the results without a call."""
    cuts, orphans = _find_cuts(window, events, begins_turn=begins_turn)
    start = _choose_cut(window, events, cuts, is_whole_log=is_whole_log)
    if start is not None and not is_whole_log:
        shown = [cut for cut in cuts if cut >= start]
        if any(number >= start for number in orphans) or _may_begin_earlier(window, events, shown):
            return None, orphans
    return start, orphans


def _find_cuts(
    window: Window, events: Sequence[Any], *, begins_turn: bool
) -> tuple[list[int], set[int]]:
    """Where turns start, and the events that close a call which is not among the events."""
    invocations = _invocations(events)
    last_of = {name: number for number, name in enumerate(invocations) if name}  # its last event
    ends, orphans = _last_results(window, events) if window.calls else ({}, set())
    cuts = []
    joined = -1  # everything up to here belongs to a turn that started before
    before: Event | None = None
    for number, event in enumerate(events):
        is_start = number > joined and number not in orphans
        if is_start and _starts_turn(window, event, before, begins_turn=begins_turn):
            cuts.append(number)
        joined = max(joined, last_of.get(invocations[number], -1), ends.get(number, -1))
        before = event
    return cuts, orphans


def _invocations(events: Sequence[Any]) -> list[str]:
    return [event.invocation_id if isinstance(event, Event) else "" for event in events]


def _may_begin_earlier(window: Window, events: Sequence[Any], cuts: Sequence[int]) -> bool:
    """Whether a run may have begun before the page: it overlaps others, or no user began it.

    It is not looked for once the page has as many events before the turn as from there on.
    """
    invocations = _invocations(events)
    for first, end in pairwise([*cuts, len(events)]):
        if first > len(events) // 2:
            return False
        is_begun = not invocations[first] or window.starts_turn or events[first].author == "user"
        if not is_begun or len({*invocations[first:end]} - {""}) > 1:
            return True
    return False


def _starts_turn(window: Window, event: Event, before: Event | None, *, begins_turn: bool) -> bool:
    if before is None and begins_turn:
        return True
    if window.starts_turn is not None:
        return bool(window.starts_turn(event))
    if before is None or not event.invocation_id:
        return event.author == "user"
    return event.invocation_id != before.invocation_id


def _last_results(window: Window, events: Sequence[Any]) -> tuple[dict[int, int], set[int]]:
    """For events that open calls the last event that closes one, and the events without a call."""
    assert window.calls is not None
    opened_at: dict[str, int] = {}
    ends: dict[int, int] = {}
    orphans = set()
    for number, event in enumerate(events):
        opened, closed = map(set, window.calls(event))
        closed -= opened
        if closed <= opened_at.keys():
            ends.update((opened_at[call_id], number) for call_id in closed)
            opened_at.update(dict.fromkeys(opened, number))
        else:
            orphans.add(number)  # it is left out, so it opens no call
    return ends, orphans


def _choose_cut(
    window: Window, events: Sequence[Any], cuts: Sequence[int], *, is_whole_log: bool
) -> int | None:
    """Where the window starts; None if that may be before the first event."""
    chosen: int | None = None
    num_tokens, counted_from = 0, len(events)
    # Without the whole log the first event is only a part of what is before the first cut.
    rest = [] if is_whole_log else [0]
    for num_turns, cut in enumerate([*reversed(cuts), *rest], 1):
        if window.max_tokens is not None:
            num_tokens += sum(map(window.count_tokens, events[cut:counted_from]))
            counted_from = cut
        fits = (
            (window.max_turns is None or num_turns <= window.max_turns)
            and (window.max_events is None or len(events) - cut <= window.max_events)
            and (window.max_tokens is None or num_tokens <= window.max_tokens)
        )
        if not fits and chosen is not None:
            return chosen
        if num_turns > len(cuts):
            return None
        chosen = cut  # the newest turn, whether it fits or not, or an older one that fits
        if not fits or num_turns == window.max_turns:
            return chosen
    # Before the first cut is the rest of a turn: left out, unless nothing else is stored.
    return 0 if chosen is None else chosen
