"""Wrong addresses: one clear error, without a long wait."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest
from support.servers import Server
from support.services import MODES, make_service
from support.sessions import create

from benchmarks.rigs.clusters import Cluster
from sessionstore import BackendUnavailable, SessionKey

KEY = SessionKey("app", "user", "s")
SOON_S = 6.0  # connecting may take 5


@pytest.fixture
def closed() -> Iterator[str]:
    """Addresses where nobody listens."""
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in (first, second)]
        yield ",".join(f"127.0.0.1:{port}" for port in ports)


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


async def fails(mode: str, url: str, message: str) -> None:
    """The first call fails soon, and so does the next. Neither may have been applied."""
    service = make_service(mode, url)
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match=message) as caught:
            async with asyncio.timeout(SOON_S):
                await create(service, KEY)
        assert not caught.value.maybe_applied
    await service.aclose()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("url", ["redis+cluster://{}", "redis+sentinel://{}/agents"])
async def test_no_server_listens(closed: str, mode: str, url: str) -> None:
    await fails(mode, url.format(closed), "no node of the cluster|no master found")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("url", ["redis+cluster://{}", "redis+sentinel://{}/agents"])
async def test_the_server_does_not_answer(silent: str, mode: str, url: str) -> None:
    await fails(mode, url.format(silent), "no node of the cluster|no master found")


@pytest.fixture
def plain_port(server: Server) -> Iterator[int]:
    """The port of a single server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server.raw.config_set("bind", "127.0.0.1")
    server.raw.config_set("port", port)
    yield port
    server.raw.config_set("port", 0)


@pytest.mark.parametrize("mode", MODES)
async def test_a_plain_server_is_no_cluster(plain_port: int, mode: str) -> None:
    await fails(mode, f"redis+cluster://127.0.0.1:{plain_port}", "not part of a cluster: use redis")


@pytest.mark.parametrize("mode", MODES)
async def test_a_plain_server_is_no_sentinel(plain_port: int, mode: str) -> None:
    await fails(
        mode, f"redis+sentinel://127.0.0.1:{plain_port}/agents", "not a Sentinel: use redis"
    )


@pytest.mark.parametrize("mode", MODES)
async def test_a_node_of_a_cluster_is_no_plain_server(cluster: Cluster, mode: str) -> None:
    for node in cluster.nodes:
        service = make_service(mode, f"redis://127.0.0.1:{node.port}", partition_by="app")
        keys = [SessionKey(f"app-{number}", "user", "s") for number in range(8)]
        outcomes = await asyncio.gather(
            *(create(service, key) for key in keys), return_exceptions=True
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert refused
        for error in refused:
            assert isinstance(error, BackendUnavailable)
            assert "part of a cluster, use redis+cluster://" in str(error)
        await service.aclose()
