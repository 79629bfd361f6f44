"""Compressed data on a server, and the commands that train dictionaries and use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.compression import COMPRESSION, FIRST, FOLDER, SECOND
from support.servers import Server

from sessionstore import CorruptData, Event, Zstd
from sessionstore.cli import command_line
from sessionstore.compression import dictionary_id
from sessionstore.sync import RedisSessionService

TTLS: Any = dict.fromkeys(("session_ttl", "app_state_ttl", "user_state_ttl"), 3600)
IDS: dict[str, Any] = {"app_name": "shop", "user_id": "ann", "session_id": "1"}
TEXT = "please book a seat by the window for Ann and cancel the flight to Lisbon "


def run(command: str, *arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(command_line(), [command, *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == exit_code, result.output
    return result


def fill(server: Server, num_sessions: int = 1, **options: Any) -> None:
    with RedisSessionService(server.url, **TTLS, **options) as service:
        for number in range(1, num_sessions + 1):
            session = service.create_session(
                app_name="shop",
                user_id="ann",
                session_id=str(number),
                state={"text": TEXT, "n": 5, "user:x": TEXT, "app:x": TEXT},
            )
            service.append_events(
                session, [Event("user", {"n": n, "text": TEXT * 2}) for n in range(20)]
            )


def stored_of(server: Server) -> list[bytes]:
    """All values of the store but header fields."""
    raw: Any = server.raw
    found: list[Any] = []
    for key in raw.keys("*"):
        if raw.type(key) == b"zset":
            found += raw.zrange(key, 0, -1) if b"events:" in key else []
        else:
            session = b"session:" in key
            pairs = raw.hgetall(key).items()
            found += [value for name, value in pairs if not session or name[:1] == b"."]
    return found


def test_all_values_but_numbers_are_stored_compressed(server: Server) -> None:
    fill(server, compression=COMPRESSION)
    stored = stored_of(server)
    assert sorted({value[:1] for value in stored}) == [b"\x02", b"5"]
    assert len(stored) == 24
    with RedisSessionService(server.url, compression=COMPRESSION, **TTLS) as service:
        session = service.get_session(**IDS)
        assert session is not None
        assert session.state == {"text": TEXT, "n": 5, "user:x": TEXT, "app:x": TEXT}
        assert [event.content["n"] for event in session.events] == [*range(20)]


def test_compressed_data_takes_less_memory(server: Server) -> None:
    fill(server, 20)
    key = b"events:{shop:ann}:1"
    raw: Any = server.raw
    before = raw.memory_usage(key)
    raw.flushall()
    fill(server, 20, compression=COMPRESSION)
    assert raw.memory_usage(key) < before * 0.7


# -- commands --------------------------------------------------------------------------------------


def test_a_trained_dictionary_compresses_other_sessions(server: Server, tmp_path: Path) -> None:
    fill(server, 60)
    file = tmp_path / "shop.zdict"
    arguments = ("shop", "--url", server.url, "--output", str(file), "--size", "2048")
    shown = run("train-dictionary", *arguments).output
    assert file.stat().st_mode & 0o777 == 0o600
    assert f"{file}: dictionary {dictionary_id(file.read_bytes())}, " in shown
    assert "trained on 1,0" in shown
    assert "without a dictionary" in shown
    assert run("train-dictionary", *arguments, exit_code=2).output.startswith(
        f"Error: {file} exists"
    )
    other = tmp_path / "other.zdict"
    url = f"{server.url}?protocol=3"  # replies have another form
    again = ("shop", "--url", url, "--output", str(other), "--json")
    found = json.loads(run("train-dictionary", *again).output)
    assert found["id"] == dictionary_id(other.read_bytes())
    assert found["compressed_bytes"] < found["compressed_bytes_without_dictionary"]
    assert found["compressed_bytes"] < found["measured_bytes"] / 3
    assert (found["trained_values"], found["measured_values"]) == (48 * 22, 12 * 22)


def test_a_dictionary_is_trained_on_compressed_data_too(server: Server, tmp_path: Path) -> None:
    fill(server, 30, compression=COMPRESSION, codec="msgpack")
    arguments = ("shop", "--url", server.url, "--output", str(tmp_path / "new.zdict"))
    complaint = run("train-dictionary", *arguments, exit_code=2).output
    assert "shop / ann / " in complaint
    assert f"needs the zstd dictionary {dictionary_id(FIRST)}" in complaint
    assert not (tmp_path / "new.zdict").exists()
    run(
        "train-dictionary",
        *arguments,
        "--dictionary",
        str(FOLDER / "first.zdict"),
        "--size",
        "2048",
    )
    Zstd(dictionaries=[tmp_path / "new.zdict"])


def test_training_on_too_few_values_gives_one_sentence(server: Server, tmp_path: Path) -> None:
    arguments = ("--url", server.url, "--output", str(tmp_path / "new.zdict"))
    assert (
        "'shop' has no sessions" in run("train-dictionary", "shop", *arguments, exit_code=2).output
    )
    fill(server)
    assert "are too few to train" in run("train-dictionary", "shop", *arguments, exit_code=2).output
    assert not [*tmp_path.iterdir()]


def test_commands_read_compressed_data_with_the_dictionary(server: Server, tmp_path: Path) -> None:
    fill(server, compression=COMPRESSION)
    url, given = ("--url", server.url), ("--dictionary", str(FOLDER / "first.zdict"))
    missing = f"needs the zstd dictionary {dictionary_id(FIRST)}"
    for command in (("show", "shop", "ann", "1"), ("search", "Lisbon", "shop"), ("export",)):
        code = 1 if command == ("export",) else 2  # it leaves out what cannot be read
        assert missing in run(*command, *url, exit_code=code).output
        assert "Lisbon" in run(*command, *url, *given).output
    shown = run("doctor", *url, exit_code=1).output
    assert "unreadable values" in shown
    assert missing in shown.replace("\n", " ")
    shown = run("doctor", *url, *given, "--json", exit_code=1).output  # it does not persist
    statuses = {each["check"]: each["status"] for each in map(json.loads, shown.splitlines())}
    assert statuses["unreadable values"] == statuses["corrupt values"] == "ok"
    for bad, complaint in (
        (tmp_path / "no.zdict", "does not exist"),
        (Path(__file__), "is not a dictionary of"),
    ):
        assert complaint in run("ls", *url, "--dictionary", str(bad), exit_code=2).output


def test_copy_recompresses(server: Server) -> None:
    raw: Any = server.raw
    fill(server, 3, compression=COMPRESSION)
    first, second = str(FOLDER / "first.zdict"), str(FOLDER / "second.zdict")
    url = ("--url", server.url, "--target-ttl", "3600")
    run("copy", server.url, *url, "--dictionary", first, "--target-key-prefix", "plain:")
    options = ("--target-dictionary", second)
    run("copy", server.url, *url, "--dictionary", first, "--target-key-prefix", "new:", *options)
    expected = run("export", "--url", server.url, "--dictionary", first).output
    for prefix, compression in (("plain:", None), ("new:", Zstd(dictionaries=[SECOND]))):
        option = ("--dictionary", second) if compression else ()
        found = run("export", "--url", server.url, "--key-prefix", prefix, *option).output
        assert found == expected
    stored: dict[str, Any] = {
        name: raw.zrange(f"{name}events:{{shop:ann}}:1", 0, -1) for name in ("plain:", "new:")
    }
    assert [value[:1] for value in stored["plain:"]] == [b"{"] * 20
    recompressed = map(Zstd(dictionaries=[SECOND]).unwrap, stored["new:"])
    assert sorted(recompressed) == sorted(stored["plain:"])
    for key in raw.keys("*data:*"):  # `copy` has no option for their TTL
        raw.expire(key, 3600)


def test_a_damaged_frame_is_corrupt_data(server: Server) -> None:
    fill(server, compression=COMPRESSION)
    key = b"events:{shop:ann}:1"
    raw: Any = server.raw
    [(member, score)] = raw.zrange(key, 3, 3, withscores=True)
    raw.zrem(key, member)
    raw.zadd(key, {member[:40] + bytes([member[40] ^ 1]) + member[41:]: score})
    with RedisSessionService(server.url, compression=COMPRESSION, **TTLS) as service:
        with pytest.raises(CorruptData, match="zstd frame is damaged") as caught:
            service.get_session(**IDS)
        assert caught.value.key == key.decode()
    url, given = ("--url", server.url), ("--dictionary", str(FOLDER / "first.zdict"))
    shown = run("doctor", *url, *given, exit_code=1).output.replace("\n", " ")
    assert "shop / ann / 1: its zstd frame is damaged" in shown
