"""Runs a fleet of simulated agents against a session store and checks that nothing was lost."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol, TypeVar

from .. import RunContext, Runner, SessionService
from ..errors import BackendError, SessionStoreError
from ..model import Event, Session, SessionKey
from .verification import Discrepancies, Ledger, SharedKeys, compare_session
from .workload import Conversation, Turn

READ_EVENTS = 20
"""An agent sees so many of the newest events, the user's message included."""

MAX_REASONS = 5
"""So many different reasons of failed operations are kept for the report."""

_NUM_CHECKERS = 64  # Bounds the memory that whole sessions take while they are compared.
_LIST_PAGE = 100
_APPENDED_AT_ONCE = 100

_T = TypeVar("_T")


class Progress(Protocol):
    """Is told how far the fleet is."""

    def start(self, description: str, total: int) -> None:
        """A phase of so many steps begins; the phase before it is over."""

    def advance(self) -> None:
        """One more step of the phase is done."""


class Meter:
    """Latencies of operations.

    Attributes:
        latencies_ns: name of an operation to the wall-clock nanoseconds that each successful call
            took, as its agent saw it: waiting for other agents of the process is part of it.
    """

    def __init__(self) -> None:
        self.latencies_ns: dict[str, array[int]] = {}

    async def time(self, operation: str, call: Awaitable[_T]) -> _T:
        """Awaits the call and notes how long it took. A call that raises is not noted."""
        start_ns = time.perf_counter_ns()
        result = await call
        elapsed_ns = time.perf_counter_ns() - start_ns
        self.latencies_ns.setdefault(operation, array("q")).append(elapsed_ns)
        return result

    @property
    def num_operations(self) -> int:
        """Number of calls noted, of all operations."""
        return sum(map(len, self.latencies_ns.values()))


@dataclass(slots=True)
class Failures:
    """Operations that raised.

    Attributes:
        num_failed: how many.
        reasons: the first few different reasons, in the order they came.
    """

    num_failed: int = 0
    reasons: list[str] = field(default_factory=list)

    def record(self, error: SessionStoreError) -> None:
        """Counts one more. The store's messages hold neither payloads nor credentials."""
        self.num_failed += 1
        reason = f"{type(error).__name__}: {error}"
        if reason not in self.reasons and len(self.reasons) < MAX_REASONS:
            self.reasons.append(reason)


class MeasuredService(SessionService):
    """Passes on what agents ask of a service; notes how long it took, and what failed.

    Args:
        service: carries out the calls.
        meter: is told how long each one took.
        failures: is told of those that raised.

    Attributes:
        stored_errors: the last event of a session whose agent failed, in which the Runner says so.
    """

    def __init__(self, service: SessionService, meter: Meter, failures: Failures) -> None:
        super().__init__(service._ops, service._executor)
        self.stored_errors: dict[SessionKey, Event] = {}
        self._service = service
        self._meter = meter
        self._failures = failures

    async def create_session(self, **arguments: Any) -> Session:
        return await self._call("create_session", self._service.create_session(**arguments))

    async def get_or_create_session(self, **arguments: Any) -> Session:
        call = self._service.get_or_create_session(**arguments)
        return await self._call("get_or_create_session", call)

    async def append_event(
        self, session: Session | SessionKey, event: Event, **conditions: Any
    ) -> Event:
        call = self._service.append_event(session, event, **conditions)
        stored = await self._call("append_event", call)
        if event.metadata.get("error"):
            self.stored_errors[session.key] = event
        return stored

    async def append_events(
        self, session: Session | SessionKey, events: Iterable[Event], **conditions: Any
    ) -> list[Event]:
        call = self._service.append_events(session, events, **conditions)
        return await self._call("append_events", call)

    async def _call(self, operation: str, call: Awaitable[_T]) -> _T:
        try:
            return await self._meter.time(operation, call)
        except SessionStoreError as error:
            self._failures.record(error)
            raise


class Fleet:
    """Many agents that hold conversations at once, and the check of what they left.

    A Runner drives each agent. What the agents will say is known beforehand, so whatever is lost,
    changed or repeated on the way shows, be it the fault of the Runner or of the store.

    Run `run_agents`, then `verify`, then, to leave nothing behind, `clean_up`.

    Args:
        service: the store. Nobody else may write to the conversations' sessions.
        conversations: what is held, one after the other by each agent; sessions must differ.
        num_agents: how many conversations are held at the same time, at least 1.
        event_limit: the service's `session_event_limit`; None = all events are kept.
        progress: is told about every turn, every session verified and every session deleted.

    Attributes:
        meter: latencies of the agents' operations; those of `verify` and `clean_up` are left out.
        failures: operations that failed. An agent stops at its first one.
        discrepancies: what was not as it should be.
        num_verified: sessions that `verify` has read back.
        elapsed_seconds: wall-clock time of `run_agents`.
    """

    def __init__(
        self,
        service: SessionService,
        conversations: Sequence[Conversation],
        *,
        num_agents: int,
        event_limit: int | None,
        progress: Progress,
    ) -> None:
        self.meter = Meter()
        self.failures = Failures()
        self.discrepancies = Discrepancies()
        self.num_verified = 0
        self.elapsed_seconds = 0.0
        self._service = service
        self._measured = MeasuredService(service, self.meter, self.failures)
        self._ledgers = [Ledger(conversation) for conversation in conversations]
        self._shared = SharedKeys(conversations)
        self._num_agents = num_agents
        self._event_limit = event_limit
        self._progress = progress
        self._is_stopping = False

    @property
    def num_sessions(self) -> int:
        """Sessions that were created."""
        return sum(ledger.content is not None for ledger in self._ledgers)

    @property
    def num_events(self) -> int:
        """Events that the store accepted, those that the event limit has dropped included."""
        return sum(len(ledger.content.digests) for ledger in self._ledgers if ledger.content)

    @property
    def num_kept_events(self) -> int:
        """Events that the store should hold now."""
        sent = [len(ledger.content.digests) for ledger in self._ledgers if ledger.content]
        return sum(min(num_events, self._event_limit or num_events) for num_events in sent)

    def stop(self) -> None:
        """Lets every agent finish the event it is at and begin no other."""
        self._is_stopping = True

    async def run_agents(self) -> None:
        """Holds all conversations. Failed operations are counted, not raised."""
        self._progress.start(
            "Running agents", sum(ledger.conversation.num_turns for ledger in self._ledgers)
        )
        start = time.perf_counter()
        await _for_each(self._ledgers, self._hold_conversation, num_workers=self._num_agents)
        self.elapsed_seconds = time.perf_counter() - start

    async def verify(self) -> None:
        """Reads every session and every user's list, and compares them with what was sent.

        Gives up at the first read that fails, which is counted: a store that is gone would make
        every further one wait for its deadline.
        """
        written = [ledger for ledger in self._ledgers if ledger.may_exist]
        by_user: dict[tuple[str, str], list[Ledger]] = {}
        for ledger in written:
            key = ledger.conversation.key
            by_user.setdefault((key.app_name, key.user_id), []).append(ledger)
        self._progress.start("Verifying", len(written) + len(by_user))
        if await self._until_failure(written, self._verify_session):
            await self._until_failure(by_user.values(), self._verify_list)

    async def clean_up(self) -> None:
        """Deletes what the conversations left, state of users and apps included.

        Gives up at the first delete that fails, which is counted.
        """
        written = [ledger for ledger in self._ledgers if ledger.may_exist]
        self._progress.start("Deleting", len(written))
        await self._until_failure(written, self._delete_session)

    async def _hold_conversation(self, ledger: Ledger) -> None:
        if self._is_stopping:
            return
        try:
            opening, turns = ledger.conversation.replay()
            await self._open(ledger, opening)
            for turn in turns:
                if self._is_stopping:
                    return
                await self._take_turn(ledger, turn)
                self._progress.advance()
        except SessionStoreError as error:
            ledger.reject(maybe_applied=isinstance(error, BackendError) and error.maybe_applied)
            stored_error = self._measured.stored_errors.pop(ledger.conversation.key, None)
            if stored_error is not None:
                ledger.announce_step([stored_error])
                ledger.confirm()

    async def _open(self, ledger: Ledger, opening: list[Event]) -> None:
        """Creates the session and appends what comes before the first user message."""
        key = ledger.conversation.key
        ledger.announce_create()
        session = await self._measured.create_session(
            app_name=key.app_name,
            user_id=key.user_id,
            session_id=key.session_id,
            state=ledger.conversation.initial_state,
        )
        ledger.confirm()
        for start in range(0, len(opening), _APPENDED_AT_ONCE):
            step = opening[start : start + _APPENDED_AT_ONCE]
            ledger.announce_step(step)
            await self._measured.append_events(session, step)
            ledger.confirm()

    async def _take_turn(self, ledger: Ledger, turn: Turn) -> None:
        """Lets the Runner answer the turn's message with the rest of it."""
        message, *answers = turn

        async def answer(context: RunContext) -> AsyncIterator[Event]:
            ledger.confirm()
            limit = min(READ_EVENTS, self._event_limit or READ_EVENTS)
            if compare_session(ledger, context.session, limit=limit, shared=self._shared).total:
                self.discrepancies.read_mismatches += 1
            for event in answers:
                # A store in memory never waits; without this its agents would not take turns.
                await asyncio.sleep(0)
                if self._is_stopping:
                    return
                ledger.announce_step([event])
                yield event
                ledger.confirm()

        key = ledger.conversation.key
        runner = Runner(key.app_name, answer, self._measured, history_limit=READ_EVENTS)
        ledger.announce_step([message])
        run = runner.run(key.user_id, key.session_id, message)
        handed_on = [event async for event in run]
        expected = answers[: len(handed_on)] if self._is_stopping else answers
        if handed_on != expected:
            self.discrepancies.read_mismatches += 1

    async def _get(self, ledger: Ledger, *, event_num: int | None) -> Session | None:
        key = ledger.conversation.key
        return await self._service.get_session(
            app_name=key.app_name,
            user_id=key.user_id,
            session_id=key.session_id,
            event_num=event_num,
        )

    async def _verify_session(self, ledger: Ledger) -> None:
        found = await self._get(ledger, event_num=None)
        self.discrepancies.add(
            compare_session(ledger, found, limit=self._event_limit, shared=self._shared)
        )
        self.num_verified += 1

    async def _verify_list(self, ledgers: Sequence[Ledger]) -> None:
        key = ledgers[0].conversation.key
        listed: list[Session] = []
        while True:
            page = await self._service.list_sessions(
                app_name=key.app_name, user_id=key.user_id, limit=_LIST_PAGE, offset=len(listed)
            )
            listed += page
            if len(page) < _LIST_PAGE:
                break
        known = {ledger.conversation.key.session_id: ledger for ledger in ledgers}
        certain = {session_id for session_id, ledger in known.items() if ledger.must_exist}
        names = {session.id for session in listed}
        num_repeated = len(listed) - len(names)
        num_wrong = len(certain - names) + len(names - known.keys())
        num_out_of_order = sum(
            earlier.updated_at < later.updated_at for earlier, later in pairwise(listed)
        )
        self.discrepancies.list_mismatches += num_repeated + num_wrong + num_out_of_order

    async def _delete_session(self, ledger: Ledger) -> None:
        key = ledger.conversation.key
        await self._service.delete_session(
            app_name=key.app_name, user_id=key.user_id, session_id=key.session_id
        )
        user_keys = [name for name in ledger.conversation.shared_keys if name.startswith("user:")]
        if user_keys:
            await self._service.delete_user_state(key.app_name, key.user_id, *user_keys)
        app_keys = [name for name in ledger.conversation.shared_keys if name.startswith("app:")]
        if app_keys:
            await self._service.delete_app_state(key.app_name, *app_keys)

    async def _until_failure(
        self, items: Iterable[_T], work: Callable[[_T], Awaitable[None]]
    ) -> bool:
        """Works on the items until one fails. True when none did; the first failure is counted."""
        has_failed = False

        async def work_unless_failed(item: _T) -> None:
            nonlocal has_failed
            if has_failed:
                return
            try:
                await work(item)
            except SessionStoreError as error:
                if not has_failed:
                    self.failures.record(error)
                has_failed = True
            self._progress.advance()

        await _for_each(items, work_unless_failed, num_workers=min(self._num_agents, _NUM_CHECKERS))
        return not has_failed


async def _for_each(
    items: Iterable[_T], work: Callable[[_T], Awaitable[None]], *, num_workers: int
) -> None:
    """Works on all items, so many at the same time, in their order."""
    remaining = iter(items)

    async def take_items() -> None:
        for item in remaining:
            await work(item)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for _ in range(num_workers):
            group.create_task(take_items())
