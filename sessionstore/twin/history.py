"""The scripts of lua/ that change history, in Python over a Keyspace."""

from __future__ import annotations

import math

from .fragments import (
    Args,
    Keys,
    Reply,
    check_condition,
    check_tiers,
    choose_limit,
    decimal,
    flags_with_room,
    header_number,
    lease_fields,
    note_change,
    read_checked_header,
    read_summary,
    refresh_session,
    remove_summary,
    replace_state,
    write_header,
)
from .keyspace import Keyspace


def compact_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/compact_session.lua"""
    session_id, ttl_ms, created_us, condition, age, upto, base, drop, summary = args
    session, events = keys[:2]
    header = read_checked_header(keyspace, keys, session_id, created_us)
    old = read_summary(keyspace, session, header.flags)
    now_us, num_events, position = keyspace.now_us, keyspace.zcard(events), int(upto)
    stored = keyspace.hget(session, b"summary")
    is_repeat = old is not None and old.compacted_us == position and stored == summary
    if not is_repeat:
        refusal = check_condition(keyspace, session, condition, header.version, header.flags)
        old_base = decimal(old.compacted_us) if old else b""
        if not refusal and old_base != base:
            refusal = [b"SUPERSEDED", int(base or 0), old.compacted_us if old else 0]
        elif not refusal and (header.count or 0) > num_events:
            refusal = [b"MISSING", events, header.count, num_events]
        elif not refusal and upto != base and not keyspace.zcount(events, position, position):
            refusal = [b"ABSENT"]
        if int(age or 0):
            removed = keyspace.hget(session, b"removed_us")
            removed_us = header_number(b"0" if removed is None else removed)
            if refusal or removed_us is None or removed_us >= now_us - int(age):
                return [b"UNKNOWN"]
        if refusal:
            return refusal
    num_covered = keyspace.zcount(events, -math.inf, position)
    num_dropped = num_covered if drop == b"1" else 0
    count = max(header.count or 0, num_events) - num_dropped
    flags = flags_with_room(header, True) if num_dropped else header.flags or b""
    if old is not None and is_repeat and not num_dropped:
        version = header.version
        return [b"OK", version, now_us, version, old.summary_us, old.covered, count]
    new_version, is_new_member = write_header(
        keyspace, keys, session_id, header.version, header.last_us
    )
    summary_us = now_us
    if old is not None and is_repeat:
        num_covered, summary_us = old.covered, old.summary_us
    else:
        num_gone = old.summary_events - old.covered if old else 0
        total = decimal(num_covered + num_gone)
        fields = (b"summary", summary, b"compacted_us", upto, b"summary_us", decimal(now_us))
        keyspace.hset(session, (*fields, b"summary_events", total))
        if old is None:
            flags += b"c"
    num_covered -= num_dropped
    numbers = (b"covered", decimal(num_covered), b"count", decimal(count))
    keyspace.hset(session, (*numbers, b"flags", flags))
    if num_dropped:
        keyspace.hset(session, (b"removed_us", decimal(now_us)))
        if b"l" in (header.flags or b""):
            keyspace.hset(session, (b"trimmed_us", upto))  # as note_trimmed does
        keyspace.zremrangebyscore(events, -math.inf, position)
    refresh_session(keyspace, keys, int(ttl_ms), header.last_us, is_new_member)
    return [b"OK", new_version, now_us, header.version, summary_us, num_covered, count]


def rewind_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/rewind_session.lua"""
    session_id, ttl_ms, created_us, condition, first = args[:5]
    session, events = keys[:2]
    header = read_checked_header(keyspace, keys, session_id, created_us)
    flags = header.flags if len(args) > 5 else None
    refusal = check_condition(keyspace, session, condition, header.version, flags)
    if refusal:
        return refusal
    summary = read_summary(keyspace, session, header.flags)
    is_behind = summary is not None and int(first) <= summary.compacted_us
    if summary and is_behind and summary.covered < summary.summary_events:
        return [b"COVERED", summary.compacted_us]
    num_events = keyspace.zcard(events)
    num_removed = keyspace.zremrangebyscore(events, int(first), math.inf)
    if num_removed:
        header = header._replace(flags=flags_with_room(header, num_removed == num_events))
    new_version, is_new_member = write_header(
        keyspace, keys, session_id, header.version, header.last_us
    )
    fields = (b"removed_us", decimal(keyspace.now_us), b"flags", header.flags or b"")
    keyspace.hset(session, fields)
    if header.count is not None:
        count = max(header.count, num_events) - num_removed
        keyspace.hset(session, (b"count", decimal(count)))
    if is_behind:
        remove_summary(keyspace, session, header.flags)
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
    flags = header.flags if new_event else None
    refusal = check_condition(keyspace, session, condition, header.version, flags)
    if refusal:
        return refusal
    summary = read_summary(keyspace, session, header.flags)
    if keyspace.zscore(events, event) != int(position):
        return [b"ABSENT"]
    if new_event != b"" and keyspace.zscore(events, new_event) is not None:
        return [b"DUPLICATE"]
    num_events = keyspace.zcard(events)
    if new_event == b"":
        header = header._replace(flags=flags_with_room(header, num_events == 1))
    new_version, is_new_member = write_header(
        keyspace, keys, session_id, header.version, header.last_us
    )
    fields = (b"removed_us", decimal(keyspace.now_us), b"flags", header.flags or b"")
    keyspace.hset(session, fields)
    if new_event != b"":
        keyspace.zadd(events, int(position), new_event)
    elif header.count is not None:
        keyspace.hset(session, (b"count", decimal(max(header.count, num_events) - 1)))
    if summary and int(position) <= summary.compacted_us:
        remove_summary(keyspace, session, header.flags)
    keyspace.hdel(session, lease_fields(b"compactor"))
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
    refusal = check_condition(keyspace, session, condition, header.version, header.flags)
    if refusal:
        return refusal
    summary = read_summary(keyspace, session, header.flags)
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
        keyspace.zremrangebyscore(copy_events, int(first), math.inf)
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
        b"flags": b"",
    }
    if summary and (first == b"" or summary.compacted_us < int(first)):
        numbers = zip(summary._fields, summary, strict=True)
        fields |= {name.encode(): decimal(number) for name, number in numbers}
        fields |= {b"flags": b"c", b"summary": keyspace.hget(session, b"summary") or b""}
        last_us = max(last_us, summary.compacted_us)
        fields[b"last_us"] = decimal(last_us)
    if b"f" in flags_with_room(header, fields[b"count"] == b"0"):
        fields[b"flags"] = b"f" + fields[b"flags"]
    if b"k" in (header.flags or b""):
        fields[b"flags"] = b"k" + fields[b"flags"]
        fields[b"data_key"] = keyspace.hget(session, b"data_key") or b""
    keyspace.hset(copy, [part for pair in fields.items() for part in pair])
    header_fields = [field for field in keyspace.hgetall(copy) if field[:1] != b"."]
    keyspace.hdel(copy, [field for field in header_fields if field not in fields])
    replace_state(keyspace, copy, args, 8)
    is_new_member = keyspace.zadd(index, keyspace.now_us, copy_id) == 1
    refresh_session(keyspace, (copy, copy_events, index), int(ttl_ms), last_us, is_new_member)
    return [b"OK"]
