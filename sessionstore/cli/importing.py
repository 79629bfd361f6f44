"""The command `import`: sessions from a file, or from the store of another library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import click

from ..instances import url_without_credentials
from ..sync import SessionService
from .adk_database import read_adk_database
from .archive import Archived, read_line
from .langgraph_sqlite import APP, USER, import_langgraph
from .openai_sqlite import read_openai_sqlite
from .opened import opened_service, print_json, store_options
from .progress import watched
from .store import CannotStart, Number
from .transfer import Counts, described, write
from .trpc_go import read_trpc_go


@click.command(
    "import",
    short_help="Read sessions from a file of JSON lines, or from another library's store.",
    help="""Read sessions from a file that `export` wrote, or from the store of another library.

A session that is already stored is not changed, so an import can be repeated after an interruption.
With --replace it is replaced if SOURCE has a later one.
--verify reads everything back and compares it with SOURCE. --json prints a line for each session,
with the number of its events and a checksum of what SOURCE has.

--from trpc-go: SOURCE is the URL of the Redis of trpc-agent-go; both of its layouts are read.

--from adk: SOURCE is the SQLite file of a session service of Google ADK, or the URL of its
DatabaseSessionService, as you pass it to ADK. AdkSessionService reads the sessions. The extra `adk`
is needed for the URL of another database, together with its driver, and for a SQLite file with
pickled events (ADK before 1.22).

--from openai-agents: SOURCE is the file of SQLiteSession of the OpenAI Agents SDK. Its sessions get
--app and --user, and StoredSession reads them.

--from langgraph: SOURCE is the file of SqliteSaver or AsyncSqliteSaver. StoredCheckpointSaver reads
the threads, as sessions of --app (langgraph) and --user (threads). All checkpoints and pending
writes of all namespaces are stored. The saver applies keep_checkpoints when it writes next.
Serialized values are copied unchanged, so the classes of the application are not needed. The extra
`langgraph` is needed.

Exit status: 0 = every session of SOURCE is stored; 1 = stored sessions differ from SOURCE.""",
)
@click.argument("source", metavar="SOURCE")
@click.option(
    "--from",
    "kind",
    type=click.Choice(["export", "trpc-go", "adk", "openai-agents", "langgraph"]),
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
@click.option(
    "--replace",
    is_flag=True,
    help="Replace a stored session if SOURCE has one that was written later, and set state that"
    " is stored already.",
)
@click.option("--ttl", type=Number(min=1), metavar="SECONDS", help="TTL of the sessions.")
@click.option(
    "--codec",
    type=click.Choice(["json", "msgpack"]),
    default="json",
    show_default=True,
    help="How values are written. What JSON cannot hold is written as MessagePack.",
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
    replace: bool,
    as_json: bool,
) -> None:
    """Run the command; the help text is above."""
    shown = url_without_credentials(source) if "://" in source else source
    if kind == "export" and "://" in source:
        raise click.UsageError(f"{shown} is a URL. Pass --from, or use `sessionstore copy`.")
    if kind == "trpc-go" and "://" not in source:
        raise click.UsageError(f"--from trpc-go needs a URL such as redis://old:6379, not {shown}.")
    click.echo(f"Importing {shown} ...", err=True)
    counts = Counts()
    if kind == "langgraph":
        threads = import_langgraph(
            service, source, app_name or APP, user_id or USER, verifies=verify
        )
        for imported in watched(threads, "threads", lines=True):
            counts.add(imported.status)
            if as_json:
                print_json(imported)
    else:
        with ExitStack() as stack:
            found = _read(stack, kind, source, source_key_prefix, app_name, user_id)
            for archived in watched(found, "lines", lines=True):
                try:
                    status = write(service, archived, counts, replaces=replace, verifies=verify)
                except ValueError as error:
                    key = " / ".join((archived.app_name, archived.user_id, archived.session_id))
                    raise CannotStart(f"{key}: {error}") from error
                if as_json and archived.session_id:
                    print_json(described(archived, status))
    click.echo(counts.report() + ".", err=True)
    context.exit(1 if counts.conflicts else 0)


def _read(
    stack: ExitStack,
    kind: str,
    source: str,
    source_key_prefix: str,
    app_name: str | None,
    user_id: str | None,
) -> Iterator[Archived]:
    """The sessions and the state in SOURCE."""
    if kind == "trpc-go":
        return _read_trpc_go(source, source_key_prefix)
    if kind == "adk":
        return read_adk_database(source)
    if kind == "openai-agents":
        if app_name is None or user_id is None:
            raise click.UsageError("--from openai-agents needs --app and --user.")
        return read_openai_sqlite(source, app_name, user_id)
    return _lines(source, stack)


def _read_trpc_go(url: str, key_prefix: str) -> Iterator[Archived]:
    """The sessions of another store. An error of it names its URL, not that of --url."""
    with opened_service(url) as service:
        yield from read_trpc_go(service, key_prefix)


def _lines(path: str, stack: ExitStack) -> Iterator[Archived]:
    """The lines of a file. Raises CannotStart, which names the file, the line and the problem."""
    number = 0
    try:
        for line in stack.enter_context(click.open_file(path, "rb")):
            number += 1
            if line.strip():
                yield read_line(line)
    except OSError as error:
        raise CannotStart(f"{path}: {error.strerror}") from error
    except ValueError as error:  # msgspec's errors are ValueErrors
        raise CannotStart(f"{path}:{number}: {error}") from error
