"""Real clusters, and real masters behind Sentinels, for tests and benchmarks.

    with Cluster(primaries=3, replicas=3) as cluster:
        service = RedisSessionService(cluster.url)

The nodes are plain processes on loopback ports. They are configured with the servers' own
commands, so neither Docker nor command-line tools are needed. Every wait is for a condition and
has a time limit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import redis

from sessionstore.embedded import ServerBinary

from .nodes import CONFIG, HOST, SETTLE_TIMEOUT_S, Group, Node, Unsettled, wait_until

__all__ = ["Cluster", "Node", "SentinelGroup", "Unsettled", "wait_until"]

SLOTS = 16_384


class Cluster(Group):
    """A cluster whose primaries hold equal parts of the slots.

    Args:
        primaries: nodes that hold slots.
        replicas: further nodes, spread over the primaries.
        config: settings of all nodes, as `redis.conf` spells them.
        users: users in addition to the default one: name and rules, as ACL SETUSER takes them.
        node_timeout_ms: how long a node may be silent before it counts as failed.
        server: the binary to run. None = the bundled server.
    """

    def __init__(
        self,
        primaries: int = 3,
        replicas: int = 3,
        config: Mapping[str, str] | None = None,
        *,
        node_timeout_ms: int = 1500,
        users: Sequence[Sequence[str]] = (),
        server: ServerBinary | None = None,
    ) -> None:
        super().__init__(server, users)
        self.timeout_s = node_timeout_ms / 1000
        self._primary_count = primaries
        self._replica_count = replicas
        self._config = {
            **CONFIG,
            "cluster-enabled": "yes",
            "cluster-node-timeout": str(node_timeout_ms),
            "cluster-allow-replica-migration": "no",
            **(config or {}),
        }

    @property
    def url(self) -> str:
        """The URL that names all nodes."""
        return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in self.nodes)

    def _form(self) -> None:
        count = self._primary_count + self._replica_count
        names = [f"node-{number}" for number in range(count)]
        nodes = self._add(names, self._config)
        for number, node in enumerate(nodes):
            node.wait_for_answer()
            node.id = node.run("CLUSTER MYID")
            node.run("CLUSTER SET-CONFIG-EPOCH", number + 1)
        bounds = [SLOTS * part // self._primary_count for part in range(self._primary_count + 1)]
        primaries, replicas = nodes[: self._primary_count], nodes[self._primary_count :]
        for node, first, behind in zip(primaries, bounds, bounds[1:], strict=False):
            node.run("CLUSTER ADDSLOTSRANGE", first, behind - 1)
        for node in nodes:
            for other in nodes:
                if other is not node:
                    node.run("CLUSTER MEET", HOST, other.port, other.bus_port)
        for node in replicas:
            wait_until(partial(self._knows_all, node), f"{node.name} knows the others")
        for number, node in enumerate(replicas):
            node.run("CLUSTER REPLICATE", primaries[number % len(primaries)].id)
        self.wait_until_settled()

    def _knows_all(self, node: Node) -> bool:
        return _map_of(node).keys() >= {each.id for each in self.nodes}

    # -- roles ---------------------------------------------------------------------------------

    def node_of(self, node_id: str) -> Node:
        """The node with this id."""
        return next(node for node in self.nodes if node.id == node_id)

    def primaries(self) -> list[Node]:
        """The nodes that hold slots, according to the first node that answers."""
        found = self._roles()[0]
        return [node for node in self.nodes if node in found]

    def replicas_of(self, primary: Node) -> list[Node]:
        """The replicas of a primary."""
        return self._roles()[0].get(primary, [])

    def owners(self) -> dict[int, Node]:
        """The primary of every slot."""
        return self._roles()[1]

    def owner_of(self, slot: int) -> Node:
        """The primary of a slot."""
        return self.owners()[slot]

    def _roles(self) -> tuple[dict[Node, list[Node]], dict[int, Node]]:
        rows = wait_until(self._any_map, "a node answers CLUSTER NODES")
        replicas: dict[Node, list[Node]] = {}
        slots: dict[int, Node] = {}
        for node_id, row in rows.items():
            if row["slots"]:
                node = self.node_of(node_id)
                replicas.setdefault(node, [])
                for first, last in row["slots"]:
                    slots.update(dict.fromkeys(range(first, last + 1), node))
        for node_id, row in rows.items():
            if row["primary"] != "-" and self.node_of(row["primary"]) in replicas:
                replicas[self.node_of(row["primary"])].append(self.node_of(node_id))
        return replicas, slots

    def _any_map(self) -> dict[str, Any]:
        for node in self.nodes:
            if node.is_running:
                try:
                    return _map_of(node)
                except (redis.RedisError, OSError):
                    continue
        return {}

    # -- settling ------------------------------------------------------------------------------

    def _repair(self) -> None:
        """Finish interrupted migrations: move the keys that are left to the importing node."""
        for node in self.nodes:
            node.wait_for_answer()
        for slot in sorted({slot for node in self.nodes for slot in _moving_slots(node)}):
            targets = [node for node in self.nodes if _moving_slots(node).get(slot) == "importing"]
            source = self.owner_of(slot)
            for target in targets:
                if target is not source:
                    self.move_keys(slot, source, target)
                    self.end_migration(slot, source, target)
            for node in self.primaries():
                node.run("CLUSTER SETSLOT", slot, "STABLE")

    def _is_settled(self) -> bool:
        maps = []
        for node in self.nodes:
            rows = _map_of(node)
            state = node.run("CLUSTER INFO")["cluster_state"]
            if state != "ok" or len(rows) != len(self.nodes):
                return False
            if any(row["flags"] & _TROUBLE or row["moving"] for row in rows.values()):
                return False
            replication = node.info("replication")
            if replication.get("master_link_status", "up") != "up":
                return False
            if replication.get("master_sync_in_progress", 0):
                return False
            maps.append({key: (row["primary"], row["slots"]) for key, row in rows.items()})
        if any(other != maps[0] for other in maps):
            return False
        replicas, slots = self._roles()
        return len(slots) == SLOTS and sum(map(len, replicas.values())) == self._replica_count

    # -- faults --------------------------------------------------------------------------------

    def fail_over(self, replica: Node) -> None:
        """Let a replica take over from its primary without loss; returns when it has."""
        replica.run("CLUSTER FAILOVER")
        wait_until(
            lambda: replica.info("replication")["role"] == "master",
            f"{replica.name} becomes a primary",
        )

    def flush(self) -> None:
        """Remove all keys."""
        for node in self.primaries():
            node.run("FLUSHALL", "SYNC")

    def begin_migration(self, slot: int, target: Node) -> Node:
        """Start to move a slot to another primary. Returns the primary that it leaves."""
        source = self.owner_of(slot)
        target.run("CLUSTER SETSLOT", slot, "IMPORTING", source.id)
        source.run("CLUSTER SETSLOT", slot, "MIGRATING", target.id)
        return source

    def move_keys(
        self,
        slot: int,
        source: Node,
        target: Node,
        keys: Sequence[bytes | str] | None = None,
        batch: int = 10,
    ) -> int:
        """Move the given keys of a migrating slot, or all, in batches. Returns how many."""
        moved = 0
        while True:
            found = keys or source.run("CLUSTER GETKEYSINSLOT", slot, batch)
            if found:
                source.run("MIGRATE", HOST, target.port, "", 0, 2000, "KEYS", *found)
                moved += len(found)
            if keys or not found:
                return moved

    def end_migration(self, slot: int, source: Node, target: Node) -> None:
        """Assign a migrating slot, whose keys have all moved, to the target on all primaries.

        The target must know all epochs. If the source had a later epoch, from another slot that
        it received, its next message would take the slot back and the keys would be deleted.
        """
        primaries = self.primaries()
        wait_until(partial(self._know_epochs, primaries), "all primaries know all epochs")
        others = [node for node in primaries if node not in (source, target)]
        for node in (target, source, *others):
            node.run("CLUSTER SETSLOT", slot, "NODE", target.id)

    @staticmethod
    def _know_epochs(nodes: Sequence[Node]) -> bool:
        return len({node.run("CLUSTER INFO")["cluster_current_epoch"] for node in nodes}) == 1

    def migrate(self, slot: int, target: Node, batch: int = 10) -> int:
        """Move a slot with all its keys, as `--cluster reshard` does. Returns how many keys."""
        source = self.begin_migration(slot, target)
        moved = self.move_keys(slot, source, target, batch=batch)
        self.end_migration(slot, source, target)
        return moved


class SentinelGroup(Group):
    """A master and its replicas, watched by Sentinels.

    Args:
        replicas: replicas of the master.
        sentinels: number of Sentinels. More than half of them must agree on a failover.
        config: settings of master and replicas, as `redis.conf` spells them.
        users: users in addition to the default one: name and rules, as ACL SETUSER takes them.
        down_after_ms: how long the master may be silent before it counts as down.
        master_name: the Sentinels' name for the master.
        server: the binary to run. None = the bundled server.
    """

    def __init__(
        self,
        replicas: int = 2,
        sentinels: int = 3,
        config: Mapping[str, str] | None = None,
        *,
        down_after_ms: int = 1500,
        master_name: str = "agents",
        users: Sequence[Sequence[str]] = (),
        server: ServerBinary | None = None,
    ) -> None:
        super().__init__(server, users)
        self.timeout_s = down_after_ms / 1000
        self.master_name = master_name
        self.sentinels: list[Node] = []
        self._replica_count = replicas
        self._sentinel_count = sentinels
        self._config = {**CONFIG, **(config or {})}

    @property
    def url(self) -> str:
        """The URL that names all Sentinels."""
        hosts = ",".join(f"{HOST}:{node.port}" for node in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.master_name}"

    @property
    def servers(self) -> list[Node]:
        """Master and replicas."""
        return [node for node in self.nodes if node not in self.sentinels]

    def _form(self) -> None:
        count = 1 + self._replica_count
        servers = self._add([f"server-{n}" for n in range(count)], self._config)
        master, *replicas = servers
        for node in servers:
            node.wait_for_answer()
        for node in replicas:
            node.run("REPLICAOF", HOST, master.port)
        names = [f"sentinel-{number}" for number in range(self._sentinel_count)]
        config = {"bind": HOST, "protected-mode": "no"}
        self.sentinels = self._add(names, config, are_sentinels=True)
        quorum = self._sentinel_count // 2 + 1
        for node in self.sentinels:
            node.wait_for_answer()
            name = self.master_name
            node.run("SENTINEL MONITOR", name, HOST, master.port, quorum)
            # Sentinels wait twice this time before the next automatic failover.
            node.run("SENTINEL SET", name, "failover-timeout", 2000)
            node.run("SENTINEL SET", name, "parallel-syncs", max(self._replica_count, 1))
        self._set_down_after(self.timeout_s)
        self.wait_until_settled()

    def primaries(self) -> list[Node]:
        """The master."""
        return [self.master()]

    def master(self) -> Node:
        """The master, according to the Sentinels."""

        def ask() -> Node | None:
            for node in self.sentinels:
                if node.is_running:
                    return self.named_by(node)
            return None

        found: Node = wait_until(ask, "a Sentinel names the master")
        return found

    def named_by(self, sentinel: Node) -> Node:
        """The master, according to one Sentinel."""
        port = int(sentinel.run("SENTINEL GET-MASTER-ADDR-BY-NAME", self.master_name)[1])
        return next(found for found in self.servers if found.port == port)

    def _is_settled(self) -> bool:
        master = self.master()
        for node in self.sentinels:
            state = _fields(node.run("SENTINEL MASTER", self.master_name))
            if int(state["port"]) != master.port or state["flags"] != "master":
                return False
            if int(state["num-slaves"]) < self._replica_count:
                return False
            if int(state["num-other-sentinels"]) != self._sentinel_count - 1:
                return False
            for found in node.run("SENTINEL REPLICAS", self.master_name):
                if _fields(found)["flags"] != "slave":
                    return False
        if master.info("replication")["role"] != "master":
            return False
        for node in self.servers:
            state = node.info("replication")
            if node is not master and (
                state["role"] != "slave"
                or state["master_port"] != master.port
                or state["master_link_status"] != "up"
            ):
                return False
        return True

    def fail_over(self) -> Node:
        """SENTINEL FAILOVER. Returns the new master when all Sentinels name it.

        The old master accepts writes until the Sentinels make it a replica. These are lost.
        """
        old = self.master()
        sentinel = next(node for node in self.sentinels if node.is_running)
        wait_until(
            lambda: sentinel.run("SENTINEL FAILOVER", self.master_name), "the failover starts"
        )
        return self.wait_for_other_master(old)

    def hand_over(self) -> Node:
        """A failover without loss: writes are paused until there is a new master."""
        wait_until(self._can_promote_all, "the Sentinel knows the state of the replicas")
        old = self.master()
        # The pause also holds back the Sentinels' messages. They must not take the master for down.
        self._set_down_after(60.0)
        old.run("CLIENT PAUSE", 30_000, "WRITE")
        try:
            # Later bytes of the stream are only the master's pings.
            offset = old.info("replication")["master_repl_offset"]
            wait_until(partial(self._have_offset, old, offset), "the replicas have all writes")
            new = self.fail_over()
            old.run("REPLICAOF", HOST, new.port)
        finally:
            old.run("CLIENT UNPAUSE")
            self._set_down_after(self.timeout_s)
        return new

    def _can_promote_all(self) -> bool:
        """Whether a Sentinel would promote any replica. It checks them every ten seconds."""
        rows = map(_fields, self.sentinels[0].run("SENTINEL REPLICAS", self.master_name))
        return all(row["master-link-status"] == "ok" for row in rows)

    def _set_down_after(self, seconds: float) -> None:
        milliseconds = round(seconds * 1000)
        for node in self.sentinels:
            node.run("SENTINEL SET", self.master_name, "down-after-milliseconds", milliseconds)

    @staticmethod
    def _have_offset(master: Node, offset: int) -> bool:
        state = master.info("replication")
        replicas = [value for key, value in state.items() if re.fullmatch(r"slave\d+", key)]
        return all(each["offset"] >= offset for each in replicas)

    def _repair(self) -> None:
        """Make other masters replicas of the real one. The Sentinels would take longer."""
        for node in self.nodes:
            node.wait_for_answer()
        master = self.master()
        for node in self.servers:
            if node is not master and node.info("replication")["role"] == "master":
                node.run("REPLICAOF", HOST, master.port)

    def wait_for_other_master(self, old: Node, limit_s: float = SETTLE_TIMEOUT_S) -> Node:
        """The new master, when all Sentinels name it."""

        def is_other() -> bool:
            named = {self.named_by(node) for node in self.sentinels if node.is_running}
            return len(named) == 1 and old not in named

        wait_until(is_other, "the Sentinels name another master", limit_s)
        return self.master()


_TROUBLE = frozenset(("fail", "fail?", "handshake", "noaddr"))


def _map_of(node: Node) -> dict[str, Any]:
    """CLUSTER NODES by node id: flags, primary ("-" = no primary), slots, migrating slots."""
    rows = {}
    for row in node.run("CLUSTER NODES").values():
        rows[row["node_id"]] = {
            "flags": frozenset(row["flags"].split(",")),
            "primary": row["master_id"],
            "slots": [(int(each[0]), int(each[-1])) for each in row["slots"]],
            "moving": bool(row.get("migrations")),
        }
    return rows


def _moving_slots(node: Node) -> dict[int, str]:
    """Slots that are moving from or to a node: "migrating" or "importing"."""
    found = {}
    for row in node.run("CLUSTER NODES").values():
        for each in row.get("migrations", ()):
            found[int(each["slot"])] = str(each["state"])
    return found


def _fields(reply: Any) -> dict[str, Any]:
    if isinstance(reply, dict):
        return reply
    flat = iter(reply)
    return dict(zip(flat, flat, strict=True))
