"""Reads SQLiteSession of the OpenAI Agents SDK, for `import --from openai-agents`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import msgspec

from ..model import Event
from .archive import Archived, archive_events
from .sqlite_file import columns_of, moment_of, sqlite_file
from .store import CannotStart

_SESSIONS = "SELECT session_id, created_at, updated_at FROM agent_sessions ORDER BY session_id"
_ITEMS = "SELECT id, message_data, created_at FROM agent_messages WHERE session_id = ? ORDER BY id"


def read_openai_sqlite(path: str, app_name: str, user_id: str) -> Iterator[Archived]:
    """All sessions of a file, as `StoredSession` keeps them, for one user of an application.

    Raises:
        CannotStart: the file cannot be read, or is not of this library.
    """
    with sqlite_file(path) as database:
        if not columns_of(database, "agent_sessions"):
            raise CannotStart(f"{path}: this is not a database of the SDK's SQLiteSession")
        for session_id, created, updated in database.execute(_SESSIONS).fetchall():
            rows = database.execute(_ITEMS, (session_id,)).fetchall()
            yield _session(app_name, user_id, session_id, created, updated, rows)


def _session(
    app_name: str, user_id: str, session_id: str, created: str, updated: str, rows: list[Any]
) -> Archived:
    events, positions = [], [0]
    for row_id, data, moment in rows:
        item = json.loads(data)
        at = moment_of(moment)
        # As StoredSession does. The id is not random, so that an import can be repeated.
        author = next((item[key] for key in ("role", "type") if item.get(key)), "item")
        try:
            content = msgspec.json.decode(data)
        except msgspec.DecodeError:  # Python's JSON: a NaN, or half of a surrogate pair
            content = data
        seed = f"{session_id}\0{row_id}".encode()
        event_id = hashlib.blake2b(seed, digest_size=16).hexdigest()
        events.append(Event(author, content, id=event_id, timestamp=at))
        positions.append(max(round(at.timestamp() * 1_000_000), positions[-1] + 1))
    return Archived(
        app_name=app_name,
        user_id=user_id,
        session_id=session_id,
        created_at=moment_of(created),
        updated_at=max(
            [moment_of(updated), moment_of(created), *(each.timestamp for each in events)]
        ),
        messages=archive_events(events, positions[1:]),
    )
