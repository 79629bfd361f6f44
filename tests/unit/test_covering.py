"""What a summary covers next, on random logs that are read in small pages, against a plain rule.

Runs that overlap are one turn. If one began before the page that is read, the page has more turns
than the whole log, so what is kept may be less than the window has. A turn is never split.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from unittest.mock import patch

from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.sessions import KEY

from sessionstore import Event, Window
from sessionstore.flows import covering
from sessionstore.flows.covering import find_part, is_due
from sessionstore.sync import InMemorySessionService
from sessionstore.windows import _find_cuts, find_start


def calls(event: Event) -> tuple[Iterable[str], Iterable[str]]:
    return event.metadata.get("opens", ()), event.metadata.get("closes", ())


def make_log(steps: list[tuple[str, str]]) -> list[Event]:
    """Events of an invocation each. Some open (+) or close (-) a call, some are of the user (u)."""
    return [
        Event(
            "user" if what == "u" else "agent",
            number,
            invocation_id=invocation,
            metadata={"+": {"opens": ["c"]}, "-": {"closes": ["c"]}}.get(what[:1], {}),
        )
        for number, (invocation, what) in enumerate(steps)
    ]


def ends_of(log: list[Event], keep: Window) -> list[int]:
    """Where a summary may end, by the whole log: not inside a turn, and not at its end."""
    cuts, _ = _find_cuts(keep, log, begins_turn=True)
    return [cut for cut in cuts if cut > 0]


def expected_end(log: list[Event], trigger: Window, keep: Window, limit: int) -> int:
    """How many events are covered, if the first page is the whole log."""
    most = [size for size in (trigger.max_turns, trigger.max_events) if size is not None]
    if trigger.max_tokens is None and len(log) <= min(most):
        return 0  # even if the first event is a result without its call, which no window has
    kept = find_start(keep, log, is_whole_log=True)
    if not kept or not find_start(trigger, log, is_whole_log=True):
        return 0
    ends = [end for end in ends_of(log, keep) if end <= kept]
    return max((end for end in ends if end <= limit), default=min(ends, default=0))


STEPS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", "d", ""]), st.sampled_from("u.+-")), max_size=40
)
SIZES = st.integers(1, 3)


@settings(max_examples=300)
@example(
    [("a", "-"), ("b", "u")],
    Window(max_turns=2, calls=calls),
    Window(max_turns=1, calls=calls),
    1,
    64,
    1,
)
@given(
    STEPS,
    st.one_of(
        SIZES.map(lambda size: Window(max_turns=size, calls=calls)),
        SIZES.map(lambda size: Window(max_events=size, calls=calls)),
        SIZES.map(lambda size: Window(max_tokens=size, count_tokens=lambda _: 1, calls=calls)),
    ),
    SIZES.map(lambda size: Window(max_turns=size, calls=calls)),
    SIZES,
    st.sampled_from((1, 2, 4, 64)),
    st.integers(1, 4),
)
def test_whole_turns_are_covered(
    steps: list[tuple[str, str]],
    trigger: Window,
    keep: Window,
    events_limit: int,
    first_page: int,
    page: int,
) -> None:
    sizes: Any = {"_FIRST_PAGE": first_page, "_LARGEST_PAGE": 3, "_PAGE": page}
    log = make_log(steps)
    with InMemorySessionService() as service, patch.multiple(covering, **sizes):
        service.create_session(app_name="app", user_id="user", session_id="sid")
        service.append_events(KEY, log)
        while True:
            part = service._run(find_part(service._ops, KEY, trigger, keep, events_limit))
            end = len(part.events) if part else 0
            if first_page == 64:
                assert end == expected_end(log, trigger, keep, events_limit)
            if part is None:
                break
            assert part.events == log[:end]
            ends = ends_of(log, keep)
            assert end in ends
            assert end <= events_limit or end == ends[0]
            assert service._run(is_due(service._ops, KEY, trigger, keep))
            base = part.previous.upto if part.previous else None
            service.compact_session(KEY, upto=part.upto, summary="s", if_summary=base, window=keep)
            log = log[end:]
