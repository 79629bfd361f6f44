"""Which node a Call goes to. Does no I/O: `discover` is a flow, like every operation.

A single server is one node forever. Behind Sentinel, calls go to the current master. In a cluster
every slot belongs to a node, and redirections report slots that have moved.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from redis.crc import key_slot

from ..calls import Call, Flow
from .failures import AttemptFailed, ConnectFailed, ErrorReply, NotSentInTime
from .log import logger, node_name

SLOTS = 16_384

SILENCE_S = 0.5  # how long a server may be silent before others are asked whether it was replaced
PROBE_TIMEOUT_S = 2.0  # how long one node may take to answer a Probe; then the next one is asked
DISCOVERY_TIMEOUT_S = 5.0  # how long a discovery may take in all
_AVOID_S = 2.0  # how long reads avoid a replica that failed


class Node(NamedTuple):
    """The address of one server process, and its role."""

    host: str
    port: int
    is_sentinel: bool = False
    is_replica: bool = False


ONLY = Node("", 0)
"""The node of a topology that has a single one."""


class Probe(Call[Any], frozen=True, gc=False, kw_only=True):
    """A command that asks one node about the topology; the result is the raw reply.

    The executor that runs `discover` raises AttemptFailed if it gets no reply.
    """

    node: Node


def probe(node: Node, *words: str) -> Probe:
    """A Probe that sends one command."""
    name = words[0].lower()
    return Probe(name, lambda replies: replies[0], commands=(words,), writes=False, node=node)


class Topology:
    """What is known about where the data is.

    Attributes:
        is_known: False: `discover` has to run before the next Call.
        is_routed: there are several nodes: expect redirections, failovers and replicas.
        is_polled: a node that was replaced may still accept Calls, so `discover` runs regularly.
        nodes: the nodes that Calls go to, as far as they are known.
    """

    is_known = False
    is_routed = False
    is_polled = False
    nodes: frozenset[Node] = frozenset()

    def node_for(self, call: Call[Any]) -> Node:
        """Where to send a Call."""
        raise NotImplementedError

    def report_failure(self, failure: AttemptFailed, node: Node) -> None:
        """Learn from a failed attempt on a node."""

    def report_silence(self, node: Node) -> None:
        """Learn that a node does not answer; the next discovery asks others first."""

    def discover(self) -> Flow[None]:
        """Find out where the data is; yields Probes.

        Raises:
            ConnectFailed: no node gave a useful answer.
        """
        yield from ()


class SingleTopology(Topology):
    """One server. It is always known."""

    is_known = True
    nodes = frozenset((ONLY,))

    def node_for(self, call: Call[Any]) -> Node:  # noqa: ARG002  # the same for every Call
        """The server."""
        return ONLY


class _RoutedTopology(Topology):
    """Primaries and their replicas, if plain reads go to replicas."""

    is_routed = True

    def __init__(self, uses_replicas: bool) -> None:
        self._uses_replicas = uses_replicas
        self._replicas: dict[Node, list[Node]] = {}  # by primary
        self._avoid_until: dict[Node, float] = {}

    def _primary_or_replica(self, call: Call[Any], primary: Node) -> Node:
        """A replica if the Call is a plain read and one is available."""
        if not self._uses_replicas or call.writes or call.from_primary or call.script is not None:
            return primary
        now = time.monotonic()
        replicas = self._replicas.get(primary, ())
        available = [node for node in replicas if self._avoid_until.get(node, 0.0) <= now]
        return random.choice(available) if available else primary

    def _set_nodes(self, primaries: Iterable[Node]) -> None:
        self.nodes = frozenset(primaries).union(*self._replicas.values())

    def report_failure(self, failure: AttemptFailed, node: Node) -> None:  # noqa: ARG002
        """A replica is avoided for a while."""
        self.report_silence(node)

    def report_silence(self, node: Node) -> None:
        """A replica is avoided for a while."""
        if node.is_replica:
            self._avoid_until[node] = time.monotonic() + _AVOID_S


class SentinelTopology(_RoutedTopology):
    """The master that a group of Sentinels watches. One Sentinel that answers is enough."""

    is_polled = True

    def __init__(
        self, sentinels: Iterable[Node], master_name: str, *, uses_replicas: bool = False
    ) -> None:
        super().__init__(uses_replicas)
        self._sentinels = list(sentinels)
        self._master_name = master_name
        self._master = ONLY

    def node_for(self, call: Call[Any]) -> Node:
        """The master, or a replica."""
        return self._primary_or_replica(call, self._master)

    def report_failure(self, failure: AttemptFailed, node: Node) -> None:
        """If the master is gone or has become a replica, the Sentinels have to be asked again."""
        super().report_failure(failure, node)
        is_gone = not isinstance(failure, ErrorReply) or failure.kind in ("READONLY", "MASTERDOWN")
        if is_gone and not node.is_replica:
            self.is_known = False

    def discover(self) -> Flow[None]:
        """Ask the Sentinels, one after the other, until one names a working master."""
        failures: list[AttemptFailed] = []
        master_is_unknown = False
        for sentinel in list(self._sentinels):
            try:
                address = yield probe(
                    sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._master_name
                )
                if address is None:
                    master_is_unknown = True
                    text = f"the Sentinels do not know a master named {self._master_name!r}"
                    raise ConnectFailed(text, final=False)
                yield from self._learn(Node(address[0].decode(), int(address[1])), sentinel)
            except AttemptFailed as error:
                if _is_unknown_command(error, "SENTINEL"):
                    text = "the server is not a Sentinel: use redis://"
                    raise ConnectFailed(text, final=True) from None
                failures.append(error)
                # The next discovery asks this one last: it may take a timeout again.
                self._sentinels.remove(sentinel)
                self._sentinels.append(sentinel)
            else:
                return
        failed = _no_node_answered("no master found through Sentinel", failures)
        # If the name was never known it is misspelled; otherwise a Sentinel has forgotten it.
        failed.final |= master_is_unknown and self._master is ONLY
        raise failed

    def _learn(self, master: Node, sentinel: Node) -> Flow[None]:
        """Verify and store what a Sentinel answered."""
        if self._uses_replicas:
            with suppress(AttemptFailed):
                found = yield probe(sentinel, "SENTINEL", "REPLICAS", self._master_name)
                self._replicas = {master: _healthy_replicas(found)}
        if not self.is_known or master != self._master:
            # A Sentinel's answer may be outdated, so the server must confirm it. A master that is
            # already in use is not asked: if it fails, calls notice.
            role = yield probe(master, "ROLE")
            if role[0] != b"master":
                raise ConnectFailed("the Sentinels name a server that is not a master", final=False)
            if self._master not in (ONLY, master):
                _log_failover(self._master, master)
            self._master = master
            self.is_known = True
        self._set_nodes([master])


class ClusterTopology(_RoutedTopology):
    """The primaries of a cluster. One node of the URL that answers is enough.

    It is not polled: a node that was replaced answers MOVED.
    """

    def __init__(self, seeds: Iterable[Node], *, uses_replicas: bool = False) -> None:
        super().__init__(uses_replicas)
        self._seeds = list(seeds)
        self._by_slot: list[Node | None] = [None] * SLOTS
        self._primaries: set[Node] = set()
        self._without_successor: dict[Node, int] = {}  # with one of its slots
        self._silent: set[Node] = set()

    def node_for(self, call: Call[Any]) -> Node:
        """The primary of the slot of the Call's keys, or one of its replicas."""
        node = self._by_slot[slot_of(call)]
        if node is None:
            return random.choice(self._seeds)
        return self._primary_or_replica(call, node)

    def report_failure(self, failure: AttemptFailed, node: Node) -> None:
        """A redirection corrects one slot at once. After it, or a lost node, a new map is read."""
        super().report_failure(failure, node)
        if not isinstance(failure, ErrorReply):
            self.is_known = False
            self._silent.add(node)
        elif failure.kind == "MOVED":
            slot, target = redirection(failure, node)
            self._by_slot[slot] = target
            self.nodes |= {target}
            self.is_known = False
        elif failure.kind in ("READONLY", "CLUSTERDOWN", "MASTERDOWN"):
            self.is_known = False

    def report_silence(self, node: Node) -> None:
        """A replica is avoided. A primary is the last one that is asked for the map."""
        super().report_silence(node)
        if not node.is_replica:
            self._silent.add(node)

    def discover(self) -> Flow[None]:
        """Ask one node after the other for the map of the slots, silent nodes last."""
        known = [node for node in self.nodes if not node.is_replica]
        random.shuffle(known)
        failures: list[AttemptFailed] = []
        for node in sorted(dict.fromkeys([*known, *self._seeds]), key=self._silent.__contains__):
            try:
                ranges = yield probe(node, "CLUSTER", "SLOTS")
            except AttemptFailed as error:
                if _is_unknown_command(error, "CLUSTER"):
                    text = "the server is not part of a cluster: use redis://"
                    raise ConnectFailed(text, final=True) from None
                failures.append(error)
                self._silent.add(node)
                continue
            self._learn(ranges, node)
            self._silent.clear()
            self.is_known = True
            return
        raise _no_node_answered("no node of the cluster answers", failures)

    def _learn(self, ranges: list[Any], asked: Node) -> None:
        by_slot: list[Node | None] = [None] * SLOTS
        primaries = set()
        self._replicas = {}
        for first, last, primary, *replicas in ranges:
            node = Node(_host(primary[0] or b"", asked), primary[1])
            by_slot[first : last + 1] = [node] * (last + 1 - first)
            primaries.add(node)
            if self._uses_replicas:
                self._replicas[node] = [
                    Node(_host(replica[0] or b"", asked), replica[1], is_replica=True)
                    for replica in replicas
                ]
        for node in self._primaries - primaries:
            if node in self._by_slot:
                self._without_successor[node] = self._by_slot.index(node)
        # For a moment the map may have no node for the slots of a primary that is gone.
        for node, slot in list(self._without_successor.items()):
            successor = by_slot[slot]
            if successor is not None:
                del self._without_successor[node]
                if successor != node:
                    _log_failover(node, successor)
        self._by_slot = by_slot
        self._primaries = primaries
        self._set_nodes(primaries)


def slot_of(call: Call[Any]) -> int:
    """The slot of a Call: the one that it names, or the slot of its keys, which all share one."""
    if call.slot is not None:
        return call.slot if isinstance(call.slot, int) else slot_of_key(call.slot)
    key = call.keys[0] if call.keys else call.commands[0][1]
    assert isinstance(key, bytes)
    return slot_of_key(key)


# Cached: every event of an agent goes to the same session, and keys.py caches its keys as well.
@lru_cache(maxsize=16_384)
def slot_of_key(key: bytes) -> int:
    """The slot of one key: a CRC of its hash tag, or of the whole key if it has none."""
    slot: int = key_slot(key)
    return slot


def redirection(reply: ErrorReply, node: Node) -> tuple[int, Node]:
    """Slot and target of a MOVED or ASK reply that `node` sent."""
    _, slot, address = str(reply).split(" ")[:3]
    host, _, port = address.rpartition(":")
    return int(slot), Node(_host(host.encode(), node), int(port))


def _healthy_replicas(found: list[list[bytes]]) -> list[Node]:
    """The reply to SENTINEL REPLICAS without replicas that are down or disconnected."""
    healthy = []
    for values in found:
        fields = dict(zip(values[::2], values[1::2], strict=True))
        if fields[b"flags"] == b"slave" and fields[b"master-link-status"] == b"ok":
            healthy.append(Node(fields[b"ip"].decode(), int(fields[b"port"]), is_replica=True))
    return healthy


def _host(name: bytes, asked: Node) -> str:
    """The host that a reply names. A node that does not know its own sends nothing or "?"."""
    return asked.host if name in (b"", b"?") else name.decode()


def _no_node_answered(text: str, failures: list[AttemptFailed]) -> ConnectFailed:
    """One error for the failures of all Probes; final if every one of them is."""
    texts = [
        "no answer in time" if isinstance(failure, NotSentInTime) else str(failure)
        for failure in failures
    ]
    is_final = all(
        (isinstance(failure, ErrorReply) and not failure.is_transient)
        or (isinstance(failure, ConnectFailed) and failure.final)
        for failure in failures
    )
    return ConnectFailed(f"{text} ({'; '.join(dict.fromkeys(texts))})", final=is_final)


def _log_failover(old: Node, new: Node) -> None:
    names = node_name(new.host, new.port), node_name(old.host, old.port)
    logger.info("followed a failover: %s has replaced %s", *names)


def _is_unknown_command(failure: AttemptFailed, command: str) -> bool:
    """Whether the server has no such command, or it is disabled."""
    text = str(failure)
    is_unknown = text.startswith("ERR unknown command") and command in text
    return isinstance(failure, ErrorReply) and (is_unknown or "support disabled" in text)
