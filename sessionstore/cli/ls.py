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
from ..errors import BackendRejected
from ..flows.listing import Walk, next_places
from ..keys import StoredKey
from ..model import SessionKey
from ..ops import ids_of
from ..replies import Place
from ..sync import SessionService
from ..times import from_us
from .keyspace import ask, ask_each, places, scan
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
        nothing = "Nothing is stored. Are --key-prefix and --partition-by those of your services?"
        _show(_applications(service), as_json, nothing)
    elif user_id is None:
        nothing = f"The application has no {'users' if after is None else 'more users'}."
        _show(_users(service, app_name, limit, after), as_json, nothing)
    else:
        rows, cursor = read_sessions(service, app_name, user_id, limit, after)
        _show(rows, as_json, "The user has no sessions.")
        if cursor is not None:
            click.echo(f"More: --after '{cursor}'", err=True)


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


def read_sessions(
    service: SessionService, app_name: str, user_id: str, limit: int, after: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """Rows of a user's sessions, last updated first, and the cursor of the next page.

    Neither state nor events are read, so that large and damaged sessions are listed too. Expired
    sessions stay in the index.
    """
    walk = Walk.from_cursor(after)
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < limit:
        wanted = limit - len(rows)
        is_first = walk.start is None
        step = next_places(service._ops, app_name, user_id, walk, wanted)
        found, is_end = drive(step, service._executor)
        if is_first and not found:
            return [], None
        rows.update(_describe(service, app_name, user_id, found))
        if not is_end:
            continue
        if is_first or walk.is_upward:
            return list(rows.values()), None
        walk.turn()
    return list(rows.values()), walk.cursor()


def _describe(
    service: SessionService, app_name: str, user_id: str, found: list[Place]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Id and row of each session that exists."""
    if not found:
        return
    sessions = [SessionKey(app_name, user_id, place.session_id) for place in found]
    keys = [service._ops.options.keys.session(*ids_of(each)) for each in sessions]
    headers = ask(service, *(("HMGET", each.session, "version", "count") for each in keys))
    lengths = ask(service, *(("ZCARD", each.events) for each in keys))
    sizes = sizes_of(service, sessions)
    for place, (version, count), length, size in zip(found, headers, lengths, sizes, strict=True):
        if version is None and not length:
            continue
        yield (
            place.session_id,
            {
                "session": place.session_id,
                # A session of 0.1.0 does not count its events.
                "events": int(count) if count and count.isdigit() else length,
                "bytes": size.num_bytes,
                "updated": from_us(place.updated_us),
                "expires": size.expires_at,
            },
        )


class Size(NamedTuple):
    """What a session takes on the server, and when it expires."""

    num_bytes: int | None  # None: the user may not run MEMORY USAGE
    expires_at: datetime | None  # None: never


def size_of(service: SessionService, key: SessionKey) -> Size:
    """The memory and the deadline of a session."""
    [size] = sizes_of(service, [key])
    return size


def sizes_of(service: SessionService, sessions: list[SessionKey]) -> list[Size]:
    """The memory and the deadline of one or more sessions of a user, in two round trips."""
    keys = [service._ops.options.keys.session(*ids_of(key)) for key in sessions]
    deadlines_ms = ask(service, *(("PEXPIRETIME", each.session) for each in keys))
    num_bytes: list[int | None]
    try:
        usages = [("MEMORY", "USAGE", key) for each in keys for key in each[:2]]
        found = [size or 0 for size in ask(service, *usages, slot=keys[0].session)]
        num_bytes = [sum(pair) for pair in zip(found[::2], found[1::2], strict=True)]
    except BackendRejected:
        num_bytes = [None] * len(keys)
    return [
        Size(size, from_us(deadline_ms * 1000) if deadline_ms > 0 else None)
        for size, deadline_ms in zip(num_bytes, deadlines_ms, strict=True)
    ]


def _show(rows: Iterable[dict[str, Any]], as_json: bool, nothing: str) -> None:
    if as_json:
        for row in rows:
            print_json(row)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    shown = list(rows)
    if not shown:
        click.echo(nothing, err=True)
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
