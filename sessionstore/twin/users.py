"""The scripts of lua/ that delete a user, in Python over a Keyspace."""

from __future__ import annotations

from .fragments import Args, Keys, Reply
from .keyspace import Keyspace


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
