"""Starts servers, runs variants in turn and takes samples.

A bench is a module with a function `run(harness) -> Result`; `main(run)` is its command line.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import inspect
import os
import platform
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self, TypeVar

import redis

from sessionstore.embedded import EmbeddedServer

from .bare import BareConnection
from .pictures import draw
from .results import Bars, Figure, Group, Lines, Result, Row, Sample, Target
from .rigs.nodes import bundled_server

T = TypeVar("T")

DEFAULT_OUTPUT = Path(__file__).parent / "report"

_ROUNDS = 7
_SMALL_ROUNDS = 1
_MIN_BUSY_SECONDS = 0.25  # shorter rounds are too noisy: the system counts in 10 ms
_WINDOW_SECONDS = 0.2
_QUIET = 0.2  # cores that other programs may use during a round that counts


@dataclass(frozen=True)
class Timing:
    """The result of a variant that measures its own time.

    Attributes:
        seconds: time of the operations.
        cpu_seconds: CPU time of the operations, in this process or another.
        cpu_seconds_beside: CPU time of the work between them.
    """

    seconds: float
    cpu_seconds: float
    cpu_seconds_beside: float = 0.0


class VariantFailedError(Exception):
    """A variant cannot run. The message says why."""


Work = Callable[[], Awaitable[Timing | None] | Timing | None]


@dataclass(frozen=True)
class Variant:
    """One of several ways to do the same.

    Attributes:
        name: its name in tables.
        operations: number of operations in one call of `work`.
        work: runs the operations. Timed.
        prepare: runs before each `work`. Not timed.
        note: shown after the name.
    """

    name: str
    operations: int
    work: Work
    prepare: Callable[[], Awaitable[None] | None] | None = None
    note: str = ""


@dataclass(frozen=True)
class Reading:
    """Counters of a server."""

    cpu_us: float
    received_bytes: int
    sent_bytes: int
    used_memory_bytes: int
    aof_bytes: int


class Server:
    """A server of this bench, and a client that reads its counters.

    Args:
        embedded: the server, started.
    """

    def __init__(self, embedded: EmbeddedServer) -> None:
        self.url = embedded.url
        self.socket_path = embedded.socket_path
        self.client: Any = redis.Redis(unix_socket_path=embedded.socket_path)
        costs = [self._cost_of_reading() for _ in range(9)]
        self._own_cpu_us = median(cost[0] for cost in costs)
        self._own_received_bytes = median(cost[1] for cost in costs)
        self._own_sent_bytes = median(cost[2] for cost in costs)

    @property
    def version(self) -> str:
        """Such as "Valkey 8.1.8"."""
        info = self.client.info("server")
        if "valkey_version" in info:
            return f"Valkey {info['valkey_version']}"
        return f"Redis {info['redis_version']}"

    def read(self) -> Reading:
        """The counters now."""
        info = self.client.info("cpu", "stats", "memory", "persistence")
        return Reading(
            cpu_us=(info["used_cpu_user"] + info["used_cpu_sys"]) * 1e6,
            received_bytes=info["total_net_input_bytes"],
            sent_bytes=info["total_net_output_bytes"],
            used_memory_bytes=info["used_memory"],
            aof_bytes=info.get("aof_current_size", 0),
        )

    def between(self, before: Reading, after: Reading) -> tuple[float, float, float]:
        """CPU time, bytes received and bytes sent, without those of the readings."""
        cpu_us, received, sent = _difference(before, after)
        return (
            max(cpu_us - self._own_cpu_us, 0.0),
            received - self._own_received_bytes,
            sent - self._own_sent_bytes,
        )

    def _cost_of_reading(self) -> tuple[float, int, int]:
        return _difference(self.read(), self.read())


def _difference(before: Reading, after: Reading) -> tuple[float, int, int]:
    return (
        after.cpu_us - before.cpu_us,
        after.received_bytes - before.received_bytes,
        after.sent_bytes - before.sent_bytes,
    )


@dataclass(frozen=True)
class Round:
    """One sample of every variant, and how many cores other programs used meanwhile."""

    samples: dict[str, Sample]
    others: float


def _cores() -> set[int] | None:
    """The cores that this process may use. None = it cannot choose among them."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = os.sched_getaffinity(0)
    return cores if len(cores) > 1 else None


def busy_seconds() -> float:
    """CPU time that all programs of this system have used. 0 = unknown."""
    try:
        fields = Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def wait_for_quiet(patience_seconds: float) -> None:
    """Return when other programs use little CPU, or when patience ends."""
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        before = busy_seconds()
        time.sleep(_WINDOW_SECONDS)
        if busy_seconds() - before <= _QUIET * _WINDOW_SECONDS:
            return


class Harness:
    """Servers, an event loop, and measurements for a bench.

    Args:
        small: use the small setting. It shows that the bench works; its figures mean nothing.
        server: path of the server to run. None = the first that is found.
        rounds: rounds to measure. None = the default of the setting.
        patience_seconds: how long a round may wait for other programs to be quiet.
    """

    def __init__(
        self,
        *,
        small: bool = False,
        server: str | None = None,
        rounds: int | None = None,
        patience_seconds: float = 0.0,
    ) -> None:
        self.small = small
        self.rounds = rounds or (_SMALL_ROUNDS if small else _ROUNDS)
        self._executable = server
        self._patience_seconds = patience_seconds
        self._runner = asyncio.Runner()
        self._stack = ExitStack()
        self._server_version = ""
        self.failures: list[str] = []
        self._others: list[float] = []
        self._cores = _cores()

    def __enter__(self) -> Self:
        if self._cores is not None:
            self._stack.callback(os.sched_setaffinity, 0, self._cores)
        self._stack.enter_context(self._runner)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def pick(self, full: T, small: T) -> T:
        """The value for this setting."""
        return small if self.small else full

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine on the loop that all asyncio variants share."""
        return self._runner.run(coroutine)

    def start_server(self, **config: str) -> Server:
        """A private server that runs as long as the bench, with settings of `redis.conf`."""
        settings = {name.replace("_", "-"): value for name, value in config.items()}
        embedded = EmbeddedServer(executable=self._executable, config=settings)
        server = Server(self._stack.enter_context(embedded))
        self._stack.callback(server.client.close)
        self._server_version = server.version
        self._pin(embedded.pid)
        return server

    def _pin(self, server_pid: int) -> None:
        """Give the server one core and the client the others.

        Otherwise the scheduler sometimes puts both on one core, where they wait for each other.
        Then the figures of one run can be twice those of the next.
        """
        if self._cores is None or self.small:
            return
        os.sched_setaffinity(server_pid, {min(self._cores)})
        os.sched_setaffinity(0, self._cores - {min(self._cores)})

    @contextmanager
    def shared_core(self) -> Iterator[None]:
        """Put server and client on one core within this context.

        With one call at a time, only one of them works at any moment. On two cores most of the
        time goes to waking up the idle core. On one core no time does.
        """
        if self._cores is None or self.small:
            yield
            return
        core = {min(self._cores)}
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, core)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    def connect_bare(self, server: Server) -> BareConnection:
        """A bare connection, closed at the end."""
        bare: BareConnection = self.run(BareConnection.connect(server.socket_path))
        self.at_end(bare.close)
        return bare

    def at_end(self, close: Callable[[], object]) -> None:
        """Call `close` before the servers stop, and await its result if it is awaitable."""
        self._stack.callback(lambda: self.finish(close()))

    def measure(
        self,
        server: Server | None,
        name: str,
        operation: str,
        variants: Sequence[Variant],
        rounds: int | None = None,
    ) -> Group:
        """Run the variants in turn.

        The first round is a warm-up. A round that other programs disturbed is repeated, up to
        twice the number of rounds in all, and the quietest rounds count. A variant that raises
        VariantFailedError is left out of the group, and `failures` says why.
        """
        wanted = rounds or self.rounds
        running = {variant.name: variant for variant in variants}
        taken: list[Round] = []
        for number in range(1 if self.small else 2 * wanted + 1):
            wait_for_quiet(self._patience_seconds)
            latest = self._round(server, name, running)
            if number or self.small:
                taken.append(latest)
            if sum(each.others <= _QUIET for each in taken) == wanted:
                break
        quietest = sorted(range(len(taken)), key=lambda at: (taken[at].others, at))
        kept = [taken[at] for at in sorted(quietest[:wanted])]
        self._others += [each.others for each in kept]
        rows = [
            Row(variant.name, [each.samples[variant.name] for each in kept], variant.note)
            for variant in running.values()
        ]
        return Group(name, operation, rows)

    def _round(self, server: Server | None, name: str, running: dict[str, Variant]) -> Round:
        busy, others = 0.0, 0.0
        samples: dict[str, Sample] = {}
        for variant in list(running.values()):
            try:
                if variant.prepare is not None:
                    self.finish(variant.prepare())
                gc.collect()
                busy_before = busy_seconds()
                sample, beside = self._sample(server, variant)
            except VariantFailedError as reason:
                del running[variant.name]
                self.failures.append(f"{variant.name} failed in {name!r}: {reason}")
                continue
            cpu_us = sample.client_cpu_us + (sample.server_cpu_us or 0.0)
            others += busy_seconds() - busy_before - cpu_us * sample.operations / 1e6 - beside
            busy += sample.seconds
            samples[variant.name] = sample
        return Round(samples, max(others / busy, 0.0) if busy > _MIN_BUSY_SECONDS else 0.0)

    def _sample(self, server: Server | None, variant: Variant) -> tuple[Sample, float]:
        """The sample, and the CPU time used outside the operations."""
        before = server.read() if server else None
        cpu, start = time.process_time(), time.perf_counter()
        timing = self.finish(variant.work())
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        beside = 0.0
        if isinstance(timing, Timing):
            seconds, cpu_seconds = timing.seconds, timing.cpu_seconds
            beside = timing.cpu_seconds_beside
        count = variant.operations
        client_cpu_us = cpu_seconds / count * 1e6
        if server is None or before is None:
            return Sample(count, seconds, client_cpu_us), beside
        server_cpu_us, received, sent = server.between(before, server.read())
        sample = Sample(
            count, seconds, client_cpu_us, server_cpu_us / count, received / count, sent / count
        )
        return sample, beside

    def finish(self, outcome: Any) -> Any:
        """The result of a function, awaited if it is awaitable."""
        return self.run(_await(outcome)) if inspect.isawaitable(outcome) else outcome

    def result(
        self,
        bench: str,
        question: str,
        *,
        groups: Sequence[Group] = (),
        figures: Sequence[Figure] = (),
        targets: Sequence[Target] = (),
        notes: Sequence[str] = (),
        panels: Sequence[Bars | Lines] = (),
        reading_hint: str = "Less is better.",
    ) -> Result:
        """The bench's result, with versions and settings."""
        return Result(
            bench=bench,
            question=question,
            versions=versions(self._server_version),
            settings={
                "setting": "small" if self.small else "full",
                "rounds": self.rounds,
                "cores used by other programs": f"{median(self._others or [0.0]):.2f}",
            },
            groups=list(groups),
            figures=list(figures),
            targets=list(targets),
            notes=[*notes, *self.failures],
            panels=list(panels),
            reading_hint=reading_hint,
        )


async def _await(outcome: Awaitable[T]) -> T:
    return await outcome


def versions(server: str) -> dict[str, str]:
    """Versions of everything that runs on our side."""
    found = {"Python": platform.python_version()}
    for package in ("sessionstore", "redis", "hiredis", "msgspec"):
        found["redis-py" if package == "redis" else package] = version(package)
    if server:
        name, _, number = server.partition(" ")
        found[name] = number
    return found


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every bench takes."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--small", action="store_true", help="a quick run that shows that the benches work"
    )
    options.add_argument(
        "--server",
        metavar="PATH",
        help="redis-server or valkey-server to run (default: the bundled Valkey)",
    )
    options.add_argument("--rounds", type=int, metavar="N", help="rounds to measure")
    options.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        default=2.0,
        help="how long a round may wait for other programs to be quiet (default: 2)",
    )
    options.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        default=DEFAULT_OUTPUT,
        help="where JSON and pictures go (default: benchmarks/report)",
    )
    return options


def write(result: Result, output: Path) -> None:
    """Write JSON and picture."""
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{result.bench}.json").write_bytes(result.as_json())
    draw(result, output)


def main(run: Callable[[Harness], Result], argv: Sequence[str] | None = None) -> None:
    """The command line of one bench: run it, print it, write JSON and pictures."""
    module = inspect.getmodule(run)
    arguments = parser(module.__doc__ if module else None).parse_args(argv)
    bundled = bundled_server()
    with Harness(
        small=arguments.small,
        server=arguments.server or (bundled.path if bundled else None),
        rounds=arguments.rounds,
        patience_seconds=0.0 if arguments.small else arguments.patience,
    ) as harness:
        result = run(harness)
    print(result.as_markdown())
    write(result, arguments.output)
