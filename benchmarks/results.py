"""Results of a bench: samples, medians, ratios and targets, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Literal

import msgspec


class Sample(msgspec.Struct, frozen=True):
    """One variant in one round.

    Attributes:
        operations: number of operations.
        seconds: time from the start of the first to the end of the last.
        client_cpu_us: CPU time of the client per operation, microseconds.
        server_cpu_us: CPU time of the server per operation. None = there is no server.
        sent_bytes: bytes that the client sent per operation. None = there is no server.
        received_bytes: bytes that the client received per operation. None = there is no server.
    """

    operations: int
    seconds: float
    client_cpu_us: float
    server_cpu_us: float | None = None
    sent_bytes: float | None = None
    received_bytes: float | None = None

    @property
    def us(self) -> float:
        """Microseconds per operation. With many agents: the inverse of their total throughput."""
        return self.seconds / self.operations * 1e6


class Row(msgspec.Struct, frozen=True):
    """One variant of a group.

    Attributes:
        name: the variant.
        samples: one per round, in order.
        note: shown after the name.
    """

    name: str
    samples: list[Sample]
    note: str = ""

    @property
    def us(self) -> float:
        """Median of microseconds per operation."""
        return median(sample.us for sample in self.samples)

    @property
    def client_cpu_us(self) -> float:
        """Median of the client's CPU microseconds per operation."""
        return median(sample.client_cpu_us for sample in self.samples)

    @property
    def server_cpu_us(self) -> float | None:
        """Median of the server's CPU microseconds per operation."""
        return _median([sample.server_cpu_us for sample in self.samples])

    @property
    def sent_bytes(self) -> float | None:
        """Median of bytes sent to the server per operation."""
        return _median([sample.sent_bytes for sample in self.samples])

    @property
    def received_bytes(self) -> float | None:
        """Median of bytes received from the server per operation."""
        return _median([sample.received_bytes for sample in self.samples])


class Group(msgspec.Struct, frozen=True):
    """Variants that ran in turn and can be compared.

    Attributes:
        name: what they have in common.
        operation: what one operation is, e.g. "append".
        rows: the variants, in the order in which they ran.
    """

    name: str
    operation: str
    rows: list[Row]

    def row(self, name: str) -> Row:
        """The variant of this name."""
        return next(row for row in self.rows if row.name == name)

    def us_of(self, name: str) -> float | None:
        """Median of microseconds per operation of a variant. None = it was not measured."""
        return next((row.us for row in self.rows if row.name == name), None)

    def ratio(self, one: str, other: str, of: Callable[[Sample], float | None]) -> float:
        """Median over the rounds of `of(one) / of(other)`, both from the same round."""
        pairs = zip(self.row(one).samples, self.row(other).samples, strict=True)
        return median(_known(of(mine)) / _known(of(theirs)) for mine, theirs in pairs)


def time_of(sample: Sample) -> float:
    """Time per operation, for `Group.ratio`."""
    return sample.us


def client_cpu_of(sample: Sample) -> float:
    """Client CPU time per operation, for `Group.ratio`."""
    return sample.client_cpu_us


def server_cpu_of(sample: Sample) -> float | None:
    """Server CPU time per operation, for `Group.ratio`."""
    return sample.server_cpu_us


def busier_cpu_of(sample: Sample) -> float | None:
    """CPU time per operation of client or server, whichever needs more; for `Group.ratio`.

    This is the time per operation if both have a core to themselves. So the ratio does not depend
    on other programs.
    """
    if sample.server_cpu_us is None:
        return None
    return max(sample.client_cpu_us, sample.server_cpu_us)


class Bars(msgspec.Struct, frozen=True, tag="bars"):
    """A bar chart in a picture.

    Attributes:
        title: above the bars.
        values: the bars: name and value, from top to bottom.
        unit: of the values.
        all_ours: emphasise all bars. Otherwise those that start with "sessionstore".
    """

    title: str
    values: dict[str, float]
    unit: str = "µs"
    all_ours: bool = False


class Lines(msgspec.Struct, frozen=True, tag="lines"):
    """A line chart in a picture.

    Attributes:
        title: above the chart.
        x_label: what the columns are.
        columns: names of the points on the x axis.
        values: the lines: name, and a value for each column. None = not measured.
        unit: of the values.
        all_ours: emphasise all lines. Otherwise those that start with "sessionstore".
    """

    title: str
    x_label: str
    columns: list[str]
    values: dict[str, list[float | None]]
    unit: str = "µs"
    all_ours: bool = False


def bars_of(
    group: Group,
    names: Sequence[str] | None = None,
    of: Callable[[Sample], float | None] | None = None,
) -> Bars:
    """A bar for each variant of a group.

    Args:
        group: the group.
        names: the variants to draw. None = all.
        of: what to draw, e.g. `server_cpu_of`. None = time per operation.
    """
    of = of or time_of
    rows = [group.row(name) for name in names] if names else group.rows
    values = {row.name: median(_known(of(sample)) for sample in row.samples) for row in rows}
    return Bars(group.name, values)


class Figure(msgspec.Struct, frozen=True):
    """A single figure, such as bytes per event.

    Attributes:
        name: what it is.
        value: the figure.
        unit: its unit.
    """

    name: str
    value: float
    unit: str


class Target(msgspec.Struct, frozen=True):
    """A figure and its bound.

    Attributes:
        name: what is compared.
        figure: what was measured.
        sense: whether the bound is a minimum or a maximum.
        bound: the bound.
        unit: of figure and bound: "x" for ratios.
    """

    name: str
    figure: float
    sense: Literal[">=", "<="]
    bound: float
    unit: str = "x"

    @property
    def is_reached(self) -> bool:
        """Whether the figure is within the bound."""
        return self.figure >= self.bound if self.sense == ">=" else self.figure <= self.bound


class Result(msgspec.Struct):
    """The result of one bench.

    Attributes:
        bench: its module's name.
        question: the question that it answers.
        versions: of the libraries and the server.
        settings: "full" or "small", number of rounds, and so on.
        groups: variants that were measured in turn.
        figures: single figures.
        targets: figures with bounds.
        notes: what a reader has to know.
        panels: the charts of its picture.
        reading_hint: how to read the picture.
    """

    bench: str
    question: str
    versions: dict[str, str]
    settings: dict[str, str | int]
    groups: list[Group] = []
    figures: list[Figure] = []
    targets: list[Target] = []
    notes: list[str] = []
    panels: list[Bars | Lines] = []
    reading_hint: str = ""

    def as_json(self) -> bytes:
        """Samples, medians and targets, indented."""
        data = msgspec.to_builtins(self)
        for group, view in zip(self.groups, data["groups"], strict=True):
            for row, entry in zip(group.rows, view["rows"], strict=True):
                entry["median"] = {name: getattr(row, name) for name in _MEDIANS}
        for target, entry in zip(self.targets, data["targets"], strict=True):
            entry["is_reached"] = target.is_reached
        return msgspec.json.format(msgspec.json.encode(data), indent=2) + b"\n"

    def as_markdown(self) -> str:
        """The tables, as Markdown."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        parts = [f"## {self.bench}", self.question, f"{versions} ({settings})"]
        for group in self.groups:
            parts += [f"### {group.name}", _group_table(group)]
        if self.figures:
            figures = [[f.name, f"{f.value:,.1f} {f.unit}"] for f in self.figures]
            parts.append(table(["figure", "value"], figures))
        if self.targets:
            parts.append(target_table(self.targets))
        if self.notes:
            parts.append("\n".join(f"* {note}" for note in self.notes))
        return "\n\n".join(parts) + "\n"


_MEDIANS = ("us", "client_cpu_us", "server_cpu_us", "sent_bytes", "received_bytes")


def target_table(targets: Sequence[Target]) -> str:
    """The table of targets."""
    rows = [
        [
            target.name,
            f"{target.sense} {_short(target.bound)} {target.unit}",
            f"{_short(target.figure)} {target.unit}",
            "yes" if target.is_reached else "NO",
        ]
        for target in targets
    ]
    return table(["target", "bound", "measured", "reached"], rows)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned so that it can be read as plain text too."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _group_table(group: Group) -> str:
    """Medians of every variant, and its time as a multiple of the first one's."""
    first = group.rows[0]
    head = ["variant", f"µs per {group.operation}", "per second", "time / first"]
    head += ["client CPU µs", "server CPU µs", "bytes sent", "received"]
    rows = [
        [
            row.name + (f" ({row.note})" if row.note else ""),
            f"{row.us:,.1f}",
            f"{1e6 / row.us:,.0f}",
            f"{group.ratio(row.name, first.name, time_of):.2f} x",
            f"{row.client_cpu_us:,.1f}",
            _or_dash(row.server_cpu_us, "{:,.1f}"),
            _or_dash(row.sent_bytes, "{:,.0f}"),
            _or_dash(row.received_bytes, "{:,.0f}"),
        ]
        for row in group.rows
    ]
    return table(head, rows)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _known(value: float | None) -> float:
    if value is None:
        raise ValueError("this was not measured")
    return value
