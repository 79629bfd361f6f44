"""Shared by the contract tests: many calls at once, and expiry."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

from support.sessions import OWNER
from support.waiting import poll_until

T = TypeVar("T")

MICROSECOND = timedelta(microseconds=1)


async def until_listed(service: Any, ids: list[str]) -> None:
    """Wait until a user's list holds these sessions only. Listing refreshes no deadline."""

    async def is_so() -> bool:
        return [session.id for session in await service.list_sessions(**OWNER)] == ids

    await poll_until(is_so, f"the list {ids}")


async def run_all(attempts: Iterable[Awaitable[T]]) -> list[T | BaseException]:
    """Results and exceptions of calls that run at once, in the order of the calls."""
    return await asyncio.gather(*attempts, return_exceptions=True)


def results_of(outcomes: Iterable[T | BaseException]) -> list[T]:
    """The results, where no call may have failed."""
    found = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        found.append(outcome)
    return found
