"""EmbeddedServer: a private server that starts with an object and ends with the process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import fcntl
import math
import os
import re
import shutil
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Self

from ..errors import BackendUnavailable, InvalidArgument
from .binaries import find_server, inspect_server
from .watchdog import POLL_SECONDS, Watchdog

# What a setting may not change: the promises of the class docstring.
_RESERVED_SETTINGS = frozenset(
    ["daemonize", "dir", "port", "supervised", "tls-port", "unixsocket", "unixsocketperm"]
)
_SETTING_NAME = re.compile(r"[a-z0-9-]+")

# The path of a socket may have 103 bytes on macOS and 107 on Linux. The names of the private
# directory and of the socket take 34.
_TEMPORARY_PATH_BYTES_LIMIT = 69

# A server that keeps data gets this long to write its last bytes; then it is killed.
_STOP_GRACE_SECONDS = 10.0
# A predecessor whose parent was just killed needs a moment to go: a restart should not fail on it.
_LOCK_WAIT_SECONDS = 2.0


class EmbeddedServer:
    """A private server that starts with this object and ends with this process.

    Works as `with` and as `async with`, or through start() and stop(). It listens on a unix socket
    only (mode 700, in a directory of mode 700 that is removed at the end); there is no TCP port.
    It ends at stop(), at interpreter exit, and when this process is killed. A process forked from
    this one may use the server but does not own it: it neither stops it nor keeps it alive for
    more than a second. (So a program that turns itself into a daemon starts its server after
    that.)

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
        self._config = _checked_config(config or {})
        self._start_timeout_seconds = _checked_timeout(start_timeout)
        # Reentrant, so that a signal handler that calls stop() cannot lock itself out.
        self._lock = threading.RLock()
        self._directory: str | None = None
        self._watchdog: Watchdog | None = None

    def __repr__(self) -> str:
        watchdog = self._watchdog
        return f"<EmbeddedServer {watchdog.socket_path if watchdog else 'not running'}>"

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
        return self._started().pid

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
                self.stop()
            try:
                self._watchdog = self._launch(deadline)
            except OSError as error:
                raise BackendUnavailable(
                    f"the embedded server cannot be started: {error}"
                ) from error
            atexit.register(self.stop)

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
            watchdog, self._watchdog = self._watchdog, None
            if watchdog is not None:
                atexit.unregister(self.stop)
                watchdog.end()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        starting = asyncio.ensure_future(asyncio.to_thread(self.start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            # A thread cannot be interrupted, and no __aexit__ will follow.
            await asyncio.wait([starting])
            await asyncio.to_thread(self.stop)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.stop)

    def _started(self) -> Watchdog:
        watchdog = self._watchdog
        if watchdog is None:
            raise BackendUnavailable(
                "the embedded server is not running: use it in a `with` block or call start()"
            )
        return watchdog

    def _is_inherited(self) -> bool:
        return self._watchdog is not None and self._watchdog.owner_pid != os.getpid()

    def _launch(self, deadline: float) -> Watchdog:
        """Spawns watchdog and server, and waits until the server answers."""
        path = self._requested_executable
        binary = find_server() if path is None else inspect_server(path)
        if isinstance(binary, str):
            raise BackendUnavailable(f"executable cannot be used: {binary}")
        with _locked(self._data_dir, deadline) as inherited, contextlib.ExitStack() as undo:
            directory = self._directory = _make_private_directory(self._directory)
            undo.callback(shutil.rmtree, directory, ignore_errors=True)
            settings = {
                "port": "0",
                "unixsocketperm": "700",
                "dir": self._data_dir or directory,
                "save": "",
                "appendonly": "yes" if self._data_dir else "no",
                "appendfsync": "everysec",
            }
            watchdog = Watchdog(
                binary.path,
                directory,
                settings | self._config,
                grace_seconds=_STOP_GRACE_SECONDS if self._data_dir else 0.0,
                inherited=inherited,
            )
            undo.callback(watchdog.end)
            watchdog.wait_until_ready(deadline)
            undo.pop_all()
        return watchdog


def _make_private_directory(previous: str | None) -> str:
    """A new directory of mode 700 whose name leaves room for the socket's.

    Takes the `previous` name again if it is free, so that a restarted server keeps its address.
    """
    if previous is not None:
        with contextlib.suppress(OSError):  # Somebody took the name: any other will do.
            os.mkdir(previous, 0o700)
            return previous
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) > _TEMPORARY_PATH_BYTES_LIMIT:
        base = "/tmp"
    return tempfile.mkdtemp(prefix="sessionstore-", dir=base)


@contextlib.contextmanager
def _locked(data_dir: str | None, deadline: float) -> Iterator[tuple[int, ...]]:
    """Locks `data_dir`; whoever inherits the file descriptors holds the lock until it ends.

    The file stays for ever: removing it would let two owners lock two files of one name.
    """
    if data_dir is None:
        yield ()
        return
    deadline = min(deadline, time.monotonic() + _LOCK_WAIT_SECONDS)
    os.makedirs(data_dir, mode=0o700, exist_ok=True)
    path = os.path.join(data_dir, "sessionstore.lock")
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as lock:
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


def _absolute_path(argument: str, value: str | os.PathLike[str] | None) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise InvalidArgument(f"{argument} must be a non-empty path or None, not {value!r}")
    # Not realpath: the name a server is called by decides what it does.
    return os.path.abspath(value)


def _checked_timeout(value: float | timedelta) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise InvalidArgument(f"start_timeout must be more than zero seconds, not {value!r}")
    return seconds


def _checked_config(config: Mapping[str, str | int]) -> dict[str, str]:
    for name, value in config.items():
        if not isinstance(name, str) or not _SETTING_NAME.fullmatch(name):
            raise InvalidArgument(f"config has {name!r}, which is no name of a server setting")
        if name in _RESERVED_SETTINGS:
            raise InvalidArgument(f"config may not set {name!r}: EmbeddedServer sets it itself")
        # A bool is an int, but the server knows only yes and no. The value may be a secret.
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise InvalidArgument(
                f"config[{name!r}] must be str or int, not {type(value).__name__}"
            )
    return {name: str(value) for name, value in config.items()}
