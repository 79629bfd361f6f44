"""The command `sessionstore doctor`: servers and sessions that are broken in one way on purpose."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from redis.backoff import NoBackoff
from redis.retry import Retry
from support.servers import acl_user

from benchmarks.rigs.nodes import wait_until
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
        client.save()
        client.flushall()
        client.config_set("save", "3600 1")
        client.config_set("maxmemory", 1 << 30)
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
    raw.config_set("maxmemory", 1 << 30)


def log_a_slow_script(raw: Any) -> None:
    raw.config_set("slowlog-log-slower-than", 0)
    with RedisSessionService(f"unix://{raw.connection_pool.connection_kwargs['path']}") as service:
        service.append_event(KEY, Event("user", "slow"))
    raw.config_set("slowlog-log-slower-than", 10_000)


def fail_a_snapshot(raw: Any) -> None:
    # A save is renamed into place, which fails if a folder is there.
    folder = Path(raw.config_get("dir")["dir"]) / raw.config_get("dbfilename")["dbfilename"]
    folder.unlink(missing_ok=True)
    folder.mkdir()
    raw.bgsave()
    wait_until(lambda: raw.info()["rdb_last_bgsave_status"] == "err", "the save fails")
    folder.rmdir()


def reject_a_connection(raw: Any) -> None:
    raw.config_set("maxclients", 1)
    once = Retry(NoBackoff(), 0)
    with pytest.raises(redis.ConnectionError):
        redis.Redis(
            unix_socket_path=raw.connection_pool.connection_kwargs["path"], retry=once
        ).ping()
    raw.config_set("maxclients", 10_000)


def write_a_file_without_sync(raw: Any) -> None:
    raw.config_set("appendfsync", "no")
    raw.config_set("appendonly", "yes")
    wait_until(lambda: not raw.info()["aof_rewrite_in_progress"], "the file is written")


SERVERS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "evicts": ("eviction policy", lambda raw: raw.config_set("maxmemory-policy", "allkeys-lru")),
    "has evicted": ("evicted keys", evict),
    "nearly full": (
        "memory",
        lambda raw: raw.config_set("maxmemory", int(raw.info()["used_memory"] * 1.05)),
    ),
    "full": ("memory", lambda raw: raw.config_set("maxmemory", 1)),
    "no maxmemory": ("memory", lambda raw: raw.config_set("maxmemory", 0)),
    "saves nothing": ("persistence", lambda raw: raw.config_set("save", "")),
    "failed to save": ("persistence", fail_a_snapshot),
    "file without sync": ("persistence", write_a_file_without_sync),
    "lacks replicas": ("replication", lambda raw: raw.config_set("min-replicas-to-write", 1)),
    "cuts reads": (
        "output buffers",
        lambda raw: raw.config_set("client-output-buffer-limit", "normal 1mb 0 0"),
    ),
    "few connections": ("connections", lambda raw: raw.config_set("maxclients", 2)),
    "rejected a connection": ("connections", reject_a_connection),
    "slow script": ("slow scripts", log_a_slow_script),
}


@pytest.mark.parametrize("fault", SERVERS)
def test_a_server_with_one_fault(started: EmbeddedServer, raw: Any, fault: str) -> None:
    check, spoil = SERVERS[fault]
    spoil(raw)
    exit_code, found = run(started.url)
    assert exit_code == 1
    assert list(found) == [check]
    assert found[check]["why"]
    assert found[check]["fix"]


def expire_only_the_other_session(raw: Any) -> None:
    with RedisSessionService(f"unix://{raw.connection_pool.connection_kwargs['path']}") as service:
        service.create_session(app_name="shop", user_id="ann", session_id="2")


SESSIONS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "lost an event": ("missing events", lambda raw: raw.zremrangebyrank(EVENTS, 0, 0)),
    "lost its log": ("missing events", lambda raw: raw.delete(EVENTS)),
    "lost its header": ("lost headers", lambda raw: raw.delete(SESSION)),
    "state is not JSON": ("corrupt values", lambda raw: raw.hset(SESSION, ".n", "{")),
    "event is not JSON": (
        "corrupt values",
        lambda raw: (raw.zpopmax(EVENTS), raw.zadd(EVENTS, {"{": 1})),
    ),
    "version is not a number": ("corrupt values", lambda raw: raw.hset(SESSION, "version", "x")),
    "log is a text": ("corrupt values", lambda raw: raw.set(EVENTS, "x", keepttl=True)),
    "state of the user is not JSON": (
        "corrupt values",
        lambda raw: raw.hset("userdata:{shop:ann}", "k", "{"),
    ),
    "log stays": ("deadlines", lambda raw: raw.persist(EVENTS)),
    "log expires first": ("deadlines", lambda raw: raw.expire(EVENTS, 60)),
    "index expires first": ("deadlines", lambda raw: raw.expire(INDEX, 60)),
    "all stays": (
        "keys without deadline",
        lambda raw: [raw.persist(key) for key in (SESSION, EVENTS, INDEX)],
    ),
    "fragments stay": (
        "keys without deadline",
        lambda raw: raw.zadd("stream:{shop:ann}:1", {"{}": 1}),
    ),
    "another one never expires": ("sessions that never expire", expire_only_the_other_session),
    "held for years": (
        "leases",
        lambda raw: raw.hset(
            SESSION, mapping={"turn_holder": "x", "turn_until_us": 2**52, "turn_token": 1}
        ),
    ),
    "not in the index": ("sessions that no list shows", lambda raw: raw.zrem(INDEX, "1")),
    "expired": ("expired sessions in the index", lambda raw: raw.zadd(INDEX, {"gone": 1})),
}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("fault", SESSIONS)
def test_a_session_with_one_fault(
    started: EmbeddedServer, raw: Any, fault: str, full: bool
) -> None:
    check, spoil = SESSIONS[fault]
    spoil(raw)
    exit_code, found = run(started.url, *(["--full"] if full else []))
    assert exit_code == 1
    if fault == "lost its header":
        found.pop("expired sessions in the index")  # its entry is left
    assert list(found) == [check]
    assert re.search(r"shop[ /':]*ann|'shop'", found[check]["saw"])


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


def test_a_user_who_may_not_ask_for_the_time_gets_all_other_checks(
    started: EmbeddedServer, raw: Any
) -> None:
    rules = ("+@all", "-time", "-echo")
    raw.execute_command("ACL", "SETUSER", "weak", "on", ">secret", "~*", *rules)
    exit_code, found = run(started.url.replace("://", "://weak:secret@"))
    assert exit_code == 1
    assert {name: each["status"] for name, each in found.items()} == {
        "clock": "unknown",
        "latency": "unknown",
        "rights": "error",
    }
    assert found["rights"]["fix"] == "ACL SETUSER weak +time"


def test_keys_that_the_user_may_not_use_are_named(started: EmbeddedServer, raw: Any) -> None:
    patterns = ("~session:*", "~sessions:*", "~userdata:*", "~appdata:*", "~stream:*")
    raw.execute_command("ACL", "SETUSER", "weak", "on", ">secret", *patterns, "+@all")
    exit_code, found = run(started.url.replace("://", "://weak:secret@"))
    assert exit_code == 1
    assert found["rights"]["fix"] == "ACL SETUSER weak ~events:*"
    assert "cannot be read" in found["sessions"]["saw"]


def test_rights_that_only_a_feature_needs_are_no_problem(started: EmbeddedServer, raw: Any) -> None:
    rules = ("resetchannels", "~*", "+@all", "-wait")
    raw.execute_command("ACL", "SETUSER", "weak", "on", ">secret", *rules)
    url = started.url.replace("://", "://weak:secret@")
    assert run(url) == (0, {})
    text = CliRunner().invoke(command_line(), ["doctor", "--url", url, "--verbose"]).stdout
    assert "not usable without: wait_replicas: wait; watch_events without delay: spublish" in text


def test_a_server_that_is_too_old(
    started: EmbeddedServer, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_checks, "_OLDEST_VERSION", int(raw.info()["redis_version"][0]) + 1)
    assert list(run(started.url)[1]) == ["version"]


def test_a_large_server_with_the_allocator_of_libc(
    started: EmbeddedServer, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_checks, "_MUCH_FOR_LIBC", 0)
    is_libc = raw.info("memory")["mem_allocator"] == "libc"  # as in the bundled Valkey
    assert list(run(started.url)[1]) == (["allocator"] if is_libc else [])


def test_a_server_that_is_busy(started: EmbeddedServer, raw: Any) -> None:
    is_done = threading.Event()
    loop = "for _ = 1, ARGV[1] do local text = string.rep('x', 100000) end"
    number, took_s = 16, 0.0
    while took_s < 0.015:  # of one script
        number *= 2
        begin = time.perf_counter()
        raw.eval(loop, 0, number)
        took_s = time.perf_counter() - begin

    def keep_busy() -> None:
        while not is_done.is_set():
            raw.eval(loop, 0, number)

    with ThreadPoolExecutor(2) as pool:
        working = [pool.submit(keep_busy) for _ in range(2)]
        try:
            found = run(started.url)[1]
        finally:
            is_done.set()
        for each in working:
            each.result()
    assert list(found) == ["latency"]


def test_leases_that_ended_without_release_are_shown(started: EmbeddedServer, raw: Any) -> None:
    lease = {"turn_holder": "worker 7", "turn_until_us": 1_000_000, "turn_token": 1}
    raw.hset(SESSION, mapping=lease)
    assert run(started.url) == (0, {})
    text = CliRunner().invoke(command_line(), ["doctor", "--url", started.url, "--verbose"]).stdout
    assert "shop / ann / 1: worker 7" in text


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
