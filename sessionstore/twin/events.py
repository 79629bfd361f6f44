"""The scripts of lua/ that append and remove events, in Python over a Keyspace."""

from __future__ import annotations

from .fragments import (
    Args,
    Keys,
    Reply,
    check_batch,
    check_condition,
    check_tiers,
    choose_limit,
    decimal,
    event_starts,
    flags_with_room,
    fold_changes,
    header_number,
    is_maybe_removed,
    new_changes,
    new_count,
    next_position,
    note_change,
    note_trimmed,
    read_checked_header,
    read_summary,
    refresh_session,
    refresh_session_if_due,
    remove_summary,
    trim_events,
    wake_watchers,
    write_header,
    write_tiers,
)
from .keyspace import Keyspace


def append_event(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/append_event.lua"""
    session_id, ttl, event_limit, asked, event, timestamp = args[:6]
    asked, _, age = asked.partition(b" ")
    created_us, _, condition = asked.partition(b"/")
    session, events = keys[:2]
    header = read_checked_header(keyspace, keys, session_id, created_us)
    version, last_us, deadline_ms, count, _, flags = header
    num_before = keyspace.zcard(events)
    limit = choose_limit(event_limit, header.event_limit, num_before)
    covered = 0
    if b"c" in (flags or b""):
        number = header_number(keyspace.hget(session, b"covered"))
        if number is None:
            return [b"CORRUPT", session, b"covered"]
        covered = number
    ttl_ms, age_us, timestamp_us = int(ttl), int(age or 0), int(timestamp)
    refusal = check_condition(keyspace, session, condition, version, flags)
    if (age_us or refusal) and keyspace.zscore(events, event) is None:
        since_us = keyspace.now_us - age_us
        if age_us and (
            refusal or is_maybe_removed(keyspace, keys, count or 0, limit, timestamp_us, since_us)
        ):
            return [b"UNKNOWN"]
        if refusal:
            return refusal
    check_tiers(keyspace, keys)
    change: Args | None = args[7:]
    sums: Reply = []
    if len(args) > 6 and args[6] != b"0":
        change, sums = fold_changes(keyspace, [keys[0], *keys[3:]], args, [6])
        if change is None and keyspace.zscore(events, event) is None:
            return sums  # a refusal
    position = next_position(keyspace, timestamp_us, last_us)
    if not keyspace.zadd(events, position, event, nx=True):
        return [b"OK", version, keyspace.now_us, 1]
    num_events = keyspace.zcard(events)
    num_missing = 0 if count is None else count - num_events + 1
    note_trimmed(keyspace, session, events, limit)
    num_events = trim_events(keyspace, events, limit, num_events)
    stored_count = new_count(num_events, num_missing, limit)
    keyspace.hset(session, (b"count", decimal(stored_count), b"event_limit", decimal(limit)))
    if limit != header.event_limit:
        keyspace.hset(session, (b"flags", flags_with_room(header)))
    num_removed = max(count or 0, num_before) + 1 - stored_count
    if covered > 0 and num_removed > 0:
        keyspace.hset(session, (b"covered", decimal(max(covered - num_removed, 0))))
    new_version, is_new_member = write_header(keyspace, keys, session_id, version, position)
    if change:
        write_tiers(keyspace, keys, change, 0)
    if last_us == 0 or num_missing > 0:
        deadline_ms = 0  # the key of the events is new and has no deadline
    refresh_session_if_due(keyspace, keys, deadline_ms, ttl_ms, position, is_new_member)
    wake_watchers(keyspace, session)
    if sums:
        return [b"ADDED", new_version, keyspace.now_us, sums]
    return [b"OK", new_version, keyspace.now_us, 0]


def append_events(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/append_events.lua"""
    session_id, ttl, created_us, event_limit, condition, age = args[:6]
    ttl_ms, age_us = int(ttl), int(age or 0)
    session, events = keys[:2]
    header = read_checked_header(keyspace, keys, session_id, created_us)
    version, last_us, deadline_ms, count, _, flags = header
    summary = read_summary(keyspace, session, flags)
    check_tiers(keyspace, keys)
    num_events = keyspace.zcard(events)
    limit = choose_limit(event_limit, header.event_limit, num_events)
    if count is None:
        count = num_events

    starts, has_increments = event_starts(args, 6)
    num_duplicates = 0
    refusal = check_condition(keyspace, session, condition, version, flags)
    refusal = check_batch(keyspace, keys, args, starts, refusal, age_us, count, limit)
    if refusal:
        return refusal

    change: Args | None = None
    sums: Reply = []
    if has_increments:
        new = new_changes(keyspace, events, args, starts)
        change, sums = fold_changes(keyspace, [keys[0], *keys[3:]], args, new)
        if change is None:
            return sums  # a refusal

    is_first = last_us == 0
    changes = []
    num_stored = 0
    for at in starts:
        position = next_position(keyspace, int(args[at + 1]), last_us)
        if keyspace.zadd(events, position, args[at], nx=True):
            last_us = position
            num_stored += 1
            if args[at + 2] != b"0":
                changes.append(at + 3)
        else:
            num_duplicates += 1
    if num_stored == 0:
        return [b"OK", version, keyspace.now_us, num_duplicates]
    if changes and change is None:
        change, _ = fold_changes(keyspace, [keys[0], *keys[3:]], args, changes)
    if change and changes:
        write_tiers(keyspace, keys, change, 0)
    num_missing, num_before = max(count - num_events, 0), max(count, num_events)
    note_trimmed(keyspace, session, events, limit)
    num_events = trim_events(keyspace, events, limit, keyspace.zcard(events))
    count = new_count(num_events, num_missing, limit)
    keyspace.hset(session, (b"count", decimal(count), b"event_limit", decimal(limit)))
    if limit != header.event_limit:
        keyspace.hset(session, (b"flags", flags_with_room(header)))
    if summary:
        num_removed = num_before + num_stored - count
        covered = max(summary.covered - num_removed, 0)
        keyspace.hset(session, (b"covered", decimal(covered)))
    if is_first or num_missing > 0:
        deadline_ms = 0  # the key of the events is new and has no deadline
    new_version, is_new_member = write_header(keyspace, keys, session_id, version, last_us)
    refresh_session_if_due(keyspace, keys, deadline_ms, ttl_ms, last_us, is_new_member)
    wake_watchers(keyspace, session)
    if sums and num_duplicates == 0:
        return [b"ADDED", new_version, keyspace.now_us, sums]
    return [b"OK", new_version, keyspace.now_us, num_duplicates]


def pop_event(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/pop_event.lua"""
    session_id, ttl, created_us, condition = args
    session, events = keys[:2]
    header = read_checked_header(keyspace, keys, session_id, created_us)
    refusal = check_condition(keyspace, session, condition, header.version)
    if refusal:
        return refusal
    summary = read_summary(keyspace, session, header.flags)
    newest = keyspace.zrange_by_rank(events, -2, -1, rev=False)
    if not newest and header.count:
        return [b"MISSING", events, header.count, 0]
    if not newest or (summary and newest[-1][0] <= summary.compacted_us):
        return [b"EMPTY"]
    position, event = newest[-1]
    # Lua removes the event last, because the slot may be migrating. The twin has no slots.
    keyspace.zrem(events, event)
    new_version, is_new_member = write_header(
        keyspace, keys, session_id, header.version, header.last_us
    )
    flags = flags_with_room(header, len(newest) == 1)
    keyspace.hset(session, (b"removed_us", decimal(keyspace.now_us), b"flags", flags))
    if header.count is not None:
        keyspace.hset(session, (b"count", decimal(max(header.count - 1, len(newest) - 1))))
    note_change(keyspace, session, new_version, position, position)
    refresh_session(keyspace, keys, int(ttl), header.last_us, is_new_member)
    return [b"OK", new_version, keyspace.now_us, event]


def clear_events(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/clear_events.lua"""
    session_id, ttl, created_us, condition = args
    session, events = keys[:2]
    header = read_checked_header(keyspace, keys, session_id, created_us)
    refusal = check_condition(keyspace, session, condition, header.version)
    if refusal:
        return refusal
    keyspace.unlink(events)
    new_version, is_new_member = write_header(
        keyspace, keys, session_id, header.version, header.last_us
    )
    flags = flags_with_room(header, True)
    fields = (b"count", b"0", b"removed_us", decimal(keyspace.now_us))
    keyspace.hset(session, (*fields, b"flags", flags))
    remove_summary(keyspace, session, flags)
    note_change(keyspace, session, new_version, 0, header.last_us)
    refresh_session(keyspace, keys, int(ttl), header.last_us, is_new_member)
    return [b"OK", new_version, keyspace.now_us]


def replace_newest(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/replace_newest.lua"""
    session_id, ttl, event_limit, condition, first, end, *tail = args
    session, events = keys[:2]
    header = read_checked_header(keyspace, keys, session_id, b"")
    refusal = check_condition(keyspace, session, condition, header.version, header.flags)
    if refusal:
        return refusal
    summary = read_summary(keyspace, session, header.flags)
    num_events = keyspace.zcard(events)
    if (header.count or 0) > num_events:
        return [b"MISSING", events, header.count, num_events]
    end_kept = min(int(end), num_events)
    first_kept = min(int(first), end_kept)
    limit = choose_limit(event_limit, header.event_limit, num_events)
    replaced = keyspace.zrange_by_rank(events, end_kept, end_kept, rev=False)
    last_us, num_left = header.last_us, 0
    for at in range(0, len(tail), 2):
        position = next_position(keyspace, int(tail[at + 1]), last_us)
        if keyspace.zadd(events, position, tail[at], nx=True):
            last_us = position
            num_left += 1
    num_left += end_kept - first_kept
    num_before = num_left
    if num_left:
        if end_kept < num_events:
            keyspace.zremrangebyrank(events, end_kept, num_events - 1)
        if first_kept:
            keyspace.zremrangebyrank(events, 0, first_kept - 1)
        note_trimmed(keyspace, session, events, limit)
        num_left = trim_events(keyspace, events, limit, num_left)
    else:
        keyspace.unlink(events)
    flags = flags_with_room(header, first_kept > 0 or end_kept == 0)
    fields = (b"count", decimal(num_left), b"event_limit", decimal(limit), b"flags", flags)
    keyspace.hset(session, (*fields, b"removed_us", decimal(keyspace.now_us)))
    if summary and (end_kept < summary.covered or first_kept == end_kept):
        remove_summary(keyspace, session, flags)
    elif summary:
        covered = max(summary.covered - (first_kept + num_before - num_left), 0)
        keyspace.hset(session, (b"covered", decimal(covered)))
    new_version, is_new_member = write_header(keyspace, keys, session_id, header.version, last_us)
    if first_kept or replaced:
        first_changed = 0 if first_kept else replaced[0][0]
        note_change(keyspace, session, new_version, first_changed, header.last_us)
    else:
        wake_watchers(keyspace, session)
    refresh_session(keyspace, keys, int(ttl), last_us, is_new_member)
    return [b"OK", new_version, keyspace.now_us]
