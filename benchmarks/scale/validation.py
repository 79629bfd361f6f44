"""Compares the model of a primary with a real server, at several loads.

One process sends packed Calls at random moments over many connections and times the answers. Each
load is tried several times; the try during which other programs used least CPU counts. If the
system allows it, sender and server have real-time priority, so that other programs do not delay
them.

The sender takes processor time for each call, so in the model it is a second queue behind the
server. A constant is added to all modelled times: the difference of the medians at the lightest
load. The heavier loads are predictions.
"""

from __future__ import annotations

import asyncio
import os
import random
import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import hiredis
import msgspec

from sessionstore import SessionKey
from sessionstore.cli.fleet.agents import FLAT_OUT_TEXT
from sessionstore.cli.sizing.measuring import measure
from sessionstore.cli.sizing.model import Constants
from sessionstore.cli.store import open_store

from ..harness import busy_seconds, wait_for_quiet
from ..workload import Recorder, new_event, request_of, service_of
from .cluster_model import Kinds, Shape, Times, quantile
from .phases import cpu_us

_CONNECTIONS = 64
_SESSIONS = 64
_STORED = 20


class Comparison(msgspec.Struct):
    """A load: measured and modelled times in milliseconds, and utilization of the server."""

    calls_per_second: float
    others: float  # cores that other programs used meanwhile
    measured: dict[str, float]
    modelled: dict[str, float]


class OpenLoad:
    """Sends requests at random moments, whether earlier ones are answered or not.

    Args:
        socket_path: the server's unix socket.
    """

    def __init__(self, socket_path: str) -> None:
        self._sockets = []
        for _ in range(_CONNECTIONS):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(socket_path)
            self._sockets.append(connection)
        self._by_number = {each.fileno(): each for each in self._sockets}
        self._readers = {number: hiredis.Reader() for number in self._by_number}

    def run(
        self, requests: list[tuple[bytes, int]], per_second: float, seconds: float, seed: int
    ) -> list[float]:
        """Seconds from each request to its last reply."""
        rng = random.Random(seed)
        idle = deque(self._by_number)
        under_way: dict[int, tuple[float, int]] = {}
        times: list[float] = []
        start = time.perf_counter()
        due = rng.expovariate(per_second)
        sent = 0
        while due < seconds or under_way:
            now = time.perf_counter() - start
            if due < seconds and now >= due and idle:
                number = idle.popleft()
                request, replies = requests[sent]
                sent += 1
                under_way[number] = time.perf_counter(), replies
                self._by_number[number].sendall(request)
                due += rng.expovariate(per_second)
                continue
            wait = max(due - now, 0.0) if due < seconds and idle else 0.01
            # Not epoll: it waits for whole milliseconds.
            for number in select.select(list(under_way), [], [], wait)[0]:
                if self._is_answered(number, under_way):
                    begun, _ = under_way.pop(number)
                    times.append(time.perf_counter() - begun)
                    idle.append(number)
        return times

    def _is_answered(self, number: int, under_way: dict[int, tuple[float, int]]) -> bool:
        reader = self._readers[number]
        reader.feed(self._by_number[number].recv(1 << 17))
        begun, missing = under_way[number]
        while missing:
            reply: Any = reader.gets()
            if reply is False:
                break
            if isinstance(reply, hiredis.ReplyError):
                raise reply
            missing -= 1
        under_way[number] = begun, missing
        return missing == 0

    def close(self) -> None:
        """Close the connections."""
        for each in self._sockets:
            each.close()


async def _requests(url: str, count: int) -> list[tuple[bytes, int]]:
    """Reads and appends as agents make them, packed."""
    recorder = Recorder(event_limit=None)
    keys = [SessionKey("validation", f"user{number}", "session") for number in range(_SESSIONS)]
    text = (FLAT_OUT_TEXT)[:630]
    async with service_of(url, event_limit=None) as service:
        for key in keys:
            await service.get_or_create_session(
                app_name=key.app_name, user_id=key.user_id, session_id=key.session_id, event_num=0
            )
            await service.append_events(key, [new_event(text) for _ in range(_STORED)])
            await service.append_event(key, new_event(text))  # loads the script
            await service.get_session(
                app_name=key.app_name, user_id=key.user_id, session_id=key.session_id, event_num=20
            )
    found = []
    rng = random.Random(0)
    shape = Shape()
    for _ in range(count):
        key = rng.choice(keys)
        is_read = rng.random() < 1 / shape.calls_per_turn
        call = await (recorder.read(key, 20) if is_read else recorder.append(key, new_event(text)))
        found.append(request_of(call))
    return found


@contextmanager
def real_time(*pids: int) -> Iterator[None]:
    """Within the context these processes have real-time priority, if the system allows it."""
    with suppress(AttributeError, OSError):
        for pid in pids:
            os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        with suppress(AttributeError, OSError):
            for pid in pids:
                os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))


def compare(
    server_pid: int,
    socket_path: str,
    url: str,
    client: Any,
    constants: Constants,
    loads: list[float],
    seconds: float,
    seed: int,
    *,
    patience_s: float = 0.0,
    tries_of_each: int = 1,
) -> list[Comparison]:
    """Measure and model each load, the lightest first."""
    load = OpenLoad(socket_path)
    shape = Shape(state_bytes=0, state_changes=0)
    found: list[Comparison] = []
    offset = 0.0
    try:
        for per_second in loads:
            tries = []
            for number in range(tries_of_each):
                requests = asyncio.run(_requests(url, int(per_second * seconds * 1.3) + 100))
                wait_for_quiet(patience_s)
                before, own = cpu_us(client), time.process_time()
                others = busy_seconds()
                with real_time(server_pid, os.getpid()):
                    times = load.run(requests, per_second, seconds, seed + number)
                used = (cpu_us(client) - before) / 1e6
                own = time.process_time() - own
                others = busy_seconds() - others - own - used
                tries.append((others / seconds, used / seconds, own / len(times), sorted(times)))
            others, busy, sender_s, measured = min(tries)  # the quietest
            rng = random.Random(seed)
            kinds = Kinds(constants, shape, rng)
            draws = [kinds.append, kinds.read]
            modelled, utilization = _tandem(
                per_second, draws, 1 / shape.calls_per_turn, sender_s / 2, max(seconds, 10.0), rng
            )
            if not found:
                offset = quantile(measured, 0.5) - quantile(modelled, 0.5)
            found.append(
                Comparison(
                    per_second,
                    round(max(others, 0.0), 2),
                    {**_milliseconds(measured), "utilization": busy},
                    {
                        **_milliseconds([each + offset for each in modelled]),
                        "utilization": utilization,
                    },
                )
            )
    finally:
        load.close()
    return found


def _tandem(
    per_second: float,
    draws: Sequence[Times],
    share: float,
    receive_s: float,
    seconds: float,
    rng: random.Random,
) -> tuple[list[float], float]:
    """Sorted times of calls through a server and then the sender; utilization of the server.

    `share` of the calls are of the second kind.
    """
    now = free = received = busy_seconds = 0.0
    times = []
    while now < seconds:
        now += rng.expovariate(per_second)
        alone, busy = draws[rng.random() < share]()
        taken = alone if free <= now else busy
        free = max(free, now) + taken
        busy_seconds += taken
        received = max(received, free) + receive_s
        times.append(received - now)
    return sorted(times), busy_seconds / seconds


def _milliseconds(ordered: list[float]) -> dict[str, float]:
    return {name: 1000 * quantile(ordered, at) for name, at in (("p50", 0.5), ("p99", 0.99))}


async def constants_of(url: str, rounds: int) -> Constants:
    """The constants of a server."""
    async with open_store(url) as store:
        return await measure(store, lambda _: None, rounds=rounds)
