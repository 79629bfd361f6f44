"""Measures on a server what each part of the work costs. model.py says what a part is.

It takes less than a minute. Every key starts with a prefix of its own, has a TTL, and is deleted at
the end. Agents on several connections make each kind of call at two speeds: with random pauses, so
that most calls find the server idle, and without a pause.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import linear_regression
from typing import Any

import msgspec

from ... import Event, SessionKey
from ..fleet.agents import FLAT_OUT_TEXT
from ..store import CannotStart, Info, Store
from .meter import AGENTS, APP, CONNECTIONS, SMALL_LIMIT, Meter, Operation, Usage, medians
from .model import Constants, Line, Part, Parts

_MEMORY_NEEDED = 128 << 20

_ROUNDS = 5
_BUSY_SHARE = 0.05  # of a core; with more work for other clients the figures are unreliable

_SETTLE_S = 0.2  # the server frees buffers and resizes tables
_SESSIONS_OF_A_MEMORY_STEP = 400
_LOGS_OF_A_MEMORY_STEP = 100

Step = Callable[[], Awaitable[Any]]


@dataclass(frozen=True)
class Point:
    """A kind of call at one size, and what a call cost in each round."""

    operation: Operation
    alone: list[Usage] = field(default_factory=list)
    busy: list[Usage] = field(default_factory=list)


async def measure(
    store: Store, note: Callable[[str], None], *, rounds: int | None = None
) -> Constants:
    """What the parts of the work cost this server.

    Args:
        store: an open store on a server.
        note: called with a sentence for the user.
        rounds: rounds of calls; the medians count. None = 5.

    Raises:
        CannotStart: the server does not report its counters, or has too little memory.
        SessionStoreError: a call failed.
    """
    if store.executor is None or not store.first_infos:
        raise CannotStart("cannot measure: the server does not report its load (INFO)")
    _check_memory(store.first_infos)
    async with Meter.opened(store) as meter:
        if meter.idle.cpu_us > _BUSY_SHARE * 1e6:
            note(
                f"Other clients use {meter.idle.cpu_us / 1e6:.0%} of a core of the server. "
                "Measure when it is quiet."
            )
        has_replica = any(int(info.get("connected_slaves", "0")) for info in store.first_infos)
        parts = await _measure_parts(meter, rounds or _ROUNDS, has_replica)
        memory = await _measure_memory(meter)
        if not has_replica:
            note("The server has no replica, so the bytes that a replica gets are not known.")
        return Constants(
            server=store.name,
            machine=_machine(),
            measured_at=datetime.now(UTC).date().isoformat(),
            idle_cores=round(meter.idle.cpu_us / 1e6, 4),
            startup_bytes=max(
                float(info.get("used_memory_startup", "0")) for info in store.first_infos
            ),
            parts=parts,
            **memory,
        )


def _check_memory(infos: Sequence[Info]) -> None:
    for info in infos:
        limit, used = (int(info.get(name, "0")) for name in ("maxmemory", "used_memory"))
        if limit and limit - used < _MEMORY_NEEDED:
            raise CannotStart(
                f"cannot measure: the server has {max(limit - used, 0) >> 20} MiB left below its "
                f"maxmemory; {_MEMORY_NEEDED >> 20} MiB are needed, or it may evict keys"
            )


def _machine() -> str:
    name = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text("utf-8", "replace").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"


# -- processor and network -----------------------------------------------------------------------


def _state(num_bytes: int) -> dict[str, str]:
    """State of this many bytes, in values of about 100 bytes."""
    count = max(1, num_bytes // 100)
    return {f"key{number}": "x" * (num_bytes // count - 8) for number in range(count)}


def _text(num_bytes: int) -> str:
    """Text that makes an encoded event of this many bytes."""
    envelope = len(msgspec.json.encode(_event("")))
    return (FLAT_OUT_TEXT * 4)[: num_bytes - envelope]


def _event(text: str, **changes: Any) -> Event:
    return Event("agent", text, invocation_id="turn-1", **changes)


APPEND_SIZES = (200, 1000, 4000)
_STATE_SIZES = (200, 2000)
_READ_EVENTS = 20
_READ_SIZES = (400, 2000)


async def _points(meter: Meter) -> dict[tuple[str, int], Point]:
    """All kinds of calls, on sessions that are prepared here."""
    service = meter.service
    texts = {size: _text(size) for size in (*APPEND_SIZES, *_READ_SIZES)}
    created = iter(range(10_000, 10_000_000))

    async def prepare(first: int, state_bytes: int, event_bytes: int, count: int) -> list[Any]:
        sessions = []
        for number in range(AGENTS):
            session = await meter.create(first + number, _state(state_bytes))
            if count:
                events = [_event(texts[event_bytes]) for _ in range(count)]
                await service(number).append_events(session, events)
            sessions.append(session.key)
        return sessions

    logs = {size: await prepare(index * 100, 200, 0, 0) for index, size in enumerate(APPEND_SIZES)}
    changed = await prepare(1000, 200, 0, 0)
    full = await prepare(2000, 200, 1000, SMALL_LIMIT)
    states = {
        size: await prepare(3000 + index * 100, size, 0, 0)
        for index, size in enumerate(_STATE_SIZES)
    }
    reads = {
        size: await prepare(4000 + index * 100, 200, size, _READ_EVENTS)
        for index, size in enumerate(_READ_SIZES)
    }

    def create(size: int) -> Operation:
        def create_next(_: int) -> Awaitable[Any]:
            number = next(created)
            return meter.create(number, _state(size), user=f"creator{number // 4}")

        return create_next

    def append(size: int) -> Operation:
        return lambda agent: service(agent).append_event(logs[size][agent], _event(texts[size]))

    def read(keys: list[Any], count: int) -> Operation:
        return lambda agent: service(agent).get_session(
            app_name=APP,
            user_id=keys[agent].user_id,
            session_id=keys[agent].session_id,
            event_num=count,
        )

    def change(agent: int) -> Awaitable[Any]:
        delta = {"key0": "y" * 40, "last": "z" * 40, "user:last": "z" * 40}
        return service(agent).append_event(
            changed[agent], _event(texts[1000][:-150], state_delta=delta)
        )

    def trim(agent: int) -> Awaitable[Any]:
        limited = meter.limited[agent % CONNECTIONS]
        return limited.append_event(full[agent], _event(texts[1000]))

    def read_app(agent: int) -> Awaitable[Any]:
        return service(agent).get_app_state(APP)

    calls: dict[tuple[str, int], Operation] = {("change", 0): change, ("trim", 0): trim}
    calls |= {("create", size): create(size) for size in _STATE_SIZES}
    calls |= {("append", size): append(size) for size in APPEND_SIZES}
    calls |= {("read", size): read(states[size], 0) for size in _STATE_SIZES}
    calls |= {("event", size): read(reads[size], _READ_EVENTS) for size in _READ_SIZES}
    calls |= {("app", 0): read_app}
    return {name: Point(call) for name, call in calls.items()}


async def _measure_parts(meter: Meter, rounds: int, has_replica: bool) -> Parts:
    points = await _points(meter)
    for number in range(rounds + 1):  # the first warms up
        for point in points.values():
            alone = await meter.cost_alone(point.operation)
            busy = await meter.cost_busy(point.operation)
            if number:
                point.alone.append(alone)
                point.busy.append(busy)
    await meter.clean_up()

    def part(name: str, *, less: Part | None = None, at: int = 0, divided_by: int = 1) -> Part:
        """A part from its points, minus another part at a size, divided by a number."""
        sizes = [size for kind, size in points if kind == name]
        alone = [medians(points[name, size].alone) for size in sizes]
        busy = [medians(points[name, size].busy) for size in sizes]

        def line(values: list[float], of: Callable[[Part], Line | None]) -> Line:
            taken = None if less is None else of(less)
            off = 0.0 if taken is None else taken.at(at)
            return _fit(sizes, [max(value - off, 0.0) / divided_by for value in values])

        replicated = line([each.replicated_bytes for each in busy], lambda p: p.replicated_bytes)
        return Part(
            alone_us=line([each.cpu_us for each in alone], lambda p: p.alone_us),
            busy_us=line([each.cpu_us for each in busy], lambda p: p.busy_us),
            in_bytes=line([each.in_bytes for each in busy], lambda p: p.in_bytes),
            out_bytes=line([each.out_bytes for each in busy], lambda p: p.out_bytes),
            replicated_bytes=replicated if has_replica else None,
        )

    append, read = part("append"), part("read")
    return Parts(
        create=part("create"),
        append=append,
        change=part("change", less=append, at=1000),
        trim=part("trim", less=append, at=1000),
        read=read,
        read_event=part("event", less=read, at=200, divided_by=_READ_EVENTS),
        read_app=part("app"),
    )


def _fit(sizes: list[int], values: list[float]) -> Line:
    """The line nearest to the points, without a negative cost or slope."""
    if len(sizes) == 1:
        return Line(round(values[0], 3))
    slope, fixed = linear_regression(sizes, values)
    if slope < 0:
        return Line(round(sum(values) / len(values), 3))
    return Line(round(max(fixed, 0.0), 3), round(slope, 6))


# -- memory --------------------------------------------------------------------------------------


async def _measure_memory(meter: Meter) -> dict[str, Any]:
    count = _SESSIONS_OF_A_MEMORY_STEP

    async def sessions(state: Mapping[str, Any], of_each_user: int = 1) -> float:
        """Memory of users with sessions, per user."""

        def create(number: int) -> Step:
            user = f"user{number // of_each_user}"
            return lambda: meter.create(number, state, user=user)

        steps = [create(number) for number in range(count * of_each_user)]
        return await _growth(meter, steps, count)

    async def logs(size: int, events: int) -> float:
        """Memory of a log with events, per log."""
        text = _text(size)
        keys = [(await meter.create(number, {})).key for number in range(_LOGS_OF_A_MEMORY_STEP)]

        def append(number: int, key: SessionKey) -> Step:
            batch = [_event(text) for _ in range(events)]
            return lambda: meter.service(number).append_events(key, batch)

        return await _growth(meter, [append(*each) for each in enumerate(keys)], len(keys))

    one, five = await sessions({}), await sessions({}, of_each_user=5)
    session = (five - one) / 4
    with_user_state = await sessions({"user:last": "z" * 98})
    with_state = [(size, await sessions(_state(size)) - one) for size in _STATE_SIZES]
    few, many = await logs(800, 5), await logs(800, 55)
    each = (many - few) / 50
    log = max(few - 5 * each, 0.0)
    by_size = {800: each}
    for size in (200, 4000):
        by_size[size] = (await logs(size, 50) - log) / 50
    return {
        "session_bytes": [
            (0.0, round(session)),
            *((float(size), round(session + more)) for size, more in with_state),
        ],
        "user_bytes": round(one - session + (with_user_state - one) - 100),
        "log_bytes": round(log),
        "event_bytes": _fit(list(by_size), list(by_size.values())),
    }


async def _growth(meter: Meter, steps: list[Step], divided_by: int) -> float:
    """How much memory grows by these steps, divided by a number. Then all keys are deleted."""
    await asyncio.sleep(_SETTLE_S)
    before = await meter.read()
    for first in range(0, len(steps), AGENTS):
        await asyncio.gather(*(step() for step in steps[first : first + AGENTS]))
    await asyncio.sleep(_SETTLE_S)
    after = await meter.read()
    await meter.clean_up()
    return (after.memory_bytes - before.memory_bytes) / divided_by
