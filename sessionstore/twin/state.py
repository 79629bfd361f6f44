"""The scripts of lua/ that change state, in Python over a Keyspace."""

from __future__ import annotations

import hashlib

from .fragments import (
    Args,
    Keys,
    Reply,
    check_condition,
    check_tiers,
    fold_changes,
    read_checked_header,
    refresh_session_if_due,
    refresh_tier,
    write_delta,
    write_header,
    write_tiers,
)
from .keyspace import Keyspace


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
