"""A fleet of agents that record which writes were acknowledged, and the audit at the end.

Every agent appends numbered events to its session, each with a state delta in every tier, and reads
them back. An agent repeats a failed call with the same event until it succeeds. Event ids make that
safe.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import sessionstore.sync
from sessionstore import BackendError, Event, NotReplicated, SessionKey

CALM = "calm"
"""The name for the time between two faults."""

_PAGE = 1000
_SLOW_S = 0.1
_GIVE_UP_S = 60.0  # an agent stops after this time without an answer


@dataclass
class Account:
    """The calls during one fault.

    Attributes:
        calls: calls that succeeded.
        failed: calls that failed, by the name of the error.
        longest_s: the longest call, failed calls included.
        slow: start and end of slow calls, on the clock `time.monotonic`.
        longest_behind_s: the longest time from a takeover to the end of a slow call.
    """

    calls: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    slow: list[tuple[float, float]] = field(default_factory=list)
    longest_behind_s: float = 0.0

    @property
    def failures(self) -> int:
        """How many calls failed."""
        return self.failed.total()


@dataclass
class Audit:
    """What was acknowledged, compared with what is stored.

    Attributes:
        sessions: sessions that were read back.
        acknowledged: appends that succeeded.
        lost: acknowledged appends whose event is missing.
        lost_by: the same, by the fault during which they were acknowledged.
        duplicated: events that are stored twice.
        disordered: events stored before an earlier event of the same agent.
        state_wrong: state values of any tier that differ from the newest event's delta.
        stale_reads: reads that did not show the agent's own last write.
    """

    sessions: int = 0
    acknowledged: int = 0
    lost: int = 0
    lost_by: Counter[str] = field(default_factory=Counter)
    duplicated: int = 0
    disordered: int = 0
    state_wrong: int = 0
    stale_reads: int = 0


@dataclass
class _Agent:
    name: str
    key: SessionKey
    service: Any
    random: random.Random
    acknowledged: list[str] = field(default_factory=list)  # the fault during each append, by number
    app_number: int | None = None


class Threads:
    """A service for threads with awaitable methods."""

    def __init__(self, service: sessionstore.sync.RedisSessionService, threads: int) -> None:
        self._service = service
        self._pool = ThreadPoolExecutor(threads)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._service, name)

        async def call(*args: Any, **options: Any) -> Any:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, partial(method, *args, **options))

        return call

    async def aclose(self) -> None:
        """Close the service after the last call."""
        self._pool.shutdown()
        self._service.close()


class Fleet:
    """Agents that append and read.

    Args:
        services: services with awaitable methods. The agents share them in turn.
        agents: number of agents. Every fifth shares the session of the one before it.
        label: part of the user ids, so that fleets use different sessions.
        seed: of the pauses.
        pause_s: mean pause of an agent between two turns.
        app_every: every n-th event also changes the app tier. 0 = no event does.

    Attributes:
        accounts: calls by fault.
        stale_reads: reads that did not show the agent's own last write.
        gave_up: agents that stopped because they got no answer for a minute.
    """

    def __init__(
        self,
        services: Sequence[Any],
        agents: int,
        label: str,
        seed: int,
        *,
        pause_s: float = 0.05,
        app_every: int = 10,
    ) -> None:
        self.accounts: dict[str, Account] = {}
        self.stale_reads = 0
        self.gave_up = 0
        self._pause_s = pause_s
        self._app_every = app_every
        self._fault = CALM
        self._latest = CALM
        self._faults = 0
        self._is_over = False
        self._tasks: list[asyncio.Task[None]] = []
        self._agents: list[_Agent] = []
        for number in range(agents):
            owner = number - (number % 5 == 1)
            key = SessionKey(f"app-{label}", f"user-{label}-{owner}", f"session-{owner}")
            seeded = random.Random(f"{seed}-{label}-{number}")
            service = services[number % len(services)]
            self._agents.append(_Agent(f"agent-{number}", key, service, seeded))

    @property
    def keys(self) -> list[SessionKey]:
        """The sessions of the fleet."""
        return list(dict.fromkeys(agent.key for agent in self._agents))

    def set_fault(self, fault: str) -> None:
        """Set the fault that calls count for from now on. CALM = no fault."""
        self._fault = fault
        if fault != CALM:
            self._latest = fault
            self._faults += 1

    async def start(self) -> None:
        """Create the sessions and start the agents."""
        owners = {agent.key: agent for agent in self._agents}
        await asyncio.gather(*(self._create(agent) for agent in owners.values()))
        self._tasks = [asyncio.create_task(self._work(agent)) for agent in self._agents]

    async def _create(self, agent: _Agent) -> None:
        key = agent.key
        await agent.service.get_or_create_session(
            app_name=key.app_name, user_id=key.user_id, session_id=key.session_id
        )

    async def stop(self) -> None:
        """Let every agent finish its current call, retries included."""
        self._is_over = True
        await asyncio.gather(*self._tasks)

    # -- working -------------------------------------------------------------------------------

    async def _work(self, agent: _Agent) -> None:
        try:
            while not self._is_over:
                await self._append(agent)
                if len(agent.acknowledged) % 3 == 0:
                    await self._read(agent)
                await asyncio.sleep(agent.random.expovariate(1 / self._pause_s))
        except BackendError:
            self.gave_up += 1

    async def _append(self, agent: _Agent) -> None:
        number = len(agent.acknowledged)
        delta: dict[str, Any] = {agent.name: number, f"user:{agent.name}": number}
        if self._app_every and number % self._app_every == 0:
            delta[f"app:{agent.name}"] = number
        event = Event(
            agent.name, number, id=f"{agent.name}-{number}", state_delta=delta, metadata={"n": 1}
        )
        await self._call_until_done(agent, agent.service.append_event, agent.key, event)
        agent.acknowledged.append(self._fault)
        if f"app:{agent.name}" in delta:
            agent.app_number = number

    async def _read(self, agent: _Agent) -> None:
        key = agent.key
        found = await self._call_until_done(
            agent,
            agent.service.get_session,
            app_name=key.app_name,
            user_id=key.user_id,
            session_id=key.session_id,
            event_num=3,
        )
        newest = len(agent.acknowledged) - 1
        state = {} if found is None else found.state
        if state.get(agent.name) != newest or state.get(f"user:{agent.name}") != newest:
            self.stale_reads += 1

    async def _call_until_done(self, agent: _Agent, call: Any, *args: Any, **options: Any) -> Any:
        give_up_at = time.monotonic() + _GIVE_UP_S
        while True:
            is_calm, faults, start = self._fault == CALM, self._faults, time.monotonic()
            error: BackendError | None = None
            try:
                return await call(*args, **options)
            except BackendError as problem:
                error = problem
            finally:
                # A call counts for a fault if it overlaps with it at all.
                is_calm = is_calm and faults == self._faults
                self._record(CALM if is_calm else self._latest, start, time.monotonic(), error)
            if time.monotonic() > give_up_at:
                raise error
            await asyncio.sleep(agent.random.uniform(0.02, 0.1))

    def _record(self, fault: str, start: float, end: float, error: BackendError | None) -> None:
        account = self.accounts.setdefault(fault, Account())
        account.longest_s = max(account.longest_s, end - start)
        if end - start > _SLOW_S:
            account.slow.append((start, end))
        if error is None:
            account.calls += 1
        else:
            is_unconfirmed = isinstance(error.__cause__, NotReplicated)  # app state
            account.failed[type(error.__cause__ if is_unconfirmed else error).__name__] += 1

    def note_takeovers(self, takeovers: Sequence[float]) -> None:
        """Compute how long calls took after the takeovers."""
        for account in self.accounts.values():
            behind = [
                end - at for start, end in account.slow for at in takeovers if start < at < end
            ]
            account.longest_behind_s = max(behind, default=0.0)
            account.slow.clear()

    # -- audit ---------------------------------------------------------------------------------

    async def audit(self, service: Any) -> Audit:
        """Read every session back and compare it with the acknowledged writes of its agents."""
        found = Audit(stale_reads=self.stale_reads)
        app_states: dict[str, dict[str, Any]] = {}
        for app_name in {key.app_name for key in self.keys}:
            app_states[app_name] = await service.get_app_state(app_name)
        for key in self.keys:
            agents = [agent for agent in self._agents if agent.key == key]
            await self._audit(service, key, agents, app_states[key.app_name], found)
        return found

    async def _audit(
        self,
        service: Any,
        key: SessionKey,
        agents: list[_Agent],
        app_state: dict[str, Any],
        found: Audit,
    ) -> None:
        found.sessions += 1
        stored: dict[str, list[int]] = {agent.name: [] for agent in agents}
        after = None
        while True:
            page = await service.get_events(key, after=after, limit=_PAGE)
            for event in page.events:
                stored[event.author].append(event.content)
            after = page.last
            if len(page.events) < _PAGE:
                break
        session = await service.get_session(
            app_name=key.app_name, user_id=key.user_id, session_id=key.session_id, event_num=0
        )
        for agent in agents:
            numbers = stored[agent.name]
            there = set(numbers)
            lost = [fault for n, fault in enumerate(agent.acknowledged) if n not in there]
            found.acknowledged += len(agent.acknowledged)
            found.lost += len(lost)
            found.lost_by.update(lost)
            found.duplicated += len(numbers) - len(there)
            found.disordered += sum(a > b for a, b in pairwise(numbers))
            newest = len(agent.acknowledged) - 1
            if newest >= 0:
                found.state_wrong += session.state.get(agent.name) != newest
                found.state_wrong += session.state.get(f"user:{agent.name}") != newest
            if agent.app_number is not None:
                found.state_wrong += app_state.get(agent.name) != agent.app_number
