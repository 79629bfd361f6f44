"""The short form of `python -m benchmarks.chaos.watchers`."""

from __future__ import annotations

from benchmarks.chaos import watchers
from benchmarks.chaos.watchers import Outcome, Plan
from benchmarks.rigs.clusters import Cluster

_SHORT = Plan(watchers=60, sessions=15, appends=150, seconds=3.0, pause_s=0.5, seed=7)


def _check(outcome: Outcome) -> None:
    assert outcome.violations == []
    assert outcome.faults.total() >= 2
    assert outcome.appended.total() > 100
    assert outcome.seen == sum(
        outcome.appended[watcher % _SHORT.sessions] for watcher in range(_SHORT.watchers)
    )


async def test_on_one_server() -> None:
    _check(await watchers.run_on_server(_SHORT))


async def test_on_a_cluster(replicated_cluster: Cluster) -> None:
    _check(await watchers.run_on_cluster(_SHORT, replicated_cluster))
