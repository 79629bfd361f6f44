"""Runs one peer: `python -m benchmarks.peers.worker ADAPTER PACKAGE`, in the peer's venv.

Reads one JSON object per line from stdin and answers each with one on stdout:

    {"do": "open", "url": ...}                      -> {"versions": {...}}
    {"do": "make", "name": ..., "sessions": n, "stored": n, "limit": s or null}   -> {}
    {"do": "append", "name": ..., "each": n}        -> {"seconds": s, "cpu_seconds": s}
    {"do": "read", "name": ..., "last": n, "count": n}        -> {"seconds": s, "cpu_seconds": s}
    {"do": "events", "count": n}                    -> {"seconds": s, "cpu_seconds": s}

`make` makes sessions and remembers them by name. `append` appends `each` events one by one, in one
task per session. `read` reads the newest events of the first session. `events` only makes events.
The answer {"error": ...} says why a command failed. The worker ends at the end of its input.

Imports nothing but the standard library and the adapter.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any


class Worker:
    """Runs commands on one adapter.

    Args:
        adapter: the Adapter of an `adapter_*` module.
        package: the package whose version is reported.
    """

    def __init__(self, adapter: Any, package: str) -> None:
        self._adapter = adapter
        self._package = package
        self._sessions: dict[str, list[Any]] = {}
        self._stored: dict[str, int] = {}

    async def open(self, command: dict[str, Any]) -> dict[str, Any]:
        """Connect."""
        await self._adapter.open(command["url"])
        return {"versions": {"Python": platform.python_version()} | self._versions()}

    def _versions(self) -> dict[str, str]:
        found = {}
        for package in (self._package, "redis", "hiredis"):
            try:
                found["redis-py" if package == "redis" else package] = version(package)
            except PackageNotFoundError:
                continue
        return found

    async def make(self, command: dict[str, Any]) -> dict[str, Any]:
        """Make sessions with events."""
        made = [await self._adapter.make() for _ in range(command["sessions"])]
        stored, limit = command["stored"], command["limit"]
        start = time.monotonic()
        for session in made:
            for count in range(stored):
                if limit and time.monotonic() - start > limit:
                    raise TimeoutError(f"{count:,} of {stored:,} events stored in {limit:g} s")
                await self._adapter.append(session)
        self._sessions[command["name"]] = made
        self._stored[command["name"]] = stored
        return {}

    async def append(self, command: dict[str, Any]) -> dict[str, Any]:
        """Append in one task per session, one event after the other."""
        append = self._adapter.append

        async def task(session: Any) -> None:
            for _ in range(command["each"]):
                await append(session)

        sessions = self._sessions[command["name"]]
        clock = Clock()
        if len(sessions) == 1:
            await task(sessions[0])
        else:
            await asyncio.gather(*map(task, sessions))
        return clock.stop()

    async def read(self, command: dict[str, Any]) -> dict[str, Any]:
        """Read many times in one task."""
        session, last = self._sessions[command["name"]][0], command["last"]
        expected = min(last, self._stored[command["name"]])
        clock = Clock()
        for _ in range(command["count"]):
            found = await self._adapter.read(session, last)
            if found < expected:
                raise RuntimeError(f"read {found} events, not {expected}")
        return clock.stop()

    async def events(self, command: dict[str, Any]) -> dict[str, Any]:
        """Only make events."""
        make_event: Callable[[], object] = self._adapter.event
        clock = Clock()
        for _ in range(command["count"]):
            make_event()
        return clock.stop()


class Clock:
    """Wall and CPU time since its creation."""

    def __init__(self) -> None:
        gc.collect()
        self._cpu, self._start = time.process_time(), time.perf_counter()

    def stop(self) -> dict[str, float]:
        """Wall and CPU time, in seconds."""
        seconds = time.perf_counter() - self._start
        return {"seconds": seconds, "cpu_seconds": time.process_time() - self._cpu}


def main() -> None:
    """Answer commands until the input ends."""
    adapter_name, package = sys.argv[1:]
    # Keep the output of a peer apart from the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with asyncio.Runner() as runner:
        worker: Worker | None = None
        for line in sys.stdin:
            command = json.loads(line)
            try:
                if worker is None:
                    module = import_module(f"{__package__}.{adapter_name}")
                    worker = Worker(module.Adapter(), package)
                answer = runner.run(getattr(worker, command["do"])(command))
            except Exception as error:  # any error of a peer is reported as the reason
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
