"""The class that has all operations."""

from __future__ import annotations

from .events import EventOperations
from .history import HistoryOperations
from .sessions import SessionOperations
from .state import StateOperations
from .turns import TurnOperations


class SessionService(
    SessionOperations, EventOperations, HistoryOperations, TurnOperations, StateOperations
):
    """All operations on sessions, the same for every kind of store.

    Use one of its subclasses. Any number of tasks may use a service at once.
    """
