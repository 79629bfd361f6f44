"""How do other session stores compare, on the same server, with the same events?

Each of them, and sessionstore too, runs in a process of its own, the peers in venvs of their own
(`python -m benchmarks.peers.install` makes them), and takes its turn in every round. All append
fresh 1 KB events one by one, each task to a session of its own, through their public asyncio API,
with no limit on events and with a TTL where there is one. A peer that cannot run is listed with the
reason.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from .harness import Harness, Timing, Variant, main
from .peers.link import CannotRunError, Link, open_all
from .peers.registry import ON_REDIS, OURS
from .results import Figure, Group, Result, Target, busier_cpu_of, time_of

_ROUNDS = 5  # some peers take seconds for each


class _Bench:
    """sessionstore and the peers that run."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.server = harness.start_server()
        self.links, self.notes = open_all(harness, [OURS, *ON_REDIS], self.server.url)

    def append(self, name: str, tasks: int, stored: int, each: int) -> Group:
        """Appends; to sessions that are new in each round if they shall be empty."""

        def make(link: Link) -> None:
            link.make("append", tasks, stored)

        if stored:
            self._make_all("append", tasks, stored)
        return self._measure(
            name,
            "append",
            tasks * each,
            lambda link: link.append("append", each),
            None if stored else make,
        )

    def read(self, stored: int, last: int, count: int) -> Group:
        """Reads of the newest events."""
        self._make_all("read", 1, stored)
        return self._measure(
            f"read the newest {last} of {stored:,}, 1 task",
            "read",
            count,
            lambda link: link.read("read", last, count),
        )

    def _make_all(self, name: str, sessions: int, stored: int) -> None:
        """Make sessions on every side; one that cannot says so again when it is measured."""
        for link in self.links:
            with suppress(CannotRunError):
                link.make(name, sessions, stored)

    def _measure(
        self,
        name: str,
        operation: str,
        count: int,
        work: Callable[[Link], Timing],
        prepare: Callable[[Link], None] | None = None,
    ) -> Group:
        variants = [
            Variant(
                link.peer.name,
                count,
                partial(work, link),
                partial(prepare, link) if prepare else None,
            )
            for link in self.links
        ]
        rounds = min(self.harness.rounds, _ROUNDS)
        return self.harness.measure(self.server, name, operation, variants, rounds)


def run(harness: Harness) -> Result:
    """Measure."""
    bench = _Bench(harness)
    stored, many = harness.pick(1000, 20), harness.pick(64, 4)
    groups = [
        bench.append("append to an empty session, 1 task", 1, 0, harness.pick(100, 4)),
        bench.append(f"append at {stored:,} stored events, 1 task", 1, stored, harness.pick(20, 4)),
        bench.append(f"append to empty sessions, {many} tasks", many, 0, harness.pick(16, 2)),
        bench.read(stored, harness.pick(20, 5), harness.pick(20, 2)),
    ]
    together = groups[2]
    targets = []
    peers = [row for row in together.rows if row.name != OURS.name]
    if peers:
        fastest = min(peers, key=lambda row: row.us)
        ratio = together.ratio(fastest.name, OURS.name, time_of)
        name = f"append throughput, {many} tasks, against the fastest peer ({fastest.name})"
        targets.append(Target(name, ratio, ">=", 5))
    figures = [
        Figure(f"{row.name}: {group.name}", group.ratio(row.name, OURS.name, time_of), "x our time")
        for group in groups
        for row in group.rows
        if row.name != OURS.name
    ]
    figures += [
        Figure(
            f"{row.name}: {together.name}, by processor time of the busier side",
            together.ratio(row.name, OURS.name, busier_cpu_of),
            "x ours",
        )
        for row in peers
    ]
    versions = [f"{link.peer.name}: {_versions(link)}" for link in bench.links]
    return harness.result(
        "bench_peers",
        "How do other session stores compare?",
        groups=groups,
        figures=figures,
        targets=targets,
        notes=versions + bench.notes,
    )


def _versions(link: Link) -> str:
    return ", ".join(f"{name} {version}" for name, version in link.versions.items())


if __name__ == "__main__":
    main(run)
