"""The scripts of lua/ about data keys, in Python over a Keyspace."""

from __future__ import annotations

import hashlib

from .fragments import Args, Keys, Reply, decimal
from .keyspace import Keyspace


def use_data_key(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/use_data_key.lua"""
    [data_key] = keys
    name, wrapped = keyspace.hmget(data_key, b"name", b"wrapped")
    if name is None or wrapped is None:
        name, wrapped = args
        keyspace.hset(data_key, (b"name", name, b"wrapped", wrapped))
    else:
        keyspace.hdel(data_key, [b"retired"])
    return [b"OK", name, wrapped]


def retire_data_key(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/retire_data_key.lua"""
    [data_key] = keys
    if keyspace.hexists(data_key, b"name"):
        keyspace.hset(data_key, (b"retired", args[0]))
    return [b"OK"]


def delete_data_key(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/delete_data_key.lua"""
    [data_key] = keys
    name, retired = keyspace.hmget(data_key, b"name", b"retired")
    if name is not None and retired != args[0]:
        return [b"OK", 1]
    keyspace.unlink(data_key)
    return [b"OK", 0]


def set_data_key(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/set_data_key.lua"""
    [session] = keys
    data_key, old_key = args
    names = (b"version", b"data_key", b"flags")
    version, stored, flags = (part or b"" for part in keyspace.hmget(session, *names))
    if not version:
        return [b"NOT_FOUND"]
    if stored not in (old_key, data_key):
        return [b"OTHER_KEY", stored]
    if b"k" not in flags:
        flags += b"k"
    keyspace.hset(session, (b"data_key", data_key, b"flags", flags))
    return [b"OK"]


def undo_data_key(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/undo_data_key.lua"""
    [user] = keys
    keyspace.hlen(user)
    pairs = zip(args[::2], args[1::2], strict=True)
    keyspace.hdel(user, [field for field, value in pairs if keyspace.hget(user, field) == value])
    return [b"OK"]


def reseal_values(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/reseal_values.lua"""
    after = 1 + 3 * int(args[0])
    pairs: list[bytes] = []
    for at in range(1, after, 3):
        field, digest, value = args[at : at + 3]
        stored = keyspace.hget(keys[0], field)
        if stored is not None and hashlib.sha1(stored).hexdigest().encode() == digest:
            pairs += (field, value)
    swaps = []
    for at in range(after, len(args), 3):
        position, old, new = args[at : at + 3]
        if keyspace.zscore(keys[1], old) == int(position) and keyspace.zscore(keys[1], new) is None:
            swaps.append((int(position), old, new))
    if pairs:
        keyspace.hset(keys[0], pairs)
    for score, old, new in swaps:
        keyspace.zadd(keys[1], score, new)
        keyspace.zrem(keys[1], old)
    if swaps:
        keyspace.hset(keys[0], (b"removed_us", decimal(keyspace.now_us)))
    return [b"OK", len(pairs) // 2 + len(swaps)]
