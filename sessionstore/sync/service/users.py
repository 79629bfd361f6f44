# Generated from sessionstore/service/users.py by tests/support/generate_sync.py. Do not edit.
"""List and delete users."""

from __future__ import annotations

from ... import flows
from ...model import DeletedUser
from .base import BaseService


class UserOperations(BaseService):
    """Operations on users."""

    def list_users(self, app_name: str) -> list[str]:
        """The users of an application that have sessions or state, in alphabetical order.

        For administration, not for requests: it scans all keys of all servers. A user who is new
        since the scan began, or whose slot moves, may be missing.

        Args:
            app_name: 1 to 256 bytes of UTF-8.

        Raises:
            InvalidArgument: the name is not valid.
            BackendError: the store could not be read.

        Plain SCAN; one round trip for every 1,000 keys, O(all keys).
        """
        return self._run(flows.list_users(self._ops, app_name))

    def delete_user(self, *, app_name: str, user_id: str) -> DeletedUser:
        """Delete a user: sessions with their events, index and state.

        If the user has no data, nothing happens. It removes the sessions that exist when it starts,
        100 in a step. If no session was created meanwhile, it then removes the state, and with a
        `key_store` the user's data key, so that no copy of the data can be read any more. Each step
        is atomic, all of them together are not: after an error some sessions may be gone, and
        calling it again removes the rest. To keep new sessions away, stop the user's agents first.
        It waits while the user's slot is migrated.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.

        Returns:
            What was removed, and which sessions were created meanwhile. A step that was sent again
            because its reply was lost does not count what the first attempt removed.

        Raises:
            InvalidArgument: an id is not valid; names it.
            BackendError: the store refused the call or did not answer.

        lua/delete_sessions.lua, plain ZRANGE, lua/delete_user.lua; four round trips, two for every
        100 sessions more; O(sessions), and O(events) in the background of the server. With a
        `key_store` also lua/retire_data_key.lua and lua/delete_data_key.lua, one round trip each.
        """
        return self._run(flows.delete_user(self._ops, app_name, user_id))
