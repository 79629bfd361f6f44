"""The session that most tests use, and how to create, read and fill it."""

from __future__ import annotations

from typing import Any

from sessionstore import Event, Session, SessionKey

APP, USER = "app", "user"
OWNER: dict[str, Any] = {"app_name": APP, "user_id": USER}
IDS: dict[str, Any] = {**OWNER, "session_id": "sid"}
KEY = SessionKey(APP, USER, "sid")


async def create(service: Any, key: SessionKey = KEY, **options: Any) -> Session:
    """A new session."""
    session = await service.create_session(
        app_name=key.app_name, user_id=key.user_id, session_id=key.session_id, **options
    )
    assert isinstance(session, Session)
    return session


async def read(service: Any, key: SessionKey = KEY, **filters: Any) -> Session:
    """A session, which must exist."""
    found = await service.get_session(
        app_name=key.app_name, user_id=key.user_id, session_id=key.session_id, **filters
    )
    assert isinstance(found, Session), f"there is no session {key}"
    return found


async def append_many(service: Any, session: Session | SessionKey, events: list[Event]) -> None:
    """Append any number of events, in batches of the size that one call takes."""
    for start in range(0, len(events), 500):
        await service.append_events(session, events[start : start + 500])
