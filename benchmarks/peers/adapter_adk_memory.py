"""google-adk: InMemorySessionService."""

from __future__ import annotations

from importlib import import_module
from itertools import count
from typing import Any

from ..payload import TEXT


class Adapter:
    """The calls of the worker. The other services of google-adk differ only in `_make_service`."""

    async def open(self, url: str) -> None:
        """Connect."""
        self._types: Any = import_module("google.genai.types")
        self._event: Any = import_module("google.adk.events.event").Event
        base: Any = import_module("google.adk.sessions.base_session_service")
        self._config = base.GetSessionConfig
        self._users = count()
        self._service = await self._make_service(url)

    async def _make_service(self, url: str) -> Any:
        del url
        return import_module("google.adk.sessions").InMemorySessionService()

    async def make(self) -> Any:
        """A session of a new user."""
        return await self._service.create_session(app_name="bench", user_id=f"u{next(self._users)}")

    def event(self) -> Any:
        """A new event."""
        content = self._types.Content(role="model", parts=[self._types.Part(text=TEXT)])
        return self._event(invocation_id="run", author="agent", content=content)

    async def append(self, session: Any) -> None:
        """Append a new event."""
        await self._service.append_event(session, self.event())

    async def read(self, session: Any, last: int) -> int:
        """Read the newest events. Returns how many."""
        found = await self._service.get_session(
            app_name=session.app_name,
            user_id=session.user_id,
            session_id=session.id,
            config=self._config(num_recent_events=last),
        )
        return len(found.events)
