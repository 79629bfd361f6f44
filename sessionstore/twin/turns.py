"""The scripts of lua/ on the leases of a session, in Python over a Keyspace."""

from __future__ import annotations

import math

from .fragments import (
    Args,
    Keys,
    Reply,
    decimal,
    header_number,
    lease_fields,
    read_checked_header,
    refresh_session_if_due,
    wake_watchers,
)
from .keyspace import Keyspace


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
