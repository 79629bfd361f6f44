"""The outcome of a run: text for people, JSON for machines."""

from __future__ import annotations

import msgspec
from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from .agents import FlatOut
from .recorder import OperationFigures
from .verification import KINDS

EXIT_INTERRUPTED = 130


class Report(msgspec.Struct):
    """What a run found out. The operations and their costs are those of the paced agents."""

    server: str  # name and version
    place: str  # where the server is and why it was chosen, without credentials
    key_prefix: str  # of every key of the run; empty in memory
    is_kept: bool  # the run's data was left in the store
    workload: str
    num_agents: int
    think_seconds: float  # average wait of an agent before each event
    elapsed_seconds: float = 0.0
    operations: list[OperationFigures] = []  # one for each operation, then "all"
    # Processor time of all primaries, divided by the calls. Work for other clients counts too.
    # None if it is not known.
    server_cpu_us_per_operation: float | None = None
    # Growth of the memory of all primaries, divided by the events kept; so it includes keys,
    # indexes, state and buffers. None if it is not known or if there are few events.
    server_memory_bytes_per_event: float | None = None
    flat_out: FlatOut | None = None  # None if there was no such phase
    num_sessions: int = 0
    # Accepted by the store, in both phases, without those that were rewound or dropped.
    num_events: int = 0
    num_kept_events: int = 0  # those of them that the event limit keeps
    num_rewound: int = 0  # events that were accepted and rewound on purpose
    num_covered: int = 0  # events that summaries cover, at the end of the run
    num_dropped: int = 0  # those of them that were removed from the log on purpose
    num_verified: int = 0  # sessions read back in full and compared
    verification: dict[str, int] = {}  # differences by kind; see KINDS
    num_failed_operations: int = 0
    failure_reasons: list[str] = []  # the most frequent
    is_interrupted: bool = False

    @property
    def has_failed(self) -> bool:
        """Whether something was lost or failed. An interruption never hides that."""
        return any(self.verification.values()) or self.num_failed_operations > 0

    @property
    def exit_code(self) -> int:
        """The status of the command."""
        return 1 if self.has_failed else EXIT_INTERRUPTED if self.is_interrupted else 0

    def as_json(self) -> bytes:
        """One indented JSON object with the fields of this class, and `exit_code`."""
        fields = {**msgspec.structs.asdict(self), "exit_code": self.exit_code}
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
        caption = "Milliseconds from sending a call until its reply."
        table = Table("operation", box=box.SIMPLE_HEAD, caption=caption)
        for heading in ("calls", "calls/s", "median ms", "p95 ms", "p99 ms"):
            table.add_column(heading, justify="right")
        for each in self.operations:
            times = (f"{ms:,.2f}" for ms in (each.p50_ms, each.p95_ms, each.p99_ms))
            table.add_row(each.operation, f"{each.num_calls:,}", f"{each.per_second:,.0f}", *times)
        if self.operations:
            console.print(table)
        for each in self.operations:
            if each.operation == "append_event" and self.think_seconds:
                text = f"[bold]{each.p50_ms:,.2f} ms[/] is the median of an append"
                _print_line(console, "Latency", text)
        if self.server_cpu_us_per_operation is not None:
            text = f"{self.server_cpu_us_per_operation:,.0f} µs of server CPU per call"
            if self.server_memory_bytes_per_event is not None:
                text += f", {self.server_memory_bytes_per_event:,.0f} bytes of memory per event"
            _print_line(console, "Cost", text)
        elif self.key_prefix:
            _print_line(console, "Cost", "not known: the server did not answer INFO")
        if self.flat_out is not None:
            rate = self.flat_out.num_appends / self.flat_out.seconds
            text = f"[bold]{rate:,.0f} appends a second[/] from this one process, without thinking"
            details = f" ({self.flat_out.num_agents} agents, events of 1 KB)"
            _print_line(console, "Throughput", text + details)
        console.print(self._verdict())

    def _verdict(self) -> Panel:
        compared = f"Read back and compared: all {self.num_sessions:,} sessions,"
        compared += f" all {self.num_kept_events:,} events"
        compared += ", those of the throughput phase included." if self.flat_out else "."
        if num_trimmed := self.num_events - self.num_kept_events:
            compared += f" The event limit removed {num_trimmed:,} older events."
        if self.num_covered:
            compared += f" Summaries cover {self.num_covered:,} events;"
            compared += f" {self.num_dropped:,} of these were dropped."
        if self.num_rewound:
            compared += f" {self.num_rewound:,} events were rewound."
        if self.num_verified < self.num_sessions:
            sessions = f"{self.num_verified:,} of {self.num_sessions:,} sessions"
            compared = f"Only {sessions} were read back."
        counts = {label: self.verification.get(kind, 0) for kind, label in KINDS.items()}
        counts["failed operations"] = self.num_failed_operations
        shown = [f"[bold red]{n:,} {name}[/]" if n else f"0 {name}" for name, n in counts.items()]
        lines: list[RenderableType] = [compared, Columns(shown, padding=(0, 3))]
        lines += [f"[red]failed: {escape(reason)}[/]" for reason in self.failure_reasons]
        if self.is_kept and self.key_prefix:
            lines.append(f"Data kept under {escape(self.key_prefix)}")
        title = "FAILED" if self.has_failed else "PASSED: nothing was lost"
        title += " (stopped early)" if self.is_interrupted else ""
        color = "red" if self.has_failed else "green"
        return Panel(Group(*lines), title=f"[bold {color}]{title}[/]", border_style=color)


def _print_line(console: Console, label: str, text: str) -> None:
    console.print(f"{label:<12}{text}", soft_wrap=True, highlight=False)
