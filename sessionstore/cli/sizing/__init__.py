"""The command `sessionstore size`: how many servers a fleet of agents needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from ...errors import SessionStoreError
from ...instances import url_without_credentials
from ..opened import print_json, show_bytes
from ..output_file import output_file
from ..store import CannotStart, Number, open_store, url_option
from .measuring import measure
from .model import SHIPPED, Constants, Estimate, Servers, Workload, estimate, load_constants

F = TypeVar("F", bound=Callable[..., Any])

_HELP = """Estimate how many servers a fleet of agents needs.

It prints the number of servers, which resource decides it, and the processor time, memory, network
and replication of the primaries. Give the figures of your busiest hour.

The estimate uses measured constants. Those in the package are from one machine. So measure your own
server with --measure. It takes less than a minute, and deletes the keys that it writes:

\b
  sessionstore size --measure --url redis://localhost --output constants.json
  sessionstore size --agents 10000 --turns-per-hour 20 --constants constants.json
"""

_POSITIVE = Number(min=0, min_open=True)
_NOT_NEGATIVE = Number(min=0)
_PERCENT = Number(0, 100, min_open=True)


def _option(name: str, kind: Any, default: Any, metavar: str, text: str) -> Callable[[F], F]:
    return click.option(name, type=kind, default=default, metavar=metavar, help=text)


@click.command("size", help=_HELP, context_settings={"show_default": True})
@click.option("--agents", type=click.IntRange(1, 10**9), help="Agents that work at the same time.")
@click.option("--turns-per-hour", type=_POSITIVE, help="Turns of each agent in an hour.")
@_option("--events-per-turn", _POSITIVE, 3.5, "N", "Events in a turn, the user's message included.")
@_option(
    "--event-bytes",
    _POSITIVE,
    800,
    "BYTES",
    "Size of a stored event: its content, plus about 140 bytes.",
)
@_option(
    "--read-events", _NOT_NEGATIVE, 20, "N", "Events that an agent reads at the start of a turn."
)
@_option("--state-bytes", _NOT_NEGATIVE, 200, "BYTES", "Size of a session's state.")
@_option("--user-state-bytes", _NOT_NEGATIVE, 200, "BYTES", "Size of a user's state.")
@_option("--app-state-bytes", _NOT_NEGATIVE, 1000, "BYTES", "Size of the application's state.")
@_option("--state-changes", Number(0, 100), 40, "PERCENT", "Share of the events that change state.")
@_option("--turns-per-session", _POSITIVE, 10, "N", "Turns in a session.")
@_option(
    "--event-limit",
    click.IntRange(min=0),
    1000,
    "N",
    "How many of the newest events a session keeps; 0 = all.",
)
@_option(
    "--session-ttl",
    _NOT_NEGATIVE,
    24,
    "HOURS",
    "How long a session is kept after its last use.",
)
@click.option(
    "--sessions",
    type=click.IntRange(min=1),
    help="Sessions that are stored.  [default: computed from agents, turns and --session-ttl]",
)
@_option("--sessions-per-user", _POSITIVE, 4, "N", "Stored sessions of a user.")
@click.option(
    "--app-state-cached",
    is_flag=True,
    help="The services use app_state_max_age, so in a cluster they rarely read the application's"
    " state.",
)
@_option("--replicas", click.IntRange(0, 100), 1, "N", "Replicas of each primary.")
@_option("--memory-per-server", _POSITIVE, 16, "GIB", "Memory of a server.")
@_option(
    "--max-memory",
    _PERCENT,
    60,
    "PERCENT",
    "Memory for data. The rest is for fragmentation, buffers and copies during a snapshot.",
)
@_option(
    "--max-cpu",
    _PERCENT,
    50,
    "PERCENT",
    "Share of a core that a primary may use; it runs commands on one core.",
)
@_option("--network-per-server", _POSITIVE, 1000, "MBIT", "Network in each direction, per second.")
@click.option(
    "--constants",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Constants that --measure wrote.  [default: those of the package]",
)
@click.option("--measure", "measures", is_flag=True, help="Measure the constants of a server.")
@url_option
@click.option(
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Where --measure writes.  [default: constants.json]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def size(context: click.Context, /, **values: Any) -> None:
    """Run the command; the help text is above."""
    given = {
        name for name in values if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if values["measures"]:
        unused = given - {"measures", "url", "output", "as_json"}
        _refuse(unused, "has no effect together with --measure")
        _measure(values["url"], values["output"] or Path("constants.json"), values["as_json"])
        return
    _refuse(given & {"url", "output"}, "needs --measure")
    if values["agents"] is None or values["turns_per_hour"] is None:
        raise click.UsageError("Pass --agents and --turns-per-hour, or --measure.")
    path = values["constants"] or SHIPPED
    try:
        constants = load_constants(path)
    except (OSError, msgspec.MsgspecError) as error:
        raise CannotStart(f"{path}: {error}") from error
    workload, servers = _inputs(values)
    if servers.memory_bytes * servers.max_memory <= constants.startup_bytes:
        raise click.UsageError(
            f"--memory-per-server and --max-memory leave no memory for data: an empty server takes "
            f"{show_bytes(int(constants.startup_bytes))}."
        )
    try:
        found = estimate(workload, servers, constants)
    except (ArithmeticError, ValueError) as error:  # an intermediate number is infinite or 0
        raise click.UsageError("These numbers are too large or too small to estimate.") from error
    if values["as_json"]:
        print_json(found)
    else:
        _print(Console(highlight=False, markup=False, soft_wrap=True), found)


def _refuse(names: set[str], why: str) -> None:
    for name in sorted(names):
        raise click.UsageError(f"--{name.replace('_', '-')} {why}.")


def _inputs(values: dict[str, Any]) -> tuple[Workload, Servers]:
    fields = set(Workload.__struct_fields__) & set(values)
    workload = Workload(
        **{name: values[name] for name in fields - {"state_changes"}},
        state_changes=values["state_changes"] / 100,
        session_ttl_hours=values["session_ttl"],
        is_app_state_cached=values["app_state_cached"],
    )
    servers = Servers(
        replicas=values["replicas"],
        memory_bytes=values["memory_per_server"] * 2**30,
        max_memory=values["max_memory"] / 100,
        max_cpu=values["max_cpu"] / 100,
        network_bytes=values["network_per_server"] * 1e6 / 8,
    )
    return workload, servers


def _measure(url: str | None, output: Path, as_json: bool) -> None:
    if url == "memory://":
        raise click.BadParameter("memory:// is not a server.", param_hint="'--url'")

    async def run() -> Constants:
        async with open_store(url) as store:
            click.echo(f"Measuring {store.name} for about 40 seconds.", err=True)
            return await measure(store, lambda text: click.echo(f"Note: {text}", err=True))

    with output_file(output) as file:  # opened first, so that an error comes before the measurement
        try:
            constants = asyncio.run(run())
        except SessionStoreError as error:
            raise CannotStart(
                f"{url_without_credentials(url) if url else 'the server'}: {error}"
            ) from error
        file.write(encode_constants(constants))
    if as_json:
        print_json(constants)
    else:
        click.echo(f"Wrote {output}. Use it with --constants {output}.")


def encode_constants(constants: Constants) -> bytes:
    """The content of a file of constants."""
    return msgspec.json.format(msgspec.json.encode(constants), indent=2) + b"\n"


def _print(console: Console, found: Estimate) -> None:
    count = found.primaries
    replicated = found.replicated_bytes
    rows = [
        ("processor", f"{found.cpu_cores:.2f} cores", f"{found.busiest_cpu:.0%} of a core"),
        (
            "memory",
            show_bytes(int(found.memory_bytes)),
            f"{found.busiest_memory:.0%} of a server",
        ),
        ("network in", _rate(found.in_bytes), _rate(found.in_bytes / count)),
        ("network out, to clients", _rate(found.out_bytes), _rate(found.out_bytes / count)),
        ("to replicas", _rate(replicated), _rate(replicated and replicated / count)),
        (
            "to append-only files",
            _rate(found.aof_bytes),
            _rate(found.aof_bytes and found.aof_bytes / count),
        ),
    ]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("need")
    table.add_column("all primaries", justify="right")
    table.add_column("the busiest one", justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(
        f"Load       {found.calls:,.1f} calls/s, {found.sessions:,.0f} sessions, "
        f"{found.events:,.0f} events"
    )
    console.print(
        f"Servers    {_counted(count, 'primary', 'primaries')}, "
        f"{_counted(found.replicas, 'replica', 'replicas')}"
    )
    what = "decides the number of servers" if count > 1 else "is nearest to its limit"
    console.print(f"Limit      {found.limit} {what}", end="\n\n")
    console.print(table)
    if found.note:
        console.print(f"\n{found.note}")
    console.print(f"\nConstants: {found.constants}. Measure your own: sessionstore size --measure")


def _counted(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


def _rate(per_second: float | None) -> str:
    return "?" if per_second is None else f"{show_bytes(int(per_second))}/s"
