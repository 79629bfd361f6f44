"""The fragments of lua/lib in Python: one function for each file, of the same name.

A fragment takes the script's KEYS as `keys`, in their fixed order: session, events, index, user,
app. Time comes from the keyspace, so server_time_us and to_ms have no twin.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from .keyspace import Keyspace

Keys = Sequence[bytes]
Args = Sequence[bytes]
Reply = list[Any]

_is_number = re.compile(rb"-?\d{1,17}").fullmatch
_is_hexadecimal = re.compile(rb"[0-9a-fA-F]+").fullmatch


class Header(NamedTuple):
    """The header fields that scripts work with. None: a session of release 0.1.0 lacks them."""

    version: int
    last_us: int
    deadline_ms: int
    count: int | None  # type: ignore[assignment]  # hides tuple.count
    event_limit: int | None
    flags: bytes | None = None


class Summary(NamedTuple):
    """The numbers of a session's summary."""

    compacted_us: int
    covered: int
    summary_events: int
    summary_us: int


class Refused(Exception):
    """The script ends with this reply."""

    def __init__(self, *reply: Any) -> None:
        super().__init__(*reply)
        self.reply = list(reply)


# -- reading and checking -----------------------------------------------------------------------


def header_number(text: bytes | None) -> int | None:
    """lua/lib/header_number.lua"""
    return int(text) if text and _is_number(text) else None


def read_header(keyspace: Keyspace, session: bytes, created_us: bytes) -> Header:
    """lua/lib/read_header.lua"""
    names = Header._fields[:5]
    created, flags, *fields = keyspace.hmget(
        session, b"created_us", b"flags", *map(str.encode, names)
    )
    if fields[0] is None or created_us not in (b"", created):
        raise Refused(b"NOT_FOUND")
    numbers = [header_number(field) for field in fields]
    for name, field, number in zip(names, fields, numbers, strict=True):
        if number is None and (field is not None or name in ("last_us", "deadline_ms")):
            raise Refused(b"CORRUPT", session, name.encode())
    version, last_us, deadline_ms, count, event_limit = numbers
    assert version is not None
    assert last_us is not None
    assert deadline_ms is not None
    return Header(version, last_us, deadline_ms, count, event_limit, flags)


def read_summary(keyspace: Keyspace, session: bytes, flags: bytes | None) -> Summary | None:
    """lua/lib/read_summary.lua"""
    if b"c" not in (flags or b""):
        return None
    numbers = []
    for name in Summary._fields:
        number = header_number(keyspace.hget(session, name.encode()))
        if number is None:
            raise Refused(b"CORRUPT", session, name.encode())
        numbers.append(number)
    return Summary(*numbers)


def read_checked_header(
    keyspace: Keyspace, keys: Keys, session_id: bytes, created_us: bytes
) -> Header:
    """lua/lib/read_checked_header.lua"""
    session, events, index = keys[:3]
    header = read_header(keyspace, session, created_us)
    keyspace.zscore(index, session_id)
    keyspace.zcard(events)
    return header


def check_condition(
    keyspace: Keyspace,
    session: bytes,
    condition: bytes,
    version: int,
    flags: bytes | None = None,
) -> Reply | None:
    """lua/lib/check_condition.lua"""
    condition, at, data_key = condition.partition(b"@")
    if at or b"k" in (flags or b""):
        stored = keyspace.hget(session, b"data_key") or b""
        if stored != data_key:
            return [b"OTHER_KEY", stored]
    if condition == b"":
        return None
    if condition[:1] in (b"t", b"c"):
        field = b"turn_token" if condition.startswith(b"t") else b"compactor_token"
        token = keyspace.hget(session, field)
        return None if condition[1:] == token else [b"LOST"]
    return None if int(condition) == version else [b"STALE", version]


def lease_fields(lease: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """lua/lib/lease_fields.lua"""
    if lease == b"turn":
        return b"turn_token", b"turn_until_us", b"turn_holder", b"turn_ms"
    return b"compactor_token", b"compactor_until_us", b"compactor_holder", b"compactor_ms"


def check_tiers(keyspace: Keyspace, keys: Keys) -> None:
    """lua/lib/check_tiers.lua"""
    for tier in keys[3:]:
        keyspace.hlen(tier)


def check_create(keyspace: Keyspace, keys: Keys, session_id: bytes) -> None:
    """lua/lib/check_create.lua"""
    keyspace.zcard(keys[1])
    keyspace.zscore(keys[2], session_id)
    check_tiers(keyspace, keys)


def wake_watchers(keyspace: Keyspace, session: bytes, message: bytes = b"") -> None:
    """lua/lib/wake_watchers.lua"""
    flags, listen_ms = keyspace.hmget(session, b"flags", b"listen_ms")
    if flags and b"l" in flags and (header_number(listen_ms) or 0) >= keyspace.now_us // 1000:
        keyspace.spublish(session, message)


def note_change(keyspace: Keyspace, session: bytes, version: int, first: int, last: int) -> None:
    """lua/lib/note_change.lua"""
    flags, stored = keyspace.hmget(session, b"flags", b"changes")
    if b"l" not in (flags or b""):
        return
    changes = [*(stored or b"").split(), b"%d:%d:%d" % (version, first, last)]
    keyspace.hset(session, (b"changes", b" ".join(changes[-9:])))
    wake_watchers(keyspace, session)


def note_trimmed(keyspace: Keyspace, session: bytes, events: bytes, event_limit: int) -> None:
    """lua/lib/note_trimmed.lua"""
    flags = keyspace.hget(session, b"flags")
    rank = keyspace.zcard(events) - event_limit - 1
    if event_limit > 0 and b"l" in (flags or b"") and rank >= 0:
        [(position, _)] = keyspace.zrange_by_rank(events, rank, rank, rev=False)
        keyspace.hset(session, (b"trimmed_us", decimal(position)))


# -- deadlines ----------------------------------------------------------------------------------


def new_deadline(keyspace: Keyspace, ttl_ms: int) -> int:
    """lua/lib/new_deadline.lua"""
    return keyspace.now_us // 1000 + ttl_ms + ttl_ms // 64


def is_due(keyspace: Keyspace, deadline_ms: int, ttl_ms: int) -> bool:
    """lua/lib/is_due.lua"""
    if deadline_ms == 0:
        return True
    earliest = keyspace.now_us // 1000 + ttl_ms
    return ttl_ms > 0 and not earliest <= deadline_ms <= new_deadline(keyspace, ttl_ms)


def extend_index_ttl(
    keyspace: Keyspace, index: bytes, deadline_ms: int, is_new_member: bool
) -> bool:
    """lua/lib/extend_index_ttl.lua"""
    if deadline_ms < 0:
        keyspace.persist(index)
        return True
    is_new_index = is_new_member and keyspace.zcard(index) == 1
    return keyspace.pexpireat(index, deadline_ms, gt=not is_new_index) == 1


def refresh_session(
    keyspace: Keyspace, keys: Keys, ttl_ms: int, last_us: int, is_new_member: bool
) -> None:
    """lua/lib/refresh_session.lua"""
    session, events, index = keys[:3]
    if ttl_ms > 0:
        deadline_ms = new_deadline(keyspace, ttl_ms)
        keyspace.pexpireat(session, deadline_ms)
    else:
        deadline_ms = keyspace.pexpiretime(session)
    extend_index_ttl(keyspace, index, deadline_ms, is_new_member)
    if deadline_ms > 0 and not keyspace.pexpireat(events, deadline_ms) and last_us > 0:
        deadline_ms = 0
    keyspace.hset(session, (b"deadline_ms", decimal(deadline_ms)))


def refresh_session_if_due(
    keyspace: Keyspace,
    keys: Keys,
    deadline_ms: int,
    ttl_ms: int,
    last_us: int,
    is_new_member: bool,
) -> None:
    """lua/lib/refresh_session_if_due.lua"""
    if is_new_member or is_due(keyspace, deadline_ms, ttl_ms):
        refresh_session(keyspace, keys, ttl_ms, last_us, is_new_member)


def refresh_tier(keyspace: Keyspace, tier: bytes, ttl_ms: int) -> None:
    """lua/lib/refresh_tier.lua"""
    if ttl_ms:
        deadline_ms = keyspace.pexpiretime(tier)
        if deadline_ms != -2 and is_due(keyspace, deadline_ms, ttl_ms):
            keyspace.pexpireat(tier, new_deadline(keyspace, ttl_ms))


def refresh_tiers(keyspace: Keyspace, keys: Keys, ttls_ms: Sequence[int]) -> None:
    """lua/lib/refresh_tiers.lua"""
    for tier, ttl_ms in zip(keys[3:], ttls_ms, strict=False):  # the app tier may be absent
        refresh_tier(keyspace, tier, ttl_ms)


# -- events -------------------------------------------------------------------------------------


def next_position(keyspace: Keyspace, timestamp_us: int, last_us: int) -> int:
    """lua/lib/next_position.lua"""
    return max(last_us + 1, min(timestamp_us, keyspace.now_us))


def trim_events(keyspace: Keyspace, events: bytes, event_limit: int, num_events: int) -> int:
    """lua/lib/trim_events.lua"""
    surplus = min(num_events - event_limit, 1000)
    if event_limit <= 0 or surplus <= 0:
        return num_events
    keyspace.zremrangebyrank(events, 0, surplus - 1)
    return num_events - surplus


def new_count(num_events: int, num_missing: int, event_limit: int) -> int:
    """lua/lib/new_count.lua"""
    if event_limit > 0:
        num_missing = min(num_missing, event_limit - num_events)
    return num_events + max(num_missing, 0)


def choose_limit(event_limit: bytes, own_limit: int | None, num_events: int) -> int:
    """lua/lib/choose_limit.lua"""
    if event_limit != b"":
        return int(event_limit)
    return max(1000, num_events) if own_limit is None else own_limit


def flags_with_room(header: Header, begins_anew: bool = False) -> bytes:
    """lua/lib/flags_with_room.lua"""
    flags = header.flags or b""
    if begins_anew:
        return flags.replace(b"f", b"")
    limit = header.event_limit or 0
    is_full = limit > 0 and (header.count or 0) >= limit
    return flags + b"f" if is_full and b"f" not in flags else flags


def check_batch(
    keyspace: Keyspace,
    keys: Keys,
    args: Args,
    starts: list[int],
    refusal: Reply | None,
    age_us: int,
    count: int,
    event_limit: int,
) -> Reply | None:
    """lua/lib/check_batch.lua"""
    since_us = keyspace.now_us - age_us
    for at in starts if refusal or age_us else ():
        if keyspace.zscore(keys[1], args[at]) is None:
            if age_us == 0:
                return refusal
            timestamp_us = int(args[at + 1])
            if refusal or is_maybe_removed(
                keyspace, keys, count, event_limit, timestamp_us, since_us
            ):
                return [b"UNKNOWN"]
    return None


def is_maybe_removed(
    keyspace: Keyspace,
    keys: Keys,
    count: int,
    event_limit: int,
    timestamp_us: int,
    since_us: int,
) -> bool:
    """lua/lib/is_maybe_removed.lua"""
    session, events = keys[:2]
    stored = keyspace.hget(session, b"removed_us")
    removed_us = header_number(b"0" if stored is None else stored)
    num_events = keyspace.zcard(events)
    if removed_us is None or removed_us >= since_us or count > num_events:
        return True
    if event_limit <= 0 or num_events < event_limit:
        return False
    [(oldest, _)] = keyspace.zrange_by_rank(events, 0, 0, rev=False)
    return oldest > min(timestamp_us, since_us)


# -- state --------------------------------------------------------------------------------------


def write_delta(
    keyspace: Keyspace,
    key: bytes,
    args: Args,
    at: int,
    ttl_ms: int | None = None,
    only_absent: bool = False,
) -> int:
    """lua/lib/write_delta.lua"""
    removed = at + 1 + 2 * int(args[at])
    if only_absent:
        for pair in range(at + 1, removed, 2):
            if keyspace.hget(key, args[pair]) is None:
                keyspace.hset(key, args[pair : pair + 2])
    elif removed > at + 1:
        keyspace.hset(key, args[at + 1 : removed])
    if ttl_ms is not None:
        refresh_tier(keyspace, key, ttl_ms)
    after = removed + 1 + int(args[removed])
    if after > removed + 1:
        keyspace.hdel(key, args[removed + 1 : after])
    return after


def write_tiers(
    keyspace: Keyspace, keys: Keys, args: Args, at: int, only_absent: bool = False
) -> None:
    """lua/lib/write_tiers.lua"""
    at = write_delta(keyspace, keys[0], args, at, None, only_absent)
    for tier in keys[3:]:
        at = write_delta(keyspace, tier, args, at + 1, int(args[at]), only_absent)


def add_integer(
    keyspace: Keyspace, key: bytes, field: bytes, values: dict[bytes, bytes | None], amount: int
) -> tuple[bytes, None] | tuple[None, Reply]:
    """lua/lib/add_integer.lua"""
    value = values[field] if field in values else keyspace.hget(key, field)
    if value is not None and not re.fullmatch(rb"-?[0-9]+", value):
        return None, [b"NOT_INTEGER", key, field]
    if abs(float(value or 0)) >= 2**53 or abs(int(value or 0) + amount) >= 2**53:
        return None, [b"OUT_OF_RANGE", key, field]
    return decimal(int(value or 0) + amount), None


def fold_changes(
    keyspace: Keyspace, hashes: Keys, args: Args, starts: list[int]
) -> tuple[Args, list[bytes]] | tuple[None, Reply]:
    """lua/lib/fold_changes.lua"""
    values: list[dict[bytes, bytes | None]] = [{} for _ in hashes]
    ttls = [b""] * len(hashes)
    sums: list[bytes] = []
    for start in starts:
        at = start + 1 + 3 * int(args[start])
        for increment in range(start + 1, at, 3):
            number, field, amount = args[increment : increment + 3]
            key, of_tier = hashes[int(number) - 1], values[int(number) - 1]
            total, refusal = add_integer(keyspace, key, field, of_tier, int(amount))
            if total is None:
                assert refusal is not None
                return None, refusal
            of_tier[field] = total
            sums.append(total)
        for tier in range(len(hashes)):
            if tier > 0:
                ttls[tier], at = args[at], at + 1
            removed = at + 1 + 2 * int(args[at])
            after = removed + 1 + int(args[removed])
            pairs = zip(args[at + 1 : removed : 2], args[at + 2 : removed : 2], strict=True)
            values[tier].update(pairs)
            values[tier].update(dict.fromkeys(args[removed + 1 : after]))
            at = after
    folded: list[bytes] = []
    for tier, of_tier in enumerate(values):
        to_set = [(key, value) for key, value in of_tier.items() if value is not None]
        to_remove = [key for key, value in of_tier.items() if value is None]
        if tier > 0:
            folded.append(ttls[tier])
        folded += [decimal(len(to_set)), *(part for pair in to_set for part in pair)]
        folded += [decimal(len(to_remove)), *to_remove]
    return folded, sums


def event_starts(args: Args, at: int) -> tuple[list[int], bool]:
    """lua/lib/event_starts.lua"""
    starts, has_increments = [], False
    while at < len(args):
        starts.append(at)
        has_increments = has_increments or (args[at + 2] != b"0" and args[at + 3] != b"0")
        at += 3 + int(args[at + 2])
    return starts, has_increments


def new_changes(keyspace: Keyspace, events: bytes, args: Args, starts: list[int]) -> list[int]:
    """lua/lib/new_changes.lua"""
    found, seen = [], set()
    for start in starts:
        event = args[start]
        if args[start + 2] != b"0" and event not in seen and keyspace.zscore(events, event) is None:
            found.append(start + 3)
        seen.add(event)
    return found


# -- header -------------------------------------------------------------------------------------


def write_header(
    keyspace: Keyspace, keys: Keys, session_id: bytes, version: int, last_us: int
) -> tuple[int, bool]:
    """lua/lib/write_header.lua"""
    now_us = keyspace.now_us
    version = max(version + 1, now_us)
    fields = (b"version", decimal(version), b"updated_us", decimal(now_us))
    keyspace.hset(keys[0], (*fields, b"last_us", decimal(last_us)))
    return version, keyspace.zadd(keys[2], now_us, session_id) == 1


def remove_summary(keyspace: Keyspace, session: bytes, flags: bytes | None) -> None:
    """lua/lib/remove_summary.lua"""
    if flags is None or b"c" not in flags:
        return
    names = [name.encode() for name in Summary._fields]
    keyspace.hdel(session, [*names, b"summary"])
    keyspace.hset(session, (b"flags", flags.replace(b"c", b"")))


def ids_to_check(
    keyspace: Keyspace, index: bytes, creation_id: bytes, is_extended: bool
) -> list[bytes]:
    """lua/lib/ids_to_check.lua"""
    num_sessions = keyspace.zcard(index)
    lacks_deadline = not is_extended and num_sessions <= 256 and keyspace.pexpiretime(index) == -1
    if num_sessions % 64 and not lacks_deadline:
        return []
    digits = creation_id[:8]
    random = int(digits, 16) if _is_hexadecimal(digits) else 0
    first = random % max(num_sessions - 255, 1)
    return [member for _, member in keyspace.zrange_by_rank(index, first, first + 255, rev=False)]


def write_create(
    keyspace: Keyspace, keys: Keys, args: Args, data_key: bytes, tail: int
) -> list[bytes]:
    """lua/lib/write_create.lua"""
    session, _, index = keys[:3]
    session_id, ttl, creation_id, event_limit = args[:4]
    ttl_ms = int(ttl)
    now_us = decimal(keyspace.now_us)
    deadline_ms = new_deadline(keyspace, ttl_ms) if ttl_ms > 0 else -1
    fields = (b"version", now_us, b"created_us", now_us, b"updated_us", now_us, b"last_us", b"0")
    deadline = (b"deadline_ms", decimal(deadline_ms))
    log = (b"count", b"0", b"event_limit", event_limit or b"1000")
    flags = (b"flags", b"k", b"data_key", data_key) if data_key else (b"flags", b"")
    keyspace.hset(session, (*fields, *deadline, *log, *flags, b"generation", creation_id))
    is_new_member = keyspace.zadd(index, keyspace.now_us, session_id) == 1
    if ttl_ms > 0:
        keyspace.pexpireat(session, deadline_ms)
    is_extended = extend_index_ttl(keyspace, index, deadline_ms, is_new_member)
    write_tiers(keyspace, keys, args, tail)
    return ids_to_check(keyspace, index, creation_id, is_extended) if is_new_member else []


def replace_state(keyspace: Keyspace, session: bytes, args: Args, at: int) -> None:
    """lua/lib/replace_state.lua"""
    if len(args) <= at:
        return
    pairs = args[at + 1 : at + 1 + 2 * int(args[at])]
    old = [field for field in keyspace.hgetall(session) if field[:1] == b"."]
    keyspace.hset(session, pairs)
    keyspace.hdel(session, [field for field in old if field not in pairs[::2]])


def decimal(number: int) -> bytes:
    """A number as Redis stores it."""
    return b"%d" % number
