"""The commands `show`, `tail` and `search`: what is said in a session."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.text import Text

from ..errors import SessionNotFound
from ..model import Event, EventPage, Session, SessionKey
from ..sync import SessionService
from .keyspace import places, scan
from .ls import size_of
from .opened import counted, print_json, show_bytes, show_time, store_options
from .transcript import around, pieces_of, show_image, to_json

_FOLDED = 160  # characters of a tool call, a result or data that `show` prints
_POLL_S = 0.5
_EVENTS_PER_PAGE = 500


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
    console = _console()
    for name, text in (
        ("session", f"{session.app_name} / {session.user_id} / {session.id}"),
        ("events", f"{session.event_count:,} of at most {session.event_limit or 'any number'}"),
        ("size", show_bytes(size.num_bytes)),
        ("created", show_time(session.created_at)),
        ("updated", show_time(session.updated_at)),
        ("expires", show_time(size.expires_at)),
        ("version", str(session.version)),
    ):
        console.print(Text.assemble((f"{name:<8} ", "bold"), text))
    for tier, state in tiers_of(session).items():
        for key, value in sorted(state.items()):
            line = Text.assemble((f"{tier:<8} ", "bold"), f"{key} = {to_json(value)}")
            line.truncate(_FOLDED, overflow="ellipsis")
            console.print(line)
    if page.positions and page.positions[0] is not None and session.event_count > len(page.events):
        console.print(Text(f"older: --before {page.positions[0]}", "dim"))
    for event in page.events:
        _print_event(console, event)


@click.command(
    "tail",
    short_help="Follow a session.",
    help="""Follow a session: print its newest events, and then each event that is appended.

It reads twice a second. It ends at Ctrl-C, or when the session is deleted or expires.""",
)
@click.argument("app_name", metavar="APP")
@click.argument("user_id", metavar="USER")
@click.argument("session_id", metavar="SESSION")
@click.option("--events", "limit", type=click.IntRange(1, 10_000), default=5, show_default=True)
@click.option(
    "--idle",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="End if no event is appended for this long.",
)
@store_options
def tail(
    service: SessionService,
    app_name: str,
    user_id: str,
    session_id: str,
    limit: int,
    idle: float | None,
    as_json: bool,
) -> None:
    """Run the command; the help text is above."""
    key = SessionKey(app_name, user_id, session_id)
    console = _console()
    page = service.get_events(key, newest=True, limit=limit)
    heard = time.monotonic()
    while True:
        for event in page.events:
            print_json(event) if as_json else _print_event(console, event)
        if page.events:
            heard = time.monotonic()
        elif idle is not None and time.monotonic() - heard >= idle:
            return
        if len(page.events) < _EVENTS_PER_PAGE:
            time.sleep(_POLL_S)
        try:
            page = service.get_events(key, after=page.last or 0, limit=_EVENTS_PER_PAGE)
        except SessionNotFound:
            click.echo("The session was deleted, or it expired.", err=True)
            return


@click.command(
    "search",
    short_help="Search the newest events for text.",
    help="""Search for TEXT in a session, in a user's sessions or in those of an application.

It looks at the newest events of the sessions that were updated last, and says at the end what it
did not look at. Case does not matter.""",
)
@click.argument("text", metavar="TEXT")
@click.argument("app_name", metavar="APP")
@click.argument("user_id", metavar="[USER", required=False)
@click.argument("session_id", metavar="[SESSION]]", required=False)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option(
    "--sessions", "num_sessions", type=click.IntRange(1, 10_000), default=100, show_default=True
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
    num_sessions: int,
    num_events: int,
    as_json: bool,
) -> None:
    """Run the command; the help text is above."""
    console = _console()
    if user_id is not None and session_id is not None:
        keys, num_left_out = [SessionKey(app_name, user_id, session_id)], 0
    else:
        keys, num_left_out = _newest_sessions(service, app_name, user_id, num_sessions)
    wanted = text.casefold()
    num_found = num_cut = 0
    for key in keys:
        try:
            page = service.get_events(key, newest=True, limit=num_events)
        except SessionNotFound:
            if session_id is not None:
                raise
            continue
        num_cut += len(page.events) == num_events
        for position, event in zip(reversed(page.positions), reversed(page.events), strict=True):
            if wanted not in to_json(event.content).casefold():
                continue
            num_found += 1
            if as_json:
                print_json({**msgspec.structs.asdict(key), "position": position, "event": event})
            else:
                place = f"{key.user_id} / {key.session_id} / {position} "
                snippet = around(to_json(event.content), wanted)
                console.print(Text.assemble((place, "dim"), (event.author, "bold"), " ", snippet))
            if num_found == limit:
                click.echo(f"Stopped after {counted(limit, 'event')} (--limit).", err=True)
                return
    found = counted(num_found, "event")
    click.echo(f"Found {found} in {counted(len(keys), 'session')}.", err=True)
    if num_left_out:
        click.echo(
            f"Not searched: {counted(num_left_out, 'older session')} (--sessions).", err=True
        )
    if num_cut:
        click.echo(
            f"Not searched: older events of {counted(num_cut, 'session')} (--events).", err=True
        )


def _newest_sessions(
    service: SessionService, app_name: str, user_id: str | None, limit: int
) -> tuple[list[SessionKey], int]:
    """The sessions that were updated last, and how many others there are."""
    users = {user_id} if user_id is not None else set()
    if user_id is None:
        users = {key.user_id for key in scan(service, app_name) if key.role == "sessions"}
    found, num_left_out = [], 0
    for user in users:
        for number, place in enumerate(places(service, app_name, user)):
            if number < limit:
                found.append((place.updated_us, user, place.session_id))
            else:
                num_left_out += 1
        found = sorted(found, reverse=True)
        num_left_out += max(len(found) - limit, 0)
        del found[limit:]
    return [SessionKey(app_name, user, name) for _, user, name in found], num_left_out


def get_session(service: SessionService, app_name: str, user_id: str, session_id: str) -> Session:
    """A session without its events. Raises SessionNotFound if it does not exist."""
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


def _print_event(console: Console, event: Event) -> None:
    at = event.timestamp.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    style = "bold green" if event.author == "user" else "bold cyan"
    head = Text.assemble((at, "dim"), " ", (event.author, style))
    pieces = pieces_of(event.content)
    if not pieces:
        console.print(head)
    for kind, text in pieces:
        line = Text.assemble(head, " ")
        if kind == "text":
            line.append(text)
        elif kind == "image":
            line.append(show_image(text), "dim")
        else:
            line.append({"call": "-> ", "result": "<- ", "data": ""}[kind] + text, "dim")
            line.truncate(_FOLDED, overflow="ellipsis")
        console.print(line)


def _console() -> Console:
    return Console(highlight=False, markup=False, soft_wrap=True)
