"""Fixtures: real servers, and one service factory over every backend.

Every worker starts servers of its own on unix sockets, one per binary: what is found on PATH, the
one bundled by the `embedded` extra, and those named with `--server PATH`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import redis

import sessionstore
import sessionstore.sync
from sessionstore.embedded import EmbeddedServer, find_servers

# Options that give every key a deadline, so that the leak check sees a key that lost its own.
WITH_TTL: dict[str, Any] = {
    "session_ttl": 600,
    "user_state_ttl": 600,
    "app_state_ttl": 600,
}


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
        backends = ["memory-async", "memory-sync"]
        for name in names:
            backends += [f"{name}-async", f"{name}-sync"]
        metafunc.parametrize("backend", backends, indirect=True)
    elif "server" in metafunc.fixturenames:
        metafunc.parametrize("server", names, indirect=True)


class Server:
    """A running server of this worker, and a raw client to look behind the scenes."""

    def __init__(self, embedded: EmbeddedServer) -> None:
        self.embedded = embedded
        self.url = embedded.url
        self.raw = redis.Redis(unix_socket_path=embedded.socket_path, decode_responses=False)

    def all_keys(self) -> list[Any]:
        """Every key."""
        return list(self.raw.keys("*"))

    def snapshot(self) -> dict[bytes, Any]:
        """Every key with type, content and deadline in milliseconds since 1970 (-1 = none)."""
        found: dict[bytes, Any] = {}
        for key in self.all_keys():
            kind: Any = self.raw.type(key)
            content: Any
            if kind == b"hash":
                content = self.raw.hgetall(key)
            elif kind == b"zset":
                content = self.raw.zrange(key, 0, -1, withscores=True)
            else:
                content = self.raw.dump(key)
            found[key] = (kind, content, self.raw.pexpiretime(key))
        return found


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


def _check_leaks(server: Server, request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("without_ttl"):
        return
    leaked = [key for key in server.all_keys() if server.raw.ttl(key) < 0]
    assert not leaked, f"keys without a deadline: {leaked}"


@pytest.fixture
def server(request: pytest.FixtureRequest, _servers: dict[str, Server]) -> Iterator[Server]:
    """An empty server. Afterwards every key left must have a deadline."""
    found = _start(request.config, _servers, request.param)
    found.raw.flushall()
    yield found
    _check_leaks(found, request)


@pytest.fixture
def backend(
    request: pytest.FixtureRequest, _servers: dict[str, Server]
) -> Iterator[tuple[str, Server | None]]:
    """How to make a service ("memory" or "redis", "async" or "sync") and its server."""
    name, _, mode = request.param.rpartition("-")
    if name == "memory":
        yield mode, None
        return
    found = _start(request.config, _servers, name)
    found.raw.flushall()
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


ServiceFactory = Callable[..., Any]


@pytest.fixture
async def make_service(backend: tuple[str, Server | None]) -> AsyncIterator[ServiceFactory]:
    """Makes services that share what they store; with a TTL in every tier unless told otherwise.

    Memory services share nothing with each other: a test makes one and keeps to it.
    """
    mode, server = backend
    async with AsyncExitStack() as stack:

        def make(**options: Any) -> Any:
            options = {**WITH_TTL, **options}
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
