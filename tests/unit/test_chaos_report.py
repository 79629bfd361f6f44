"""Broken promises and tables of the chaos report. No server."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.chaos.faults import CLUSTER_FAILOVER, KILL_PRIMARY, OUT_OF_MEMORY, RESHARD
from benchmarks.chaos.fleet import CALM, Account, Audit
from benchmarks.chaos.report import Outcome, Plan, as_table, as_text, judge, judge_stalls

SAFE = Plan("some, safe", (RESHARD, OUT_OF_MEMORY, CLUSTER_FAILOVER))
UNSAFE = Plan("some, unsafe", (KILL_PRIMARY,), may_lose=True)
CONFIRMED = Plan("some, confirmed", (KILL_PRIMARY,), wait_replicas=(1, 1.0))


def outcome_of(plan: Plan, fault: str = CALM, **account: object) -> Outcome:
    outcome = Outcome(plan.name, plan.may_lose, 1.5, {fault.name: 1 for fault in plan.faults})
    outcome.accounts[fault] = Account(7, **account)  # type: ignore[arg-type]  # of any field
    return outcome


def broken(outcome: Outcome, plan: Plan) -> list[str]:
    judge(outcome, plan)
    judge_stalls(outcome, plan)
    return outcome.broken


@pytest.mark.parametrize("plan", [SAFE, UNSAFE, CONFIRMED])
def test_nothing_wrong_breaks_nothing(plan: Plan) -> None:
    assert broken(outcome_of(plan), plan) == []


@pytest.mark.parametrize(
    "field", ["lost", "duplicated", "disordered", "state_wrong", "stale_reads"]
)
def test_losses_break_what_was_promised(field: str) -> None:
    audit = Audit(**{field: 3})  # type: ignore[arg-type]  # one of the counts
    for plan in (SAFE, CONFIRMED, UNSAFE):
        outcome = outcome_of(plan)
        outcome.audit = audit
        is_promised = plan is not UNSAFE or field in ("duplicated", "disordered")
        expected = [f"{field.replace('_', ' ')}: 3"] if is_promised else []
        assert broken(outcome, plan) == expected


@pytest.mark.parametrize(
    ("plan", "fault", "error", "is_allowed"),
    [
        (SAFE, CALM, "BackendRejected", False),
        (SAFE, RESHARD.name, "BackendUnavailable", False),
        (SAFE, OUT_OF_MEMORY.name, "BackendRejected", True),
        (SAFE, OUT_OF_MEMORY.name, "BackendTimeout", False),
        (UNSAFE, KILL_PRIMARY.name, "BackendTimeout", True),
        (UNSAFE, KILL_PRIMARY.name, "NotReplicated", False),
        (CONFIRMED, KILL_PRIMARY.name, "NotReplicated", True),
        (CONFIRMED, CALM, "NotReplicated", False),
    ],
)
def test_calls_may_fail_only_as_their_fault_says(
    plan: Plan, fault: str, error: str, is_allowed: bool
) -> None:
    outcome = outcome_of(plan, fault, failed=Counter({error: 2}))
    expected = [] if is_allowed else [f"calls that failed, {fault}: {error} 2"]
    assert broken(outcome, plan) == expected


def test_agents_that_give_up_break_a_promise() -> None:
    outcome = outcome_of(UNSAFE)
    outcome.gave_up = 1
    assert broken(outcome, UNSAFE) == ["agents that got no answer for a minute: 1"]


@pytest.mark.parametrize(("plan", "limit_s"), [(UNSAFE, 2.0), (CONFIRMED, 6.0)])
def test_calls_find_the_successor_soon(plan: Plan, limit_s: float) -> None:
    soon = outcome_of(plan, KILL_PRIMARY.name, longest_behind_s=limit_s)
    late = outcome_of(plan, KILL_PRIMARY.name, longest_behind_s=limit_s + 0.1)
    assert broken(soon, plan) == []
    assert broken(late, plan) == [f"kill -9: a call took {limit_s + 0.1:.1f} s from the takeover"]


def test_the_table_says_what_was_lost_and_what_failed() -> None:
    safe = outcome_of(SAFE, OUT_OF_MEMORY.name, failed=Counter({"BackendRejected": 2}))
    unsafe = outcome_of(UNSAFE, KILL_PRIMARY.name, longest_s=3.21, longest_behind_s=0.4)
    unsafe.takeover_s = {KILL_PRIMARY.name: 2.8}
    unsafe.audit = Audit(acknowledged=1000, lost=3, lost_by=Counter({KILL_PRIMARY.name: 3}))
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in as_table([safe, unsafe]).splitlines()
    ]
    for row in (
        ("some, unsafe: appends under kill -9", "lost 3, duplicated 0, out of order 0 of 1,000"),
        ("some, unsafe: lost appends, by fault", "kill -9 3"),
        ("calls that failed: live reshard", "0 of 0"),
        ("calls that failed: out of memory", "2 of 9 (BackendRejected 2)"),
        ("calls that failed: graceful failover, kill -9", "0 of 7"),
        (
            "some, unsafe: longest call during another failover",
            "3.21 s (takeover after 2.80 s, calls 0.40 s later)",
        ),
    ):
        assert row in rows
    assert "BackendRejected 2" in as_text(safe)
