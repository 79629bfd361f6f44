"""Faults: what happens to servers while agents work.

A fault is a function that returns when the servers have recovered. It takes its random choices from
`scene.random`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from redis.crc import key_slot

from sessionstore import SessionKey

from ..rigs.addresses import MovingAddress
from ..rigs.clusters import Cluster, SentinelGroup
from ..rigs.nodes import Node, wait_until

_TAKEOVER_LIMIT_S = 30.0
_RECONNECT_S = 0.1  # between two rounds of a fault, so that agents reconnect and continue
_LONGEST_MOVE_S = 0.5
_SLOTS_PER_RESHARD = 12


@dataclass(frozen=True)
class Takeover:
    """One server took over from another.

    Attributes:
        begun: just before the fault, on the clock `time.monotonic`.
        done: when clients could find the new server, on the same clock.
    """

    begun: float
    done: float


@dataclass(frozen=True)
class Scene:
    """What a fault works with.

    Attributes:
        group: the servers.
        keys: the sessions of the agents.
        random: the source of random choices.
        takeovers: the faults add theirs.
    """

    group: Any
    keys: Sequence[SessionKey]
    random: random.Random
    takeovers: list[Takeover] = field(default_factory=list)


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: its name in tables.
        run: causes the fault; returns when the servers have recovered.
        may_fail: errors that calls may raise. () = calls may only become slower.
        is_failover: another server takes over.
    """

    name: str
    run: Callable[[Scene], None]
    may_fail: tuple[str, ...] = ()
    is_failover: bool = False


@contextmanager
def _takeover(scene: Scene, is_done: Callable[[], bool]) -> Iterator[None]:
    """Record the takeover that the body causes; exits when clients can find the new server."""

    def watch() -> float:
        wait_until(is_done, "another server takes over", _TAKEOVER_LIMIT_S)
        return time.monotonic()

    begun = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(watch)
        yield
        scene.takeovers.append(Takeover(begun, done.result()))


# -- all ----------------------------------------------------------------------------------------


def reset_connections(scene: Scene) -> None:
    """Close all client connections, several times."""
    for _ in range(5):
        for node in scene.group.primaries():
            node.run("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
        time.sleep(_RECONNECT_S)


def flush_scripts(scene: Scene) -> None:
    """Remove all scripts from all servers, several times."""
    for _ in range(5):
        for node in scene.group.primaries():
            node.run("SCRIPT FLUSH")
        time.sleep(_RECONNECT_S)


def pause(scene: Scene) -> None:
    """Stop a primary, and continue it before the others act."""
    node = scene.random.choice(scene.group.primaries())
    node.stop()
    time.sleep(scene.group.timeout_s * 0.4)  # well below the time after which the others act
    node.cont()
    scene.group.wait_until_settled()


def fill_memory(scene: Scene) -> None:
    """Make all primaries run out of memory for a moment."""
    nodes = scene.group.primaries()
    for node in nodes:
        node.run("CONFIG SET", "maxmemory", node.info("memory")["used_memory"] // 2)
    time.sleep(3 * _RECONNECT_S)
    for node in nodes:
        node.run("CONFIG SET", "maxmemory", 0)


# -- clusters ------------------------------------------------------------------------------------


def fail_over_gracefully(scene: Scene) -> None:
    """CLUSTER FAILOVER of every primary."""
    cluster: Cluster = scene.group
    for primary in cluster.primaries():
        replica = scene.random.choice(cluster.replicas_of(primary))
        with _takeover(scene, _promotion(replica)):
            cluster.fail_over(replica)
        cluster.wait_until_settled()


def reshard(scene: Scene) -> None:
    """Move the slots with most keys to other primaries, key by key, and back."""
    cluster: Cluster = scene.group
    slots = {key_slot(f"{{{key.app_name}:{key.user_id}}}".encode()) for key in scene.keys}
    slots |= {key_slot(f"{{{key.app_name}}}".encode()) for key in scene.keys}
    owners = cluster.owners()
    sizes = {slot: owners[slot].run("CLUSTER COUNTKEYSINSLOT", slot) for slot in slots}
    busiest = sorted(slots, key=lambda slot: (-sizes[slot], slot))[:_SLOTS_PER_RESHARD]
    for slot in busiest:
        others = [node for node in cluster.primaries() if node is not owners[slot]]
        cluster.migrate(slot, scene.random.choice(others), batch=1)
    for slot in busiest:
        cluster.migrate(slot, owners[slot], batch=1)
    cluster.wait_until_settled()


def kill_primary(scene: Scene) -> None:
    """kill -9 a primary; restart it when its replica has taken over."""
    cluster: Cluster = scene.group
    primary = scene.random.choice(cluster.primaries())
    [replica] = cluster.replicas_of(primary)
    with _takeover(scene, _promotion(replica)):
        primary.kill()
    primary.restart()
    cluster.wait_until_settled()


def stop_primary(scene: Scene) -> None:
    """Stop a primary, and continue it when its replica has taken over."""
    cluster: Cluster = scene.group
    primary = scene.random.choice(cluster.primaries())
    [replica] = cluster.replicas_of(primary)
    try:
        with _takeover(scene, _promotion(replica)):
            primary.stop()
    finally:
        primary.cont()
    cluster.wait_until_settled()


def _promotion(replica: Node) -> Callable[[], bool]:
    return lambda: bool(replica.info("replication")["role"] == "master")


# -- Sentinels -----------------------------------------------------------------------------------


def hand_over(scene: Scene) -> None:
    """A failover without loss: writes are paused meanwhile."""
    group: SentinelGroup = scene.group
    with _takeover(scene, _naming(group)):
        group.hand_over()
    group.wait_until_settled()


def sentinel_failover(scene: Scene) -> None:
    """SENTINEL FAILOVER. The old master accepts writes for a while."""
    group: SentinelGroup = scene.group
    with _takeover(scene, _naming(group)):
        group.fail_over()
    group.wait_until_settled(2 * _TAKEOVER_LIMIT_S)


def kill_master(scene: Scene) -> None:
    """kill -9 the master; restart it when another has taken over."""
    group: SentinelGroup = scene.group
    master = group.master()
    with _takeover(scene, _naming(group)):
        master.kill()
        group.wait_for_other_master(master, _TAKEOVER_LIMIT_S)
    master.restart()
    group.wait_until_settled()


def stop_master(scene: Scene) -> None:
    """Stop the master, and continue it when another has taken over."""
    group: SentinelGroup = scene.group
    master = group.master()
    try:
        with _takeover(scene, _naming(group)):
            master.stop()
            group.wait_for_other_master(master, _TAKEOVER_LIMIT_S)
    finally:
        master.cont()
    group.wait_until_settled()


def _naming(group: SentinelGroup) -> Callable[[], bool]:
    """Whether a Sentinel names a new master. Clients cannot know it earlier."""
    old = group.master()
    return lambda: any(group.named_by(node) is not old for node in group.sentinels)


# -- one address ---------------------------------------------------------------------------------


def move_address(scene: Scene) -> None:
    """Let primary and replica change their roles, twice. The address follows a moment later."""
    group: MovingAddress = scene.group
    for _ in range(2):
        new = group.replica
        with _takeover(scene, _leading_to(new, group)):
            group.demote()
            time.sleep(scene.random.uniform(0, _LONGEST_MOVE_S))
            group.lead_to(new)
        group.wait_until_settled()
        time.sleep(_RECONNECT_S)


def _leading_to(node: Node, group: MovingAddress) -> Callable[[], bool]:
    return lambda: group.target is node


_GONE = ("BackendUnavailable", "BackendTimeout")

RESETS = Fault("connection reset", reset_connections)
SCRIPT_FLUSH = Fault("SCRIPT FLUSH", flush_scripts)
PAUSE = Fault("SIGSTOP/SIGCONT", pause)
OUT_OF_MEMORY = Fault("out of memory", fill_memory, may_fail=("BackendRejected",))
RESHARD = Fault("live reshard", reshard)
CLUSTER_FAILOVER = Fault("graceful failover", fail_over_gracefully, is_failover=True)
MOVE_ADDRESS = Fault("READONLY until the address moves", move_address, is_failover=True)
HAND_OVER = Fault("graceful failover", hand_over, is_failover=True)
KILL_PRIMARY = Fault("kill -9", kill_primary, _GONE, is_failover=True)
STOP_PRIMARY = Fault("SIGSTOP until failover", stop_primary, _GONE, is_failover=True)
KILL_MASTER = Fault("kill -9", kill_master, _GONE, is_failover=True)
STOP_MASTER = Fault("SIGSTOP until failover", stop_master, _GONE, is_failover=True)
SENTINEL_FAILOVER = Fault("SENTINEL FAILOVER", sentinel_failover, _GONE, is_failover=True)
