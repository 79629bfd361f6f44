"""Runners with Compactors on servers: each turn of a session is covered once, or is still there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from support.servers import Server
from support.services import WITH_TTL

import sessionstore.sync
from sessionstore import (
    Compactor,
    Event,
    RedisSessionService,
    RunContext,
    Runner,
    Session,
    Summary,
    Window,
)

NUM_SESSIONS = 3
NUM_TURNS = 30  # of each session
WINDOWS: dict[str, Any] = {"trigger": Window(max_turns=6), "keep": Window(max_turns=2)}


def summarize(previous: Summary | None, events: list[Event]) -> list[Any]:
    return [*(previous.content if previous else []), *(event.content for event in events)]


async def summarize_async(previous: Summary | None, events: list[Event]) -> list[Any]:
    return summarize(previous, events)


def answer(context: RunContext) -> Iterator[Event]:
    yield Event("agent", f"to {context.message}")


async def answer_async(context: RunContext) -> AsyncIterator[Event]:
    yield Event("agent", f"to {context.message}")


def check(session: Session | None) -> None:
    """All turns are there once, and most of them are covered."""
    assert session is not None
    assert session.summary is not None
    covered: list[Any] = session.summary.content
    expected = [part for n in range(NUM_TURNS) for part in (str(n), f"to {n}")]
    found = [*covered, *(event.content for event in session.events)]
    assert sorted(found) == sorted(expected)
    assert len(session.events) <= 12


async def test_tasks(server: Server) -> None:
    services = [RedisSessionService(server.url, **WITH_TTL) for _ in range(2)]
    runners = [
        Runner(
            "app",
            answer_async,
            service,
            history=Window(max_turns=20),
            compactor=Compactor(service, summarize_async, **WINDOWS),
        )
        for service in services
    ]

    async def converse(session_id: str) -> None:
        for number in range(NUM_TURNS):
            async for _ in runners[number % 2].run("user", session_id, str(number)):
                pass

    await asyncio.gather(*(converse(f"s{number}") for number in range(NUM_SESSIONS)))
    for runner in runners:
        await runner.aclose()
    last = Compactor(services[0], summarize_async, **WINDOWS)
    for number in range(NUM_SESSIONS):
        ids: dict[str, Any] = {"app_name": "app", "user_id": "user", "session_id": f"s{number}"}
        found = await services[0].get_session(**ids)
        assert found is not None
        await last.compact(found)  # both Runners may have found the other one at work
        check(await services[0].get_session(**ids))
    for service in services:
        await service.aclose()


def test_threads(server: Server) -> None:
    with ExitStack() as stack:
        services = [
            stack.enter_context(sessionstore.sync.RedisSessionService(server.url, **WITH_TTL))
            for _ in range(2)
        ]
        runners = [
            sessionstore.sync.Runner(
                "app",
                answer,
                service,
                history=Window(max_turns=20),
                compactor=sessionstore.sync.Compactor(service, summarize, **WINDOWS),
            )
            for service in services
        ]

        def converse(session_id: str) -> None:
            for number in range(NUM_TURNS):
                list(runners[number % 2].run("user", session_id, str(number)))

        with ThreadPoolExecutor(NUM_SESSIONS) as pool:
            list(pool.map(converse, [f"s{number}" for number in range(NUM_SESSIONS)]))
        for runner in runners:
            runner.close()
        last = sessionstore.sync.Compactor(services[0], summarize, **WINDOWS)
        for number in range(NUM_SESSIONS):
            ids: dict[str, Any] = {"app_name": "app", "user_id": "user", "session_id": f"s{number}"}
            found = services[0].get_session(**ids)
            assert found is not None
            last.compact(found)
            check(services[0].get_session(**ids))
