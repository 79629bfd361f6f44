"""Create, read, delete and repair sessions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from .. import flows
from ..model import Session, SessionKey
from ..windows import Window
from .base import BaseService


class SessionOperations(BaseService):
    """Operations on whole sessions."""

    async def create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Session:
        """A new session.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            session_id: likewise; "" or None makes a new UUID.
            state: initial state; `app:`, `user:` and `temp:` keys go to their tier.

        Returns:
            The session. Its state includes the stored state of the app and user tier.

        Raises:
            InvalidArgument: an id or a value is not valid; names it.
            SessionExists: a session with this id exists.
            BackendError: the store refused the call or did not answer.

        lua/create_session.lua and plain reads; one round trip, O(state keys). Each time the user's
        index has grown by 64 sessions, one more with 256 look-ups removes expired ones.
        Sent again after a lost reply; a repeat finds its own session.
        """
        return await self._run(
            flows.create_session(self._ops, app_name, user_id, session_id, state)
        )

    async def get_or_create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str | None = None,
        state: Mapping[str, Any] | None = None,
        event_num: int | None = None,
        event_time: datetime | None = None,
        window: Window | None = None,
    ) -> Session:
        """The session with this id, created if it does not exist. Concurrent calls create one.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            session_id: likewise; "" or None makes a new UUID.
            state: initial state; ignored, except for `temp:` keys, if the session exists.
            event_num: how many of the newest events to read; None = all, 0 = none.
            event_time: read only events at or after this instant, timezone-aware.
            window: read the newest whole turns that fit, in place of the two above.

        Returns:
            The session with merged state and the requested events, oldest first. If it has a
            summary, these are events after it.

        Raises:
            InvalidArgument: an argument is not valid; names it.
            CorruptData: stored bytes do not decode; EventsMissing: the server lost events.
            BackendError: the store refused the call or did not answer.

        lua/get_or_create_session.lua and plain reads; one round trip, O(events and state keys).
        Like `create_session`, a new session may cost one more. Summaries: like `get_session`.
        Sent again after a lost reply; a repeat finds the session.
        """
        return await self._run(
            flows.get_or_create_session(
                self._ops, app_name, user_id, session_id, state, event_num, event_time, window
            )
        )

    async def get_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        event_num: int | None = None,
        event_time: datetime | None = None,
        window: Window | None = None,
    ) -> Session | None:
        """A session as it is now, read in one atomic step; None if it does not exist.

        `event_num` limits from the newest event: `event_num=3` returns the last three events. (The
        `limit` of `get_events` counts from the oldest.) Changing a value of `session.state` stores
        nothing: use `update_session_state`, or the `state_delta` of an Event.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            session_id: likewise.
            event_num: how many of the newest events to read; None = all, 0 = none.
            event_time: read only events at or after this instant, timezone-aware. With both, the
                newest `event_num` of these.
            window: read the newest whole turns that fit, in place of the two above. The first read
                has 64 events. If a turn starts before them, another reads twice as many.

        Returns:
            The session with merged state and the requested events, oldest first. If it has a
            summary, these are events after it.

        Raises:
            InvalidArgument: an argument is not valid; names it.
            CorruptData: stored bytes do not decode; EventsMissing: the server lost events.
            BackendError: the store could not be read. This is never reported as None.

        lua/touch_session.lua and plain reads; one round trip, O(events and state keys). Counting
        the events for `event_count` is one O(1) command more, unless all events are read.
        A service remembers where the summaries of sessions end. Until it has seen a session once,
        a read without `event_num` and `window` transfers covered events too. A summary that was
        removed meanwhile costs a second round trip.
        """
        key = SessionKey(app_name, user_id, session_id)
        return await self._run(flows.get_session(self._ops, key, event_num, event_time, window))

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Delete a session with its events and state. No error if it does not exist.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            session_id: likewise.

        Raises:
            InvalidArgument: an id is not valid; names it.
            BackendError: the store refused the call or did not answer.

        lua/delete_session.lua; one round trip, O(1).
        Sent again after a lost reply. A repeat does not delete a session that was created
        meanwhile, but ends with `maybe_applied`.
        """
        await self._run(flows.delete_session(self._ops, app_name, user_id, session_id))

    async def repair_session(self, session: Session | SessionKey) -> Session:
        """Accept what is left of a session whose events or header were lost or damaged.

        From then on, reads return the events that are left. A lost header is replaced by a new one.
        Then the session's state is lost too, and older Session objects can no longer be used.

        Args:
            session: the session, or its key.

        Returns:
            The session with merged state and the events that are left.

        Raises:
            InvalidArgument: an argument is not valid; names it.
            SessionNotFound: nothing is left of the session.
            CorruptData: an event or a state value does not decode.
            BackendError: the store refused the call or did not answer.

        lua/repair_session.lua; one round trip, O(events).
        Sent again after a lost reply; a repeat changes only `version`.
        """
        return await self._run(flows.repair_session(self._ops, session))
