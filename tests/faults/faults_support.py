"""Shared by the fault tests: events of one size, counts on a server, a check of the event loop."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from support.events import LONG_AGO
from support.servers import Server

from sessionstore import Event, SessionKey

KEY = SessionKey("a", "u", "s")


async def warm(service: Any) -> None:
    """Open its connections: small calls and bulk reads have a connection each."""
    await service.get_user_state("a", "nobody")
    await service.get_session(app_name="a", user_id="nobody", session_id="s")


def make_event(number: int) -> Event:
    """An event. All numbers below 10,000 give events of the same size."""
    return Event("x", id=f"{number:04}", timestamp=LONG_AGO)


def stored_count(server: Server, key: SessionKey) -> int:
    count = server.raw.zcard(f"events:{{{key.app_name}:{key.user_id}}}:{key.session_id}")
    assert isinstance(count, int)
    return count


def client_count(server: Server) -> int:
    """The number of the server's connections, including the test's own."""
    return len(server.raw.client_list())


@asynccontextmanager
async def no_unhandled_errors() -> AsyncIterator[None]:
    """Fails if the event loop reports an error, such as an exception that was never retrieved."""
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
