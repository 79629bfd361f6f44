"""Parses the URLs of clusters and of masters behind Sentinel.

    redis+cluster://[user:password@]host:port,host:port[?option=value]
    redis+sentinel://[user:password@]host:port,host:port/master_name[/database][?option=value]

and the same with rediss+. redis-py parses the rest: a plain URL with the credentials and options.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import InvalidArgument
from .log import node_name
from .topology import Node

_PLAIN = ("redis", "rediss", "unix")
_DEFAULT_PORTS = {"cluster": 6379, "sentinel": 26379}
_SCHEMES = "redis://, rediss://, unix://, redis+cluster:// or redis+sentinel://"

# user:password@ may contain anything except an unencoded @, / or ?.
_parts = re.compile(r"(?:([^@/?]*)@)?([^/?@]*)((?:/[^?]*)?)((?:\?.*)?)", re.DOTALL).fullmatch
_host_and_port = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+)(?::(\d{1,5}))?").fullmatch


class Location(NamedTuple):
    """A parsed URL.

    Attributes:
        kind: "" for one server, "cluster" or "sentinel".
        nodes: the addresses in a cluster or Sentinel URL.
        master_name: the master's name in a Sentinel URL.
        url: a plain URL of the first address, with the credentials and options.
    """

    kind: str
    nodes: tuple[Node, ...]
    master_name: str
    url: str = ""

    def __repr__(self) -> str:
        # The URL may hold a password.
        return f"Location({self.kind!r}, {self.nodes!r}, {self.master_name!r})"


def locate(url: str) -> Location:
    """Parse a URL. Error messages never quote it, because it may contain a password.

    Raises:
        InvalidArgument: the URL is not valid.
    """
    scheme, found, rest = url.partition("://")
    base, plus, kind = scheme.partition("+")
    if not found or base not in _PLAIN or (plus and (kind not in _DEFAULT_PORTS or base == "unix")):
        shown = f", not {scheme}://" if found and scheme.replace("+", "").isalnum() else ""
        raise InvalidArgument(f"url must start with {_SCHEMES}{shown}")
    if not kind:
        return Location("", (), "", url)
    parts = _parts(rest)
    if not parts:
        raise InvalidArgument(
            "url is not valid: percent-encode special characters in user and password"
        )
    credentials, hosts, path, query = parts.groups()
    nodes = tuple(_node(host, kind) for host in hosts.split(","))
    names = [name for name in path.split("/") if name]
    master_name = ""
    if kind == "sentinel":
        if not names:
            raise InvalidArgument("url: redis+sentinel:// needs /master_name after the addresses")
        master_name = names.pop(0)
    elif names and names != ["0"]:
        raise InvalidArgument("url: a cluster has only database 0")
    if len(names) > 1:
        raise InvalidArgument("url: unexpected text after the database number")
    login = f"{credentials}@" if credentials else ""
    first = node_name(nodes[0].host, nodes[0].port)
    database = f"/{names[0]}" if names else ""
    return Location(kind, nodes, master_name, f"{base}://{login}{first}{database}{query}")


def _node(text: str, kind: str) -> Node:
    found = _host_and_port(text)
    if not found:
        raise InvalidArgument("url: addresses must look like host:port,host:port")
    host, port = found.groups()
    number = int(port) if port else _DEFAULT_PORTS[kind]
    if not 0 < number < 65_536:
        raise InvalidArgument(f"url: port {number} is not between 1 and 65535")
    return Node(host.strip("[]"), number, kind == "sentinel")
