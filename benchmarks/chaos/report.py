"""Checks the promises for each fleet, and makes the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..bench_routing import shares
from ..results import table
from .faults import RESHARD, Fault
from .fleet import CALM, Account, Audit

_NOTICE_S = 1.0  # from a takeover until every call is answered
_NOISE = 2.0  # factor for a busy machine
_USERS, _PRIMARIES = 10_000, 3


@dataclass(frozen=True)
class Plan:
    """What happens to a fleet.

    Attributes:
        name: servers and kind of faults.
        faults: the faults, in rounds of random order.
        may_lose: acknowledged appends may be lost, because no write waits for replicas.
        wait_replicas: how many replicas confirm every write, and within how many seconds.
            None = no write waits for replicas.
        partition_by: an option of the services.
    """

    name: str
    faults: tuple[Fault, ...]
    may_lose: bool = False
    wait_replicas: tuple[int, float] | None = None
    partition_by: str = "user"


@dataclass
class Outcome:
    """What happened to one fleet.

    Attributes:
        name: of the plan.
        may_lose: of the plan.
        timeout_s: how long a node may be silent before the other servers act.
        faults: how often each fault happened.
        takeover_s: the longest takeover, by fault.
        accounts: calls by fault.
        audit: what was acknowledged, compared with what is stored.
        gave_up: agents that got no answer for a minute.
        broken: broken promises.
    """

    name: str
    may_lose: bool
    timeout_s: float
    faults: dict[str, int] = field(default_factory=dict)
    takeover_s: dict[str, float] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    audit: Audit = field(default_factory=Audit)
    gave_up: int = 0
    broken: list[str] = field(default_factory=list)

    def account(self, fault: str) -> Account:
        """The calls during a fault."""
        return self.accounts.get(fault, Account())


def judge(outcome: Outcome, plan: Plan) -> None:
    """Add the broken promises, except those about time."""
    broken, audit = outcome.broken, outcome.audit
    promised = ["duplicated", "disordered"]
    if not plan.may_lose:
        promised += ["lost", "state_wrong", "stale_reads"]
    for what in promised:
        if count := getattr(audit, what):
            broken.append(f"{what.replace('_', ' ')}: {count}")
    if outcome.gave_up:
        broken.append(f"agents that got no answer for a minute: {outcome.gave_up}")
    allowed = {fault.name: set(fault.may_fail) for fault in plan.faults}
    if plan.wait_replicas:
        for fault in plan.faults:
            allowed[fault.name].add("NotReplicated")
    for name, account in outcome.accounts.items():
        failed = {
            error: count
            for error, count in account.failed.items()
            if error not in allowed.get(name, ())
        }
        if failed:
            broken.append(f"calls that failed, {name}: {_counts(failed)}")


def judge_stalls(outcome: Outcome, plan: Plan) -> None:
    """Add the broken promises about time."""
    limit_s = _NOTICE_S * _NOISE
    if plan.wait_replicas:
        # A call has one step per slot. Each step may wait for an earlier WAIT, then for its own.
        limit_s += 4 * plan.wait_replicas[1]
    for fault in plan.faults:
        behind_s = outcome.account(fault.name).longest_behind_s
        if fault.is_failover and behind_s > limit_s:
            outcome.broken.append(f"{fault.name}: a call took {behind_s:.1f} s from the takeover")


def as_text(outcome: Outcome) -> str:
    """The tables of one fleet."""
    audit = outcome.audit
    rows = []
    for name in (CALM, *outcome.faults):
        account = outcome.account(name)
        took_s = outcome.takeover_s.get(name)
        rows.append(
            [
                name,
                str(outcome.faults.get(name, "")),
                f"{account.calls:,}",
                _counts(account.failed) or "0",
                f"{account.longest_s:.2f} s",
                "" if took_s is None else f"{took_s:.2f} s",
                "" if took_s is None else f"{account.longest_behind_s:.2f} s",
            ]
        )
    head = ["fault", "times", "calls", "failed", "longest call", "takeover", "call after takeover"]
    lines = [
        f"\n## {outcome.name}: {audit.sessions} sessions,"
        f" {audit.acknowledged:,} appends acknowledged",
        "",
        table(head, rows),
        "",
        f"acknowledged appends: {_loss(outcome)}; wrong state values {audit.state_wrong};"
        f" reads without the agent's own last write {audit.stale_reads}",
    ]
    if audit.lost:
        lines.append(f"lost appends, by fault: {_lost_by(outcome)}")
    lines += [f"BROKEN: {promise}" for promise in outcome.broken]
    return "\n".join(lines)


def as_table(outcomes: Sequence[Outcome]) -> str:
    """The main figures of all fleets in one table."""
    rows = []
    for outcome in outcomes:
        faults = ", ".join(outcome.faults)
        rows.append([f"{outcome.name}: appends under {faults}", _loss(outcome)])
        if outcome.audit.lost:
            rows.append([f"{outcome.name}: lost appends, by fault", _lost_by(outcome)])
    rows += _failures(outcomes)
    time_outs = " / ".join(f"{time_out:g} s" for time_out in {each.timeout_s for each in outcomes})
    rows.append(["silence after which servers act", time_outs])
    rows += _stalls(outcomes, "graceful failover", lambda name: name == "graceful failover")
    rows += _stalls(outcomes, "another failover", lambda name: name != "graceful failover")
    held = " / ".join(f"{share:.1%}" for share in shares(_USERS, _PRIMARIES, 1))
    rows.append([f"keys of {_USERS:,} random users on {_PRIMARIES} primaries", held])
    return table(["what", "figure"], rows)


def _failures(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Failed calls by fault. Faults without failures share a row, except the reshard."""
    rows, unharmed, unharmed_calls = [], [], 0
    for name in dict.fromkeys(name for outcome in outcomes for name in outcome.faults):
        accounts = [outcome.account(name) for outcome in outcomes]
        failed = sum((account.failed for account in accounts), Counter[str]())
        calls = sum(account.calls + account.failures for account in accounts)
        if failed or name == RESHARD.name:
            why = f" ({_counts(failed)})" if failed else ""
            rows.append([f"calls that failed: {name}", f"{failed.total():,} of {calls:,}{why}"])
        else:
            unharmed.append(name)
            unharmed_calls += calls
    if unharmed:
        row = [f"calls that failed: {', '.join(unharmed)}", f"0 of {unharmed_calls:,}"]
        rows.insert(0, row)
    return rows


def _stalls(
    outcomes: Sequence[Outcome], what: str, is_meant: Callable[[str], bool]
) -> list[list[str]]:
    """The longest call during failovers, and how much of it the servers needed."""
    rows = []
    for outcome in outcomes:
        names = [name for name in outcome.takeover_s if is_meant(name)]
        if names:
            longest = max(outcome.account(name).longest_s for name in names)
            behind = max(outcome.account(name).longest_behind_s for name in names)
            took = max(outcome.takeover_s[name] for name in names)
            rows.append(
                [
                    f"{outcome.name}: longest call during {what}",
                    f"{longest:.2f} s (takeover after {took:.2f} s, calls {behind:.2f} s later)",
                ]
            )
    return rows


def _loss(outcome: Outcome) -> str:
    audit = outcome.audit
    return (
        f"lost {audit.lost:,}, duplicated {audit.duplicated}, out of order {audit.disordered}"
        f" of {audit.acknowledged:,}"
    )


def _lost_by(outcome: Outcome) -> str:
    return _counts(outcome.audit.lost_by)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
