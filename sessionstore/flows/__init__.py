"""Operations as flows: generators that yield Calls and receive their results.

Most operations are one Call. A flow may send several, and it updates the caller's Session, but only
after the store has accepted the write. There is a module for each topic, as in ops/ and twin/.

In a cluster the app tier may have a slot of its own (`ops.app_in_own_slot`). A read then sends two
Calls together, and a write of both is several steps: see app_tier.py.
"""

from .events import append_event, append_events, clear_events, get_events, pop_event, replace_newest
from .history import compact_session, delete_event, fork_session, replace_event, rewind_session
from .listing import count_sessions, list_sessions
from .restore import restore_session
from .servers import ping
from .sessions import (
    create_session,
    delete_session,
    get_or_create_session,
    get_session,
    repair_session,
)
from .state import (
    delete_app_state,
    delete_session_state,
    delete_user_state,
    get_app_state,
    get_user_state,
    increment_app_state,
    increment_session_state,
    increment_user_state,
    update_app_state,
    update_session_state,
    update_user_state,
)
from .turns import acquire_turn, free_turn, release_turn, renew_turn
from .users import delete_user, list_users

__all__ = [
    "acquire_turn",
    "append_event",
    "append_events",
    "clear_events",
    "compact_session",
    "count_sessions",
    "create_session",
    "delete_app_state",
    "delete_event",
    "delete_session",
    "delete_session_state",
    "delete_user",
    "delete_user_state",
    "fork_session",
    "free_turn",
    "get_app_state",
    "get_events",
    "get_or_create_session",
    "get_session",
    "get_user_state",
    "increment_app_state",
    "increment_session_state",
    "increment_user_state",
    "list_sessions",
    "list_users",
    "ping",
    "pop_event",
    "release_turn",
    "renew_turn",
    "repair_session",
    "replace_event",
    "replace_newest",
    "restore_session",
    "rewind_session",
    "update_app_state",
    "update_session_state",
    "update_user_state",
]
