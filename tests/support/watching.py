"""Watching a session, the same for services of both kinds."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any

from sessionstore import Session, SessionKey, WatchChange, WatchEnd, WatchEntry
from sessionstore.calls import Flow
from sessionstore.flows.watching import Place, read_news
from sessionstore.model import Watched
from sessionstore.ops import Ops
from sessionstore.ops.stream import Fragment
from support.waiting import poll_until


async def watch(
    service: Any, session: Session | SessionKey, **options: Any
) -> AsyncGenerator[Watched, None]:
    """The iterator of a service. That of a service for threads runs in threads.

    A thread cannot be cancelled, so there it ends with its `idle_timeout`.
    """
    found = service.watch_events(session, **options)
    if inspect.isawaitable(found):
        found = await found
    if hasattr(found, "__anext__"):
        async with aclosing(found):
            async for item in found:
                yield item
        return
    step: asyncio.Future[Any] | None = None
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, found, None))
            item = await asyncio.shield(step)
            if item is None:
                return
            yield item
    finally:
        if step is not None:
            await asyncio.wait([step])
        found.close()


def fragments(ops: Ops, key: SessionKey, after: int = 0) -> Flow[list[Fragment]]:
    """The fragments after a sequence that a watcher gets who comes now."""
    place = Place(0, 0, -1, after)
    found: list[Fragment] = []
    while True:
        news = yield from read_news(ops, key, place)
        found += [
            Fragment(at.sequence, item.position, item.event)
            for at, item in news.items
            if isinstance(item, WatchEntry) and item.event.partial
        ]
        if news.is_complete:
            return found
        place = news.place


async def watch_first(
    service: Any, session: Session | SessionKey, count: int, **options: Any
) -> list[Watched]:
    """The first items that a watcher gets."""
    items: list[Watched] = []
    async with aclosing(watch(service, session, **options)) as watched:
        async for item in watched:
            items.append(item)
            if len(items) == count:
                break
    return items


async def watch_all(
    service: Any, session: Session | SessionKey, idle_timeout: float = 0.05, **options: Any
) -> list[Watched]:
    """All items until the watcher ends."""
    return await watch_first(service, session, -1, idle_timeout=idle_timeout, **options)


@asynccontextmanager
async def running(coroutine: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs a coroutine during the block. Raises what it raised."""
    task = asyncio.create_task(coroutine)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


async def until(items: list[Watched], expected: list[Any]) -> None:
    """Wait until a watcher got as many items as expected, and compare them."""
    await poll_until(lambda: len(items) >= len(expected), f"{expected}, not {brief(items)}")
    assert brief(items) == expected


def brief(items: list[Watched]) -> list[Any]:
    """Contents of events, ("changed", contents) of changes, and reasons of ends."""
    found: list[Any] = []
    for item in items:
        if isinstance(item, WatchEntry):
            found.append(item.event.content)
        elif isinstance(item, WatchChange):
            found.append(("changed", [event.content for event in item.events]))
        else:
            assert isinstance(item, WatchEnd)
            found.append(item.reason)
    return found


class View:
    """What somebody shows who watches a session, and reconnects now and then.

    Attributes:
        cursor: of the last item; None = nothing was shown.
        events: contents by position.
        end: the reason of the WatchEnd, if there was one.
    """

    def __init__(self) -> None:
        self.cursor: str | None = None
        self.events: dict[int, Any] = {}
        self.end: str | None = None
        self._ids: set[str] = set()
        self._last = -1

    def show(self, item: Watched) -> None:
        """Take in one item. Events must come once, and in order."""
        if isinstance(item, WatchEnd):
            self.end = item.reason
            return
        assert self.cursor is None or item.cursor >= self.cursor
        self.cursor = item.cursor
        if isinstance(item, WatchEntry):
            assert item.event.id not in self._ids, "an event came twice"
            assert item.position > self._last, "an event came too late"
            self._ids.add(item.event.id)
            self._last = item.position
            self.events[item.position] = item.event.content
            return
        self._last = max(self._last, item.last)
        for position in [each for each in self.events if item.first <= each <= item.last]:
            del self.events[position]
        for position, event in zip(item.positions, item.events, strict=True):
            assert item.first <= position <= item.last
            self.events[position] = event.content

    def contents(self) -> list[Any]:
        """What is shown, in order."""
        return [self.events[position] for position in sorted(self.events)]
