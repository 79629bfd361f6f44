"""The registry of the scripts of lua/ in Python over a Keyspace: the same KEYS, ARGV and replies.

Compare each function with the Lua file of the same name. Tests run both with random sequences of
calls. There is a module for each topic, as in ops/ and flows/.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from . import (
    data_keys,
    events,
    history,
    listing,
    restore,
    sessions,
    state,
    stream,
    turns,
    users,
    watching,
)
from .fragments import Args, Keys, Reply
from .keyspace import Keyspace

TWINS: MappingProxyType[str, Callable[[Keyspace, Keys, Args], Reply]] = MappingProxyType(
    {
        script.__name__: script
        for script in (
            turns.acquire_turn,
            events.append_event,
            events.append_events,
            stream.append_fragments,
            state.change_fields,
            sessions.check_session,
            events.clear_events,
            history.compact_session,
            sessions.create_session,
            data_keys.delete_data_key,
            sessions.delete_session,
            users.delete_sessions,
            users.delete_user,
            history.fork_session,
            turns.free_turn,
            sessions.get_or_create_session,
            watching.listen_session,
            events.pop_event,
            listing.prune_index,
            turns.renew_turn,
            sessions.repair_session,
            history.replace_event,
            events.replace_newest,
            data_keys.reseal_values,
            restore.restore_session,
            data_keys.retire_data_key,
            history.rewind_session,
            data_keys.set_data_key,
            restore.stage_events,
            sessions.touch_session,
            state.touch_tier,
            data_keys.undo_data_key,
            state.update_session_state,
            state.update_tier_state,
            data_keys.use_data_key,
        )
    }
)
"""Every script that a Call may name, by the name of its Lua file."""
