"""The builders of Calls: pure methods from typed arguments to a Call.

A write is a Lua script. A read is a transaction of plain commands, because Lua is slow with large
replies. If reads refresh TTLs, a small script runs first in the same transaction.

There is a module for each topic. flows/ and twin/ have modules of the same names.
"""

from .base import LeaseName, ids_of
from .data_keys import DataKeyOps
from .events import EVENTS_PER_CALL_LIMIT, EventOps
from .history import HistoryOps
from .listing import SESSIONS_PER_PAGE_LIMIT, ListingOps
from .restore import RestoreOps
from .servers import ServerOps
from .sessions import SessionOps
from .state import StateOps
from .stream import StreamOps
from .turns import TurnOps
from .users import UserOps
from .watching import WatchingOps

__all__ = ["EVENTS_PER_CALL_LIMIT", "SESSIONS_PER_PAGE_LIMIT", "LeaseName", "Ops", "ids_of"]


class Ops(
    SessionOps,
    ListingOps,
    UserOps,
    EventOps,
    StreamOps,
    WatchingOps,
    HistoryOps,
    RestoreOps,
    TurnOps,
    StateOps,
    DataKeyOps,
    ServerOps,
):
    """Builds the Calls of one service. BaseOps has the arguments."""
