"""The commands `export`, `import` and `copy`: sessions move between stores, whole and unchanged."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import click
import msgspec

from ..errors import SessionNotFound
from ..model import SessionKey
from ..sync import SessionService
from ..times import to_us
from .archive import (
    Archived,
    archive_events,
    archive_state,
    archive_summary,
    read_line,
    write_line,
)
from .keyspace import places, scan
from .openai_sqlite import read_openai_sqlite
from .opened import (
    counted,
    dictionary_option,
    encryption_options,
    opened_service,
    print_json,
    store_options,
)
from .progress import watched
from .store import CannotStart
from .trpc_go import read_trpc_go

_EVENTS_PER_PAGE = 1000
_READS = 100  # of a session that others write to


class Counts(msgspec.Struct):
    """What an import or a copy did."""

    written: int = 0
    unchanged: int = 0
    replaced: int = 0
    conflicts: int = 0

    def report(self) -> str:
        """One line for people."""
        text = f"{counted(self.written, 'session')} written, {self.unchanged:,} already stored"
        if self.replaced:
            text += f", {self.replaced:,} replaced with a later version"
        if self.conflicts:
            text += f", {self.conflicts:,} differ from the stored ones"
        return text


@click.command(
    "export",
    short_help="Write sessions to a file of JSON lines.",
    help="""Write sessions to a file of JSON lines: events, positions, state of all tiers, times.

Memory does not depend on the number of sessions. Nothing is changed, and no TTL is refreshed.""",
)
@click.argument("app_name", metavar="[APP", required=False)
@click.argument("user_id", metavar="[USER", required=False)
@click.argument("session_id", metavar="[SESSION]]]", required=False)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    default="-",
    help="Write to this file instead of stdout.",
)
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"]),
    help="Only sessions that were written since this time, UTC.",
)
@store_options
def export(
    service: SessionService,
    app_name: str | None,
    user_id: str | None,
    session_id: str | None,
    output: Path,
    since: datetime | None,
    as_json: bool,  # noqa: ARG001  # the output is JSON lines anyway
) -> None:
    """Run the command; the help text is above."""
    moment = None if since is None else since.replace(tzinfo=UTC)
    num_sessions = 0
    to_stdout = str(output) == "-"
    file: BinaryIO = sys.stdout.buffer if to_stdout else output.open("wb")
    try:
        for archived in read_store(service, app_name, user_id, session_id, moment):
            file.write(write_line(archived) + b"\n")
            num_sessions += bool(archived.session_id)
        file.flush()
    finally:
        if not to_stdout:
            file.close()
    click.echo(f"{counted(num_sessions, 'session')} exported.", err=True)


@click.command(
    "import",
    short_help="Read sessions from a file of JSON lines, or from another library's store.",
    help="""Read sessions from a file that `export` wrote, or from the store of another library.

A session that is already stored is not changed, so an import can be repeated after an interruption.
--verify reads everything back and compares it with SOURCE. --json prints a line for each session,
with the number of its events and a checksum of what SOURCE has.

--from trpc-go: SOURCE is the URL of the Redis of trpc-agent-go; both of its layouts are read.

--from openai-agents: SOURCE is the file of SQLiteSession of the OpenAI Agents SDK. Its sessions get
--app and --user, and StoredSession reads them.

Exit status: 0 = every session of SOURCE is stored; 1 = stored sessions differ from SOURCE.""",
)
@click.argument("source", metavar="SOURCE")
@click.option(
    "--from",
    "kind",
    type=click.Choice(["export", "trpc-go", "openai-agents"]),
    default="export",
    show_default=True,
    help="What wrote SOURCE.",
)
@click.option(
    "--source-key-prefix", default="", metavar="TEXT", help="The key prefix of trpc-agent-go."
)
@click.option("--app", "app_name", metavar="APP", help="The application of sessions without one.")
@click.option("--user", "user_id", metavar="USER", help="The user of sessions without one.")
@click.option("--verify", is_flag=True, help="Read back and compare.")
@click.option("--ttl", type=click.FloatRange(min=1), metavar="SECONDS", help="TTL of the sessions.")
@click.option(
    "--codec",
    type=click.Choice(["json", "msgpack"]),
    default="json",
    show_default=True,
    help="How values are written. Only msgpack can write nested bytes, times and int keys.",
)
@store_options
@click.pass_context
def import_sessions(
    context: click.Context,
    service: SessionService,
    source: str,
    kind: str,
    source_key_prefix: str,
    app_name: str | None,
    user_id: str | None,
    verify: bool,
    as_json: bool,
) -> None:
    """Run the command; the help text is above."""
    counts = Counts()
    with ExitStack() as stack:
        if kind == "trpc-go":
            found = read_trpc_go(stack.enter_context(opened_service(source)), source_key_prefix)
        elif kind == "openai-agents":
            if app_name is None or user_id is None:
                raise click.UsageError("--from openai-agents needs --app and --user.")
            found = read_openai_sqlite(source, app_name, user_id)
        else:
            found = _lines(source, stack)
        for archived in found:
            try:
                status = write(service, archived, counts, replaces=False, verifies=verify)
            except ValueError as error:
                key = " / ".join((archived.app_name, archived.user_id, archived.session_id))
                raise CannotStart(f"{key}: {error}") from error
            if as_json and archived.session_id:
                print_json(_described(archived, status))
    click.echo(counts.report() + ".", err=True)
    context.exit(1 if counts.conflicts else 0)


def _lines(path: str, stack: ExitStack) -> Iterator[Archived]:
    """The lines of a file. CannotStart names the file, the line and the problem."""
    number = 1
    try:
        for line in stack.enter_context(click.open_file(path, "rb")):
            yield read_line(line)
            number += 1
    except OSError as error:
        raise CannotStart(f"{path}: {error.strerror}") from error
    except ValueError as error:  # msgspec's errors are ValueErrors
        raise CannotStart(f"{path}:{number}: {error}") from error


def _described(archived: Archived, status: str) -> dict[str, Any]:
    return {
        "app": archived.app_name,
        "user": archived.user_id,
        "session": archived.session_id,
        "status": status,
        "events": len(archived.messages),
        "sha256": hashlib.sha256(write_line(archived)).hexdigest(),
    }


@click.command(
    "copy",
    short_help="Copy sessions to another store.",
    help="""Copy sessions from the store of --url to the store at TARGET, while both are in use.

A second run picks up what has changed: it replaces a copied session by its later version. So copy
once while agents write, stop them, and copy again. Nothing else may write to TARGET meanwhile.
TARGET must be another server, or have another --target-key-prefix.

Values are written to TARGET as its options say: --target-dictionary compresses them, or without it
they are not compressed there.""",
)
@click.argument("target", metavar="TARGET")
@click.argument("app_name", metavar="[APP", required=False)
@click.argument("user_id", metavar="[USER]]", required=False)
@click.option(
    "--target-key-prefix", default="", metavar="TEXT", help="The prefix of TARGET's keys."
)
@click.option(
    "--target-partition-by",
    type=click.Choice(["user", "app"]),
    default="user",
    show_default=True,
    help="The option of the services that use TARGET.",
)
@click.option(
    "--target-codec",
    type=click.Choice(["json", "msgpack"]),
    default="json",
    show_default=True,
    help="How values are written. Only msgpack can write nested bytes, times and int keys.",
)
@click.option(
    "--target-ttl",
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="TTL of the sessions in TARGET; without it they do not expire.",
)
@click.option("--target-key-ring", metavar="FILE", help="The keys that encrypt in TARGET.")
@click.option("--target-key-store", metavar="URL", help="The key store of TARGET.")
@dictionary_option("--target-dictionary", "The first one compresses what is written to TARGET.")
@store_options
@click.pass_context
def copy(
    context: click.Context,
    service: SessionService,
    target: str,
    app_name: str | None,
    user_id: str | None,
    target_key_prefix: str,
    target_partition_by: Any,
    target_codec: Any,
    target_ttl: float | None,
    target_key_ring: str | None,
    target_key_store: str | None,
    target_dictionary: tuple[str, ...],
    as_json: bool,  # noqa: ARG001  # there is no output but counts
) -> None:
    """Run the command; the help text is above."""
    if (context.params["url"], context.params["key_prefix"]) == (target, target_key_prefix):
        raise click.UsageError("TARGET is the store of --url. Pass another --target-key-prefix.")
    counts = Counts()
    options = {
        "key_prefix": target_key_prefix,
        "partition_by": target_partition_by,
        "codec": target_codec,
        "session_ttl": target_ttl,
        **encryption_options(target_key_ring, target_key_store),
        "dictionary": target_dictionary,
    }
    with opened_service(target, **options) as to:
        for archived in read_store(service, app_name, user_id):
            write(to, archived, counts, replaces=True, verifies=False)
    click.echo(counts.report() + ".", err=True)


def read_store(
    service: SessionService,
    app_name: str | None = None,
    user_id: str | None = None,
    session_id: str | None = None,
    since: datetime | None = None,
) -> Iterator[Archived]:
    """What a store holds, in the order of names: state of an application, then its users."""
    for app, users in sorted(_users(service, app_name, user_id).items()):
        state, encoded = archive_state(service.get_app_state(app))
        if (state or encoded) and session_id is None:
            yield Archived(app_name=app, app_state=state, encoded_state=encoded)
        for user in watched(sorted(users)):
            state, encoded = archive_state(service.get_user_state(app, user))
            if (state or encoded) and session_id is None:
                yield Archived(app_name=app, user_id=user, user_state=state, encoded_state=encoded)
            names = [session_id] if session_id is not None else _names(service, app, user, since)
            for name in names:
                archived = read_session(service, SessionKey(app, user, name))
                if archived is not None:
                    yield archived


def read_session(service: SessionService, key: SessionKey) -> Archived | None:
    """A session as it is at one time; None if there is none (any more).

    If others write to it each time that it is read, events and state may be of different times.
    """
    ids = msgspec.structs.asdict(key)
    session = service.get_session(**ids, event_num=0)
    number = 0
    while True:
        number += 1
        if session is None:
            return None
        messages: list[msgspec.Raw] = []
        after = None
        try:
            while True:
                page = service.get_events(session, after=after, limit=_EVENTS_PER_PAGE)
                messages += archive_events(page.events, page.positions)
                if len(page.events) < _EVENTS_PER_PAGE:
                    break
                after = page.last
        except SessionNotFound:
            return None
        later = service.get_session(**ids, event_num=0)
        is_last = number >= _READS and len(messages) == session.event_count
        if (later is None or later.version != session.version) and not is_last:
            session = later  # others have written meanwhile
            continue
        own = {
            name: value
            for name, value in session.state.items()
            if not name.startswith(("user:", "app:"))
        }
        state, encoded = archive_state(own)
        return Archived(
            app_name=key.app_name,
            user_id=key.user_id,
            session_id=key.session_id,
            created_at=session.created_at,
            updated_at=session.updated_at,
            event_limit=session.event_limit,
            forked_from=session.forked_from,
            state=state,
            encoded_state=encoded,
            summary=archive_summary(session.summary),
            messages=messages,
        )


def write(
    service: SessionService,
    archived: Archived,
    counts: Counts,
    *,
    replaces: bool,
    verifies: bool,
) -> str:
    """Store a line. Returns what happened to it: one of the fields of Counts.

    Args:
        service: the store.
        archived: the line.
        counts: is updated.
        replaces: a stored session that differs is deleted first; otherwise it stays.
        verifies: read back what was written, and count a difference as a conflict.
    """
    if not archived.session_id:
        _write_tier(service, archived, replaces)
        return "written"
    key = SessionKey(archived.app_name, archived.user_id, archived.session_id)
    status = _write_session(service, key, archived, replaces)
    if verifies and status == "written":
        found = read_session(service, key)
        if found is None or not _is_same(found, archived):
            click.echo(f"{key} was not stored as it is in the source.", err=True)
            status = "conflicts"
    setattr(counts, status, getattr(counts, status) + 1)
    return status


def _write_session(
    service: SessionService, key: SessionKey, archived: Archived, replaces: bool
) -> str:
    stored = read_session(service, key)
    if stored is not None and _is_same(stored, archived):
        return "unchanged"
    if stored is not None and not replaces:
        return "conflicts"
    ids = msgspec.structs.asdict(key)
    if stored is not None:
        service.delete_session(**ids)
    events, positions = archived.events()
    service.restore_session(
        **ids,
        events=events,
        positions=positions,
        state=archived.all_state(),
        created_at=archived.created_at,
        updated_at=archived.updated_at,
        event_limit=archived.event_limit,
        forked_from=archived.forked_from,
        summary=archived.stored_summary(),
    )
    return "written" if stored is None else "replaced"


def _is_same(stored: Archived, wanted: Archived) -> bool:
    """Whether two sessions are equal in all that the wanted one names."""
    stored_events, stored_positions = stored.events()
    events, positions = wanted.events()
    return (
        stored_events == events
        and (positions is None or stored_positions == positions)
        and stored.all_state() == wanted.all_state()
        and wanted.created_at in (None, stored.created_at)
        and wanted.updated_at in (None, stored.updated_at)
        and wanted.stored_summary() == stored.stored_summary()
    )


def _write_tier(service: SessionService, archived: Archived, replaces: bool) -> None:
    """Store state of a user or an application. Without `replaces`, keys that exist stay."""
    state, if_absent = archived.all_state(), not replaces
    if archived.user_id:
        user_id = archived.user_id
        service.update_user_state(archived.app_name, user_id, state, if_absent=if_absent)
    else:
        service.update_app_state(archived.app_name, state, if_absent=if_absent)


def _users(
    service: SessionService, app_name: str | None, user_id: str | None
) -> dict[str, set[str]]:
    if app_name is not None and user_id is not None:
        return {app_name: {user_id}}
    found: dict[str, set[str]] = {}
    for key in scan(service, app_name):
        found.setdefault(key.app_name, set()).update(filter(None, [key.user_id]))
    return found


def _names(
    service: SessionService, app_name: str, user_id: str, since: datetime | None
) -> list[str]:
    """The user's sessions in the order of their names, those that were written since a time."""
    since_us = 0 if since is None else to_us(since)
    found = places(service, app_name, user_id)
    return sorted({place.session_id for place in found if place.updated_us >= since_us})
