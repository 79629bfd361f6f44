"""The commands that look at existing data: ls, show, tail, search and erase."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.servers import Server

from sessionstore import Event, SessionKey
from sessionstore.cli import command_line
from sessionstore.cli.transcript import Piece, pieces_of
from sessionstore.sync import RedisSessionService

HOSTILE = "a b/é:{x}*"  # an id that needs escaping in keys and in patterns
TTL_S = 3600
PREFIX = "p:"


@pytest.fixture
def service(server: Server) -> Iterator[RedisSessionService]:
    server.raw.flushall()
    ttls: Any = dict.fromkeys(("session_ttl", "app_state_ttl", "user_state_ttl"), TTL_S)
    with RedisSessionService(server.url, key_prefix=PREFIX, **ttls) as found:
        yield found


def run(server: Server, *arguments: str, exit_code: int = 0) -> Result:
    command, *rest = arguments
    options = ["--url", server.url, "--key-prefix", PREFIX]
    result = CliRunner().invoke(command_line(), [command, *options, *rest])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == exit_code, result.output
    return result


def rows(server: Server, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(server, *arguments, "--json").stdout.splitlines()]


def fill(service: RedisSessionService) -> None:
    for app_name in ("shop", HOSTILE):
        for user_id in ("ann", HOSTILE):
            for session_id in ("1", HOSTILE):
                session = service.create_session(
                    app_name=app_name,
                    user_id=user_id,
                    session_id=session_id,
                    state={"n": 1, "user:lang": "en", "app:plan": "pro"},
                )
                service.append_events(
                    session, [Event("user", f"mug {number}") for number in range(3)]
                )


def deadlines(server: Server) -> dict[Any, Any]:
    return {key: server.raw.expiretime(os.fsdecode(key)) for key in server.raw.keys("*")}


def test_ls_lists_applications_users_and_sessions(
    server: Server, service: RedisSessionService
) -> None:
    fill(service)
    before = deadlines(server)
    assert rows(server, "ls") == [
        {"app": app_name, "users": 2, "sessions": 4} for app_name in sorted(("shop", HOSTILE))
    ]
    for app_name in ("shop", HOSTILE):
        users = rows(server, "ls", app_name)
        assert [(row["user"], row["sessions"]) for row in users] == [
            (user_id, 2) for user_id in sorted(("ann", HOSTILE))
        ]
        for user_id in ("ann", HOSTILE):
            sessions = rows(server, "ls", app_name, user_id)
            assert {row["session"] for row in sessions} == {"1", HOSTILE}
            assert all(row["events"] == 3 and row["bytes"] > 100 for row in sessions)
            assert all(row["expires"] is not None for row in sessions)
    assert deadlines(server) == before


def test_ls_pages(server: Server, service: RedisSessionService) -> None:
    fill(service)
    first = run(server, "ls", "shop", "--limit", "1")
    assert "More: --after 'a b/é:{x}*'" in first.stderr
    assert "ann" not in first.stdout
    assert [row["user"] for row in rows(server, "ls", "shop", "--after", HOSTILE)] == ["ann"]
    page = run(server, "ls", "shop", "ann", "--limit", "1")
    cursor = page.stderr.partition("--after '")[2].partition("'")[0]
    assert len(rows(server, "ls", "shop", "ann", "--after", cursor)) == 1


def test_ls_of_a_user_misses_no_session_that_is_written_meanwhile(
    server: Server, service: RedisSessionService
) -> None:
    for number in range(9):
        service.create_session(app_name="shop", user_id="ann", session_id=f"s{number}")
    seen: list[str] = []
    after: list[str] = []
    while True:
        page = run(server, "ls", "shop", "ann", "--limit", "2", "--json", *after)
        seen += [json.loads(line)["session"] for line in page.stdout.splitlines()]
        if not page.stderr:
            break
        after = ["--after", page.stderr.partition("--after '")[2].partition("'")[0]]
        if len(seen) == 2:  # it moves from the end to the top
            service.append_event(SessionKey("shop", "ann", "s0"), Event("user", "one more"))
    assert seen == ["s8", "s7", "s6", "s5", "s4", "s3", "s2", "s1", "s0"]


def test_ls_lists_damaged_and_large_sessions_and_leaves_expired_ones_alone(
    server: Server, service: RedisSessionService
) -> None:
    fill(service)
    key = SessionKey("shop", "ann", "1")
    service.update_session_state(key, {"large": "x" * 1_000_000})
    server.raw.hset(f"{PREFIX}session:{{shop:ann}}:1", "created_us", "x")
    server.raw.hdel(f"{PREFIX}session:{{shop:ann}}:1", "count")  # as 0.1.0 stored it
    server.raw.zadd(f"{PREFIX}sessions:{{shop:ann}}", {"expired": 2**52})
    found = {row["session"]: row for row in rows(server, "ls", "shop", "ann")}
    assert set(found) == {"1", HOSTILE}
    assert found["1"]["events"] == 3
    assert found["1"]["bytes"] > 100  # an estimate of the server
    assert len(rows(server, "ls", "shop", "ann", "--limit", "1")) == 1
    assert server.raw.zscore(f"{PREFIX}sessions:{{shop:ann}}", "expired") == 2**52


def test_ls_says_that_nothing_is_stored(server: Server, service: RedisSessionService) -> None:
    fill(service)
    result = run(server, "ls", "nobody")
    assert result.stdout == ""
    assert result.stderr == "The application has no users.\n"
    last = run(server, "ls", "shop", "--after", "zoe")
    assert last.stderr == "The application has no more users.\n"
    server.raw.flushall()
    assert "Are --key-prefix and --partition-by those of your services?" in run(server, "ls").stderr


def test_show_prints_header_state_and_events(server: Server, service: RedisSessionService) -> None:
    fill(service)
    before = deadlines(server)
    text = run(server, "show", "shop", "ann", "1", "--events", "2").stdout
    assert "shop / ann / 1" in text
    assert 'app      plan = "pro"' in text
    assert 'user     lang = "en"' in text
    assert "state    n = 1" in text
    assert "mug 0" not in text
    assert text.index("mug 1") < text.index("mug 2")
    position = text.partition("older: --before ")[2].split()[0]
    older = run(server, "show", "shop", "ann", "1", "--before", position, "--raw").stdout
    assert [json.loads(line)["content"] for line in older.splitlines()] == ["mug 0"]
    [row] = rows(server, "show", "shop", "ann", "1")
    assert [each["event"]["content"] for each in row["events"]] == ["mug 0", "mug 1", "mug 2"]
    assert deadlines(server) == before


def test_stored_text_cannot_control_a_terminal(
    server: Server, service: RedisSessionService
) -> None:
    name = "\x1b]0;title\x07"
    session = service.create_session(
        app_name="shop", user_id=name, session_id=name, state={name: 1}
    )
    service.append_event(session, Event(name, f"{name}\x9b31m and\r\x08 more"))
    server.raw.zadd(f"{PREFIX}sessions:{{shop:%1B%5D0%3Btitle%07}}", {name + "2": 1})
    for arguments in (
        ("ls", "shop"),
        ("ls", "shop", name),
        ("show", "shop", name, name),
        ("search", "more", "shop"),
        ("tail", "shop", name, "--idle", "0.1"),
        ("tail", "shop", name, name, "--idle", "0.1"),
        ("doctor",),
    ):
        result = run(server, *arguments, exit_code=arguments == ("doctor",))
        assert "title" in result.stdout
        assert not {"\x1b", "\x07", "\x9b", "\r", "\x08"} & {*result.output}


def test_show_names_a_session_that_does_not_exist(
    server: Server, service: RedisSessionService
) -> None:
    fill(service)
    error = run(server, "show", "shop", "ann", "none", exit_code=2).stderr
    assert "session 'none' of user 'ann' in app 'shop' does not exist" in error


def test_tail_prints_what_is_appended(server: Server, service: RedisSessionService) -> None:
    fill(service)
    key = SessionKey("shop", "ann", "1")

    def append() -> None:
        service.append_event(key, Event("assistant", "one more"))

    timer = threading.Timer(0.2, append)
    timer.start()
    text = run(server, "tail", "shop", "ann", "1", "--events", "1", "--idle", "2").stdout
    timer.join()
    assert text.splitlines()[0].endswith("mug 2")
    assert text.splitlines()[1].endswith("one more")


def test_tail_reports_rewinds_and_a_session_that_is_created_again(
    server: Server, service: RedisSessionService
) -> None:
    fill(service)
    key = SessionKey("shop", "ann", "1")

    def change() -> None:
        time.sleep(0.5)  # until the command watches
        service.rewind_session(key, to=service.get_events(key).positions[0])
        time.sleep(1.5)  # until it has looked again
        ids: Any = {"app_name": "shop", "user_id": "ann", "session_id": "1"}
        service.delete_session(**ids)
        service.append_event(service.create_session(**ids), Event("user", "again"))

    with ThreadPoolExecutor() as pool:
        changing = pool.submit(change)
        result = run(server, "tail", "shop", "ann", "1", "--idle", "3", "--json")
        changing.result()
    items = [json.loads(line) for line in result.stdout.splitlines()]
    assert [item["type"] for item in items] == [*["event"] * 3, "change", "end", "event", "end"]
    assert items[3]["events"] == []
    assert items[4]["reason"] == "recreated"
    assert items[5]["event"]["content"] == "again"


def test_tail_of_a_user_prints_the_sessions_that_are_updated(
    server: Server, service: RedisSessionService
) -> None:
    fill(service)

    def update() -> None:
        time.sleep(0.5)  # until the first ones are printed
        for session_id in ("1", HOSTILE):
            service.append_event(SessionKey("shop", "ann", session_id), Event("assistant", "new"))

    with ThreadPoolExecutor() as pool:
        updating = pool.submit(update)
        result = run(server, "tail", "shop", "ann", "--sessions", "1", "--idle", "1.5", "--json")
        updating.result()
    first, last = (json.loads(line) for line in result.stdout.splitlines())
    assert (first["session"], first["newest"]["content"]) == (HOSTILE, "mug 2")
    assert (last["session"], last["newest"]["content"]) == (HOSTILE, "new")
    assert (last["events"], result.stderr) == (
        4,
        "1 other session was updated meanwhile (--sessions).\n",
    )
    text = run(server, "tail", "shop", "ann", "--idle", "0.1").stdout
    assert "4 events  assistant new" in text


READING = {
    "ls": [],
    "ls shop": ["shop"],
    "ls shop ann": ["shop", "ann"],
    "show": ["shop", "ann", "1"],
    "search": ["mug", "shop"],
    "tail": ["shop", "ann", "--idle", "0.1"],
    "export": [],
    "stats": ["--interval", "0.1"],
    "doctor": ["--full"],
    "erase": ["shop", "ann", "--dry-run"],
}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("name", READING)
def test_reading_commands_change_no_key_and_no_deadline(
    server: Server, service: RedisSessionService, name: str, as_json: bool
) -> None:
    fill(service)
    raw: Any = server.raw
    raw.zadd(f"{PREFIX}sessions:{{shop:ann}}", {"expired": 1})
    for key in raw.keys("*"):
        raw.expire(key, 100)  # a refresh would set an hour

    def everything() -> dict[bytes, tuple[bytes, int]]:
        return {key: (raw.dump(key), raw.pexpiretime(key)) for key in raw.keys("*")}

    before = everything()
    options = ["--url", server.url, "--key-prefix", PREFIX, *(["--json"] if as_json else [])]
    arguments = [name.split()[0], *options, *READING[name]]
    result = CliRunner().invoke(command_line(), arguments)
    assert result.exit_code in ((0, 1) if name == "doctor" else (0,)), result.output
    if as_json:
        assert [json.loads(line) for line in result.stdout.splitlines()]
    assert everything() == before


@pytest.mark.parametrize("where", [(), ("ann",), ("ann", "1")])
def test_search_finds_text(
    server: Server, service: RedisSessionService, where: tuple[str, ...]
) -> None:
    fill(service)
    found = rows(server, "search", "MUG 1", "shop", *where)
    assert len(found) == 2 ** (2 - len(where))
    assert all(row["event"]["content"] == "mug 1" for row in found)
    assert f"Found {len(found)} event" in run(server, "search", "mug 1", "shop", *where).stderr


def test_search_reports_what_it_did_not_search(
    server: Server, service: RedisSessionService
) -> None:
    fill(service)
    text = run(server, "search", "mug", "shop", "--sessions", "1", "--events", "2").stderr
    assert "Not searched: 3 older sessions" in text
    assert "Not searched: older events of 1 session " in text
    text = run(server, "search", "mug", "shop", "--users", "1").stderr
    assert "Found 6 events in 2 sessions." in text
    assert "Not searched: users beyond the first 1 (--users)." in text
    assert "Found 0 events" in run(server, "search", 'say "no"', "shop").stderr
    service.append_event(SessionKey("shop", "ann", "1"), Event("user", 'Say "no"\n'))
    assert "Found 1 event " in run(server, "search", 'say "no"\n', "shop").stderr


def test_erase_leaves_nothing_of_a_user(server: Server, service: RedisSessionService) -> None:
    fill(service)
    with RedisSessionService(server.url, key_prefix=PREFIX, stream_ttl=60) as streaming:
        key = SessionKey(HOSTILE, HOSTILE, "1")
        streaming.append_event(key, Event("assistant", "Hel", partial=True))
    listed = run(server, "erase", HOSTILE, HOSTILE, "--dry-run").stdout.splitlines()
    assert len(listed) == len(set(listed)) == 7
    others = set(server.raw.keys("*")) - {line.encode() for line in listed}
    assert (
        CliRunner().invoke(command_line(), ["erase", "--url", server.url, "a", "b"]).exit_code == 1
    )
    text = run(server, "erase", HOSTILE, HOSTILE, "--yes").stdout
    assert text == "Deleted 2 sessions and 1 state key. Redis keys left: 0\n"
    assert set(server.raw.keys("*")) == others


def test_stats_count_the_keys_of_each_kind(server: Server, service: RedisSessionService) -> None:
    fill(service)
    load, found = rows(server, "stats", "--interval", "0.1")
    counts = {each["kind"]: each["number"] for each in found["keys"]}
    assert counts == {"session": 8, "events": 8, "sessions": 4, "userdata": 4, "appdata": 2}
    assert all(each["bytes"] > 0 for each in found["keys"])
    assert found["sessions"] == 8
    assert found["bytes_per_session"] > 100
    assert load["memory_bytes"] > 100_000
    assert load["connections"] >= 1
    text = run(server, "stats", "--interval", "0.1").stdout
    assert "headers and session state" in text
    assert "8 sessions, " in text
    assert "commands/s" in text


def test_a_missing_server_gives_one_sentence() -> None:
    url = "redis://localhost:1"
    result = CliRunner().invoke(command_line(), ["ls", "--url", url])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {url}: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        (None, []),
        ("hello", [Piece("text", "hello")]),
        ({"n": 1}, [Piece("data", '{"n":1}')]),
        ({"role": "user", "content": "hello"}, [Piece("text", "hello")]),
        (
            {
                "role": "model",
                "parts": [{"text": "a"}, {"functionCall": {"name": "f", "args": {}}}],
            },
            [Piece("text", "a"), Piece("call", "f({})")],
        ),
        (
            {"type": "function_call", "name": "f", "arguments": '{"x":1}'},
            [Piece("call", 'f({"x":1})')],
        ),
        ({"type": "function_call_output", "output": "42"}, [Piece("result", "42")]),
        (
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            [Piece("call", "f({})")],
        ),
        (
            [{"type": "tool_use", "name": "f", "input": {"x": 1}}, {"type": "text", "text": "b"}],
            [Piece("call", 'f({"x":1})'), Piece("text", "b")],
        ),
        ({"role": "tool", "content": "done"}, [Piece("result", "done")]),
    ],
)
def test_content_of_frameworks_is_shown_as_text_and_tool_calls(
    content: Any, pieces: list[Piece]
) -> None:
    assert pieces_of(content) == pieces


def test_a_command_without_a_url_names_both_ways_to_pass_it() -> None:
    result = CliRunner().invoke(command_line(), ["ls"], env={"SESSIONSTORE_URL": None})
    assert result.exit_code == 2
    assert "pass --url, or set SESSIONSTORE_URL" in result.stderr


PNG = "iVBORw0KGgo="
IMAGE = Piece("image", f"data:image/png;base64,{PNG}")


@pytest.mark.parametrize(
    "content",
    [
        {"type": "image_url", "image_url": {"url": IMAGE.text}},
        {"type": "input_image", "image_url": IMAGE.text},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
        {"type": "image", "mimeType": "image/png", "data": PNG},
        {"type": "image", "mime_type": "image/png", "base64": PNG},
        {"kind": "binary", "media_type": "image/png", "data": PNG},
        {"parts": [{"inline_data": {"mime_type": "image/png", "data": PNG}}]},
        {"parts": [{"inlineData": {"mimeType": "image/png", "data": PNG}}]},
        {"mime_type": "image/png", "data": b"\x89PNG\r\n\x1a\n"},
    ],
)
def test_images_in_the_content_of_frameworks_are_found(content: Any) -> None:
    assert pieces_of(content) == [IMAGE]


def test_images_of_a_tool_result_are_found() -> None:
    image = {"type": "image", "mimeType": "image/png", "data": PNG}
    [result, found] = pieces_of({"type": "tool_result", "content": [image]})
    assert (result.kind, found) == ("result", IMAGE)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/a.png",
        "javascript:alert(1)",
        "data:text/html;base64,PHA+",
        "data:image/svg+xml;base64,PHN2Zz4=",
        'data:image/png;base64,AA" onerror="alert(1)',
    ],
)
def test_what_is_no_inline_image_is_shown_as_data(url: str) -> None:
    [piece] = pieces_of({"type": "input_image", "image_url": url})
    assert piece.kind == "data"


def test_content_that_is_nested_deeply_is_shown_as_data() -> None:
    content: Any = "x"
    for _ in range(400):
        content = {"content": [content]}
    [piece] = pieces_of(content)
    assert piece == Piece("data", json.dumps(content, separators=(",", ":")))


def test_show_prints_what_an_image_is(server: Server, service: RedisSessionService) -> None:
    fill(service)
    content = {"type": "input_image", "image_url": IMAGE.text}
    service.append_event(SessionKey("shop", "ann", "1"), Event("user", content))
    assert "[image/png, 0 KB]" in run(server, "show", "shop", "ann", "1").stdout
