"""Encryption on servers: what files and copies show, what was moved or changed, and rekey."""

from __future__ import annotations

import json
import shutil
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner, Result
from support.servers import Server
from support.services import RING

from benchmarks.rigs.nodes import bundled_server
from sessionstore import (
    BackendError,
    BackendRejected,
    CorruptData,
    Event,
    KeyRing,
    Session,
    SessionKey,
    SessionStoreError,
)
from sessionstore.cli import command_line
from sessionstore.embedded import EmbeddedServer
from sessionstore.sync import RedisSessionService

ANN = SessionKey("shop", "ann", "1")
MARKER = "pelargonium"
TTLS: Any = dict.fromkeys(("session_ttl", "app_state_ttl", "user_state_ttl", "stream_ttl"), 3600)
ONE, TWO = bytes(range(64)), bytes(range(1, 65))


def open_service(url: str, ring: KeyRing | None = RING, **options: Any) -> RedisSessionService:
    return RedisSessionService(url, encryption=ring, **TTLS, **options)


def fill(service: RedisSessionService, key: SessionKey = ANN, num_events: int = 6) -> Session:
    """A session with the marker in everything that may be encrypted."""
    ids: Any = {"app_name": key.app_name, "user_id": key.user_id, "session_id": key.session_id}
    names = ("text", "user:text", "app:text")
    state = {name: f"{MARKER} {name}" for name in names} | {"n": 5, "list": [MARKER]}
    session = service.create_session(**ids, state=state)
    events = [
        Event("user", f"{MARKER} {number}", state_delta={"last": f"{MARKER} {number}"})
        for number in range(num_events)
    ]
    for first in range(0, num_events, 500):
        service.append_events(session, events[first : first + 500])
    upto = service.get_events(session).positions[0]
    service.compact_session(session, upto=upto, summary=MARKER)
    service.append_event(session, Event("user", MARKER, partial=True))
    service.update_user_state(key.app_name, key.user_id, {"own": {MARKER: MARKER}})
    return session


def all_of(service: RedisSessionService, key: SessionKey = ANN) -> tuple[Any, ...]:
    """All that is stored of a session, and the state of its user and application."""
    ids: Any = {"app_name": key.app_name, "user_id": key.user_id, "session_id": key.session_id}
    session = service.get_session(**ids)
    assert session is not None
    page = service.get_events(session, limit=10_000)
    user, app = service.get_user_state(key.app_name, key.user_id), service.get_app_state("shop")
    return session.state, session.summary, page.events, page.positions, user, app


# -- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_key_store", [False, True])
def test_a_value_that_was_moved_or_changed_is_corrupt(server: Server, with_key_store: bool) -> None:
    key_store = f"{server.url}?db=1" if with_key_store else None
    service = open_service(server.url, key_store=key_store)
    bob = SessionKey("shop", "bob", "1")
    for key in (ANN, bob):
        fill(service, key)
    raw: Any = server.raw
    of_ann, of_bob = "session:{shop:ann}:1", "session:{shop:bob}:1"
    text = raw.hget(of_ann, ".text")
    ids: Any = {"app_name": "shop", "user_id": "bob", "session_id": "1"}
    # To another user, to another field, from an event to state, and one bit.
    [event, *_] = raw.zrange("events:{shop:ann}:1", 0, 0)
    flipped = text[:-1] + bytes([text[-1] ^ 1])
    for field, value in ((".text", text), (".other", text), (".text", event)):
        before = raw.hget(of_bob, ".text")
        raw.hset(of_bob, field, value)
        with pytest.raises(CorruptData, match=rf"session:.*:bob.*field {field} does not decode"):
            service.get_session(**ids)
        raw.hset(of_bob, ".text", before)
        raw.hdel(of_bob, ".other")
    raw.hset(of_ann, ".other", text)
    with pytest.raises(CorruptData, match=r"field \.other .* belongs to another user or field"):
        service.get_session(**{**ids, "user_id": "ann"})
    raw.hdel(of_ann, ".other")
    raw.hset(of_ann, ".text", flipped)
    with pytest.raises(CorruptData, match=r"field \.text .* it was changed"):
        service.get_session(**{**ids, "user_id": "ann"})
    raw.zadd("events:{shop:bob}:1", {event: 5})
    raw.hincrby(of_bob, "count", 1)
    with pytest.raises(CorruptData, match=r"events:.*:bob"):
        service.get_events(bob)


def test_an_unknown_key_is_named_and_a_plain_service_says_what_it_needs(server: Server) -> None:
    fill(open_service(server.url, KeyRing({"2025": ONE})))
    other = open_service(server.url, KeyRing({"2026": ONE}))
    with pytest.raises(CorruptData, match="the key '2025', which encryption= does not have"):
        other.get_events(ANN)
    plain = RedisSessionService(server.url)
    with pytest.raises(CorruptData, match="encrypted with '2025': the option encryption is needed"):
        plain.get_events(ANN)
    assert plain.count_sessions("shop", "ann") == 1


def test_plain_values_stay_readable_and_integers_can_be_incremented(server: Server) -> None:
    plain = RedisSessionService(server.url, codec="msgpack", **TTLS)
    session = fill(plain)
    before = all_of(plain)
    service = open_service(server.url)
    assert all_of(service) == before
    service.append_event(session, Event("user", "next", state_increments={"n": 2}))
    assert service.increment_session_state(session, {"n": 3}) == {"n": 10}
    assert server.raw.hget("session:{shop:ann}:1", ".n") == b"10"


def test_a_key_store_that_is_down_is_no_missing_data(server: Server) -> None:
    with EmbeddedServer() as keys:
        service = open_service(server.url, key_store=keys.url, call_timeout=0.5)
        session = fill(service)
    fresh = open_service(server.url, key_store=keys_url_of(keys), call_timeout=0.5)
    calls: list[Any] = [
        lambda: fresh.get_session(app_name="shop", user_id="ann", session_id="1"),
        lambda: fresh.get_events(session),
        lambda: fresh.get_user_state("shop", "ann"),
        lambda: fresh.append_event(session, Event("user", "x")),
        lambda: fresh.create_session(app_name="shop", user_id="ann"),
        lambda: fresh.list_sessions(app_name="shop", user_id="ann"),
    ]
    for call in calls:
        with pytest.raises(BackendError, match="data_key"):
            call()
    assert len(service.get_events(session).events) == 6  # it has kept the key
    assert fresh.get_app_state("shop") == {"text": f"{MARKER} app:text"}


def test_a_full_key_store_is_named_and_spares_appends_and_delete_user(server: Server) -> None:
    with EmbeddedServer() as keys:
        service = open_service(server.url, key_store=keys.url)
        session = fill(service)
        with redis.Redis(unix_socket_path=keys.socket_path) as raw:
            raw.config_set("maxmemory", 1)
        new = open_service(server.url, key_store=keys.url)
        with pytest.raises(BackendRejected, match=r"use_data_key .* out of memory") as caught:
            new.create_session(app_name="shop", user_id="bob")
        assert not caught.value.maybe_applied
        text = "^the data is written, its data key is not confirmed: use_data_key .* out of memory"
        with pytest.raises(BackendRejected, match=text) as caught:
            service.update_user_state("shop", "ann", {"a": "b"})  # it has kept the key
        assert caught.value.maybe_applied
        assert new.get_user_state("shop", "ann")["a"] == "b"
        new.append_event(session, Event("user", "x"))
        assert not new.delete_user(app_name="shop", user_id="ann").has_data_key


def keys_url_of(stopped: EmbeddedServer) -> str:
    """An address where no server is."""
    del stopped
    return "unix:///tmp/sessionstore-no-server.sock"


# -- files and copies ---------------------------------------------------------------------------


def test_no_file_of_the_server_has_what_was_written(tmp_path: Path) -> None:
    found = bundled_server()
    assert found is not None
    with EmbeddedServer(tmp_path / "data", executable=found.path) as data, EmbeddedServer() as keys:
        for key_store in (None, keys.url):
            key = SessionKey("shop", "ann", "1" if key_store else "2")
            service = open_service(data.url, key_store=key_store)
            session = fill(service, key)
            page = service.get_events(session)
            service.replace_event(session, page.positions[2], page.events[2], Event("user", MARKER))
            service.fork_session(session, state={"text": MARKER})
        RedisSessionService(data.url).create_session(
            app_name="other", user_id="eve", state={"plain": "begonia"}
        )
        server = Server(data)
        server.raw.save()
        server.raw.close()
    files = [path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert len(files) >= 3  # the snapshot, the append-only file
    assert sum(b"begonia" in text for text in files) >= 2
    assert not any(MARKER.encode() in text for text in files)


def test_a_copy_from_before_delete_user_cannot_be_read_after_it(tmp_path: Path) -> None:
    found = bundled_server()
    assert found is not None
    before, copied = tmp_path / "data", tmp_path / "copy"
    bob = SessionKey("shop", "bob", "1")
    with EmbeddedServer() as keys:
        with EmbeddedServer(before, executable=found.path) as data:
            service = open_service(data.url, key_store=keys.url)
            for key in (ANN, bob):
                fill(service, key)
            expected = all_of(service, bob)
            server = Server(data)
            server.raw.save()
            shutil.copytree(before, copied)
            assert not service.delete_user(app_name="shop", user_id="ann").has_data_key
            server.raw.close()
        with EmbeddedServer(copied, executable=found.path) as restored:
            copy = open_service(restored.url, key_store=keys.url)
            assert all_of(copy, bob) == expected
            assert copy.count_sessions("shop", "ann") == 1  # names and numbers stay visible
            reads: list[Any] = [
                lambda: copy.get_session(app_name="shop", user_id="ann", session_id="1"),
                lambda: copy.get_events(ANN),
                lambda: copy.get_user_state("shop", "ann"),
                lambda: copy.list_sessions(app_name="shop", user_id="ann"),
                lambda: next(copy.watch_events(ANN, partial=True)),
                lambda: copy.fork_session(ANN),
                lambda: copy.append_event(ANN, Event("user", "x")),
            ]
            for read in reads:
                with pytest.raises(CorruptData, match=r"was deleted|is not in the key store"):
                    read()


# -- the command line ---------------------------------------------------------------------------


def run(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(command_line(), arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == exit_code, result.output
    return result


@pytest.fixture
def ring_file(tmp_path: Path) -> Path:
    """A file with two keys; TWO encrypts."""
    path = tmp_path / "keys"
    path.write_text(f"two:{b64encode(TWO).decode()}\none:{b64encode(ONE).decode()}\n")
    return path


def rekey(server: Server, ring_file: Path, *arguments: str, exit_code: int = 0) -> dict[str, int]:
    url, ring = ("--url", server.url), ("--key-ring", str(ring_file))
    result = run("rekey", *url, *ring, "--json", *arguments, exit_code=exit_code)
    counts: dict[str, int] = json.loads(result.stdout.splitlines()[-1])
    return counts


@pytest.mark.parametrize("first", ["plain", "one"])
def test_rekey_encrypts_everything_with_the_first_key(
    server: Server, ring_file: Path, first: str
) -> None:
    ring = None if first == "plain" else KeyRing({"one": ONE})
    service = open_service(server.url, ring)
    keys = [ANN, SessionKey("shop", "ann", "2"), SessionKey("a b:{x}", "é*", "1")]
    for key in keys:
        fill(service, key, num_events=900 if key == ANN else 6)
    before = [all_of(service, key) for key in keys]
    deadlines = server.raw.expiretime("session:{shop:ann}:1")
    assert rekey(server, ring_file)["changed"] > 900
    only_two = open_service(server.url, KeyRing({"two": TWO}))
    assert [all_of(only_two, key) for key in keys] == before
    assert server.raw.expiretime("session:{shop:ann}:1") == deadlines
    again = rekey(server, ring_file)
    assert (again["changed"], again["unreadable"], again["sessions"]) == (0, 0, 3)
    assert again["current"] > 900


def test_rekey_keeps_state_whose_names_are_those_of_langgraph(
    server: Server, ring_file: Path
) -> None:
    service = open_service(server.url, KeyRing({"one": ONE}))
    names = ("writes/1", "ids/x", "langgraph/namespaces", "langgraph/layout", "data/x")
    state = {name: [MARKER] for name in names} | {"ids/raw": b"\x00\x00"}
    service.create_session(app_name="shop", user_id="ann", session_id="1", state=state)
    assert rekey(server, ring_file)["changed"] == len(state)
    only_two = open_service(server.url, KeyRing({"two": TWO}))
    session = only_two.get_session(app_name="shop", user_id="ann", session_id="1")
    assert session is not None
    assert session.state == state


def test_rekey_gives_sessions_the_data_keys_of_their_users(server: Server, ring_file: Path) -> None:
    service = open_service(server.url, KeyRing({"one": ONE}))
    fill(service)
    before = all_of(service)
    key_store = f"{server.url}?db=1"
    fill(
        open_service(server.url, KeyRing({"one": ONE}), key_store=key_store),
        SessionKey("b", "u", "1"),
    )
    without = ("rekey", "--url", server.url, "--key-ring", str(ring_file))
    said = run(*without, "b", "u", exit_code=2).stderr
    assert "session '1' of user 'u' in app 'b' has a data key: pass --key-store" in said
    assert rekey(server, ring_file, "--key-store", key_store)["changed"] > 10
    only_two = open_service(server.url, KeyRing({"two": TWO}), key_store=key_store)
    assert all_of(only_two) == before
    assert only_two.get_session(app_name="b", user_id="u", session_id="1") is not None
    only_two.delete_user(app_name="shop", user_id="ann")
    assert rekey(server, ring_file, "--key-store", key_store)["changed"] == 0


def test_rekey_continues_and_reports_what_it_cannot_read(server: Server, ring_file: Path) -> None:
    for number, ring in enumerate(({"one": ONE}, {"lost": ONE}, {"one": ONE})):
        fill(open_service(server.url, KeyRing(ring)), SessionKey("shop", f"u{number}", "1"))
    server.raw.unlink("appdata:{shop}")
    url, ring_option = ("--url", server.url), ("--key-ring", str(ring_file))
    after = rekey(server, ring_file, "--after", "shop", "u0", exit_code=1)
    assert after["users"] == 2
    assert after["unreadable"] > 6
    found = run("rekey", *url, *ring_option, "shop", "u1", exit_code=1)
    assert "the key 'lost', which encryption= does not have" in found.stderr
    one = rekey(server, ring_file, "shop", "u0")
    assert (one["users"], one["sessions"]) == (1, 1)
    assert one["changed"] > 6


def test_rekey_encrypts_data_keys_of_users_of_whom_nothing_is_stored(
    server: Server, ring_file: Path
) -> None:
    key_store = f"{server.url}?db=1"
    service = open_service(server.url, KeyRing({"one": ONE}), key_store=key_store)
    ids: Any = {"app_name": "shop", "user_id": "ann", "session_id": "1"}
    service.create_session(**ids)
    service.delete_session(**ids)  # or it expired
    assert rekey(server, ring_file, "--key-store", key_store, "b")["changed"] == 0
    assert rekey(server, ring_file, "--key-store", key_store)["changed"] == 1
    only_two = open_service(server.url, KeyRing({"two": TWO}), key_store=key_store)
    only_two.create_session(**ids)
    assert rekey(server, ring_file, "--key-store", key_store)["changed"] == 0


def test_rekey_finds_sessions_that_no_index_has(server: Server, ring_file: Path) -> None:
    service = open_service(server.url, KeyRing({"one": ONE}))
    fill(service)
    before = all_of(service)
    server.raw.unlink("sessions:{shop:ann}")
    assert rekey(server, ring_file)["sessions"] == 1
    assert all_of(open_service(server.url, KeyRing({"two": TWO}))) == before
    assert rekey(server, ring_file)["changed"] == 0


def test_rekey_goes_on_after_a_user_whose_data_key_is_lost_or_damaged(
    server: Server, ring_file: Path
) -> None:
    key_store = f"{server.url}?db=1"
    service = open_service(server.url, KeyRing({"one": ONE}), key_store=key_store)
    keys = [SessionKey("shop", user_id, "1") for user_id in ("ann", "bob", "cat")]
    for key in keys:
        fill(service, key)
    before = all_of(service, keys[-1])
    raw = redis.Redis.from_url(key_store)
    raw.unlink("datakey:{shop:ann}")
    raw.hset("datakey:{shop:bob}", "wrapped", b"\x03\x03one" + bytes(80))
    counts = rekey(server, ring_file, "--key-store", key_store, exit_code=1)
    assert (counts["users"], counts["sessions"]) == (3, 3)
    assert counts["unreadable"] > 2
    only_two = open_service(server.url, KeyRing({"two": TWO}), key_store=key_store)
    assert all_of(only_two, keys[-1]) == before
    raw.close()


def test_what_is_written_with_an_old_key_after_rekey_is_found_by_the_next_run(
    server: Server, ring_file: Path
) -> None:
    old = open_service(server.url, KeyRing({"one": ONE}))
    session = fill(old)
    late = Event("user", "late")
    assert rekey(server, ring_file)["changed"] > 6
    old_event = old.append_event(session, late)
    both = open_service(server.url, KeyRing({"two": TWO, "one": ONE}))
    assert both.get_events(session, limit=100).events[-1] == old_event
    assert rekey(server, ring_file)["changed"] == 1


def test_commands_read_and_copy_encrypted_data(
    server: Server, ring_file: Path, tmp_path: Path
) -> None:
    key_store = f"{server.url}?db=1"
    ring = KeyRing.from_file(ring_file)
    service = open_service(server.url, ring, key_store=key_store)
    fill(service)
    expected = all_of(service)
    source = ("--url", server.url, "--key-ring", str(ring_file), "--key-store", key_store)
    assert MARKER in run("show", "shop", "ann", "1", *source).stdout
    assert "--key-ring" in run("show", "shop", "ann", "1", "--url", server.url, exit_code=2).stderr
    lines = run("doctor", "--json", *source, exit_code=1).stdout.splitlines()  # no persistence
    checks = {each["check"]: each["status"] for each in map(json.loads, lines)}
    assert checks["corrupt values"] == checks["unreadable values"] == "ok"
    other_ring = tmp_path / "others"
    other_ring.write_text(run("new-key", "new").stdout)
    target_keys = f"{server.url}?db=2"
    target = (server.url, "--target-key-prefix", "copy:", "--target-key-ring", str(other_ring))
    run("copy", *target, "--target-key-store", target_keys, "--target-ttl", "3600", *source)
    copied = open_service(
        server.url, KeyRing.from_file(other_ring), key_store=target_keys, key_prefix="copy:"
    )
    assert all_of(copied) == expected
    with pytest.raises(SessionStoreError):
        open_service(server.url, ring, key_store=key_store, key_prefix="copy:").get_events(ANN)
    server.raw.persist("appdata:{shop}")
    server.raw.unlink(*server.raw.keys("copy:*"))
    erased = run("erase", "shop", "ann", "--yes", *source)
    assert "data key was removed" in erased.stdout
    assert json.loads(run("erase", "shop", "ann", "--yes", "--json", *source).stdout) == {
        "sessions": 0,
        "state_keys": 0,
        "num_left": 0,
        "left": [],
        "has_data_key": False,
    }
    server.raw.flushall()


@pytest.mark.parametrize("only", ["sessions", "user state"])
def test_erase_without_the_key_store_says_that_the_data_key_is_left(
    server: Server, only: str
) -> None:
    key_store = f"{server.url}?db=1"
    service = open_service(server.url, key_store=key_store)
    if only == "sessions":
        service.create_session(app_name="shop", user_id="ann")
    else:
        service.update_user_state("shop", "ann", {"a": "b"})
    command = ("erase", "shop", "ann", "--yes", "--url", server.url)
    said = run(*command, exit_code=1).stdout
    assert "The data key is left: `sessionstore erase` with --key-store removes it" in said
    with redis.Redis.from_url(key_store) as raw:
        assert raw.exists("datakey:{shop:ann}")
        assert "left: 0\n" in run(*command).stdout  # nothing says so any more
        raw.flushall()


def test_options_of_commands_are_checked(server: Server, tmp_path: Path) -> None:
    url = ("--url", server.url)
    (tmp_path / "bad").write_text("a:secret")
    assert "pass --key-ring" in run("rekey", *url, exit_code=2).stderr
    assert "pass --key-ring" in run("ls", *url, "--key-store", server.url, exit_code=2).stderr
    bad = run("ls", *url, "--key-ring", str(tmp_path / "bad"), exit_code=2)
    assert "secret" not in bad.stderr
    missing = run("ls", *url, "--key-ring", str(tmp_path / "missing"), exit_code=2)
    assert "No such file" in missing.stderr
    ring = tmp_path / "ring"
    ring.write_text(run("new-key").stdout)
    same = run("ls", *url, "--key-ring", str(ring), "--key-store", server.url, exit_code=2)
    assert "another server or database" in same.stderr


@pytest.mark.parametrize("with_store", [False, True])
def test_a_copy_also_encrypts_values_that_json_cannot_hold(
    server: Server, ring_file: Path, with_store: bool
) -> None:
    secret = b"a secret in bytes"
    with RedisSessionService(server.url, codec="msgpack", session_ttl=3600) as service:
        service.create_session(
            app_name="shop", user_id="ann", session_id="1", state={"nested": [secret]}
        )
    target: tuple[str, ...] = ("--target-key-prefix", "copy:", "--target-key-ring", str(ring_file))
    if with_store:
        target = (*target, "--target-key-store", f"{server.url}?db=1")
    run("copy", server.url, *target, "--target-ttl", "3600", "--url", server.url)
    stored = [value for key in server.raw.keys("copy:session:*") for value in server.raw.hvals(key)]
    assert len(stored) > 5
    assert not [value for value in stored if secret in value]
    store = f"{server.url}?db=1" if with_store else None
    copied = open_service(
        server.url, KeyRing.from_file(ring_file), key_store=store, key_prefix="copy:"
    )
    found = copied.get_session(app_name="shop", user_id="ann", session_id="1")
    assert found is not None
    assert found.state == {"nested": [secret]}
