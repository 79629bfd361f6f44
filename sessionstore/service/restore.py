"""Restore sessions from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from msgspec import UNSET

from .. import flows
from ..model import Event, Session, SessionKey, Summary
from ..options import EventLimit
from .base import BaseService


class RestoreOperations(BaseService):
    """Operations that restore a session."""

    async def restore_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        events: Iterable[Event] = (),
        positions: Iterable[int] | None = None,
        state: Mapping[str, Any] | None = None,
        created_at: datetime | None = None,
        updated_at: datetime | None = None,
        event_limit: EventLimit = UNSET,
        forked_from: str | None = None,
        summary: Summary | None = None,
    ) -> Session:
        """A session with the events, positions and times that it had in another store, for imports.

        The session exists only when all of it is stored. So calling this again with the same
        arguments is safe at any time. It continues where a call was interrupted. If the session was
        restored already, nothing changes, even if others have written to it since.

        State of the user and of the application is not part of a session: see `update_user_state`
        and `update_app_state`. Turns are not restored. The session's TTL starts again.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            session_id: likewise.
            events: any number, oldest first. Changes of state are stored with an event, and not
                applied. Partial events are not allowed.
            positions: the position of each event, as `EventPage.positions` has them: integers from
                1 that grow. None = the timestamp of each event in microseconds, or the microsecond
                after the position before if that is later.
            state: the session's own state, up to 10,000 keys without a prefix.
            created_at: when it was created, timezone-aware; None = `updated_at`.
            updated_at: when it was last written, which is its place in lists; None = now.
            event_limit: how many of the newest events the session keeps; None = all. Not given =
                `session_event_limit` of the service if it has one, or else 1,000, or as many as
                there are if that is more. Nothing is removed before the next append.
            forked_from: the id of the session that it is a copy of.
            summary: the summary of the events up to `summary.upto`. How many of these the log
                holds is counted again. Rewinding behind it is refused later, because events that it
                covers may be gone.

        Returns:
            The session as it is now, with merged state and without its events.

        Raises:
            InvalidArgument: an argument is not valid, or two events are the same; names it.
                Nothing was sent. LimitExceeded if an event or the state is too large.
            SessionExists: another session has this id.
            BackendError: the store refused the call or did not answer. Nothing is visible unless
                `maybe_applied`; events that were sent are kept for an hour, for a repeat.

        lua/stage_events.lua for every 500 events or 1 MiB but the last ones, and
        lua/restore_session.lua with plain reads. Up to 500 events and 1 MiB take one round trip,
        a longer log one more and one for each further part. O(log N) per event.
        Sent again after a lost reply; a repeat finds its own session.
        """
        return await self._run(
            flows.restore_session(
                self._ops,
                SessionKey(app_name, user_id, session_id),
                events,
                positions,
                state,
                created_at,
                updated_at,
                event_limit,
                forked_from,
                summary,
            )
        )
