"""The public data types: Event, Session, SessionKey, Summary, Turn, SessionPage, EventPage,
WatchEntry, WatchChange, WatchEnd, Ping, DeletedUser."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Annotated, Any, Literal

import msgspec

made_defaults = count()
"""Counts the ids and timestamps that Events got by default."""


def _new_id() -> str:
    next(made_defaults)
    # As unique as a random UUID, at a quarter of the cost.
    return os.urandom(16).hex()


def _new_timestamp() -> datetime:
    next(made_defaults)
    return datetime.now(UTC)


class SessionKey(msgspec.Struct, frozen=True):
    """The name of one session. Methods that take a session take either a Session or its key.

    Attributes:
        app_name: the application, 1 to 256 bytes of UTF-8. All characters are allowed.
        user_id: the user within the application, likewise.
        session_id: the session of the user, likewise.
    """

    app_name: str
    user_id: str
    session_id: str

    @property
    def key(self) -> SessionKey:
        """The key itself. A Session has a `key` too, so both can be used in the same way."""
        return self


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of a session's log: a message, a tool call, or a tool result.

    Attributes:
        author: "user", or the name of an agent or tool. Not empty.
        content: any value that the codec can store (JSON by default).
        id: unique and not empty; 32 random hexadecimal digits by default. Appending the same
            event again changes nothing, so an append is safe to repeat.
        timestamp: when it happened, timezone-aware, in microseconds; now by default. Events are
            ordered by arrival, not by timestamp.
        invocation_id: the run that the event belongs to; any text.
        branch: the agent branch that the event belongs to; any text.
        partial: True for a fragment of an event that is being written. It is never in the log; with
            `stream_ttl` it is kept apart for that time.
        state_delta: state to set in the same atomic write: `key`, `user:key` or `app:key`;
            a `temp:key` is set only in the caller's Session.
        state_removed: state keys to remove in the same atomic write.
        metadata: a dict with anything else to store with the event.
        state_increments: integers to add to state in the same atomic write, by key: `key`,
            `user:key` or `app:key`. A missing value counts as 0. A key is in one of
            `state_delta`, `state_removed` and `state_increments`.
    """

    author: Annotated[str, msgspec.Meta(min_length=1)]
    content: Any = None
    id: Annotated[str, msgspec.Meta(min_length=1)] = msgspec.field(default_factory=_new_id)
    timestamp: Annotated[datetime, msgspec.Meta(tz=True)] = msgspec.field(
        default_factory=_new_timestamp
    )
    invocation_id: str = ""
    branch: str = ""
    partial: bool = False
    state_delta: dict[str, Any] = msgspec.field(default_factory=dict)
    state_removed: list[str] = msgspec.field(default_factory=list)
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    state_increments: dict[str, int] = msgspec.field(default_factory=dict)


class JsonEvent(Event, frozen=True, omit_defaults=True):
    """An Event whose content is the JSON of an agent framework's own serializer.

    `content` may be msgspec.Raw: JSON text that is stored as it is. The event and its state are
    stored as JSON under every codec. It is read back as an Event. Not public: only adapters make
    one.
    """


class Summary(msgspec.Struct, frozen=True):
    """A summary of the oldest events of a session: see `compact_session`.

    Attributes:
        content: any value that the codec can store.
        upto: the position of the last event that it covers, in microseconds.
        created_at: when it was stored, UTC, by the store's clock.
        num_events: how many covered events the log still holds. `get_events` reads them.
    """

    content: Any
    upto: int
    created_at: datetime
    num_events: int


class Session(msgspec.Struct):
    """A session as it was when it was read, or after the last write through this object.

    Attributes:
        app_name: the application.
        user_id: the user within the application.
        id: the session's id, unique within the user.
        state: the three tiers merged: session keys without a prefix, the others as `app:key` and
            `user:key`. Changing it here stores nothing: use `update_session_state` or an Event's
            `state_delta`.
        events: the events that were read, oldest first. If there is a summary, only those after it.
        version: grows with every write and never repeats, not even if the session is deleted and
            created again. For `if_version=`.
        created_at: when the session was created, UTC, by the store's clock.
        updated_at: when it was last written, UTC, by the store's clock.
        event_count: how many events the store holds; `events` may be a part of them. Events that
            the summary covers are included. Writes through this object are counted at once, writes
            of others with the next read.
        event_limit: how many of the newest events the store keeps; None = all.
        forked_from: the id of the session that `fork_session` copied; None = it is no copy.
        summary: the summary of the oldest events; None = there is no summary.
        was_full: the log was full, and has room again since `event_limit` was raised or newer
            events were removed. So older events may have been trimmed.
    """

    app_name: str
    user_id: str
    id: str
    state: dict[str, Any]
    events: list[Event]
    version: int
    created_at: datetime
    updated_at: datetime
    event_count: int = 0
    event_limit: int | None = None
    forked_from: str | None = None
    summary: Summary | None = None
    was_full: bool = False

    def __repr__(self) -> str:
        return (
            f"Session(app_name={self.app_name!r}, user_id={self.user_id!r}, id={self.id!r}, "
            f"version={self.version}, {len(self.events)} events, {len(self.state)} state keys)"
        )

    @property
    def key(self) -> SessionKey:
        """The session's name. Every method that takes a session accepts it."""
        return SessionKey(self.app_name, self.user_id, self.id)


def is_full(session: Session) -> bool:
    """Whether the log of a session holds as many events as it may."""
    return session.event_limit is not None and session.event_count >= session.event_limit


def remove_newest(session: Session, num_events: int) -> None:
    """Note that the newest events have left the log of the caller's Session."""
    session.was_full = session.was_full or is_full(session)
    session.event_count = max(session.event_count - num_events, 0)
    if not session.event_count:
        session.was_full = False


def num_after_summary(session: Session) -> int:
    """How many events the log of a session holds after its summary; without one, all."""
    covered = session.summary.num_events if session.summary else 0
    return max(session.event_count - covered, 0)


class SessionPage(list[Session]):
    """A page of a user's sessions: a list, with the cursor of the next page.

    Attributes:
        cursor: `list_sessions(after=page.cursor)` reads the next page; None = this is the last one.
    """

    def __init__(self, sessions: Iterable[Session] = (), cursor: str | None = None) -> None:
        super().__init__(sessions)
        self.cursor = cursor

    def __repr__(self) -> str:
        return f"SessionPage({super().__repr__()}, cursor={self.cursor!r})"


class Turn(msgspec.Struct, frozen=True):
    """The right to run on a session: a lease, which at most one run holds at a time.

    Attributes:
        key: the session.
        token: a fencing token. It grows with every holder; an append with an older one is refused.
        expires_at: when the lease ends unless it is renewed, UTC, by the store's clock.
    """

    key: SessionKey
    token: int
    expires_at: datetime


class EventPage(msgspec.Struct, frozen=True):
    """A page of a session's log, with the cursors of the pages before and after.

    Attributes:
        events: the events, oldest first.
        first: position of the first event; `before=page.first` reads the page before.
        last: position of the last event; `after=page.last` reads the page after.
        positions: the position of every event, in the order of `events`.

    Positions are integer microseconds. On an empty page `first` and `last` are the cursor of the
    request, or None without one, so a reader can poll with `after=page.last`.
    """

    events: list[Event]
    first: int | None
    last: int | None
    positions: list[int] = msgspec.field(default_factory=list)


class WatchEntry(msgspec.Struct, frozen=True, tag=True):
    """An event of a session that is watched.

    Attributes:
        event: the event.
        position: where it stands in the log, in microseconds. Later events have larger positions.
            For a fragment: the position of the log's last event when the fragment was stored.
        cursor: `watch_events(session, after=cursor)` continues after this entry. Letters, digits
            and hyphens; a later cursor of the same session compares as larger.
    """

    event: Event
    position: int
    cursor: str


class WatchChange(msgspec.Struct, frozen=True, tag=True):
    """A change of a part of the log that the watcher has already read.

    Events were removed (by `rewind_session`, `pop_event`, `clear_events` or `delete_event`) or
    replaced (by `replace_event`). A program that shows the log replaces what it shows from `first`
    to `last` with `events`.

    Attributes:
        first: the position at which the changed part begins.
        last: the position at which it ends; every later entry comes after it.
        events: the events that are there now, oldest first; usually empty.
        positions: their positions.
        cursor: continues after this change, like the cursor of a WatchEntry. A change of a long
            part comes as several items, and only the cursor of the last one does not repeat it.
    """

    first: int
    last: int
    events: list[Event]
    positions: list[int]
    cursor: str


class WatchEnd(msgspec.Struct, frozen=True, tag=True):
    """The last item that a watcher gets.

    Attributes:
        reason: "deleted": the session was deleted or has expired. "recreated": it was deleted, and
            another one has its id. "idle": `idle_timeout` has passed.
    """

    reason: Literal["deleted", "recreated", "idle"]


Watched = WatchEntry | WatchChange | WatchEnd
"""What `watch_events` yields."""


class DeletedUser(msgspec.Struct, frozen=True):
    """What `delete_user` removed, and what it left.

    Attributes:
        num_sessions: number of sessions that were removed.
        num_state_keys: number of keys of user state that were removed.
        created: ids of sessions that were created meanwhile. They stay, and so does the user's
            state. Empty if nothing is left of the user.
        has_data_key: with a key store: the user's data key stays, because something was written
            meanwhile.
    """

    num_sessions: int
    num_state_keys: int
    created: list[str]
    has_data_key: bool = False


class Ping(msgspec.Struct, frozen=True):
    """An answer of a server.

    Attributes:
        round_trip: how long the answer took, including the wait for a connection.
        role: "primary" or "replica". In memory "primary".
    """

    round_trip: timedelta
    role: Literal["primary", "replica"]
