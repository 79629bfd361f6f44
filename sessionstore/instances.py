"""Named Redis instances: addresses registered once, used by name."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from .errors import InvalidArgument


class RedisInstance(msgspec.Struct, frozen=True):
    """Where a server is and how to connect to it.

    Attributes:
        url: as `RedisSessionService` takes it.
        extra_options: further options of redis-py's connections, by name.
    """

    url: str
    extra_options: dict[str, Any] = {}

    def __repr__(self) -> str:
        options = ", ".join(self.extra_options) or "none"
        return f"RedisInstance({url_without_credentials(self.url)!r}, options: {options})"


# scheme://, user:password@, addresses and path, options
_url_parts = re.compile(r"([a-z+]+://)(?:[^/?#]*@)?([^@?#]*)(?:[?#][^@]*)?", re.ASCII).fullmatch

_registry: dict[str, RedisInstance] = {}


def register_redis_instance(name: str, url: str, **extra_options: Any) -> None:
    """Give a server a name for `RedisSessionService(instance_name=name)`.

    Args:
        name: not empty; registering a name again replaces its address for services made later.
        url: as `RedisSessionService` takes it, clusters and Sentinels included.
        **extra_options: options of redis-py's connections, such as `username`, `password`,
            `ssl_ca_certs` or `socket_connect_timeout`.

    Raises:
        InvalidArgument: the name or the URL is not a non-empty str.
    """
    for argument, value in (("name", name), ("url", url)):
        if not isinstance(value, str) or not value:
            raise InvalidArgument(f"{argument} must be a non-empty str")
    _registry[name] = RedisInstance(url, extra_options)


def find_instance(
    url: str | None, instance_name: str | None, extra_options: dict[str, Any] | None
) -> RedisInstance:
    """The server that a service's arguments mean; the URL wins over the name.

    Raises:
        InvalidArgument: neither is given, or no instance of that name is registered.
    """
    extra = dict(extra_options or {})
    if url is not None:
        if not isinstance(url, str):
            raise InvalidArgument(f"url must be a str, not {type(url).__name__}")
        return RedisInstance(url, extra)
    if instance_name is None:
        raise InvalidArgument("url or instance_name must be given")
    if not isinstance(instance_name, str):
        kind = type(instance_name).__name__
        raise InvalidArgument(f"instance_name must be a str, not {kind}")
    try:
        known = _registry[instance_name]
    except KeyError:
        names = ", ".join(sorted(_registry)) or "none"
        raise InvalidArgument(
            f"no Redis instance is registered as {instance_name!r}; registered: {names}"
        ) from None
    return RedisInstance(known.url, {**known.extra_options, **extra})


def url_without_credentials(url: str) -> str:
    """A URL to show: without user, password and options, which may hold a password, too."""
    parts = _url_parts(url)
    return "".join(parts.groups()) if parts else "a URL that cannot be read"


def address_to_show(url: str | None, instance_name: str | None, client: Any) -> str:
    """The address that a service's arguments name, as a URL without credentials.

    Raises:
        InvalidArgument: as `find_instance`.
    """
    if client is None:
        return url_without_credentials(find_instance(url, instance_name, None).url)
    options = client.connection_pool.connection_kwargs
    if "path" in options:
        return f"unix://{options['path']}"
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    return f"redis://{host}:{port}/{options.get('db', 0)}"
