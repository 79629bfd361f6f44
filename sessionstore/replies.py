"""Decodes replies of the store into typed results, for the Calls of ops.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from .calls import events_missing, header_damage, status
from .codec import corrupt, decode_events
from .errors import ScriptContractError
from .keys import SessionKeys
from .model import Event, Session, SessionKey
from .tiers import decode_tier
from .times import from_us


class WriteResult(msgspec.Struct, frozen=True, gc=False):
    """The result of a write to a session.

    Attributes:
        version: the session's version after the write.
        updated_us: when it was written, in microseconds since 1970.
        num_duplicates: number of events of an append that were stored already.
        event_limit: of an append: how many of the newest events the session keeps; 0 = all.
    """

    version: int
    updated_us: int
    num_duplicates: int = 0
    event_limit: int = 0


def decode_write_result(reply: Any, key: SessionKey, if_version: int | None) -> WriteResult:
    """The result of a write to a session, or the exception that its status word means."""
    if status(reply, key, if_version) != b"OK":
        raise ScriptContractError(f"a write replied {reply[0]!r}")
    numbers = reply[1:]
    if not 2 <= len(numbers) <= 4 or not all(type(number) is int for number in numbers):
        raise ScriptContractError(f"a write replied {len(numbers)} fields, or not all are numbers")
    return WriteResult(*numbers)


def decode_ok(replies: list[Any]) -> None:
    """Check the reply of a write without a result."""
    if replies[0] != [b"OK"]:
        raise ScriptContractError(f"a script replied {replies[0]!r}")


def decode_count(replies: list[Any]) -> int:
    """The result of a write that replies with a number."""
    reply = replies[0]
    if not isinstance(reply, list) or reply[:1] != [b"OK"] or len(reply) != 2:
        raise ScriptContractError(f"a script replied {reply!r}")
    return int(reply[1])


def decode_session(
    key: SessionKey, keys: SessionKeys, parts: list[Any], newest_first: bool = False
) -> Session:
    """A Session, decoded from the replies to its reads.

    Args:
        key: the session.
        keys: its Redis keys, for error messages.
        parts: the hashes of the session, the user tier and the app tier; if events were read, the
            number of events in the log, and these.
        newest_first: the reply has the newest event first.

    Raises:
        CorruptData: stored bytes do not decode.
        EventsMissing: the log holds fewer events than it should.
    """
    header: dict[bytes, bytes] = {}
    fields: list[tuple[bytes, bytes]] = []
    for field, value in hash_items(parts[0]):
        if field[:1] == b".":
            fields.append((field, value))
        else:
            header[field] = value
    try:
        version = int(header[b"version"])
        created = from_us(int(header[b"created_us"]))
        updated = from_us(int(header[b"updated_us"]))
    except (KeyError, ValueError, OverflowError) as error:
        raise corrupt(keys.session, error) from None
    events: list[Event] = []
    if len(parts) > 3:
        check_count(keys, header.get(b"count"), parts[3])
        events = decode_log(keys.events, parts[4])
    if newest_first:
        events.reverse()
    state: dict[str, Any] = {}
    decode_tier(state, fields, keys.session, skip=1)
    decode_tier(state, hash_items(parts[1]), keys.user, prefix="user:")
    decode_tier(state, hash_items(parts[2]), keys.app, prefix="app:")
    return Session(
        key.app_name,
        key.user_id,
        key.session_id,
        state,
        events,
        version,
        created,
        updated,
    )


def check_count(keys: SessionKeys, count: bytes | None, num_events: int) -> None:
    """EventsMissing if the log holds fewer events than the header says. 0.1.0 did not say."""
    if count is None:
        return
    try:
        expected = int(count)
    except ValueError:
        raise header_damage(keys.session, b"count") from None
    if expected > num_events:
        raise events_missing(keys.events, expected, num_events)


def check_no_events(keys: SessionKeys, num_events: int) -> None:
    """CorruptData if a session without header has events."""
    if num_events:
        raise header_damage(keys.session, b"version")


def hash_items(reply: Any) -> Iterable[tuple[bytes, bytes]]:
    """Fields and values of an HGETALL reply: a flat list in RESP2, a dict in RESP3."""
    if isinstance(reply, dict):
        return reply.items()
    fields = iter(reply)
    return zip(fields, fields, strict=True)


def members_with_scores(reply: list[Any]) -> list[tuple[bytes, int]]:
    """Members and scores of a ZRANGE reply: a flat list in RESP2, pairs with floats in RESP3."""
    if reply and isinstance(reply[0], list):
        return [(member, int(score)) for member, score in reply]
    flat = iter(reply)
    return [(member, int(float(score))) for member, score in zip(flat, flat, strict=True)]


def decode_log(key: bytes, members: Iterable[bytes]) -> list[Event]:
    """The stored events of a session's log. CorruptData names the key."""
    try:
        return decode_events(members)
    except ValueError as error:
        raise corrupt(key, error) from None
