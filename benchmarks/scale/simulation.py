"""A million agents on 30 primaries, simulated: `python -m benchmarks.scale.simulation`.

Such a cluster does not fit on one machine, so cluster_model.py computes it from measured service
times (the constants of `sessionstore size`). The model is first compared with a real server at
several loads. Then it answers:

* How evenly do users spread over primaries, if few of them have very many sessions?
* What does the app tier cost, which is in one slot, and what if services keep a copy of it?
* How long do calls take at several loads, and which load is too high?
* What do agents see of a failover of one primary, and of a rolling restart of all?

The same seed gives the same figures, except for the comparison with a real server.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sessionstore.cli.sizing.model import SHIPPED, Constants, load_constants
from sessionstore.embedded import EmbeddedServer

from ..harness import Server, wait_for_quiet
from ..pictures import draw
from ..results import Lines, Result
from . import validation
from .cluster_model import (
    Kinds,
    Pause,
    Shape,
    agents_of_users,
    primary_of_app,
    quantile,
    serve,
    serve_agents,
    shares_of_primaries,
)
from .published import MEASURED, Outcome, Table, finish, options, parse

LEAST = {
    "agents": 1000,  # fewer make too few calls for the figures
    "primaries": 2,  # one fails over
    "users": 1,
    "turn_seconds": 0.1,
    "seconds": 1,
    "processes": 1,
    "max_age": 0.001,
}
"""The lowest value of each option."""

DISTRIBUTIONS = {
    "even": "each user the same",
    "pareto": "a fifth of the users has four fifths",
    "one large": "one user has a hundredth of all",
    "zipf": "the user of rank r has 1/r of the first one's",
}
APP_TIER = {
    "read": "read in every turn",
    "cached": "kept for a second by each process",
}

# From benchmarks.chaos, on a cluster with a node timeout of 1.5 s: see benchmarks/README.md.
TAKEOVER_S = 3.3
FOUND_AGAIN_S = 0.4
GRACEFUL_S = 0.09


@dataclass(frozen=True)
class Setting:
    """Size and load of a simulated cluster."""

    agents: int
    primaries: int
    users: int
    turn_seconds: float  # between the beginnings of two turns of an agent
    seconds: float  # simulated time
    processes: int
    max_age_s: float
    seed: int

    @property
    def turns_per_second(self) -> float:
        """Turns of all agents in a second."""
        return self.agents / self.turn_seconds


class Simulation:
    """All scenarios of one setting.

    Args:
        setting: size and load.
        constants: service times.
    """

    def __init__(self, setting: Setting, constants: Constants) -> None:
        self.setting = setting
        self.constants = constants
        self.shape = Shape()

    def _rng(self, *names: object) -> random.Random:
        return random.Random("/".join(map(str, (self.setting.seed, *names))))

    def spread(self) -> dict[str, list[float]]:
        """Agents of each primary, by distribution of the users."""
        setting = self.setting
        found = {}
        for name in DISTRIBUTIONS:
            weights = agents_of_users(name, setting.users, setting.agents, self._rng(name))
            found[name] = shares_of_primaries(weights, setting.primaries)
        return found

    def cluster(
        self, agents: Sequence[float], app_tier: str, load: float = 1.0
    ) -> dict[str, float]:
        """Times of all calls, and of those of the busiest primary, in milliseconds.

        Args:
            agents: of each primary.
            app_tier: a key of APP_TIER.
            load: turns, as a multiple of those of the setting.
        """
        setting, shape = self.setting, self.shape
        app_primary = primary_of_app(setting.primaries)
        app_reads = setting.turns_per_second * load
        if app_tier == "cached":
            app_reads = min(app_reads, setting.processes / setting.max_age_s)
        every: list[float] = []
        of_busiest: list[float] = []
        app_times: list[float] = []
        utilizations: list[float] = []
        for number, here in enumerate(agents):
            rng = self._rng("primary", number)
            kinds = Kinds(self.constants, shape, rng)
            turns = here / setting.turn_seconds * load
            rates = [turns, turns * shape.events_per_turn]
            draws = [kinds.read, kinds.append]
            if number == app_primary:
                rates.append(app_reads)
                draws.append(kinds.read_app)
            served = serve(rates, draws, setting.seconds, rng)
            own = served.times[0] + served.times[1]
            if number == app_primary:
                app_times = served.times[2]
            if served.utilization > max(utilizations, default=0.0):
                of_busiest = own
            utilizations.append(served.utilization)
            every += own
        every.sort()
        of_busiest.sort()
        app_times.sort()
        return {
            "utilization, mean": sum(utilizations) / len(utilizations),
            "utilization, busiest": max(utilizations),
            **_quantiles(every, ""),
            **_quantiles(of_busiest, "busiest "),
            **_quantiles(app_times, "app tier "),
        }

    def fail_over(self, agents: float, takeover_s: float, found_again_s: float) -> dict[str, float]:
        """One primary is away; its agents wait."""
        begin, end = 1.0, self.setting.seconds + takeover_s + 3.0
        rng = self._rng("failover", takeover_s)
        found = serve_agents(
            int(agents),
            self.setting.turn_seconds,
            Kinds(self.constants, self.shape, rng),
            self.shape,
            [Pause(begin, takeover_s, found_again_s)],
            end,
            rng,
        )
        waited = [took for made, took in found if begin <= made < begin + takeover_s]
        before = sorted(took for made, took in found if made < begin)
        normal_s = 2 * quantile(before, 0.99)
        after = begin + takeover_s
        slow = [made for made, took in found if made >= after and took > normal_s]
        return {
            "calls that wait": len(waited),
            "longest call, s": max(took for _, took in found),
            "slow calls after it": len(slow),
            "until calls are fast again, s": max(slow, default=after) - after,
        }

    def rolling_restart(self, agents: Sequence[float], pause_s: float) -> dict[str, float]:
        """All primaries hand over to their replicas, one after the other, a minute apart."""
        interval_s = 60.0
        here = sum(agents) / len(agents)
        one = self.fail_over(here, pause_s, min(pause_s, FOUND_AGAIN_S))
        calls = self.setting.turns_per_second * self.shape.calls_per_turn * interval_s
        return {
            "calls that wait": one["calls that wait"] * len(agents),
            "longest call, s": one["longest call, s"],
            "share of all calls, 1 of": calls / max(one["calls that wait"], 1),
        }


def _quantiles(ordered: list[float], prefix: str) -> dict[str, float]:
    if not ordered:
        return {}
    at = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    return {f"{prefix}{name}": 1000 * quantile(ordered, share) for name, share in at.items()}


def simulate(setting: Setting, constants: Constants, loads: Sequence[float]) -> dict[str, Any]:
    """All scenarios."""
    simulation = Simulation(setting, constants)
    spread = simulation.spread()
    mean = setting.agents / setting.primaries
    return {
        "setting": vars(setting),
        "spread": {name: max(each) / mean for name, each in spread.items()},
        "distributions": {
            name: simulation.cluster(each, "cached") for name, each in spread.items()
        },
        "app tier": {
            f"{name}, load {load:g}": simulation.cluster(spread["pareto"], name, load)
            for name in APP_TIER
            for load in loads
        },
        "failover": simulation.fail_over(max(spread["pareto"]), TAKEOVER_S, FOUND_AGAIN_S),
        "rolling restart, graceful": simulation.rolling_restart(spread["pareto"], GRACEFUL_S),
        "rolling restart, killed": simulation.rolling_restart(spread["pareto"], TAKEOVER_S),
    }


# -- tables and picture --------------------------------------------------------------------------


def _times(found: dict[str, float], prefix: str = "") -> str:
    names = [f"{prefix}{name}" for name in ("p50", "p99", "p99.9")]
    if any(name not in found for name in names):
        return ""
    return " / ".join(_milliseconds(found[name]) for name in names)


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def outcome_of(
    found: dict[str, Any], checks: Sequence[validation.Comparison], constants: Constants
) -> Outcome:
    """Tables of a simulation."""
    setting = found["setting"]
    tables = []
    if checks:
        head = ["calls/s on one server", "p50 ms: measured, model", "p99 ms: measured, model"]
        lines = [
            [
                f"{each.calls_per_second:,.0f}",
                *(
                    f"{each.measured[name]:.2f}, {each.modelled[name]:.2f}"
                    for name in ("p50", "p99")
                ),
                f"{each.measured['utilization']:.0%}, {each.modelled['utilization']:.0%}",
                f"{each.others:.1f}",
            ]
            for each in checks
        ]
        tables.append(
            Table(
                [*head, "server busy: measured, model", "cores of other programs"],
                lines,
                "The model and a real server",
            )
        )
    times = "p50 / p99 / p99.9 ms"
    head = ["users", "busiest primary, of the mean", "its core is busy", "all calls, " + times]
    lines = [
        [
            DISTRIBUTIONS[name],
            f"{found['spread'][name]:.2f} x",
            f"{each['utilization, busiest']:.0%}",
            _times(each),
            _times(each, "busiest "),
        ]
        for name, each in found["distributions"].items()
    ]
    title = "Users on primaries (the app tier is kept by the services)"
    tables.append(Table([*head, "of the busiest"], lines, title))
    turns = setting["agents"] / setting["turn_seconds"]
    head = [
        "app tier",
        "turns/s",
        "busiest primary",
        "all calls, " + times,
        "reads of the app tier",
    ]
    lines = [
        [
            APP_TIER[name.partition(",")[0]],
            f"{turns * float(name.rpartition(' ')[2]):,.0f}",
            f"{each['utilization, busiest']:.0%}",
            _times(each),
            _times(each, "app tier "),
        ]
        for name, each in found["app tier"].items()
    ]
    tables.append(
        Table(
            head,
            lines,
            "The app tier, in one slot (a fifth of the users has four fifths of the agents)",
        )
    )
    head = ["what", "failover of the busiest", "rolling restart, graceful", "the same, killed"]
    sections = ("failover", "rolling restart, graceful", "rolling restart, killed")
    lines = []
    for name in ("calls that wait", "longest call, s", "until calls are fast again, s"):
        cells = [found[section].get(name) for section in sections]
        form = ",.0f" if name.startswith("calls") else ",.2f"
        lines.append([name, *("" if cell is None else f"{cell:{form}}" for cell in cells)])
    tables.append(Table(head, lines, "Primaries that are away"))
    settings = {
        f"{setting['agents']:,} agents": f"of {setting['users']:,} users",
        f"{setting['primaries']} primaries": f"a turn every {setting['turn_seconds']:g} s each",
        "service times": f"of {constants.server} on {constants.machine}",
    }
    data = {**found, "validation": msgspec.to_builtins(list(checks))}
    return Outcome("simulation", settings, tables, data)


def picture(found: dict[str, Any], loads: Sequence[float], output: Path) -> None:
    """Draw times by load, with and without reads of the app tier."""
    turns = found["setting"]["agents"] / found["setting"]["turn_seconds"]
    columns = [f"{turns * load:,.0f}" for load in loads]

    def line(name: str, of: str) -> list[float | None]:
        return [1000 * found["app tier"][f"{name}, load {load:g}"][of] for load in loads]

    panels = [
        Lines(
            title,
            "turns a second",
            columns,
            {
                "sessionstore, app tier kept for a second": line("cached", of),
                "app tier read in every turn": line("read", of),
            },
        )
        for title, of in (("99 of 100 calls", "p99"), ("99.9 of 100 calls", "p99.9"))
    ]
    question = "How long do calls take with a million agents on 30 primaries? (simulated)"
    result = Result(
        "simulation", question, {}, {}, panels=list(panels), reading_hint="Less is better."
    )
    draw(result, output)


def validate(
    loads: list[float],
    seconds: float,
    seed: int,
    patience_s: float,
    rounds: int = 5,
    tries: int = 5,
) -> list[validation.Comparison]:
    """The model against a private server, with constants of this server."""
    import asyncio

    with EmbeddedServer() as embedded:
        server = Server(embedded)
        wait_for_quiet(patience_s)
        constants = asyncio.run(validation.constants_of(server.url, rounds))
        wait_for_quiet(patience_s)
        found = validation.compare(
            embedded.pid,
            embedded.socket_path,
            server.url,
            server.client,
            constants,
            loads,
            seconds,
            seed,
            patience_s=patience_s,
            tries_of_each=tries,
        )
        server.client.close()
    return found


def main() -> int:
    """The command line."""
    parser = options(__doc__)
    add = parser.add_argument
    add("--agents", type=int, default=1_000_000, help="default: 1,000,000")
    add("--primaries", type=int, default=30, help="default: 30")
    add("--users", type=int, default=250_000, help="default: 250,000")
    add("--turn-seconds", type=float, default=30, help="from turn to turn; default: 30")
    add("--seconds", type=float, default=4, help="simulated time; default: 4")
    add(
        "--processes",
        type=int,
        default=500,
        help="processes with a copy of the app tier; default: 500",
    )
    add("--max-age", type=float, default=1.0, help="age limit of such a copy; default: 1 s")
    add("--constants", type=Path, default=SHIPPED, metavar="FILE", help="service times")
    add("--seed", type=int, default=1)
    add("--patience", type=float, default=30, help="seconds to wait until others are quiet")
    add("--skip-validation", action="store_true", help="do not compare with a real server")
    arguments = parse(parser, LEAST)
    constants = load_constants(arguments.constants)
    loads = [0.25, 0.5, 1.0, 2.0, 3.0]
    checks = []
    if not arguments.skip_validation:
        checks = validate([500, 2000, 4000], 2.0, arguments.seed, arguments.patience)
    found = simulate(_setting(arguments), constants, loads)
    finish(outcome_of(found, checks, constants), arguments)
    if arguments.publish:
        picture(found, loads, MEASURED)
    return 0


def _setting(arguments: argparse.Namespace) -> Setting:
    return Setting(
        agents=arguments.agents,
        primaries=arguments.primaries,
        users=arguments.users,
        turn_seconds=arguments.turn_seconds,
        seconds=arguments.seconds,
        processes=arguments.processes,
        max_age_s=arguments.max_age,
        seed=arguments.seed,
    )


if __name__ == "__main__":
    sys.exit(main())
