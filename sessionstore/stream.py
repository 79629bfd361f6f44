"""Fragments of events that are being written: Calls, flows, and which fragments are obsolete.

A fragment is an Event with `partial=True`. Fragments are kept apart from the log, for as long as
`stream_ttl`. A fragment is obsolete once its event is complete: a complete event of the same
invocation, author and branch stands in the log behind the position at which the log ended when the
fragment was stored. It is also obsolete if its event may be no longer in the log: if events were
removed or replaced since, or all events of a full log were appended since.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from .calls import Call, Flow, status
from .errors import LimitExceeded
from .model import Event, SessionKey, Turn
from .ops import BULK_BYTES, EVENTS_PER_CALL_LIMIT, Ops, ids_of
from .replies import decode_count, members_with_scores
from .scripts import SCRIPTS

STREAM_SIZE_LIMIT = 8 << 20
"""Maximum size of the fragments that a session keeps, and that one call adds, in bytes."""


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

    condition = ops.condition(key, if_version, turn)
    ttl = b"%d" % ops.options.stream_ttl_ms
    return Call(
        "append_fragments",
        decode,
        SCRIPTS["append_fragments"],
        (keys.session, keys.stream),
        (created_us, condition, ttl, b"%d" % len(fragments), batch),
        is_bulk=len(batch) > BULK_BYTES,
    )


def decode_stream(
    ops: Ops, key: SessionKey, stored: list[Any], created_us: bytes, first: int
) -> list[Fragment]:
    """The fragments from a sequence on, in the reply to a ZRANGE of a stream.

    Only those of the session with this creation time: an earlier one may have had the same
    name.
    ValueError if an entry is not valid.
    """
    fragments: list[Fragment] = []
    for member, last in members_with_scores(stored):
        if member[:1] == b"\0":
            continue
        created, log_end, _, num_fragments, batch = member.split(b" ", 4)
        if created != created_us:
            continue
        events = ops.options.codec.decode_events(_decode_batch(batch), key, "fragment")
        for sequence, event in enumerate(events, last - int(num_fragments) + 1):
            if sequence >= first:
                fragments.append(Fragment(sequence, int(log_end), event))
    return fragments


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
