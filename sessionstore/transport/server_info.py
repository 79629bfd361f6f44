"""Reads version, processor time and memory of a server from INFO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..errors import BackendRejected, BackendTimeout, BackendUnavailable, InvalidArgument

OLDEST_VERSION = (7, 0)
"""The oldest Redis that can run the scripts. Valkey reports the version that it is like."""

_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """One reading of a server.

    Attributes:
        name: the server and its version, e.g. "Redis 7.0.15" or "Valkey 8.1.8".
        redis_version: its Redis version, or the one it is compatible with, e.g. (7, 2, 4).
            Empty if INFO does not contain it.
        cpu_us: processor time used since the start, user and system, of all threads, in
            microseconds. None if INFO does not contain it.
        used_memory_bytes: allocated memory. None if INFO does not contain it.
    """

    name: str
    redis_version: tuple[int, ...]
    cpu_us: int | None
    used_memory_bytes: int | None

    @property
    def is_too_old(self) -> bool:
        """True if the server reports a version older than OLDEST_VERSION."""
        return bool(self.redis_version) and self.redis_version < OLDEST_VERSION


class ServerInfo:
    """Reads INFO over a separate connection, so that no other call waits for it.

    Args:
        url: a redis://, rediss:// or unix:// URL.

    Raises:
        InvalidArgument: the URL is not valid. The message does not repeat it, because it may
            contain a password.
    """

    def __init__(self, url: str) -> None:
        try:
            self._redis = Redis.from_url(
                url,
                decode_responses=True,
                # RESP2 needs no HELLO, which servers older than OLDEST_VERSION may lack.
                protocol=2,
                retry=Retry(NoBackoff(), 0),
                single_connection_client=True,
                socket_timeout=_TIMEOUT_SECONDS,
                socket_connect_timeout=_TIMEOUT_SECONDS,
            )
        except (TypeError, ValueError) as error:
            raise InvalidArgument(
                "url is not a valid redis://, rediss:// or unix:// URL"
            ) from error

    async def read(self) -> ServerFigures:
        """The current figures.

        Raises:
            BackendUnavailable: no connection: refused, unknown host, wrong or missing password.
            BackendTimeout: no answer within 5 seconds.
            BackendRejected: this user may not run INFO.

        One INFO, one round trip.
        """
        try:
            info = await self._redis.info()
        except RedisTimeoutError as error:
            raise BackendTimeout(f"no answer within {_TIMEOUT_SECONDS:g} seconds") from error
        except (RedisConnectionError, OSError) as error:
            raise BackendUnavailable(str(error)) from error
        except RedisError as error:
            raise BackendRejected(str(error)) from error
        return figures_from_info(info)

    async def aclose(self) -> None:
        """Close the connection. Reading again opens a new one."""
        await self._redis.aclose()


def figures_from_info(info: Mapping[str, Any]) -> ServerFigures:
    """The figures in a parsed INFO reply. A server may omit any of them."""
    version = str(info.get("redis_version", ""))
    if "valkey_version" in info:
        name = f"Valkey {info['valkey_version']}"
    else:
        name = f"Redis {version}".strip()
    used_memory = info.get("used_memory")
    return ServerFigures(
        name=name,
        redis_version=tuple(int(part) for part in version.split(".") if part.isdecimal()),
        cpu_us=_cpu_us(info),
        used_memory_bytes=used_memory if isinstance(used_memory, int) else None,
    )


def _cpu_us(info: Mapping[str, Any]) -> int | None:
    user, system = info.get("used_cpu_user"), info.get("used_cpu_sys")
    if not isinstance(user, int | float) or not isinstance(system, int | float):
        return None
    return round((user + system) * 1e6)
