"""`read_from="replica"`: plain reads go to replicas, everything else to primaries."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from cluster_support import key_on
from support.operations import OPERATIONS
from support.scene import Scene, set_scene, shown
from support.services import MODES, make_service
from support.waiting import DEADLINE_S

from benchmarks.rigs.clusters import Cluster, Node, SentinelGroup
from sessionstore import Event, EventsMissing, SessionKey

KEY = SessionKey("app", "user", "s")
COMMANDS = ("hgetall", "zrange")
READS = [
    each
    for each in OPERATIONS
    if each.kind == "read" and each.method != "ping" and not each.needs_expired and not each.marks
]


def make_reader(mode: str, url: str, **options: Any) -> Any:
    return make_service(mode, url, read_from="replica", refresh_ttl_on_read=False, **options)


def reads_of(node: Node) -> int:
    """The number of commands for reading sessions that a server has received."""
    stats = node.info("commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in COMMANDS)


async def _results(service: Any, scene: Scene) -> dict[str, Any]:
    """The result of every read."""
    return {each.name: shown(await each.run(service, scene)) for each in READS}


@pytest.mark.parametrize("mode", MODES)
async def test_a_cluster(replicated_cluster: Cluster, mode: str) -> None:
    """Replicas answer all reads; primaries answer no read."""
    cluster = replicated_cluster
    primary = cluster.primaries()[0]
    key = key_on(cluster, primary)
    writer = make_service(mode, cluster.url, wait_replicas=(1, 5))
    scene = await set_scene(writer, key=key)
    expected = await _results(writer, scene)
    service = make_reader(mode, cluster.url)
    before = {node: reads_of(node) for node in cluster.nodes}
    for _ in range(5):
        assert await _results(service, scene) == expected
        assert (await service.ping()).role == "replica"
    primaries = cluster.primaries()
    for node in cluster.nodes:
        assert node not in primaries or reads_of(node) == before[node], node
    [replica] = cluster.replicas_of(primary)
    assert reads_of(replica) - before[replica] >= 5 * 6
    await service.append_event(key, Event("user", 3))  # a replica would refuse it
    await writer.aclose()
    await service.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_sentinel(sentinel_group: SentinelGroup, mode: str) -> None:
    """All replicas answer reads; the master answers no read."""
    group = sentinel_group
    writer = make_service(mode, group.url, wait_replicas=(2, 5))
    scene = await set_scene(writer, key=KEY)
    expected = await _results(writer, scene)
    service = make_reader(mode, group.url)
    before = {node: reads_of(node) for node in group.servers}
    for _ in range(20):
        assert await _results(service, scene) == expected
    for node in group.servers:
        new = reads_of(node) - before[node]
        assert (new == 0) == (node is group.master()), node
    await service.append_event(KEY, Event("user", 3))
    await writer.aclose()
    await service.aclose()


@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("mode", MODES)
async def test_reads_do_without_replicas(replicated_cluster: Cluster, mode: str, how: str) -> None:
    """The primary answers while the replica does not."""
    cluster = replicated_cluster
    primary = cluster.primaries()[0]
    key = key_on(cluster, primary)
    writer = make_service(mode, cluster.url, wait_replicas=(1, 5))
    service = make_reader(mode, cluster.url, call_timeout=30)
    scene = await set_scene(writer, key=key)
    expected = await _results(writer, scene)
    assert await _results(service, scene) == expected
    [replica] = cluster.replicas_of(primary)
    getattr(replica, how)()
    for _ in range(10):
        assert await _results(service, scene) == expected
    cluster.revive()
    before = reads_of(replica)
    async with asyncio.timeout(DEADLINE_S):
        while reads_of(replica) == before:
            assert await _results(service, scene) == expected
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
    scene = await set_scene(writer, key=key)
    expected = await _results(writer, scene)
    assert await _results(service, scene) == expected
    cluster.fail_over(replica)
    cluster.wait_until_settled()
    for _ in range(5):
        assert await _results(service, scene) == expected
    await writer.aclose()
    await service.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_events_that_replicas_lack_are_read_from_the_primary(
    sentinel_group: SentinelGroup, mode: str
) -> None:
    """As if the replicas had evicted the key of the events, but not the header."""
    group = sentinel_group
    master = group.master()
    replicas = [node for node in group.servers if node is not master]
    writer = make_service(mode, group.url, wait_replicas=(2, 5))
    scene = await set_scene(writer, key=KEY)
    expected = await _results(writer, scene)
    service = make_reader(mode, group.url)
    assert await _results(service, scene) == expected
    try:
        for node in replicas:
            node.run("CONFIG SET", "replica-read-only", "no")
            for name in ("s", "other"):
                assert node.run("DEL", f"events:{{app:user}}:{name}") == 1
        before = {node: reads_of(node) for node in group.servers}
        for _ in range(5):
            assert await _results(service, scene) == expected
        for node in group.servers:
            assert reads_of(node) > before[node], node
        # Events that the primary lacks, too, are missing.
        assert master.run("DEL", "events:{app:user}:s") == 1
        with pytest.raises(EventsMissing, match="0 of 3 events"):
            await service.get_events(KEY)
    finally:
        for node in replicas:
            node.run("CONFIG SET", "replica-read-only", "yes")
    await writer.aclose()
    await service.aclose()
