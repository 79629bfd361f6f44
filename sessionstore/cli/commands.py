"""The command `sessionstore` and its subcommands: options, messages, exit status."""

from __future__ import annotations

import asyncio
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from click.core import ParameterSource
from rich.console import Console

from .report import EXIT_INTERRUPTED, EXIT_UNUSABLE, Report, print_report, report_json
from .run import MEMORY_URL, FleetOptions, UnusableError, run_fleet

_URL_SCHEMES = ("redis", "rediss", "unix")
_SYNTHETIC_OPTIONS = ("turns", "sessions_per_user", "seed")
_STDOUT = Path("-")
_DEFAULTS = FleetOptions()


class _CommandError(click.ClickException):
    """One sentence on stderr."""

    exit_code = EXIT_UNUSABLE


def _checked_url(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> str | None:
    """The URL as given. A message never repeats it: it may hold a password."""
    if value is None or value == MEMORY_URL:
        return value
    try:
        parts = urlsplit(value)
        has_place = bool(parts.path) if parts.scheme == "unix" else parts.port != 0
    except ValueError as error:
        raise click.BadParameter("its host or port is malformed.") from error
    if parts.scheme not in _URL_SCHEMES:
        raise click.BadParameter("it is neither redis://, rediss://, unix:// nor memory://.")
    if not has_place:
        raise click.BadParameter("it names no port or no path of a socket.")
    return value


def _version() -> str:
    try:
        return metadata.version("sessionstore")
    except metadata.PackageNotFoundError:
        return "from a source tree that is not installed"


@click.group(name="sessionstore", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version())
def command_line() -> None:
    """Session storage for AI agents on Redis and Valkey."""


@command_line.command("fleet")
@click.option(
    "--url",
    callback=_checked_url,
    metavar="URL",
    help="redis://, rediss:// or unix:// URL of a server, or memory://.  [default: a private"
    " server for the run]",
)
@click.option(
    "--agents",
    type=click.IntRange(1, 100_000),
    default=_DEFAULTS.agents,
    show_default=True,
    help="Agents at work at the same time; each holds one conversation.",
)
@click.option(
    "--turns",
    type=click.IntRange(1, 100_000),
    default=_DEFAULTS.turns,
    show_default=True,
    help="User messages in a conversation; each brings about 3.5 events.",
)
@click.option(
    "--sessions-per-user",
    type=click.IntRange(1, 100_000),
    default=_DEFAULTS.sessions_per_user,
    show_default=True,
    help="Sessions that share a user, and so a state tier and a list.",
)
@click.option(
    "--event-limit",
    type=click.IntRange(min=0),
    default=_DEFAULTS.event_limit,
    show_default=True,
    help="The newest events that a session keeps; 0 = all.",
)
@click.option(
    "--ttl",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Lifetime of unused sessions and state; must outlast the run.  [default: for ever]",
)
@click.option(
    "--seed",
    type=int,
    default=_DEFAULTS.seed,
    show_default=True,
    help="The same seed makes the same conversations.",
)
@click.option(
    "--trace",
    type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path),
    help="Replay recorded conversations: JSON lines of {app_name, user_id, session_id, messages}."
    " Then --agents bounds how many at the same time.",
)
@click.option(
    "--json",
    type=click.Path(dir_okay=False, writable=True, allow_dash=True, path_type=Path),
    help="Write the report as JSON to a file; - writes it to stdout, instead of the tables.",
)
@click.option("--keep", is_flag=True, help="Leave the run's data in the store.")
@click.pass_context
def fleet(context: click.Context, /, **values: Any) -> None:
    """Run a fleet of simulated agents and prove that nothing was lost.

    Every agent creates a session. Then a Runner takes it through its turns: loads the session,
    appends the user's message, and what the agent says about it. At the end all sessions are read
    back and compared with what was sent.

    The keys of a run have a prefix of their own and are deleted at the end, so a server in use
    can be tried. Ctrl-C stops the agents and verifies what was written; once more, it gives up.

    Exit status: 0 = all is well; 1 = something was lost, wrong or failed; 2 = the run could not
    begin; 130 = interrupted, and all that was written is well.
    """
    options = FleetOptions(**values)
    _check_options(context, options)
    report = _run(options)
    _show(report, options)
    context.exit(report.exit_code)


def _check_options(context: click.Context, options: FleetOptions) -> None:
    if options.trace is not None:
        for name in _SYNTHETIC_OPTIONS:
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                option = "--" + name.replace("_", "-")
                raise click.UsageError(f"{option} has no effect together with --trace.", context)
    if options.json not in (None, _STDOUT):
        directory = options.json.parent
        if not os.access(directory, os.W_OK | os.X_OK):
            message = f"directory '{directory}' cannot be written to."
            raise click.BadParameter(message, context, param_hint="'--json'")


def _run(options: FleetOptions) -> Report:
    try:
        return asyncio.run(run_fleet(options))
    except UnusableError as error:
        raise _CommandError(str(error)) from error
    except (asyncio.CancelledError, KeyboardInterrupt):
        click.echo("Aborted: not verified, and data of the run may be left.", err=True)
        sys.exit(EXIT_INTERRUPTED)


def _show(report: Report, options: FleetOptions) -> None:
    if options.json == _STDOUT:
        click.echo(report_json(report))
        return
    print_report(report, Console())
    if options.json is not None:
        try:
            options.json.write_bytes(report_json(report) + b"\n")
        except OSError as error:
            reason = error.strerror or str(error)
            raise _CommandError(f"cannot write {options.json}: {reason}") from error
