"""One address that an operator moves to another server, as DNS, a virtual IP or a proxy does."""

from __future__ import annotations

from collections.abc import Mapping

from sessionstore.embedded import ServerBinary

from .nodes import CONFIG, HOST, Group, Node, free_ports, wait_until
from .proxy import Proxy


class MovingAddress(Group):
    """A primary and its replica, and one address that leads to either.

    Open connections stay where they are when the address moves.

    Args:
        config: settings of both servers, as `redis.conf` spells them.
        server: the binary to run. None = the bundled server.

    Attributes:
        primary: the server that accepts writes.
        replica: the other one.
        target: where the address leads.
    """

    timeout_s = 1.5
    primary: Node
    replica: Node
    target: Node

    def __init__(
        self, config: Mapping[str, str] | None = None, *, server: ServerBinary | None = None
    ) -> None:
        super().__init__(server)
        self._config = {**CONFIG, **(config or {})}
        self._proxy: Proxy | None = None

    @property
    def url(self) -> str:
        """The URL of the address."""
        assert self._proxy is not None
        return self._proxy.url

    def primaries(self) -> list[Node]:
        """The primary."""
        return [self.primary]

    def _form(self) -> None:
        self.primary, self.replica = self._add(["server-0", "server-1"], self._config)
        for node in self.nodes:
            node.wait_for_answer()
        self.target = self.primary
        self._proxy = Proxy(self.primary.port, port=free_ports(1)[0]).__enter__()
        self.replica.run("REPLICAOF", HOST, self.primary.port)
        self.wait_until_settled()

    def _is_settled(self) -> bool:
        state = self.replica.info("replication")
        return bool(state["role"] == "slave" and state["master_link_status"] == "up")

    def demote(self) -> None:
        """Let both servers change their roles without loss. The address still leads to the old one.

        Writes are paused meanwhile; the old primary refuses them afterwards.
        """
        old, new = self.primary, self.replica
        old.run("CLIENT PAUSE", 30_000, "WRITE")
        try:
            offset = old.info("replication")["master_repl_offset"]
            wait_until(
                lambda: new.info("replication")["slave_repl_offset"] >= offset,
                "the replica has all writes",
            )
            new.run("REPLICAOF", "NO", "ONE")
            old.run("REPLICAOF", HOST, new.port)
        finally:
            old.run("CLIENT UNPAUSE")
        self.primary, self.replica = new, old

    def lead_to(self, node: Node) -> None:
        """Change where new connections go."""
        assert self._proxy is not None
        self._proxy.lead_to(node.port)
        self.target = node

    def close(self) -> None:
        """End both processes, and the address."""
        if self._proxy is not None:
            self._proxy.__exit__(None, None, None)
            self._proxy = None
        super().close()
