"""Times and events that tests use."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from sessionstore import Event, Session

NOON = datetime(2024, 5, 15, 12, 0, 0, 123456, tzinfo=UTC)
LONG_AGO = datetime(2001, 2, 3, tzinfo=UTC)


def make_event(name: str | int, **fields: Any) -> Event:
    """An event whose content and id come from its name: the same event every time.

    Ids of numbers sort as the numbers do.
    """
    event_id = f"{name:04}" if isinstance(name, int) else name
    return Event("x", name, id=event_id, timestamp=LONG_AGO, **fields)


def numbered(*numbers: int, **fields: Any) -> list[Event]:
    """Events whose content is a number, with new ids."""
    return [Event("user", number, **fields) for number in numbers]


def ids_of(found: Session | Iterable[Event]) -> list[str]:
    """The ids of events, in order."""
    return [event.id for event in (found.events if isinstance(found, Session) else found)]


def numbers_of(found: Session | Iterable[Event]) -> list[Any]:
    """The contents of events, in order."""
    return [event.content for event in (found.events if isinstance(found, Session) else found)]
