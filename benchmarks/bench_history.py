"""Does a long history make a session slow?

The sessions hold 0 to 100,000 events and have no event limit, so nothing is trimmed. One agent, and
then 64 tasks at once, append to them. One agent reads the newest 20 events. After every round the
session is cut back to its size.

Then a summary covers all but the newest events of a session. Reads should cost as much as those of
a session without the covered events, and storing the summary should not depend on their number.
"""

from __future__ import annotations

import asyncio
from functools import partial

from sessionstore import Event, RedisSessionService, SessionKey, Window

from .harness import Harness, Server, Variant, main
from .payload import TEXT
from .results import Figure, Group, Lines, Result, Target, server_cpu_of, time_of
from .workload import fill, keys_of, make_sessions, new_event, read, service_of

_TASKS = 64
_AFTER_SUMMARY = 50
_TURN = 5
_ALONE = f"{_AFTER_SUMMARY} events, no summary"


class _Histories:
    """One session of each size."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.server: Server = harness.start_server()
        self.service: RedisSessionService = service_of(self.server.url, event_limit=None)
        harness.at_end(self.service.aclose)
        self.sizes = harness.pick([0, 1_000, 10_000, 100_000], [0, 100, 1_000])
        self.keys: dict[int, SessionKey] = {}
        for size in self.sizes:
            [session] = harness.run(make_sessions(self.service, f"history{size:06}", 1))
            harness.run(fill(self.service, session.key, size))
            self.keys[size] = session.key

    def appends(self, tasks: int) -> Group:
        """Appends to each session in turn."""
        count = self.harness.pick(1024 if tasks == 1 else 4096, 64)
        variants = [
            Variant(
                _name(size),
                count,
                partial(self._append, self.keys[size], tasks, count // tasks),
                partial(self._cut_back, size),
            )
            for size in self.sizes
        ]
        agents = "1 agent" if tasks == 1 else f"{tasks} tasks on one session"
        return self.harness.measure(self.server, f"append, {agents}", "append", variants)

    async def _append(self, key: SessionKey, tasks: int, each: int) -> None:
        append = self.service.append_event

        async def task() -> None:
            for _ in range(each):
                await append(key, new_event())

        if tasks == 1:
            await task()
        else:
            await asyncio.gather(*(task() for _ in range(tasks)))

    def _cut_back(self, size: int) -> None:
        keys = keys_of(self.keys[size])
        self.server.client.zremrangebyrank(keys.events, size, -1)
        self.server.client.hset(keys.session, "count", size)

    def reads(self) -> Group:
        """Reads of the newest 20 events of each session in turn."""
        count = self.harness.pick(500, 10)
        variants = [
            Variant(
                _name(size),
                count,
                partial(self._read, self.keys[size], count),
                partial(self._cut_back, size),
            )
            for size in self.sizes
            if size
        ]
        return self.harness.measure(self.server, "read the newest 20, 1 agent", "read", variants)

    async def _read(self, key: SessionKey, count: int) -> None:
        for _ in range(count):
            session = await read(self.service, key, 20)
            assert session is not None
            assert len(session.events) == 20


class _Summaries:
    """Sessions of turns: a short one, and longer ones whose summary leaves as many events."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.server: Server = harness.start_server()
        self.service: RedisSessionService = service_of(self.server.url, event_limit=None)
        harness.at_end(self.service.aclose)
        self.sizes = harness.pick([10, 10_000], [10, 100])
        self.long = self._name(self.sizes[-1])
        self.keys = {_ALONE: harness.run(self._make(0))}
        self.upto: dict[str, int] = {}
        for size in self.sizes:
            self.keys[self._name(size)] = harness.run(self._make(size))

    @staticmethod
    def _name(size: int) -> str:
        return f"{size:,} covered events and {_AFTER_SUMMARY} more"

    async def _make(self, size: int) -> SessionKey:
        [session] = await make_sessions(self.service, f"summaries{size:06}", 1)
        events = [
            Event("agent", TEXT, invocation_id=f"run{number // _TURN}")
            for number in range(size + _AFTER_SUMMARY)
        ]
        for first in range(0, len(events), 100):
            await self.service.append_events(session.key, events[first : first + 100])
        if size:
            log = await self.service.get_events(session.key, limit=size)
            self.upto[self._name(size)] = log.positions[-1]
            await self._compact(self._name(size), session.key, 1, base=None)
        return session.key

    async def _compact(self, name: str, key: SessionKey, count: int, base: int | None) -> None:
        upto = self.upto[name]
        for number in range(count):
            await self.service.compact_session(
                key, upto=upto, summary=f"summary {number} {base}", if_summary=base
            )

    def reads(self, what: str, window: Window | None) -> Group:
        """Reads of the long session and of the short one."""
        count = self.harness.pick(300, 10)
        variants = [
            Variant(name, count, partial(self._read, self.keys[name], count, window))
            for name in (_ALONE, self.long)
        ]
        return self.harness.measure(self.server, f"get_session, {what}", "read", variants)

    async def _read(self, key: SessionKey, count: int, window: Window | None) -> None:
        for _ in range(count):
            session = await self.service.get_session(
                app_name=key.app_name, user_id=key.user_id, session_id=key.session_id, window=window
            )
            assert session is not None
            assert len(session.events) == _AFTER_SUMMARY

    def compactions(self) -> Group:
        """New summaries in the place of those that are there. Only the script is sent."""
        count = self.harness.pick(500, 5)
        variants = [
            Variant(
                name, count, partial(self._compact, name, self.keys[name], count, self.upto[name])
            )
            for name in map(self._name, self.sizes)
        ]
        return self.harness.measure(self.server, "compact_session", "summary", variants)

    def drop(self) -> Figure:
        """How long the server needs to remove the covered events of the long session."""
        key, upto = self.keys[self.long], self.upto[self.long]
        before = self.server.read()
        call = self.service.compact_session(
            key, upto=upto, summary="the last one", if_summary=upto, drop=True
        )
        self.harness.run(call)
        cpu_us, _, _ = self.server.between(before, self.server.read())
        what = f"compact_session with drop=True, {self.sizes[-1]:,} events: server CPU"
        return Figure(what, cpu_us / 1000, "ms")


def _name(size: int) -> str:
    return f"sessionstore, {size:,} events stored"


def run(harness: Harness) -> Result:
    """Measure."""
    histories = _Histories(harness)
    one, many, reads = histories.appends(1), histories.appends(_TASKS), histories.reads()
    least, most = _name(0), _name(histories.sizes[-1])
    span = f"at {histories.sizes[-1]:,} stored events against 0"
    first_read = _name(histories.sizes[1])
    targets = [
        Target(f"append {span}, one agent, time", one.ratio(most, least, time_of), "<=", 1.1),
        Target(f"append {span}, 64 tasks, time", many.ratio(most, least, time_of), "<=", 1.1),
        Target(
            f"append {span}, 64 tasks, server CPU",
            many.ratio(most, least, server_cpu_of),
            "<=",
            1.1,
        ),
        Target(
            f"read the newest 20 at {histories.sizes[-1]:,} against {histories.sizes[1]:,}, time",
            reads.ratio(most, first_read, time_of),
            "<=",
            1.1,
        ),
    ]
    summaries = _Summaries(harness)
    windows = summaries.reads("window of 20 turns", Window(max_turns=20))
    plain = summaries.reads("all after the summary", None)
    compactions = summaries.compactions()
    short, long = (summaries._name(size) for size in summaries.sizes)
    targets += [
        Target(
            f"get_session of {long}, window, against {_ALONE}, time",
            windows.ratio(long, _ALONE, time_of),
            "<=",
            1.3,
        ),
        Target(
            f"get_session of {long}, no window, against {_ALONE}, time",
            plain.ratio(long, _ALONE, time_of),
            "<=",
            1.3,
        ),
        Target(
            f"compact_session of {long} against {short}, server CPU",
            compactions.ratio(long, short, server_cpu_of),
            "<=",
            1.1,
        ),
    ]
    return harness.result(
        "bench_history",
        "Does a long history make a session slow?",
        groups=[one, many, reads, windows, plain, compactions],
        targets=targets,
        figures=[summaries.drop()],
        panels=[
            Lines(
                "time of one call",
                "events stored in the session",
                [f"{size:,}" for size in histories.sizes],
                {
                    "append, 1 agent": _points(one, histories.sizes),
                    "append, 64 tasks": _points(many, histories.sizes),
                    "read the newest 20": _points(reads, histories.sizes),
                },
                all_ours=True,
            )
        ],
        reading_hint="A flat line: the time does not depend on the length of the history.",
    )


def _points(group: Group, sizes: list[int]) -> list[float | None]:
    return [group.us_of(_name(size)) for size in sizes]


if __name__ == "__main__":
    main(run)
