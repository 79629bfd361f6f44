"""The Calls that append, read and remove events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ..calls import Call, Command, status
from ..codec import corrupt
from ..errors import CorruptData
from ..model import Event, EventPage, SessionKey, Turn
from ..options import check_bool, check_int
from ..replies import (
    WriteResult,
    after_write,
    check_count,
    check_no_events,
    decode_log,
    decode_write_result,
    members_with_scores,
)
from ..scripts import SCRIPTS
from ..tiers import NO_CHANGE, Change
from ..times import to_us
from .base import BULK_BYTES, FIRST_ATTEMPT, BaseOps, ids_of, reads_many, version_arg

EVENTS_PER_CALL_LIMIT = 500
"""Maximum number of events in one append."""

EVENTS_PER_PAGE_LIMIT = 10_000
"""Maximum number of events on one page of the log."""

_APPEND_EVENT = SCRIPTS["append_event"]


class EventOps(BaseOps):
    """Calls on events."""

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
        condition = self.condition(key, if_version, turn)
        is_due = self._is_due(key)
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
        is_due = self._is_due(key)
        tiers_of = [self._tiers_named(is_due, change) for _, _, change in events]
        user, app = any(user for user, _ in tiers_of), any(app for _, app in tiers_of)
        keys = self._keys.session(*ids_of(key))[: 3 + user + app]
        args = [
            key.session_id.encode(),
            self._session_ttl,
            created_us,
            self._limit,
            self.condition(key, if_version, turn),
            FIRST_ATTEMPT,
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

        return self._read("get_events", decode, key, keys, commands, reads_many(limit))

    def pop_event(
        self, key: SessionKey, if_version: int | None, created_us: bytes = b""
    ) -> Call[tuple[Event, WriteResult] | None]:
        """Remove the newest event."""
        keys = self._keys.session(*ids_of(key))

        def decode(replies: list[Any]) -> tuple[Event, WriteResult] | None:
            reply = replies[0]
            if status(reply, key, if_version) == b"EMPTY":
                return None
            try:
                [event] = decode_log(self._codec, key, keys.events, reply[3:])
            except CorruptData as error:
                raise after_write(error, "the event was removed") from None
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

    def _write_args(
        self, key: SessionKey, created_us: bytes, if_version: int | None
    ) -> tuple[bytes, ...]:
        return key.session_id.encode(), self._session_ttl, created_us, version_arg(if_version)
