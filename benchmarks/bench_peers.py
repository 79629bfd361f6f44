"""How do other session stores compare when many agents append at once?

sessionstore and the peers run in processes of their own and take turns in every round. The peers'
venvs are made by `python -m benchmarks.peers.install`. Each of 64 tasks appends new 1 KB events one
by one to its own session, through the public asyncio API, without event limit, and with a TTL if
the store has one. The report lists the peers that cannot run, with the reason. bench_overview
compares the same stores with one caller and longer histories.
"""

from __future__ import annotations

from functools import partial

from .harness import Harness, Variant, main
from .peers.link import Link, open_all
from .peers.registry import ON_REDIS, OURS
from .results import Figure, Result, Target, bars_of, busier_cpu_of, time_of

_ROUNDS = 5  # some peers take seconds for each


def run(harness: Harness) -> Result:
    """Measure."""
    server = harness.start_server()
    links, notes = open_all(harness, [OURS, *ON_REDIS], server.url)
    tasks, each = harness.pick(64, 4), harness.pick(16, 2)
    variants = [
        Variant(
            link.peer.name,
            tasks * each,
            partial(link.append, "append", each),
            partial(link.make, "append", tasks, 0),
        )
        for link in links
    ]
    name = f"append to empty sessions, {tasks} tasks"
    rounds = min(harness.rounds, _ROUNDS)
    group = harness.measure(server, name, "append", variants, rounds)
    peers = [row for row in group.rows if row.name != OURS.name]
    targets = []
    if peers:
        fastest = min(peers, key=lambda row: row.us)
        ratio = group.ratio(fastest.name, OURS.name, time_of)
        what = f"append throughput, {tasks} tasks, against the fastest peer ({fastest.name})"
        targets.append(Target(what, ratio, ">=", 5))
    figures = [
        Figure(f"{row.name}: {what}", group.ratio(row.name, OURS.name, of), "x ours")
        for what, of in (("time", time_of), ("CPU time of the busier side", busier_cpu_of))
        for row in peers
    ]
    return harness.result(
        "bench_peers",
        "How do other session stores compare when 64 agents append at once?",
        groups=[group],
        figures=figures,
        targets=targets,
        notes=[f"{link.peer.name}: {_versions(link)}" for link in links] + notes,
        panels=[bars_of(group)],
        reading_hint="Time per append of all agents together. Less is better.",
    )


def _versions(link: Link) -> str:
    return ", ".join(f"{name} {version}" for name, version in link.versions.items())


if __name__ == "__main__":
    main(run)
