"""The process that ends a server when its owner is gone, and the object that holds its leash."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping

from ..errors import BackendUnavailable

# How often something that has no event to wait for is looked at.
POLL_SECONDS = 0.005

# Beyond the server's grace: how long the killing of it and the removal of its files may take.
_STOP_MARGIN_SECONDS = 5.0
_PING_TIMEOUT_SECONDS = 1.0
_LOG_TAIL_LINES = 12

# Runs as `python -I -S -c`, so it starts in milliseconds and depends on no installed package, not
# even on this one. Arguments: parent pid, grace in seconds, private directory, command of the
# server. Reports on stdout, one line each: "pid N", then how the server ended.
_SOURCE = """\
# sessionstore: ends a server when the process that started it is gone.
import os, select, signal, sys, time

parent, grace, directory, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:]
asked = []
wake_read, wake_write = os.pipe()
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

server = 0  # Its process id, until it is reaped.
try:
    server = os.posix_spawn(
        command[0], command, os.environ, setpgroup=0,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                      (os.POSIX_SPAWN_DUP2, 2, 1)])
    report("pid %d" % server)
except OSError as error:
    report(error.strerror)
import shutil  # Takes a while, and the server starts meanwhile.

def pause(seconds, *sources):
    global server
    ready, _, _ = select.select([wake_read, *sources], [], [], seconds)
    if wake_read in ready:
        os.read(wake_read, 4096)
    pid, status = os.waitpid(server, os.WNOHANG) if server else (0, 0)
    if pid:
        server = 0
        report("exit status %d" % os.waitstatus_to_exitcode(status))
    return 0 in ready

# The leash is pulled, or ends with the parent. The parent's process id is looked at too, because
# a process that the parent forked holds a copy of the write end.
while not asked and os.getppid() == parent and not pause(1.0, 0):
    pass

if server and grace:
    os.kill(server, signal.SIGTERM)
    os.kill(server, signal.SIGCONT)
    deadline = time.monotonic() + grace
    while server and time.monotonic() < deadline:
        pause(0.1)
if server:
    os.killpg(server, signal.SIGKILL)  # With the children that rewrite its files.
    os.waitpid(server, 0)
shutil.rmtree(directory, ignore_errors=True)
"""


class Watchdog:
    """This process's side of a watchdog and of the server that it watches.

    Writes `settings` and a log into the private `directory`, which the watchdog removes at the
    end. The server has `grace_seconds` to end before it is killed; 0 = it is killed at once. Both
    keep the `inherited` file descriptors open until they end.

    Attributes:
        executable: Path of the server's binary.
        socket_path: Path of the server's socket.
        pid: Process id of the server; 0 = not known yet.
        owner_pid: The process whose end is the end of the server.
    """

    def __init__(
        self,
        executable: str,
        directory: str,
        settings: Mapping[str, str],
        *,
        grace_seconds: float,
        inherited: tuple[int, ...],
    ) -> None:
        # In a frozen application sys.executable is the application, not an interpreter.
        if not sys.executable or getattr(sys, "frozen", False):
            raise BackendUnavailable(
                "the embedded server needs a Python interpreter to watch over it, and this"
                " application has none: pass the URL of a running server"
            )
        self.executable = executable
        self.socket_path = os.path.join(directory, "server.sock")
        self.pid = 0
        self.owner_pid = os.getpid()
        self._ending = ""
        self._stop_timeout_seconds = grace_seconds + _STOP_MARGIN_SECONDS
        self._log_path = os.path.join(directory, "server.log")
        # A file and not the command line, which every user of the machine can read.
        config_path = os.path.join(directory, "server.conf")
        with open(config_path, "wb") as config:
            for name, value in {**settings, "unixsocket": self.socket_path}.items():
                config.write(os.fsencode(f"{name} {_quoted(value)}\n"))
        command = [sys.executable, "-I", "-S", "-c", _SOURCE, str(self.owner_pid)]
        command += [str(grace_seconds), directory, executable, config_path]
        with open(self._log_path, "wb") as log:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,  # The leash.
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                # Redis refuses to start when the locale that LC_ALL names is not installed.
                env={**os.environ, "LC_ALL": "C"},
                pass_fds=inherited,
                # Out of reach of Ctrl-C: the parent may still have something to write.
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self._reports = self._process.stdout
        os.set_blocking(self._reports.fileno(), False)

    def wait_until_ready(self, deadline: float) -> None:
        """Returns when the server answers.

        Raises:
            BackendUnavailable: The server ended, or did not answer before `deadline`, an instant
                of time.monotonic(). The message carries the end of its log.
        """
        problem = "did not answer"
        while not self._has_ended():
            reply = ping(self.socket_path)
            if reply and reply.startswith(b"-LOADING"):
                problem = "was still loading its data"
            elif reply and self.pid:  # Any reply will do: with `requirepass` it is -NOAUTH.
                return
            if time.monotonic() >= deadline:
                problem += " when start_timeout was over"
                break
            time.sleep(POLL_SECONDS)
        else:
            problem = f"ended at start ({self._ending})"
        with open(self._log_path, encoding="utf-8", errors="replace") as log:
            tail = "".join(log.readlines()[-_LOG_TAIL_LINES:])
        name = os.path.basename(self.executable)
        raise BackendUnavailable(f"{name} {problem}; its log ends with:\n{tail}")

    def is_serving(self, deadline: float) -> bool:
        """Whether the server lives; one that no longer listens is given time to be gone."""
        while not self._has_ended() and time.monotonic() < deadline:
            if ping(self.socket_path) is not None:
                return True
            # Dead or about to be: the watchdog's report is on its way.
            time.sleep(POLL_SECONDS)
        return False

    def end(self) -> None:
        """Pulls the leash; returns when the server and its private directory are gone.

        Raises:
            BackendUnavailable: The watchdog was killed, or could not end the server.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate(b"\n", self._stop_timeout_seconds)
        if self._process.returncode != 0:
            raise BackendUnavailable(
                f"the embedded server (process {self.pid}) may still run: its watchdog"
                f" (process {self._process.pid}) was killed or hangs"
            )

    def _has_ended(self) -> bool:
        """Whether the server is gone; takes in what the watchdog has reported."""
        chunk = self._reports.read(4096)  # None = nothing new.
        if chunk == b"":
            self._ending = self._ending or "its watchdog was killed"
        for line in (chunk or b"").decode(errors="replace").splitlines():
            if line.startswith("pid "):
                self.pid = int(line.removeprefix("pid "))
            else:
                self._ending = line
        return self._ending != ""


def ping(socket_path: str) -> bytes | None:
    """The reply to PING; b"" = the server is too busy to give one, None = nobody listens."""
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


def _quoted(value: str) -> str:
    """The value as one word of a configuration file, whatever it holds."""
    return '"' + re.sub(r'[\x00-\x1f"\\]', lambda match: f"\\x{ord(match[0]):02x}", value) + '"'
