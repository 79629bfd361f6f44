"""Connections to a real server that break, stall or carry invalid bytes, at exact bytes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest
from faults_support import KEY, client_count, make_event, no_unhandled_errors, stored_count, warm
from support.events import ids_of
from support.servers import Server
from support.services import make_service
from support.waiting import poll_until

from benchmarks.rigs.proxy import Direction, Proxy
from sessionstore import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    SessionKey,
    SessionStoreError,
)
from sessionstore.embedded import EmbeddedServer

MODES = ("async", "sync")
SOON_S = 3.0  # for steps that take less than half a second
LATE_S = 1.5  # longer than a request takes on any network
LANES = 4  # connections cut at the same time, to save waiting

both_modes = pytest.mark.parametrize("mode", MODES)
both_directions = pytest.mark.parametrize("direction", ["request", "reply"])


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.embedded.socket_path) as found:
        yield found


@pytest.fixture
def frozen(server: Server) -> Iterator[Any]:
    """A server of this test alone, which can be stopped and continued."""
    with EmbeddedServer(executable=server.embedded.executable) as own:
        yield own
        os.kill(own.pid, signal.SIGCONT)


async def create(service: Any, key: SessionKey = KEY) -> None:
    """Create a session, and open all connections that calls one by one need."""
    await service.get_or_create_session(
        app_name=key.app_name, user_id=key.user_id, session_id=key.session_id
    )
    await warm(service)


async def stored_ids(service: Any, key: SessionKey = KEY) -> list[str]:
    found = await service.get_session(
        app_name=key.app_name, user_id=key.user_id, session_id=key.session_id
    )
    return ids_of(found.events)


async def size_of_append(service: Any, proxy: Proxy, direction: Direction, key: SessionKey) -> int:
    """Bytes that one append takes on a warm connection."""
    await service.append_event(key, make_event(9000))
    before = proxy.passed(direction)
    await service.append_event(key, make_event(9001))
    return proxy.passed(direction) - before


# -- cut --------------------------------------------------------------------------------------


@both_modes
@both_directions
async def test_append_is_exactly_once_wherever_the_connection_is_cut(
    server: Server, mode: str, direction: Direction
) -> None:
    async def run_lane(lane: int) -> int:
        with Proxy(server.embedded.socket_path) as proxy:
            key = SessionKey("a", "u", f"s{lane}")
            service = make_service(mode, proxy.url)
            await create(service, key)
            size = await size_of_append(service, proxy, direction, key)
            cuts = range(lane, size + 1, LANES)
            for number in cuts:
                proxy.cut(direction, number)
                await service.append_event(key, make_event(number))
                proxy.disarm()
            assert proxy.cuts == len(cuts)
            expected = ids_of([make_event(number) for number in (9000, 9001, *cuts)])
            assert await stored_ids(service, key) == expected
            await service.aclose()
            return size

    sizes = await asyncio.gather(*(run_lane(lane) for lane in range(LANES)))
    assert min(sizes) > (200 if direction == "request" else 20)


@both_modes
@pytest.mark.parametrize("name", ["append_event", "delete_session"])
async def test_a_repeat_that_arrives_late_undoes_nothing(
    server: Server, proxy: Proxy, mode: str, name: str
) -> None:
    """The second attempt is sent soon. The server gets it after others undid the first."""

    async def work(session_id: str) -> None:
        if name == "append_event":
            await service.append_event(SessionKey("a", "u", session_id), make_event(1))
        else:
            await service.delete_session(app_name="a", user_id="u", session_id=session_id)

    async def is_done() -> bool:
        stored = server.raw.exists(events_key, session_key)
        return stored == (2 if name == "append_event" else 0)

    async def undo() -> None:
        if name == "append_event":
            await direct.pop_event(KEY)
        else:
            await create(direct)

    session_key, events_key = "session:{a:u}:s", "events:{a:u}:s"
    service, direct = (make_service(mode, url) for url in (proxy.url, server.url))
    for session_id in "xys":
        await create(service, SessionKey("a", "u", session_id))
    await work("x")  # from now on the server knows the script

    async def size_of(call: Awaitable[object]) -> int:
        before = proxy.passed("request")
        await call
        return proxy.passed("request") - before

    size = await size_of(work("y"))
    size_of_read = await size_of(service.get_user_state("a", "nobody"))
    proxy.cut_all()
    await poll_until(lambda: proxy.open_connections == 0, "the end of the connections")
    size_of_handshake = await size_of(service.get_user_state("a", "nobody")) - size_of_read

    proxy.cut("reply", 0)
    proxy.hold("request", size + size_of_handshake + 10)  # these are bytes of the second attempt
    task = asyncio.create_task(work("s"))
    await poll_until(is_done, "the first attempt")
    await undo()
    undone_at = time.monotonic()
    await poll_until(lambda: time.monotonic() > undone_at + LATE_S, "time to pass")
    assert proxy.cuts == 1
    assert proxy.cuts == 1
    assert not task.done()
    stored = server.snapshot()
    proxy.release("request")
    with pytest.raises(BackendUnavailable) as caught:
        await task
    assert caught.value.maybe_applied
    assert server.snapshot() == stored
    await service.aclose()
    await direct.aclose()


@both_modes
async def test_append_whose_script_is_unknown_is_exactly_once_too(
    server: Server, proxy: Proxy, mode: str
) -> None:
    service = make_service(mode, proxy.url)
    await create(service)
    # The server does not know the hash. The cut hits the script's text, which is sent next.
    for number, after in enumerate(range(0, 6000, 250)):
        server.raw.script_flush()
        proxy.cut("request", after)
        await service.append_event(KEY, make_event(number))
        proxy.disarm()
    assert proxy.cuts > 10
    assert await stored_ids(service) == ids_of([make_event(number) for number in range(24)])
    await service.aclose()


@both_modes
@both_directions
async def test_pop_is_never_carried_out_twice(
    server: Server, proxy: Proxy, mode: str, direction: Direction
) -> None:
    service = make_service(mode, proxy.url)
    await create(service)
    ids = ids_of(await service.append_events(KEY, [make_event(number) for number in range(400)]))
    await service.pop_event(KEY)
    before = proxy.passed(direction)
    await service.pop_event(KEY)
    size = proxy.passed(direction) - before
    del ids[-2:]

    direct = make_service(mode, server.url)
    await stored_ids(direct)
    connections = client_count(server) - 1
    outcomes = set()
    # Numbers in replies get one digit more during the loop.
    for number in range(size + 1 if direction == "request" else size + 5):
        await warm(service)
        proxy.cut(direction, number)
        outcome: Any
        [outcome] = await asyncio.gather(service.pop_event(KEY), return_exceptions=True)
        if isinstance(outcome, BackendUnavailable):
            assert outcome.maybe_applied
            await poll_until(
                lambda: client_count(server) <= connections, "the end of the connection"
            )
            now = await stored_ids(direct)
            assert now in (ids, ids[:-1])
            outcomes.add("carried out" if now != ids else "not carried out")
            ids = now
        else:
            outcomes.add("success")
            assert outcome.id == ids.pop()
        proxy.disarm()
        assert await stored_ids(direct) == ids
    if direction == "request":
        assert outcomes == {"carried out", "not carried out"}
    else:
        assert outcomes == {"carried out", "success"}
    await service.aclose()
    await direct.aclose()


@both_modes
async def test_a_connection_that_ends_around_its_handshake_costs_no_time(
    proxy: Proxy, mode: str
) -> None:
    service = make_service(mode, proxy.url)
    await create(service)

    async def ask() -> int:
        """The size of the reply to one small read."""
        before = proxy.passed("reply")
        assert await service.get_user_state("a", "u") == {}
        return proxy.passed("reply") - before

    size = await ask()
    proxy.cut_all()
    handshake = await ask() - size
    assert handshake > 0
    for number in (*range(0, handshake, 11), *range(handshake - 3, handshake + 4)):
        proxy.cut_all()
        proxy.cut("reply", number)
        started = time.monotonic()
        await ask()
        assert time.monotonic() - started < SOON_S
        proxy.disarm()
    await service.aclose()


@both_modes
async def test_an_address_without_a_server_fails_at_once(proxy: Proxy, mode: str) -> None:
    proxy.refuse()
    service = make_service(mode, proxy.url)
    started = time.monotonic()
    with pytest.raises(BackendUnavailable) as caught:
        await service.append_event(KEY, make_event(1))
    assert not caught.value.maybe_applied
    assert time.monotonic() - started < SOON_S
    # After the first connection, calls of every kind wait for the server.
    proxy.accept()
    await service.create_session(app_name="a", user_id="u", session_id="s")
    proxy.refuse()
    reading = asyncio.create_task(stored_ids(service))
    waiting = asyncio.create_task(service.append_event(KEY, make_event(1)))
    await asyncio.wait([waiting, reading], timeout=0.05)
    assert not waiting.done()
    assert not reading.done()
    proxy.accept()
    await waiting
    assert await reading in ([], ["0001"])
    assert await stored_ids(service) == ["0001"]
    await service.aclose()


@both_modes
async def test_a_server_that_is_away_too_long_is_unavailable(proxy: Proxy, mode: str) -> None:
    service = make_service(mode, proxy.url, call_timeout=0.3)
    await create(service)
    proxy.refuse()
    started = time.monotonic()
    with pytest.raises((BackendUnavailable, BackendTimeout)):
        await service.append_event(KEY, make_event(1))
    assert time.monotonic() - started < SOON_S
    await service.aclose()


# -- stall ------------------------------------------------------------------------------------


@both_modes
async def test_a_stopped_server_times_out_and_a_repeat_stores_once(
    frozen: EmbeddedServer, mode: str
) -> None:
    service = make_service(mode, frozen.url, call_timeout=0.5)
    patient = make_service(mode, frozen.url)
    await create(service)
    os.kill(frozen.pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(BackendTimeout) as caught:
        await service.append_event(KEY, make_event(1))
    assert 0.4 < time.monotonic() - started < SOON_S
    assert caught.value.maybe_applied
    waiting = asyncio.create_task(patient.append_event(KEY, make_event(1)))
    os.kill(frozen.pid, signal.SIGCONT)
    await waiting
    await service.append_event(KEY, make_event(1))
    session = await patient.get_session(app_name="a", user_id="u", session_id="s")
    assert ids_of(session.events) == ["0001"]
    await service.aclose()
    await patient.aclose()


@both_modes
async def test_a_read_of_a_stopped_server_times_out_and_applies_nothing(
    frozen: EmbeddedServer, mode: str
) -> None:
    service = make_service(mode, frozen.url, call_timeout=0.3)
    await create(service)
    os.kill(frozen.pid, signal.SIGSTOP)
    with pytest.raises(BackendTimeout) as caught:
        await stored_ids(service)
    assert not caught.value.maybe_applied
    os.kill(frozen.pid, signal.SIGCONT)
    await poll_until_ready(service)
    assert await stored_ids(service) == []
    await service.aclose()


@both_modes
async def test_a_pop_on_a_stopped_server_is_not_sent_again(
    frozen: EmbeddedServer, mode: str
) -> None:
    service = make_service(mode, frozen.url, call_timeout=0.3)
    await create(service)
    await service.append_events(KEY, [make_event(number) for number in range(1, 5)])
    await service.pop_event(KEY)  # the server knows the script now
    os.kill(frozen.pid, signal.SIGSTOP)
    with pytest.raises(BackendTimeout) as caught:
        await service.pop_event(KEY)
    assert caught.value.maybe_applied
    os.kill(frozen.pid, signal.SIGCONT)
    await poll_until_ready(service)
    assert await stored_ids(service) == ["0001", "0002"]
    await service.aclose()


@both_modes
async def test_connecting_to_a_stopped_server_is_bounded_by_the_deadline(
    frozen: EmbeddedServer, mode: str
) -> None:
    # The kernel accepts the connection; the server does not answer the handshake.
    service = make_service(mode, frozen.url, call_timeout=0.3)
    os.kill(frozen.pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises((BackendTimeout, BackendUnavailable)) as caught:
        await create(service)
    assert time.monotonic() - started < SOON_S
    assert not caught.value.maybe_applied
    os.kill(frozen.pid, signal.SIGCONT)
    await poll_until_ready(service)
    await service.aclose()


async def test_closing_does_not_wait_for_a_handshake(frozen: EmbeddedServer) -> None:
    service = make_service("async", frozen.url)
    os.kill(frozen.pid, signal.SIGSTOP)
    async with no_unhandled_errors():
        waiting = asyncio.create_task(create(service))
        await asyncio.sleep(0)
        started = time.monotonic()
        await service.aclose()
        assert time.monotonic() - started < SOON_S
        with pytest.raises(BackendUnavailable):
            await waiting


async def poll_until_ready(service: Any) -> None:
    """Wait until a server that was continued answers."""
    for _ in range(50):
        try:
            await create(service)
        except BackendError:
            continue
        return
    raise AssertionError("the server does not answer")


@both_modes
async def test_a_reply_that_drips_is_bounded_by_the_deadline(proxy: Proxy, mode: str) -> None:
    service = make_service(mode, proxy.url, call_timeout=0.5)
    await create(service)
    proxy.trickle("reply", 0.02)
    started = time.monotonic()

    async def time_of_call() -> float:
        with pytest.raises(BackendTimeout):
            await stored_ids(service)
        return time.monotonic() - started

    # All wait behind one slow reply, and each has a deadline of its own. Threads do not share a
    # connection.
    calls = 5 if mode == "async" else 1
    try:
        async with asyncio.timeout(10):
            times = await asyncio.gather(*(time_of_call() for _ in range(calls)))
    finally:
        proxy.trickle("reply", 0)
        proxy.cut_all()
    assert max(times) < SOON_S
    assert await stored_ids(service) == []
    await service.aclose()


async def test_a_slow_reply_is_dropped_and_the_connection_stays_in_step(proxy: Proxy) -> None:
    service = make_service("async", proxy.url, call_timeout=1)
    for number in range(3):
        await service.update_user_state("a", f"u{number}", {"who": number})
    accepted = proxy.accepted
    # While bytes arrive, the connection is kept: the late reply is read and dropped.
    proxy.trickle("reply", 0.03)
    with pytest.raises(BackendTimeout):
        await service.get_user_state("a", "u0")
    proxy.trickle("reply", 0)
    for number in (1, 2):
        assert await service.get_user_state("a", f"u{number}") == {"who": number}
    assert proxy.accepted == accepted
    await service.aclose()


# -- nonsense ---------------------------------------------------------------------------------

NONSENSE = (b"\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\xff\xfe", b"*9999999999999\r\n")


@both_modes
@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_an_answer_that_is_not_resp_is_an_error_and_no_hang(
    proxy: Proxy, mode: str, nonsense: bytes
) -> None:
    service = make_service(mode, proxy.url)
    await create(service)
    await service.append_events(KEY, [make_event(number) for number in (1, 2, 9)])
    await service.pop_event(KEY)  # the server knows the script now
    proxy.hold("reply")
    async with asyncio.timeout(8), no_unhandled_errors():
        before = proxy.passed("request")
        waiting = asyncio.create_task(service.pop_event(KEY))
        await poll_until(lambda: proxy.passed("request") > before, "the request")
        proxy.inject(nonsense)
        with pytest.raises(BackendUnavailable) as caught:
            await waiting
        assert caught.value.maybe_applied
        assert nonsense.decode("latin-1") not in str(caught.value)
        proxy.release("reply")
        # A call that may be retried is retried, on a new connection.
        await service.append_event(KEY, make_event(3))
        assert await stored_ids(service) == ["0001", "0003"]
    await service.aclose()


@both_modes
@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_a_server_of_another_kind_is_reported(
    mode: str, nonsense: bytes, server: Server
) -> None:
    with Proxy(server.embedded.socket_path) as proxy:
        proxy.greet(nonsense)
        proxy.hold("reply")
        service = make_service(mode, proxy.url, call_timeout=2)
        async with asyncio.timeout(8), no_unhandled_errors():
            with pytest.raises(SessionStoreError) as caught:
                await create(service)
            assert type(caught.value) is BackendUnavailable
            assert not caught.value.maybe_applied
            await service.aclose()


async def test_a_reply_without_a_request_ends_the_connection(proxy: Proxy) -> None:
    service = make_service("async", proxy.url)
    await create(service)
    async with no_unhandled_errors():
        proxy.inject(b"+OK\r\n")
        await poll_until(lambda: proxy.open_connections == 0, "the end of the connection")
        await service.append_event(KEY, make_event(1))
        assert await stored_ids(service) == ["0001"]
    await service.aclose()


@both_modes
async def test_nothing_is_stored_twice_by_a_retry_of_each_kind(
    server: Server, proxy: Proxy, mode: str
) -> None:
    service = make_service(mode, proxy.url)
    await create(service)
    for number in range(20):
        proxy.cut_all()
        await service.append_event(KEY, make_event(number))
    assert stored_count(server, KEY) == 20
    await service.aclose()
