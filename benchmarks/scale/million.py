"""How does one server behave with a million sessions? `python -m benchmarks.scale.million`.

It fills a server with sessions of 20 events through the library, from two processes. At 1, 10 and
100 % of the fill it measures calls one at a time, on random sessions. Then it reports memory by
part, lists with expired sessions, the time of a snapshot and of a restart from it and from an
append-only file, the time of a takeover by a replica, and what happens if all sessions expire
within one minute.

A million sessions need about 12 GB of memory, and 20 GB of disk in the directory for temporary
files. A replica needs as much memory again, so it is measured at the largest fill that fits twice.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from ..rigs.nodes import CONFIG, HOST, Node, bundled_server, free_ports
from .filling import SESSIONS_PER_USER, connect, fill_with_processes
from .phases import (
    client_of,
    expire_all,
    fail_over,
    latency,
    lists_with_expired,
    memory,
    restart,
    rewrite_aof,
    save,
    wait_for,
)
from .published import Outcome, Table, finish, load, options, parse

FILLS = (0.01, 0.1, 1.0)

LEAST = {
    "sessions": 400,  # 1 % of them are one user's
    "events": 1,
    "event_bytes": 1,
    "processes": 1,
    "calls": 1,
    "expiry_seconds": 0.1,
}
"""The lowest value of each option."""

_CONFIG = {**CONFIG, "repl-backlog-size": "64mb", "repl-timeout": "600"}
_HEADROOM = 2.4  # memory that a replica, its snapshot and its buffers need, in data sets


class Settings(msgspec.Struct, frozen=True):
    """The settings of one run."""

    sessions: int
    events: int
    event_bytes: int  # on average, before compression
    compression: bool
    processes: int = 2
    calls: int = 2000  # timed calls of each kind
    expiry_seconds: float = 60.0


class Run:
    """One fill of one server, and what is measured on it."""

    def __init__(self, settings: Settings, node: Node, note: Any) -> None:
        self.settings = settings
        self.node = node
        self.client = client_of(node)
        self.url = f"redis://{HOST}:{node.port}"
        self._note = note
        self.found: dict[str, Any] = {"settings": msgspec.to_builtins(settings)}

    def note(self, what: str) -> None:
        """Report the next phase, and all figures so far."""
        self._note(what, self.found)

    def run(self, spare: Node) -> dict[str, Any]:
        """All phases. `spare` becomes the replica; one of both is killed."""
        self.found["server"] = self._version()
        self.found["fills"] = []
        failed_over: dict[str, Any] = {}
        for share in FILLS:
            self._fill(share)
            if (
                share < FILLS[-1]
                and not self._fits_twice(FILLS[-1] / share)
                and self._is_best(share)
            ):
                failed_over = self._fail_over(spare, share)
        sessions = self.settings.sessions
        self.note("memory")
        self.found["memory"] = memory(self.client, sessions, self.settings.events)
        self.note("lists with expired sessions")
        self.found["expired in the index"] = self._lists_with_expired()
        if not failed_over and self._fits_twice():
            failed_over = self._fail_over(spare, FILLS[-1])
        self.found["failover"] = failed_over
        self._restart()
        self.note("expiry")
        self.found["expiry"] = self._expire()
        return self.found

    def _version(self) -> str:
        info = self.client.info("server")
        name, version = "Redis", info["redis_version"]
        if "valkey_version" in info:
            name, version = "Valkey", info["valkey_version"]
        return f"{name} {version} ({self.client.info('memory')['mem_allocator']})"

    def _fill(self, share: float) -> None:
        settings, done = self.settings, sum(each["added"] for each in self.found["fills"])
        goal = int(settings.sessions * share) // SESSIONS_PER_USER * SESSIONS_PER_USER
        self.note(f"fill to {goal:,} sessions")
        seconds = fill_with_processes(
            self.url,
            done,
            goal - done,
            settings.events,
            settings.event_bytes,
            settings.compression,
            settings.processes,
        )
        self.note(f"latency at {share:.0%}")
        found = asyncio.run(self._latency(goal))
        used = self.client.info("memory")["used_memory"]
        self.found["fills"].append(
            {
                "share": share,
                "sessions": goal,
                "added": goal - done,
                "seconds": round(seconds, 1),
                "sessions a second": round((goal - done) / seconds),
                "used memory, bytes": used,
                "calls": found,
            }
        )

    async def _latency(self, sessions: int) -> dict[str, Any]:
        settings = self.settings
        async with connect(self.url, settings.compression) as service:
            # Connect, load the scripts.
            await latency(service, self.client, sessions, 20, settings.event_bytes)
            return await latency(
                service, self.client, sessions, settings.calls, settings.event_bytes
            )

    def _fits_twice(self, growth: float = 1.0) -> bool:
        used = self.client.info("memory")["used_memory"] * growth
        already = self.client.info("memory")["used_memory_rss"]
        return available_bytes() + float(already) > float(used) * _HEADROOM

    def _is_best(self, share: float) -> bool:
        """Whether this is the largest fill that fits twice."""
        larger = [each for each in FILLS if each > share]
        return not any(self._fits_twice(each / share) for each in larger)

    def _fail_over(self, spare: Node, share: float) -> dict[str, Any]:
        """A replica of this fill takes over; then the old primary is filled further."""
        self.note(f"failover at {share:.0%}")
        settings = self.settings
        sessions = self.found["fills"][-1]["sessions"]
        save(self.client)  # the primary is killed and starts again from this
        data = self.client.info("memory")["used_memory"]
        found = asyncio.run(
            fail_over(self.node, spare, settings.compression, sessions, settings.event_bytes)
        )
        client_of(spare).shutdown(nosave=True)
        seconds = restart_killed(self.node, self.client)
        return {
            "share": share,
            "data set, bytes": data,
            **found,
            "restart of the old primary, s": round(seconds, 1),
        }

    def _lists_with_expired(self) -> dict[str, Any]:
        users = min(500, self.settings.sessions // SESSIONS_PER_USER // 4)

        async def run() -> dict[str, Any]:
            async with connect(
                self.url, self.settings.compression, refresh_ttl_on_read=False
            ) as service:
                return await lists_with_expired(service, self.client, self.settings.sessions, users)

        return asyncio.run(run())

    def _restart(self) -> None:
        found = self.found["restart"] = {"keys": self.client.dbsize()}
        self.note("snapshot and restart")
        found["writing a snapshot, s"] = round(save(self.client), 1)
        path = self.node.directory / "dump.rdb"
        found["size of the snapshot, bytes"] = path.stat().st_size
        found["restart from a snapshot, s"] = round(restart(self.node, self.client), 1)
        path.unlink()
        self.note("append-only file and restart")
        found["rewriting the append-only file, s"] = round(rewrite_aof(self.client), 1)
        directory = self.node.directory / "appendonlydir"
        found["size of the append-only file, bytes"] = sum(
            each.stat().st_size for each in directory.iterdir()
        )
        self.client.config_rewrite()  # so that the restarted server reads it
        found["restart from an append-only file, s"] = round(restart(self.node, self.client), 1)
        self.client.config_set("appendonly", "no")

    def _expire(self) -> dict[str, Any]:
        settings = self.settings

        async def run() -> dict[str, Any]:
            async with connect(self.url, settings.compression) as service:
                return await expire_all(
                    service,
                    self.client,
                    settings.sessions,
                    settings.expiry_seconds,
                    settings.event_bytes,
                )

        return asyncio.run(run())


def restart_killed(node: Node, client: Any) -> float:
    """Start a killed server again. Returns the seconds until it answers."""
    node.restart()
    return wait_for(client.ping)


def available_bytes() -> int:
    """Memory that programs can still get. 0 = unknown."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return 0
    found = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return found["MemAvailable"] * 1024


def run(
    settings: Settings, partial: Path | None = None, program: str | None = None
) -> dict[str, Any]:
    """Fill a new server and measure. What is found is also written to `partial` as it comes."""
    if program is None:
        server = bundled_server()
        assert server is not None
        program = server.path
    program = shutil.which(program) or program
    ports = free_ports(4)
    start = time.perf_counter()

    def note(what: str, found: dict[str, Any]) -> None:
        if partial is not None:
            partial.write_bytes(msgspec.json.encode(found))
        print(f"{time.perf_counter() - start:6.0f} s  {what}", file=sys.stderr, flush=True)

    node = Node("primary", (ports[0], ports[1]), program, _CONFIG)
    try:
        node.wait_for_answer()
        spare = Node("replica", (ports[2], ports[3]), program, _CONFIG)
        try:
            spare.wait_for_answer()
            return Run(settings, node, note).run(spare)
        finally:
            spare.close()
    finally:
        node.close()


# -- tables --------------------------------------------------------------------------------------


def outcome_of(runs: dict[str, Any]) -> Outcome:
    """Tables of one or two runs: "plain", "zstd" or both."""
    kinds = [kind for kind in ("plain", "zstd") if kind in runs]
    first = runs[kinds[0]]
    counts = {kind: runs[kind]["settings"]["sessions"] for kind in kinds}
    names = {
        kind: kind if counts[kind] == counts[kinds[0]] else f"{kind}, {counts[kind]:,} sessions"
        for kind in kinds
    }
    tables = []
    for kind in kinds:
        fills = runs[kind]["fills"]
        head = [f"{names[kind]}: p50 / p99 / p99.9 ms, server CPU µs"]
        head += [f"{each['sessions']:,} sessions" for each in fills]
        calls = [
            [name, *(_call(each["calls"][name]) for each in fills)] for name in fills[0]["calls"]
        ]
        tables.append(Table(head, calls, "Calls, one at a time, on random sessions"))
    parts = list(first["memory"])
    lines = [[part, *(f"{runs[kind]['memory'][part]:,.0f}" for kind in kinds)] for part in parts]
    head = ["bytes per session", *(names[kind] for kind in kinds)]
    tables.append(Table(head, lines, "Memory"))
    head = ["what", *(names[kind] for kind in kinds)]
    sections = ("fill", "restart", "failover", "expired in the index", "expiry")
    for section in sections:
        facts = [_facts(runs[kind], section) for kind in kinds]
        lines = [[name, *(each.get(name, "") for each in facts)] for name in facts[0]]
        if lines:
            tables.append(Table(head, lines, section.capitalize()))
    used = first["settings"]
    settings = {
        first["server"]: f"with {used['sessions']:,} sessions of {used['events']} events of "
        f"{used['event_bytes']} bytes on average ({os.cpu_count()} cores)"
    }
    return Outcome("million", settings, tables, dict(runs))


def _call(found: dict[str, float]) -> str:
    times = " / ".join(f"{found[name]:.2f}" for name in ("p50", "p99", "p99.9"))
    return f"{times}, {found['server_cpu_us']:.0f}"


def _facts(found: dict[str, Any], section: str) -> dict[str, str]:
    if section == "fill":
        last = found["fills"][-1]
        return {
            "sessions created a second": f"{last['sessions a second']:,}",
            "used memory": _shown("bytes", last["used memory, bytes"]),
        }
    facts = {}
    for name, value in found[section].items():
        if isinstance(value, dict):
            value = " / ".join(f"{value[each]:.2f}" for each in ("p50", "p99", "p99.9", "max"))
            name = f"{name}: p50 / p99 / p99.9 / max, ms"
        else:
            value = _shown(name, value)
        facts[name.removesuffix(", bytes").removesuffix(", s")] = value
    return facts


def _shown(name: str, value: float) -> str:
    if name.endswith("bytes"):
        return f"{value / 2**30:.2f} GiB"
    if name == "share":
        return f"{value:.0%}"
    if name.endswith(", s"):
        return f"{value:,} s"
    return f"{value:,}"


def main() -> int:
    """The command line."""
    parser = options(__doc__)
    add = parser.add_argument
    add("--sessions", type=int, default=1_000_000, help="default: 1,000,000")
    add("--events", type=int, default=20, help="events of each session; default: 20")
    add("--event-bytes", type=int, default=400, help="mean size of an event; default: 400")
    add("--processes", type=int, default=2, help="processes that fill the server; default: 2")
    add("--calls", type=int, default=2000, help="timed calls of each kind; default: 2000")
    add("--expiry-seconds", type=float, default=60.0, help="all sessions expire within this time")
    add("--compression", action="store_true", help="with compression")
    add("--server", metavar="PATH", help="use this redis-server or valkey-server")
    arguments = parse(parser, LEAST)
    found = run(_settings(arguments), arguments.output, arguments.server)
    runs: dict[str, Any] = {"zstd" if arguments.compression else "plain": found}
    if arguments.publish:  # the other published run stays
        runs = {**load("million").data, **runs}
    finish(outcome_of(runs), arguments)
    return 0


def _settings(arguments: argparse.Namespace) -> Settings:
    return Settings(
        sessions=arguments.sessions,
        events=arguments.events,
        event_bytes=arguments.event_bytes,
        compression=arguments.compression,
        processes=arguments.processes,
        calls=arguments.calls,
        expiry_seconds=arguments.expiry_seconds,
    )


if __name__ == "__main__":
    sys.exit(main())
