"""Named Redis instances: an address is registered once and then used by name."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from .errors import InvalidArgument


class RedisInstance(msgspec.Struct, frozen=True):
    """The address of a server and its connection options.

    Attributes:
        url: see `RedisSessionService`.
        extra_options: more options of redis-py's connections, by name.
    """

    url: str
    extra_options: dict[str, Any] = {}

    def __repr__(self) -> str:
        options = ", ".join(self.extra_options) or "none"
        return f"RedisInstance({url_without_credentials(self.url)!r}, options: {options})"


# scheme://, user:password@, addresses and path, options. Only the path of a socket may have an @.
_url_parts = re.compile(
    r"([a-z+]+://)(?:[^/?#]*@)?((?<=unix://)/[^?#]*|[^@?#]*)(?:[?#][^@]*)?", re.ASCII
).fullmatch

_registry: dict[str, RedisInstance] = {}


def register_redis_instance(name: str, url: str, **extra_options: Any) -> None:
    """Register a server's address in this process, for `RedisSessionService(instance_name=name)`.

    Args:
        name: not empty. Registering a name again affects only services that are made later.
        url: see `RedisSessionService`; may name a cluster or Sentinels.
        **extra_options: options of redis-py's connections, such as `username`, `password`,
            `ssl_ca_certs` or `socket_connect_timeout`.

    Raises:
        InvalidArgument: the name or the URL is empty or not a str. Everything else is checked when
            a service is made with it.

    No round trip: a service connects with its first call.
    """
    for argument, value in (("name", name), ("url", url)):
        if not isinstance(value, str) or not value:
            raise InvalidArgument(f"{argument} must be a non-empty str")
    _registry[name] = RedisInstance(url, extra_options)


def find_instance(
    url: str | None, instance_name: str | None, extra_options: dict[str, Any] | None
) -> RedisInstance:
    """The server that a service's arguments name; the URL takes precedence over the name.

    Raises:
        InvalidArgument: neither is given, or no instance is registered under that name.
    """
    extra = dict(extra_options or {})
    if url is not None:
        if not isinstance(url, str):
            raise InvalidArgument(f"url must be a str, not {type(url).__name__}")
        return RedisInstance(url, extra)
    if instance_name is None:
        raise InvalidArgument("url, instance_name or client must be given")
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
    """A URL without user, password and options, which may contain a password too."""
    parts = _url_parts(url)
    return "".join(parts.groups()) if parts else "a URL that cannot be read"


def address_to_show(url: str | None, instance_name: str | None, client: Any) -> str:
    """The address that a service's arguments name, as a URL without credentials."""
    if client is None:
        return url_without_credentials(find_instance(url, instance_name, None).url)
    options = client.connection_pool.connection_kwargs
    if "path" in options:
        return f"unix://{options['path']}"
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    return f"redis://{host}:{port}/{options.get('db', 0)}"
