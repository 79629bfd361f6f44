"""Where the servers are: checks a service's arguments once and makes redis-py connections.

redis-py does the difficult part of connecting: DNS, TLS, AUTH, HELLO, SELECT. Its retries are
switched off because they can send a write twice; its text decoding, because values are bytes.
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
from .failures import ConnectFailed
from .location import Location, locate
from .log import NodeLog, node_name
from .redis_py import with_deadline
from .retry import ConnectHistory, Traffic
from .topology import ONLY, ClusterTopology, Node, SentinelTopology, SingleTopology, Topology

_CONNECT_TIMEOUT_S = 5.0

# A server that requires a password closes the connection at the first large request. Its reply to
# PING says what is wrong.
_GREETING = ("PING",)

# Options that the service sets itself, or that configure redis-py's pools and retries, which are
# not used.
_FORBIDDEN = {
    "decode_responses": "stored values are bytes",
    "encoding": "stored values are bytes",
    "retry": "the service does its own retries",
    "retry_on_error": "the service does its own retries",
    "retry_on_timeout": "the service does its own retries",
    "socket_timeout": "call_timeout limits every call",
    "socket_read_size": "the service reads replies itself",
    "parser_class": "the service reads replies itself",
    "health_check_interval": "the service replaces silent connections itself",
    "max_connections": "the service opens a few connections to each node",
}


class Address:
    """Where one server is and how to connect to it: redis-py's class of connections and options.

    The commands of `greeting` end the handshake. `history` is shared by all nodes.

    Attributes:
        server: host and port, or the path of a socket and None.
        database: its number.
    """

    def __init__(
        self,
        factory: Any,
        options: dict[str, Any],
        history: ConnectHistory,
        greeting: tuple[str, ...] = _GREETING,
    ) -> None:
        self.greeting = greeting
        self.connect_timeout_s: float = options["socket_connect_timeout"]
        self._factory = factory
        self._options = options
        self.history = history
        connection = self.new_connection()
        path = getattr(connection, "path", None)
        self.server = (path, None) if path else (connection.host, connection.port)
        self.database = int(options.get("db") or 0)
        self._log = NodeLog(path or node_name(connection.host, connection.port))

    def at(self, node: Node, greeting: tuple[str, ...], **changes: Any) -> Address:
        """The address of another node, with the same options except for some changes."""
        options = {**self._options, "host": node.host, "port": node.port, **changes}
        options = {name: value for name, value in options.items() if value is not None}
        return Address(self._factory, options, self.history, greeting)

    def new_connection(self) -> Any:
        """A redis-py connection, not yet connected."""
        try:
            return self._factory(**self._options)
        except (TypeError, ValueError, redis.RedisError) as error:
            text = str(error).rpartition("__init__() ")[2]
            raise InvalidArgument(f"redis-py does not accept a connection option: {text}") from None

    def report_connected(self) -> None:
        """Note that a connection was opened."""
        self.history.has_connected = True
        self.history.opened += 1
        self._log.connected()

    def report_lost(self, reason: str, num_calls: int) -> None:
        """Note that a connection ended unexpectedly; `num_calls` calls waited for replies."""
        self.history.lost += 1
        self._log.lost(reason, num_calls)

    def report_not_connected(self, failure: ConnectFailed, num_calls: int) -> None:
        """Note that no connection could be opened; `num_calls` calls waited for it."""
        # If no server was ever reached, or a retry cannot help, the caller gets an exception.
        if self.history.has_connected and not failure.final:
            self._log.not_connected(str(failure), num_calls)


class Deployment:
    """A server, a cluster, or a master behind Sentinel: the arguments of `RedisSessionService`.

    Raises:
        InvalidArgument: the address is not usable, or an option is unknown or not allowed.
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
            factory, options = _from_client(client, library.Redis)
            options.update(extra)
        else:
            instance = find_instance(url, instance_name, extra)
            self._location = locate(instance.url)
            parse = parse_url_async if is_async else parse_url_sync
            options = {**instance.extra_options, **_from_url(self._location.url, parse)}
            factory = options.pop("connection_class", library.Connection)
        self._sentinel_options = options.pop("sentinel_options", {})
        for name, why in _FORBIDDEN.items():
            if name in options:
                raise InvalidArgument(f"the connection option {name} is not allowed: {why}")
        options.setdefault("protocol", 2)
        if options.get("socket_connect_timeout") is None:
            options["socket_connect_timeout"] = _CONNECT_TIMEOUT_S
        self.is_cluster = self._location.kind == "cluster"
        self.history = ConnectHistory()
        if not is_async:
            factory = with_deadline(factory)
        self._address = Address(factory, options, self.history)
        self._addresses: dict[Node, Address] = {}
        self._uses_replicas = read_from == "replica"
        if self._uses_replicas and not self._location.kind:
            raise InvalidArgument(
                "read_from='replica' needs a redis+cluster:// or redis+sentinel:// URL"
            )

    def traffic(self, num_used: int, num_idle: int) -> Traffic:
        """What all connections have done, given how many are in use and how many are not."""
        server = None if self._location.kind else self._address.server
        return Traffic(self.history, num_used, num_idle, server, self._address.database)

    def new_topology(self) -> Topology:
        """A topology that knows nothing yet."""
        kind, nodes, master_name, _ = self._location
        if kind == "cluster":
            return ClusterTopology(nodes, uses_replicas=self._uses_replicas)
        if kind == "sentinel":
            return SentinelTopology(nodes, master_name, uses_replicas=self._uses_replicas)
        return SingleTopology()

    def address_of(self, node: Node) -> Address:
        """How to connect to a node."""
        if node is ONLY:
            return self._address
        address = self._addresses.get(node)
        if address is None:
            changes: dict[str, Any] = {}
            if node.is_sentinel:
                # Sentinels have no databases, and their own credentials.
                unset = dict.fromkeys(("db", "username", "password", "credential_provider"))
                changes = {**unset, **self._sentinel_options}
            # In a cluster a replica answers reads only after READONLY.
            is_read_only = node.is_replica and self.is_cluster
            greeting = (*_GREETING, "READONLY") if is_read_only else _GREETING
            address = self._addresses[node] = self._address.at(node, greeting, **changes)
        return address


def _from_url(url: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    """Connection options of a plain URL. Error messages never quote it: it may hold a password."""
    try:
        parts = urlsplit(url)
        options = dict(parse(url))
    except ValueError:
        # redis-py's own message can quote part of the password as the port.
        raise InvalidArgument(
            "url is not valid: check host and port, and percent-encode special characters in user "
            "and password"
        ) from None
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not database.isdecimal():
        raise InvalidArgument("url: the database after the last / must be a number")
    if parts.scheme == "unix" and not options.get("path"):
        raise InvalidArgument("url: unix:// needs the path of a socket")
    if not isinstance(options.get("db", 0), int):
        raise InvalidArgument("url: db must be a number")
    return options


def _from_client(client: Any, wanted: Any) -> tuple[Any, dict[str, Any]]:
    """Connection class and options of a redis-py client, without those for its own retries."""
    pool_name = type(getattr(client, "connection_pool", None)).__name__
    for kind in ("Cluster", "Sentinel"):
        if kind in type(client).__name__ or kind in pool_name:
            url = f"redis+{kind.lower()}://"
            raise InvalidArgument(f"client is for a {kind}: give the service a {url} URL instead")
    if not isinstance(client, wanted):
        found = _public_name(type(client))
        raise InvalidArgument(f"client must be a {_public_name(wanted)}, not {found}")
    pool = client.connection_pool
    options = dict(pool.connection_kwargs)
    if options.get("decode_responses"):
        raise InvalidArgument("client has decode_responses=True, but stored values are bytes")
    # Set by redis-py, not by the caller.
    for name in (*_FORBIDDEN, "encoding_errors", "event_dispatcher"):
        options.pop(name, None)
    known = {
        name
        for parent in pool.connection_class.__mro__
        for name in inspect.signature(parent.__init__).parameters
    }
    options = {
        name: value
        for name, value in options.items()
        if name in known and not name.startswith(("maint_", "oss_", "himport"))
    }
    return pool.connection_class, options


def _public_name(kind: type) -> str:
    """A class as users import it: redis.asyncio.Redis, not redis.asyncio.client.Redis."""
    if kind.__module__ == "builtins":
        return kind.__name__
    package = kind.__module__
    if package.startswith("redis."):
        package = package.rpartition(".")[0]
    return f"{package}.{kind.__name__}"
