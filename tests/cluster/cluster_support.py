"""Shared by the cluster tests: users by slot and by node."""

from __future__ import annotations

from redis.crc import key_slot

from benchmarks.rigs.clusters import Cluster, Node
from sessionstore import SessionKey


def slot_of(key: SessionKey) -> int:
    """The slot of a user's keys with partition_by="user"."""
    slot: int = key_slot(f"{{{key.app_name}:{key.user_id}}}".encode())
    return slot


def key_on(cluster: Cluster, node: Node, app_name: str = "app") -> SessionKey:
    """A session whose keys a primary holds; the same one every time."""
    owners = cluster.owners()
    return next(
        key
        for number in range(10_000)
        if owners[slot_of(key := SessionKey(app_name, f"user-{number}", "s"))] is node
    )


def other_primary(cluster: Cluster, node: Node) -> Node:
    """A primary that is not this one."""
    return next(each for each in cluster.primaries() if each is not node)
