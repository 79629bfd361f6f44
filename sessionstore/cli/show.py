"""The commands `show` and `search`: what is said in a session."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice
from typing import Any

import click
import msgspec
from rich.text import Text

from ..errors import SessionNotFound
from ..model import Event, EventPage, Session, SessionKey
from ..replies import members_with_scores
from ..sync import SessionService
from .keyspace import ask, ask_each, places, scan
from .ls import size_of
from .opened import TextConsole, counted, print_json, show_bytes, show_time, store_options
from .progress import watched
from .transcript import around, pieces_of, show_image, to_json

_USERS_PER_READ = 1000
_EVENTS_PER_READ = 100
_FOLDED = 160  # characters of a tool call, a result or data that `show` prints


@click.command(
    "show",
    short_help="Show a session: header, state and conversation.",
    help="""Show a session: header, state by tier, and its newest events as a conversation.

The newest event is the last one. Tool calls and results are cut to one line; --raw prints whole
events as JSON lines. Nothing is changed, and no TTL is refreshed.""",
)
@click.argument("app_name", metavar="APP")
@click.argument("user_id", metavar="USER")
@click.argument("session_id", metavar="SESSION")
@click.option("--events", "limit", type=click.IntRange(0, 10_000), default=20, show_default=True)
@click.option("--before", type=int, metavar="POSITION", help="Show events before this position.")
@click.option("--raw", is_flag=True, help="Print only events, whole, as JSON lines.")
@store_options
def show(
    service: SessionService,
    app_name: str,
    user_id: str,
    session_id: str,
    limit: int,
    before: int | None,
    raw: bool,
    as_json: bool,
) -> None:
    """Run the command; the help text is above."""
    session = get_session(service, app_name, user_id, session_id)
    page = EventPage([], None, None)
    if limit:
        page = service.get_events(session, before=before, limit=limit, newest=before is None)
    if raw:
        for event in page.events:
            print_json(event)
        return
    size = size_of(service, session.key)
    if as_json:
        described = msgspec.structs.asdict(session) | {
            "bytes": size.num_bytes,
            "expires_at": size.expires_at,
            "events": [
                {"position": position, "event": event}
                for position, event in zip(page.positions, page.events, strict=True)
            ],
        }
        print_json(described)
        return
    console = TextConsole()
    for name, text in (
        ("session", f"{session.app_name} / {session.user_id} / {session.id}"),
        ("events", f"{session.event_count:,} of at most {session.event_limit or 'any number'}"),
        ("size", show_bytes(size.num_bytes)),
        ("created", show_time(session.created_at)),
        ("updated", show_time(session.updated_at)),
        ("expires", show_time(size.expires_at)),
        ("version", str(session.version)),
    ):
        console.show(Text.assemble((f"{name:<8} ", "bold"), text))
    for tier, state in tiers_of(session).items():
        for key, value in sorted(state.items()):
            line = Text.assemble((f"{tier:<8} ", "bold"), f"{key} = {to_json(value)}")
            line.truncate(_FOLDED, overflow="ellipsis")
            console.show(line)
    if page.positions and page.positions[0] is not None and session.event_count > len(page.events):
        console.show(Text(f"older: --before {page.positions[0]}", "dim"))
    for event in page.events:
        print_event(console, event)


@click.command(
    "search",
    short_help="Search the newest events for text.",
    help="""Search for TEXT in a session, in a user's sessions or in those of an application.

It looks at the newest events of the sessions that were updated last, newest first, and says at the
end what it did not look at. It compares the content of an event as JSON. Case does not matter.

Nothing is changed, and no TTL is refreshed.""",
)
@click.argument("text", metavar="TEXT")
@click.argument("app_name", metavar="APP")
@click.argument("user_id", metavar="[USER", required=False)
@click.argument("session_id", metavar="[SESSION]]", required=False)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option(
    "--users",
    "num_users",
    type=click.IntRange(min=1),
    default=50_000,
    show_default=True,
    help="Users of the application.",
)
@click.option(
    "--sessions",
    "num_sessions",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="Sessions that were updated last, of all these users.",
)
@click.option(
    "--events",
    "num_events",
    type=click.IntRange(1, 10_000),
    default=1000,
    show_default=True,
    help="Newest events of each session.",
)
@store_options
def search(
    service: SessionService,
    text: str,
    app_name: str,
    user_id: str | None,
    session_id: str | None,
    limit: int,
    num_users: int,
    num_sessions: int,
    num_events: int,
    as_json: bool,
) -> None:
    """Run the command; the help text is above."""
    console = TextConsole()
    if user_id is not None and session_id is not None:
        keys, num_left_out, has_others = [SessionKey(app_name, user_id, session_id)], 0, False
    else:
        keys, num_left_out, has_others = _newest_sessions(
            service, app_name, user_id, num_sessions, num_users
        )
    wanted = to_json(text)[1:-1].casefold()  # as it stands in JSON
    num_found = num_cut = 0
    for key in keys:
        # One more shows whether there are older events.
        found_in = _newest_events(service, key, num_events + 1, session_id is not None)
        for number, (position, event) in enumerate(found_in):
            if number == num_events:
                num_cut += 1
                break
            if wanted not in to_json(event.content).casefold():
                continue
            num_found += 1
            if as_json:
                print_json({**msgspec.structs.asdict(key), "position": position, "event": event})
            else:
                place = f"{key.user_id} / {key.session_id} / {position} "
                snippet = around(to_json(event.content), wanted)
                console.show(Text.assemble((place, "dim"), (event.author, "bold"), " ", snippet))
            if num_found == limit:
                click.echo(f"Stopped after {counted(limit, 'event')} (--limit).", err=True)
                return
    found = counted(num_found, "event")
    click.echo(f"Found {found} in {counted(len(keys), 'session')}.", err=True)
    if num_left_out:
        click.echo(
            f"Not searched: {counted(num_left_out, 'older session')} (--sessions).", err=True
        )
    if has_others:
        click.echo(f"Not searched: users beyond the first {num_users:,} (--users).", err=True)
    if num_cut:
        click.echo(
            f"Not searched: older events of {counted(num_cut, 'session')} (--events).", err=True
        )


def _newest_events(
    service: SessionService, key: SessionKey, limit: int, must_exist: bool
) -> Iterator[tuple[int, Event]]:
    """The newest events of a session and their positions, newest first."""
    before: int | None = None
    while limit > 0:
        wanted = min(limit, _EVENTS_PER_READ)
        try:
            page = service.get_events(key, newest=before is None, before=before, limit=wanted)
        except SessionNotFound:
            if must_exist and before is None:
                raise
            return
        yield from zip(reversed(page.positions), reversed(page.events), strict=True)
        if len(page.events) < wanted:
            return
        before = page.positions[0]
        limit -= wanted


def _newest_sessions(
    service: SessionService, app_name: str, user_id: str | None, limit: int, num_users: int
) -> tuple[list[SessionKey], int, bool]:
    """The sessions that were updated last.

    Returns:
        Their keys, the number of other sessions, and whether there are more users than `num_users`.
    """
    if user_id is not None:
        index = service._ops.options.keys.user(app_name, user_id).session_index
        [num_sessions] = ask(service, ("ZCARD", index))
        users, has_others = [user_id], False
    else:
        found = scan(service, app_name, kind="owners")
        names = (key.user_id for key in watched(found, "users") if key.role == "sessions")
        users, num_sessions = _last_active(service, app_name, islice(names, num_users), limit)
        has_others = next(names, None) is not None
    newest: list[tuple[int, str, str]] = []
    for user in dict.fromkeys(users):
        some = islice(places(service, app_name, user, per_read=limit), limit)
        newest += ((place.updated_us, user, place.session_id) for place in some)
        newest = heapq.nlargest(limit, newest)
    keys = [SessionKey(app_name, user, name) for _, user, name in newest]
    return keys, num_sessions - len(keys), has_others


def _last_active(
    service: SessionService, app_name: str, names: Iterator[str], limit: int
) -> tuple[list[str], int]:
    """The users who have the newest sessions, and the number of sessions of all users."""
    last: list[tuple[float, str]] = []
    num_sessions = 0
    while some := list(islice(names, _USERS_PER_READ)):
        indexes = [service._ops.options.keys.user(app_name, each).session_index for each in some]
        num_sessions += sum(ask_each(service, (("ZCARD", index) for index in indexes)))
        commands = (("ZRANGE", index, 0, 0, "REV", "WITHSCORES") for index in indexes)
        newest = map(members_with_scores, ask_each(service, commands))
        last += (
            (score, user)
            for user, entries in zip(some, newest, strict=True)
            for _, score in entries
        )
        last = heapq.nlargest(limit, last)
    return [user for _, user in last], num_sessions


def get_session(service: SessionService, app_name: str, user_id: str, session_id: str) -> Session:
    """A session without its events. Raises SessionNotFound."""
    session = service.get_session(
        app_name=app_name, user_id=user_id, session_id=session_id, event_num=0
    )
    if session is None:
        raise SessionNotFound(
            f"session {session_id!r} of user {user_id!r} in app {app_name!r} does not exist"
        )
    return session


def tiers_of(session: Session) -> dict[str, dict[str, Any]]:
    """The state of a session by tier: "app", "user", and "state", which is the session's own."""
    tiers: dict[str, dict[str, Any]] = {"app": {}, "user": {}, "state": {}}
    for key, value in session.state.items():
        tier, _, name = key.partition(":")
        if name and tier in ("app", "user"):
            tiers[tier][name] = value
        else:
            tiers["state"][key] = value
    return tiers


def print_event(console: TextConsole, event: Event) -> None:
    """Print an event: its text whole, tool calls and data cut to one line."""
    at = event.timestamp.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    style = "bold green" if event.author == "user" else "bold cyan"
    head = Text.assemble((at, "dim"), " ", (event.author, style))
    pieces = pieces_of(event.content)
    if not pieces:
        console.show(head)
    for kind, text in pieces:
        line = Text.assemble(head, " ")
        if kind == "text":
            line.append(text)
        elif kind == "image":
            line.append(show_image(text), "dim")
        else:
            line.append({"call": "-> ", "result": "<- ", "data": ""}[kind] + text, "dim")
            line.truncate(_FOLDED, overflow="ellipsis")
        console.show(line)
