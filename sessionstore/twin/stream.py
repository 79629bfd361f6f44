"""The script of lua/ that keeps fragments of events, in Python over a Keyspace."""

from __future__ import annotations

import hashlib
import math
import re

from .fragments import Args, Keys, Reply, check_condition, decimal, header_number, wake_watchers
from .keyspace import Keyspace


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
