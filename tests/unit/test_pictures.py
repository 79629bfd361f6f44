"""Pictures of benches: readable at a glance, with every label inside. No server."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import __main__ as command
from benchmarks.pictures import draw, svg
from benchmarks.results import Bars, Lines, Result

OURS, OTHER = "sessionstore", "another & longer name of a store"
SIZES = ["0", "1,000", "10,000"]
BARS = Bars("append", {OURS: 15.4, OTHER: 53.2})
WIDE_BARS = Bars("append", {OURS: 15.4, OTHER: 4000.0})
LINES = Lines("read", "events", SIZES, {OURS: [90.0, 91.0, 95.0], OTHER: [80.0, 9000.0, None]})


def result_of(*panels: Bars | Lines) -> Result:
    return Result("bench_x", "How fast?", {}, {}, panels=list(panels))


def texts(picture: str) -> list[ElementTree.Element]:
    return [node for node in ElementTree.fromstring(picture).iter() if node.tag.endswith("}text")]


@pytest.mark.parametrize("panel", [BARS, WIDE_BARS, LINES])
def test_labels_are_inside_the_picture(panel: Bars | Lines) -> None:
    found = texts(svg(result_of(panel)))
    assert any(OURS in (node.text or "") for node in found)
    assert any(OTHER in (node.text or "") for node in found)
    for node in found:
        x, kind = float(node.attrib["x"]), node.attrib.get("class", "")
        width = 7 * len(node.text or "")
        start = x - width if "end" in kind else x - width / 2 if "middle" in kind else x
        assert start >= 0
        assert start + width <= 900


@pytest.mark.parametrize(("panel", "is_log"), [(BARS, False), (WIDE_BARS, True), (LINES, True)])
def test_values_that_differ_by_much_are_on_a_log_scale(panel: Bars | Lines, is_log: bool) -> None:
    assert ("log scale" in svg(result_of(panel))) is is_log


def test_a_size_that_was_not_reached_is_named() -> None:
    assert f"{OTHER.replace('&', '&amp;')}: not reached" in svg(result_of(LINES))


def test_labels_of_lines_do_not_overlap() -> None:
    values: dict[str, list[float | None]] = {f"store {at}": [100.0, 100.0 + at] for at in range(8)}
    picture = svg(result_of(Lines("read", "events", SIZES[:2], values)))
    heights = sorted(
        float(node.attrib["y"]) for node in texts(picture) if "store" in (node.text or "")
    )
    assert all(lower - upper >= 15 for upper, lower in pairwise(heights))


def test_a_result_without_panels_has_no_picture(tmp_path: Path) -> None:
    draw(result_of(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_publishing_replaces_report_pictures_and_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, measured, readme = tmp_path / "report", tmp_path / "measured", tmp_path / "README.md"
    output.mkdir()
    measured.mkdir()
    (measured / "old.svg").touch()
    readme.write_text("before\n<!-- targets -->\nold\n<!-- end -->\nafter\n")
    (output / "report.md").write_text("# x\n\n## Targets: 1 of 1 reached\n\n| new |\n")
    draw(result_of(BARS), output)
    monkeypatch.setattr(command, "MEASURED", measured)
    monkeypatch.setattr(command, "README", readme)
    command.publish(output)
    assert readme.read_text() == "before\n<!-- targets -->\n| new |\n<!-- end -->\nafter\n"
    names = {path.name for path in measured.iterdir()}
    assert names == {"report.md", "bench_x.svg"}
