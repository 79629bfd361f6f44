"""Checks of the stored sessions: lost events, damaged values, deadlines and the index."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import msgspec

from ...keys import StoredKey
from ...model import SessionKey
from ...ops import ids_of
from ...replies import hash_items
from ...sync import SessionService
from ...transform import Unreadable
from ..keyspace import ask, places, with_data_keys
from ..opened import counted, show_bytes
from .finding import Finding, error, ok, warning

_EVENTS_PER_SESSION = 100  # newest events that are decoded
_LONG_LEASE_US = 3_600_000_000
_PLACES_PER_USER = 1000  # of the index that are looked at
_SHOWN = 5


class Damage(msgspec.Struct):
    """What was found in the sessions that were looked at, as texts that name sessions."""

    num_sessions: int = 0
    missing_events: list[str] = []
    lost_headers: list[str] = []
    corrupt: list[str] = []
    unreadable: list[str] = []
    deadlines: list[str] = []
    leases: list[str] = []
    not_indexed: list[str] = []
    expired_in_index: list[SessionKey] = []
    biggest: list[tuple[int, str]] = []


def look_at(service: SessionService, keys: Iterable[StoredKey], limit: int | None) -> Damage:
    """Check sessions.

    Args:
        service: the service of the command.
        keys: keys of the store, as a scan finds them.
        limit: how many sessions to look at; None = all.
    """
    damage = Damage()
    seen: set[tuple[str, str, str]] = set()
    for stored in keys:
        ids = stored[1:4]
        if stored.role not in ("session", "events") or ids in seen or not stored.session_id:
            continue
        seen.add(ids)
        _check_session(service, SessionKey(*ids), damage)
        damage.num_sessions += 1
        if limit is not None and damage.num_sessions >= limit:
            break
    for app_name, user_id in {(app, user) for app, user, _ in seen}:
        _check_index(service, app_name, user_id, damage)
    return damage


def findings_of(damage: Damage) -> Iterator[Finding]:
    """What an operator should know of it."""
    yield ok("sessions", f"{counted(damage.num_sessions, 'session')} checked")
    for check, found, why, fix in (
        (
            "missing events",
            damage.missing_events,
            "Reads raise EventsMissing: the server lost events, by eviction or a lost write.",
            "Restore them from a backup, or accept what is left: service.repair_session(key)",
        ),
        (
            "lost headers",
            damage.lost_headers,
            "The state is lost, and reads raise CorruptData.",
            "Restore from a backup, or accept what is left: service.repair_session(key)",
        ),
        (
            "corrupt values",
            damage.corrupt,
            "Reads raise CorruptData: something else wrote to these keys.",
            "Restore the session from a backup, or delete it.",
        ),
        (
            "unreadable values",
            damage.unreadable,
            "Reads raise CorruptData.",
            "If something is needed, give it to this command and to the services. "
            "Otherwise restore the session from a backup, or delete it.",
        ),
    ):
        if found:
            yield error(check, _some(found), why, fix)
        else:
            yield ok(check, "none")
    for check, found, why, fix in (
        (
            "deadlines",
            damage.deadlines,
            "A part of the session expires before the rest, or never.",
            "Any write to the session sets all of its deadlines again.",
        ),
        (
            "leases",
            damage.leases,
            "No other run can work on the session.",
            "service.free_turn(key), if no process works on it",
        ),
        (
            "sessions that no list shows",
            damage.not_indexed,
            "list_sessions and delete_user do not find them.",
            "Any write to the session puts it back into the index.",
        ),
    ):
        if found:
            yield warning(check, _some(found), why, fix)
        else:
            yield ok(check, "none")
    if damage.expired_in_index:
        names = [_name(key) for key in damage.expired_in_index]
        yield warning(
            "expired sessions in the index",
            _some(names),
            "They take memory until somebody lists the user's sessions.",
            "This command with --repair removes them.",
        )
    else:
        yield ok("expired sessions in the index", "none")
    if damage.biggest:
        sizes = ", ".join(
            f"{name} {show_bytes(size)}" for size, name in sorted(damage.biggest)[::-1]
        )
        yield ok("biggest sessions", sizes)


def repair(service: SessionService, damage: Damage) -> int:
    """Remove expired sessions from the index. Returns how many users were changed."""
    users = {(key.app_name, key.user_id) for key in damage.expired_in_index}
    for app_name, user_id in users:
        service.count_sessions(app_name=app_name, user_id=user_id)  # prunes what has expired
    return len(users)


def _check_session(service: SessionService, key: SessionKey, damage: Damage) -> None:
    keys = service._ops.options.keys.session(*ids_of(key))
    name = _name(key)
    header_fields = ("version", "count", "deadline_ms", "turn_until_us", "turn_holder")
    header, num_events, session_end, events_end, score, newest, state, (seconds, _) = ask(
        service,
        ("HMGET", keys.session, *header_fields),
        ("ZCARD", keys.events),
        ("PEXPIRETIME", keys.session),
        ("PEXPIRETIME", keys.events),
        ("ZSCORE", keys.session_index, key.session_id.encode()),
        ("ZRANGE", keys.events, 0, _EVENTS_PER_SESSION - 1, "REV"),
        ("HGETALL", keys.session),
        ("TIME",),
    )
    version, count, _, turn_until_us, turn_holder = header
    if version is None:
        if num_events:
            damage.lost_headers.append(name)
        return
    try:
        if count is not None and int(count) > num_events:
            damage.missing_events.append(f"{name}: {num_events} of {int(count)}")
        int(version)
        with_data_keys(service, partial(_decode, service, key, newest, state))
    except Unreadable as error:
        damage.unreadable.append(f"{name}: {error}")
    except ValueError:
        damage.corrupt.append(name)
    if num_events and session_end != events_end:
        damage.deadlines.append(name)
    if turn_holder and turn_until_us and int(turn_until_us) > int(seconds) * 10**6 + _LONG_LEASE_US:
        damage.leases.append(f"{name}: {turn_holder.decode('utf-8', 'replace')}")
    if score is None:
        damage.not_indexed.append(name)
    size = sum(map(len, newest))
    heapq.heappush(damage.biggest, (size * max(num_events, 1) // max(len(newest), 1), name))
    if len(damage.biggest) > _SHOWN:
        heapq.heappop(damage.biggest)


def _decode(service: SessionService, key: SessionKey, events: list[bytes], state: Any) -> None:
    """Decode events and state. ValueError if one does not decode."""
    codec = service._ops.options.codec
    for data in events:
        codec.decode_event(data, key)
    for field, value in hash_items(state):
        if field[:1] == b".":
            codec.decode_value(value, key, field[1:].decode())


def _check_index(service: SessionService, app_name: str, user_id: str, damage: Damage) -> None:
    """Find entries whose sessions have expired."""
    newest = islice(places(service, app_name, user_id), _PLACES_PER_USER)
    keys = [SessionKey(app_name, user_id, place.session_id) for place in newest]
    names = [service._ops.options.keys.session(*ids_of(key)).session for key in keys]
    exist = ask(service, *(("EXISTS", name) for name in names)) if names else []
    damage.expired_in_index += [key for key, exists in zip(keys, exist, strict=True) if not exists]


def _name(key: SessionKey) -> str:
    return f"{key.app_name} / {key.user_id} / {key.session_id}"


def _some(names: list[str]) -> str:
    shown = "; ".join(names[:_SHOWN])
    return f"{len(names):,}: {shown}" + (" ..." if len(names) > _SHOWN else "")
