"""Runs simulated agents on a session store and checks that nothing was lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, cycle, pairwise
from typing import Any, TypeVar

from msgspec.structs import asdict
from rich.progress import Progress

from ... import RunContext, Runner, SessionService
from ...calls import AsyncExecutor
from ...errors import BackendError, InvalidArgument, SessionStoreError
from ...model import Event, Session
from ...observe import wrap_executor
from .recorder import Recorder
from .verification import Discrepancies, Ledger, compare_session, shared_keys
from .workload import Conversation, Turn

READ_EVENTS = 20
"""The newest events that an agent sees, the user's message included."""

FLAT_OUT_AGENTS = 64
FLAT_OUT_TEXT = ("What an agent says, and what its tools return, is mostly text. " * 17)[:1024]
"""The content of an event in the flat-out phase: 1 KB."""

_START_THINKS = 10  # agents start within so many think times, not all at once
_WARM_UP_SECONDS = 0.25
_APPENDS_IN_A_ROW = 16  # between two looks at whether the flat-out phase is over
_PREPARED_TURNS_LIMIT = 10_000  # bounds the memory for prepared texts to about 50 MB
_NUM_CHECKERS = 64  # bounds the memory that whole sessions take while they are compared
_LIST_PAGE = 100
_APPENDED_AT_ONCE = 100

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class FlatOut:
    """What the flat-out phase reached after its warm-up.

    Attributes:
        num_agents: agents that appended at the same time.
        num_appends: events that the store accepted.
        seconds: wall-clock time.
    """

    num_agents: int
    num_appends: int
    seconds: float


class Fleet:
    """Agents that hold conversations at the same time, and the check of what they stored.

    A Runner drives each agent. What the agents will say is known before they say it, so the check
    finds whatever the Runner or the store loses, changes or repeats.

    Call `run_agents`, then `run_flat_out` if wanted, then `verify`, then `clean_up`.

    Args:
        service: the store. Nobody else may write to the sessions. Its calls are measured.
        conversations: their sessions must differ.
        num_agents: how many conversations are held at the same time, at least 1.
        think_seconds: average time that an agent waits before each event, exponentially
            distributed; 0 = as fast as possible.
        event_limit: the service's `session_event_limit`; None = all events are kept.
        progress: shows how far each phase is.

    Attributes:
        stopping: set it to let every agent finish its current event and start no other.
        recorder: latencies of the calls of `run_agents`.
        elapsed_seconds: wall-clock time of `run_agents`.
        failures: reasons why operations failed. An agent stops at its first failure.
        discrepancies: what `verify` and the agents found wrong.
        num_verified: sessions that `verify` has read back.
    """

    def __init__(
        self,
        service: SessionService,
        conversations: Sequence[Conversation],
        *,
        num_agents: int,
        think_seconds: float,
        event_limit: int | None,
        progress: Progress,
    ) -> None:
        self.stopping = asyncio.Event()
        self.failures: Counter[str] = Counter()
        self.discrepancies = Discrepancies()
        self.num_verified = 0
        self.elapsed_seconds = 0.0
        wrap_executor(service, self._record)
        self._service = service
        self._conversations = conversations
        self._ledgers: list[Ledger] = []
        self._shared = shared_keys(conversations)
        self._num_agents = num_agents
        self._think_seconds = think_seconds
        self._event_limit = event_limit
        self._progress = progress

    def _record(self, executor: AsyncExecutor) -> Recorder:
        self.recorder = Recorder(executor)
        return self.recorder

    @property
    def num_sessions(self) -> int:
        """Sessions that were created."""
        return sum(ledger.content is not None for ledger in self._ledgers)

    @property
    def num_events(self) -> int:
        """Events that the store accepted, also those that the event limit has removed since."""
        return sum(self._events_by_session())

    @property
    def num_kept_events(self) -> int:
        """Events that the store should hold now."""
        return sum(min(sent, self._event_limit or sent) for sent in self._events_by_session())

    def _events_by_session(self) -> list[int]:
        return [len(ledger.content.digests) for ledger in self._ledgers if ledger.content]

    # -- paced agents --------------------------------------------------------------------------

    async def run_agents(self) -> None:
        """Hold all conversations. Failures are counted, not raised."""
        num_turns = 0
        for conversation in self._conversations:
            num_turns += conversation.num_turns
            is_few = num_turns <= _PREPARED_TURNS_LIMIT
            self._ledgers.append(Ledger(conversation.prepared() if is_few else conversation))
        with suppress(SessionStoreError):  # the agents get the same error
            await self._service.get_app_state("fleet")  # connect before the clock starts
        self._task = self._progress.add_task("Agents at work", total=num_turns, rate="")
        self.recorder.is_recording = True
        self._start = time.perf_counter()
        await _for_each(self._ledgers, self._hold_conversation, num_workers=self._num_agents)
        self.elapsed_seconds = time.perf_counter() - self._start
        self.recorder.is_recording = False

    async def _hold_conversation(self, ledger: Ledger) -> None:
        try:
            await self._wait(random.uniform(0, _START_THINKS * self._think_seconds))
            if self.stopping.is_set():
                return
            opening, turns = ledger.conversation.replay()
            await self._open(ledger, opening)
            for turn in turns:
                await self._think()
                if self.stopping.is_set():
                    return
                await self._take_turn(ledger, turn)
                self._show_turn()
        except SessionStoreError as error:
            self._fail(ledger, error)
            if isinstance(error, InvalidArgument) and ledger.content is not None:
                await self._expect_refusal(ledger)

    async def _open(self, ledger: Ledger, opening: list[Event]) -> None:
        """Create the session and append what comes before the first user message."""
        ledger.announce([])
        session = await self._service.create_session(
            **_ids(ledger), state=ledger.conversation.initial_state
        )
        ledger.confirm(session.version)
        for start in range(0, len(opening), _APPENDED_AT_ONCE):
            step = opening[start : start + _APPENDED_AT_ONCE]
            ledger.announce(step)
            await self._service.append_events(session, step)
            ledger.confirm(session.version)

    async def _take_turn(self, ledger: Ledger, turn: Turn) -> None:
        """Let a Runner answer the turn's message with the rest of the turn."""
        message, *answers = turn

        async def answer(context: RunContext) -> AsyncIterator[Event]:
            ledger.confirm(context.session.version)
            limit = min(READ_EVENTS, self._event_limit or READ_EVENTS)
            if compare_session(ledger, context.session, limit=limit, shared=self._shared).total:
                self.discrepancies.read_mismatches += 1
            for event in answers:
                await self._think()
                if self.stopping.is_set():
                    return
                ledger.announce([event])
                yield event
                ledger.confirm(context.session.version)

        key = ledger.conversation.key
        runner = Runner(key.app_name, answer, self._service, history_limit=READ_EVENTS)
        ledger.announce([message])
        run = runner.run(key.user_id, key.session_id, message)
        handed_on = [event async for event in run]
        expected = answers[: len(handed_on)] if self.stopping.is_set() else answers
        if handed_on != expected:
            self.discrepancies.read_mismatches += 1

    async def _think(self) -> None:
        """Wait, like a user who types, a model that answers or a tool that runs; only shorter."""
        if self._think_seconds:
            await self._wait(random.expovariate(1 / self._think_seconds))
        else:
            await asyncio.sleep(0)  # the store in memory never waits: let other agents run

    async def _wait(self, seconds: float) -> None:
        """Wait for some time, or until the agents have to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()

    def _show_turn(self) -> None:
        num_appends = len(self.recorder.latencies_ns["append_event"])
        rate = num_appends / (time.perf_counter() - self._start)
        self._progress.update(self._task, advance=1, rate=f"{rate:,.0f} events/s")

    async def _expect_refusal(self, ledger: Ledger) -> None:
        """Expect the event in which the Runner stored that the agent's last event was refused."""
        with suppress(SessionStoreError):
            session = await self._service.get_session(**_ids(ledger), event_num=1)
            if session and session.events and session.events[-1].metadata.get("error"):
                ledger.announce(session.events)
                ledger.confirm(session.version)

    def _fail(self, ledger: Ledger, error: SessionStoreError) -> None:
        """An announced write failed."""
        ledger.reject(maybe_applied=isinstance(error, BackendError) and error.maybe_applied)
        self._count_failure(error)

    def _count_failure(self, error: BaseException) -> None:
        """Count a reason. Messages of the store contain neither payload nor credentials."""
        notes = getattr(error, "__notes__", ())
        self.failures["; ".join([f"{type(error).__name__}: {error}", *notes])] += 1

    # -- flat-out agents -----------------------------------------------------------------------

    async def run_flat_out(self, seconds: float) -> FlatOut | None:
        """Let up to FLAT_OUT_AGENTS agents call `append_event` again and again.

        They append to the sessions of the fleet in turn, so `verify` checks these events too.

        Args:
            seconds: how long to measure, after a warm-up.

        Returns:
            What they reached; None if they were stopped during the warm-up.
        """
        num_agents = min(FLAT_OUT_AGENTS, len(self._ledgers))
        sent: list[list[tuple[Ledger, Event]]] = [[] for _ in range(num_agents)]
        failed: list[tuple[Ledger, Event, SessionStoreError]] = []
        is_over = False

        async def append(number: int) -> None:
            append_event, accepted = self._service.append_event, sent[number].append
            for count, ledger in enumerate(cycle(self._ledgers[number::num_agents])):
                if count % _APPENDS_IN_A_ROW == 0:
                    await asyncio.sleep(0)  # the store in memory never waits: let others run
                    if is_over:
                        return
                event = Event("agent", FLAT_OUT_TEXT)
                try:
                    await append_event(ledger.conversation.key, event)
                except SessionStoreError as error:
                    failed.append((ledger, event, error))
                    return
                accepted((ledger, event))

        def count() -> int:
            return sum(map(len, sent))

        task = self._progress.add_task("Flat out", total=seconds, rate="")
        elapsed, num_appends = 0.0, 0
        async with asyncio.TaskGroup() as group:
            for number in range(num_agents):
                group.create_task(append(number))
            await self._wait(_WARM_UP_SECONDS)
            start, num_before = time.perf_counter(), count()
            while elapsed < seconds and not self.stopping.is_set():
                await self._wait(min(0.1, seconds))
                elapsed = time.perf_counter() - start
                num_appends = count() - num_before
                rate = f"{num_appends / elapsed:,.0f} events/s"
                self._progress.update(task, completed=elapsed, rate=rate)
            is_over = True
        # Only now, because it takes time that the agents need.
        for ledger, event in chain.from_iterable(sent):
            ledger.announce([event])
            ledger.confirm()
        for ledger, event, error in failed:
            ledger.announce([event])
            self._fail(ledger, error)
        return FlatOut(num_agents, num_appends, elapsed) if elapsed else None

    # -- the check -----------------------------------------------------------------------------

    async def verify(self) -> None:
        """Read every session and every user's list, and compare them with what was sent.

        Stops at the first read that fails, which is counted: if the store is gone, every further
        read would wait for its deadline.
        """
        written = [ledger for ledger in self._ledgers if ledger.may_exist]
        by_user: dict[tuple[str, str], list[Ledger]] = {}
        for ledger in written:
            key = ledger.conversation.key
            by_user.setdefault((key.app_name, key.user_id), []).append(ledger)
        if await self._for_each_until_failure("Reading back", written, self._verify_session):
            users = list(by_user.values())
            await self._for_each_until_failure("Checking lists", users, self._verify_list)

    async def clean_up(self) -> None:
        """Delete the sessions, and the state of users and apps that they wrote.

        Stops at the first delete that fails, which is counted.
        """
        written = [ledger for ledger in self._ledgers if ledger.may_exist]
        await self._for_each_until_failure("Deleting", written, self._delete_session)

    async def _verify_session(self, ledger: Ledger) -> None:
        found = await self._service.get_session(**_ids(ledger))
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
        certain = {session_id for session_id, ledger in known.items() if ledger.content}
        names = {session.id for session in listed}
        num_repeated = len(listed) - len(names)
        num_wrong = len(certain - names) + len(names - known.keys())
        num_out_of_order = sum(
            earlier.updated_at < later.updated_at for earlier, later in pairwise(listed)
        )
        self.discrepancies.list_mismatches += num_repeated + num_wrong + num_out_of_order

    async def _delete_session(self, ledger: Ledger) -> None:
        key = ledger.conversation.key
        await self._service.delete_session(**_ids(ledger))
        user_keys = [name for name in ledger.conversation.shared_keys if name.startswith("user:")]
        if user_keys:
            await self._service.delete_user_state(key.app_name, key.user_id, *user_keys)
        app_keys = [name for name in ledger.conversation.shared_keys if name.startswith("app:")]
        if app_keys:
            await self._service.delete_app_state(key.app_name, *app_keys)

    async def _for_each_until_failure(
        self, title: str, items: Sequence[_T], work: Callable[[_T], Awaitable[None]]
    ) -> bool:
        """Work on the items. True if no read or write failed; else the first failure is counted."""
        task = self._progress.add_task(title, total=len(items), rate="")

        async def work_and_show(item: _T) -> None:
            await work(item)
            self._progress.advance(task)

        num_failures = self.failures.total()
        try:
            await _for_each(items, work_and_show, num_workers=_NUM_CHECKERS)
        except* SessionStoreError as group:
            self._count_failure(group.exceptions[0])
        return self.failures.total() == num_failures


async def _for_each(
    items: Iterable[_T], work: Callable[[_T], Awaitable[None]], *, num_workers: int
) -> None:
    """Work on all items in order, a number of them at the same time."""
    remaining = iter(items)

    async def take_items() -> None:
        for item in remaining:
            await work(item)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for _ in range(num_workers):
            group.create_task(take_items())


def _ids(ledger: Ledger) -> dict[str, Any]:
    return asdict(ledger.conversation.key)
