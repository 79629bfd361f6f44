"""The servers of tests and benchmarks never outlive the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from benchmarks.rigs.clusters import Cluster, Unsettled
from sessionstore.embedded.watchdog import Watchdog

ROOT = Path(__file__).resolve().parent.parent.parent

SLEEP = """\
#!/bin/sh
exec sleep 60
"""

# Three processes: one that runs, one that is stopped, and one that is dead already.
_PARENT = """\
import os, signal, sys, time
from sessionstore.embedded.watchdog import Watchdog
directories = sys.argv[2:]
dogs = [Watchdog(sys.argv[1], directory, dict()) for directory in directories]
while not all(dog.is_running() and dog.pid for dog in dogs):
    time.sleep(0.01)
dogs[1].signal(signal.SIGSTOP)
dogs[2].signal(signal.SIGKILL)
while dogs[2].is_running():
    time.sleep(0.01)
print(*(dog.pid for dog in dogs), flush=True)
sys.stdin.readline()
{end}
time.sleep(60)
"""


@pytest.fixture
def sleeper(tmp_path: Path) -> str:
    """A program that runs for a minute and ignores its arguments."""
    path = tmp_path / "sleeper"
    path.write_text(SLEEP)
    path.chmod(0o755)
    return str(path)


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
def test_no_server_is_left_however_the_parent_ends(end: str, sleeper: str, tmp_path: Path) -> None:
    directories = [tmp_path / name for name in "abc"]
    for directory in directories:
        directory.mkdir()
    command = [sys.executable, "-c", _PARENT.format(end=end), sleeper, *map(str, directories)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        try:
            assert parent.stdout is not None
            pids = [int(word) for word in parent.stdout.readline().split()]
            assert [_is_running(pid) for pid in pids] == [True, True, False]
            assert all(directory.exists() for directory in directories)
            print(file=parent.stdin, flush=True)
            _wait_until_gone(pids, directories)
        finally:
            parent.kill()


def _wait_until_gone(pids: list[int], directories: list[Path]) -> None:
    deadline = time.monotonic() + 20
    while any(map(_is_running, pids)) or any(each.exists() for each in directories):
        assert time.monotonic() < deadline, f"{pids} or {directories} are still there"
        time.sleep(0.01)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_dead_process_takes_no_signals_and_starts_again(sleeper: str, tmp_path: Path) -> None:
    directory = tmp_path / "server"
    directory.mkdir()
    watchdog = Watchdog(sleeper, str(directory), {})
    try:
        _wait_for_pid(watchdog)
        first = watchdog.pid
        watchdog.signal(signal.SIGKILL)
        while watchdog.is_running():
            time.sleep(0.01)
        assert watchdog.ending == "exit status -9"
        watchdog.signal(signal.SIGCONT)
        assert not watchdog.is_running()
        watchdog.restart()
        _wait_for_pid(watchdog)
        assert watchdog.pid != first
        assert _is_running(watchdog.pid)
        assert directory.exists()
    finally:
        watchdog.stop()
    assert not directory.exists()
    assert not _is_running(watchdog.pid)


def _wait_for_pid(watchdog: Watchdog) -> None:
    while not watchdog.pid:
        assert watchdog.is_running()
        time.sleep(0.01)


def test_the_error_says_why_a_server_did_not_start(tmp_path: Path) -> None:
    watchdog = Watchdog("/no/such/program", str(tmp_path), {})
    while watchdog.is_running():
        time.sleep(0.01)
    assert watchdog.ending == "No such file or directory"
    watchdog.stop()


def test_a_node_that_runs_is_not_started_again(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    with pytest.raises(Unsettled, match=f"{node.name} is already running"):
        node.restart()


def test_a_cluster_that_cannot_form_raises_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cluster = Cluster(1, 0, config={"no-such-setting": "1"})
    with pytest.raises(Unsettled, match=r"node-0 has ended: (?s:.)*no-such-setting"):
        cluster.start()
    assert cluster.nodes == []
    assert list(tmp_path.iterdir()) == []
