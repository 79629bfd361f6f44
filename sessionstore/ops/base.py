"""What the topics share: the options of a service, keys, arguments of scripts, reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy
from datetime import datetime
from typing import Any, Literal, Self

from msgspec import structs

from ..app_copies import AppCopies
from ..calls import Call, Command, R, status
from ..data_keys import DataKey, UserEncryption
from ..errors import InvalidArgument, ScriptContractError
from ..keys import SessionKeys
from ..model import SessionKey, Turn
from ..options import Options, check_instant, check_int
from ..replies import WriteResult, decode_write_result
from ..scripts import SCRIPTS
from ..summaries import Summaries
from ..tier_refreshes import TierRefreshes
from ..tiers import Change
from ..times import to_us

LeaseName = Literal["turn", "compactor"]
"""The leases of a session: who may append to it, and who summarizes it."""

BULK_BYTES = 1 << 17
"""A Call that writes more bytes than this is bulk."""

BULK_EVENTS = 100  # reading more events than this is bulk
FIRST_ATTEMPT = b""  # has no age; see Call.age_argument
_TOUCH_SESSION = SCRIPTS["touch_session"]


class BaseOps:
    """The base class of all topics.

    Args:
        options: the service's options.
        app_in_own_slot: the app tier has a cluster slot of its own, so that no script may use it
            together with a user's keys. Calls on a session leave it out, and flows read and write
            it with Calls of its own.
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
        self._unbound: Self | None = None
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
        self._tier_refreshes = TierRefreshes((options.user_state_ttl_ms, with_user), clock)
        self._app_refreshes = TierRefreshes((alone,), clock)
        max_age_s = options.app_state_max_age_ms / 1000 if app_in_own_slot else 0.0
        if app_ttl_ms and options.refresh_ttl_on_read:
            max_age_s = min(max_age_s, app_ttl_ms / 64_000)  # then a read has to refresh the TTL
        self.app_copies = AppCopies(max_age_s, clock)
        self._keeps_app = with_user > 0
        self.summaries = Summaries()

    @property
    def unbound(self) -> Self:
        """The Ops that these were bound from, or these."""
        return self if self._unbound is None else self._unbound

    def bound_to(self, data_key: DataKey | None, written: list[bytes] | None = None) -> Self:
        """The Ops that encrypt what belongs to a user with a data key; None = do not encrypt.

        `written` receives keys and values of the user tier that they encrypt.
        """
        if (
            written is None
            and data_key is not None
            and data_key.ops is not None
            and data_key.ops.unbound is self
        ):
            bound: Self = data_key.ops
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

    def _is_due(self, key: SessionKey) -> bool:
        """Whether a write should refresh the tiers that the session reads."""
        return self._tier_refreshes.is_due((key.app_name, key.user_id))

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
                self._tier_refreshes.note((key.app_name, key.user_id))
            return written

        return decode

    def _change_args(self, change: Change, user: bool, app: bool) -> tuple[bytes, ...]:
        """The increments of a change, then `_tier_args`, as arguments of a script."""
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


def reads_many(event_num: int | None) -> bool:
    return event_num is None or event_num > BULK_EVENTS


def flag(is_set: bool) -> bytes:
    return b"1" if is_set else b"0"


def check_ok(replies: list[Any], key: SessionKey) -> None:
    """Check the reply of a write to a session without a result."""
    if status(replies[0], key) != b"OK":
        raise ScriptContractError(f"a script replied {replies[0]!r}")


def _condition(
    key: SessionKey, if_version: int | None, turn: Turn | None, name: LeaseName
) -> bytes:
    if turn is None:
        return version_arg(if_version)
    if if_version is not None:
        raise InvalidArgument("if_version and turn cannot be given together")
    if turn.key != key:
        raise InvalidArgument("turn belongs to another session")
    return b"%c%d" % (name[0].encode(), turn.token)


def version_arg(if_version: int | None) -> bytes:
    return b"" if if_version is None else b"%d" % check_int("if_version", if_version, low=0)
