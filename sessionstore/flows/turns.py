"""Flows on the leases of a session: its turn, and that of a Compactor."""

from __future__ import annotations

from contextlib import suppress
from uuid import uuid4

from ..calls import Flow
from ..errors import SessionNotFound, TurnLost
from ..model import Session, SessionKey, Turn
from ..ops import LeaseName, Ops
from ..options import Duration, check_milliseconds
from .shared import check_turn, created_us_of, session_key


def acquire_turn(
    ops: Ops, session: Session | SessionKey, lease: Duration, name: LeaseName = "turn"
) -> Flow[Turn]:
    """Acquire the turn of a session, or another lease of it."""
    key = session_key(session)
    lease_ms = check_milliseconds("lease", lease)
    created_us = created_us_of(session)
    turn: Turn = yield ops.acquire_turn(key, uuid4().hex, lease_ms, created_us, name=name)
    return turn


def renew_turn(ops: Ops, turn: Turn, lease: Duration, name: LeaseName = "turn") -> Flow[Turn]:
    """Extend a turn, or another lease."""
    lease_ms = check_milliseconds("lease", lease)
    renewed: Turn = yield ops.renew_turn(check_turn(turn), lease_ms, name=name)
    return renewed


def release_turn(ops: Ops, turn: Turn, name: LeaseName = "turn") -> Flow[None]:
    """Release a turn, or another lease. No error if it is lost, or the session was deleted."""
    with suppress(TurnLost, SessionNotFound):
        yield ops.renew_turn(check_turn(turn), 0, name=name)


def free_turn(ops: Ops, session: Session | SessionKey) -> Flow[None]:
    """Take the turn of a session from its holder."""
    yield ops.free_turn(session_key(session), created_us_of(session))
