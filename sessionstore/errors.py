"""The exceptions that sessionstore raises. All derive from SessionStoreError.

No message holds a payload or a credential: keys, limits and names only.
"""

from __future__ import annotations

import copyreg
from datetime import datetime
from typing import Any


class SessionStoreError(Exception):
    """Base class of everything that sessionstore raises on purpose.

    All of them can be pickled and copied, with their attributes.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # Without __init__, whose keyword arguments Exception would leave out.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]  # typeshed lacks it


class InvalidArgument(SessionStoreError, ValueError):
    """An argument was refused before anything was sent; nothing changed anywhere.

    The message names the argument, and inside a nested value the path to the offending part.
    """


class LimitExceeded(InvalidArgument):
    """An event, a value or a batch is larger than allowed; nothing was sent.

    Attributes:
        limit: the largest size allowed, in the unit that the message names.
        actual: the size that was given, in the same unit.
    """

    def __init__(self, message: str, *, limit: int, actual: int) -> None:
        super().__init__(message)
        self.limit = limit
        self.actual = actual


class SessionNotFound(SessionStoreError):
    """The session does not exist: never created, deleted or expired."""


class SessionExists(SessionStoreError):
    """`create_session` was given the id of a session that exists."""


class StaleVersion(SessionStoreError):
    """`if_version` did not match: somebody else wrote to the session. Nothing was written.

    Attributes:
        expected: the version that the caller asked for.
        actual: the version that the store has.
    """

    def __init__(self, message: str, *, expected: int, actual: int) -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class TurnTaken(SessionStoreError):
    """Another run has the session's turn.

    Attributes:
        expires_at: when its lease ends unless it is renewed, UTC.
    """

    def __init__(self, message: str, *, expires_at: datetime) -> None:
        super().__init__(message)
        self.expires_at = expires_at


class TurnLost(SessionStoreError):
    """The lease of a turn ended and another run took the turn. Nothing was written."""


class CorruptData(SessionStoreError):
    """Stored bytes do not decode. They are never skipped silently.

    Attributes:
        key: the Redis key that holds them, with the hash field where there is one.
    """

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(message)
        self.key = key


class BackendError(SessionStoreError):
    """The store could not be asked, did not answer in time, or refused.

    Attributes:
        maybe_applied: True when a write was sent and its outcome is unknown.
    """

    def __init__(self, message: str, *, maybe_applied: bool = False) -> None:
        super().__init__(message)
        self.maybe_applied = maybe_applied


class BackendUnavailable(BackendError):
    """No connection to the store: refused, reset, not resolved, not authenticated."""


class BackendTimeout(BackendError):
    """The store did not answer within the call's deadline."""


class BackendRejected(BackendError):
    """The store answered with an error: out of memory, read-only, no permission, wrong type.

    A write that was refused left nothing behind.
    """


class NotReplicated(BackendError):
    """A write is done, but fewer replicas confirmed it than `wait_replicas` asks for.

    It stays done unless the server is lost before they have it. A Session that was given shows it.
    Appending the same event again asks again.

    Attributes:
        confirmed: replicas that did.
        result: what the call would have returned.
        replies: what the server answered; `result` is made from it.
    """

    def __init__(self, message: str, *, confirmed: int, replies: list[Any]) -> None:
        super().__init__(message, maybe_applied=True)
        self.confirmed = confirmed
        self.result: Any = None
        self.replies = replies


class ScriptContractError(SessionStoreError):
    """A script answered something that its header does not declare. A bug in sessionstore."""
