"""Compactors for both kinds of services, and summaries that say what they cover."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import sessionstore.sync
from sessionstore import Compactor, Event, Session, SessionKey, Summary

from .services import Awaited

Summarize = Callable[[Summary | None, list[Event]], Awaitable[Any]]


class AwaitedCompactor:
    """A Compactor for threads with an async API. `summarize` runs on the test's event loop."""

    def __init__(self, service: Awaited, summarize: Summarize, **options: Any) -> None:
        loop = asyncio.get_running_loop()

        def plain(previous: Summary | None, events: list[Event]) -> Any:
            async def call() -> Any:
                return await summarize(previous, events)

            return asyncio.run_coroutine_threadsafe(call(), loop).result()

        self._compactor = sessionstore.sync.Compactor(service.service, plain, **options)

    async def compact(self, session: Session | SessionKey) -> Summary | None:
        return await asyncio.to_thread(self._compactor.compact, session)


def make_compactor(service: Any, summarize: Summarize, **options: Any) -> Any:
    """A Compactor for a service of either kind, with an async API."""
    if isinstance(service, Awaited):
        return AwaitedCompactor(service, summarize, **options)
    return Compactor(service, summarize, **options)


class Summarizer:
    """Lists the contents of all events that a summary covers. Records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Summary | None, list[Any]]] = []

    async def __call__(self, previous: Summary | None, events: list[Event]) -> Any:
        contents = [event.content for event in events]
        self.calls.append((previous, contents))
        return {"covers": [*(previous.content["covers"] if previous else []), *contents]}


def make_turns(numbers: Iterable[int], size: int = 2) -> list[Event]:
    """Turns with the events "0.0", "0.1", "1.0" ...: always the same."""
    return [
        Event(
            "agent" if part else "user",
            f"{number}.{part}",
            id=f"e{number}.{part}",
            invocation_id=f"t{number}",
        )
        for number in numbers
        for part in range(size)
    ]
