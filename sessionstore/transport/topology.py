"""Which node a Call goes to. Sans I/O: `discover` says whom to ask what, and is told the answer.

A single server is one node for ever. Behind Sentinel the one node is whoever is master now. In a
cluster every slot has its node, and redirections say where it went.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Iterable
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from redis.crc import key_slot

from ..calls import Call
from .retry import ConnectFailed
from .wire import ReplyRefused

SLOTS = 16_384

ANSWER_TIMEOUT_S = 2.0
"""Time that one node has to say what it knows."""

DISCOVERY_TIMEOUT_S = 5.0
"""Time that all have who are asked, one after the other."""

_UNFIT_S = 2.0  # for which a replica that did not answer a read is not asked again


class Node(NamedTuple):
    """The address of one server process, and what it is asked as."""

    host: str
    port: int
    is_sentinel: bool = False
    is_replica: bool = False


ONLY = Node("", 0)
"""The node of a topology that has one."""

Discovery = Generator[tuple[Node, Call[Any]], Any, None]


class Topology(Protocol):
    """What is known of where the data is."""

    is_known: bool
    """False: `discover` must run before the next call."""

    is_routed: bool
    """Redirections and replicas are to be expected."""

    is_polled: bool
    """Whoever is replaced may not know it: ask again and again where the data is."""

    nodes: frozenset[Node]
    """The nodes that Calls go to, as far as they are known."""

    def node_for(self, call: Call[Any]) -> Node:
        """Where to send a Call."""

    def notice(self, problem: Exception, node: Node) -> None:
        """Take note of what a node answered, or that it did not."""

    def suspect(self, node: Node) -> None:
        """A node says nothing; others are to be asked before it."""

    def discover(self) -> Discovery:
        """Find out; yields whom to ask what, and is sent the reply or the exception.

        Raises:
            ConnectFailed: nobody could tell.
        """


class SingleTopology:
    """One server."""

    is_known = True
    is_routed = False
    is_polled = False
    nodes = frozenset((ONLY,))

    def node_for(self, call: Call[Any]) -> Node:  # noqa: ARG002  # the same for all
        """The server."""
        return ONLY

    def notice(self, problem: Exception, node: Node) -> None:
        """Nothing to learn."""

    def suspect(self, node: Node) -> None:
        """There is no other."""

    def discover(self) -> Discovery:
        """Nothing to find out."""
        yield from ()


class _Replicas:
    """The replicas that reads may go to."""

    def __init__(self, is_used: bool) -> None:
        self.is_used = is_used
        self.by_primary: dict[Node, list[Node]] = {}
        self._unfit_until: dict[Node, float] = {}

    def one_for(self, call: Call[Any], primary: Node) -> Node:
        """A replica, if the Call is a read that one can answer; else the primary."""
        if not self.is_used or call.writes or call.script is not None:
            return primary
        now = time.monotonic()
        replicas = self.by_primary.get(primary, ())
        fit = [node for node in replicas if self._unfit_until.get(node, 0.0) <= now]
        return random.choice(fit) if fit else primary

    def avoid(self, node: Node) -> None:
        """Send nothing to a replica for a while."""
        self._unfit_until[node] = time.monotonic() + _UNFIT_S

    @property
    def nodes(self) -> set[Node]:
        """All of them."""
        return {node for nodes in self.by_primary.values() for node in nodes}


class SentinelTopology:
    """The master that a group of Sentinels watches.

    Args:
        sentinels: addresses of Sentinels; one that answers is enough.
        master_name: the name that they know the master by.
        uses_replicas: plain reads go to its replicas.
    """

    is_routed = True
    is_polled = True

    def __init__(
        self, sentinels: Iterable[Node], master_name: str, *, uses_replicas: bool = False
    ) -> None:
        self.is_known = False
        self._sentinels = list(sentinels)
        self._master_name = master_name
        self._master = ONLY
        self._replicas = _Replicas(uses_replicas)
        self.nodes: frozenset[Node] = frozenset()

    def node_for(self, call: Call[Any]) -> Node:
        """The master, or a replica."""
        return self._replicas.one_for(call, self._master)

    def notice(self, problem: Exception, node: Node) -> None:
        """A master that is gone, or is none any more, makes the Sentinels be asked again."""
        if node.is_replica:
            self._replicas.avoid(node)
        elif not isinstance(problem, ReplyRefused) or problem.code in ("READONLY", "MASTERDOWN"):
            self.is_known = False

    def suspect(self, node: Node) -> None:
        """A replica is left alone. Who the master is, its own word does not decide."""
        if node.is_replica:
            self._replicas.avoid(node)

    def discover(self) -> Discovery:
        """Ask the Sentinels for the master, and a new one whether it knows."""
        ask = _command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._master_name)
        problems = _Problems()
        is_unknown = False
        for number, sentinel in enumerate(list(self._sentinels)):
            reply = yield sentinel, ask
            if isinstance(reply, Exception):
                if _is_unknown_command(reply):
                    raise ConnectFailed("the server is no Sentinel: use redis://", final=True)
                problems.add(reply)
                continue
            if reply[0] is None:
                text = f"the Sentinels know no master named {self._master_name!r}"
                problems.add(ConnectFailed(text, final=False))
                is_unknown = True
                continue
            master = Node(reply[0][0].decode(), int(reply[0][1]))
            if self._replicas.is_used:
                reply = yield sentinel, _command("SENTINEL", "REPLICAS", self._master_name)
                if not isinstance(reply, Exception):
                    self._replicas.by_primary = {master: _healthy_replicas(reply[0])}
            if self.is_known and master == self._master:
                self.nodes = frozenset((master, *self._replicas.nodes))
                return  # as before; whether it answers, calls find out
            role = yield master, _ROLE
            if isinstance(role, Exception):
                problems.add(role)
            elif role[0][0] != b"master":
                text = "the Sentinels name a master that is none"
                problems.add(ConnectFailed(text, final=False))
            else:
                self._master = master
                self.nodes = frozenset((master, *self._replicas.nodes))
                self.is_known = True
                # The one that knew is asked first the next time.
                self._sentinels.insert(0, self._sentinels.pop(number))
                return
        error = problems.as_error("no master found by way of Sentinel")
        # A name that was never known is a wrong one; later it is a Sentinel that has forgotten it.
        error.final |= is_unknown and self._master is ONLY
        raise error


class ClusterTopology:
    """The primaries of a cluster.

    Args:
        seeds: addresses of nodes; one that answers is enough.
        uses_replicas: plain reads go to replicas.
    """

    is_routed = True
    is_polled = False  # one that is replaced answers MOVED

    def __init__(self, seeds: Iterable[Node], *, uses_replicas: bool = False) -> None:
        self.is_known = False
        self._seeds = list(seeds)
        self._by_slot: list[Node | None] = [None] * SLOTS
        self._lost: set[Node] = set()
        self._replicas = _Replicas(uses_replicas)
        self.nodes: frozenset[Node] = frozenset()

    def node_for(self, call: Call[Any]) -> Node:
        """The primary of the slot of the Call's keys, or a replica of it."""
        node = self._by_slot[slot_of(call)]
        if node is None:
            return random.choice(self._seeds)
        return self._replicas.one_for(call, node)

    def notice(self, problem: Exception, node: Node) -> None:
        """A redirection corrects one slot at once; it and a lost node call for a new map."""
        if node.is_replica:
            self._replicas.avoid(node)
        if not isinstance(problem, ReplyRefused):
            self.is_known = False
            self._lost.add(node)
        elif problem.code == "MOVED":
            slot, target = redirection(problem, node)
            self._by_slot[slot] = target
            self.nodes |= {target}
            self.is_known = False
        elif problem.code in ("READONLY", "CLUSTERDOWN", "MASTERDOWN"):
            self.is_known = False

    def suspect(self, node: Node) -> None:
        """A replica is left alone, a primary asked for the map last."""
        if node.is_replica:
            self._replicas.avoid(node)
        else:
            self._lost.add(node)

    def discover(self) -> Discovery:
        """Ask any node for the map of the slots; those that were lost come last."""
        known = [node for node in self.nodes if not node.is_replica]
        random.shuffle(known)
        problems = _Problems()
        for node in sorted(dict.fromkeys([*known, *self._seeds]), key=self._lost.__contains__):
            reply = yield node, _CLUSTER_SLOTS
            if isinstance(reply, Exception):
                if _is_unknown_command(reply) or "cluster support disabled" in str(reply):
                    text = "the server is not part of a cluster: use redis://"
                    raise ConnectFailed(text, final=True)
                problems.add(reply)
                self._lost.add(node)
                continue
            self._learn(reply[0], node)
            self._lost.clear()
            self.is_known = True
            return
        raise problems.as_error("no node of the cluster answers")

    def _learn(self, ranges: list[Any], asked: Node) -> None:
        by_slot: list[Node | None] = [None] * SLOTS
        found = set()
        self._replicas.by_primary = {}
        for first, last, primary, *replicas in ranges:
            node = Node(_host(primary[0] or b"", asked), primary[1])
            by_slot[first : last + 1] = [node] * (last + 1 - first)
            found.add(node)
            if self._replicas.is_used:
                self._replicas.by_primary[node] = [
                    Node(_host(replica[0] or b"", asked), replica[1], is_replica=True)
                    for replica in replicas
                ]
        self._by_slot = by_slot
        self.nodes = frozenset(found | self._replicas.nodes)


def slot_of(call: Call[Any]) -> int:
    """The slot of a Call's keys, which share one; or that which it names."""
    if call.slot is not None:
        return call.slot if isinstance(call.slot, int) else slot_of_key(call.slot)
    key = call.keys[0] if call.keys else call.commands[0][1]
    assert isinstance(key, bytes)
    return slot_of_key(key)


# An agent's session is named again with every event, and its keys are cached as well.
@lru_cache(maxsize=16_384)
def slot_of_key(key: bytes) -> int:
    """The slot of one key: the CRC of its hash tag, or of all of it if it has none."""
    slot: int = key_slot(key)
    return slot


def redirection(problem: ReplyRefused, node: Node) -> tuple[int, Node]:
    """Slot and node of a MOVED or ASK reply that `node` gave."""
    _, slot, address = str(problem).split(" ")[:3]
    host, _, port = address.rpartition(":")
    return int(slot), Node(_host(host.encode(), node), int(port))


def _healthy_replicas(found: list[list[bytes]]) -> list[Node]:
    """What SENTINEL REPLICAS tells, without those that are down or out of touch."""
    healthy = []
    for values in found:
        fields = dict(zip(values[::2], values[1::2], strict=True))
        if fields[b"flags"] == b"slave" and fields[b"master-link-status"] == b"ok":
            healthy.append(Node(fields[b"ip"].decode(), int(fields[b"port"]), is_replica=True))
    return healthy


def _host(name: bytes, asked: Node) -> str:
    """A host as a node tells it. One that does not know it gives nothing, or "?"."""
    return asked.host if name in (b"", b"?") else name.decode()


class _Problems:
    """Why nobody could tell."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._final = True

    def add(self, problem: Exception) -> None:
        """Take note of what one of those who were asked answered."""
        self._texts.append(str(problem) or "no answer in time")
        if isinstance(problem, ReplyRefused):
            self._final &= not problem.is_transient
        else:
            self._final &= isinstance(problem, ConnectFailed) and problem.final

    def as_error(self, text: str) -> ConnectFailed:
        """What they amount to; final if it is so for all of them."""
        why = "; ".join(dict.fromkeys(self._texts))
        return ConnectFailed(f"{text} ({why})", final=self._final)


def _is_unknown_command(problem: Exception) -> bool:
    return isinstance(problem, ReplyRefused) and str(problem).startswith("ERR unknown command")


def _command(*words: str) -> Call[Any]:
    return Call(words[0].lower(), lambda replies: replies, commands=(words,), writes=False)


_ROLE = _command("ROLE")
_CLUSTER_SLOTS = _command("CLUSTER", "SLOTS")
