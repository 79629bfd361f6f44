"""adk-session-services: RedisSessionService. It has no TTL."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from . import adapter_adk_memory


class Adapter(adapter_adk_memory.Adapter):
    """The calls of the worker."""

    async def _make_service(self, url: str) -> Any:
        sessions: Any = import_module("adk_session_services.redis_session.redis_session_service")
        return sessions.RedisSessionService(url)
