"""When a service last refreshed the tiers of its sessions, so that writes refresh them in time.

A write names these tiers only when a refresh is due: 64 times per TTL at most. Other writes cost
the server nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

TIERS_LIMIT = 10_000
"""How many names a service remembers. At the limit it forgets all and starts again."""


class TierRefreshes:
    """Remembers by name when tiers that belong together were last refreshed. Thread-safe.

    Args:
        ttls_ms: their TTLs; 0 = never expires. If none expires, no refresh is ever due.
        clock: returns seconds.
    """

    def __init__(self, ttls_ms: tuple[int, ...], clock: Callable[[], float]) -> None:
        self._interval_s = min((ttl_ms for ttl_ms in ttls_ms if ttl_ms), default=0) / 64_000
        self._clock = clock
        self._refreshed_at: dict[Hashable, float] = {}

    def is_due(self, name: Hashable) -> bool:
        """Whether a write should refresh the tiers of this name."""
        if not self._interval_s:
            return False
        refreshed_at = self._refreshed_at.get(name)
        # A clock that was set back makes the difference negative.
        return refreshed_at is None or not 0 <= self._clock() - refreshed_at < self._interval_s

    def note(self, name: Hashable) -> None:
        """Remember that the tiers of this name have just been refreshed."""
        if len(self._refreshed_at) >= TIERS_LIMIT:
            self._refreshed_at.clear()
        self._refreshed_at[name] = self._clock()
