"""Runs a private Redis or Valkey server for as long as this process lives.

    with EmbeddedServer() as server:
        service = RedisSessionService(server.url)

The server is the one that the extra `embedded` installs, or else a valkey-server or redis-server on
PATH. watchdog.py explains how it ends when this process is killed.
"""

from __future__ import annotations

from .binaries import ServerBinary, find_server, find_servers
from .server import EmbeddedServer

__all__ = ["EmbeddedServer", "ServerBinary", "find_server", "find_servers"]
