"""The outcome of a fleet run: as a table for people, as JSON for machines."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_UNUSABLE = 2
EXIT_INTERRUPTED = 130

_VERIFICATION_LABELS = {
    "lost": "lost events",
    "duplicated": "duplicated events",
    "out_of_order": "events out of order",
    "altered": "altered events",
    "unexpected": "unexpected events",
    "state_mismatches": "state mismatches",
    "version_mismatches": "version mismatches",
    "read_mismatches": "mismatches in reads between writes",
    "list_mismatches": "mismatches in session lists",
}


@dataclass(frozen=True, slots=True)
class OperationFigures:
    """How one operation did, seen by the agents; waiting for other agents is part of it.

    Attributes:
        operation: the service's method, or "all".
        num_calls: successful calls.
        per_second: calls per second of the run's wall-clock time.
        p50_ms: median latency in milliseconds.
        p95_ms: the latency that 95 % of the calls did not exceed.
        p99_ms: the latency that 99 % of the calls did not exceed.
    """

    operation: str
    num_calls: int
    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a run of the fleet found out.

    Attributes:
        server: name and version of what was written to.
        place: its URL without credentials, or what it is instead.
        key_prefix: in front of every key of the run; empty in memory.
        is_kept: True when the run's data was left in the store.
        workload: what was written, in words.
        num_agents: conversations held at the same time.
        num_sessions: sessions created.
        num_events: events that the store accepted.
        elapsed_seconds: how long the agents ran; verifying and deleting come on top.
        operations: one entry for each operation, then "all".
        server_cpu_us_per_operation: processor time of the whole server while the agents ran,
            divided by their operations; None when the server does not say. On a server that
            others use too, their share is in it.
        server_memory_bytes_per_event: growth of the server's memory (`used_memory`) from before
            the first write to after the last one, nothing deleted in between, divided by the
            events kept. So a share of keys, indexes, state and buffers is in it; trust it for
            thousands of events, not for dozens. None when the server does not say.
        num_verified: sessions read back in full and compared.
        verification: name of a difference to the number of times that it was found.
        num_failed_operations: operations that raised.
        failure_reasons: the first few different ones.
        is_interrupted: True when the run was stopped before its end.
        exit_code: 0 when all is well, 1 when anything differs or failed, 130 when nothing does
            but the run was interrupted.
    """

    server: str
    place: str
    key_prefix: str
    is_kept: bool
    workload: str
    num_agents: int
    num_sessions: int
    num_events: int
    elapsed_seconds: float
    operations: list[OperationFigures]
    server_cpu_us_per_operation: float | None
    server_memory_bytes_per_event: float | None
    num_verified: int
    verification: dict[str, int]
    num_failed_operations: int
    failure_reasons: list[str]
    is_interrupted: bool
    exit_code: int


def status_of(*, has_failed: bool, is_interrupted: bool) -> int:
    """The status of the command. A loss is never hidden behind an interruption."""
    if has_failed:
        return EXIT_FAILED
    return EXIT_INTERRUPTED if is_interrupted else EXIT_OK


def operation_figures(
    latencies_ns: Mapping[str, array[int]], elapsed_seconds: float
) -> list[OperationFigures]:
    """Figures for each operation by name, then for all together under the name "all".

    Args:
        latencies_ns: name of the operation to the nanoseconds of each call; not empty arrays.
        elapsed_seconds: wall-clock time in which the calls were made, more than zero.

    Returns:
        An empty list when there were no operations.
    """
    if not latencies_ns:
        return []
    everything = array("q")
    for latencies in latencies_ns.values():
        everything.extend(latencies)
    return [
        _figures(operation, latencies, elapsed_seconds)
        for operation, latencies in [*sorted(latencies_ns.items()), ("all", everything)]
    ]


def _figures(operation: str, latencies_ns: array[int], elapsed_seconds: float) -> OperationFigures:
    ordered = sorted(latencies_ns)
    p50_ms, p95_ms, p99_ms = (_percentile(ordered, percent) / 1e6 for percent in (50, 95, 99))
    per_second = len(ordered) / elapsed_seconds
    return OperationFigures(operation, len(ordered), per_second, p50_ms, p95_ms, p99_ms)


def _percentile(ordered: list[int], percent: int) -> int:
    """The least value that so many percent of all values do not exceed."""
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, rank - 1)]


def report_json(report: Report) -> bytes:
    """The report as one indented JSON object; its fields are those of `Report`."""
    return msgspec.json.format(msgspec.json.encode(asdict(report)), indent=2)


def print_report(report: Report, console: Console) -> None:
    """Prints the report as tables with a verdict below them."""
    console.print()
    console.print(_operations_table(report))
    console.print(_summary_table(report))
    for reason in report.failure_reasons:
        console.print(f"  failed: {escape(reason)}", style="red", highlight=False, soft_wrap=True)
    console.print(_verdict(report), highlight=False)


def _operations_table(report: Report) -> Table:
    table = Table(
        title=escape(f"{report.workload}\n{report.server}, {report.place}"),
        caption="Latencies include waiting for other agents.",
    )
    table.add_column("operation")
    for heading in ("calls", "calls/s", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    for figures in report.operations:
        if figures.operation == "all":
            table.add_section()
        table.add_row(
            figures.operation,
            f"{figures.num_calls:,}",
            f"{figures.per_second:,.0f}",
            *(f"{ms:,.2f}" for ms in (figures.p50_ms, figures.p95_ms, figures.p99_ms)),
        )
    return table


def _summary_table(report: Report) -> Table:
    table = Table(show_header=False)
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_row("server CPU per operation, µs", _number(report.server_cpu_us_per_operation))
    table.add_row("server memory per event, bytes", _number(report.server_memory_bytes_per_event))
    table.add_section()
    verified = f"{report.num_verified:,} of {report.num_sessions:,}"
    table.add_row("sessions verified", verified)
    for name, count in report.verification.items():
        table.add_row(_VERIFICATION_LABELS[name], _marked(count))
    table.add_row("failed operations", _marked(report.num_failed_operations))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _marked(count: int) -> str:
    return f"{count:,}" if count == 0 else f"[bold red]{count:,}[/]"


def _verdict(report: Report) -> str:
    written = f"{report.num_events:,} events in {report.num_sessions:,} sessions"
    place = f" Data kept under {escape(report.key_prefix)}" if report.is_kept else ""
    if report.exit_code == EXIT_FAILED:
        return f"[bold red]FAILED[/] {written}: see the counts above.{place}"
    stopped = " Stopped early." if report.is_interrupted else ""
    return f"[bold green]OK[/] {written}, nothing lost.{stopped}{place}"
