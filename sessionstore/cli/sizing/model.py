"""How many servers a fleet of agents needs. Pure: workload and constants in, figures out.

A *part* is a piece of work that a server does: a call, or what a call does in addition. Each part
costs processor time and network bytes, which grow with the bytes that it stores or returns.

A call that finds the server idle costs more than one that arrives with others: the server wakes up
for this call alone, and its caches are cold. So each part has two costs. If a primary is busy for
the share `u` of the time, the share `1 - u` of the calls finds it idle.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

SHIPPED = Path(__file__).with_name("constants.json")
"""Constants that come with the package."""

Resource = Literal["CPU", "memory", "network"]

_PRIMARIES_LIMIT = 10_000


class Line(Struct, frozen=True):
    """A quantity that grows with a number of bytes."""

    fixed: float
    per_byte: float = 0.0

    def at(self, num_bytes: float) -> float:
        """The quantity at this many bytes."""
        return self.fixed + self.per_byte * num_bytes


class Part(Struct, frozen=True):
    """What a piece of work costs a server, by the bytes that it stores or returns."""

    alone_us: Line  # processor time if the server was idle
    busy_us: Line  # processor time if the server had other work
    in_bytes: Line
    out_bytes: Line  # without replication
    # What each replica and the append-only file get. None = was not measured: there was no replica.
    replicated_bytes: Line | None = None


class Parts(Struct, frozen=True):
    """All parts, each with the bytes that it depends on."""

    create: Part  # create_session: state
    append: Part  # append_event: the encoded event
    change: Part  # in addition, if the event changes state; does not depend on bytes
    trim: Part  # in addition, if the log is at its limit; does not depend on bytes
    read: Part  # get_session or get_or_create_session without events: state of all tiers
    read_event: Part  # in addition, for each event: the encoded event
    read_app: Part  # the app tier, which is a call of its own in a cluster: its state


class Constants(Struct, frozen=True):
    """The constants that `sessionstore size --measure` found on a server."""

    server: str  # name and version
    machine: str  # on which the command ran; the server may run elsewhere
    measured_at: str  # a date
    idle_cores: float  # processor time of a server without calls
    startup_bytes: float  # memory of an empty server
    parts: Parts
    # Memory of a session without events, at several sizes of its state: pairs of bytes.
    session_bytes: Annotated[list[tuple[float, float]], Meta(min_length=2)]
    user_bytes: float  # memory of a user: index of sessions, and the key of the user tier
    log_bytes: float  # memory of a log, in addition to its events
    event_bytes: Line  # memory of an event


class Workload(Struct, frozen=True, kw_only=True):
    """What the agents do. The options of the command describe the fields."""

    agents: int
    turns_per_hour: float
    events_per_turn: float
    event_bytes: float
    read_events: float
    state_bytes: float
    user_state_bytes: float
    app_state_bytes: float
    state_changes: float  # share of the events that change state, 0 to 1
    turns_per_session: float
    event_limit: int  # 0 = none
    session_ttl_hours: float
    sessions: int | None = None
    sessions_per_user: float
    is_app_state_cached: bool = False


class Servers(Struct, frozen=True, kw_only=True):
    """The limits of one server."""

    replicas: int  # of each primary
    memory_bytes: float
    max_memory: float  # share that data may take, 0 to 1
    max_cpu: float  # share of a core that a primary may use, 0 to 1
    network_bytes: float  # per second, in each direction


class Estimate(Struct, frozen=True, kw_only=True):
    """What the workload needs. Rates are per second; sums are over all primaries."""

    constants: str  # server, machine and date
    primaries: int
    replicas: int  # of all primaries together
    limit: Resource  # what decides the number of primaries, or comes nearest to it
    calls: float
    sessions: float
    events: float  # stored
    cpu_cores: float
    memory_bytes: float
    in_bytes: float
    out_bytes: float  # to clients
    replicated_bytes: float | None  # to all replicas; None = the constants do not say
    aof_bytes: float | None  # if the primaries write append-only files
    busiest_cpu: float  # share of a core of the busiest primary
    busiest_memory: float  # share of its memory
    busiest_network: float  # share of its network, in the direction that is used more
    note: str = ""


class _Load(Struct):
    """The cost of all calls in a second: cores if the server is idle or busy, and bytes."""

    alone: float = 0.0
    busy: float = 0.0
    in_bytes: float = 0.0
    out_bytes: float = 0.0
    replicated: float | None = 0.0

    def add(self, part: Part, rate: float, num_bytes: float = 0.0) -> None:
        self.alone += rate * part.alone_us.at(num_bytes) / 1e6
        self.busy += rate * part.busy_us.at(num_bytes) / 1e6
        self.in_bytes += rate * part.in_bytes.at(num_bytes)
        self.out_bytes += rate * part.out_bytes.at(num_bytes)
        if part.replicated_bytes is None:
            self.replicated = None
        elif self.replicated is not None:
            self.replicated += rate * part.replicated_bytes.at(num_bytes)

    def cores(self, idle_cores: float, primaries: int = 1, also: _Load | None = None) -> float:
        """Share of a core that one of the primaries uses; above 1 if it cannot do the work.

        It solves u = busy + (alone - busy) * (1 - u).
        """
        alone, busy = self.alone / primaries, self.busy / primaries
        if also is not None:
            alone, busy = alone + also.alone, busy + also.busy
        if busy >= 1:
            return busy
        saved = max(alone - busy, 0.0)
        return (busy + saved + idle_cores) / (1 + saved)


def load_constants(path: Path) -> Constants:
    """The constants of a file.

    Raises:
        OSError: it cannot be read.
        msgspec.MsgspecError: its content is not valid; the message names the field.
    """
    return msgspec.json.decode(path.read_bytes(), type=Constants)


def estimate(workload: Workload, servers: Servers, constants: Constants) -> Estimate:
    """What the workload needs."""
    turns = workload.agents * workload.turns_per_hour / 3600
    hours = workload.turns_per_session / workload.turns_per_hour
    alive = workload.agents * (1 + workload.session_ttl_hours / hours)  # Little's law
    sessions = alive if workload.sessions is None else workload.sessions
    load, app_reads = _loads(workload, constants.parts, turns)
    memory_bytes, stored = _memory(workload, constants, sessions)
    usable = servers.memory_bytes * servers.max_memory - constants.startup_bytes
    needed: dict[Resource, int] = {
        "memory": math.ceil(memory_bytes / usable) if usable > 0 else _PRIMARIES_LIMIT,
        "CPU": _primaries(load, app_reads, constants.idle_cores, servers.max_cpu),
        "network": math.ceil(_network(load, servers.replicas) / servers.network_bytes),
    }
    primaries = max(1, *needed.values())
    apart = app_reads if primaries > 1 else None
    if apart is not None:
        load.in_bytes += apart.in_bytes
        load.out_bytes += apart.out_bytes
    busiest: dict[Resource, float] = {
        "CPU": load.cores(constants.idle_cores, primaries, apart),
        "memory": memory_bytes / primaries / (usable / servers.max_memory),
        "network": _network(load, servers.replicas) / primaries / servers.network_bytes,
    }
    allowed = {"CPU": servers.max_cpu, "memory": servers.max_memory, "network": 1.0}
    each = load.cores(constants.idle_cores, primaries)
    replicated = load.replicated
    return Estimate(
        constants=f"{constants.server}, {constants.machine}, {constants.measured_at}",
        primaries=primaries,
        replicas=primaries * servers.replicas,
        limit=max(busiest, key=lambda name: busiest[name] / allowed[name]),
        calls=turns * (1 + workload.events_per_turn + 1 / workload.turns_per_session),
        sessions=sessions,
        events=stored,
        cpu_cores=each * (primaries - 1) + busiest["CPU"],
        memory_bytes=memory_bytes + primaries * constants.startup_bytes,
        in_bytes=load.in_bytes,
        out_bytes=load.out_bytes,
        replicated_bytes=None if replicated is None else replicated * servers.replicas,
        aof_bytes=replicated,
        busiest_cpu=busiest["CPU"],
        busiest_memory=busiest["memory"],
        busiest_network=busiest["network"],
        note=_note(load, apart, constants, servers, primaries),
    )


def _loads(workload: Workload, parts: Parts, turns: float) -> tuple[_Load, _Load]:
    """The work of all primaries, and what a cluster adds: reads of the app tier."""
    load, app_reads = _Load(), _Load()
    appends = turns * workload.events_per_turn
    begun = turns / workload.turns_per_session
    states = workload.state_bytes + workload.user_state_bytes + workload.app_state_bytes
    events = workload.turns_per_session * workload.events_per_turn
    trimmed = max(0.0, 1 - workload.event_limit / events) if workload.event_limit else 0.0
    # The first turns of a session find fewer events.
    found = min(workload.read_events, workload.event_limit or math.inf)
    seen = found * (1 - found / 2 / events) if found < events else events / 2
    load.add(parts.create, begun, workload.state_bytes)
    load.add(parts.append, appends, workload.event_bytes)
    load.add(parts.change, appends * workload.state_changes)
    load.add(parts.trim, appends * trimmed)
    load.add(parts.read, turns, states)
    load.add(parts.read_event, turns * seen, workload.event_bytes)
    if not workload.is_app_state_cached:
        app_reads.add(parts.read_app, turns, workload.app_state_bytes)
    return load, app_reads


def _memory(workload: Workload, constants: Constants, sessions: float) -> tuple[float, float]:
    """Memory of all sessions, and the number of their events."""
    per_session = workload.turns_per_session * workload.events_per_turn
    if workload.event_limit:
        per_session = min(per_session, workload.event_limit)
    users = sessions / workload.sessions_per_user
    each = (
        interpolate(constants.session_bytes, workload.state_bytes)
        + constants.log_bytes
        + per_session * constants.event_bytes.at(workload.event_bytes)
    )
    user = constants.user_bytes + workload.user_state_bytes
    return sessions * each + users * user + workload.app_state_bytes, sessions * per_session


def interpolate(points: list[tuple[float, float]], at: float) -> float:
    """The value at `at` of the line through points (x, y), in order of x; extrapolated outside."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if at <= x1 or (x1, y1) == points[-1]:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    raise ValueError("two points are needed")


def _network(load: _Load, replicas: int) -> float:
    """Bytes per second in the direction that is used more."""
    return max(load.in_bytes, load.out_bytes + (load.replicated or 0.0) * replicas)


def _primaries(load: _Load, app_reads: _Load, idle_cores: float, max_cpu: float) -> int:
    """The smallest number of primaries with which even the busiest stays below `max_cpu`.

    If the reads of one app tier alone are too many for a primary, more primaries do not help. Then
    it is the number that all other calls need.
    """
    if load.cores(idle_cores) <= max_cpu:
        return 1
    apart = None if app_reads.cores(idle_cores) >= max_cpu else app_reads
    count = 2
    while load.cores(idle_cores, count, apart) > max_cpu and count < _PRIMARIES_LIMIT:
        count += 1
    return count


def _note(
    load: _Load, apart: _Load | None, constants: Constants, servers: Servers, primaries: int
) -> str:
    if apart is None:
        return ""
    share = load.cores(constants.idle_cores, primaries, apart)
    own = share - load.cores(constants.idle_cores, primaries)
    text = (
        f"One primary also answers all reads of the app tier: {own:.0%} of a core. "
        "Services with app_state_max_age send few of them (--app-state-cached)."
    )
    if share > servers.max_cpu:
        return "More primaries do not help. " + text
    return text if own > 0.02 else ""
