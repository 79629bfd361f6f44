"""The comparison of `benchmarks.chaos.compaction` finds every broken promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.chaos.compaction import Outcome, _digest, as_text, compare

TURNS = [[f"a.{number}.{part}" for part in range(3)] for number in range(8)]
IDS = [name for turn in TURNS for name in turn]

Case = tuple[list[str], list[dict[str, Any]], list[str]]


def make_lines() -> list[dict[str, Any]]:
    """Three summaries of two turns each, in another order."""
    lines: list[dict[str, Any]] = []
    last = ""
    for number in range(3):
        ids = IDS[6 * number : 6 * number + 6]
        line = {"number": number + 1, "after": last, "ids": ids, "is_stored": True}
        lines.append(line | {"digest": _digest(last, ids)})
        last = lines[-1]["digest"]
    return [lines[1], lines[2], lines[0]]


@pytest.mark.parametrize("drop", [False, True])
def test_all_promises_kept(drop: bool) -> None:
    log = IDS[18:] if drop else IDS
    outcome = compare(IDS, make_lines(), log, drop=drop)
    expected = Outcome(appended=24, stored=len(log), summaries=3, covered=18)
    assert outcome == expected
    assert not outcome.is_broken
    assert "| split turns" in as_text(outcome)


def change_line(case: Case, **fields: Any) -> None:
    case[1][0].update(fields)


BROKEN: dict[str, tuple[str, bool, Callable[[Case], object]]] = {
    "an event is gone": ("lost", False, lambda case: case[2].remove(IDS[-1])),
    "a covered event is gone": ("lost", True, lambda case: case[1][0]["ids"].pop()),
    "an event is stored twice": ("duplicated", False, lambda case: case[2].append(IDS[-1])),
    "an event is covered twice": (
        "duplicated",
        False,
        lambda case: case[1][0]["ids"].append(IDS[0]),
    ),
    "a covered event was not removed": (
        "duplicated",
        True,
        lambda case: case[2].insert(0, IDS[17]),
    ),
    "a summary is missing": ("broken_links", False, lambda case: case[1].pop()),
    "a summary continues another one": (
        "broken_links",
        False,
        lambda case: change_line(case, after=""),
    ),
    "a summary covers other events than the log has": (
        "broken_links",
        False,
        lambda case: case[2].reverse(),
    ),
    "a turn goes on": ("split_turns", False, lambda case: case[0].append("a.0.3")),
    "a summary was not stored": (
        "other_calls",
        False,
        lambda case: case[1].append({**case[1][0], "is_stored": False}),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise(name: str) -> None:
    figure, drop, change = BROKEN[name]
    case = (IDS.copy(), make_lines(), IDS[18:] if drop else IDS.copy())
    change(case)
    outcome = compare(*case, drop=drop)
    assert getattr(outcome, figure) > 0
    assert outcome.is_broken


def test_a_run_without_summaries_shows_nothing() -> None:
    assert compare(IDS, [], IDS, drop=False).is_broken
