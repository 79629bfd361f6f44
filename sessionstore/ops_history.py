"""The operations that change history, as Calls. See ops.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .calls import Call, Command, status
from .model import Event, Session, SessionKey, Turn
from .ops import BULK_BYTES, LeaseName, Ops, ids_of
from .options import check_bool, check_int
from .replies import (
    WriteResult,
    after_write,
    decode_ids_to_check,
    decode_log,
    decode_numbers,
    decode_ok,
    decode_session,
    decode_write_result,
    members_with_scores,
)
from .scripts import SCRIPTS
from .tiers import Delta

EVENTS_PER_FORK_LIMIT = 20_000
"""Maximum number of events of a session that is copied."""

STAGED_FOR_MS = 3_600_000
"""How long the events of a restore that was not completed are kept, in milliseconds."""


class RestoredHeader(NamedTuple):
    """What `restore_session` writes into the header, as arguments of the script. b"" = not given.

    Attributes:
        event_limit: how many of the newest events the session keeps; 0 = all.
        created_us: when the session was created.
        updated_us: when it was last written.
        forked_from: the id of the session that it is a copy of.
        upto: the position up to which its summary covers the log.
        summary_us: when the summary was stored.
        summary: the summary, encoded.
    """

    event_limit: bytes
    created_us: bytes
    updated_us: bytes
    forked_from: bytes
    upto: bytes
    summary_us: bytes
    summary: bytes


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


def read_around(
    ops: Ops, key: SessionKey, position: int
) -> Call[tuple[list[Event], list[Event], bool]]:
    """Read events up to a position and after it, and whether one is at the position."""
    keys = ops.options.keys.session(*ids_of(key))
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
        codec, members = ops.options.codec, (member for member, _ in reversed(entries))
        events = decode_log(codec, key, keys.events, members)
        is_there = bool(entries) and entries[0][1] == position
        return events, decode_log(codec, key, keys.events, after), is_there

    return Call("compact_session", decode, commands=commands, writes=False, from_primary=True)


def compact_session(
    ops: Ops,
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
    """Store a summary of the events up to a position. None: there is no event at the position."""

    def decode(replies: list[Any]) -> Compacted | None:
        reply = replies[0]
        if reply == [b"ABSENT"]:
            return None
        status(reply, key, if_version)
        return Compacted(*decode_numbers(reply, 6))

    condition = ops.condition(key, if_version, turn, lease_name)
    return Call(
        "compact_session",
        decode,
        SCRIPTS["compact_session"],
        ops.options.keys.session(*ids_of(key))[:3],
        (
            key.session_id.encode(),
            b"%d" % ops.options.session_ttl_ms,
            created_us,
            condition,
            b"",  # the age of a repeat
            b"%d" % upto,
            b"" if base is None else b"%d" % base,
            b"1" if check_bool("drop", drop) else b"0",
            summary,
        ),
        is_bulk=len(summary) > BULK_BYTES,
        age_argument=4,
    )


def rewind_session(
    ops: Ops,
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

    condition = ops.condition(key, if_version, turn)
    return Call(
        "rewind_session",
        decode,
        SCRIPTS["rewind_session"],
        ops.options.keys.session(*ids_of(key))[:3],
        (
            key.session_id.encode(),
            b"%d" % ops.options.session_ttl_ms,
            created_us,
            condition,
            b"%d" % (check_int("to", position, low=0) + 1),
            *_state_args(state),
        ),
        idempotent=False,  # a repeat would remove what was appended after the first attempt
    )


def read_event(ops: Ops, key: SessionKey, position: int) -> Call[bytes | None]:
    """Read the bytes of the event at a position."""
    keys = ops.options.keys.session(*ids_of(key))
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
    ops: Ops,
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

    condition = ops.condition(key, if_version, turn)
    ttl_ms = b"%d" % ops.options.session_ttl_ms
    head = (key.session_id.encode(), ttl_ms, created_us, condition)
    return Call(
        "replace_event" if new_event else "delete_event",
        decode,
        SCRIPTS["replace_event"],
        ops.options.keys.session(*ids_of(key))[:3],
        (*head, b"%d" % position, event, new_event),
        idempotent=False,  # a repeat would not find the event
    )


def fork_session(
    ops: Ops,
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
    keys = ops.options.keys.session(*ids_of(key))
    copy_keys = ops.options.keys.session(*ids_of(copy))

    def decode(replies: list[Any]) -> Session:
        reply = replies[0]
        status(reply, copy if reply[:1] == [b"EXISTS"] else key, if_version)
        with after_write("the copy was created"):
            parts = ops.with_app_tier(replies[1:])
            return decode_session(ops.options.codec, copy, copy_keys, parts)

    first = b"" if position is None else b"%d" % (check_int("upto", position, low=0) + 1)
    return Call(
        "fork_session",
        decode,
        SCRIPTS["fork_session"],
        (*keys[:3], *copy_keys[:2], *ops.script_keys(keys)[3:]),
        (
            copy.session_id.encode(),
            b"%d" % ops.options.session_ttl_ms,
            created_us,
            ops.condition(key, if_version, turn),
            first,
            creation_id.encode(),
            key.session_id.encode(),
            b"%d" % EVENTS_PER_FORK_LIMIT,
            *_state_args(state),
        ),
        (*ops.tier_commands(copy_keys), ("ZCARD", copy_keys.events)),
    )


def find_restored(ops: Ops, key: SessionKey, creation_id: str) -> Call[int | None]:
    """How many of the first events `stage_events` has kept so far; None: the session is restored.

    SessionExists if there is another session.
    """
    keys = ops.options.keys.session(*ids_of(key))
    tiers = ops.script_keys(keys)[3:]
    commands: tuple[Command, ...] = (
        ("HMGET", keys.session, "version", "generation"),
        ("ZCARD", ops.options.keys.staged(keys, creation_id)),
        # A key of a wrong type is found before anything is staged.
        ("ZCARD", keys.events),
        ("ZCARD", keys.session_index),
        *(("HMGET", tier, "") for tier in tiers),
    )

    def decode(replies: list[Any]) -> int | None:
        (version, stored_id), num_staged, *_ = replies
        if version is None:
            return int(num_staged)
        if stored_id != creation_id.encode():
            status([b"EXISTS"], key)  # raises SessionExists
        return None

    return Call("restore_session", decode, commands=commands, writes=False, from_primary=True)


def stage_events(
    ops: Ops, key: SessionKey, creation_id: str, rows: Sequence[tuple[int, bytes]]
) -> Call[None]:
    """Keep events of a session that `restore_session` will create: the position of each, bytes."""
    staged = ops.options.keys.staged(ops.options.keys.session(*ids_of(key)), creation_id)
    args = (b"%d" % STAGED_FOR_MS, *_event_args(rows))
    return Call(
        "restore_session", decode_ok, SCRIPTS["stage_events"], (staged,), args, is_bulk=True
    )


def restore_session(
    ops: Ops,
    key: SessionKey,
    creation_id: str,
    header: RestoredHeader,
    state: Delta,
    num_staged: int,
    rows: Sequence[tuple[int, bytes]],
) -> Call[tuple[Session, list[bytes]]]:
    """Create a session from staged events and the last ones, and read it without its events.

    Also returns ids that `prune_index` should check.
    """
    keys = ops.options.keys.session(*ids_of(key))
    script_keys = ops.script_keys(keys)

    def decode(replies: list[Any]) -> tuple[Session, list[bytes]]:
        status(replies[0], key)
        with after_write("the session was restored"):
            session = decode_session(ops.options.codec, key, keys, ops.with_app_tier(replies[1:]))
        return session, decode_ids_to_check(replies[0])

    return Call(
        "restore_session",
        decode,
        SCRIPTS["restore_session"],
        (*script_keys[:3], ops.options.keys.staged(keys, creation_id), *script_keys[3:]),
        (
            key.session_id.encode(),
            b"%d" % ops.options.session_ttl_ms,
            creation_id.encode(),
            *header,
            ops.data_key,
            b"%d" % num_staged,
            *state.arguments(),
            *_event_args(rows),
        ),
        (*ops.tier_commands(keys), ("ZCARD", keys.events)),
        is_bulk=True,
    )


def _event_args(rows: Sequence[tuple[int, bytes]]) -> Iterator[bytes]:
    for position, data in rows:
        yield b"%d" % position
        yield data


def _state_args(state: Delta | None) -> tuple[bytes, ...]:
    """The state that replaces that of a session; nothing if it stays."""
    return () if state is None else (b"%d" % (len(state.pairs) // 2), *state.pairs)
