"""The scripts of lua/ in Python over a Keyspace: the same KEYS, ARGV and replies.

Compare each function with the Lua file of the same name. Tests run both with random sequences of
calls.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from types import MappingProxyType

from .data_keys import (
    delete_data_key,
    reseal_values,
    retire_data_key,
    set_data_key,
    undo_data_key,
    use_data_key,
)
from .fragments import (
    Args,
    Keys,
    Refused,
    Reply,
    check_batch,
    check_condition,
    check_create,
    check_tiers,
    choose_limit,
    decimal,
    event_starts,
    fold_changes,
    header_number,
    is_due,
    is_maybe_removed,
    lease_fields,
    new_changes,
    new_count,
    next_position,
    note_change,
    note_trimmed,
    read_checked_header,
    read_header,
    read_summary,
    refresh_session,
    refresh_session_if_due,
    refresh_tier,
    refresh_tiers,
    remove_summary,
    trim_events,
    wake_watchers,
    write_create,
    write_delta,
    write_header,
    write_tiers,
)
from .history import (
    compact_session,
    fork_session,
    replace_event,
    restore_session,
    rewind_session,
    stage_events,
)
from .keyspace import Keyspace

# -- sessions -----------------------------------------------------------------------------------


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


def listen_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/listen_session.lua"""
    session, events = keys
    keyspace.zcard(events)
    names = (b"version", b"created_us", b"last_us", b"changes", b"flags", b"listen_ms")
    *fields, flags, listen_ms = keyspace.hmget(session, *names)
    if fields[0] is None:
        return [b"NOT_FOUND"]
    until_ms = keyspace.now_us // 1000 + int(args[0])
    if args[0] != b"0" and (header_number(listen_ms) or 0) < until_ms:
        keyspace.hset(session, (b"listen_ms", decimal(until_ms)))
    if b"l" not in (flags or b""):
        keyspace.hset(session, (b"flags", (flags or b"") + b"l"))
    return [b"OK", *(field or b"" for field in fields)]


def prune_index(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/prune_index.lua"""
    index, *sessions = keys
    num_sessions = keyspace.zcard(index)
    deadlines_ms = dict(zip(args, map(keyspace.pexpiretime, sessions), strict=True))
    if keyspace.pexpiretime(index) == -1:
        members = {member for _, member in keyspace.zrange_by_rank(index, 0, -1, rev=False)}
        known = [at for session_id, at in deadlines_ms.items() if session_id in members]
        if len(known) == num_sessions and -1 not in known and max(known) > 0:
            keyspace.pexpireat(index, max(known))
    gone = [session_id for session_id, at in deadlines_ms.items() if at == -2]
    return [b"OK", sum(keyspace.zrem(index, session_id) for session_id in gone)]


def delete_sessions(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/delete_sessions.lua"""
    index, user, *rest = keys
    existed, *ids = args
    keyspace.zcard(index)
    keyspace.hlen(user)
    existed_us = int(existed) or keyspace.now_us
    found = []
    for session, events, session_id in zip(rest[::2], rest[1::2], ids, strict=True):
        created_us, restored_us = keyspace.hmget(session, b"created_us", b"restored_us")
        since_us = created_us if restored_us is None else restored_us
        keyspace.zcard(events)
        if since_us is None or int(since_us) <= existed_us:
            found.append((session, events, session_id))
    num_deleted = sum(keyspace.exists(session) for session, _, _ in found)
    for session, events, session_id in found:
        keyspace.unlink(session, events)
        keyspace.zrem(index, session_id)
    return [b"OK", existed_us, num_deleted]


def delete_user(keyspace: Keyspace, keys: Keys, _: Args) -> Reply:
    """lua/delete_user.lua"""
    index, user = keys
    num_sessions, num_keys = keyspace.zcard(index), keyspace.hlen(user)
    if num_sessions:
        return [b"OK", num_sessions, 0]
    keyspace.unlink(user)
    return [b"OK", 0, num_keys]


# -- events -------------------------------------------------------------------------------------


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


def append_fragments(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/append_fragments.lua"""

    def bytes_before(entry: bytes) -> int:
        found = re.match(rb"\d+ \d+ (\d+) ", entry)
        return int(found[1]) if found else 0

    session, stream = keys
    created_us, condition, ttl, num_fragments, fragments = args
    ttl_ms = int(ttl)
    names = (b"version", b"created_us", b"last_us")
    version, created, last_us, flags = keyspace.hmget(session, *names, b"flags")
    if version is None or created_us not in (b"", created):
        return [b"NOT_FOUND"]
    for name, field in zip(names, (version, created, last_us), strict=True):
        if header_number(field) is None:
            return [b"CORRUPT", session, name]
    assert created is not None
    assert last_us is not None
    mark = b"\0%b %b" % (created, hashlib.sha1(fragments).hexdigest().encode())
    stored = keyspace.zscore(stream, mark)
    if stored is not None:
        return [b"OK", int(stored)]
    refusal = check_condition(keyspace, session, condition, int(version), flags)
    if refusal:
        return refusal
    before, last = 0, 0
    for score, newest in keyspace.zrange_by_rank(stream, -1, -1, rev=False):
        before, last = bytes_before(newest) + len(newest), int(score)
    sequence = max(keyspace.now_us, last + 1) + int(num_fragments) - 1
    entry = b" ".join((created, last_us, decimal(before), num_fragments, fragments))
    keyspace.zadd(stream, sequence, mark)
    keyspace.zadd(stream, sequence, entry)
    keyspace.pexpireat(stream, keyspace.now_us // 1000 + ttl_ms)
    keyspace.zremrangebyscore(stream, -math.inf, keyspace.now_us - ttl_ms * 1000)
    num_entries = keyspace.zcard(stream) // 2
    while num_entries > 1:
        oldest = keyspace.zrange_by_rank(stream, 0, 1, rev=False)[1][1]
        num_bytes = before + len(entry) - bytes_before(oldest)
        if num_entries <= 5000 and num_bytes <= 8 << 20:
            break
        keyspace.zremrangebyrank(stream, 0, 1)
        num_entries -= 1
    wake_watchers(keyspace, session)
    return [b"OK", sequence]


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
    keyspace.hset(session, (b"removed_us", decimal(keyspace.now_us)))
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
    keyspace.hset(session, (b"count", b"0", b"removed_us", decimal(keyspace.now_us)))
    remove_summary(keyspace, session, header.flags)
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
    fields = (b"count", decimal(num_left), b"event_limit", decimal(limit))
    keyspace.hset(session, (*fields, b"removed_us", decimal(keyspace.now_us)))
    if summary and (end_kept < summary.covered or first_kept == end_kept):
        remove_summary(keyspace, session, header.flags)
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
    stored = keyspace.hmget(session, b"version", b"created_us", b"last_us", b"event_limit")
    flags, content = keyspace.hmget(session, b"flags", b"summary")
    summary = keyspace.hmget(session, b"compacted_us", b"summary_us", b"summary_events")
    upto, summary_us, total = map(header_number, summary)
    version, created_us, last_us, limit = map(header_number, stored)
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
    is_whole = b"c" in (flags or b"") and content is not None and summary_us is not None
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


# -- turns --------------------------------------------------------------------------------------


def acquire_turn(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/acquire_turn.lua"""
    session_id, ttl, created_us, holder, lease_ms, lease = args
    header = read_checked_header(keyspace, keys, session_id, created_us)
    fields = token_field, until_field, holder_field, length_field = lease_fields(lease)
    found = keyspace.hmget(keys[0], *fields)
    token, until_us, length_ms = (
        header_number(b"0" if text is None else text) for text in (found[0], found[1], found[3])
    )
    if token is None:
        return [b"CORRUPT", keys[0], token_field]
    if until_us is None:
        return [b"CORRUPT", keys[0], until_field]
    if length_ms is None:
        return [b"CORRUPT", keys[0], length_field]
    now_us = keyspace.now_us
    longest_us = math.inf if found[3] is None else (length_ms + 1000) * 1000
    is_taken = 0 < until_us - now_us <= longest_us
    if is_taken and found[2] != holder:
        return [b"TAKEN", until_us]
    if found[2] != holder:
        token = max(token + 1, now_us)
    until_us = now_us + int(lease_ms) * 1000
    pairs = (token_field, decimal(token), until_field, decimal(until_us))
    keyspace.hset(keys[0], (*pairs, length_field, lease_ms, holder_field, holder))
    refresh_session_if_due(keyspace, keys, header.deadline_ms, int(ttl), header.last_us, False)
    return [b"OK", token, until_us]


def renew_turn(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/renew_turn.lua"""
    session_id, ttl, token, lease_ms, lease = args
    header = read_checked_header(keyspace, keys, session_id, b"")
    token_field, until_field, holder_field, length_field = lease_fields(lease)
    stored_token, holder = keyspace.hmget(keys[0], token_field, holder_field)
    if stored_token != token or (int(lease_ms) > 0 and holder == b""):
        return [b"LOST"]
    until_us = keyspace.now_us + int(lease_ms) * 1000
    if int(lease_ms) > 0:
        keyspace.hset(keys[0], (until_field, decimal(until_us), length_field, lease_ms))
    else:
        keyspace.hset(keys[0], (until_field, b"0", holder_field, b""))
    refresh_session_if_due(keyspace, keys, header.deadline_ms, int(ttl), header.last_us, False)
    if lease_ms == b"0" and lease == b"turn":
        wake_watchers(keyspace, keys[0], b"turn")
    return [b"OK", until_us]


def free_turn(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/free_turn.lua"""
    session_id, ttl, created_us = args
    header = read_checked_header(keyspace, keys, session_id, created_us)
    stored = keyspace.hget(keys[0], b"turn_token")
    token = header_number(b"0" if stored is None else stored)
    if token is None:
        return [b"CORRUPT", keys[0], b"turn_token"]
    token = max(token + 1, keyspace.now_us)
    lease = (b"turn_token", decimal(token), b"turn_until_us", b"0")
    keyspace.hset(keys[0], (*lease, b"turn_holder", b""))
    refresh_session_if_due(keyspace, keys, header.deadline_ms, int(ttl), header.last_us, False)
    wake_watchers(keyspace, keys[0], b"turn")
    return [b"OK"]


# -- state --------------------------------------------------------------------------------------


def update_session_state(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/update_session_state.lua"""
    session_id, ttl, created_us, condition, if_absent = args[:5]
    header = read_checked_header(keyspace, keys, session_id, created_us)
    version, last_us, deadline_ms = header[:3]
    refusal = check_condition(keyspace, keys[0], condition, version, header.flags)
    if refusal:
        return refusal
    check_tiers(keyspace, keys)
    change: Args | None = args[6:]
    sums: Reply = []
    if args[5] != b"0":
        change, sums = fold_changes(keyspace, [keys[0], *keys[3:]], args, [5])
        if change is None:
            return sums  # a refusal
    assert change is not None
    write_tiers(keyspace, keys, change, 0, if_absent == b"1")
    new_version, is_new_member = write_header(keyspace, keys, session_id, version, last_us)
    refresh_session_if_due(keyspace, keys, deadline_ms, int(ttl), last_us, is_new_member)
    if sums:
        return [b"ADDED", new_version, keyspace.now_us, sums]
    return [b"OK", new_version, keyspace.now_us]


def change_fields(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/change_fields.lua"""
    session = keys[0]
    session_id, ttl, condition, num_compared = args[:4]
    header = read_checked_header(keyspace, keys, session_id, b"")
    refusal = check_condition(keyspace, session, condition, header.version, header.flags)
    if refusal:
        return refusal
    extended = 4 + 2 * int(num_compared)
    for pair in range(4, extended, 2):
        value = keyspace.hget(session, args[pair])
        found = b"" if value is None else hashlib.sha1(value).hexdigest().encode()
        if found != args[pair + 1]:
            return [b"STALE", header.version]
    delta = extended + 1 + 2 * int(args[extended])
    for field, entry in zip(
        args[extended + 1 : delta : 2], args[extended + 2 : delta : 2], strict=True
    ):
        value = keyspace.hget(session, field) or b"\0"
        if entry not in value:
            keyspace.hset(session, (field, value + entry))
    write_delta(keyspace, session, args, delta)
    version, is_new_member = write_header(
        keyspace, keys, session_id, header.version, header.last_us
    )
    refresh_session_if_due(
        keyspace, keys, header.deadline_ms, int(ttl), header.last_us, is_new_member
    )
    return [b"OK", version, keyspace.now_us]


def update_tier_state(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/update_tier_state.lua"""
    [tier] = keys
    ttl, if_absent = args[:2]
    keyspace.hlen(tier)
    change: Args | None = args[3:]
    sums: Reply = []
    if args[2] != b"0":
        change, sums = fold_changes(keyspace, [tier], args, [2])
        if change is None:
            return sums  # a refusal
    assert change is not None
    write_delta(keyspace, tier, change, 0, int(ttl), if_absent == b"1")
    return [b"ADDED", sums] if sums else [b"OK"]


def touch_tier(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/touch_tier.lua"""
    [tier] = keys
    keyspace.hlen(tier)
    refresh_tier(keyspace, tier, int(args[0]))
    return [b"OK"]


TWINS: MappingProxyType[str, Callable[[Keyspace, Keys, Args], Reply]] = MappingProxyType(
    {
        script.__name__: script
        for script in (
            acquire_turn,
            append_event,
            append_events,
            append_fragments,
            change_fields,
            check_session,
            clear_events,
            compact_session,
            create_session,
            delete_data_key,
            delete_session,
            delete_sessions,
            delete_user,
            fork_session,
            free_turn,
            get_or_create_session,
            listen_session,
            pop_event,
            prune_index,
            renew_turn,
            repair_session,
            replace_event,
            replace_newest,
            reseal_values,
            restore_session,
            retire_data_key,
            rewind_session,
            set_data_key,
            stage_events,
            touch_session,
            touch_tier,
            undo_data_key,
            update_session_state,
            update_tier_state,
            use_data_key,
        )
    }
)
"""Every script that a Call may name, by the name of its Lua file."""
