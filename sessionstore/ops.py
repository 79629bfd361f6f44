"""One pure function per operation: typed arguments -> Call.

A write is a Lua script. A read is a transaction of plain commands, because Lua is slow with large
replies. If reads refresh TTLs, a small script runs first in the same transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import copy
from datetime import datetime
from hashlib import sha1
from typing import Any, Literal

from msgspec import structs

from .app_copies import AppCopies
from .calls import Call, Command, R, status
from .codec import corrupt
from .data_keys import DataKey, UserEncryption
from .errors import InvalidArgument, ScriptContractError
from .keys import SessionKeys
from .model import Event, EventPage, Session, SessionKey, Turn
from .options import Options, check_bool, check_instant, check_int
from .replies import (
    Place,
    SharedState,
    WriteResult,
    after_write,
    check_count,
    check_no_events,
    decode_count,
    decode_counts,
    decode_ids_to_check,
    decode_log,
    decode_numbers,
    decode_ok,
    decode_places,
    decode_role,
    decode_session,
    decode_shared_app_state,
    decode_state,
    decode_sums,
    decode_write_result,
    hash_items,
    members_with_scores,
)
from .scripts import SCRIPTS
from .summaries import Summaries
from .tiers import NO_CHANGE, Change, Delta, Tier, decode_tier
from .tiers_in_use import TiersInUse
from .times import from_us, to_us
from .transform import TierOwner

EVENTS_PER_CALL_LIMIT = 500
"""Maximum number of events in one append."""

SESSIONS_PER_PAGE_LIMIT = 1000
"""Maximum number of sessions on one page of a list."""

EVENTS_PER_PAGE_LIMIT = 10_000
"""Maximum number of events on one page of the log."""

LeaseName = Literal["turn", "compactor"]
"""The leases of a session: who may append to it, and who summarizes it."""

BULK_BYTES = 1 << 17
"""A Call that writes more bytes than this is bulk."""

_KEYS_PER_SCAN = 1000
_BULK_EVENTS = 100  # reading more events than this is bulk

_FIRST_ATTEMPT = b""  # has no age; see Call.age_argument

_APPEND_EVENT = SCRIPTS["append_event"]
_TOUCH_SESSION = SCRIPTS["touch_session"]


class Ops:
    """Builds the Calls of one service.

    Args:
        options: the service's options.
        app_in_own_slot: the app tier has a cluster slot of its own, so that no script may use it
            together with a user's keys. Calls on a session leave it out, and flows.py reads and
            writes it with Calls of its own.
        clock: returns seconds; it tells when a tier is to be refreshed again.
    """

    def __init__(
        self,
        options: Options,
        *,
        app_in_own_slot: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options
        self.app_in_own_slot = app_in_own_slot
        self.data_keys = options.data_keys  # None: there is no key store, or these Ops are bound
        self.data_key = b""
        self._unbound: Ops | None = None
        self._keys = options.keys
        self._codec = options.codec
        # As arguments, in the order in which all scripts take them.
        self._ttls = (
            b"%d" % options.session_ttl_ms,
            b"%d" % options.user_state_ttl_ms,
            b"%d" % options.app_state_ttl_ms,
        )
        self._session_ttl = self._ttls[0]
        self._refreshes_on_read = options.refresh_ttl_on_read and options.any_ttl
        limit = options.session_event_limit
        self._limit = b"" if limit is None else b"%d" % limit
        app_ttl_ms = options.app_state_ttl_ms
        with_user, alone = (0, app_ttl_ms) if app_in_own_slot else (app_ttl_ms, 0)
        self._tiers_in_use = TiersInUse((options.user_state_ttl_ms, with_user), clock)
        self._apps_in_use = TiersInUse((alone,), clock)
        max_age_s = options.app_state_max_age_ms / 1000 if app_in_own_slot else 0.0
        if app_ttl_ms and options.refresh_ttl_on_read:
            max_age_s = min(max_age_s, app_ttl_ms / 64_000)  # then a read has to refresh the TTL
        self.app_copies = AppCopies(max_age_s, clock)
        self._keeps_tiers = bool(self._tiers_in_use)
        self._keeps_app = with_user > 0
        self.summaries = Summaries()

    @property
    def unbound(self) -> Ops:
        """The Ops that these were bound from, or these."""
        return self if self._unbound is None else self._unbound

    def bound_to(self, data_key: DataKey | None, written: list[bytes] | None = None) -> Ops:
        """The Ops that encrypt what belongs to a user with a data key; None = do not encrypt.

        `written` receives keys and values of the user tier that they encrypt.
        """
        if (
            written is None
            and data_key is not None
            and data_key.ops is not None
            and data_key.ops.unbound is self
        ):
            bound: Ops = data_key.ops
            return bound
        assert self.data_keys is not None
        bound = copy(self)
        bound._unbound = self
        bound.data_keys = None
        if data_key is not None:
            encryption = UserEncryption(self.data_keys, data_key, written)
            codec = self.options.codec.with_encryption(encryption)
            bound.options = structs.replace(self.options, codec=codec)
            bound._codec = codec
            bound.data_key = data_key.name.encode()
            if written is None:
                data_key.ops = bound
        return bound

    # -- sessions ------------------------------------------------------------------------------

    def create_session(
        self, key: SessionKey, creation_id: str, change: Change
    ) -> Call[tuple[Session, list[bytes]]]:
        """Create a session and read it. Also returns ids that `prune_index` should check."""
        keys = self._keys.session(*ids_of(key))

        def decode(replies: list[Any]) -> tuple[Session, list[bytes]]:
            status(replies[0], key)
            with after_write("the session was created"):
                session = decode_session(self._codec, key, keys, self.with_app_tier(replies[1:]))
            return session, decode_ids_to_check(replies[0])

        return Call(
            "create_session",
            decode,
            SCRIPTS["create_session"],
            self.script_keys(keys),
            (*self._create_args(key, creation_id), *self._all_tier_args(change)),
            self.tier_commands(keys),
        )

    def get_or_create_session(
        self,
        key: SessionKey,
        creation_id: str,
        change: Change,
        event_num: int | None,
        event_time: datetime | None,
        after: int | None = None,
    ) -> Call[tuple[Session, list[bytes]]]:
        """Create a session unless it exists, and read it. Returns the same as `create_session`."""
        keys = self._keys.session(*ids_of(key))
        log, newest_first = log_commands(keys.events, event_num, event_time, after)
        head = self._create_args(key, creation_id)
        ttls = (_flag(self.options.refresh_ttl_on_read), *self._ttls[1:])

        def decode(replies: list[Any]) -> tuple[Session, list[bytes]]:
            status(replies[0], key)
            parts = self.with_app_tier(replies[1:])
            session = decode_session(self._codec, key, keys, parts, newest_first)
            return session, decode_ids_to_check(replies[0])

        return Call(
            "get_or_create_session",
            decode,
            SCRIPTS["get_or_create_session"],
            self.script_keys(keys),
            (*head, *ttls, *self._all_tier_args(change)),
            (*self.tier_commands(keys), *log),
            is_bulk=_is_bulk(event_num),
        )

    def check_session(
        self,
        key: SessionKey,
        if_version: int | None = None,
        turn: Turn | None = None,
        events: Sequence[bytes] = (),
        created_us: bytes = b"",
    ) -> Call[list[bool]]:
        """Check that a session accepts a write, and which encoded events are stored already."""

        def decode(replies: list[Any]) -> list[bool]:
            status(replies[0], key, if_version)
            return [is_stored == 1 for is_stored in replies[0][1]]

        return Call(
            "check_session",
            decode,
            SCRIPTS["check_session"],
            self._keys.session(*ids_of(key))[:2],
            (created_us, self.condition(key, if_version, turn), *events),
            writes=False,
            is_bulk=sum(map(len, events)) > BULK_BYTES,
        )

    def get_session(
        self,
        key: SessionKey,
        event_num: int | None,
        event_time: datetime | None,
        after: int | None = None,
    ) -> Call[Session | None]:
        """Read a session: header, merged state, events; only those after the position `after`."""
        keys = self._keys.session(*ids_of(key))
        log, newest_first = log_commands(keys.events, event_num, event_time, after)

        def decode(replies: list[Any]) -> Session | None:
            if self._refreshes_on_read:
                replies = replies[1:]
            parts = self.with_app_tier(replies)
            if not parts[0]:
                check_no_events(keys, parts)
                return None
            return decode_session(self._codec, key, keys, parts, newest_first)

        commands = (*self.tier_commands(keys), *log)
        return self._read("get_session", decode, key, keys, commands, _is_bulk(event_num))

    def get_events(
        self,
        key: SessionKey,
        after: int | None,
        before: int | None,
        limit: int,
        newest: bool = False,
    ) -> Call[EventPage]:
        """Read a page of a session's log."""
        check_int("limit", limit, low=1, high=EVENTS_PER_PAGE_LIMIT)
        check_bool("newest", newest)
        low = b"-inf" if after is None else b"(%d" % check_int("after", after, low=0)
        high = b"+inf" if before is None else b"(%d" % check_int("before", before, low=0)
        backward = newest or (after is None and before is not None)
        keys = self._keys.session(*ids_of(key))
        bounds = (high, low, "BYSCORE", "REV") if backward else (low, high, "BYSCORE")
        commands: tuple[Command, ...] = (
            ("HMGET", keys.session, "version", "count"),
            ("ZCARD", keys.events),
            ("ZRANGE", keys.events, *bounds, "LIMIT", 0, limit, "WITHSCORES"),
        )

        def decode(replies: list[Any]) -> EventPage:
            (version, count), num_events, found = replies[-3:]
            if version is None:
                check_no_events(keys, [(), (), (), num_events, found])
                status([b"NOT_FOUND"], key)  # raises SessionNotFound
            check_count(keys, count, num_events)
            try:
                entries = members_with_scores(found)
            except (ValueError, OverflowError) as error:  # a score is not finite
                raise corrupt(keys.events, error) from None
            if backward:
                entries.reverse()
            cursor = after if after is not None else before
            return EventPage(
                decode_log(self._codec, key, keys.events, (member for member, _ in entries)),
                entries[0][1] if entries else cursor,
                entries[-1][1] if entries else cursor,
                [position for _, position in entries],
            )

        return self._read("get_events", decode, key, keys, commands, _is_bulk(limit))

    def list_places(
        self,
        app_name: str,
        user_id: str,
        limit: int,
        after: Place | None = None,
        *,
        upward: bool = False,
        for_write: bool = False,
    ) -> Call[list[Place]]:
        """Places of a user's sessions in the index, including those of expired sessions.

        Args:
            app_name: the application.
            user_id: the user.
            limit: maximum number of places, 1 or more.
            after: the place before the first one; None = the end of the index.
            upward: False = last updated first, True = last updated last.
            for_write: it is a step of a write, so a replica must not answer.
        """
        index = self._keys.user(app_name, user_id).session_index
        rev = () if upward else ("REV",)
        if after is None:
            command: Command = ("ZRANGE", index, 0, limit - 1, *rev, "WITHSCORES")
            return Call(
                "list_sessions",
                lambda replies: decode_places(index, members_with_scores(replies[0])),
                commands=(command,),
                writes=for_write,
            )

        def decode(replies: list[Any]) -> list[Place]:
            # Redis sorts members with the same score by their bytes.
            same, others = replies
            edge = after.session_id.encode()
            same = [member for member in same if (member > edge if upward else member < edge)]
            entries = [(member, after.updated_us) for member in same]
            return decode_places(index, (entries + members_with_scores(others))[:limit])

        score, end = after.updated_us, "+inf" if upward else "-inf"
        commands: tuple[Command, ...] = (
            ("ZRANGE", index, score, score, "BYSCORE", *rev),
            (
                *("ZRANGE", index, b"(%d" % score, end, "BYSCORE", *rev),
                *("LIMIT", 0, limit, "WITHSCORES"),
            ),
        )
        return Call("list_sessions", decode, commands=commands, writes=for_write)

    def list_sessions(
        self,
        app_name: str,
        user_id: str,
        ids: Sequence[str],
        event_num: int,
        *,
        tiers: bool = True,
    ) -> Call[tuple[list[Session | None], SharedState]]:
        """Read sessions by id; None for a session that has expired.

        Returns the sessions with the state of their own tier, and the state of the other tiers, if
        `tiers` asks for it and they share the slot. A session of release 0.1.0 may have NOT_COUNTED
        as its `event_count`.
        """
        check_int("event_num", event_num, low=0)
        user = self._keys.user(app_name, user_id)
        sessions = [self._keys.session(app_name, user_id, name) for name in ids]
        owner = TierOwner(app_name, user_id)
        shared_tiers: list[tuple[bytes, Tier]] = [(user.user, "user"), (user.app, "app")]
        if self.app_in_own_slot:
            shared_tiers.pop()
        if not tiers:
            shared_tiers.clear()
        first = len(shared_tiers)
        commands: list[Command] = [("HGETALL", tier) for tier, _ in shared_tiers]
        for keys in sessions:
            commands.append(("HGETALL", keys.session))
            if event_num:
                commands += log_commands(keys.events, event_num, None)[0]
        step = 3 if event_num else 1

        def decode(replies: list[Any]) -> tuple[list[Session | None], SharedState]:
            shared = SharedState()
            for reply, (tier_key, tier) in zip(replies, shared_tiers, strict=False):
                shared.add_tier(self._codec, owner, reply, tier_key, tier)
            found: list[Session | None] = []
            for number, (name, keys) in enumerate(zip(ids, sessions, strict=True)):
                at = first + number * step
                if not replies[at]:
                    found.append(None)
                    continue
                parts = [replies[at], (), (), *replies[at + 1 : at + step]]
                key = SessionKey(app_name, user_id, name)
                found.append(decode_session(self._codec, key, keys, parts))
            return found, shared

        # The states of many sessions may be large.
        return Call("list_sessions", decode, commands=tuple(commands), writes=False, is_bulk=True)

    def count_events(self, app_name: str, user_id: str, ids: Sequence[str]) -> Call[list[int]]:
        """How many events sessions have."""
        keys = (self._keys.session(app_name, user_id, name) for name in ids)
        commands = tuple(("ZCARD", each.events) for each in keys)
        return Call("list_sessions", lambda replies: replies, commands=commands, writes=False)

    def list_app_state(self, app_name: str) -> Call[SharedState]:
        """The state of the app tier for many sessions, where it has a slot of its own."""
        tier = self._keys.app(app_name)
        # It refreshes no TTL, so its copy must not keep other reads from doing it.
        refreshes = self.options.app_state_ttl_ms and self.options.refresh_ttl_on_read
        keep = None if refreshes else self._copier(tier)

        def decode(replies: list[Any]) -> SharedState:
            shared = decode_shared_app_state(self._codec, app_name, replies[0], tier)
            if keep is not None:
                keep(replies[0])
            return shared

        read: tuple[Command, ...] = (("HGETALL", tier),)
        is_kept = keep is not None
        return Call("list_sessions", decode, commands=read, writes=False, from_primary=is_kept)

    @staticmethod
    def ping() -> Call[Literal["primary", "replica"]]:
        """The role of a server. HELLO without arguments changes nothing, and needs no rights."""
        return Call("ping", decode_role, commands=(("HELLO",),), writes=False, slot=0)

    @staticmethod
    def list_primaries() -> Call[list[int]]:
        """One slot of every primary of the cluster."""

        def decode(replies: list[Any]) -> list[int]:
            slot_of = {tuple(primary[:3]): slot for slot, _, primary, *_ in replies[0]}
            return sorted(slot_of.values())

        command: Command = ("CLUSTER", "SLOTS")  # any server answers it
        return Call("list_users", decode, commands=(command,), writes=False, slot=0)

    def list_users(
        self, app_name: str, slot: int | None, cursor: int
    ) -> Call[tuple[int, list[str]]]:
        """The next cursor of a scan, 0 at the end, and some users of an application.

        Args:
            app_name: the application.
            slot: a slot of the server to scan; None = the slot of the app tier.
            cursor: 0, or the cursor that the last Call returned.
        """
        pattern = self._keys.users(app_name)

        def decode(replies: list[Any]) -> tuple[int, list[str]]:
            position, found = replies[0]
            return int(position), [pattern.user_id(key) for key in found]

        command: Command = ("SCAN", cursor, "MATCH", pattern.glob, "COUNT", _KEYS_PER_SCAN)
        route = self._keys.app(app_name) if slot is None else slot
        return Call("list_users", decode, commands=(command,), writes=False, slot=route)

    def prune_index(self, app_name: str, user_id: str, ids: Sequence[str]) -> Call[int]:
        """Remove expired sessions from the index and count them."""
        index = self._keys.user(app_name, user_id).session_index
        sessions = (self._keys.session(app_name, user_id, name).session for name in ids)
        keys = (index, *sessions)
        script = SCRIPTS["prune_index"]
        return Call("prune_index", decode_count, script, keys, tuple(map(str.encode, ids)))

    def delete_sessions(
        self, app_name: str, user_id: str, existed_us: int, ids: Sequence[str]
    ) -> Call[tuple[int, int]]:
        """Delete sessions that existed at a time; 0 = now. Returns that time, and how many."""
        keys = [*self._keys.user(app_name, user_id)[:2]]
        for name in ids:
            keys += self._keys.session(app_name, user_id, name)[:2]
        args = (b"%d" % existed_us, *map(str.encode, ids))
        script = SCRIPTS["delete_sessions"]
        return Call("delete_user", decode_counts, script, tuple(keys), args)

    def delete_user(self, app_name: str, user_id: str) -> Call[tuple[int, int]]:
        """Delete the state of a user without sessions. Returns how many sessions, and state keys.

        State is removed only if there are no sessions.
        """
        keys = self._keys.user(app_name, user_id)[:2]
        return Call("delete_user", decode_counts, SCRIPTS["delete_user"], keys)

    def delete_session(self, key: SessionKey, data_key: str = "") -> Call[None]:
        """Delete a session and its events; only if it has this data key, if one is given."""
        return Call(
            "delete_session",
            lambda replies: _check_ok(replies, key),
            SCRIPTS["delete_session"],
            self._keys.session(*ids_of(key))[:3],
            (key.session_id.encode(), _FIRST_ATTEMPT, data_key.encode()),
            age_argument=1,
        )

    def set_data_key(self, key: SessionKey, data_key: str, old_key: str) -> Call[None]:
        """Note in the header of a session which data key its next values have."""
        return Call(
            "set_data_key",
            lambda replies: _check_ok(replies, key),
            SCRIPTS["set_data_key"],
            self._keys.session(*ids_of(key))[:1],
            (data_key.encode(), old_key.encode()),
        )

    def reseal_values(
        self,
        hash_key: bytes,
        events: bytes,
        fields: Sequence[tuple[bytes, bytes, bytes]],
        members: Sequence[tuple[int, bytes, bytes]] = (),
    ) -> Call[int]:
        """Put other bytes of the same values in the place of stored ones, unless these changed.

        Args:
            hash_key: the hash of a session or a tier.
            events: the log; b"" = none.
            fields: fields of the hash: name, stored bytes, new bytes.
            members: events: position, stored bytes, new bytes.
        """
        args = [b"%d" % len(fields)]
        for field, old, new in fields:
            args += (field, sha1(old).hexdigest().encode(), new)
        for position, old, new in members:
            args += (b"%d" % position, old, new)
        script, keys = SCRIPTS["reseal_values"], (hash_key, events) if events else (hash_key,)
        return Call("rekey", decode_count, script, keys, tuple(args), is_bulk=True)

    def undo_data_key(self, app_name: str, user_id: str, pairs: Sequence[bytes]) -> Call[None]:
        """Remove state of the user tier that still has these values: key, value, key, ..."""
        keys, script = (self._keys.user(app_name, user_id).user,), SCRIPTS["undo_data_key"]
        return Call("undo_data_key", decode_ok, script, keys, tuple(pairs))

    def repair_session(self, key: SessionKey) -> Call[Session]:
        """Accept what is left of a session, and read it."""
        keys = self._keys.session(*ids_of(key))
        log, _ = log_commands(keys.events, None, None)

        def decode(replies: list[Any]) -> Session:
            status(replies[0], key)
            return decode_session(self._codec, key, keys, self.with_app_tier(replies[1:]))

        return Call(
            "repair_session",
            decode,
            SCRIPTS["repair_session"],
            self.script_keys(keys),
            (key.session_id.encode(), self._session_ttl, self._limit),
            (*self.tier_commands(keys), *log),
            is_bulk=True,
        )

    # -- events --------------------------------------------------------------------------------

    def append_event(
        self,
        key: SessionKey,
        data: bytes,
        timestamp: datetime,
        change: Change,
        if_version: int | None,
        turn: Turn | None,
        created_us: bytes = b"",
    ) -> Call[WriteResult]:
        """Append one encoded event with its state change."""
        condition = b""
        if if_version is not None or turn is not None or self.data_key:
            condition = self.condition(key, if_version, turn)
        is_due = self._keeps_tiers and self._is_due(key)
        user = app = False
        tiers: tuple[bytes, ...] = ()
        if is_due or change is not NO_CHANGE:
            user, app = self._tiers_named(is_due, change)
            tiers = self._change_args(change, user, app)
        return Call(
            "append_event",
            self._decode_due(key, if_version)
            if is_due
            else lambda replies: decode_write_result(replies[0], key, if_version),
            _APPEND_EVENT,
            self._keys.session(*ids_of(key))[: 3 + user + app],
            (
                key.session_id.encode(),
                self._session_ttl,
                self._limit,
                created_us + b"/" + condition if condition else created_us,
                data,
                b"%d" % to_us(timestamp),
                *tiers,
            ),
            age_argument=3,
            is_bulk=len(data) > BULK_BYTES,
        )

    def append_events(
        self,
        key: SessionKey,
        events: Sequence[tuple[bytes, datetime, Change]],
        if_version: int | None,
        turn: Turn | None,
        created_us: bytes = b"",
    ) -> Call[WriteResult]:
        """Append events in order: the bytes, timestamp and state change of each."""
        is_due = self._keeps_tiers and self._is_due(key)
        tiers_of = [self._tiers_named(is_due, change) for _, _, change in events]
        user, app = any(user for user, _ in tiers_of), any(app for _, app in tiers_of)
        keys = self._keys.session(*ids_of(key))[: 3 + user + app]
        args = [
            key.session_id.encode(),
            self._session_ttl,
            created_us,
            self._limit,
            self.condition(key, if_version, turn),
            _FIRST_ATTEMPT,
        ]
        for data, timestamp, change in events:
            has_change = is_due or change is not NO_CHANGE
            tiers = self._change_args(change, user, app) if has_change else ()
            args += (data, b"%d" % to_us(timestamp), b"%d" % len(tiers), *tiers)
        return Call(
            "append_events",
            self._decode_due(key, if_version)
            if is_due
            else lambda replies: decode_write_result(replies[0], key, if_version),
            SCRIPTS["append_events"],
            keys,
            tuple(args),
            age_argument=5,
            is_bulk=sum(len(data) for data, _, _ in events) > BULK_BYTES,
        )

    def pop_event(
        self, key: SessionKey, if_version: int | None, created_us: bytes = b""
    ) -> Call[tuple[Event, WriteResult] | None]:
        """Remove the newest event."""
        keys = self._keys.session(*ids_of(key))

        def decode(replies: list[Any]) -> tuple[Event, WriteResult] | None:
            reply = replies[0]
            if status(reply, key, if_version) == b"EMPTY":
                return None
            with after_write("the event was removed"):
                [event] = decode_log(self._codec, key, keys.events, reply[3:])
            return event, decode_write_result(reply[:3], key, if_version)

        args = self._write_args(key, created_us, if_version)
        return Call("pop_event", decode, SCRIPTS["pop_event"], keys[:3], args, idempotent=False)

    def clear_events(
        self, key: SessionKey, if_version: int | None, created_us: bytes = b""
    ) -> Call[WriteResult]:
        """Remove all events."""
        return Call(
            "clear_events",
            lambda replies: decode_write_result(replies[0], key, if_version),
            SCRIPTS["clear_events"],
            self._keys.session(*ids_of(key))[:3],
            self._write_args(key, created_us, if_version),
            idempotent=False,  # a repeat would remove what was appended after the first attempt
        )

    def replace_newest(
        self,
        key: SessionKey,
        version: int,
        first_kept: int,
        end_kept: int,
        events: Sequence[tuple[bytes, datetime]],
    ) -> Call[WriteResult]:
        """Keep the events from one rank to another, 0 = the oldest, and append new ones."""
        tail = [argument for data, at in events for argument in (data, b"%d" % to_us(at))]
        return Call(
            "replace_newest",
            lambda replies: decode_write_result(replies[0], key, version),
            SCRIPTS["replace_newest"],
            self._keys.session(*ids_of(key))[:3],
            (
                key.session_id.encode(),
                self._session_ttl,
                self._limit,
                self.condition(key, version),
                b"%d" % first_kept,
                b"%d" % end_kept,
                *tail,
            ),
            idempotent=False,  # a repeat would find another version
            is_bulk=sum(len(data) for data, _ in events) > BULK_BYTES,
        )

    # -- turns ---------------------------------------------------------------------------------

    def acquire_turn(
        self,
        key: SessionKey,
        holder: str,
        lease_ms: int,
        created_us: bytes = b"",
        *,
        name: LeaseName = "turn",
    ) -> Call[Turn]:
        """Acquire a session's turn, or another lease of the session."""
        keys = self._keys.session(*ids_of(key))[:3]

        def decode(replies: list[Any]) -> Turn:
            status(replies[0], key)
            token, until_us = decode_numbers(replies[0], 2)
            return Turn(key, token, from_us(until_us))

        lease = (holder.encode(), b"%d" % lease_ms, name.encode())
        args = (key.session_id.encode(), self._session_ttl, created_us, *lease)
        return Call("acquire_turn", decode, SCRIPTS["acquire_turn"], keys, args)

    def renew_turn(self, turn: Turn, lease_ms: int, *, name: LeaseName = "turn") -> Call[Turn]:
        """Extend a turn, or another lease, from now; 0 releases it."""
        keys = self._keys.session(*ids_of(turn.key))[:3]

        def decode(replies: list[Any]) -> Turn:
            status(replies[0], turn.key)
            [until_us] = decode_numbers(replies[0], 1)
            return Turn(turn.key, turn.token, from_us(until_us))

        lease = (b"%d" % turn.token, b"%d" % lease_ms, name.encode())
        args = (turn.key.session_id.encode(), self._session_ttl, *lease)
        return Call("renew_turn", decode, SCRIPTS["renew_turn"], keys, args)

    def free_turn(self, key: SessionKey, created_us: bytes = b"") -> Call[None]:
        """Take a session's turn from its holder, so that it is free."""
        return Call(
            "free_turn",
            lambda replies: _check_ok(replies, key),
            SCRIPTS["free_turn"],
            self._keys.session(*ids_of(key))[:3],
            (key.session_id.encode(), self._session_ttl, created_us),
        )

    # -- state ---------------------------------------------------------------------------------

    def update_session_state(
        self,
        key: SessionKey,
        change: Change,
        if_version: int | None,
        created_us: bytes = b"",
        *,
        if_absent: bool = False,
        read_back: bool = False,
    ) -> Call[WriteResult]:
        """Change state in all tiers. `read_back`: read the values of the keys that are set."""
        keys = self._keys.session(*ids_of(key))
        is_due = self._keeps_tiers and self._is_due(key)
        user, app = self._tiers_named(is_due, change)
        commands = self._read_back_commands(keys, change) if read_back else ()

        def decode(replies: list[Any]) -> WriteResult:
            if is_due:
                written = self._decode_due(key, if_version)(replies)
            else:
                written = decode_write_result(replies[0], key, if_version)
            if not read_back:
                return written
            values = self._decode_read_back(key, keys, change, replies[1:])
            return structs.replace(written, read_back=values)

        return Call(
            "update_session_state",
            decode,
            SCRIPTS["update_session_state"],
            keys[: 3 + user + app],
            (
                key.session_id.encode(),
                self._session_ttl,
                created_us,
                self.condition(key, if_version),
                _flag(if_absent),
                *self._change_args(change, user, app),
            ),
            commands,
            idempotent=if_version is None and not change.increments,
        )

    def change_fields(
        self,
        key: SessionKey,
        compared: Sequence[tuple[bytes, bytes | None]],
        extended: Sequence[tuple[bytes, bytes]],
        delta: Delta,
    ) -> Call[WriteResult]:
        """Change stored fields of the session tier. StaleVersion if a compared one has changed.

        Args:
            key: the session.
            compared: fields, and the stored values that they must have; None = absent.
            extended: fields of raw bytes, and what to add at their end unless they contain it.
            delta: fields to set and to remove.
        """
        args = [key.session_id.encode(), self._session_ttl, self.condition(key)]
        args.append(b"%d" % len(compared))
        for field, value in compared:
            args += (field, b"" if value is None else sha1(value).hexdigest().encode())
        args.append(b"%d" % len(extended))
        for pair in extended:
            args += pair
        return Call(
            "change_fields",
            lambda replies: decode_write_result(replies[0], key, None),
            SCRIPTS["change_fields"],
            self._keys.session(*ids_of(key))[:3],
            (*args, *delta.arguments()),
            is_bulk=sum(len(part) for part in delta.pairs) > BULK_BYTES,
        )

    def read_fields(
        self, key: SessionKey, fields: Sequence[bytes]
    ) -> Call[list[bytes | None] | None]:
        """Read stored fields of the session tier; None without a session."""
        keys = self._keys.session(*ids_of(key))

        def decode(replies: list[Any]) -> list[bytes | None] | None:
            version, *values = replies[-1]
            return None if version is None else values

        commands: tuple[Command, ...] = (("HMGET", keys.session, "version", *fields),)
        is_bulk = len(fields) > _BULK_EVENTS
        return self._read("read_fields", decode, key, keys, commands, is_bulk)

    def read_all_fields(self, key: SessionKey) -> Call[dict[bytes, bytes]]:
        """Read all stored fields of the session tier; empty without a session."""
        keys = self._keys.session(*ids_of(key))

        def decode(replies: list[Any]) -> dict[bytes, bytes]:
            return {name: value for name, value in hash_items(replies[-1]) if name[:1] == b"."}

        commands: tuple[Command, ...] = (("HGETALL", keys.session),)
        return self._read("read_all_fields", decode, key, keys, commands, True)

    def get_user_state(self, app_name: str, user_id: str) -> Call[dict[str, Any]]:
        """Read the user tier."""
        key, ttl_ms = self._keys.user(app_name, user_id).user, self.options.user_state_ttl_ms
        return self._get_tier("get_user_state", TierOwner(app_name, user_id), key, "user", ttl_ms)

    def get_app_state(self, app_name: str, *, touch: bool = True) -> Call[dict[str, Any]]:
        """Read the app tier. `touch`: refresh its TTL if reads do."""
        ttl_ms = self.options.app_state_ttl_ms if touch else 0
        tier = self._keys.app(app_name)
        keep = self._copier(tier)
        return self._get_tier("get_app_state", TierOwner(app_name), tier, "app", ttl_ms, keep)

    def _copier(self, tier: bytes) -> Callable[[Any], None] | None:
        """A function that keeps the reply to a read that begins now; None = no copies."""
        if not self.app_copies:
            return None
        read = self.app_copies.begin()

        def keep(reply: Any) -> None:
            size = sum(len(field) + len(value) for field, value in hash_items(reply))
            self.app_copies.put(tier, read, reply, size)

        return keep

    def update_user_state(
        self, app_name: str, user_id: str, change: Change, *, if_absent: bool = False
    ) -> Call[list[int]]:
        """Change state of the user tier. Returns the new values of increments."""
        tier, ttl = self._keys.user(app_name, user_id).user, self._ttls[1]
        return _update_tier("update_user_state", tier, ttl, change, change.user, if_absent)

    def update_app_state(
        self, app_name: str, change: Change, *, if_absent: bool = False
    ) -> Call[list[int]]:
        """Change state of the app tier. Returns the new values of increments."""
        tier, ttl = self._keys.app(app_name), self._ttls[2]
        return _update_tier("update_app_state", tier, ttl, change, change.app, if_absent)

    def touch_app_tier(self, app_name: str) -> Call[None] | None:
        """Refresh an app tier in its own slot; None if that is not due.

        It is not due again if the Call fails: no append should wait again for a node that is down.
        """
        if not self._apps_in_use.is_due(app_name):
            return None
        self._apps_in_use.note(app_name)
        keys, args = (self._keys.app(app_name),), self._ttls[2:]
        return Call("touch_app_tier", decode_ok, SCRIPTS["touch_tier"], keys, args, writes=False)

    # -- shared --------------------------------------------------------------------------------

    def _read(
        self,
        name: str,
        decode: Callable[[list[Any]], R],
        key: SessionKey,
        keys: SessionKeys,
        commands: tuple[Command, ...],
        is_bulk: bool,
    ) -> Call[R]:
        """A read of a session. If reads refresh TTLs, `touch_session` runs first."""
        if not self._refreshes_on_read:
            return Call(name, decode, commands=commands, writes=False, is_bulk=is_bulk)
        script_keys, args = self.script_keys(keys), (key.session_id.encode(), *self._ttls)
        refresh = (_TOUCH_SESSION, script_keys, args)
        return Call(name, decode, *refresh, commands, writes=False, is_bulk=is_bulk)

    def script_keys(self, keys: SessionKeys) -> tuple[bytes, ...]:
        """The keys that a script on a session and its tiers may use."""
        return keys[:4] if self.app_in_own_slot else keys

    def tier_commands(self, keys: SessionKeys) -> tuple[Command, ...]:
        """The commands that read a session without its events."""
        commands: tuple[Command, ...] = (("HGETALL", keys.session), ("HGETALL", keys.user))
        return commands if self.app_in_own_slot else (*commands, ("HGETALL", keys.app))

    def with_app_tier(self, replies: list[Any]) -> list[Any]:
        """The replies to `tier_commands` and more, with an empty app tier if it was not read."""
        return [*replies[:2], (), *replies[2:]] if self.app_in_own_slot else replies

    def _is_due(self, key: SessionKey) -> bool:
        """Whether a write should refresh the tiers that the session reads."""
        return self._tiers_in_use.is_due((key.app_name, key.user_id))

    def _tiers_named(self, is_due: bool, change: Change) -> tuple[bool, bool]:
        """Whether a call needs the key of the user tier, and of the app tier, which comes last."""
        app = (is_due and self._keeps_app) or (change.changes_app and not self.app_in_own_slot)
        return is_due or app or change.changes_user, app

    def _decode_due(
        self, key: SessionKey, if_version: int | None
    ) -> Callable[[list[Any]], WriteResult]:
        """Decodes the reply to a write that refreshes the tiers of its session, and notes that."""

        def decode(replies: list[Any]) -> WriteResult:
            written = decode_write_result(replies[0], key, if_version)
            if not written.num_duplicates:  # a repeat refreshes nothing
                self._tiers_in_use.note((key.app_name, key.user_id))
            return written

        return decode

    def _create_args(self, key: SessionKey, creation_id: str) -> tuple[bytes, ...]:
        head = (key.session_id.encode(), self._session_ttl, creation_id.encode(), self._limit)
        return (*head, self.data_key)

    def condition(
        self,
        key: SessionKey,
        if_version: int | None = None,
        turn: Turn | None = None,
        name: LeaseName = "turn",
    ) -> bytes:
        """The condition of a write to a session, with the data key of its values."""
        condition = _condition(key, if_version, turn, name)
        return b"%b@%b" % (condition, self.data_key) if self.data_key else condition

    def _write_args(
        self, key: SessionKey, created_us: bytes, if_version: int | None
    ) -> tuple[bytes, ...]:
        return key.session_id.encode(), self._session_ttl, created_us, _version_arg(if_version)

    def _all_tier_args(self, change: Change) -> tuple[bytes, ...]:
        return self._tier_args(change, user=True, app=not self.app_in_own_slot)

    def _change_args(self, change: Change, user: bool, app: bool) -> tuple[bytes, ...]:
        """The same with the increments of the change."""
        return (*change.increment_arguments(), *self._tier_args(change, user, app))

    def _tier_args(self, change: Change, user: bool, app: bool) -> tuple[bytes, ...]:
        """A change as arguments of a script: the tiers whose keys the call has, with their TTLs."""
        _, user_ttl, app_ttl = self._ttls
        args = change.session.arguments()
        if user:
            args += (user_ttl, *change.user.arguments())
        if app:
            args += (app_ttl, *change.app.arguments())
        return args

    def _read_back_commands(self, keys: SessionKeys, change: Change) -> tuple[Command, ...]:
        return tuple(
            ("HMGET", tier_key, *delta.pairs[::2])
            for tier_key, delta, _ in self._set_tiers(keys, change)
        )

    def _decode_read_back(
        self, key: SessionKey, keys: SessionKeys, change: Change, replies: list[Any]
    ) -> dict[str, Any]:
        state: dict[str, Any] = {}
        tiers = self._set_tiers(keys, change)
        for (tier_key, delta, tier), reply in zip(tiers, replies, strict=True):
            pairs = zip(delta.pairs[::2], reply, strict=True)
            fields = [(field, value) for field, value in pairs if value is not None]
            decode_tier(self._codec, key, state, fields, tier_key, tier)
        return state

    def _set_tiers(self, keys: SessionKeys, change: Change) -> list[tuple[bytes, Delta, Tier]]:
        """Key and delta of each tier that a call with these keys sets."""
        tiers: list[tuple[bytes, Delta, Tier]] = [
            (keys.session, change.session, "session"),
            (keys.user, change.user, "user"),
            (keys.app, change.app, "app"),
        ]
        count = 2 if self.app_in_own_slot else 3
        return [each for each in tiers[:count] if each[1].pairs]

    def _get_tier(
        self,
        name: str,
        owner: TierOwner,
        key: bytes,
        tier: Tier,
        ttl_ms: int,
        keep: Callable[[Any], None] | None = None,
    ) -> Call[dict[str, Any]]:
        def decode(replies: list[Any]) -> dict[str, Any]:
            state = decode_state(self._codec, owner, replies[-1], key, tier)
            if keep is not None:
                keep(replies[-1])
            return state

        read: tuple[Command, ...] = (("HGETALL", key),)
        if not (ttl_ms and self.options.refresh_ttl_on_read):
            # A replica may lack a write of this service, which a copy must show.
            return Call(name, decode, commands=read, writes=False, from_primary=keep is not None)
        args = (b"%d" % ttl_ms,)
        return Call(name, decode, SCRIPTS["touch_tier"], (key,), args, read, writes=False)


def _is_bulk(event_num: int | None) -> bool:
    return event_num is None or event_num > _BULK_EVENTS


def ids_of(key: SessionKey) -> tuple[str, str, str]:
    """The arguments of Keys.session."""
    return key.app_name, key.user_id, key.session_id


def log_commands(
    events: bytes, event_num: int | None, event_time: datetime | None, after: int | None = None
) -> tuple[tuple[Command, ...], bool]:
    """The commands that count the events, unless all are read, and read them.

    Returns:
        The commands, and whether the reply has the newest event first.
    """
    if event_num is not None:
        check_int("event_num", event_num, low=0)
    since = None if event_time is None else to_us(check_instant("event_time", event_time))
    if after is not None:
        since = after + 1 if since is None else max(since, after + 1)
    count: Command = ("ZCARD", events)
    if event_num == 0:
        return (count,), False
    if since is not None and event_num is None:
        return (count, ("ZRANGE", events, since, "+inf", "BYSCORE")), False
    if since is not None:
        newest: Command = ("ZRANGE", events, "+inf", since, "BYSCORE", "REV")
        return (count, (*newest, "LIMIT", 0, event_num or 0)), True
    if event_num is not None:
        return (count, ("ZRANGE", events, -event_num, -1)), False
    return (("ZRANGE", events, 0, -1),), False


def _condition(
    key: SessionKey, if_version: int | None, turn: Turn | None, name: LeaseName
) -> bytes:
    if turn is None:
        return _version_arg(if_version)
    if if_version is not None:
        raise InvalidArgument("if_version and turn cannot be given together")
    if turn.key != key:
        raise InvalidArgument("turn belongs to another session")
    return b"%c%d" % (name[0].encode(), turn.token)


def _version_arg(if_version: int | None) -> bytes:
    return b"" if if_version is None else b"%d" % check_int("if_version", if_version, low=0)


def _flag(is_set: bool) -> bytes:
    return b"1" if is_set else b"0"


def _check_ok(replies: list[Any], key: SessionKey) -> None:
    """Check the reply of a write to a session without a result."""
    if status(replies[0], key) != b"OK":
        raise ScriptContractError(f"a script replied {replies[0]!r}")


def _update_tier(
    name: str, tier: bytes, ttl: bytes, change: Change, delta: Delta, if_absent: bool
) -> Call[list[int]]:
    args = (ttl, _flag(if_absent), *change.increment_arguments(), *delta.arguments())
    script = SCRIPTS["update_tier_state"]
    return Call(name, decode_sums, script, (tier,), args, idempotent=not change.increments)
