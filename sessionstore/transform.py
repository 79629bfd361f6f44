"""Changes of encoded values before they are stored: compression, then encryption.

The first byte of a stored value is its tag: COMPRESSED, ENCRYPTED, or another. An encrypted
value may contain a compressed one. Nothing is compressed or encrypted twice.
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
    """The owner of a user tier or of an app tier."""

    app_name: str
    user_id: str = ""


class Context(NamedTuple):
    """What a value is and where it belongs. Not the session: a fork copies values.

    Attributes:
        app_name: the application.
        user_id: the user; "" for the app tier.
        kind: what the value is.
        name: for state the key, with the prefix of its tier; otherwise "".
    """

    app_name: str
    user_id: str
    kind: Kind
    name: str


class Transform(Protocol):
    """Changes encoded and perhaps compressed values before they are stored, and back.

    It is deterministic: equal values with equal contexts give equal bytes. So a repeated append
    finds its event.
    """

    def wrap(self, data: bytes, context: Context) -> bytes:
        """Encoded bytes as they are stored, with the tag of the transform; or unchanged."""

    def unwrap(self, data: bytes, context: Context) -> bytes:
        """The bytes that `wrap` was given. `data` begins with the tag of the transform.

        Raises:
            Unreadable: that is not possible; the message says why.
        """


class Unreadable(ValueError):
    """Stored bytes cannot be read. The message says what is missing or wrong, without payload."""
