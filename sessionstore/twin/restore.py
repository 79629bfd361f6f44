"""The scripts of lua/ that restore a session, in Python over a Keyspace."""

from __future__ import annotations

import math

from .fragments import (
    Args,
    Keys,
    Reply,
    check_create,
    choose_limit,
    decimal,
    refresh_session,
    write_create,
)
from .keyspace import Keyspace


def stage_events(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/stage_events.lua"""
    [staged] = keys
    keyspace.zcard(staged)
    for at in range(1, len(args), 2):
        keyspace.zadd(staged, int(args[at]), args[at + 1])
    keyspace.pexpireat(staged, keyspace.now_us // 1000 + int(args[0]))
    return [b"OK"]


def restore_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/restore_session.lua"""
    session_id, ttl, creation_id, limit, created_us, updated_us, origin = args[:7]
    upto, summary_us, summary, data_key, num_staged, *tail = args[7:]
    session, events, index, staged = keys[:4]
    check_create(keyspace, [*keys[:3], *keys[4:]], session_id)
    num_found = keyspace.zcard(staged)
    version, stored_creation_id = keyspace.hmget(session, b"version", b"generation")
    if version is not None:
        if stored_creation_id != creation_id:
            return [b"EXISTS"]
        keyspace.unlink(staged)
        return [b"OK", []]
    if num_found != int(num_staged):
        return [b"INCOMPLETE", num_found]
    first = 2 + 2 * int(tail[0])
    num_events = num_found + (len(tail) - first) // 2
    last_us = max(int(tail[-2]) if first < len(tail) else 0, int(upto or 0))
    updated_us = updated_us or decimal(keyspace.now_us)
    event_limit = decimal(choose_limit(limit, None, num_events))
    keyspace.unlink(session, events)
    if num_found:
        keyspace.rename(staged, events)
        keyspace.persist(events)
    head = (session_id, ttl, creation_id, event_limit)
    ids = write_create(keyspace, keys[:3], (*head, *tail), data_key, 4)
    for at in range(first, len(tail), 2):
        keyspace.zadd(events, int(tail[at]), tail[at + 1])
    fields = {
        b"last_us": decimal(last_us),
        b"count": decimal(num_events),
        b"created_us": created_us or updated_us,
        b"updated_us": updated_us,
        b"restored_us": decimal(keyspace.now_us),
    }
    if origin:
        fields[b"forked_from"] = origin
    if upto:
        num_covered = keyspace.zcount(events, -math.inf, int(upto))
        fields |= {
            b"summary": summary,
            b"compacted_us": upto,
            b"summary_us": summary_us,
            b"covered": decimal(num_covered),
            b"summary_events": decimal(num_covered + 1),
            b"flags": b"kc" if data_key else b"c",
        }
    keyspace.hset(session, [part for pair in fields.items() for part in pair])
    keyspace.zadd(index, int(updated_us), session_id)
    refresh_session(keyspace, keys, int(ttl), last_us, False)
    return [b"OK", ids]
