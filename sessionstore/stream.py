"""Fragments of events that are being written: Calls, flows, and which fragments are obsolete.

A fragment is an Event with `partial=True`. Fragments are kept beside the log, for as long as
`stream_ttl`. A fragment is obsolete once its event is complete: a complete event of the same
invocation, author and branch stands in the log behind the position at which the log ended when the
fragment was stored. It is also obsolete if its event may be no longer in the log: if events were
removed or replaced since, or all events of a full log were appended since.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from .calls import Call, Command, Flow, status
from .codec import corrupt
from .errors import LimitExceeded
from .keys import SessionKeys
from .model import Event, SessionKey, Turn
from .ops import EVENTS_PER_CALL_LIMIT, Ops, condition_arg, ids_of
from .replies import decode_count, decode_log, members_with_scores
from .scripts import SCRIPTS

STREAM_SIZE_LIMIT = 8 << 20
"""Maximum size of the fragments that a session keeps, and that one call adds, in bytes."""

_BULK_BYTES = 1 << 17
_OLD_EVENT_LIMIT = 1000  # of a session of release 0.1.0, which did not store it
_NEWEST_EVENTS = 100  # events that are read together with the fragments

_encode_batch = msgspec.msgpack.Encoder().encode
_decode_batch = msgspec.msgpack.Decoder(list[bytes]).decode


class Fragment(NamedTuple):
    """A fragment as it is stored.

    Attributes:
        sequence: its place in the stream: microseconds since 1970, larger than that of the fragment
            before it.
        log_end: the position of the last event that was in the log when it was stored; 0 = none.
        event: the partial event.
    """

    sequence: int
    log_end: int
    event: Event


class StreamRead(NamedTuple):
    """Fragments of a session and the newest events of its log, read in one step.

    Attributes:
        fragments: fragments, oldest first; of those that are obsolete, some.
        events: the newest 100 events with their positions, newest first.
        event_limit: how many events the log may hold; 0 = any number.
    """

    fragments: list[Fragment]
    events: list[tuple[int, Event]]
    event_limit: int


# -- Calls ----------------------------------------------------------------------------------------


def store_fragments(
    ops: Ops,
    key: SessionKey,
    fragments: Sequence[bytes],
    if_version: int | None,
    turn: Turn | None,
    created_us: bytes,
) -> Call[int]:
    """Keep encoded fragments. Returns the sequence of the last one."""
    keys = ops.options.keys.session(*ids_of(key))
    batch = _encode_batch(fragments)
    if len(batch) > STREAM_SIZE_LIMIT:
        raise LimitExceeded(
            f"the partial events are {len(batch)} bytes long when encoded; "
            f"at most {STREAM_SIZE_LIMIT} are allowed",
            limit=STREAM_SIZE_LIMIT,
            actual=len(batch),
        )

    def decode(replies: list[Any]) -> int:
        status(replies[0], key, if_version)
        return decode_count(replies)

    condition = condition_arg(key, if_version, turn)
    ttl = b"%d" % ops.options.stream_ttl_ms
    return Call(
        "append_fragments",
        decode,
        SCRIPTS["append_fragments"],
        (keys.session, keys.stream),
        (created_us, condition, ttl, b"%d" % len(fragments), batch),
        is_bulk=len(batch) > _BULK_BYTES,
    )


def read_stream(ops: Ops, key: SessionKey, after: int) -> Call[StreamRead]:
    """Read the fragments after a sequence, and the newest events."""
    keys = ops.options.keys.session(*ids_of(key))
    commands: tuple[Command, ...] = (
        ("HMGET", keys.session, "version", "created_us", "removed_us", "event_limit"),
        ("ZRANGE", keys.stream, b"(%d" % after, "+inf", "BYSCORE", "WITHSCORES"),
        _newest_events(keys, "+inf"),
    )

    def decode(replies: list[Any]) -> StreamRead:
        (version, created_us, removed_us, event_limit), stored, found = replies
        if version is None:
            status([b"NOT_FOUND"], key)  # raises SessionNotFound
        try:
            first = max(after, int(removed_us or 0)) + 1
            limit = _OLD_EVENT_LIMIT if event_limit is None else int(event_limit)
            fragments = list(_decode_stream(stored, created_us, first))
        except (ValueError, OverflowError) as error:
            raise corrupt(keys.stream, error) from None
        return StreamRead(fragments, _decode_newest(keys, found), limit)

    return Call("read_fragments", decode, commands=commands, writes=False, from_primary=True)


def read_older_events(ops: Ops, key: SessionKey, before: int) -> Call[list[tuple[int, Event]]]:
    """Read the newest 100 events before a position, newest first."""
    keys = ops.options.keys.session(*ids_of(key))

    def decode(replies: list[Any]) -> list[tuple[int, Event]]:
        return _decode_newest(keys, replies[0])

    commands = (_newest_events(keys, b"(%d" % before),)
    return Call("read_fragments", decode, commands=commands, writes=False, from_primary=True)


def _newest_events(keys: SessionKeys, high: str | bytes) -> Command:
    limit = ("LIMIT", 0, _NEWEST_EVENTS, "WITHSCORES")
    return ("ZRANGE", keys.events, high, "-inf", "BYSCORE", "REV", *limit)


def _decode_newest(keys: SessionKeys, found: list[Any]) -> list[tuple[int, Event]]:
    entries = members_with_scores(found)
    events = decode_log(keys.events, (member for member, _ in entries))
    return [(position, event) for (_, position), event in zip(entries, events, strict=True)]


def _decode_stream(stored: list[Any], created_us: bytes, first: int) -> Iterable[Fragment]:
    """The fragments from a sequence on. They are of the session that was created then: an earlier
    one may have had the same name."""
    for member, last in members_with_scores(stored):
        if member[:1] == b"\0":
            continue
        created, log_end, _, num_fragments, batch = member.split(b" ", 4)
        if created != created_us:
            continue
        events = decode_log(b"", _decode_batch(batch))
        for sequence, event in enumerate(events, last - int(num_fragments) + 1):
            if sequence >= first:
                yield Fragment(sequence, int(log_end), event)


# -- flows ----------------------------------------------------------------------------------------


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
    yield store_fragments(ops, key, fragments, if_version, turn, created_us)


def read_fragments(ops: Ops, key: SessionKey, after: int = 0) -> Flow[list[Fragment]]:
    """The fragments after a sequence that are not obsolete, oldest first.

    One round trip; more only if 100 events were appended since the oldest fragment.
    """
    read: StreamRead = yield read_stream(ops, key, after)
    fragments, events, event_limit = read
    log_end = min((fragment.log_end for fragment in fragments), default=math.inf)
    is_last = len(events) < _NEWEST_EVENTS
    while not is_last and events[-1][0] > log_end:
        older = yield read_older_events(ops, key, events[-1][0])
        events += older
        is_last = len(older) < _NEWEST_EVENTS
    if 0 < event_limit <= len(events):  # older ones may have been trimmed
        fragments = [each for each in fragments if each.log_end >= events[-1][0]]
    return drop_obsolete(fragments, events)


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
