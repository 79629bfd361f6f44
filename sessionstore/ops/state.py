"""The Calls that read and change state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Any

from msgspec import structs

from ..calls import Call, Command
from ..keys import SessionKeys
from ..model import SessionKey
from ..replies import (
    SharedState,
    WriteResult,
    decode_ok,
    decode_shared_app_state,
    decode_state,
    decode_sums,
    decode_write_result,
    hash_items,
)
from ..scripts import SCRIPTS
from ..tiers import Change, Delta, Tier, decode_tier
from ..transform import TierOwner
from .base import BULK_BYTES, BULK_EVENTS, BaseOps, flag, ids_of


class StateOps(BaseOps):
    """Calls on state."""

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
        is_due = self._is_due(key)
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
                flag(if_absent),
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
        is_bulk = len(fields) > BULK_EVENTS
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
        if not self._app_refreshes.is_due(app_name):
            return None
        self._app_refreshes.note(app_name)
        keys, args = (self._keys.app(app_name),), self._ttls[2:]
        return Call("touch_app_tier", decode_ok, SCRIPTS["touch_tier"], keys, args, writes=False)

    def _copier(self, tier: bytes) -> Callable[[Any], None] | None:
        """A function that keeps the reply to a read that begins now; None = no copies."""
        if not self.app_copies:
            return None
        read = self.app_copies.begin()

        def keep(reply: Any) -> None:
            size = sum(len(field) + len(value) for field, value in hash_items(reply))
            self.app_copies.put(tier, read, reply, size)

        return keep

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


def _update_tier(
    name: str, tier: bytes, ttl: bytes, change: Change, delta: Delta, if_absent: bool
) -> Call[list[int]]:
    args = (ttl, flag(if_absent), *change.increment_arguments(), *delta.arguments())
    script = SCRIPTS["update_tier_state"]
    return Call(name, decode_sums, script, (tier,), args, idempotent=not change.increments)
