"""google-adk-community: RedisSessionService, with a TTL."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..payload import TTL_SECONDS
from . import adapter_adk_memory


class Adapter(adapter_adk_memory.Adapter):
    """The calls of the worker."""

    async def _make_service(self, url: str) -> Any:
        sessions: Any = import_module("google.adk_community.sessions.redis_session_service")
        return sessions.RedisSessionService(uri=url, expire=TTL_SECONDS)
