"""Flows that change what a session's log holds or shows: compact, rewind, fork, replace, delete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from ..calls import Flow
from ..codec import corrupt
from ..errors import InvalidArgument
from ..model import Event, Session, SessionKey, Summary, Turn, remove_newest
from ..ops import LeaseName, Ops, ids_of
from ..ops.history import Compacted
from ..options import check_int
from ..replies import WriteResult
from ..summaries import is_empty
from ..tiers import Change, encode_change
from ..times import from_us
from ..windows import Window, check_window, is_cut
from .app_tier import add_app_state, read_app_state
from .data_keys import introducing, keyed
from .sessions import reread
from .shared import check_event, check_turn, created_us_of, id_or_new, session_key, set_version

_OTHERS = ("user:", "app:", "temp:")  # prefixes of state that does not belong to a session alone


@keyed
def compact_session(
    ops: Ops,
    session: Session | SessionKey,
    upto: int,
    summary: Any,
    if_summary: int | None,
    drop: bool,
    if_version: int | None,
    turn: Turn | None,
    window: Window | None,
    lease_name: LeaseName = "turn",
) -> Flow[Summary]:
    """Store a summary of the events up to a position. `turn` may be another lease."""
    key = session_key(session)
    rules = check_window(Window() if window is None else window)
    data, content = encode_summary(ops, key, summary, "summary")
    check_int("upto", upto, low=0)
    if if_summary is not None and upto < check_int("if_summary", if_summary, low=0):
        raise InvalidArgument("upto must not be before if_summary, the end of the last summary")
    held = None if turn is None else check_turn(turn)
    since = created_us_of(session)
    call = ops.compact_session(
        key, upto, data, if_summary, drop, if_version, held, since, lease_name
    )
    if upto != if_summary:
        before, after, is_there = yield ops.read_around(key, upto)
        # Without an event at `upto` the call may still be a repeat. The script knows.
        may_be_newest = if_version is not None or (held is not None and lease_name == "turn")
        if is_there and not after and not may_be_newest:
            raise InvalidArgument(
                "upto is the newest event, whose turn may not have ended: pass if_version or turn"
            )
        if is_there and after and not is_cut(rules, [*before, *after], len(before)):
            raise InvalidArgument(f"no turn ends at position {upto}: upto must be where one ends")
    found: Compacted | None = yield call
    if found is None:
        raise InvalidArgument(f"there is no event at position {upto}")
    stored = Summary(content, upto, from_us(found.summary_us), found.num_covered)
    ops.summaries.put(key, upto)
    if isinstance(session, Session):
        if session.version == found.old_version < found.version:
            num_after = found.count - found.num_covered
            del session.events[: max(len(session.events) - num_after, 0)]
            if found.count < session.event_count:  # covered events were dropped
                session.was_full = False
            session.summary, session.event_count = stored, found.count
            set_version(session, WriteResult(found.version, found.updated_us))
        else:  # others have written since it was read, or this is a repeat
            yield from reread(ops, session, 0, [])
    return stored


def encode_summary(ops: Ops, key: SessionKey, summary: Any, path: str) -> tuple[bytes, Any]:
    """The bytes of a session's summary, and a copy of it."""
    if is_empty(summary):
        raise InvalidArgument(f"{path} must not be empty")
    limit = ops.options.summary_size_limit
    return ops.options.codec.encode_value(summary, path, key, "", kind="summary", size_limit=limit)


@keyed
def rewind_session(
    ops: Ops,
    session: Session | SessionKey,
    to: int,
    state: Mapping[str, Any] | None,
    if_version: int | None,
    turn: Turn | None,
) -> Flow[int]:
    """Remove all events after a position. Returns how many."""
    key = session_key(session)
    change = session_tier(ops, key, state)
    call = ops.rewind_session(
        key,
        to,
        None if state is None else change.session,
        if_version,
        None if turn is None else check_turn(turn),
        created_us_of(session),
    )
    written, num_removed, old_version = yield call
    if isinstance(session, Session):
        if (num_covered := _num_covered(session, to + 1)) is not None:
            yield from reread(ops, session, num_covered, [])
        elif session.version == old_version:
            del session.events[max(len(session.events) - num_removed, 0) :]
            if num_removed:
                remove_newest(session, num_removed)
            if state is not None:
                session.state = {
                    name: value for name, value in session.state.items() if name.startswith(_OTHERS)
                } | change.values
            set_version(session, written)
        else:  # others have written since it was read
            yield from reread(ops, session, 0, [])
    return int(num_removed)


@introducing
def fork_session(
    ops: Ops,
    session: Session | SessionKey,
    session_id: str | None,
    upto: int | None,
    state: Mapping[str, Any] | None,
    if_version: int | None,
    turn: Turn | None,
) -> Flow[Session]:
    """Copy a session. Returns the copy, without events."""
    key = session_key(session)
    copy_key = SessionKey(key.app_name, key.user_id, id_or_new(session_id))
    if copy_key == key:
        raise InvalidArgument("session_id must differ from the id of the session")
    call = ops.fork_session(
        key,
        copy_key,
        uuid4().hex,
        upto,
        None if state is None else session_tier(ops, key, state).session,
        if_version,
        None if turn is None else check_turn(turn),
        created_us_of(session),
    )
    copy: Session = yield call
    ops.summaries.note(copy, None)
    if ops.app_in_own_slot:
        app_state = yield from read_app_state(ops, key.app_name)
        add_app_state(copy, app_state)
    return copy


@keyed
def replace_event(
    ops: Ops,
    session: Session | SessionKey,
    position: int,
    event: Event,
    new: Event,
    if_version: int | None,
    turn: Turn | None,
) -> Flow[Event]:
    """Replace an event with another one. Returns the copy that is stored."""
    check_event("event", event)
    check_event("new", new)
    if new.partial:
        raise InvalidArgument("new must not be partial: partial Events are not stored")
    key = session_key(session)
    data, copy = ops.options.codec.for_event(new).encode_event(new, "new", key)
    while True:
        stored = yield from _read_event(ops, session, position)
        if stored == data:
            return copy
        if stored is None:
            raise InvalidArgument(f"there is no event at position {position}")
        if (yield from _swap(ops, session, position, event, stored, data, if_version, turn)):
            break
    if isinstance(session, Session):
        if (num_covered := _num_covered(session, position)) is not None:
            yield from reread(ops, session, num_covered, [])
        session.events = [copy if other == event else other for other in session.events]
    return copy


@keyed
def delete_event(
    ops: Ops,
    session: Session | SessionKey,
    position: int,
    event: Event,
    if_version: int | None,
    turn: Turn | None,
) -> Flow[bool]:
    """Remove one event. False if there is no event at the position."""
    check_event("event", event)
    while True:
        stored = yield from _read_event(ops, session, position)
        if stored is None:
            return False
        if (yield from _swap(ops, session, position, event, stored, b"", if_version, turn)):
            break
    if isinstance(session, Session):
        if (num_covered := _num_covered(session, position)) is not None:
            yield from reread(ops, session, num_covered, [])
        else:
            session.events = [other for other in session.events if other != event]
            remove_newest(session, 1)
    return True


def _num_covered(session: Session, position: int) -> int | None:
    """How many stored events the summary covers, if it covers this position; otherwise None."""
    summary = session.summary
    return None if summary is None or position > summary.upto else summary.num_events


def _swap(
    ops: Ops,
    session: Session | SessionKey,
    position: int,
    event: Event,
    stored: bytes,
    data: bytes,
    if_version: int | None,
    turn: Turn | None,
) -> Flow[bool]:
    """Replace stored bytes with others. False if they are no longer stored."""
    key = session_key(session)
    try:
        found = ops.options.codec.decode_event(stored, key)
    except ValueError as error:
        raise corrupt(ops.options.keys.session(*ids_of(key)).events, error) from None
    if found != event:
        raise InvalidArgument(f"the event at position {position} is not `event`")
    held = None if turn is None else check_turn(turn)
    since = created_us_of(session)
    written = yield ops.replace_event(key, position, stored, data, if_version, held, since)
    if written is None:
        return False
    if isinstance(session, Session):
        set_version(session, written)
    return True


def _read_event(ops: Ops, session: Session | SessionKey, position: int) -> Flow[bytes | None]:
    """The stored bytes at a position; None if there is no event."""
    check_int("position", position, low=0)
    data: bytes | None = yield ops.read_event(session_key(session), position)
    return data


def session_tier(ops: Ops, key: SessionKey, state: Mapping[str, Any] | None) -> Change:
    """State of a session alone, encoded."""
    change = encode_change(ops.options.codec, key, {} if state is None else state)
    for name in change.values:
        if name.startswith(_OTHERS):
            raise InvalidArgument(
                f"state[{name!r}] does not belong to the session: only keys without a prefix are "
                "allowed"
            )
    return change
