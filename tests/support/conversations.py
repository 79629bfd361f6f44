"""Random conversations with tools: runs that overlap, calls that are answered late or never."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hypothesis import strategies as st


@dataclass(frozen=True)
class Step:
    """What a run adds to a conversation.

    Attributes:
        run: number of the run.
        kind: the user's message, text of the model, calls of tools by the model, or their results.
        calls: the ids of the calls that it opens or answers.
    """

    run: int
    kind: Literal["user", "text", "calls", "results"]
    calls: tuple[str, ...] = ()


@st.composite
def conversations(draw: st.DrawFn, *, min_runs: int = 1, max_runs: int = 8) -> list[Step]:
    """The steps of several runs.

    Args:
        draw: given by Hypothesis.
        min_runs: least number of runs.
        max_runs: largest number of runs.
    """
    runs: list[list[Step]] = []
    waiting: list[str] = []  # calls that a later run answers
    for run in range(draw(st.integers(min_runs, max_runs))):
        steps = [Step(run, "user")]
        answers: bool = draw(st.booleans())
        if waiting and answers:
            steps.append(Step(run, "results", tuple(waiting)))
            waiting = []
        for number in range(draw(st.integers(0, 3))):
            ids = [f"{run}.{number}.{each}" for each in range(draw(st.integers(0, 3)))]
            steps.append(Step(run, "calls" if ids else "text", tuple(ids)))
            for call_id in draw(st.permutations(ids)):
                fate = draw(st.sampled_from(["answered"] * 4 + ["dead", "late"]))
                if fate == "answered":
                    steps.append(Step(run, "results", (call_id,)))
                elif fate == "late":
                    waiting.append(call_id)
        runs.append(steps)
    return _merged(draw, runs)


def _merged(draw: st.DrawFn, runs: list[list[Step]]) -> list[Step]:
    """The steps of all runs. The next run begins before or after the ones before it end."""
    merged: list[Step] = []
    active: list[list[Step]] = []
    later = [list(steps) for steps in runs]
    while active or later:
        can_begin = bool(later) and len(active) < 3
        if can_begin and (not active or draw(st.integers(0, 4)) == 0):
            active.append(later.pop(0))
        chosen = active[draw(st.integers(0, len(active) - 1))]
        merged.append(chosen.pop(0))
        active = [steps for steps in active if steps]
    return _without_early_results(merged)


def _without_early_results(steps: list[Step]) -> list[Step]:
    """Without results that the merge put before their call."""
    opened: set[str] = set()
    found = []
    for step in steps:
        if step.kind == "calls":
            opened.update(step.calls)
        if step.kind != "results" or opened.issuperset(step.calls):
            found.append(step)
    return found
