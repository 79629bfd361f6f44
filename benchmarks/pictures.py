"""A picture of a bench's result: one panel a group, one bar a variant."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from .results import Group, Result, Row

NO_PICTURES = "For pictures run `pip install 'sessionstore[bench]'`."

_OURS, _OTHERS = "#c2410c", "#94a3b8"
_BAR_INCHES, _PANEL_INCHES, _WIDTH_INCHES = 0.34, 0.75, 8.0


def draw(result: Result, output: Path) -> bool:
    """Write `bench.svg` and `bench.png`. False if matplotlib is not installed.

    Bars that start with "sessionstore" stand out. A result without groups has no picture.
    """
    try:
        matplotlib: Any = import_module("matplotlib")
    except ImportError:
        return False
    if not result.groups:
        return True
    # Text stays text, and the same result gives the same bytes.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": result.bench})
    backend: Any = import_module("matplotlib.figure")
    heights = [_PANEL_INCHES + _BAR_INCHES * len(group.rows) for group in result.groups]
    figure = backend.Figure(figsize=(_WIDTH_INCHES, sum(heights) + 0.5), layout="constrained")
    figure.suptitle(result.question, fontsize=11, x=0.01, ha="left")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)
    for group, [panel] in zip(result.groups, panels, strict=True):
        _draw_group(panel, group)
    figure.savefig(output / f"{result.bench}.svg", metadata={"Date": None})
    figure.savefig(output / f"{result.bench}.png", dpi=120)
    return True


def _draw_group(panel: Any, group: Group) -> None:
    values = [row.us for row in group.rows]
    colours = [_OURS if row.name.startswith("sessionstore") else _OTHERS for row in group.rows]
    places = range(len(values))
    panel.barh(places, values, color=colours, height=0.7)
    panel.set_yticks(places, [row.name for row in group.rows], fontsize=8)
    panel.invert_yaxis()
    panel.set_title(group.name, fontsize=9, loc="left")
    panel.set_xlim(0, max(values) * 1.3)
    panel.tick_params(axis="x", labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)
    for place, row in zip(places, group.rows, strict=True):
        panel.annotate(
            _label(row, group),
            (row.us, place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )


def _label(row: Row, group: Group) -> str:
    text = f"{row.us:,.1f} µs per {group.operation}"
    return text if row.server_cpu_us is None else f"{text}, server {row.server_cpu_us:,.1f}"
