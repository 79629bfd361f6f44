# Generated from sessionstore/service.py by tests/support/generate_sync.py. Do not edit.
"""The public services for threads: one line per method, no logic."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from msgspec import UNSET

from .. import flows
from ..calls import Flow, Observer, R, SyncExecutor
from ..codec import Format
from ..compression import Zstd
from ..data_keys import KeyedExecutor
from ..drive import drive
from ..encryption import KeyRing
from ..instances import address_to_show
from ..keys import PartitionBy
from ..model import (
    DeletedUser,
    Event,
    EventPage,
    Ping,
    Session,
    SessionKey,
    SessionPage,
    Summary,
    Turn,
    Watched,
)
from ..ops import Ops
from ..options import (
    Duration,
    EventLimit,
    ReadFrom,
    WaitReplicas,
    check_key_store,
    check_memory_key_store,
    check_options,
    check_read_from,
    check_seconds,
    check_wait_replicas,
    naming,
)
from ..transport import connect_sync
from ..twin import MemoryExecutor
from ..windows import Window
from .watchers import Watchers


class SessionService:
    """All operations on sessions, the same for every kind of store.

    Use one of its subclasses. Any number of threads may use a service at once.
    """

    _address = ""  # shown by repr

    def __init__(self, ops: Ops, executor: SyncExecutor) -> None:
        self._ops = ops
        self._executor = executor
        self._watchers = Watchers(ops, self._run, getattr(executor, "listen", None))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address})"

    # -- sessions ------------------------------------------------------------------------------

    def create_session(
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
        return self._run(flows.create_session(self._ops, app_name, user_id, session_id, state))

    def get_or_create_session(
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
        return self._run(
            flows.get_or_create_session(
                self._ops, app_name, user_id, session_id, state, event_num, event_time, window
            )
        )

    def get_session(
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
        return self._run(flows.get_session(self._ops, key, event_num, event_time, window))

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

    def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Delete a session with its events and state. A missing session is fine.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            session_id: likewise.

        Raises:
            InvalidArgument: an id is not valid; names it.
            BackendError: the store refused the call or did not answer.

        lua/delete_session.lua; one round trip, O(1).
        Sent again after a lost reply; a repeat spares a session that was created meanwhile and ends
        with `maybe_applied`.
        """
        self._run(flows.delete_session(self._ops, app_name, user_id, session_id))

    def delete_user(self, *, app_name: str, user_id: str) -> DeletedUser:
        """Delete a user: sessions with their events, index and state. A missing user is fine.

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
        return self._run(flows.delete_user(self._ops, app_name, user_id))

    def repair_session(self, session: Session | SessionKey) -> Session:
        """A session whose events or header were lost or damaged, accepted as it is now.

        It has the events that are left. A lost header is replaced by a new one. Then the session's
        state is lost too, and older Session objects can no longer be used.

        Args:
            session: the session, or its key.

        Returns:
            The session with merged state and the events that are left.

        Raises:
            InvalidArgument: an argument is not valid; names it.
            SessionNotFound: nothing is left of the session.
            CorruptData: an event or a state value does not decode.
            BackendError: the store refused the call or did not answer.

        lua/repair_session.lua; one round trip, O(events). Re-sent; a repeat changes only `version`.
        """
        return self._run(flows.repair_session(self._ops, session))

    # -- events --------------------------------------------------------------------------------

    def append_event(
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
        return self._run(flows.append_event(self._ops, session, event, if_version, turn))

    def append_events(
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
        return self._run(flows.append_events(self._ops, session, events, if_version, turn))

    def get_events(
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
        return self._run(flows.get_events(self._ops, session, after, before, limit, newest))

    def pop_event(
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
        return self._run(flows.pop_event(self._ops, session, if_version))

    def clear_events(self, session: Session | SessionKey, *, if_version: int | None = None) -> None:
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
        self._run(flows.clear_events(self._ops, session, if_version))

    # -- live ----------------------------------------------------------------------------------

    def watch_events(
        self,
        session: Session | SessionKey,
        *,
        after: str | int | None = None,
        partial: bool = False,
        idle_timeout: Duration | None = None,
    ) -> Generator[Watched, None, None]:
        """An iterator over a session's log: first what is there, then what is appended.

        Any number of processes may append and watch. Every event comes once, in the order of
        positions, also if connections break: the log is read, and messages of the server only say
        when. Close the iterator (`contextlib.aclosing`) if you leave the loop early.

        Args:
            session: the session, or its key.
            after: the cursor of an earlier entry, or a position (`EventPage.last`), to continue
                after it; None = from the oldest event.
            partial: also give the fragments of events that are being written, which writers with
                a `stream_ttl` keep: first those so far, then new ones. An entry is a fragment if
                `entry.event.partial` is True; when its event is complete, that follows.
            idle_timeout: end after this time without anything new; None = go on.

        Yields:
            WatchEntry for each event. WatchChange when events that came before were removed or
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

        lua/listen_session.lua and plain reads of the primary. One read, shared by all watchers of
        the session in an event loop, for every message of an append. Without messages: one look at
        the header a second (with more than 1,000 sessions, 1,000 looks a second in all). A service
        for threads gets no messages, except in memory: it looks at the header, soon after news,
        then up to a second apart.
        """
        key, place = flows.watching.start(self._ops, session, after, partial)
        idle_s = None if idle_timeout is None else check_seconds("idle_timeout", idle_timeout)
        return self._watchers.watch(key, place, idle_s)

    # -- history -------------------------------------------------------------------------------

    def compact_session(
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
        """Let a summary stand for the oldest events of a session, in one atomic step.

        From then on `session.summary` is the summary, and reads of the session return only the
        events after it. `get_events` still reads the whole log. Covered events count towards the
        limit of events and are trimmed first. Popping stops at the summary. Clearing the events
        removes it, and so does rewinding behind it, or replacing or deleting a covered event.

        The summary must end where a turn ends, by the rules of a window: no invocation and no tool
        call may go on after it. The 32 events before and after that place are looked at.

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
            InvalidArgument: an argument is not valid, no event stands at `upto`, or no turn ends
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
        return self._run(
            flows.compact_session(
                self._ops, session, upto, summary, if_summary, drop, if_version, turn, window
            )
        )

    def rewind_session(
        self,
        session: Session | SessionKey,
        *,
        to: int,
        state: Mapping[str, Any] | None = None,
        if_version: int | None = None,
        turn: Turn | None = None,
    ) -> int:
        """Remove all events after a position, in one atomic step. Later events get later positions.

        If that removes events that the summary covers, the summary is removed too. This is refused
        if other covered events have been trimmed or dropped: only the summary knows of them.

        Args:
            session: the session, or its key. A Session is updated too.
            to: the position of the last event that stays, as `EventPage.positions` has it; 0 =
                remove all events.
            state: what the session's own state is from now on, keys without a prefix; None = the
                state stays as it is.
            if_version: rewind only if the session has this version.
            turn: rewind only if the caller holds this turn. Not together with `if_version`.

        Returns:
            How many events were removed.

        Raises:
            InvalidArgument: an argument is not valid; names it. Or covered events are gone.
            SessionNotFound: the session does not exist.
            StaleVersion: the session has another version than `if_version`.
            TurnLost: the caller does not hold `turn`.
            BackendError: the store refused the call or did not answer (`maybe_applied`).

        lua/rewind_session.lua; one round trip, O(log N + M) with M removed events.
        Not sent again: a repeat would remove what was appended meanwhile.
        """
        return self._run(flows.rewind_session(self._ops, session, to, state, if_version, turn))

    def fork_session(
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
        return self._run(
            flows.fork_session(self._ops, session, session_id, upto, state, if_version, turn)
        )

    def replace_event(
        self,
        session: Session | SessionKey,
        position: int,
        event: Event,
        new: Event,
        *,
        if_version: int | None = None,
        turn: Turn | None = None,
    ) -> Event:
        """Put another event in the place of one, for example to redact it. State is not changed.

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
            InvalidArgument: an argument is not valid, another event or none stands at `position`,
                or `new` is stored elsewhere in the session.
            SessionNotFound: the session does not exist.
            StaleVersion: the session has another version than `if_version`.
            TurnLost: the caller does not hold `turn`.
            CorruptData: the stored event does not decode.
            BackendError: the store refused the call or did not answer (`maybe_applied`).

        A plain read and lua/replace_event.lua; two round trips, O(log N).
        Not sent again.
        """
        return self._run(
            flows.replace_event(self._ops, session, position, event, new, if_version, turn)
        )

    def delete_event(
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
            True if the event was removed; False if no event stands at `position`.

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
        return self._run(flows.delete_event(self._ops, session, position, event, if_version, turn))

    def restore_session(
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
        """A session with the events, positions and times that it had elsewhere, for imports.

        The session exists only when all of it is stored. So calling this again with the same
        arguments is safe at any time. It continues where a call was interrupted. If the session
        already exists, it changes nothing, also if others have written to the session.

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
        return self._run(
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

    # -- turns ---------------------------------------------------------------------------------

    def acquire_turn(self, session: Session | SessionKey, *, lease: Duration = 30.0) -> Turn:
        """The turn of a session. At most one caller holds it at a time. Does not wait.

        The turn protects only appends that pass it: see `append_event(turn=...)`.

        Args:
            session: the session, or its key.
            lease: time after which the turn is free again unless it is renewed: a timedelta or
                seconds, from 1 ms.

        Raises:
            InvalidArgument: an argument is not valid; names it.
            SessionNotFound: the session does not exist.
            TurnTaken: another caller holds the turn.
            BackendError: the store refused the call or did not answer.

        lua/acquire_turn.lua; one round trip, O(1).
        Sent again after a lost reply; a repeat finds its own lease.
        """
        return self._run(flows.acquire_turn(self._ops, session, lease))

    def renew_turn(self, turn: Turn, *, lease: Duration = 30.0) -> Turn:
        """The same turn with a new end of its lease.

        Args:
            turn: a turn from `acquire_turn` or `renew_turn`.
            lease: time from now until the turn is free: a timedelta or seconds, from 1 ms.

        Raises:
            InvalidArgument: an argument is not valid; names it.
            SessionNotFound: the session does not exist.
            TurnLost: the lease had ended, and another caller has acquired the turn; or the turn was
                released.
            BackendError: the store refused the call or did not answer.

        lua/renew_turn.lua; one round trip, O(1).
        Sent again after a lost reply; a repeat extends the lease once more.
        """
        return self._run(flows.renew_turn(self._ops, turn, lease))

    def release_turn(self, turn: Turn) -> None:
        """Release a turn. A lost turn or a deleted session is fine.

        Args:
            turn: a turn from `acquire_turn` or `renew_turn`.

        Raises:
            InvalidArgument: the argument is not a Turn.
            BackendError: the store refused the call or did not answer.

        lua/renew_turn.lua; one round trip, O(1).
        Sent again after a lost reply; a repeat changes nothing.
        """
        self._run(flows.release_turn(self._ops, turn))

    def free_turn(self, session: Session | SessionKey) -> None:
        """Take the turn of a session from its holder. For operators; a free turn is fine.

        The holder cannot renew the turn or append with it any more: it gets TurnLost. Use it if the
        holder is known to be dead, or hangs, and its lease is long.

        Args:
            session: the session, or its key.

        Raises:
            InvalidArgument: an argument is not valid; names it.
            SessionNotFound: the session does not exist.
            BackendError: the store refused the call or did not answer.

        lua/free_turn.lua; one round trip, O(1).
        """
        self._run(flows.free_turn(self._ops, session))

    # -- state ---------------------------------------------------------------------------------

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
            if_absent: set only keys that are not there: of several writers the first wins. None is
                a value that is there. A Session shows the values that are stored.

        Raises:
            InvalidArgument: a key or a value is not valid; names it.
            SessionNotFound: the session does not exist.
            StaleVersion: the session has another version than `if_version`.
            BackendError: the store refused the call or did not answer.

        lua/update_session_state.lua; one round trip, O(keys).
        Without `if_version` sent again after a lost reply; a repeat writes the same once more.
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
        """Remove state of a session. Missing keys are fine.

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
        Without `if_version` sent again after a lost reply; a repeat writes the same once more.
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
            if_absent: set only keys that are not there: of several writers the first wins.

        Raises:
            InvalidArgument: a key or a value is not valid; names it.
            BackendError: the store refused the call or did not answer.

        lua/update_tier_state.lua; one round trip, O(keys).
        Sent again after a lost reply; a repeat writes the same once more.
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
        """Remove state that all sessions of a user share. Missing keys are fine.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            *keys: with or without `user:`, no other prefix.

        Raises:
            InvalidArgument: a key is not valid; names it.
            BackendError: the store refused the call or did not answer.

        lua/update_tier_state.lua; one round trip, O(keys).
        Sent again after a lost reply; a repeat writes the same once more.
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
            if_absent: set only keys that are not there: of several writers the first wins.

        Raises:
            InvalidArgument: a key or a value is not valid; names it.
            BackendError: the store refused the call or did not answer.

        lua/update_tier_state.lua; one round trip, O(keys).
        Sent again after a lost reply; a repeat writes the same once more.
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
        """Remove state that all users of an application share. Missing keys are fine.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            *keys: with or without `app:`, no other prefix.

        Raises:
            InvalidArgument: a key is not valid; names it.
            BackendError: the store refused the call or did not answer.

        lua/update_tier_state.lua; one round trip, O(keys).
        Sent again after a lost reply; a repeat writes the same once more.
        """
        self._run(flows.delete_app_state(self._ops, app_name, keys))

    # -- life ----------------------------------------------------------------------------------

    def ping(self) -> Ping:
        """How long a server takes to answer, and its role. It reads and writes no data.

        In a cluster the node that holds slot 0 answers. With `read_from="replica"` a replica does,
        as for reads. The time includes connecting, if there is no connection yet, and retries.

        Raises:
            BackendError: no server answered within `call_timeout`.

        Plain HELLO; one round trip, O(1).
        """
        return self._run(flows.ping(self._ops))

    def close(self) -> None:
        """Release connections or memory. Later calls raise BackendUnavailable. Safe to repeat.

        Watchers of sessions end with BackendUnavailable.
        """
        self._watchers.close()
        self._executor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, flow: Flow[R], observer: Observer | None = None) -> R:
        return drive(flow, self._executor, observer)


class RedisSessionService(SessionService):
    """Sessions on Redis >= 7.0 or Valkey >= 7.2.

    It connects with the first call. One of `url`, `instance_name` and `client` is required. All
    durations are a timedelta or seconds.

    Args:
        url: `redis://`, `rediss://` or `unix://`, with database and credentials;
            `redis+cluster://host:port,...`; `redis+sentinel://host:port,.../master_name`. The last
            two use TLS with `rediss+` instead of `redis+`.
        instance_name: a name from `register_redis_instance`; `url` takes precedence.
        session_event_limit: how many of its newest events a session keeps, 1 or more; None = all.
            Not given = each session keeps its own limit, and new ones get 1,000. A limit that is
            given applies to every session from its next append on, and is stored there.
        session_ttl: idle time after which a session expires; None = never.
        app_state_ttl: the same for the app tier.
        user_state_ttl: the same for the user tier. None keeps the state of users for ever, also of
            users whose sessions have expired.
        app_state_max_age: reads may return a copy of the app tier that is up to this old, which
            saves a call to a second server; None = no copies. It has an effect only in a cluster
            with partition_by="user": elsewhere the app tier is read together with the session.
            Reads see the writes of their own service at once.
        stream_ttl: how long fragments (events with `partial=True`) are kept for watchers; None =
            they are not kept.
        refresh_ttl_on_read: reads refresh the TTL, too; writes always do.
        key_prefix: text before every key, without braces, up to 256 bytes.
        codec: "json", or "msgpack", which can also store nested bytes, datetimes and int keys.
            Every service reads both.
        compression: a Zstd compresses what is written, and reads values that were compressed with
            its dictionaries; None = compress nothing. It needs the extra `zstd`.
        encryption: a KeyRing, which encrypts events, state and summaries before they are sent. Ids,
            state keys, integers, sizes and times stay visible, and which values are equal. It
            needs the extra `encryption`.
        key_store: the URL of another database or server, with a data key for each user, for
            `encryption`. Then `delete_user` makes copies and backups of the user's data unreadable.
        partition_by: what shares a cluster slot: the keys of a "user" or of an "app". With "user",
            in a cluster, creating a session and writing `app:` state take one or two round trips
            more.
        event_size_limit: maximum size of an encoded event, in bytes; at most 64 MiB.
        value_size_limit: maximum size of an encoded state value, in bytes, likewise.
        summary_size_limit: maximum size of an encoded summary, in bytes, likewise. Every read and
            list of a session carries its summary.
        call_timeout: maximum time of a call, including retries; then BackendTimeout is raised.
        wait_replicas: (n, timeout): a write waits until n replicas have it, or raises NotReplicated
            after the timeout, which is at most `call_timeout`.
        read_from: "replica" sends plain reads to replicas, which may miss the newest writes. It
            needs refresh_ttl_on_read=False and a cluster or Sentinel.
        extra_options: more options of redis-py's connections, by name.
        client: a `redis.Redis` whose address and connection options are used instead of a
            URL. Its connections are not used.

    Raises:
        InvalidArgument: an option is not valid or unknown; names it.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        instance_name: str | None = None,
        session_event_limit: EventLimit = UNSET,
        session_ttl: Duration | None = None,
        app_state_ttl: Duration | None = None,
        user_state_ttl: Duration | None = None,
        app_state_max_age: Duration | None = None,
        stream_ttl: Duration | None = None,
        refresh_ttl_on_read: bool = True,
        key_prefix: str = "",
        codec: Format = "json",
        compression: Zstd | None = None,
        encryption: KeyRing | None = None,
        key_store: str | None = None,
        partition_by: PartitionBy = "user",
        event_size_limit: int = 8 << 20,
        value_size_limit: int = 8 << 20,
        summary_size_limit: int = 16 << 10,
        call_timeout: Duration = 10.0,
        wait_replicas: WaitReplicas | None = None,
        read_from: ReadFrom = "primary",
        extra_options: Mapping[str, Any] | None = None,
        client: Any = None,
    ) -> None:
        options = check_options(
            session_event_limit=session_event_limit,
            session_ttl=session_ttl,
            app_state_ttl=app_state_ttl,
            user_state_ttl=user_state_ttl,
            app_state_max_age=app_state_max_age,
            stream_ttl=stream_ttl,
            refresh_ttl_on_read=refresh_ttl_on_read,
            key_prefix=key_prefix,
            codec=codec,
            compression=compression,
            partition_by=partition_by,
            event_size_limit=event_size_limit,
            value_size_limit=value_size_limit,
            summary_size_limit=summary_size_limit,
            encryption=encryption,
            has_key_store=key_store is not None,
        )
        timeout = check_seconds("call_timeout", call_timeout)
        data = connect_sync(
            url,
            instance_name,
            extra_options,
            client,
            timeout,
            check_wait_replicas(wait_replicas, timeout),
            check_read_from(read_from, refreshes=refresh_ttl_on_read),
        )
        # With partition_by="app" the app tier shares the slot of its users.
        app_in_own_slot = data.is_cluster and partition_by == "user"
        executor: SyncExecutor = data
        if key_store is not None:
            check_key_store(key_store, url)
            with naming("key_store"):
                keys = connect_sync(key_store, None, None, None, timeout)
            executor = KeyedExecutor(data, keys)
        super().__init__(Ops(options, app_in_own_slot=app_in_own_slot), executor)
        self._address = address_to_show(url, instance_name, client)


class InMemorySessionService(SessionService):
    """Sessions in this process, with exactly the behaviour of `RedisSessionService`.

    For development, tests and small applications. Any threads and event loops may share it. All
    durations are a timedelta or seconds.

    Args:
        session_event_limit: how many of its newest events a session keeps, 1 or more; None = all.
            Not given = each session keeps its own limit, and new ones get 1,000. A limit that is
            given applies to every session from its next append on, and is stored there.
        session_ttl: idle time after which a session expires; None = never.
        app_state_ttl: the same for the app tier.
        user_state_ttl: the same for the user tier. None keeps the state of users for ever, also of
            users whose sessions have expired.
        app_state_max_age: accepted as by `RedisSessionService`; in memory it has no effect.
        stream_ttl: how long fragments (events with `partial=True`) are kept for watchers; None =
            they are not kept.
        refresh_ttl_on_read: reads refresh the TTL, too; writes always do.
        key_prefix: text before every key, without braces, up to 256 bytes.
        codec: "json", or "msgpack", which can also store nested bytes, datetimes and int keys.
        compression: a Zstd compresses what is written; None = compress nothing.
        encryption: a KeyRing, which encrypts what is stored, as on a server.
        key_store: "memory://" gives each user a data key, as a key store would.
        partition_by: "user" or "app"; only affects the names of keys.
        event_size_limit: maximum size of an encoded event, in bytes; at most 64 MiB.
        value_size_limit: maximum size of an encoded state value, in bytes, likewise.
        summary_size_limit: maximum size of an encoded summary, in bytes, likewise. Every read and
            list of a session carries its summary.
        cleanup_interval: time between sweeps that free expired data; a sweep is part of the next
            call. None = 5 minutes if any TTL is set, otherwise never.
        clock: a function that returns seconds since 1970, for tests; None = the system's clock.

    Raises:
        InvalidArgument: an option is not valid; names it.
    """

    def __init__(
        self,
        *,
        session_event_limit: EventLimit = UNSET,
        session_ttl: Duration | None = None,
        app_state_ttl: Duration | None = None,
        user_state_ttl: Duration | None = None,
        app_state_max_age: Duration | None = None,
        stream_ttl: Duration | None = None,
        refresh_ttl_on_read: bool = True,
        key_prefix: str = "",
        codec: Format = "json",
        compression: Zstd | None = None,
        encryption: KeyRing | None = None,
        key_store: str | None = None,
        partition_by: PartitionBy = "user",
        event_size_limit: int = 8 << 20,
        value_size_limit: int = 8 << 20,
        summary_size_limit: int = 16 << 10,
        cleanup_interval: Duration | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        options = check_options(
            session_event_limit=session_event_limit,
            session_ttl=session_ttl,
            app_state_ttl=app_state_ttl,
            user_state_ttl=user_state_ttl,
            app_state_max_age=app_state_max_age,
            stream_ttl=stream_ttl,
            refresh_ttl_on_read=refresh_ttl_on_read,
            key_prefix=key_prefix,
            codec=codec,
            compression=compression,
            partition_by=partition_by,
            event_size_limit=event_size_limit,
            value_size_limit=value_size_limit,
            summary_size_limit=summary_size_limit,
            encryption=encryption,
            has_key_store=key_store is not None,
        )
        check_memory_key_store(key_store)
        memory = MemoryExecutor.of(options, cleanup_interval, clock)
        super().__init__(Ops(options, clock=clock or time.monotonic), memory)
