"""What does each script cost the server, against the same writes as plain commands?

The Calls of a service are recorded and sent over a bare connection, 64 at a time, so that the
server is always busy. Each is compared with plain commands in MULTI and EXEC that write the same,
check nothing and already know position and version. Compare the server CPU. The bytes sent to
replicas are measured as the growth of an append-only file on a second server, because a replica
would receive the same bytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from sessionstore import Event, SessionKey, SessionService

from .bare import Request
from .harness import Harness, Server, Variant, main
from .payload import TEXT, TTL_SECONDS
from .results import Bars, Figure, Group, Result, server_cpu_of
from .workload import (
    EVENT_LIMIT,
    Command,
    Recorder,
    keys_of,
    make_sessions,
    new_event,
    raw_append,
    read,
    request_of,
    service_of,
    split,
    transaction,
)

OURS = "sessionstore's script, bare hiredis"
RAW = "plain commands, bare hiredis"

_AGENTS = 64
_BATCH = 10
_FRAGMENTS = 4
_TTL_MS = TTL_SECONDS * 1000
_DELTA = {"turns": 4, "topic": "travel", "user:mood": "curious"}
_NOW_US = 1_700_000_000_000_000

Work = Callable[[SessionService, SessionKey], Awaitable[object]]


@dataclass(frozen=True)
class Case:
    """One operation. Its name in the report is the name of its script, and `detail`.

    Attributes:
        detail: the arguments of the script, in words.
        work: runs the operation on a service.
        raw: the plain commands that do the same.
    """

    detail: str
    work: Work
    raw: Callable[[SessionKey], Sequence[Command]]


def _deadlines(key: SessionKey, *, tiers: int = 0) -> list[Command]:
    keys = keys_of(key)
    touched = (keys.session, keys.events, keys.session_index, keys.user, keys.app)[: 3 + tiers]
    return [("PEXPIRE", name, _TTL_MS) for name in touched]


def _header(key: SessionKey, *state: bytes | str) -> list[Command]:
    keys = keys_of(key)
    fields = ("version", 7, "updated_us", _NOW_US, "last_us", _NOW_US, *state)
    return [
        ("HSET", keys.session, *fields),
        ("ZADD", keys.session_index, _NOW_US, key.session_id),
    ]


def _reads(key: SessionKey, num: int) -> list[Command]:
    keys = keys_of(key)
    hashes: list[Command] = [("HGETALL", name) for name in (keys.session, keys.user, keys.app)]
    return [*hashes, ("ZRANGE", keys.events, -num, -1)]


def _raw_delta(key: SessionKey) -> list[Command]:
    keys = keys_of(key)
    event = msgspec.json.encode(Event("agent", TEXT, state_delta=_DELTA))
    return [
        ("ZADD", keys.events, "NX", _NOW_US, event),
        ("ZREMRANGEBYRANK", keys.events, 0, -EVENT_LIMIT - 1),
        *_header(key, ".turns", b"4", ".topic", b'"travel"'),
        ("HSET", keys.user, "mood", b'"curious"'),
        *_deadlines(key, tiers=1),
    ]


def _raw_batch(key: SessionKey) -> list[Command]:
    keys = keys_of(key)
    pairs: list[bytes | int] = []
    for number in range(_BATCH):
        pairs += (_NOW_US + number, msgspec.json.encode(new_event()))
    return [
        ("ZADD", keys.events, "NX", *pairs),
        ("ZREMRANGEBYRANK", keys.events, 0, -EVENT_LIMIT - 1),
        *_header(key),
        *_deadlines(key),
    ]


async def _append_batch(service: SessionService, key: SessionKey) -> None:
    await service.append_events(key, [new_event() for _ in range(_BATCH)])


def _fragments() -> list[Event]:
    return [Event("agent", " word", invocation_id="run", partial=True) for _ in range(_FRAGMENTS)]


def _raw_fragments(key: SessionKey) -> list[Command]:
    stream = keys_of(key).stream
    return [
        ("ZADD", stream, _NOW_US, msgspec.json.encode(_fragments())),
        ("ZREMRANGEBYSCORE", stream, "-inf", 0),
        ("PEXPIRE", stream, _TTL_MS),
    ]


def _raw_append(key: SessionKey) -> list[Command]:
    return raw_append(key, new_event(), version=7)


CASES = [
    Case(
        "one event",
        lambda service, key: service.append_event(key, new_event()),
        _raw_append,
    ),
    Case(
        "one event with a state delta of three keys",
        lambda service, key: service.append_event(key, Event("agent", TEXT, state_delta=_DELTA)),
        _raw_delta,
    ),
    Case(f"{_BATCH} events", _append_batch, _raw_batch),
    Case(
        f"{_FRAGMENTS} fragments",
        lambda service, key: service.append_events(key, _fragments()),
        _raw_fragments,
    ),
    Case(
        "get_session of 20 events",
        lambda service, key: read(service, key, 20),
        lambda key: [*_deadlines(key, tiers=2), *_reads(key, 20)],
    ),
    Case(
        "two keys",
        lambda service, key: service.update_session_state(key, {"turns": 4, "topic": "travel"}),
        lambda key: [*_header(key, ".turns", b"4", ".topic", b'"travel"'), *_deadlines(key)],
    ),
    Case(
        "two keys of the user tier",
        lambda service, key: service.update_user_state(
            key.app_name, key.user_id, {"mood": "curious", "city": "Paris"}
        ),
        lambda key: [
            ("HSET", keys_of(key).user, "mood", b'"curious"', "city", b'"Paris"'),
            ("PEXPIRE", keys_of(key).user, _TTL_MS),
        ],
    ),
    Case(
        "existing session, 20 events",
        lambda service, key: service.get_or_create_session(
            app_name=key.app_name, user_id=key.user_id, session_id=key.session_id, event_num=20
        ),
        lambda key: [*_deadlines(key, tiers=2), *_reads(key, 20)],
    ),
    Case(
        "empty log",
        lambda service, key: service.clear_events(key),
        lambda key: [("UNLINK", keys_of(key).events), *_header(key), *_deadlines(key)],
    ),
]


class _Bench:
    """One server with sessions for both variants."""

    def __init__(self, harness: Harness, server: Server, stored: int) -> None:
        self.harness = harness
        self.server = server
        self.recorder = Recorder()
        self.bare = harness.connect_bare(server)
        self.agents = harness.pick(_AGENTS, 2)
        self.service = service_of(server.url)
        harness.at_end(self.service.aclose)
        self.ours, self.raw = (self._make(app, stored) for app in ("case-a", "case-b"))
        self.requests: list[list[Request]] = []

    def _make(self, app: str, stored: int) -> list[SessionKey]:
        sessions = self.harness.run(make_sessions(self.service, app, self.agents, stored))
        return [session.key for session in sessions]

    def load(self, work: Work) -> None:
        """Run the operation once, so that the server knows the script. EVALSHA needs that."""

        async def once() -> None:
            await work(self.service, self.ours[0])

        self.harness.run(once())

    def name_of(self, case: Case) -> str:
        """The name of the script that the operation runs, and the detail."""
        call = self.harness.run(self._call(case.work, self.ours[0]))
        return f"{call.script.name}: {case.detail}"

    def variants(self, case: Case, count: int) -> list[Variant]:
        """The script and the plain commands."""
        each = split(count, self.agents)

        async def prepare_ours() -> None:
            self.requests = [
                [request_of(await self._call(case.work, key)) for _ in range(each)]
                for key in self.ours
            ]

        def prepare_raw() -> None:
            self.requests = [[transaction(*case.raw(key)) for _ in range(each)] for key in self.raw]

        async def work() -> None:
            await self.bare.run_agents(self.requests)

        total = each * self.agents
        return [
            Variant(OURS, total, work, prepare_ours),
            Variant(RAW, total, work, prepare_raw),
        ]

    async def _call(self, work: Work, key: SessionKey) -> Any:
        return await self.recorder.call_of(work(self.recorder.service, key))


def replicated(harness: Harness, bench: _Bench, variants: Sequence[Variant]) -> list[float]:
    """Bytes that go to a replica per operation, for each variant."""
    found = []
    for variant in variants:
        harness.finish(variant.prepare() if variant.prepare else None)
        before = bench.server.read().aof_bytes
        harness.finish(variant.work())
        found.append((bench.server.read().aof_bytes - before) / variant.operations)
    return found


def run(harness: Harness) -> Result:
    """Measure."""
    stored = harness.pick(EVENT_LIMIT, 20)
    bench = _Bench(harness, harness.start_server(), stored)
    with_file = harness.start_server(
        appendonly="yes", appendfsync="no", auto_aof_rewrite_percentage="0"
    )
    file_bench = _Bench(harness, with_file, stored)
    groups: list[Group] = []
    figures: list[Figure] = []
    ratios: dict[str, float] = {}
    count = harness.pick(4096, 4)
    for case in CASES:
        for each in (bench, file_bench):
            each.load(case.work)
        name = bench.name_of(case)
        group = harness.measure(bench.server, name, "call", bench.variants(case, count))
        groups.append(group)
        ratios[name] = group.ratio(OURS, RAW, server_cpu_of)
        ours, raw = replicated(harness, file_bench, file_bench.variants(case, count // 8))
        figures += [
            Figure(f"{name}: server CPU", ratios[name], "x plain commands"),
            Figure(f"{name}: to replicas", ours, "bytes per call"),
            Figure(f"{name}: to replicas, plain commands", raw, "bytes per call"),
        ]
    return harness.result(
        "bench_scripts",
        "What does each script cost the server, against the same writes as plain commands?",
        groups=groups,
        figures=figures,
        panels=[Bars("server CPU of the script / of plain commands", ratios, "x", all_ours=True)],
        reading_hint="1 x: the script costs the server as much as the same writes in MULTI/EXEC.",
    )


if __name__ == "__main__":
    main(run)
