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
from urllib.parse import parse_qsl, urlencode

from ..errors import InvalidArgument, SessionExists, SessionNotFound, StaleVersion
from ..model import Event as StoredEvent
from ..model import Session as StoredSession
from ..model import SessionKey
from ..options import Duration, check_bool
from ..service import RedisSessionService, SessionService
from ..times import from_us, to_us
from ..windows import Window, choose
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

    from ._shared import (
        EventFormat,
        RunsInTurn,
        all_sessions,
        check_service,
        from_json_state,
        function_calls,
        handle_of,
        is_maybe_trimmed,
        reading,
        timestamp_of,
        to_instant,
        to_json_state,
    )

__all__ = ["AdkSessionService", "register"]

_EVENTS: EventFormat[Event] = EventFormat(Event, "google-adk")

_CLOCK_AHEAD = timedelta(days=1)  # at most, of a host that stamps events
_LATE = 1e11  # in the year 5138
_SHARED_STATE = ("app:", "user:", "temp:")  # a rewind leaves it alone

_SCHEMES = [
    f"sessionstore+{scheme}{kind}"
    for scheme in ("redis", "rediss")
    for kind in ("", "+cluster", "+sentinel")
] + ["sessionstore+unix"]


class AdkSessionService(RunsInTurn, BaseSessionService):
    """ADK's session service on a service of sessionstore.

    TTLs, the limit of events and all else are options of the given service. Appends through any
    number of Session objects of one session are all stored, in the order of their arrival. Ids are
    1 to 256 bytes of UTF-8; white space around session ids is ignored. `session_id=None` makes a
    UUID.

    Args:
        service: where sessions are stored: `RedisSessionService` or `InMemorySessionService`. You
            close it yourself.
        reject_stale: raise ADK's StaleSessionError on an append through a Session that does not
            show what others have written since it was read, as ADK's DatabaseSessionService does.
        serialize_turns: True = one run at a time works on a session, in any process; others wait.
            Start each run with `sessions.run(runner, ...)`.
        turn_lease: a timedelta or seconds, from 1 ms. After a crash the session is free again when
            the lease ends.
        whole_turns: True = the events of `get_session` never begin inside a turn: they begin with a
            user's message, and every function response follows its call.

    Raises:
        InvalidArgument: an argument is not valid, or `service` is not a service for asyncio.
    """

    def __init__(
        self,
        service: SessionService,
        *,
        reject_stale: bool = False,
        serialize_turns: bool = False,
        turn_lease: Duration = 30.0,
        whole_turns: bool = False,
    ) -> None:
        self._service = check_service("AdkSessionService", service)
        self._reject_stale = check_bool("reject_stale", reject_stale)
        self._whole_turns = check_bool("whole_turns", whole_turns)
        self._set_turns(serialize_turns, turn_lease)
        self._owns_service = False

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
            state: initial state; `app:` and `user:` keys go to their tier, `temp:` nowhere.

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

        Args:
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
        if self._whole_turns:
            events = choose(_WINDOW, events, is_whole_log=True, is_trimmed=True) or []
        return self._session(found, events)

    async def list_sessions(
        self, *, app_name: str, user_id: str | None = None
    ) -> ListSessionsResponse:
        """All sessions of a user, with state and without events, the last updated last.

        Args:
            user_id: None = all users, found by a walk over all keys of the store.

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

        Raises:
            InvalidArgument: an id is not valid.
            BackendError: the store did not carry it out, or did not say so.

        One round trip.
        """
        await self._service.delete_session(
            app_name=app_name, user_id=user_id, session_id=session_id.strip()
        )

    async def get_user_state(self, *, app_name: str, user_id: str) -> dict[str, Any]:
        """The state of the user tier, keys without prefix; empty if there is none.

        Raises:
            InvalidArgument: an id is not valid.
            CorruptData: stored bytes do not decode.
            BackendError: the store could not be read.

        One round trip.
        """
        return from_json_state(
            await self._service.get_user_state(app_name=app_name, user_id=user_id)
        )

    async def append_event(self, session: Session, event: Event) -> Event:
        """Append an event and apply its state delta, in one atomic step, exactly once.

        A partial event is handed back and not stored. `session` and `event` change once the store
        has accepted the event: `session` has it, with its state, and `temp:` keys leave its delta.
        If the event was stored already, `session` gets what others have written since, too.

        ADK rewinds by an event whose state delta it computes from the events that it sees. State
        of which no event is left keeps its value.

        Args:
            session: as this service gave it; it need not show what others have written since.
            event: what to append.

        Returns:
            The event.

        Raises:
            SessionNotFoundError: there is no such session.
            StaleSessionError: the session was deleted and created again; or, with `reject_stale`,
                somebody else wrote to it.
            TurnLost: in `run`, another run took the turn over.
            InvalidArgument: ADK cannot serialize a part of the event, or the store not take it;
                names it. Or a rewind needs events that were trimmed.
            BackendError: the store did not carry it out, or (maybe_applied) did not say so;
                appending the same event again is safe.

        One round trip; two more for a rewind, and one or two for a repeated event.
        """
        if event.partial:
            return event
        turn = self._check_turn(event)
        key = SessionKey(session.app_name, session.user_id, session.id)
        if event.actions.rewind_before_invocation_id:
            await self._correct_rewind(key, event)
        stored = _EVENTS.store(event)
        created_at, version = _read_marker(session)
        handle = handle_of(key, created_at)
        try:
            shown = await self._service.append_event(
                handle, stored, if_version=version if self._reject_stale else None, turn=turn
            )
        except SessionNotFound:
            if created_at is not None and await self._read(key, 0, None) is not None:
                raise _stale(session) from None
            raise SessionNotFoundError(f"Session {session.id} not found.") from None
        except StaleVersion:
            raise _stale(session) from None
        if handle.events and handle.events[-1] is shown:
            await super().append_event(session, event)
            session.last_update_time = event.timestamp
            _set_marker(session, handle)
        else:
            await self._refresh(session, event)
        return event

    async def close(self) -> None:
        """Nothing to close: the service that was given stays open."""
        if self._owns_service:
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

    async def _refresh(self, session: Session, event: Event) -> None:
        """Bring a Session up to date after an append of an event that was stored already.

        Others may have written after it.
        """
        self._apply_temp_state(session, event)
        self._trim_temp_delta_state(event)
        own = {other.id: other for other in [*session.events, event]}
        key = SessionKey(session.app_name, session.user_id, session.id)
        found = await self._read(key, None, None)
        if found is None:  # deleted meanwhile
            return
        temp = {name: session.state[name] for name in session.state if name.startswith("temp:")}
        names = [stored.id for stored in found.events]
        first = next((place for place, name in enumerate(names) if name in own), 0)
        fresh = self._session(found, [])
        session.events[:] = [
            own.get(stored.id) or _event(found, stored) for stored in found.events[first:]
        ]
        session.state.clear()
        session.state.update(fresh.state | temp)
        session.last_update_time = fresh.last_update_time
        _set_marker(session, found)

    async def _correct_rewind(self, key: SessionKey, event: Event) -> None:
        """Correct the state delta of a rewind, which ADK computed from the events that it saw.

        ADK sets to None what no earlier event set. But an event that set it may be trimmed, or the
        session may have been created with it.

        Raises:
            InvalidArgument: only trimmed events know the value; names the keys.
        """
        delta = event.actions.state_delta
        unset = [name for name, value in delta.items() if value is None]
        unset = [name for name in unset if not name.startswith(_SHARED_STATE)]
        found = await self._read(key, None, None) if unset else None
        if found is None:
            return
        target = event.actions.rewind_before_invocation_id
        earlier: dict[str, Any] = {}
        later: set[str] = set()
        is_later = False
        for stored in found.events:
            is_later = is_later or stored.invocation_id == target
            if is_later:
                later |= stored.state_delta.keys()
            else:
                earlier |= stored.state_delta
        if not is_later:
            raise InvalidArgument(f"cannot rewind: the events of invocation {target!r} are gone")
        unknown = []
        for name in unset:
            if name in earlier:
                delta[name] = from_json_state({name: earlier[name]})[name]
            elif name not in later:
                del delta[name]  # it has the value that it had before
            else:
                unknown.append(name)
        if unknown and is_maybe_trimmed(found, _starts_turn_when_stored):
            raise InvalidArgument(
                f"cannot rewind session {key.session_id!r}: the events that may have set state "
                f"{', '.join(map(repr, unknown))} before were trimmed"
            )

    def _session(self, found: StoredSession, events: list[Event]) -> Session:
        """An ADK Session of a stored one that has, if any, its newest event."""
        with reading(found, "its state", "AdkSessionService"):
            state = from_json_state(found.state)
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
        _set_marker(session, found)
        return session


def register() -> None:
    """Let `adk web` and `adk api_server` take `--session_service_uri=sessionstore+redis://...`.

    Call it in the file `services.py` of the directory of your agents. After `sessionstore+` comes
    a URL of `RedisSessionService`. Its query may have the options `session_ttl`, `user_state_ttl`,
    `app_state_ttl` (seconds), `session_event_limit` and `key_prefix`.
    """
    from google.adk.cli.service_registry import get_service_registry

    for scheme in _SCHEMES:
        get_service_registry().register_session_service(scheme, _from_uri)


def _from_uri(uri: str, **options: Any) -> AdkSessionService:
    """The service of a URI, as ADK's registry makes it. It owns its connections.

    Raises:
        InvalidArgument: the URI or an option is not valid.
    """
    options.pop("agents_dir", None)
    url, _, query = uri.removeprefix("sessionstore+").partition("?")
    rest = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        read = _URI_OPTIONS.get(name)
        if read is None:
            rest.append((name, value))  # redis-py's
            continue
        try:
            options[name] = read(value)
        except ValueError:
            raise InvalidArgument(f"{name} in the URI must be a number, not {value!r}") from None
    if rest:
        url += "?" + urlencode(rest)
    sessions = AdkSessionService(RedisSessionService(url, **options))
    sessions._owns_service = True
    return sessions


_URI_OPTIONS: dict[str, Any] = {
    "session_ttl": float,
    "user_state_ttl": float,
    "app_state_ttl": float,
    "session_event_limit": int,
    "key_prefix": str,
}


def _event(found: StoredSession, stored: StoredEvent) -> Event:
    with reading(found, f"event {stored.id!r}", "AdkSessionService"):
        return _EVENTS.restore(stored)


def _starts_turn(event: Any) -> bool:
    """Whether an event is a user's message that does not answer a function call."""
    return event.author == "user" and event.content is not None and not function_calls(event)[1]


_WINDOW = Window(starts_turn=_starts_turn, calls=function_calls)


def _starts_turn_when_stored(stored: StoredEvent) -> bool:
    return stored.author == "user"


def _set_marker(session: Session, found: StoredSession) -> None:
    """Note in ADK's own field what a Session shows: which session, and its version."""
    session._storage_update_marker = f"{to_us(found.created_at)}/{found.version}"


def _read_marker(session: Session) -> tuple[datetime | None, int | None]:
    """When the session was created that a Session shows, and its version; None = not known."""
    created_us, _, version = (session._storage_update_marker or "").partition("/")
    if not (created_us.isdecimal() and version.isdecimal()):
        return None, None
    return from_us(int(created_us)), int(version)


def _stale(session: Session) -> StaleSessionError:
    return StaleSessionError(
        f"Session {session.id} has been modified in storage since it was read."
    )


def _first_position(after: float | None) -> datetime | None:
    """An instant before every event that is not older than `after`.

    An event stands at its timestamp, or where it arrived if the clock that stamped it was ahead.
    """
    if after is None or not after > 0:  # NaN is neither
        return None
    return to_instant(min(after, _LATE), "config.after_timestamp") - _CLOCK_AHEAD
