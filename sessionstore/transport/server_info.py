"""What a server says about itself: version, processor time and memory, from INFO."""

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
"""The oldest Redis that the scripts run on. A Valkey says which Redis it is compatible with."""

_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """One reading of a server.

    Attributes:
        name: what runs, e.g. "Redis 7.0.15" or "Valkey 8.1.8".
        redis_version: the version of Redis that it is or is compatible with, e.g. (7, 2, 4).
            Empty when it does not say.
        cpu_us: processor time that it has used since it started, user and system, of all its
            threads, in microseconds. None when it does not say.
        used_memory_bytes: memory that it has allocated. None when it does not say.
    """

    name: str
    redis_version: tuple[int, ...]
    cpu_us: int | None
    used_memory_bytes: int | None

    @property
    def is_too_old(self) -> bool:
        """True when the server says that it is older than OLDEST_VERSION."""
        return bool(self.redis_version) and self.redis_version < OLDEST_VERSION


class ServerInfo:
    """Reads INFO over a connection of its own, so that no other call waits for it.

    Args:
        url: a redis://, rediss:// or unix:// URL.

    Raises:
        InvalidArgument: the URL is not one. The message does not repeat it: it may hold a
            password.
    """

    def __init__(self, url: str) -> None:
        try:
            self._redis = Redis.from_url(
                url,
                decode_responses=True,
                # RESP2 needs no HELLO, which the too old servers that are to be told apart lack.
                protocol=2,
                retry=Retry(NoBackoff(), 0),
                single_connection_client=True,
                socket_timeout=_TIMEOUT_SECONDS,
                socket_connect_timeout=_TIMEOUT_SECONDS,
            )
        except (TypeError, ValueError) as error:
            raise InvalidArgument(
                "url is not a redis://, rediss:// or unix:// URL that can be used"
            ) from error

    async def read(self) -> ServerFigures:
        """The server as it is now.

        Raises:
            BackendUnavailable: no connection: refused, not resolved, wrong or missing password.
            BackendTimeout: no answer within 5 seconds.
            BackendRejected: the server does not let this user run INFO.

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
        """Closes the connection. Reading again opens a new one."""
        await self._redis.aclose()


def figures_from_info(info: Mapping[str, Any]) -> ServerFigures:
    """The figures in a parsed reply of INFO; a server may leave any of them out."""
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
