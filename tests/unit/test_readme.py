"""The READMEs show what was measured."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_what_was_reached_is_what_the_report_says() -> None:
    readme = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    report = (ROOT / "benchmarks" / "measured" / "report.md").read_text("utf-8")
    table = report.partition("## Targets")[2].partition("\n\n")[2].strip()
    assert table.count("\n") > 20
    assert table in readme


def test_every_picture_is_there() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    pictures = [part.partition(")")[0] for part in readme.split("](")[1:]]
    pictures = [picture for picture in pictures if picture.endswith((".svg", ".md"))]
    assert len(pictures) == 4
    assert all((ROOT / picture).is_file() for picture in pictures)
