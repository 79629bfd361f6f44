"""What is done to clusters and Sentinels while agents work: each fault, from beginning to end.

A fault is a plain function that returns when the servers have recovered from it. What it chooses,
it chooses by the random numbers that it is given.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.crc import key_slot

from sessionstore import SessionKey

from .clusters import Cluster, SentinelGroup
from .nodes import Group, Node, wait_until

_TAKEOVER_LIMIT_S = 30.0
_SLOTS_AT_ONCE = 12  # slots that one reshard moves, there and back


@dataclass(frozen=True)
class Scene:
    """What a fault works on.

    Attributes:
        group: the servers.
        keys: the sessions of the agents.
        random: what choices are made by.
        takeovers: when another server had taken over, on the clock `time.monotonic`.
    """

    group: Any
    keys: Sequence[SessionKey]
    random: random.Random
    takeovers: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Fault:
    """Something that is done to servers.

    Attributes:
        name: what a reader is told.
        run: does it; returns when the servers have recovered.
        is_safe: no acknowledged append may be lost by it.
        may_fail: calls may fail by it, and not only become slower.
        is_failover: another server takes over; the longest stall is compared with the time after
            which the servers themselves notice.
    """

    name: str
    run: Callable[[Scene], None]
    is_safe: bool = True
    may_fail: bool = False
    is_failover: bool = False


def _primaries(group: Group) -> list[Node]:
    if isinstance(group, Cluster):
        return group.primaries()
    assert isinstance(group, SentinelGroup)
    return [group.master()]


def timeout_s(group: Group) -> float:
    """Silence after which the servers themselves give a node up."""
    if isinstance(group, Cluster):
        return group.node_timeout_ms / 1000
    assert isinstance(group, SentinelGroup)
    return group.down_after_ms / 1000


# -- for both ------------------------------------------------------------------------------------


def reset_connections(scene: Scene) -> None:
    """Close all connections of clients, several times over."""
    for _ in range(5):
        for node in _primaries(scene.group):
            node.run("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
        time.sleep(0.1)


def flush_scripts(scene: Scene) -> None:
    """Let all servers forget all scripts, several times over."""
    for _ in range(5):
        for node in _primaries(scene.group):
            node.run("SCRIPT FLUSH")
        time.sleep(0.1)


def pause(scene: Scene) -> None:
    """Stop a primary and continue it before the others give it up."""
    node = scene.random.choice(_primaries(scene.group))
    node.stop()
    time.sleep(timeout_s(scene.group) * 0.4)
    node.cont()
    scene.group.wait_until_settled()


def fill_memory(scene: Scene) -> None:
    """Let all primaries be out of memory for a moment."""
    nodes = _primaries(scene.group)
    for node in nodes:
        node.run("CONFIG SET", "maxmemory", node.info("memory")["used_memory"] // 2)
    time.sleep(0.3)
    for node in nodes:
        node.run("CONFIG SET", "maxmemory", 0)


# -- clusters ------------------------------------------------------------------------------------


def fail_over_gracefully(scene: Scene) -> None:
    """CLUSTER FAILOVER of every primary."""
    cluster: Cluster = scene.group
    for primary in cluster.primaries():
        cluster.fail_over(scene.random.choice(cluster.replicas_of(primary)))
        scene.takeovers.append(time.monotonic())
        cluster.wait_until_settled()


def reshard(scene: Scene) -> None:
    """Move the slots with most keys to other primaries, and back."""
    cluster: Cluster = scene.group
    slots = {key_slot(f"{{{key.app_name}:{key.user_id}}}".encode()) for key in scene.keys}
    slots |= {key_slot(f"{{{key.app_name}}}".encode()) for key in scene.keys}
    owners = cluster.owners()
    sizes = {slot: owners[slot].run("CLUSTER COUNTKEYSINSLOT", slot) for slot in slots}
    busiest = sorted(slots, key=lambda slot: (-sizes[slot], slot))[:_SLOTS_AT_ONCE]
    for slot in busiest:
        others = [node for node in cluster.primaries() if node is not owners[slot]]
        cluster.migrate(slot, scene.random.choice(others))
    for slot in busiest:
        cluster.migrate(slot, owners[slot])
    cluster.wait_until_settled()


def kill_primary(scene: Scene) -> None:
    """kill -9 a primary; start it again when its replica has taken over."""
    cluster: Cluster = scene.group
    primary = scene.random.choice(cluster.primaries())
    primary.kill()
    _wait_for_successor(scene, primary)
    primary.start()
    cluster.wait_until_settled()


def stop_primary(scene: Scene) -> None:
    """Stop a primary, and continue it when its replica has taken over."""
    cluster: Cluster = scene.group
    primary = scene.random.choice(cluster.primaries())
    primary.stop()
    try:
        _wait_for_successor(scene, primary)
    finally:
        primary.cont()
    cluster.wait_until_settled()


def _wait_for_successor(scene: Scene, primary: Node) -> None:
    others = [node for node in scene.group.nodes if node is not primary]
    replica = next(
        node for node in others if node.info("replication").get("master_port") == primary.port
    )
    wait_until(
        lambda: replica.info("replication")["role"] == "master",
        f"{replica.name} takes over",
        _TAKEOVER_LIMIT_S,
    )
    scene.takeovers.append(time.monotonic())


# -- Sentinels -----------------------------------------------------------------------------------


def hand_over(scene: Scene) -> None:
    """Hand the master's work over with writes held back meanwhile."""
    scene.group.hand_over()
    scene.takeovers.append(time.monotonic())
    scene.group.wait_until_settled()


def sentinel_failover(scene: Scene) -> None:
    """SENTINEL FAILOVER, which leaves the old master taking writes for a while."""
    scene.group.fail_over()
    scene.takeovers.append(time.monotonic())
    scene.group.wait_until_settled(2 * _TAKEOVER_LIMIT_S)


def kill_master(scene: Scene) -> None:
    """kill -9 the master; start it again when another has taken over."""
    group: SentinelGroup = scene.group
    master = group.master()
    master.kill()
    group.wait_for_other_master(master, _TAKEOVER_LIMIT_S)
    scene.takeovers.append(time.monotonic())
    master.start()
    group.wait_until_settled()


def stop_master(scene: Scene) -> None:
    """Stop the master, and continue it when another has taken over."""
    group: SentinelGroup = scene.group
    master = group.master()
    master.stop()
    try:
        group.wait_for_other_master(master, _TAKEOVER_LIMIT_S)
        scene.takeovers.append(time.monotonic())
    finally:
        master.cont()
    group.wait_until_settled()


_FOR_BOTH = (
    Fault("connection reset", reset_connections),
    Fault("SCRIPT FLUSH", flush_scripts),
    Fault("SIGSTOP, SIGCONT", pause),
    Fault("out of memory", fill_memory, may_fail=True),
)

SAFE_CLUSTER_FAULTS = (
    *_FOR_BOTH,
    Fault("live reshard", reshard),
    Fault("graceful failover", fail_over_gracefully, is_failover=True),
)
UNSAFE_CLUSTER_FAULTS = (
    Fault("kill -9", kill_primary, is_safe=False, may_fail=True, is_failover=True),
    Fault("SIGSTOP until failover", stop_primary, is_safe=False, may_fail=True, is_failover=True),
)
SAFE_SENTINEL_FAULTS = (*_FOR_BOTH, Fault("graceful failover", hand_over, is_failover=True))
UNSAFE_SENTINEL_FAULTS = (
    Fault("kill -9", kill_master, is_safe=False, may_fail=True, is_failover=True),
    Fault("SIGSTOP until failover", stop_master, is_safe=False, may_fail=True, is_failover=True),
    Fault("SENTINEL FAILOVER", sentinel_failover, is_safe=False, may_fail=True, is_failover=True),
)
