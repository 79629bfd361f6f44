"""The Calls that change what a session's log holds or shows."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..calls import Call, Command, status
from ..errors import CorruptData
from ..model import Event, Session, SessionKey, Turn
from ..options import check_bool, check_int
from ..replies import (
    WriteResult,
    after_write,
    decode_log,
    decode_numbers,
    decode_session,
    decode_write_result,
    members_with_scores,
)
from ..scripts import SCRIPTS
from ..tiers import Delta
from .base import BULK_BYTES, FIRST_ATTEMPT, BaseOps, LeaseName, flag, ids_of

EVENTS_PER_FORK_LIMIT = 20_000
"""Maximum number of events of a session that is copied."""

EVENTS_AROUND = 32
"""How many events are read on either side of the end of a summary, to check that a turn ends."""


class Compacted(NamedTuple):
    """The result of `compact_session`. Times in microseconds.

    Attributes:
        version: the session's version after the write.
        updated_us: when it was written.
        old_version: its version before.
        summary_us: when the summary was first stored.
        num_covered: how many of the covered events are stored.
        count: how many events are stored.
    """

    version: int
    updated_us: int
    old_version: int
    summary_us: int
    num_covered: int
    count: int  # type: ignore[assignment]  # hides tuple.count


class HistoryOps(BaseOps):
    """Calls that change history."""

    def read_around(
        self, key: SessionKey, position: int
    ) -> Call[tuple[list[Event], list[Event], bool]]:
        """Read events up to a position and after it, and whether one is at the position."""
        keys = self._keys.session(*ids_of(key))
        check_int("upto", position, low=0)
        limit = ("LIMIT", 0, EVENTS_AROUND)
        commands: tuple[Command, ...] = (
            ("HMGET", keys.session, "version"),
            ("ZRANGE", keys.events, position, "-inf", "BYSCORE", "REV", *limit, "WITHSCORES"),
            ("ZRANGE", keys.events, b"(%d" % position, "+inf", "BYSCORE", *limit),
        )

        def decode(replies: list[Any]) -> tuple[list[Event], list[Event], bool]:
            [version], before, after = replies
            if version is None:
                status([b"NOT_FOUND"], key)  # raises SessionNotFound
            entries = members_with_scores(before)
            members = (member for member, _ in reversed(entries))
            events = decode_log(self._codec, key, keys.events, members)
            is_there = bool(entries) and entries[0][1] == position
            return events, decode_log(self._codec, key, keys.events, after), is_there

        return Call("compact_session", decode, commands=commands, writes=False, from_primary=True)

    def compact_session(
        self,
        key: SessionKey,
        upto: int,
        summary: bytes,
        base: int | None,
        drop: bool,
        if_version: int | None,
        turn: Turn | None,
        created_us: bytes,
        lease_name: LeaseName = "turn",
    ) -> Call[Compacted | None]:
        """Store a summary of the events up to a position. None: no event stands there."""

        def decode(replies: list[Any]) -> Compacted | None:
            reply = replies[0]
            if reply == [b"ABSENT"]:
                return None
            status(reply, key, if_version)
            return Compacted(*decode_numbers(reply, 6))

        condition = self.condition(key, if_version, turn, lease_name)
        return Call(
            "compact_session",
            decode,
            SCRIPTS["compact_session"],
            self._keys.session(*ids_of(key))[:3],
            (
                key.session_id.encode(),
                self._session_ttl,
                created_us,
                condition,
                FIRST_ATTEMPT,
                b"%d" % upto,
                b"" if base is None else b"%d" % base,
                flag(check_bool("drop", drop)),
                summary,
            ),
            is_bulk=len(summary) > BULK_BYTES,
            age_argument=4,
        )

    def rewind_session(
        self,
        key: SessionKey,
        position: int,
        state: Delta | None,
        if_version: int | None,
        turn: Turn | None,
        created_us: bytes,
    ) -> Call[tuple[WriteResult, int, int]]:
        """Remove the events after a position, and replace the state.

        Returns how many were removed, and the version before.
        """

        def decode(replies: list[Any]) -> tuple[WriteResult, int, int]:
            status(replies[0], key, if_version)
            version, now_us, num_removed, old_version = decode_numbers(replies[0], 4)
            return WriteResult(version, now_us), num_removed, old_version

        condition = self.condition(key, if_version, turn)
        return Call(
            "rewind_session",
            decode,
            SCRIPTS["rewind_session"],
            self._keys.session(*ids_of(key))[:3],
            (
                key.session_id.encode(),
                self._session_ttl,
                created_us,
                condition,
                b"%d" % (check_int("to", position, low=0) + 1),
                *_state_args(state),
            ),
            idempotent=False,  # a repeat would remove what was appended after the first attempt
        )

    def read_event(self, key: SessionKey, position: int) -> Call[bytes | None]:
        """Read the bytes of the event at a position."""
        keys = self._keys.session(*ids_of(key))
        check_int("position", position, low=0)
        commands: tuple[Command, ...] = (
            ("HMGET", keys.session, "version"),
            ("ZRANGE", keys.events, position, position, "BYSCORE"),
        )

        def decode(replies: list[Any]) -> bytes | None:
            [version], found = replies
            if version is None:
                status([b"NOT_FOUND"], key)  # raises SessionNotFound
            return bytes(found[0]) if found else None

        return Call("read_event", decode, commands=commands, writes=False, from_primary=True)

    def replace_event(
        self,
        key: SessionKey,
        position: int,
        event: bytes,
        new_event: bytes,
        if_version: int | None,
        turn: Turn | None,
        created_us: bytes,
    ) -> Call[WriteResult | None]:
        """Replace an event, or remove it if `new_event` is empty. None: it does not stand there."""

        def decode(replies: list[Any]) -> WriteResult | None:
            if replies[0] == [b"ABSENT"]:
                return None
            return decode_write_result(replies[0], key, if_version)

        condition = self.condition(key, if_version, turn)
        head = (key.session_id.encode(), self._session_ttl, created_us, condition)
        return Call(
            "replace_event" if new_event else "delete_event",
            decode,
            SCRIPTS["replace_event"],
            self._keys.session(*ids_of(key))[:3],
            (*head, b"%d" % position, event, new_event),
            idempotent=False,  # a repeat would not find the event
        )

    def fork_session(
        self,
        key: SessionKey,
        copy: SessionKey,
        creation_id: str,
        position: int | None,
        state: Delta | None,
        if_version: int | None,
        turn: Turn | None,
        created_us: bytes,
    ) -> Call[Session]:
        """Copy a session to a new one, and read that without its events."""
        keys = self._keys.session(*ids_of(key))
        copy_keys = self._keys.session(*ids_of(copy))

        def decode(replies: list[Any]) -> Session:
            reply = replies[0]
            status(reply, copy if reply[:1] == [b"EXISTS"] else key, if_version)
            try:
                return decode_session(self._codec, copy, copy_keys, self.with_app_tier(replies[1:]))
            except CorruptData as error:
                raise after_write(error, "the copy was created") from None

        first = b"" if position is None else b"%d" % (check_int("upto", position, low=0) + 1)
        return Call(
            "fork_session",
            decode,
            SCRIPTS["fork_session"],
            (*keys[:3], *copy_keys[:2], *self.script_keys(keys)[3:]),
            (
                copy.session_id.encode(),
                self._session_ttl,
                created_us,
                self.condition(key, if_version, turn),
                first,
                creation_id.encode(),
                key.session_id.encode(),
                b"%d" % EVENTS_PER_FORK_LIMIT,
                *_state_args(state),
            ),
            (*self.tier_commands(copy_keys), ("ZCARD", copy_keys.events)),
        )


def _state_args(state: Delta | None) -> tuple[bytes, ...]:
    """The state that replaces that of a session; nothing if it stays."""
    return () if state is None else (b"%d" % (len(state.pairs) // 2), *state.pairs)
