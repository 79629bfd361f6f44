"""Runs fleets of agents while servers fail, and checks every session at the end.

The faults come in a seeded random order, on a cluster, behind Sentinels, and behind one address
that moves. There are three kinds of fleets, so that the cause of every loss is known:

* safe: faults that must not lose anything;
* unsafe: primaries are replaced and no write waits for replicas. Writes that had not reached a
  replica are lost;
* confirmed: the same faults with `wait_replicas`, which must not lose anything.

The exit code is 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec

import sessionstore.sync
from sessionstore import RedisSessionService
from sessionstore.embedded import EmbeddedServer

from ..rigs.addresses import MovingAddress
from ..rigs.clusters import Cluster, SentinelGroup
from ..rigs.nodes import Group
from . import faults
from .fleet import CALM, Fleet, Threads
from .report import Outcome, Plan, as_table, as_text, judge, judge_stalls
from .stored_as import add_options, compression_for, new_ring, numbered_events

_CALM_S = 0.4  # between two faults
_EXTRA_S = 180.0  # the command stops when it takes this much longer than --seconds
_CALL_TIMEOUT_S = 10.0

_FOR_ALL = (faults.RESETS, faults.SCRIPT_FLUSH, faults.PAUSE, faults.OUT_OF_MEMORY)
_CLUSTER_LOSSES = (faults.KILL_PRIMARY, faults.STOP_PRIMARY)
_SENTINEL_LOSSES = (faults.KILL_MASTER, faults.STOP_MASTER, faults.SENTINEL_FAILOVER)

CLUSTER_PLANS = (
    Plan("cluster, safe", (*_FOR_ALL, faults.RESHARD, faults.CLUSTER_FAILOVER)),
    Plan("cluster, unsafe", _CLUSTER_LOSSES, may_lose=True),
    Plan("cluster, confirmed by 1", _CLUSTER_LOSSES, wait_replicas=(1, 1.0)),
)
SENTINEL_PLANS = (
    Plan("Sentinel, safe", (*_FOR_ALL, faults.HAND_OVER)),
    Plan("Sentinel, unsafe", _SENTINEL_LOSSES, may_lose=True),
    # The Sentinels promote the replica with the most data. But after SENTINEL FAILOVER the old
    # master keeps its other replica for a while, which confirms writes that will be lost.
    Plan("Sentinel, confirmed by 1 of 2", _SENTINEL_LOSSES[:2], wait_replicas=(1, 1.0)),
    Plan("Sentinel, confirmed by 2 of 2", _SENTINEL_LOSSES, wait_replicas=(2, 1.0)),
)
ADDRESS_PLANS = (Plan("one address, safe", (*_FOR_ALL, faults.MOVE_ADDRESS)),)


async def run_fleet(
    group: Group,
    plan: Plan,
    *,
    seed: int,
    seconds: float,
    agents: int,
    pause_s: float = 0.05,
    **stored_as: Any,
) -> Outcome:
    """Run a fleet while faults happen, each at least once; then audit it.

    Nine of ten agents are tasks on two services. The others are threads.

    Args:
        group: the servers, settled.
        plan: the faults, and options of the services.
        seed: of all random choices.
        seconds: no fault starts after this time, except in the first round.
        agents: number of agents.
        pause_s: mean pause of an agent between two turns.
        **stored_as: options of the services: how values are stored.
    """
    chosen = random.Random(f"{seed}-{plan.name}")
    outcome = Outcome(plan.name, plan.may_lose, group.timeout_s)
    options: dict[str, Any] = {
        "session_event_limit": None,
        "call_timeout": _CALL_TIMEOUT_S,
        "partition_by": plan.partition_by,
        **stored_as,
    }
    if plan.wait_replicas:
        options["wait_replicas"] = plan.wait_replicas
    async with AsyncExitStack() as stack:
        one, other = (RedisSessionService(group.url, **options) for _ in range(2))
        threads = Threads(sessionstore.sync.RedisSessionService(group.url, **options), agents)
        services: list[Any] = [one, other] * 5
        services[-1] = threads
        for service in (one, other, threads):
            stack.push_async_callback(service.aclose)
        label = "".join(char if char.isalnum() else "-" for char in plan.name)
        fleet = Fleet(services, agents, label, seed, pause_s=pause_s)
        await fleet.start()
        try:
            takeovers = await _run_faults(group, fleet, plan, chosen, seconds, outcome)
        finally:
            await fleet.stop()
        fleet.note_takeovers([takeover.done for takeover in takeovers])
        outcome.audit = await fleet.audit(one)
    outcome.accounts = fleet.accounts
    outcome.gave_up = fleet.gave_up
    judge(outcome, plan)
    return outcome


async def _run_faults(
    group: Group,
    fleet: Fleet,
    plan: Plan,
    chosen: random.Random,
    seconds: float,
    outcome: Outcome,
) -> list[faults.Takeover]:
    end = time.monotonic() + seconds
    scene = faults.Scene(group, fleet.keys, chosen)
    await asyncio.sleep(_CALM_S)
    is_first = True
    while is_first or time.monotonic() < end:
        for fault in chosen.sample(plan.faults, len(plan.faults)):
            if not is_first and time.monotonic() >= end:
                break
            before = len(scene.takeovers)
            fleet.set_fault(fault.name)
            await asyncio.to_thread(fault.run, scene)
            fleet.set_fault(CALM)
            outcome.faults[fault.name] = outcome.faults.get(fault.name, 0) + 1
            took_s = [takeover.done - takeover.begun for takeover in scene.takeovers[before:]]
            if took_s:
                longest_s = max(*took_s, outcome.takeover_s.get(fault.name, 0.0))
                outcome.takeover_s[fault.name] = longest_s
            await asyncio.sleep(_CALM_S)
        is_first = False
    return scene.takeovers


# -- the command ---------------------------------------------------------------------------------


async def run_all(seed: int, seconds: float, agents: int, **stored_as: Any) -> list[Outcome]:
    """All fleets, one after the other, with equal shares of the time."""
    share = seconds / len((*CLUSTER_PLANS, *SENTINEL_PLANS, *ADDRESS_PLANS))
    config = {"appendonly": "yes", "appendfsync": "always"}
    outcomes = []
    kinds: tuple[tuple[Any, tuple[Plan, ...]], ...] = (
        (Cluster, CLUSTER_PLANS),
        (SentinelGroup, SENTINEL_PLANS),
        (MovingAddress, ADDRESS_PLANS),
    )
    for kind, plans in kinds:
        group = kind(config=config)
        await asyncio.to_thread(group.start)
        try:
            for plan in plans:
                outcome = await run_fleet(
                    group,
                    plan,
                    seed=seed,
                    seconds=share,
                    agents=agents,
                    **stored_as,
                )
                judge_stalls(outcome, plan)
                outcomes.append(outcome)
                print(as_text(outcome), flush=True)
        finally:
            await asyncio.to_thread(group.close)
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="of all random choices")
    parser.add_argument("--seconds", type=float, default=180.0, help="time for all fleets")
    parser.add_argument("--agents", type=int, default=200, help="agents in a fleet")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    add_options(parser)
    arguments = parser.parse_args(argv)
    stored_as: dict[str, Any] = {}
    if arguments.compression:
        stored_as["compression"] = compression_for(numbered_events())

    async def bounded() -> list[Outcome]:
        async with AsyncExitStack() as stack:
            if arguments.encryption:
                keys = await stack.enter_async_context(EmbeddedServer())
                stored_as.update(encryption=new_ring(), key_store=keys.url)
            await stack.enter_async_context(asyncio.timeout(arguments.seconds + _EXTRA_S))
            return await run_all(arguments.seed, arguments.seconds, arguments.agents, **stored_as)

    print(f"# chaos: seed {arguments.seed}, {arguments.agents} agents", flush=True)
    outcomes = asyncio.run(bounded())
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(outcomes)))
    is_broken = any(outcome.broken for outcome in outcomes)
    print(f"\n## All fleets\n\n{as_table(outcomes)}")
    print("\na promise was broken" if is_broken else "\nall promises were kept")
    return int(is_broken)


if __name__ == "__main__":
    sys.exit(main())
