"""How fast are appends in memory, and do they stay fast as the history grows?

One task appends new 1 KB events one by one to a session that holds 0 to 10,000. There is no event
limit, so nothing is trimmed. sessionstore encodes, checks and copies every event, as it does with a
server. It is measured with a Session object, which each append updates, as in the peers, and with
a key. Each peer runs in its own process and venv, made by `python -m benchmarks.peers.install
google-adk trpc-agent-py`. Every append includes making the event; the report also shows how long
that takes alone.
"""

from __future__ import annotations

from functools import partial

from sessionstore import InMemorySessionService, Session, SessionKey

from .harness import Harness, Variant, main
from .peers.link import Link, open_all
from .peers.registry import IN_MEMORY
from .results import Figure, Group, Lines, Result, Target, time_of
from .workload import fill, make_sessions, new_event, options, read

OURS = "sessionstore, Session handle"
OURS_KEY = "sessionstore, key"

_ADK = IN_MEMORY[0].name

# Some peers need seconds to fill a session of this size. So it is filled once and grows a little
# in every round.
_LARGE = 10_000


class _Bench:
    """Sessions of one size, in sessionstore and in the peers."""

    def __init__(self, harness: Harness, links: list[Link], stored: int) -> None:
        self.harness = harness
        self.links = links
        self.stored = stored
        self.service = InMemorySessionService(**options(event_limit=None))
        self.count = harness.pick(200, 4)
        self._make(OURS)
        self._make(OURS_KEY)

    def _make(self, name: str) -> None:
        """A session with `stored` events, and a Session object of it."""

        async def make() -> Session:
            [session] = await make_sessions(self.service, name, 1)
            await fill(self.service, session.key, self.stored)
            found = await read(self.service, session.key, None)
            assert found is not None
            return found

        session: Session = self.harness.run(make())
        if name == OURS:
            self.handle = session
        else:
            self.key = session.key

    def measure(self) -> Group:
        """Appends, to a new session in each round if filling one is fast."""

        async def append(session: Session | SessionKey) -> None:
            for _ in range(self.count):
                await self.service.append_event(session, new_event())

        is_new = self.stored < _LARGE
        variants = [
            Variant(
                OURS,
                self.count,
                lambda: append(self.handle),
                (lambda: self._make(OURS)) if is_new else None,
            ),
            Variant(
                OURS_KEY,
                self.count,
                lambda: append(self.key),
                (lambda: self._make(OURS_KEY)) if is_new else None,
            ),
            *map(self._of_peer, self.links),
        ]
        name = f"append at {self.stored:,} stored events"
        return self.harness.measure(None, name, "append", variants)

    def _of_peer(self, link: Link) -> Variant:
        def make() -> None:
            link.make("append", 1, self.stored)

        is_new = self.stored < _LARGE
        if not is_new:
            make()
        return Variant(
            link.peer.name,
            self.count,
            lambda: link.append("append", self.count),
            make if is_new else None,
        )


def making_events(harness: Harness, links: list[Link]) -> Group:
    """How long it takes to make an event."""
    count = harness.pick(2000, 10)

    def ours() -> None:
        for _ in range(count):
            new_event()

    variants = [Variant("sessionstore", count, ours)]
    variants += [Variant(link.peer.name, count, partial(link.events, count)) for link in links]
    return harness.measure(None, "making an event alone", "event", variants)


def run(harness: Harness) -> Result:
    """Measure."""
    links, notes = open_all(harness, IN_MEMORY, "")
    sizes = harness.pick([0, 1_000, 10_000], [0, 50, 200])
    groups = [_Bench(harness, links, stored).measure() for stored in sizes]
    labels = {peer.name: peer.label for peer in IN_MEMORY} | {OURS: "sessionstore"}
    first, last = groups[0].row(OURS), groups[-1].row(OURS)
    targets = [
        Target(
            f"in-memory append at {sizes[-1]:,} stored events against 0, time",
            last.us / first.us,
            "<=",
            1.1,
        )
    ]
    if any(link.peer.name == _ADK for link in links):
        targets += [
            Target(
                f"in-memory append at {stored:,} events, throughput against {_ADK}",
                group.ratio(_ADK, OURS, time_of),
                ">=",
                1,
            )
            for stored, group in zip(sizes, groups, strict=True)
        ]
    figures = [
        Figure(f"{row.name}: {group.name}", group.ratio(row.name, OURS, time_of), "x our time")
        for group in groups
        for row in group.rows[2:]
    ]
    return harness.result(
        "bench_in_memory",
        "How fast are appends in memory, and do they stay fast as the history grows?",
        groups=[*groups, making_events(harness, links)],
        figures=figures,
        targets=targets,
        notes=notes,
        panels=[
            Lines(
                "time of one append",
                "events stored in the session",
                [f"{size:,}" for size in sizes],
                {
                    labels.get(row.name, row.name): [group.us_of(row.name) for group in groups]
                    for row in groups[0].rows
                    if row.name != OURS_KEY
                },
            )
        ],
    )


if __name__ == "__main__":
    main(run)
