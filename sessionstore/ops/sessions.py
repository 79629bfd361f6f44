"""The Calls that create, read, check, delete and repair a session."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ..calls import Call, status
from ..errors import CorruptData
from ..model import Session, SessionKey, Turn
from ..replies import after_write, check_no_events, decode_ids_to_check, decode_session
from ..scripts import SCRIPTS
from ..tiers import Change
from .base import (
    BULK_BYTES,
    FIRST_ATTEMPT,
    BaseOps,
    check_ok,
    flag,
    ids_of,
    log_commands,
    reads_many,
)


class SessionOps(BaseOps):
    """Calls on one session."""

    def create_session(
        self, key: SessionKey, creation_id: str, change: Change
    ) -> Call[tuple[Session, list[bytes]]]:
        """Create a session and read it. Also returns ids that `prune_index` should check."""
        keys = self._keys.session(*ids_of(key))

        def decode(replies: list[Any]) -> tuple[Session, list[bytes]]:
            status(replies[0], key)
            try:
                session = decode_session(self._codec, key, keys, self.with_app_tier(replies[1:]))
            except CorruptData as error:
                raise after_write(error, "the session was created") from None
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
        ttls = (flag(self.options.refresh_ttl_on_read), *self._ttls[1:])

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
            is_bulk=reads_many(event_num),
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
        return self._read("get_session", decode, key, keys, commands, reads_many(event_num))

    def delete_session(self, key: SessionKey, data_key: str = "") -> Call[None]:
        """Delete a session and its events; only if it has this data key, if one is given."""
        return Call(
            "delete_session",
            lambda replies: check_ok(replies, key),
            SCRIPTS["delete_session"],
            self._keys.session(*ids_of(key))[:3],
            (key.session_id.encode(), FIRST_ATTEMPT, data_key.encode()),
            age_argument=1,
        )

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

    def _create_args(self, key: SessionKey, creation_id: str) -> tuple[bytes, ...]:
        head = (key.session_id.encode(), self._session_ttl, creation_id.encode(), self._limit)
        return (*head, self.data_key)

    def _all_tier_args(self, change: Change) -> tuple[bytes, ...]:
        return self._tier_args(change, user=True, app=not self.app_in_own_slot)
