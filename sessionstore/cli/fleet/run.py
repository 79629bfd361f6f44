"""One run of the fleet, from its options to its report."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from ..store import MEMORY_URL, Store, open_store
from .agents import Fleet
from .recorder import operation_figures
from .report import Report
from .synthetic import synthetic_conversations
from .verification import KINDS
from .workload import load_trace

_MIN_EVENTS_FOR_MEMORY = 1000  # with fewer, the server's buffers outweigh the events


class FleetOptions(Struct):
    """The options of the command; its help text describes them."""

    url: str | None
    agents: int
    turns: int
    think: float
    flat_out: float
    sessions_per_user: int
    event_limit: int
    ttl: float | None
    seed: int
    trace: Path | None
    compact: bool
    rewind: bool
    json: BinaryIO | None
    keep: bool


async def run_fleet(options: FleetOptions, console: Console) -> Report:
    """Run the fleet once. The console shows the server and the agents at the start.

    SIGINT lets the agents finish their current operations; then what was written is verified. A
    second SIGINT cancels the run.

    Raises:
        click.ClickException: the run cannot start: bad trace, no server, no access.
        asyncio.CancelledError: a second SIGINT; data of the run may be left in the store.
    """
    if options.trace is None:
        workload = f"synthetic conversations of {options.turns:,} turns"
        conversations = synthetic_conversations(
            options.agents,
            num_turns=options.turns,
            sessions_per_user=options.sessions_per_user,
            seed=options.seed,
        )
    else:
        workload = f"conversations of {options.trace}"
        conversations = load_trace(options.trace)
    key_prefix = f"fleet:{secrets.token_hex(4)}:"
    event_limit = options.event_limit or None
    async with (
        open_store(options.url) as store,
        store.connect(
            session_event_limit=event_limit,
            session_ttl=options.ttl,
            app_state_ttl=options.ttl,
            user_state_ttl=options.ttl,
            key_prefix=key_prefix,
        ) as service,
    ):
        report = Report(
            server=store.name,
            place=store.place,
            key_prefix=key_prefix if store.url != MEMORY_URL else "",
            is_kept=options.keep,
            workload=workload,
            num_agents=min(options.agents, len(conversations)),
            think_seconds=options.think,
        )
        report.print_start(console)
        with _progress() as progress:
            fleet = Fleet(
                service=service,
                conversations=conversations,
                num_agents=report.num_agents,
                think_seconds=options.think,
                event_limit=event_limit,
                progress=progress,
                compacts=options.compact,
                rewinds=options.rewind,
            )
            _stop_on_sigint(fleet.stopping, progress.console)
            await _run_phases(options, store, fleet, report)
    return report


async def _run_phases(options: FleetOptions, store: Store, fleet: Fleet, report: Report) -> None:
    """Run the agents, verify, clean up, and fill in the report."""
    await fleet.run_agents()
    report.elapsed_seconds = fleet.elapsed_seconds
    report.operations = operation_figures(fleet.recorder.latencies_ns, fleet.elapsed_seconds)
    if costs := await store.costs():
        cpu_us, memory_bytes = costs  # negative after a failover
        if report.operations and cpu_us >= 0:
            report.server_cpu_us_per_operation = cpu_us / report.operations[-1].num_calls
        num_events = fleet.num_events(options.event_limit)
        if num_events >= _MIN_EVENTS_FOR_MEMORY and memory_bytes >= 0:
            report.server_memory_bytes_per_event = memory_bytes / num_events
    if options.flat_out and not fleet.stopping.is_set() and not fleet.failures:
        with separate_cores(store.private_pid):
            report.flat_out = await fleet.run_flat_out(options.flat_out)
    await fleet.verify()
    report.num_sessions = sum(ledger.is_created for ledger in fleet.ledgers)
    report.num_events = fleet.num_events()
    report.num_kept_events = fleet.num_events(options.event_limit)
    report.num_verified = fleet.num_verified
    report.num_rewound = fleet.num_rewound
    report.num_covered = fleet.num_covered
    report.num_dropped = sum(ledger.num_dropped for ledger in fleet.ledgers)
    report.verification = {kind: fleet.differences[kind] for kind in KINDS}
    if not options.keep:
        await fleet.clean_up()
    report.num_failed_operations = fleet.failures.total()
    report.failure_reasons = [reason for reason, _ in fleet.failures.most_common(5)]
    report.is_interrupted = fleet.stopping.is_set()


@contextmanager
def separate_cores(server_pid: int | None) -> Iterator[None]:
    """Within the context, give a private server one core and this process the others.

    Otherwise the scheduler sometimes puts both on one core, where they wait for each other.
    """
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if server_pid is None or len(cores) < 2:
        yield
        return
    with suppress(OSError):  # the server has ended, or the system does not allow it
        os.sched_setaffinity(server_pid, {min(cores)})
        os.sched_setaffinity(0, cores - {min(cores)})
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, cores)
            os.sched_setaffinity(server_pid, cores)


def _progress() -> Progress:
    """Progress bars, one for each phase, on stderr if it is a terminal. They vanish at the end."""
    console = Console(stderr=True)
    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), rate)
    is_off = not console.is_terminal
    return Progress(*columns, console=console, transient=True, disable=is_off)


def _stop_on_sigint(stopping: asyncio.Event, console: Console) -> None:
    """Let the first SIGINT set the event and the second cancel the current task."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def on_signal() -> None:
        if stopping.is_set() and task is not None:
            task.cancel()
            return
        console.print("Stopping the agents, then verifying. Ctrl-C again ends at once.")
        stopping.set()

    # Not every platform and thread can handle signals. There, Ctrl-C aborts at once.
    with suppress(NotImplementedError, RuntimeError, ValueError):
        loop.add_signal_handler(signal.SIGINT, on_signal)  # until the loop is closed
