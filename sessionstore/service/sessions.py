"""Create, read, list, delete and repair sessions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from .. import flows
from ..model import DeletedUser, Session, SessionKey, SessionPage
from ..windows import Window
from .base import BaseService


class SessionOperations(BaseService):
    """Operations on whole sessions, and on users."""

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

    async def list_sessions(
        self,
        *,
        app_name: str,
        user_id: str,
        limit: int = 100,
        offset: int = 0,
        event_num: int = 0,
        after: str | None = None,
    ) -> SessionPage:
        """A page of a user's sessions, last updated first. Listing does not refresh their TTL.

        To read all sessions, continue with `after=page.cursor` until it is None. This misses no
        session that exists during the whole walk, even while others write. First the pages go from
        the last updated session to the first updated one. Then they go up again, through the
        sessions that were updated since the first page; these may appear twice. `offset` gives no
        such guarantee: a session that is updated between two pages moves to the top, so the next
        page skips or repeats a session.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            limit: maximum number of sessions to return, 1 to 1,000.
            offset: how many sessions to skip, 0 or more; not together with `after`.
            event_num: how many of the newest events to read of each session; 0 = none.
            after: the `cursor` of the page before; None = the first page.

        Returns:
            Sessions with merged state and their summaries, as a list with the attribute `cursor`.
            It has fewer than `limit` sessions only if there are no more.

        Raises:
            InvalidArgument: an argument is not valid; names it.
            CorruptData: stored bytes do not decode; EventsMissing: the server lost events.
            BackendError: the store could not be read.

        Plain reads, and lua/prune_index.lua for expired sessions. Two round trips. In addition: one
        or two on the last of several pages; two for every 1,000 sessions of the offset and for
        every 1,000 expired sessions; one for every 100 sessions after the first 100; one to count
        the events of sessions of release 0.1.0. O(offset + sessions and events read). Every session
        gets a copy of the state of the other tiers.
        """
        return await self._run(
            flows.list_sessions(self._ops, app_name, user_id, limit, offset, event_num, after)
        )

    async def count_sessions(self, app_name: str, user_id: str) -> int:
        """The number of a user's sessions. Expired sessions do not count.

        Expired sessions are pruned from the index. A session that is created, is deleted or expires
        during the call may or may not be counted.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.

        Returns:
            0 or more.

        Raises:
            InvalidArgument: an id is not valid; names it.
            CorruptData: stored bytes do not decode.
            BackendError: the store refused the call or did not answer.

        Plain ZRANGE, lua/prune_index.lua; two round trips for every 1,000 sessions, O(sessions).
        """
        return await self._run(flows.count_sessions(self._ops, app_name, user_id))

    async def list_users(self, app_name: str) -> list[str]:
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
        return await self._run(flows.list_users(self._ops, app_name))

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

    async def delete_user(self, *, app_name: str, user_id: str) -> DeletedUser:
        """Delete a user: sessions with their events, index and state. No error if there are none.

        It removes the sessions that exist when it starts, 100 in a step. If no session was created
        meanwhile, it then removes the state, and with a `key_store` the user's data key, so that no
        copy of the data can be read any more. Each step is atomic, all of them together are not:
        after an error some sessions may be gone, and calling it again removes the rest. To keep new
        sessions away, stop the user's agents first. It waits while the user's slot is migrated.

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
        return await self._run(flows.delete_user(self._ops, app_name, user_id))

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
