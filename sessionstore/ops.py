"""One pure function per operation: typed arguments -> Call.

A write is a Lua script. A read is a transaction of plain commands, because Lua is slow with large
replies. If reads refresh TTLs, a small script runs first in the same transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal

from .calls import Argument, Call, Command, R, status
from .codec import corrupt
from .errors import InvalidArgument, LimitExceeded, ScriptContractError
from .keys import SessionKeys, encode_id
from .model import Event, EventPage, Session, SessionKey, Turn
from .options import Options, check_instant, check_int
from .replies import (
    WriteResult,
    check_count,
    check_no_events,
    decode_count,
    decode_log,
    decode_ok,
    decode_session,
    decode_write_result,
    hash_items,
    members_with_scores,
)
from .scripts import SCRIPTS
from .tiers import NO_CHANGE, Change, Delta, decode_tier
from .times import from_us, to_us

EVENTS_PER_CALL_LIMIT = 500
"""Maximum number of events in one append."""

SESSIONS_PER_PAGE_LIMIT = 1000
"""Maximum number of sessions on one page of a list."""

EVENTS_PER_PAGE_LIMIT = 10_000
"""Maximum number of events on one page of the log."""

_KEYS_PER_SCAN = 1000
_BULK_EVENTS = 100  # reading more events than this is bulk
_BULK_BYTES = 1 << 17  # writing more bytes than this is bulk

CreatedUs = int | Literal[""]
"""When the session was created, in microseconds: it must be that one; "" = any session."""

_FIRST_ATTEMPT = b"0"  # its age; see Call.age_argument

_APPEND_EVENT = SCRIPTS["append_event"]
_TOUCH_SESSION = SCRIPTS["touch_session"]


class Ops:
    """Builds the Calls of one service.

    Args:
        options: the service's options.
        app_in_own_slot: the app tier has a cluster slot of its own, so that no script may use it
            together with a user's keys. Calls on a session leave it out, and flows.py reads and
            writes it with Calls of its own.
    """

    def __init__(self, options: Options, *, app_in_own_slot: bool = False) -> None:
        self.options = options
        self.app_in_own_slot = app_in_own_slot
        self._keys = options.keys
        # In the order in which all scripts take them.
        self._ttls = (options.session_ttl_ms, options.user_state_ttl_ms, options.app_state_ttl_ms)
        self._refreshes_on_read = options.refresh_ttl_on_read and options.any_ttl
        limit = options.session_event_limit
        self._limit = "" if limit is None else limit

    # -- sessions ------------------------------------------------------------------------------

    def create_session(self, key: SessionKey, creation_id: str, change: Change) -> Call[Session]:
        """Create a session and read it."""
        keys = self._keys.session(*_ids(key))

        def decode(replies: list[Any]) -> Session:
            status(replies[0], key)
            return decode_session(key, keys, self._with_app_tier(replies[1:]))

        return Call(
            "create_session",
            decode,
            SCRIPTS["create_session"],
            self._script_keys(keys),
            (key.session_id, self._ttls[0], creation_id, self._limit, *self._all_tier_args(change)),
            self._read_commands(keys, None),
        )

    def get_or_create_session(
        self,
        key: SessionKey,
        creation_id: str,
        change: Change,
        event_num: int | None,
        event_time: datetime | None,
    ) -> Call[tuple[Session, bool]]:
        """Create a session unless it exists, and read it. True if it was created."""
        keys = self._keys.session(*_ids(key))
        events, newest_first = _range_command(keys.events, event_num, event_time)
        refresh = "1" if self.options.refresh_ttl_on_read else "0"
        session_ttl_ms, user_ttl_ms, app_ttl_ms = self._ttls
        head = (key.session_id, session_ttl_ms, creation_id, self._limit)
        ttls = (refresh, user_ttl_ms, app_ttl_ms)

        def decode(replies: list[Any]) -> tuple[Session, bool]:
            is_new = status(replies[0], key) == b"CREATED"
            return decode_session(key, keys, self._with_app_tier(replies[1:]), newest_first), is_new

        return Call(
            "get_or_create_session",
            decode,
            SCRIPTS["get_or_create_session"],
            self._script_keys(keys),
            (*head, *ttls, *self._all_tier_args(change)),
            self._read_commands(keys, events),
            is_bulk=_is_bulk(event_num),
        )

    def get_session(
        self, key: SessionKey, event_num: int | None, event_time: datetime | None
    ) -> Call[Session | None]:
        """Read a session: header, merged state, events."""
        keys = self._keys.session(*_ids(key))
        events, newest_first = _range_command(keys.events, event_num, event_time)

        def decode(replies: list[Any]) -> Session | None:
            if self._refreshes_on_read:
                replies = replies[1:]
            parts = self._with_app_tier(replies)
            if not parts[0]:
                check_no_events(keys, parts[3] if events else 0)
                return None
            return decode_session(key, keys, parts, newest_first)

        commands = self._read_commands(keys, events)
        return self._read("get_session", decode, key, keys, commands, _is_bulk(event_num))

    def get_events(
        self, key: SessionKey, after: int | None, before: int | None, limit: int
    ) -> Call[EventPage]:
        """Read a page of a session's log."""
        check_int("limit", limit, low=1, high=EVENTS_PER_PAGE_LIMIT)
        low = b"-inf" if after is None else b"(%d" % check_int("after", after, low=0)
        high = b"+inf" if before is None else b"(%d" % check_int("before", before, low=0)
        backward = after is None and before is not None
        keys = self._keys.session(*_ids(key))
        bounds = (high, low, "BYSCORE", "REV") if backward else (low, high, "BYSCORE")
        commands: tuple[Command, ...] = (
            ("HMGET", keys.session, "version", "count"),
            ("ZCARD", keys.events),
            ("ZRANGE", keys.events, *bounds, "LIMIT", 0, limit, "WITHSCORES"),
        )

        def decode(replies: list[Any]) -> EventPage:
            (version, count), num_events, found = replies[-3:]
            if version is None:
                check_no_events(keys, num_events)
                status([b"NOT_FOUND"], key)
            check_count(keys, count, num_events)
            try:
                entries = members_with_scores(found)
            except (ValueError, OverflowError) as error:  # a score is not finite
                raise corrupt(keys.events, error) from None
            if backward:
                entries.reverse()
            cursor = after if after is not None else before
            return EventPage(
                decode_log(keys.events, (member for member, _ in entries)),
                entries[0][1] if entries else cursor,
                entries[-1][1] if entries else cursor,
            )

        return self._read("get_events", decode, key, keys, commands, _is_bulk(limit))

    def list_session_ids(
        self, app_name: str, user_id: str, limit: int, offset: int
    ) -> Call[list[str]]:
        """Ids of a page of a user's sessions, last updated first, including expired ones."""
        check_int("limit", limit, low=1, high=SESSIONS_PER_PAGE_LIMIT)
        check_int("offset", offset, low=0)
        index = self._keys.user(app_name, user_id).session_index

        def decode(replies: list[Any]) -> list[str]:
            try:
                names = [member.decode() for member in replies[0]]
                for name in names:
                    encode_id("session_id", name)
            except ValueError as error:
                raise corrupt(index, error) from None
            return names

        page: Command = ("ZRANGE", index, offset, offset + limit - 1, "REV")
        return Call("list_sessions", decode, commands=(page,), writes=False)

    def list_sessions(
        self, app_name: str, user_id: str, ids: Sequence[str], event_num: int
    ) -> Call[list[Session | None]]:
        """Read sessions by id; None for a session that has expired."""
        check_int("event_num", event_num, low=0)
        user = self._keys.user(app_name, user_id)
        sessions = [self._keys.session(app_name, user_id, name) for name in ids]
        commands: list[Command] = [("HGETALL", user.user)]
        if not self.app_in_own_slot:
            commands.append(("HGETALL", user.app))
        first = len(commands)
        for keys in sessions:
            commands.append(("HGETALL", keys.session))
            if event_num:
                commands += (("ZCARD", keys.events), ("ZRANGE", keys.events, -event_num, -1))
        step = 3 if event_num else 1

        def decode(replies: list[Any]) -> list[Session | None]:
            found: list[Session | None] = []
            for number, (name, keys) in enumerate(zip(ids, sessions, strict=True)):
                at = first + number * step
                if not replies[at]:
                    found.append(None)
                    continue
                parts = [replies[at], *replies[:first], *replies[at + 1 : at + step]]
                key = SessionKey(app_name, user_id, name)
                found.append(decode_session(key, keys, self._with_app_tier(parts)))
            return found

        is_bulk = _is_bulk(event_num * len(ids))
        return Call(
            "list_sessions", decode, commands=tuple(commands), writes=False, is_bulk=is_bulk
        )

    @staticmethod
    def list_primaries() -> Call[list[int]]:
        """One slot of every primary of the cluster."""

        def decode(replies: list[Any]) -> list[int]:
            first = {tuple(primary[:3]): slot for slot, _, primary, *_ in replies[0]}
            return sorted(first.values())

        command: Command = ("CLUSTER", "SLOTS")
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

        command: Command = (
            *("SCAN", cursor, "MATCH", pattern.glob),
            *("COUNT", _KEYS_PER_SCAN, "TYPE", "zset"),
        )
        place = self._keys.app(app_name) if slot is None else slot
        return Call("list_users", decode, commands=(command,), writes=False, slot=place)

    def prune_index(self, app_name: str, user_id: str, ids: Sequence[str]) -> Call[int]:
        """Remove expired sessions from the index and count them."""
        index = self._keys.user(app_name, user_id).session_index
        sessions = (self._keys.session(app_name, user_id, name).session for name in ids)
        keys = (index, *sessions)
        script = SCRIPTS["prune_index"]
        return Call("prune_index", decode_count, script, keys, tuple(ids))

    def delete_session(self, key: SessionKey) -> Call[None]:
        """Delete a session and its events."""
        return Call(
            "delete_session",
            lambda replies: _check_ok(replies, key),
            SCRIPTS["delete_session"],
            self._keys.session(*_ids(key))[:3],
            (key.session_id, _FIRST_ATTEMPT),
            age_argument=1,
        )

    def repair_session(self, key: SessionKey) -> Call[Session]:
        """Accept what is left of a session, and read it."""
        keys = self._keys.session(*_ids(key))
        events, _ = _range_command(keys.events, None, None)

        def decode(replies: list[Any]) -> Session:
            status(replies[0], key)
            return decode_session(key, keys, self._with_app_tier(replies[1:]))

        return Call(
            "repair_session",
            decode,
            SCRIPTS["repair_session"],
            self._script_keys(keys),
            (key.session_id, self.options.session_ttl_ms, self._limit),
            self._read_commands(keys, events),
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
        created_us: CreatedUs = "",
    ) -> Call[WriteResult]:
        """Append one encoded event with its state change."""
        user = app = False
        tiers: tuple[Argument, ...] = ()
        if change is not NO_CHANGE:
            user, app = self._tiers_changed(change)
            tiers = self._tier_args(change, user, app)
        return Call(
            "append_event",
            lambda replies: decode_write_result(replies[0], key, if_version),
            _APPEND_EVENT,
            self._keys.session(*_ids(key))[: 3 + user + app],
            (
                key.session_id,
                self.options.session_ttl_ms,
                created_us,
                self._limit,
                _condition_arg(key, if_version, turn),
                _FIRST_ATTEMPT,
                data,
                to_us(timestamp),
                *tiers,
            ),
            age_argument=5,
            is_bulk=len(data) > _BULK_BYTES,
        )

    def append_events(
        self,
        key: SessionKey,
        events: Sequence[tuple[bytes, datetime, Change]],
        if_version: int | None,
        turn: Turn | None,
        created_us: CreatedUs = "",
    ) -> Call[WriteResult]:
        """Append events in order: the bytes, timestamp and state change of each."""
        if len(events) > EVENTS_PER_CALL_LIMIT:
            message = f"events has {len(events)} items; at most {EVENTS_PER_CALL_LIMIT} are allowed"
            raise LimitExceeded(message, limit=EVENTS_PER_CALL_LIMIT, actual=len(events))
        tiers_of = [self._tiers_changed(change) for _, _, change in events]
        user, app = any(user for user, _ in tiers_of), any(app for _, app in tiers_of)
        args: list[Argument] = [
            key.session_id,
            self.options.session_ttl_ms,
            created_us,
            self._limit,
            _condition_arg(key, if_version, turn),
            _FIRST_ATTEMPT,
        ]
        for data, timestamp, change in events:
            tiers = () if change is NO_CHANGE else self._tier_args(change, user, app)
            args += (data, to_us(timestamp), len(tiers), *tiers)
        return Call(
            "append_events",
            lambda replies: decode_write_result(replies[0], key, if_version),
            SCRIPTS["append_events"],
            self._keys.session(*_ids(key))[: 3 + user + app],
            tuple(args),
            age_argument=5,
            is_bulk=sum(len(data) for data, _, _ in events) > _BULK_BYTES,
        )

    def pop_event(
        self, key: SessionKey, if_version: int | None, created_us: CreatedUs = ""
    ) -> Call[tuple[Event, WriteResult] | None]:
        """Remove the newest event."""
        keys = self._keys.session(*_ids(key))

        def decode(replies: list[Any]) -> tuple[Event, WriteResult] | None:
            reply = replies[0]
            if status(reply, key, if_version) == b"EMPTY":
                return None
            [event] = decode_log(keys.events, reply[3:])
            return event, decode_write_result(reply[:3], key, if_version)

        args = (key.session_id, self.options.session_ttl_ms, created_us, _version_arg(if_version))
        return Call("pop_event", decode, SCRIPTS["pop_event"], keys[:3], args, idempotent=False)

    def clear_events(
        self, key: SessionKey, if_version: int | None, created_us: CreatedUs = ""
    ) -> Call[WriteResult]:
        """Remove all events."""
        return Call(
            "clear_events",
            lambda replies: decode_write_result(replies[0], key, if_version),
            SCRIPTS["clear_events"],
            self._keys.session(*_ids(key))[:3],
            (key.session_id, self.options.session_ttl_ms, created_us, _version_arg(if_version)),
            idempotent=False,  # a repeat would remove what was appended after the first attempt
        )

    # -- turns ---------------------------------------------------------------------------------

    def acquire_turn(
        self, key: SessionKey, holder: str, lease_ms: int, created_us: CreatedUs = ""
    ) -> Call[Turn]:
        """Acquire a session's turn."""
        keys = self._keys.session(*_ids(key))[:3]

        def decode(replies: list[Any]) -> Turn:
            status(replies[0], key)
            return Turn(key, replies[0][1], from_us(replies[0][2]))

        args = (key.session_id, self.options.session_ttl_ms, created_us, holder, lease_ms)
        return Call("acquire_turn", decode, SCRIPTS["acquire_turn"], keys, args)

    def renew_turn(self, turn: Turn, lease_ms: int) -> Call[Turn]:
        """Extend a turn's lease from now; 0 releases the turn."""
        keys = self._keys.session(*_ids(turn.key))[:3]

        def decode(replies: list[Any]) -> Turn:
            status(replies[0], turn.key)
            return Turn(turn.key, turn.token, from_us(replies[0][1]))

        args = (turn.key.session_id, self.options.session_ttl_ms, turn.token, lease_ms)
        return Call("renew_turn", decode, SCRIPTS["renew_turn"], keys, args)

    # -- state ---------------------------------------------------------------------------------

    def update_session_state(
        self,
        key: SessionKey,
        change: Change,
        if_version: int | None,
        created_us: CreatedUs = "",
    ) -> Call[WriteResult]:
        """Set and remove state in all tiers."""
        user, app = self._tiers_changed(change)
        return Call(
            "update_session_state",
            lambda replies: decode_write_result(replies[0], key, if_version),
            SCRIPTS["update_session_state"],
            self._keys.session(*_ids(key))[: 3 + user + app],
            (
                key.session_id,
                self.options.session_ttl_ms,
                created_us,
                _version_arg(if_version),
                *self._tier_args(change, user, app),
            ),
            idempotent=if_version is None,
        )

    def get_user_state(self, app_name: str, user_id: str) -> Call[dict[str, Any]]:
        """Read the user tier."""
        tier = self._keys.user(app_name, user_id).user
        return self._get_tier("get_user_state", tier, self.options.user_state_ttl_ms)

    def get_app_state(self, app_name: str, *, touch: bool = True) -> Call[dict[str, Any]]:
        """Read the app tier. `touch`: refresh its TTL if reads do."""
        ttl_ms = self.options.app_state_ttl_ms if touch else 0
        return self._get_tier("get_app_state", self._keys.app(app_name), ttl_ms)

    def update_user_state(self, app_name: str, user_id: str, delta: Delta) -> Call[None]:
        """Set and remove state of the user tier."""
        tier = self._keys.user(app_name, user_id).user
        return _update_tier("update_user_state", tier, self.options.user_state_ttl_ms, delta)

    def update_app_state(self, app_name: str, delta: Delta) -> Call[None]:
        """Set and remove state of the app tier."""
        tier = self._keys.app(app_name)
        return _update_tier("update_app_state", tier, self.options.app_state_ttl_ms, delta)

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
        if not self._refreshes_on_read:
            return Call(name, decode, commands=commands, writes=False, is_bulk=is_bulk)
        script_keys, args = self._script_keys(keys), (key.session_id, *self._ttls)
        refresh = (_TOUCH_SESSION, script_keys, args)
        return Call(name, decode, *refresh, commands, writes=False, is_bulk=is_bulk)

    def _script_keys(self, keys: SessionKeys) -> tuple[bytes, ...]:
        return keys[:4] if self.app_in_own_slot else keys

    def _read_commands(self, keys: SessionKeys, events: Command | None) -> tuple[Command, ...]:
        commands: tuple[Command, ...] = (("HGETALL", keys.session), ("HGETALL", keys.user))
        if not self.app_in_own_slot:
            commands += (("HGETALL", keys.app),)
        return (*commands, ("ZCARD", keys.events), events) if events else commands

    def _with_app_tier(self, replies: list[Any]) -> list[Any]:
        """The replies to `_read_commands`, with an empty app tier if it was not read."""
        return [*replies[:2], (), *replies[2:]] if self.app_in_own_slot else replies

    def _tiers_changed(self, change: Change) -> tuple[bool, bool]:
        """Whether a call needs the key of the user tier, and of the app tier, which comes last."""
        app = bool(change.app) and not self.app_in_own_slot
        return app or bool(change.user), app

    def _all_tier_args(self, change: Change) -> tuple[Argument, ...]:
        return self._tier_args(change, user=True, app=not self.app_in_own_slot)

    def _tier_args(self, change: Change, user: bool, app: bool) -> tuple[Argument, ...]:
        """A change as arguments of a script: the tiers whose keys the call has, with their TTLs."""
        _, user_ttl_ms, app_ttl_ms = self._ttls
        args = change.session.arguments()
        if user:
            args += (user_ttl_ms, *change.user.arguments())
        if app:
            args += (app_ttl_ms, *change.app.arguments())
        return args

    def _get_tier(self, name: str, tier: bytes, ttl_ms: int) -> Call[dict[str, Any]]:
        def decode(replies: list[Any]) -> dict[str, Any]:
            state: dict[str, Any] = {}
            decode_tier(state, hash_items(replies[-1]), tier)
            return state

        read: tuple[Command, ...] = (("HGETALL", tier),)
        if not (ttl_ms and self.options.refresh_ttl_on_read):
            return Call(name, decode, commands=read, writes=False)
        return Call(name, decode, SCRIPTS["touch_tier"], (tier,), (ttl_ms,), read, writes=False)


def _is_bulk(event_num: int | None) -> bool:
    return event_num is None or event_num > _BULK_EVENTS


def _ids(key: SessionKey) -> tuple[str, str, str]:
    return key.app_name, key.user_id, key.session_id


def _range_command(
    events: bytes, event_num: int | None, event_time: datetime | None
) -> tuple[Command | None, bool]:
    """The command that reads events, or None for no events; whether the newest comes first."""
    if event_num is not None:
        check_int("event_num", event_num, low=0)
    if event_time is None:
        newest: Command = ("ZRANGE", events, -event_num if event_num else 0, -1)
        return (None if event_num == 0 else newest), False
    since = to_us(check_instant("event_time", event_time))
    if event_num is None:
        return ("ZRANGE", events, since, "+inf", "BYSCORE"), False
    if event_num == 0:
        return None, False
    return ("ZRANGE", events, "+inf", since, "BYSCORE", "REV", "LIMIT", 0, event_num), True


def _condition_arg(key: SessionKey, if_version: int | None, turn: Turn | None) -> str | int:
    if turn is None:
        return _version_arg(if_version)
    if if_version is not None:
        raise InvalidArgument("if_version and turn cannot be given together")
    if turn.key != key:
        raise InvalidArgument("turn belongs to another session")
    return f"t{turn.token}"


def _version_arg(if_version: int | None) -> str | int:
    return "" if if_version is None else check_int("if_version", if_version, low=0)


def _check_ok(replies: list[Any], key: SessionKey) -> None:
    """Check the reply of a write to a session without a result."""
    if status(replies[0], key) != b"OK":
        raise ScriptContractError(f"a script replied {replies[0]!r}")


def _update_tier(name: str, tier: bytes, ttl_ms: int, delta: Delta) -> Call[None]:
    args = (ttl_ms, *delta.arguments())
    return Call(name, decode_ok, SCRIPTS["update_tier_state"], (tier,), args)
