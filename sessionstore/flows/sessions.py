"""Flows that create, read, delete and repair a session."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext, suppress
from datetime import datetime
from typing import Any
from uuid import uuid4

from ..calls import Call, Flow, describe
from ..errors import EventsMissing, InvalidArgument, SessionExists, SessionNotFound
from ..model import Session, SessionKey, num_after_summary
from ..ops import Ops
from ..tiers import Change, encode_change
from ..windows import Window, check_window, choose, first_page, may_be_trimmed
from .app_tier import (
    add_app_state,
    app_state_written,
    copied_app_state,
    is_apart,
    read_app_state,
    write_app_state,
)
from .data_keys import introducing, introducing_if_new
from .listing import prune_index
from .shared import from_primary, id_or_new, read_whole, session_key


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
        session.was_full = fresh.was_full
    for change in changes:
        change.apply_to(session.state, only_temp=True)


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
