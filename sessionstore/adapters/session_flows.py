"""Flows that several adapters run on a session or on the sessions of a user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from .. import flows
from ..calls import Flow
from ..errors import SessionNotFound
from ..flows.app_tier import write_apart
from ..flows.data_keys import keyed
from ..flows.shared import created_us_of
from ..model import Event, Session, SessionKey, SessionPage
from ..ops import EVENTS_PER_CALL_LIMIT, SESSIONS_PER_PAGE_LIMIT, Ops, ids_of
from ..replies import WriteResult
from ..tiers import NO_CHANGE, check_call_size, encode_change

_ATTEMPTS = 3  # a session may be deleted again right after its creation, but not for ever


def append(ops: Ops, key: SessionKey, events: Sequence[Event]) -> Flow[None]:
    """Append events, 500 in one atomic step, to a session that is created if it does not exist."""
    for first in range(0, len(events), EVENTS_PER_CALL_LIMIT):
        batch = events[first : first + EVENTS_PER_CALL_LIMIT]
        for attempts_left in range(_ATTEMPTS, -1, -1):
            try:
                if len(batch) == 1:  # a third faster
                    yield from flows.append_event(ops, key, batch[0], None)
                else:
                    yield from flows.append_events(ops, key, batch, None)
                break
            except SessionNotFound:
                if not attempts_left:
                    raise
            yield from create_if_missing(ops, key)


@keyed
def append_with_state(
    ops: Ops, session: Session, events: Sequence[Event], state: dict[str, Any]
) -> Flow[WriteResult]:
    """Append 1 to 500 events and set state, in one step, unless others wrote since the read.

    The state belongs to the call and not to an event, so the bytes of the events do not depend on
    it. It is set unless the last event was stored before.

    Args:
        ops: builds the Calls.
        session: the session as it was read. It gets the new version.
        events: what to append: JsonEvents.
        state: keys of the session tier.

    Raises:
        StaleVersion: others wrote to the session. SessionNotFound: it was deleted.
    """
    codec = ops.options.codec.for_event(events[-1])
    key, version = session.key, session.version
    change = encode_change(codec, key, state)
    encoded = [codec.encode_event(each, f"events[{n}]", key) for n, each in enumerate(events)]
    check_call_size("events", change.size + sum(len(data) for data, _ in encoded))
    changes = [*[NO_CHANGE] * (len(events) - 1), change]
    stamps = [event.timestamp for _, event in encoded]
    rows = list(zip([data for data, _ in encoded], stamps, changes, strict=True))
    call = ops.append_events(key, rows, version, None, created_us_of(session))
    written: WriteResult
    if ops.app_in_own_slot:
        written, _ = yield from write_apart(ops, call, key, changes, (), version)
    else:
        written = yield call
    session.version = written.version
    return written


def create_if_missing(ops: Ops, key: SessionKey, state: dict[str, Any] | None = None) -> Flow[None]:
    """Create a session unless it exists."""
    yield from flows.get_or_create_session(ops, *ids_of(key), state, 0, None)


def pop_event(ops: Ops, key: SessionKey) -> Flow[Event | None]:
    """Remove the newest event and return it; None without an event or a session."""
    with suppress(SessionNotFound):
        return (yield from flows.pop_event(ops, key, None))
    return None


def clear_events(ops: Ops, key: SessionKey) -> Flow[None]:
    """Remove all events. No error if the session does not exist."""
    with suppress(SessionNotFound):
        yield from flows.clear_events(ops, key, None)


def list_all(
    ops: Ops,
    app_name: str,
    user_id: str,
    event_num: int = 0,
    limit: int | None = None,
    convert: Callable[[Session], Any] = lambda session: session,
) -> Flow[list[Any]]:
    """The sessions of a user, the last updated first, each with its newest events.

    Args:
        ops: builds the Calls.
        app_name: the application.
        user_id: the user.
        event_num: newest events to read of each.
        limit: where to stop, about; None = all.
        convert: what to return of a session; None = leave it out.
    """
    found: dict[str, Any] = {}  # a session that is written meanwhile is read again
    cursor = None
    while limit is None or len(found) < limit:
        page: SessionPage = yield from flows.list_sessions(
            ops, app_name, user_id, SESSIONS_PER_PAGE_LIMIT, 0, event_num, cursor
        )
        converted = ((session.id, convert(session)) for session in page)
        found.update((name, value) for name, value in converted if value is not None)
        cursor = page.cursor
        if cursor is None:
            break
    return list(found.values())
