"""Summarizes the older turns of sessions, in one process of a fleet at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import Any

from msgspec import structs

from .concurrency import HeldLease, check_service, summary_of
from .errors import InvalidArgument, TurnLost, TurnTaken
from .flows import compact_session
from .flows.covering import check_content, check_part, check_windows, find_part, is_due, on_primary
from .flows.shared import session_key
from .model import Event, Session, SessionKey, Summary
from .options import Duration, check_bool, check_int, check_milliseconds
from .service import SessionService
from .windows import Window

_KEEP = Window(max_turns=5)

Summarize = Callable[[Summary | None, list[Event]], Awaitable[Any]]


class Compactor:
    """Makes a summary of the older turns of a session, once there are too many turns.

    Reads of the session then return the summary in place of these turns: see `compact_session`.
    Any number of tasks and processes may compact the same sessions. For each session one of them
    calls `summarize` at a time, and each compaction calls it once. A summary covers whole turns
    only. Events that others append meanwhile are neither lost nor covered.

    Args:
        session_service: where the sessions are stored.
        summarize: an async function of the summary so far (a Summary, None before the first one)
            and the events that the new summary covers beyond it, oldest first. It returns the
            content of the new summary, which replaces the one so far: any value that the codec can
            store. It may take any time: the lease is renewed meanwhile.
        trigger: compact once the events that no summary covers do not fit this window.
        keep: the newest turns, which no summary covers. Smaller than `trigger`. Its `starts_turn`
            and `calls`, or else those of `trigger`, say where a summary may end. If a turn still
            runs when more turns than these have begun after it, a part of it may be covered.
        drop: remove the covered events from the log. By default they stay, for `get_events`.
        events_limit: most events that one compaction covers, from 1. A turn that is longer is
            covered as a whole. What is left is covered by the next compaction.
        lease: a timedelta or seconds, from 1 ms. After a crash another process may compact the
            session when the lease ends.

    Raises:
        InvalidArgument: an argument is out of range or of the wrong type, or `keep` is not smaller
            than `trigger`.
    """

    def __init__(
        self,
        session_service: SessionService,
        summarize: Summarize,
        *,
        trigger: Window,
        keep: Window = _KEEP,
        drop: bool = False,
        events_limit: int = 1000,
        lease: Duration = 30.0,
    ) -> None:
        check_service(session_service)
        if not callable(summarize):
            raise InvalidArgument("summarize must be a function of a Summary or None, and events")
        check_windows(trigger, keep)
        self._service = session_service
        self._summarize = summarize
        self._trigger = trigger
        self._keep = structs.replace(
            keep,
            starts_turn=keep.starts_turn or trigger.starts_turn,
            calls=keep.calls or trigger.calls,
        )
        self._drop = check_bool("drop", drop)
        self._events_limit = check_int("events_limit", events_limit, low=1)
        self._lease = timedelta(milliseconds=check_milliseconds("lease", lease))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._service!r})"

    @property
    def session_service(self) -> SessionService:
        """Where the sessions are stored."""
        return self._service

    async def compact(self, session: Session | SessionKey) -> Summary | None:
        """The new summary of a session, or None if no summary was stored.

        No summary is stored if there is nothing to do, if another caller in any process is
        compacting the session, or if an event was replaced or deleted while the summary was made.

        At most `events_limit` events are covered. To cover a long backlog, call this until it
        returns None. Memory holds at most `events_limit` events (or one turn if it is longer), the
        events that fit `trigger` and `keep`, and a page of 1,024.

        Args:
            session: the session; a Session object gets the new summary and version.

        Returns:
            The summary, or None.

        Raises:
            InvalidArgument: the summary is empty or cannot be stored; or a turn that it covers
                got more events meanwhile, or the last event that it covers was removed.
            LimitExceeded: the summary is larger, as JSON, than the events and the summary that it
                covers, or larger than `summary_size_limit`.
            SessionNotFound: there is no such session.
            StaleVersion: others stored or removed a summary meanwhile.
            BackendError: the store refused a call or did not answer (`maybe_applied`).
            Exception: what `summarize` raises.

        After an error the session is as before, unless `maybe_applied` is set, and can be compacted
        again.

        lua/acquire_turn.lua, lua/renew_turn.lua, lua/compact_session.lua. One to three round trips
        if there is nothing to do: the header, and the newest events up to those that fit `trigger`.
        Otherwise about eight, one more for each 256 events before those to keep, and renewals.
        """
        key = session_key(session)
        ops, trigger, keep = self._service._ops, self._trigger, self._keep
        if not await self._service._run(is_due(ops, key, trigger, keep)):
            return None
        async with AsyncExitStack() as stack:
            held = HeldLease(self._service, key, self._lease, "compactor")
            try:
                await stack.enter_async_context(held)
            except TurnTaken:
                return None
            # Another holder may have compacted the session meanwhile.
            finding = find_part(ops, key, trigger, keep, self._events_limit)
            part = await self._service._run(on_primary(finding))
            if part is None:
                return None
            content = await summary_of(self._summarize(part.previous, part.events.copy()))
            check_content(content, part)
            await self._service._run(on_primary(check_part(ops, key, part, keep)))
            base = None if part.previous is None else part.previous.upto
            storing = compact_session(
                ops, session, part.upto, content, base, self._drop, None, held.turn, keep, held.name
            )
            with suppress(TurnLost):
                return await self._service._run(storing)
            return None
