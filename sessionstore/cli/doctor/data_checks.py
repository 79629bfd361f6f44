"""Checks of the stored sessions: lost events, damaged values, deadlines and the index."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import msgspec

from ...errors import BackendRejected
from ...keys import SessionKeys, StoredKey
from ...model import SessionKey
from ...ops import ids_of
from ...replies import hash_items
from ...sync import SessionService
from ...transform import TierOwner, Unreadable
from ...transport.topology import slot_of_key
from ..keyspace import ask, ask_each, index_entries, with_data_keys
from ..opened import counted, show_bytes
from .finding import Finding, error, ok, warning

_SESSIONS_PER_READ = 20
_EVENTS_PER_SESSION = 20  # newest events that are decoded
_LONG_LEASE_US = 3_600_000_000
_PLACES_PER_USER = 1000  # entries of the index that are checked, without --full
_USERS_TO_REPAIR = 10_000  # that are remembered
_SHOWN = 5
_HOT_PART = 0.25  # of all bytes in one cluster slot
_HOT_SAMPLE = 100  # with fewer sessions this is not a problem

_HEADER = (
    *("version", "created_us", "count", "deadline_ms"),
    *("turn_until_us", "turn_holder", "compactor_until_us", "compactor_holder"),
)


class Found(msgspec.Struct):
    """How often something was found, and the first places."""

    count: int = 0
    shown: list[str] = []

    def add(self, where: str) -> None:
        """Count a place."""
        self.count += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(where)

    def __str__(self) -> str:
        more = " ..." if self.count > len(self.shown) else ""
        return f"{self.count:,}: {'; '.join(self.shown)}{more}"


class Damage(msgspec.Struct):
    """What was found in the checked sessions. It has a bounded size."""

    num_sessions: int = 0
    missing_events: Found = msgspec.field(default_factory=Found)
    lost_headers: Found = msgspec.field(default_factory=Found)
    corrupt: Found = msgspec.field(default_factory=Found)
    unreadable: Found = msgspec.field(default_factory=Found)
    without_deadline: Found = msgspec.field(default_factory=Found)
    deadlines: Found = msgspec.field(default_factory=Found)
    leases: Found = msgspec.field(default_factory=Found)
    ended_leases: Found = msgspec.field(default_factory=Found)
    not_indexed: Found = msgspec.field(default_factory=Found)
    expired_in_index: Found = msgspec.field(default_factory=Found)
    users_to_repair: set[tuple[str, str]] = set()
    biggest: list[tuple[int, str]] = []
    expiring: Counter[str] = msgspec.field(default_factory=Counter)  # sessions by application
    staying: dict[str, Found] = {}  # sessions that never expire, by application
    bytes_by_slot: Counter[int] = msgspec.field(default_factory=Counter)  # in a cluster
    slot_names: dict[int, str] = {}


def check_data(
    service: SessionService,
    keys: Iterable[StoredKey],
    limit: int | None,
    damage: Damage | None = None,
) -> Damage:
    """Check sessions, user state and indexes.

    Args:
        service: the service of the command.
        keys: keys of the store, as a scan finds them.
        limit: how many sessions to check; None = all.
        damage: findings are added to it, so that they are kept if this function fails.

    Returns:
        What was found.
    """
    checker = _Checker(service, damage or Damage(), is_full=limit is None)
    batch: list[SessionKey] = []
    num_tiers = 0
    for stored in keys:
        if stored.is_temporary:
            checker.check_temporary(stored)
        elif stored.role in ("userdata", "appdata"):
            if limit is None or num_tiers < limit:
                checker.check_tier(stored)
            num_tiers += 1
        elif stored.role == "sessions":
            checker.check_index(stored.app_name, stored.user_id)
        elif stored.session_id and (stored.role == "session" or checker.is_without_header(stored)):
            batch.append(SessionKey(*stored[1:4]))
        found = checker.damage.num_sessions + len(batch)
        is_end = limit is not None and found >= limit
        if len(batch) >= _SESSIONS_PER_READ or is_end:
            checker.check_sessions(batch)
            batch = []
        if is_end:
            break
    checker.check_sessions(batch)
    checker.check_indexes_of_sessions()
    return checker.damage


def findings_of(damage: Damage) -> Iterator[Finding]:
    """The findings for an operator."""
    yield ok("sessions", f"{counted(damage.num_sessions, 'session')} checked")
    for problem, rows in ((error, _errors(damage)), (warning, _warnings(damage))):
        for check, found, why, fix in rows:
            yield problem(check, str(found), why, fix) if found.count else ok(check, "none")
    if damage.ended_leases.count:
        yield ok("ended leases", f"{damage.ended_leases}; their runs ended without releasing them")
    yield from _never_expiring(damage)
    yield from _hot_slots(damage)
    if damage.biggest:
        sizes = ", ".join(
            f"{name} {show_bytes(size)}" for size, name in sorted(damage.biggest)[::-1]
        )
        yield ok("biggest sessions", sizes)


_Row = tuple[str, Found, str, str]
"""A check, what it found, why it matters, and what to do."""


def _errors(damage: Damage) -> tuple[_Row, ...]:
    return (
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
            "If a dictionary, key or option is needed, pass it to this command and the services. "
            "Otherwise restore the session from a backup, or delete it.",
        ),
    )


def _warnings(damage: Damage) -> tuple[_Row, ...]:
    return (
        (
            "keys without deadline",
            damage.without_deadline,
            "They never expire, and take memory.",
            "Any write to the session sets its deadlines. Delete keys of fragments with DEL.",
        ),
        (
            "deadlines",
            damage.deadlines,
            "A part of the session, or its entry in lists, expires before the rest.",
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
        (
            "expired sessions in the index",
            damage.expired_in_index,
            "They take memory until somebody lists the user's sessions.",
            "This command with --repair removes them.",
        ),
    )


def _never_expiring(damage: Damage) -> Iterator[Finding]:
    """Sessions that never expire, in applications whose other sessions do."""
    for app_name, found in damage.staying.items():
        if damage.expiring[app_name]:
            yield warning(
                "sessions that never expire",
                f"application {app_name!r}: {found}",
                "Other sessions of the application expire; these stay and take memory.",
                "A service without session_ttl wrote them. Write to them with one that has it.",
            )


def _hot_slots(damage: Damage) -> Iterator[Finding]:
    total = damage.bytes_by_slot.total()
    for slot, size in damage.bytes_by_slot.most_common(1):
        part = size / max(total, 1)
        if part > _HOT_PART and damage.num_sessions >= _HOT_SAMPLE:
            yield warning(
                "hot slot",
                f"slot {slot} has {part:.0%} of the bytes of the checked sessions, of "
                f"{damage.slot_names[slot]}",
                "All keys with one hash tag are on one node, which does all work on them.",
                'Spread the sessions over more users, or use partition_by="user".',
            )
        else:
            yield ok("hot slot", f"the fullest slot has {part:.0%} of the bytes")


def repair(service: SessionService, damage: Damage) -> int:
    """Remove expired sessions from the index. Returns how many users were changed."""
    for app_name, user_id in damage.users_to_repair:
        service.count_sessions(app_name=app_name, user_id=user_id)  # prunes what has expired
    return len(damage.users_to_repair)


class _Checker:
    """Reads sessions, and notes what is wrong with them."""

    def __init__(self, service: SessionService, damage: Damage, *, is_full: bool) -> None:
        self.damage = damage
        self._service = service
        self._keys = service._ops.options.keys
        self._codec = service._ops.options.codec
        self._is_full = is_full
        self._is_cluster = getattr(service._executor, "is_cluster", False)
        self._users: set[tuple[str, str]] = set()  # of the sessions; with --full none
        self._checked: set[tuple[str, str]] = set()  # indexes; with --full none
        self._now_us = round(time.time() * 1_000_000)

    def is_without_header(self, stored: StoredKey) -> bool:
        """Whether this is the log of a session that has no header."""
        if stored.role != "events":
            return False
        session = self._keys.session(*stored[1:4]).session
        return not ask(self._service, ("EXISTS", session))[0]

    def check_temporary(self, stored: StoredKey) -> None:
        """Fragments, and events of a restore, expire by themselves."""
        if ask(self._service, ("PEXPIRETIME", stored.key)) == [-1]:
            self.damage.without_deadline.add(stored.key.decode("utf-8", "replace"))

    def check_tier(self, stored: StoredKey) -> None:
        """The state of a user or an application."""
        owner = TierOwner(stored.app_name, stored.user_id)
        prefix = "user:" if stored.user_id else "app:"
        where = "state of " + " / ".join(filter(None, owner))
        try:
            [fields] = ask(self._service, ("HGETALL", stored.key))
            for field, value in hash_items(fields):
                self._decode(self._codec.decode_value, value, owner, prefix + field.decode())
        except Unreadable as problem:
            self.damage.unreadable.add(f"{where}: {problem}")
        except ValueError:
            self.damage.corrupt.add(where)
        except BackendRejected as problem:
            self._note_wrong_type(where, problem)

    def _decode(self, decode: Callable[..., object], *arguments: Any) -> None:
        """Decode a value. ValueError if that is not possible."""
        with_data_keys(self._service, partial(decode, *arguments))

    def _note_wrong_type(self, where: str, problem: BackendRejected) -> None:
        if "WRONGTYPE" not in str(problem):  # such as a missing right
            raise problem
        self.damage.corrupt.add(f"{where}: a key has a wrong type")

    def check_sessions(self, batch: list[SessionKey]) -> None:
        """Check sessions. They are read together."""
        if self._is_cluster and len(batch) > 1:
            for key in batch:
                self.check_sessions([key])
            return
        try:
            reads = [command for key in batch for command in self._reads(key)]
            replies = iter(ask(self._service, *reads) if reads else ())
        except BackendRejected as problem:
            if len(batch) == 1:
                self.damage.num_sessions += 1
                self._note_wrong_type(_name(batch[0]), problem)
            else:  # find out which one it is
                for key in batch:
                    self.check_sessions([key])
            return
        for key in batch:
            self._check_session(key, *islice(replies, len(self._reads(key))))

    def _reads(self, key: SessionKey) -> tuple[Any, ...]:
        keys = self._keys.session(*ids_of(key))
        return (
            ("HMGET", keys.session, *_HEADER),
            ("ZCARD", keys.events),
            ("PEXPIRETIME", keys.session),
            ("PEXPIRETIME", keys.events),
            ("PEXPIRETIME", keys.session_index),
            ("ZSCORE", keys.session_index, key.session_id.encode()),
            ("ZRANGE", keys.events, 0, _EVENTS_PER_SESSION - 1, "REV"),
            ("HGETALL", keys.session),
        )

    def _check_session(
        self,
        key: SessionKey,
        header: list[bytes | None],
        num_events: int,
        session_end: int,
        events_end: int,
        index_end: int,
        score: bytes | None,
        newest: list[bytes],
        state: Any,
    ) -> None:
        damage, name = self.damage, _name(key)
        version, created_us, count, deadline_ms, *leases = header
        if version is None and not num_events:
            return  # it has expired, or was deleted
        damage.num_sessions += 1
        if not self._is_full:
            self._users.add((key.app_name, key.user_id))
        if version is None:
            damage.lost_headers.add(name)
            return
        try:
            if count is not None and int(count) > num_events:
                damage.missing_events.add(f"{name}: {num_events} of {int(count)}")
            numbers = [int(each) for each in (version, created_us, deadline_ms or b"-1") if each]
            for data in newest:
                self._decode(self._codec.decode_event, data, key)
            for field, value in hash_items(state):
                if field[:1] == b".":
                    self._decode(self._codec.decode_value, value, key, field[1:].decode())
            self._check_leases(name, leases)
        except Unreadable as problem:
            damage.unreadable.add(f"{name}: {problem}")
            return
        except ValueError:
            damage.corrupt.add(name)
            return
        if numbers[-1] > 0 and session_end == -1:
            damage.without_deadline.add(name)
        elif num_events and session_end != events_end:
            damage.deadlines.add(name)
        elif score is not None and index_end != -1 and not 0 < session_end <= index_end:
            damage.deadlines.add(f"{name} (index)")
        elif session_end == -1:
            damage.staying.setdefault(key.app_name, Found()).add(name)
        else:
            damage.expiring[key.app_name] += 1
        if score is None:
            damage.not_indexed.add(name)
        self._note_size(key, num_events, newest, state)

    def _check_leases(self, name: str, leases: list[bytes | None]) -> None:
        """Leases that end in the far future, and those that ended without being released."""
        for until_us, holder in zip(leases[::2], leases[1::2], strict=True):
            if not until_us or not holder:
                continue
            where = f"{name}: {holder.decode('utf-8', 'replace')}"
            if int(until_us) > self._now_us + _LONG_LEASE_US:
                self.damage.leases.add(where)
            elif int(until_us) < self._now_us:
                self.damage.ended_leases.add(where)

    def _note_size(self, key: SessionKey, num_events: int, newest: list[bytes], state: Any) -> None:
        size = sum(map(len, newest)) * num_events // max(len(newest), 1)
        size += sum(len(field) + len(value) for field, value in hash_items(state))
        heapq.heappush(self.damage.biggest, (size, _name(key)))
        if len(self.damage.biggest) > _SHOWN:
            heapq.heappop(self.damage.biggest)
        if self._is_cluster:
            slot = slot_of_key(self._keys.session(*ids_of(key)).session)
            self.damage.bytes_by_slot[slot] += size
            self.damage.slot_names.setdefault(slot, f"{key.app_name} / {key.user_id}")

    def check_indexes_of_sessions(self) -> None:
        """Check the indexes of the users whose sessions were checked."""
        for app_name, user_id in self._users:
            self.check_index(app_name, user_id)

    def check_index(self, app_name: str, user_id: str) -> None:
        """Find entries whose sessions have expired."""
        if self._is_full:
            names = (name for name, _ in index_entries(self._service, app_name, user_id))
        elif (app_name, user_id) in self._checked:
            return
        else:
            self._checked.add((app_name, user_id))
            index = self._keys.user(app_name, user_id).session_index
            [oldest] = ask(self._service, ("ZRANGE", index, 0, _PLACES_PER_USER - 1))
            names = (member.decode() for member in oldest)
        while some := list(islice(names, _PLACES_PER_USER)):
            keys: list[SessionKeys] = [self._keys.session(app_name, user_id, each) for each in some]
            exist = ask_each(self._service, (("EXISTS", each.session) for each in keys))
            for name, exists in zip(some, exist, strict=True):
                if not exists:
                    self.damage.expired_in_index.add(f"{app_name} / {user_id} / {name}")
                    if len(self.damage.users_to_repair) < _USERS_TO_REPAIR:
                        self.damage.users_to_repair.add((app_name, user_id))


def _name(key: SessionKey) -> str:
    return f"{key.app_name} / {key.user_id} / {key.session_id}"
