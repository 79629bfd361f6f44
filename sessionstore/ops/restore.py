"""The Calls that restore a session from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..calls import Call, Command, status
from ..errors import CorruptData
from ..model import Session, SessionKey
from ..replies import after_write, decode_ids_to_check, decode_ok, decode_session
from ..scripts import SCRIPTS
from ..tiers import Delta
from .base import BaseOps, ids_of

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


class RestoreOps(BaseOps):
    """Calls that restore a session."""

    def find_restored(self, key: SessionKey, creation_id: str) -> Call[int | None]:
        """How many of the first events are staged so far; None: the session is restored.

        SessionExists if there is another session.
        """
        keys = self._keys.session(*ids_of(key))
        tiers = self.script_keys(keys)[3:]
        commands: tuple[Command, ...] = (
            ("HMGET", keys.session, "version", "generation"),
            ("ZCARD", self._keys.staged(keys, creation_id)),
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
        self, key: SessionKey, creation_id: str, rows: Sequence[tuple[int, bytes]]
    ) -> Call[None]:
        """Keep events for `restore_session`: the position and the bytes of each."""
        staged = self._keys.staged(self._keys.session(*ids_of(key)), creation_id)
        args = (b"%d" % STAGED_FOR_MS, *_event_args(rows))
        return Call(
            "restore_session", decode_ok, SCRIPTS["stage_events"], (staged,), args, is_bulk=True
        )

    def restore_session(
        self,
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
        keys = self._keys.session(*ids_of(key))
        script_keys = self.script_keys(keys)

        def decode(replies: list[Any]) -> tuple[Session, list[bytes]]:
            status(replies[0], key)
            try:
                session = decode_session(self._codec, key, keys, self.with_app_tier(replies[1:]))
            except CorruptData as error:
                raise after_write(error, "the session was restored") from None
            return session, decode_ids_to_check(replies[0])

        return Call(
            "restore_session",
            decode,
            SCRIPTS["restore_session"],
            (*script_keys[:3], self._keys.staged(keys, creation_id), *script_keys[3:]),
            (
                key.session_id.encode(),
                self._session_ttl,
                creation_id.encode(),
                *header,
                self.data_key,
                b"%d" % num_staged,
                *state.arguments(),
                *_event_args(rows),
            ),
            (*self.tier_commands(keys), ("ZCARD", keys.events)),
            is_bulk=True,
        )


def _event_args(rows: Sequence[tuple[int, bytes]]) -> Iterator[bytes]:
    for position, data in rows:
        yield b"%d" % position
        yield data
