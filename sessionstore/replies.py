"""Decodes replies of the store into typed results, for the Calls of ops/."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal, NamedTuple

import msgspec

from .calls import check_increments, events_missing, header_damage, status
from .codec import Codec, corrupt, decode_value
from .errors import ScriptContractError
from .keys import SessionKeys, encode_id
from .model import Event, Session, SessionKey, Summary, num_after_summary
from .tiers import Tier, decode_tier
from .times import from_us
from .transform import Owner, TierOwner

NOT_COUNTED = -1
"""The `event_count` of a session whose events are still to be counted."""


class WriteResult(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The result of a write to a session. The first fields are in the order of the reply.

    Attributes:
        version: the session's version after the write.
        updated_us: when it was written, in microseconds since 1970.
        num_duplicates: number of events of an append that were stored already.
        sums: the new value of each increment of the call, in order.
        read_back: values of the call's state keys after the write, if they were read.
    """

    version: int
    updated_us: int
    num_duplicates: int = 0
    sums: tuple[int, ...] = ()
    read_back: dict[str, Any] | None = None


class Place(NamedTuple):
    """Where a session stands in the index of its user. Places compare as the index sorts them.

    Attributes:
        updated_us: when the session was last written, in microseconds since 1970.
        session_id: its id.
    """

    updated_us: int
    session_id: str


class SharedState(msgspec.Struct):
    """State of the user and the app tier that many sessions get: each value is decoded once.

    Sessions must share nothing that can be changed. So values that cannot be changed are shared,
    and lists and dicts are decoded again for every session.
    """

    values: dict[str, Any] = {}
    mutable: list[tuple[str, bytes]] = []

    def add_tier(self, codec: Codec, owner: Owner, reply: Any, key: bytes, tier: Tier) -> None:
        """Add the reply to an HGETALL. CorruptData if a value does not decode."""
        fields = list(hash_items(reply))
        values: dict[str, Any] = {}
        decode_tier(codec, owner, values, fields, key, tier)
        self.values.update(values)
        for (name, value), (_, data) in zip(values.items(), fields, strict=True):
            if type(value) not in _IMMUTABLE:
                self.mutable.append((name, codec.unwrap(data, owner, "state", name)))

    def merged_with(self, state: dict[str, Any]) -> dict[str, Any]:
        """A dict of its own for a session with this state."""
        merged = self.values.copy()
        for name, data in self.mutable:
            merged[name] = decode_value(data)
        merged.update(state)
        return merged


def decode_state(
    codec: Codec, owner: TierOwner, reply: Any, key: bytes, tier: Tier
) -> dict[str, Any]:
    """The state of a tier without prefixes, from the reply to an HGETALL."""
    state: dict[str, Any] = {}
    decode_tier(codec, owner, state, hash_items(reply), key, tier, with_prefix=False)
    return state


def decode_shared_app_state(codec: Codec, app_name: str, reply: Any, key: bytes) -> SharedState:
    """The state of an app tier for many sessions, likewise."""
    shared = SharedState()
    shared.add_tier(codec, TierOwner(app_name), reply, key, "app")
    return shared


_IMMUTABLE = frozenset((str, int, float, bool, type(None), bytes, datetime))


def decode_write_result(reply: Any, key: SessionKey, if_version: int | None) -> WriteResult:
    """The result of a write to a session, or the exception that its status word means."""
    word = status(reply, key, if_version)
    if word == b"ADDED":
        return WriteResult(reply[1], reply[2], 0, tuple(map(int, reply[3])))
    if word != b"OK":
        raise ScriptContractError(f"a write replied {reply[0]!r}")
    try:
        return msgspec.convert(reply[1:], WriteResult)
    except msgspec.ValidationError as error:
        raise ScriptContractError(f"a write replied {len(reply)} fields: {error}") from None


def decode_sums(replies: list[Any]) -> list[int]:
    """The new values of the increments of a tier; empty without increments."""
    reply = replies[0]
    check_increments(reply)
    if isinstance(reply, list) and reply[:1] == [b"ADDED"] and len(reply) == 2:
        return [int(value) for value in reply[1]]
    decode_ok(replies)
    return []


def decode_ok(replies: list[Any]) -> None:
    """Check the reply of a write without a result."""
    if replies[0] != [b"OK"]:
        raise ScriptContractError(f"a script replied {replies[0]!r}")


def decode_count(replies: list[Any]) -> int:
    """The result of a write that replies with a number."""
    [count] = decode_numbers(replies[0], 1)
    return count


def decode_counts(replies: list[Any]) -> tuple[int, int]:
    """The result of a script that replies with two numbers."""
    first, second = decode_numbers(replies[0], 2)
    return first, second


def decode_numbers(reply: Any, count: int) -> list[int]:
    """The numbers in a reply of OK and `count` numbers."""
    if isinstance(reply, list) and reply[:1] == [b"OK"]:
        numbers = reply[1:]
        if len(numbers) == count and all(type(number) is int for number in numbers):
            return numbers
    raise ScriptContractError(f"a script replied {reply!r}")


def decode_ids_to_check(reply: list[Any]) -> list[bytes]:
    """Ids in the reply to a create; empty if the session existed."""
    ids = reply[1] if len(reply) > 1 else []
    if not isinstance(ids, list) or not all(type(member) is bytes for member in ids):
        raise ScriptContractError(f"a script replied {reply!r}")
    return ids


def decode_session(
    codec: Codec,
    key: SessionKey,
    keys: SessionKeys,
    parts: list[Any],
    newest_first: bool = False,
) -> Session:
    """A Session, decoded from the replies to its reads.

    Args:
        codec: decodes values and events.
        key: the session.
        keys: its Redis keys, for error messages.
        parts: the hashes of the session, the user tier and the app tier; the number of events,
            unless all were read or the header may tell it; the events, if any were read.
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
        event_limit = int(header.get(b"event_limit", -1))
    except (KeyError, ValueError, OverflowError) as error:
        raise corrupt(keys.session, error) from None
    log, count = _log_and_count(parts)
    if log is not None:
        check_count(keys, header.get(b"count"), count)
    elif count == NOT_COUNTED:
        count = _stored_count(keys, header.get(b"count"))
    origin, flags = header.get(b"forked_from"), header.get(b"flags", b"")
    if event_limit < 0:  # 0.1.0 did not store it
        event_limit = max(1000, count)
    state: dict[str, Any] = {}
    decode_tier(codec, key, state, fields, keys.session, "session")
    decode_tier(codec, key, state, hash_items(parts[1]), keys.user, "user")
    decode_tier(codec, key, state, hash_items(parts[2]), keys.app, "app")
    session = Session(
        key.app_name,
        key.user_id,
        key.session_id,
        state,
        [],
        version,
        created,
        updated,
        count,
        event_limit or None,
        None if origin is None else origin.decode("utf-8", "replace"),
        _decode_summary(codec, key, keys, header) if b"c" in flags else None,
        b"f" in flags,
    )
    if log:
        if newest_first:
            log.reverse()
        if session.summary is not None:
            log = log[max(len(log) - num_after_summary(session), 0) :]
        session.events = decode_log(codec, key, keys.events, log)
    return session


def _decode_summary(
    codec: Codec, key: SessionKey, keys: SessionKeys, header: dict[bytes, bytes]
) -> Summary:
    """The summary in a header. CorruptData if a field is missing or not valid."""
    try:
        content = codec.decode_value(header[b"summary"], key, "", "summary")
        upto, covered = int(header[b"compacted_us"]), int(header[b"covered"])
        return Summary(content, upto, from_us(int(header[b"summary_us"])), covered)
    except (KeyError, ValueError, OverflowError) as error:
        raise corrupt(keys.session, error, b"summary") from None


def _log_and_count(parts: list[Any]) -> tuple[list[bytes] | None, int]:
    """The events in the parts of a session, None if not read, and how many it has."""
    if len(parts) == 3:
        return None, NOT_COUNTED
    last = parts[-1]
    if isinstance(last, int):
        return None, last
    return last, parts[3] if len(parts) == 5 else len(last)


def check_count(keys: SessionKeys, count: bytes | None, num_events: int) -> None:
    """EventsMissing if the log holds fewer events than the header counts. 0.1.0 had no count."""
    expected = _stored_count(keys, count)
    if expected > num_events:
        raise events_missing(keys.events, expected, num_events)


def _stored_count(keys: SessionKeys, count: bytes | None) -> int:
    try:
        return NOT_COUNTED if count is None else int(count)
    except ValueError:
        raise header_damage(keys.session, b"count") from None


def check_no_events(keys: SessionKeys, parts: list[Any]) -> None:
    """CorruptData if a session without header has events, whether they were read or counted."""
    _, count = _log_and_count(parts)
    if count > 0:
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


def decode_role(replies: list[Any]) -> Literal["primary", "replica"]:
    """The role in a reply to HELLO."""
    role = dict(hash_items(replies[0]))[b"role"]
    return "primary" if role == b"master" else "replica"


def decode_places(index: bytes, members: Iterable[tuple[bytes, int]]) -> list[Place]:
    """Places in an index. CorruptData names the key."""
    try:
        places = [Place(score, member.decode()) for member, score in members]
        for place in places:
            encode_id("session_id", place.session_id)
    except ValueError as error:
        raise corrupt(index, error) from None
    return places


def decode_log(codec: Codec, owner: Owner, key: bytes, members: Iterable[bytes]) -> list[Event]:
    """The stored events of a session's log. CorruptData names the key."""
    try:
        return codec.decode_events(members, owner)
    except ValueError as error:
        raise corrupt(key, error) from None
