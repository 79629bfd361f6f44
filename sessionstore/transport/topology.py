"""Which node a Call goes to. Sans I/O: `discover` says whom to ask what, and is told the answer.

A single server is one node for ever. Behind Sentinel the one node is whoever is master now. In a
cluster every slot has its node, and redirections say where it went.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable
from typing import Any, NamedTuple, Protocol

from redis.crc import key_slot

from ..calls import Call
from .retry import ConnectFailed
from .wire import ReplyRefused

SLOTS = 16_384


class Node(NamedTuple):
    """The address of one server process."""

    host: str
    port: int
    is_sentinel: bool = False


ONLY = Node("", 0)
"""The node of a topology that has one."""

Discovery = Generator[tuple[Node, Call[Any]], Any, None]


class Topology(Protocol):
    """What is known of where the data is."""

    is_known: bool
    """False: `discover` must run before the next call."""

    is_routed: bool
    """Redirections and replicas are to be expected."""

    def node_for(self, call: Call[Any]) -> Node:
        """Where to send a Call."""

    def notice(self, problem: Exception, node: Node) -> None:
        """Take note of what a node answered, or that it did not."""

    def discover(self) -> Discovery:
        """Find out; yields whom to ask what, and is sent the reply or the exception.

        Raises:
            ConnectFailed: nobody could tell.
        """


class SingleTopology:
    """One server."""

    is_known = True
    is_routed = False

    def node_for(self, call: Call[Any]) -> Node:  # noqa: ARG002  # the same for all
        """The server."""
        return ONLY

    def notice(self, problem: Exception, node: Node) -> None:
        """Nothing to learn."""

    def discover(self) -> Discovery:
        """Nothing to find out."""
        yield from ()


class SentinelTopology:
    """The master that a group of Sentinels watches.

    Args:
        sentinels: addresses of Sentinels; one that answers is enough.
        master_name: the name that they know the master by.
    """

    is_routed = True

    def __init__(self, sentinels: Iterable[Node], master_name: str) -> None:
        self.is_known = False
        self._sentinels = list(sentinels)
        self._master_name = master_name
        self._master = ONLY

    def node_for(self, call: Call[Any]) -> Node:  # noqa: ARG002  # the same for all
        """The master."""
        return self._master

    def notice(self, problem: Exception, node: Node) -> None:  # noqa: ARG002  # there is but one
        """A master that is gone, or is none any more, makes the Sentinels be asked again."""
        if not isinstance(problem, ReplyRefused) or problem.code in ("READONLY", "MASTERDOWN"):
            self.is_known = False

    def discover(self) -> Discovery:
        """Ask the Sentinels for the master, and the master whether it knows."""
        ask = _command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._master_name)
        problem: Any = None
        unknown = 0
        for number, sentinel in enumerate(list(self._sentinels)):
            reply = yield sentinel, ask
            if isinstance(reply, Exception):
                problem = reply
                continue
            if reply[0] is None:
                unknown += 1
                continue
            master = Node(reply[0][0].decode(), int(reply[0][1]))
            role = yield master, _ROLE
            if isinstance(role, Exception):
                problem = role
            elif role[0][0] != b"master":
                problem = "the Sentinels name a master that is none"
            else:
                self._master = master
                self.is_known = True
                # The one that knew is asked first the next time.
                self._sentinels.insert(0, self._sentinels.pop(number))
                return
        if unknown and unknown == len(self._sentinels):
            raise ConnectFailed(
                f"the Sentinels know no master named {self._master_name!r}", final=True
            )
        raise ConnectFailed(f"no master found by way of Sentinel ({problem})", final=False)


class ClusterTopology:
    """The primaries of a cluster.

    Args:
        seeds: addresses of nodes; one that answers is enough.
    """

    is_routed = True

    def __init__(self, seeds: Iterable[Node]) -> None:
        self.is_known = False
        self._seeds = list(seeds)
        self._nodes: list[Node | None] = [None] * SLOTS

    def node_for(self, call: Call[Any]) -> Node:
        """The primary of the slot of the Call's keys."""
        node = self._nodes[slot_of(call)]
        return node if node is not None else random.choice(self._seeds)

    def notice(self, problem: Exception, node: Node) -> None:
        """A redirection corrects one slot at once; it and a lost node call for a new map."""
        if not isinstance(problem, ReplyRefused):
            self.is_known = False
        elif problem.code == "MOVED":
            slot, target = redirection(problem, node)
            self._nodes[slot] = target
            self.is_known = False
        elif problem.code in ("READONLY", "CLUSTERDOWN", "MASTERDOWN"):
            self.is_known = False

    def discover(self) -> Discovery:
        """Ask any node for the map of the slots."""
        known = list({node for node in self._nodes if node is not None})
        random.shuffle(known)
        problem: Any = None
        for node in dict.fromkeys([*known, *self._seeds]):
            reply = yield node, _CLUSTER_SLOTS
            if isinstance(reply, ReplyRefused) and "cluster support disabled" in str(reply):
                raise ConnectFailed("the server is not part of a cluster: use redis://", final=True)
            if isinstance(reply, Exception):
                problem = reply
                continue
            self._learn(reply[0], node)
            self.is_known = True
            return
        raise ConnectFailed(f"no node of the cluster answers ({problem})", final=False)

    def _learn(self, ranges: list[Any], asked: Node) -> None:
        nodes: list[Node | None] = [None] * SLOTS
        for first, last, primary, *_ in ranges:
            host = primary[0].decode() if primary[0] else ""
            node = Node(host or asked.host, primary[1])
            nodes[first : last + 1] = [node] * (last + 1 - first)
        self._nodes = nodes


def slot_of(call: Call[Any]) -> int:
    """The slot of a Call's keys, which share one."""
    key = call.keys[0] if call.keys else call.then[0][1]
    assert isinstance(key, bytes)
    slot: int = key_slot(key)
    return slot


def redirection(problem: ReplyRefused, node: Node) -> tuple[int, Node]:
    """Slot and node of a MOVED or ASK reply that `node` gave."""
    _, slot, address = str(problem).split(" ")[:3]
    host, _, port = address.rpartition(":")
    return int(slot), Node(host or node.host, int(port))


def _command(*words: str) -> Call[Any]:
    return Call(words[0].lower(), lambda replies: replies, then=(words,), writes=False)


_ROLE = _command("ROLE")
_CLUSTER_SLOTS = _command("CLUSTER", "SLOTS")
