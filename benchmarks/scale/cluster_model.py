"""A model of a cluster: users on slots, and each primary as a queue with one server.

* Users and their agents are drawn; the slot of a user is that of its keys (CRC16, keys.py).
* A turn is a read and several appends. Calls arrive at a primary at random (Poisson), because very
  many agents call independently of each other.
* A primary serves one call after the other. A call that finds it idle takes `alone_us`, others
  `busy_us`: the constants that `sessionstore size --measure` finds. Event sizes are log-normal.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from redis.crc import key_slot

from sessionstore.cli.sizing.model import Constants, Part
from sessionstore.keys import Keys

SLOTS = 16_384
APP = "shop"

_EVENT_MEDIAN, _EVENT_MEAN = 371, 772  # bytes, of recorded conversations
_SIGMA = math.sqrt(2 * math.log(_EVENT_MEAN / _EVENT_MEDIAN))


@dataclass(frozen=True)
class Shape:
    """What agents do in a turn."""

    events_per_turn: float = 3.5
    read_events: float = 20
    state_bytes: float = 1400  # of all tiers
    app_state_bytes: float = 1000
    state_changes: float = 0.4

    @property
    def calls_per_turn(self) -> float:
        """A read and the appends."""
        return 1 + self.events_per_turn


# -- users on primaries --------------------------------------------------------------------------


def agents_of_users(distribution: str, users: int, agents: int, rng: random.Random) -> list[float]:
    """How many agents each user has, on average.

    "even": all the same. "pareto": a fifth of the users has four fifths of the agents. "zipf": the
    user of rank r has 1/r of what the first one has. "one large": one user has a hundredth of all.
    """
    if distribution == "even":
        weights = [1.0] * users
    elif distribution == "pareto":
        weights = [rng.paretovariate(math.log(5) / math.log(4)) for _ in range(users)]
    elif distribution == "zipf":
        weights = [1 / rank for rank in range(1, users + 1)]
    elif distribution == "one large":
        weights = [users / 99, *[1.0] * (users - 1)]
    else:
        raise ValueError(f"{distribution!r} is not a distribution")
    total = sum(weights)
    return [agents * weight / total for weight in weights]


def shares_of_primaries(weights: Sequence[float], primaries: int) -> list[float]:
    """The agents of each primary; the slots are split evenly."""
    keys = Keys()
    found = [0.0] * primaries
    for number, weight in enumerate(weights):
        slot = key_slot(keys.user(APP, f"user-{number}").session_index)
        found[slot * primaries // SLOTS] += weight
    return found


def primary_of_app(primaries: int) -> int:
    """The primary that has the app tier."""
    return int(key_slot(Keys().user(APP, "any").app)) * primaries // SLOTS


# -- one primary ---------------------------------------------------------------------------------

Times = Callable[[], tuple[float, float]]
"""Draws the service times of a call in seconds: if the primary was idle, and if it was not."""


class Kinds:
    """Draws service times of the kinds of calls.

    Args:
        constants: measured on a server.
        shape: what agents do.
        rng: source of randomness.
    """

    def __init__(self, constants: Constants, shape: Shape, rng: random.Random) -> None:
        self._parts = constants.parts
        self._shape = shape
        self._random = rng.random
        self._lognormal = rng.lognormvariate

    def append(self) -> tuple[float, float]:
        """An append; some change state."""
        size = self._lognormal(math.log(_EVENT_MEDIAN), _SIGMA)
        part, change = self._parts.append, self._parts.change
        alone, busy = part.alone_us.at(size), part.busy_us.at(size)
        if self._random() < self._shape.state_changes:
            alone += change.alone_us.fixed
            busy += change.busy_us.fixed
        return alone / 1e6, busy / 1e6

    def read(self) -> tuple[float, float]:
        """A read with its events; their mean size varies little."""
        shape, parts = self._shape, self._parts

        def of(read: Part, event: Part) -> tuple[float, float]:
            return (
                read.alone_us.at(shape.state_bytes)
                + shape.read_events * event.alone_us.at(_EVENT_MEAN),
                read.busy_us.at(shape.state_bytes)
                + shape.read_events * event.busy_us.at(_EVENT_MEAN),
            )

        alone, busy = of(parts.read, parts.read_event)
        return alone / 1e6, busy / 1e6

    def read_app(self) -> tuple[float, float]:
        """A read of the app tier."""
        part = self._parts.read_app
        size = self._shape.app_state_bytes
        return part.alone_us.at(size) / 1e6, part.busy_us.at(size) / 1e6


@dataclass(frozen=True)
class Served:
    """What a primary did: the time of every call, by kind, and how busy it was."""

    times: list[list[float]]  # seconds from arrival to answer, for each kind
    utilization: float


def serve(
    rates: Sequence[float], draws: Sequence[Times], seconds: float, rng: random.Random
) -> Served:
    """Serve calls that arrive at random, in order of arrival.

    Args:
        rates: calls a second, for each kind.
        draws: their service times.
        seconds: how long calls arrive.
        rng: source of randomness.
    """
    total = sum(rates)
    bounds = [each / total for each in accumulate(rates)]
    times: list[list[float]] = [[] for _ in rates]
    now = free = busy_seconds = 0.0
    expovariate, uniform = rng.expovariate, rng.random
    while True:
        now += expovariate(total)
        if now > seconds:
            return Served(times, min(busy_seconds / seconds, 1.0))
        kind = min(bisect(bounds, uniform()), len(bounds) - 1)
        alone, busy = draws[kind]()
        if free <= now:
            taken, free = alone, now + alone
        else:
            taken, free = busy, free + busy
        busy_seconds += taken
        times[kind].append(free - now)


# -- agents that wait for a primary --------------------------------------------------------------


@dataclass(frozen=True)
class Pause:
    """A primary answers nothing for a while."""

    begin: float
    seconds: float
    # Calls that waited come within so many seconds after it, each at a random moment.
    return_seconds: float


def serve_agents(
    agents: int,
    turn_seconds: float,
    kinds: Kinds,
    shape: Shape,
    pauses: Sequence[Pause],
    seconds: float,
    rng: random.Random,
) -> list[tuple[float, float]]:
    """Agents of one primary that wait for each answer before they continue.

    Returns:
        For each call the time at which it was made, and how long it took.
    """
    mean_wait = turn_seconds / shape.calls_per_turn
    waiting = [(rng.expovariate(1 / mean_wait), agent) for agent in range(agents)]
    heapq.heapify(waiting)
    share_of_reads = 1 / shape.calls_per_turn
    found: list[tuple[float, float]] = []
    arrivals: list[tuple[float, float, int]] = []  # at the primary; made at; agent
    free = 0.0
    while waiting or arrivals:
        if waiting and (not arrivals or waiting[0][0] <= arrivals[0][0]):
            made, agent = heapq.heappop(waiting)
            if made > seconds:
                continue
            heapq.heappush(arrivals, (_arrival(made, pauses, rng), made, agent))
            continue
        at, made, agent = heapq.heappop(arrivals)
        draw = kinds.read if rng.random() < share_of_reads else kinds.append
        alone, busy = draw()
        free = at + alone if free <= at else free + busy
        found.append((made, free - made))
        heapq.heappush(waiting, (free + rng.expovariate(1 / mean_wait), agent))
    return found


def _arrival(made: float, pauses: Sequence[Pause], rng: random.Random) -> float:
    for pause in pauses:
        end = pause.begin + pause.seconds
        if pause.begin <= made < end:
            return end + rng.uniform(0, pause.return_seconds)
    return made


def quantile(ordered: Sequence[float], share: float) -> float:
    """A quantile of sorted values."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
