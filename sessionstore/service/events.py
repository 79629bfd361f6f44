"""Append, read and remove events."""

from __future__ import annotations

from collections.abc import Iterable

from .. import flows
from ..model import Event, EventPage, Session, SessionKey, Turn
from .base import BaseService


class EventOperations(BaseService):
    """Operations on the log of a session."""

    async def append_event(
        self,
        session: Session | SessionKey,
        event: Event,
        *,
        if_version: int | None = None,
        turn: Turn | None = None,
    ) -> Event:
        """Append an event and apply its state delta, in one atomic step, exactly once.

        An event that is stored already changes nothing. An event with `partial=True` is a fragment
        of one that is being written. It is never in the log, its state is not applied, and without
        `stream_ttl` it is only returned. With it, fragments are kept for that time, the newest
        5,000 calls and 8 MiB of a session. They become obsolete when a complete event of the same
        invocation, author and branch follows. They change nothing else of the session.

        Args:
            session: the session, or its key. A Session is updated too.
            event: what to append; up to `event_size_limit` bytes when encoded.
            if_version: append only if the session has this version.
            turn: append only while no other run has acquired the turn.

        Returns:
            The event as stored: a copy, without `temp:` state.

        Raises:
            InvalidArgument: a field is not valid; names it. LimitExceeded if it is too large.
            SessionNotFound: the session does not exist.
            StaleVersion: the session has another version than `if_version`.
            TurnLost: another run has acquired the turn.
            BackendError: the store refused the call or did not answer (`maybe_applied`); it is safe
                to append the same event again.

        lua/append_event.lua; one round trip, a second one to update a Session if the event was
        stored already; O(log N + state keys) in a session of N events. A fragment:
        lua/append_fragments.lua, one round trip, O(log N).
        Sent again after a lost reply; a repeat finds the event. If it may have been stored and
        removed meanwhile, or the condition fails, the call ends with `maybe_applied`.
        """
        return await self._run(flows.append_event(self._ops, session, event, if_version, turn))

    async def append_events(
        self,
        session: Session | SessionKey,
        events: Iterable[Event],
        *,
        if_version: int | None = None,
        turn: Turn | None = None,
    ) -> list[Event]:
        """Append events in order, all or nothing, each as `append_event` does.

        Args:
            session: the session, or its key. A Session is updated too.
            events: up to 500. If all of them are partial, they are kept as `append_event` does;
                among complete events, partial events are only returned.
            if_version: append only if the session has this version.
            turn: append only while no other run has acquired the turn.

        Returns:
            The events as stored, in the same order.

        Raises:
            InvalidArgument: a field is not valid; names it. LimitExceeded if an event is too
                large, there are too many, or they have more than 64 MiB together.
            SessionNotFound: the session does not exist.
            StaleVersion: the session has another version than `if_version`.
            TurnLost: another run has acquired the turn.
            BackendError: the store refused the call or did not answer (`maybe_applied`); it is safe
                to append the same events again.

        lua/append_events.lua; one round trip, a second one to update a Session if an event was
        stored already; O(log N + state keys) per event in a session of N events. Fragments:
        lua/append_fragments.lua, one round trip, O(log N).
        Sent again after a lost reply, like `append_event`.
        """
        return await self._run(flows.append_events(self._ops, session, events, if_version, turn))

    async def get_events(
        self,
        session: Session | SessionKey,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int = 100,
        newest: bool = False,
    ) -> EventPage:
        """A page of a session's log, oldest first. Events that a summary covers are read too.

        Without a cursor the page starts at the oldest event: `limit=3` returns the first three
        events, whereas `get_session(event_num=3)` returns the last three. To page backwards from
        the end, start with `newest=True` and continue with `before=page.first`.

        Args:
            session: the session, or its key.
            after: read forwards from this position (`page.last`); None = from the oldest event.
            before: read backwards from this position (`page.first`). With both, the events between
                the two, from the oldest.
            limit: maximum number of events to return, 1 to 10,000.
            newest: of the events after `after` and before `before`, read the newest `limit`.

        Returns:
            The events, oldest first, and their positions, in microseconds.

        Raises:
            InvalidArgument: an argument is not valid; names it.
            SessionNotFound: the session does not exist.
            CorruptData: stored bytes do not decode; EventsMissing: the server lost events.
            BackendError: the store could not be read.

        lua/touch_session.lua and plain reads; one round trip, O(log N + events read) in a session
        of N events.
        """
        return await self._run(flows.get_events(self._ops, session, after, before, limit, newest))

    async def pop_event(
        self, session: Session | SessionKey, *, if_version: int | None = None
    ) -> Event | None:
        """Remove the newest event and return it; None if there is none. State is not changed.

        Events that a summary covers are not removed.

        Args:
            session: the session, or its key. A Session is updated too.
            if_version: pop only if the session has this version.

        Raises:
            InvalidArgument: an argument is not valid; names it.
            SessionNotFound: the session does not exist.
            StaleVersion: the session has another version than `if_version`.
            CorruptData: the event does not decode. It is removed all the same.
            BackendError: the store refused the call or did not answer (`maybe_applied`). A pop is
                never sent twice.

        lua/pop_event.lua; one round trip, O(log N) in a session of N events.
        Not sent again.
        """
        return await self._run(flows.pop_event(self._ops, session, if_version))

    async def clear_events(
        self, session: Session | SessionKey, *, if_version: int | None = None
    ) -> None:
        """Remove all events of a session, and its summary. State is not changed.

        Args:
            session: the session, or its key. A Session is updated too.
            if_version: clear only if the session has this version.

        Raises:
            InvalidArgument: an argument is not valid; names it.
            SessionNotFound: the session does not exist.
            StaleVersion: the session has another version than `if_version`.
            BackendError: the store refused the call or did not answer.

        lua/clear_events.lua; one round trip, O(1).
        Not sent again: a repeat would remove what was appended meanwhile.
        """
        await self._run(flows.clear_events(self._ops, session, if_version))
