"""Google's Agent Development Kit: its session service, on sessionstore.

    from sessionstore.adapters.adk import AdkSessionService        # [adk]

    runner = Runner(..., session_service=AdkSessionService(RedisSessionService(url)))

An event is stored as ADK's own JSON, its state delta beside it where the store applies it. State
goes by ADK's prefixes, which are the store's: `app:`, `user:`, `temp:` and none.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

from ..errors import SessionExists, SessionNotFound, StaleVersion
from ..model import Event as StoredEvent
from ..model import Session as StoredSession
from ..model import SessionKey
from ..service import SessionService
from . import framework

with framework("google-adk", extra="adk", tested=">=2.8,<3"):
    from google.adk.errors import StaleSessionError
    from google.adk.errors.already_exists_error import AlreadyExistsError
    from google.adk.errors.session_not_found_error import SessionNotFoundError
    from google.adk.events.event import Event
    from google.adk.events.event_actions import EventActions
    from google.adk.sessions.base_session_service import (
        BaseSessionService,
        GetSessionConfig,
        ListSessionsResponse,
    )
    from google.adk.sessions.session import Session

    from ._shared import (
        Handles,
        JsonForm,
        all_sessions,
        check_service,
        reading,
        thaw_all,
        timestamp_of,
        to_instant,
        written_through,
    )

__all__ = ["AdkSessionService"]

_FORM = JsonForm(Event, EventActions, "google-adk")

_CLOCK_AHEAD = timedelta(days=1)  # at most, of a host that stamps events
_LATE = 1e11  # in the year 5138


class AdkSessionService(BaseSessionService):
    """ADK's session service on a service of sessionstore.

    TTLs, the limit of events and all else are options of the given service. Appends through any
    number of Session objects of one session are all stored, in the order of their arrival.

    Args:
        service: where sessions are stored: `RedisSessionService` or `InMemorySessionService`.
        reject_stale: raise ADK's StaleSessionError on an append through a Session that does not
            show what others have written since it was read, as ADK's DatabaseSessionService does.

    Raises:
        InvalidArgument: `service` is none for asyncio.
    """

    def __init__(self, service: SessionService, *, reject_stale: bool = False) -> None:
        self._service = check_service("AdkSessionService", service)
        self._reject_stale = reject_stale
        self._created: Handles[datetime] = Handles()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._service!r})"

    async def create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        state: dict[str, Any] | None = None,
        session_id: str | None = None,
    ) -> Session:
        """A new session.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            state: initial state; `app:` and `user:` keys go to their tier, `temp:` nowhere.
            session_id: as `app_name`, without white space around it; None or "" makes a UUID.

        Raises:
            AlreadyExistsError: there is a session of this id.
            InvalidArgument: an id or a value cannot be stored; names it.
            BackendError: the store did not carry it out, or did not say so.

        One round trip.
        """
        try:
            found = await self._service.create_session(
                app_name=app_name,
                user_id=user_id,
                session_id=(session_id or "").strip(),
                state=_FORM.freeze_all(state or {}, "state"),
            )
        except SessionExists:
            raise AlreadyExistsError(f"Session with id {session_id} already exists.") from None
        return self._session(found, [])

    async def get_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        config: GetSessionConfig | None = None,
    ) -> Session | None:
        """A session as it is now; None if there is none.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            session_id: likewise; white space around it is ignored.
            config: `num_recent_events` and `after_timestamp` (inclusive); both may be given.

        Raises:
            InvalidArgument: an argument is out of range.
            CorruptData: the session holds something that this adapter did not write.
            BackendError: the store could not be read. Never reported as None.

        One round trip; a second one if `after_timestamp` leaves no events.
        """
        key = SessionKey(app_name, user_id, session_id.strip())
        limit = config.num_recent_events if config else None
        after = config.after_timestamp if config else None
        # The newest event is always read: the time of the last update is its timestamp.
        found = await self._read(
            key, None if limit is None else max(limit, 1), _first_position(after)
        )
        if found is None:
            return None
        events = [] if limit == 0 else [_event(found, stored) for stored in found.events]
        if after is not None:
            events = [event for event in events if event.timestamp >= after]
            if not found.events:
                found = await self._read(key, 1, None)
                if found is None:
                    return None
        return self._session(found, events)

    async def list_sessions(
        self, *, app_name: str, user_id: str | None = None
    ) -> ListSessionsResponse:
        """All sessions of a user, with state and without events, the last updated last.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise; None = all users, found by a walk over all keys of the store.

        Raises:
            InvalidArgument: an argument is out of range.
            CorruptData: a session holds something that this adapter did not write.
            BackendError: the store could not be read.

        Two round trips for up to 1,000 sessions each of a user; for all users one more for every
        thousand keys of the store.
        """
        found = await all_sessions(self._service, app_name, user_id)
        sessions = [self._session(session, []) for session in found]
        sessions.sort(key=lambda session: (session.last_update_time, session.user_id, session.id))
        return ListSessionsResponse(sessions=sessions)

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Remove a session with its events and its state; a missing one is fine.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            session_id: likewise; white space around it is ignored.

        Raises:
            InvalidArgument: an id is none.
            BackendError: the store did not carry it out, or did not say so.

        One round trip.
        """
        await self._service.delete_session(
            app_name=app_name, user_id=user_id, session_id=session_id.strip()
        )

    async def get_user_state(self, *, app_name: str, user_id: str) -> dict[str, Any]:
        """The state of the user tier, keys without prefix; empty if there is none.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.

        Raises:
            InvalidArgument: an id is none.
            CorruptData: stored bytes do not decode.
            BackendError: the store could not be read.

        One round trip.
        """
        return thaw_all(await self._service.get_user_state(app_name=app_name, user_id=user_id))

    async def append_event(self, session: Session, event: Event) -> Event:
        """Append an event and apply its state delta, in one atomic step, exactly once.

        A partial event is handed back and not stored. `session` and `event` change once the store
        has accepted the event: `session` has it, with its state, and `temp:` keys leave its delta.

        Args:
            session: as this service gave it; it need not show what others have written since.
            event: what to append.

        Returns:
            The event.

        Raises:
            SessionNotFoundError: there is no such session.
            StaleSessionError: with `reject_stale`, somebody else wrote to the session.
            InvalidArgument: ADK cannot serialise a part of the event, or the store not take it;
                names the path.
            BackendError: the store did not carry it out, or (maybe_applied) did not say so;
                appending the same event again is safe.

        One round trip.
        """
        if event.partial:
            return event
        stored = _FORM.store(event)
        told = written_through(session, self._created)
        marker = session._storage_update_marker if self._reject_stale else None
        try:
            shown = await self._service.append_event(
                told, stored, if_version=None if marker is None else int(marker)
            )
        except SessionNotFound:
            raise SessionNotFoundError(f"Session {session.id} not found.") from None
        except StaleVersion:
            raise StaleSessionError(
                f"Session {session.id} has been modified in storage since it was read."
            ) from None
        # A Session that the store is told of gets what was stored, or what was there already.
        is_repeated = not told.events or told.events[-1] is not shown
        if is_repeated and any(event.id == other.id for other in session.events):
            return event
        await super().append_event(session, event)
        session.last_update_time = event.timestamp
        if is_repeated:
            session.state.update(thaw_all(told.state))
        elif self._reject_stale:
            session._storage_update_marker = str(told.version)
        return event

    async def close(self) -> None:
        """Close the given service."""
        await self._service.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _read(
        self, key: SessionKey, event_num: int | None, event_time: datetime | None
    ) -> StoredSession | None:
        return await self._service.get_session(
            app_name=key.app_name,
            user_id=key.user_id,
            session_id=key.session_id,
            event_num=event_num,
            event_time=event_time,
        )

    def _session(self, found: StoredSession, events: list[Event]) -> Session:
        """An ADK Session of a stored one that has, if any, its newest event."""
        with reading(found, "its state", "AdkSessionService"):
            state = thaw_all(found.state)
        updated = found.updated_at.timestamp()
        if found.events:
            with reading(found, "its newest event", "AdkSessionService"):
                updated = timestamp_of(found.events[-1].content)
        session = Session(
            id=found.id,
            app_name=found.app_name,
            user_id=found.user_id,
            state=state,
            events=events,
            last_update_time=updated,
        )
        self._created.put(session, found.created_at)
        if self._reject_stale:
            session._storage_update_marker = str(found.version)
        return session


def _event(found: StoredSession, stored: StoredEvent) -> Event:
    with reading(found, f"event {stored.id!r}", "AdkSessionService"):
        return _FORM.restore(stored)


def _first_position(after: float | None) -> datetime | None:
    """An instant before every event that is not older than `after`.

    An event stands at its timestamp, or where it arrived if the clock that stamped it was ahead.
    """
    if after is None or not after > 0:  # NaN is neither
        return None
    return to_instant(min(after, _LATE), "config.after_timestamp") - _CLOCK_AHEAD
