"""All that sessionstore knows of redis-py's insides: how a connection is made and taken over.

redis-py offers no public way to hand over a connected socket. The private names used here are the
same in every release that pyproject.toml allows; the test suite runs against the lowest and the
highest.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import redis

from .retry import ConnectFailed


async def open_async(
    connection: Any, protocol: asyncio.Protocol, timeout_s: float
) -> tuple[Any, bytes]:
    """Connect, then let `protocol` receive what arrives.

    Args:
        connection: a redis-py connection for asyncio, not yet connected. It must be kept until
            the transport is closed, and given to `forget_async` then.
        protocol: receives data once this returns.
        timeout_s: time that all of it may take.

    Returns:
        The asyncio transport, and bytes that arrived after the handshake.

    Raises:
        ConnectFailed: no connection.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await connection.connect()
    except BaseException as error:
        await connection.disconnect(nowait=True)
        if isinstance(error, (redis.RedisError, OSError)):
            raise _connect_failed(error) from None
        raise
    transport = connection._writer.transport
    early = bytes(connection._reader._buffer)
    transport.set_protocol(protocol)
    return transport, early


def forget_async(connection: Any) -> None:
    """Let go of a connection whose transport is closed, without a word about it."""
    connection._reader = None
    connection._writer = None


def open_sync(connection: Any, timeout_s: float) -> socket.socket:
    """Connect; the socket, which stays the connection's own.

    Args:
        connection: a redis-py connection for threads, not yet connected.
        timeout_s: time that connecting may take, and each step of the handshake.

    Raises:
        ConnectFailed: no connection.
    """
    connection.socket_connect_timeout = min(connection.socket_connect_timeout, timeout_s)
    connection.socket_timeout = timeout_s
    try:
        connection.connect()
    except (redis.RedisError, OSError) as error:
        raise _connect_failed(error) from None
    link: socket.socket = connection._sock
    return link


def _connect_failed(error: Exception) -> ConnectFailed:
    """What a failed connect means, without credentials."""
    if isinstance(error, redis.AuthenticationError):
        return ConnectFailed(f"the server refused the credentials ({error})", final=True)
    if isinstance(error, redis.exceptions.BusyLoadingError):
        return ConnectFailed("the server is loading its data", final=False)
    if isinstance(error, redis.ResponseError):
        return ConnectFailed(f"the server refused the connection ({error})", final=True)
    if isinstance(error, TimeoutError):
        return ConnectFailed("no connection in time", final=False)
    text = str(error) or type(error).__name__
    return ConnectFailed(text.rstrip("."), final=False)
