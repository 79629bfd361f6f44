"""EmbeddedServer: a private server that ends, at the latest, with this process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import fcntl
import os
import re
import shutil
import socket
import stat
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Self

from ..errors import BackendUnavailable, InvalidArgument
from ..options import check_seconds
from .binaries import ServerBinary, find_server, inspect_server
from .watchdog import POLL_SECONDS, Watchdog

# Settings that would break what the class promises.
_RESERVED = ("daemonize", "dir", "port", "supervised", "tls-port", "unixsocket", "unixsocketperm")
_SETTING_NAME = re.compile(r"[a-z0-9-]+")

# A socket path is limited to 103 bytes on macOS and 107 on Linux. The names of the private
# directory and of the socket take 34 of them.
_TEMPORARY_PATH_BYTES_LIMIT = 69

# How long a server with data_dir may take to write its last bytes before it is killed.
_STOP_GRACE_SECONDS = 10.0
# After a kill and restart, the previous server may need a moment to end and release data_dir.
_LOCK_WAIT_SECONDS = 2.0

_PING_TIMEOUT_SECONDS = 1.0
_LOG_TAIL_LINES = 12
_NEWER_FORMAT = re.compile(r"Can't handle (foreign )?RDB format version")


class EmbeddedServer:
    """A private server for this process.

    Use it with `with` or `async with`, or call start() and stop(). The server listens on a unix
    socket only, in a private directory of mode 700 that is removed at the end.

    The server ends at stop(), when the interpreter exits, and when this process is killed. A
    forked child may use it, but cannot stop it or keep it running for more than a second. A program
    that becomes a daemon by forking should start its server after the fork.

    The properties url, socket_path, pid and executable raise BackendUnavailable while the server
    is not started.

    Args:
        data_dir: Directory that keeps the data across restarts, created with mode 700 if it does
            not exist. It must belong to this user, and not every user may write to it. The server
            writes an append-only file and syncs it every second. Only one server at a time can
            use the directory. None = keep nothing.
        executable: Path of the server binary. None = the result of find_server(). An older server
            cannot read the data_dir of a newer one.
        config: Further server settings, with values as CONFIG SET takes them, e.g.
            {"maxmemory": "10mb", "maxmemory-policy": "noeviction"}. They override the defaults of
            this class. `daemonize`, `dir`, `port`, `supervised`, `tls-port`, `unixsocket` and
            `unixsocketperm` are not allowed.
        start_timeout: How long start() waits for the server to load data_dir and answer. Seconds
            or timedelta, more than zero. Raise it for a data_dir of many gigabytes.

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
        self._config = _checked_config(config or {})
        self._start_timeout_seconds = check_seconds("start_timeout", start_timeout)
        # Reentrant, so that a signal handler that calls stop() cannot deadlock.
        self._lock = threading.RLock()
        self._directory = ""
        self._watchdog: Watchdog | None = None

    def __repr__(self) -> str:
        return f"<EmbeddedServer {self._socket_path if self._watchdog else 'not running'}>"

    @property
    def url(self) -> str:
        """Address for services and redis-py, e.g. "unix:///tmp/xyz/server.sock"."""
        return "unix://" + urllib.parse.quote(self.socket_path)

    @property
    def socket_path(self) -> str:
        """Absolute path of the unix socket. A restart uses the same path if it is still free."""
        self._started()
        return self._socket_path

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._started().pid

    @property
    def executable(self) -> str:
        """Absolute path of the server binary."""
        return self._started().executable

    @property
    def data_dir(self) -> str | None:
        """Absolute path of the directory that keeps the data. None = nothing is kept."""
        return self._data_dir

    def start(self) -> None:
        """Starts the server and returns when it answers.

        Does nothing if the server is running. Starts it again if it has died. Waits up to 2 seconds
        for a data_dir that is in use. In an async program use `async with`, which does not block.

        Raises:
            BackendUnavailable: There is no usable binary, data_dir cannot be used, or the server
                ended or did not answer within start_timeout. Nothing is left running.

        Cost: about 30 ms, plus the time to load data_dir.
        """
        if self._is_inherited():
            return
        with self._lock:
            deadline = time.monotonic() + self._start_timeout_seconds
            if self._watchdog is not None:
                if ping(self._socket_path) is not None:
                    return
                self.stop()
            try:
                self._watchdog = self._launch(deadline)
            except OSError as error:
                text = f"the embedded server cannot be started: {error}"
                raise BackendUnavailable(text) from error
            atexit.register(self.stop)

    def stop(self) -> None:
        """Ends the server; returns when it has ended and its private directory is removed.

        Does nothing if the server is not running, or in a forked child. With data_dir the server
        gets 10 seconds to write its data before it is killed. Without, it is killed at once.

        Raises:
            BackendUnavailable: The server did not end: the disk hangs, or the watchdog process
                was killed.

        Cost: about 10 ms; about 100 ms with data_dir.
        """
        if self._is_inherited():
            return
        with self._lock:
            watchdog, self._watchdog = self._watchdog, None
            if watchdog is not None:
                atexit.unregister(self.stop)
                watchdog.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        starting = asyncio.ensure_future(asyncio.to_thread(self.start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:  # __aexit__ will not be called
            await asyncio.wait([starting])  # a thread cannot be interrupted
            await asyncio.to_thread(self.stop)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.stop)

    def _started(self) -> Watchdog:
        if self._watchdog is None:
            raise BackendUnavailable(
                "the embedded server is not running: use it in a `with` block or call start()"
            )
        return self._watchdog

    def _is_inherited(self) -> bool:
        return self._watchdog is not None and self._watchdog.owner_pid != os.getpid()

    @property
    def _socket_path(self) -> str:
        return os.path.join(self._directory, "server.sock")

    def _launch(self, deadline: float) -> Watchdog:
        """Start watchdog and server, and wait until the server answers."""
        path = self._requested_executable
        binary = find_server() if path is None else inspect_server(path)
        if isinstance(binary, str):
            raise BackendUnavailable(f"executable cannot be used: {binary}")
        with _locked(self._data_dir, deadline) as inherited, contextlib.ExitStack() as undo:
            self._directory = _make_private_directory(self._directory)
            undo.callback(shutil.rmtree, self._directory, ignore_errors=True)
            settings = {
                "port": "0",
                "unixsocket": self._socket_path,
                "unixsocketperm": "700",
                "dir": self._data_dir or self._directory,
                "save": "",
                "appendonly": "yes" if self._data_dir else "no",
                "appendfsync": "everysec",
            }
            watchdog = Watchdog(
                binary.path,
                self._directory,
                settings | self._config,
                grace_seconds=_STOP_GRACE_SECONDS if self._data_dir else 0.0,
                inherited=inherited,
            )
            undo.callback(watchdog.stop)
            self._wait_until_ready(watchdog, binary, deadline)
            undo.pop_all()
        return watchdog

    def _wait_until_ready(self, watchdog: Watchdog, binary: ServerBinary, deadline: float) -> None:
        problem = "did not answer"
        while watchdog.is_running():
            reply = ping(self._socket_path)
            if reply and reply.startswith(b"-LOADING"):
                problem = "was still loading its data"
            elif reply and watchdog.pid:  # any reply will do: with `requirepass` it is -NOAUTH
                return
            if time.monotonic() >= deadline:
                problem += " within start_timeout"
                break
            time.sleep(POLL_SECONDS)
        else:
            problem = f"ended at start ({watchdog.ending})"
        with open(watchdog.log_path, encoding="utf-8", errors="replace") as file:
            log = file.readlines()
        if any(map(_NEWER_FORMAT.search, log)):
            raise BackendUnavailable(
                f"data_dir {self._data_dir!r} was written by a newer server than {binary}: use that"
                " server or another data_dir"
            )
        name, tail = os.path.basename(binary.path), "".join(log[-_LOG_TAIL_LINES:])
        raise BackendUnavailable(f"{name} {problem}. The end of its log:\n{tail}")


def ping(socket_path: str) -> bytes | None:
    """The reply to PING. b"" = the server is too busy; None = nothing listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PING_TIMEOUT_SECONDS)
        try:
            connection.connect(socket_path)
            connection.sendall(b"PING\r\n")
            return connection.recv(256) or None
        except (ConnectionError, FileNotFoundError):
            return None
        except OSError:
            return b""


def _make_private_directory(previous: str) -> str:
    """A new directory of mode 700, short enough for a socket path.

    It has the `previous` name if that is free, so that a restarted server keeps its address.
    """
    if previous:
        with contextlib.suppress(OSError):  # the name is taken: use another
            os.mkdir(previous, 0o700)
            return previous
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) > _TEMPORARY_PATH_BYTES_LIMIT:
        base = "/tmp"
    return tempfile.mkdtemp(prefix="sessionstore-", dir=base)


@contextlib.contextmanager
def _locked(data_dir: str | None, deadline: float) -> Iterator[tuple[int, ...]]:
    """Lock `data_dir`. Processes that inherit the yielded file descriptors hold the lock too.

    The lock file is never removed: otherwise two owners could lock two files of the same name.
    """
    if data_dir is None:
        yield ()
        return
    deadline = min(deadline, time.monotonic() + _LOCK_WAIT_SECONDS)
    os.makedirs(data_dir, mode=0o700, exist_ok=True)
    with os.fdopen(_open_lock_file(data_dir), "r+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise BackendUnavailable(
                        f"data_dir {data_dir!r} is in use by another EmbeddedServer"
                        f" (of process {lock.readline().strip()})"
                    ) from None
                time.sleep(POLL_SECONDS)
        lock.truncate(0)
        print(os.getpid(), file=lock, flush=True)
        yield (lock.fileno(),)


def _open_lock_file(data_dir: str) -> int:
    """Open the lock file. Refuse a link, which could lead to any file."""
    status = os.stat(data_dir)
    if status.st_uid != os.geteuid():
        raise BackendUnavailable(f"data_dir {data_dir!r} belongs to another user ({status.st_uid})")
    if status.st_mode & stat.S_IWOTH:
        raise BackendUnavailable(
            f"data_dir {data_dir!r} is open to every user: run chmod o-w on it"
        )
    path = os.path.join(data_dir, "sessionstore.lock")
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise BackendUnavailable(f"{path} is not a regular file")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _absolute_path(argument: str, value: str | os.PathLike[str] | None) -> str | None:
    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    with contextlib.suppress(UnicodeEncodeError):
        if isinstance(path, str) and path and b"\0" not in os.fsencode(path):
            # Not realpath: the name by which a server is called decides what it does.
            return os.path.abspath(path)
    raise InvalidArgument(f"{argument} must be a non-empty path or None, not {value!r}")


def _checked_config(config: Mapping[str, str | int]) -> dict[str, str]:
    for name, value in config.items():
        if not isinstance(name, str) or not _SETTING_NAME.fullmatch(name):
            raise InvalidArgument(f"config: {name!r} is not a valid name of a server setting")
        if name in _RESERVED:
            raise InvalidArgument(f"config must not contain {name!r}: EmbeddedServer sets it")
        # A bool is an int, but servers take yes and no. The value may be a secret: do not show it.
        if not isinstance(value, str | int) or isinstance(value, bool):
            kind = type(value).__name__
            raise InvalidArgument(f"config[{name!r}] must be str or int, not {kind}")
    return {name: str(value) for name, value in config.items()}
