"""What goes wrong at the command line is one sentence, and loses nothing."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.servers import Server

from sessionstore import Event
from sessionstore.cli import command_line
from sessionstore.cli.export import _place
from sessionstore.sync import RedisSessionService

NOBODY = "redis://127.0.0.1:1"
MAIN = "from sessionstore.cli import main; main()"


@pytest.fixture
def service(server: Server) -> Iterator[RedisSessionService]:
    server.raw.flushall()
    with RedisSessionService(server.url, session_ttl=3600) as found:
        session = found.create_session(app_name="shop", user_id="ann", session_id="1")
        found.append_event(session, Event("user", "mug"))
        yield found


def refused(*arguments: str | os.PathLike[str], exit_code: int = 2) -> str:
    """The last line of a command that does not succeed."""
    result = CliRunner().invoke(command_line(), [os.fspath(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == exit_code, result.output
    return result.stderr.splitlines()[-1]


@pytest.mark.usefixtures("service")
def test_a_file_that_cannot_be_written_is_named_at_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "no folder" / "x"
    for command in ("export",), ("size", "--measure"), ("train-dictionary", "shop"):
        said = refused(*command, "--url", server.url, "--output", path)
        assert said == f"Error: {path}: No such file or directory"


def test_an_export_that_fails_leaves_the_file_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "backup"
    path.write_text("yesterday")
    path.chmod(0o640)
    refused("export", "--url", NOBODY, "--output", path)
    assert [each.name for each in tmp_path.iterdir()] == ["backup"]
    assert path.read_text() == "yesterday"


def test_an_export_replaces_a_file_at_the_end(
    server: Server, service: RedisSessionService, tmp_path: Path
) -> None:
    path, link = tmp_path / "backup", tmp_path / "link"
    path.touch(0o640)
    link.symlink_to(path)
    command = ["export", "--url", server.url, "--output", str(link)]
    assert CliRunner().invoke(command_line(), command).exit_code == 0
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.read_text().count("\n") == service.count_sessions(app_name="shop", user_id="ann")
    assert refused("export", "shop", "ann", "none", "--url", server.url, "--output", path)
    assert path.read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.usefixtures("service")
def test_a_full_disk_is_one_sentence(server: Server) -> None:
    for command in ("ls",), ("ls", "--json"), ("export",), ("export", "--output", "/dev/full"):
        with Path("/dev/full").open("w") as full:
            process = subprocess.run(
                [sys.executable, "-c", MAIN, *command],
                env={**os.environ, "SESSIONSTORE_URL": server.url},
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert process.returncode == 2
        assert process.stderr.endswith("No space left on device\n")
        assert "Traceback" not in process.stderr


@pytest.mark.parametrize("number", ["nan", "inf", "1e300"])
def test_a_number_that_is_no_amount_is_refused(number: str) -> None:
    usual = ("size", "--agents", "10", "--turns-per-hour", "20")
    for command in (
        ("size", "--agents", "10", "--turns-per-hour", number),
        (*usual, "--event-bytes", number),
        (*usual, "--session-ttl", number),
        (*usual, "--state-changes", number),
        ("fleet", "--think", number),
        ("fleet", "--ttl", number),
        ("tail", "shop", "ann", "--idle", number),
    ):
        assert refused(*command).startswith(f"Error: Invalid value for '{command[-2]}': ")
    said = refused(*usual, "--sessions", "1000000000000", "--sessions-per-user", "1e-300")
    assert said == "Error: These numbers are too large or too small to estimate."
    said = refused(*usual, "--turns-per-session", "1e-200", "--events-per-turn", "1e-200")
    assert said == "Error: These numbers are too large or too small to estimate."


def test_a_search_that_saw_all_events_says_so(server: Server, service: RedisSessionService) -> None:
    def said(*arguments: str) -> str:
        command = ["search", "mug", "shop", "--url", server.url, *arguments]
        return CliRunner().invoke(command_line(), command).stderr

    session = service.create_session(app_name="shop", user_id="ann", session_id="2")
    service.append_events(session, [Event("user", "mug") for _ in range(3)])
    assert said("--events", "3") == "Found 4 events in 2 sessions.\n"
    assert "Not searched: older events of 1 session (--events)." in said("--events", "2")


@pytest.mark.usefixtures("service")
def test_what_is_no_source_is_named(server: Server, tmp_path: Path) -> None:
    url = ("--url", server.url)
    file = tmp_path / "x"
    assert refused("import", server.url, *url).endswith("or use `sessionstore copy`.")
    assert "needs a URL such as redis://" in refused("import", file, "--from", "trpc-go", *url)
    assert "TARGET must be a URL such as redis://" in refused("copy", "new:6379", *url)
    assert "url is not valid" in refused("copy", "redis://[x", *url)
    for kind in ("adk", "langgraph", "openai-agents"):
        command = ("import", file, "--from", kind, "--app", "a", "--user", "u", *url)
        file.unlink(missing_ok=True)
        assert refused(*command) == f"Error: {file}: there is no such file"
        with closing(sqlite3.connect(file)) as database:
            database.execute("CREATE TABLE other (x)")
        assert "this is not a database of" in refused(*command) or "not installed" in refused(
            *command
        )


def test_an_import_takes_empty_lines_and_no_events_without_a_session(
    server: Server, service: RedisSessionService, tmp_path: Path
) -> None:
    file = tmp_path / "x"
    line = '{"app_name": "shop", "user_id": "bob", "messages": [{"role": "user", "content": "Hi"}]}'
    with_id = line.replace("bob", 'bob", "session_id": "1')
    file.write_text(f"\n{with_id}\n\n{line}\n\n")
    said = refused("import", file, "--url", server.url, "--ttl", "3600")
    assert said == f"Error: {file}:4: messages need a `user_id` and a `session_id`"
    assert service.count_sessions(app_name="shop", user_id="bob") == 1


@pytest.mark.usefixtures("service")
def test_a_copy_names_the_store_that_fails(server: Server) -> None:
    server.raw.set("sessions:{shop:ann}", "not an index", ex=3600)
    target = server.url.replace("unix:///", "unix:////")
    said = refused("copy", target, "--url", server.url, "--target-key-prefix", "copy:")
    assert said.startswith(f"Error: {server.url}: ")
    assert "sessions:{shop:ann}" in said


def test_a_user_without_sessions_may_have_state(
    server: Server, service: RedisSessionService
) -> None:
    service.update_user_state("shop", "bob", {"lang": "en"})
    server.raw.expire("userdata:{shop:bob}", 3600)
    command = ["ls", "shop", "bob", "--url", server.url]
    assert CliRunner().invoke(command_line(), command).stderr == "The user has no sessions.\n"


def test_nothing_is_erased_if_nobody_can_answer(
    server: Server, service: RedisSessionService
) -> None:
    said = refused("erase", "shop", "ann", "--url", server.url, exit_code=1)
    assert said.endswith("Nothing was deleted; --yes deletes without a question")
    assert service.count_sessions(app_name="shop", user_id="ann") == 1


@pytest.mark.usefixtures("service")
def test_too_little_data_for_a_dictionary_is_said(server: Server, tmp_path: Path) -> None:
    said = refused("train-dictionary", "shop", "--url", server.url, "--output", tmp_path / "x")
    assert said.endswith("sample more, or pass a smaller --size")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["redis://:hunter2/x@localhost", "redis://[::1:6379"])
def test_a_url_that_cannot_be_read_is_not_quoted(url: str) -> None:
    for command in ("import", url, "--from", "trpc-go"), ("copy", url):
        result = CliRunner().invoke(command_line(), [*command, "--url", NOBODY])
        assert isinstance(result.exception, SystemExit)
        assert result.exit_code == 2
        assert "hunter2" not in result.output


def test_a_key_ring_and_a_key_store_that_are_not_valid_are_named(tmp_path: Path) -> None:
    ring = tmp_path / "ring"
    command = ("ls", "--url", NOBODY, "--key-ring", ring)
    ring.write_text("# none yet\n")
    assert refused(*command) == (
        f"Error: the key ring {ring}: no keys found; `sessionstore new-key` prints one."
    )
    ring.write_text("secret")
    said = refused(*command)
    assert said == f"Error: the key ring {ring}: a key must be written as NAME:BASE64."
    for name in ("a:b", "with space", "#1"):
        assert "the name of a key must have" in refused("new-key", name)
    ring.write_text(CliRunner().invoke(command_line(), ["new-key", "2026-01"]).stdout)
    said = refused(*command, "--key-store", "localhost:6379")
    assert said.startswith("Error: key_store: url must start with redis://")


def test_a_store_is_recognized_by_any_of_its_names() -> None:
    names = ("redis://localhost", "redis://127.0.0.1:6379/0", "redis://me:x@LOCALHOST?db=0")
    for name in names:
        assert refused("copy", name, "--url", names[0]).startswith("Error: TARGET is the store")
    for other in ("redis://localhost/1", "redis://localhost?db=1", "redis://localhost:1"):
        assert _place(other) != _place(names[0])
    assert "TARGET is the store" in refused("copy", "unix:///a/b", "--url", "unix:///a/b?db=0")


def test_a_store_that_is_opened_with_the_wrong_partition_is_empty(server: Server) -> None:
    server.raw.flushall()
    with RedisSessionService(server.url, session_ttl=3600, partition_by="app") as service:
        session = service.create_session(app_name="shop", user_id="ann", session_id="1")
        service.append_event(session, Event("user", "mug"))
    for arguments in ("ls",), ("ls", "shop"), ("search", "mug", "shop"), ("export",), ("stats",):
        result = CliRunner().invoke(command_line(), [*arguments, "--url", server.url])
        assert result.exit_code == 0, result.output
        if arguments == ("ls",):
            question = "Are --key-prefix and --partition-by those of your services?"
            assert result.stderr == f"Nothing is stored. {question}\n"


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize(
    "arguments",
    [
        ("tail", "shop", "ann", "1"),
        ("tail", "shop", "ann"),
        ("stats", "--watch", "--interval", "0.1"),
    ],
    ids=" ".join,
)
def test_a_command_that_runs_until_ctrl_c_ends_without_an_error(
    server: Server, arguments: tuple[str, ...]
) -> None:
    command = [sys.executable, "-c", MAIN, *arguments, "--url", server.url, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"{")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=15)
    assert process.returncode == 0, errors
    assert b"Abort" not in errors
    assert b'"keys"' not in rest  # `stats` does not begin to scan
