"""What is lost when servers are treated badly: a fleet of agents at work through a seeded sequence
of faults, on a cluster and behind Sentinels, and an audit of every session at the end.

Faults that may lose nothing and faults that may (with replication that nobody waits for) have
fleets of their own, so that every loss has its cause. Exit code 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from sessionstore import RedisSessionService

from .chaos_faults import (
    SAFE_CLUSTER_FAULTS,
    SAFE_SENTINEL_FAULTS,
    UNSAFE_CLUSTER_FAULTS,
    UNSAFE_SENTINEL_FAULTS,
    Fault,
    Scene,
    timeout_s,
)
from .chaos_fleet import CALM, Account, Audit, Fleet
from .clusters import Cluster, SentinelGroup
from .nodes import Group

_CALM_S = 0.4  # between two faults
_EXTRA_S = 180.0  # beyond the time asked for, after which everything is ended
_CALL_TIMEOUT_S = 10.0
_SERVICES = 2  # that share the work, each with connections of its own
_NOTICE_S = 1.0  # beyond the servers' own time-out, for a failover
_NOISE = 2.0  # times that, on a machine that does other things too


@dataclass
class Outcome:
    """What one fleet went through.

    Attributes:
        name: servers and kind of faults.
        is_safe: none of its faults may lose anything.
        node_timeout_s: silence after which the servers give a node up.
        faults: how often each fault was inflicted.
        accounts: calls by fault.
        audit: what was promised, compared with what is stored.
        gave_up: agents that got no answer for a minute.
        broken: promises that were not kept.
    """

    name: str
    is_safe: bool
    node_timeout_s: float
    faults: dict[str, int] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    audit: Audit = field(default_factory=Audit)
    gave_up: int = 0
    broken: list[str] = field(default_factory=list)


async def run_fleet(
    group: Group,
    name: str,
    faults: Sequence[Fault],
    *,
    seed: int,
    seconds: float,
    agents: int,
    pause_s: float = 0.05,
    partition_by: Any = "user",
) -> Outcome:
    """Let a fleet work while faults are inflicted, at least once each; then audit it.

    Args:
        group: the servers, settled.
        name: of the fleet.
        faults: what to inflict, in rounds of random order.
        seed: of everything random.
        seconds: no fault is begun later than that, but for the first round.
        agents: tasks that append and read.
        pause_s: mean pause of an agent between two turns.
        partition_by: as services take it.
    """
    chosen = random.Random(f"{seed}-{name}")
    outcome = Outcome(name, all(fault.is_safe for fault in faults), timeout_s(group))
    async with AsyncExitStack() as stack:
        services = []
        for _ in range(_SERVICES):
            service = RedisSessionService(
                group.url,  # type: ignore[attr-defined]
                session_event_limit=None,
                call_timeout=_CALL_TIMEOUT_S,
                partition_by=partition_by,
            )
            services.append(await stack.enter_async_context(service))
        fleet = Fleet(services, agents, name.replace(" ", "-"), seed, pause_s=pause_s)
        await fleet.start()
        try:
            await _inflict(group, fleet, faults, chosen, seconds, outcome)
        finally:
            await fleet.stop()
        outcome.audit = await fleet.audit(services[0])
    outcome.accounts = fleet.accounts
    outcome.gave_up = fleet.gave_up
    _judge(outcome, faults)
    return outcome


async def _inflict(
    group: Group,
    fleet: Fleet,
    faults: Sequence[Fault],
    chosen: random.Random,
    seconds: float,
    outcome: Outcome,
) -> None:
    end = time.monotonic() + seconds
    scene = Scene(group, fleet.keys, chosen)
    await asyncio.sleep(_CALM_S)
    is_first = True
    while is_first or time.monotonic() < end:
        for fault in chosen.sample(faults, len(faults)):
            if not is_first and time.monotonic() >= end:
                break
            fleet.fault = fault.name
            outcome.faults[fault.name] = outcome.faults.get(fault.name, 0) + 1
            await asyncio.to_thread(fault.run, scene)
            fleet.fault = CALM
            await asyncio.sleep(_CALM_S)
        is_first = False
    fleet.note_takeovers(scene.takeovers)


def _judge(outcome: Outcome, faults: Sequence[Fault]) -> None:
    broken, audit = outcome.broken, outcome.audit
    if outcome.is_safe:
        for what in ("lost", "duplicated", "disordered", "state_wrong", "stale_reads"):
            count = getattr(audit, what)
            if count:
                broken.append(f"{what.replace('_', ' ')}: {count}")
    elif audit.duplicated or audit.disordered:
        broken.append(f"duplicated {audit.duplicated}, out of order {audit.disordered}")
    if outcome.gave_up:
        broken.append(f"agents that got no answer for a minute: {outcome.gave_up}")
    for fault in faults:
        account = outcome.accounts.get(fault.name, Account())
        if account.failures and not fault.may_fail:
            broken.append(f"calls that failed during {fault.name}: {account.failures}")
        limit_s = (outcome.node_timeout_s + _NOTICE_S) * _NOISE
        if fault.is_failover and fault.is_safe and account.longest_s > limit_s:
            broken.append(f"longest stall on {fault.name}: {account.longest_s:.1f} s")


# -- the command ---------------------------------------------------------------------------------


async def run_all(seed: int, seconds: float, agents: int) -> list[Outcome]:
    """All fleets, one after the other; a quarter of the time for each."""
    share = seconds / 4
    outcomes = []
    for kind, safe, unsafe in (
        ("cluster", SAFE_CLUSTER_FAULTS, UNSAFE_CLUSTER_FAULTS),
        ("sentinel", SAFE_SENTINEL_FAULTS, UNSAFE_SENTINEL_FAULTS),
    ):
        config = {"appendonly": "yes", "appendfsync": "always"}
        group: Cluster | SentinelGroup
        group = Cluster(config=config) if kind == "cluster" else SentinelGroup(config=config)
        await asyncio.to_thread(group.start)
        try:
            for name, faults in (("safe", safe), ("unsafe", unsafe)):
                outcomes.append(
                    await run_fleet(
                        group,
                        f"{kind} {name}",
                        faults,
                        seed=seed,
                        seconds=share,
                        agents=agents,
                    )
                )
                print(as_text(outcomes[-1]), flush=True)
        finally:
            await asyncio.to_thread(group.close)
    return outcomes


def as_text(outcome: Outcome) -> str:
    """A fleet's table."""
    audit = outcome.audit
    lines = [
        f"\n## {outcome.name}: {audit.sessions} sessions,"
        f" {audit.acknowledged} appends acknowledged",
        "",
        "| fault | times | calls | failed | longest call | of that behind the takeover |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in (CALM, *outcome.faults):
        account = outcome.accounts.get(name, Account())
        times = outcome.faults.get(name, "")
        lines.append(
            f"| {name} | {times} | {account.calls} | {account.failures} |"
            f" {account.longest_s:.2f} s | {account.longest_behind_s or 0:.2f} s |"
        )
    lines += [
        "",
        f"acknowledged appends lost {audit.lost}, duplicated {audit.duplicated},"
        f" out of order {audit.disordered}; state not as written {audit.state_wrong};"
        f" reads that missed the reader's own write {audit.stale_reads}",
    ]
    if not outcome.is_safe and audit.lost:
        lines.append(
            "The lost ones were acknowledged by a primary and had not reached its replica when"
            " that took over: nobody waited for it."
        )
    lines += [f"BROKEN: {promise}" for promise in outcome.broken]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of everything random")
    parser.add_argument("--seconds", type=float, default=120.0, help="time for all fleets")
    parser.add_argument("--agents", type=int, default=200, help="agents of a fleet")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args(argv)

    async def bounded() -> list[Outcome]:
        async with asyncio.timeout(arguments.seconds + _EXTRA_S):
            return await run_all(arguments.seed, arguments.seconds, arguments.agents)

    print(f"# chaos: seed {arguments.seed}, {arguments.agents} agents", flush=True)
    outcomes = asyncio.run(bounded())
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(outcomes)))
    is_broken = any(outcome.broken for outcome in outcomes)
    print("\na promise was broken" if is_broken else "\nall promises were kept")
    return int(is_broken)


if __name__ == "__main__":
    sys.exit(main())
