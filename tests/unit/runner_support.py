"""Shared by the tests of the Runner: a store that can be stopped and broken, agents, reading."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from support.services import make_ops
from support.waiting import DEADLINE_S as DEADLINE_S
from support.waiting import poll_until

from sessionstore import (
    Event,
    Run,
    RunContext,
    Session,
    SessionKey,
    SessionService,
)
from sessionstore.calls import Call
from sessionstore.twin import AsyncMemoryExecutor, MemoryExecutor

APP, USER = "app", "user"
KEY = SessionKey(APP, USER, "sid")
IDS: dict[str, Any] = {"app_name": APP, "user_id": USER, "session_id": "sid"}

until = poll_until

Hook = Callable[[int, Call[Any], str], Awaitable[None]]


class Store:
    """An executor in memory; calls `hook` with the number of each Call, before and after it."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._inner = AsyncMemoryExecutor(MemoryExecutor(clock=clock))
        self.names: list[str] = []
        self.hook: Hook | None = None

    async def execute(self, call: Call[Any]) -> list[Any]:
        self.names.append(call.name)
        number = len(self.names)
        if self.hook is not None:
            await self.hook(number, call, "before")
        replies = await self._inner.execute(call)
        if self.hook is not None:
            await self.hook(number, call, "after")
        return replies

    async def aclose(self) -> None:
        await self._inner.aclose()


def make_service(clock: Callable[[], float] | None = None) -> tuple[SessionService, Store]:
    store = Store(clock)
    return SessionService(make_ops(), store), store


class Gate:
    """A hook at which one Call stops until it is opened. Calls made later pass."""

    def __init__(self, when: str, number: int = 0, name: str = "") -> None:
        self._at = (when, number, name)
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, number: int, call: Call[Any], when: str) -> None:
        if not self.reached.is_set() and (
            self._at in ((when, number, ""), (when, 0, call.name), (when, number, call.name))
        ):
            self.reached.set()
            await self.opened.wait()


def failing(name: str, error: Exception, when: str = "before", *, times: int = 1_000_000) -> Hook:
    """A hook that makes Calls of one name fail."""
    left = itertools.repeat(None, times)

    async def hook(_: int, call: Call[Any], now: str) -> None:
        if (call.name, now) == (name, when) and next(left, ...) is None:
            raise error

    return hook


async def read(service: SessionService, session_id: str = "sid") -> Session:
    found = await service.get_session(app_name=APP, user_id=USER, session_id=session_id)
    assert found is not None
    return found


async def said(service: SessionService) -> list[tuple[str, Any]]:
    """Authors and contents of what is stored."""
    return [(event.author, event.content) for event in (await read(service)).events]


async def all_of(run: Run) -> list[Event]:
    return [event async for event in run]


async def echo(context: RunContext) -> AsyncIterator[Event]:
    yield Event("assistant", f"You said {context.message}")


class ScriptedAgent:
    """An agent that records how far it came and whether its clean-up ran."""

    def __init__(self, *steps: Event | Exception) -> None:
        self.steps = steps
        self.started = self.finished = 0

    async def run(self, _: RunContext) -> AsyncIterator[Event]:
        self.started += 1
        try:
            for step in self.steps:
                await asyncio.sleep(0)
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            await asyncio.sleep(0)
            self.finished += 1
