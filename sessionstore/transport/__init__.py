"""Executors that talk to a server. The only place that imports redis."""

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
    """An executor for asyncio; nothing is sent yet. Arguments as `RedisSessionService` has them.

    Raises:
        InvalidArgument: the address is unusable, or an option unknown or not allowed.
    """
    deployment = Deployment(url, instance_name, extra_options, client, read_from, is_async=True)
    return AsyncRedisExecutor(deployment, timeout_s, _durability(wait_replicas))


def connect_sync(
    url: str | None,
    instance_name: str | None,
    extra_options: Mapping[str, Any] | None,
    client: Any,
    timeout_s: float,
    wait_replicas: tuple[int, float] | None = None,
    read_from: ReadFrom = "primary",
) -> RedisExecutor:
    """The same for threads."""
    deployment = Deployment(url, instance_name, extra_options, client, read_from, is_async=False)
    return RedisExecutor(deployment, timeout_s, _durability(wait_replicas))


def _durability(wait_replicas: tuple[int, float] | None) -> Durability | None:
    return None if wait_replicas is None else Durability(*wait_replicas)
