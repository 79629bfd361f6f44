"""The ceiling: requests that are already packed, over a bare hiredis connection.

This is the best that the server and asyncio can do. A library on top of them costs more.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Self

import hiredis

Request = tuple[bytes, int]
"""Bytes in RESP, and the number of replies that they get."""

_NOTHING = object()  # the reader returns it when it has no complete reply


class BareConnection(asyncio.Protocol):
    """A connection that sends bytes and counts replies."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._transport: Any = None
        self._waiting: deque[tuple[Iterator[Request], int]] = deque()
        self._replies: list[Any] = []
        self._done: asyncio.Future[list[Any]] | None = None

    @classmethod
    async def connect(cls, socket_path: str) -> Self:
        """A connection to the server at this socket."""
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_unix_connection(cls, socket_path)
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = transport

    async def run_agents(self, agents: Sequence[Sequence[Request]]) -> list[Any]:
        """Send the requests of every agent, each when the one before has been answered.

        Args:
            agents: the requests of each agent, at least one.

        Returns:
            The replies to the request that was answered last.

        Raises:
            hiredis.ReplyError: the server refused a request.
        """
        self._done = asyncio.get_running_loop().create_future()
        out = []
        for agent in map(iter, agents):
            request, count = next(agent)
            out.append(request)
            self._waiting.append((agent, count))
        self._transport.write(b"".join(out))
        return await self._done

    async def ask(self, request: bytes, count: int = 1) -> list[Any]:
        """Send one request and wait for its replies."""
        return await self.run_agents([[(request, count)]])

    def data_received(self, data: bytes) -> None:
        """Called by asyncio. Agents whose replies have arrived send their next request."""
        waiting, replies, out = self._waiting, self._replies, []
        self._reader.feed(data)
        next_reply = self._reader.gets
        while (reply := next_reply()) is not _NOTHING:
            if isinstance(reply, hiredis.ReplyError):
                self._fail(reply)
                return
            replies.append(reply)
            if len(replies) < waiting[0][1]:
                continue
            last, replies = replies, []
            agent, _ = waiting.popleft()
            request = next(agent, None)
            if request is not None:
                out.append(request[0])
                waiting.append((agent, request[1]))
        self._replies = replies
        if out:
            self._transport.write(b"".join(out))
        elif not waiting and self._done is not None and not self._done.done():
            self._done.set_result(last)

    def _fail(self, error: Exception) -> None:
        self._waiting.clear()
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio."""
        self._fail(error or ConnectionError("the server closed the connection"))

    def close(self) -> None:
        """Close the connection."""
        self._transport.abort()


class BareSocket:
    """The same for threads: one request at a time over a blocking socket."""

    def __init__(self, socket_path: str) -> None:
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(socket_path)

    def run(self, requests: Sequence[Request]) -> None:
        """Send each request when the one before has been answered.

        Raises:
            hiredis.ReplyError: the server refused a request.
        """
        for request, count in requests:
            self._socket.sendall(request)
            for _ in range(count):
                while (reply := self._reader.gets()) is _NOTHING:
                    self._reader.feed(self._socket.recv(1 << 16))
                if isinstance(reply, hiredis.ReplyError):
                    raise reply

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
