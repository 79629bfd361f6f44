"""Draws a bench's panels as an SVG file. `python -m benchmarks.pictures DIR` redraws a report.

SVG is written directly. The files stay small and readable, the text stays text, and the layout
leaves room for every label.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from html import escape
from itertools import pairwise
from pathlib import Path

import msgspec

from .results import Bars, Lines, Result

_WIDTH, _MARGIN = 900, 20
_OURS, _OTHERS, _INK, _FAINT = "#c2410c", "#94a3b8", "#1f2937", "#e2e8f0"
_CHARACTER, _BOLD_CHARACTER, _SMALL_CHARACTER = 7.7, 8.7, 6.9
"""Pixels per character: more than most fonts need, so that labels fit in every viewer."""
_ROW, _TITLE, _PLOT = 24, 30, 300
_LOG_RATIO = 30  # values that differ by more are drawn on a log scale

_STYLE = (
    "text{font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;"
    f"font-size:13px;fill:{_INK}}}"
    ".title{font-size:17px;font-weight:600}.panel{font-weight:600}.faint,.other{fill:#64748b}"
    ".small{font-size:12px}"
    f".ours{{fill:{_OURS};font-weight:600}}.end{{text-anchor:end}}.middle{{text-anchor:middle}}"
)


def draw(result: Result, output: Path) -> None:
    """Write `bench.svg`, unless the result has no panels."""
    if result.panels:
        (output / f"{result.bench}.svg").write_text(svg(result), "utf-8")


def svg(result: Result) -> str:
    """The picture: bar charts below each other, line charts in pairs."""
    y = _MARGIN + 14.0
    parts = [_text(_MARGIN, y, result.question, "title")]
    if result.reading_hint:
        y += 22
        parts.append(_text(_MARGIN, y, result.reading_hint, "faint"))
    y += 14
    bars = [panel for panel in result.panels if isinstance(panel, Bars)]
    lines = [panel for panel in result.panels if isinstance(panel, Lines)]
    for panel in bars:
        parts += _bars(panel, y)
        y += _TITLE + _ROW * len(panel.values) + 16
    if lines:
        width = (_WIDTH - _MARGIN * (len(lines) + 1)) / len(lines)
        for at, chart in enumerate(lines):
            parts += _lines(chart, _MARGIN + at * (width + _MARGIN), y, width)
        y += _TITLE + _PLOT + 48
    height = round(y + 4)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"'
            f' width="{_WIDTH}" height="{height}" role="img">',
            f"<title>{escape(result.question)}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


class _Scale:
    """Maps values to fractions of a length, on a log scale if they differ by much.

    Attributes:
        is_log: it is a log scale.
        ticks: round values along the scale, at most about five.
    """

    def __init__(self, values: Iterable[float]) -> None:
        known = [value for value in values if value > 0]
        low, high = min(known), max(known)
        self.is_log = high / low > _LOG_RATIO
        if self.is_log:
            # A log scale starts below the lowest value, so that its bar can be seen.
            self._low, self._high = low / 1.6, high
            powers = range(math.ceil(math.log10(self._low)), math.floor(math.log10(high)) + 1)
            self.ticks = [10.0**power for power in powers]
        else:
            step = _round_up(high / 4)
            self.ticks = [step * number for number in range(math.ceil(high / step) + 1)]
            self._high = self.ticks[-1]

    def part(self, value: float) -> float:
        """0 at the start of the scale, 1 at its end."""
        if self.is_log:
            return math.log(value / self._low) / math.log(self._high / self._low)
        return value / self._high


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50 and so on."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= value)


def _bars(panel: Bars, y: float) -> Iterator[str]:
    scale = _Scale(panel.values.values())
    left = _MARGIN + max(map(_width_of, panel.values)) + 8
    labels = {name: _shown(value, panel.unit) for name, value in panel.values.items()}
    right = _WIDTH - _MARGIN - max(map(len, labels.values())) * _BOLD_CHARACTER - 8
    yield _text(_MARGIN, y + 18, _title_of(panel.title, scale), "panel")
    top, bottom = y + _TITLE, y + _TITLE + _ROW * len(panel.values)
    for tick in scale.ticks if scale.is_log else []:
        x = left + scale.part(tick) * (right - left)
        yield _line(x, top, x, bottom)
    for at, (name, value) in enumerate(panel.values.items()):
        middle = top + _ROW * (at + 0.5)
        kind = "ours" if _is_ours(name) else ""
        colour = _OURS if panel.all_ours or kind else _OTHERS
        length = scale.part(value) * (right - left)
        yield _text(left - 8, middle + 4.5, name, f"{kind} end".strip())
        yield (
            f'<rect x="{left:.0f}" y="{middle - 8:.0f}" width="{length:.1f}" height="16"'
            f' fill="{colour}"/>'
        )
        yield _text(left + length + 6, middle + 4.5, labels[name], kind)


def _lines(panel: Lines, x: float, y: float, width: float) -> Iterator[str]:
    found = [value for line in panel.values.values() for value in line if value is not None]
    scale = _Scale(found)
    ticks = [_shown(tick, panel.unit) for tick in scale.ticks]
    labels = {name: _label_of(name, line, panel) for name, line in panel.values.items()}
    left = x + max(map(len, ticks)) * _SMALL_CHARACTER + 6
    right = x + width - max(map(len, labels.values())) * _SMALL_CHARACTER - 14
    top, bottom = y + _TITLE + 8, y + _TITLE + _PLOT

    def at(column: int, value: float) -> tuple[float, float]:
        part = column / (len(panel.columns) - 1)
        return left + 10 + part * (right - left - 20), bottom - scale.part(value) * (bottom - top)

    yield _text(x, y + 18, _title_of(panel.title, scale), "panel")
    for tick, text in zip(scale.ticks, ticks, strict=True):
        height = at(0, tick)[1]
        yield _line(left, height, right, height)
        yield _text(left - 6, height + 4.5, text, "faint end small")
    for column, text in enumerate(panel.columns):
        yield _text(at(column, found[0])[0], bottom + 20, text, "faint middle small")
    yield _text((left + right) / 2, bottom + 38, panel.x_label, "faint middle small")
    # Ours last, so that it lies above the others.
    ordered = sorted(panel.values.items(), key=lambda item: _is_ours(item[0]))
    ends = {}
    for name, line in ordered:
        points = [at(column, value) for column, value in enumerate(line) if value is not None]
        is_ours = panel.all_ours or _is_ours(name)
        colour, thickness, radius = (_OURS, 3.5, 4.5) if is_ours else (_OTHERS, 1.8, 3)
        path = " ".join(f"{px:.0f},{py:.0f}" for px, py in points)
        yield (
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{thickness}"/>'
        )
        for px, py in points:
            yield f'<circle cx="{px:.0f}" cy="{py:.0f}" r="{radius}" fill="{colour}"/>'
        ends[name] = points[-1]
    heights = _spread({name: height for name, (_, height) in ends.items()}, top, bottom)
    for name, height in heights.items():
        end_x, end_y = ends[name]
        kind = "ours" if _is_ours(name) else "" if panel.all_ours else "other"
        yield _line(end_x + 6, end_y, right + 8, height, dashed=True)
        yield _text(right + 12, height + 4.5, labels[name], f"{kind} small".strip())


def _label_of(name: str, line: list[float | None], panel: Lines) -> str:
    last = line[-1]
    return f"{name} {_shown(last, panel.unit)}" if last is not None else f"{name}: not reached"


def _spread(
    wanted: dict[str, float], top: float, bottom: float, gap: float = 17
) -> dict[str, float]:
    """Heights near the wanted ones, far enough apart for text."""
    names = sorted(wanted, key=lambda name: wanted[name])
    heights = [wanted[name] for name in names]
    for _ in range(200):
        for upper, lower in pairwise(range(len(heights))):
            overlap = gap - (heights[lower] - heights[upper])
            if overlap > 0:
                heights[upper] -= overlap / 2
                heights[lower] += overlap / 2
        heights[0], heights[-1] = max(heights[0], top), min(heights[-1], bottom)
    return dict(zip(names, heights, strict=True))


def _title_of(title: str, scale: _Scale) -> str:
    return f"{title} (log scale)" if scale.is_log else title


def _is_ours(name: str) -> bool:
    return name.startswith("sessionstore")


def _shown(value: float, unit: str) -> str:
    """The value with its unit; microseconds as µs, ms or s."""
    if unit != "µs":
        return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    for name, size in (("s", 1e6), ("ms", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.3g} µs"


def _width_of(text: str) -> float:
    return len(text) * (_BOLD_CHARACTER if _is_ours(text) else _CHARACTER)


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.0f}" y="{y:.0f}"{attribute}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, *, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="2 3"' if dashed else ""
    colour = _OTHERS if dashed else _FAINT
    return (
        f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" stroke="{colour}"{dash}/>'
    )


def main() -> None:
    """Draw the pictures of a report again, from its JSON file."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.pictures DIR, with report.json in DIR")
    directory = Path(sys.argv[1])
    data = (directory / "report.json").read_bytes()
    for result in msgspec.json.decode(data, type=list[Result]):
        draw(result, directory)


if __name__ == "__main__":
    main()
