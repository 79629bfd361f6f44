"""How soon does a command answer on 100,000 sessions, and how much memory does it use?

Three stores: users with ten sessions each in ten applications, one application with a user for each
session, and one user with all sessions. Each session has three events. Every command runs in a
process of its own, as an operator would start it. Its first output is the first byte that it
prints, on stdout or stderr; the time includes the start of Python. The memory is the peak of the
process. If the machine does other work too, only processor time and memory say something.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sessionstore import Event, RedisSessionService

from .harness import Harness, Server, main
from .results import Figure, Result, Target

_AT_ONCE = 1000
_ENTRY = "from sessionstore.cli import main; main()"
# ru_maxrss of a child begins with that of its parent, so a small process starts the command.
_START = """
import resource, subprocess, sys
command = subprocess.Popen(sys.argv[2:])
try:
    code = command.wait()
except KeyboardInterrupt:
    code = command.wait()
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=open(sys.argv[1], "w"))
sys.exit(code)
"""
_ENDLESS_S = 1.5  # of commands that end at Ctrl-C


class Run(NamedTuple):
    """What an operator saw of a command, and what it used."""

    first_output_s: float
    seconds: float
    cpu_s: float
    peak_mib: float


def shapes(num_sessions: int) -> dict[str, Sequence[tuple[str, str, str]]]:
    """The stores: the ids of all sessions, by the name of the store."""
    numbers = range(num_sessions)
    return {
        "many users": [(f"app{n % 10}", f"user{n // 100}", f"s{n}") for n in numbers],
        "one application": [("app0", f"user{n}", "s0") for n in numbers],
        "one user": [("app0", "user0", f"s{n}") for n in numbers],
    }


async def fill(url: str, ids: Sequence[tuple[str, str, str]]) -> None:
    """Create the sessions."""
    async with RedisSessionService(url, session_ttl=86_400, app_state_ttl=None) as service:

        async def create(app_name: str, user_id: str, session_id: str) -> None:
            session = await service.create_session(
                app_name=app_name, user_id=user_id, session_id=session_id, state={"step": 1}
            )
            await service.append_events(
                session,
                [Event("user", f"Question {number} of {session_id}") for number in range(3)],
            )

        for first in range(0, len(ids), _AT_ONCE):
            await asyncio.gather(*(create(*each) for each in ids[first : first + _AT_ONCE]))


def commands(folder: Path, target_url: str) -> Iterator[list[str]]:
    """The commands, with those that change the store at the end."""
    user = ["app0", "user0"]
    yield ["ls"]
    yield ["ls", "app0"]
    yield ["ls", *user]
    yield ["show", *user, "s0"]
    yield ["tail", *user, "s0"]
    yield ["tail", *user]
    yield ["search", "question 2", *user]
    yield ["search", "question 2", "app0"]
    yield ["search", "is not there", "app0"]
    yield ["stats"]
    yield ["doctor"]
    yield ["doctor", "--full"]
    yield ["export"]
    yield ["export", "--output", str(folder / "export")]
    yield ["import", str(folder / "export")]
    yield ["copy", target_url]
    yield ["erase", *user, "--dry-run"]
    yield ["erase", *user, "--yes"]


def measure(url: str, command: Sequence[str]) -> Run:
    """Run a command."""
    with tempfile.NamedTemporaryFile() as used:
        begin = time.monotonic()
        with subprocess.Popen(
            [
                *(sys.executable, "-c", _START, used.name),
                *(sys.executable, "-c", _ENTRY, command[0], "--url", url, *command[1:]),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            first_s = _read_all(process, begin, is_endless=command[0] == "tail")
        if process.returncode not in (0, 1):
            raise RuntimeError(f"{' '.join(command)} failed")
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
        cpu_s, peak = map(float, used.read().split())
        return Run(first_s, time.monotonic() - begin, cpu_s, peak / unit)


def _read_all(process: subprocess.Popen[bytes], begin: float, *, is_endless: bool) -> float:
    """Read all output. Returns when the first of it came, after `begin`."""
    assert process.stdout is not None
    output = process.stdout.fileno()
    first_s = None
    while True:
        left_s = max(begin + _ENDLESS_S - time.monotonic(), 0) if is_endless else None
        if not select.select([output], [], [], left_s)[0]:
            os.killpg(process.pid, signal.SIGINT)
            is_endless = False
            continue
        data = os.read(output, 1 << 16)
        if first_s is None:
            first_s = time.monotonic() - begin
        if not data:
            return first_s


def measure_store(
    server: Server, target: Server, ids: Sequence[tuple[str, str, str]], harness: Harness
) -> dict[str, Run]:
    """What each command needs on a store of these sessions."""
    server.client.flushall()
    target.client.flushall()
    harness.run(fill(server.url, ids))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for command in commands(Path(folder), target.url):
            if harness.small and command[0] not in ("ls", "export", "import"):
                continue
            name = " ".join(command).replace(f"{folder}/", "").replace(target.url, "TARGET")
            found[name] = measure(server.url, command)
            print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def run(harness: Harness) -> Result:
    """Measure."""
    server, target = harness.start_server(), harness.start_server()
    figures, runs = [], []
    stores = shapes(harness.pick(100_000, 200))
    for shape in harness.pick([*stores], ["one user"]):
        for name, seen in measure_store(server, target, stores[shape], harness).items():
            runs.append(seen)
            for what, value, unit in (
                ("first output", seen.first_output_s, "s"),
                ("end", seen.seconds, "s"),
                ("processor time", seen.cpu_s, "s"),
                ("peak memory", seen.peak_mib, "MiB"),
            ):
                figures.append(Figure(f"{shape}: {name}: {what}", value, unit))
    return harness.result(
        "bench_command_line",
        "How soon does a command answer on 100,000 sessions, and how much memory does it use?",
        figures=figures,
        targets=[
            Target(
                "command line on 100,000 sessions: the latest first output",
                max(each.first_output_s for each in runs),
                "<=",
                1,
                "s",
            ),
            Target(
                "the same: most memory of a command",
                max(each.peak_mib for each in runs),
                "<=",
                128,
                "MiB",
            ),
        ],
    )


if __name__ == "__main__":
    main(run)
