# Generated from sessionstore/service/state.py by tests/support/generate_sync.py. Do not edit.
"""Read, update, increment and delete state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import flows
from ...model import Session, SessionKey
from .base import BaseService


class StateOperations(BaseService):
    """Operations on the state of sessions, users and applications."""

    def update_session_state(
        self,
        session: Session | SessionKey,
        state: Mapping[str, Any],
        *,
        if_version: int | None = None,
        if_absent: bool = False,
    ) -> None:
        """Set state of a session without an event.

        Without anything to store, and without `if_version`, nothing is sent.

        Args:
            session: the session, or its key. A Session is updated too.
            state: values to set; `app:`, `user:` and `temp:` keys go to their tier.
            if_version: write only if the session has this version.
            if_absent: set only keys that do not exist: of several writers the first wins. A key
                whose value is None exists. A Session gets the values that are stored.

        Raises:
            InvalidArgument: a key or a value is not valid; names it.
            SessionNotFound: the session does not exist.
            StaleVersion: the session has another version than `if_version`.
            BackendError: the store refused the call or did not answer.

        lua/update_session_state.lua; one round trip, O(keys).
        Without `if_version` sent again after a lost reply; a repeat writes the same again.
        """
        self._run(flows.update_session_state(self._ops, session, state, (), if_version, if_absent))

    def increment_session_state(
        self, session: Session | SessionKey, increments: Mapping[str, int]
    ) -> dict[str, int]:
        """Add integers to state in one atomic step, and return the new values.

        Any number of callers may add to one value, and no addition is lost. A missing value counts
        as 0. To add exactly once after an error, append an Event with `state_increments`.

        Args:
            session: the session, or its key. A Session is updated too.
            increments: integers of either sign by key, up to 2**53 - 1. `app:` and `user:` keys go
                to their tier; `temp:` keys are not allowed, nor `app:` keys where the app tier has
                a cluster slot of its own.

        Returns:
            The new values, by the keys of `increments`.

        Raises:
            InvalidArgument: a key or an amount is not valid; names it.
            SessionNotFound: the session does not exist.
            BackendRejected: a value is not an integer, or would not stay below 2**53. Nothing was
                written.
            BackendError: the store refused the call or did not answer (`maybe_applied`). An
                increment is never sent twice.

        lua/update_session_state.lua; one round trip, O(keys).
        """
        return self._run(flows.increment_session_state(self._ops, session, increments))

    def delete_session_state(
        self, session: Session | SessionKey, *keys: str, if_version: int | None = None
    ) -> None:
        """Remove state of a session. No error for keys that do not exist.

        Without keys, and without `if_version`, nothing is sent.

        Args:
            session: the session, or its key. A Session is updated too.
            *keys: keys as in `session.state`: without a prefix, or with `app:` or `user:`.
            if_version: write only if the session has this version.

        Raises:
            InvalidArgument: a key is not valid; names it.
            SessionNotFound: the session does not exist.
            StaleVersion: the session has another version than `if_version`.
            BackendError: the store refused the call or did not answer.

        lua/update_session_state.lua; one round trip, O(keys).
        Without `if_version` sent again after a lost reply; a repeat writes the same again.
        """
        self._run(flows.delete_session_state(self._ops, session, keys, if_version))

    def get_user_state(self, app_name: str, user_id: str) -> dict[str, Any]:
        """The state that all sessions of a user share. Keys have no prefix.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.

        Raises:
            InvalidArgument: an id is not valid; names it.
            CorruptData: stored bytes do not decode.
            BackendError: the store could not be read.

        lua/touch_tier.lua and a plain read; one round trip, O(keys).
        """
        return self._run(flows.get_user_state(self._ops, app_name, user_id))

    def update_user_state(
        self, app_name: str, user_id: str, state: Mapping[str, Any], *, if_absent: bool = False
    ) -> None:
        """Set state that all sessions of a user share.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            state: values to set; keys with or without `user:`, no other prefix.
            if_absent: set only keys that do not exist: of several writers the first wins.

        Raises:
            InvalidArgument: a key or a value is not valid; names it.
            BackendError: the store refused the call or did not answer.

        lua/update_tier_state.lua; one round trip, O(keys).
        Sent again after a lost reply; a repeat writes the same again.
        """
        self._run(flows.update_user_state(self._ops, app_name, user_id, state, (), if_absent))

    def increment_user_state(
        self, app_name: str, user_id: str, increments: Mapping[str, int]
    ) -> dict[str, int]:
        """Add integers to the state of a user in one atomic step, and return the new values.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            increments: integers of either sign by key, up to 2**53 - 1; keys with or without
                `user:`, no other prefix. A missing value counts as 0.

        Returns:
            The new values, by the keys of `increments`.

        Raises:
            InvalidArgument: a key or an amount is not valid; names it.
            BackendRejected: a value is not an integer, or would not stay below 2**53. Nothing was
                written.
            BackendError: the store refused the call or did not answer (`maybe_applied`). An
                increment is never sent twice.

        lua/update_tier_state.lua; one round trip, O(keys).
        """
        return self._run(flows.increment_user_state(self._ops, app_name, user_id, increments))

    def delete_user_state(self, app_name: str, user_id: str, *keys: str) -> None:
        """Remove state that all sessions of a user share. No error for keys that do not exist.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            *keys: with or without `user:`, no other prefix.

        Raises:
            InvalidArgument: a key is not valid; names it.
            BackendError: the store refused the call or did not answer.

        lua/update_tier_state.lua; one round trip, O(keys).
        Sent again after a lost reply; a repeat writes the same again.
        """
        self._run(flows.delete_user_state(self._ops, app_name, user_id, keys))

    def get_app_state(self, app_name: str) -> dict[str, Any]:
        """The state that all users of an application share. Keys have no prefix.

        Args:
            app_name: 1 to 256 bytes of UTF-8.

        Raises:
            InvalidArgument: the name is not valid.
            CorruptData: stored bytes do not decode.
            BackendError: the store could not be read.

        lua/touch_tier.lua and a plain read; one round trip, O(keys).
        """
        return self._run(flows.get_app_state(self._ops, app_name))

    def update_app_state(
        self, app_name: str, state: Mapping[str, Any], *, if_absent: bool = False
    ) -> None:
        """Set state that all users of an application share.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            state: values to set; keys with or without `app:`, no other prefix.
            if_absent: set only keys that do not exist: of several writers the first wins.

        Raises:
            InvalidArgument: a key or a value is not valid; names it.
            BackendError: the store refused the call or did not answer.

        lua/update_tier_state.lua; one round trip, O(keys).
        Sent again after a lost reply; a repeat writes the same again.
        """
        self._run(flows.update_app_state(self._ops, app_name, state, (), if_absent))

    def increment_app_state(self, app_name: str, increments: Mapping[str, int]) -> dict[str, int]:
        """Add integers to the state of an application in one atomic step; returns the new values.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            increments: integers of either sign by key, up to 2**53 - 1; keys with or without
                `app:`, no other prefix. A missing value counts as 0.

        Returns:
            The new values, by the keys of `increments`.

        Raises:
            InvalidArgument: a key or an amount is not valid; names it.
            BackendRejected: a value is not an integer, or would not stay below 2**53. Nothing was
                written.
            BackendError: the store refused the call or did not answer (`maybe_applied`). An
                increment is never sent twice.

        lua/update_tier_state.lua; one round trip, O(keys).
        """
        return self._run(flows.increment_app_state(self._ops, app_name, increments))

    def delete_app_state(self, app_name: str, *keys: str) -> None:
        """Remove state that all users of an application share. No error for keys that do not exist.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            *keys: with or without `app:`, no other prefix.

        Raises:
            InvalidArgument: a key is not valid; names it.
            BackendError: the store refused the call or did not answer.

        lua/update_tier_state.lua; one round trip, O(keys).
        Sent again after a lost reply; a repeat writes the same again.
        """
        self._run(flows.delete_app_state(self._ops, app_name, keys))
