"""A cluster that loses nodes: acknowledged writes stay, and calls find the new primaries."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from cluster_support import key_on
from support.events import make_event
from support.services import MODES, make_service
from support.sessions import create, read
from support.waiting import poll_until

from benchmarks.chaos.fleet import Fleet
from benchmarks.rigs.clusters import Cluster, Node
from sessionstore import SessionKey

# How long calls may take after the servers have a new primary. On an idle machine, a second is
# enough.
_NOISE_S = 5.0


async def _wait_until_primary(node: Node) -> float:
    """Wait until a replica has taken over, and return the time."""
    await poll_until(
        lambda: node.info("replication")["role"] == "master", f"{node.name} takes over"
    )
    return time.monotonic()


@pytest.mark.parametrize("mode", MODES)
async def test_calls_succeed_during_a_graceful_failover(
    replicated_cluster: Cluster, mode: str
) -> None:
    cluster = replicated_cluster
    primary = cluster.primaries()[0]
    key = key_on(cluster, primary)
    service = make_service(mode, cluster.url)
    await create(service, key)
    is_over = False

    async def work() -> int:
        number = 0
        while not is_over or number < 10:
            await service.append_event(key, make_event(number))
            number += 1
        return number

    task = asyncio.create_task(work())
    await asyncio.to_thread(cluster.fail_over, cluster.replicas_of(primary)[0])
    is_over = True
    count = await task
    slot = _slot(cluster, key)
    await poll_until(
        lambda: cluster.owner_of(slot) is not primary, "the nodes name the new primary"
    )
    found = await read(service, key)
    assert [event.content for event in found.events] == list(range(count))[-1000:]
    await service.aclose()


def _slot(cluster: Cluster, key: SessionKey) -> int:
    slot = cluster.nodes[0].run("CLUSTER KEYSLOT", f"{{{key.app_name}:{key.user_id}}}")
    assert isinstance(slot, int)
    return slot


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_calls_to_a_primary_that_goes_are_answered_by_its_successor(
    replicated_cluster: Cluster, how: str
) -> None:
    """Async and sync, with calls in flight and calls that start during the failover."""
    cluster = replicated_cluster
    primary, other, _ = cluster.primaries()
    [replica] = cluster.replicas_of(primary)
    key = key_on(cluster, primary)
    elsewhere = key_on(cluster, other)
    services = {mode: make_service(mode, cluster.url, call_timeout=30) for mode in MODES}
    for mode, service in services.items():
        for each in (key, elsewhere):
            await create(service, SessionKey(each.app_name, each.user_id, mode))
    await asyncio.to_thread(replica.run, "PING")

    async def append(mode: str, number: int) -> float:
        mine = SessionKey(key.app_name, key.user_id, mode)
        await services[mode].append_event(mine, make_event(number))
        return time.monotonic()

    for mode in MODES:
        await append(mode, 0)
    getattr(primary, how)()
    early = [asyncio.create_task(append(mode, 1)) for mode in MODES]
    await asyncio.sleep(0.3)
    late = [asyncio.create_task(append(mode, 2)) for mode in MODES]
    taken_over_at = await _wait_until_primary(replica)
    ends = await asyncio.wait_for(asyncio.gather(*early, *late), _NOISE_S)
    assert max(ends) < taken_over_at + _NOISE_S
    for mode, service in services.items():
        found = await read(service, SessionKey(key.app_name, key.user_id, mode))
        assert sorted(event.content for event in found.events) == [0, 1, 2]
        await service.append_event(
            SessionKey(elsewhere.app_name, elsewhere.user_id, mode), make_event(1)
        )
        await service.aclose()


async def test_calls_to_other_primaries_go_on_while_one_is_stopped(
    replicated_cluster: Cluster,
) -> None:
    cluster = replicated_cluster
    primary, other, _ = cluster.primaries()
    services = [make_service(mode, cluster.url) for mode in MODES]
    key, elsewhere = key_on(cluster, other), key_on(cluster, primary)
    longest_s = 0.0
    stuck: list[Any] = []
    await create(services[0], key)
    for service in services:
        for node in cluster.primaries():
            await service.get_user_state("app", key_on(cluster, node).user_id)
    primary.stop()
    try:
        for service in services:
            state = service.get_user_state("app", elsewhere.user_id)
            stuck.append(asyncio.create_task(state))
        end = time.monotonic() + cluster.timeout_s * 0.6
        number = 0
        while time.monotonic() < end:
            for service in services:
                start = time.monotonic()
                await service.append_event(key, make_event(number))
                longest_s = max(longest_s, time.monotonic() - start)
                number += 1
    finally:
        primary.cont()
    await asyncio.gather(*stuck)
    assert longest_s < 0.5
    for service in services:
        await service.aclose()


async def test_a_fleet_goes_on_behind_a_killed_primary(replicated_cluster: Cluster) -> None:
    """No call fails. Lost writes are those that were not on the replica yet."""
    cluster = replicated_cluster
    service = make_service("async", cluster.url, session_event_limit=None)
    fleet = Fleet([service], 40, "kill", 1, pause_s=0.02)
    await fleet.start()
    await asyncio.sleep(0.2)
    primary = cluster.primaries()[0]
    [replica] = cluster.replicas_of(primary)
    primary.kill()
    await _wait_until_primary(replica)
    await asyncio.sleep(0.5)
    await fleet.stop()
    audit = await fleet.audit(service)
    await service.aclose()
    assert sum(account.failures for account in fleet.accounts.values()) == 0
    assert (audit.duplicated, audit.disordered) == (0, 0)
    assert audit.acknowledged > 40
