"""Runs server processes that can be killed, stopped and started again, and never outlive this one.

One *keeper*, a small process of its own, starts them all. It holds the read end of a pipe whose
only write end is here, so however this process ends, SIGKILL included, the keeper sees the pipe
end, kills what runs and removes the directory. It signals nothing but children that it has not
reaped yet, so no other process can be hit. (sessionstore.embedded does the same for one server.)
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_ANSWER_TIMEOUT_S = 10.0

# Reads one JSON object a line: {"start": name, "command": [...], "log": path} or
# {"signal": name, "number": n}. Answers with {"started": name, "pid": n}, {"failed": name,
# "why": text}, {"signalled": name, "alive": bool} and, unasked, {"ended": name, "status": n}.
_KEEPER_SOURCE = """\
# sessionstore benchmarks: ends servers when the process that started them is gone.
import json, os, select, shutil, signal, sys

parent, directory = int(sys.argv[1]), sys.argv[2]
wake_read, wake_write = os.pipe()
os.set_blocking(wake_read, False)
os.set_blocking(wake_write, False)
os.set_blocking(0, False)
signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
signal.signal(signal.SIGCHLD, lambda *_: None)
asked = []
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: asked.append(number))
signal.pthread_sigmask(signal.SIG_SETMASK, [])
names = {}  # by process id

def report(**answer):
    try:
        os.write(1, (json.dumps(answer) + "\\n").encode())
    except OSError:
        pass  # Nobody is left to read it, and there is still work to do.

def reap():
    for pid in list(names):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            report(ended=names.pop(pid), status=os.waitstatus_to_exitcode(status))

def obey(order):
    if "start" in order:
        name, command = order["start"], order["command"]
        log = (os.POSIX_SPAWN_OPEN, 1, order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), log,
                 (os.POSIX_SPAWN_DUP2, 1, 2)]
        try:
            pid = os.posix_spawn(command[0], command, os.environ, setpgroup=0, file_actions=files)
        except OSError as error:
            return report(failed=name, why=error.strerror)
        names[pid] = name
        return report(started=name, pid=pid)
    reap()
    found = [pid for pid, name in names.items() if name == order["signal"]]
    for pid in found:
        os.kill(pid, order["number"])
    report(signalled=order["signal"], alive=bool(found))

unread, is_open = b"", True
while is_open and not asked and os.getppid() == parent:
    ready = select.select([0, wake_read], [], [], 1.0)[0]
    if wake_read in ready:
        os.read(wake_read, 4096)
    reap()
    if 0 in ready:
        chunk = os.read(0, 65536)
        is_open = bool(chunk)
        *lines, unread = (unread + chunk).split(b"\\n")
        for line in lines:
            obey(json.loads(line))
for pid in names:
    os.killpg(pid, signal.SIGKILL)  # with children that rewrite its files; a stopped one dies too
for pid in names:
    os.waitpid(pid, 0)
shutil.rmtree(directory, ignore_errors=True)
"""


class Processes:
    """Named processes, and a directory that is removed with them.

    As a context manager it kills all of them at the end. Safe for threads.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sessionstore-bench-"))
        self._lock = threading.Lock()
        self._unparsed = b""
        self._pids: dict[str, int] = {}
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _KEEPER_SOURCE, str(os.getpid()), self.directory],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            # Redis refuses to start when the locale that LC_ALL names is not installed.
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )

    def start(self, name: str, command: list[str], log: Path) -> int:
        """Start a process; its id. Its output goes to the end of `log`.

        Raises:
            RuntimeError: it cannot be started, or one of this name runs.
        """
        with self._lock:
            self._read(0.0)
            if name in self._pids:
                raise RuntimeError(f"{name} runs already")
            answer = self._ask(
                {"start": name, "command": command, "log": str(log)},
                lambda found: name in (found.get("started"), found.get("failed")),
            )
        if "failed" in answer:
            raise RuntimeError(f"{name} cannot be started: {answer['why']}")
        return int(answer["pid"])

    def signal(self, name: str, number: signal.Signals) -> bool:
        """Send a signal. False if the process is gone."""
        with self._lock:
            answer = self._ask(
                {"signal": name, "number": int(number)},
                lambda found: found.get("signalled") == name,
            )
        return bool(answer["alive"])

    def is_running(self, name: str) -> bool:
        """Whether a process has not ended; a stopped one runs."""
        with self._lock:
            self._read(0.0)
            return name in self._pids

    def kill(self, name: str) -> None:
        """SIGKILL a process; returns when it is gone."""
        self.signal(name, signal.SIGKILL)
        deadline = time.monotonic() + _ANSWER_TIMEOUT_S
        with self._lock:
            while name in self._pids:
                if not self._read(deadline - time.monotonic()):
                    raise RuntimeError(f"{name} does not die")

    def close(self) -> None:
        """Kill everything and remove the directory. May be repeated."""
        with self._lock:
            assert self._keeper.stdin is not None
            assert self._keeper.stdout is not None
            self._keeper.stdin.close()
            try:
                self._keeper.wait(_ANSWER_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._end_without_keeper()
            self._keeper.stdout.close()
            shutil.rmtree(self.directory, ignore_errors=True)

    def _end_without_keeper(self) -> None:
        """Something keeps the keeper from its work. What it started has not ended yet."""
        self._keeper.kill()
        self._keeper.wait()
        for pid in self._pids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(
        self, order: dict[str, Any], is_answer: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(json.dumps(order).encode() + b"\n")
        deadline = time.monotonic() + _ANSWER_TIMEOUT_S
        while True:
            for answer in self._read(deadline - time.monotonic()):
                if is_answer(answer):
                    return answer
            if time.monotonic() >= deadline:
                raise RuntimeError("the keeper of the processes does not answer")

    def _read(self, timeout_s: float) -> list[dict[str, Any]]:
        """What the keeper says within the time; empty if nothing."""
        assert self._keeper.stdout is not None
        descriptor = self._keeper.stdout.fileno()
        answers: list[dict[str, Any]] = []
        while not answers and select.select([descriptor], [], [], max(timeout_s, 0.0))[0]:
            chunk = os.read(descriptor, 65536)
            if not chunk:
                raise RuntimeError("the keeper of the processes is gone")
            *lines, self._unparsed = (self._unparsed + chunk).split(b"\n")
            answers = [json.loads(line) for line in lines]
        for answer in answers:
            if "started" in answer:
                self._pids[answer["started"]] = answer["pid"]
            elif "ended" in answer:
                self._pids.pop(answer["ended"], None)
        return answers
