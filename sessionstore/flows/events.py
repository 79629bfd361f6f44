"""Flows that append, read and remove events."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from datetime import datetime

import msgspec

from ..calls import Flow
from ..errors import InvalidArgument, LimitExceeded
from ..model import Event, EventPage, Session, SessionKey, Turn, is_full, remove_newest
from ..ops import EVENTS_PER_CALL_LIMIT, Ops
from ..replies import WriteResult
from ..tiers import NO_CHANGE, Change, check_call_size, encode_change
from .app_tier import refuse_app_increments, write_apart
from .data_keys import keyed
from .sessions import reread
from .shared import check_turn, created_us_of, read_whole, session_key, set_version
from .stream import append_fragments


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
        remove_newest(session, 1)
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
        session.was_full = False
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
    limit = ops.options.session_event_limit
    if limit is not None:  # the service was given one, and stored it with the events
        if session.event_limit != (limit or None):
            session.was_full = session.was_full or is_full(session)
        session.event_limit = limit or None
    session.events += stored
    session.event_count += len(stored)
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
