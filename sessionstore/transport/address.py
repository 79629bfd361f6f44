"""Where a server is, checked once: makes redis-py connections, connected on demand.

redis-py does what is hard to get right about a connection: resolving, TLS, AUTH, HELLO, SELECT.
Its retries are switched off, for they send writes twice; its text decoding, for values are bytes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.asyncio.connection import parse_url as parse_url_async
from redis.connection import parse_url as parse_url_sync

from ..errors import InvalidArgument
from ..instances import RedisInstance, find_instance

_CONNECT_TIMEOUT_S = 5.0

# Options of the service's own, or of redis-py's pools and retries, which are not used.
_FORBIDDEN = {
    "decode_responses": "stored values are bytes and must stay so",
    "encoding": "stored values are bytes and must stay so",
    "retry": "retries are the service's own",
    "retry_on_error": "retries are the service's own",
    "retry_on_timeout": "retries are the service's own",
    "socket_timeout": "call_timeout bounds every call",
    "socket_read_size": "replies are read by the service itself",
    "parser_class": "replies are read by the service itself",
    "health_check_interval": "silent connections are replaced by the service itself",
}


class Address:
    """A server's address and the options of connections to it.

    Args:
        url: as `RedisSessionService` takes it.
        instance_name: likewise.
        extra_options: likewise.
        client: likewise.
        is_async: make connections for asyncio, otherwise for threads.

    Attributes:
        was_reached: a connection has succeeded once; so if none succeeds now, one may later.

    Raises:
        InvalidArgument: the address is unusable, or an option unknown or not allowed.
    """

    def __init__(
        self,
        url: str | None,
        instance_name: str | None,
        extra_options: Mapping[str, Any] | None,
        client: Any,
        *,
        is_async: bool,
    ) -> None:
        if extra_options is not None and not isinstance(extra_options, Mapping):
            kind = type(extra_options).__name__
            raise InvalidArgument(f"extra_options must be a dict, not {kind}")
        extra = dict(extra_options or {})
        library: Any = redis.asyncio if is_async else redis
        if client is not None:
            if url is not None or instance_name is not None:
                raise InvalidArgument("client cannot be given together with url or instance_name")
            self._factory, options = _of_client(client, library.Redis)
            options.update(extra)
        else:
            instance = find_instance(url, instance_name, extra)
            options = {**instance.extra_options, **_of_url(instance, is_async)}
            self._factory = options.pop("connection_class", library.Connection)
        for name, why in _FORBIDDEN.items():
            if name in options:
                raise InvalidArgument(f"the connection option {name} is not allowed: {why}")
        options.setdefault("protocol", 2)
        options.setdefault("socket_connect_timeout", _CONNECT_TIMEOUT_S)
        self._options = options
        self.was_reached = False
        self.new_connection()

    def new_connection(self) -> Any:
        """A redis-py connection, not yet connected.

        Raises:
            InvalidArgument: redis-py does not take one of the options.
        """
        try:
            return self._factory(**self._options)
        except (TypeError, ValueError, redis.RedisError) as error:
            text = str(error).rpartition("__init__() ")[2]
            raise InvalidArgument(f"a connection option is refused by redis-py: {text}") from None


def _of_url(instance: RedisInstance, is_async: bool) -> dict[str, Any]:
    """Connection options of a URL. No message quotes the URL: it may hold a password."""
    if "://" not in instance.url:
        raise InvalidArgument("url must start with redis://, rediss:// or unix://")
    scheme = instance.url.partition("://")[0]
    if scheme not in ("redis", "rediss", "unix"):
        raise InvalidArgument(
            f"url must start with redis://, rediss:// or unix://, not {scheme}://"
        )
    try:
        parts = urlsplit(instance.url)
        parse = parse_url_async if is_async else parse_url_sync
        options = dict(parse(instance.url))
        database = parts.path.strip("/")
        if scheme != "unix" and database and not database.isdecimal():
            raise InvalidArgument("url: the database behind the last / must be a number")  # noqa: TRY301
    except InvalidArgument:
        raise
    except ValueError:
        # redis-py's own message may quote what it took for the port.
        raise InvalidArgument(
            "url cannot be read: look at host and port, and percent-encode user and password"
        ) from None
    if scheme == "unix" and not options.get("path"):
        raise InvalidArgument("url: unix:// needs the path of a socket")
    if not isinstance(options.get("db", 0), int):
        raise InvalidArgument("url: db must be a number")
    return options


def _of_client(client: Any, kind: Any) -> tuple[Any, dict[str, Any]]:
    """Connection class and options of a redis-py client, less what its retries need."""
    if not isinstance(client, kind):
        name = f"{kind.__module__.partition('.client')[0]}.Redis"
        raise InvalidArgument(f"client must be a {name}, not {type(client).__name__}")
    pool = client.connection_pool
    options = dict(pool.connection_kwargs)
    if options.get("decode_responses"):
        raise InvalidArgument(
            "client has decode_responses=True: stored values are bytes and must stay so"
        )
    # What the client set for itself, not for us.
    for name in (*_FORBIDDEN, "encoding_errors", "event_dispatcher"):
        options.pop(name, None)
    known = set(inspect.signature(pool.connection_class.__init__).parameters)
    for parent in pool.connection_class.__mro__:
        known |= set(inspect.signature(parent.__init__).parameters)
    options = {
        name: value
        for name, value in options.items()
        if name in known and not name.startswith(("maint_", "oss_", "himport"))
    }
    return pool.connection_class, options
