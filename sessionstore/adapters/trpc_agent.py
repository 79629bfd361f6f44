"""tRPC-Agent-Python: its session service, on sessionstore.

    from sessionstore.adapters.trpc_agent import TrpcSessionService        # [trpc-agent]

    runner = Runner(..., session_service=TrpcSessionService(RedisSessionService(url)))

The log only grows. What `update_session` changes in it (a summary in place of old events, a
function call taken back) is a View, stored in the session's state. So it is one atomic step, events
that others append meanwhile stay, and a summary is never trimmed.
"""

from __future__ import annotations

from copy import deepcopy
from datetime import datetime
from itertools import chain
from typing import Any

import msgspec

from .. import flows
from ..concurrency import HeldTurn
from ..errors import InvalidArgument, SessionNotFound, StaleVersion
from ..model import Event as StoredEvent
from ..model import Session as StoredSession
from ..options import Duration
from ..service import SessionService
from . import framework

with framework("trpc-agent-py", extra="trpc-agent", tested=">=1.2,<2"):
    from pydantic import PrivateAttr
    from trpc_agent_sdk.abc import CompactSummarizerManagerABC, ListSessionsResponse
    from trpc_agent_sdk.context import AgentContext
    from trpc_agent_sdk.events import Event
    from trpc_agent_sdk.sessions import BaseSessionService, Session, SessionServiceConfig
    from trpc_agent_sdk.utils import user_key

    from .pydantic_events import EventFormat, from_json_state, to_json_state
    from .session_service_base import SessionServiceAdapter, ids_of, reading

__all__ = ["TrpcSessionService"]

_EVENTS = EventFormat(Event, "trpc-agent-py")
_UPDATE_ATTEMPTS = 100  # of update_session, each after somebody else has written
_ABSENT = object()

# Keys of the session's state that the framework does not see.
_VIEW = "trpc-agent:view"
_COUNT = "trpc-agent:conversation_count"


class _Seen(msgspec.Struct, eq=False):
    """What a Session object was given of the store, to tell its changes from those of others.

    All are equal: Session objects are compared by what they show.
    """

    created_at: datetime | None
    shown: set[str]  # ids of events
    state: dict[str, Any]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Seen)


class _Session(Session):
    """A Session that knows what it was given. Its copies know it too."""

    _seen: _Seen | None = PrivateAttr(default=None)


class TrpcSessionService(SessionServiceAdapter, BaseSessionService):
    """tRPC-Agent's session service on a service of sessionstore. See also `SessionServiceAdapter`.

    `close()` closes the summarizer manager. The service that was given stays open.

    Args:
        service: where sessions are stored.
        summarizer_manager: the framework's, as for its own services.
        session_config: the framework's: `max_events`, `num_recent_events` and `event_ttl_seconds`
            limit what is shown of a session, `store_historical_events` (True by default) says
            whether events that a summary replaced are given as `historical_events`. It must not ask
            for a TTL: that is the service's.
        serialize_turns: see `SessionServiceAdapter`, also for the others.
    """

    _name = "TrpcSessionService"
    _format = _EVENTS

    def __init__(
        self,
        service: SessionService,
        summarizer_manager: CompactSummarizerManagerABC | None = None,
        session_config: SessionServiceConfig | None = None,
        *,
        serialize_turns: bool = False,
        turn_lease: Duration = 30.0,
        whole_turns: bool = False,
    ) -> None:
        if session_config is None:
            session_config = SessionServiceConfig(store_historical_events=True)
            session_config.clean_ttl_config()
        elif "ttl" in session_config.model_fields_set and session_config.need_ttl_expire():
            raise InvalidArgument(
                "session_config.ttl is not used: give the service session_ttl, user_state_ttl and "
                "app_state_ttl"
            )
        options = {"summarizer_manager": summarizer_manager, "session_config": session_config}
        super().__init__(service, serialize_turns, turn_lease, whole_turns, **options)

    async def create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        state: dict[str, Any] | None = None,
        session_id: str | None = None,
        agent_context: AgentContext | None = None,  # noqa: ARG002  # the interface has it
    ) -> Session:
        """A new session, or the one of this id, with `state` set in it: nothing else is changed.

        One round trip; two if there is such a session.
        """
        values = to_json_state(state or {}, "state")
        found = await self._service.get_or_create_session(
            app_name=app_name, user_id=user_id, session_id=(session_id or "").strip(), state=values
        )
        if any(found.state.get(key, _ABSENT) != values[key] for key in values):
            await self._service.update_session_state(found, values)
        return self._show(found)

    async def get_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        agent_context: AgentContext | None = None,  # noqa: ARG002  # the interface has it
    ) -> Session | None:
        """A session as it is now, as `session_config` shows it; None if there is none.

        One round trip.
        """
        found = await self._service.get_session(
            app_name=app_name, user_id=user_id, session_id=session_id.strip()
        )
        return None if found is None else self._show(found)

    async def list_sessions(
        self, *, app_name: str, user_id: str | None = None
    ) -> ListSessionsResponse:
        """All sessions of a user, with state and without events, the last updated first.

        Without a user those of all users, found by a walk over all keys of the store. Two round
        trips for up to 1,000 sessions each of a user.
        """
        return ListSessionsResponse(sessions=await self._list(app_name, user_id))

    async def append_event(self, session: Session, event: Event) -> Event:
        """Append an event, exactly once. See `SessionServiceAdapter.append_event`.

        Raises:
            SessionNotFound: there is no such session, or it was deleted and created again. (The
                framework's services log it and drop the event.)

        One round trip; one more if `session.conversation_count` was changed.
        """
        appended: Event = await super().append_event(session, event)
        seen, count = _seen_by(session), session.conversation_count
        if not event.partial and count != seen.state[_COUNT]:
            await self._service.update_session_state(self._handle(session)[0], {_COUNT: count})
            seen.state[_COUNT] = count
        return appended

    async def update_session(self, session: Session) -> None:
        """Store what was changed in a Session object: its events, its state, its count.

        Changes are found by comparing with what this service returned. Later writes of others stay.

        Args:
            session: as this service returned it, with changes. If the caller made the Session,
                events and state that it lacks stay, except `historical_events`.

        Raises:
            SessionNotFound: there is no such session, or it was deleted and created again. (The
                framework's services log it.)
            StaleVersion: others wrote again and again meanwhile.

        Two round trips; two more each time that somebody else wrote in between.
        """
        for attempts_left in range(_UPDATE_ATTEMPTS - 1, -1, -1):
            found = await self._service.get_session(**ids_of(session))
            if found is None:
                raise SessionNotFound(f"session {session.id!r} does not exist")
            changes, gone = self._changes(session, found)
            if not changes and not gone:
                break
            handle, ops = self._handle(session)[0], self._service._ops
            try:
                await self._service._run(
                    flows.update_session_state(ops, handle, changes, gone, found.version)
                )
                break
            except StaleVersion:
                if not attempts_left:
                    raise
        seen = _seen_by(session)
        seen.shown |= {event.id for event in session.events}
        seen.state = deepcopy(_state_to_store(session))

    async def update_session_state(self, session: Session, state_delta: dict[str, Any]) -> None:
        """Set state of a session without an event. One round trip.

        `session` shows the new state afterwards; `temp:` keys reach only it.

        Raises:
            SessionNotFound: there is no such session, or it was deleted and created again.
        """
        values = to_json_state(state_delta, "state_delta")
        await self._service.update_session_state(self._handle(session)[0], values)
        session.state.update(state_delta)
        _seen_by(session).state.update(deepcopy({key: state_delta[key] for key in values}))

    def _runner_in_turn(self, runner: Any, held: HeldTurn) -> Any:
        runner._ensure_post_turn_worker()  # so that the copy shares it, if there is one
        return super()._runner_in_turn(runner, held)

    def _starts_turn(self, event: Event) -> bool:
        return event.is_summary_event() or super()._starts_turn(event)

    def _time_of(self, stored: StoredEvent) -> float:
        if _is_event(stored):
            return super()._time_of(stored)
        return stored.content["updated"]

    def _shown_state(self, found: StoredSession) -> dict[str, Any]:
        state = {key: found.state[key] for key in found.state if key not in (_VIEW, _COUNT)}
        return from_json_state(state)

    def _session(self, found: StoredSession, events: list[Event]) -> _Session:
        newest = found.events[-1].metadata if found.events else {}  # release 0.1.0 counted there
        return _Session(
            **self._fields(found),
            events=events,
            save_key=user_key(found.app_name, found.user_id),
            conversation_count=found.state.get(_COUNT, newest.get("conversation_count", 0)),
        )

    def _show(self, found: StoredSession) -> _Session:
        """A Session of a stored one that has all its events, as `session_config` shows it."""
        config = self._session_config
        _, active, historical = self._events(found)
        session = self._session(found, active)
        if config.store_historical_events:
            session.historical_events = historical
        session.apply_event_filtering(
            config.event_ttl_seconds, config.max_events, config.store_historical_events
        )
        session = self.filter_events(session)
        session.events = self._cut(session.events)
        shown = {event.id for event in session.events}
        session._seen = _Seen(found.created_at, shown, deepcopy(_state_to_store(session)))
        return session

    def _mark(self, session: Session, events: list[Event], shown: StoredSession) -> None:
        seen = _seen_by(session)
        seen.shown |= {event.id for event in events}
        keys = shown.state.keys() & session.state.keys()
        seen.state.update(deepcopy({key: session.state[key] for key in keys}))

    def _marked(self, session: Session) -> tuple[datetime | None, None]:
        return _seen_by(session).created_at, None

    def _changes(self, session: Session, found: StoredSession) -> tuple[dict[str, Any], list[str]]:
        """State to set and to remove, which makes the stored session what a Session object is."""
        state, seen = _state_to_store(session), _seen_by(session)
        changed = {key: state[key] for key in state if seen.state.get(key, _ABSENT) != state[key]}
        values = to_json_state(changed, "session.state")
        log, active, historical = self._events(found)
        view = _to_view(session, log, active, historical)
        active, historical = _merge(session, seen.shown, active, historical)
        if view != (new_view := _to_view(session, log, active, historical)):
            values |= to_json_state({_VIEW: new_view}, "session.events")
        return values, [key for key in seen.state if key not in state]

    def _events(self, found: StoredSession) -> tuple[list[Event], list[Event], list[Event]]:
        """The events of the log, those that are shown, and the historical ones."""
        log: list[Event] = []
        active: list[Event] = []
        historical: list[Event] = []
        for stored in found.events:
            if _is_event(stored):
                log.append(self._event(found, stored))
                active.append(log[-1])
                continue
            with reading(found, f"event {stored.id!r}", self._name):
                active = _apply_change(stored.content, active, historical)
        if _VIEW in found.state:
            with reading(found, "its view of the events", self._name):
                view = from_json_state({_VIEW: found.state[_VIEW]})[_VIEW]
                active, historical = _apply_view(view, log)
        return log, active, historical


# A View says where the events of the log are shown. Its entries are runs of events that stand next
# to each other in the log, as [first id, last id, number], and events that the log does not have
# like that. Every event that was in the log is in an entry; later ones are shown.


def _to_view(
    session: Session, log: list[Event], active: list[Event], historical: list[Event]
) -> dict[str, Any]:
    """The View that shows these events. What errors name are those of the Session."""
    places = {event.id: place for place, event in enumerate(log)}

    def entries(events: list[Event]) -> list[Any]:
        found: list[Any] = []
        before: int | None = None
        for event in events:
            place = places.get(event.id)
            if place is None or not _is_same(event, log[place]):
                found.append({"event": _write(event, session), "is_logged": place is not None})
                place = None
            elif before is not None and place == before + 1:
                found[-1] = [found[-1][0], event.id, found[-1][2] + 1]
            else:
                found.append([event.id, event.id, 1])
            before = place
        return found

    shown = {event.id for event in active + historical}
    dropped = [event for event in log if event.id not in shown]
    kinds = {"active": active, "historical": historical, "dropped": dropped}
    return {kind: entries(events) for kind, events in kinds.items()}


def _apply_view(view: dict[str, Any], log: list[Event]) -> tuple[list[Event], list[Event]]:
    """The events that a View shows, and the historical ones; without those that were removed."""
    places = {event.id: place for place, event in enumerate(log)}
    ends = {-1}  # places where an entry begins or ends
    for entry in chain.from_iterable(view.values()):
        names = entry[:2] if isinstance(entry, list) else [entry["event"][0]["id"]]
        ends |= {places[name] for name in names if name in places}

    def place_run(first_id: str, last_id: str, number: int) -> tuple[int, int]:
        first, last = places.get(first_id), places.get(last_id)
        if last is not None:  # without its first event the run begins after the one before
            before = 1 + max(end for end in ends if end < last)
            return before if first is None else first, last
        if first is not None:  # without its last event the run ends before the next one
            return first, min([first + number - 1, *(end for end in ends if end > first)]) - 1
        return 0, -1

    newest = max(ends)
    found: dict[str, list[Event]] = {}
    for kind, entries in view.items():
        events = found[kind] = []
        for entry in entries:
            if isinstance(entry, list):
                first, last = place_run(*entry)
                newest = max(newest, last)
                events += log[first : last + 1]
            elif not entry["is_logged"] or entry["event"][0]["id"] in places:
                events.append(_read(entry["event"]))
    historical = found["historical"]
    # Replaced summaries go with the events that they followed.
    while historical and historical[0].id not in places:
        del historical[0]
    return found["active"] + log[newest + 1 :], historical


def _merge(
    session: Session, shown: set[str], active: list[Event], historical: list[Event]
) -> tuple[list[Event], list[Event]]:
    """Make changes in the events of the store that were made in a Session object.

    Args:
        session: the Session object.
        shown: the ids of the events that it was given.
        active: the events that are shown.
        historical: the historical ones.
    """
    kept = {event.id: event for event in session.events}
    replaced = {event.id for event in session.historical_events}
    gone = (shown | replaced) - kept.keys()
    historical = historical + [event for event in active if event.id in gone & replaced]
    active = [kept.get(event.id, event) for event in active if event.id not in gone]
    names = [event.id for event in active]
    place = 1 + max((n for n, name in enumerate(names) if name in shown), default=len(names) - 1)
    for event in reversed(session.events):
        if event.id in names:
            place = names.index(event.id)
        elif event.id not in shown:  # those that were shown are trimmed
            active.insert(place, event)
            names.insert(place, event.id)
    return active, historical


def _apply_change(
    change: dict[str, Any], active: list[Event], historical: list[Event]
) -> list[Event]:
    """The events after a change. Release 0.1.0 noted changes in the log."""
    historical += [event for event in active if event.id in change["historical"]]
    replaced = {name: _read(written) for name, written in change["replaced"]}
    active = [replaced.get(e.id, e) for e in active if e.id not in change["removed"]]
    for before, written in change["inserted"]:
        names = [event.id for event in active]
        place = names.index(before) if before in names else 0 if before else len(names)
        active.insert(place, _read(written))
    return active


def _is_event(stored: StoredEvent) -> bool:
    """Whether an entry of the log is an event, and not a change of release 0.1.0."""
    return isinstance(stored.content, str) or "removed" not in stored.content


def _is_same(event: Event, other: Event) -> bool:
    return event == other or _write(event) == _write(other)


def _write(event: Event, session: Session | None = None) -> list[Any]:
    """The JSON and the state delta of an event, of a Session's."""
    events = session.events if session else []
    number = next((n for n, other in enumerate(events) if other is event), "")
    path = f"session.events[{number}]"
    delta = to_json_state(event.actions.state_delta, f"{path}.actions.state_delta")
    return [msgspec.json.decode(_EVENTS.to_json(event, path)), delta]


def _read(written: list[Any]) -> Any:
    """The event of what `_write` gave. Release 0.1.0 wrote patches in between."""
    content, *patches, delta = written
    return _EVENTS.from_json(content, delta, *patches)


def _seen_by(session: Session) -> _Seen:
    """What the store gave to a Session object; if the caller made it, the events that it has."""
    if isinstance(session, _Session) and session._seen:
        return session._seen
    return _Seen(None, {event.id for event in session.events}, {_COUNT: 0})


def _state_to_store(session: Session) -> dict[str, Any]:
    """The state and the count of a Session object, without `temp:` keys."""
    state = {key: session.state[key] for key in session.state if not key.startswith("temp:")}
    return {**state, _COUNT: session.conversation_count}
