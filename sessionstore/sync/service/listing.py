# Generated from sessionstore/service/listing.py by tests/support/generate_sync.py. Do not edit.
"""List and count the sessions of a user."""

from __future__ import annotations

from ... import flows
from ...model import SessionPage
from .base import BaseService


class ListingOperations(BaseService):
    """Operations on the sessions of a user."""

    def list_sessions(
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
        return self._run(
            flows.list_sessions(self._ops, app_name, user_id, limit, offset, event_num, after)
        )

    def count_sessions(self, app_name: str, user_id: str) -> int:
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
        return self._run(flows.count_sessions(self._ops, app_name, user_id))
