"""The scripts of lua/, in Python over a Keyspace: same KEYS, same ARGV, same replies.

Read each beside the Lua file of its name. Stateful tests hold both against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from .keyspace import Keyspace

Keys = Sequence[bytes]
Args = Sequence[Any]
Reply = list[Any]

# -- lua/lib ------------------------------------------------------------------------------------


def _write_delta(
    keyspace: Keyspace, key: bytes, args: Args, at: int, ttl_ms: int | None = None
) -> int:
    removed = at + 1 + 2 * int(args[at])
    if removed > at + 1:
        keyspace.hset(key, args[at + 1 : removed])
    if ttl_ms is not None:
        _refresh_tier(keyspace, key, ttl_ms)
    behind = removed + 1 + int(args[removed])
    if behind > removed + 1:
        keyspace.hdel(key, args[removed + 1 : behind])
    return behind


def _write_tiers(keyspace: Keyspace, keys: Keys, args: Args, at: int) -> None:
    at = _write_delta(keyspace, keys[0], args, at)
    for tier in keys[3:]:
        at = _write_delta(keyspace, tier, args, at + 1, int(args[at]))


def _fold_deltas(args: Args, starts: list[int], tiers: int) -> Args:
    folded: list[Any] = []
    for tier in range(tiers):
        values: dict[bytes, Any] = {}
        ttl_ms: Any = None
        for number, start in enumerate(starts):
            at = start
            if tier > 0:
                ttl_ms, at = args[at], at + 1
            removed = at + 1 + 2 * int(args[at])
            values.update(zip(args[at + 1 : removed : 2], args[at + 2 : removed : 2], strict=True))
            behind = removed + 1 + int(args[removed])
            values.update(dict.fromkeys(args[removed + 1 : behind]))
            starts[number] = behind
        kept = [part for pair in values.items() if pair[1] is not None for part in pair]
        gone = [key for key, value in values.items() if value is None]
        folded += [] if tier == 0 else [ttl_ms]
        folded += [len(kept) // 2, *kept, len(gone), *gone]
    return folded


def _check_tiers(keyspace: Keyspace, keys: Keys) -> None:
    for tier in keys[3:]:
        keyspace.hlen(tier)


def _new_deadline(keyspace: Keyspace, ttl_ms: int) -> int:
    return keyspace.now_us // 1000 + ttl_ms + ttl_ms // 64


def _is_due(keyspace: Keyspace, deadline_ms: int, ttl_ms: int) -> bool:
    soonest = keyspace.now_us // 1000 + ttl_ms
    return ttl_ms > 0 and not soonest <= deadline_ms <= _new_deadline(keyspace, ttl_ms)


def _refresh_tier(keyspace: Keyspace, tier: bytes, ttl_ms: int) -> None:
    if ttl_ms:
        deadline_ms = keyspace.pexpiretime(tier)
        if deadline_ms != -2 and _is_due(keyspace, deadline_ms, ttl_ms):
            keyspace.pexpireat(tier, _new_deadline(keyspace, ttl_ms))


def _extend_index_ttl(
    keyspace: Keyspace, index: bytes, deadline_ms: int, is_new_member: bool
) -> None:
    if deadline_ms < 0:
        keyspace.persist(index)
    else:
        is_new = is_new_member and keyspace.zcard(index) == 1
        keyspace.pexpireat(index, deadline_ms, gt=not is_new)


def _refresh_session(
    keyspace: Keyspace, keys: Keys, ttl_ms: int, last_us: int, is_new_member: bool
) -> None:
    session, events, index = keys[:3]
    if ttl_ms > 0:
        deadline_ms = _new_deadline(keyspace, ttl_ms)
        keyspace.pexpireat(session, deadline_ms)
    else:
        deadline_ms = keyspace.pexpiretime(session)
    _extend_index_ttl(keyspace, index, deadline_ms, is_new_member)
    if deadline_ms > 0 and not keyspace.pexpireat(events, deadline_ms) and last_us > 0:
        deadline_ms = 0
    keyspace.hset(session, (b"deadline_ms", _int(deadline_ms)))


class _Header(NamedTuple):
    version: int
    last_us: int
    deadline_ms: int


def _read_header(keyspace: Keyspace, session: bytes) -> _Header | None:
    header = keyspace.hmget(session, b"version", b"last_us", b"deadline_ms")
    return None if header[0] is None else _Header(*map(int, header))  # type: ignore[arg-type]


def _refresh_session_if_due(keyspace: Keyspace, keys: Keys, ttl_ms: int, header: _Header) -> None:
    if header.deadline_ms == 0 or _is_due(keyspace, header.deadline_ms, ttl_ms):
        _refresh_session(keyspace, keys, ttl_ms, header.last_us, False)


def _read_checked_header(keyspace: Keyspace, keys: Keys, session_id: bytes) -> _Header | None:
    session, events, index = keys[:3]
    header = _read_header(keyspace, session)
    if header is not None:
        keyspace.zscore(index, session_id)
        keyspace.zcard(events)
    return header


def _write_header(
    keyspace: Keyspace, keys: Keys, session_id: bytes, version: int, last_us: int
) -> bool:
    now = keyspace.now_us
    header = (b"version", _int(version), b"updated_us", _int(now), b"last_us", _int(last_us))
    keyspace.hset(keys[0], header)
    return keyspace.zadd(keys[2], now, session_id) == 1


def _trim(keyspace: Keyspace, events: bytes, event_limit: int) -> None:
    stored = keyspace.zcard(events)
    if event_limit and stored > event_limit:
        keyspace.zremrangebyrank(events, 0, stored - event_limit - 1)


def _is_stale(if_version: Any, version: int) -> bool:
    return if_version != b"" and int(if_version) != version


def _refusal(keyspace: Keyspace, session: bytes, condition: Any, version: int) -> Reply | None:
    if isinstance(condition, bytes) and condition.startswith(b"t"):
        token = keyspace.hget(session, b"turn_token") or b""
        return None if condition == b"t" + token else [b"LOST"]
    return [b"STALE", version] if _is_stale(condition, version) else None


def _check_create(keyspace: Keyspace, keys: Keys, session_id: bytes) -> None:
    keyspace.zcard(keys[1])
    keyspace.zscore(keys[2], session_id)
    _check_tiers(keyspace, keys)


def _write_create(keyspace: Keyspace, keys: Keys, args: Args, tail: int) -> None:
    session, events, index = keys[:3]
    session_id, ttl_ms, creation_id = args[:3]
    now = _int(keyspace.now_us)
    deadline_ms = _new_deadline(keyspace, ttl_ms) if ttl_ms > 0 else -1
    keyspace.unlink(session, events)
    header = (b"version", b"1", b"created_us", now, b"updated_us", now, b"last_us", b"0")
    keyspace.hset(session, (*header, b"deadline_ms", _int(deadline_ms), b"generation", creation_id))
    is_new_member = keyspace.zadd(index, keyspace.now_us, session_id) == 1
    if ttl_ms > 0:
        keyspace.pexpireat(session, deadline_ms)
    _extend_index_ttl(keyspace, index, deadline_ms, is_new_member)
    _write_tiers(keyspace, keys, args, tail)


def _int(number: int) -> bytes:
    return b"%d" % number


# -- lua ----------------------------------------------------------------------------------------


def create_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/create_session.lua"""
    session_id, _, creation_id = args[:3]
    _check_create(keyspace, keys, session_id)
    version, stored_creation_id = keyspace.hmget(keys[0], b"version", b"generation")
    if version is not None:
        return [b"OK"] if stored_creation_id == creation_id else [b"EXISTS"]
    _write_create(keyspace, keys, args, 3)
    return [b"OK"]


def get_or_create_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/get_or_create_session.lua"""
    session_id, ttl_ms, _, refresh, *tier_ttls_ms = args[:6]
    _check_create(keyspace, keys, session_id)
    header = _read_header(keyspace, keys[0])
    if header is None:
        _write_create(keyspace, keys, args, 6)
        return [b"CREATED"]
    if refresh == b"1":
        _refresh_session_if_due(keyspace, keys, ttl_ms, header)
        for tier, tier_ttl_ms in zip(keys[3:], tier_ttls_ms, strict=False):
            _refresh_tier(keyspace, tier, tier_ttl_ms)
    return [b"OK"]


def touch_session(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/touch_session.lua"""
    session_id, ttl_ms, *tier_ttls_ms = args
    header = _read_header(keyspace, keys[0])
    if header is None:
        return [b"NOT_FOUND"]
    is_session_due = header.deadline_ms == 0 or _is_due(keyspace, header.deadline_ms, ttl_ms)
    if is_session_due:
        keyspace.zscore(keys[2], session_id)
    if is_session_due or any(tier_ttls_ms):
        keyspace.zcard(keys[1])
    _check_tiers(keyspace, keys)
    if is_session_due:
        _refresh_session(keyspace, keys, ttl_ms, header.last_us, False)
    for tier, tier_ttl_ms in zip(keys[3:], tier_ttls_ms, strict=False):
        _refresh_tier(keyspace, tier, tier_ttl_ms)
    return [b"OK"]


def append_event(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/append_event.lua"""
    session_id, ttl_ms, event_limit, condition, event, position = args[:6]
    events = keys[1]
    header = _read_checked_header(keyspace, keys, session_id)
    if header is None:
        return [b"NOT_FOUND"]
    version, last_us, deadline_ms = header
    refusal = _refusal(keyspace, keys[0], condition, version)
    if refusal and keyspace.zscore(events, event) is None:
        return refusal
    _check_tiers(keyspace, keys)
    now = keyspace.now_us
    position = max(last_us + 1, min(position, now))
    if not keyspace.zadd(events, position, event, nx=True):
        return [b"OK", version, now, 1]
    version += 1
    is_new = _write_header(keyspace, keys, session_id, version, position)
    _trim(keyspace, events, event_limit)
    if len(args) > 6:
        _write_tiers(keyspace, keys, args, 6)
    if last_us == 0 or is_new or deadline_ms == 0 or _is_due(keyspace, deadline_ms, ttl_ms):
        _refresh_session(keyspace, keys, ttl_ms, position, is_new)
    return [b"OK", version, now, 0]


def append_events(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/append_events.lua"""
    session_id, ttl_ms, event_limit, condition = args[:4]
    events = keys[1]
    header = _read_checked_header(keyspace, keys, session_id)
    if header is None:
        return [b"NOT_FOUND"]
    version, last_us, deadline_ms = header
    _check_tiers(keyspace, keys)

    starts = []
    at = 4
    while at < len(args):
        starts.append(at)
        at += 3 + args[at + 2]
    num_duplicates = 0
    if event_limit and keyspace.zcard(events) >= event_limit:
        [(_, oldest)] = keyspace.zrange_by_rank(events, 0, 0, rev=False)
        num_duplicates = next((n for n, at in enumerate(starts) if args[at] == oldest), 0)
        starts = starts[num_duplicates:]
    refusal = _refusal(keyspace, keys[0], condition, version)
    if refusal and any(keyspace.zscore(events, args[at]) is None for at in starts):
        return refusal

    added = False
    deltas = []
    is_first = last_us == 0
    for at in starts:
        position = max(last_us + 1, min(args[at + 1], keyspace.now_us))
        if keyspace.zadd(events, position, args[at], nx=True):
            added, last_us = True, position
            if args[at + 2]:
                deltas.append(at + 3)
        else:
            num_duplicates += 1
    if not added:
        return [b"OK", version, keyspace.now_us, num_duplicates]
    if deltas:
        _write_tiers(keyspace, keys, _fold_deltas(args, deltas, len(keys) - 2), 0)
    version += 1
    _trim(keyspace, events, event_limit)
    is_new = _write_header(keyspace, keys, session_id, version, last_us)
    if is_first or is_new or deadline_ms == 0 or _is_due(keyspace, deadline_ms, ttl_ms):
        _refresh_session(keyspace, keys, ttl_ms, last_us, is_new)
    return [b"OK", version, keyspace.now_us, num_duplicates]


def update_session_state(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/update_session_state.lua"""
    session_id, ttl_ms, if_version = args[:3]
    header = _read_checked_header(keyspace, keys, session_id)
    if header is None:
        return [b"NOT_FOUND"]
    version, last_us, deadline_ms = header
    if _is_stale(if_version, version):
        return [b"STALE", version]
    _check_tiers(keyspace, keys)
    version += 1
    _write_tiers(keyspace, keys, args, 3)
    is_new = _write_header(keyspace, keys, session_id, version, last_us)
    if is_new or deadline_ms == 0 or _is_due(keyspace, deadline_ms, ttl_ms):
        _refresh_session(keyspace, keys, ttl_ms, last_us, is_new)
    return [b"OK", version, keyspace.now_us]


def pop_event(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/pop_event.lua"""
    session_id, ttl_ms, if_version = args
    header = _read_checked_header(keyspace, keys, session_id)
    if header is None:
        return [b"NOT_FOUND"]
    if _is_stale(if_version, header.version):
        return [b"STALE", header.version]
    newest = keyspace.zrange_by_rank(keys[1], -1, -1, rev=False)
    if not newest:
        return [b"EMPTY"]
    [(_, event)] = newest
    version = header.version + 1
    keyspace.zrem(keys[1], event)
    is_new = _write_header(keyspace, keys, session_id, version, header.last_us)
    _refresh_session(keyspace, keys, ttl_ms, header.last_us, is_new)
    return [b"OK", version, keyspace.now_us, event]


def clear_events(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/clear_events.lua"""
    session_id, ttl_ms, if_version = args
    header = _read_checked_header(keyspace, keys, session_id)
    if header is None:
        return [b"NOT_FOUND"]
    if _is_stale(if_version, header.version):
        return [b"STALE", header.version]
    version = header.version + 1
    keyspace.unlink(keys[1])
    is_new = _write_header(keyspace, keys, session_id, version, header.last_us)
    _refresh_session(keyspace, keys, ttl_ms, header.last_us, is_new)
    return [b"OK", version, keyspace.now_us]


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
    pruned = 0
    for session, session_id in zip(sessions, args, strict=True):
        if not keyspace.exists(session):
            pruned += keyspace.zrem(index, session_id)
    return [b"OK", pruned]


def acquire_turn(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/acquire_turn.lua"""
    session_id, ttl_ms, holder, lease_ms = args
    header = _read_checked_header(keyspace, keys, session_id)
    if header is None:
        return [b"NOT_FOUND"]
    turn = keyspace.hmget(keys[0], b"turn_token", b"turn_until_us", b"turn_holder")
    token, until_us = int(turn[0] or 0), int(turn[1] or 0)
    if until_us > keyspace.now_us and turn[2] != holder:
        return [b"TAKEN", until_us]
    if turn[2] != holder:
        token = max(token + 1, keyspace.now_us)
    until_us = keyspace.now_us + lease_ms * 1000
    lease = (b"turn_token", _int(token), b"turn_until_us", _int(until_us))
    keyspace.hset(keys[0], (*lease, b"turn_holder", holder))
    _refresh_session_if_due(keyspace, keys, ttl_ms, header)
    return [b"OK", token, until_us]


def renew_turn(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/renew_turn.lua"""
    session_id, ttl_ms, token, lease_ms = args
    header = _read_checked_header(keyspace, keys, session_id)
    if header is None:
        return [b"NOT_FOUND"]
    if keyspace.hget(keys[0], b"turn_token") != _int(token):
        return [b"LOST"]
    until_us = keyspace.now_us + lease_ms * 1000
    if lease_ms > 0:
        keyspace.hset(keys[0], (b"turn_until_us", _int(until_us)))
    else:
        keyspace.hset(keys[0], (b"turn_until_us", b"0", b"turn_holder", b""))
    _refresh_session_if_due(keyspace, keys, ttl_ms, header)
    return [b"OK", until_us]


def update_tier_state(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/update_tier_state.lua"""
    keyspace.hlen(keys[0])
    _write_delta(keyspace, keys[0], args, 1, args[0])
    return [b"OK"]


def touch_tier(keyspace: Keyspace, keys: Keys, args: Args) -> Reply:
    """lua/touch_tier.lua"""
    keyspace.hlen(keys[0])
    _refresh_tier(keyspace, keys[0], args[0])
    return [b"OK"]


TWINS: MappingProxyType[str, Callable[[Keyspace, Keys, Args], Reply]] = MappingProxyType(
    {
        script.__name__: script
        for script in (
            acquire_turn,
            append_event,
            append_events,
            clear_events,
            create_session,
            delete_session,
            get_or_create_session,
            pop_event,
            prune_index,
            renew_turn,
            touch_session,
            touch_tier,
            update_session_state,
            update_tier_state,
        )
    }
)
"""Every script by the name of its Lua file."""
