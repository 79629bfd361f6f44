"""A cache of the app tiers that a service has read: the option `app_state_max_age`.

A copy is the reply of the store. Each read decodes it again, so callers share no values. Only app
tiers that have a cluster slot of their own are cached; others are read together with the session.

A reply to a read that began before a write of the same service holds the old value. So reads and
writes are numbered: a write drops the copy, and replies to earlier reads are not cached.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

APPS_LIMIT = 1000
"""How many copies a service has at most."""

BYTES_LIMIT = 16 << 20
"""How many bytes of keys and values all copies of a service have at most, together."""

_WRITES_LIMIT = 10_000  # applications whose last write is remembered


class Read(NamedTuple):
    """A read that has begun: its number, and the time by the clock."""

    number: int
    began_at: float


class _Copy(NamedTuple):
    reply: Any
    size: int
    until: float


class AppCopies:
    """The copies of a service. Thread-safe.

    Args:
        max_age_s: how old a copy may be, in seconds; 0 = nothing is cached.
        clock: returns seconds.
    """

    def __init__(self, max_age_s: float, clock: Callable[[], float]) -> None:
        self._max_age_s = max_age_s
        self._clock = clock
        self._lock = threading.Lock()
        self._copies: dict[bytes, _Copy] = {}  # the oldest first
        self._size = 0
        self._number = 0
        self._written: dict[bytes, int] = {}  # the number of the last write
        self._forgotten = 0  # the number of the last write that is no longer in `_written`

    def __bool__(self) -> bool:
        return self._max_age_s > 0

    def get(self, tier: bytes) -> Any:
        """The copy of a tier; None if there is none or it is too old."""
        found = self._copies.get(tier)
        return found.reply if found is not None and self._clock() < found.until else None

    def begin(self) -> Read:
        """A read that begins now."""
        return Read(self._number, self._clock())

    def put(self, tier: bytes, read: Read, reply: Any, size: int) -> None:
        """Cache the reply to a read, unless the service has written to the tier since it began."""
        with self._lock:
            if read.number < self._written.get(tier, self._forgotten):
                return
            self._remove(tier)
            if size > BYTES_LIMIT:
                return
            self._copies[tier] = _Copy(reply, size, read.began_at + self._max_age_s)
            self._size += size
            while len(self._copies) > APPS_LIMIT or self._size > BYTES_LIMIT:
                self._remove(next(iter(self._copies)))

    def forget(self, tier: bytes) -> None:
        """Drop the copy of a tier: the service writes to it, or has just written."""
        if not self:
            return
        with self._lock:
            self._remove(tier)
            self._number += 1
            if len(self._written) >= _WRITES_LIMIT:
                self._written.clear()
                self._forgotten = self._number
            self._written[tier] = self._number

    def _remove(self, tier: bytes) -> None:
        found = self._copies.pop(tier, None)
        if found is not None:
            self._size -= found.size
