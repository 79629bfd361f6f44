"""What is logged when a primary is replaced: one loss, one failover, no ids."""

from __future__ import annotations

import asyncio
import logging

import pytest
from cluster_support import key_on
from support.events import make_event
from support.services import MODES, make_service
from support.sessions import create

from benchmarks.rigs.clusters import Cluster, SentinelGroup
from sessionstore import SessionKey


def lines(log: pytest.LogCaptureFixture, text: str) -> list[str]:
    """Records at INFO or above that contain a text."""
    return [
        f"{record.levelname} {record.getMessage()}"
        for record in log.records
        if record.name == "sessionstore.transport"
        and record.levelno >= logging.INFO
        and text in record.getMessage()
    ]


def check_texts(log: pytest.LogCaptureFixture) -> None:
    for record in log.records:
        if record.name.startswith("sessionstore"):
            message = record.getMessage()
            assert not any(secret in message for secret in ("secret", "user-", "{", "x-")), message


@pytest.mark.parametrize("mode", MODES)
async def test_a_master_that_is_killed(
    sentinel_group: SentinelGroup, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "sessionstore")
    group = sentinel_group
    service = make_service(mode, group.url, call_timeout=30)
    key = SessionKey("secret-app", "secret-user", "secret-session")
    await create(service, key)
    await service.append_event(key, make_event(0))
    old = group.master()
    old.kill()
    await service.append_event(key, make_event(1))
    new = await asyncio.to_thread(group.wait_for_other_master, old)
    was, now = f"127.0.0.1:{old.port}", f"127.0.0.1:{new.port}"
    [lost] = lines(caplog, "lost the connection")
    assert lost.startswith(f"WARNING lost the connection to {was} (")
    assert lines(caplog, "failover") == [f"INFO followed a failover: {now} has replaced {was}"]
    assert not lines(caplog, "again")
    check_texts(caplog)
    await service.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_a_primary_of_a_cluster_that_stops(
    replicated_cluster: Cluster, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "sessionstore")
    cluster = replicated_cluster
    primary = cluster.primaries()[0]
    [replica] = cluster.replicas_of(primary)
    key = key_on(cluster, primary, "secret-app")
    service = make_service(mode, cluster.url, call_timeout=30)
    await create(service, key)
    await service.append_event(key, make_event(0))
    primary.stop()
    await service.append_event(key, make_event(1))
    was, now = f"127.0.0.1:{primary.port}", f"127.0.0.1:{replica.port}"
    assert lines(caplog, "failover") == [f"INFO followed a failover: {now} has replaced {was}"]
    [given_up] = [line for line in lines(caplog, was) if line.startswith("WARNING")]
    assert given_up.startswith(
        (f"WARNING lost the connection to {was} (", f"WARNING cannot connect to {was} (")
    )
    check_texts(caplog)
    await service.aclose()
