"""Agents that make random calls on sessions that they share, and record the results."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sessionstore import BackendError, Event, Session, SessionKey, StaleVersion

from .history import Change, Kind, Made, Stored

_CALLS_OF_A_ROUND = 4  # of each agent
_LONG_AGO = datetime(2001, 2, 3, tzinfo=UTC)


@dataclass
class Outcome:
    """What happened.

    Attributes:
        calls: calls by operation, failed ones included.
        cuts: connections that were cut.
        stalls: times when all requests were held back for a while.
        retries: attempts beyond the first.
        maybe_applied: calls whose outcome the error left open.
        failed: errors by name; StaleVersion is an answer and not among them.
        searches: rounds of sessions that were compared with the calls.
        violations: for each session that no order explains: its calls, and what was found.
        too_long: searches that were given up.
        seconds: how long all took.
    """

    calls: Counter[str] = field(default_factory=Counter)
    cuts: int = 0
    stalls: int = 0
    retries: int = 0
    maybe_applied: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    searches: int = 0
    violations: list[str] = field(default_factory=list)
    too_long: int = 0
    seconds: float = 0.0


@dataclass
class SharedSession:
    """A session, and its calls in this round."""

    key: SessionKey
    event_limit: int
    has_pops: bool
    stored: Stored = field(default_factory=Stored)
    calls: list[Made] = field(default_factory=list)


class Agent:
    """Makes random calls on one session, one after the other, and records their results."""

    def __init__(
        self,
        name: str,
        service: Any,
        shared: SharedSession,
        outcome: Outcome,
        seeded: random.Random,
    ) -> None:
        self._name = name
        self._service = service
        self._shared = shared
        self._outcome = outcome
        self._random = seeded
        self._num_events = 0
        self._recent: list[tuple[Event, Change]] = []  # some of them may be appended again
        self._version: int | None = None  # of its last read

    async def run_round(self) -> None:
        """Make the calls of a round."""
        for _ in range(_CALLS_OF_A_ROUND):
            await asyncio.sleep(self._random.uniform(0, 0.003))
            await self._choose()()

    def _choose(self) -> Callable[[], Awaitable[None]]:
        kinds = {
            self._append: 10,
            self._append_batch: 5,
            self._append_again: 2,
            self._update: 2,
            self._increment: 2,
            self._read: 4,
        }
        if self._shared.has_pops:
            kinds |= {self._pop: 5, self._clear: 1}
        return self._random.choices(list(kinds), list(kinds.values()))[0]

    # -- calls ---------------------------------------------------------------------------------

    async def _append(self) -> None:
        pairs = [self._new_event()]
        await self._append_all(pairs)

    async def _append_batch(self) -> None:
        pairs = [self._new_event() for _ in range(self._random.randint(1, 6))]
        if self._recent and self._random.random() < 0.3:
            pairs.insert(self._random.randint(0, len(pairs)), self._random.choice(self._recent))
        await self._append_all(pairs)

    async def _append_again(self) -> None:
        if self._recent:
            await self._append_all([self._random.choice(self._recent)])

    async def _append_all(self, pairs: list[tuple[Event, Change]]) -> None:
        if_version = self._condition()
        events = [event for event, _ in pairs]
        self._recent = [*self._recent, *pairs][-5:]
        changes = tuple(change for _, change in pairs)
        service, key = self._service, self._shared.key

        async def append() -> None:
            if len(events) == 1:
                await service.append_event(key, events[0], if_version=if_version)
            else:
                await service.append_events(key, events, if_version=if_version)

        await self._make("append", append, changes, if_version)

    async def _pop(self) -> None:
        if_version = self._condition()

        async def pop() -> str | None:
            event = await self._service.pop_event(self._shared.key, if_version=if_version)
            return None if event is None else str(event.id)

        await self._make("pop", pop, if_version=if_version)

    async def _clear(self) -> None:
        if_version = self._condition()
        await self._make(
            "clear",
            lambda: self._service.clear_events(self._shared.key, if_version=if_version),
            if_version=if_version,
        )

    async def _update(self) -> None:
        # Without a condition a repeat would write the same values again.
        if self._version is None:
            return
        values = {"last": f"{self._name} {self._random.random()}"}
        if_version = self._version
        await self._make(
            "update",
            lambda: self._service.update_session_state(
                self._shared.key, values, if_version=if_version
            ),
            (Change("", values),),
            if_version,
        )

    async def _increment(self) -> None:
        increments = {"n": self._random.randint(1, 9), "user:n": 1}
        await self._make(
            "increment",
            lambda: self._service.increment_session_state(self._shared.key, increments),
            (Change("", {}, increments),),
        )

    async def _read(self) -> None:
        made = await self._make("read", lambda: read_session(self._service, self._shared.key))
        if made is not None:
            self._version = made.version

    # -- their parts ---------------------------------------------------------------------------

    def _new_event(self) -> tuple[Event, Change]:
        """An event with a new id, and in half of the cases a change of state in all tiers."""
        self._num_events += 1
        name = f"{self._name}-{self._num_events}"
        values: dict[str, Any] = {}
        increments: dict[str, int] = {}
        if self._random.random() < 0.5:
            values = {"last": name, "user:last": name, "app:last": name}
            increments = {"n": 1, "user:n": 10, "app:n": 100}
            for each in (values, increments):
                del each[self._random.choice(list(each))]
        timestamp = _LONG_AGO if self._random.random() < 0.2 else datetime.now(UTC)
        event = Event(
            "agent",
            name,
            id=name,
            timestamp=timestamp,
            state_delta=values,
            state_increments=increments,
        )
        return event, Change(name, values, increments)

    def _condition(self) -> int | None:
        return self._version if self._random.random() < 0.3 else None

    async def _make(
        self,
        kind: Kind,
        call: Callable[[], Awaitable[Any]],
        changes: tuple[Change, ...] = (),
        if_version: int | None = None,
    ) -> Made | None:
        """Make a call. Returns its record, None if it was not applied."""
        outcome = self._outcome
        outcome.calls[kind] += 1
        details: dict[str, Any] = {"changes": changes, "if_version": if_version}
        began = time.monotonic()
        try:
            found = await call()
            details["result"] = "done"
            if isinstance(found, Session):
                details |= {"version": found.version, "found": contents(found)}
            else:
                details["found"] = found
        except StaleVersion as error:
            details |= {"result": "stale", "version": error.actual}
        except BackendError as error:
            outcome.failed[type(error).__name__] += 1
            if not error.maybe_applied:
                return None
            outcome.maybe_applied += 1
            details["result"] = "maybe"
        made = Made(kind, began, time.monotonic(), **details)
        self._shared.calls.append(made)
        return made


async def read_session(service: Any, key: SessionKey) -> Session:
    """The session with all its events."""
    found = await service.get_session(
        app_name=key.app_name, user_id=key.user_id, session_id=key.session_id
    )
    assert isinstance(found, Session), f"{key} is gone"
    return found


def contents(session: Session) -> tuple[tuple[str, ...], tuple[tuple[str, Any], ...]]:
    """What a `Made` and a `Stored` hold of a session: the ids of its events, and its state."""
    ids = tuple(str(event.id) for event in session.events)
    return ids, tuple(sorted(session.state.items()))
