"""Replies of the store as typed results: what the Calls of ops.py decode with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from .calls import status
from .codec import corrupt, decode_events
from .errors import ScriptContractError
from .keys import SessionKeys
from .model import Event, Session, SessionKey
from .tiers import read_tier
from .times import from_us


class WriteResult(msgspec.Struct, frozen=True, gc=False):
    """What a write to a session answers.

    Attributes:
        version: the session's version after the write.
        updated_us: when it was written, microseconds since 1970.
        num_duplicates: events of an append that were stored already.
    """

    version: int
    updated_us: int
    num_duplicates: int = 0


def decode_write_result(reply: Any, key: SessionKey, if_version: int | None) -> WriteResult:
    """The result of a write to a session; raises what its status word means."""
    if status(reply, key, if_version) != b"OK":
        raise ScriptContractError(f"a write answered {reply[0]!r}")
    num_duplicates = reply[3] if len(reply) > 3 else 0
    return WriteResult(reply[1], reply[2], num_duplicates)


def decode_ok(replies: list[Any]) -> None:
    """The result of a write that answers nothing."""
    if replies[0] != [b"OK"]:
        raise ScriptContractError(f"a script answered {replies[0]!r}")


def decode_count(replies: list[Any]) -> int:
    """The result of a write that answers a number."""
    reply = replies[0]
    if not isinstance(reply, list) or reply[:1] != [b"OK"] or len(reply) != 2:
        raise ScriptContractError(f"a script answered {reply!r}")
    return int(reply[1])


def read_session(
    key: SessionKey, keys: SessionKeys, parts: list[Any], newest_first: bool = False
) -> Session:
    """A Session of the replies to its reads.

    Args:
        key: the session.
        keys: its Redis keys, for error messages.
        parts: the hashes of the session, the user and the app tier; then the events, if read.
        newest_first: the events come newest first.

    Raises:
        CorruptData: stored bytes do not decode.
    """
    header: dict[bytes, bytes] = {}
    fields: list[tuple[bytes, bytes]] = []
    for field, value in pairs(parts[0]):
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
    events = events_of(keys.events, parts[3]) if len(parts) > 3 else []
    if newest_first:
        events.reverse()
    state: dict[str, Any] = {}
    read_tier(state, fields, keys.session, skip=1)
    read_tier(state, pairs(parts[1]), keys.user, prefix="user:")
    read_tier(state, pairs(parts[2]), keys.app, prefix="app:")
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


def pairs(reply: Any) -> Iterable[tuple[bytes, bytes]]:
    """Fields and values of an HGETALL reply: a flat list in RESP2, a map in RESP3."""
    if isinstance(reply, dict):
        return reply.items()
    fields = iter(reply)
    return zip(fields, fields, strict=True)


def scored(reply: list[Any]) -> list[tuple[bytes, int]]:
    """Members and scores: a flat list in RESP2, pairs with floats in RESP3."""
    if reply and isinstance(reply[0], list):
        return [(member, int(score)) for member, score in reply]
    flat = iter(reply)
    return [(member, int(float(score))) for member, score in zip(flat, flat, strict=True)]


def events_of(key: bytes, members: Iterable[bytes]) -> list[Event]:
    """The events of stored members; CorruptData names the key."""
    try:
        return decode_events(members)
    except ValueError as error:
        raise corrupt(key, error) from None
