"""The search for an order that explains calls: what it accepts, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.chaos.history import Change, Made, Stored, Unexplained, explain

LIMIT = 3
EMPTY = Stored(version=10)


def append(
    *names: str, at: tuple[float, float] = (1, 2), result: Any = "done", **more: Any
) -> Made:
    changes = tuple(Change(name, {"last": name}, {"n": 1}) for name in names)
    return Made("append", *at, result, changes, **more)


def pop(found: str | None, at: tuple[float, float] = (3, 4), result: Any = "done") -> Made:
    return Made("pop", *at, result, found=found)


def read(*log: str, version: int = 20, at: tuple[float, float] = (99, 100), **state: Any) -> Made:
    return Made("read", *at, "done", version=version, found=(log, tuple(sorted(state.items()))))


EXPLAINED: dict[str, list[Made]] = {
    "one after the other": [append("a"), pop("a"), read(last="a", n=1)],
    "at the same time, in either order": [
        append("a", at=(1, 5)),
        append("b", at=(2, 4)),
        read("b", "a", last="a", n=2),
    ],
    "a repeat does nothing": [append("a"), append("a", at=(3, 4)), read("a", last="a", n=1)],
    "a repeat after a pop is a new event": [
        append("a"),
        pop("a"),
        append("a", at=(5, 6)),
        read("a", last="a", n=2),
    ],
    "trimmed": [append("a", "b", "c", "d"), read("b", "c", "d", last="d", n=4)],
    "maybe: applied": [append("a", result="maybe"), read("a", last="a", n=1)],
    "maybe: not applied": [append("a", result="maybe"), read(version=10)],
    "maybe: applied later than the call ended": [
        append("a", result="maybe"),
        read(version=10, at=(5, 6)),
        read("a", last="a", n=1),
    ],
    "the condition holds": [append("a", if_version=10), read("a", last="a", n=1)],
    "stale": [
        append("a"),
        append("b", at=(3, 4), result="stale", if_version=10, version=20),
        read("a", last="a", n=1),
    ],
    "an increment": [
        Made("increment", 1, 2, "done", (Change("", {}, {"n": 5}),), found={"n": 5}),
        read(n=5),
    ],
}

UNEXPLAINED: dict[str, list[Made]] = {
    "lost": [append("a"), read(version=10)],
    "lost state": [append("a"), read("a", last="a")],
    "applied twice": [append("a"), read("a", last="a", n=2)],
    "came back after a pop": [append("a", at=(1, 9)), pop("a"), read("a", last="a", n=2)],
    "in the wrong order": [append("a"), append("b", at=(3, 4)), read("b", "a", last="b", n=2)],
    "not trimmed": [append("a", "b", "c", "d"), read("a", "b", "c", "d", last="d", n=4)],
    "half of a batch": [append("a", "b", result="maybe"), read("a", last="a", n=1)],
    "popped by nobody": [append("a"), read(last="a", n=1)],
    "popped another": [append("a"), append("b", at=(3, 4)), pop("a", (5, 6)), read("b", n=2)],
    "an old read": [append("a"), read(version=10, at=(3, 4)), read("a", last="a", n=1)],
    "written although the condition failed": [
        append("a"),
        append("b", at=(3, 4), if_version=10),
        read("a", "b", last="b", n=2),
    ],
    "stale without a write": [
        append("b", result="stale", if_version=10, version=10),
        read(version=10),
    ],
    "the version did not change": [append("a"), read("a", last="a", n=1, version=10)],
    "a wrong sum": [
        Made("increment", 1, 2, "done", (Change("", {}, {"n": 5}),), found={"n": 6}),
        read(n=5),
    ],
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_explained(name: str) -> None:
    found = explain(EMPTY, EXPLAINED[name], LIMIT)
    assert (found.log, found.state) == EXPLAINED[name][-1].found
    assert found.is_version_known


@pytest.mark.parametrize("name", UNEXPLAINED)
def test_unexplained(name: str) -> None:
    with pytest.raises(Unexplained):
        explain(EMPTY, UNEXPLAINED[name], LIMIT)
