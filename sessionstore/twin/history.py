"""The scripts of lua/ that change history, in Python over a Keyspace. See scripts.py."""

from __future__ import annotations

from .fragments import (
    Args,
    Keys,
    Reply,
    check_condition,
    check_tiers,
    choose_limit,
    decimal,
    note_change,
    read_checked_header,
    refresh_session,
    replace_state,
    write_header,
)
from .keyspace import Keyspace


def rewind_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/rewind_session.lua"""
    session_id, ttl_ms, created_us, condition, first = args[:5]
    session, events = keys[:2]
    header = read_checked_header(keyspace, keys, session_id, created_us)
    refusal = check_condition(keyspace, session, condition, header.version)
    if refusal:
        return refusal
    num_events = keyspace.zcard(events)
    num_removed = keyspace.zremrangebyscore(events, int(first))
    new_version, is_new_member = write_header(
        keyspace, keys, session_id, header.version, header.last_us
    )
    keyspace.hset(session, (b"removed_us", decimal(keyspace.now_us)))
    if header.count is not None:
        count = max(header.count, num_events) - num_removed
        keyspace.hset(session, (b"count", decimal(count)))
    if num_removed:
        note_change(keyspace, session, new_version, int(first), header.last_us)
    replace_state(keyspace, session, args, 5)
    refresh_session(keyspace, keys, int(ttl_ms), header.last_us, is_new_member)
    return [b"OK", new_version, keyspace.now_us, num_removed, header.version]


def replace_event(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/replace_event.lua"""
    session_id, ttl_ms, created_us, condition, position, event, new_event = args
    session, events = keys[:2]
    header = read_checked_header(keyspace, keys, session_id, created_us)
    refusal = check_condition(keyspace, session, condition, header.version)
    if refusal:
        return refusal
    if keyspace.zscore(events, event) != int(position):
        return [b"ABSENT"]
    if new_event != b"" and keyspace.zscore(events, new_event) is not None:
        return [b"DUPLICATE"]
    num_events = keyspace.zcard(events)
    new_version, is_new_member = write_header(
        keyspace, keys, session_id, header.version, header.last_us
    )
    keyspace.hset(session, (b"removed_us", decimal(keyspace.now_us)))
    if new_event != b"":
        keyspace.zadd(events, int(position), new_event)
    elif header.count is not None:
        keyspace.hset(session, (b"count", decimal(max(header.count, num_events) - 1)))
    note_change(keyspace, session, new_version, int(position), int(position))
    keyspace.zrem(events, event)
    refresh_session(keyspace, keys, int(ttl_ms), header.last_us, is_new_member)
    return [b"OK", new_version, keyspace.now_us]


def fork_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/fork_session.lua"""
    copy_id, ttl_ms, created_us, condition, first, creation_id, origin, max_events = args[:8]
    session, events, index, copy, copy_events = keys[:5]
    keyspace.zcard(copy_events)
    check_tiers(keyspace, [*keys[:3], *keys[5:]])
    version, stored_creation_id = keyspace.hmget(copy, b"version", b"generation")
    if version is not None:
        return [b"OK"] if stored_creation_id == creation_id else [b"EXISTS"]
    header = read_checked_header(keyspace, keys[:3], copy_id, created_us)
    refusal = check_condition(keyspace, session, condition, header.version)
    if refusal:
        return refusal
    num_events = keyspace.zcard(events)
    if header.count is not None and header.count > num_events:
        return [b"MISSING", events, header.count, num_events]
    if num_events > int(max_events):
        return [b"TOO_LONG", num_events, int(max_events)]
    keyspace.unlink(copy, copy_events)
    keyspace.copy(session, copy)
    keyspace.copy(events, copy_events)
    last_us = header.last_us
    if first != b"":
        keyspace.zremrangebyscore(copy_events, int(first))
        newest = keyspace.zrange_by_rank(copy_events, -1, -1, rev=False)
        last_us = int(newest[0][0]) if newest else 0
    now_us = decimal(keyspace.now_us)
    limit = choose_limit(b"", header.event_limit, num_events)
    fields = {
        b"version": now_us,
        b"created_us": now_us,
        b"updated_us": now_us,
        b"last_us": decimal(last_us),
        b"deadline_ms": b"0",
        b"count": decimal(keyspace.zcard(copy_events)),
        b"event_limit": decimal(limit),
        b"generation": creation_id,
        b"forked_from": origin,
    }
    keyspace.hset(copy, [part for pair in fields.items() for part in pair])
    header_fields = [field for field in keyspace.hgetall(copy) if field[:1] != b"."]
    keyspace.hdel(copy, [field for field in header_fields if field not in fields])
    replace_state(keyspace, copy, args, 8)
    is_new_member = keyspace.zadd(index, keyspace.now_us, copy_id) == 1
    refresh_session(keyspace, (copy, copy_events, index), int(ttl_ms), last_us, is_new_member)
    return [b"OK"]
