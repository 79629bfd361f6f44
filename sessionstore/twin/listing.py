"""The script of lua/ on the index of a user's sessions, in Python over a Keyspace."""

from __future__ import annotations

from .fragments import Args, Keys, Reply
from .keyspace import Keyspace


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
