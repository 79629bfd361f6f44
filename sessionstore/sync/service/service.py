# Generated from sessionstore/service/service.py by tests/support/generate_sync.py. Do not edit.
"""The class that has all operations."""

from __future__ import annotations

from .events import EventOperations
from .history import HistoryOperations
from .listing import ListingOperations
from .restore import RestoreOperations
from .sessions import SessionOperations
from .state import StateOperations
from .turns import TurnOperations
from .users import UserOperations
from .watching import WatchingOperations


class SessionService(
    SessionOperations,
    ListingOperations,
    UserOperations,
    EventOperations,
    WatchingOperations,
    HistoryOperations,
    RestoreOperations,
    TurnOperations,
    StateOperations,
):
    """All operations on sessions, the same for every kind of store.

    Use one of its subclasses. Any number of threads may use a service at once.
    """
