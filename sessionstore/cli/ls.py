"""The command `sessionstore ls`: applications, users and sessions."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from ..keys import StoredKey
from ..model import Session, SessionKey
from ..ops import ids_of
from ..sync import SessionService
from ..times import from_us
from .keyspace import ask, memory_of, places, scan
from .opened import print_json, show_bytes, show_time, store_options


@click.command(
    "ls",
    short_help="List applications, users or sessions.",
    help="""List applications, the users of an application, or the sessions of a user.

Applications and users are found by a scan of all keys. Sessions are listed last updated first; the
last line names the cursor of the next page. Nothing is changed, and no TTL is refreshed.""",
)
@click.argument("app_name", metavar="[APP", required=False)
@click.argument("user_id", metavar="[USER]]", required=False)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--after", metavar="TEXT", help="Continue after this user, or at this cursor.")
@store_options
def ls(
    service: SessionService,
    app_name: str | None,
    user_id: str | None,
    limit: int,
    after: str | None,
    as_json: bool,
) -> None:
    """Run the command; the help text is above."""
    if app_name is None:
        if after is not None:
            raise click.UsageError("--after needs an application.")
        _show(_applications(service), as_json)
    elif user_id is None:
        _show(_users(service, app_name, limit, after), as_json)
    else:
        page = service.list_sessions(app_name=app_name, user_id=user_id, limit=limit, after=after)
        _show([describe_session(service, session) for session in page], as_json)
        if page.cursor is not None:
            click.echo(f"More: --after '{page.cursor}'", err=True)


def _applications(service: SessionService) -> Iterator[dict[str, Any]]:
    users: defaultdict[str, set[str]] = defaultdict(set)
    num_sessions: Counter[str] = Counter()
    for key in _watched(scan(service)):
        users[key.app_name].update(filter(None, [key.user_id]))
        num_sessions[key.app_name] += key.role == "session"
    for app_name in sorted(users):
        yield {
            "app": app_name,
            "users": len(users[app_name]),
            "sessions": num_sessions[app_name],
        }


def _users(
    service: SessionService, app_name: str, limit: int, after: str | None
) -> Iterator[dict[str, Any]]:
    num_sessions: Counter[str] = Counter()
    for key in _watched(scan(service, app_name)):
        if key.user_id:
            num_sessions[key.user_id] += key.role == "session"
    rest = sorted(user for user in num_sessions if after is None or user > after)
    for user_id in rest[:limit]:
        newest = next(places(service, app_name, user_id, per_read=1), None)
        yield {
            "user": user_id,
            "sessions": num_sessions[user_id],
            "updated": None if newest is None else from_us(newest.updated_us),
        }
    if len(rest) > limit:
        click.echo(f"More: --after '{rest[limit - 1]}'", err=True)


class Size(NamedTuple):
    """What a session takes on the server, and when it expires."""

    num_bytes: int | None  # None: the user may not run MEMORY USAGE
    expires_at: datetime | None  # None: never


def size_of(service: SessionService, key: SessionKey) -> Size:
    """The memory and the deadline of a session."""
    session, events, *_ = service._ops.options.keys.session(*ids_of(key))
    num_bytes = memory_of(service, session, events)
    [deadline_ms] = ask(service, ("PEXPIRETIME", session))
    return Size(num_bytes, from_us(deadline_ms * 1000) if deadline_ms > 0 else None)


def describe_session(service: SessionService, session: Session) -> dict[str, Any]:
    """A row of a list of sessions: id, number of events, bytes, last update and deadline."""
    size = size_of(service, session.key)
    return {
        "session": session.id,
        "events": session.event_count,
        "bytes": size.num_bytes,
        "updated": session.updated_at,
        "expires": size.expires_at,
    }


def _watched(keys: Iterable[StoredKey]) -> Iterator[StoredKey]:
    """The keys, with their number on stderr if it is a terminal."""
    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.completed:,} keys"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("scan", total=None)
        for key in keys:
            progress.advance(task)
            yield key


def _show(rows: Iterable[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        for row in rows:
            print_json(row)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    shown = list(rows)
    if not shown:
        click.echo("Nothing is stored.", err=True)
        return
    for name in shown[0]:
        is_number = name in ("users", "sessions", "events", "bytes")
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in shown:
        table.add_row(*(_text(name, value) for name, value in row.items()))
    # Text that is piped is not folded at the width of a terminal.
    width = None if sys.stdout.isatty() else 1000
    Console(highlight=False, markup=False, width=width).print(table)


def _text(name: str, value: Any) -> str:
    if name == "bytes":
        return show_bytes(value)
    if name in ("updated", "expires"):
        return show_time(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
