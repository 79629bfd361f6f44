"""Watch sessions."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from .. import flows
from ..model import Session, SessionKey, Watched
from ..options import Duration, check_seconds
from .base import BaseService


class WatchingOperations(BaseService):
    """Operations of watchers."""

    def watch_events(
        self,
        session: Session | SessionKey,
        *,
        after: str | int | None = None,
        partial: bool = False,
        idle_timeout: Duration | None = None,
    ) -> AsyncGenerator[Watched, None]:
        """An iterator over a session's log: first the stored events, then new ones.

        Any number of processes may append and watch. Every event is yielded once, in the order of
        positions, even if connections break: events are read from the log, and messages of the
        server only say when. If you leave the loop early, close the iterator with
        `contextlib.aclosing`.

        Args:
            session: the session, or its key.
            after: the cursor of an earlier entry, or a position (`EventPage.last`), to continue
                after it; None = from the oldest event.
            partial: also yield the fragments of events that are being written, which writers with
                a `stream_ttl` keep: first those so far, then new ones. An entry is a fragment if
                `entry.event.partial` is True. The complete event follows.
            idle_timeout: end after this time without anything new; None = never.

        Yields:
            WatchEntry for each event. WatchChange when events that were yielded are removed or
            replaced. WatchEnd, last, when the session is deleted or expires, or after
            `idle_timeout`. Watching does not refresh the session's TTL.

        Raises:
            InvalidArgument: an argument is not valid; names it.
            SessionNotFound: the session does not exist. With a Session or a cursor, which belong to
                a session that did exist, there is a WatchEnd instead.
            CorruptData: stored bytes do not decode.
            EventsMissing: events after the cursor were trimmed, or lost by the server.
            BackendError: the store could not be read for `call_timeout`, or the service was closed.
                Continue with the last cursor.

        lua/listen_session.lua and plain reads of the primary. All watchers of the session in an
        event loop share one read for every message of an append, and one read of the header about
        once a second. A process makes at most 1,000 of the latter a second, for all sessions. A
        service for threads gets no messages, except in memory: it reads the header within 0.1 s
        after a change, then at intervals that double, up to a second.
        """
        key, place = flows.watching.start(self._ops, session, after, partial)
        idle_s = None if idle_timeout is None else check_seconds("idle_timeout", idle_timeout)
        return self._watchers.watch(key, place, idle_s)
