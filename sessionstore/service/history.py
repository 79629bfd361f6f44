"""Compact, rewind, fork and correct sessions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import flows
from ..model import Event, Session, SessionKey, Summary, Turn
from ..windows import Window
from .base import BaseService


class HistoryOperations(BaseService):
    """Operations that change what a log holds."""

    async def compact_session(
        self,
        session: Session | SessionKey,
        *,
        upto: int,
        summary: Any,
        if_summary: int | None = None,
        drop: bool = False,
        if_version: int | None = None,
        turn: Turn | None = None,
        window: Window | None = None,
    ) -> Summary:
        """Store a summary of the oldest events of a session. Reads return it in their place.

        From then on `session.summary` is the summary, and reads of the session return only the
        events after it. `get_events` still reads the whole log. Covered events count towards the
        limit of events and are trimmed first. Popping stops at the summary. Clearing the events
        removes it, and so does rewinding behind it, or replacing or deleting a covered event.

        The summary must end where a turn ends, by the rules of a window: no invocation and no tool
        call may go on after it. The client checks the 32 events before and after that position.

        Args:
            session: the session, or its key. A Session is updated too.
            upto: the position of the last event that it covers, as `EventPage.positions` has it.
                For the newest event, `if_version` or `turn` must be given.
            summary: any value that the codec can store, not empty, up to `summary_size_limit` bytes
                when encoded.
            if_summary: the `upto` of the summary that this one replaces, so that of two callers who
                compact at once one wins; None = there is none. `upto` may be the same.
            drop: remove the covered events from the store.
            if_version: compact only if the session has this version.
            turn: compact only if the caller holds this turn. Not together with `if_version`.
            window: its `starts_turn` and `calls` are the rules for turns; None = the default ones.

        Returns:
            The summary as stored.

        Raises:
            InvalidArgument: an argument is not valid, there is no event at `upto`, or no turn ends
                there. LimitExceeded if the summary is too large.
            SessionNotFound: the session does not exist.
            StaleVersion: the session has another summary than `if_summary`, or another version than
                `if_version`. For a summary, `expected` and `actual` are positions; 0 = no summary.
            TurnLost: the caller does not hold `turn`.
            EventsMissing: the server lost events of the session.
            BackendError: the store refused the call or did not answer (`maybe_applied`).

        A plain read and lua/compact_session.lua; two round trips, O(log N) in a session of N
        events; with `drop` O(M) for M covered events: 10,000 take the server a few milliseconds.
        Sent again after a lost reply; a repeat finds the summary. If that may have been replaced or
        removed meanwhile, the call ends with `maybe_applied`.
        """
        return await self._run(
            flows.compact_session(
                self._ops, session, upto, summary, if_summary, drop, if_version, turn, window
            )
        )

    async def rewind_session(
        self,
        session: Session | SessionKey,
        *,
        to: int,
        state: Mapping[str, Any] | None = None,
        if_version: int | None = None,
        turn: Turn | None = None,
    ) -> int:
        """Remove all events after a position, in one atomic step. Their positions are never reused.

        If that removes events that the summary covers, the summary is removed too. This is refused
        if other covered events were trimmed or dropped: nothing but the summary tells of them.

        Args:
            session: the session, or its key. A Session is updated too.
            to: the position of the last event that stays, as `EventPage.positions` has it; 0 =
                remove all events.
            state: replaces the session's own state, keys without a prefix; None = the state does
                not change.
            if_version: rewind only if the session has this version.
            turn: rewind only if the caller holds this turn. Not together with `if_version`.

        Returns:
            How many events were removed.

        Raises:
            InvalidArgument: an argument is not valid; names it. Or the summary covers events that
                are gone.
            SessionNotFound: the session does not exist.
            StaleVersion: the session has another version than `if_version`.
            TurnLost: the caller does not hold `turn`.
            BackendError: the store refused the call or did not answer (`maybe_applied`).

        lua/rewind_session.lua; one round trip, O(log N + M) with M removed events.
        Not sent again: a repeat would remove what was appended meanwhile.
        """
        return await self._run(
            flows.rewind_session(self._ops, session, to, state, if_version, turn)
        )

    async def fork_session(
        self,
        session: Session | SessionKey,
        *,
        session_id: str | None = None,
        upto: int | None = None,
        state: Mapping[str, Any] | None = None,
        if_version: int | None = None,
        turn: Turn | None = None,
    ) -> Session:
        """A copy of a session under another id of the same user, made in one atomic step.

        Events keep their positions, so cursors are valid in the copy. Turns are not copied. The
        summary is, if it covers nothing beyond `upto`.

        Args:
            session: the session, or its key. It does not change.
            session_id: the id of the copy, 1 to 256 bytes of UTF-8; "" or None makes a new UUID.
            upto: the position of the last event that is copied; None = copy all.
            state: the copy's own state, keys without a prefix; None = that of the session.
            if_version: copy only if the session has this version.
            turn: copy only if the caller holds this turn. Not together with `if_version`.

        Returns:
            The copy with merged state and without its events; `forked_from` is the session's id.

        Raises:
            InvalidArgument: an argument is not valid; names it.
            LimitExceeded: the session has more than 20,000 events.
            SessionNotFound: the session does not exist.
            SessionExists: another session has the id of the copy.
            StaleVersion: the session has another version than `if_version`.
            TurnLost: the caller does not hold `turn`.
            EventsMissing: the server lost events of the session.
            BackendError: the store refused the call or did not answer.

        lua/fork_session.lua and plain reads; one round trip, O(N log N) in a session of N events.
        Sent again after a lost reply; a repeat finds the copy.
        """
        return await self._run(
            flows.fork_session(self._ops, session, session_id, upto, state, if_version, turn)
        )

    async def replace_event(
        self,
        session: Session | SessionKey,
        position: int,
        event: Event,
        new: Event,
        *,
        if_version: int | None = None,
        turn: Turn | None = None,
    ) -> Event:
        """Replace an event with another one, for example to redact it. State is not changed.

        The new event may keep the id of the old one. Its state changes are stored with it and are
        not applied. A summary that covers the event is removed: it may repeat what the event said.

        Args:
            session: the session, or its key. A Session is updated too.
            position: where the event stands, as `EventPage.positions` has it.
            event: the stored event at the position.
            new: the event that replaces it.
            if_version: replace only if the session has this version.
            turn: replace only if the caller holds this turn. Not together with `if_version`.

        Returns:
            A copy of `new`, as it is stored. A repeat finds it there and changes nothing.

        Raises:
            InvalidArgument: an argument is not valid, `event` is not at `position`, or `new` is
                stored elsewhere in the session.
            SessionNotFound: the session does not exist.
            StaleVersion: the session has another version than `if_version`.
            TurnLost: the caller does not hold `turn`.
            CorruptData: the stored event does not decode.
            BackendError: the store refused the call or did not answer (`maybe_applied`).

        A plain read and lua/replace_event.lua; two round trips, O(log N).
        Not sent again.
        """
        return await self._run(
            flows.replace_event(self._ops, session, position, event, new, if_version, turn)
        )

    async def delete_event(
        self,
        session: Session | SessionKey,
        position: int,
        event: Event,
        *,
        if_version: int | None = None,
        turn: Turn | None = None,
    ) -> bool:
        """Remove one event from the log. State is not changed.

        A summary that covers the event is removed: it may repeat what the event said.

        Args:
            session: the session, or its key. A Session is updated too.
            position: where the event stands, as `EventPage.positions` has it.
            event: the stored event at the position.
            if_version: delete only if the session has this version.
            turn: delete only if the caller holds this turn. Not together with `if_version`.

        Returns:
            True if the event was removed; False if there is no event at `position`.

        Raises:
            InvalidArgument: an argument is not valid, or another event stands at `position`.
            SessionNotFound: the session does not exist.
            StaleVersion: the session has another version than `if_version`.
            TurnLost: the caller does not hold `turn`.
            CorruptData: the stored event does not decode.
            BackendError: the store refused the call or did not answer (`maybe_applied`).

        A plain read and lua/replace_event.lua; two round trips, O(log N).
        Not sent again.
        """
        return await self._run(
            flows.delete_event(self._ops, session, position, event, if_version, turn)
        )
