"""The Calls that list the users of an application and delete a user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..calls import Call, Command
from ..replies import decode_counts
from ..scripts import SCRIPTS
from .base import BaseOps

_KEYS_PER_SCAN = 1000


class UserOps(BaseOps):
    """Calls on users."""

    def list_users(
        self, app_name: str, slot: int | None, cursor: int
    ) -> Call[tuple[int, list[str]]]:
        """The next cursor of a scan, 0 at the end, and some users of an application.

        Args:
            app_name: the application.
            slot: a slot of the server to scan; None = the slot of the app tier.
            cursor: 0, or the cursor that the last Call returned.
        """
        pattern = self._keys.users(app_name)

        def decode(replies: list[Any]) -> tuple[int, list[str]]:
            position, found = replies[0]
            return int(position), [pattern.user_id(key) for key in found]

        command: Command = ("SCAN", cursor, "MATCH", pattern.glob, "COUNT", _KEYS_PER_SCAN)
        route = self._keys.app(app_name) if slot is None else slot
        return Call("list_users", decode, commands=(command,), writes=False, slot=route)

    def delete_sessions(
        self, app_name: str, user_id: str, existed_us: int, ids: Sequence[str]
    ) -> Call[tuple[int, int]]:
        """Delete sessions that existed at a time; 0 = now. Returns that time, and how many."""
        keys = [*self._keys.user(app_name, user_id)[:2]]
        for name in ids:
            keys += self._keys.session(app_name, user_id, name)[:2]
        args = (b"%d" % existed_us, *map(str.encode, ids))
        script = SCRIPTS["delete_sessions"]
        return Call("delete_user", decode_counts, script, tuple(keys), args)

    def delete_user(self, app_name: str, user_id: str) -> Call[tuple[int, int]]:
        """Delete the state of a user without sessions. Returns how many sessions, and state keys.

        State is removed only if there are no sessions.
        """
        keys = self._keys.user(app_name, user_id)[:2]
        return Call("delete_user", decode_counts, SCRIPTS["delete_user"], keys)
