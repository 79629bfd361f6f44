"""Runs a server process that cannot outlive this process.

A *watchdog*, a small process of its own, starts the server. It reads from a pipe that this process
holds open. When this process ends, SIGKILL included, the pipe closes, and the watchdog kills the
server and removes its directory. A forked child may hold a copy of the pipe, so once a second the
watchdog also checks that its parent is still the same.

The watchdog signals only its own child, and only before it has reaped it. So it never hits another
process that happens to get the same process id.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping

from ..errors import BackendUnavailable

POLL_SECONDS = 0.005
"""How often to check a condition that sends no notification."""

# How long killing the server and removing its files may take, beyond the grace period.
_STOP_MARGIN_SECONDS = 5.0

# Orders to the watchdog, one byte each. Any other byte is a signal number for the server.
_STOP, _START = 0, 255

# Runs as `python -I -S -c`: it starts in milliseconds and needs no installed package, not even
# this one. It reports on stdout, one line each: "pid N", then how the server ended.
_SOURCE = """\
# sessionstore: ends a server when the process that started it is gone.
import os, select, signal, sys, time

parent, grace, directory, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:]
is_stopping = []
wake_read, wake_write = os.pipe()
os.set_blocking(wake_write, False)
signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
signal.signal(signal.SIGCHLD, lambda *_: None)
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: is_stopping.append(True))
# The parent may have blocked signals. The server would inherit that and ignore SIGTERM.
signal.pthread_sigmask(signal.SIG_SETMASK, [])
os.umask(0o077)
server = 0  # its process id; 0 when it does not run

def report(text):
    try:
        os.write(1, (text + "\\n").encode())
    except OSError:
        pass  # the parent is gone, but the server still has to be ended

def spawn():
    global server
    try:
        server = os.posix_spawn(
            command[0], command, os.environ, setpgroup=0,
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                          (os.POSIX_SPAWN_DUP2, 2, 1)])
        report("pid %d" % server)
    except OSError as error:
        report(error.strerror)

def wait(seconds, *sources):
    global server
    ready, _, _ = select.select([wake_read, *sources], [], [], seconds)
    if wake_read in ready:
        os.read(wake_read, 4096)
    pid, status = os.waitpid(server, os.WNOHANG) if server else (0, 0)
    if pid:
        server = 0
        report("exit status %d" % os.waitstatus_to_exitcode(status))
    return 0 in ready

spawn()
import shutil  # slow to import; the server starts meanwhile

while not is_stopping and os.getppid() == parent:
    if wait(1.0, 0):
        for order in os.read(0, 4096) or [0]:  # no byte = the parent closed the pipe
            if order == 0:
                is_stopping.append(True)
            elif order == 255:
                spawn()
            elif server:
                os.kill(server, order)

if server and grace:
    os.kill(server, signal.SIGTERM)
    os.kill(server, signal.SIGCONT)
    deadline = time.monotonic() + grace
    while server and time.monotonic() < deadline:
        wait(0.1)
if server:
    os.killpg(server, signal.SIGKILL)  # its children too, which rewrite its files
    os.waitpid(server, 0)
shutil.rmtree(directory, ignore_errors=True)
"""


class Watchdog:
    """A server process and the watchdog that ends it.

    Writes the `settings` and the server's log into `directory`, which the watchdog removes at the
    end. The server gets `grace_seconds` to end before it is killed. Both processes keep the file
    descriptors in `inherited` open.
    """

    def __init__(
        self,
        executable: str,
        directory: str,
        settings: Mapping[str, str],
        *,
        grace_seconds: float = 0.0,
        inherited: tuple[int, ...] = (),
    ) -> None:
        # In a frozen application sys.executable is the application, not an interpreter.
        if not sys.executable or getattr(sys, "frozen", False):
            raise BackendUnavailable(
                "the embedded server needs a Python interpreter to run its watchdog, and this"
                " application has none: pass the URL of a running server"
            )
        self.executable = executable
        self.pid = 0  # of the server; 0 = not known yet
        self.owner_pid = os.getpid()  # the process that started the server
        self.ending = ""  # how the server ended; "" = it has not
        self.log_path = os.path.join(directory, "server.log")
        self._stop_timeout_seconds = grace_seconds + _STOP_MARGIN_SECONDS
        # A file, because every user of the machine can read a command line.
        config_path = os.path.join(directory, "server.conf")
        with open(config_path, "wb") as config:
            for name, value in settings.items():
                config.write(os.fsencode(f"{name} {_quoted(value)}\n"))
        command = [sys.executable, "-I", "-S", "-c", _SOURCE, str(self.owner_pid)]
        command += [str(grace_seconds), directory, executable, config_path]
        with open(self.log_path, "wb") as log:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                # Redis refuses to start when the locale in LC_ALL is not installed.
                env={**os.environ, "LC_ALL": "C"},
                pass_fds=inherited,
                # Ctrl-C must not reach the server: this process may still have data to write.
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self._reports = self._process.stdin, self._process.stdout
        os.set_blocking(self._reports.fileno(), False)

    def is_running(self) -> bool:
        """Whether the server process has not ended. A server that is stopped by SIGSTOP runs."""
        chunk = self._reports.read(4096)  # None = no new report
        if chunk == b"":
            self.ending = self.ending or "its watchdog was killed"
        for line in (chunk or b"").decode(errors="replace").splitlines():
            if line.startswith("pid "):
                self.pid = int(line.removeprefix("pid "))
            else:
                self.ending = line
        return self.ending == ""

    def signal(self, number: int) -> None:
        """Send a signal to the server. Does nothing if the server has ended."""
        self._orders.write(bytes([number]))

    def restart(self) -> None:
        """Start the server again after it has ended, with the same settings and directory."""
        self.pid, self.ending = 0, ""
        self._orders.write(bytes([_START]))

    def stop(self) -> None:
        """End server and watchdog; returns when both have ended and the directory is removed.

        Raises:
            BackendUnavailable: The watchdog was killed, or could not end the server.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate(bytes([_STOP]), self._stop_timeout_seconds)
        if self._process.returncode != 0:
            raise BackendUnavailable(
                f"the server (process {self.pid}) may still run: its watchdog"
                f" (process {self._process.pid}) was killed or hangs"
            )


def _quoted(value: str) -> str:
    """The value as one word of a configuration file, whatever it contains."""
    return '"' + re.sub(r'[\x00-\x1f"\\]', lambda match: f"\\x{ord(match[0]):02x}", value) + '"'
