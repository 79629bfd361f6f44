"""Servers of tests and benchmarks never outlive the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.clusters import Cluster, Unsettled
from benchmarks.processes import Processes

ROOT = Path(__file__).resolve().parent.parent.parent

# One process that runs, one that is stopped, and one that is dead already.
_PARENT = """\
import os, signal, sys, time
from benchmarks.processes import Processes
processes = Processes()
log = processes.directory / "log"
pids = [processes.start(name, ["/bin/sleep", "60"], log) for name in "abc"]
processes.signal("b", signal.SIGSTOP)
processes.kill("c")
print(processes.directory, *pids, flush=True)
sys.stdin.readline()
{end}
time.sleep(60)
"""


@pytest.mark.parametrize(
    "end",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "os.execvp('sleep', ['sleep', '60'])",
        "os._exit(3)",
        "sys.exit(3)",
    ],
)
def test_no_server_is_left_however_the_parent_ends(end: str) -> None:
    command = [sys.executable, "-c", _PARENT.format(end=end)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        try:
            assert parent.stdout is not None
            directory, *words = parent.stdout.readline().split()
            pids = [int(word) for word in words]
            assert [_is_running(pid) for pid in pids] == [True, True, False]
            assert Path(directory).exists()
            print(file=parent.stdin, flush=True)
            _wait_until_gone(pids, Path(directory))
        finally:
            parent.kill()


def _wait_until_gone(pids: list[int], directory: Path) -> None:
    deadline = time.monotonic() + 20
    while any(map(_is_running, pids)) or directory.exists():
        assert time.monotonic() < deadline, f"{pids} or {directory} are still there"
        time.sleep(0.01)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes() as found:
        yield found


def test_names_are_used_once_at_a_time(processes: Processes) -> None:
    log = processes.directory / "log"
    processes.start("a", ["/bin/sleep", "60"], log)
    with pytest.raises(RuntimeError, match="a runs already"):
        processes.start("a", ["/bin/sleep", "60"], log)
    processes.kill("a")
    assert not processes.is_running("a")
    assert not processes.signal("a", signal.SIGCONT)
    processes.start("a", ["/bin/sleep", "60"], log)
    assert processes.is_running("a")


def test_what_cannot_be_started_says_why(processes: Processes) -> None:
    with pytest.raises(RuntimeError, match="b cannot be started: No such file"):
        processes.start("b", ["/no/such/program"], processes.directory / "log")


def test_a_cluster_that_cannot_form_says_why_and_leaves_nothing() -> None:
    cluster = Cluster(1, 0, config={"no-such-setting": "1"})
    with pytest.raises(Unsettled, match=r"node-0 has ended: (?s:.)*no-such-setting"):
        cluster.start()
    assert not cluster.processes.directory.exists()
