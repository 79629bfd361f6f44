"""The command `sessionstore ls`: applications, users and sessions."""

from __future__ import annotations

import heapq
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table

from ..drive import drive
from ..keys import StoredKey
from ..listing import list_sessions
from ..model import Session, SessionKey
from ..ops import ids_of
from ..sync import SessionService
from ..times import from_us
from .keyspace import ask, ask_each, memory_of, places, scan
from .opened import print_json, show_bytes, show_time, store_options, visible
from .progress import watched

_USERS_PER_READ = 1000


@click.command(
    "ls",
    short_help="List applications, users or sessions.",
    help="""List applications, the users of an application, or the sessions of a user.

Applications and users are found by a scan of the names of all keys, about a million a second, and
are listed in order. Sessions are read from the index of the user, last updated first. If there are
more than --limit, the last line names --after of the next page.

Nothing is changed, and no TTL is refreshed.""",
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
        # Not service.list_sessions, which removes expired sessions from the index.
        flow = list_sessions(service._ops, app_name, user_id, limit, 0, 0, after, prunes=False)
        page = drive(flow, service._executor)
        _show([describe_session(service, session) for session in page], as_json)
        if page.cursor is not None:
            click.echo(f"More: --after '{page.cursor}'", err=True)


def _applications(service: SessionService) -> Iterator[dict[str, Any]]:
    num_sessions: Counter[str] = Counter()
    num_users: Counter[str] = Counter()
    with_state: list[StoredKey] = []
    for key in watched(scan(service, kind="heads"), "keys"):
        num_sessions[key.app_name] += key.role == "session"
        num_users[key.app_name] += key.role == "sessions"
        if key.role == "userdata":
            with_state.append(key)
        if len(with_state) == _USERS_PER_READ:
            num_users.update(_apps_of_users_without_sessions(service, with_state))
            with_state.clear()
    num_users.update(_apps_of_users_without_sessions(service, with_state))
    for app_name in sorted(num_sessions):
        yield {
            "app": app_name,
            "users": num_users[app_name],
            "sessions": num_sessions[app_name],
        }


def _apps_of_users_without_sessions(
    service: SessionService, with_state: list[StoredKey]
) -> Iterator[str]:
    """The application of each of some users with state who has no session."""
    keys = service._ops.options.keys
    indexes = (keys.user(key.app_name, key.user_id).session_index for key in with_state)
    exist = ask_each(service, (("EXISTS", index) for index in indexes))
    return (key.app_name for key, exists in zip(with_state, exist, strict=True) if not exists)


def _users(
    service: SessionService, app_name: str, limit: int, after: str | None
) -> Iterator[dict[str, Any]]:
    """The first users in order. Only a few users are remembered."""
    num_sessions: Counter[str] = Counter()
    highest: str | None = None
    for key in watched(scan(service, app_name, kind="heads"), "keys"):
        user_id = key.user_id
        if not user_id or (after is not None and user_id <= after):
            continue
        if highest is not None and user_id > highest:
            continue
        num_sessions[user_id] += key.role == "session"
        if len(num_sessions) > 2 * limit + 1:
            first = heapq.nsmallest(limit + 1, num_sessions)
            num_sessions = Counter({each: num_sessions[each] for each in first})
            highest = first[-1]
    users = sorted(num_sessions)
    for user_id in users[:limit]:
        newest = next(places(service, app_name, user_id, per_read=1), None)
        yield {
            "user": user_id,
            "sessions": num_sessions[user_id],
            "updated": None if newest is None else from_us(newest.updated_us),
        }
    if len(users) > limit:
        click.echo(f"More: --after '{visible(users[limit - 1])}'", err=True)


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
    return f"{value:,}" if isinstance(value, int) else visible(str(value))
