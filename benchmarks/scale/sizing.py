"""Does `sessionstore size` predict what a fleet needs? `python -m benchmarks.scale.sizing`.

It measures the constants of a primary with a replica, as `sessionstore size --measure` does. Then
fleets of agents work at several speeds. Processor time, memory and network of the primary are
compared with what the constants predict for the same agents, turns, events and state. The exit code
is 1 if a prediction of processor time or memory is wrong by more than 20 %.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import msgspec
from rich.progress import Progress

from sessionstore import RedisSessionService
from sessionstore.cli.fleet.agents import Fleet
from sessionstore.cli.fleet.synthetic import NUM_SHARED_APP_KEYS, synthetic_conversations
from sessionstore.cli.fleet.workload import Conversation
from sessionstore.cli.sizing import encode_constants
from sessionstore.cli.sizing.measuring import measure
from sessionstore.cli.sizing.meter import Usage
from sessionstore.cli.sizing.model import Constants, Servers, Workload, estimate
from sessionstore.cli.store import Store, open_store

from ..harness import busy_seconds, wait_for_quiet
from ..rigs.addresses import MovingAddress
from ..rigs.nodes import HOST
from .published import Outcome, Table, finish, options, percent

BOUND = 0.2

_TTL_S = 3600
_SETTLE_S = 0.5
_READ_EVENTS = 20  # what a fleet's Runner reads
_SESSIONS_PER_USER = 4
_TRIES = 3
_QUIET = 0.3  # cores
_PROCESSES = 8  # fleets that run at the same time
_ONE = Servers(replicas=1, memory_bytes=1e12, max_memory=1, max_cpu=0.99, network_bytes=1e12)


class Comparison(msgspec.Struct):
    """A fleet: what was predicted, and what the primary used; bytes and seconds of the run."""

    agents: int
    think_seconds: float
    seconds: float
    calls_per_second: float
    others: float  # cores that other programs used; if many, agents are late and call together
    predicted: dict[str, float]
    measured: dict[str, float]

    def error(self, name: str) -> float:
        """How far the prediction is off; 0.1 = it is 10 % too high."""
        return self.predicted[name] / self.measured[name] - 1


def workload_of(conversations: Sequence[Conversation], seconds: float) -> Workload:
    """What the fleet does, as the options of `sessionstore size` describe it."""
    turns = [turn for each in conversations for turn in each.turns() if turn]
    events = [event for turn in turns for event in turn]
    deltas = [event.state_delta for event in events if event.state_delta]
    bare = {name: value for delta in deltas for name, value in delta.items() if ":" not in name}
    first = conversations[0].initial_state
    shared = mean(
        len(msgspec.json.encode(value))
        for delta in deltas
        for name, value in delta.items()
        if name.startswith("user:")
    )
    num_turns = sum(each.num_turns for each in conversations)
    # When a session reads shared state, most of the others have written their keys.
    written = 0.8 * (shared + 30)
    writers = min(len(conversations) // _PROCESSES, NUM_SHARED_APP_KEYS)
    return Workload(
        agents=len(conversations),
        turns_per_hour=num_turns / len(conversations) / seconds * 3600,
        events_per_turn=len(events) / num_turns,
        event_bytes=mean(len(msgspec.json.encode(event)) for event in events),
        read_events=_READ_EVENTS,
        state_bytes=len(msgspec.json.encode({**first, **bare})),
        user_state_bytes=_SESSIONS_PER_USER * written,
        app_state_bytes=writers * written,
        state_changes=len(deltas) / len(events),
        turns_per_session=num_turns / len(conversations),
        event_limit=1000,
        session_ttl_hours=1,
        sessions=len(conversations),
        sessions_per_user=_SESSIONS_PER_USER,
    )


@asynccontextmanager
async def _fleet(
    url: str, conversations: Sequence[Conversation], think: float
) -> AsyncIterator[Fleet]:
    """Agents with a connection and keys of their own, as if they were a process."""
    prefix = f"sizing:{secrets.token_hex(4)}:"
    ttls: Any = dict.fromkeys(("session_ttl", "app_state_ttl", "user_state_ttl"), _TTL_S)
    async with RedisSessionService(url, key_prefix=prefix, **ttls) as service:
        await service.get_app_state("fleet")  # connects
        yield Fleet(
            service=service,
            conversations=conversations,
            num_agents=len(conversations),
            think_seconds=think,
            event_limit=1000,
            progress=Progress(disable=True),
        )


async def compare(
    store: Store, constants: Constants, agents: int, turns: int, think: float, seed: int
) -> Comparison:
    """Run a fleet, and compare what it used with the prediction."""
    assert store.executor is not None
    conversations: list[Conversation] = []
    calls = 0
    async with AsyncExitStack() as stack:
        fleets = []
        for number in range(_PROCESSES):
            mine = synthetic_conversations(
                agents // _PROCESSES,
                num_turns=turns,
                sessions_per_user=_SESSIONS_PER_USER,
                seed=seed + number,
            )
            conversations += mine
            fleets.append(await stack.enter_async_context(_fleet(store.url, mine, think)))
        await asyncio.sleep(_SETTLE_S)
        before = await Usage.read(store.executor)
        busy, own = busy_seconds(), time.process_time()
        await asyncio.gather(*(fleet.run_agents() for fleet in fleets))
        await asyncio.sleep(_SETTLE_S)
        after = await Usage.read(store.executor)
        busy, own = busy_seconds() - busy, time.process_time() - own
        for fleet in fleets:
            if fleet.failures:
                raise RuntimeError(f"the fleet failed: {fleet.failures}")
            calls += sum(len(times) for times in fleet.recorder.latencies_ns.values())
            await fleet.clean_up()
        seconds = max(fleet.elapsed_seconds for fleet in fleets)
    found = estimate(workload_of(conversations, seconds), _ONE, constants)
    used = after.less(before)
    server = used.cpu_us / 1e6
    return Comparison(
        agents,
        think,
        round(seconds, 2),
        round(calls / seconds, 1),
        round(max(busy - own - 2 * server, 0.0) / seconds, 2),  # the replica is as busy
        predicted={
            "CPU": found.cpu_cores * seconds,
            "memory": found.memory_bytes - constants.startup_bytes,
            "network in": found.in_bytes * seconds,
            "network out": found.out_bytes * seconds,
            "replication": (found.replicated_bytes or 0.0) * seconds,
        },
        measured={
            "CPU": server,
            "memory": used.memory_bytes,
            "network in": used.in_bytes,
            "network out": used.out_bytes,
            "replication": used.replicated_bytes,
        },
    )


async def run(
    url: str,
    fleets: Sequence[tuple[int, int, float]],
    seed: int,
    *,
    rounds: int = 5,
    patience_seconds: float = 0.0,
) -> tuple[Constants, list[Comparison]]:
    """Measure constants, then compare fleets of (agents, turns, average think time in seconds)."""
    async with open_store(url) as store:
        wait_for_quiet(patience_seconds)
        constants = await measure(store, lambda text: print(text, file=sys.stderr), rounds=rounds)
        found = []
        for each in fleets:
            tries: list[Comparison] = []
            while not tries or (patience_seconds and len(tries) < _TRIES):
                wait_for_quiet(patience_seconds)
                tries.append(await compare(store, constants, *each, seed))
                if tries[-1].others <= _QUIET:
                    break
            found.append(min(tries, key=lambda each: each.others))
        return constants, found


def outcome_of(constants: Constants, found: Sequence[Comparison]) -> Outcome:
    """Tables of predictions and measurements."""
    head = ["", *(f"{each.calls_per_second:,.0f} calls/s" for each in found)]
    off = [
        [f"{name}: the prediction is off by", *(percent(each.error(name)) for each in found)]
        for name, used in found[0].measured.items()
        if used
    ]
    lines: list[list[str]] = [
        ["agents", *(f"{each.agents:,}" for each in found)],
        ["CPU of a core, predicted", *(_share(each, each.predicted) for each in found)],
        ["CPU of a core, measured", *(_share(each, each.measured) for each in found)],
        *off,
        ["cores used by other programs", *(f"{each.others:.1f}" for each in found)],
    ]
    settings = {constants.server: f"with one replica ({constants.machine})"}
    data = {"comparisons": msgspec.to_builtins(found)}
    return Outcome("sizing", settings, [Table(head, lines)], data)


def _share(each: Comparison, figures: dict[str, float]) -> str:
    return f"{100 * figures['CPU'] / each.seconds:.1f} %"


def main() -> int:
    """The command line."""
    parser = options(__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the conversations")
    parser.add_argument(
        "--patience", type=float, default=30, help="seconds to wait until other programs are quiet"
    )
    parser.add_argument(
        "--constants", type=Path, metavar="FILE", help="also write the measured constants"
    )
    arguments = parser.parse_args()
    fleets = [(240, 8, 0.4), (360, 8, 0.4), (480, 8, 0.4)]
    with MovingAddress() as servers:
        url = f"redis://{HOST}:{servers.primary.port}"
        constants, found = asyncio.run(
            run(url, fleets, arguments.seed, patience_seconds=arguments.patience)
        )
    if arguments.constants is not None:
        arguments.constants.write_bytes(encode_constants(constants))
    finish(outcome_of(constants, found), arguments)
    wrong = [each for each in found if any(abs(each.error(n)) > BOUND for n in ("CPU", "memory"))]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
