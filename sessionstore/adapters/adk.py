"""Google's Agent Development Kit: its session service, on sessionstore.

from sessionstore.adapters.adk import AdkSessionService        # [adk]

runner = Runner(..., session_service=AdkSessionService(RedisSessionService(url)))
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode

from ..errors import InvalidArgument, SessionExists, SessionNotFound, StaleVersion
from ..model import Session as StoredSession
from ..options import Duration, check_bool
from ..service import RedisSessionService, SessionService
from ..times import from_us, to_us
from ..windows import may_be_trimmed
from . import framework

with framework("google-adk", extra="adk", tested=">=2.8,<3"):
    from google.adk.errors import StaleSessionError
    from google.adk.errors.already_exists_error import AlreadyExistsError
    from google.adk.errors.session_not_found_error import SessionNotFoundError
    from google.adk.events.event import Event
    from google.adk.sessions.base_session_service import (
        BaseSessionService,
        GetSessionConfig,
        ListSessionsResponse,
    )
    from google.adk.sessions.session import Session

    from .pydantic_events import EventFormat, from_json_state, to_instant, to_json_state
    from .session_service_base import SessionServiceAdapter, ids_of

__all__ = ["AdkSessionService", "register"]

_EVENTS = EventFormat(Event, "google-adk")
_CLOCK_AHEAD = timedelta(days=1)  # at most, of a host that stamps events
_LATE = 1e11  # in the year 5138
_SHARED_STATE = ("app:", "user:", "temp:")  # a rewind leaves it alone


class AdkSessionService(SessionServiceAdapter, BaseSessionService):
    """ADK's session service on a service of sessionstore. See `SessionServiceAdapter`.

    Args:
        service: where sessions are stored.
        reject_stale: raise ADK's StaleSessionError on an append through a Session that does not
            show what others have written since it was read, as ADK's DatabaseSessionService does.
            In a run that holds the turn the turn decides.
        serialize_turns: see `SessionServiceAdapter`, also for the others.
    """

    _name = "AdkSessionService"
    _format = _EVENTS

    def __init__(
        self,
        service: SessionService,
        *,
        reject_stale: bool = False,
        serialize_turns: bool = False,
        turn_lease: Duration = 30.0,
        whole_turns: bool = False,
    ) -> None:
        self._reject_stale = check_bool("reject_stale", reject_stale)
        super().__init__(service, serialize_turns, turn_lease, whole_turns)

    async def create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        state: dict[str, Any] | None = None,
        session_id: str | None = None,
    ) -> Session:
        """A new session. One round trip.

        Raises:
            AlreadyExistsError: there is a session of this id.
        """
        try:
            found = await self._service.create_session(
                app_name=app_name,
                user_id=user_id,
                session_id=(session_id or "").strip(),
                state=to_json_state(state or {}, "state"),
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

        One round trip; a second one if `config.after_timestamp` leaves no events.
        """
        config = config or GetSessionConfig()
        limit, after = config.num_recent_events, config.after_timestamp
        ids: Any = {"app_name": app_name, "user_id": user_id, "session_id": session_id.strip()}
        # The newest event is always read: the time of the last update is its timestamp.
        event_num = None if limit is None else max(limit, 1)
        event_time = None
        if after is not None and after > 0:
            # An event stands at its timestamp, or where it arrived if its clock was ahead.
            event_time = to_instant(min(after, _LATE), "config.after_timestamp") - _CLOCK_AHEAD
        found = await self._service.get_session(**ids, event_num=event_num, event_time=event_time)
        if found is not None and not found.events and event_time is not None:
            found = await self._service.get_session(**ids, event_num=1)
        if found is None:
            return None
        events = [] if limit == 0 else [self._event(found, stored) for stored in found.events]
        events = [event for event in events if after is None or event.timestamp >= after]
        return self._session(found, self._cut(events))

    async def list_sessions(
        self, *, app_name: str, user_id: str | None = None
    ) -> ListSessionsResponse:
        """All sessions of a user, with state and without events, the last updated at the end.

        Without a user those of all users, found by a scan of all keys of the store. Two round
        trips for up to 1,000 sessions each of a user.
        """
        sessions = await self._list(app_name, user_id)
        sessions.sort(key=lambda session: (session.last_update_time, session.user_id, session.id))
        return ListSessionsResponse(sessions=sessions)

    async def get_user_state(self, *, app_name: str, user_id: str) -> dict[str, Any]:
        """The state of the user tier, keys without prefix; {} if there is none. One round trip."""
        return from_json_state(
            await self._service.get_user_state(app_name=app_name, user_id=user_id)
        )

    async def append_event(self, session: Session, event: Event) -> Event:
        """Append an event, exactly once. See `SessionServiceAdapter.append_event`.

        Raises:
            SessionNotFoundError: there is no such session.
            StaleSessionError: the session was deleted and created again; or, with `reject_stale`,
                somebody else wrote to it.
            InvalidArgument: a rewind needs events that are gone.

        One round trip more for a rewind.
        """
        if event.actions.rewind_before_invocation_id:
            await self._correct_rewind(session, event)
        try:
            return await super().append_event(session, event)
        except (SessionNotFound, StaleVersion) as error:
            found = await self._service.get_session(**ids_of(session), event_num=0)
            if found is None:
                raise SessionNotFoundError(f"Session {session.id} not found.") from None
            raise StaleSessionError(
                f"Session {session.id} has been modified in storage since it was read."
            ) from error

    async def close(self) -> None:
        """Nothing to close: the service that was given stays open."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _correct_rewind(self, session: Session, event: Event) -> None:
        """Replace the state delta of a rewind, which ADK computed from the events that it saw.

        ADK sets to None what no earlier event set. But the event that set it may be trimmed or
        covered by a summary, or the session may have been created with it. State that no stored
        event sets keeps its value.

        Raises:
            InvalidArgument: only events that are gone have the value; names the keys.
        """
        found = await self._service.get_session(**ids_of(session))
        if found is None:
            return
        target = event.actions.rewind_before_invocation_id
        before: dict[str, Any] = {}
        later: dict[str, Any] = {}
        delta = before
        for stored in found.events:
            if stored.id == event.id:  # it is repeated, so its delta has to be the same
                break
            if stored.invocation_id == target:
                delta = later
            delta.update(stored.state_delta)
        if delta is before:
            raise InvalidArgument(f"cannot rewind: the events of invocation {target!r} are gone")
        names = [name for name in later if not name.startswith(_SHARED_STATE)]
        unknown = [repr(name) for name in names if name not in before]
        is_whole = found.summary is None and found.events[0].author == "user"
        if unknown and (not is_whole or may_be_trimmed(found)):
            raise InvalidArgument(
                f"cannot rewind session {session.id!r}: the events that may have set state "
                f"{', '.join(unknown)} before are trimmed or summarized"
            )
        names = [name for name in names if before.get(name) != later[name]]
        delta = {name: before.get(name) for name in names}
        event.actions.state_delta = from_json_state(delta)

    def _session(self, found: StoredSession, events: list[Event]) -> Session:
        session = Session(**self._fields(found), events=events)
        self._mark(session, events, found)
        return session

    def _show(self, found: StoredSession) -> Session:
        events = [self._event(found, stored) for stored in found.events]
        return self._session(found, self._cut(events))

    def _mark(self, session: Session, _: object, shown: StoredSession) -> None:
        """Note in ADK's own field what a Session shows: which session, and its version."""
        session._storage_update_marker = f"{to_us(shown.created_at)}/{shown.version}"

    def _marked(self, session: Session) -> tuple[datetime | None, int | None]:
        created_us, _, version = (session._storage_update_marker or "").partition("/")
        if not (created_us.isdecimal() and version.isdecimal()):  # not by this adapter
            return None, None
        return from_us(int(created_us)), int(version) if self._reject_stale else None


class _OwningSessions(AdkSessionService):
    """An adapter that made its service itself."""

    async def close(self) -> None:
        """Close the service."""
        await self._service.aclose()


def register() -> None:
    """Let `adk web` and `adk api_server` take `--session_service_uri=sessionstore+redis://...`.

    Call it in the file `services.py` of the directory of your agents. After `sessionstore+` comes
    a URL of `RedisSessionService`. Its query may have the options `session_ttl`, `user_state_ttl`,
    `app_state_ttl` (seconds), `session_event_limit` and `key_prefix`.
    """
    from google.adk.cli.service_registry import get_service_registry

    kinds = ("", "+cluster", "+sentinel")
    schemes = [scheme + kind for scheme in ("redis", "rediss") for kind in kinds]
    for scheme in (*schemes, "unix"):
        get_service_registry().register_session_service(f"sessionstore+{scheme}", _from_uri)


_URI_OPTIONS: dict[str, Any] = {
    "session_ttl": float,
    "user_state_ttl": float,
    "app_state_ttl": float,
    "session_event_limit": int,
    "key_prefix": str,
}


def _from_uri(uri: str, **options: Any) -> AdkSessionService:
    """The service of a URI, as ADK's registry makes it. It owns its connections.

    Raises:
        InvalidArgument: the URI or an option is not valid.
    """
    options.pop("agents_dir", None)
    url, _, query = uri.removeprefix("sessionstore+").partition("?")
    rest = []  # redis-py's options
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _URI_OPTIONS:
            rest.append((name, value))
            continue
        try:
            options[name] = _URI_OPTIONS[name](value)
        except ValueError:
            raise InvalidArgument(f"{name} in the URI must be a number, not {value!r}") from None
    return _OwningSessions(RedisSessionService(f"{url}?{urlencode(rest)}", **options))
