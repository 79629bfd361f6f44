"""llama-index-storage-chat-store-redis: RedisChatStore over asyncio, with a TTL."""

from __future__ import annotations

from importlib import import_module
from typing import Any
from uuid import uuid4

from ..payload import TEXT, TTL_SECONDS


class Adapter:
    """The calls of the worker."""

    async def open(self, url: str) -> None:
        """Connect."""
        stores: Any = import_module("llama_index.storage.chat_store.redis")
        self._message: Any = import_module("llama_index.core.llms").ChatMessage
        self._store = stores.RedisChatStore(redis_url=url, ttl=TTL_SECONDS)

    async def make(self) -> Any:
        """The key of a new list of messages."""
        return uuid4().hex

    def event(self) -> Any:
        """A new message."""
        return self._message(role="assistant", content=TEXT)

    async def append(self, session: Any) -> None:
        """Append a new message."""
        await self._store.async_add_message(session, self.event())

    async def read(self, session: Any, last: int) -> int:
        """Read the newest messages. The library can only read all. Returns how many."""
        return len((await self._store.aget_messages(session))[-last:])
