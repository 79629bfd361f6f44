"""No call takes longer than `call_timeout`, discovery included."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from cluster_support import key_on
from support.events import make_event
from support.services import MODES, make_service
from support.sessions import create

from benchmarks.rigs.clusters import Cluster, SentinelGroup
from sessionstore import BackendError, BackendTimeout, SessionKey

KEY = SessionKey("app", "user", "s")
MARGIN_S = 1.0  # for a busy machine


@pytest.fixture
def silent() -> Iterator[list[str]]:
    """Addresses that accept connections and never answer."""
    with ExitStack() as stack:
        listening = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
        yield [f"127.0.0.1:{each.getsockname()[1]}" for each in listening]


async def _fails_in_time(service: Any, key: SessionKey, call_timeout: float) -> None:
    started = time.monotonic()
    with pytest.raises(BackendTimeout) as caught:
        await service.append_event(key, make_event(1))
    assert time.monotonic() - started < call_timeout + MARGIN_S
    assert not caught.value.maybe_applied


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("url", ["redis+cluster://{}", "redis+sentinel://{}/agents"])
async def test_first_calls_where_no_node_answers(silent: list[str], mode: str, url: str) -> None:
    service = make_service(mode, url.format(",".join(silent)), call_timeout=0.5)
    await asyncio.gather(*(_fails_in_time(service, KEY, 0.5) for _ in range(3)))
    await service.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_a_slow_discovery_and_then_a_silent_node(
    silent: list[str], replicated_cluster: Cluster, mode: str
) -> None:
    """A silent node delays the discovery by two seconds; the call's own node is silent too."""
    cluster = replicated_cluster
    primary, other, _ = cluster.primaries()
    key = key_on(cluster, primary)
    url = f"redis+cluster://{silent[0]},127.0.0.1:{other.port}"
    service = make_service(mode, url, call_timeout=2.5)
    primary.stop()
    try:
        await _fails_in_time(service, key, 2.5)
    finally:
        primary.cont()
    await service.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_a_silent_sentinel_does_not_slow_down_later_calls(
    silent: list[str], sentinel_group: SentinelGroup, mode: str
) -> None:
    """The Sentinels are asked every half a second, the silent one last."""
    port = sentinel_group.sentinels[0].port
    url = f"redis+sentinel://{silent[0]},127.0.0.1:{port}/agents"
    service = make_service(mode, url, call_timeout=5)
    await create(service, KEY)
    end = time.monotonic() + 1.5
    number = 0
    longest_s = 0.0
    while time.monotonic() < end:
        started = time.monotonic()
        await service.append_event(KEY, make_event(number))
        longest_s = max(longest_s, time.monotonic() - started)
        number += 1
    assert longest_s < MARGIN_S
    await service.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_calls_during_a_poll_of_silent_sentinels(
    sentinel_group: SentinelGroup, mode: str
) -> None:
    """No Sentinel can say whether the master was replaced, so calls go to the known one."""
    group = sentinel_group
    service = make_service(mode, group.url, call_timeout=1)
    await create(service, KEY)
    for sentinel in group.sentinels:
        sentinel.stop()
    try:
        end = time.monotonic() + 2
        number = 0
        while time.monotonic() < end:
            await service.append_event(KEY, make_event(number))
            number += 1
    except BackendError as error:
        raise AssertionError("a call failed though the master works") from error
    finally:
        for sentinel in group.sentinels:
            sentinel.kill()  # after SIGCONT it would refuse failovers for 30 seconds
    assert number > 2
    await service.aclose()
