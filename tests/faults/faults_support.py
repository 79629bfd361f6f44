"""What the fault tests share: services of both kinds, waiting, and a loop that hides nothing."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from conftest import WITH_TTL, Awaited, Server

import sessionstore.sync
from sessionstore import Event, RedisSessionService, SessionKey

DEADLINE_S = 20.0  # for whatever a test waits for; far more than anything takes
LONG_AGO = datetime(2001, 2, 3, tzinfo=UTC)
KEY = SessionKey("a", "u", "s")


def make_service(mode: str, url: str, **options: Any) -> Any:
    """A service with a TTL in every tier: "async", or "sync" with awaitable methods."""
    options = {**WITH_TTL, **options}
    if mode == "async":
        return RedisSessionService(url, **options)
    return Awaited(sessionstore.sync.RedisSessionService(url, **options))


async def warm(service: Any) -> None:
    """Make it connect: small calls and bulk reads have a connection each."""
    await service.get_user_state("a", "nobody")
    await service.get_session(app_name="a", user_id="nobody", session_id="s")


def make_event(number: int) -> Event:
    """Events of different numbers below 10,000 are of one size."""
    return Event("x", id=f"{number:04}", timestamp=LONG_AGO)


def ids_of(events: list[Event]) -> list[str]:
    return [event.id for event in events]


def stored_count(server: Server, key: SessionKey) -> int:
    count = server.raw.zcard(f"events:{{{key.app_name}:{key.user_id}}}:{key.session_id}")
    assert isinstance(count, int)
    return count


def client_count(server: Server) -> int:
    """Connections that the server has, the test's own included."""
    return len(server.raw.client_list())


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.002)


async def poll_until(condition: Callable[[], object], what: str) -> None:
    """The same without blocking the event loop."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        await asyncio.sleep(0.002)


@asynccontextmanager
async def nothing_unheard() -> AsyncIterator[None]:
    """Fails on exceptions that nobody retrieved and on whatever else the loop complains about."""
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        yield
        gc.collect()
        await asyncio.sleep(0)
        gc.collect()
    finally:
        loop.set_exception_handler(None)
    assert not complaints
