"""Shows that a server that evicts keys never shortens a session silently.

    python -m benchmarks.chaos.eviction --seed 7

Sessions grow until the server runs out of memory and evicts keys, under each policy that README
warns of, on each server that is found. A read must return every event that was stored, or raise;
a session may also be gone as a whole. At the end each key that is left must have a deadline.

The exit code is 1 if a read returned fewer events, or if a key has no deadline.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sessionstore import (
    BackendRejected,
    CorruptData,
    Event,
    RedisSessionService,
    Session,
    SessionExists,
    SessionKey,
    SessionNotFound,
)
from sessionstore.embedded import find_servers

from ..results import table
from ..rigs.nodes import CONFIG, Node, Unsettled, free_ports

POLICIES = ("allkeys-lru", "volatile-lru", "volatile-ttl")

_APP = "app"
_USERS = 20
_SESSIONS_OF_A_USER = 3
_EVENT_LIMITS = (None, 20)  # of a user's sessions, in turn
_ROOM_BYTES = 1_000_000
_TEXT = "x" * 2000
_TTL_S = 3600


@dataclass
class Outcome:
    """What happened under one policy.

    Attributes:
        calls: calls that succeeded, by operation.
        evicted: keys that the server evicted.
        whole: sessions that were read with all of their events.
        refused: calls that raised CorruptData, EventsMissing or SessionNotFound.
        gone: sessions that were read and are gone as a whole.
        shortened: sessions that were read with other events than they had. Must be 0.
        without_deadline: keys that are left and never expire. Must be 0.
    """

    calls: Counter[str] = field(default_factory=Counter)
    evicted: int = 0
    whole: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    gone: int = 0
    shortened: int = 0
    without_deadline: int = 0


class _Run:
    """Random calls on sessions, one after the other, and what each session must hold."""

    def __init__(self, url: str, seeded: random.Random, outcome: Outcome) -> None:
        self._random = seeded
        self._outcome = outcome
        self._num_events = 0
        self._expected: dict[SessionKey, list[str]] = {}
        ttl: dict[str, Any] = dict.fromkeys(
            ("session_ttl", "user_state_ttl", "app_state_ttl"), _TTL_S
        )
        self._services = [
            RedisSessionService(url, session_event_limit=limit, **ttl) for limit in _EVENT_LIMITS
        ]

    async def aclose(self) -> None:
        """Close the services."""
        for service in self._services:
            await service.aclose()

    async def step(self) -> None:
        """Write to a session, and read another."""
        weights = {self._append: 10, self._append_batch: 3, self._pop: 2}
        await self._attempt(self._random.choices(list(weights), list(weights.values()))[0])
        reads = [self._read, self._read_or_create, self._page, self._list]
        await self._attempt(self._random.choice(reads))

    async def _attempt(self, work: Callable[[SessionKey, Any], Awaitable[None]]) -> None:
        number = self._random.randrange(_USERS)
        name = f"s{self._random.randrange(_SESSIONS_OF_A_USER)}"
        key = SessionKey(_APP, f"u{number}", name)
        service = self._services[number % len(_EVENT_LIMITS)]
        try:
            await work(key, service)
        except (CorruptData, SessionNotFound) as error:
            self._outcome.refused[type(error).__name__] += 1
            await self._mend(key, service)
        except BackendRejected as error:  # out of memory: nothing is left that may be evicted
            self._outcome.refused[type(error).__name__] += 1
        else:
            self._outcome.calls[work.__name__.removeprefix("_")] += 1

    async def _mend(self, key: SessionKey, service: Any) -> None:
        """Repair, replace or delete a session that is damaged, or leave it as it is."""
        ids = {"app_name": key.app_name, "user_id": key.user_id, "session_id": key.session_id}
        choice = self._random.randrange(4)
        with suppress(SessionNotFound, SessionExists, BackendRejected):
            if choice == 0:
                self._expected[key] = _ids(await service.repair_session(key))
            elif choice == 1:
                await service.create_session(**ids)
                self._expected[key] = []
            elif choice == 2:
                await service.delete_session(**ids)
                self._expected.pop(key, None)

    # -- calls ---------------------------------------------------------------------------------

    async def _append(self, key: SessionKey, service: Any) -> None:
        event = self._new_event()
        if key not in self._expected:
            await self._read_or_create(key, service)
        await service.append_event(key, event)
        self._add(key, service, event)

    async def _append_batch(self, key: SessionKey, service: Any) -> None:
        events = [self._new_event() for _ in range(self._random.randint(2, 4))]
        await service.append_events(key, events)
        self._add(key, service, *events)

    async def _pop(self, key: SessionKey, service: Any) -> None:
        event = await service.pop_event(key)
        expected = self._expected.setdefault(key, [])
        self._outcome.shortened += (event and event.id) != (expected.pop() if expected else None)

    async def _read(self, key: SessionKey, service: Any) -> None:
        found = await service.get_session(
            app_name=key.app_name, user_id=key.user_id, session_id=key.session_id
        )
        if found is None:
            self._outcome.gone += self._expected.pop(key, None) is not None
        else:
            self._compare(found)

    async def _read_or_create(self, key: SessionKey, service: Any) -> None:
        found = await service.get_or_create_session(
            app_name=key.app_name, user_id=key.user_id, session_id=key.session_id
        )
        if not found.events and self._expected.get(key):
            # It is gone as a whole if a new session took its place.
            self._outcome.gone += found.version == _created_version(found)
            self._outcome.shortened += found.version != _created_version(found)
            self._expected[key] = []
        self._expected.setdefault(key, [])
        self._compare(found)

    async def _page(self, key: SessionKey, service: Any) -> None:
        page = await service.get_events(key, limit=1000)
        self._check(key, [event.id for event in page.events])

    async def _list(self, key: SessionKey, service: Any) -> None:
        found = await service.list_sessions(
            app_name=key.app_name, user_id=key.user_id, event_num=1000
        )
        for session in found:
            self._compare(session)

    # -- their parts ---------------------------------------------------------------------------

    def _new_event(self) -> Event:
        self._num_events += 1
        delta = {"n": self._num_events, "user:n": self._num_events}
        return Event("agent", _TEXT, id=f"{self._num_events}", state_delta=delta)

    def _add(self, key: SessionKey, service: Any, *events: Event) -> None:
        limit = _EVENT_LIMITS[self._services.index(service)]
        expected = [*self._expected.get(key, ()), *(str(event.id) for event in events)]
        self._expected[key] = expected if limit is None else expected[-limit:]

    def _compare(self, session: Session) -> None:
        self._check(session.key, _ids(session))

    def _check(self, key: SessionKey, found: list[str]) -> None:
        is_whole = found == self._expected.get(key, [])
        self._outcome.whole += is_whole
        self._outcome.shortened += not is_whole


def _ids(session: Session) -> list[str]:
    return [str(event.id) for event in session.events]


def _created_version(session: Session) -> int:
    """The version that a session has when it is created: the time in microseconds."""
    return round(session.created_at.timestamp() * 1_000_000)


async def run(url: str, raw: Any, policy: str, *, seed: int, steps: int) -> Outcome:
    """Fill a server beyond its memory, and compare what is read with what was stored.

    Args:
        url: the server, which is otherwise empty.
        raw: a redis-py client of the same server, to configure and inspect it.
        policy: its `maxmemory-policy` meanwhile.
        seed: of all random choices. The server's choices are not repeated.
        steps: how often to write and read.
    """
    outcome = Outcome()
    evicted_before = int(raw.info("stats")["evicted_keys"])
    work = _Run(url, random.Random(f"{seed} {policy}"), outcome)
    try:
        raw.config_set("maxmemory-policy", policy)
        raw.config_set("maxmemory", int(raw.info("memory")["used_memory"]) + _ROOM_BYTES)
        for _ in range(steps):
            await work.step()
    finally:
        raw.config_set("maxmemory", 0)
        raw.config_set("maxmemory-policy", "noeviction")
        await work.aclose()
    outcome.evicted = int(raw.info("stats")["evicted_keys"]) - evicted_before
    outcome.without_deadline = sum(raw.pexpiretime(key) == -1 for key in raw.scan_iter(count=1000))
    return outcome


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="of all random choices")
    parser.add_argument("--steps", type=int, default=5000, help="of each server and policy")
    arguments = parser.parse_args(argv)
    servers = find_servers()
    if not servers:
        raise Unsettled("no server is installed: pip install 'sessionstore[embedded]'")
    rows, is_broken = [], False
    for server in servers:
        node = Node("server", (free_ports(1)[0], 0), server.path, CONFIG)
        try:
            node.wait_for_answer()
            for policy in POLICIES:
                url = f"redis://127.0.0.1:{node.port}"
                outcome = asyncio.run(
                    run(url, node.client, policy, seed=arguments.seed, steps=arguments.steps)
                )
                node.run("FLUSHALL")
                is_broken |= bool(outcome.shortened or outcome.without_deadline)
                name = f"{server.name} {'.'.join(map(str, server.version))}, {policy}"
                rows.append([name, *as_row(outcome)])
        finally:
            node.close()
    print(table(["server and policy", *HEAD], rows))
    print("\na promise was broken" if is_broken else "\nall promises were kept")
    return int(is_broken)


HEAD = [
    "keys evicted",
    "sessions read whole",
    "calls refused",
    "gone as a whole",
    "read with fewer events",
    "keys without a deadline",
]


def as_row(outcome: Outcome) -> list[str]:
    """The figures of one policy, as in `HEAD`."""
    figures = (
        outcome.evicted,
        outcome.whole,
        outcome.refused.total(),
        outcome.gone,
        outcome.shortened,
        outcome.without_deadline,
    )
    return [f"{figure:,}" for figure in figures]


if __name__ == "__main__":
    sys.exit(main())
