"""Fleets work while servers fail: one round of every fault, without a loss.

`python -m benchmarks.chaos` does the same for longer and measures how long calls take.
"""

from __future__ import annotations

import pytest

from benchmarks.chaos import faults
from benchmarks.chaos.report import Outcome, Plan, as_table, as_text
from benchmarks.chaos.run import ADDRESS_PLANS, CLUSTER_PLANS, SENTINEL_PLANS, run_fleet
from benchmarks.rigs.addresses import MovingAddress
from benchmarks.rigs.clusters import Cluster, SentinelGroup
from benchmarks.rigs.nodes import Group

SEED = 7
_AGENTS = 40
_TIME_LIMIT_S = 90  # several times the usual time

BY_APP = Plan(
    "cluster, all of an app in one slot",
    (faults.RESHARD, faults.CLUSTER_FAILOVER),
    partition_by="app",
)


async def _run(group: Group, plan: Plan) -> Outcome:
    print(f"seed {SEED}")
    outcome = await run_fleet(group, plan, seed=SEED, seconds=0, agents=_AGENTS)
    assert outcome.broken == []
    assert outcome.audit.acknowledged > 10 * _AGENTS
    assert outcome.faults == {fault.name: 1 for fault in plan.faults}
    return outcome


@pytest.mark.timeout(_TIME_LIMIT_S)
@pytest.mark.parametrize("plan", [CLUSTER_PLANS[0], BY_APP], ids=["by_user", "by_app"])
async def test_a_cluster_loses_nothing(replicated_cluster: Cluster, plan: Plan) -> None:
    outcome = await _run(replicated_cluster, plan)
    assert faults.RESHARD.name in as_text(outcome)
    assert "lost 0, duplicated 0, out of order 0" in as_table([outcome])


@pytest.mark.timeout(_TIME_LIMIT_S)
async def test_what_a_replica_confirmed_outlives_the_primary(replicated_cluster: Cluster) -> None:
    await _run(replicated_cluster, CLUSTER_PLANS[2])


@pytest.mark.timeout(_TIME_LIMIT_S)
async def test_a_master_behind_sentinels_loses_nothing(sentinel_group: SentinelGroup) -> None:
    await _run(sentinel_group, SENTINEL_PLANS[0])


@pytest.mark.timeout(_TIME_LIMIT_S)
async def test_an_address_that_moves_to_the_new_primary_loses_nothing() -> None:
    with MovingAddress() as group:
        outcome = await _run(group, ADDRESS_PLANS[0])
    assert outcome.account(faults.MOVE_ADDRESS.name).failures == 0
