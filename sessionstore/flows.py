"""Operations that take several Calls, or that change the caller's Session: generators of Calls.

A flow yields a Call and is sent its result, or several Calls, which go out together, and is sent
theirs; its return value is the operation's. A caller's Session changes only after the store has
accepted the write.

In a cluster the app tier may be in a slot of its own (`ops.app_in_own_slot`). Then a read sends two
Calls together. A write of both is two steps, the session's first. Each step may be repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from datetime import datetime
from typing import Any
from uuid import uuid4

import msgspec

from .calls import Flow
from .errors import InvalidArgument, SessionNotFound, TurnLost
from .model import Event, EventPage, Session, SessionKey, Turn
from .ops import Ops
from .options import Duration, check_int, check_milliseconds
from .replies import WriteResult
from .tiers import NO_CHANGE, Change, Delta, split
from .times import from_us

_SKIPPED_PER_CALL = 1000  # sessions before the offset that one call looks at
_LIST_ROUNDS_LIMIT = 100  # pages of expired sessions that one listing prunes


def create_session(
    ops: Ops, app_name: str, user_id: str, session_id: str | None, state: Mapping[str, Any] | None
) -> Flow[Session]:
    """Create a session; an empty id makes a new one."""
    key = SessionKey(app_name, user_id, _or_new_id(session_id))
    change = _initial(ops, state)
    session: Session = yield ops.create_session(key, uuid4().hex, change)
    yield from _write_app(ops, app_name, [change])
    if ops.app_in_own_slot:
        _show_app(session, (yield ops.get_app_state(app_name)))
    change.apply_temp(session.state)
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
    key = SessionKey(app_name, user_id, _or_new_id(session_id))
    change = _initial(ops, state)
    call = ops.get_or_create_session(key, uuid4().hex, change, event_num, event_time)
    session: Session
    session, is_new = yield call
    if is_new:
        yield from _write_app(ops, app_name, [change])
    if ops.app_in_own_slot:
        _show_app(session, (yield ops.get_app_state(app_name)))
    change.apply_temp(session.state)
    return session


def get_session(
    ops: Ops, key: SessionKey, event_num: int | None, event_time: datetime | None
) -> Flow[Session | None]:
    """Read a session."""
    call = ops.get_session(key, event_num, event_time)
    session: Session | None
    if not ops.app_in_own_slot:
        session = yield call
        return session
    session, app_state = yield call, ops.get_app_state(key.app_name)
    if session is not None:
        _show_app(session, app_state)
    return session


def list_sessions(
    ops: Ops, app_name: str, user_id: str, limit: int, offset: int, event_num: int
) -> Flow[list[Session]]:
    """Read a page of a user's sessions; expired ones are pruned from the index on the way.

    Two steps, because a script may touch only keys that it is given: the ids first, then the
    sessions; with an offset two more for every thousand sessions before it. One that is deleted
    in between is left out as if it had been deleted before.
    """
    check_int("event_num", event_num, low=0)
    check_int("offset", offset, low=0)
    found: list[Session] = []
    # Expired sessions must not count for the offset either.
    skipped = 0
    while skipped < offset:
        count = min(_SKIPPED_PER_CALL, offset - skipped)
        before: list[str] = yield ops.list_session_ids(app_name, user_id, count, skipped)
        if not before:
            return []
        pruned: int = yield ops.prune_index(app_name, user_id, before)
        skipped += len(before) - pruned
    for _ in range(_LIST_ROUNDS_LIMIT):
        ids: list[str] = yield ops.list_session_ids(app_name, user_id, limit, offset)
        if not ids:
            return []
        sessions: list[Session | None]
        call = ops.list_sessions(app_name, user_id, ids, event_num)
        app_state: dict[str, Any] = {}
        if ops.app_in_own_slot:
            sessions, app_state = yield call, ops.get_app_state(app_name, touch=False)
        else:
            sessions = yield call
        found = [session for session in sessions if session is not None]
        for session in found:
            _show_app(session, deepcopy(app_state))  # sessions share nothing
        if len(found) == len(ids):
            break
        gone = [name for name, session in zip(ids, sessions, strict=True) if session is None]
        yield ops.prune_index(app_name, user_id, gone)
    return found


def list_users(ops: Ops, app_name: str) -> Flow[list[str]]:
    """The users of an application, by a walk over all keys of all servers."""
    slots: list[int | None] = [None]
    if ops.app_in_own_slot:  # and so users are spread over a cluster
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


def append_event(
    ops: Ops,
    session: Session | SessionKey,
    event: Event,
    if_version: int | None,
    turn: Turn | None = None,
) -> Flow[Event]:
    """Append an event; a partial one is only handed back."""
    key = session_key(session)
    if turn is not None:
        check_turn(turn)
    prepared = _prepare(ops, event, "event")
    if prepared is None:
        return event
    data, copy, change = prepared
    timestamp = copy.timestamp
    written: WriteResult = yield ops.append_event(key, data, timestamp, change, if_version, turn)
    yield from _write_app(ops, key.app_name, [change])
    if isinstance(session, Session):
        if written.num_duplicates:
            yield from _show_repeated(ops, session, [copy], [change])
        else:
            _show_appended(ops, session, [copy], [change], written)
    return copy


def append_events(
    ops: Ops,
    session: Session | SessionKey,
    events: Iterable[Event],
    if_version: int | None,
    turn: Turn | None = None,
) -> Flow[list[Event]]:
    """Append events, all or nothing; partial ones are only handed back."""
    key = session_key(session)
    if turn is not None:
        check_turn(turn)
    if isinstance(events, Event) or not isinstance(events, Iterable):
        raise InvalidArgument(f"events must be a list of Events, not {type(events).__name__}")
    results: list[Event] = []
    rows: list[tuple[bytes, datetime, Change]] = []
    stored: list[Event] = []
    for number, event in enumerate(events):
        prepared = _prepare(ops, event, f"events[{number}]")
        if prepared is None:
            results.append(event)
            continue
        data, copy, change = prepared
        results.append(copy)
        stored.append(copy)
        rows.append((data, copy.timestamp, change))
    if rows:
        changes = [change for _, _, change in rows]
        written: WriteResult = yield ops.append_events(key, rows, if_version, turn)
        yield from _write_app(ops, key.app_name, changes)
        if isinstance(session, Session):
            if written.num_duplicates:
                yield from _show_repeated(ops, session, stored, changes)
            else:
                _show_appended(ops, session, stored, changes, written)
    return results


def _prepare(ops: Ops, event: Event, path: str) -> tuple[bytes, Event, Change] | None:
    """An event's bytes, its copy and its change of state; None for a partial one."""
    if not isinstance(event, Event):
        raise InvalidArgument(f"{path} must be an Event, not {type(event).__name__}")
    if event.partial:
        return None
    codec = ops.options.codec.for_event(event)
    if not event.state_delta and not event.state_removed:
        return *codec.encode_event(event, path), NO_CHANGE
    change = split(
        codec,
        event.state_delta,
        event.state_removed,
        path=f"{path}.state_delta",
        removed_path=f"{path}.state_removed",
    )
    return *codec.encode_event(_without_temp(event), path), change


def _show_appended(
    ops: Ops, session: Session, stored: list[Event], changes: list[Change], written: WriteResult
) -> None:
    """Let the caller's Session show what was appended."""
    for change in changes:
        if change is not NO_CHANGE:
            change.apply(session.state)
    _mark(session, written)
    session.events += stored
    event_limit = ops.options.session_event_limit
    if event_limit:
        del session.events[:-event_limit]


def _show_repeated(
    ops: Ops, session: Session, stored: list[Event], changes: list[Change]
) -> Flow[None]:
    """Let the caller's Session show what is there after an append that changed it in part or not
    at all.
    """
    event_num = len(session.events) + len(stored)
    fresh: Session | None = yield from get_session(ops, session.key, event_num, None)
    if fresh is not None:
        temp = {key: value for key, value in session.state.items() if key.startswith("temp:")}
        session.state, session.events = fresh.state | temp, fresh.events
        session.version, session.updated_at = fresh.version, fresh.updated_at
    for change in changes:
        change.apply_temp(session.state)


def get_events(
    ops: Ops,
    session: Session | SessionKey,
    after: int | None,
    before: int | None,
    limit: int,
) -> Flow[EventPage]:
    """Read a page of the log."""
    page: EventPage = yield ops.get_events(session_key(session), after, before, limit)
    return page


def pop_event(
    ops: Ops, session: Session | SessionKey, if_version: int | None
) -> Flow[Event | None]:
    """Remove the newest event, and hand it back."""
    found = yield ops.pop_event(session_key(session), if_version)
    if found is None:
        return None
    event: Event = found[0]
    if isinstance(session, Session):
        session.events[:] = [other for other in session.events if other.id != event.id]
        _mark(session, found[1])
    return event


def clear_events(ops: Ops, session: Session | SessionKey, if_version: int | None) -> Flow[None]:
    """Remove all events."""
    written: WriteResult = yield ops.clear_events(session_key(session), if_version)
    if isinstance(session, Session):
        session.events.clear()
        _mark(session, written)


def acquire_turn(ops: Ops, session: Session | SessionKey, lease: Duration) -> Flow[Turn]:
    """Take the turn of a session."""
    key = session_key(session)
    lease_ms = check_milliseconds("lease", lease)
    turn: Turn = yield ops.acquire_turn(key, uuid4().hex, lease_ms)
    return turn


def renew_turn(ops: Ops, turn: Turn, lease: Duration) -> Flow[Turn]:
    """Move the end of a turn's lease."""
    lease_ms = check_milliseconds("lease", lease)
    renewed: Turn = yield ops.renew_turn(check_turn(turn), lease_ms)
    return renewed


def release_turn(ops: Ops, turn: Turn) -> Flow[None]:
    """Give a turn back. A turn that was lost is fine, and so is a session that is gone."""
    with suppress(TurnLost, SessionNotFound):
        yield ops.renew_turn(check_turn(turn), 0)


def update_session_state(
    ops: Ops,
    session: Session | SessionKey,
    state: Mapping[str, Any],
    removed: Iterable[str],
    if_version: int | None,
) -> Flow[None]:
    """Set and remove state in all tiers. Nothing is sent when nothing would change."""
    key = session_key(session)
    change = split(ops.options.codec, state, removed, path="state", removed_path="keys")
    if change.is_stored or if_version is not None:
        written: WriteResult = yield ops.update_session_state(key, change, if_version)
        yield from _write_app(ops, key.app_name, [change])
        if isinstance(session, Session):
            _mark(session, written)
    if isinstance(session, Session):
        change.apply(session.state)


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
    """Set and remove state of the user tier. Nothing is sent when nothing would change."""
    change = split(
        ops.options.codec, state, removed, path="state", removed_path="keys", tier="user"
    )
    call = ops.update_user_state(app_name, user_id, change.user)
    if change.is_stored:
        yield call


def update_app_state(
    ops: Ops, app_name: str, state: Mapping[str, Any], removed: Iterable[str]
) -> Flow[None]:
    """Set and remove state of the app tier. Nothing is sent when nothing would change."""
    change = split(ops.options.codec, state, removed, path="state", removed_path="keys", tier="app")
    call = ops.update_app_state(app_name, change.app)
    if change.is_stored:
        yield call


def _write_app(ops: Ops, app_name: str, changes: Iterable[Change]) -> Flow[None]:
    """The second step of a write whose app tier is apart."""
    if not ops.app_in_own_slot:
        return
    deltas = [change.app for change in changes if change is not NO_CHANGE and change.app]
    if deltas:
        yield ops.update_app_state(app_name, Delta.joined(deltas))


def _show_app(session: Session, app_state: dict[str, Any]) -> None:
    session.state.update((f"app:{name}", value) for name, value in app_state.items())


def session_key(session: object) -> SessionKey:
    """The key of what a caller gave as a session.

    Raises:
        InvalidArgument: it is neither a Session nor a SessionKey.
    """
    if isinstance(session, (Session, SessionKey)):
        return session.key
    kind = type(session).__name__
    raise InvalidArgument(f"session must be a Session or a SessionKey, not {kind}")


def check_turn(turn: object) -> Turn:
    """What a caller gave as a turn.

    Raises:
        InvalidArgument: it is none.
    """
    if not isinstance(turn, Turn):
        raise InvalidArgument(f"turn must be a Turn, not {type(turn).__name__}")
    return turn


def _or_new_id(session_id: str | None) -> str:
    return str(uuid4()) if session_id is None or session_id == "" else session_id


def _initial(ops: Ops, state: Mapping[str, Any] | None) -> Change:
    return split(ops.options.codec, {} if state is None else state, path="state", removed_path="")


def _without_temp(event: Event) -> Event:
    delta, removed = event.state_delta, event.state_removed
    if not any(key.startswith("temp:") for key in (*delta, *removed)):
        return event
    return msgspec.structs.replace(
        event,
        state_delta={key: delta[key] for key in delta if not key.startswith("temp:")},
        state_removed=[key for key in removed if not key.startswith("temp:")],
    )


def _mark(session: Session, written: WriteResult) -> None:
    session.version = written.version
    session.updated_at = from_us(written.updated_us)
