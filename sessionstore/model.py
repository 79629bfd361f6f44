"""The public data types: Event, Session, SessionKey, EventPage."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Annotated, Any

import msgspec

from .times import utc_now


def _new_id() -> str:
    # As unique as a random UUID, at a quarter of its cost.
    return os.urandom(16).hex()


class SessionKey(msgspec.Struct, frozen=True):
    """The name of one session. Serves wherever a method takes a session.

    Attributes:
        app_name: the application, 1 to 256 bytes of UTF-8. Any character is allowed.
        user_id: the user within the application, likewise.
        session_id: the session within the user, likewise.
    """

    app_name: str
    user_id: str
    session_id: str

    @property
    def key(self) -> SessionKey:
        """The key itself, so that a Session and a SessionKey are asked alike."""
        return self


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of a session's log: something that was said, called or returned.

    Attributes:
        author: who spoke: "user", an agent's or a tool's name. Not empty.
        content: what was said: any value that the codec carries (JSON by default).
        id: unique and not empty; 32 random hexadecimal digits by default. Appending the same
            event again changes nothing, which makes an append safe to repeat.
        timestamp: when it happened, timezone-aware, microseconds; now by default. The store
            orders by arrival: see "Guarantees" in README.
        invocation_id: the run that the event belongs to; free text.
        branch: the agent branch that the event belongs to; free text.
        partial: True for a fragment of a stream: handed back, never stored.
        state_delta: state to set, in the same atomic write: `key`, `user:key`, `app:key`;
            `temp:key` reaches only the caller's Session.
        state_removed: state keys to remove, in the same atomic write.
        metadata: anything else that should be kept with the event.
    """

    author: Annotated[str, msgspec.Meta(min_length=1)]
    content: Any = None
    id: Annotated[str, msgspec.Meta(min_length=1)] = msgspec.field(default_factory=_new_id)
    timestamp: Annotated[datetime, msgspec.Meta(tz=True)] = msgspec.field(default_factory=utc_now)
    invocation_id: str = ""
    branch: str = ""
    partial: bool = False
    state_delta: dict[str, Any] = msgspec.field(default_factory=dict)
    state_removed: list[str] = msgspec.field(default_factory=list)
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)


class VerifiedEvent(Event, frozen=True, omit_defaults=True):
    """An Event of which whoever made it knows that every codec gives it back as it is.

    So it is not read back before it is stored, which is half of what encoding costs. It is written
    like any Event and read as one. Not public: only adapters make them, of what they have seen to.
    """


class Session(msgspec.Struct):
    """A session as it was when it was read, or after the last write through this object.

    Attributes:
        app_name: the application.
        user_id: the user within the application.
        id: the session's id within the user.
        state: the three tiers merged: session keys bare, the others as `app:key` and `user:key`.
        events: the events asked for, oldest first.
        version: number of writes to the session, 1 after create. For `if_version=`.
        created_at: when the session was created, UTC, by the store's clock.
        updated_at: when it was last written, UTC, by the store's clock.
    """

    app_name: str
    user_id: str
    id: str
    state: dict[str, Any]
    events: list[Event]
    version: int
    created_at: datetime
    updated_at: datetime

    def __repr__(self) -> str:
        return (
            f"Session(app_name={self.app_name!r}, user_id={self.user_id!r}, id={self.id!r}, "
            f"version={self.version}, {len(self.events)} events, {len(self.state)} state keys)"
        )

    @property
    def key(self) -> SessionKey:
        """The session's name, enough for every method that takes a session."""
        return SessionKey(self.app_name, self.user_id, self.id)


class Turn(msgspec.Struct, frozen=True):
    """The right to be the only run that appends to a session: a lease with a fencing token.

    Attributes:
        key: the session.
        token: grows with every holder; an append that carries an older one is refused.
        expires_at: when the lease ends unless it is renewed, UTC, by the store's clock.
    """

    key: SessionKey
    token: int
    expires_at: datetime


class EventPage(msgspec.Struct, frozen=True):
    """A stretch of a session's log, oldest first, with cursors to go on from.

    Attributes:
        events: the events, oldest first.
        first: position of the first event; `before=page.first` reads the page before.
        last: position of the last event; `after=page.last` reads the page after.

    Positions are integer microseconds. On an empty page both repeat the cursor that was asked
    with, so that a reader who polls goes on where it was; None when none was given.
    """

    events: list[Event]
    first: int | None
    last: int | None
