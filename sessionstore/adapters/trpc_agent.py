"""tRPC-Agent-Python: its session service, on sessionstore.

    from sessionstore.adapters.trpc_agent import TrpcSessionService        # [trpc-agent]

    runner = Runner(..., session_service=TrpcSessionService(RedisSessionService(url)))

An event is stored as the framework's own JSON, its state delta beside it where the store applies
it. The log only grows: what `update_session` changes in it (a summary in place of old events, a
function call taken back) is one more entry that says so, applied on reading. So it is one atomic
step, and events that others append meanwhile stay.
"""

from __future__ import annotations

from copy import deepcopy
from datetime import datetime
from typing import Any

import msgspec

from ..errors import InvalidArgument, SessionExists, SessionNotFound, StaleVersion
from ..model import Event as StoredEvent
from ..model import Session as StoredSession
from ..model import SessionKey
from ..service import SessionService
from . import framework

with framework("trpc-agent-py", extra="trpc-agent", tested=">=1.2,<2"):
    from trpc_agent_sdk.abc import CompactSummarizerManagerABC, ListSessionsResponse
    from trpc_agent_sdk.context import AgentContext
    from trpc_agent_sdk.events import Event
    from trpc_agent_sdk.sessions import BaseSessionService, Session, SessionServiceConfig
    from trpc_agent_sdk.types import EventActions
    from trpc_agent_sdk.utils import user_key

    from ._shared import (
        Handles,
        JsonForm,
        all_sessions,
        check_service,
        reading,
        thaw_all,
        timestamp_of,
        written_through,
    )

__all__ = ["TrpcSessionService"]

_FORM: JsonForm[Any] = JsonForm(Event, EventActions, "trpc-agent-py")
_ADAPTER = "TrpcSessionService"
_UPDATE_ATTEMPTS = 100  # of update_session, each after somebody else has written


class _Seen(msgspec.Struct):
    """What a Session object was given of the store, to tell its changes from those of others."""

    known: set[str]  # ids of all events that were there
    shown: set[str]  # of those that it got
    state: dict[str, Any]


class TrpcSessionService(BaseSessionService):
    """tRPC-Agent's session service on a service of sessionstore.

    TTLs and the limit of stored events are options of the given service. Appends through any
    number of Session objects of one session are all stored, in the order of their arrival.

    Args:
        service: where sessions are stored: `RedisSessionService` or `InMemorySessionService`.
        summarizer_manager: the framework's, as for its own services.
        session_config: the framework's: `max_events`, `num_recent_events` and `event_ttl_seconds`
            limit what is shown of a session, `store_historical_events` (True by default) says
            whether events that a summary replaced are given as `historical_events`.

    Raises:
        InvalidArgument: `service` is none for asyncio, or `session_config` asks for a TTL.
    """

    def __init__(
        self,
        service: SessionService,
        summarizer_manager: CompactSummarizerManagerABC | None = None,
        session_config: SessionServiceConfig | None = None,
    ) -> None:
        self._service = check_service(_ADAPTER, service)
        if session_config is None:
            session_config = SessionServiceConfig(store_historical_events=True)
            session_config.clean_ttl_config()
        elif "ttl" in session_config.model_fields_set and session_config.need_ttl_expire():
            raise InvalidArgument(
                "session_config.ttl is not used: give the service session_ttl, user_state_ttl and "
                "app_state_ttl"
            )
        super().__init__(summarizer_manager=summarizer_manager, session_config=session_config)
        self._handles: Handles[_Seen] = Handles()
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
        agent_context: AgentContext | None = None,  # noqa: ARG002  # the interface has it
    ) -> Session:
        """A new session, or the one of this id, with `state` set in it: nothing is overwritten.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            state: state to set; `app:` and `user:` keys go to their tier, `temp:` nowhere.
            session_id: as `app_name`, without white space around it; None or "" makes a UUID.
            agent_context: not used.

        Raises:
            InvalidArgument: an id or a value cannot be stored; names it.
            BackendError: the store did not carry it out, or did not say so.

        One round trip; two more if there is such a session.
        """
        frozen = _FORM.freeze_all(state or {}, "state")
        name = (session_id or "").strip()
        while True:
            try:
                found = await self._service.create_session(
                    app_name=app_name, user_id=user_id, session_id=name, state=frozen
                )
                return self._show(found)
            except SessionExists:
                key = SessionKey(app_name, user_id, name)
            try:
                await self._service.update_session_state(key, frozen)
            except SessionNotFound:
                continue
            session = await self.get_session(app_name=app_name, user_id=user_id, session_id=name)
            if session is not None:
                return session

    async def get_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        agent_context: AgentContext | None = None,  # noqa: ARG002  # the interface has it
    ) -> Session | None:
        """A session as it is now, as `session_config` shows it; None if there is none.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            session_id: likewise.
            agent_context: not used.

        Raises:
            InvalidArgument: an id is none.
            CorruptData: the session holds something that this adapter did not write.
            BackendError: the store could not be read. Never reported as None.

        One round trip.
        """
        found = await self._service.get_session(
            app_name=app_name, user_id=user_id, session_id=session_id
        )
        return None if found is None else self._show(found)

    async def list_sessions(
        self, *, app_name: str, user_id: str | None = None
    ) -> ListSessionsResponse:
        """All sessions of a user, with state and without events, the last updated first.

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
        return ListSessionsResponse(sessions=[_session(session) for session in found])

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Remove a session with its events and its state; a missing one is fine.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            session_id: likewise.

        Raises:
            InvalidArgument: an id is none.
            BackendError: the store did not carry it out, or did not say so.

        One round trip.
        """
        await self._service.delete_session(
            app_name=app_name, user_id=user_id, session_id=session_id
        )

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
            SessionNotFound: there is no such session. (The framework's services log it and drop
                the event.)
            InvalidArgument: the framework cannot serialise a part of the event, or the store not
                take it; names the path.
            BackendError: the store did not carry it out, or (maybe_applied) did not say so;
                appending the same event again is safe.

        One round trip.
        """
        if event.partial:
            return event
        count = session.conversation_count
        stored = _FORM.store(event, {"conversation_count": count} if count else None)
        told = written_through(session, self._created)
        shown = await self._service.append_event(told, stored)
        # A Session that the store is told of gets what was stored, or what was there already.
        is_repeated = not told.events or told.events[-1] is not shown
        if is_repeated and any(event.id == other.id for other in session.events):
            return event
        await super().append_event(session, event)
        if is_repeated:
            session.state.update(thaw_all(told.state))
        seen = self._handles.get(session)
        if seen is not None:
            seen.known.add(event.id)
            seen.shown.add(event.id)
            if event.actions.state_delta:
                seen.state.update(deepcopy(event.actions.state_delta))
        return event

    async def update_session(self, session: Session) -> None:
        """Store what was changed in a Session object: its events, its state, its count.

        Changes are told by what this service gave. What others have written since stays.

        Args:
            session: as this service gave it, changed. Of a copy of such an object, events that
                are gone from behind its last one, and state that is gone, count as unchanged.

        Raises:
            SessionNotFound: there is no such session. (The framework's services log it.)
            InvalidArgument: the framework cannot serialise a part of it, or the store not take it;
                names the path.
            CorruptData: the session holds something that this adapter did not write.
            StaleVersion: others wrote again and again meanwhile.
            BackendError: the store did not carry it out, or (maybe_applied) did not say so;
                calling again is safe.

        Two round trips; two more each time that somebody else wrote in between.
        """
        for attempt in range(1, _UPDATE_ATTEMPTS + 1):
            found = await self._service.get_session(
                app_name=session.app_name, user_id=session.user_id, session_id=session.id
            )
            if found is None:
                raise SessionNotFound(f"session {session.id!r} does not exist")
            log = _fold(found)
            seen = self._handles.get(session) or _guess(session, log, thaw_all(found.state))
            entry = self._difference(session, seen, log, _count(found))
            shown = {event.id for event in session.events}
            state = deepcopy(_stored_state(session))
            try:
                if entry is not None:
                    await self._service.append_event(found.key, entry, if_version=found.version)
            except StaleVersion:
                if attempt == _UPDATE_ATTEMPTS:
                    raise
            else:
                break
        if entry is not None:
            seen.shown.difference_update(entry.content["removed"])
        seen.known |= shown
        seen.shown |= shown
        seen.state = state
        self._handles.put(session, seen)

    async def update_session_state(self, session: Session, state_delta: dict[str, Any]) -> None:
        """Set state of a session without an event.

        Args:
            session: as this service gave it; it shows the new state afterwards.
            state_delta: values to set; `app:` and `user:` keys go to their tier, `temp:` keys only
                to `session`.

        Raises:
            SessionNotFound: there is no such session.
            InvalidArgument: a key or a value cannot be stored; names it.
            BackendError: the store did not carry it out, or did not say so.

        One round trip.
        """
        key = SessionKey(session.app_name, session.user_id, session.id)
        await self._service.update_session_state(key, _FORM.freeze_all(state_delta, "state_delta"))
        session.state.update(state_delta)
        seen = self._handles.get(session)
        if seen is not None:
            seen.state.update(deepcopy(state_delta))

    async def close(self) -> None:
        """Close the given service, and the summarizer manager."""
        await super().close()
        await self._service.aclose()

    def _show(self, found: StoredSession) -> Session:
        """A Session of a stored one, as `session_config` has it."""
        config = self._session_config
        log = _fold(found)
        session = _session(found)
        session.events = list(log.active)
        if config.store_historical_events:
            session.historical_events = log.historical
        session.apply_event_filtering(
            config.event_ttl_seconds, config.max_events, config.store_historical_events
        )
        session = self.filter_events(session)
        known = {event.id for event in log.active}
        shown = {event.id for event in session.events}
        self._handles.put(session, _Seen(known, shown, deepcopy(session.state)))
        self._created.put(session, found.created_at)
        return session

    def _difference(
        self, session: Session, seen: _Seen, log: _Log, count: int
    ) -> StoredEvent | None:
        """The log entry that makes the stored session what a Session object is; None = it is."""
        stored = {event.id: event for event in log.active}
        kept = {event.id for event in session.events}
        removed = [name for name in stored if name in seen.shown and name not in kept]
        historical: list[str] = []
        if self._session_config.store_historical_events:
            old = {event.id for event in session.historical_events}
            historical = [name for name in removed if name in old]
        replaced, inserted = [], []
        before: str | None = None  # the event that follows in the store
        for number, event in reversed(list(enumerate(session.events))):
            path = f"session.events[{number}]"
            if event.id in stored:
                before = event.id
                if event != stored[event.id]:
                    replaced.append([event.id, _write(event, path)])
            elif event.id not in seen.known:
                inserted.append([before, _write(event, path)])
        state = _stored_state(session)
        delta = {
            key: value
            for key, value in state.items()
            if key not in seen.state or value != seen.state[key]
        }
        gone = [key for key in seen.state if key not in state]
        is_counted = session.conversation_count == count
        if not (removed or replaced or inserted or delta or gone) and is_counted:
            return None
        content = {
            "removed": removed,
            "historical": historical,
            "replaced": replaced,
            "inserted": inserted[::-1],
            "updated": session.last_update_time,
        }
        return StoredEvent(
            "trpc-agent",
            content,
            state_delta=_FORM.freeze_all(delta, "session.state"),
            state_removed=gone,
            metadata={"conversation_count": session.conversation_count},
        )


class _Log(msgspec.Struct):
    """The events of a session: those in its window, and those that a summary replaced."""

    active: list[Any] = []
    historical: list[Any] = []


def _fold(found: StoredSession) -> _Log:
    """The events of a stored session, with the changes that its log notes."""
    log = _Log()
    for stored in found.events:
        with reading(found, f"event {stored.id!r}", _ADAPTER):
            content = stored.content
            if _is_event(content):
                log.active.append(_FORM.restore(stored))
                continue
            historical = set(content["historical"])
            log.historical += [event for event in log.active if event.id in historical]
            removed = set(content["removed"])
            replaced = {name: _FORM.decode(*written) for name, written in content["replaced"]}
            log.active = [
                replaced.get(event.id, event) for event in log.active if event.id not in removed
            ]
            for before, written in content["inserted"]:
                _insert(log.active, before, _FORM.decode(*written))
    return log


def _insert(events: list[Any], before: str | None, event: Event) -> None:
    """Insert an event before another; one that is gone was among the oldest."""
    if before is None:
        events.append(event)
        return
    names = [other.id for other in events]
    events.insert(names.index(before) if before in names else 0, event)


def _guess(session: Session, log: _Log, state: dict[str, Any]) -> _Seen:
    """What a Session object that this service does not know has probably seen."""
    mine = {event.id for event in session.events}
    names = [event.id for event in log.active]
    while names and names[-1] not in mine:
        del names[-1]
    return _Seen(set(names), set(names), {key: state[key] for key in state if key in session.state})


def _session(found: StoredSession) -> Session:
    """A Session of a stored one that has, if any, its newest event; without events."""
    with reading(found, "its state", _ADAPTER):
        state = thaw_all(found.state)
    updated = found.updated_at.timestamp()
    if found.events:
        with reading(found, "its newest event", _ADAPTER):
            content = found.events[-1].content
            updated = timestamp_of(content) if _is_event(content) else content["updated"]
    return Session(
        id=found.id,
        app_name=found.app_name,
        user_id=found.user_id,
        state=state,
        last_update_time=updated,
        save_key=user_key(found.app_name, found.user_id),
        conversation_count=_count(found),
    )


def _count(found: StoredSession) -> int:
    if not found.events:
        return 0
    count: int = found.events[-1].metadata.get("conversation_count", 0)
    return count


def _stored_state(session: Session) -> dict[str, Any]:
    """The state but for `temp:` keys, which are never stored."""
    state = session.state
    return {key: state[key] for key in state if not key.startswith("temp:")}


def _write(event: Event, path: str) -> list[Any]:
    """An event as text, patches and state delta."""
    delta = event.actions.state_delta
    text, patches = _FORM.encode(event, path)
    return [text, patches, _FORM.freeze_all(delta, f"{path}.actions.state_delta") if delta else {}]


def _is_event(content: Any) -> bool:
    """Whether a log entry is an event, not a change of some."""
    return isinstance(content, str) or "removed" not in content
