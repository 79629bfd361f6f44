"""sessionstore itself, measured in the same way as its peers."""

from __future__ import annotations

from itertools import count

from sessionstore import Event, RedisSessionService, SessionKey

from ..payload import TEXT, TTL_SECONDS


class Adapter:
    """The calls of the worker."""

    async def open(self, url: str) -> None:
        """Connect."""
        self._users = count()
        self._service = RedisSessionService(
            url,
            session_event_limit=None,
            session_ttl=TTL_SECONDS,
            user_state_ttl=TTL_SECONDS,
            app_state_ttl=TTL_SECONDS,
        )

    async def make(self) -> SessionKey:
        """A session of a new user."""
        user_id = f"u{next(self._users)}"
        return (await self._service.create_session(app_name="bench", user_id=user_id)).key

    def event(self) -> Event:
        """A new event."""
        return Event("agent", TEXT)

    async def append(self, session: SessionKey) -> None:
        """Append a new event."""
        await self._service.append_event(session, self.event())

    async def read(self, session: SessionKey, last: int) -> int:
        """Read the newest events. Returns how many."""
        found = await self._service.get_session(
            app_name=session.app_name,
            user_id=session.user_id,
            session_id=session.session_id,
            event_num=last,
        )
        return len(found.events) if found else 0
