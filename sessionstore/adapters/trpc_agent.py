"""tRPC-Agent-Python: its session service, on sessionstore.

    from sessionstore.adapters.trpc_agent import TrpcSessionService        # [trpc-agent]

    runner = Runner(..., session_service=TrpcSessionService(RedisSessionService(url)))

An event is stored as the framework's own JSON, its state delta beside it where the store applies
it. The log only grows. What `update_session` changes in it (a summary in place of old events, a
function call taken back) is a View, stored in the session's state. So it is one atomic step, events
that others append meanwhile stay, and a summary is never trimmed.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from datetime import datetime
from typing import Any

import msgspec

from .. import flows
from ..concurrency import HeldTurn
from ..errors import InvalidArgument, SessionExists, SessionNotFound, StaleVersion
from ..model import Session as StoredSession
from ..model import SessionKey
from ..options import Duration, check_bool
from ..service import SessionService
from ..windows import Window, choose
from . import framework

with framework("trpc-agent-py", extra="trpc-agent", tested=">=1.2,<2"):
    from pydantic import PrivateAttr
    from trpc_agent_sdk.abc import CompactSummarizerManagerABC, ListSessionsResponse
    from trpc_agent_sdk.context import AgentContext
    from trpc_agent_sdk.events import Event
    from trpc_agent_sdk.sessions import BaseSessionService, Session, SessionServiceConfig
    from trpc_agent_sdk.utils import user_key

    from ._shared import (
        EventFormat,
        RunsInTurn,
        all_sessions,
        check_service,
        from_json_state,
        function_calls,
        handle_of,
        reading,
        timestamp_of,
        to_json_state,
    )

__all__ = ["TrpcSessionService"]

_EVENTS: EventFormat[Any] = EventFormat(Event, "trpc-agent-py")
_ADAPTER = "TrpcSessionService"
_UPDATE_ATTEMPTS = 100  # of update_session, each after somebody else has written

# Keys of the session's state that the framework does not see.
_VIEW = "trpc-agent:view"
_COUNT = "trpc-agent:conversation_count"


class _Added(msgspec.Struct, omit_defaults=True):
    """An event that `update_session` added."""

    after: str | None  # id of the event of the log that it follows; None = it comes first
    event: msgspec.Raw
    state_delta: dict[str, Any] = {}
    is_active: bool = True


class _View(msgspec.Struct, omit_defaults=True):
    """How the events that a Session shows differ from the log. Ids of trimmed events may remain."""

    upto: str | None = None  # the events of the log up to this one are removed
    removed: list[str] = []  # others that are removed
    dropped: list[str] = []  # removed ones that are not historical events either
    replaced: dict[str, list[Any]] = {}  # JSON and state delta, by id
    added: list[_Added] = []
    updated: float = 0.0


class _Item(msgspec.Struct):
    """An event of a session, active or historical."""

    event: Any
    is_active: bool = True
    path: str = "a stored event"
    is_dropped: bool = False
    is_replaced: bool = False
    is_added: bool = False


class _Seen(msgspec.Struct, eq=False):
    """What a Session object was given of the store, to tell its changes from those of others.

    All are equal: Session objects are compared by what they show.
    """

    created_at: datetime
    known: set[str]  # ids of all events that were there
    shown: set[str]  # of those that it got
    state: dict[str, Any]
    count: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Seen)


class _Session(Session):
    """A Session that knows what it was given. Its copies know it too."""

    _seen: _Seen | None = PrivateAttr(default=None)


class TrpcSessionService(RunsInTurn, BaseSessionService):
    """tRPC-Agent's session service on a service of sessionstore.

    TTLs and the limit of stored events are options of the given service. Appends through any
    number of Session objects of one session are all stored, in the order of their arrival. Ids are
    1 to 256 bytes of UTF-8. `create_session` ignores white space around a session id; None makes a
    UUID.

    Args:
        service: where sessions are stored: `RedisSessionService` or `InMemorySessionService`. You
            close it yourself.
        summarizer_manager: the framework's, as for its own services.
        session_config: the framework's: `max_events`, `num_recent_events` and `event_ttl_seconds`
            limit what is shown of a session, `store_historical_events` (True by default) says
            whether events that a summary replaced are given as `historical_events`.
        serialize_turns: True = one run at a time works on a session, in any process; others wait.
            Start each run with `sessions.run(runner, ...)`.
        turn_lease: a timedelta or seconds, from 1 ms. After a crash the session is free again when
            the lease ends.
        whole_turns: True = the events of a session never begin inside a turn: they begin with a
            summary or a user's message, and every function response follows its call.

    Raises:
        InvalidArgument: an argument is not valid, `service` is not a service for asyncio, or
            `session_config` asks for a TTL.
    """

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
        self._service = check_service(_ADAPTER, service)
        self._whole_turns = check_bool("whole_turns", whole_turns)
        self._set_turns(serialize_turns, turn_lease)
        if session_config is None:
            session_config = SessionServiceConfig(store_historical_events=True)
            session_config.clean_ttl_config()
        elif "ttl" in session_config.model_fields_set and session_config.need_ttl_expire():
            raise InvalidArgument(
                "session_config.ttl is not used: give the service session_ttl, user_state_ttl and "
                "app_state_ttl"
            )
        super().__init__(summarizer_manager=summarizer_manager, session_config=session_config)

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
            state: state to set; `app:` and `user:` keys go to their tier, `temp:` nowhere.

        Raises:
            InvalidArgument: an id or a value cannot be stored; names it.
            BackendError: the store did not carry it out, or did not say so.

        One round trip; two more if there is such a session.
        """
        frozen = to_json_state(state or {}, "state")
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

        Raises:
            InvalidArgument: an id is not valid.
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
            user_id: None = all users, found by a walk over all keys of the store.

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

        Raises:
            InvalidArgument: an id is not valid.
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
            SessionNotFound: there is no such session, or it was deleted and created again. (The
                framework's services log it and drop the event.)
            TurnLost: in `run`, another run took the turn over.
            InvalidArgument: the framework cannot serialize a part of the event, or the store not
                take it; names it.
            BackendError: the store did not carry it out, or (maybe_applied) did not say so;
                appending the same event again is safe.

        One round trip; a second one if `session.conversation_count` was changed.
        """
        if event.partial:
            return event
        turn = self._check_turn(event)
        stored = _EVENTS.store(event)
        handle = _handle(session)
        shown = await self._service.append_event(handle, stored, turn=turn)
        seen = _seen_by(session)
        is_new = bool(handle.events) and handle.events[-1] is shown
        if is_new or all(event.id != other.id for other in session.events):
            await super().append_event(session, event)
            if seen is not None:
                seen.known.add(event.id)
                seen.shown.add(event.id)
                seen.state.update(deepcopy(event.actions.state_delta))
        if not is_new:  # others may have written after it
            state = _shown_state(handle)
            session.state.update(state)
            if seen is not None:
                seen.state.update(deepcopy(state))
        count = session.conversation_count
        if count != (seen.count if seen else 0):
            await self._service.update_session_state(handle, {_COUNT: count})
            if seen is not None:
                seen.count = count
        return event

    async def update_session(self, session: Session) -> None:
        """Store what was changed in a Session object: its events, its state, its count.

        Changes are told by what this service gave. What others have written since stays.

        Args:
            session: as this service gave it, changed. Of a Session that was made anew, events
                that are gone from behind its last one, and state that is gone, count as unchanged.

        Raises:
            SessionNotFound: there is no such session, or it was deleted and created again. (The
                framework's services log it.)
            InvalidArgument: the framework cannot serialize a part of it, or the store not take it;
                names it.
            CorruptData: the session holds something that this adapter did not write.
            StaleVersion: others wrote again and again meanwhile.
            BackendError: the store did not carry it out, or (maybe_applied) did not say so;
                calling again is safe.

        Two round trips; two more each time that somebody else wrote in between.
        """
        for attempts_left in range(_UPDATE_ATTEMPTS - 1, -1, -1):
            found = await self._service.get_session(
                app_name=session.app_name, user_id=session.user_id, session_id=session.id
            )
            if found is None:
                raise SessionNotFound(f"session {session.id!r} does not exist")
            items = _items(found)
            seen = _seen_by(session) or _guess(session, items, found)
            changes, gone = self._changes(session, seen, items, found)
            try:
                if changes or gone:
                    handle, version = _handle(session), found.version
                    ops = self._service._ops
                    await self._service._run(
                        flows.update_session_state(ops, handle, changes, gone, version)
                    )
                break
            except StaleVersion:
                if not attempts_left:
                    raise
        shown = {event.id for event in session.events}
        seen.known |= shown
        seen.shown = shown
        seen.state = deepcopy(_state_to_store(session))
        seen.count = session.conversation_count

    async def update_session_state(self, session: Session, state_delta: dict[str, Any]) -> None:
        """Set state of a session without an event.

        Args:
            session: as this service gave it; it shows the new state afterwards.
            state_delta: values to set; `app:` and `user:` keys go to their tier, `temp:` keys only
                to `session`.

        Raises:
            SessionNotFound: there is no such session, or it was deleted and created again.
            InvalidArgument: a key or a value cannot be stored; names it.
            BackendError: the store did not carry it out, or did not say so.

        One round trip.
        """
        values = to_json_state(state_delta, "state_delta")
        await self._service.update_session_state(_handle(session), values)
        session.state.update(state_delta)
        seen = _seen_by(session)
        if seen is not None:
            seen.state.update(deepcopy(_without_temp(state_delta)))

    async def close(self) -> None:
        """Close the summarizer manager. The service that was given stays open."""
        await super().close()

    def _runner_in_turn(self, runner: Any, held: HeldTurn) -> Any:
        runner._ensure_post_turn_worker()  # so that the copy shares it, if there is one
        return super()._runner_in_turn(runner, held)

    def _show(self, found: StoredSession) -> Session:
        """A Session of a stored one, as `session_config` has it."""
        config = self._session_config
        items = _items(found)
        session = _session(found)
        session.events = [item.event for item in items if item.is_active]
        if config.store_historical_events:
            session.historical_events = [
                item.event for item in items if not item.is_active and not item.is_dropped
            ]
        session.apply_event_filtering(
            config.event_ttl_seconds, config.max_events, config.store_historical_events
        )
        session = self.filter_events(session)
        if self._whole_turns:
            events = choose(_WINDOW, session.events, is_whole_log=True, is_trimmed=True)
            session.events = events or []
        known = {item.event.id for item in items}
        shown = {event.id for event in session.events}
        count = session.conversation_count
        state = deepcopy(session.state)
        session._seen = _Seen(found.created_at, known, shown, state, count)
        return session

    def _changes(
        self, session: Session, seen: _Seen, items: list[_Item], found: StoredSession
    ) -> tuple[dict[str, Any], list[str]]:
        """State to set and to remove, which makes the stored session what a Session object is."""
        state = _state_to_store(session)
        changed = {
            key: value
            for key, value in state.items()
            if key not in seen.state or value != seen.state[key]
        }
        values = to_json_state(changed, "session.state")
        if session.conversation_count != _count(found):
            values[_COUNT] = session.conversation_count
        items = self._merge(session, seen, items)
        view = msgspec.json.decode(msgspec.json.encode(_to_view(items)))
        updated = session.last_update_time
        if view | {"updated": updated} != found.state.get(_VIEW, {}) | {"updated": updated}:
            values[_VIEW] = view | {"updated": updated}
        return values, [key for key in seen.state if key not in state]

    def _merge(self, session: Session, seen: _Seen, items: list[_Item]) -> list[_Item]:
        """The events of the store, with the changes that were made in a Session object."""
        kept = {event.id: number for number, event in enumerate(session.events)}
        config = self._session_config
        historical = {event.id for event in session.historical_events}
        for item in items:
            name = item.event.id
            if not item.is_active:
                continue
            if name in kept:
                event, path = session.events[kept[name]], f"session.events[{kept[name]}]"
                if event != item.event and _write(event, path) != _write(item.event, path):
                    item.event, item.path, item.is_replaced = event, path, not item.is_added
            elif name in seen.shown:
                item.is_active = False
                item.is_dropped = config.store_historical_events and name not in historical
        items = [item for item in items if not (item.is_added and item.is_dropped)]
        names = [item.event.id for item in items]
        place = 1 + max((n for n, name in enumerate(names) if name in seen.known), default=-1)
        for number, event in reversed(list(enumerate(session.events))):
            if event.id in names:
                place = names.index(event.id)
            elif event.id not in seen.known:
                items.insert(place, _Item(event, path=f"session.events[{number}]", is_added=True))
                names.insert(place, event.id)
        return items


def _items(found: StoredSession) -> list[_Item]:
    """All events of a stored session in order, with the changes that its View notes."""
    items = _logged_items(found)
    if _VIEW not in found.state:
        return items
    with reading(found, "its view of the events", _ADAPTER):
        view = _decode_view(found.state[_VIEW])
        names = [item.event.id for item in items]
        num_removed = names.index(view.upto) + 1 if view.upto in names else 0
        removed = {*view.removed, *names[:num_removed]}
        added: dict[str | None, list[_Item]] = {}
        for each in view.added:
            after = each.after if each.after in names else None
            # A historical event goes when the event that it follows is trimmed.
            if each.is_active or after is not None:
                event = _read([each.event, each.state_delta])
                item = _Item(event, each.is_active, is_added=True)
                added.setdefault(after, []).append(item)
        result = added.get(None, [])
        for item in items:
            name = item.event.id
            if name in view.replaced:
                item.event, item.is_replaced = _read(view.replaced[name]), True
            item.is_active = item.is_active and name not in removed
            item.is_dropped = name in view.dropped
            result += [item, *added.get(name, ())]
        return result


def _to_view(items: list[_Item]) -> _View:
    """The View of events of which some differ from the log."""
    view = _View()
    last: str | None = None  # of the log
    is_prefix = True
    for item in items:
        name = item.event.id
        if item.is_added:
            json, delta = _write(item.event, item.path)
            view.added.append(_Added(last, json, delta, item.is_active))
            continue
        last = name
        is_prefix = is_prefix and not item.is_active
        if is_prefix:
            view.upto = name
        elif not item.is_active:
            view.removed.append(name)
        if item.is_dropped:
            view.dropped.append(name)
        if item.is_replaced:
            view.replaced[name] = _write(item.event, item.path)
    return view


def _decode_view(value: Any) -> _View:
    return msgspec.json.decode(msgspec.json.encode(value), type=_View)


def _logged_items(found: StoredSession) -> list[_Item]:
    """The events of the log. Release 0.1.0 noted changes in the log, not in a View."""
    active: list[Any] = []
    historical: list[Any] = []
    for stored in found.events:
        with reading(found, f"event {stored.id!r}", _ADAPTER):
            content = stored.content
            if _is_event(content):
                active.append(_EVENTS.restore(stored))
                continue
            historical += [event for event in active if event.id in content["historical"]]
            replaced = {name: _read(written) for name, written in content["replaced"]}
            active = [
                replaced.get(event.id, event)
                for event in active
                if event.id not in content["removed"]
            ]
            for before, written in content["inserted"]:
                names = [event.id for event in active]
                place = names.index(before) if before in names else 0 if before else len(names)
                active.insert(place, _read(written))
    return [_Item(event, is_active=False) for event in historical] + [_Item(e) for e in active]


def _write(event: Event, path: str) -> list[Any]:
    """An event as JSON and state delta."""
    delta = to_json_state(event.actions.state_delta, f"{path}.actions.state_delta")
    return [msgspec.Raw(_EVENTS.to_json(event, path)), delta]


def _read(written: list[Any]) -> Any:
    """The event of what `_write` gave. Release 0.1.0 wrote text, patches and state delta."""
    content, *patches, delta = written
    if isinstance(content, msgspec.Raw):
        content = msgspec.json.decode(content)
    return _EVENTS.from_json(content, delta, *patches)


def _is_event(content: Any) -> bool:
    """Whether an entry of the log is an event; release 0.1.0 also wrote changes there."""
    return isinstance(content, str) or "removed" not in content


def _guess(session: Session, items: Iterable[_Item], found: StoredSession) -> _Seen:
    """What a Session object that was made anew has probably seen."""
    shown = {event.id for event in session.events}
    names = [item.event.id for item in items]
    while names and names[-1] not in shown:
        del names[-1]
    state = {key: value for key, value in _shown_state(found).items() if key in session.state}
    return _Seen(found.created_at, set(names), set(names), state, _count(found))


def _seen_by(session: Session) -> _Seen | None:
    return session._seen if isinstance(session, _Session) else None


def _handle(session: Session) -> StoredSession:
    """A Session for a write through the framework's object, only to the session that it shows."""
    seen = _seen_by(session)
    key = SessionKey(session.app_name, session.user_id, session.id)
    return handle_of(key, seen.created_at if seen else None)


def _starts_turn(event: Any) -> bool:
    """Whether an event is a summary, or a user's message that does not answer a function call."""
    if event.is_summary_event():
        return True
    return event.author == "user" and event.content is not None and not function_calls(event)[1]


_WINDOW = Window(starts_turn=_starts_turn, calls=function_calls)


def _session(found: StoredSession) -> _Session:
    """A Session of a stored one that has, if any, its newest event; without events."""
    with reading(found, "its state", _ADAPTER):
        state = _shown_state(found)
        updated = found.updated_at.timestamp()
        if _VIEW in found.state:
            updated = _decode_view(found.state[_VIEW]).updated
    if found.events:
        with reading(found, "its newest event", _ADAPTER):
            content = found.events[-1].content
            stamp = timestamp_of(content) if _is_event(content) else content["updated"]
            updated = max(stamp, updated) if _VIEW in found.state else stamp
    return _Session(
        id=found.id,
        app_name=found.app_name,
        user_id=found.user_id,
        state=state,
        last_update_time=updated,
        save_key=user_key(found.app_name, found.user_id),
        conversation_count=_count(found),
    )


def _count(found: StoredSession) -> int:
    """The framework's count; release 0.1.0 kept it beside the events."""
    newest = found.events[-1].metadata if found.events else {}
    count: int = found.state.get(_COUNT, newest.get("conversation_count", 0))
    return count


def _shown_state(found: StoredSession) -> dict[str, Any]:
    """The state that the framework sees."""
    state = {key: found.state[key] for key in found.state if key not in (_VIEW, _COUNT)}
    return from_json_state(state)


def _state_to_store(session: Session) -> dict[str, Any]:
    return _without_temp(session.state)


def _without_temp(state: dict[str, Any]) -> dict[str, Any]:
    """The state without `temp:` keys, which are never stored."""
    return {key: state[key] for key in state if not key.startswith("temp:")}
