"""Operations as flows: generators that yield Calls and receive their results.

Most operations are one Call. A flow may send several, and it updates the caller's Session, but only
after the store has accepted the write.

In a cluster the app tier may have a slot of its own (`ops.app_in_own_slot`). A read then sends two
Calls together, and a write of both is several steps: see app_tier.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sized
from contextlib import nullcontext, suppress
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import msgspec

from .app_tier import (
    add_app_state,
    app_state_written,
    copied_app_state,
    is_apart,
    read_app_state,
    refuse_app_increments,
    run_app_write,
    write_apart,
    write_app_state,
)
from .calls import Call, Flow, describe
from .errors import (
    EventsMissing,
    InvalidArgument,
    LimitExceeded,
    SessionExists,
    SessionNotFound,
    TurnLost,
)
from .keyed import introducing, introducing_if_new, keyed
from .listing import count_sessions as count_sessions
from .listing import delete_user as delete_user
from .listing import from_primary, prune_index, read_whole
from .listing import list_sessions as list_sessions
from .listing import list_users as list_users
from .model import Event, EventPage, Ping, Session, SessionKey, Turn, num_after_summary
from .ops import EVENTS_PER_CALL_LIMIT, LeaseName, Ops
from .options import Duration, check_bool, check_instant, check_milliseconds
from .replies import WriteResult
from .stream import append_fragments
from .tiers import NO_CHANGE, Change, check_call_size, encode_change
from .times import from_us, to_us
from .transform import TierOwner
from .windows import Window, check_window, choose, first_page, may_be_trimmed

# -- sessions -------------------------------------------------------------------------------------


@introducing
def create_session(
    ops: Ops, app_name: str, user_id: str, session_id: str | None, state: Mapping[str, Any] | None
) -> Flow[Session]:
    """Create a session. Without an id it gets a new one."""
    key = SessionKey(app_name, user_id, id_or_new(session_id))
    change = encode_change(ops.options.codec, key, {} if state is None else state)
    call = ops.create_session(key, uuid4().hex, change)
    session: Session
    if ops.app_in_own_slot:
        session = yield from _create_apart(ops, key, change, call)
    else:
        session = yield from _create(ops, key, call)
    change.apply_to(session.state, only_temp=True)
    return session


@introducing_if_new
def get_or_create_session(
    ops: Ops,
    app_name: str,
    user_id: str,
    session_id: str | None,
    state: Mapping[str, Any] | None,
    event_num: int | None,
    event_time: datetime | None,
    window: Window | None = None,
) -> Flow[Session]:
    """Create a session unless it exists, and read it."""
    key = SessionKey(app_name, user_id, id_or_new(session_id))
    if window is not None:
        event_num = _first_page(window, event_num, event_time)
    change = encode_change(ops.options.codec, key, {} if state is None else state)
    upto = ops.summaries.upto(key)
    call = ops.get_or_create_session(key, uuid4().hex, change, event_num, event_time, upto)
    session: Session | None = None
    if is_apart(ops, [change]):
        session = yield from get_session(ops, key, event_num, event_time)
        upto = None
    if session is None and ops.app_in_own_slot:
        session = yield from _create_apart(ops, key, change, call)
    elif session is None:
        session = yield from _create(ops, key, call)
    found: Session | None = session
    if not ops.summaries.note(session, upto):
        found = yield from get_session(ops, key, event_num, event_time, window)
    elif window is not None and not _cut_to_window(session, window):
        found = yield from _read_window(ops, key, window, 2 * len(session.events))
    if found is None:
        raise SessionNotFound(f"{describe(key)} was deleted while it was read")
    session = found
    change.apply_to(session.state, only_temp=True)
    return session


def _create(ops: Ops, key: SessionKey, call: Call[tuple[Session, list[bytes]]]) -> Flow[Session]:
    """Create a session. Each 64th time remove expired ones from the index."""
    session: Session
    session, to_check = yield call
    if to_check:
        yield from prune_index(ops, key.app_name, key.user_id, to_check)
    return session


def _create_apart(
    ops: Ops, key: SessionKey, change: Change, call: Call[tuple[Session, list[bytes]]]
) -> Flow[Session]:
    """Create a session whose app tier has a slot of its own. The session is written last."""
    is_written = is_apart(ops, [change])
    if is_written:
        with suppress(SessionNotFound):
            yield ops.check_session(key)
            raise SessionExists(f"{describe(key)} already exists")
        yield from write_app_state(ops, key.app_name, [change])
    with app_state_written() if is_written else nullcontext():
        app_state = yield from read_app_state(ops, key.app_name)
        session = yield from _create(ops, key, call)
    add_app_state(session, app_state)
    return session


def get_session(
    ops: Ops,
    key: SessionKey,
    event_num: int | None,
    event_time: datetime | None,
    window: Window | None = None,
) -> Flow[Session | None]:
    """Read a session."""
    if window is not None:
        event_num = _first_page(window, event_num, event_time)
        return (yield from _read_window(ops, key, window, event_num))
    upto = ops.summaries.upto(key)
    session = yield from _read_session(ops, key, event_num, event_time, upto)
    if session is not None and not ops.summaries.note(session, upto):
        session = yield from _read_session(ops, key, event_num, event_time, None)
    return session


def _read_session(
    ops: Ops, key: SessionKey, event_num: int | None, event_time: datetime | None, after: int | None
) -> Flow[Session | None]:
    """Read a session, and of its events only those after a position."""
    call = ops.get_session(key, event_num, event_time, after)
    session: Session | None
    if not ops.app_in_own_slot:
        session = yield from read_whole(call)
        return session
    app_state = copied_app_state(ops, key.app_name)
    if app_state is not None:
        session = yield from read_whole(call)
    else:
        app_call = ops.get_app_state(key.app_name)
        try:
            session, app_state = yield call, app_call
        except EventsMissing:
            session, app_state = yield from_primary(call), app_call
    if session is not None:
        add_app_state(session, app_state)
    return session


def _first_page(window: Window, event_num: int | None, event_time: datetime | None) -> int:
    check_window(window)
    if event_num is not None or event_time is not None:
        raise InvalidArgument("window cannot be combined with event_num or event_time")
    return first_page(window)


def _read_window(ops: Ops, key: SessionKey, window: Window, event_num: int) -> Flow[Session | None]:
    """Read a session with a window of its events.

    Each read is a snapshot of its own that ends with the newest event. If it has too few events,
    the next one asks for twice as many.
    """
    while True:
        session: Session | None = yield from get_session(ops, key, event_num, None)
        if session is None or _cut_to_window(session, window):
            return session
        event_num *= 2


def _cut_to_window(session: Session, window: Window) -> bool:
    """Leave only a window of the events; False if they may be too few."""
    events = choose(
        window,
        session.events,
        is_whole_log=len(session.events) >= num_after_summary(session),
        is_trimmed=may_be_trimmed(session),
    )
    if events is not None:
        session.events = events
    return events is not None


def delete_session(ops: Ops, app_name: str, user_id: str, session_id: str) -> Flow[None]:
    """Delete a session and its log. No error if it does not exist."""
    yield ops.delete_session(SessionKey(app_name, user_id, session_id))


def repair_session(ops: Ops, session: Session | SessionKey) -> Flow[Session]:
    """Accept what is left of a session, and read it."""
    key = session_key(session)
    repaired: Session = yield ops.repair_session(key)
    if ops.app_in_own_slot:
        add_app_state(repaired, (yield from read_app_state(ops, key.app_name)))
    return repaired


def ping(ops: Ops) -> Flow[Ping]:
    """Ask a server for its role, and measure the time."""
    started = time.monotonic()
    role = yield ops.ping()
    return Ping(timedelta(seconds=time.monotonic() - started), role)


# -- events ---------------------------------------------------------------------------------------


@keyed
def append_event(
    ops: Ops,
    session: Session | SessionKey,
    event: Event,
    if_version: int | None,
    turn: Turn | None = None,
) -> Flow[Event]:
    """Append an event. A partial event is a fragment, which is kept apart from the log."""
    key = session_key(session)
    if turn is not None:
        check_turn(turn)
    prepared = _encode_event(ops, key, event, "event")
    created_us = created_us_of(session)
    if prepared is None or event.partial:
        fragments = [prepared[0]] if prepared else []
        yield from append_fragments(ops, key, fragments, if_version, turn, created_us)
        return event
    data, copy, change = prepared
    timestamp = copy.timestamp
    call = ops.append_event(key, data, timestamp, change, if_version, turn, created_us)
    written: WriteResult
    if ops.app_in_own_slot:
        written, _ = yield from write_apart(
            ops, call, key, [change], [data], if_version, turn, created_us
        )
    else:
        written = yield call
    if isinstance(session, Session):
        if written.num_duplicates:
            yield from reread(ops, session, 1, [change])
        else:
            _add_events(ops, session, [copy], [change], written)
    return copy


@keyed
def append_events(
    ops: Ops,
    session: Session | SessionKey,
    events: Iterable[Event],
    if_version: int | None,
    turn: Turn | None = None,
) -> Flow[list[Event]]:
    """Append events, all or nothing. Partial events are kept if all of them are partial."""
    key = session_key(session)
    if turn is not None:
        check_turn(turn)
    if isinstance(events, Event) or not isinstance(events, Iterable):
        raise InvalidArgument(f"events must be a list of Events, not {type(events).__name__}")
    created_us = created_us_of(session)
    results: list[Event] = []
    rows: list[tuple[bytes, datetime, Change]] = []
    stored: list[Event] = []
    fragments: list[bytes] = []
    size = 0
    for number, event in enumerate(_few_enough(events)):
        prepared = _encode_event(ops, key, event, f"events[{number}]")
        if prepared is None or event.partial:
            results.append(event)
            fragments += [prepared[0]] if prepared else []
            continue
        data, copy, change = prepared
        size += len(data) + change.size
        check_call_size("events", size)
        results.append(copy)
        stored.append(copy)
        rows.append((data, copy.timestamp, change))
    if rows:
        changes = [change for _, _, change in rows]
        call = ops.append_events(key, rows, if_version, turn, created_us)
        written: WriteResult
        if ops.app_in_own_slot:
            encoded = [data for data, _, _ in rows]
            written, _ = yield from write_apart(
                ops, call, key, changes, encoded, if_version, turn, created_us
            )
        else:
            written = yield call
        if isinstance(session, Session):
            if written.num_duplicates:
                yield from reread(ops, session, len(stored), changes)
            else:
                _add_events(ops, session, stored, changes, written)
    else:
        yield from append_fragments(ops, key, fragments, if_version, turn, created_us)
    return results


def get_events(
    ops: Ops,
    session: Session | SessionKey,
    after: int | None,
    before: int | None,
    limit: int,
    newest: bool = False,
) -> Flow[EventPage]:
    """Read a page of the log."""
    call = ops.get_events(session_key(session), after, before, limit, newest)
    page: EventPage = yield from read_whole(call)
    return page


def pop_event(
    ops: Ops, session: Session | SessionKey, if_version: int | None
) -> Flow[Event | None]:
    """Remove the newest event and return it."""
    found = yield ops.pop_event(session_key(session), if_version, created_us_of(session))
    if found is None:
        return None
    event: Event = found[0]
    if isinstance(session, Session):
        session.events[:] = [other for other in session.events if other.id != event.id]
        session.event_count = max(session.event_count - 1, 0)
        set_version(session, found[1])
    return event


def clear_events(ops: Ops, session: Session | SessionKey, if_version: int | None) -> Flow[None]:
    """Remove all events."""
    key = session_key(session)
    written: WriteResult = yield ops.clear_events(key, if_version, created_us_of(session))
    if isinstance(session, Session):
        session.events.clear()
        session.event_count = 0
        session.summary = None
        set_version(session, written)


@keyed
def replace_newest(
    ops: Ops, key: SessionKey, version: int, first_kept: int, end_kept: int, events: Iterable[Event]
) -> Flow[None]:
    """Keep the events from one rank to another, 0 = the oldest, and append new ones in one step.

    For adapters. Events with a change of state are not supported.

    Raises:
        StaleVersion: the session has another version.
    """
    rows: list[tuple[bytes, datetime]] = []
    size = 0
    for number, event in enumerate(_few_enough(events)):
        codec = ops.options.codec.for_event(event)
        data, copy = codec.encode_event(event, f"events[{number}]", key)
        size += len(data)
        check_call_size("events", size)
        rows.append((data, copy.timestamp))
    yield ops.replace_newest(key, version, first_kept, end_kept, rows)


# -- turns ----------------------------------------------------------------------------------------


def acquire_turn(
    ops: Ops, session: Session | SessionKey, lease: Duration, name: LeaseName = "turn"
) -> Flow[Turn]:
    """Acquire the turn of a session, or another lease of it."""
    key = session_key(session)
    lease_ms = check_milliseconds("lease", lease)
    created_us = created_us_of(session)
    turn: Turn = yield ops.acquire_turn(key, uuid4().hex, lease_ms, created_us, name=name)
    return turn


def renew_turn(ops: Ops, turn: Turn, lease: Duration, name: LeaseName = "turn") -> Flow[Turn]:
    """Extend a turn, or another lease."""
    lease_ms = check_milliseconds("lease", lease)
    renewed: Turn = yield ops.renew_turn(check_turn(turn), lease_ms, name=name)
    return renewed


def release_turn(ops: Ops, turn: Turn, name: LeaseName = "turn") -> Flow[None]:
    """Release a turn, or another lease. No error if it is lost, or the session was deleted."""
    with suppress(TurnLost, SessionNotFound):
        yield ops.renew_turn(check_turn(turn), 0, name=name)


def free_turn(ops: Ops, session: Session | SessionKey) -> Flow[None]:
    """Take the turn of a session from its holder."""
    yield ops.free_turn(session_key(session), created_us_of(session))


# -- state ----------------------------------------------------------------------------------------


@keyed
def update_session_state(
    ops: Ops,
    session: Session | SessionKey,
    state: Mapping[str, Any],
    removed: Iterable[str],
    if_version: int | None,
    if_absent: bool = False,
) -> Flow[None]:
    """Set and remove state in all tiers. Nothing is sent if nothing would change."""
    key = session_key(session)
    check_bool("if_absent", if_absent)
    change = encode_change(ops.options.codec, key, state, removed)
    handle = session if isinstance(session, Session) else None
    current: dict[str, Any] = {}
    created_us = created_us_of(session)
    if change.is_stored or if_version is not None:
        read_back = if_absent and handle is not None
        call = ops.update_session_state(
            key, change, if_version, created_us, if_absent=if_absent, read_back=read_back
        )
        written: WriteResult
        if ops.app_in_own_slot:
            written, app_state = yield from write_apart(
                ops,
                call,
                key,
                [change],
                if_version=if_version,
                created_us=created_us,
                if_absent=if_absent,
                read_app=read_back,
            )
            current = {f"app:{name}": value for name, value in app_state.items()}
        else:
            written = yield call
        current |= written.read_back or {}
        if handle is not None:
            set_version(handle, written)
    else:
        ops.check_session(key, if_version, None, (), created_us)  # only checks the arguments
    if handle is not None and if_absent:
        for name, value in change.values.items():
            if name in current:
                handle.state[name] = current[name]
            elif name.startswith("temp:"):
                handle.state.setdefault(name, value)
    elif handle is not None:
        change.apply_to(handle.state)


def delete_session_state(
    ops: Ops, session: Session | SessionKey, keys: Iterable[str], if_version: int | None
) -> Flow[None]:
    """Remove state of all tiers."""
    yield from update_session_state(ops, session, {}, keys, if_version)


@keyed
def increment_session_state(
    ops: Ops, session: Session | SessionKey, increments: Mapping[str, int]
) -> Flow[dict[str, int]]:
    """Add integers to state in all tiers. Returns the new values. Never sent twice."""
    key = session_key(session)
    change = encode_change(ops.options.codec, key, {}, (), increments)
    refuse_app_increments(ops, change, "increments")
    created_us = created_us_of(session)
    call = ops.update_session_state(key, change, None, created_us)  # checks the ids in any case
    if not change.increments:
        return {}
    written: WriteResult
    if ops.app_in_own_slot:
        written, _ = yield from write_apart(ops, call, key, [change], created_us=created_us)
    else:
        written = yield call
    if isinstance(session, Session):
        change.apply_sums_to(session.state, written.sums)
        set_version(session, written)
    return dict(zip(increments, written.sums, strict=True))


def get_user_state(ops: Ops, app_name: str, user_id: str) -> Flow[dict[str, Any]]:
    """Read the user tier."""
    state: dict[str, Any] = yield ops.get_user_state(app_name, user_id)
    return state


def get_app_state(ops: Ops, app_name: str) -> Flow[dict[str, Any]]:
    """Read the app tier."""
    return (yield from read_app_state(ops, app_name))


def update_user_state(
    ops: Ops,
    app_name: str,
    user_id: str,
    state: Mapping[str, Any],
    removed: Iterable[str],
    if_absent: bool = False,
) -> Flow[None]:
    """Set and remove state of the user tier. Nothing is sent if nothing would change."""
    change = _set_user_state if state else _change_user_state  # removing needs no data key
    yield from change(ops, app_name, user_id, state, removed, if_absent)


def _change_user_state(
    ops: Ops,
    app_name: str,
    user_id: str,
    state: Mapping[str, Any],
    removed: Iterable[str],
    if_absent: bool,
) -> Flow[None]:
    check_bool("if_absent", if_absent)
    owner = TierOwner(app_name, user_id)
    change = encode_change(ops.options.codec, owner, state, removed, tier="user")
    # Checks the ids in any case.
    call = ops.update_user_state(app_name, user_id, change, if_absent=if_absent)
    if change.is_stored:
        yield call


_set_user_state = introducing(_change_user_state)


def update_app_state(
    ops: Ops,
    app_name: str,
    state: Mapping[str, Any],
    removed: Iterable[str],
    if_absent: bool = False,
) -> Flow[None]:
    """Set and remove state of the app tier. Nothing is sent if nothing would change."""
    check_bool("if_absent", if_absent)
    owner = TierOwner(app_name)
    change = encode_change(ops.options.codec, owner, state, removed, tier="app")
    call = ops.update_app_state(app_name, change, if_absent=if_absent)  # checks the name, too
    if change.is_stored:
        yield from run_app_write(ops, app_name, call)


def delete_user_state(ops: Ops, app_name: str, user_id: str, keys: Iterable[str]) -> Flow[None]:
    """Remove state of the user tier."""
    yield from update_user_state(ops, app_name, user_id, {}, keys)


def delete_app_state(ops: Ops, app_name: str, keys: Iterable[str]) -> Flow[None]:
    """Remove state of the app tier."""
    yield from update_app_state(ops, app_name, {}, keys)


def increment_user_state(
    ops: Ops, app_name: str, user_id: str, increments: Mapping[str, int]
) -> Flow[dict[str, int]]:
    """Add integers to state of the user tier. Returns the new values. Never sent twice."""
    owner = TierOwner(app_name, user_id)
    change = encode_change(ops.options.codec, owner, {}, (), increments, tier="user")
    call = ops.update_user_state(app_name, user_id, change)  # checks the ids, too
    if not increments:
        return {}
    sums: list[int] = yield call
    return dict(zip(increments, sums, strict=True))


def increment_app_state(
    ops: Ops, app_name: str, increments: Mapping[str, int]
) -> Flow[dict[str, int]]:
    """Add integers to state of the app tier. Returns the new values. Never sent twice."""
    owner = TierOwner(app_name)
    change = encode_change(ops.options.codec, owner, {}, (), increments, tier="app")
    call = ops.update_app_state(app_name, change)  # checks the name, too
    if not increments:
        return {}
    sums = yield from run_app_write(ops, app_name, call)
    return dict(zip(increments, sums, strict=True))


# -- shared ---------------------------------------------------------------------------------------


def session_key(session: object) -> SessionKey:
    """The key of a session argument. InvalidArgument unless it is a Session or a SessionKey."""
    if isinstance(session, (Session, SessionKey)):
        return session.key
    kind = type(session).__name__
    raise InvalidArgument(f"session must be a Session or a SessionKey, not {kind}")


def created_us_of(session: Session | SessionKey) -> bytes:
    """When the Session was created that a write is meant for; b"" for a key: any session.

    1970 also stands for any session: adapters make Sessions without knowing more than the key.
    """
    if isinstance(session, SessionKey):
        return b""
    created_us = to_us(check_instant("session.created_at", session.created_at))
    return b"%d" % created_us if created_us else b""


def check_turn(turn: object) -> Turn:
    """A turn argument. InvalidArgument unless it is a Turn."""
    if not isinstance(turn, Turn):
        raise InvalidArgument(f"turn must be a Turn, not {type(turn).__name__}")
    return turn


def id_or_new(session_id: str | None) -> str:
    """A session id; a new UUID for None or ""."""
    return str(uuid4()) if session_id is None or session_id == "" else session_id


def _few_enough(events: Iterable[Event]) -> list[Event]:
    """The events of a batch. LimitExceeded if more would be stored than one call takes."""
    found: list[Event] = []
    num_stored = 0
    for event in events:
        found.append(event)
        num_stored += not getattr(event, "partial", False)
        if num_stored > EVENTS_PER_CALL_LIMIT and not isinstance(events, Sized):
            break
    if num_stored > EVENTS_PER_CALL_LIMIT:
        raise LimitExceeded(
            f"events has more than {EVENTS_PER_CALL_LIMIT} events, the most that one call takes",
            limit=EVENTS_PER_CALL_LIMIT,
            actual=num_stored,
        )
    return found


def _encode_event(
    ops: Ops, key: SessionKey, event: Event, path: str
) -> tuple[bytes, Event, Change] | None:
    """An event's bytes, its copy, and its change of state; None for one that is not stored."""
    if not isinstance(event, Event):
        raise InvalidArgument(f"{path} must be an Event, not {type(event).__name__}")
    if event.partial and not ops.options.stream_ttl_ms:
        return None
    codec = ops.options.codec.for_event(event)
    delta, removed, increments = event.state_delta, event.state_removed, event.state_increments
    if not delta and not removed and not increments:
        return *codec.encode_event(event, path, key), NO_CHANGE
    change = encode_change(
        codec,
        key,
        delta,
        removed,
        increments,
        path=f"{path}.state_delta",
        removed_path=f"{path}.state_removed",
        increments_path=f"{path}.state_increments",
    )
    refuse_app_increments(ops, change, f"{path}.state_increments")
    return *codec.encode_event(without_temp(event), path, key), change


def without_temp(event: Event) -> Event:
    """The event without changes of `temp:` state, which is never stored."""
    delta, removed = event.state_delta, event.state_removed
    if not any(key.startswith("temp:") for key in (*delta, *removed)):
        return event
    return msgspec.structs.replace(
        event,
        state_delta={key: delta[key] for key in delta if not key.startswith("temp:")},
        state_removed=[key for key in removed if not key.startswith("temp:")],
    )


def _add_events(
    ops: Ops, session: Session, stored: list[Event], changes: list[Change], written: WriteResult
) -> None:
    """Update the caller's Session after an append of new events."""
    added = 0
    for change in changes:
        if change is NO_CHANGE:
            continue
        change.apply_to(session.state)
        if change.increments:
            sums = written.sums[added : added + len(change.increments)]
            change.apply_sums_to(session.state, sums)
            added += len(sums)
    set_version(session, written)
    session.events += stored
    session.event_count += len(stored)
    limit = ops.options.session_event_limit
    if limit is not None:  # the service was given one, and stored it with the events
        session.event_limit = limit or None
    if session.event_limit is not None:
        del session.events[: -session.event_limit]
        _trim(session, session.event_count - session.event_limit)


def _trim(session: Session, num_trimmed: int) -> None:
    """Note that the oldest events have left the log of the caller's Session."""
    if num_trimmed > 0:
        session.event_count -= num_trimmed
        summary = session.summary
        if summary is not None:
            left = max(summary.num_events - num_trimmed, 0)
            session.summary = msgspec.structs.replace(summary, num_events=left)


def reread(ops: Ops, session: Session, num_events: int, changes: list[Change]) -> Flow[None]:
    """Update the caller's Session after an append of events that were partly stored already.

    Others may have written after them, so the session is read again.
    """
    event_num = len(session.events) + num_events
    fresh = yield from get_session(ops, session.key, event_num, None)
    if fresh is not None:
        temp = {key: value for key, value in session.state.items() if key.startswith("temp:")}
        session.state, session.events = fresh.state | temp, fresh.events
        session.version, session.updated_at = fresh.version, fresh.updated_at
        session.event_count, session.summary = fresh.event_count, fresh.summary
    for change in changes:
        change.apply_to(session.state, only_temp=True)


def set_version(session: Session, written: WriteResult) -> None:
    """Update the caller's Session after a write."""
    session.version = written.version
    session.updated_at = from_us(written.updated_us)
