"""The scripts of lua/ that create, read, delete and repair a session, in Python over a Keyspace."""

from __future__ import annotations

import math

from .fragments import (
    Args,
    Header,
    Keys,
    Refused,
    Reply,
    check_condition,
    check_create,
    check_tiers,
    choose_limit,
    decimal,
    flags_with_room,
    header_number,
    is_due,
    read_header,
    refresh_session,
    refresh_session_if_due,
    refresh_tiers,
    remove_summary,
    wake_watchers,
    write_create,
)
from .keyspace import Keyspace


def create_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/create_session.lua"""
    session_id, _, creation_id = args[:3]
    check_create(keyspace, keys, session_id)
    version, stored_creation_id = keyspace.hmget(keys[0], b"version", b"generation")
    if version is not None:
        return [b"OK", []] if stored_creation_id == creation_id else [b"EXISTS"]
    keyspace.unlink(*keys[:2])
    return [b"OK", write_create(keyspace, keys, args, args[4], 5)]


def get_or_create_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/get_or_create_session.lua"""
    session_id, ttl, _, _, data_key, refresh, *tier_ttls = args[:8]
    check_create(keyspace, keys, session_id)
    try:
        header = read_header(keyspace, keys[0], b"")
    except Refused as refused:
        if refused.reply != [b"NOT_FOUND"]:
            raise
        if keyspace.zcard(keys[1]):
            raise Refused(b"CORRUPT", keys[0], b"version") from None
        keyspace.unlink(*keys[:2])
        return [b"CREATED", write_create(keyspace, keys, args, data_key, 8)]
    if refresh == b"1":
        ttl_ms = int(ttl)
        refresh_session_if_due(keyspace, keys, header.deadline_ms, ttl_ms, header.last_us, False)
        refresh_tiers(keyspace, keys, [*map(int, tier_ttls)])
    return [b"OK"]


def check_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/check_session.lua"""
    session, events = keys
    created_us, condition, *sent = args
    header = read_header(keyspace, session, created_us)
    stored = [int(keyspace.zscore(events, event) is not None) for event in sent]
    refusal = check_condition(keyspace, session, condition, header.version, header.flags)
    if refusal and not (stored and all(stored)):
        return refusal
    return [b"OK", stored]


def touch_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/touch_session.lua"""
    session_id, ttl, *tier_ttls = args
    ttl_ms, tier_ttls_ms = int(ttl), [*map(int, tier_ttls)]
    header = read_header(keyspace, keys[0], b"")
    is_session_due = is_due(keyspace, header.deadline_ms, ttl_ms)
    if is_session_due:
        keyspace.zscore(keys[2], session_id)
    if is_session_due or any(tier_ttls_ms):
        keyspace.zcard(keys[1])
    check_tiers(keyspace, keys)
    if is_session_due:
        refresh_session(keyspace, keys, ttl_ms, header.last_us, False)
    refresh_tiers(keyspace, keys, tier_ttls_ms)
    return [b"OK"]


def delete_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/delete_session.lua"""
    session, events, index = keys
    session_id, age_us, data_key = args[0], int(args[1] or 0), args[2]
    keyspace.hlen(session)
    keyspace.zcard(events)
    keyspace.zscore(index, session_id)
    if data_key and keyspace.hget(session, b"data_key") != data_key:
        return [b"OK"]
    created_us, restored_us = keyspace.hmget(session, b"created_us", b"restored_us")
    existed_us = header_number(created_us if restored_us is None else restored_us)
    if age_us > 0 and existed_us is not None and existed_us > keyspace.now_us - age_us:
        return [b"UNKNOWN"]
    wake_watchers(keyspace, session)
    keyspace.unlink(session, events)
    keyspace.zrem(index, session_id)
    return [b"OK"]


def repair_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/repair_session.lua"""
    session, events, index = keys[:3]
    session_id, ttl, event_limit = args
    keyspace.zscore(index, session_id)
    check_tiers(keyspace, keys)
    newest = keyspace.zrange_by_rank(events, -1, -1, rev=False)
    num_events = keyspace.zcard(events)
    is_lost = not keyspace.hlen(session)
    if is_lost and not num_events:
        return [b"NOT_FOUND"]
    names = (b"version", b"created_us", b"last_us", b"event_limit", b"count")
    stored = keyspace.hmget(session, *names)
    flags, content = keyspace.hmget(session, b"flags", b"summary")
    summary = keyspace.hmget(session, b"compacted_us", b"summary_us", b"summary_events")
    upto, summary_us, total = map(header_number, summary)
    version, created_us, last_us, limit, count = map(header_number, stored)
    flags = flags_with_room(Header(0, 0, 0, count, limit, flags), num_events == 0)
    now_us = keyspace.now_us
    last_us = max(last_us or 0, newest[0][0] if newest else 0)
    fields = {
        b"version": max((version or 0) + 1, now_us),
        b"created_us": now_us if created_us is None else created_us,
        b"updated_us": now_us,
        b"last_us": last_us,
        b"deadline_ms": 0,
        b"count": num_events,
        b"event_limit": choose_limit(event_limit, limit, num_events),
    }
    for name, number in fields.items():
        keyspace.hset(session, (name, decimal(number)))
    keyspace.hset(session, (b"flags", flags))
    is_whole = b"c" in flags and content is not None and summary_us is not None
    if is_whole and upto is not None and total is not None:
        covered = keyspace.zcount(events, -math.inf, upto)
        pairs = (b"covered", decimal(covered), b"summary_events", decimal(max(total, covered)))
        keyspace.hset(session, pairs)
    else:
        remove_summary(keyspace, session, flags)
    is_new_member = keyspace.zadd(index, now_us, session_id) == 1
    deadline_ms = keyspace.pexpiretime(events)
    if is_lost and deadline_ms > 0:
        keyspace.pexpireat(session, deadline_ms)
    refresh_session(keyspace, keys, int(ttl), last_us, is_new_member)
    return [b"OK"]
