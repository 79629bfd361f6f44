"""What may be done to encoded values before they are stored: compression, then encryption.

The first byte of stored bytes tells what was done to them: COMPRESSED, ENCRYPTED, or nothing. What
is encrypted may be compressed; neither is done twice.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

COMPRESSED = b"\x02"
ENCRYPTED = b"\x03"

Kind = Literal["event", "state", "summary", "fragment"]


class Owner(Protocol):
    """Whose data it is. A SessionKey and a Session are Owners."""

    @property
    def app_name(self) -> str:
        """The application."""

    @property
    def user_id(self) -> str:
        """The user; "" for the app tier."""


class TierOwner(NamedTuple):
    """The owner of a user tier; of an app tier, whose user is ""."""

    app_name: str
    user_id: str = ""


class Context(NamedTuple):
    """Where a value stands. A session is not part of it: a fork copies values.

    Attributes:
        app_name: the application.
        user_id: the user; "" for the app tier.
        kind: what the value is.
        name: of state the key, with the prefix of its tier; otherwise "".
    """

    app_name: str
    user_id: str
    kind: Kind
    name: str


class Transform(Protocol):
    """Changes encoded and perhaps compressed values before they are stored, and back.

    It is deterministic: equal values with an equal context give equal bytes. So a repeat of an
    append finds its event.
    """

    def wrap(self, data: bytes, context: Context) -> bytes:
        """Encoded bytes as they are stored, with the tag of the transform; or unchanged."""

    def unwrap(self, data: bytes, context: Context) -> bytes:
        """The bytes that `wrap` was given. Unreadable says why that is not possible.

        `data` begins with the tag of the transform.
        """


class Unreadable(ValueError):
    """Stored bytes cannot be read. The message says what is missing or wrong, without payload."""
