"""The scripts of lua/, in Python over a Keyspace: same KEYS, same ARGV, same replies.

Read each beside the Lua file of its name. Stateful tests hold both against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

from .keyspace import Keyspace

Keys = Sequence[bytes]
Args = Sequence[Any]
Reply = list[Any]

# -- lua/lib ------------------------------------------------------------------------------------


def _skip_delta(args: Args, at: int) -> int:
    removed = at + 1 + 2 * int(args[at])
    return removed + 1 + int(args[removed])


def _write_delta(keyspace: Keyspace, key: bytes, args: Args, at: int) -> int:
    removed = at + 1 + 2 * int(args[at])
    if removed > at + 1:
        keyspace.hset(key, args[at + 1 : removed])
    behind = removed + 1 + int(args[removed])
    if behind > removed + 1:
        keyspace.hdel(key, args[removed + 1 : behind])
    return behind


def _due(deadline_ms: int, now_ms: int, ttl_ms: int) -> int | None:
    reserve_ms = ttl_ms // 64
    if now_ms + ttl_ms <= deadline_ms <= now_ms + ttl_ms + reserve_ms:
        return None
    return now_ms + ttl_ms + reserve_ms


def _refresh(keyspace: Keyspace, key: bytes, ttl_ms: int) -> None:
    deadline_ms = keyspace.pexpiretime(key)
    if ttl_ms == 0 or deadline_ms == -2:
        return
    next_ms = _due(deadline_ms, keyspace.now_us // 1000, ttl_ms)
    if next_ms is not None:
        keyspace.pexpireat(key, next_ms)


def _cover(keyspace: Keyspace, index: bytes, deadline_ms: int, is_new: bool) -> None:
    if deadline_ms < 0:
        keyspace.persist(index)
    else:
        keyspace.pexpireat(index, deadline_ms, gt=not is_new)


def _refresh_session(
    keyspace: Keyspace, keys: Keys, ttl_ms: int, new_events: bool, new_member: bool
) -> None:
    session, events, index = keys[:3]
    if ttl_ms == 0 and not new_events and not new_member:
        return
    deadline_ms = keyspace.pexpiretime(session)
    next_ms = _due(deadline_ms, keyspace.now_us // 1000, ttl_ms) if ttl_ms else None
    if next_ms is not None:
        deadline_ms = next_ms
        keyspace.pexpireat(session, deadline_ms)
    if deadline_ms >= 0 and (next_ms is not None or new_events):
        keyspace.pexpireat(events, deadline_ms)
    if next_ms is not None or new_member:
        _cover(keyspace, index, deadline_ms, new_member and keyspace.zcard(index) == 1)


def _check_tiers(keyspace: Keyspace, tiers: Keys) -> None:
    for tier in tiers:
        keyspace.hlen(tier)


def _write_tiers(keyspace: Keyspace, session: bytes, tiers: Keys, args: Args, at: int) -> int:
    at = _write_delta(keyspace, session, args, at)
    for tier in tiers:
        at = _write_delta(keyspace, tier, args, at)
    return at


def _refresh_tiers(keyspace: Keyspace, tiers: Keys, ttls_ms: Sequence[int]) -> None:
    for tier, ttl_ms in zip(tiers, ttls_ms, strict=False):
        _refresh(keyspace, tier, ttl_ms)


def _open_session(keyspace: Keyspace, keys: Keys, session_id: bytes) -> tuple[int, int, int] | None:
    session, events, index = keys[:3]
    version, last_us = keyspace.hmget(session, b"version", b"last_us")
    if version is None or last_us is None:
        return None
    keyspace.zscore(index, session_id)
    return int(version), int(last_us), keyspace.zcard(events)


def _close_session(
    keyspace: Keyspace, keys: Keys, session_id: bytes, version: int, last_us: int
) -> bool:
    now = keyspace.now_us
    header = (b"version", _int(version), b"updated_us", _int(now), b"last_us", _int(last_us))
    keyspace.hset(keys[0], header)
    return keyspace.zadd(keys[2], now, session_id) == 1


def _is_stale(if_version: Any, version: int) -> bool:
    return if_version != b"" and int(if_version) != version


def _write_create(
    keyspace: Keyspace, keys: Keys, session_id: bytes, ttl_ms: int, generation: bytes
) -> None:
    session, events, index = keys[:3]
    now = _int(keyspace.now_us)
    keyspace.unlink(session, events)
    header = (b"version", b"1", b"created_us", now, b"updated_us", now)
    keyspace.hset(session, (*header, b"last_us", b"0", b"generation", generation))
    keyspace.zadd(index, keyspace.now_us, session_id)
    _refresh_session(keyspace, keys, ttl_ms, False, True)


def _check_create(keyspace: Keyspace, keys: Keys, session_id: bytes) -> None:
    keyspace.zcard(keys[1])
    keyspace.zscore(keys[2], session_id)
    _check_tiers(keyspace, keys[3:])


def _int(number: int) -> bytes:
    return b"%d" % number


# -- lua ----------------------------------------------------------------------------------------


def create_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/create_session.lua"""
    session_id, ttl_ms, *tier_ttls_ms, generation = args[:5]
    _check_create(keyspace, keys, session_id)
    version, stored_generation = keyspace.hmget(keys[0], b"version", b"generation")
    if version is not None:
        return [b"OK"] if stored_generation == generation else [b"EXISTS"]
    _write_create(keyspace, keys, session_id, ttl_ms, generation)
    _write_tiers(keyspace, keys[0], keys[3:], args, 5)
    _refresh_tiers(keyspace, keys[3:], tier_ttls_ms)
    return [b"OK"]


def get_or_create_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/get_or_create_session.lua"""
    session_id, ttl_ms, *tier_ttls_ms, generation, refresh_existing = args[:6]
    _check_create(keyspace, keys, session_id)
    if keyspace.hexists(keys[0], b"version"):
        if refresh_existing == b"1":
            _refresh_session(keyspace, keys, ttl_ms, False, False)
            _refresh_tiers(keyspace, keys[3:], tier_ttls_ms)
        return [b"OK"]
    _write_create(keyspace, keys, session_id, ttl_ms, generation)
    _write_tiers(keyspace, keys[0], keys[3:], args, 6)
    _refresh_tiers(keyspace, keys[3:], tier_ttls_ms)
    return [b"CREATED"]


def touch_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/touch_session.lua"""
    session_id, ttl_ms, *tier_ttls_ms = args
    if _open_session(keyspace, keys, session_id) is None:
        return [b"NOT_FOUND"]
    _check_tiers(keyspace, keys[3:])
    _refresh_session(keyspace, keys, ttl_ms, False, False)
    _refresh_tiers(keyspace, keys[3:], tier_ttls_ms)
    return [b"OK"]


def append_events(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/append_events.lua"""
    session_id, ttl_ms, user_ttl_ms, app_ttl_ms, event_limit, if_version, count = args[:7]
    session, events = keys[:2]
    tiers = keys[3:]
    opened = _open_session(keyspace, keys, session_id)
    if opened is None:
        return [b"NOT_FOUND"]
    version, last_us, stored = opened
    _check_tiers(keyspace, tiers)

    def skip_event(at: int) -> int:
        at = _skip_delta(args, at + 2)
        for _ in tiers:
            at = _skip_delta(args, at)
        return at

    first, at = 0, 7
    if 0 < event_limit < count:
        kept, kept_at = count - event_limit, 7
        for _ in range(kept):
            kept_at = skip_event(kept_at)
        if keyspace.zscore(events, args[kept_at]) is not None:
            first, at = kept, kept_at

    if _is_stale(if_version, version):
        event_at = at
        for _ in range(first, count):
            if keyspace.zscore(events, args[event_at]) is None:
                return [b"STALE", _int(version)]
            event_at = skip_event(event_at)

    added = 0
    for _ in range(first, count):
        position = max(last_us + 1, min(int(args[at + 1]), keyspace.now_us))
        if keyspace.zadd(events, position, args[at], nx=True):
            added, last_us = added + 1, position
            at = _write_tiers(keyspace, session, tiers, args, at + 2)
        else:
            at = skip_event(at)
    if added:
        version += 1
        if event_limit and stored + added > event_limit:
            keyspace.zremrangebyrank(events, 0, stored + added - event_limit - 1)
        is_new = _close_session(keyspace, keys, session_id, version, last_us)
        _refresh_session(keyspace, keys, ttl_ms, stored == 0, is_new)
        _refresh_tiers(keyspace, tiers, (user_ttl_ms, app_ttl_ms))
    return [b"OK", _int(version), _int(keyspace.now_us), count - added]


def update_session_state(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/update_session_state.lua"""
    session_id, ttl_ms, *tier_ttls_ms, if_version = args[:5]
    opened = _open_session(keyspace, keys, session_id)
    if opened is None:
        return [b"NOT_FOUND"]
    version, last_us, _ = opened
    if _is_stale(if_version, version):
        return [b"STALE", _int(version)]
    _check_tiers(keyspace, keys[3:])
    version += 1
    _write_tiers(keyspace, keys[0], keys[3:], args, 5)
    is_new = _close_session(keyspace, keys, session_id, version, last_us)
    _refresh_session(keyspace, keys, ttl_ms, False, is_new)
    _refresh_tiers(keyspace, keys[3:], tier_ttls_ms)
    return [b"OK", _int(version), _int(keyspace.now_us)]


def pop_event(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/pop_event.lua"""
    session_id, ttl_ms, if_version = args
    opened = _open_session(keyspace, keys, session_id)
    if opened is None:
        return [b"NOT_FOUND"]
    version, last_us, _ = opened
    if _is_stale(if_version, version):
        return [b"STALE", _int(version)]
    popped = keyspace.zpopmax(keys[1])
    if popped is None:
        return [b"EMPTY"]
    version += 1
    is_new = _close_session(keyspace, keys, session_id, version, last_us)
    _refresh_session(keyspace, keys, ttl_ms, False, is_new)
    return [b"OK", _int(version), _int(keyspace.now_us), popped[1]]


def clear_events(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/clear_events.lua"""
    session_id, ttl_ms, if_version = args
    opened = _open_session(keyspace, keys, session_id)
    if opened is None:
        return [b"NOT_FOUND"]
    version, last_us, _ = opened
    if _is_stale(if_version, version):
        return [b"STALE", _int(version)]
    version += 1
    keyspace.unlink(keys[1])
    is_new = _close_session(keyspace, keys, session_id, version, last_us)
    _refresh_session(keyspace, keys, ttl_ms, False, is_new)
    return [b"OK", _int(version), _int(keyspace.now_us)]


def delete_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/delete_session.lua"""
    session, events, index = keys
    keyspace.hlen(session)
    keyspace.zcard(events)
    keyspace.zscore(index, args[0])
    keyspace.unlink(session, events)
    keyspace.zrem(index, args[0])
    return [b"OK"]


def prune_index(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/prune_index.lua"""
    index, *sessions = keys
    keyspace.zcard(index)
    for session, session_id in zip(sessions, args, strict=True):
        if not keyspace.exists(session):
            keyspace.zrem(index, session_id)
    return [b"OK"]


def update_tier_state(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/update_tier_state.lua"""
    keyspace.hlen(keys[0])
    _write_delta(keyspace, keys[0], args, 1)
    _refresh(keyspace, keys[0], args[0])
    return [b"OK"]


def touch_tier(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/touch_tier.lua"""
    keyspace.hlen(keys[0])
    _refresh(keyspace, keys[0], args[0])
    return [b"OK"]


TWINS: MappingProxyType[str, Callable[[Keyspace, Keys, Args], Reply]] = MappingProxyType(
    {
        script.__name__: script
        for script in (
            append_events,
            clear_events,
            create_session,
            delete_session,
            get_or_create_session,
            pop_event,
            prune_index,
            touch_session,
            touch_tier,
            update_session_state,
            update_tier_state,
        )
    }
)
"""Every script by the name of its Lua file."""
