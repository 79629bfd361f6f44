"""The Calls on the leases of a session: its turn, and that of a Compactor."""

from __future__ import annotations

from typing import Any

from ..calls import Call, status
from ..model import SessionKey, Turn
from ..replies import decode_numbers
from ..scripts import SCRIPTS
from ..times import from_us
from .base import BaseOps, LeaseName, check_ok, ids_of


class TurnOps(BaseOps):
    """Calls on leases."""

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
            lambda replies: check_ok(replies, key),
            SCRIPTS["free_turn"],
            self._keys.session(*ids_of(key))[:3],
            (key.session_id.encode(), self._session_ttl, created_us),
        )
