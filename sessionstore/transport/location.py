"""URLs of clusters and of masters behind Sentinel, taken apart.

    redis+cluster://[user:password@]host:port,host:port[?option=value]
    redis+sentinel://[user:password@]host:port,host:port/master_name[/database][?option=value]

and the same with rediss+. What remains is a plain URL with the same credentials and options.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import InvalidArgument
from .topology import Node

_PLAIN = ("redis", "rediss", "unix")
_KINDS = {"cluster": 6379, "sentinel": 26379}  # with their default ports
_SCHEMES = "redis://, rediss://, unix://, redis+cluster:// or redis+sentinel://"

# user:password@ may hold anything but an unencoded @, / or ?.
_parts = re.compile(r"(?:([^@/?]*)@)?([^/?@]*)((?:/[^?]*)?)((?:\?.*)?)", re.DOTALL).fullmatch
_host = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+)(?::(\d{1,5}))?").fullmatch


class Location(NamedTuple):
    """What a URL names.

    Attributes:
        kind: "" for one server, "cluster" or "sentinel".
        nodes: the addresses that a cluster or Sentinel URL lists.
        master_name: the name behind the addresses of Sentinels.
        url: a plain URL of the first address, for credentials and options.
    """

    kind: str
    nodes: tuple[Node, ...]
    master_name: str
    url: str = ""


def locate(url: str) -> Location:
    """What a URL names. No message quotes it: it may hold a password.

    Raises:
        InvalidArgument: it cannot be read.
    """
    scheme, found, rest = url.partition("://")
    base, plus, kind = scheme.partition("+")
    if not found or base not in _PLAIN or (plus and (kind not in _KINDS or base == "unix")):
        shown = f", not {scheme}://" if found and scheme.replace("+", "").isalnum() else ""
        raise InvalidArgument(f"url must start with {_SCHEMES}{shown}")
    if not kind:
        return Location("", (), "", url)
    parts = _parts(rest)
    if not parts:
        raise InvalidArgument("url cannot be read: percent-encode user and password")
    credentials, hosts, path, query = parts.groups()
    nodes = tuple(_node(host, kind) for host in hosts.split(","))
    names = [name for name in path.split("/") if name]
    master_name = ""
    if kind == "sentinel":
        if not names:
            raise InvalidArgument("url: redis+sentinel:// needs /master_name behind the addresses")
        master_name = names.pop(0)
    elif names and names != ["0"]:
        raise InvalidArgument("url: a cluster has no databases but 0")
    if len(names) > 1:
        raise InvalidArgument("url has more behind the addresses than it may have")
    login = f"{credentials}@" if credentials else ""
    first = nodes[0]
    host = f"[{first.host}]" if ":" in first.host else first.host
    database = f"/{names[0]}" if names else ""
    return Location(
        kind, nodes, master_name, f"{base}://{login}{host}:{first.port}{database}{query}"
    )


def _node(text: str, kind: str) -> Node:
    found = _host(text)
    if not found:
        raise InvalidArgument("url: addresses must be host:port,host:port")
    host, port = found.groups()
    number = int(port) if port else _KINDS[kind]
    if not 0 < number < 65_536:
        raise InvalidArgument(f"url: {number} is no port")
    return Node(host.strip("[]"), number, kind == "sentinel")
