"""Shows the progress of a command on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

T = TypeVar("T")

_ITEMS_PER_UPDATE = 100
_LINE_EVERY_S = 10.0


def watched(items: Iterable[T], noun: str, *, lines: bool = False) -> Iterator[T]:
    """The items. Their number so far is shown on stderr.

    A terminal shows it all the time. Without a terminal, `lines` prints a line every ten seconds.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _logged(items, noun) if lines else items
        return
    columns = SpinnerColumn(), TextColumn("{task.completed:,} " + noun), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(noun, total=None)
        for number, item in enumerate(items, 1):
            if number % _ITEMS_PER_UPDATE == 0 or lines:
                progress.update(task, completed=number)
            yield item


def _logged(items: Iterable[T], noun: str) -> Iterator[T]:
    due = time.monotonic() + _LINE_EVERY_S
    for number, item in enumerate(items, 1):
        yield item
        if time.monotonic() >= due:
            click.echo(f"{number:,} {noun} ...", err=True)
            due = time.monotonic() + _LINE_EVERY_S
