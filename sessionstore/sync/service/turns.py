# Generated from sessionstore/service/turns.py by tests/support/generate_sync.py. Do not edit.
"""Acquire, renew, release and free turns."""

from __future__ import annotations

from ... import flows
from ...model import Session, SessionKey, Turn
from ...options import Duration
from .base import BaseService


class TurnOperations(BaseService):
    """Operations on the turn of a session."""

    def acquire_turn(self, session: Session | SessionKey, *, lease: Duration = 30.0) -> Turn:
        """The turn of a session, which at most one caller holds at a time. It does not wait.

        The turn protects only appends that pass it: see `append_event(turn=...)`.

        Args:
            session: the session, or its key.
            lease: time after which the turn is free again unless it is renewed: a timedelta or
                seconds, from 1 ms.

        Raises:
            InvalidArgument: an argument is not valid; names it.
            SessionNotFound: the session does not exist.
            TurnTaken: another caller holds the turn.
            BackendError: the store refused the call or did not answer.

        lua/acquire_turn.lua; one round trip, O(1).
        Sent again after a lost reply; a repeat finds its own lease.
        """
        return self._run(flows.acquire_turn(self._ops, session, lease))

    def renew_turn(self, turn: Turn, *, lease: Duration = 30.0) -> Turn:
        """The same turn with a new end of its lease.

        Args:
            turn: a turn from `acquire_turn` or `renew_turn`.
            lease: time from now until the turn is free: a timedelta or seconds, from 1 ms.

        Raises:
            InvalidArgument: an argument is not valid; names it.
            SessionNotFound: the session does not exist.
            TurnLost: the lease had ended, and another caller has acquired the turn; or the turn was
                released.
            BackendError: the store refused the call or did not answer.

        lua/renew_turn.lua; one round trip, O(1).
        Sent again after a lost reply; a repeat extends the lease once more.
        """
        return self._run(flows.renew_turn(self._ops, turn, lease))

    def release_turn(self, turn: Turn) -> None:
        """Release a turn. No error if it is lost, or the session was deleted.

        Args:
            turn: a turn from `acquire_turn` or `renew_turn`.

        Raises:
            InvalidArgument: the argument is not a Turn.
            BackendError: the store refused the call or did not answer.

        lua/renew_turn.lua; one round trip, O(1).
        Sent again after a lost reply; a repeat changes nothing.
        """
        self._run(flows.release_turn(self._ops, turn))

    def free_turn(self, session: Session | SessionKey) -> None:
        """Take the turn of a session from its holder, for operators. No error if nobody holds it.

        The holder cannot renew the turn or append with it any more: it gets TurnLost. Use it if the
        holder is known to be dead, or hangs, and its lease is long.

        Args:
            session: the session, or its key.

        Raises:
            InvalidArgument: an argument is not valid; names it.
            SessionNotFound: the session does not exist.
            BackendError: the store refused the call or did not answer.

        lua/free_turn.lua; one round trip, O(1).
        """
        self._run(flows.free_turn(self._ops, session))
