"""A plain address that leads to another server after a failover: DNS, a virtual IP, a proxy."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from faults_support import KEY, make_event, no_unhandled_errors
from support.events import ids_of
from support.services import MODES, make_service
from support.waiting import wait_until

from benchmarks.rigs.nodes import CONFIG, HOST, Node, free_ports
from sessionstore import BackendRejected, BackendUnavailable

both_modes = pytest.mark.parametrize("mode", MODES)


class Pair:
    """A primary and its replica, and one address that leads to either: a link to its socket."""

    def __init__(self, directory: Path, program: str) -> None:
        self._directory = directory
        self.primary, self.replica = (
            Node(
                name,
                (port, 0),
                program,
                {**CONFIG, "unixsocket": str(directory / name)},
            )
            for name, port in zip("ab", free_ports(2), strict=True)
        )
        for node in (self.primary, self.replica):
            node.wait_for_answer()
        self.point_to(self.primary)
        self.replica.run("REPLICAOF", HOST, self.primary.port)
        self.wait_for_link()
        self.url = f"unix://{directory / 'address'}"

    def point_to(self, node: Node) -> None:
        """Change where new connections go. Open ones stay where they are."""
        link = self._directory / "new"
        link.symlink_to(node.name)
        os.replace(link, self._directory / "address")

    def demote(self) -> None:
        """Let the replica become the primary and the primary its replica; no write is lost."""
        offset = self.primary.info("replication")["master_repl_offset"]
        wait_until(
            lambda: self.replica.info("replication")["slave_repl_offset"] >= offset, "replication"
        )
        self.replica.run("REPLICAOF", "NO", "ONE")
        self.primary.run("REPLICAOF", HOST, self.replica.port)
        self.primary, self.replica = self.replica, self.primary

    def wait_for_link(self) -> None:
        """Return when the replica follows the primary."""
        wait_until(
            lambda: self.replica.info("replication")["master_link_status"] == "up", "replication"
        )

    def close(self) -> None:
        """Stop both."""
        self.primary.close()
        self.replica.close()


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory, server: Any) -> Iterator[Pair]:
    with closing(Pair(tmp_path_factory.mktemp("p"), server.embedded.executable)) as found:
        yield found


async def stored(service: Any) -> list[str]:
    session = await service.get_session(app_name="a", user_id="u", session_id="s")
    return ids_of(session.events)


@both_modes
async def test_calls_follow_a_failover(pair: Pair, mode: str) -> None:
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
            await asyncio.to_thread(pair.wait_for_link)
            await asyncio.to_thread(pair.demote)

            async def move() -> None:
                await asyncio.sleep(0.2)
                pair.point_to(pair.primary)

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
            await asyncio.to_thread(pair.wait_for_link)
    await service.aclose()


@both_modes
async def test_the_old_server_keeps_no_connection(pair: Pair, mode: str) -> None:
    def connections(node: Node) -> int:
        return len(node.client.client_list(_type="normal"))

    service = make_service(mode, pair.url)
    await service.create_session(app_name="a", user_id="u", session_id="s")
    await stored(service)
    old = pair.primary
    await asyncio.to_thread(pair.demote)
    pair.point_to(pair.primary)
    await asyncio.to_thread(pair.wait_for_link)
    await service.append_event(KEY, make_event(1))
    await asyncio.to_thread(wait_until, lambda: connections(old) == 1, "only the test's own")
    await service.aclose()


@both_modes
async def test_a_master_that_is_down_is_not_waited_for(pair: Pair, mode: str) -> None:
    """MASTERDOWN: the replica has lost its master and may not answer reads."""
    service = make_service(mode, pair.url)
    await service.create_session(app_name="a", user_id="u", session_id="s")
    await stored(service)
    old = pair.primary
    await asyncio.to_thread(pair.demote)
    old.run("CONFIG", "SET", "replica-serve-stale-data", "no")
    old.run("REPLICAOF", HOST, 1)
    pair.point_to(pair.primary)
    assert await stored(service) == []
    await service.append_event(KEY, make_event(1))
    assert await stored(service) == ["0001"]
    await service.aclose()


@both_modes
async def test_an_address_that_stays_at_a_replica(pair: Pair, mode: str) -> None:
    pair.point_to(pair.replica)
    service = make_service(mode, pair.url, call_timeout=0.5)
    with pytest.raises((BackendRejected, BackendUnavailable), match="READONLY") as caught:
        await service.create_session(app_name="a", user_id="u", session_id="s")
    assert not caught.value.maybe_applied
    await service.aclose()
