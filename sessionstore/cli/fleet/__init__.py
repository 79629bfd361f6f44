"""The command `sessionstore fleet`: simulated agents, and a check that nothing was lost."""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from ..store import Number, url_option
from .report import EXIT_INTERRUPTED
from .run import FleetOptions, run_fleet
from .workload import TRACE_LINE

_HELP = f"""Run simulated agents and check that nothing is lost.

Each agent creates a session and holds a conversation: a Runner loads the session, appends the
user's message, then each event of the agent. Agents think between events (--think), so the
latencies are those of a server that is not overloaded. Then agents append for a moment as fast as
they can (--flat-out). At the end all sessions are read back and compared with what was sent: every
event must be in the log, covered by a summary (--compact), or rewound on purpose (--rewind).

The server may be in use: all keys of a run start with a prefix of their own and are deleted at the
end. Ctrl-C stops the agents and verifies what was written; a second Ctrl-C ends at once.

A line of a --trace looks like this:

\b
  {TRACE_LINE.replace(' "messages"', chr(10) + '   "messages"')}

Exit status: 0 = nothing was lost; 1 = something was lost, wrong or failed; 2 = the run could not
start; 130 = stopped by Ctrl-C, nothing was lost.
"""


_LEAST_LIMIT = 1000  # so that no turn is trimmed before it is summarized or rewound
_COUNT = click.IntRange(1, 100_000)
_SECONDS = Number(min=0)


@click.command(help=_HELP, context_settings={"show_default": True})
@url_option
@click.option("--agents", type=_COUNT, default=200, help="Agents that work at the same time.")
@click.option(
    "--turns",
    type=_COUNT,
    default=8,
    help="User messages in a conversation; each leads to about 3.5 events.",
)
@click.option(
    "--think",
    type=_SECONDS,
    metavar="SECONDS",
    default=0.1,
    help="Average wait before each event, exponentially distributed; 0 = no wait.",
)
@click.option(
    "--flat-out",
    type=_SECONDS,
    metavar="SECONDS",
    default=1.0,
    help="How long up to 64 agents append 1 KB events as fast as they can; writes some 40 MB a"
    " second. 0 = skip.",
)
@click.option(
    "--sessions-per-user",
    type=_COUNT,
    default=4,
    help="Sessions of each user; they share the user's state and list.",
)
@click.option(
    "--event-limit",
    type=click.IntRange(min=0),
    default=1000,
    help="The newest events that a session keeps; 0 = all.",
)
@click.option(
    "--ttl",
    type=Number(0, 10**9, min_open=True),
    metavar="SECONDS",
    help="TTL of sessions and state; must be longer than the run.  [default: none]",
)
@click.option(
    "--compact",
    is_flag=True,
    help="Summarize older turns while the agents work. In every other session the events that a"
    " summary covers are removed.",
)
@click.option(
    "--rewind",
    is_flag=True,
    help="Let agents rewind every third turn and take it again, as if a user edited a message.",
)
@click.option("--seed", type=int, default=1, help="The same seed makes the same conversations.")
@click.option(
    "--trace",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Replay recorded conversations: JSON lines, one session a line, as shown above. --agents"
    " is then the number that run at the same time.",
)
@click.option(
    "--json",
    type=click.File("wb", lazy=False),  # better to fail now than after the run
    help="Write the report as JSON to a file; - writes it to stdout, instead of the text.",
)
@click.option("--keep", is_flag=True, help="Leave the run's data in the store.")
@click.pass_context
def fleet(context: click.Context, /, **values: Any) -> None:
    """Run the command; the help text is above."""
    options = FleetOptions(**values)
    if options.trace is not None:
        for name in ("turns", "sessions_per_user", "seed"):
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                option = "--" + name.replace("_", "-")
                raise click.UsageError(f"{option} has no effect together with --trace.", context)
    if (options.compact or options.rewind) and 0 < options.event_limit < _LEAST_LIMIT:
        needed = f"--event-limit 0 or at least {_LEAST_LIMIT:,}"
        raise click.UsageError(f"--compact and --rewind need {needed}.", context)
    # With its default threshold the cycle collector takes up to a fifth of the processor time.
    gc.set_threshold(50_000, 20, 20)
    console = Console(quiet=options.json is sys.stdout.buffer)
    try:
        report = asyncio.run(run_fleet(options, console))
    except (asyncio.CancelledError, KeyboardInterrupt):
        click.echo("Aborted: not verified, and data of the run may be left.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    report.print_result(console)
    if options.json is not None:
        options.json.write(report.as_json() + b"\n")
    context.exit(report.exit_code)
