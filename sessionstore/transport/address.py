"""Where the servers are, checked once: makes redis-py connections, connected on demand.

redis-py does what is hard to get right about a connection: resolving, TLS, AUTH, HELLO, SELECT.
Its retries are switched off, for they send writes twice; its text decoding, for values are bytes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.asyncio.connection import parse_url as parse_url_async
from redis.connection import parse_url as parse_url_sync

from ..errors import InvalidArgument
from ..instances import find_instance
from ..options import ReadFrom
from .location import Location, locate
from .topology import (
    ONLY,
    ClusterTopology,
    Node,
    SentinelTopology,
    SingleTopology,
    Topology,
)
from .wire import pack_command

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


class ConnectHistory:
    """Whether a server was ever reached. If it was, a refused connection may be a restart."""

    has_connected = False


class Address:
    """Where one server is and how to connect to it.

    Args:
        factory: redis-py's class of connections.
        options: its arguments.
        history: shared by all nodes of a deployment.

    Attributes:
        greeting: a request that goes first on every connection, in RESP; has one reply.

    Raises:
        InvalidArgument: redis-py does not take one of the options.
    """

    def __init__(self, factory: Any, options: dict[str, Any], history: ConnectHistory) -> None:
        self.history = history
        self.greeting = b""
        self._factory = factory
        self._options = options
        self.new_connection()

    def at(self, host: str, port: int, **changes: Any) -> Address:
        """The address of another node, reached in the same way but for some options."""
        options = {**self._options, "host": host, "port": port, **changes}
        options = {name: value for name, value in options.items() if value is not None}
        return Address(self._factory, options, self.history)

    def new_connection(self) -> Any:
        """A redis-py connection, not yet connected."""
        try:
            return self._factory(**self._options)
        except (TypeError, ValueError, redis.RedisError) as error:
            text = str(error).rpartition("__init__() ")[2]
            raise InvalidArgument(f"a connection option is refused by redis-py: {text}") from None


class Deployment:
    """A server, a cluster, or a master behind Sentinel, as a service's arguments name it.

    Args:
        url: as `RedisSessionService` takes it.
        instance_name: likewise.
        extra_options: likewise.
        client: likewise.
        read_from: likewise.
        is_async: make connections for asyncio, otherwise for threads.

    Attributes:
        is_cluster: keys are spread over slots.

    Raises:
        InvalidArgument: the address is unusable, or an option unknown or not allowed.
    """

    def __init__(
        self,
        url: str | None,
        instance_name: str | None,
        extra_options: Mapping[str, Any] | None,
        client: Any,
        read_from: ReadFrom = "primary",
        *,
        is_async: bool,
    ) -> None:
        if extra_options is not None and not isinstance(extra_options, Mapping):
            kind = type(extra_options).__name__
            raise InvalidArgument(f"extra_options must be a dict, not {kind}")
        extra = dict(extra_options or {})
        library: Any = redis.asyncio if is_async else redis
        self._location = Location("", (), "")
        if client is not None:
            if url is not None or instance_name is not None:
                raise InvalidArgument("client cannot be given together with url or instance_name")
            factory, options = _of_client(client, library.Redis)
            options.update(extra)
        else:
            instance = find_instance(url, instance_name, extra)
            self._location = locate(instance.url)
            parse = parse_url_async if is_async else parse_url_sync
            options = {**instance.extra_options, **_of_url(self._location.url, parse)}
            factory = options.pop("connection_class", library.Connection)
        self._sentinel_options = options.pop("sentinel_options", {})
        for name, why in _FORBIDDEN.items():
            if name in options:
                raise InvalidArgument(f"the connection option {name} is not allowed: {why}")
        options.setdefault("protocol", 2)
        options.setdefault("socket_connect_timeout", _CONNECT_TIMEOUT_S)
        self._address = Address(factory, options, ConnectHistory())
        self._addresses: dict[Node, Address] = {}
        self.is_cluster = self._location.kind == "cluster"
        self._uses_replicas = read_from == "replica"
        if self._uses_replicas and not self._location.kind:
            raise InvalidArgument(
                "read_from='replica' needs a redis+cluster:// or redis+sentinel:// URL"
            )

    @property
    def has_connected(self) -> bool:
        """Whether any node was ever reached."""
        return self._address.history.has_connected

    def new_topology(self) -> Topology:
        """A topology that knows nothing yet."""
        if self.is_cluster:
            return ClusterTopology(self._location.nodes, uses_replicas=self._uses_replicas)
        if self._location.kind == "sentinel":
            return SentinelTopology(
                self._location.nodes,
                self._location.master_name,
                uses_replicas=self._uses_replicas,
            )
        return SingleTopology()

    def address_of(self, node: Node) -> Address:
        """How to connect to a node."""
        if node is ONLY:
            return self._address
        address = self._addresses.get(node)
        if address is None:
            if node.is_sentinel:
                # Sentinels have no databases, and credentials of their own.
                none = dict.fromkeys(("db", "username", "password", "credential_provider"))
                changes = {**none, **self._sentinel_options}
            else:
                changes = {}
            address = self._address.at(node.host, node.port, **changes)
            if node.is_replica and self.is_cluster:
                address.greeting = pack_command(("READONLY",))
            self._addresses[node] = address
        return address


def _of_url(url: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    """Connection options of a plain URL. No message quotes it: it may hold a password."""
    try:
        parts = urlsplit(url)
        options = dict(parse(url))
    except ValueError:
        # redis-py's own message may quote what it took for the port.
        raise InvalidArgument(
            "url cannot be read: look at host and port, and percent-encode user and password"
        ) from None
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not database.isdecimal():
        raise InvalidArgument("url: the database behind the last / must be a number")
    if parts.scheme == "unix" and not options.get("path"):
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
