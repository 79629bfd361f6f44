"""Waiting for a condition, with a deadline. Tests never sleep for a fixed time instead.

`wait_until` blocks the thread; the benchmarks use it too. `poll_until` lets other tasks run.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable

from benchmarks.rigs.nodes import wait_until

__all__ = ["DEADLINE_S", "poll_until", "wait_until"]

DEADLINE_S = 30.0
"""How long a test waits for a condition. Nothing takes so long, even on a busy machine."""

_PAUSE_S = 0.002


async def poll_until(condition: Callable[[], object], what: str) -> None:
    """Return as soon as a condition holds. Other tasks run meanwhile.

    Args:
        condition: a plain or an async function.
        what: what is awaited, for the message of a failure.
    """
    deadline = time.monotonic() + DEADLINE_S
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline, f"still waiting after {DEADLINE_S:g} s for {what}"
        await asyncio.sleep(_PAUSE_S)
