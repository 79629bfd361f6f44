"""What is logged when connections are lost and restored, and what is never logged."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.servers import Server
from support.services import make_service
from support.waiting import poll_until

from benchmarks.rigs.proxy import Proxy
from sessionstore import BackendError, BackendTimeout, BackendUnavailable, Event, SessionKey
from sessionstore.embedded import EmbeddedServer
from sessionstore.transport.log import NodeLog

KEY = SessionKey("secret-app", "secret-user", "secret-session")
SECRETS = ("secret", "{", "EVALSHA", "password")

both_modes = pytest.mark.parametrize("mode", ["async", "sync"])


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """All records of the library; afterwards none may hold an id, a key or a value."""
    caplog.set_level(logging.DEBUG, "sessionstore")
    yield caplog
    for record in caplog.records:
        if record.name.startswith("sessionstore"):
            message = record.getMessage()
            assert not any(secret in message for secret in SECRETS), message


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.embedded.socket_path) as found:
        yield found


def lines(log: pytest.LogCaptureFixture, least: int = logging.INFO) -> list[str]:
    """Level and text of the transport's records at or above a level."""
    return [
        f"{record.levelname} {record.getMessage()}"
        for record in log.records
        if record.name == "sessionstore.transport" and record.levelno >= least
    ]


def append(service: Any, number: int) -> Any:
    event = Event("user", "secret content", id=f"secret-{number}", state_delta={"secret": number})
    return service.append_event(KEY, event)


async def create(service: Any) -> None:
    """Create a session, and open the connections for small calls and for bulk reads."""
    await service.get_or_create_session(
        app_name=KEY.app_name, user_id=KEY.user_id, session_id=KEY.session_id
    )
    await service.append_event(KEY, Event("user"))


@both_modes
async def test_normal_use_and_a_normal_close_log_nothing(
    server: Server, log: pytest.LogCaptureFixture, mode: str
) -> None:
    service = make_service(mode, server.url)
    await create(service)
    await asyncio.gather(*(append(service, number) for number in range(10)))
    await service.aclose()
    assert lines(log, logging.INFO) == []


def test_a_loop_that_ends_logs_nothing(server: Server, log: pytest.LogCaptureFixture) -> None:
    async def use() -> None:
        await create(make_service("async", server.url))

    asyncio.run(use())
    assert lines(log, logging.INFO) == []


@both_modes
async def test_a_killed_connection(
    server: Server, log: pytest.LogCaptureFixture, mode: str
) -> None:
    name = server.embedded.socket_path
    service = make_service(mode, server.url)
    await create(service)
    server.raw.client_kill_filter(_type="normal", skipme=True)
    if mode == "async":  # noticed at once; in threads the next call notices
        await poll_until(lambda: lines(log), "the record of the loss")
    await append(service, 1)
    [lost, back] = lines(log)
    assert lost.startswith(f"WARNING lost the connection to {name} (connection ")
    assert lost.endswith(f"calls waiting: {0 if mode == 'async' else 1}")
    assert back == f"INFO connected to {name} again"
    await service.aclose()
    assert len(lines(log)) == 2


@both_modes
async def test_the_calls_that_waited_are_counted(
    proxy: Proxy, log: pytest.LogCaptureFixture, mode: str
) -> None:
    service = make_service(mode, proxy.url)
    await create(service)
    before = proxy.passed("request")
    await append(service, 0)
    size = proxy.passed("request") - before
    # Slow calls overlap, so that in threads each gets a connection.
    proxy.trickle("reply", 0.01)
    await asyncio.gather(*(append(service, number) for number in range(1, 6)))
    proxy.trickle("reply", 0)
    proxy.hold("reply")
    before = proxy.passed("request")
    appends = [asyncio.create_task(append(service, number)) for number in range(5)]
    await poll_until(lambda: proxy.passed("request") >= before + 5 * size, "the requests")
    proxy.cut_all()
    proxy.release("reply")
    await asyncio.gather(*appends)
    [lost, back] = lines(log)
    assert lost.startswith("WARNING lost the connection to ")
    assert lost.endswith("calls waiting: 5")
    assert back.startswith("INFO connected to ")
    retries = [line for line in lines(log, logging.DEBUG) if "ConnectionLost" in line]
    assert len(retries) == 5
    for retry in retries:
        assert retry.startswith("DEBUG append_event: attempt 1 failed (ConnectionLost); retry in 0")
    await service.aclose()


@both_modes
async def test_a_restart_is_one_incident(
    server: Server, tmp_path: Path, log: pytest.LogCaptureFixture, mode: str
) -> None:
    own = EmbeddedServer(tmp_path / "data", executable=server.embedded.executable)
    await asyncio.to_thread(own.start)
    name = own.socket_path
    # Without a limit: in a log that is trimmed all the time, a repeat cannot be told from a loss.
    service = make_service(mode, own.url, call_timeout=20, session_event_limit=None)
    try:
        await create(service)
        is_over = False

        async def agent(number: int) -> None:
            while not is_over:
                await append(service, number)

        agents = [asyncio.create_task(agent(number)) for number in range(4)]
        await append(service, 5)
        await asyncio.to_thread(own.stop)
        await poll_until(lambda: len(lines(log)) >= 1, "the record of the loss")
        await asyncio.to_thread(own.start)
        await append(service, 6)
        is_over = True
        await asyncio.gather(*agents)
    finally:
        await service.aclose()
        await asyncio.to_thread(own.stop)
    [lost, back] = lines(log)
    assert lost.startswith(f"WARNING lost the connection to {name} (")
    assert back == f"INFO connected to {name} again"
    assert any("retry in" in line for line in lines(log, logging.DEBUG))


@both_modes
async def test_a_silent_server_is_given_up(
    server: Server, log: pytest.LogCaptureFixture, mode: str
) -> None:
    with EmbeddedServer(executable=server.embedded.executable) as own:
        service = make_service(mode, own.url, call_timeout=0.3)
        await create(service)
        os.kill(own.pid, signal.SIGSTOP)
        with pytest.raises(BackendTimeout):
            await append(service, 1)
        name = own.socket_path
        expected = f"WARNING lost the connection to {name} (no answer in time); calls waiting: 1"
        assert lines(log) == [expected]
        os.kill(own.pid, signal.SIGCONT)
        deadline = time.monotonic() + 20
        while len(lines(log)) == 1:
            assert time.monotonic() < deadline
            try:
                await append(service, 1)
            except BackendError:
                continue
        assert lines(log) == [expected, f"INFO connected to {name} again"]
        await service.aclose()


@both_modes
async def test_a_wrong_address_is_an_exception_and_no_record(
    log: pytest.LogCaptureFixture, tmp_path: Path, mode: str
) -> None:
    service = make_service(mode, f"unix://{tmp_path / 'nobody'}")
    with pytest.raises(BackendUnavailable):
        await append(service, 1)
    assert lines(log) == []
    await service.aclose()


SCRIPT = """
import sys
import redis
from sessionstore.sync import RedisSessionService

service = RedisSessionService(sys.argv[1])
service.get_app_state("a")
with redis.Redis(unix_socket_path=sys.argv[2]) as raw:
    raw.client_kill_filter(_type="normal", skipme=True)
service.get_app_state("a")
"""


def test_an_application_without_logging_sees_nothing(server: Server) -> None:
    """Python would print warnings to stderr; the library has a NullHandler."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, server.url, server.embedded.socket_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


# -- incidents -----------------------------------------------------------------------------------


def test_failures_until_a_node_is_back_are_one_incident(log: pytest.LogCaptureFixture) -> None:
    node = NodeLog("host:1")
    node.connected()
    for _ in range(3):
        node.lost("why", 2)
    node.not_connected("why", 2)
    node.connected()
    node.connected()
    node.lost("a connection that was lost together with the others", 1)
    assert lines(log) == [
        "WARNING lost the connection to host:1 (why); calls waiting: 2",
        "INFO connected to host:1 again",
    ]


def test_a_later_failure_is_another_incident(
    log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = NodeLog("host:1")
    node.not_connected("why", 3)
    node.connected()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 2)
    node.lost("why", 0)
    assert lines(log) == [
        "WARNING cannot connect to host:1 (why); calls waiting: 3",
        "INFO connected to host:1 again",
        "WARNING lost the connection to host:1 (why); calls waiting: 0",
    ]
