"""Session storage for AI agents: atomic Lua scripts on Redis or Valkey, and an in-memory twin."""

from importlib.metadata import PackageNotFoundError, version

from .compactor import Compactor
from .compression import Zstd
from .encryption import KeyRing
from .errors import (
    BackendError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    CorruptData,
    EventsMissing,
    InvalidArgument,
    LimitExceeded,
    NotReplicated,
    ScriptContractError,
    SessionExists,
    SessionNotFound,
    SessionStoreError,
    StaleVersion,
    TurnLost,
    TurnTaken,
)
from .instances import register_redis_instance
from .model import (
    DeletedUser,
    Event,
    EventPage,
    Ping,
    Session,
    SessionKey,
    SessionPage,
    Summary,
    Turn,
    WatchChange,
    WatchEnd,
    WatchEntry,
)
from .run_context import RunContext
from .runner import Agent, Run, Runner
from .service import InMemorySessionService, RedisSessionService, SessionService
from .windows import Window, estimate_tokens, tokens_in_metadata

try:
    __version__ = version(__name__)
except PackageNotFoundError:  # imported from a folder, without an installation
    __version__ = "unknown"

__all__ = [
    "Agent",
    "BackendError",
    "BackendRejected",
    "BackendTimeout",
    "BackendUnavailable",
    "Compactor",
    "CorruptData",
    "DeletedUser",
    "Event",
    "EventPage",
    "EventsMissing",
    "InMemorySessionService",
    "InvalidArgument",
    "KeyRing",
    "LimitExceeded",
    "NotReplicated",
    "Ping",
    "RedisSessionService",
    "Run",
    "RunContext",
    "Runner",
    "ScriptContractError",
    "Session",
    "SessionExists",
    "SessionKey",
    "SessionNotFound",
    "SessionPage",
    "SessionService",
    "SessionStoreError",
    "StaleVersion",
    "Summary",
    "Turn",
    "TurnLost",
    "TurnTaken",
    "WatchChange",
    "WatchEnd",
    "WatchEntry",
    "Window",
    "Zstd",
    "__version__",
    "estimate_tokens",
    "register_redis_instance",
    "tokens_in_metadata",
]
