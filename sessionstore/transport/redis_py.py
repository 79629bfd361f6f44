"""All that sessionstore knows of redis-py's insides: how a connection is made and taken over.

redis-py offers no public way to hand over a connected socket. The private names used here are the
same in every release that pyproject.toml allows; the test suite runs against the lowest and the
highest.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
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
            # A server that wants a password closes the connection at the first large request.
            # To this it says what it wants.
            await connection.send_command("PING")
            with suppress(redis.exceptions.NoPermissionError):
                await connection.read_response()
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
        connection.send_command("PING")  # as for asyncio
        with suppress(redis.exceptions.NoPermissionError):
            connection.read_response()
    except (redis.RedisError, OSError) as error:
        connection.disconnect()
        raise _connect_failed(error) from None
    link: socket.socket = connection._sock
    return link


def _connect_failed(error: BaseException) -> ConnectFailed:
    """What a failed connect means, without credentials."""
    if isinstance(error.__cause__, redis.RedisError):
        error = error.__cause__  # redis-py for asyncio wraps what the handshake was answered
    text = str(error).rstrip(".") or type(error).__name__
    if isinstance(error, (redis.AuthenticationError, redis.ResponseError)):
        if "HELLO" in text or "required" in text:
            return ConnectFailed("the server wants a password", final=True)
        if isinstance(error, redis.AuthenticationError):
            return ConnectFailed(f"the server refused the credentials ({text})", final=True)
        return ConnectFailed(f"the server refused the connection ({text})", final=True)
    if isinstance(error, redis.exceptions.BusyLoadingError):
        return ConnectFailed("the server is loading its data", final=False)
    if isinstance(error, TimeoutError):
        return ConnectFailed("no connection in time", final=False)
    return ConnectFailed(text, final=False)
