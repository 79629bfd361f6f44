"""The command `sessionstore doctor`: what is wrong with a store, and what to do."""

from __future__ import annotations

import click
from rich.console import Console
from rich.text import Text

from ...sync import SessionService
from ..keyspace import Node, primaries, scan
from ..opened import counted, print_json, store_options
from .data_checks import findings_of, look_at, repair
from .finding import Finding
from .server_checks import check_server

_STYLES = {"ok": "green", "unknown": "dim", "warning": "yellow", "error": "bold red"}


@click.command(
    "doctor",
    short_help="Check the server and the stored sessions.",
    help="""Check the server and the stored sessions: what was seen, why it matters, what to do.

It reads up to 1,000 sessions, or all with --full. It changes nothing without --repair, which
removes expired sessions from the index, after it has reported them.

Exit status: 0 = no warning and no error; 1 = a warning or an error; 2 = the server could not be
reached.""",
)
@click.option("--full", is_flag=True, help="Check all sessions.")
@click.option("--repair", "repairs", is_flag=True, help="Repair what is safe to repair.")
@click.option("--verbose", is_flag=True, help="Show the checks that found nothing, too.")
@store_options
@click.pass_context
def doctor(
    context: click.Context,
    service: SessionService,
    full: bool,
    repairs: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Run the command; the help text is above."""
    findings: list[Finding] = []
    for slot in primaries(service):
        findings += check_server(Node(service, slot))
    damage = look_at(service, scan(service), None if full else 1000)
    findings += findings_of(damage)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for finding in findings:
        if as_json:
            print_json(finding)
        elif verbose or finding.status in ("warning", "error"):
            _print(console, finding)
    problems = [each for each in findings if each.status in ("warning", "error")]
    unknown = [each for each in findings if each.status == "unknown"]
    if not as_json:
        console.print(
            f"{counted(len(findings), 'check')}: {counted(len(problems), 'problem')}"
            + (f", {len(unknown)} not made (--verbose shows why)" if unknown else "")
        )
    if repairs and damage.expired_in_index:
        count = repair(service, damage)
        click.echo(
            f"Removed expired sessions from the indexes of {counted(count, 'user')}.", err=True
        )
    context.exit(1 if problems else 0)


def _print(console: Console, finding: Finding) -> None:
    console.print(
        Text.assemble(
            (f"{finding.status:<8}", _STYLES[finding.status]),
            (f"{finding.check}: ", "bold"),
            finding.saw,
        )
    )
    for line in (finding.why, finding.fix):
        if line:
            console.print(Text(f"        {line}"))
