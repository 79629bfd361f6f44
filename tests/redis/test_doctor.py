"""The command `sessionstore doctor`: servers and sessions that are broken in one way on purpose."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from support.servers import acl_user

from sessionstore import Event, SessionKey
from sessionstore.cli import command_line
from sessionstore.cli.doctor import server_checks
from sessionstore.embedded import EmbeddedServer, find_servers
from sessionstore.sync import RedisSessionService

KEY = SessionKey("shop", "ann", "1")
SESSION, EVENTS, INDEX = "session:{shop:ann}:1", "events:{shop:ann}:1", "sessions:{shop:ann}"

pytestmark = pytest.mark.skipif(not find_servers(), reason="no Redis or Valkey server installed")


@pytest.fixture(scope="module")
def started() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def raw(started: EmbeddedServer) -> Iterator[Any]:
    """A raw client of a healthy server with one session. Settings are restored at the end."""
    with redis.Redis(unix_socket_path=started.socket_path, decode_responses=True) as client:
        before: Any = client.config_get("*")
        client.flushall()
        client.config_set("save", "3600 1")
        client.config_resetstat()
        client.slowlog_reset()
        with RedisSessionService(started.url, session_ttl=3600) as service:
            session = service.create_session(
                app_name="shop", user_id="ann", session_id="1", state={"n": 1}
            )
            service.append_events(session, [Event("user", number) for number in range(3)])
        yield client
        after: Any = client.config_get("*")
        for name, value in before.items():
            if after[name] != value:
                client.config_set(name, value)
        client.acl_deluser("weak")


def run(url: str, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit status, and the findings that are not "ok", by name."""
    result = CliRunner().invoke(command_line(), ["doctor", "--url", url, "--json", *options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return result.exit_code, {each["check"]: each for each in found if each["status"] != "ok"}


@pytest.mark.usefixtures("raw")
def test_a_healthy_server_has_no_problem(started: EmbeddedServer) -> None:
    assert run(started.url, "--full") == (0, {})
    result = CliRunner().invoke(command_line(), ["doctor", "--url", started.url])
    assert result.stdout.endswith(" checks: 0 problems\n")


def evict(raw: Any) -> None:
    raw.config_set("maxmemory", raw.info()["used_memory"] + 2_000_000)
    raw.config_set("maxmemory-policy", "allkeys-random")
    for number in range(100):
        raw.set(f"other:{number}", "x" * 100_000)
    raw.config_set("maxmemory-policy", "noeviction")
    raw.flushall()
    raw.config_set("maxmemory", 0)


def log_a_slow_script(raw: Any) -> None:
    raw.config_set("slowlog-log-slower-than", 0)
    with RedisSessionService(f"unix://{raw.connection_pool.connection_kwargs['path']}") as service:
        service.append_event(KEY, Event("user", "slow"))
    raw.config_set("slowlog-log-slower-than", 10_000)


def fail_a_snapshot(raw: Any) -> None:
    raw.config_set("dbfilename", "dump.rdb")
    raw.execute_command("BGSAVE")


SERVERS: Mapping[str, Callable[[Any], Any]] = {
    "eviction policy": lambda raw: raw.config_set("maxmemory-policy", "allkeys-lru"),
    "evicted keys": evict,
    "memory": lambda raw: raw.config_set("maxmemory", raw.info()["used_memory"] + 1),
    "persistence": lambda raw: raw.config_set("save", ""),
    "replication": lambda raw: raw.config_set("min-replicas-to-write", 1),
    "output buffers": lambda raw: raw.config_set("client-output-buffer-limit", "normal 1mb 0 0"),
    "connections": lambda raw: raw.config_set("maxclients", 2),
    "slow scripts": log_a_slow_script,
}


@pytest.mark.parametrize("check", SERVERS)
def test_a_server_with_one_fault(started: EmbeddedServer, raw: Any, check: str) -> None:
    SERVERS[check](raw)
    exit_code, found = run(started.url)
    assert exit_code == 1
    assert list(found) == [check]
    assert found[check]["why"]
    assert found[check]["fix"]


SESSIONS: Mapping[str, Callable[[Any], Any]] = {
    "missing events": lambda raw: raw.zremrangebyrank(EVENTS, 0, 0),
    "lost headers": lambda raw: raw.delete(SESSION),
    "corrupt values": lambda raw: raw.hset(SESSION, ".n", "{"),
    "deadlines": lambda raw: raw.persist(EVENTS),
    "leases": lambda raw: raw.hset(
        SESSION, mapping={"turn_holder": "x", "turn_until_us": 2**52, "turn_token": 1}
    ),
    "sessions that no list shows": lambda raw: raw.zrem(INDEX, "1"),
    "expired sessions in the index": lambda raw: raw.zadd(INDEX, {"gone": 1}),
}


@pytest.mark.parametrize("check", SESSIONS)
def test_a_session_with_one_fault(started: EmbeddedServer, raw: Any, check: str) -> None:
    SESSIONS[check](raw)
    exit_code, found = run(started.url)
    assert exit_code == 1
    if check == "lost headers":
        found.pop("expired sessions in the index")  # its entry is left
    assert list(found) == [check]
    assert "shop / ann / " in found[check]["saw"]


def test_repair_removes_expired_sessions_from_the_index(started: EmbeddedServer, raw: Any) -> None:
    raw.zadd(INDEX, {"gone": 1})
    assert run(started.url, "--repair")[0] == 1
    assert run(started.url) == (0, {})
    assert raw.zrange(INDEX, 0, -1) == ["1"]


def test_the_rights_that_are_checked_are_those_of_the_readme() -> None:
    commands = {rule[1:] for rule in acl_user() if rule.startswith("+")}
    assert set(server_checks.RIGHTS[""].split()) == commands


def test_missing_rights_are_named(started: EmbeddedServer, raw: Any) -> None:
    raw.execute_command("ACL", "SETUSER", "weak", "on", ">secret", "~*", "+@all", "-zrem", "-wait")
    url = started.url.replace("://", "://weak:secret@")
    exit_code, found = run(url)
    assert exit_code == 1
    assert list(found) == ["rights"]
    assert found["rights"]["fix"] == "ACL SETUSER weak +zrem"


def test_checks_that_need_more_rights_are_reported(started: EmbeddedServer, raw: Any) -> None:
    rules = ("+@all", "-config", "-slowlog", "-acl")
    raw.execute_command("ACL", "SETUSER", "weak", "on", ">secret", "~*", *rules)
    exit_code, found = run(started.url.replace("://", "://weak:secret@"))
    assert exit_code == 0
    assert {each["status"] for each in found.values()} == {"unknown"}
    assert set(found) == {"persistence", "output buffers", "slow scripts", "rights"}


@pytest.mark.usefixtures("raw")
def test_a_clock_that_is_wrong(started: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 60)
    assert list(run(started.url)[1]) == ["clock"]


def test_a_replica_is_an_error(started: EmbeddedServer, raw: Any) -> None:
    raw.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        found = run(started.url)[1]
    finally:
        raw.execute_command("REPLICAOF", "NO", "ONE")
    assert "role" in found
