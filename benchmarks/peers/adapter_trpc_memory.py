"""trpc-agent-py: InMemorySessionService."""

from __future__ import annotations

from typing import Any

from . import adapter_trpc


class Adapter(adapter_trpc.Adapter):
    """The calls of the worker."""

    async def open(self, url: str) -> None:
        """Make the service."""
        await super().open(url)
        self._reader = self._service

    def _make_service(self, url: str, num_recent_events: int) -> Any:
        del url, num_recent_events
        return self._sessions.InMemorySessionService()
