"""Puts a wrapper around the executor of a service: metrics, recording, fault injection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import sessionstore.sync

from .calls import AsyncExecutor, SyncExecutor
from .service import SessionService


@overload
def wrap_executor(
    service: SessionService, wrap: Callable[[AsyncExecutor], AsyncExecutor]
) -> None: ...
@overload
def wrap_executor(
    service: sessionstore.sync.SessionService, wrap: Callable[[SyncExecutor], SyncExecutor]
) -> None: ...
def wrap_executor(
    service: SessionService | sessionstore.sync.SessionService, wrap: Callable[[Any], Any]
) -> None:
    """Send the Calls of a service through a wrapper from now on.

    Args:
        service: a service for asyncio or for threads.
        wrap: takes the service's executor and returns the executor that replaces it. The new
            executor usually passes its Calls on to the old one; its `close` closes the old one.
    """
    service._executor = wrap(service._executor)
