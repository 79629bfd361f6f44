"""The script of lua/ for watchers of a session, in Python over a Keyspace."""

from __future__ import annotations

from .fragments import Args, Keys, Reply, decimal, header_number
from .keyspace import Keyspace


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
