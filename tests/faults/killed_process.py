"""Runs operations in processes that kill themselves at one of their writes.

A line on stdin is: the server, the operation, the number of the write, and "before" it is sent, or
"sent". The answer is "killed", or "done" if the operation has fewer writes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from sessionstore import (
    Compactor,
    Event,
    RedisSessionService,
    SessionKey,
    SessionService,
    Summary,
    Window,
)
from sessionstore.calls import AsyncExecutor, Call
from sessionstore.observe import wrap_executor

KEY = SessionKey("app", "user", "sid")
OWNER: dict[str, Any] = {"app_name": "app", "user_id": "user"}
LONG_AGO = datetime(2001, 2, 3, tzinfo=UTC)
POSITIONS = [10, 20, 30, 40, 50, 60]
LEASE_S = 0.3
LONG = [Event("user", number, id=f"{number}", timestamp=LONG_AGO) for number in range(501)]


async def summarize(previous: Summary | None, events: list[Event]) -> str:
    """A summary that is the same every time."""
    assert previous is None
    return ", ".join(event.id for event in events)


def compactor(service: SessionService) -> Compactor:
    """It covers the first two of the three turns."""
    return Compactor(
        service, summarize, trigger=Window(max_turns=2), keep=Window(max_turns=1), lease=LEASE_S
    )


OPERATIONS: dict[str, Callable[[SessionService], Awaitable[Any]]] = {
    "compactor": lambda service: compactor(service).compact(KEY),
    "compact_session": lambda service: service.compact_session(
        KEY, upto=40, summary="s", drop=True
    ),
    "rewind_session": lambda service: service.rewind_session(KEY, to=40, state={"k": 9}),
    "fork_session": lambda service: service.fork_session(KEY, session_id="new", upto=40),
    "restore_session": lambda service: service.restore_session(
        **OWNER, session_id="new", events=LONG, positions=range(1, 502)
    ),
    "delete_user": lambda service: service.delete_user(**OWNER),
}


class Killing:
    """An executor that kills its process at a write."""

    def __init__(self, inner: AsyncExecutor, number: int, when: str) -> None:
        self._inner, self._number, self._when = inner, number, when

    async def execute(self, call: Call[Any]) -> list[Any]:
        self._number -= call.writes
        if self._number != 0 or not call.writes:
            return await self._inner.execute(call)
        if self._when == "sent":
            attempt = asyncio.create_task(self._inner.execute(call))
            await asyncio.wait([attempt], timeout=0)  # without waiting for the reply
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    async def aclose(self) -> None:
        await self._inner.aclose()


async def run(url: str, name: str, number: int, when: str) -> None:
    service = RedisSessionService(url, session_ttl=600, user_state_ttl=600)
    await service.ping()  # connect
    wrap_executor(service, lambda inner: Killing(inner, number, when))
    await OPERATIONS[name](service)


def main() -> None:
    for line in sys.stdin:
        url, name, number, when = line.split()
        child = os.fork()
        if child == 0:
            asyncio.run(run(url, name, int(number), when))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        is_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print("killed" if is_killed else "done" if status == 0 else "failed", flush=True)


if __name__ == "__main__":
    main()
