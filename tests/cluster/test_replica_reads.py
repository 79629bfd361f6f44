"""`read_from="replica"`: plain reads go to replicas, everything else to primaries."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from cluster_support import DEADLINE_S, MODES, create, key_on, make_event, make_service, read

from benchmarks.rigs.clusters import Cluster, Node, SentinelGroup
from sessionstore import Event, SessionKey

KEY = SessionKey("app", "user", "s")
READS = ("hgetall", "zrange")


def make_reader(mode: str, url: str, **options: Any) -> Any:
    return make_service(mode, url, read_from="replica", refresh_ttl_on_read=False, **options)


def reads_of(node: Node) -> int:
    """Commands that read sessions, counted by the server."""
    stats = node.info("commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in READS)


async def _read_all(service: Any, key: SessionKey) -> None:
    """Every plain read, each of which has to see what was written."""
    ids = {"app_name": key.app_name, "user_id": key.user_id}
    found = await read(service, key)
    assert [event.content for event in found.events] == [1, 2]
    assert found.state == {"a": 1, "user:b": 2, "app:c": 3}
    [listed] = await service.list_sessions(**ids)
    assert listed.state == found.state
    assert len((await service.get_events(key, limit=5)).events) == 2
    assert await service.get_user_state(**ids) == {"b": 2}
    assert await service.get_app_state(key.app_name) == {"c": 3}


@pytest.mark.parametrize("mode", MODES)
async def test_a_cluster(replicated_cluster: Cluster, mode: str) -> None:
    """Replicas answer, and primaries are spared."""
    cluster = replicated_cluster
    primary = cluster.primaries()[0]
    key = key_on(cluster, primary)
    writer = make_service(mode, cluster.url, wait_replicas=(1, 5))
    await create(writer, key, state={"a": 1, "user:b": 2, "app:c": 3})
    await writer.append_events(key, [make_event(1), make_event(2)])
    service = make_reader(mode, cluster.url)
    before = {node: reads_of(node) for node in cluster.nodes}
    for _ in range(5):
        await _read_all(service, key)
    primaries = cluster.primaries()
    for node in cluster.nodes:
        assert node not in primaries or reads_of(node) == before[node], node
    [replica] = cluster.replicas_of(primary)
    assert reads_of(replica) - before[replica] >= 5 * 6
    await service.append_event(key, Event("user", 3))  # which a replica would refuse
    await writer.aclose()
    await service.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_sentinel(sentinel_group: SentinelGroup, mode: str) -> None:
    """All replicas answer, and the master is spared."""
    group = sentinel_group
    writer = make_service(mode, group.url, wait_replicas=(2, 5))
    await create(writer, KEY, state={"a": 1, "user:b": 2, "app:c": 3})
    await writer.append_events(KEY, [make_event(1), make_event(2)])
    service = make_reader(mode, group.url)
    before = {node: reads_of(node) for node in group.servers}
    for _ in range(20):
        await _read_all(service, KEY)
    for node in group.servers:
        new = reads_of(node) - before[node]
        assert (new == 0) == (node is group.master()), node
    await service.append_event(KEY, Event("user", 3))
    await writer.aclose()
    await service.aclose()


@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("mode", MODES)
async def test_reads_do_without_replicas(replicated_cluster: Cluster, mode: str, how: str) -> None:
    """A replica that is gone is left out; a primary answers then."""
    cluster = replicated_cluster
    primary = cluster.primaries()[0]
    key = key_on(cluster, primary)
    writer = make_service(mode, cluster.url, wait_replicas=(1, 5))
    service = make_reader(mode, cluster.url, call_timeout=30)
    await create(writer, key, state={"a": 1, "user:b": 2, "app:c": 3})
    await writer.append_events(key, [make_event(1), make_event(2)])
    await _read_all(service, key)
    [replica] = cluster.replicas_of(primary)
    getattr(replica, how)()
    for _ in range(10):
        await _read_all(service, key)
    cluster.revive()
    before = reads_of(replica)
    async with asyncio.timeout(DEADLINE_S):
        while reads_of(replica) == before:
            await _read_all(service, key)
    await writer.aclose()
    await service.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_reads_follow_a_failover(replicated_cluster: Cluster, mode: str) -> None:
    cluster = replicated_cluster
    primary = cluster.primaries()[0]
    [replica] = cluster.replicas_of(primary)
    key = key_on(cluster, primary)
    writer = make_service(mode, cluster.url, wait_replicas=(1, 5))
    service = make_reader(mode, cluster.url)
    await create(writer, key, state={"a": 1, "user:b": 2, "app:c": 3})
    await writer.append_events(key, [make_event(1), make_event(2)])
    await _read_all(service, key)
    cluster.fail_over(replica)
    cluster.wait_until_settled()
    for _ in range(5):
        await _read_all(service, key)
    await writer.aclose()
    await service.aclose()
