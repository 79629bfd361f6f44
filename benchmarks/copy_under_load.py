"""Copies a store while a fleet of agents writes to it: `python -m benchmarks.copy_under_load`.

`sessionstore fleet` runs in a process of its own. Meanwhile `sessionstore copy` copies its sessions
to another store, again and again. When the agents have stopped, one more copy picks up the rest.
Then both stores are exported, and every session is compared.

There are two targets: another server, with another prefix and codec; and a cluster of three
primaries, partitioned by application. Exit status: 0 = nothing was lost or duplicated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import redis

from sessionstore.embedded import EmbeddedServer

from .rigs.clusters import Cluster

_COMMAND = [sys.executable, "-c", "from sessionstore.cli import main; main()"]
_TARGETS = {
    "another server": ("--target-key-prefix", "copy:", "--target-codec", "msgpack"),
    "a cluster": ("--target-partition-by", "app"),
}
_START_LIMIT_S = 30


class Outcome(msgspec.Struct):
    """What a target has in the end.

    Attributes:
        target: the target.
        num_copies: copies while the agents wrote.
        replaced: sessions that the last copy replaced or added.
        sessions: sessions of the source.
        events: events of the source.
        lost: events of the source that the target does not have.
        duplicated: events that the target has twice.
        different: sessions and states that are not equal, byte for byte.
    """

    target: str
    num_copies: int
    replaced: int
    sessions: int
    events: int
    lost: int
    duplicated: int
    different: int


def run(num_agents: int, num_turns: int, think_s: float, targets: Sequence[str]) -> list[Outcome]:
    """Copy to each target while a fleet of agents writes."""
    return [_run(num_agents, num_turns, think_s, target) for target in targets]


def _run(num_agents: int, num_turns: int, think_s: float, target: str) -> Outcome:
    with EmbeddedServer() as source, tempfile.TemporaryDirectory() as folder:
        to: Any = EmbeddedServer() if target == "another server" else Cluster(replicas=0)
        with to, redis.Redis(unix_socket_path=source.socket_path) as client:
            options = ["--agents", num_agents, "--turns", num_turns, "--think", think_s]
            options += ["--flat-out", 0, "--keep", "--json", Path(folder) / "report"]
            fleet = subprocess.Popen(
                [*_COMMAND, "fleet", "--url", source.url, *map(str, options)],
                stdout=subprocess.DEVNULL,
            )
            try:
                prefix = _wait_for_prefix(client)
                copy = ["copy", to.url, "--url", source.url, "--key-prefix", prefix, "--json"]
                num_copies = 0
                while fleet.poll() is None:
                    _sessionstore(*copy, *_TARGETS[target])
                    num_copies += 1
            finally:
                if fleet.wait():
                    raise RuntimeError("the fleet failed")
            last = _sessionstore(*copy, *_TARGETS[target])
            theirs = ["--key-prefix", "copy:"] if target == "another server" else []
            theirs += ["--partition-by", "app"] if target == "a cluster" else []
            return _compare(
                target,
                num_copies,
                sum(json.loads(line)["status"] != "unchanged" for line in last),
                _sessionstore("export", "--url", source.url, "--key-prefix", prefix),
                _sessionstore("export", "--url", to.url, *theirs),
            )


def _wait_for_prefix(client: Any) -> str:
    """The prefix of the fleet's keys, as soon as it has stored something."""
    end = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < end:
        for key in client.scan_iter("fleet:*"):
            return ":".join(key.decode().split(":")[:2]) + ":"
        time.sleep(0.02)
    raise RuntimeError("the fleet has not started")


def _sessionstore(*arguments: str) -> list[bytes]:
    """The lines that a command prints."""
    done = subprocess.run([*_COMMAND, *arguments], capture_output=True, check=True)
    return done.stdout.splitlines()


def _compare(
    target: str, num_copies: int, replaced: int, source: list[bytes], copied: list[bytes]
) -> Outcome:
    wanted, found = _ids(source), _ids(copied)
    return Outcome(
        target=target,
        num_copies=num_copies,
        replaced=replaced,
        sessions=sum(b'"session_id"' in line for line in source),
        events=len(wanted),
        lost=len(set(wanted) - set(found)),
        duplicated=len(found) - len(set(found)),
        different=len(set(source) ^ set(copied)),
    )


def _ids(lines: list[bytes]) -> Sequence[tuple[str, ...]]:
    """The ids of all events, with those of their sessions."""
    ids = []
    for line in map(json.loads, lines):
        for message in line.get("messages", ()):
            ids.append(
                (line["app_name"], line["user_id"], line["session_id"], message["event"]["id"])
            )
    return ids


def main() -> int:
    """Run the command; 1 if something was lost or duplicated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--think", type=float, default=0.1, metavar="SECONDS")
    arguments = parser.parse_args()
    outcomes = run(arguments.agents, arguments.turns, arguments.think, list(_TARGETS))
    for outcome in outcomes:
        print(
            f"To {outcome.target}: {outcome.num_copies} copies while {arguments.agents} agents"
            f" wrote {outcome.events:,} events in {outcome.sessions:,} sessions; a last copy wrote"
            f" {outcome.replaced:,} sessions. Events lost: {outcome.lost}, duplicated:"
            f" {outcome.duplicated}. Lines that differ: {outcome.different}."
        )
    return int(any(each.lost or each.duplicated or each.different for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())
