"""Results that are kept in the repository, and their tables in benchmarks/README.md.

A command of this package makes an Outcome. With `--publish` it is written to measured/ as JSON, and
its tables to the README, between `<!-- NAME -->` and `<!-- end -->`. A test compares both.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..results import table

MEASURED = Path(__file__).parent / "measured"
README = Path(__file__).parent.parent / "README.md"


class Table(msgspec.Struct, frozen=True):
    """A table of the README."""

    head: list[str]
    rows: list[list[str]]
    title: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """What a command found."""

    name: str
    settings: dict[str, str]
    tables: list[Table]
    data: dict[str, Any] = {}  # the figures behind the tables

    def as_json(self) -> bytes:
        """Indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def as_markdown(self) -> str:
        """Settings and tables, as in the README."""
        parts = [
            "On " + ", ".join(f"{name} {value}" for name, value in self.settings.items()) + "."
        ]
        for each in self.tables:
            if each.title:
                parts.append(f"{each.title}:")
            parts.append(table(each.head, each.rows))
        return "\n\n".join(parts) + "\n"


def options(description: str | None) -> argparse.ArgumentParser:
    """The options that every command of this package takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument(
        "--publish", action="store_true", help="write measured/, and tables of benchmarks/README.md"
    )
    return parser


def parse(parser: argparse.ArgumentParser, least: Mapping[str, float]) -> argparse.Namespace:
    """The arguments of a command. Ends it if one is below its lowest value."""
    arguments = parser.parse_args()
    for name, lowest in least.items():
        if not getattr(arguments, name) >= lowest:  # NaN is not, either
            parser.error(f"--{name.replace('_', '-')} must be at least {lowest}")
    return arguments


def finish(outcome: Outcome, arguments: argparse.Namespace) -> None:
    """Print the outcome; write and publish it if the options say so."""
    print(outcome.as_markdown())
    if arguments.output is not None:
        arguments.output.write_bytes(outcome.as_json())
    if arguments.publish:
        publish(outcome)


def publish(outcome: Outcome) -> None:
    """Write the JSON to measured/ and the tables to the README."""
    MEASURED.mkdir(exist_ok=True)
    (MEASURED / f"{outcome.name}.json").write_bytes(outcome.as_json())
    before, begin, rest = README.read_text("utf-8").partition(f"<!-- {outcome.name} -->\n")
    _, end, after = rest.partition("<!-- end -->\n")
    README.write_text(f"{before}{begin}{outcome.as_markdown()}{end}{after}", "utf-8")


def load(name: str) -> Outcome:
    """A result that was published."""
    return msgspec.json.decode((MEASURED / f"{name}.json").read_bytes(), type=Outcome)


def percent(share: float) -> str:
    """A share as a percentage with a sign."""
    return f"{100 * share:+.0f} %"
