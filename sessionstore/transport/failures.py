"""Why one attempt at a Call failed. retry.py turns these into a retry or into a BackendError."""

from __future__ import annotations

CLOSED = "the session service is closed"
CLOSED_BY_SERVER = "connection closed by the server"

# Error replies that mean "not now". The server did nothing, so every Call may be sent again.
_TRANSIENT = (
    "LOADING",
    "BUSY",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "READONLY",
    "NOAUTH",  # the retry opens a new connection, which authenticates
)


class AttemptFailed(Exception):
    """Base class. These exceptions never leave the transport."""

    @property
    def kind(self) -> str:
        """What failed, in one word. Safe to log: it quotes nothing that was sent or received."""
        return type(self).__name__


class ConnectFailed(AttemptFailed):
    """No connection could be made, so nothing was sent.

    Attributes:
        final: a retry cannot help: wrong password, not a cluster, ...
        was_reached: the server is there, but it is not ready.
    """

    def __init__(self, message: str, *, final: bool, was_reached: bool = False) -> None:
        super().__init__(message)
        self.final = final
        self.was_reached = was_reached


class NotSentInTime(AttemptFailed):
    """The deadline passed before the Call was sent."""

    def __init__(self) -> None:
        super().__init__("it could not be sent within call_timeout")


class ConnectionLost(AttemptFailed):
    """The connection broke, or no reply came in time. The Call may have been executed.

    Attributes:
        timed_out: no reply came in time.
    """

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class ErrorReply(AttemptFailed):
    """The server replied with an error. The exception's text is the server's."""

    @property
    def kind(self) -> str:
        """The first word, which is a code."""
        return str(self).partition(" ")[0]

    @property
    def is_slot_moving(self) -> bool:
        """The slot is being moved to another node."""
        return self.kind in ("ASK", "TRYAGAIN")

    @property
    def is_redirection(self) -> bool:
        """The reply names the node to which the Call must go. The server did nothing."""
        return self.kind in ("MOVED", "ASK")

    @property
    def needs_new_connection(self) -> bool:
        """The server is a replica, or the password was changed. It did nothing."""
        return self.kind in ("READONLY", "MASTERDOWN", "NOAUTH")

    @property
    def is_transient(self) -> bool:
        """The server will be able to answer later. It did nothing."""
        return self.kind in _TRANSIENT
