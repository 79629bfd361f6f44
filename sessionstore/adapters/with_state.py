"""An append that also sets state of the session, for adapters that keep a record beside a log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..app_tier import write_apart
from ..calls import Flow
from ..flows import created_us_of
from ..model import Event, Session
from ..ops import Ops
from ..replies import WriteResult
from ..tiers import NO_CHANGE, check_call_size, encode_change


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
    change = encode_change(codec, state)
    encoded = [codec.encode_event(each, f"events[{n}]") for n, each in enumerate(events)]
    check_call_size("events", change.size + sum(len(data) for data, _ in encoded))
    changes = [*[NO_CHANGE] * (len(events) - 1), change]
    rows = [
        (data, event.timestamp, each) for (data, event), each in zip(encoded, changes, strict=True)
    ]
    since = created_us_of(session)
    call = ops.append_events(session.key, rows, session.version, None, since)
    written: WriteResult
    if ops.app_in_own_slot:
        written, _ = yield from write_apart(ops, call, session.key, changes, (), session.version)
    else:
        written = yield call
    session.version = written.version
    return written
