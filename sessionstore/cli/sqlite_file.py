"""Opens a SQLite file of another library, for reading."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from .store import CannotStart


@contextmanager
def sqlite_file(path: str) -> Iterator[sqlite3.Connection]:
    """A SQLite file, read-only.

    Raises:
        CannotStart: there is no such file, or what is read in the context is not as expected.
    """
    check_sqlite_file(path)
    uri = f"{Path(path).resolve().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as database:
            yield database
    except (sqlite3.Error, ValueError, LookupError, TypeError) as error:
        raise CannotStart(f"{path}: {error}") from error


def check_sqlite_file(path: str) -> None:
    """CannotStart if there is no such file."""
    if not Path(path).is_file():
        raise CannotStart(f"{path}: there is no such file")


def columns_of(database: sqlite3.Connection, table: str) -> set[str]:
    """The names of a table's columns; empty if there is no such table."""
    return {name for _, name, *_ in database.execute(f"PRAGMA table_info({table})")}


def moment_of(stored: str | float) -> datetime:
    """A time that is stored as text or as seconds since 1970, in UTC."""
    if isinstance(stored, (int, float)):
        return datetime.fromtimestamp(stored, UTC)
    moment = datetime.fromisoformat(stored)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
