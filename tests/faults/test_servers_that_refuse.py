"""Servers that are busy or full, that have new passwords, and that do not send large replies."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from faults_support import KEY, make_event, stored_count, warm
from support.events import ids_of
from support.servers import Server
from support.services import MODES, make_service
from support.waiting import poll_until, wait_until

from benchmarks.rigs.proxy import Proxy
from sessionstore import BackendRejected, BackendUnavailable, Event, SessionKey
from sessionstore.embedded import EmbeddedServer

both_modes = pytest.mark.parametrize("mode", MODES)

BUSY_SCRIPT = """
local began = redis.call('TIME')
while true do
    local now = redis.call('TIME')
    if (now[1] - began[1]) * 1000000 + (now[2] - began[2]) > 800000 then return 1 end
end
"""


@pytest.fixture
def own(server: Server) -> Iterator[EmbeddedServer]:
    """A server of the test's own, whose settings it may change."""
    with EmbeddedServer(executable=server.embedded.executable) as found:
        yield found


def raw_client(own: EmbeddedServer) -> Any:
    return redis.Redis(unix_socket_path=own.socket_path)


async def create(service: Any) -> None:
    await service.get_or_create_session(app_name="a", user_id="u", session_id="s")
    await warm(service)


def is_busy(raw: Any) -> bool:
    try:
        raw.ping()
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


@contextmanager
def busy(own: EmbeddedServer) -> Iterator[None]:
    """A foreign script runs for most of a second."""
    with raw_client(own) as raw, raw_client(own) as other:
        raw.config_set("busy-reply-threshold", 10)
        thread = threading.Thread(target=lambda: raw.eval(BUSY_SCRIPT, 0))
        thread.start()
        wait_until(lambda: is_busy(other), "the script runs")
        yield
        thread.join()


@both_modes
@pytest.mark.parametrize("is_new", [False, True])
async def test_a_foreign_script_is_waited_for(own: EmbeddedServer, mode: str, is_new: bool) -> None:
    service = make_service(mode, own.url)
    await create(service)
    if is_new:
        await service.aclose()
        service = make_service(mode, own.url)
    with busy(own):
        await service.append_event(KEY, make_event(1))
        session = await service.get_session(app_name="a", user_id="u", session_id="s")
    assert ids_of(session.events) == ["0001"]
    await service.aclose()


@both_modes
async def test_a_server_with_too_many_clients(own: EmbeddedServer, mode: str) -> None:
    with raw_client(own) as raw:
        raw.config_set("maxclients", 1)
        service = make_service(mode, own.url)
        started = time.monotonic()
        with pytest.raises(BackendUnavailable, match="too many clients") as caught:
            await create(service)
        assert time.monotonic() - started < 3
        assert not caught.value.maybe_applied
        raw.config_set("maxclients", 1000)
        await create(service)
        # A server that was reached before is waited for.
        raw.config_set("maxclients", 1)
        raw.client_kill_filter(_type="normal", skipme=True)
        waiting = asyncio.create_task(service.append_event(KEY, make_event(1)))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        raw.config_set("maxclients", 1000)
        await waiting
    await service.aclose()


@both_modes
async def test_a_reply_that_the_server_does_not_send(own: EmbeddedServer, mode: str) -> None:
    """It closes the connection. The read is not sent again and again, and others are served."""
    other = SessionKey("a", "u", "other")
    with raw_client(own) as raw:
        service = make_service(mode, own.url)
        await create(service)
        for number in range(8):
            await service.append_event(KEY, Event("user", "x" * 500_000, id=str(number)))
        await service.create_session(app_name="a", user_id="u", session_id="other")
        await service.append_event(other, make_event(1))
        raw.config_set("client-output-buffer-limit", "normal 1000000 0 0")
        started = time.monotonic()
        large = service.get_session(app_name="a", user_id="u", session_id="s")
        small = [
            service.get_session(app_name="a", user_id="u", session_id="other") for _ in range(20)
        ]
        failure: Any
        found: list[Any]
        failure, *found = await asyncio.gather(large, *small, return_exceptions=True)
        assert isinstance(failure, BackendUnavailable)
        assert "client-output-buffer-limit" in str(failure)
        assert time.monotonic() - started < 3
        assert [ids_of(session.events) for session in found] == [["0001"]] * 20
        raw.config_set("client-output-buffer-limit", "normal 0 0 0")
        session = await service.get_session(app_name="a", user_id="u", session_id="s")
        assert len(session.events) == 8
    await service.aclose()


@both_modes
async def test_a_connection_that_lost_its_rights_is_replaced(server: Server, mode: str) -> None:
    with Proxy(server.embedded.socket_path) as proxy:
        service = make_service(mode, proxy.url)
        await create(service)
        await service.append_event(KEY, make_event(0))
        accepted = proxy.accepted
        proxy.hold("reply")
        before = proxy.passed("request")
        waiting = asyncio.create_task(service.pop_event(KEY))
        await poll_until(lambda: proxy.passed("request") > before, "the request")
        proxy.inject(b"-NOAUTH Authentication required.\r\n")
        await poll_until(lambda: proxy.accepted > accepted, "a new connection")
        proxy.release("reply")
        await waiting
        await service.append_event(KEY, make_event(1))
        assert stored_count(server, KEY) == 1
        await service.aclose()


@both_modes
async def test_a_server_that_cannot_save_its_data_serves_reads(
    own: EmbeddedServer, mode: str
) -> None:
    """It refuses PING, too, with which a connection begins. Refreshing a TTL is a write."""
    before = make_service(mode, own.url)
    await before.create_session(app_name="a", user_id="u", session_id="s")
    await before.aclose()
    with raw_client(own) as raw:
        # A snapshot is renamed into place, which fails if a folder is there.
        folder = Path(raw.config_get("dir")["dir"]) / raw.config_get("dbfilename")["dbfilename"]
        folder.mkdir()
        raw.config_set("save", "3600 1")
        raw.bgsave()
        wait_until(lambda: raw.info()["rdb_last_bgsave_status"] == "err", "the snapshot fails")
    service = make_service(mode, own.url, refresh_ttl_on_read=False)
    found = await service.get_session(app_name="a", user_id="u", session_id="s")
    assert found is not None
    with pytest.raises(BackendRejected, match="cannot save its data"):
        await service.append_event(found, Event("user", "hello"))
    await service.aclose()
