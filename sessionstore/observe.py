"""Puts a wrapper around the executor of a service: metrics, recording, fault injection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sessionstore.sync

from .service import SessionService


def wrap_executor(
    service: SessionService | sessionstore.sync.SessionService, wrap: Callable[[Any], Any]
) -> None:
    """Send the Calls of a service through a wrapper from now on.

    Args:
        service: a service for asyncio or for threads.
        wrap: gets the service's executor and returns the one that takes its place: an
            AsyncExecutor for asyncio, a SyncExecutor for threads.
    """
    service._executor = wrap(service._executor)
