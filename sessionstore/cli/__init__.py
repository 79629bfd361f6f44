"""The command line. It needs the extra `cli`; the library works without it."""

from __future__ import annotations

import gc
import sys

_EXTRA_PACKAGES = ("click", "rich")


def main() -> None:
    """Runs the command `sessionstore`; exits with status 2 when the extra `cli` is missing.

    Raises:
        SystemExit: always, with the status of the command.
    """
    try:
        from sessionstore.cli.commands import command_line
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA_PACKAGES:
            raise
        print("The command line needs an extra: pip install 'sessionstore[cli]'", file=sys.stderr)
        sys.exit(2)
    # Events and sessions go by reference count. With its default threshold the cycle collector
    # takes a third of the processor time of 2,000 agents, and shows in their latencies.
    gc.set_threshold(50_000, 20, 20)
    command_line(prog_name="sessionstore")
