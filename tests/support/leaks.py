"""Runs a service on many event loops, one after the other, and measures what is left."""

from __future__ import annotations

import asyncio
import gc
import os
import tracemalloc
from collections.abc import Callable, Coroutine
from typing import Any

from sessionstore import SessionKey

from .events import make_event

RUNS = 200
BYTES_PER_RUN = 1000  # it was 14,000, and 138,000 on a cluster

Use = Callable[[], Coroutine[Any, Any, None]]


def run(use: Use) -> None:
    """As most applications do."""
    asyncio.run(use())


def run_without_shutdown(use: Use) -> None:
    """As applications do that make their own loops."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(use())
    finally:
        loop.close()


def open_files() -> int:
    """Files and sockets of this process."""
    return len(os.listdir("/proc/self/fd"))


def check_leaks(service: Any, run_once: Callable[[Use], None]) -> None:
    """200 runs leave no memory and at most the sockets of the last one."""

    async def use() -> None:
        await service.get_or_create_session(app_name="a", user_id="u", session_id="s")
        await service.append_event(SessionKey("a", "u", "s"), make_event(1))

    tracemalloc.start()
    try:
        for _ in range(20):  # until caches are full
            run_once(use)
        gc.collect()
        memory, files = tracemalloc.get_traced_memory()[0], open_files()
        for _ in range(RUNS):
            run_once(use)
        gc.collect()
        per_run = (tracemalloc.get_traced_memory()[0] - memory) / RUNS
        print(f"{per_run:.0f} bytes a run, {open_files() - files} files")
        assert per_run < BYTES_PER_RUN
        assert open_files() <= files
    finally:
        tracemalloc.stop()
