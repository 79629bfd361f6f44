"""The commands export, import and copy: sessions move between stores, whole and unchanged."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.servers import Server

from sessionstore import Event, SessionKey, sync
from sessionstore.cli import command_line
from sessionstore.cli.fleet.workload import load_trace
from sessionstore.cli.transfer import read_session
from sessionstore.sync import RedisSessionService

RECORDING = Path(__file__).parents[2] / "../shared/data/airline.jsonl"
MOMENT = datetime(2024, 5, 6, 7, 8, 9, 10, tzinfo=UTC)
VALUES: dict[str, Any] = {
    "text": "\u00fc\n\x00",
    "number": 1,
    "float": 0.5,
    "none": None,
    "nested": {"list": [1, {"a": []}], "empty": {}},
    "bytes": b"\x00\xff",
    "moment": MOMENT,
    "by number": {1: "one", 2: b"two"},
    "large": 2**60,
}
TTLS: Any = dict.fromkeys(("session_ttl", "app_state_ttl", "user_state_ttl"), 3600)


@pytest.fixture
def service(server: Server) -> Iterator[RedisSessionService]:
    with RedisSessionService(server.url, codec="msgpack", **TTLS) as found:
        yield found


def run(server: Server, command: str, *arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(command_line(), [command, "--url", server.url, *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == exit_code, result.output
    return result


def fill(service: RedisSessionService, url: str) -> None:
    """Sessions with every kind of value, a long one, one with a summary, and one that is empty.

    Also a fork, and limits of events.
    """
    state = {**VALUES, "user:lang": b"en", "app:plan": {"pro": True}}
    for app_name in ("shop", "a b:{x}"):
        session = service.create_session(
            app_name=app_name, user_id="ann", session_id="1", state=state
        )
        for number, value in enumerate(VALUES.values()):
            event = Event(
                "user" if number % 2 else "assistant",
                value,
                invocation_id=f"run {number // 2}",
                branch="b",
                metadata={"tokens": number},
                state_delta={"last": number},
                state_increments={"count": 1},
            )
            service.append_event(session, event)
    keys = SessionKey("shop", "ann", "long"), SessionKey("shop", "bob", "summary")
    for key in keys:
        session = service.create_session(
            app_name=key.app_name, user_id=key.user_id, session_id=key.session_id
        )
        count = 1500 if key.session_id == "long" else 10
        for first in range(0, count, 500):
            numbers = range(first, min(first + 500, count))
            service.append_events(
                session, [Event("user", number, invocation_id=str(number)) for number in numbers]
            )
        if key.session_id == "summary":
            page = service.get_events(session)
            service.compact_session(session, upto=page.positions[4], summary={"text": b"four"})
    service.fork_session(keys[1], session_id="fork")
    for limit in (None, 7):
        with RedisSessionService(url, session_event_limit=limit, **TTLS) as limited:
            name = f"limit {limit}"
            session = limited.create_session(app_name="shop", user_id="bob", session_id=name)
            limited.append_events(session, [Event("user", number) for number in range(9)])
    service.create_session(app_name="shop", user_id="empty", session_id="1")
    service.update_user_state("shop", "only state", {"k": 1})


def load_recording(service: RedisSessionService) -> int:
    """The recorded conversations. Returns the number of messages."""
    num_messages = 0
    for line in RECORDING.read_text("utf-8").splitlines():
        found = json.loads(line)
        session = service.create_session(
            **{name: found[name] for name in ("app_name", "user_id", "session_id")}
        )
        events = [Event(each["role"], each) for each in found["messages"]]
        for first in range(0, len(events), 500):
            service.append_events(session, events[first : first + 500])
        num_messages += len(events)
    return num_messages


@pytest.mark.parametrize("codec", [(), ("--codec", "msgpack")])
def test_what_is_exported_and_imported_is_exported_again_byte_for_byte(
    server: Server, service: RedisSessionService, tmp_path: Path, codec: tuple[str, ...]
) -> None:
    fill(service, server.url)
    first, second = tmp_path / "first", tmp_path / "second"
    assert "8 sessions exported" in run(server, "export", "--output", str(first)).stderr
    server.empty()
    options = ("--verify", *codec)
    text = run(server, "import", str(first), *options, "--ttl", "3600").stderr
    assert text.endswith("8 sessions written, 0 already stored.\n")
    run(server, "export", "--output", str(second))
    assert second.read_bytes() == first.read_bytes()
    text = run(server, "import", str(first), *options).stderr
    assert text.endswith("0 sessions written, 8 already stored.\n")
    limit_tiers(server)


@pytest.mark.skipif(not RECORDING.exists(), reason="the recorded conversations are not here")
def test_recorded_conversations_survive_export_and_import(
    server: Server, service: RedisSessionService, tmp_path: Path
) -> None:
    assert load_recording(service) == 2658
    first, second = tmp_path / "first", tmp_path / "second"
    run(server, "export", "--output", str(first))
    server.empty()
    run(server, "import", str(first), "--verify", "--ttl", "3600")
    run(server, "export", "airline", "--output", str(second))
    assert second.read_bytes() == first.read_bytes()


def limit_tiers(server: Server) -> None:
    """Give keys a deadline that an import without TTL leaves without one."""
    for client in server.clients():
        for key in server.without_deadline():
            client.expire(key.decode(), 3600)


def test_an_export_can_be_limited(server: Server, service: RedisSessionService) -> None:
    fill(service, server.url)

    def exported(*arguments: str) -> list[dict[str, Any]]:
        lines = run(server, "export", *arguments).stdout.splitlines()
        return [found for found in map(json.loads, lines) if "session_id" in found]

    assert len(exported("shop")) == 7
    assert [each["session_id"] for each in exported("shop", "ann")] == ["1", "long"]
    [only] = exported("shop", "ann", "long")
    assert len(only["messages"]) == 1500 - 500  # the limit of events
    assert exported("--since", "2100-01-01") == []
    assert len(exported("--since", "2020-01-01")) == 8


def test_what_is_not_there_is_one_sentence(server: Server) -> None:
    text = run(server, "export", "shop", "ann", "none", exit_code=2).stderr
    assert "session 'none' of user 'ann' in app 'shop' does not exist" in text
    text = run(server, "copy", "redis://localhost:1", exit_code=2).stderr
    assert "Error: redis://localhost:1: " in text
    text = run(server, "export", "--since", "yesterday", exit_code=2).stderr
    assert "'yesterday' is not a time such as 2026-01-31T12:00:00" in text


def test_damaged_sessions_are_named_and_left_out(
    server: Server, service: RedisSessionService, tmp_path: Path
) -> None:
    fill(service, server.url)
    raw: Any = server.raw
    raw.zpopmin("events:{shop:ann}:long")
    raw.hset("session:{shop:bob}:fork", "version", "x")
    raw.hset("userdata:{shop:only%20state}", "k", "{")
    file = tmp_path / "file"
    text = run(server, "export", "--output", str(file), exit_code=1).stderr
    assert "Left out shop / ann / long: " in text
    assert "Left out shop / bob / fork: " in text
    assert "Left out the state of shop / only state: " in text
    assert text.endswith("6 sessions exported, 3 could not be read.\n")
    target = ("--target-key-prefix", "copy:", "--target-ttl", "3600")
    text = run(server, "copy", server.url, *target, exit_code=1).stderr
    assert text.endswith("6 sessions written, 0 already stored, 3 could not be read.\n")
    limit_tiers(server)


def test_an_import_leaves_a_session_alone_that_differs(
    server: Server, service: RedisSessionService, tmp_path: Path
) -> None:
    fill(service, server.url)
    file = tmp_path / "file"
    run(server, "export", "shop", "bob", "--output", str(file))
    service.append_event(SessionKey("shop", "bob", "summary"), Event("user", "new"))
    text = run(server, "import", str(file), exit_code=1).stderr
    assert text.endswith("0 sessions written, 3 already stored, 1 differ from the stored ones.\n")
    page = service.get_events(SessionKey("shop", "bob", "summary"))
    assert page.events[-1].content == "new"


def test_an_import_leaves_state_alone_that_was_changed_since(
    server: Server, service: RedisSessionService, tmp_path: Path
) -> None:
    fill(service, server.url)
    file = tmp_path / "file"
    run(server, "export", "--output", str(file))
    service.update_user_state("shop", "ann", {"lang": "fr"})
    service.update_app_state("shop", {"plan": "new"})
    service.delete_user_state("shop", "only state", "k")
    run(server, "import", str(file), "--codec", "msgpack")
    assert service.get_user_state("shop", "ann") == {"lang": "fr"}
    assert service.get_app_state("shop") == {"plan": "new"}
    assert service.get_user_state("shop", "only state") == {"k": 1}
    limit_tiers(server)


def test_a_fleet_replays_an_export(
    server: Server, service: RedisSessionService, tmp_path: Path
) -> None:
    fill(service, server.url)
    file = tmp_path / "file"
    run(server, "export", "shop", "--output", str(file))
    found = load_trace(file)
    assert len(found) == 6
    assert {each.key.user_id for each in found} == {"ann", "bob"}  # without the empty session
    assert sum(len(list(each.messages())) for each in found) > 1000


def test_values_above_the_default_limits_are_moved(server: Server, tmp_path: Path) -> None:
    large = "x" * (9 << 20)
    key = SessionKey("shop", "ann", "large")
    file = tmp_path / "file"
    limits: Any = dict.fromkeys(("event_size_limit", "value_size_limit"), 16 << 20)
    with RedisSessionService(server.url, **limits, **TTLS) as service:
        session = service.create_session(
            app_name="shop", user_id="ann", session_id="large", state={"x": large}
        )
        service.append_event(session, Event("user", large))
        run(server, "export", "--output", str(file))
        server.empty()
        run(server, "import", str(file), "--ttl", "3600", "--verify")
        assert service.get_events(key).events[0].content == large


def test_an_import_can_replace_a_session_by_a_later_one(
    server: Server, service: RedisSessionService, tmp_path: Path
) -> None:
    fill(service, server.url)
    key = SessionKey("shop", "bob", "summary")
    first, second = tmp_path / "first", tmp_path / "second"
    run(server, "export", "shop", "bob", "--output", str(first))
    written = datetime.now(UTC)
    service.append_event(key, Event("user", "new"))
    run(server, "export", "--output", str(second), "--since", written.isoformat())
    assert second.read_text().count('"session_id"') == 1
    server.empty()
    options = ("--ttl", "3600", "--codec", "msgpack")
    run(server, "import", str(first), *options)
    for expected in ("1 replaced with a later version", "0 sessions written, 1 already stored."):
        assert expected in run(server, "import", str(second), "--replace", *options).stderr
    assert service.get_events(key).events[-1].content == "new"
    service.append_event(key, Event("user", "newer"))
    text = run(server, "import", str(second), "--replace", *options, exit_code=1).stderr
    assert "1 differ from the stored ones" in text
    assert service.get_events(key).events[-1].content == "newer"
    limit_tiers(server)


def test_a_line_that_is_not_valid_is_named(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text('{"app_name": "a", "user_id": "u", "session_id": "s"}\n{"app_name": 1}\n')
    text = run(server, "import", str(file), "--ttl", "60", exit_code=2).stderr
    assert f"{file}:2: Expected `str`, got `int`" in text


def test_a_recorded_conversation_can_be_imported(server: Server, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "tool", "name": "f", "content": "1"}]
    line = {"app_name": "a", "user_id": "u", "session_id": "s", "messages": messages}
    file = tmp_path / "file"
    file.write_text(json.dumps(line))
    for expected in ("1 session written", "1 already stored"):
        assert expected in run(server, "import", str(file), "--ttl", "60").stderr
    with RedisSessionService(server.url) as service:
        page = service.get_events(SessionKey("a", "u", "s"))
    assert [(event.author, event.content) for event in page.events] == [
        ("user", messages[0]),
        ("f", messages[1]),
    ]


def test_a_second_copy_picks_up_what_was_written_meanwhile(
    server: Server, service: RedisSessionService
) -> None:
    fill(service, server.url)
    key = SessionKey("shop", "ann", "long")
    is_done = threading.Event()

    def write() -> None:
        number = 0
        while not is_done.is_set():
            service.append_event(key, Event("user", f"late {number}"))
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    target = ("--target-key-prefix", "copy:", "--target-codec", "msgpack", "--target-ttl", "3600")
    try:
        run(server, "copy", server.url, *target)
    finally:
        is_done.set()
        writer.join()
    service.append_event(key, Event("user", "last"))
    text = run(server, "copy", server.url, *target).stderr
    assert "replaced with a later version" in text
    text = run(server, "copy", server.url, *target).stderr
    assert text.endswith("0 sessions written, 8 already stored.\n")
    lines = [
        run(server, "export", "--key-prefix", prefix).stdout.splitlines()
        for prefix in ("", "copy:")
    ]
    assert lines[0] == lines[1]
    limit_tiers(server)


def test_a_store_is_not_copied_to_itself(server: Server, service: RedisSessionService) -> None:
    fill(service, server.url)
    result = run(server, "copy", server.url, exit_code=2)
    assert "TARGET is the store of --url" in result.stderr
    limit_tiers(server)


def test_events_and_state_of_an_export_are_of_the_same_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = SessionKey("shop", "ann", "busy")
    with sync.InMemorySessionService(session_event_limit=3) as service:
        service.create_session(app_name="shop", user_id="ann", session_id="busy")
        numbers = itertools.count()

        def append() -> None:
            number = next(numbers)
            service.append_event(key, Event("user", number, state_delta={"n": number}))

        for _ in range(3):
            append()
        read_events = service.get_events

        def read_late(*args: Any, **options: Any) -> Any:
            if next(late, False):
                append()
            return read_events(*args, **options)

        late = iter([True, True])
        monkeypatch.setattr(service, "get_events", read_late)
        archived = read_session(service, key)
        assert archived is not None
        assert archived.all_state()["n"] == archived.events()[0][-1].content == 4
