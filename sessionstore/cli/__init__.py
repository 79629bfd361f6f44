"""The command line. It needs the extra `cli`; the library works without it.

Each command is a module or package here with one click command, which `command_line` collects.
`store` opens the store of a fleet, `opened` that of the commands that look at existing data.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click


def main() -> None:
    """Run the command `sessionstore`. Exit with status 2 if the extra `cli` is not installed."""
    try:
        command = command_line()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("click", "rich"):
            raise
        print("The command needs the extra `cli`: pip install 'sessionstore[cli]'", file=sys.stderr)
        sys.exit(2)
    command(prog_name="sessionstore")


def command_line() -> click.Group:
    """The command `sessionstore` with all its subcommands."""
    import click

    from .doctor import doctor
    from .erase import erase
    from .export import copy, export
    from .fleet import fleet
    from .importing import import_sessions
    from .ls import ls
    from .rekey import new_key, rekey
    from .show import search, show
    from .sizing import size
    from .stats import stats
    from .tail import tail
    from .training import train_dictionary
    from .web import web

    group = click.Group(
        "sessionstore",
        commands=[
            ls,
            show,
            tail,
            search,
            export,
            import_sessions,
            copy,
            erase,
            rekey,
            new_key,
            doctor,
            stats,
            web,
            size,
            train_dictionary,
            fleet,
        ],
        help="Session storage for AI agents on Redis and Valkey.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    return click.version_option(package_name="sessionstore")(group)
