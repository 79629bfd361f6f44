"""The API without `await`: services and Runner for threads.

service/, compactor.py and runner.py are generated from the modules for asyncio, see
tests/support/generate_sync.py.
"""

from ..run_context import RunContext
from .compactor import Compactor
from .runner import Agent, Run, Runner
from .service import InMemorySessionService, RedisSessionService, SessionService

__all__ = [
    "Agent",
    "Compactor",
    "InMemorySessionService",
    "RedisSessionService",
    "Run",
    "RunContext",
    "Runner",
    "SessionService",
]
