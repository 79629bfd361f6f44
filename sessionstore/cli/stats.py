"""The command `sessionstore stats`: load, and what takes the memory."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ..sync import SessionService
from .keyspace import Node, memory_of, primaries, scan
from .opened import counted, print_json, show_bytes, store_options
from .progress import watched
from .store import Number, growth, identify

_SAMPLES_PER_ROLE = 1000  # keys whose memory is measured; more are estimated from them
KINDS = {
    "session": "headers and session state",
    "events": "logs",
    "sessions": "indexes of users",
    "userdata": "user state",
    "appdata": "application state",
    "stream": "fragments",
}


@click.command(
    "stats",
    short_help="Show load, and what takes the memory.",
    help="""Show load, and what takes the memory: for each kind of key its number and its size.

The load is that of the whole server, measured over --interval. The number of keys is exact. The
size of each kind is estimated from 1,000 keys. --watch shows the load again and again, without the
scan of all keys.

--json prints a line for the load and, without --watch, a line for the keys.""",
)
@click.option(
    "--interval",
    type=Number(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the load is measured.",
)
@click.option("--watch", is_flag=True, help="Repeat until Ctrl-C.")
@store_options
def stats(service: SessionService, interval: float, watch: bool, as_json: bool) -> None:
    """Run the command; the help text is above."""
    nodes = [Node(service, slot) for slot in primaries(service)]
    name, _ = identify([node.info for node in nodes])
    click.echo(f"{name}. Measuring for {interval:g} s ...", err=True)
    loads = _loads(service, nodes, interval)
    if watch:
        with suppress(KeyboardInterrupt):
            for load in loads:
                _print_load(load, as_json)
        return
    _print_load(next(loads), as_json)
    kinds = list(_kinds(service))
    summary = _summary(kinds)
    if as_json:
        print_json({**summary, "keys": kinds})
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("keys")
    for column in ("number", "bytes", "each"):
        table.add_column(column, justify="right")
    for kind in kinds:
        size, count = kind["bytes"], kind["number"]
        each = None if size is None else size // max(count, 1)
        table.add_row(KINDS[kind["kind"]], f"{count:,}", show_bytes(size), show_bytes(each))
    Console(highlight=False, markup=False).print(table)
    each = f", {show_bytes(summary['bytes_per_session'])} each" if summary["sessions"] else ""
    click.echo(counted(summary["sessions"], "session") + each)


def _summary(kinds: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The number of sessions, and bytes for each: its own keys and its part of the index."""
    numbers = {kind["kind"]: kind["number"] for kind in kinds}
    sizes = [kind["bytes"] for kind in kinds if kind["kind"] in ("session", "events", "sessions")]
    count = numbers.get("session", 0)
    is_known = bool(count) and None not in sizes
    return {"sessions": count, "bytes_per_session": sum(sizes) // count if is_known else None}


def _loads(
    service: SessionService, before: list[Node], interval_s: float
) -> Iterator[dict[str, Any]]:
    """The load of all primaries together, once for each interval."""
    begin = time.monotonic()
    while True:
        time.sleep(interval_s)
        after = [Node(service, slot) for slot in primaries(service)]
        end = time.monotonic()
        grown = partial(growth, [node.info for node in before], [node.info for node in after])
        elapsed_s = end - begin
        yield {
            "calls_per_second": round(grown("total_commands_processed") / elapsed_s, 1),
            "script_calls_per_second": round(
                (sum(map(_script_calls, after)) - sum(map(_script_calls, before))) / elapsed_s, 1
            ),
            "cpu_percent": round(100 * grown("used_cpu_user", "used_cpu_sys") / elapsed_s, 1),
            "bytes_in_per_second": round(grown("total_net_input_bytes") / elapsed_s),
            "bytes_out_per_second": round(grown("total_net_output_bytes") / elapsed_s),
            "memory_bytes": sum(node.number("used_memory") for node in after),
            "memory_growth_per_second": round(grown("used_memory") / elapsed_s),
            "connections": sum(node.number("connected_clients") for node in after),
        }
        before, begin = after, end


def _script_calls(node: Node) -> int:
    """Scripts that the server has run: nearly every operation but plain reads is one."""
    calls = 0
    for command in ("evalsha", "eval"):
        fields = node.info.get(f"cmdstat_{command}", "")
        calls += int(fields.partition("calls=")[2].partition(",")[0] or 0)
    return calls


def _print_load(load: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(load)
        return
    click.echo(
        f"{load['calls_per_second']:,.0f} commands/s, "
        f"{load['script_calls_per_second']:,.0f} scripts/s, {load['cpu_percent']:.0f} % of a core, "
        f"{show_bytes(load['bytes_in_per_second'])}/s in, "
        f"{show_bytes(load['bytes_out_per_second'])}/s out, "
        f"{show_bytes(load['memory_bytes'])} memory "
        f"({load['memory_growth_per_second']:+,} bytes/s), "
        f"{counted(load['connections'], 'connection')}"
    )


def _kinds(service: SessionService) -> Iterator[dict[str, Any]]:
    """Each kind of key: number, and bytes; None if the user may not run MEMORY USAGE."""
    numbers: Counter[str] = Counter()
    samples: defaultdict[str, list[bytes]] = defaultdict(list)
    for key in watched(scan(service), "keys"):
        numbers[key.role] += 1
        if len(samples[key.role]) < _SAMPLES_PER_ROLE:
            samples[key.role].append(key.key)
    for role in KINDS:
        if numbers[role]:
            size = memory_of(service, *samples[role])
            total = None if size is None else size * numbers[role] // len(samples[role])
            yield {"kind": role, "number": numbers[role], "bytes": total}
