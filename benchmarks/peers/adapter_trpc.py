"""trpc-agent-py: RedisSessionService over asyncio, with a TTL."""

from __future__ import annotations

from importlib import import_module
from itertools import count
from typing import Any

from ..payload import TEXT, TTL_SECONDS


class Adapter:
    """The calls of the worker."""

    async def open(self, url: str) -> None:
        """Connect."""
        self._sessions: Any = import_module("trpc_agent_sdk.sessions")
        self._types: Any = import_module("trpc_agent_sdk.types")
        self._event: Any = import_module("trpc_agent_sdk.events").Event
        self._users = count()
        self._service = self._make_service(url, 0)
        # The number of events that a read returns is an option of the service.
        self._reader = self._make_service(url, 20)

    def _make_service(self, url: str, num_recent_events: int) -> Any:
        kind = self._sessions.SessionServiceConfig
        config = kind(
            ttl=kind.create_ttl_config(ttl_seconds=TTL_SECONDS),
            num_recent_events=num_recent_events,
        )
        return self._sessions.RedisSessionService(url, session_config=config, is_async=True)

    async def make(self) -> Any:
        """A session of a new user."""
        return await self._service.create_session(app_name="bench", user_id=f"u{next(self._users)}")

    def event(self) -> Any:
        """A new event."""
        # A read of the newest events starts at an event of the user, so all events are the user's.
        content = self._types.Content(role="user", parts=[self._types.Part(text=TEXT)])
        return self._event(invocation_id="run", author="user", content=content)

    async def append(self, session: Any) -> None:
        """Append a new event."""
        await self._service.append_event(session, self.event())

    async def read(self, session: Any, last: int) -> int:
        """Read the newest events. Returns how many."""
        found = await self._reader.get_session(
            app_name=session.app_name, user_id=session.user_id, session_id=session.id
        )
        return len(found.events[-last:])
