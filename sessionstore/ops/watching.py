"""The Calls that watch a session."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from ..calls import Call, Command, status
from ..codec import corrupt
from ..errors import ScriptContractError
from ..keys import SessionKeys
from ..model import Event, SessionKey
from ..replies import check_count, decode_log, members_with_scores
from ..scripts import SCRIPTS
from .base import BaseOps, ids_of
from .stream import Fragment, decode_stream

EVENTS_PER_READ = 100
"""How many events a watcher reads at once, at most."""

_HEADER = ("version", "created_us", "last_us", "changes")
_SUMMARY = ("compacted_us", "covered", "summary_events")
_OLD_LIMIT = 1000  # of a session of release 0.1.0, which did not store it


class Change(NamedTuple):
    """A part of the log that was changed, as the header stores it.

    Attributes:
        version: the session's version after the change.
        first: the first position that may have been changed.
        last: the last one.
    """

    version: int
    first: int
    last: int


class Head(msgspec.Struct, frozen=True):
    """The header fields that watchers compare.

    Attributes:
        version: of the session.
        created_us: when it was created.
        last_us: the position of the last event that was appended.
        changes: the last changes of older parts of the log, oldest first.
    """

    version: int
    created_us: int
    last_us: int
    changes: list[Change]

    @property
    def change(self) -> int:
        """The version of the last change; 0 = no change so far."""
        return self.changes[-1].version if self.changes else 0


class LogRead(msgspec.Struct, frozen=True):
    """A part of a log, read in one step.

    Attributes:
        head: the header.
        entries: events with their positions, oldest first; fewer than EVENTS_PER_READ at the end.
        trimmed_us: the position of the newest event that was trimmed since a process watches.
        oldest: the position of the oldest event of the log; None = it is empty.
        is_full: the log holds as many events as it may, or did before.
        dropped_us: where the summary ends, if events that it covers are gone; otherwise 0.
        fragments: the fragments after a sequence, if they were asked for; obsolete ones, too.
    """

    head: Head
    entries: list[tuple[int, Event]]
    trimmed_us: int
    oldest: int | None
    is_full: bool
    dropped_us: int
    fragments: list[Fragment]


class WatchingOps(BaseOps):
    """Calls of watchers."""

    def listen_session(self, key: SessionKey, lease_ms: int) -> Call[Head | None]:
        """Let writes to a session publish messages for some time; None without a session."""
        keys = self._keys.session(*ids_of(key))

        def decode(replies: list[Any]) -> Head | None:
            if replies[0] == [b"NOT_FOUND"]:
                return None
            if status(replies[0], key) != b"OK" or len(replies[0]) != 5:
                raise ScriptContractError(f"a script replied {replies[0]!r}")
            return _head(keys, replies[0][1:])

        script, args = SCRIPTS["listen_session"], (b"%d" % lease_ms,)
        return Call("listen_session", decode, script, keys[:2], args, writes=False)

    def read_head(self, key: SessionKey) -> Call[Head | None]:
        """Read the header fields that watchers compare; None without a session."""
        keys = self._keys.session(*ids_of(key))

        def decode(replies: list[Any]) -> Head | None:
            return None if replies[0][0] is None else _head(keys, replies[0])

        command: Command = ("HMGET", keys.session, *_HEADER)
        return Call("watch_events", decode, commands=(command,), writes=False, from_primary=True)

    def read_log(
        self, key: SessionKey, after: int, *, is_first: bool = False, sequence: int = -1
    ) -> Call[LogRead | None]:
        """Read the header and the events after a position; None without a session.

        Args:
            key: the session.
            after: the position.
            is_first: also let the session remember changes of old events, before it is read.
            sequence: also read the fragments after this sequence; negative = no fragments.
        """
        keys = self._keys.session(*ids_of(key))
        commands: tuple[Command, ...] = (
            (
                "HMGET",
                keys.session,
                *_HEADER,
                "removed_us",
                "count",
                "event_limit",
                "trimmed_us",
                "flags",
                *_SUMMARY,
            ),
            ("ZCARD", keys.events),
            ("ZRANGE", keys.events, 0, 0, "WITHSCORES"),
            _range(keys, b"(%d" % after, "+inf"),
        )
        if sequence >= 0:
            bounds = (b"(%d" % sequence, "+inf", "BYSCORE", "WITHSCORES")
            commands = (*commands, ("ZRANGE", keys.stream, *bounds))

        def decode(replies: list[Any]) -> LogRead | None:
            fields, num_events, oldest, found, *more = replies[-len(commands) :]
            *header, removed_us, count, event_limit, trimmed_us, flags = fields[: -len(_SUMMARY)]
            upto, covered, summarized = fields[-len(_SUMMARY) :]
            if header[0] is None:
                return None
            check_count(keys, count, num_events)
            try:
                first_sequence = max(sequence, int(removed_us or 0)) + 1
                fragments = (
                    decode_stream(self._codec, key, more[0], header[1], first_sequence)
                    if more
                    else []
                )
            except (ValueError, OverflowError) as error:
                raise corrupt(keys.stream, error) from None
            try:
                first = members_with_scores(oldest)
                limit = _OLD_LIMIT if event_limit is None else int(event_limit)
                trimmed = int(trimmed_us or 0)
                is_whole = int(covered or 0) >= int(summarized or 0)
                dropped = 0 if is_whole else int(upto or 0)
            except (ValueError, OverflowError) as error:
                raise corrupt(keys.events, error) from None
            return LogRead(
                _head(keys, header),
                self._entries(key, keys, found),
                trimmed,
                first[0][1] if first else None,
                0 < limit <= num_events or b"f" in (flags or b""),
                dropped,
                fragments,
            )

        return Call(
            "watch_events",
            decode,
            SCRIPTS["listen_session"] if is_first else None,
            keys[:2] if is_first else (),
            (b"0",) if is_first else (),
            commands,
            writes=False,
            from_primary=True,
        )

    def read_range(self, key: SessionKey, first: int, last: int) -> Call[list[tuple[int, Event]]]:
        """Read up to EVENTS_PER_READ events from one position to another, both included."""
        keys = self._keys.session(*ids_of(key))

        def decode(replies: list[Any]) -> list[tuple[int, Event]]:
            return self._entries(key, keys, replies[0])

        commands = (_range(keys, first, last),)
        return Call("watch_events", decode, commands=commands, writes=False, from_primary=True)

    def _entries(
        self, key: SessionKey, keys: SessionKeys, found: list[Any]
    ) -> list[tuple[int, Event]]:
        try:
            entries = members_with_scores(found)
        except (ValueError, OverflowError) as error:  # a score is not finite
            raise corrupt(keys.events, error) from None
        events = decode_log(self._codec, key, keys.events, (member for member, _ in entries))
        return [(position, event) for (_, position), event in zip(entries, events, strict=True)]


def _range(keys: SessionKeys, low: bytes | int, high: str | int) -> Command:
    bounds = (low, high, "BYSCORE", "LIMIT", 0, EVENTS_PER_READ, "WITHSCORES")
    return ("ZRANGE", keys.events, *bounds)


def _head(keys: SessionKeys, fields: list[bytes | None]) -> Head:
    version, created_us, last_us, changes = fields
    try:
        found = [Change(*map(int, text.split(b":"))) for text in (changes or b"").split()]
        return Head(int(version or b""), int(created_us or b""), int(last_us or b""), found)
    except (TypeError, ValueError) as error:
        raise corrupt(keys.session, error) from None
