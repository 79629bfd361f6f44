"""The outcome of a run: text for people, JSON for machines."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import msgspec
from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from .agents import FlatOut
from .recorder import OperationFigures
from .verification import Discrepancies

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

_LABELS = {
    "lost": "lost",
    "duplicated": "duplicated",
    "out_of_order": "out of order",
    "altered": "altered",
    "unexpected": "unexpected",
    "state_mismatches": "state mismatches",
    "version_mismatches": "version mismatches",
    "read_mismatches": "wrong reads during the run",
    "list_mismatches": "wrong session lists",
}


@dataclass(slots=True)
class Report:
    """What a run found out. Figures of calls and costs are those of the paced agents.

    Attributes:
        server: name and version.
        place: where the server is and why it was chosen, without credentials.
        key_prefix: the start of every key of the run; empty in memory.
        is_kept: the run's data was left in the store.
        think_seconds: average wait of an agent before each event.
        operations: one entry for each operation, then "all".
        server_cpu_us_per_operation: processor time of all primaries, divided by the calls. Other
            clients add to it. None if it is not known.
        server_memory_bytes_per_event: growth of the memory of all primaries, divided by the events
            kept; so it includes keys, indexes, state and buffers. None if it is not known, or
            means little because there are few events.
        flat_out: None if there was no such phase.
        num_events: events that the store accepted, in both phases.
        num_kept_events: those of them that the event limit keeps.
        num_verified: sessions read back in full and compared.
        failure_reasons: the most frequent reasons of failed operations.
    """

    server: str
    place: str
    key_prefix: str
    is_kept: bool
    workload: str
    num_agents: int
    think_seconds: float
    elapsed_seconds: float = 0.0
    operations: list[OperationFigures] = field(default_factory=list)
    server_cpu_us_per_operation: float | None = None
    server_memory_bytes_per_event: float | None = None
    flat_out: FlatOut | None = None
    num_sessions: int = 0
    num_events: int = 0
    num_kept_events: int = 0
    num_verified: int = 0
    verification: Discrepancies = field(default_factory=Discrepancies)
    num_failed_operations: int = 0
    failure_reasons: list[str] = field(default_factory=list)
    is_interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """The status of the command. A loss is never hidden behind an interruption."""
        if self.verification.total or self.num_failed_operations:
            return EXIT_FAILED
        return EXIT_INTERRUPTED if self.is_interrupted else EXIT_OK

    def as_json(self) -> bytes:
        """One indented JSON object with the fields of this class, and `exit_code`."""
        fields = {**asdict(self), "exit_code": self.exit_code}
        return msgspec.json.format(msgspec.json.encode(fields), indent=2)

    def print_start(self, console: Console) -> None:
        """Print what will run, and where."""
        think = f"thinking {self.think_seconds:g} s on average before each event"
        if not self.think_seconds:
            think = "without thinking"
        _print_line(console, "Server", escape(f"{self.server}, {self.place}"))
        agents = f"{self.num_agents:,} at a time, {think}; {self.workload}"
        _print_line(console, "Agents", escape(agents))

    def print_result(self, console: Console) -> None:
        """Print the figures, and below them the result of the check."""
        if self.operations:
            console.print(self._operations_table())
        for each in self.operations:
            if each.operation == "append_event" and self.think_seconds:
                text = f"[bold]{each.p50_ms:,.2f} ms[/] for an append, in the median"
                _print_line(console, "Latency", text)
        if self.flat_out is not None:
            rate = self.flat_out.num_appends / self.flat_out.seconds
            text = f"[bold]{rate:,.0f} appends a second[/] from this one process, flat out"
            details = f" ({self.flat_out.num_agents} agents, events of 1 KB)"
            _print_line(console, "Throughput", text + details)
        if self.server_cpu_us_per_operation is not None:
            text = f"{self.server_cpu_us_per_operation:,.0f} µs of server CPU per call"
            if self.server_memory_bytes_per_event is not None:
                text += f", {self.server_memory_bytes_per_event:,.0f} bytes of memory per event"
            _print_line(console, "Cost", text)
        elif self.key_prefix:
            _print_line(console, "Cost", "not known: the server did not answer INFO")
        console.print(self._verdict())

    def _operations_table(self) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD, caption="Milliseconds from sending a call until its reply."
        )
        table.add_column("operation")
        for heading in ("calls", "calls/s", "median ms", "p95 ms", "p99 ms"):
            table.add_column(heading, justify="right")
        for figures in self.operations:
            times = (figures.p50_ms, figures.p95_ms, figures.p99_ms)
            table.add_row(
                figures.operation,
                f"{figures.num_calls:,}",
                f"{figures.per_second:,.0f}",
                *(f"{ms:,.2f}" for ms in times),
            )
        return table

    def _verdict(self) -> Panel:
        counts = {_LABELS[name]: count for name, count in asdict(self.verification).items()}
        counts["failed operations"] = self.num_failed_operations
        shown = [f"[bold red]{n:,} {name}[/]" if n else f"0 {name}" for name, n in counts.items()]
        reasons = [f"[red]failed: {escape(reason)}[/]" for reason in self.failure_reasons]
        lines: list[RenderableType] = [self._compared(), Columns(shown, padding=(0, 3)), *reasons]
        if self.is_kept and self.key_prefix:
            lines.append(f"Data kept under {escape(self.key_prefix)}")
        has_failed = self.exit_code == EXIT_FAILED
        title = "FAILED" if has_failed else "PASSED: nothing was lost"
        if self.is_interrupted:
            title += " (stopped early)"
        color = "red" if has_failed else "green"
        return Panel(Group(*lines), title=f"[bold {color}]{title}[/]", border_style=color)

    def _compared(self) -> str:
        if self.num_verified < self.num_sessions:
            return f"Only {self.num_verified:,} of {self.num_sessions:,} sessions were read back."
        events = f"all {self.num_events:,} events"
        if self.num_kept_events != self.num_events:
            events = f"the {self.num_kept_events:,} events that the event limit keeps"
        return f"Read back and compared: all {self.num_sessions:,} sessions, {events}."


def _print_line(console: Console, label: str, text: str) -> None:
    console.print(f"{label:<12}{text}", soft_wrap=True, highlight=False)
