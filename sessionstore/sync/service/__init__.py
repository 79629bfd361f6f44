# Generated from sessionstore/service/__init__.py by tests/support/generate_sync.py. Do not edit.
"""The public services for threads: one line per method, no logic."""

from .memory import InMemorySessionService
from .redis import RedisSessionService
from .service import SessionService

__all__ = ["InMemorySessionService", "RedisSessionService", "SessionService"]

# In repr, help and error messages the classes have the names by which they are imported.
for _kind in (SessionService, RedisSessionService, InMemorySessionService):
    _kind.__module__ = __name__
