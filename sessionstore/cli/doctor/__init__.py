"""The command `sessionstore doctor`: what is wrong with a store, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import click
from rich.text import Text

from ...errors import BackendError
from ...sync import SessionService
from ..keyspace import Node, primaries, scan
from ..opened import TextConsole, counted, print_json, store_options
from ..progress import watched
from .data_checks import Damage, check_data, findings_of, repair
from .finding import Finding, error
from .server_checks import check_server

_SAMPLE = 1000  # sessions
_STYLES = {"ok": "green", "unknown": "dim", "warning": "yellow", "error": "bold red"}


@click.command(
    "doctor",
    short_help="Check the server and the stored sessions.",
    help="""Check the server and the stored sessions: what was seen, why it matters, what to do.

It reads up to 1,000 sessions with their newest 20 events, or all sessions with --full. It changes
nothing without --repair, which removes expired sessions from the index, after it has reported them.
Other faults are not repaired, because that may lose data; each finding says what to do.

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
    console = TextConsole()
    damage = Damage()
    statuses: Counter[str] = Counter()
    for finding in _findings(service, damage, None if full else _SAMPLE):
        statuses[finding.status] += 1
        if as_json:
            print_json(finding)
        elif verbose or finding.status in ("warning", "error"):
            _print(console, finding)
    num_problems = statuses["warning"] + statuses["error"]
    if not as_json:
        summary = f"{counted(statuses.total(), 'check')}: {counted(num_problems, 'problem')}"
        if statuses["unknown"]:
            summary += f", {statuses['unknown']} not made (--verbose shows why)"
        console.show(summary)
    if repairs and damage.users_to_repair:
        count = repair(service, damage)
        click.echo(
            f"Removed expired sessions from the indexes of {counted(count, 'user')}.", err=True
        )
    context.exit(1 if num_problems else 0)


def _findings(service: SessionService, damage: Damage, limit: int | None) -> Iterator[Finding]:
    """All findings, as soon as they are known. `damage` is what was found in the sessions."""
    for slot in primaries(service):
        try:
            yield from check_server(Node(service, slot))
        except BackendError as problem:
            yield error(
                "server",
                f"the node of slot {slot} does not answer: {problem}",
                "Calls on its users fail.",
                "Look at the log of the server, and at the network.",
            )
    try:
        keys = watched(scan(service), "keys", lines=True)
        check_data(service, keys, limit, damage)
    except BackendError as problem:
        yield error(
            "sessions",
            f"the stored sessions cannot be read: {problem}",
            "Services cannot read them either, or the user of the doctor lacks a right.",
            "See the other findings.",
        )
    yield from findings_of(damage)


def _print(console: TextConsole, finding: Finding) -> None:
    console.show(
        Text.assemble(
            (f"{finding.status:<8}", _STYLES[finding.status]),
            (f"{finding.check}: ", "bold"),
            finding.saw,
        )
    )
    for line in (finding.why, finding.fix):
        if line:
            console.show(Text(f"        {line}"))
