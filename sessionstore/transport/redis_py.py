"""Everything that depends on redis-py's internals: opening a connection and taking it over.

redis-py has no public way to hand over a connected socket. The private names used here are the same
in every release that pyproject.toml allows; the test suite runs with the lowest and the highest.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import redis

from .failures import ConnectFailed


async def open_async(
    connection: Any, protocol: asyncio.Protocol, deadline: float, greeting: tuple[str, ...]
) -> tuple[Any, bytes]:
    """Connect and send the commands of `greeting`, then let `protocol` receive what arrives.

    Args:
        connection: a redis-py connection for asyncio, not yet connected. The caller must keep it
            until the transport is closed and then pass it to `forget_async`.

    Returns:
        The asyncio transport, and bytes that arrived after the handshake.

    Raises:
        ConnectFailed: no connection by the deadline.
    """
    try:
        async with asyncio.timeout_at(deadline):
            await connection.connect()
            for command in greeting:
                await connection.send_command(command)
                with _accepted():
                    await connection.read_response()
    except BaseException as error:
        writer = connection._writer
        await connection.disconnect(nowait=True)
        if writer is not None:
            writer.transport.abort()  # otherwise it waits until everything is sent
        if isinstance(error, Exception):
            raise _connect_failed(error) from None
        raise
    transport = connection._writer.transport
    unread = bytes(connection._reader._buffer)
    transport.set_protocol(protocol)
    return transport, unread


@contextmanager
def _accepted() -> Iterator[None]:
    """Ignore refusals of PING after which the server still serves reads."""
    try:
        yield
    except redis.exceptions.NoPermissionError:
        pass
    except redis.ResponseError as error:
        if not str(error).startswith("MISCONF"):  # it cannot save its data, and refuses writes
            raise


def forget_async(connection: Any) -> None:
    """Drop what a closed connection refers to. This avoids a ResourceWarning."""
    connection._reader = None
    connection._writer = None


def close_without_loop(transport: Any) -> None:
    """Close the socket of a transport whose event loop is already closed."""
    plain = getattr(getattr(transport, "_ssl_protocol", None), "_transport", transport)
    # Other event loops, such as uvloop, close their sockets themselves.
    if getattr(plain, "_sock", None) is not None and hasattr(plain, "_call_connection_lost"):
        with suppress(RuntimeError):  # the loop is closed
            plain.abort()
        plain._call_connection_lost(None)


def open_sync(connection: Any, deadline: float, greeting: tuple[str, ...]) -> socket.socket:
    """Connect and send the commands of `greeting`; returns the connection's socket.

    The connection is of a class that `with_deadline` made. Name resolution and a
    `credential_provider` cannot be interrupted and may take longer than the deadline.

    Raises:
        ConnectFailed: no connection by the deadline.
    """
    connection.deadline = deadline
    try:
        connection.connect()
        for command in greeting:
            connection.send_command(command)
            with _accepted():
                connection.read_response()
    except Exception as error:  # a credential_provider may raise anything
        connection.disconnect()
        raise _connect_failed(error) from None
    opened: socket.socket = connection._sock.inner
    connection._sock = opened
    return opened


def with_deadline(factory: Any) -> Any:
    """A subclass of a redis-py connection class for threads, for `open_sync`.

    redis-py limits every address that it tries and every step of the handshake separately. The
    subclass limits all of them together: its timeouts are what is left until `deadline`.
    """

    class ConnectionWithDeadline(factory):  # type: ignore[misc]  # the base class is dynamic
        deadline = math.inf
        _connect_timeout_s = math.inf

        @property
        def socket_connect_timeout(self) -> float:
            return min(self._connect_timeout_s, _time_left(self.deadline))

        @socket_connect_timeout.setter
        def socket_connect_timeout(self, value: float) -> None:
            self._connect_timeout_s = value

        @property
        def socket_timeout(self) -> float:
            return _time_left(self.deadline)

        @socket_timeout.setter
        def socket_timeout(self, value: Any) -> None:
            pass  # redis-py sets its default

        def _connect(self) -> _SocketWithDeadline:
            return _SocketWithDeadline(super()._connect(), self.deadline)

    return ConnectionWithDeadline


class _SocketWithDeadline:
    """A socket for the handshake: all receives and sends together end by a deadline."""

    def __init__(self, inner: socket.socket, deadline: float) -> None:
        self.inner = inner
        self._deadline = deadline

    def __getattr__(self, name: str) -> Any:
        if name in ("recv_into", "sendall"):
            self.inner.settimeout(_time_left(self._deadline))
        return getattr(self.inner, name)


def _time_left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)  # a timeout of 0 means "do not block"


_CLOSED_TEXTS = ("while writing to socket", "Connection closed", "Connection lost", "reset by peer")


def _connect_failed(error: BaseException) -> ConnectFailed:
    """What a failed connect means. The message holds no credentials."""
    if isinstance(error.__cause__, Exception):
        error = error.__cause__  # redis-py for asyncio wraps errors of the handshake
    if not isinstance(error, (redis.RedisError, OSError)):
        text = f"the credential_provider failed with {type(error).__name__}"
        return ConnectFailed(text, final=False)
    text = str(error).rstrip(".") or type(error).__name__
    if any(closed in text for closed in _CLOSED_TEXTS) or "max number of clients" in text:
        # A server that has too many clients replies with an error, which is often lost.
        text = "the server closed the connection at once; it may have too many clients (maxclients)"
        return ConnectFailed(text, final=False)
    if text.startswith("BUSY"):
        return ConnectFailed("the server is busy running a script", final=False, was_reached=True)
    if isinstance(error, (redis.AuthenticationError, redis.ResponseError)):
        if "HELLO" in text or "required" in text:
            return ConnectFailed("the server requires a password", final=True)
        what = "credentials" if isinstance(error, redis.AuthenticationError) else "connection"
        return ConnectFailed(f"the server refused the {what} ({text})", final=True)
    if isinstance(error, redis.exceptions.BusyLoadingError):
        return ConnectFailed("the server is loading its data", final=False, was_reached=True)
    if isinstance(error, (TimeoutError, redis.TimeoutError)):
        text = "no connection in time"
    return ConnectFailed(text, final=False)
