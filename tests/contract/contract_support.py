"""Shared by the contract tests: many calls at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

MICROSECOND = timedelta(microseconds=1)


async def run_all(attempts: Iterable[Awaitable[T]]) -> list[T | BaseException]:
    """Results and exceptions of calls that run at once, in the order of the calls."""
    return await asyncio.gather(*attempts, return_exceptions=True)


def results_of(outcomes: Iterable[T | BaseException]) -> list[T]:
    """The results of calls that must not have failed."""
    found = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        found.append(outcome)
    return found
