"""Shared by the contract tests: names, events, waiting for a condition."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sessionstore import Event, Session, SessionKey

T = TypeVar("T")

APP, USER = "app", "user"
OWNER: dict[str, Any] = {"app_name": APP, "user_id": USER}
IDS: dict[str, Any] = {**OWNER, "session_id": "sid"}
KEY = SessionKey(APP, USER, "sid")

NOON = datetime(2024, 5, 15, 12, 0, 0, 123456, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

_WAIT_LIMIT_S = 20.0


def numbered(*numbers: int, **fields: Any) -> list[Event]:
    """Events whose content is a number."""
    return [Event("user", number, **fields) for number in numbers]


def numbers_of(found: Session | Iterable[Event]) -> list[Any]:
    """The contents of events."""
    return [event.content for event in (found.events if isinstance(found, Session) else found)]


async def read(service: Any, key: SessionKey = KEY, **filters: Any) -> Session:
    """A session that must be there."""
    found = await service.get_session(
        app_name=key.app_name, user_id=key.user_id, session_id=key.session_id, **filters
    )
    assert isinstance(found, Session)
    return found


async def create(service: Any, key: SessionKey = KEY, **options: Any) -> Session:
    session = await service.create_session(
        app_name=key.app_name, user_id=key.user_id, session_id=key.session_id, **options
    )
    assert isinstance(session, Session)
    return session


async def append_many(service: Any, session: Session | SessionKey, events: list[Event]) -> None:
    """Append any number of events, in batches that one call takes."""
    for start in range(0, len(events), 500):
        await service.append_events(session, events[start : start + 500])


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait until a condition holds; fail when it does not in good time."""
    deadline = time.monotonic() + _WAIT_LIMIT_S
    while not await condition():
        assert time.monotonic() < deadline, f"not within {_WAIT_LIMIT_S} s: {what}"
        await asyncio.sleep(0.005)


async def until_listed(service: Any, ids: list[str]) -> None:
    """Wait until a user's list holds these sessions only. Listing keeps none from expiring."""

    async def is_so() -> bool:
        return [session.id for session in await service.list_sessions(**OWNER)] == ids

    await until(is_so, f"the list is {ids}")


async def run_all(attempts: Iterable[Awaitable[T]]) -> list[T | BaseException]:
    """Everything at once; results and exceptions in order."""
    return await asyncio.gather(*attempts, return_exceptions=True)


def results_of(outcomes: Iterable[T | BaseException]) -> list[T]:
    """The results, where nothing may have failed."""
    found = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        found.append(outcome)
    return found
