"""Runs the tests of the Runner for asyncio and for threads: the latter gets an async API.

The agent of a test is an async generator. For threads it becomes a generator whose steps run on
the test's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import sessionstore.sync
from sessionstore import BackendUnavailable, Event, RunContext
from sessionstore.calls import AsyncExecutor, Call, SyncExecutor

AsyncAgent = Callable[[RunContext], AsyncIterator[Event]]


def agent_for_threads(agent: AsyncAgent) -> Callable[[RunContext], Iterator[Event]]:
    loop = asyncio.get_running_loop()

    def run(context: RunContext) -> Iterator[Event]:
        events: Any = agent(context)

        async def step() -> Event | None:
            return await anext(events, None)

        try:
            while event := asyncio.run_coroutine_threadsafe(step(), loop).result():
                yield event
        finally:
            asyncio.run_coroutine_threadsafe(events.aclose(), loop).result()

    return run


class AwaitedRun:
    """A run in threads with an async API; each step takes a thread of the pool."""

    def __init__(self, run: sessionstore.sync.Run, pool: ThreadPoolExecutor) -> None:
        self.key = run.key
        self.invocation_id = run.invocation_id
        self._run = run
        self._pool = pool

    def __aiter__(self) -> AwaitedRun:
        return self

    async def __anext__(self) -> Event:
        loop = asyncio.get_running_loop()
        event = await loop.run_in_executor(self._pool, next, self._run, None)
        if event is None:
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._pool, self._run.close)


class AwaitedRunner:
    """A Runner for threads with an async API."""

    def __init__(
        self,
        app_name: str,
        agent: AsyncAgent,
        service: sessionstore.sync.SessionService,
        pool: ThreadPoolExecutor,
        **options: Any,
    ) -> None:
        self._runner = sessionstore.sync.Runner(
            app_name, agent_for_threads(agent), service, **options
        )
        self._pool = pool

    def run(self, *args: Any, **options: Any) -> AwaitedRun:
        return AwaitedRun(self._runner.run(*args, **options), self._pool)


How = Literal["twice", "lost", "refused"] | None
"""A call is sent twice, or its answer is lost, or it is not sent, or all is normal."""

Tamper = Callable[[Call[Any]], How]


class TamperedAsync:
    """Sends calls to another executor, and tampers with some."""

    def __init__(self, inner: AsyncExecutor, tamper: Tamper) -> None:
        self._inner = inner
        self._tamper = tamper

    async def execute(self, call: Call[Any]) -> list[Any]:
        how = self._tamper(call)
        check_sent(how)
        replies = await self._inner.execute(call)
        if how == "twice":
            replies = await self._inner.execute(call)
        return check_answered(how, call, replies)

    async def aclose(self) -> None:
        pass  # another service still uses the executor


class TamperedSync:
    """The same for threads."""

    def __init__(self, inner: SyncExecutor, tamper: Tamper) -> None:
        self._inner = inner
        self._tamper = tamper

    def execute(self, call: Call[Any]) -> list[Any]:
        how = self._tamper(call)
        check_sent(how)
        replies = self._inner.execute(call)
        if how == "twice":
            replies = self._inner.execute(call)
        return check_answered(how, call, replies)

    def close(self) -> None:
        pass


def check_sent(how: How) -> None:
    if how == "refused":
        raise BackendUnavailable("planted")


def check_answered(how: How, call: Call[Any], replies: list[Any]) -> list[Any]:
    if how == "lost":
        raise BackendUnavailable("planted", maybe_applied=call.writes)
    return replies


def twice(name: str) -> Tamper:
    """Every call of one operation is sent twice, as after a lost answer."""
    return lambda call: "twice" if call.name == name else None


def losing(number: int) -> Tamper:
    """The answer to one call is lost."""
    left = iter(range(number - 1, -1_000_000, -1))
    return lambda _: "lost" if next(left) == 0 else None


def without_renewals(call: Call[Any]) -> How:
    """Renewals of a turn do not arrive."""
    return "refused" if call.name == "renew_turn" else None
