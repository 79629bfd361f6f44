"""Runs simulated agents on a session store and checks that nothing was lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import asdict, replace
from rich.progress import Progress

from ... import Compactor, RunContext, Runner, SessionService, Window
from ...calls import AsyncExecutor
from ...errors import BackendError, InvalidArgument, SessionStoreError
from ...model import Event, Session
from ...observe import wrap_executor
from .recorder import Recorder
from .verification import Ledger, num_covered_by, shared_keys, summarize
from .workload import Conversation

FLAT_OUT_AGENTS = 64
FLAT_OUT_TEXT = ("What an agent says, and what its tools return, is mostly text. " * 17)[:1024]

_READ_EVENTS = 20  # about how many of the newest events an agent sees
_START_THINKS = 10  # agents start within so many think times, not all at once
_WARM_UP_SECONDS = 0.25
_APPENDS_IN_A_ROW = 64  # between two checks of whether the flat-out phase is over
_PREPARED_TURNS_LIMIT = 10_000  # bounds the memory for prepared texts to about 50 MB
_NUM_CHECKERS = 64  # bounds the memory that whole sessions take while they are compared
_LIST_PAGE = 100
_APPENDED_AT_ONCE = 100
_REWOUND_TURNS = 3  # with rewinds, every third turn is taken, rewound, and taken again
_LOG_PAGE = 1000
_TRIGGER, _KEEP = Window(max_turns=4), Window(max_turns=2)  # when to compact, and what to keep

_T = TypeVar("_T")


class FlatOut(Struct):
    """What the flat-out phase reached after its warm-up."""

    num_agents: int
    num_appends: int
    seconds: float


@dataclass(kw_only=True)
class Fleet:
    """Agents that hold conversations at the same time, and the check of what they stored.

    A Runner drives each agent. All events are known in advance, so the check finds every event that
    the Runner or the store loses, changes or repeats.

    Call `run_agents`, then `run_flat_out` if wanted, then `verify`, then `clean_up`.
    """

    service: SessionService
    conversations: Sequence[Conversation]  # of sessions to which only this fleet writes
    num_agents: int  # conversations that are held at the same time
    think_seconds: float  # average wait before each event, exponentially distributed; 0 = none
    event_limit: int | None  # of the service
    progress: Progress
    # Summarize the older turns of all sessions; those of every other session are dropped.
    compacts: bool = False
    rewinds: bool = False  # some turns are rewound and taken again
    # Set it to let every agent finish its current event and start no other.
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    elapsed_seconds: float = 0.0  # of `run_agents`
    # Why operations failed. An agent stops at its first failure.
    failures: Counter[str] = field(default_factory=Counter)
    # What `verify` and the agents found wrong, by kind.
    differences: Counter[str] = field(default_factory=Counter)
    num_verified: int = 0  # sessions that `verify` has read back
    num_rewound: int = 0  # events that were removed on purpose
    num_covered: int = 0  # events that a summary covers, as `verify` found them

    def __post_init__(self) -> None:
        self.ledgers = [
            Ledger(conversation, self.event_limit, is_dropped=self.compacts and number % 2 == 1)
            for number, conversation in enumerate(self.conversations)
        ]
        self._shared = shared_keys(self.conversations)

    def num_events(self, limit: int | None = None) -> int:
        """Events that the store accepted, at most `limit` of a session, without dropped ones."""
        counts = (len(ledger.digests) - ledger.num_dropped for ledger in self.ledgers)
        return sum(min(count, limit or count) for count in counts)

    # -- paced agents --------------------------------------------------------------------------

    async def run_agents(self) -> None:
        """Hold all conversations. Failures are counted, not raised."""
        num_turns = 0
        for ledger in self.ledgers:
            num_turns += ledger.conversation.num_turns
            if num_turns <= _PREPARED_TURNS_LIMIT:
                ledger.conversation.prepare()
        with suppress(SessionStoreError):  # the agents get the same error
            await self.service.get_app_state("fleet")  # connect before the clock starts
        self._task = self.progress.add_task("Agents at work", total=num_turns, rate="")
        wrap_executor(self.service, self._record)
        self._start = time.perf_counter()
        await _for_each(self.ledgers, self._hold_conversation, num_workers=self.num_agents)
        self.elapsed_seconds = time.perf_counter() - self._start
        wrap_executor(self.service, lambda _: self.recorder.executor)

    def _record(self, executor: AsyncExecutor) -> Recorder:
        self.recorder = Recorder(executor)
        return self.recorder

    async def _hold_conversation(self, ledger: Ledger) -> None:
        async with asyncio.TaskGroup() as background:  # of compactions
            await self._converse(ledger, background)
        if self.compacts:  # nobody knows the version that the last compaction made
            with suppress(SessionStoreError):
                session = await self.service.get_session(**asdict(ledger.key), event_num=0)
                ledger.version = session.version if session and ledger.pending is None else None

    async def _converse(self, ledger: Ledger, background: asyncio.TaskGroup) -> None:
        try:
            if not await self._wait(random.uniform(0, _START_THINKS * self.think_seconds)):
                return
            turns = ledger.conversation.turns()
            opening = next(turns)
            ledger.announce()
            session = await self.service.create_session(
                **asdict(ledger.key), state=ledger.conversation.initial_state
            )
            ledger.confirm(session.version)
            for start in range(0, len(opening), _APPENDED_AT_ONCE):
                step = opening[start : start + _APPENDED_AT_ONCE]
                ledger.announce(*step)
                await self.service.append_events(session, step)
                ledger.confirm(session.version)
            for number, turn in enumerate(turns):
                if not await self._think():
                    return
                if self.rewinds and number % _REWOUND_TURNS == 1:
                    await self._take_turn_in_vain(ledger, turn)
                    if self.stopping.is_set():
                        return
                await self._take_turn(ledger, turn)
                if self.compacts:
                    background.create_task(self._compact(ledger))
                num_appends = len(self.recorder.latencies_ns["append_event"])
                rate = num_appends / (time.perf_counter() - self._start)
                self.progress.update(self._task, advance=1, rate=f"{rate:,.0f} events/s")
        except InvalidArgument as error:
            self._fail(error, ledger)
            await self._expect_refusal(ledger)
        except SessionStoreError as error:
            self._fail(error, ledger)

    async def _take_turn(self, ledger: Ledger, turn: list[Event]) -> None:
        """Let a Runner answer the turn's message with the rest of the turn."""
        message, *answers = turn

        async def answer(context: RunContext) -> AsyncIterator[Event]:
            ledger.confirm(context.session.version)
            found = context.session.events
            num_left = len(ledger.digests) - num_covered_by(context.session.summary)
            wanted = min(_READ_EVENTS, self.event_limit or _READ_EVENTS, num_left)
            # The Runner shows whole turns. So it may show more events, or fewer, from a message on.
            is_whole = len(found) >= wanted or found[0].author == "user"
            if not is_whole or ledger.differences(
                context.session, limit=len(found), shared=self._shared
            ):
                self.differences["read_mismatches"] += 1
            for event in answers:
                if not await self._think():
                    return
                ledger.announce(event)
                yield event
                ledger.confirm(context.session.version)

        key = ledger.key
        runner = Runner(key.app_name, answer, self.service, history_limit=_READ_EVENTS)
        ledger.announce(message)
        run = runner.run(key.user_id, key.session_id, message)
        handed_on = [event async for event in run]
        expected = answers[: len(handed_on)] if self.stopping.is_set() else answers
        if handed_on != expected:
            self.differences["read_mismatches"] += 1

    async def _take_turn_in_vain(self, ledger: Ledger, turn: list[Event]) -> None:
        """Take a turn and rewind to before it, as if the user edited the message."""
        state = ledger.own_state
        draft = [replace(event, id=f"draft-{event.id}") for event in turn]
        await self._take_turn(ledger, draft)
        if self.stopping.is_set():
            return
        session = await self.service.get_session(**asdict(ledger.key), event_num=0)
        page = await self.service.get_events(ledger.key, newest=True, limit=len(draft))
        if session is None or page.events != draft:
            self.differences["read_mismatches"] += 1
            return
        ledger.announce_rewind(len(draft), state)
        num_removed = await self.service.rewind_session(
            session, to=page.positions[0] - 1, state=state
        )
        ledger.confirm(session.version)
        self.num_rewound += num_removed

    async def _compact(self, ledger: Ledger) -> None:
        """Summarize older turns, while the agent continues."""
        compactor = Compactor(
            self.service, summarize, trigger=_TRIGGER, keep=_KEEP, drop=ledger.is_dropped
        )
        try:
            await compactor.compact(ledger.key)
        except SessionStoreError as error:
            self._fail(error)

    async def _think(self) -> bool:
        """Wait as a typing user, a model or a tool would, but for a shorter time."""
        return await self._wait(random.expovariate(1) * self.think_seconds)

    async def _wait(self, seconds: float) -> bool:
        """Wait for some time. False = the agents have to stop."""
        if not seconds:
            await asyncio.sleep(0)  # the store in memory never waits: let other agents run
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.stopping.wait()
        return not self.stopping.is_set()

    async def _expect_refusal(self, ledger: Ledger) -> None:
        """Count the error event, which the Runner stores when an event is refused, as sent."""
        with suppress(SessionStoreError):
            session = await self.service.get_session(**asdict(ledger.key), event_num=1)
            if session and session.events and session.events[-1].metadata.get("error"):
                ledger.announce(*session.events)
                ledger.confirm(session.version)

    def _fail(self, error: BaseException, ledger: Ledger | None = None) -> None:
        """Count a reason, which contains neither payload nor credentials. The write has failed."""
        if ledger and not (isinstance(error, BackendError) and error.maybe_applied):
            ledger.pending = None
        notes = getattr(error, "__notes__", ())
        self.failures["; ".join([f"{type(error).__name__}: {error}", *notes])] += 1

    # -- flat-out agents -----------------------------------------------------------------------

    async def run_flat_out(self, seconds: float) -> FlatOut | None:
        """Let agents call `append_event` again and again, after a warm-up.

        Each appends to a session of the fleet, so `verify` checks these events too. None = they
        were stopped during the warm-up.
        """
        num_appends, num_measured, elapsed, is_over = 0, 0, 0.0, False

        async def append(ledger: Ledger) -> None:
            nonlocal num_appends
            append_event, key = self.service.append_event, ledger.key
            accepted: list[Event] = []
            failure: SessionStoreError | None = None
            try:
                while not is_over:
                    for _ in range(_APPENDS_IN_A_ROW):
                        event = Event("agent", FLAT_OUT_TEXT)
                        await append_event(key, event)
                        accepted.append(event)
                        num_appends += 1
                    await asyncio.sleep(0)  # the store in memory never waits: let others run
            except SessionStoreError as error:
                failure = error
            # Not in the loop above: it takes time, which would slow the agents down.
            for each in accepted:
                ledger.announce(each)
                ledger.confirm()
            if failure is not None:
                ledger.announce(event)
                self._fail(failure, ledger)

        task = self.progress.add_task("Flat out", total=seconds, rate="")
        ledgers = self.ledgers[:FLAT_OUT_AGENTS]
        async with asyncio.TaskGroup() as group:
            for ledger in ledgers:
                group.create_task(append(ledger))
            await self._wait(_WARM_UP_SECONDS)
            start, num_before = time.perf_counter(), num_appends
            while elapsed < seconds and not self.stopping.is_set():
                await self._wait(min(0.1, seconds))
                elapsed, num_measured = time.perf_counter() - start, num_appends - num_before
                rate = f"{num_measured / elapsed:,.0f} events/s"
                self.progress.update(task, completed=elapsed, rate=rate)
            is_over = True
        return FlatOut(len(ledgers), num_measured, elapsed) if elapsed else None

    # -- the check -----------------------------------------------------------------------------

    async def verify(self) -> None:
        """Read every session and every user's list, and compare them with what was sent.

        Stops at the first read that fails, which is counted: if the store is gone, every further
        read would wait for its deadline.
        """
        by_user: dict[tuple[str, str], list[Ledger]] = {}
        for ledger in self._written():
            by_user.setdefault((ledger.key.app_name, ledger.key.user_id), []).append(ledger)
        if await self._check("Reading back", self._written(), self._verify_session):
            await self._check("Checking lists", list(by_user.values()), self._verify_list)

    async def clean_up(self) -> None:
        """Delete the sessions, and the state of users and apps that they wrote.

        Stops at the first delete that fails, which is counted.
        """
        await self._check("Deleting", self._written(), self._delete_session)

    def _written(self) -> list[Ledger]:
        """The sessions that were created or may have been."""
        return [each for each in self.ledgers if each.is_created or each.pending is not None]

    async def _verify_session(self, ledger: Ledger) -> None:
        found = await self.service.get_session(**asdict(ledger.key))
        self.differences += ledger.differences(found, limit=self.event_limit, shared=self._shared)
        if found is not None and found.summary is not None:
            self.num_covered += num_covered_by(found.summary)
            ledger.num_dropped = num_covered_by(found.summary) if ledger.is_dropped else 0
            if ledger.pending is None:
                log = await self._whole_log(ledger)
                self.differences += ledger.log_differences(log, found.summary)
        self.num_verified += 1

    async def _whole_log(self, ledger: Ledger) -> list[Event]:
        """All events of a session, with those that its summary covers."""
        log: list[Event] = []
        page = await self.service.get_events(ledger.key, limit=_LOG_PAGE)
        while page.events:
            log += page.events
            page = await self.service.get_events(ledger.key, after=page.last, limit=_LOG_PAGE)
        return log

    async def _verify_list(self, ledgers: Sequence[Ledger]) -> None:
        app_name, user_id, _ = asdict(ledgers[0].key).values()
        listed: list[Session] = []
        page: list[Session] | None = None
        while page is None or len(page) == _LIST_PAGE:
            page = await self.service.list_sessions(
                app_name=app_name, user_id=user_id, limit=_LIST_PAGE, offset=len(listed)
            )
            listed += page
        names = {session.id for session in listed}
        created = {ledger.key.session_id for ledger in ledgers if ledger.is_created}
        known = {ledger.key.session_id for ledger in ledgers}
        num_wrong = len(listed) - len(names) + len(created - names) + len(names - known)
        for earlier, later in pairwise(listed):
            num_wrong += earlier.updated_at < later.updated_at
        self.differences["list_mismatches"] += num_wrong

    async def _delete_session(self, ledger: Ledger) -> None:
        key = ledger.key
        await self.service.delete_session(**asdict(key))
        for name in ledger.conversation.shared_keys:
            if name.startswith("user:"):
                await self.service.delete_user_state(key.app_name, key.user_id, name)
            else:
                await self.service.delete_app_state(key.app_name, name)

    async def _check(
        self, title: str, items: Sequence[_T], work: Callable[[_T], Awaitable[None]]
    ) -> bool:
        """Work on the items. False if a read or write failed; the first failure is counted."""
        task = self.progress.add_task(title, total=len(items), rate="")

        async def work_and_show(item: _T) -> None:
            await work(item)
            self.progress.advance(task)

        num_failures = self.failures.total()
        try:
            await _for_each(items, work_and_show, num_workers=_NUM_CHECKERS)
        except* SessionStoreError as group:
            self._fail(group.exceptions[0])
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
