"""The simulated cluster: the queue against queueing theory, the spread, and repeatability."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from benchmarks.scale import cluster_model, simulation
from benchmarks.scale.cluster_model import (
    Kinds,
    Pause,
    Shape,
    agents_of_users,
    serve,
    serve_agents,
    shares_of_primaries,
)
from sessionstore.cli.sizing.model import SHIPPED, load_constants

CONSTANTS = load_constants(SHIPPED)
SETTING = simulation.Setting(
    agents=6000,
    primaries=3,
    users=2000,
    turn_seconds=1.5,
    seconds=0.4,
    processes=20,
    max_age_s=1.0,
    seed=1,
)
LOADS = [0.5, 1.0]


@cache
def simulated() -> dict[str, Any]:
    return simulation.simulate(SETTING, CONSTANTS, LOADS)


@pytest.mark.parametrize("utilization", [0.3, 0.6, 0.8])
def test_the_simulated_queue_agrees_with_queueing_theory(utilization: float) -> None:
    # M/D/1: Poisson arrivals, constant service time of 1 ms.
    service_s = 0.001
    found = serve(
        [utilization / service_s],
        [lambda: (service_s, service_s)],
        60.0,
        random.Random(1),
    )
    expected = service_s * (1 + utilization / (2 * (1 - utilization)))
    assert mean(found.times[0]) == pytest.approx(expected, rel=0.1)
    assert found.utilization == pytest.approx(utilization, rel=0.02)


def test_a_call_that_finds_the_server_idle_takes_longer() -> None:
    # Utilization u solves u = rate * (busy + (alone - busy) * (1 - u)).
    found = serve([1000], [lambda: (0.0005, 0.0001)], 100.0, random.Random(2))
    assert found.utilization == pytest.approx(0.5 / 1.4, rel=0.02)


@pytest.mark.parametrize("name", simulation.DISTRIBUTIONS)
def test_all_agents_are_on_some_primary(name: str) -> None:
    weights = agents_of_users(name, 2000, 10_000, random.Random(3))
    assert len(weights) == 2000
    shares = shares_of_primaries(weights, 5)
    assert sum(shares) == pytest.approx(10_000)
    assert min(shares) > 0


def test_few_large_users_make_a_primary_busier() -> None:
    largest = {
        name: max(shares_of_primaries(agents_of_users(name, 5000, 10_000, random.Random(4)), 5))
        for name in ("even", "zipf")
    }
    assert largest["even"] < 1.1 * 2000 < largest["zipf"]


def test_no_call_is_answered_while_its_primary_is_away() -> None:
    pause = Pause(begin=1.0, seconds=2.0, return_seconds=0.5)
    rng = random.Random(5)
    shape = Shape()
    kinds = Kinds(CONSTANTS, shape, rng)
    found = serve_agents(500, 4.5, kinds, shape, [pause], 5.0, rng)
    during = [made + took for made, took in found if 1 <= made < 3]
    assert len(during) > 100
    assert min(during) >= 3.0
    assert max(during) < 3.6
    # An agent has one call under way.
    assert len(during) <= 500
    assert max(took for made, took in found if made < 0.9 or made > 4) < 0.1


def test_the_same_seed_gives_the_same_figures() -> None:
    assert simulation.simulate(SETTING, CONSTANTS, LOADS) == simulated()
    other = simulation.Setting(**{**vars(SETTING), "seed": 2})
    assert simulation.simulate(other, CONSTANTS, LOADS) != simulated()


def test_a_copy_of_the_app_tier_takes_load_off_its_primary() -> None:
    found = simulated()["app tier"]
    read, cached = found["read, load 1"], found["cached, load 1"]
    assert read["utilization, busiest"] > 1.1 * cached["utilization, busiest"]
    assert read["utilization, mean"] > cached["utilization, mean"]
    assert cluster_model.primary_of_app(3) in range(3)


def test_the_tables_and_the_picture_are_made(tmp_path: Path) -> None:
    found = simulated()
    outcome = simulation.outcome_of(found, [], CONSTANTS)
    assert len(outcome.tables) == 3
    assert all(len(row) == len(each.head) for each in outcome.tables for row in each.rows)
    simulation.picture(found, LOADS, tmp_path)
    assert "a million agents" in (tmp_path / "simulation.svg").read_text("utf-8")
