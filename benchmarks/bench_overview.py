"""Do an append and a read of the newest 20 events stay fast as a session grows?

One task appends 1 KB events one by one to a session that already holds 0, 1,000 or 10,000, and
reads the newest 20. sessionstore and the other libraries' session stores (the peers) do the same
work on the same server, each in a process of its own. A peer that needs more than two minutes to
store the events is listed as "not reached".
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from .harness import Harness, Timing, Variant, main
from .peers.link import CannotRunError, Link, open_all
from .peers.registry import ON_REDIS, OURS
from .results import Figure, Group, Lines, Result, time_of

_ROUNDS = 5
_APPENDS = 20  # few, so that a session keeps about its size
_READ_SECONDS = 0.1
_READS_LIMIT = 100
_FILL_SECONDS = 120.0


class _Bench:
    """sessionstore and the peers that run, with sessions of several sizes."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.server = harness.start_server()
        self.links, self.notes = open_all(harness, [OURS, *ON_REDIS], self.server.url)
        self.appends = harness.pick(_APPENDS, 2)
        self.newest = harness.pick(20, 5)

    def fill(self, stored: int) -> None:
        """Make a session of this size in every store; leave out the stores that take too long."""
        kept = []
        for link in self.links:
            try:
                link.make(_session(stored), 1, stored, limit_seconds=_FILL_SECONDS)
            except CannotRunError as reason:
                self.notes.append(f"{link.peer.name} does not reach {stored:,} events: {reason}")
            else:
                kept.append(link)
        self.links = kept

    def append(self, stored: int) -> Group:
        """Appends. An empty session is a new one in each round."""

        def make_empty(link: Link) -> None:
            link.make("new", 1, 0)

        name = _session(stored) if stored else "new"
        variants = [
            Variant(
                link.peer.name,
                self.appends,
                partial(link.append, name, self.appends),
                None if stored else partial(make_empty, link),
            )
            for link in self.links
        ]
        return self._measure(f"append at {stored:,} stored events", "append", variants)

    def read(self, stored: int) -> Group:
        """Reads of the newest events, more per round if they are fast."""
        variants = []
        for link in self.links:
            read: Callable[[int], Timing] = partial(link.read, _session(stored), self.newest)
            count = 1
            with suppress(CannotRunError):  # the measurement fails too, and reports it
                wanted = _READ_SECONDS / read(2).seconds
                count = self.harness.pick(min(max(int(wanted), 2), _READS_LIMIT), 2)
            variants.append(Variant(link.peer.name, count, partial(read, count)))
        name = f"read the newest {self.newest} of {stored:,} stored events"
        return self._measure(name, "read", variants)

    def _measure(self, name: str, operation: str, variants: list[Variant]) -> Group:
        rounds = min(self.harness.rounds, _ROUNDS)
        return self.harness.measure(self.server, name, operation, variants, rounds)


def _session(stored: int) -> str:
    return f"holds {stored}"


def chart(title: str, sizes: list[int], groups: list[Group]) -> Lines:
    """One line for each store, through all sizes that it reached."""
    labels = {peer.name: peer.label for peer in (OURS, *ON_REDIS)}
    values: dict[str, list[float | None]] = {}
    for name, label in labels.items():
        found = [group.us_of(name) for group in groups]
        if found[0] is not None:
            values[label] = found
    columns = [f"{size:,}" for size in sizes]
    return Lines(title, "events stored in the session", columns, values)


def run(harness: Harness) -> Result:
    """Measure."""
    bench = _Bench(harness)
    sizes = harness.pick([0, 1_000, 10_000], [0, 10, 50])
    appends, reads = [], []
    for stored in sizes:
        bench.fill(stored)
        appends.append(bench.append(stored))
        reads.append(bench.read(stored))
    figures = [
        Figure(f"{row.name}: {group.name}", group.ratio(row.name, OURS.name, time_of), "x our time")
        for group in (*appends, *reads)
        for row in group.rows
        if row.name != OURS.name
    ]
    return harness.result(
        "bench_overview",
        "Do an append and a read of the newest 20 events stay fast as a session grows?",
        groups=[*appends, *reads],
        figures=figures,
        notes=[
            *bench.notes,
            "ADK's DatabaseSessionService writes to SQLite; the others use the same server.",
        ],
        panels=[
            chart("Append one event", sizes, appends),
            chart(f"Read the newest {bench.newest} events", sizes, reads),
        ],
        reading_hint="Median of one call with 1 KB events; less is better. "
        '"Not reached": storing the events took over 2 minutes.',
    )


if __name__ == "__main__":
    main(run)
