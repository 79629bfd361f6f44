"""Everything that a server or the twin stores, in one form."""

from __future__ import annotations

from typing import Any

from support.servers import Server

from sessionstore.twin.keyspace import Keyspace

DUMP = """
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind, content = redis.call('TYPE', key).ok, {}
  if kind == 'hash' then content = redis.call('HGETALL', key) end
  if kind == 'zset' then content = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end
  found[#found + 1] = {key, kind, redis.call('PEXPIRETIME', key), content}
end
return found
"""

Dump = dict[bytes, tuple[bytes, int, Any]]


def dump_server(server: Server) -> Dump:
    """Every key with its type, deadline and content."""
    found: Dump = {}
    rows: Any = server.raw.eval(DUMP, 0)
    for key, kind, deadline_ms, flat in rows:
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        content: Any = dict(pairs)
        if kind == b"zset":
            content = [(member, int(score)) for member, score in pairs]
        found[key] = (kind, deadline_ms, content)
    return found


def dump_twin(keyspace: Keyspace) -> Dump:
    """The same of the twin."""
    found: Dump = {}
    for key in keyspace.keys():  # noqa: SIM118  # a Keyspace is not a dict
        kind = keyspace.kind(key)
        content: Any
        if kind == b"hash":
            content = keyspace.hgetall(key)
        else:
            entries = keyspace.zrange_by_rank(key, 0, -1, rev=False)
            content = [(member, score) for score, member in entries]
        found[key] = (kind, keyspace.pexpiretime(key), content)
    return found
