"""An independent model: what the documentation promises, in plain Python, without keys or scripts.

Times are integer microseconds, deadlines integer milliseconds since 1970; None = never.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from support.events import LONG_AGO

from sessionstore import (
    BackendRejected,
    DeletedUser,
    Event,
    InvalidArgument,
    Session,
    SessionExists,
    SessionKey,
    SessionNotFound,
    StaleVersion,
    Summary,
    Turn,
    TurnLost,
    TurnTaken,
)
from sessionstore.ops import LeaseName

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TOLERANCE_MS = 2000  # the time of a call that stores no time is not known exactly

Deadline = int | None
User = tuple[str, str]


def instant(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)


def microseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


@dataclass
class Stored:
    """An event in a log. Equal events of different formats are different entries."""

    position: int
    identity: object
    event: Event


@dataclass
class Tier:
    """State that several sessions share. It exists only while it has keys."""

    state: dict[str, Any] = field(default_factory=dict)
    deadline: Deadline = None


@dataclass
class Lease:
    """The holder of the turn or another lease, and until when. holder = "" after a release."""

    token: int
    holder: str
    until_us: int
    lease_ms: int


@dataclass
class StoredSummary:
    """`total`: how many events it covered, those included that are gone. Equal contents of
    different formats are different summaries."""

    codec: str
    content: Any
    upto: int
    created_us: int
    total: int


@dataclass
class StoredSession:
    created_us: int
    updated_us: int
    version: int
    last_position: int = 0
    deadline: Deadline = None
    state: dict[str, Any] = field(default_factory=dict)
    log: list[Stored] = field(default_factory=list)
    leases: dict[str, Lease] = field(default_factory=dict)  # "turn", "compactor"
    event_limit: int = 0
    forked_from: str | None = None
    restored_from: object = None
    summary: StoredSummary | None = None
    was_full: bool = False

    def note_room(self, log: list[Stored]) -> None:
        """Before the log becomes another one that begins with the same event."""
        is_full = 0 < self.event_limit <= len(self.log)
        self.was_full = bool(log) and (self.was_full or is_full)

    @property
    def covered(self) -> int:
        """How many events of the log the summary covers."""
        summary = self.summary
        return sum(entry.position <= summary.upto for entry in self.log) if summary else 0


@dataclass
class Stream:
    """The fragments of a name of a session: what identifies a call, and its fragments."""

    calls: dict[object, list[Event]] = field(default_factory=dict)
    deadline: Deadline = None


@dataclass(frozen=True)
class Settings:
    """The options of a service that the model needs. TTLs in milliseconds; 0 = no TTL."""

    event_limit: int
    session_ttl: int
    user_ttl: int
    app_ttl: int
    refresh_on_read: bool
    codec: str

    @property
    def touches(self) -> bool:
        return self.refresh_on_read and bool(self.session_ttl or self.user_ttl or self.app_ttl)


class Refused(Exception):
    """The error that a call must be refused with."""

    def __init__(self, kind: type[Exception], actual: int | None = None) -> None:
        super().__init__(kind)
        self.kind = kind
        self.actual = actual


class Model:
    """Sessions and state. `now_us` is the time of the current call.

    Attributes:
        refreshed: what the current call must refresh, with the TTL: sessions by SessionKey, user
            tiers by (app, user), app tiers by name.
        may_refresh: the same for what it may refresh or not.
        staged: for restores that are not complete, by what is restored: number of parts that are
            there, and their deadline.
    """

    def __init__(self) -> None:
        self.now_us = 0
        self.sessions: dict[SessionKey, StoredSession] = {}
        self.users: dict[User, Tier] = {}
        self.apps: dict[str, Tier] = {}
        self.staged: dict[object, tuple[int, int]] = {}
        self.streams: dict[SessionKey, Stream] = {}
        self.refreshed: dict[Any, int] = {}
        self.may_refresh: dict[Any, int] = {}

    def begin(self, now_us: int) -> None:
        self.now_us = now_us
        self.refreshed, self.may_refresh = {}, {}

    # -- reads ---------------------------------------------------------------------------------

    def get(
        self,
        settings: Settings,
        key: SessionKey,
        event_num: int | None = None,
        event_time: datetime | None = None,
    ) -> Session | None:
        if key not in self.sessions:
            return None
        if settings.touches:
            self._refresh_all(settings, key)
        return self.view(key, event_num, event_time)

    def view(
        self, key: SessionKey, event_num: int | None = None, event_time: datetime | None = None
    ) -> Session:
        stored = self.sessions[key]
        summary = stored.summary
        events = [
            entry.event
            for entry in stored.log[stored.covered :]
            if event_time is None or entry.position >= microseconds(event_time)
        ]
        if event_num is not None:
            events = events[len(events) - event_num :] if event_num < len(events) else events
        user = self.users.get((key.app_name, key.user_id), Tier())
        app = self.apps.get(key.app_name, Tier())
        state = stored.state | {f"user:{name}": value for name, value in user.state.items()}
        state |= {f"app:{name}": value for name, value in app.state.items()}
        return Session(
            key.app_name,
            key.user_id,
            key.session_id,
            state,
            events,
            stored.version,
            instant(stored.created_us),
            instant(stored.updated_us),
            len(stored.log),
            stored.event_limit or None,
            stored.forked_from,
            None
            if summary is None
            else Summary(
                summary.content, summary.upto, instant(summary.created_us), stored.covered
            ),
            stored.was_full,
        )

    def page(
        self,
        settings: Settings,
        key: SessionKey,
        after: int | None,
        before: int | None,
        limit: int,
        newest: bool = False,
    ) -> list[Stored]:
        stored = self._open(key)
        if settings.touches:
            self._refresh_all(settings, key)
        found = [
            entry
            for entry in stored.log
            if (after is None or entry.position > after)
            and (before is None or entry.position < before)
        ]
        if newest or (after is None and before is not None):
            return found[-limit:]
        return found[:limit]

    def listed(self, user: User) -> list[SessionKey]:
        """A user's sessions, last updated first."""
        keys = [key for key in self.sessions if (key.app_name, key.user_id) == user]
        return sorted(keys, key=lambda key: self.sessions[key].updated_us, reverse=True)

    # -- writes --------------------------------------------------------------------------------

    def create(self, settings: Settings, key: SessionKey, state: dict[str, Any]) -> Session:
        self.sessions[key] = StoredSession(
            self.now_us, self.now_us, self.now_us, event_limit=settings.event_limit
        )
        self._change(key, state, [])
        self.refreshed[key] = settings.session_ttl
        self._refresh_tiers(settings, key)
        return self.view(key)

    def append(
        self,
        settings: Settings,
        key: SessionKey,
        events: list[Event],
        if_version: int | None,
        turn: Turn | None = None,
    ) -> None:
        stored = self._open(key)
        batch = [((settings.codec, event.id), event) for event in events]
        known = {entry.identity for entry in stored.log}
        limit, old_log = settings.event_limit, list(stored.log)
        is_repeat = all(identity in known for identity, _ in batch)
        if not is_repeat:
            self._check_version(stored, if_version)
            lease = stored.leases.get("turn")
            if turn is not None and (not lease or lease.token != turn.token):
                raise Refused(TurnLost)
        names = [name for event in events for name in _names_in(event)]
        planned = self._plan(key, batch, known)
        # A script that gets a tier's key for one event may refresh the tier for other events too.
        self._tiers_named(settings, key, names)
        added = False
        state: dict[str, Any] = {}
        removed: list[str] = []
        for identity, event in batch:
            if identity in {entry.identity for entry in stored.log}:
                continue
            position = min(microseconds(event.timestamp), self.now_us)
            position = max(position, stored.last_position + 1)
            stored.log.append(Stored(position, identity, event))
            stored.last_position = position
            sums = planned[event.id]
            removed = [name for name in removed if name not in (event.state_delta | sums)]
            removed += event.state_removed
            state = {**state, **event.state_delta, **sums}
            self._tiers_written(settings, key, _names_in(event))
            added = True
        if added:
            # All events make one change: a key that one event removes and a later one sets is kept.
            kept = {name: value for name, value in state.items() if name not in removed}
            self._change(key, kept, removed)
            if limit != stored.event_limit:
                stored.was_full |= 0 < stored.event_limit <= len(old_log)
            stored.event_limit = limit
            if limit:
                del stored.log[:-limit]
            self._wrote(settings, key)
            self._refresh_tiers(settings, key)

    def pop(self, settings: Settings, key: SessionKey, if_version: int | None) -> Event | None:
        stored = self._open(key)
        self._check_version(stored, if_version)
        if len(stored.log) <= stored.covered:
            return None
        self._wrote(settings, key)
        stored.note_room(stored.log[:-1])
        return stored.log.pop().event

    def clear(self, settings: Settings, key: SessionKey, if_version: int | None) -> None:
        stored = self._open(key)
        self._check_version(stored, if_version)
        stored.log.clear()
        stored.summary = None
        stored.was_full = False
        self._wrote(settings, key)

    def compact(
        self,
        settings: Settings,
        key: SessionKey,
        upto: int,
        content: Any,
        if_summary: int | None,
        drop: bool,
        if_version: int | None,
        lease: Turn | None,
        starts_turn: Callable[[Event], bool],
    ) -> Summary:
        stored = self._open(key)
        old = stored.summary
        places = [entry.position for entry in stored.log]
        if if_summary is not None and upto < if_summary:
            raise Refused(InvalidArgument)
        if upto in places and upto != if_summary:
            after = stored.log[places.index(upto) + 1 :]
            if not after and if_version is None:
                raise Refused(InvalidArgument)
            if after and not starts_turn(after[0].event):
                raise Refused(InvalidArgument)
        is_repeat = old is not None and (old.upto, old.codec, old.content) == (
            upto,
            settings.codec,
            content,
        )
        if old is None or not is_repeat:
            self._check_version(stored, if_version)
            held = stored.leases.get("compactor")
            if lease is not None and (held is None or held.token != lease.token):
                raise Refused(TurnLost)
            if (old.upto if old else None) != if_summary:
                raise Refused(StaleVersion, old.upto if old else 0)
            if upto != if_summary and upto not in places:
                raise Refused(InvalidArgument)
            gone = old.total - stored.covered if old else 0
            stored.summary = StoredSummary(settings.codec, content, upto, self.now_us, 0)
            stored.summary.total = stored.covered + gone
        if not is_repeat or (drop and stored.covered):
            if drop and stored.covered:
                stored.was_full = False
                del stored.log[: stored.covered]
            self._wrote(settings, key)
        summary = self.view(key).summary
        assert summary is not None
        return summary

    def rewind(
        self,
        settings: Settings,
        key: SessionKey,
        position: int,
        state: dict[str, Any] | None,
        if_version: int | None,
    ) -> int:
        stored = self._open(key)
        self._check_version(stored, if_version)
        summary = stored.summary
        if summary is not None and position < summary.upto:
            if stored.covered < summary.total:
                raise Refused(InvalidArgument)
            stored.summary = None
        kept = [entry for entry in stored.log if entry.position <= position]
        num_removed = len(stored.log) - len(kept)
        if num_removed:
            stored.note_room(kept)
        stored.log = kept
        if state is not None:
            stored.state = dict(state)
        self._wrote(settings, key)
        return num_removed

    def replace(
        self,
        settings: Settings,
        key: SessionKey,
        entry: Stored,
        new: tuple[object, Event] | None,
        if_version: int | None,
    ) -> None:
        """Replace an event, or remove it if `new` is None."""
        stored = self._open(key)
        if new is not None and new[0] == entry.identity:
            return
        self._check_version(stored, if_version)
        if new is not None and new[0] in {other.identity for other in stored.log}:
            raise Refused(InvalidArgument)
        if stored.summary is not None and entry.position <= stored.summary.upto:
            stored.summary = None
        stored.leases.pop("compactor", None)
        place = stored.log.index(entry)
        if new is None:
            stored.note_room(stored.log[1:])
        stored.log[place : place + 1] = [] if new is None else [Stored(entry.position, *new)]
        self._wrote(settings, key)

    def fork(
        self,
        settings: Settings,
        key: SessionKey,
        copy: SessionKey,
        upto: int | None,
        state: dict[str, Any] | None,
        if_version: int | None,
    ) -> Session:
        if copy in self.sessions:
            raise Refused(SessionExists)
        stored = self._open(key)
        self._check_version(stored, if_version)
        log = [entry for entry in stored.log if upto is None or entry.position <= upto]
        newest = log[-1].position if log else 0
        self.sessions[copy] = StoredSession(
            self.now_us,
            self.now_us,
            self.now_us,
            stored.last_position if upto is None else newest,
            stored.deadline,
            dict(stored.state if state is None else state),
            log,
            event_limit=stored.event_limit,
            forked_from=key.session_id,
        )
        if stored.summary is not None and (upto is None or stored.summary.upto <= upto):
            self.sessions[copy].summary = replace(stored.summary)
        is_full = 0 < stored.event_limit <= len(stored.log)
        self.sessions[copy].was_full = bool(log) and (stored.was_full or is_full)
        self.refreshed[copy] = settings.session_ttl
        return self.view(copy, 0)

    def stage(self, key: SessionKey, restored: object, num_parts: int, most: int) -> None:
        """Stage the next parts of what is restored, `most` in all."""
        if most < 1:
            return
        if key in self.sessions:
            if self.sessions[key].restored_from != restored:
                raise Refused(SessionExists)
            return
        old, _ = self.staged.get(restored, (0, 0))
        if old < most:
            self.staged[restored] = min(old + num_parts, most), self.now_us // 1000 + 3_600_000

    def restore(
        self,
        settings: Settings,
        key: SessionKey,
        restored: object,
        log: list[Stored],
        state: dict[str, Any],
        created_us: int | None,
        updated_us: int | None,
        upto: int | None,
    ) -> Session:
        """`restored` is all that distinguishes what is restored. `upto`: of the summary "s"."""
        if key in self.sessions and self.sessions[key].restored_from != restored:
            raise Refused(SessionExists)
        self.staged.pop(restored, None)
        if key not in self.sessions:
            updated_us = updated_us or self.now_us
            self.sessions[key] = StoredSession(
                created_us or updated_us,
                updated_us,
                self.now_us,
                max(log[-1].position if log else 0, upto or 0),
                None,
                dict(state),
                log,
                event_limit=settings.event_limit,
                restored_from=restored,
            )
            if upto is not None:
                summary = StoredSummary(settings.codec, "s", upto, microseconds(LONG_AGO), 0)
                self.sessions[key].summary = summary
                summary.total = self.sessions[key].covered + 1
            self.refreshed[key] = settings.session_ttl
        return self.view(key, 0)

    def replace_newest(
        self,
        settings: Settings,
        key: SessionKey,
        version: int,
        first_kept: int,
        end_kept: int,
        events: list[Event],
    ) -> None:
        stored = self._open(key)
        self._check_version(stored, version)
        known = {entry.identity for entry in stored.log}
        kept = stored.log[first_kept:end_kept]
        if not kept or end_kept < stored.covered:
            stored.summary = None
        for event in events:
            identity = (settings.codec, event.id)
            if identity in known:
                continue
            known.add(identity)
            position = min(microseconds(event.timestamp), self.now_us)
            position = max(position, stored.last_position + 1)
            kept.append(Stored(position, identity, event))
            stored.last_position = position
        stored.note_room(stored.log[:end_kept] if first_kept == 0 else [])
        stored.log = kept[-settings.event_limit :] if settings.event_limit else kept
        stored.event_limit = settings.event_limit
        self._wrote(settings, key)

    def update(
        self,
        settings: Settings,
        key: SessionKey,
        state: dict[str, Any],
        removed: list[str],
        if_version: int | None,
    ) -> None:
        stored = self._open(key)
        self._check_version(stored, if_version)
        self._change(key, state, removed)
        self._tiers_named(settings, key, [*state, *removed])
        self._tiers_written(settings, key, [*state, *removed])
        self._wrote(settings, key)
        self._refresh_tiers(settings, key)

    def set_absent(self, settings: Settings, key: SessionKey, state: dict[str, Any]) -> None:
        self._open(key)
        there = self.view(key).state
        missing = {name: value for name, value in state.items() if name not in there}
        self._change(key, missing, [])
        self._tiers_named(settings, key, [*state])
        self._tiers_written(settings, key, [*state])
        self._wrote(settings, key)
        self._refresh_tiers(settings, key)

    def increment(
        self, settings: Settings, key: SessionKey, increments: dict[str, int]
    ) -> dict[str, int]:
        self._open(key)
        sums = _sums(self.view(key).state, increments)
        self._change(key, sums, [])
        self._tiers_named(settings, key, [*increments])
        self._tiers_written(settings, key, [*increments])
        self._wrote(settings, key)
        self._refresh_tiers(settings, key)
        return sums

    def update_user(
        self,
        settings: Settings,
        user: User,
        state: dict[str, Any],
        removed: list[str],
        if_absent: bool = False,
    ) -> None:
        _write_tier(self.users, user, state, removed, if_absent)
        self.refreshed[user] = settings.user_ttl

    def update_app(
        self,
        settings: Settings,
        app: str,
        state: dict[str, Any],
        removed: list[str],
        if_absent: bool = False,
    ) -> None:
        _write_tier(self.apps, app, state, removed, if_absent)
        self.refreshed[app] = settings.app_ttl

    def increment_user(
        self, settings: Settings, user: User, increments: dict[str, int]
    ) -> dict[str, int]:
        sums = _sums(self.users.get(user, Tier()).state, increments)
        self.update_user(settings, user, {**sums}, [])
        return sums

    def acquire_turn(
        self,
        settings: Settings,
        key: SessionKey,
        holder: str,
        lease_ms: int,
        token: int,
        name: LeaseName = "turn",
    ) -> Turn:
        """`token` is the store's answer. A new holder's must be larger than the last."""
        stored = self._open(key)
        old = stored.leases.get(name)
        is_mine = old is not None and old.holder == holder
        # A second more than its length: see lua/acquire_turn.lua.
        left_us = 0 if old is None else old.until_us - self.now_us
        is_taken = old is not None and 0 < left_us <= (old.lease_ms + 1000) * 1000
        if old is not None and is_taken and not is_mine:
            raise Refused(TurnTaken, old.until_us)
        until_us = self.now_us + lease_ms * 1000
        if old is not None:
            assert token == old.token if is_mine else token > old.token
        stored.leases[name] = Lease(token, holder, until_us, lease_ms)
        self.refreshed[key] = settings.session_ttl
        return Turn(key, token, instant(until_us))

    def renew_turn(
        self, settings: Settings, turn: Turn, lease_ms: int, name: LeaseName = "turn"
    ) -> Turn:
        lease = self._open(turn.key).leases.get(name)
        if lease is None or lease.token != turn.token or (lease_ms and not lease.holder):
            raise Refused(TurnLost)
        until_us = self.now_us + lease_ms * 1000
        lease.until_us = until_us if lease_ms else 0
        lease.lease_ms = lease_ms or lease.lease_ms
        lease.holder = lease.holder if lease_ms else ""
        self.refreshed[turn.key] = settings.session_ttl
        return Turn(turn.key, turn.token, instant(until_us))

    def free_turn(self, settings: Settings, key: SessionKey, token: int) -> None:
        """`token` is what the store has now."""
        stored = self._open(key)
        old = stored.leases.get("turn", Lease(0, "", 0, 0))
        assert token > old.token
        stored.leases["turn"] = Lease(token, "", 0, old.lease_ms)
        self.refreshed[key] = settings.session_ttl

    def append_fragments(
        self,
        settings: Settings,
        key: SessionKey,
        fragments: list[Event],
        if_version: int | None,
        ttl_ms: int,
    ) -> None:
        stored = self._open(key)
        stream = self.streams.get(key, Stream())
        ids = tuple(event.id for event in fragments)
        identity = (stored.created_us, settings.codec, ids)
        if identity not in stream.calls:
            self._check_version(stored, if_version)
            stream.calls[identity] = fragments
            stream.deadline = self.now_us // 1000 + ttl_ms
            self.streams[key] = stream

    def delete(self, key: SessionKey) -> None:
        self.sessions.pop(key, None)

    def delete_user(self, user: User) -> DeletedUser:
        sessions = self.listed(user)
        for key in sessions:
            self.delete(key)
        tier = self.users.pop(user, Tier())
        return DeletedUser(len(sessions), len(tier.state), [])

    def pass_time(self, milliseconds: int) -> None:
        """Move all deadlines closer, and delete what has expired."""
        now_ms = self.now_us // 1000
        for stored in self.sessions.values():
            for lease in stored.leases.values():
                lease.until_us -= milliseconds * 1000 if lease.until_us else 0
        for restored, (num_parts, deadline) in list(self.staged.items()):
            self.staged[restored] = num_parts, deadline - milliseconds
            if deadline - milliseconds <= now_ms:
                del self.staged[restored]
        holders: list[dict[Any, Any]] = [self.sessions, self.users, self.apps, self.streams]
        for holder in holders:
            for name, item in list(holder.items()):
                if item.deadline is not None:
                    item.deadline -= milliseconds
                    if item.deadline <= now_ms:
                        del holder[name]

    # -- deadlines -----------------------------------------------------------------------------

    def check_deadline(self, name: Any, actual: Deadline) -> None:
        """Check a stored deadline, then use it in the model."""
        holders: dict[type, dict[Any, Any]] = {
            SessionKey: self.sessions,
            tuple: self.users,
            str: self.apps,
        }
        item = holders[type(name)][name]
        ttl = self.refreshed.get(name) or self.may_refresh.get(name) or 0
        fresh = self.now_us // 1000 + ttl
        is_fresh = (
            ttl > 0
            and actual is not None
            and fresh - TOLERANCE_MS <= actual <= fresh + ttl // 64 + TOLERANCE_MS
        )
        if self.refreshed.get(name):
            assert is_fresh, f"{name}: the deadline is not fresh"
        else:
            assert actual == item.deadline or is_fresh, f"{name}: the deadline has moved"
        item.deadline = actual

    # -- inside --------------------------------------------------------------------------------

    def _open(self, key: SessionKey) -> StoredSession:
        if key not in self.sessions:
            raise Refused(SessionNotFound)
        return self.sessions[key]

    def _plan(
        self, key: SessionKey, batch: Sequence[tuple[object, Event]], known: set[object]
    ) -> dict[str, dict[str, int]]:
        """The sums that each new event of a batch sets. Refused if one cannot be computed."""
        state, planned = self.view(key).state, dict[str, dict[str, int]]()
        for identity, event in batch:
            if identity in known or event.id in planned:
                continue
            planned[event.id] = _sums(state, event.state_increments)
            state |= {**event.state_delta, **planned[event.id]}
            for name in event.state_removed:
                state.pop(name, None)
        return planned

    def _check_version(self, stored: StoredSession, if_version: int | None) -> None:
        if if_version is not None and if_version != stored.version:
            raise Refused(StaleVersion, stored.version)

    def _wrote(self, settings: Settings, key: SessionKey) -> None:
        stored = self.sessions[key]
        stored.version = max(stored.version + 1, self.now_us)
        stored.updated_us = self.now_us
        self.refreshed[key] = settings.session_ttl

    def _change(self, key: SessionKey, state: dict[str, Any], removed: list[str]) -> None:
        for full in (*state, *removed):
            prefix, _, name = full.partition(":")
            change = ({}, [name]) if full in removed else ({name: state[full]}, [])
            if prefix == "user":
                _write_tier(self.users, (key.app_name, key.user_id), *change)
            elif prefix == "app":
                _write_tier(self.apps, key.app_name, *change)
            elif full in removed:
                self.sessions[key].state.pop(full, None)
            else:
                self.sessions[key].state[full] = state[full]

    def _tiers_written(self, settings: Settings, key: SessionKey, names: list[str]) -> None:
        prefixes = {name.partition(":")[0] for name in names}
        user = (key.app_name, key.user_id)
        if "user" in prefixes:
            self.refreshed[user] = settings.user_ttl
        if "app" in prefixes:
            self.refreshed[key.app_name] = settings.app_ttl

    def _tiers_named(self, settings: Settings, key: SessionKey, names: list[str]) -> None:
        """A call that gets the app's key gets the user's key too."""
        prefixes = {name.partition(":")[0] for name in names}
        if prefixes & {"user", "app"}:
            self.may_refresh[key.app_name, key.user_id] = settings.user_ttl
        if "app" in prefixes:
            self.may_refresh[key.app_name] = settings.app_ttl

    def _refresh_all(self, settings: Settings, key: SessionKey) -> None:
        self.refreshed[key] = settings.session_ttl
        self._refresh_tiers(settings, key)

    def _refresh_tiers(self, settings: Settings, key: SessionKey) -> None:
        self.refreshed[key.app_name, key.user_id] = settings.user_ttl
        self.refreshed[key.app_name] = settings.app_ttl


def _names_in(event: Event) -> list[str]:
    """The state keys that an event changes."""
    return [*event.state_delta, *event.state_removed, *event.state_increments]


def _sums(state: dict[str, Any], increments: dict[str, int]) -> dict[str, int]:
    found = {}
    for name, amount in increments.items():
        value = state.get(name, 0)
        if type(value) is not int or abs(value) >= 2**53 or abs(value + amount) >= 2**53:
            raise Refused(BackendRejected)
        found[name] = value + amount
    return found


def _write_tier(
    tiers: dict[Any, Tier],
    name: Any,
    state: dict[str, Any],
    removed: list[str],
    if_absent: bool = False,
) -> None:
    tier = tiers.setdefault(name, Tier())
    tier.state.update(state if not if_absent else state | tier.state)
    for key in removed:
        tier.state.pop(key, None)
    if not tier.state:
        del tiers[name]
