"""Servers that the tests run on: single ones, clusters, and masters behind Sentinels.

Every test worker starts its own, on unix sockets or loopback, and keeps them for all its tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import redis

from benchmarks.rigs.clusters import Cluster, SentinelGroup
from benchmarks.rigs.nodes import HOST, bundled_server
from sessionstore.embedded import EmbeddedServer, find_servers

AGENT = "agent:password@"
"""The credentials of the user that the ACL line of lua/README.md creates, as a URL has them."""

KEY_AGENT = "keys:password@"
"""The same for the user of a key store."""

KEY_PREFIXES = ("p:", "one:", "two:", "limit-*:")
"""Values of `key_prefix` in the contract tests, as patterns of an ACL rule."""


class Server:
    """A running server, and a raw client that shows what is stored."""

    def __init__(self, embedded: EmbeddedServer, user: str = "") -> None:
        self.embedded = embedded
        self.url = embedded.url.replace("://", f"://{user}")
        self.key_store_url = embedded.url.replace("://", f"://{KEY_AGENT}") + "?db=1"
        self.raw = redis.Redis(unix_socket_path=embedded.socket_path, decode_responses=False)

    def clients(self) -> list[redis.Redis]:
        """Raw clients of all servers that hold keys."""
        return [self.raw]

    def empty(self) -> None:
        """Delete every key."""
        for client in self.clients():
            client.flushall()

    def all_keys(self) -> list[Any]:
        """Every key."""
        return [key for client in self.clients() for key in client.keys("*")]

    def without_deadline(self) -> list[bytes]:
        """Keys that never expire."""
        found: list[bytes] = []
        for client in self.clients():
            keys: list[Any] = client.keys("*")
            deadlines = _answers(client, [("PEXPIRETIME", key) for key in keys])
            found += [key for key, at in zip(keys, deadlines, strict=True) if at == -1]
        return found

    def snapshot(self) -> dict[bytes, Any]:
        """Every key with its type, content and deadline in milliseconds since 1970 (-1 = never)."""
        found: dict[bytes, Any] = {}
        for client in self.clients():
            keys: list[Any] = client.keys("*")
            kinds = _answers(client, [("TYPE", key) for key in keys])
            deadlines = _answers(client, [("PEXPIRETIME", key) for key in keys])
            contents = _answers(
                client,
                [
                    ("HGETALL", key)
                    if kind == b"hash"
                    else ("ZRANGE", key, 0, -1, "WITHSCORES")
                    if kind == b"zset"
                    else ("DUMP", key)
                    for key, kind in zip(keys, kinds, strict=True)
                ],
            )
            found |= zip(keys, zip(kinds, contents, deadlines, strict=True), strict=True)
        return found

    def close(self) -> None:
        """Stop the server."""
        self.raw.close()
        self.embedded.stop()


class Group(Server):
    """The same for a cluster, or for a master behind Sentinels."""

    def __init__(self, group: Cluster | SentinelGroup) -> None:
        self.url = group.url.replace("://", f"://{AGENT}")
        self.group = group
        self._by_port: dict[int, redis.Redis] = {}

    def clients(self) -> list[redis.Redis]:
        """Raw clients of the primaries."""
        if isinstance(self.group, Cluster):
            primaries = self.group.primaries()
        else:
            primaries = [self.group.master()]
        for port in (node.port for node in primaries):
            if port not in self._by_port:
                self._by_port[port] = redis.Redis(host=HOST, port=port, decode_responses=False)
        return [self._by_port[node.port] for node in primaries]

    def close(self) -> None:
        """Stop all of its servers."""
        for client in self._by_port.values():
            client.close()
        self.group.close()


class Servers:
    """The servers of one test worker. Each starts when a test first asks for it."""

    def __init__(self, further_paths: list[str]) -> None:
        self._paths = server_paths(further_paths)
        self._running: dict[str, Server] = {}

    def single(self, name: str) -> Server:
        """The server with this name in `server_paths`."""
        if name not in self._running:
            self._running[name] = Server(_started(self._paths[name]))
        return self._running[name]

    def least_privilege(self) -> Server:
        """A server, with the URL of a user that has only the rights of lua/README.md."""
        name = "least privilege"
        if name not in self._running:
            bundled = bundled_server()
            assert bundled is not None
            server = self._running[name] = Server(_started(bundled.path), AGENT)
            command: Any = server.raw.execute_command
            command("ACL", "SETUSER", *acl_user("scan"))
            command("ACL", "SETUSER", *acl_user(name="keys"))
        return self._running[name]

    def group(self, kind: str) -> Group:
        """Several servers: a "cluster", a "replicated_cluster" or a "sentinel" group."""
        if kind not in self._running:
            group: Cluster | SentinelGroup
            if kind == "sentinel":
                group = SentinelGroup(users=[acl_user("role", "scan")])
            else:
                replicas = 3 if kind == "replicated_cluster" else 0
                users = [acl_user("asking", "cluster|slots", "scan")]
                group = Cluster(replicas=replicas, users=users)
            group.start()
            self._running[kind] = Group(group)
        found = self._running[kind]
        assert isinstance(found, Group)
        return found

    def close(self) -> None:
        """Stop all running servers."""
        for server in self._running.values():
            server.close()


def _answers(client: redis.Redis, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
    """The replies of a server to commands that are sent together."""
    pipeline: Any = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    answers: list[Any] = pipeline.execute()
    return answers


def server_paths(further_paths: list[str]) -> dict[str, str]:
    """Executables of the servers to test, by a short name that appears in the ids of tests.

    Those on PATH, the one that the extra `embedded` bundles, and further ones.
    """
    paths: dict[str, str] = {}
    for server in find_servers():
        paths.setdefault(f"{server.name}-{'.'.join(map(str, server.version))}", server.path)
    for number, path in enumerate(further_paths):
        paths[f"server{number}"] = path
    return paths


def acl_user(*further: str, name: str = "agent") -> list[str]:
    """The name and the rules of a user that an ACL line of lua/README.md creates.

    The keys are allowed with `KEY_PREFIXES`, too.

    Args:
        *further: more commands to allow.
        name: the user.
    """
    readme = (Path(__file__).parents[2] / "lua/README.md").read_text("utf-8")
    [line] = re.findall(rf"^ACL SETUSER ({name} .+)$", readme, re.MULTILINE)
    rules = line.split()
    keys = [rule[1:] for rule in rules if rule.startswith("~")]
    prefixed = [f"~{prefix}{name}" for prefix in KEY_PREFIXES for name in keys]
    return [*rules, *prefixed, *(f"+{command}" for command in further)]


def _started(path: str) -> EmbeddedServer:
    embedded = EmbeddedServer(executable=path)
    embedded.start()
    return embedded
