"""When a service last refreshed the tiers that its sessions read, so that appends keep them alive.

An append names a tier only when its deadline is due: 64 times per TTL at most. Other appends cost
the server nothing.
"""

from __future__ import annotations

from collections.abc import Callable

TIERS_LIMIT = 10_000
"""Maximum number of tiers that a service remembers; then it forgets all and starts again."""


class TiersInUse:
    """The tiers of one kind, by their Redis keys. Any threads may share it.

    Args:
        ttl_ms: their TTL; 0 = they never expire, so no refresh is ever due.
        clock: returns seconds.
    """

    def __init__(self, ttl_ms: int, clock: Callable[[], float]) -> None:
        self._interval_s = ttl_ms / 64_000
        self._clock = clock
        self._refreshed_at: dict[bytes, float] = {}

    def is_due(self, tier: bytes) -> bool:
        """Whether an append should refresh a tier."""
        if not self._interval_s:
            return False
        refreshed_at = self._refreshed_at.get(tier)
        # A clock that was set back makes the difference negative.
        return refreshed_at is None or not 0 <= self._clock() - refreshed_at < self._interval_s

    def note(self, tier: bytes) -> None:
        """Remember that a tier has just been refreshed."""
        if not self._interval_s:
            return
        if len(self._refreshed_at) >= TIERS_LIMIT:
            self._refreshed_at.clear()
        self._refreshed_at[tier] = self._clock()
