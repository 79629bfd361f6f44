"""The command `tail`: follow a session, or the sessions of a user."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import click
import msgspec
from rich.text import Text

from ..calls import Flow
from ..drive import drive
from ..errors import BackendError, BackendRejected, EventsMissing, SessionNotFound
from ..model import Event, Session, SessionKey, WatchChange, Watched, WatchEnd, WatchEntry
from ..replies import Place
from ..sync import SessionService
from ..times import from_us
from .keyspace import ask
from .opened import TextConsole, counted, print_json, show_time, store_options
from .show import get_session, print_event
from .store import Number
from .transcript import pieces_of

_POLL_S = 1.0
_RETRY_S = 1.0
_SNIPPET = 80  # characters of the newest event of a session


@click.command(
    "tail",
    short_help="Follow a session, or the sessions of a user.",
    help="""Follow a session: print its newest events, and then each event that is appended. It also
says when events are removed or replaced, and when the session is deleted or created again. Answers
appear when they are complete. It looks for new events up to 20 times a second while there are
some, and otherwise once a second.

Without SESSION follow a user: print the sessions that were updated last, and then each session when
it is updated, with its newest event. It reads once a second, at most --sessions sessions each time,
and prints how many others were updated.

It ends at Ctrl-C, with --idle, or when the session is deleted. If the server cannot be reached, it
tries again. It refreshes no TTL. The only change is a note in the header of a followed session, so
that changes of old events are recorded.""",
)
@click.argument("app_name", metavar="APP")
@click.argument("user_id", metavar="USER")
@click.argument("session_id", metavar="[SESSION]", required=False)
@click.option(
    "--events",
    "num_events",
    type=click.IntRange(1, 10_000),
    default=5,
    show_default=True,
    help="How many of the newest events to print first.",
)
@click.option(
    "--sessions",
    "num_sessions",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="Sessions of the user to read at a time.",
)
@click.option(
    "--idle",
    type=Number(min=0, min_open=True),
    metavar="SECONDS",
    help="End if nothing happens for this long.",
)
@store_options
def tail(
    service: SessionService,
    app_name: str,
    user_id: str,
    session_id: str | None,
    num_events: int,
    num_sessions: int,
    idle: float | None,
    as_json: bool,
) -> None:
    """Run the command; the help text is above."""
    console = TextConsole()
    with suppress(KeyboardInterrupt):
        if session_id is None:
            for update in _updates(service, app_name, user_id, num_sessions, idle):
                print_json(update) if as_json else _print_update(console, update)
            return
        key = SessionKey(app_name, user_id, session_id)
        for item in _items(service, key, num_events, idle):
            print_json(_as_json(item)) if as_json else _print_item(console, item)


def _items(
    service: SessionService, key: SessionKey, num_events: int, idle: float | None
) -> Iterator[Watched]:
    """What happens in a session, and in sessions that are created again with its id."""
    session = get_session(service, key.app_name, key.user_id, key.session_id)
    after: str | int | None = None
    is_first = True
    while True:
        if is_first:
            page = service.get_events(session, newest=True, limit=num_events)
            for event, position in zip(page.events, page.positions, strict=True):
                yield WatchEntry(event, position, "")
            after, is_first = page.last, False
        try:
            end = None
            for item in service.watch_events(session, after=after, idle_timeout=idle):
                if isinstance(item, WatchEnd):
                    end = item
                else:
                    after = item.cursor
                yield item
        except EventsMissing:
            click.echo("Events were trimmed before they could be printed.", err=True)
            is_first = True
            continue
        except BackendRejected:
            raise
        except BackendError as error:
            click.echo(f"{error}; trying again", err=True)
            time.sleep(_RETRY_S)
            continue
        if end is None or end.reason != "recreated":
            return
        try:
            session = get_session(service, key.app_name, key.user_id, key.session_id)
        except SessionNotFound:
            return
        after = None


def _as_json(item: Watched) -> dict[str, Any]:
    names = {WatchEntry: "event", WatchChange: "change", WatchEnd: "end"}
    fields = msgspec.structs.asdict(item)
    fields.pop("cursor", None)
    return {"type": names[type(item)], **fields}


def _print_item(console: TextConsole, item: Watched) -> None:
    if isinstance(item, WatchEntry):
        print_event(console, item.event)
    elif isinstance(item, WatchChange):
        first, last = show_time(from_us(max(item.first, 0))), show_time(from_us(item.last))
        what = "replaced by:" if item.events else "removed"
        console.show(Text(f"-- Events from {first} to {last} were {what}", "yellow"))
        for event in item.events:
            print_event(console, event)
    else:
        reasons = {
            "deleted": "The session was deleted, or it expired.",
            "recreated": "The session was deleted and created again:",
            "idle": "",
        }
        if reasons[item.reason]:
            click.echo(reasons[item.reason], err=True)


def _updates(
    service: SessionService, app_name: str, user_id: str, limit: int, idle: float | None
) -> Iterator[dict[str, Any]]:
    """The sessions that were updated last, oldest first, and then each that is updated."""
    newest_us: int | None = None
    heard = time.monotonic()
    while True:
        begin = time.monotonic()
        try:
            updated, num_others = _updated_since(service, app_name, user_id, newest_us, limit)
            if newest_us is None and not updated:
                newest_us = 0
                click.echo("The user has no sessions yet.", err=True)
            for place in updated:
                newest_us = place.updated_us
                heard = time.monotonic()
                session = service.get_session(
                    app_name=app_name,
                    user_id=user_id,
                    session_id=place.session_id,
                    event_num=1,
                )
                if session is not None:
                    yield _described(session)
            if num_others:
                others = counted(num_others, "other session")
                verb = "was" if num_others == 1 else "were"
                click.echo(f"{others} {verb} updated meanwhile (--sessions).", err=True)
        except BackendRejected:
            raise
        except BackendError as error:
            click.echo(f"{error}; trying again", err=True)
        if idle is not None and time.monotonic() - heard >= idle:
            return
        time.sleep(max(begin + _POLL_S - time.monotonic(), 0))


def _updated_since(
    service: SessionService, app_name: str, user_id: str, newest_us: int | None, limit: int
) -> tuple[list[Place], int]:
    """The newest places after a time, oldest first, and how many others there are."""

    def read() -> Flow[list[Place]]:
        found: list[Place] = yield service._ops.list_places(app_name, user_id, limit)
        return found

    newest = drive(read(), service._executor)[::-1]
    if newest_us is None:
        return newest, 0
    updated = [place for place in newest if place.updated_us > newest_us]
    if len(updated) < limit:
        return updated, 0
    index = service._ops.options.keys.user(app_name, user_id).session_index
    [count] = ask(service, ("ZCOUNT", index, f"({newest_us}", "+inf"))
    return updated, max(count - limit, 0)


def _described(session: Session) -> dict[str, Any]:
    return {
        "session": session.id,
        "updated": session.updated_at,
        "events": session.event_count,
        "newest": session.events[-1] if session.events else None,
    }


def _print_update(console: TextConsole, update: dict[str, Any]) -> None:
    newest: Event | None = update["newest"]
    line = Text.assemble(
        (show_time(update["updated"]), "dim"),
        " ",
        (update["session"], "bold"),
        f" {counted(update['events'], 'event')}",
    )
    if newest is not None:
        text = " ".join(piece.text for piece in pieces_of(newest.content)).replace("\n", " ")
        said = Text.assemble("  ", (newest.author, "bold"), " ", text)
        said.truncate(_SNIPPET, overflow="ellipsis")
        line.append_text(said)
    console.show(line)
