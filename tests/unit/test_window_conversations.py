"""Windows of random conversations: whole turns, and no result of a tool without its call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from unittest.mock import patch

from hypothesis import event as note
from hypothesis import given, settings
from hypothesis import strategies as st
from support.conversations import Step, conversations
from unit_support import unhurried

from sessionstore import Event, Window, windows
from sessionstore.sync import InMemorySessionService

IDS: dict[str, Any] = {"app_name": "app", "user_id": "user", "session_id": "sid"}


def as_event(number: int, step: Step) -> Event:
    """The event of a step; its content is its number."""
    fields: dict[str, Any] = {} if step.kind in ("user", "text") else {step.kind: list(step.calls)}
    author = "user" if step.kind == "user" else "agent"
    return Event(author, number, invocation_id=f"run {step.run}", metadata=fields)


def calls(event: Event) -> tuple[Iterable[str], Iterable[str]]:
    return event.metadata.get("calls", ()), event.metadata.get("results", ())


def window_of(steps: list[Step], limit: int | None, window: Window, page: int) -> list[int]:
    """The numbers of the steps that a window shows."""
    service = InMemorySessionService(session_event_limit=limit)
    session = service.create_session(**IDS)
    for number, step in enumerate(steps):
        service.append_event(session.key, as_event(number, step))
    with patch.object(windows, "_PAGE", page):
        found = service.get_session(**IDS, window=window)
    assert found is not None
    return [event.content for event in found.events]


def runs_cut(steps: list[Step], start: int) -> list[tuple[int, int]]:
    """For each run on both sides of a place: its last step before, its first one from there on."""
    last: dict[int, int] = {step.run: number for number, step in enumerate(steps[:start])}
    first: dict[int, int] = {}
    for number in range(start, len(steps)):
        first.setdefault(steps[number].run, number)
    return [(last[run], first[run]) for run in last.keys() & first.keys()]


def without_orphans(steps: list[Step], oldest: int) -> list[int]:
    """The numbers of the steps from `oldest` on, without results whose calls are not there."""
    known: set[str] = set()
    found = []
    for number in range(oldest, len(steps)):
        step = steps[number]
        if step.kind != "results" or known.issuperset(step.calls):
            found.append(number)
        known.update(step.calls if step.kind == "calls" else ())
    return found


LIMITS = st.none() | st.integers(1, 12)


@settings(unhurried, max_examples=300)
@given(conversations(), LIMITS, LIMITS, LIMITS, st.sampled_from([4, 8, 64]))
def test_a_window_of_any_conversation_begins_with_a_turn(
    steps: list[Step], kept: int | None, turns: int | None, limit: int | None, page: int
) -> None:
    window = Window(max_turns=turns, max_events=limit, calls=calls)
    shown = window_of(steps, kept, window, page)
    oldest = 0 if kept is None else max(len(steps) - kept, 0)
    left = without_orphans(steps, oldest)
    assert shown == left[len(left) - len(shown) :], "the newest ones, but for orphans"
    assert bool(shown) == bool(left)
    if not shown:
        return
    assert without_orphans(steps, shown[0]) == shown, "no result without its call"
    for last_before, first in runs_cut(steps, shown[0]):
        if last_before not in left:
            note("a run whose beginning was trimmed")
        else:
            note("a run that paused for long")
            assert first - last_before > len(steps) - first
    if oldest == 0:
        assert steps[shown[0]].kind == "user" or runs_cut(steps, shown[0])
