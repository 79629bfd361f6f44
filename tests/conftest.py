"""Fixtures: real servers, and one service factory over every backend.

Every worker starts servers of its own on unix sockets, one per binary: what is found on PATH, the
one bundled by the `embedded` extra, and those named with `--server PATH`.

Clusters and Sentinels run on the bundled server alone, and all tests that use one in one worker.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

import sessionstore
import sessionstore.sync
from benchmarks.rigs.clusters import Cluster, SentinelGroup
from benchmarks.rigs.nodes import HOST, bundled_server
from sessionstore.embedded import EmbeddedServer, find_servers

# Options that give every key a deadline, so that the leak check sees a key that lost its own.
WITH_TTL: dict[str, Any] = {
    "session_ttl": 600,
    "user_state_ttl": 600,
    "app_state_ttl": 600,
}


AGENT = "agent:password@"
"""The user that the ACL line of lua/README.md makes, as a URL has it."""

KEY_PREFIXES = ("p:", "one:", "two:", "limit-*:")
"""Those that the tests of the contract use, as patterns."""

# Backends that are more than one server, with the options that their services need.
ROUTED: dict[str, dict[str, Any]] = {
    "cluster-async": {},
    "cluster-sync": {},
    "cluster_by_app-async": {"partition_by": "app"},
    "cluster_by_app-sync": {"partition_by": "app"},
    "sentinel-async": {},
    "sentinel-sync": {},
}
# One server, and a user with the rights of the ACL line in lua/README.md, and no more.
LEAST_PRIVILEGE = "least_privilege-async"
# Those on which an app's state has a slot of its own: no read or write spans it and the rest.
APP_APART = {"cluster-async", "cluster-sync"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--server",
        action="append",
        default=[],
        metavar="PATH",
        help="test this redis-server or valkey-server too (repeatable)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "without_ttl: the test's keys need no deadline (the leak check is off)"
    )


def _server_paths(config: pytest.Config) -> dict[str, str]:
    """Servers to test, by a short name for test ids."""
    paths: dict[str, str] = {}
    for server in find_servers():
        paths.setdefault(f"{server.name}-{'.'.join(map(str, server.version))}", server.path)
    for number, path in enumerate(config.getoption("--server")):
        paths[f"server{number}"] = path
    return paths


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses a server on every server, and the contract on every backend."""
    names = list(_server_paths(metafunc.config))
    if "backend" in metafunc.fixturenames:
        backends: list[Any] = ["memory-async", "memory-sync"]
        for name in names:
            backends += [f"{name}-async", f"{name}-sync"]
        if bundled_server():
            # Options that a backend needs are known to `make_service` alone.
            backends.append(LEAST_PRIVILEGE)
            backends += [
                name
                for name, needed in ROUTED.items()
                if not needed or "make_service" in metafunc.fixturenames
            ]
        metafunc.parametrize("backend", backends, indirect=True)
    elif "place" in metafunc.fixturenames:
        metafunc.parametrize("place", ["memory", *names], indirect=True)
    elif "server" in metafunc.fixturenames:
        metafunc.parametrize("server", names, indirect=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let one worker run all tests that use a cluster, and one all that use Sentinels.

    The mark `xdist_group` is for that, but pytest-xdist 3.8 loses it under pytest 9.
    """
    # pytest-xdist has no types.
    from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]

    class Scheduler(LoadGroupScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            is_here = "/cluster/" in nodeid
            if "[sentinel-" in nodeid or (is_here and "sentinel" in nodeid):
                return "sentinel"
            if "[cluster" in nodeid or is_here:
                return "cluster"
            scope: str = super()._split_scope(nodeid)
            return scope

    return Scheduler(config, log)


class Server:
    """A running server of this worker, and a raw client to look behind the scenes."""

    def __init__(self, embedded: EmbeddedServer, user: str = "") -> None:
        self.embedded = embedded
        self.url = embedded.url.replace("://", f"://{user}")
        self.raw = redis.Redis(unix_socket_path=embedded.socket_path, decode_responses=False)

    def clients(self) -> list[redis.Redis]:
        """Raw clients of all servers that hold keys."""
        return [self.raw]

    def empty(self) -> None:
        """Remove every key."""
        for client in self.clients():
            client.flushall()

    def all_keys(self) -> list[Any]:
        """Every key."""
        return [key for client in self.clients() for key in client.keys("*")]

    def snapshot(self) -> dict[bytes, Any]:
        """Every key with type, content and deadline in milliseconds since 1970 (-1 = none)."""
        found: dict[bytes, Any] = {}
        for client in self.clients():
            keys: list[Any] = client.keys("*")
            for key in keys:
                kind: Any = client.type(key)
                content: Any
                if kind == b"hash":
                    content = client.hgetall(key)
                elif kind == b"zset":
                    content = client.zrange(key, 0, -1, withscores=True)
                else:
                    content = client.dump(key)
                found[key] = (kind, content, client.pexpiretime(key))
        return found


class Group(Server):
    """The same for a cluster, or a master behind Sentinels."""

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
        """End it."""
        for client in self._by_port.values():
            client.close()
        self.group.close()


@pytest.fixture(scope="session")
def _servers() -> Iterator[dict[str, Server]]:
    running: dict[str, Server] = {}
    yield running
    for server in running.values():
        server.raw.close()
        server.embedded.stop()


def _start(config: pytest.Config, running: dict[str, Server], name: str) -> Server:
    if name not in running:
        embedded = EmbeddedServer(executable=_server_paths(config)[name])
        embedded.start()
        running[name] = Server(embedded)
    return running[name]


def _start_least_privilege(running: dict[str, Server]) -> Server:
    if LEAST_PRIVILEGE not in running:
        bundled = bundled_server()
        assert bundled is not None
        embedded = EmbeddedServer(executable=bundled.path)
        embedded.start()
        running[LEAST_PRIVILEGE] = found = Server(embedded, AGENT)
        command: Any = found.raw.execute_command
        command("ACL", "SETUSER", *acl_user("scan"))
    return running[LEAST_PRIVILEGE]


def acl_user(*further: str) -> list[str]:
    """Name and rules of the user in lua/README.md, with more commands and with key prefixes."""
    readme = (Path(__file__).parent.parent / "lua/README.md").read_text("utf-8")
    [line] = re.findall(r"^ACL SETUSER (.+)$", readme, re.MULTILINE)
    rules = line.split()
    keys = [rule[1:] for rule in rules if rule.startswith("~")]
    prefixed = [f"~{prefix}{name}" for prefix in KEY_PREFIXES for name in keys]
    return [*rules, *prefixed, *(f"+{name}" for name in further)]


@pytest.fixture(scope="session")
def _groups() -> Iterator[dict[str, Group]]:
    running: dict[str, Group] = {}
    yield running
    for group in running.values():
        group.close()


def _start_group(running: dict[str, Group], kind: str) -> Group:
    if kind not in running:
        group: Cluster | SentinelGroup
        if kind == "sentinel":
            group = SentinelGroup(users=[acl_user("role", "scan")])
        else:
            replicas = 3 if kind == "replicated_cluster" else 0
            group = Cluster(replicas=replicas, users=[acl_user("asking", "cluster|slots", "scan")])
        group.start()
        running[kind] = Group(group)
    return running[kind]


def _check_leaks(server: Server, request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("without_ttl"):
        return
    leaked = [key for key, (_, _, deadline) in server.snapshot().items() if deadline < 0]
    assert not leaked, f"keys without a deadline: {leaked}"


@pytest.fixture
def server(request: pytest.FixtureRequest, _servers: dict[str, Server]) -> Iterator[Server]:
    """An empty server. Afterwards every key left must have a deadline."""
    found = _start(request.config, _servers, request.param)
    found.raw.flushall()
    yield found
    _check_leaks(found, request)


@pytest.fixture
def place(request: pytest.FixtureRequest, _servers: dict[str, Server]) -> Iterator[Server | None]:
    """An empty server, or None for memory, for what has no twin for threads.

    Afterwards every key left must have a deadline.
    """
    if request.param == "memory":
        yield None
        return
    found = _start(request.config, _servers, request.param)
    found.empty()
    yield found
    _check_leaks(found, request)


@pytest.fixture
def cluster(_groups: dict[str, Group]) -> Iterator[Cluster]:
    """Three primaries without keys; slots that the test leaves open are closed."""
    yield from _fresh(_groups, "cluster")


@pytest.fixture
def replicated_cluster(_groups: dict[str, Group]) -> Iterator[Cluster]:
    """The same with a replica each; nodes that the test stops or kills are revived."""
    yield from _fresh(_groups, "replicated_cluster")


def _fresh(running: dict[str, Group], kind: str) -> Iterator[Any]:
    """The servers of a group, without keys; revived at the end."""
    found = _start_group(running, kind)
    found.empty()
    try:
        yield found.group
    finally:
        found.group.revive()


@pytest.fixture
def sentinel_group(_groups: dict[str, Group]) -> Iterator[SentinelGroup]:
    """A master, two replicas and three Sentinels; those that the test ends are revived."""
    yield from _fresh(_groups, "sentinel")


@pytest.fixture
def backend(
    request: pytest.FixtureRequest, _servers: dict[str, Server], _groups: dict[str, Group]
) -> Iterator[tuple[str, Server | None]]:
    """How to make a service ("memory" or "redis", "async" or "sync") and its server."""
    name, _, mode = request.param.rpartition("-")
    if name == "memory":
        yield mode, None
        return
    found: Server
    if request.param == LEAST_PRIVILEGE:
        found = _start_least_privilege(_servers)
    elif request.param in ROUTED:
        found = _start_group(_groups, name.partition("_")[0])
    else:
        found = _start(request.config, _servers, name)
    found.empty()
    yield mode, found
    _check_leaks(found, request)


class Awaited:
    """A service for threads with the methods of one for asyncio; each call has a thread."""

    def __init__(self, service: sessionstore.sync.SessionService) -> None:
        self._service = service

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._service, "close" if name == "aclose" else name)
        if not inspect.ismethod(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(method, *args, **kwargs)

        return call


@pytest.fixture
def app_in_own_slot(request: pytest.FixtureRequest) -> bool:
    """Whether the backend gives an app's state a slot of its own."""
    return request.node.callspec.params["backend"] in APP_APART


ServiceFactory = Callable[..., Any]


@pytest.fixture
async def make_service(
    request: pytest.FixtureRequest, backend: tuple[str, Server | None]
) -> AsyncIterator[ServiceFactory]:
    """Makes services that share what they store; with a TTL in every tier unless told otherwise.

    Memory services share nothing with each other: a test makes one and keeps to it.
    """
    mode, server = backend
    needed = ROUTED.get(request.node.callspec.params["backend"], {})
    async with AsyncExitStack() as stack:

        def make(**options: Any) -> Any:
            options = {**WITH_TTL, **needed, **options}
            service: Any
            if server is None and mode == "async":
                service = sessionstore.InMemorySessionService(**options)
            elif server is None:
                service = Awaited(sessionstore.sync.InMemorySessionService(**options))
            elif mode == "async":
                service = sessionstore.RedisSessionService(server.url, **options)
            else:
                service = Awaited(sessionstore.sync.RedisSessionService(server.url, **options))
            stack.push_async_callback(service.aclose)
            return service

        yield make


@pytest.fixture
def service(make_service: ServiceFactory) -> Any:
    """A service with default options but for a TTL in every tier."""
    return make_service()
