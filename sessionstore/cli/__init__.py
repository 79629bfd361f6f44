"""The command line. It needs the extra `cli`; the library works without it.

Each command is a click command of a module or package here, which `command_line` imports.
`store` opens the store for `fleet` and `size`, `opened` for the commands on existing data.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click


def main() -> None:
    """Run the command `sessionstore`. Exit with status 2 if the extra `cli` is not installed."""
    try:
        command_line()(prog_name="sessionstore")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("click", "rich"):
            raise
        print("The command needs the extra `cli`: pip install 'sessionstore[cli]'", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # such as a full disk, where stdout is a file
        print(f"Error: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)


_COMMANDS = {
    "ls": "ls:ls",
    "show": "show:show",
    "tail": "tail:tail",
    "search": "show:search",
    "export": "export:export",
    "import": "importing:import_sessions",
    "copy": "export:copy",
    "erase": "erase:erase",
    "rekey": "rekey:rekey",
    "new-key": "rekey:new_key",
    "doctor": "doctor:doctor",
    "stats": "stats:stats",
    "web": "web:web",
    "size": "sizing:size",
    "train-dictionary": "training:train_dictionary",
    "fleet": "fleet:fleet",
}
"""Module and name of each command. Only the one that runs is imported, which saves a tenth of a
second."""


def command_line() -> click.Group:
    """The command `sessionstore` with all its subcommands."""
    import click

    class Commands(click.Group):
        def list_commands(self, _: click.Context) -> list[str]:
            return list(_COMMANDS)

        def get_command(self, _: click.Context, name: str) -> click.Command | None:
            if name not in _COMMANDS:
                return None
            module, attribute = _COMMANDS[name].split(":")
            command: click.Command = getattr(import_module(f".{module}", __name__), attribute)
            return command

    group = Commands(
        "sessionstore",
        help="Session storage for AI agents on Redis and Valkey.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    return click.version_option(package_name="sessionstore")(group)
