"""Reads the session services of Google ADK that use a database, for `import --from adk`.

A SQLite file with JSON events is read without ADK. Other databases, and pickled events (releases
before 1.22), are read with ADK's own models.
"""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from ..adapters.json_events import without_surrogates
from ..adapters.packing import pack
from ..model import Event
from ..times import to_us
from .archive import Archived, archive_events, archive_state
from .sqlite_file import columns_of, moment_of, sqlite_file
from .store import CannotStart

_sqlite_url = re.compile(r"sqlite(?:\+\w+)?:///(.+?)(?:\?.*)?$").match

_APP_STATES = "SELECT app_name, state FROM app_states ORDER BY app_name"
_USER_STATES = "SELECT app_name, user_id, state FROM user_states ORDER BY app_name, user_id"
_SESSIONS = (
    "SELECT app_name, user_id, id, state, create_time, update_time FROM sessions"
    " ORDER BY app_name, user_id, id"
)
_EVENTS = (
    "SELECT id, invocation_id, timestamp, event_data FROM events"
    " WHERE app_name = ? AND user_id = ? AND session_id = ? ORDER BY timestamp, id"
)


def read_adk_database(source: str) -> Iterator[Archived]:
    """State of applications and users, and all sessions, as `AdkSessionService` keeps them.

    Args:
        source: the path of a SQLite file, or a URL of SQLAlchemy.

    Raises:
        CannotStart: it cannot be read, or was not written by ADK.
    """
    found = _sqlite_url(source)
    path = found[1] if found else source
    if found is None and "://" in source:
        yield from _read_with_adk(source)
        return
    with sqlite_file(path) as database:
        columns = columns_of(database, "events")
        if not {"event_data", "actions"} & columns:
            raise CannotStart(f"{path}: this is not a database of ADK's session services")
        if "event_data" in columns:
            yield from _read_file(database)
            return
    yield from _read_with_adk(f"sqlite+aiosqlite:///{path}")


def _read_file(database: sqlite3.Connection) -> Iterator[Archived]:
    for app_name, state in database.execute(_APP_STATES):
        yield _app_line(app_name, _json(state))
    for app_name, user_id, state in database.execute(_USER_STATES):
        yield _user_line(app_name, user_id, _json(state))
    for *ids, state, created, updated in database.execute(_SESSIONS):
        events = [
            {"timestamp": moment_of(at).timestamp(), **_json(data)}
            | {"id": event_id, "invocation_id": invocation_id}
            for event_id, invocation_id, at, data in database.execute(_EVENTS, ids)
        ]
        yield _session_line(ids, _json(state), moment_of(created), moment_of(updated), events)


def _read_with_adk(url: str) -> Iterator[Archived]:
    try:
        from ..adapters.adk_rows import read_rows
    except ImportError as error:
        raise CannotStart(str(error)) from error

    async def read_next() -> Any:
        return await anext(rows, None)

    rows = read_rows(url)
    with asyncio.Runner() as runner:
        while (row := runner.run(read_next())) is not None:
            match row:
                case [app_name, state]:
                    yield _app_line(app_name, state)
                case [app_name, user_id, state]:
                    yield _user_line(app_name, user_id, state)
                case [app_name, user_id, name, state, created, updated, events]:
                    ids = [app_name, user_id, name]
                    yield _session_line(ids, state, created, updated, events)


def _app_line(app_name: str, state: Mapping[str, Any]) -> Archived:
    plain, encoded = archive_state(_packed(state))
    return Archived(app_name=app_name, app_state=plain, encoded_state=encoded)


def _user_line(app_name: str, user_id: str, state: Mapping[str, Any]) -> Archived:
    plain, encoded = archive_state(_packed(state))
    return Archived(app_name=app_name, user_id=user_id, user_state=plain, encoded_state=encoded)


def _session_line(
    ids: Sequence[str],
    state: Mapping[str, Any],
    created: datetime,
    updated: datetime,
    found: Iterable[dict[str, Any]],
) -> Archived:
    events, positions = [], [0]
    for data in found:
        event = _event(data)
        events.append(event)
        positions.append(max(to_us(event.timestamp), positions[-1] + 1))
    plain, encoded = archive_state(_packed(state))
    return Archived(
        app_name=ids[0],
        user_id=ids[1],
        session_id=ids[2],
        created_at=created,
        updated_at=max(updated, created),
        state=plain,
        encoded_state=encoded,
        messages=archive_events(events, positions[1:]),
    )


def _event(data: dict[str, Any]) -> Event:
    """An event as `AdkSessionService` stores it: the state delta is not a part of its JSON."""
    actions = dict(data.get("actions") or {})
    delta = actions.pop("state_delta", None) or {}
    return Event(
        data.get("author") or "unknown",
        {**data, "actions": actions},
        id=data["id"],
        timestamp=datetime.fromtimestamp(data["timestamp"], UTC),
        invocation_id=data["invocation_id"],
        branch=data.get("branch") or "",
        state_delta=_packed(delta),
    )


def _packed(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: pack(value) for key, value in state.items()}


def _json(text: str) -> Any:
    """A value of JSON, as the adapter stores it: without NaN and halves of surrogate pairs."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return without_surrogates(json.loads(text, parse_constant=lambda _: None))
