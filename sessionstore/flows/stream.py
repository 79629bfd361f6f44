"""Flows about fragments of events that are being written, and which fragments are obsolete.

A fragment is an Event with `partial=True`. Fragments are kept apart from the log, for as long as
`stream_ttl`. A fragment is obsolete once its event is complete: a complete event of the same
invocation, author and branch stands in the log behind the position at which the log ended when the
fragment was stored. It is also obsolete if its event may be no longer in the log: if events were
removed or replaced since, or all events of a full log were appended since.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..calls import Flow
from ..errors import LimitExceeded
from ..model import Event, SessionKey, Turn
from ..ops import EVENTS_PER_CALL_LIMIT, Ops
from ..ops.stream import Fragment


def append_fragments(
    ops: Ops,
    key: SessionKey,
    fragments: Sequence[bytes],
    if_version: int | None,
    turn: Turn | None,
    created_us: bytes,
) -> Flow[None]:
    """Keep encoded partial events for watchers. Without any it only checks the arguments."""
    if not fragments:
        ops.check_session(key, if_version, turn, (), created_us)
        return
    if len(fragments) > EVENTS_PER_CALL_LIMIT:
        raise LimitExceeded(
            f"events has more than {EVENTS_PER_CALL_LIMIT} partial events, the most that one call "
            "keeps",
            limit=EVENTS_PER_CALL_LIMIT,
            actual=len(fragments),
        )
    yield ops.append_fragments(key, fragments, if_version, turn, created_us)


def drop_obsolete(
    fragments: Iterable[Fragment], events: Iterable[tuple[int, Event]]
) -> list[Fragment]:
    """The fragments whose event is not complete.

    Args:
        fragments: fragments of one session.
        events: events of its log with their positions: at least all behind each `log_end`.
    """
    complete: dict[tuple[str, str, str], int] = {}
    for position, event in events:
        kind = _kind(event)
        complete[kind] = max(complete.get(kind, 0), position)
    return [each for each in fragments if complete.get(_kind(each.event), 0) <= each.log_end]


def _kind(event: Event) -> tuple[str, str, str]:
    return event.invocation_id, event.author, event.branch
