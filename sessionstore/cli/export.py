"""The commands `export` and `copy`: sessions leave a store, whole and unchanged."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import click

from ..instances import url_without_credentials
from ..sync import SessionService
from .archive import Archived, write_line
from .opened import (
    counted,
    dictionary_option,
    named_errors,
    opened_service,
    print_json,
    store_options,
)
from .output_file import output_file
from .progress import watched
from .show import get_session
from .store import Number
from .transfer import Counts, described, read_store, write


def _to_moment(_: click.Context, __: click.Parameter, value: str | None) -> datetime | None:
    """A time of ISO 8601, in UTC if it names no zone."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a time such as 2026-01-31T12:00:00.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@click.command(
    "export",
    short_help="Write sessions to a file of JSON lines.",
    help="""Write sessions to JSON lines: events, positions, state of all tiers, summary, times.

Each session is one line, in the order of application, user and session. Memory does not depend on
the number of sessions, only on the size of the largest one. Each line is a consistent snapshot of a
session, even if agents write to it.

To continue later, note the time before an export, and pass it as --since to the next one. `import
--replace` then replaces what has changed. Nothing is changed, and no TTL is refreshed.""",
)
@click.argument("app_name", metavar="[APP", required=False)
@click.argument("user_id", metavar="[USER", required=False)
@click.argument("session_id", metavar="[SESSION]]]", required=False)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    default="-",
    help="Write to this file instead of stdout. A file of this name is replaced at the end.",
)
@click.option(
    "--since",
    metavar="TIME",
    callback=_to_moment,
    help="Only sessions that were written since this time, such as 2026-01-31 or"
    " 2026-01-31T12:00:00.5+02:00. UTC if it names no zone.",
)
@store_options
@click.pass_context
def export(
    context: click.Context,
    service: SessionService,
    app_name: str | None,
    user_id: str | None,
    session_id: str | None,
    output: Path,
    since: datetime | None,
    as_json: bool,  # noqa: ARG001  # the output is JSON lines anyway
) -> None:
    """Run the command; the help text is above."""
    num_sessions, counts = 0, Counts()
    to_stdout = str(output) == "-"
    if not to_stdout:
        click.echo(f"Exporting to {output} ...", err=True)
    with nullcontext(sys.stdout.buffer) if to_stdout else output_file(output) as file:
        found = read_store(service, app_name, user_id, session_id, since, counts=counts)
        # A terminal that shows the lines has no place for their number.
        for archived in found if to_stdout else watched(found, "lines", lines=True):
            file.write(write_line(archived) + b"\n")
            num_sessions += bool(archived.session_id)
        if app_name and user_id and session_id and not num_sessions:
            get_session(service, app_name, user_id, session_id)  # raises SessionNotFound
        file.flush()
    left_out = f", {counts.unreadable:,} could not be read" if counts.unreadable else ""
    click.echo(f"{counted(num_sessions, 'session')} exported{left_out}.", err=True)
    context.exit(1 if counts.unreadable else 0)


@click.command(
    "copy",
    short_help="Copy sessions to another store.",
    help="""Copy sessions from the store of --url to the store at TARGET, while both are in use.

A second run picks up what has changed: it replaces a copied session by its later version. So copy
once while agents write, stop them, and copy again. A session that was written in TARGET since it
was copied is not replaced. A session that is deleted meanwhile stays in TARGET.

TARGET must be another server, or have another --target-key-prefix. Values are written to TARGET as
its options say: --target-dictionary compresses and --target-key-ring encrypts them. Without these
options they are stored as they are.
--json prints a line for each session, with a checksum.

Exit status: 0 = TARGET has every session; 1 = sessions in TARGET were written by others, or damaged
ones were left out.""",
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
    help="How values are written. What JSON cannot hold is written as MessagePack.",
)
@click.option(
    "--target-ttl",
    type=Number(min=1),
    metavar="SECONDS",
    help="TTL of the sessions in TARGET; without it they do not expire.",
)
@dictionary_option("--target-dictionary", "The first one compresses what is written to TARGET.")
@click.option("--target-key-ring", metavar="FILE", help="The keys; the first encrypts in TARGET.")
@click.option("--target-key-store", metavar="URL", help="The key store of TARGET.")
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
    target_dictionary: tuple[str, ...],
    target_key_ring: str | None,
    target_key_store: str | None,
    as_json: bool,
) -> None:
    """Run the command; the help text is above."""
    if _place(context.params["url"]) == _place(target) and (
        context.params["key_prefix"] == target_key_prefix
    ):
        raise click.UsageError("TARGET is the store of --url. Pass another --target-key-prefix.")
    if "://" not in target:
        raise click.UsageError(f"TARGET must be a URL such as redis://new:6379, not {target!r}.")
    click.echo(f"Copying to {url_without_credentials(target)} ...", err=True)
    counts = Counts()
    options = {
        "key_prefix": target_key_prefix,
        "partition_by": target_partition_by,
        "codec": target_codec,
        "session_ttl": target_ttl,
        "dictionary": target_dictionary,
        "key_ring": target_key_ring,
        "key_store": target_key_store,
    }
    with opened_service(target, **options) as to:
        to.ping()  # better to fail now than after the first session was read
        found = _read(service, context.params["url"], app_name, user_id, counts)
        for archived in watched(found, "lines", lines=True):
            status = write(to, archived, counts, replaces=True, verifies=False)
            if as_json and archived.session_id:
                print_json(described(archived, status))
    click.echo(counts.report() + ".", err=True)
    context.exit(1 if counts.conflicts or counts.unreadable else 0)


def _place(url: str) -> tuple[str, str]:
    """The servers and the database of a URL, which has several ways to name them."""
    try:
        parts = urlsplit(url)
    except ValueError:  # the service says that it is not valid
        return url, ""
    place = parts.netloc.rpartition("@")[2].lower().replace("localhost", "127.0.0.1")
    if parts.scheme == "unix":
        place, path = parts.path, ""
    else:
        place, path = place if ":" in place else f"{place}:6379", parts.path.strip("/")
    return place, parse_qs(parts.query).get("db", [path or "0"])[0]


def _read(
    service: SessionService, url: str, app_name: str | None, user_id: str | None, counts: Counts
) -> Iterator[Archived]:
    """What the store of --url holds. An error names this store, not TARGET."""
    with named_errors(url):
        yield from read_store(service, app_name, user_id, counts=counts)
