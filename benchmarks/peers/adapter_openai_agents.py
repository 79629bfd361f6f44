"""openai-agents: RedisSession, with a TTL. All sessions share a client."""

from __future__ import annotations

from importlib import import_module
from typing import Any
from uuid import uuid4

from ..payload import TEXT, TTL_SECONDS


class Adapter:
    """The calls of the worker."""

    async def open(self, url: str) -> None:
        """Connect."""
        self._session: Any = import_module("agents.extensions.memory.redis_session").RedisSession
        self._client: Any = import_module("redis.asyncio").Redis.from_url(url)

    async def make(self) -> Any:
        """A new session."""
        return self._session(session_id=uuid4().hex, redis_client=self._client, ttl=TTL_SECONDS)

    def event(self) -> Any:
        """A new item."""
        return {"role": "assistant", "content": TEXT, "id": uuid4().hex}

    async def append(self, session: Any) -> None:
        """Append a new item."""
        await session.add_items([self.event()])

    async def read(self, session: Any, last: int) -> int:
        """Read the newest items. Returns how many."""
        return len(await session.get_items(limit=last))
