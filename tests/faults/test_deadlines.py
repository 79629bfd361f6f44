"""No call takes longer than `call_timeout`: connecting, handshake, retries and WAIT included."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
from faults_support import KEY, make_event
from support.servers import Server
from support.services import make_service
from support.waiting import poll_until

from benchmarks.rigs.proxy import Proxy
from sessionstore import BackendTimeout, NotReplicated
from sessionstore.embedded import EmbeddedServer

CALL_TIMEOUT_S = 0.5
MARGIN_S = 1.0  # for a busy machine

both_modes = pytest.mark.parametrize("mode", ["async", "sync"])


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.embedded.socket_path) as found:
        yield found


@asynccontextmanager
async def in_time(mode: str, url: str, **options: Any) -> AsyncIterator[Any]:
    """A service. The body must take no longer than `call_timeout`."""
    service = make_service(mode, url, call_timeout=CALL_TIMEOUT_S, **options)
    started = time.monotonic()
    try:
        yield service
        assert time.monotonic() - started < CALL_TIMEOUT_S + MARGIN_S
    finally:
        await service.aclose()


@both_modes
async def test_a_server_that_never_answers(proxy: Proxy, mode: str) -> None:
    proxy.hold("reply")
    async with in_time(mode, proxy.url) as service:
        with pytest.raises(BackendTimeout) as caught:
            await service.append_event(KEY, make_event(1))
        assert not caught.value.maybe_applied


@both_modes
async def test_a_handshake_whose_replies_drip(proxy: Proxy, mode: str) -> None:
    """No single byte is late, but all together are."""
    proxy.trickle("reply", 0.1)
    try:
        async with in_time(mode, proxy.url) as service:
            with pytest.raises(BackendTimeout) as caught:
                await service.append_event(KEY, make_event(1))
            assert not caught.value.maybe_applied
    finally:
        proxy.cut_all()


@both_modes
async def test_a_server_that_falls_silent_in_the_handshake(proxy: Proxy, mode: str) -> None:
    for after in (1, 7, 13):  # bytes of the replies
        proxy.hold("reply", after=after)
        async with in_time(mode, proxy.url) as service:
            with pytest.raises(BackendTimeout):
                await service.append_event(KEY, make_event(1))
        proxy.cut_all()
        proxy.release("reply")


@pytest.fixture
def full_ports() -> Iterator[list[int]]:
    """Ports whose queues of new connections are full: connecting hangs."""
    with ExitStack() as stack:
        ports = []
        for _ in range(4):
            listening = stack.enter_context(socket.socket())
            listening.bind(("127.0.0.1", 0))
            listening.listen(0)
            for _ in range(10):
                connecting = stack.enter_context(socket.socket())
                connecting.setblocking(False)
                connecting.connect_ex(listening.getsockname())
                if not select.select([], [connecting], [], 0.1)[1]:
                    break
            else:
                pytest.skip("this system's queues are never full")
            ports.append(listening.getsockname()[1])
        yield ports


@both_modes
async def test_a_name_with_many_addresses_that_do_not_answer(
    full_ports: list[int], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in full_ports
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    async with in_time(mode, "redis://many.example") as service:
        with pytest.raises(BackendTimeout) as caught:
            await service.append_event(KEY, make_event(1))
        assert not caught.value.maybe_applied


@both_modes
async def test_a_large_request_that_a_stopped_server_does_not_read(
    server: Server, mode: str
) -> None:
    with EmbeddedServer(executable=server.embedded.executable) as own:
        service = make_service(mode, own.url, call_timeout=CALL_TIMEOUT_S)
        await service.create_session(app_name="a", user_id="u", session_id="s")
        os.kill(own.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(BackendTimeout):
                await service.update_session_state(KEY, {f"{n}": "x" * 900_000 for n in range(8)})
            assert time.monotonic() - started < CALL_TIMEOUT_S + MARGIN_S
        finally:
            os.kill(own.pid, signal.SIGCONT)
        await service.aclose()


@both_modes
async def test_a_server_that_answers_the_write_but_not_the_wait(proxy: Proxy, mode: str) -> None:
    patient = make_service(mode, proxy.url)
    await patient.create_session(app_name="a", user_id="u", session_id="s")
    await patient.append_event(KEY, make_event(1))
    before = proxy.passed("reply")
    await patient.append_event(KEY, make_event(2))
    size = proxy.passed("reply") - before
    await patient.aclose()
    service = make_service(mode, proxy.url, call_timeout=CALL_TIMEOUT_S, wait_replicas=(1, 0.001))
    with pytest.raises(NotReplicated):  # there are no replicas; but connections are open now
        await service.append_event(KEY, make_event(3))
    proxy.hold("reply", after=size)
    started = time.monotonic()
    with pytest.raises(NotReplicated, match="did not report in time"):
        await service.append_event(KEY, make_event(4))
    assert time.monotonic() - started < CALL_TIMEOUT_S + MARGIN_S
    proxy.release("reply")
    with pytest.raises(NotReplicated, match="0 of 1"):
        await service.append_event(KEY, make_event(5))
    page = await service.get_events(KEY, limit=10)
    assert [event.id for event in page.events] == ["0001", "0002", "0003", "0004", "0005"]
    await service.aclose()


@both_modes
async def test_a_server_that_comes_and_goes(proxy: Proxy, mode: str) -> None:
    """Retries of a read that is cut off again and again end by the deadline too."""
    service = make_service(mode, proxy.url, call_timeout=CALL_TIMEOUT_S)
    await service.get_user_state("a", "u")
    is_over = False

    async def keep_cutting() -> None:
        while not is_over:
            await asyncio.to_thread(proxy.cut_all)
            await poll_until(lambda: proxy.open_connections or is_over, "a connection")

    proxy.hold("reply")
    cutting = asyncio.create_task(keep_cutting())
    started = time.monotonic()
    with pytest.raises(Exception, match="get_user_state"):
        await service.get_user_state("a", "u")
    assert time.monotonic() - started < CALL_TIMEOUT_S + MARGIN_S
    is_over = True
    await cutting
    await service.aclose()
