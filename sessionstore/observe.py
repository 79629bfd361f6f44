"""Puts wrappers around what a service sends or runs: telemetry, recording, fault injection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, overload

import sessionstore.sync

from .calls import AsyncExecutor, SyncExecutor
from .service import SessionService

AsyncRun = Callable[..., Awaitable[Any]]
"""Runs a flow, and shows its steps to an Observer if it is given one."""

SyncRun = Callable[..., Any]


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


@overload
def wrap_runs(
    service: SessionService, wrap: Callable[[AsyncRun], AsyncRun]
) -> Callable[[], None]: ...
@overload
def wrap_runs(
    service: sessionstore.sync.SessionService, wrap: Callable[[SyncRun], SyncRun]
) -> Callable[[], None]: ...
def wrap_runs(
    service: SessionService | sessionstore.sync.SessionService, wrap: Callable[[Any], Any]
) -> Callable[[], None]:
    """Run the operations of a service through a wrapper from now on.

    A wrapper of the executor sees Calls and raw replies. This one sees operations as the caller
    does: with their results and errors. What watchers read in the background is not included.

    Args:
        service: a service for asyncio or for threads.
        wrap: takes the function that runs a flow, and returns the one that replaces it.

    Returns:
        A function that removes the wrapper. Wrappers are removed in reverse order.
    """
    attributes = vars(service)
    before = attributes.get("_run")
    attributes["_run"] = wrap(service._run)

    def unwrap() -> None:
        if before is None:
            del attributes["_run"]
        else:
            attributes["_run"] = before

    return unwrap
