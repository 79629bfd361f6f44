"""Users spread evenly over the primaries, and the client computes slots as the servers do."""

from __future__ import annotations

import random

import pytest

from benchmarks.bench_routing import shares
from benchmarks.rigs.clusters import Cluster
from sessionstore.keys import Keys
from sessionstore.transport.topology import slot_of_key


@pytest.mark.parametrize("seed", range(5))
def test_each_of_three_primaries_holds_a_third_of_the_users(seed: int) -> None:
    held = shares(10_000, 3, seed)
    assert sum(held) == pytest.approx(1)
    assert held == pytest.approx([1 / 3] * 3, rel=0.05)


def test_the_servers_count_slots_in_the_same_way(cluster: Cluster) -> None:
    chosen = random.Random(1)
    names = ["a", "a:b", "a{b}c", "{}", "\u00e9", "x" * 256]
    names += [f"user-{chosen.getrandbits(64):x}" for _ in range(100)]
    for partition_by in ("user", "app"):
        keys = Keys("prefix:", partition_by)
        for name in names:
            for key in (*keys.session(name, name, "s"), keys.app(name)):
                assert slot_of_key(key) == cluster.nodes[0].run("CLUSTER KEYSLOT", key)
