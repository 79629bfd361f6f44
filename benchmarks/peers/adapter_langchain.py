"""langchain-community: RedisChatMessageHistory, with a TTL, through its own asyncio methods."""

from __future__ import annotations

from importlib import import_module
from typing import Any
from uuid import uuid4

from ..payload import TEXT, TTL_SECONDS


class Adapter:
    """The calls of the worker."""

    async def open(self, url: str) -> None:
        """Remember the URL."""
        histories: Any = import_module("langchain_community.chat_message_histories.redis")
        self._history = histories.RedisChatMessageHistory
        self._message: Any = import_module("langchain_core.messages").AIMessage
        self._url = url

    async def make(self) -> Any:
        """A new history."""
        return self._history(session_id=uuid4().hex, url=self._url, ttl=TTL_SECONDS)

    def event(self) -> Any:
        """A new message."""
        return self._message(content=TEXT)

    async def append(self, session: Any) -> None:
        """Append a new message."""
        await session.aadd_messages([self.event()])

    async def read(self, session: Any, last: int) -> int:
        """Read the newest messages. The library can only read all. Returns how many."""
        return len((await session.aget_messages())[-last:])
