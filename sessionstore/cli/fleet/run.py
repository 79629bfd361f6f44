"""One run of the fleet, from its options to its report."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from ..store import MEMORY_URL, CannotStart, ServerFigures, Store, open_store
from .agents import Fleet
from .recorder import operation_figures
from .report import Report
from .synthetic import synthetic_conversations
from .workload import Conversation, TraceError, load_trace

_TELLING_EVENTS = 1000  # with fewer events, the server's buffers outweigh them


@dataclass(frozen=True, slots=True)
class FleetOptions:
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
    json: Path | None
    keep: bool


async def run_fleet(options: FleetOptions, console: Console) -> Report:
    """Run the fleet once.

    SIGINT lets the agents finish their current operations; then what was written is verified. A
    second SIGINT cancels the run.

    Args:
        options: what to run.
        console: shows the server and the agents at the start.

    Raises:
        click.ClickException: the run cannot start: bad trace, no server, no access.
        asyncio.CancelledError: a second SIGINT; data of the run may be left in the store.
    """
    conversations = _conversations(options)
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
            workload=f"synthetic conversations of {options.turns:,} turns"
            if options.trace is None
            else f"conversations of {options.trace}",
            num_agents=min(options.agents, len(conversations)),
            think_seconds=options.think,
        )
        report.print_start(console)
        with _progress() as progress:
            fleet = Fleet(
                service,
                conversations,
                num_agents=report.num_agents,
                think_seconds=options.think,
                event_limit=event_limit,
                progress=progress,
            )
            with _stop_on_sigint(fleet.stopping, progress.console):
                await _run_phases(options, store, fleet, report)
    return report


async def _run_phases(options: FleetOptions, store: Store, fleet: Fleet, report: Report) -> None:
    """Run the agents, verify, clean up, and fill in the report."""
    await fleet.run_agents()
    last = await store.read_figures()
    report.elapsed_seconds = fleet.elapsed_seconds
    report.operations = operation_figures(fleet.recorder.latencies_ns, fleet.elapsed_seconds)
    num_calls = report.operations[-1].num_calls if report.operations else 0
    report.server_cpu_us_per_operation = _growth(store, last, "cpu_us", num_calls)
    if fleet.num_kept_events >= _TELLING_EVENTS:
        report.server_memory_bytes_per_event = _growth(
            store, last, "used_memory_bytes", fleet.num_kept_events
        )
    if options.flat_out and not fleet.stopping.is_set() and not fleet.failures:
        report.flat_out = await fleet.run_flat_out(options.flat_out)
    await fleet.verify()
    report.num_sessions = fleet.num_sessions
    report.num_events = fleet.num_events
    report.num_kept_events = fleet.num_kept_events
    report.num_verified = fleet.num_verified
    report.verification = fleet.discrepancies
    if not options.keep:
        await fleet.clean_up()
    report.num_failed_operations = fleet.failures.total()
    report.failure_reasons = [reason for reason, _ in fleet.failures.most_common(5)]
    report.is_interrupted = fleet.stopping.is_set()


def _growth(store: Store, last: ServerFigures | None, name: str, count: int) -> float | None:
    """The growth of a figure since the start, divided by a count; None if it is not known."""
    before, after = getattr(store.first_figures, name, None), getattr(last, name, None)
    if before is None or after is None or count == 0 or after < before:
        return None
    return float(after - before) / count


def _conversations(options: FleetOptions) -> list[Conversation]:
    if options.trace is None:
        return synthetic_conversations(
            options.agents,
            num_turns=options.turns,
            sessions_per_user=options.sessions_per_user,
            seed=options.seed,
        )
    try:
        return load_trace(options.trace)
    except TraceError as error:
        raise CannotStart(str(error)) from error


def _progress() -> Progress:
    """A bar for each phase on stderr while it is a terminal; gone at the end."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        console=console,
        transient=True,
        refresh_per_second=5,
        disable=not console.is_terminal,
    )


@contextmanager
def _stop_on_sigint(stopping: asyncio.Event, console: Console) -> Iterator[None]:
    """While entered, the first SIGINT sets the event and the second cancels the current task."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def on_signal() -> None:
        if stopping.is_set() and task is not None:
            task.cancel()
            return
        console.print("Stopping and verifying; Ctrl-C again gives up.")
        stopping.set()

    # Not every platform and thread can handle signals. There, Ctrl-C aborts at once.
    with suppress(NotImplementedError, RuntimeError, ValueError):
        loop.add_signal_handler(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        with suppress(NotImplementedError, RuntimeError, ValueError):
            loop.remove_signal_handler(signal.SIGINT)
