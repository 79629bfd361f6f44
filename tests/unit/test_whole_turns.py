"""Where a model may begin to read a conversation of which the oldest part is missing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit_support import unhurried

from sessionstore.adapters.flows import whole_turns

# An item is a text: "u" starts a turn, "+a" calls a, "-a" is its result, "-a,+b" both, "t" is text.


def starts_turn(item: str) -> bool:
    return item.startswith("u")


def calls(item: str) -> tuple[list[str], list[str]]:
    parts = item.split(",")
    return [part[1:] for part in parts if part[0] == "+"], [
        part[1:] for part in parts if part[0] == "-"
    ]


def cut(items: list[str], *, is_cut: bool = True, limit: int | None = None) -> list[str]:
    return whole_turns(items, starts_turn, calls, is_cut=is_cut, limit=limit)


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ("", ""),
        ("u t", "u t"),
        ("t u t", "u t"),
        ("-a t u t u", "u t u"),
        ("+a -a t u +b -b t", "u +b -b t"),
        ("u +a", "u +a"),  # a call that waits for its result
        ("+a u -a t u t", "u t"),  # no cut between a call and its result
        ("u +a u -a u", "u +a u -a u"),
        ("+a u -a t", "u t"),  # the newest turn is always whole
        ("+a u -a +b u -b t", "u +b u -b t"),
        ("+a -a t", "+a -a t"),  # the only turn: what can be read of it
        ("-a +b -b t", "+b -b t"),
        ("-a -b", ""),
        ("t t t", "t t t"),
        ("+a,+b u -a -b u", "u"),
        ("u -a,-b +a,+b -a,-b", "u +a,+b -a,-b"),
        ("u +a -a,-b t", "u +a t"),  # one of two results is without its call
        ("+a -a u +a -a u -a", "u +a -a u -a"),  # ids that are used again
        ("+a t +a u -a", "u"),  # a result belongs to the newest call of its id
    ],
)
def test_a_model_begins_to_read_at_a_turn(items: str, expected: str) -> None:
    assert cut(items.split()) == expected.split()


@pytest.mark.parametrize("items", ["", "t u", "-a u", "-a", "+a u -a"])
def test_all_is_returned_if_nothing_is_missing(items: str) -> None:
    assert cut(items.split(), is_cut=False) == items.split()


@pytest.mark.parametrize(
    ("items", "limit", "expected"),
    [
        ("t u t u +a -a t u", 9, "t u t u +a -a t u"),
        ("t u t u +a -a t u", 8, "t u t u +a -a t u"),
        ("t u t u +a -a t u", 7, "u t u +a -a t u"),
        ("t u t u +a -a t u", 6, "u +a -a t u"),
        ("t u t u +a -a t u", 4, "u"),
        ("u t u +a -a t", 1, "u +a -a t"),  # the newest turn is always whole
        ("u +a u -a t", 3, "u +a u -a t"),  # no cut between a call and its result
        ("t t t", 1, "t t t"),
    ],
)
def test_a_limit_takes_the_newest_whole_turns(items: str, limit: int, expected: str) -> None:
    assert cut(items.split(), is_cut=False, limit=limit) == expected.split()
    if starts_turn(expected):
        assert cut(items.split(), limit=limit) == expected.split()


def test_each_rule_is_asked_once_for_an_item() -> None:
    asked = []

    def calls_once(item: int) -> tuple[list[str], list[str]]:
        asked.append(item)
        return [], []

    assert whole_turns(range(3), lambda item: item == 1, calls_once, is_cut=True) == [1, 2]
    assert asked == [0, 1, 2]


ITEM = st.sampled_from(
    ["u", "t", *(sign + call for sign in "+-" for call in "abc"), "-a,-b", "+a,+b"]
)


@unhurried
@given(st.lists(ITEM, max_size=30))
def test_what_is_returned_begins_at_a_turn_and_has_no_result_without_its_call(
    items: list[str],
) -> None:
    found = cut(items)
    if any(map(starts_turn, items)):
        assert starts_turn(found[0])
    known: set[str] = set()
    for item in found:
        opened, closed = calls(item)
        assert known.issuperset(closed)
        known.update(opened)
    # All but results is the end of what was given, in order.
    others = [item for item in items if not calls(item)[1]]
    kept = [item for item in found if not calls(item)[1]]
    assert kept == others[len(others) - len(kept) :]
    newest = max((place for place, item in enumerate(items) if starts_turn(item)), default=0)
    assert len(kept) >= sum(1 for item in items[newest:] if not calls(item)[1])
    assert cut(found) == found  # a second time changes nothing


TURN = st.lists(st.sampled_from(["t", "+{0} -{0}", "+{0} +{0}x -{0}x -{0}"]), max_size=4)


@unhurried
@given(st.lists(TURN, min_size=1, max_size=6), st.data())
def test_whole_turns_are_never_changed(turns: list[list[str]], data: st.DataObject) -> None:
    whole = [
        [
            "u",
            *(
                item
                for number, step in enumerate(turn)
                for item in step.format(f"{place}{number}").split()
            ),
        ]
        for place, turn in enumerate(turns)
    ]
    items = [item for turn in whole for item in turn]
    first = data.draw(st.integers(0, len(items) - 1), label="items that are missing")
    sizes = [len(turn) for turn in whole]
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    expected = next((start for start in starts if start >= first), None)
    if expected is None:  # inside the newest turn
        assert cut(items[first:]) == [
            item for item in items[first:] if item[0] != "-" or f"+{item[1:]}" in items[first:]
        ]
    else:
        assert cut(items[first:]) == items[expected:]
