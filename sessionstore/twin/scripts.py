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
            sessions.check_session,
            sessions.create_session,
            sessions.delete_session,
            sessions.get_or_create_session,
            sessions.repair_session,
            sessions.touch_session,
            listing.prune_index,
            users.delete_sessions,
            users.delete_user,
            events.append_event,
            events.append_events,
            events.clear_events,
            events.pop_event,
            events.replace_newest,
            stream.append_fragments,
            watching.listen_session,
            history.compact_session,
            history.fork_session,
            history.replace_event,
            history.rewind_session,
            restore.restore_session,
            restore.stage_events,
            turns.acquire_turn,
            turns.free_turn,
            turns.renew_turn,
            state.change_fields,
            state.touch_tier,
            state.update_session_state,
            state.update_tier_state,
            data_keys.delete_data_key,
            data_keys.reseal_values,
            data_keys.retire_data_key,
            data_keys.set_data_key,
            data_keys.undo_data_key,
            data_keys.use_data_key,
        )
    }
)
"""Every script that a Call may name, by the name of its Lua file."""
