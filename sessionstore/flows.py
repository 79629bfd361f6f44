"""Operations as flows: generators that yield Calls and receive their results.

Most operations are one Call. A flow may send several, and it updates the caller's Session, but only
after the store has accepted the write.

In a cluster the app tier may have a slot of its own (`ops.app_in_own_slot`). A read then sends two
Calls together. A write of both is two steps, the session first; each step is safe to repeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from datetime import datetime
from typing import Any, Literal
from uuid import uuid4

import msgspec

from .calls import Call, Flow
from .errors import EventsMissing, InvalidArgument, SessionNotFound, TurnLost
from .model import Event, EventPage, Session, SessionKey, Turn
from .ops import SESSIONS_PER_PAGE_LIMIT, Ops
from .options import Duration, check_instant, check_int, check_milliseconds
from .replies import WriteResult
from .tiers import NO_CHANGE, Change, Delta, encode_change
from .times import from_us, to_us

_SKIPPED_PER_CALL = 1000  # sessions before the offset that one call checks
_LIST_ROUNDS_LIMIT = 100  # pages of expired sessions that one listing prunes

# -- sessions -------------------------------------------------------------------------------------


def create_session(
    ops: Ops, app_name: str, user_id: str, session_id: str | None, state: Mapping[str, Any] | None
) -> Flow[Session]:
    """Create a session. Without an id it gets a new one."""
    key = SessionKey(app_name, user_id, _id_or_new(session_id))
    change = encode_change(ops.options.codec, {} if state is None else state)
    session: Session = yield ops.create_session(key, uuid4().hex, change)
    if ops.app_in_own_slot:
        yield from _update_app_tier(ops, app_name, [change])
    yield from _read_app_tier(ops, session)
    change.apply_to(session.state, only_temp=True)
    return session


def get_or_create_session(
    ops: Ops,
    app_name: str,
    user_id: str,
    session_id: str | None,
    state: Mapping[str, Any] | None,
    event_num: int | None,
    event_time: datetime | None,
) -> Flow[Session]:
    """Create a session unless it exists, and read it."""
    key = SessionKey(app_name, user_id, _id_or_new(session_id))
    change = encode_change(ops.options.codec, {} if state is None else state)
    call = ops.get_or_create_session(key, uuid4().hex, change, event_num, event_time)
    session: Session
    session, is_new = yield call
    if is_new and ops.app_in_own_slot:
        yield from _update_app_tier(ops, app_name, [change])
    yield from _read_app_tier(ops, session)
    change.apply_to(session.state, only_temp=True)
    return session


def get_session(
    ops: Ops, key: SessionKey, event_num: int | None, event_time: datetime | None
) -> Flow[Session | None]:
    """Read a session."""
    call = ops.get_session(key, event_num, event_time)
    session: Session | None
    if not ops.app_in_own_slot:
        session = yield from _read_whole(call)
        return session
    app_call = ops.get_app_state(key.app_name)
    try:
        session, app_state = yield call, app_call
    except EventsMissing:
        session, app_state = yield _from_primary(call), app_call
    if session is not None:
        _add_app_state(session, app_state)
    return session


def list_sessions(
    ops: Ops, app_name: str, user_id: str, limit: int, offset: int, event_num: int
) -> Flow[list[Session]]:
    """Read a page of a user's sessions and prune expired ones from the index.

    A script can only use keys that it was given, so the ids are read first and then the sessions. A
    session that is deleted in between is left out.
    """
    check_int("event_num", event_num, low=0)
    check_int("offset", offset, low=0)
    # Prune the expired sessions before the offset: they must not count.
    skipped = 0
    while skipped < offset:
        count = min(_SKIPPED_PER_CALL, offset - skipped)
        before: list[str] = yield ops.list_session_ids(app_name, user_id, count, skipped)
        if not before:
            return []
        pruned: int = yield ops.prune_index(app_name, user_id, before)
        skipped += len(before) - pruned
    found: list[Session] = []
    for _ in range(_LIST_ROUNDS_LIMIT):
        ids: list[str] = yield ops.list_session_ids(app_name, user_id, limit, offset)
        if not ids:
            return []
        sessions: list[Session | None]
        call = ops.list_sessions(app_name, user_id, ids, event_num)
        app_state: dict[str, Any] = {}
        if ops.app_in_own_slot:
            app_call = ops.get_app_state(app_name, touch=False)
            try:
                sessions, app_state = yield call, app_call
            except EventsMissing:
                sessions, app_state = yield _from_primary(call), app_call
        else:
            sessions = yield from _read_whole(call)
        found = [session for session in sessions if session is not None]
        for session in found:
            _add_app_state(session, deepcopy(app_state))  # sessions share nothing
        if len(found) == len(ids):
            break
        gone = [name for name, session in zip(ids, sessions, strict=True) if session is None]
        yield ops.prune_index(app_name, user_id, gone)
    return found


def count_sessions(ops: Ops, app_name: str, user_id: str) -> Flow[int]:
    """Count a user's sessions, and prune expired ones from the index."""
    count = 0
    while True:
        limit = SESSIONS_PER_PAGE_LIMIT
        ids: list[str] = yield ops.list_session_ids(app_name, user_id, limit, count)
        if ids:
            pruned: int = yield ops.prune_index(app_name, user_id, ids)
            count += len(ids) - pruned
        if len(ids) < limit:
            return count


def list_users(ops: Ops, app_name: str) -> Flow[list[str]]:
    """List the users of an application by a scan of all keys of all servers."""
    slots: list[int | None] = [None]
    if ops.app_in_own_slot:  # users are spread over a cluster
        slots = yield ops.list_primaries()
    users: set[str] = set()
    for slot in slots:
        cursor: int | None = None
        while cursor != 0:
            cursor, found = yield ops.list_users(app_name, slot, cursor or 0)
            users.update(found)
    return sorted(users)


def delete_session(ops: Ops, app_name: str, user_id: str, session_id: str) -> Flow[None]:
    """Delete a session and its log. A missing session is fine."""
    yield ops.delete_session(SessionKey(app_name, user_id, session_id))


def repair_session(ops: Ops, session: Session | SessionKey) -> Flow[Session]:
    """Accept what is left of a session, and read it."""
    repaired: Session = yield ops.repair_session(session_key(session))
    yield from _read_app_tier(ops, repaired)
    return repaired


# -- events ---------------------------------------------------------------------------------------


def append_event(
    ops: Ops,
    session: Session | SessionKey,
    event: Event,
    if_version: int | None,
    turn: Turn | None = None,
) -> Flow[Event]:
    """Append an event. A partial event is only returned."""
    key = session_key(session)
    if turn is not None:
        check_turn(turn)
    prepared = _encode_event(ops, event, "event")
    if prepared is None:
        return event
    data, copy, change = prepared
    timestamp = copy.timestamp
    written: WriteResult = yield ops.append_event(
        key, data, timestamp, change, if_version, turn, _created_us(session)
    )
    if ops.app_in_own_slot:
        yield from _update_app_tier(ops, key.app_name, [change])
    if isinstance(session, Session):
        if written.num_duplicates:
            yield from _reread(ops, session, 1, [change])
        else:
            _add_events(session, [copy], [change], written)
    return copy


def append_events(
    ops: Ops,
    session: Session | SessionKey,
    events: Iterable[Event],
    if_version: int | None,
    turn: Turn | None = None,
) -> Flow[list[Event]]:
    """Append events, all or nothing. Partial events are only returned."""
    key = session_key(session)
    if turn is not None:
        check_turn(turn)
    if isinstance(events, Event) or not isinstance(events, Iterable):
        raise InvalidArgument(f"events must be a list of Events, not {type(events).__name__}")
    results: list[Event] = []
    rows: list[tuple[bytes, datetime, Change]] = []
    stored: list[Event] = []
    for number, event in enumerate(events):
        prepared = _encode_event(ops, event, f"events[{number}]")
        if prepared is None:
            results.append(event)
            continue
        data, copy, change = prepared
        results.append(copy)
        stored.append(copy)
        rows.append((data, copy.timestamp, change))
    if rows:
        changes = [change for _, _, change in rows]
        written: WriteResult = yield ops.append_events(
            key, rows, if_version, turn, _created_us(session)
        )
        if ops.app_in_own_slot:
            yield from _update_app_tier(ops, key.app_name, changes)
        if isinstance(session, Session):
            if written.num_duplicates:
                yield from _reread(ops, session, len(stored), changes)
            else:
                _add_events(session, stored, changes, written)
    return results


def get_events(
    ops: Ops,
    session: Session | SessionKey,
    after: int | None,
    before: int | None,
    limit: int,
) -> Flow[EventPage]:
    """Read a page of the log."""
    call = ops.get_events(session_key(session), after, before, limit)
    page: EventPage = yield from _read_whole(call)
    return page


def pop_event(
    ops: Ops, session: Session | SessionKey, if_version: int | None
) -> Flow[Event | None]:
    """Remove the newest event and return it."""
    found = yield ops.pop_event(session_key(session), if_version, _created_us(session))
    if found is None:
        return None
    event: Event = found[0]
    if isinstance(session, Session):
        session.events[:] = [other for other in session.events if other.id != event.id]
        _set_version(session, found[1])
    return event


def clear_events(ops: Ops, session: Session | SessionKey, if_version: int | None) -> Flow[None]:
    """Remove all events."""
    key = session_key(session)
    written: WriteResult = yield ops.clear_events(key, if_version, _created_us(session))
    if isinstance(session, Session):
        session.events.clear()
        _set_version(session, written)


# -- turns ----------------------------------------------------------------------------------------


def acquire_turn(ops: Ops, session: Session | SessionKey, lease: Duration) -> Flow[Turn]:
    """Acquire the turn of a session."""
    key = session_key(session)
    lease_ms = check_milliseconds("lease", lease)
    turn: Turn = yield ops.acquire_turn(key, uuid4().hex, lease_ms, _created_us(session))
    return turn


def renew_turn(ops: Ops, turn: Turn, lease: Duration) -> Flow[Turn]:
    """Extend the lease of a turn."""
    lease_ms = check_milliseconds("lease", lease)
    renewed: Turn = yield ops.renew_turn(check_turn(turn), lease_ms)
    return renewed


def release_turn(ops: Ops, turn: Turn) -> Flow[None]:
    """Release a turn. A lost turn or a deleted session is fine."""
    with suppress(TurnLost, SessionNotFound):
        yield ops.renew_turn(check_turn(turn), 0)


# -- state ----------------------------------------------------------------------------------------


def update_session_state(
    ops: Ops,
    session: Session | SessionKey,
    state: Mapping[str, Any],
    removed: Iterable[str],
    if_version: int | None,
) -> Flow[None]:
    """Set and remove state in all tiers. Nothing is sent if nothing would change."""
    key = session_key(session)
    change = encode_change(ops.options.codec, state, removed)
    if change.is_stored or if_version is not None:
        written: WriteResult = yield ops.update_session_state(
            key, change, if_version, _created_us(session)
        )
        if ops.app_in_own_slot:
            yield from _update_app_tier(ops, key.app_name, [change])
        if isinstance(session, Session):
            _set_version(session, written)
    if isinstance(session, Session):
        change.apply_to(session.state)


def get_user_state(ops: Ops, app_name: str, user_id: str) -> Flow[dict[str, Any]]:
    """Read the user tier."""
    state: dict[str, Any] = yield ops.get_user_state(app_name, user_id)
    return state


def get_app_state(ops: Ops, app_name: str) -> Flow[dict[str, Any]]:
    """Read the app tier."""
    state: dict[str, Any] = yield ops.get_app_state(app_name)
    return state


def update_user_state(
    ops: Ops, app_name: str, user_id: str, state: Mapping[str, Any], removed: Iterable[str]
) -> Flow[None]:
    """Set and remove state of the user tier. Nothing is sent if nothing would change."""
    change = encode_change(ops.options.codec, state, removed, tier="user")
    call = ops.update_user_state(app_name, user_id, change.user)  # checks the ids in any case
    if change.is_stored:
        yield call


def update_app_state(
    ops: Ops, app_name: str, state: Mapping[str, Any], removed: Iterable[str]
) -> Flow[None]:
    """Set and remove state of the app tier. Nothing is sent if nothing would change."""
    change = encode_change(ops.options.codec, state, removed, tier="app")
    call = ops.update_app_state(app_name, change.app)  # checks the name in any case
    if change.is_stored:
        yield call


# -- shared ---------------------------------------------------------------------------------------


def session_key(session: object) -> SessionKey:
    """The key of a session argument. InvalidArgument unless it is a Session or a SessionKey."""
    if isinstance(session, (Session, SessionKey)):
        return session.key
    kind = type(session).__name__
    raise InvalidArgument(f"session must be a Session or a SessionKey, not {kind}")


def _created_us(session: Session | SessionKey) -> int | Literal[""]:
    """When the Session was created that a write is meant for; "" for a key: any session.

    1970 also stands for any session: adapters make Sessions without knowing more than the key.
    """
    if isinstance(session, SessionKey):
        return ""
    return to_us(check_instant("session.created_at", session.created_at)) or ""


def check_turn(turn: object) -> Turn:
    """A turn argument. InvalidArgument unless it is a Turn."""
    if not isinstance(turn, Turn):
        raise InvalidArgument(f"turn must be a Turn, not {type(turn).__name__}")
    return turn


def _read_whole(call: Call[Any]) -> Flow[Any]:
    """Read a session. What a replica does not have is read again from the primary."""
    try:
        return (yield call)
    except EventsMissing:
        return (yield _from_primary(call))


def _from_primary(call: Call[Any]) -> Call[Any]:
    return msgspec.structs.replace(call, from_primary=True)


def _id_or_new(session_id: str | None) -> str:
    return str(uuid4()) if session_id is None or session_id == "" else session_id


def _encode_event(ops: Ops, event: Event, path: str) -> tuple[bytes, Event, Change] | None:
    """An event's bytes, its copy, and its change of state; None for a partial event."""
    if not isinstance(event, Event):
        raise InvalidArgument(f"{path} must be an Event, not {type(event).__name__}")
    if event.partial:
        return None
    codec = ops.options.codec.for_event(event)
    delta, removed = event.state_delta, event.state_removed
    if not delta and not removed:
        return *codec.encode_event(event, path), NO_CHANGE
    change = encode_change(
        codec, delta, removed, path=f"{path}.state_delta", removed_path=f"{path}.state_removed"
    )
    if any(key.startswith("temp:") for key in (*delta, *removed)):
        event = msgspec.structs.replace(
            event,
            state_delta={key: delta[key] for key in delta if not key.startswith("temp:")},
            state_removed=[key for key in removed if not key.startswith("temp:")],
        )
    return *codec.encode_event(event, path), change


def _add_events(
    session: Session, stored: list[Event], changes: list[Change], written: WriteResult
) -> None:
    """Update the caller's Session after an append of new events."""
    for change in changes:
        if change is not NO_CHANGE:
            change.apply_to(session.state)
    _set_version(session, written)
    session.events += stored
    if written.event_limit:
        del session.events[: -written.event_limit]


def _reread(ops: Ops, session: Session, num_events: int, changes: list[Change]) -> Flow[None]:
    """Update the caller's Session after an append of events that were partly stored already.

    Others may have written after them, so the session is read again.
    """
    event_num = len(session.events) + num_events
    fresh = yield from get_session(ops, session.key, event_num, None)
    if fresh is not None:
        temp = {key: value for key, value in session.state.items() if key.startswith("temp:")}
        session.state, session.events = fresh.state | temp, fresh.events
        session.version, session.updated_at = fresh.version, fresh.updated_at
    for change in changes:
        change.apply_to(session.state, only_temp=True)


def _set_version(session: Session, written: WriteResult) -> None:
    session.version = written.version
    session.updated_at = from_us(written.updated_us)


def _update_app_tier(ops: Ops, app_name: str, changes: Iterable[Change]) -> Flow[None]:
    """The second step of a write, for the app tier in its own slot."""
    deltas = [change.app for change in changes if change is not NO_CHANGE and change.app]
    if deltas:
        yield ops.update_app_state(app_name, Delta.merged(deltas))


def _read_app_tier(ops: Ops, session: Session) -> Flow[None]:
    """The second step of reading a new session, if the app tier has its own slot."""
    if ops.app_in_own_slot:
        _add_app_state(session, (yield ops.get_app_state(session.app_name)))


def _add_app_state(session: Session, app_state: dict[str, Any]) -> None:
    session.state.update((f"app:{name}", value) for name, value in app_state.items())
