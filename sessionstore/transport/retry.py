"""When a call is sent again, and what it fails with. Sans I/O: both transports use it."""

from __future__ import annotations

import random
from typing import Any

import hiredis

from ..calls import Call, reply_error
from ..errors import BackendError, BackendTimeout, BackendUnavailable, SessionStoreError
from .wire import Form, ReplyRefused

_FIRST_DELAY_S = 0.01
_LONGEST_DELAY_S = 0.5
_LONGEST_DELAY_ROUTED_S = 0.2  # another server will take over, and may have done so just now
_REDIRECTIONS_AT_ONCE = 4  # every fourth waits first, in case two nodes disagree


class ConnectFailed(Exception):
    """No connection could be made; nothing was sent.

    Attributes:
        final: trying again is of no use (wrong password, unknown host name, ...).
    """

    def __init__(self, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.final = final


class ConnectionLost(Exception):
    """A connection broke, or stayed silent too long, with the call's outcome unknown.

    Attributes:
        silent: it was given up because the server did not answer in time.
    """

    def __init__(self, message: str, *, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent


def check_greeting(replies: list[Any]) -> None:
    """Look at what was answered to the first request on a connection.

    Raises:
        ConnectFailed: it was refused.
    """
    if isinstance(replies[0], hiredis.ReplyError):
        raise ConnectFailed(f"the server refused the connection ({replies[0]})", final=False)


class Attempts:
    """The attempts at one call, within its deadline.

    Args:
        call: what is being sent.
        deadline: when to give up, on the clock whose readings `next_delay` is given.
        is_routed: redirections and demoted masters are to be expected.

    Attributes:
        form: how to put the call on the wire next.
        ask_at: where the next attempt goes, after ASKING; None = where the call belongs.
    """

    def __init__(self, call: Call[Any], deadline: float, *, is_routed: bool) -> None:
        self.deadline = deadline
        self.form = Form.EVALSHA
        self.ask_at: str | None = None
        self._call = call
        self._is_routed = is_routed
        self._delay_s = _FIRST_DELAY_S
        self._longest_delay_s = _LONGEST_DELAY_ROUTED_S if is_routed else _LONGEST_DELAY_S
        self._redirections = 0
        self._maybe_applied = False

    def next_delay(self, problem: Exception, now: float) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            SessionStoreError: there is none; what the caller is told.
        """
        call = self._call
        asked, self.ask_at = self.ask_at, None
        if isinstance(problem, ReplyRefused):
            better = problem.accepted_form(call, self.form)
            if better is not None:
                self.form, self.ask_at = better, asked
                return 0.0
            if self._is_routed and self._is_redirected(problem):
                return 0.0
            if not problem.is_transient and not (self._is_routed and problem.is_misplaced):
                raise self._with_history(reply_error(call, str(problem))) from None
        if isinstance(problem, ConnectFailed) and problem.final:
            raise self._failure(problem) from None
        if isinstance(problem, ConnectionLost):
            self._maybe_applied |= call.writes
            if not call.idempotent:
                raise self._failure(problem) from None
        delay_s = self._delay_s * random.uniform(0.5, 1.5)
        if now + delay_s >= self.deadline:
            raise self._failure(problem) from None
        self._delay_s = min(self._delay_s * 2, self._longest_delay_s)
        return delay_s

    def _is_redirected(self, problem: ReplyRefused) -> bool:
        """Whether a reply names another node to go to at once."""
        if len(self._call.commands) + (self._call.script is not None) > 1 and problem.is_migration:
            # No transaction spans a slot that is on its way; a script does, once its keys arrived.
            self.form = Form.WITHOUT_MULTI
        if problem.code not in ("MOVED", "ASK"):
            return False
        if problem.code == "ASK":
            self.ask_at = str(problem)
        self._redirections += 1
        return self._redirections % _REDIRECTIONS_AT_ONCE != 0

    def closed(self) -> BackendError:
        """What the caller is told when the service is closed between attempts."""
        return BackendUnavailable(
            "the session service is closed", maybe_applied=self._maybe_applied
        )

    def timed_out(self) -> BackendError:
        """What the caller is told when the deadline passes between attempts."""
        return BackendTimeout(
            f"{self._call.name}: no connection within the call's deadline",
            maybe_applied=self._maybe_applied,
        )

    def _failure(self, problem: Exception) -> BackendError:
        silent = isinstance(problem, ConnectionLost) and problem.silent
        kind = BackendTimeout if silent else BackendUnavailable
        return kind(f"{self._call.name}: {problem}", maybe_applied=self._maybe_applied)

    def _with_history(self, error: SessionStoreError) -> SessionStoreError:
        # An earlier attempt of unknown outcome may have been carried out before this refusal.
        if isinstance(error, BackendError):
            error.maybe_applied = self._maybe_applied
        return error
