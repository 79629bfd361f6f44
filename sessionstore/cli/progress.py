"""Progress of long commands, on stderr if it is a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


def watched(users: Iterable[str]) -> Iterator[str]:
    """The users, with their number on stderr if it is a terminal."""
    console = Console(stderr=True)
    found = list(users)
    with Progress(
        TextColumn("users"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        yield from progress.track(found)
