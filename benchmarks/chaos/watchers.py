"""Shows that watchers see every event once and in order, while connections and servers fail.

    python -m benchmarks.chaos.watchers --seed 7
    python -m benchmarks.chaos.watchers --seed 7 --cluster

One process watches 500 sessions with 2,000 watchers, while 200 events a second are appended. Every
five seconds all connections are killed; with `--cluster` also a slot is moved to another primary,
or a replica takes over. A watcher whose iterator raises starts again with its last cursor. At the
end each watcher must have seen exactly the events that were appended, in order.

The exit code is 1 if a watcher has not.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import redis

from sessionstore import BackendError, Event, RedisSessionService, SessionKey, WatchEntry
from sessionstore.embedded import EmbeddedServer
from sessionstore.transport.topology import slot_of_key

from ..results import table
from ..rigs.clusters import Cluster

_TTL_S = 3600
_EVENT_LIMIT = 1000
_DRAIN_S = 30.0  # how long watchers may take to see the last events
_SHOWN_VIOLATIONS = 5

Fault = Callable[[], Awaitable[None]]


@dataclass
class Plan:
    """How much of everything.

    Attributes:
        watchers: number of watchers.
        sessions: number of sessions, each of a user of its own.
        appends: appends a second.
        seconds: how long.
        pause_s: time between faults.
        seed: of all random choices.
    """

    watchers: int = 2000
    sessions: int = 500
    appends: int = 200
    seconds: float = 60.0
    pause_s: float = 5.0
    seed: int = 7


@dataclass
class Outcome:
    """What happened.

    Attributes:
        appended: events by session.
        seen: events that all watchers saw together.
        faults: how often each fault was caused.
        restarts: iterators that raised, by error.
        latencies_s: time from the start of an append to each watcher that saw it.
        violations: what watchers saw that is not right.
    """

    appended: Counter[int] = field(default_factory=Counter)
    seen: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    restarts: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def as_table(self) -> str:
        """The figures as Markdown."""
        cuts = quantiles(self.latencies_s, n=100) if len(self.latencies_s) > 1 else [0.0] * 99
        rows = [
            ("events appended", f"{self.appended.total():,}"),
            ("events seen by watchers", f"{self.seen:,}"),
            *((name, f"{count:,}") for name, count in sorted(self.faults.items())),
            ("watchers that had to start again", f"{self.restarts.total():,}"),
            ("append to watcher, median", f"{median(self.latencies_s or [0.0]) * 1000:.1f} ms"),
            ("append to watcher, 99 of 100", f"{cuts[98] * 1000:.1f} ms"),
            ("violations", f"{len(self.violations):,}"),
        ]
        return table(("what", "figure"), rows)


def key_of(number: int) -> SessionKey:
    """The session of a number."""
    return SessionKey("watched", f"user-{number}", "s")


class Run:
    """Watchers and appends.

    Args:
        url: the servers.
        plan: how much of everything.
        faults: what is done every `pause_s`, in turn, by name.
    """

    def __init__(self, url: str, plan: Plan, faults: Sequence[tuple[str, Fault]]) -> None:
        self.outcome = Outcome()
        self._plan = plan
        self._faults = faults
        self._chance = random.Random(plan.seed)
        options: dict[str, Any] = {"session_ttl": _TTL_S, "session_event_limit": _EVENT_LIMIT}
        self._watching = RedisSessionService(url, **options)
        self._writing = RedisSessionService(url, **options)
        self._next = [0] * plan.watchers  # of each watcher: the event that it expects
        self._ends_at = 0.0

    async def run(self) -> Outcome:
        """Run all of it, and compare."""
        plan = self._plan
        async with self._watching, self._writing:
            for number in range(plan.sessions):
                key = key_of(number)
                await self._writing.create_session(
                    app_name=key.app_name, user_id=key.user_id, session_id=key.session_id
                )
            watchers = [asyncio.create_task(self._watch(each)) for each in range(plan.watchers)]
            self._ends_at = time.monotonic() + plan.seconds
            causing = asyncio.create_task(self._cause_faults())
            await self._append()
            causing.cancel()
            await asyncio.wait([causing])
            if not causing.cancelled():
                causing.result()
            await self._drain()
            for task in watchers:
                task.cancel()
            await asyncio.wait(watchers)
        self._compare()
        return self.outcome

    async def _watch(self, watcher: int) -> None:
        """Watch one session, again after an error."""
        key = key_of(watcher % self._plan.sessions)
        cursor: str | None = None
        while True:
            try:
                async with aclosing(self._watching.watch_events(key, after=cursor)) as watched:
                    async for item in watched:
                        if not isinstance(item, WatchEntry):
                            self._report(watcher, f"got {item}")
                            return
                        cursor = item.cursor
                        self._see(watcher, item.event.content)
            except BackendError as error:
                self.outcome.restarts[type(error).__name__] += 1

    def _see(self, watcher: int, content: Any) -> None:
        number, sent_at = content
        if number != self._next[watcher]:
            self._report(watcher, f"got event {number}, not {self._next[watcher]}")
        self._next[watcher] = number + 1
        self.outcome.seen += 1
        self.outcome.latencies_s.append(time.monotonic() - sent_at)

    async def _append(self) -> None:
        """Append at an even rate. An event is repeated until it is stored."""
        sent: set[asyncio.Task[None]] = set()
        busy: dict[int, asyncio.Task[None]] = {}
        began, count = time.monotonic(), 0
        while time.monotonic() < self._ends_at:
            session = self._chance.randrange(self._plan.sessions)
            number = self.outcome.appended[session]
            self.outcome.appended[session] += 1
            task = asyncio.create_task(self._append_one(session, number, busy.get(session)))
            busy[session] = task
            sent.add(task)
            task.add_done_callback(sent.discard)
            count += 1
            await asyncio.sleep(max(began + count / self._plan.appends - time.monotonic(), 0))
        if sent:
            await asyncio.wait(sent)

    async def _append_one(
        self, session: int, number: int, earlier: asyncio.Task[None] | None
    ) -> None:
        if earlier is not None and not earlier.done():
            await asyncio.wait([earlier])
        event = Event("agent", [number, time.monotonic()])
        while True:
            with suppress(BackendError):
                await self._writing.append_event(key_of(session), event)
                return

    async def _cause_faults(self) -> None:
        for number in range(10_000):
            await asyncio.sleep(self._plan.pause_s)
            name, fault = self._faults[number % len(self._faults)]
            await fault()
            self.outcome.faults[name] += 1

    async def _drain(self) -> None:
        """Wait until every watcher has seen all events, for a while."""
        for _ in range(round(_DRAIN_S / 0.05)):
            if not any(self._missing(each) for each in self._all()):
                return
            await asyncio.sleep(0.05)

    def _all(self) -> range:
        return range(self._plan.watchers)

    def _missing(self, watcher: int) -> int:
        return self.outcome.appended[watcher % self._plan.sessions] - self._next[watcher]

    def _compare(self) -> None:
        for watcher in self._all():
            if self._missing(watcher):
                self._report(watcher, f"lacks {self._missing(watcher)} events at the end")

    def _report(self, watcher: int, what: str) -> None:
        session = watcher % self._plan.sessions
        self.outcome.violations.append(f"watcher {watcher} of session {session} {what}")


async def run_on_server(plan: Plan) -> Outcome:
    """On one server whose connections are killed."""
    with EmbeddedServer() as server:
        client: Any = redis.Redis(unix_socket_path=server.socket_path)

        async def kill() -> None:
            for kind in ("normal", "pubsub"):
                client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

        try:
            return await Run(server.url, plan, [("times all connections were killed", kill)]).run()
        finally:
            client.close()


async def run_on_cluster(plan: Plan, cluster: Cluster) -> Outcome:
    """On a cluster with replicas whose slots move and whose primaries change."""
    chance = random.Random(plan.seed)

    async def kill() -> None:
        for node in cluster.nodes:
            for kind in ("normal", "pubsub"):
                await asyncio.to_thread(node.run, "CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    async def move() -> None:
        key = key_of(chance.randrange(plan.sessions))
        slot = slot_of_key(f"{{{key.app_name}:{key.user_id}}}".encode())
        owner = cluster.owner_of(slot)
        target = chance.choice([node for node in cluster.primaries() if node is not owner])
        await asyncio.to_thread(cluster.migrate, slot, target)

    async def fail_over() -> None:
        primary = chance.choice(cluster.primaries())
        await asyncio.to_thread(cluster.fail_over, cluster.replicas_of(primary)[0])

    faults = [
        ("times all connections were killed", kill),
        ("slots that were moved", move),
        ("replicas that took over", fail_over),
    ]
    return await Run(cluster.url, plan, faults).run()


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    plan = Plan()
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--watchers", type=int, default=plan.watchers)
    parser.add_argument("--sessions", type=int, default=plan.sessions)
    parser.add_argument("--appends", type=int, default=plan.appends, help="a second")
    parser.add_argument("--seconds", type=float, default=plan.seconds)
    parser.add_argument("--pause", dest="pause_s", type=float, default=plan.pause_s)
    parser.add_argument("--cluster", action="store_true")
    arguments = vars(parser.parse_args(argv))
    on_cluster = arguments.pop("cluster")
    plan = Plan(**arguments)
    if on_cluster:
        cluster = Cluster(replicas=3)
        cluster.start()
        try:
            outcome = asyncio.run(run_on_cluster(plan, cluster))
        finally:
            cluster.close()
    else:
        outcome = asyncio.run(run_on_server(plan))
    print(outcome.as_table())
    for violation in outcome.violations[:_SHOWN_VIOLATIONS]:
        print(violation)
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
