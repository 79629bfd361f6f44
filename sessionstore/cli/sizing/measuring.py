"""Measures on a server what the parts of the work cost, for model.py.

It takes less than a minute. Every key starts with a prefix of its own, has a TTL, and is deleted at
the end. Agents on several connections make each kind of call at two speeds: with random pauses, so
that most calls find the server idle, and without a pause.
"""

from __future__ import annotations

import asyncio
import os
import platform
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import msgspec

from ... import Event, RedisSessionService, SessionKey
from ...calls import AsyncExecutor
from ..fleet.agents import FLAT_OUT_TEXT
from ..store import CannotStart, Info, Store, read_infos
from .model import Constants, Line, Part, Parts

_TTL_S = 600  # if the command is killed, its keys expire
_APP = "size"
_MEMORY_NEEDED = 128 << 20

_ROUNDS = 5
_AGENTS = 64
_CONNECTIONS = 16  # as many processes would have; each opens one
_BUSY_CALLS = 1280
_ALONE_CALLS = 256
_ALONE_PER_SECOND = 800
_IDLE_S = 1.0
_BUSY_SHARE = 0.05  # of a core: more work for other clients makes the figures doubtful

_SETTLE_S = 0.2  # the server frees buffers and resizes tables
_SESSIONS_OF_A_MEMORY_STEP = 400
_LOGS_OF_A_MEMORY_STEP = 100

Call = Callable[[int], Awaitable[Any]]
"""An operation on the session of this number."""

Step = Callable[[], Awaitable[Any]]


@dataclass(frozen=True)
class Counters:
    """Counters of all primaries."""

    cpu_us: float
    memory_bytes: float
    in_bytes: float
    out_bytes: float
    replicated_bytes: float | None  # None = no replica is connected

    @classmethod
    async def read(cls, executor: AsyncExecutor) -> Counters:
        """The counters now."""
        infos = await read_infos(executor)

        def total(*names: str) -> float:
            return sum(float(info.get(name, "0")) for info in infos for name in names)

        return cls(
            total("used_cpu_user", "used_cpu_sys") * 1e6,
            total("used_memory"),
            total("total_net_input_bytes"),
            total("total_net_output_bytes") - total("total_net_repl_output_bytes"),
            total("master_repl_offset") if total("connected_slaves") else None,
        )


@dataclass(frozen=True)
class Cost:
    """What something cost the server."""

    cpu_us: float
    in_bytes: float
    out_bytes: float
    replicated_bytes: float | None

    @classmethod
    def between(cls, before: Counters, after: Counters) -> Cost:
        replicated = None
        if before.replicated_bytes is not None and after.replicated_bytes is not None:
            replicated = after.replicated_bytes - before.replicated_bytes
        return cls(
            after.cpu_us - before.cpu_us,
            after.in_bytes - before.in_bytes,
            after.out_bytes - before.out_bytes,
            replicated,
        )

    def __sub__(self, other: Cost) -> Cost:
        return self.combined(other, lambda one, two: one - two)

    def scaled(self, factor: float) -> Cost:
        """This cost times a factor."""
        return self.combined(self, lambda one, _: one * factor)

    def combined(self, other: Cost, how: Callable[[float, float], float]) -> Cost:
        """Another cost, field by field."""
        replicated = None
        if self.replicated_bytes is not None and other.replicated_bytes is not None:
            replicated = how(self.replicated_bytes, other.replicated_bytes)
        return Cost(
            how(self.cpu_us, other.cpu_us),
            how(self.in_bytes, other.in_bytes),
            how(self.out_bytes, other.out_bytes),
            replicated,
        )


@dataclass
class Point:
    """A kind of call at one size, and what it cost in each round: alone and together."""

    call: Call
    alone: list[Cost]
    busy: list[Cost]

    def cost(self) -> tuple[Cost, float]:
        """The cost of a call alone, and its processor time together with others."""
        alone = Cost(
            median(cost.cpu_us for cost in self.alone),
            median(cost.in_bytes for cost in self.busy),
            median(cost.out_bytes for cost in self.busy),
            None,
        )
        replicated = [cost.replicated_bytes for cost in self.busy]
        if all(each is not None for each in replicated):
            known = [each for each in replicated if each is not None]
            alone = Cost(alone.cpu_us, alone.in_bytes, alone.out_bytes, median(known))
        return alone, median(cost.cpu_us for cost in self.busy)


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
    async with _Meter.opened(store) as meter:
        if meter.idle.cpu_us > _BUSY_SHARE * 1e6:
            note(
                f"Other clients use {meter.idle.cpu_us / 1e6:.0%} of a core of the server. "
                "Measure when it is quiet."
            )
        parts = await _measure_parts(meter, rounds or _ROUNDS)
        memory = await _measure_memory(meter)
        if parts.append.replicated_bytes is None:
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


class _Meter:
    """Calls on a server, and what they cost."""

    def __init__(self, executor: AsyncExecutor, connect: Callable[..., RedisSessionService]):
        self.executor = executor
        self.services = [connect() for _ in range(_CONNECTIONS)]
        self.limited = [connect(session_event_limit=20) for _ in range(_CONNECTIONS)]
        self.users: set[str] = set()
        self.idle = Cost(0.0, 0.0, 0.0, None)  # per second
        self._reading = Cost(0.0, 0.0, 0.0, None)

    @classmethod
    @asynccontextmanager
    async def opened(cls, store: Store) -> AsyncIterator[_Meter]:
        """Connected, with the costs of an idle server known. Deletes all keys at the end."""
        prefix = f"size:{secrets.token_hex(4)}:"
        ttls: Any = dict.fromkeys(("session_ttl", "user_state_ttl", "app_state_ttl"), _TTL_S)

        def connect(session_event_limit: int | None = None) -> RedisSessionService:
            # One slot, so that one primary of a cluster does all the work, as a server would.
            return RedisSessionService(
                store.url,
                key_prefix=prefix,
                partition_by="app",
                session_event_limit=session_event_limit,
                **ttls,
            )

        assert store.executor is not None
        meter = cls(store.executor, connect)
        async with AsyncExitStack() as stack:
            for service in (*meter.services, *meter.limited):
                await stack.enter_async_context(service)
            try:
                await meter._look_at_idle_server()
                yield meter
            finally:
                await meter.clean_up()

    async def _look_at_idle_server(self) -> None:
        readings = [await self.read() for _ in range(6)]
        costs = [Cost.between(*pair) for pair in pairwise(readings)]
        self._reading = Cost(
            median(cost.cpu_us for cost in costs),
            median(cost.in_bytes for cost in costs),
            median(cost.out_bytes for cost in costs),
            0.0,
        )
        before = await self.read()
        await asyncio.sleep(_IDLE_S)
        idle = Cost.between(before, await self.read())
        self.idle = (idle - self._reading).scaled(1 / _IDLE_S)

    def service(self, agent: int) -> RedisSessionService:
        """The service of an agent."""
        return self.services[agent % _CONNECTIONS]

    async def read(self) -> Counters:
        return await Counters.read(self.executor)

    async def create(self, number: int, state: Mapping[str, Any], user: str | None = None) -> Any:
        user = f"user{number}" if user is None else user
        self.users.add(user)
        return await self.service(number).create_session(
            app_name=_APP, user_id=user, session_id=f"session{number}", state=state
        )

    async def clean_up(self) -> None:
        """Delete all that was created."""
        users = list(self.users)
        for first in range(0, len(users), _AGENTS):
            await asyncio.gather(
                *(
                    self.service(number).delete_user(app_name=_APP, user_id=user)
                    for number, user in enumerate(users[first : first + _AGENTS])
                )
            )
        self.users.clear()
        state = await self.service(0).get_app_state(_APP)
        if state:
            await self.service(0).delete_app_state(_APP, *state)

    async def cost_alone(self, call: Call) -> Cost:
        """The cost of a call that arrives at a random moment, when the server has little to do."""
        return await self._cost(lambda agent: self._with_pauses(call, agent), _ALONE_CALLS)

    async def cost_busy(self, call: Call) -> Cost:
        """The cost of a call when many agents call without a pause."""
        return await self._cost(lambda agent: self._in_a_row(call, agent), _BUSY_CALLS)

    async def _with_pauses(self, call: Call, agent: int) -> None:
        for _ in range(_ALONE_CALLS // _AGENTS):
            await asyncio.sleep(random.expovariate(_ALONE_PER_SECOND / _AGENTS))
            await call(agent)

    async def _in_a_row(self, call: Call, agent: int) -> None:
        for _ in range(_BUSY_CALLS // _AGENTS):
            await call(agent)

    async def _cost(self, work: Call, calls: int) -> Cost:
        loop = asyncio.get_running_loop()
        before, start = await self.read(), loop.time()
        await asyncio.gather(*(work(agent) for agent in range(_AGENTS)))
        after, elapsed = await self.read(), loop.time() - start
        total = Cost.between(before, after) - self._reading - self.idle.scaled(elapsed)
        if before.replicated_bytes is not None and after.replicated_bytes is not None:
            grown = after.replicated_bytes - before.replicated_bytes
            total = Cost(total.cpu_us, total.in_bytes, total.out_bytes, grown)
        return total.scaled(1 / calls)


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


_APPEND_SIZES = (200, 1000, 4000)
_STATE_SIZES = (200, 2000)
_READ_EVENTS = 20
_READ_SIZES = (400, 2000)


async def _points(meter: _Meter) -> dict[tuple[str, int], Point]:
    """All kinds of calls, on sessions that are prepared here."""
    service = meter.service
    texts = {size: _text(size) for size in (*_APPEND_SIZES, *_READ_SIZES)}
    created = iter(range(10_000, 10_000_000))

    async def prepare(first: int, state_bytes: int, event_bytes: int, count: int) -> list[Any]:
        sessions = []
        for number in range(_AGENTS):
            session = await meter.create(first + number, _state(state_bytes))
            if count:
                events = [_event(texts[event_bytes]) for _ in range(count)]
                await service(number).append_events(session, events)
            sessions.append(session.key)
        return sessions

    logs = {size: await prepare(index * 100, 200, 0, 0) for index, size in enumerate(_APPEND_SIZES)}
    changed = await prepare(1000, 200, 0, 0)
    full = await prepare(2000, 200, 1000, 20)
    states = {
        size: await prepare(3000 + index * 100, size, 0, 0)
        for index, size in enumerate(_STATE_SIZES)
    }
    reads = {
        size: await prepare(4000 + index * 100, 200, size, _READ_EVENTS)
        for index, size in enumerate(_READ_SIZES)
    }

    def create(size: int) -> Call:
        def create_next(_: int) -> Awaitable[Any]:
            number = next(created)
            return meter.create(number, _state(size), user=f"creator{number // 4}")

        return create_next

    def append(size: int) -> Call:
        return lambda agent: service(agent).append_event(logs[size][agent], _event(texts[size]))

    def read(keys: list[Any], count: int) -> Call:
        return lambda agent: service(agent).get_session(
            app_name=_APP,
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
        limited = meter.limited[agent % _CONNECTIONS]
        return limited.append_event(full[agent], _event(texts[1000]))

    def read_app(agent: int) -> Awaitable[Any]:
        return service(agent).get_app_state(_APP)

    calls: dict[tuple[str, int], Call] = {("change", 0): change, ("trim", 0): trim}
    calls |= {("create", size): create(size) for size in _STATE_SIZES}
    calls |= {("append", size): append(size) for size in _APPEND_SIZES}
    calls |= {("read", size): read(states[size], 0) for size in _STATE_SIZES}
    calls |= {("event", size): read(reads[size], _READ_EVENTS) for size in _READ_SIZES}
    calls |= {("app", 0): read_app}
    return {name: Point(call, [], []) for name, call in calls.items()}


async def _measure_parts(meter: _Meter, rounds: int) -> Parts:
    points = await _points(meter)
    for number in range(rounds + 1):  # the first warms up
        for point in points.values():
            alone, busy = await meter.cost_alone(point.call), await meter.cost_busy(point.call)
            if number:
                point.alone.append(alone)
                point.busy.append(busy)
    costs = {name: point.cost() for name, point in points.items()}
    await meter.clean_up()

    append, read = _part(costs, "append"), _part(costs, "read")
    return Parts(
        create=_part(costs, "create"),
        append=append,
        change=_part(costs, "change", less=append, at=1000),
        trim=_part(costs, "trim", less=append, at=1000),
        read=read,
        read_event=_part(costs, "event", less=read, at=200, divided_by=_READ_EVENTS),
        read_app=_part(costs, "app"),
    )


def _part(
    costs: Mapping[tuple[str, int], tuple[Cost, float]],
    name: str,
    *,
    less: Part | None = None,
    at: int = 0,
    divided_by: int = 1,
) -> Part:
    """A part from its points; less another part at a size, and divided."""
    sizes = [size for kind, size in costs if kind == name]
    points = [costs[name, size] for size in sizes]

    def line(values: list[float], of: Callable[[Part], Line | None]) -> Line:
        taken = None if less is None else of(less)
        off = 0.0 if taken is None else taken.at(at)
        return _fit(sizes, [max(value - off, 0.0) / divided_by for value in values])

    replicated = [cost.replicated_bytes for cost, _ in points if cost.replicated_bytes is not None]
    return Part(
        line([cost.cpu_us for cost, _ in points], lambda part: part.alone_us),
        line([busy_us for _, busy_us in points], lambda part: part.busy_us),
        line([cost.in_bytes for cost, _ in points], lambda part: part.in_bytes),
        line([cost.out_bytes for cost, _ in points], lambda part: part.out_bytes),
        line(replicated, lambda part: part.replicated_bytes) if replicated else None,
    )


def _fit(sizes: list[int], values: list[float]) -> Line:
    """The line nearest to the points, but no cost that is negative or falls with the size."""
    if len(sizes) == 1:
        return Line(round(values[0], 3))
    slope, fixed = linear_regression(sizes, values)
    if slope < 0:
        return Line(round(sum(values) / len(values), 3))
    return Line(round(max(fixed, 0.0), 3), round(slope, 6))


# -- memory --------------------------------------------------------------------------------------


async def _measure_memory(meter: _Meter) -> dict[str, Any]:
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


async def _growth(meter: _Meter, steps: list[Step], divided_by: int) -> float:
    """Growth of the memory by these steps, divided. Then all is deleted."""
    await asyncio.sleep(_SETTLE_S)
    before = await meter.read()
    for first in range(0, len(steps), _AGENTS):
        await asyncio.gather(*(step() for step in steps[first : first + _AGENTS]))
    await asyncio.sleep(_SETTLE_S)
    after = await meter.read()
    await meter.clean_up()
    return (after.memory_bytes - before.memory_bytes) / divided_by
