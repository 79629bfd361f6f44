"""The same for threads: services and Runner without `await`.

service.py and runner.py are generated from the modules for asyncio, see
tests/support/generate_sync.py.
"""

from .service import InMemorySessionService, RedisSessionService, SessionService

__all__ = ["InMemorySessionService", "RedisSessionService", "SessionService"]
