"""The Call that keeps fragments of events that are being written, and how they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from ..calls import Call, status
from ..codec import Codec
from ..errors import LimitExceeded
from ..model import Event, SessionKey, Turn
from ..replies import decode_count, members_with_scores
from ..scripts import SCRIPTS
from .base import BULK_BYTES, BaseOps, ids_of

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


class StreamOps(BaseOps):
    """Calls on fragments."""

    def append_fragments(
        self,
        key: SessionKey,
        fragments: Sequence[bytes],
        if_version: int | None,
        turn: Turn | None,
        created_us: bytes,
    ) -> Call[int]:
        """Keep encoded fragments. Returns the sequence of the last one."""
        keys = self._keys.session(*ids_of(key))
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

        condition = self.condition(key, if_version, turn)
        ttl = b"%d" % self.options.stream_ttl_ms
        return Call(
            "append_fragments",
            decode,
            SCRIPTS["append_fragments"],
            (keys.session, keys.stream),
            (created_us, condition, ttl, b"%d" % len(fragments), batch),
            is_bulk=len(batch) > BULK_BYTES,
        )


def decode_stream(
    codec: Codec, key: SessionKey, stored: list[Any], created_us: bytes, first: int
) -> list[Fragment]:
    """The fragments from a sequence on, in the reply to a ZRANGE of a stream.

    Only those of the session with this creation time: an earlier one may have had the same name.
    ValueError if an entry is not valid.
    """
    fragments: list[Fragment] = []
    for member, last in members_with_scores(stored):
        if member[:1] == b"\0":
            continue
        created, log_end, _, num_fragments, batch = member.split(b" ", 4)
        if created != created_us:
            continue
        events = codec.decode_events(_decode_batch(batch), key, "fragment")
        for sequence, event in enumerate(events, last - int(num_fragments) + 1):
            if sequence >= first:
                fragments.append(Fragment(sequence, int(log_end), event))
    return fragments
