"""Session storage for AI agents: atomic Lua scripts on Redis or Valkey, and an in-memory twin."""

from .errors import (
    BackendError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    CorruptData,
    InvalidArgument,
    LimitExceeded,
    ScriptContractError,
    SessionExists,
    SessionNotFound,
    SessionStoreError,
    StaleVersion,
)
from .instances import register_redis_instance
from .model import Event, EventPage, Session, SessionKey
from .service import InMemorySessionService, RedisSessionService, SessionService

__all__ = [
    "BackendError",
    "BackendRejected",
    "BackendTimeout",
    "BackendUnavailable",
    "CorruptData",
    "Event",
    "EventPage",
    "InMemorySessionService",
    "InvalidArgument",
    "LimitExceeded",
    "RedisSessionService",
    "ScriptContractError",
    "Session",
    "SessionExists",
    "SessionKey",
    "SessionNotFound",
    "SessionService",
    "SessionStoreError",
    "StaleVersion",
    "register_redis_instance",
]
