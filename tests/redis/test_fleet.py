"""The command `sessionstore fleet`: clean runs, interruptions, and its messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner, Result
from support.servers import Server
from support.waiting import wait_until

from sessionstore.cli import command_line, store
from sessionstore.cli.fleet.run import separate_cores
from sessionstore.cli.store import growth, identify
from sessionstore.embedded import EmbeddedServer, find_servers
from sessionstore.errors import BackendUnavailable

PROJECT = Path(__file__).parents[2]
RECORDING = PROJECT / "../shared/data/airline.jsonl"
ALL_ZERO = {
    "lost": 0,
    "duplicated": 0,
    "out_of_order": 0,
    "altered": 0,
    "unexpected": 0,
    "state_mismatches": 0,
    "version_mismatches": 0,
    "summary_mismatches": 0,
    "read_mismatches": 0,
    "list_mismatches": 0,
}
QUICK = ("--think", "0", "--flat-out", "0")
SMALL = ("--agents", "8", "--turns", "3", *QUICK)
# Far more turns than can be done before a signal arrives.
ENDLESS = ("--agents", "20", "--turns", "100000")
SECRET = "correct-horse"

needs_server = pytest.mark.skipif(not find_servers(), reason="no Redis or Valkey server installed")


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(command_line(), ["fleet", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def report_of(*arguments: str, exit_code: int = 0) -> dict[str, Any]:
    result = invoke(*arguments, "--json", "-")
    assert result.exit_code == exit_code, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    assert report["exit_code"] == exit_code
    return report


def complaint_of(*arguments: str) -> str:
    """The last line of stderr of a run that cannot start."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    last_line = result.stderr.splitlines()[-1]
    assert last_line.startswith("Error: ")
    return last_line


def keys_of(server: Server) -> set[str]:
    return {os.fsdecode(key) for key in server.raw.keys("*")}


@contextmanager
def user_without(server: Server, name: str, command: str) -> Iterator[str]:
    """The URL of a user that may run every command but one."""
    rules: dict[str, Any] = {"keys": ["*"], "categories": ["+@all"], "commands": [f"-{command}"]}
    server.raw.acl_setuser(name, enabled=True, passwords=[f"+{SECRET}"], **rules)
    yield with_login(server.url, name, SECRET)
    server.raw.acl_deluser(name)


def with_login(url: str, user: str, password: str) -> str:
    return url.replace("unix://", f"unix://{user}:{password}@")


def check_history(report: dict[str, Any]) -> None:
    """Check the report of a run with summaries and rewinds."""
    assert report["verification"] == ALL_ZERO
    assert report["num_failed_operations"] == 0
    assert report["num_covered"] > report["num_dropped"] > 0
    calls = {figures["operation"]: figures["num_calls"] for figures in report["operations"]}
    # At turns 1, 4 and 7 of a session, of two events or more.
    num_sessions = report["num_sessions"]
    assert calls["rewind_session"] == 3 * num_sessions
    assert report["num_rewound"] >= 2 * 3 * num_sessions


class TestInMemory:
    def test_a_small_run_loses_nothing(self) -> None:
        report = report_of("--url", "memory://", *SMALL)
        assert report["verification"] == ALL_ZERO
        assert report["num_failed_operations"] == 0
        assert report["num_sessions"] == report["num_verified"] == 8
        assert report["num_events"] > 8 * 3 * 2
        assert report["server_cpu_us_per_operation"] is None
        assert report["server_memory_bytes_per_event"] is None
        calls = {figures["operation"]: figures["num_calls"] for figures in report["operations"]}
        assert calls["create_session"] == calls["append_events"] == 8
        assert calls["get_or_create_session"] == 8 * 3
        assert calls["append_event"] == report["num_events"] - 8
        assert calls["all"] == sum(calls.values()) - calls["all"]
        assert len(calls) == 5

    def test_summaries_and_rewinds_lose_nothing(self) -> None:
        options = ("--agents", "8", "--turns", "9", *QUICK, "--compact", "--rewind")
        report = report_of("--url", "memory://", *options)
        check_history(report)
        shown = invoke("--url", "memory://", *options).stdout
        assert "Summaries cover" in shown
        assert "were rewound" in shown

    def test_what_is_summarized_and_rewound_must_not_be_trimmed_before(self) -> None:
        for option in ("--compact", "--rewind"):
            complaint = complaint_of("--url", "memory://", option, "--event-limit", "999")
            assert "--event-limit 0 or at least 1,000" in complaint
        report_of("--url", "memory://", *SMALL, "--compact", "--event-limit", "0")

    def test_trimming_keeps_the_state_whole(self) -> None:
        report = report_of("--url", "memory://", *SMALL, "--event-limit", "6")
        assert report["verification"] == ALL_ZERO

    def test_the_text_shows_where_how_fast_and_whether_anything_was_lost(self) -> None:
        result = invoke("--url", "memory://", *SMALL)
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert lines[0] == "Server      memory of this process, memory://"
        assert lines[1].startswith("Agents      8 at a time")
        assert any(line.split()[:1] == ["append_event"] for line in lines)
        assert "PASSED: nothing was lost" in result.stdout
        assert "CPU" not in result.stdout
        assert result.stderr == ""

    def test_agents_think_and_then_append_flat_out(self) -> None:
        options = ("--agents", "8", "--turns", "2", "--think", "0.01", "--flat-out", "0.1")
        report = report_of("--url", "memory://", *options)
        assert report["verification"] == ALL_ZERO
        # 5 events or more in a conversation, and a start within 10 thinks.
        assert report["elapsed_seconds"] > 5 * 0.01
        assert report["flat_out"]["num_agents"] == 8
        assert report["flat_out"]["seconds"] >= 0.1
        calls = {figures["operation"]: figures["num_calls"] for figures in report["operations"]}
        num_paced = calls["append_event"] + 8
        assert report["num_events"] >= num_paced + report["flat_out"]["num_appends"] > num_paced
        assert "appends a second" in invoke("--url", "memory://", *options).stdout

    @pytest.mark.skipif(not RECORDING.exists(), reason="the recorded conversations are not here")
    def test_the_recording_is_replayed(self) -> None:
        report = report_of("--url", "memory://", "--trace", str(RECORDING), *QUICK)
        assert report["num_sessions"] == report["num_verified"] == 100
        assert report["num_events"] == 2658
        assert report["verification"] == ALL_ZERO

    def test_conversations_of_odd_shapes_are_replayed(self, tmp_path: Path) -> None:
        shapes = {
            "empty": [],
            "no user": ["system", *["assistant"] * 249],
            "no agent": ["user"] * 3,
            "late user": ["assistant", "tool", "user", "assistant"],
        }
        path = tmp_path / "trace.jsonl"
        with path.open("w") as file:
            for name, roles in shapes.items():
                messages = [{"role": role, "content": "..."} for role in roles]
                ids = {"app_name": "app", "user_id": "user", "session_id": name}
                print(json.dumps({**ids, "messages": messages}), file=file)
        report = report_of("--url", "memory://", "--trace", str(path), *QUICK)
        assert report["verification"] == ALL_ZERO
        assert report["num_sessions"] == report["num_verified"] == 4
        assert report["num_events"] == 250 + 3 + 4
        calls = {figures["operation"]: figures["num_calls"] for figures in report["operations"]}
        assert calls["append_events"] == 3 + 1
        assert calls["get_or_create_session"] == 3 + 1
        assert calls["append_event"] == 3 + 2

    def test_the_report_is_written_to_a_file_too(self, tmp_path: Path) -> None:
        path = tmp_path / "report.json"
        result = invoke("--url", "memory://", *SMALL, "--json", str(path))
        assert result.exit_code == 0
        assert "nothing was lost" in result.stdout
        assert json.loads(path.read_text())["verification"] == ALL_ZERO


class TestOnAServer:
    def test_summaries_and_rewinds_lose_nothing(self, server: Server) -> None:
        options = ("--agents", "20", "--turns", "9", "--think", "0.001", "--flat-out", "0.1")
        check_history(report_of("--url", server.url, *options, "--compact", "--rewind"))

    @needs_server
    def test_the_private_server_is_the_default(self) -> None:
        report = report_of("--agents", "50", *QUICK)
        assert report["verification"] == ALL_ZERO
        assert report["place"].startswith("started for this run: /")
        assert report["place"].endswith(("found on PATH", "from the extra `embedded`"))
        assert report["server"].startswith(("Redis ", "Valkey "))
        assert report["server_cpu_us_per_operation"] > 0
        assert report["server_memory_bytes_per_event"] > 0

    @pytest.mark.without_ttl
    def test_a_server_in_use_is_left_as_it_was(self, server: Server) -> None:
        server.raw.set("precious", "data")
        report = report_of("--url", server.url, *SMALL, "--sessions-per-user", "3")
        assert report["verification"] == ALL_ZERO
        assert keys_of(server) == {"precious"}

    @pytest.mark.without_ttl
    def test_kept_data_is_under_the_prefix_of_the_run(self, server: Server) -> None:
        report = report_of("--url", server.url, *SMALL, "--keep")
        keys = keys_of(server)
        assert len(keys) > 8
        assert all(key.startswith(report["key_prefix"]) for key in keys)
        assert report_of("--url", server.url, *SMALL)["verification"] == ALL_ZERO
        assert keys_of(server) == keys

    def test_a_ttl_reaches_every_key(self, server: Server) -> None:
        report_of("--url", server.url, *SMALL, "--keep", "--ttl", "600")
        lifetimes = {key: server.raw.ttl(key) for key in keys_of(server)}
        assert lifetimes
        # A deadline is up to a 64th of the TTL late, so that not every call has to move it.
        limit = 600 + 600 / 64 + 1
        assert {key: ttl for key, ttl in lifetimes.items() if not 0 < ttl <= limit} == {}

    def test_trimming_and_no_limit(self, server: Server) -> None:
        for limit in ("1", "6", "0"):
            report = report_of("--url", server.url, *SMALL, "--event-limit", limit)
            assert report["verification"] == ALL_ZERO, limit

    @pytest.mark.skipif(not RECORDING.exists(), reason="the recorded conversations are not here")
    def test_the_recording_is_replayed(self, server: Server) -> None:
        report = report_of("--url", server.url, "--trace", str(RECORDING), "--agents", "20", *QUICK)
        assert report["num_sessions"] == 100
        assert report["num_events"] == 2658
        assert report["verification"] == ALL_ZERO

    def test_a_user_without_the_right_to_run_info_gets_no_figures(self, server: Server) -> None:
        with user_without(server, "agent", "info") as url:
            result = invoke("--url", url, *SMALL)
        assert result.exit_code == 0, result.output
        assert "unknown server" in result.stdout
        assert SECRET not in result.output

    def test_failed_operations_are_counted_with_their_reason(self, server: Server) -> None:
        with user_without(server, "reader", "hset") as url:
            result = invoke("--url", url, *SMALL)
        assert result.exit_code == 1
        assert "failed: BackendRejected: create_session" in result.stdout
        assert "FAILED" in result.stdout
        assert SECRET not in result.output


class TestCores:
    @needs_server
    @pytest.mark.skipif(
        not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
        reason="needs two cores that can be chosen",
    )
    def test_client_and_server_have_separate_cores_for_a_while(self) -> None:
        before = os.sched_getaffinity(0)
        with EmbeddedServer() as server:
            with separate_cores(server.pid):
                client_cores, server_cores = map(os.sched_getaffinity, (0, server.pid))
                assert len(server_cores) == 1
                assert client_cores | server_cores == before
                assert not client_cores & server_cores
            assert os.sched_getaffinity(0) == os.sched_getaffinity(server.pid) == before
            pid = server.pid
        with separate_cores(pid):  # the server has ended
            pass
        with separate_cores(None):
            assert os.sched_getaffinity(0) == before


class TestMessages:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["--agents", "0"], "'--agents'"),
            (["--turns", "many"], "'--turns'"),
            (["--sessions-per-user", "-1"], "'--sessions-per-user'"),
            (["--event-limit", "-1"], "'--event-limit'"),
            (["--ttl", "0"], "'--ttl'"),
            (["--seed", "x"], "'--seed'"),
            (["--trace", "missing.jsonl"], "'--trace'"),
            (["--json", "missing/report.json"], "'--json'"),
            (["--url", f"http://me:{SECRET}@host"], "'--url'"),
            (["--url", f"redis://me:{SECRET}@host:port"], "'--url'"),
            (["--url", "localhost:6379"], "'--url'"),
            (["--url", "unix://"], "'--url'"),
            (["--trace", __file__, "--seed", "1"], "--seed has no effect together with --trace"),
        ],
    )
    def test_a_bad_option_is_named(self, arguments: Sequence[str], expected: str) -> None:
        complaint = complaint_of(*arguments)
        assert expected in complaint
        assert SECRET not in complaint

    def test_a_refused_connection_is_one_sentence_without_the_password(self) -> None:
        # Port 1 is reserved and nothing listens there.
        complaint = complaint_of("--url", f"redis://me:{SECRET}@127.0.0.1:1/0?password={SECRET}")
        assert complaint.startswith("Error: cannot use redis://127.0.0.1:1/0: ")
        assert SECRET not in complaint

    def test_a_url_that_redis_refuses(self) -> None:
        complaint = complaint_of("--url", f"redis://:{SECRET}@host/0?socket_timeout=soon")
        assert complaint.startswith("Error: Invalid value for '--url': url is not valid")
        assert SECRET not in complaint

    def test_a_bad_line_of_a_trace(self, tmp_path: Path) -> None:
        path = tmp_path / "trace.jsonl"
        path.write_text('\n{"app_name": "a", "user_id": "u", "messages": []}\n')
        complaint = complaint_of("--trace", str(path))
        assert complaint.startswith(f"Error: {path}:2: ")
        assert "session_id" in complaint

    @needs_server
    def test_a_wrong_password(self) -> None:
        with EmbeddedServer() as server:
            with redis.Redis(unix_socket_path=server.socket_path) as client:
                client.config_set("requirepass", SECRET)
            for password in ("wrong-guess", ""):
                complaint = complaint_of("--url", with_login(server.url, "", password))
                assert "cannot use unix:///" in complaint
                assert "wrong-guess" not in complaint
            report = report_of("--url", with_login(server.url, "", SECRET), *SMALL)
            assert report["verification"] == ALL_ZERO

    def test_a_server_that_is_too_old(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = identify([{"redis_version": "6.2.14"}])
        monkeypatch.setattr(store, "identify", lambda _: old)
        complaint = complaint_of("--url", server.url)
        assert complaint.endswith("Redis 6.2.14 is too old; Redis 7.0 or Valkey 7.2 is needed")

    def test_no_server_to_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class NoServer(EmbeddedServer):
            def start(self) -> None:
                raise BackendUnavailable("no server was found")

        monkeypatch.setattr(store, "EmbeddedServer", NoServer)
        assert complaint_of() == "Error: cannot start a private server: no server was found"

    @pytest.mark.parametrize("package", ["click", "rich"])
    def test_a_missing_extra_is_one_sentence(self, package: str) -> None:
        program = (
            f"import sys; sys.modules[{package!r}] = None\n"
            "from sessionstore.cli import main; main()"
        )
        result = subprocess.run(
            [sys.executable, "-c", program],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 2
        assert result.stderr == (
            "The command needs the extra `cli`: pip install 'sessionstore[cli]'\n"
        )

    def test_figures_of_servers_are_added_up(self) -> None:
        valkey = {"redis_version": "7.2.4", "valkey_version": "8.1.8", "used_memory": "7"}
        assert identify([valkey]) == ("Valkey 8.1.8", (7, 2, 4))
        assert identify([{}]) == ("Redis", ())
        infos = [{"redis_version": "8.2.3"}, {"redis_version": "8.0.1"}]
        assert identify(infos) == ("Redis 8.2.3, a cluster of 2 primaries", (8, 0, 1))
        larger = {"used_memory": "8.5"}
        assert growth([valkey, valkey], [larger, valkey], "used_memory") == 1.5
        with pytest.raises(KeyError):
            growth([valkey, {}], [valkey, valkey], "used_memory")


@contextmanager
def started(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process group of its own, as a terminal starts it."""
    program = "from sessionstore.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "fleet", *arguments],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def press_ctrl_c(process: subprocess.Popen[str]) -> None:
    """Send SIGINT to all processes of the group, as a terminal does."""
    os.killpg(process.pid, signal.SIGINT)


def wait_for_writes(client: redis.Redis) -> None:
    wait_until(lambda: client.keys("fleet:*events:*"), "an event")


class TestInterruption:
    def test_ctrl_c_stops_cleanly_and_verifies(self, server: Server) -> None:
        with started("--url", server.url, *ENDLESS, "--json", "-") as process:
            wait_for_writes(server.raw)
            press_ctrl_c(process)
            stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 130, stderr
        assert stderr == "Stopping the agents, then verifying. Ctrl-C again ends at once.\n"
        report = json.loads(stdout)
        assert report["is_interrupted"]
        assert report["verification"] == ALL_ZERO
        assert report["num_failed_operations"] == 0
        assert report["num_events"] > 0
        assert report["num_verified"] == report["num_sessions"] > 0
        assert keys_of(server) == set()

    @needs_server
    def test_ctrl_c_does_not_end_the_private_server(self) -> None:
        # Not tmp_path: the path of a unix socket must be short.
        with (
            tempfile.TemporaryDirectory(prefix="fleet-") as directory,
            started(*ENDLESS, "--json", "-", TMPDIR=directory) as process,
        ):
            wait_until(lambda: list(Path(directory).glob("*/*.sock")), "a private server")
            [socket_path] = Path(directory).glob("*/*.sock")
            with redis.Redis(unix_socket_path=str(socket_path)) as client:
                wait_for_writes(client)
            press_ctrl_c(process)
            stdout, stderr = process.communicate(timeout=60)
            assert os.listdir(directory) == []
        assert process.returncode == 130, stderr
        report = json.loads(stdout)
        assert report["verification"] == ALL_ZERO
        assert report["num_failed_operations"] == 0

    @pytest.mark.without_ttl
    def test_a_second_ctrl_c_ends_at_once(self, server: Server) -> None:
        with started("--url", server.url, *ENDLESS) as process:
            wait_for_writes(server.raw)
            server.raw.client_pause(60_000, all=False)  # Writes in flight do not finish.
            try:
                press_ctrl_c(process)
                assert process.stderr is not None
                assert "Ctrl-C again" in process.stderr.readline()
                press_ctrl_c(process)
                stdout, stderr = process.communicate(timeout=30)
            finally:
                server.raw.client_unpause()
        assert process.returncode == 130
        assert [line.split()[0] for line in stdout.splitlines()] == ["Server", "Agents"]
        assert stderr == "Aborted: not verified, and data of the run may be left.\n"
