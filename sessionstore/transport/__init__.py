"""Executors that send Calls to Redis or Valkey. Only this package imports redis.

`connect_async` and `connect_sync` make one. From the bottom up: wire.py encodes Calls, topology.py
finds the node of a Call, retry.py decides what to do when an attempt fails; all three do no I/O.
aio.py and threads.py do the I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..options import ReadFrom
from .address import Deployment
from .aio import AsyncRedisExecutor
from .durability import Durability
from .threads import RedisExecutor


def connect_async(
    url: str | None,
    instance_name: str | None,
    extra_options: Mapping[str, Any] | None,
    client: Any,
    timeout_s: float,
    wait_replicas: tuple[int, float] | None = None,
    read_from: ReadFrom = "primary",
) -> AsyncRedisExecutor:
    """An executor for asyncio; it connects when it is used. Arguments as in `RedisSessionService`.

    Raises:
        InvalidArgument: the address is not usable, or an option is unknown or not allowed.
    """
    deployment = Deployment(url, instance_name, extra_options, client, read_from, is_async=True)
    durability = None if wait_replicas is None else Durability(*wait_replicas)
    return AsyncRedisExecutor(deployment, timeout_s, durability)


def connect_sync(
    url: str | None,
    instance_name: str | None,
    extra_options: Mapping[str, Any] | None,
    client: Any,
    timeout_s: float,
    wait_replicas: tuple[int, float] | None = None,
    read_from: ReadFrom = "primary",
) -> RedisExecutor:
    """An executor for threads; otherwise as `connect_async`."""
    deployment = Deployment(url, instance_name, extra_options, client, read_from, is_async=False)
    durability = None if wait_replicas is None else Durability(*wait_replicas)
    return RedisExecutor(deployment, timeout_s, durability)
