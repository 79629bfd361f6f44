"""Windows: which of the newest events are chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionstore import Event, InvalidArgument, Window, estimate_tokens, tokens_in_metadata
from sessionstore.windows import choose, first_page


def log(*invocations: str) -> list[Event]:
    """Events of these invocations; the first of each is by the user. Content: its number."""
    seen: set[str] = set()
    events = []
    for number, name in enumerate(invocations):
        events.append(Event("agent" if name in seen else "user", number, invocation_id=name))
        seen.add(name)
    return events


def plain(authors: str) -> list[Event]:
    """Events without invocation; "u" is by the user, "a" by an agent. Content: its number."""
    names = {"u": "user", "a": "agent"}
    return [Event(names[author], number) for number, author in enumerate(authors)]


def calling(*steps: str) -> list[Event]:
    """Events by the user ("u"), and events that open (+x), close (-x) calls or do neither."""
    return [Event("user" if step == "u" else "agent", step) for step in steps]


def calls(event: Event) -> tuple[Iterable[str], Iterable[str]]:
    words = str(event.content).split()
    return [w[1:] for w in words if w[0] == "+"], [w[1:] for w in words if w[0] == "-"]


def numbers(
    window: Window, events: list[Event], *, is_whole_log: bool = True, is_trimmed: bool = False
) -> list[Any] | None:
    found = choose(window, events, is_whole_log=is_whole_log, is_trimmed=is_trimmed)
    return None if found is None else [event.content for event in found]


@pytest.mark.parametrize(
    ("window", "chosen"),
    [
        (Window(), range(8)),
        (Window(max_turns=1), [6, 7]),
        (Window(max_turns=2), [3, 4, 5, 6, 7]),
        (Window(max_turns=9), range(8)),
        (Window(max_events=0), [6, 7]),
        (Window(max_events=1), [6, 7]),
        (Window(max_events=4), [6, 7]),
        (Window(max_events=5), [3, 4, 5, 6, 7]),
        (Window(max_events=7), [3, 4, 5, 6, 7]),
        (Window(max_events=8), range(8)),
        (Window(max_turns=2, max_events=4), [6, 7]),
        (Window(max_tokens=49, count_tokens=lambda _: 10), [6, 7]),
        (Window(max_tokens=50, count_tokens=lambda _: 10), [3, 4, 5, 6, 7]),
        (Window(max_tokens=0), [6, 7]),
    ],
)
def test_the_newest_whole_turns_that_fit(window: Window, chosen: Iterable[int]) -> None:
    events = log("a", "a", "a", "b", "b", "b", "c", "c")
    assert numbers(window, events) == list(chosen)
    # A page that does not reach the beginning gives the same, or is too small.
    for first in range(1, len(events)):
        found = numbers(window, events[first:], is_whole_log=False)
        assert found in (None, list(chosen))


def test_without_invocations_a_turn_starts_with_the_user() -> None:
    assert numbers(Window(max_turns=1), plain("auauua")) == [4, 5]
    assert numbers(Window(max_turns=2), plain("auauua")) == [3, 4, 5]
    assert numbers(Window(max_turns=4), plain("auauua")) == [0, 1, 2, 3, 4, 5]


def test_a_run_is_never_cut_by_another() -> None:
    events = log("a", "b", "a", "b", "c")
    assert numbers(Window(max_turns=1), events) == [4]
    assert numbers(Window(max_turns=2), events) == [0, 1, 2, 3, 4]
    assert numbers(Window(max_events=3), events) == [4]
    late = log("a", "b", "c", "a")
    assert numbers(Window(max_turns=1), late) == [0, 1, 2, 3]


def test_a_run_that_began_before_the_page_is_looked_for() -> None:
    window = Window(max_turns=1)
    overlapping = log(*"axbabab")
    assert numbers(window, overlapping) == [0, 1, 2, 3, 4, 5, 6]
    assert numbers(window, overlapping[2:], is_whole_log=False) is None
    # No user began it, and few events are before it.
    late = log(*"axyza")
    assert numbers(window, late[3:], is_whole_log=False) is None
    assert numbers(window, late) == [0, 1, 2, 3, 4]
    assert numbers(window, log(*"axyzwuva")[2:], is_whole_log=False) == [7]
    # Runs one after the other need no larger page.
    assert numbers(Window(max_turns=3), log(*"abcd")[1:], is_whole_log=False) == [1, 2, 3]


def test_a_result_without_its_call_starts_no_turn() -> None:
    events = [Event("agent", "a", invocation_id="1"), Event("tool", "-x", invocation_id="2")]
    assert numbers(Window(calls=calls), events, is_trimmed=True) == ["a"]


def test_a_call_is_never_cut_from_its_result() -> None:
    window = Window(max_turns=1, calls=calls)
    assert numbers(window, calling("u", "+x", "-x", "u", "+y")) == ["u", "+y"]
    assert numbers(window, calling("u", "+x", "u", "-x")) == ["u", "+x", "u", "-x"]
    parallel = calling("u", "+x +y", "-x", "u", "-y", "u", "done")
    assert numbers(window, parallel) == ["u", "done"]
    assert numbers(Window(max_turns=2, calls=calls), parallel) == [e.content for e in parallel]
    # A call without a result joins nothing, and its id may be used again.
    assert numbers(window, calling("u", "+x", "u", "+x", "-x")) == ["u", "+x", "-x"]


def test_a_result_without_its_call_is_left_out() -> None:
    window = Window(max_turns=2, calls=calls)
    trimmed = calling("-x", "a", "u", "-y", "done")
    assert numbers(window, trimmed, is_trimmed=True) == ["u", "done"]
    assert numbers(window, calling("-x", "a"), is_trimmed=True) == ["a"]
    # What is left out opens no call.
    assert numbers(window, calling("-x +y", "u", "-y", "done"), is_trimmed=True) == ["u", "done"]
    # The call may be before the page.
    assert numbers(window, trimmed[1:], is_whole_log=False) is None


def test_a_trimmed_log_may_begin_inside_a_turn() -> None:
    window = Window()
    assert numbers(window, plain("aua")) == [0, 1, 2]
    assert numbers(window, plain("aua"), is_trimmed=True) == [1, 2]
    assert numbers(window, plain("ua"), is_trimmed=True) == [0, 1]
    rest = log("a", "a", "a", "b")[1:]
    assert numbers(window, rest, is_trimmed=True) == [3]
    # It is all that is left.
    assert numbers(window, plain("aa"), is_trimmed=True) == [0, 1]
    assert numbers(window, rest[:2], is_trimmed=True) == [1, 2]
    assert numbers(window, [], is_trimmed=True) == []


def test_a_rule_of_the_caller() -> None:
    events = [Event("x", number) for number in range(7)]
    window = Window(max_turns=2, starts_turn=lambda event: event.content % 3 == 0)
    assert numbers(window, events) == [3, 4, 5, 6]
    joined = [Event("x", number, invocation_id="a") for number in range(7)]
    assert numbers(window, joined) == list(range(7))


def test_items_of_a_framework_are_chosen_by_its_rules() -> None:
    items = ["-x", "a", "u", "+y", "-y", "u", "+z", "u", "-z", "u"]
    rules: Any = {
        "starts_turn": lambda item: item == "u",
        "calls": lambda item: ({"+": item[1:]}.get(item[0], ""), {"-": item[1:]}.get(item[0], "")),
    }
    found = [
        choose(Window(max_events=limit, **rules), items, is_whole_log=True, is_trimmed=True)
        for limit in (1, 2, 4, 5, 8, 10)
    ]
    assert found == [items[-1:]] * 2 + [items[-1:], items[5:], items[2:], items[2:]]


def test_a_page_that_is_too_small_gives_nothing() -> None:
    turn = log(*["a"] * 5)
    assert numbers(Window(max_turns=1), turn[1:], is_whole_log=False) is None
    assert numbers(Window(max_turns=1), turn, is_whole_log=False) == [0, 1, 2, 3, 4]
    assert numbers(Window(max_turns=2), turn, is_whole_log=False) is None
    assert numbers(Window(max_events=4), turn, is_whole_log=False) == [0, 1, 2, 3, 4]
    assert numbers(Window(max_events=5), turn, is_whole_log=False) is None
    assert numbers(Window(max_tokens=5, count_tokens=lambda _: 2), turn, is_whole_log=False)


def test_the_first_page() -> None:
    assert first_page(Window(max_turns=1000)) == 64
    assert first_page(Window(max_events=10)) == 11
    assert first_page(Window(max_events=0)) == 2
    assert first_page(Window(max_events=10, max_turns=1)) == 64


TURNS = st.lists(st.sampled_from(["a", "b", "c", "d", ""]), max_size=12)
LIMITS = st.none() | st.integers(1, 14)


@given(TURNS, st.data(), LIMITS, LIMITS, st.booleans())
def test_a_window_is_a_suffix_of_whole_turns(
    names: list[str], data: st.DataObject, turns: int | None, limit: int | None, is_trimmed: bool
) -> None:
    events = log(*names)
    window = Window(max_turns=turns, max_events=limit)
    found = numbers(window, events, is_trimmed=is_trimmed)
    assert found is not None
    start = len(events) - len(found)
    assert found == list(range(start, len(events)))
    if events:
        assert found, "the newest turn is always there"
    inside = {names[number] for number in found} - {""}
    before = {name for name in names[:start] if name}
    assert not inside & before
    # The same from every page that is large enough.
    size = data.draw(st.integers(0, len(events)))
    page = events[len(events) - size :]
    if size and found == numbers(window, page, is_whole_log=False):
        assert size >= len(found)


STEPS = ["u", "+x", "-x", "+y", "-y", "+x +y", "-x -y", "-x +y", "-y +x", "a"]


@given(st.lists(st.sampled_from(STEPS), max_size=12), LIMITS)
def test_no_window_has_a_result_without_its_call(steps: list[str], turns: int | None) -> None:
    found = numbers(Window(max_turns=turns, calls=calls), calling(*steps), is_trimmed=True)
    assert found is not None
    opened: set[str] = set()
    for step in found:
        new, closed = calls(Event("agent", step))
        opened |= set(new)
        assert set(closed) <= opened


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_turns": 0}, "max_turns must be at least 1"),
        ({"max_turns": "2"}, "max_turns must be an int, not str"),
        ({"max_events": -1}, "max_events must be at least 0"),
        ({"max_tokens": 1.5}, "max_tokens must be an int"),
        ({"count_tokens": None}, "count_tokens must be a function"),
        ({"starts_turn": "user"}, "starts_turn must be a function, not str"),
        ({"calls": 1}, "calls must be a function"),
    ],
)
def test_wrong_arguments(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Window(**fields)


def test_tokens() -> None:
    event = Event("agent", "x" * 400)
    assert 100 < estimate_tokens(event) < 150
    assert estimate_tokens(Event("a", b"raw", metadata={"odd": {1, 2}})) > 0
    count: Callable[[Event], int] = tokens_in_metadata("usage", "total")
    assert count(Event("agent", "x", metadata={"usage": {"total": 7}})) == 7
    for metadata in ({}, {"usage": 7}, {"usage": {"total": "7"}}, {"usage": {"total": True}}):
        other = Event("agent", "x", metadata=metadata)
        assert count(other) == estimate_tokens(other)
    for path in ((), (1,)):
        with pytest.raises(InvalidArgument, match="path must be"):
            tokens_in_metadata(*path)
