"""A plain address that leads to another server after a failover: DNS, a virtual IP, a proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from faults_support import KEY, make_event, no_unhandled_errors
from support.events import ids_of
from support.servers import Server
from support.services import MODES, make_service
from support.waiting import wait_until

from benchmarks.rigs.addresses import MovingAddress
from benchmarks.rigs.nodes import HOST, Node
from sessionstore import BackendRejected, BackendUnavailable
from sessionstore.embedded.binaries import ServerBinary, inspect_server

both_modes = pytest.mark.parametrize("mode", MODES)


@pytest.fixture
def pair(server: Server) -> Iterator[MovingAddress]:
    binary = inspect_server(server.embedded.executable)
    assert isinstance(binary, ServerBinary)
    with MovingAddress(server=binary) as found:
        yield found


async def stored(service: Any) -> list[str]:
    session = await service.get_session(app_name="a", user_id="u", session_id="s")
    return ids_of(session.events)


@both_modes
async def test_calls_follow_a_failover(pair: MovingAddress, mode: str) -> None:
    service = make_service(mode, pair.url)
    async with no_unhandled_errors():
        await service.create_session(app_name="a", user_id="u", session_id="s")
        count = 0
        for _ in range(2):
            await asyncio.gather(
                *(service.append_event(KEY, make_event(count + n)) for n in range(10))
            )
            count += 10
            await stored(service)
            await asyncio.to_thread(pair.wait_until_settled)
            await asyncio.to_thread(pair.demote)

            async def move() -> None:
                await asyncio.sleep(0.2)
                pair.lead_to(pair.primary)

            # Some calls meet the old server and wait for the address to change.
            moving = asyncio.create_task(move())
            await asyncio.gather(
                *(service.append_event(KEY, make_event(count + n)) for n in range(10))
            )
            count += 10
            await moving
            assert len(await stored(service)) == count  # reads go to the new primary too
            # A pop is never sent again, but nothing was done with this one.
            await service.append_event(KEY, await service.pop_event(KEY))
            await asyncio.to_thread(pair.wait_until_settled)
    await service.aclose()


@both_modes
async def test_the_old_server_keeps_no_connection(pair: MovingAddress, mode: str) -> None:
    def connections(node: Node) -> int:
        return len(node.client.client_list(_type="normal"))

    service = make_service(mode, pair.url)
    await service.create_session(app_name="a", user_id="u", session_id="s")
    await stored(service)
    old = pair.primary
    await asyncio.to_thread(pair.demote)
    pair.lead_to(pair.primary)
    await asyncio.to_thread(pair.wait_until_settled)
    await service.append_event(KEY, make_event(1))
    await asyncio.to_thread(wait_until, lambda: connections(old) == 1, "only the test's own")
    await service.aclose()


@both_modes
async def test_a_master_that_is_down_is_not_waited_for(pair: MovingAddress, mode: str) -> None:
    """MASTERDOWN: the replica has lost its master and may not answer reads."""
    service = make_service(mode, pair.url)
    await service.create_session(app_name="a", user_id="u", session_id="s")
    await stored(service)
    old = pair.primary
    await asyncio.to_thread(pair.demote)
    old.run("CONFIG", "SET", "replica-serve-stale-data", "no")
    old.run("REPLICAOF", HOST, 1)
    pair.lead_to(pair.primary)
    assert await stored(service) == []
    await service.append_event(KEY, make_event(1))
    assert await stored(service) == ["0001"]
    await service.aclose()


@both_modes
async def test_an_address_that_stays_at_a_replica(pair: MovingAddress, mode: str) -> None:
    pair.lead_to(pair.replica)
    service = make_service(mode, pair.url, call_timeout=0.5)
    with pytest.raises((BackendRejected, BackendUnavailable), match="READONLY") as caught:
        await service.create_session(app_name="a", user_id="u", session_id="s")
    assert not caught.value.maybe_applied
    await service.aclose()
