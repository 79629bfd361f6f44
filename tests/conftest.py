"""Fixtures: real servers, and one service factory for every backend.

tests/README.md lists them. What a test takes decides where it runs: `server`, on every server that
is found; `place`, in memory too; `backend`, `make_service` or `service`, on every backend, async
and sync.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from support.clock import Clock, pass_time
from support.compression import COMPRESSION
from support.servers import Group, Server, Servers, server_paths
from support.services import RING, WITH_TTL, Awaited, ServiceFactory

import sessionstore
import sessionstore.sync
from benchmarks.rigs.clusters import Cluster, SentinelGroup
from benchmarks.rigs.nodes import bundled_server

# Backends of more than one server, with the options that their services need.
ROUTED: dict[str, dict[str, Any]] = {
    "cluster-async": {},
    "cluster-sync": {},
    "cluster_by_app-async": {"partition_by": "app"},
    "cluster_by_app-sync": {"partition_by": "app"},
    "sentinel-async": {},
    "sentinel-sync": {},
}
# A single server, and a user with no more rights than the ACL line of lua/README.md grants.
LEAST_PRIVILEGE = "least_privilege-async"
# In memory and with the least rights: compressed, and encrypted with a data key for each user.
ENCRYPTED = ("encrypted_memory-async", "encrypted-sync")
# In memory, with everything compressed that becomes smaller.
COMPRESSED = "compressed-async"
# Backends on which the app tier has its own slot, so a script cannot use it with other keys.
APP_IN_OWN_SLOT = {"cluster-async", "cluster-sync"}


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
        "markers", "without_ttl: the test leaves keys without a deadline (skips the leak check)"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses a server on every server, and the contract on every backend."""
    names = list(server_paths(metafunc.config.getoption("--server")))
    if "backend" in metafunc.fixturenames:
        backends: list[Any] = ["memory-async", "memory-sync", ENCRYPTED[0]]
        if "make_service" in metafunc.fixturenames:
            backends.append(COMPRESSED)
        for name in names:
            backends += [f"{name}-async", f"{name}-sync"]
        if bundled_server():
            backends.append(LEAST_PRIVILEGE)
            if "/contract/" in metafunc.module.__file__:
                backends.append(ENCRYPTED[1])
            # Only `make_service` knows the options that a backend needs.
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
    """Run all tests that use a cluster in one worker, and all that use Sentinels in one worker.

    The mark `xdist_group` is meant for that, but pytest-xdist 3.8 loses it under pytest 9.
    """
    # pytest-xdist has no types.
    from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]

    class Scheduler(LoadGroupScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            is_here = "/cluster/" in nodeid or "/test_cluster_" in nodeid
            if "[sentinel-" in nodeid or (is_here and "sentinel" in nodeid):
                return "sentinel"
            if "[cluster" in nodeid or is_here:
                return "cluster"
            if "/web/" in nodeid:  # one worker has the browser
                return "web"
            scope: str = super()._split_scope(nodeid)
            return scope

    return Scheduler(config, log)


@pytest.fixture(scope="session")
def _servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    servers = Servers(request.config.getoption("--server"))
    yield servers
    servers.close()


def _check_leaks(server: Server, request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("without_ttl"):
        return
    leaked = server.without_deadline()
    assert not leaked, f"keys without a deadline: {leaked}"


@pytest.fixture
def server(request: pytest.FixtureRequest, _servers: Servers) -> Iterator[Server]:
    """An empty server. At the end every key that is left must have a deadline."""
    found = _servers.single(request.param)
    found.empty()
    yield found
    _check_leaks(found, request)


@pytest.fixture
def place(request: pytest.FixtureRequest, _servers: Servers) -> Iterator[Server | None]:
    """The same, or None for memory. For tests that use only the async service."""
    if request.param == "memory":
        yield None
        return
    found = _servers.single(request.param)
    found.empty()
    yield found
    _check_leaks(found, request)


@pytest.fixture
def cluster(_servers: Servers) -> Iterator[Cluster]:
    """A cluster of three primaries, empty. Migrations that the test leaves open are finished."""
    yield from _fresh(_servers.group("cluster"))


@pytest.fixture
def replicated_cluster(_servers: Servers) -> Iterator[Cluster]:
    """The same with one replica each. Nodes that the test stops or kills are revived."""
    yield from _fresh(_servers.group("replicated_cluster"))


@pytest.fixture
def sentinel_group(_servers: Servers) -> Iterator[SentinelGroup]:
    """A master, two replicas and three Sentinels. Those that the test ends are revived."""
    yield from _fresh(_servers.group("sentinel"))


def _fresh(found: Group) -> Iterator[Any]:
    """The servers of a group, empty; revived at the end."""
    found.empty()
    try:
        yield found.group
    finally:
        found.group.revive()


@pytest.fixture
def backend(
    request: pytest.FixtureRequest, _servers: Servers
) -> Iterator[tuple[str, Server | None]]:
    """The mode of a service ("async" or "sync") and its empty server, None for memory."""
    name, _, mode = request.param.rpartition("-")
    if name in ("memory", "encrypted_memory") or request.param == COMPRESSED:
        yield mode, None
        return
    found: Server
    if request.param in (LEAST_PRIVILEGE, *ENCRYPTED):
        found = _servers.least_privilege()
    elif request.param in ROUTED:
        found = _servers.group(name.partition("_")[0])
    else:
        found = _servers.single(name)
    found.empty()
    yield mode, found
    _check_leaks(found, request)


@pytest.fixture
def app_in_own_slot(request: pytest.FixtureRequest) -> bool:
    """Whether the backend keeps the app tier in a slot of its own."""
    return request.node.callspec.params["backend"] in APP_IN_OWN_SLOT


@pytest.fixture
def _clock() -> Clock:
    return Clock()


@pytest.fixture
def advance_time(backend: tuple[str, Server | None], _clock: Clock) -> Callable[[float], None]:
    """Lets seconds pass for all data that the services of `make_service` have stored."""
    _, server = backend

    def advance(seconds: float) -> None:
        if server is None:
            _clock.advance(seconds)
        else:
            pass_time(server, seconds * 1000)

    return advance


def encrypted(request: pytest.FixtureRequest, server: Server | None) -> dict[str, Any]:
    """The options of the backends that encrypt. The key store is another database of the server."""
    if request.node.callspec.params["backend"] not in ENCRYPTED:
        return {}
    key_store = "memory://" if server is None else server.key_store_url
    return {"compression": COMPRESSION, "encryption": RING, "key_store": key_store}


@pytest.fixture
async def make_service(
    request: pytest.FixtureRequest, backend: tuple[str, Server | None], _clock: Clock
) -> AsyncIterator[ServiceFactory]:
    """Makes services that share their data, with a TTL in every tier by default.

    Services in memory share nothing with each other, so a test makes only one.
    """
    mode, server = backend
    name = request.node.callspec.params["backend"]
    needed = {"compression": COMPRESSION} if name == COMPRESSED else ROUTED.get(name, {})
    async with AsyncExitStack() as stack:

        def make(**options: Any) -> Any:
            options = {**WITH_TTL, **needed, **encrypted(request, server), **options}
            service: Any
            if server is None and mode == "async":
                service = sessionstore.InMemorySessionService(clock=_clock, **options)
            elif server is None:
                service = Awaited(sessionstore.sync.InMemorySessionService(clock=_clock, **options))
            elif mode == "async":
                service = sessionstore.RedisSessionService(server.url, **options)
            else:
                service = Awaited(sessionstore.sync.RedisSessionService(server.url, **options))
            stack.push_async_callback(service.aclose)
            return service

        yield make


@pytest.fixture
def service(make_service: ServiceFactory) -> Any:
    """A service with default options and a TTL in every tier."""
    return make_service()
