"""The exceptions that sessionstore raises. All derive from SessionStoreError.

Messages contain keys, limits and names, never payload or credentials.
"""

from __future__ import annotations

import copyreg
from datetime import datetime
from typing import Any


class SessionStoreError(Exception):
    """Base class of all exceptions of sessionstore. They pickle and copy with their attributes."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception.__reduce__ calls __init__ without its keyword arguments.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]  # typeshed lacks it


class InvalidArgument(SessionStoreError, ValueError):
    """An argument was refused before anything was sent.

    The message names the argument, and for nested values the path to the offending part.
    """


class LimitExceeded(InvalidArgument):
    """An event, a value or a batch is too large. Nothing was sent.

    Attributes:
        limit: the largest allowed size, in the unit that the message names.
        actual: the given size, in the same unit.
    """

    def __init__(self, message: str, *, limit: int, actual: int) -> None:
        super().__init__(message)
        self.limit = limit
        self.actual = actual


class SessionNotFound(SessionStoreError):
    """The session does not exist: it was never created, was deleted, or has expired."""


class SessionExists(SessionStoreError):
    """A session with this id exists, so none was created, forked or restored under it."""


class StaleVersion(SessionStoreError):
    """`if_version` or `if_summary` did not match: the session has changed. Nothing was written.

    Attributes:
        expected: the caller's `if_version` or `if_summary`; 0 = no summary.
        actual: the version that the store has, or where its summary ends.
    """

    def __init__(self, message: str, *, expected: int, actual: int) -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class TurnTaken(SessionStoreError):
    """Another run holds the session's turn.

    Attributes:
        expires_at: when its lease ends unless it is renewed, UTC.
    """

    def __init__(self, message: str, *, expires_at: datetime) -> None:
        super().__init__(message)
        self.expires_at = expires_at


class TurnLost(SessionStoreError):
    """The caller no longer holds the turn. Nothing was written.

    The lease ended and another run acquired the turn, `free_turn` took it, or it was released.
    """


class CorruptData(SessionStoreError):
    """Stored bytes do not decode. Corrupt data is never skipped silently.

    Attributes:
        key: the Redis key; for a state value also the field of the hash.
    """

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(message)
        self.key = key


class EventsMissing(CorruptData):
    """A session holds fewer events than it should: the server evicted or lost the others.

    `repair_session` accepts what is left. Appends still work.

    Attributes:
        expected: number of events that the session should hold.
        actual: number of events that it holds.
        key: the Redis key of the events.
    """

    def __init__(self, message: str, *, expected: int, actual: int, key: str) -> None:
        super().__init__(message, key=key)
        self.expected = expected
        self.actual = actual


class BackendError(SessionStoreError):
    """The store was not reachable, did not answer in time, or refused the call.

    Attributes:
        maybe_applied: True when a write was sent and its outcome is unknown, or when only a part of
            it is done.
    """

    def __init__(self, message: str, *, maybe_applied: bool = False) -> None:
        super().__init__(message)
        self.maybe_applied = maybe_applied


class BackendUnavailable(BackendError):
    """No connection: refused, reset, host name not resolved, or authentication failed.

    Also: too few replicas confirmed app state in a cluster, so its session was not written.
    """


class BackendTimeout(BackendError):
    """The store did not answer before the call's deadline."""


class BackendRejected(BackendError):
    """The store answered with an error, such as out of memory, read-only, or no permission.

    Also: a state value cannot be incremented, because it is not an integer or the sum is too large.
    A refused write changed nothing.
    """


class NotReplicated(BackendError):
    """A write was applied, but fewer replicas confirmed it than `wait_replicas` requires.

    The write is lost only if the server is lost before a replica has it. The caller's Session
    includes it. Appending the same event again waits for the replicas again.

    Attributes:
        confirmed: number of replicas that confirmed.
        result: what the call would have returned.
        replies: the server's replies, from which `result` was decoded.
    """

    def __init__(self, message: str, *, confirmed: int, replies: list[Any]) -> None:
        super().__init__(message, maybe_applied=True)
        self.confirmed = confirmed
        self.result: Any = None
        self.replies = replies


class ScriptContractError(SessionStoreError):
    """A reply does not have the form that its script declares. A bug in sessionstore."""
