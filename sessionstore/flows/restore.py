"""Restoring a session: it is created whole, with the positions and times of another store.

The last step creates the session. Before it, the first events of a long log are staged under a key
that no reader knows, and the last step makes that key the log of the session. The name of the key
and the `generation` of the session are a digest of all that is restored. So a repeat continues
where an earlier call ended, and finds the session if that is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any

from ..calls import Flow
from ..errors import InvalidArgument
from ..keys import encode_id
from ..model import Event, Session, SessionKey, Summary
from ..ops import EVENTS_PER_CALL_LIMIT, Ops
from ..ops.restore import RestoredHeader
from ..options import EventLimit, check_event_limit, check_instant, check_int
from ..times import to_us
from .app_tier import add_app_state, read_app_state
from .data_keys import introducing
from .events import without_temp
from .history import encode_summary, session_tier
from .listing import prune_index
from .shared import check_event

_LATEST_US = 2**52  # in 2112; positions after it are still exact
_BYTES_PER_CALL = 1 << 20  # a larger event is sent alone

_Row = tuple[int, bytes]  # position, encoded event


@introducing
def restore_session(
    ops: Ops,
    key: SessionKey,
    events: Iterable[Event],
    positions: Iterable[int] | None,
    state: Mapping[str, Any] | None,
    created_at: datetime | None,
    updated_at: datetime | None,
    event_limit: EventLimit,
    forked_from: str | None,
    summary: Summary | None = None,
) -> Flow[Session]:
    """Create a session. All arguments are checked before anything is sent."""
    header = _header(ops, key, created_at, updated_at, event_limit, forked_from, summary)
    change = session_tier(ops, key, state)
    rows = list(_rows(ops, key, events, positions))
    creation_id = _digest([*header, *_sorted_pairs(change.session.pairs)], rows)
    [*first, last] = _batches(rows) or [[]]
    if first:
        num_staged: int | None = yield ops.find_restored(key, creation_id)
        end = 0
        for batch in first:
            end += len(batch)
            if num_staged is not None and end > num_staged:
                yield ops.stage_events(key, creation_id, batch)
    session: Session
    session, to_check = yield ops.restore_session(
        key, creation_id, header, change.session, len(rows) - len(last), last
    )
    if session.summary is not None:
        ops.summaries.put(key, session.summary.upto)
    if to_check:
        yield from prune_index(ops, key.app_name, key.user_id, to_check)
    if ops.app_in_own_slot:
        app_state = yield from read_app_state(ops, key.app_name)
        add_app_state(session, app_state)
    return session


def _header(
    ops: Ops,
    key: SessionKey,
    created_at: datetime | None,
    updated_at: datetime | None,
    event_limit: EventLimit,
    forked_from: str | None,
    summary: Summary | None,
) -> RestoredHeader:
    limit = check_event_limit("event_limit", event_limit)
    if limit is None:
        limit = ops.options.session_event_limit
    created_us = _microseconds("created_at", created_at)
    updated_us = _microseconds("updated_at", updated_at)
    if created_us is not None and updated_us is not None and updated_us < created_us:
        raise InvalidArgument("updated_at must not be before created_at")
    if forked_from is not None:
        encode_id("forked_from", forked_from)
    return RestoredHeader(
        _number(limit),
        _number(created_us),
        _number(updated_us),
        (forked_from or "").encode(),
        *_summary_args(ops, key, summary),
    )


def _summary_args(ops: Ops, key: SessionKey, summary: Summary | None) -> tuple[bytes, bytes, bytes]:
    if summary is None:
        return b"", b"", b""
    if not isinstance(summary, Summary):
        raise InvalidArgument(f"summary must be a Summary, not {type(summary).__name__}")
    data, _ = encode_summary(ops, key, summary.content, "summary.content")
    upto = check_int("summary.upto", summary.upto, low=1, high=_LATEST_US)
    created_us = _microseconds("summary.created_at", summary.created_at)
    return _number(upto), _number(created_us), data


def _number(value: int | None) -> bytes:
    return b"" if value is None else b"%d" % value


def _microseconds(name: str, value: datetime | None) -> int | None:
    if value is None:
        return None
    microseconds = to_us(check_instant(name, value))
    if not 0 < microseconds <= _LATEST_US:
        raise InvalidArgument(f"{name} must be after the start of 1970 and before 2112")
    return microseconds


def _rows(
    ops: Ops, key: SessionKey, events: Iterable[Event], positions: Iterable[int] | None
) -> Iterator[_Row]:
    """The position and the bytes of each event, checked."""
    if isinstance(events, Event) or not isinstance(events, Iterable):
        raise InvalidArgument(f"events must be a list of Events, not {type(events).__name__}")
    if positions is not None and not isinstance(positions, Iterable):
        raise InvalidArgument(f"positions must be a list of ints, not {type(positions).__name__}")
    events = list(events)
    given = None if positions is None else list(positions)
    if given is not None and len(given) != len(events):
        raise InvalidArgument(
            f"there must be one position for each event: {len(events)}, not {len(given)}"
        )
    last = 0
    seen: dict[bytes, int] = {}
    for number, event in enumerate(events):
        path = f"events[{number}]"
        check_event(path, event)
        if event.partial:
            raise InvalidArgument(f"{path} must not be partial: partial Events are not stored")
        codec = ops.options.codec.for_event(event)
        data, copy = codec.encode_event(without_temp(event), path, key)
        earlier = seen.setdefault(data, number)
        if earlier != number:
            raise InvalidArgument(f"{path} is the same event as events[{earlier}]")
        if given is None:
            last = max(to_us(copy.timestamp), last + 1)
            if last > _LATEST_US:
                raise InvalidArgument(f"{path}.timestamp must be before 2112")
        else:
            where = f"positions[{number}]"
            position = check_int(where, given[number], low=1, high=_LATEST_US)
            if position <= last:
                raise InvalidArgument(f"{where} must be above the position before it, {last}")
            last = position
        yield last, data


def _batches(rows: Sequence[_Row]) -> list[list[_Row]]:
    """The rows in parts that one call takes."""
    batches: list[list[_Row]] = []
    size = 0
    for row in rows:
        size += len(row[1])
        if not batches or size > _BYTES_PER_CALL or len(batches[-1]) == EVENTS_PER_CALL_LIMIT:
            batches.append([])
            size = len(row[1])
        batches[-1].append(row)
    return batches


def _sorted_pairs(flat: Sequence[bytes]) -> list[bytes]:
    pairs = sorted(zip(flat[::2], flat[1::2], strict=True))
    return [part for pair in pairs for part in pair]


def _digest(head: Sequence[bytes], rows: Sequence[_Row]) -> str:
    """A digest of the content of a session: 32 hexadecimal digits."""
    digest = blake2b(digest_size=16)
    for part in head:
        digest.update(b"%d:%b" % (len(part), part))
    for position, data in rows:
        digest.update(b"%d %d:%b" % (position, len(data), data))
    return digest.hexdigest()
