"""Services of both kinds, and the builders of their Calls."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

import pytest

import sessionstore
import sessionstore.sync
from sessionstore import RedisSessionService
from sessionstore.ops import Ops
from sessionstore.options import Options, check_options

WITH_TTL: dict[str, Any] = {
    "session_ttl": 600,
    "user_state_ttl": 600,
    "app_state_ttl": 600,
    "stream_ttl": 60,
}
"""A TTL in every tier. The check for leaked keys then finds a key without a deadline."""

RING = sessionstore.KeyRing({"new": bytes(range(64)), "old": bytes(32)})
"""The key ring of the backends that encrypt."""

MODES = ["async", "sync"]
both_modes = pytest.mark.parametrize("mode", MODES)

ServiceFactory = Callable[..., Any]
"""What the fixture `make_service` gives."""


class Awaited:
    """A sync service with the methods of an async one. Each call runs in a thread."""

    def __init__(self, service: sessionstore.sync.SessionService) -> None:
        self.service = service

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.service, "close" if name == "aclose" else name)
        if not inspect.ismethod(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(method, *args, **kwargs)

        return call


def make_service(mode: str, url: str | None, **options: Any) -> Any:
    """A service on a server, with a TTL in every tier.

    Args:
        mode: "async", or "sync" for a sync service whose methods can be awaited.
        url: the server.
        **options: options of the service.
    """
    options = {**WITH_TTL, **options}
    if mode == "async":
        return RedisSessionService(url, **options)
    return Awaited(sessionstore.sync.RedisSessionService(url, **options))


def make_options(**changes: Any) -> Options:
    """The default options of a service, with changes."""
    arguments: dict[str, Any] = {
        "session_event_limit": 1000,
        "session_ttl": None,
        "app_state_ttl": None,
        "user_state_ttl": None,
        "stream_ttl": 60,
        "refresh_ttl_on_read": True,
        "key_prefix": "",
        "codec": "json",
        "compression": None,
        "partition_by": "user",
        "event_size_limit": 1 << 20,
        "value_size_limit": 1 << 20,
        "summary_size_limit": 16 << 10,
    }
    return check_options(**{**arguments, **changes})


def make_ops(
    *,
    app_in_own_slot: bool = False,
    clock: Callable[[], float] = time.monotonic,
    **changes: Any,
) -> Ops:
    """The builders of Calls for default options, with changes."""
    return Ops(make_options(**changes), app_in_own_slot=app_in_own_slot, clock=clock)
