"""What does compression save, and what does it cost?

The events are those of recorded conversations, if ../shared/data/airline.jsonl is there, and
otherwise of conversations that are made up, of random words. A dictionary is trained on every other
conversation, and everything is measured on the rest. Both services store the same events.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import msgspec

from sessionstore import Event, RedisSessionService, Session, Zstd
from sessionstore.cli.fleet.synthetic import synthetic_conversations
from sessionstore.cli.fleet.workload import load_trace
from sessionstore.compression import DICTIONARY_SIZE, train_dictionary

from .dictionary import encoded
from .harness import Harness, Server, Variant, main
from .results import Figure, Group, Result, Target, bars_of, time_of
from .workload import make_sessions, options, read, split

PLAIN = "without compression"
COMPRESSED = "with compression"

RECORDING = Path(__file__).parents[1] / "../shared/data/airline.jsonl"

_AGENTS = 64
_READ = 20  # newest events
_STORED = 200


def conversations(count: int) -> tuple[list[list[Event]], bool]:
    """The events of each conversation, and whether they were recorded."""
    is_recorded = RECORDING.exists()
    found = (
        load_trace(RECORDING)
        if is_recorded
        else synthetic_conversations(100, num_turns=8, sessions_per_user=2, seed=1)
    )
    events = [[event for turn in each.turns() for event in turn] for each in found[:count]]
    return events, is_recorded


class _Store:
    """A server's services with and without compression, and the events to store."""

    def __init__(self, harness: Harness, server: Server, events: list[Event], zstd: Zstd) -> None:
        self.harness = harness
        self.server = server
        self.services: dict[str, RedisSessionService] = {}
        self.sessions: dict[str, list[Session]] = {}
        self._events = cycle(events)
        stored = harness.pick(_STORED, 20)
        for name, compression in ((PLAIN, None), (COMPRESSED, zstd)):
            service = RedisSessionService(server.url, compression=compression, **options(_STORED))
            harness.at_end(service.aclose)
            self.services[name] = service
            app = f"app-{name[:7].strip()}"
            self.sessions[name] = harness.run(make_sessions(service, app, _AGENTS))
            harness.run(self._fill(name, stored))

    def next_event(self) -> Event:
        """The next event of the conversations, new."""
        event, new = next(self._events), Event("user")
        return msgspec.structs.replace(event, id=new.id, timestamp=new.timestamp)

    async def _fill(self, name: str, count: int) -> None:
        for session in self.sessions[name]:
            events = [self.next_event() for _ in range(count)]
            await self.services[name].append_events(session.key, events)

    def measure(self, operation: str, work: Callable[..., Any], count: int) -> Group:
        """Let 64 agents do the same with both services."""
        each = split(count, _AGENTS)

        async def agent(name: str, session: Session) -> None:
            for _ in range(each):
                await work(self.services[name], session)

        async def fleet(name: str) -> None:
            await asyncio.gather(*(agent(name, session) for session in self.sessions[name]))

        variants = [Variant(name, each * _AGENTS, partial(fleet, name)) for name in self.services]
        return self.harness.measure(self.server, f"{operation}, 64 agents", operation, variants)

    async def append(self, service: RedisSessionService, session: Session) -> None:
        """One append."""
        await service.append_event(session.key, self.next_event())

    @staticmethod
    async def read(service: RedisSessionService, session: Session) -> None:
        """One read of the newest events, which are decoded."""
        assert await read(service, session.key, _READ) is not None

    def memory(self, name: str) -> float:
        """What MEMORY USAGE says of all logs."""
        keys = (each.key for each in self.sessions[name])
        spell = self.services[name]._ops.options.keys.session
        logs = [spell(key.app_name, key.user_id, key.session_id).events for key in keys]
        return float(sum(self.server.client.memory_usage(log, samples=0) for log in logs))


def us_per(work: Callable[[bytes], object], values: Sequence[bytes], rounds: int) -> float:
    """Microseconds of a function per value: the fastest round."""
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        for value in values:
            work(value)
        found.append((time.perf_counter() - began) / len(values) * 1e6)
    return min(found)


def run(harness: Harness) -> Result:
    """Measure."""
    found, is_recorded = conversations(harness.pick(100, 16))
    trained, measured = found[::2], [event for events in found[1::2] for event in events]
    samples = encoded(event for events in trained for event in events)
    zstd = Zstd(dictionaries=[train_dictionary(samples, harness.pick(DICTIONARY_SIZE, 4096))])
    values = encoded(measured)
    stored = [zstd.wrap(value) for value in values]
    compressed = [value for value in stored if value[:1] == b"\x02"]
    size = sum(map(len, values))
    share = sum(map(len, stored)) / size
    without = sum(len(Zstd().wrap(value)) for value in values) / size
    rounds = harness.rounds
    server = harness.start_server()
    store = _Store(harness, server, measured, zstd)
    memory = store.memory(COMPRESSED) / store.memory(PLAIN)
    groups = [
        store.measure("append", store.append, harness.pick(8192, _AGENTS)),
        store.measure("read of 20 events", store.read, harness.pick(2048, _AGENTS)),
    ]
    appends, reads = groups
    sent = [appends.row(name).sent_bytes or 0.0 for name in (COMPRESSED, PLAIN)]
    received = [reads.row(name).received_bytes or 0.0 for name in (COMPRESSED, PLAIN)]
    kind = "recorded" if is_recorded else "made-up"
    return harness.result(
        "bench_compression",
        "What does compression save, and what does it cost?",
        groups=groups,
        figures=[
            Figure(f"events of {kind} conversations, mean size", size / len(values), "bytes"),
            Figure("the same, compressed with a dictionary", share * size / len(values), "bytes"),
            Figure("stored bytes with a dictionary", share * 100, "%"),
            Figure("stored bytes without a dictionary", without * 100, "%"),
            Figure("MEMORY USAGE of the logs, 200 events each", memory * 100, "%"),
            Figure("compressing an event", us_per(zstd.wrap, values, rounds), "µs"),
            Figure("decompressing an event", us_per(zstd.unwrap, compressed, rounds), "µs"),
            Figure("bytes sent for an append", sent[0] / sent[1] * 100, "%"),
            Figure("bytes received for a read of 20 events", received[0] / received[1] * 100, "%"),
        ],
        targets=[
            Target(f"stored bytes of {kind} conversations, compressed", share * 100, "<=", 25, "%"),
            Target(
                "append throughput, 64 agents, with compression against without",
                1 / appends.ratio(COMPRESSED, PLAIN, time_of),
                ">=",
                0.75,
                "x",
            ),
            Target(
                "throughput of reads of 20 events, 64 agents, with compression against without",
                1 / reads.ratio(COMPRESSED, PLAIN, time_of),
                ">=",
                0.75,
                "x",
            ),
        ],
        notes=[] if is_recorded else [f"{RECORDING.name} is not there: the words are random."],
        panels=[bars_of(group) for group in groups],
        reading_hint="Time per operation. Less is better.",
    )


if __name__ == "__main__":
    main(run)
