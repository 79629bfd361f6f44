"""What the flows of all topics share: checks of arguments, reads from the primary, messages."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import msgspec

from ..calls import Call, Flow
from ..errors import EventsMissing, InvalidArgument, SessionStoreError
from ..model import Event, Session, SessionKey, Turn
from ..options import check_instant
from ..replies import WriteResult
from ..times import from_us, to_us


def session_key(session: object) -> SessionKey:
    """The key of a session argument. InvalidArgument unless it is a Session or a SessionKey."""
    if isinstance(session, (Session, SessionKey)):
        return session.key
    kind = type(session).__name__
    raise InvalidArgument(f"session must be a Session or a SessionKey, not {kind}")


def created_us_of(session: Session | SessionKey) -> bytes:
    """When the Session was created that a write is meant for; b"" for a key: any session.

    1970 also stands for any session: adapters make Sessions without knowing more than the key.
    """
    if isinstance(session, SessionKey):
        return b""
    created_us = to_us(check_instant("session.created_at", session.created_at))
    return b"%d" % created_us if created_us else b""


def check_event(name: str, event: object) -> None:
    """InvalidArgument unless an argument is an Event."""
    if not isinstance(event, Event):
        raise InvalidArgument(f"{name} must be an Event, not {type(event).__name__}")


def check_turn(turn: object) -> Turn:
    """A turn argument. InvalidArgument unless it is a Turn."""
    if not isinstance(turn, Turn):
        raise InvalidArgument(f"turn must be a Turn, not {type(turn).__name__}")
    return turn


def id_or_new(session_id: str | None) -> str:
    """A session id; a new UUID for None or ""."""
    return str(uuid4()) if session_id is None or session_id == "" else session_id


def set_version(session: Session, written: WriteResult) -> None:
    """Update the caller's Session after a write."""
    session.version = written.version
    session.updated_at = from_us(written.updated_us)


def read_whole(call: Call[Any]) -> Flow[Any]:
    """Read sessions. If a replica lacks events, read them again from the primary."""
    try:
        return (yield call)
    except EventsMissing:
        return (yield from_primary(call))


def from_primary(call: Call[Any]) -> Call[Any]:
    """The same read, but not from a replica."""
    return msgspec.structs.replace(call, from_primary=True)


def prefix_message(error: SessionStoreError, text: str) -> None:
    """Put a text in front of an error's message."""
    error.args = (f"{text}: {error.args[0]}", *error.args[1:])
