"""Calls from threads: one connection per call at a time, kept for the next one.

A connection is taken from a stack, the last one used first, so that there are as many as calls at
the same time and no more.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from typing import Any

import hiredis

from ..calls import Call
from .address import Address
from .redis_py import open_sync
from .retry import Attempts, ConnectFailed, ConnectionLost
from .wire import ReplyRefused, pack, reply_count, unpack

_RECEIVE_SIZE = 1 << 16

_NOTHING = object()  # what the reader gives when it has no whole reply


class Link:
    """One connection, used by one thread at a time.

    Args:
        connection: redis-py's connection, not yet connected.
        timeout_s: time that connecting may take, and each step of the handshake.

    Raises:
        ConnectFailed: no connection.
    """

    def __init__(self, connection: Any, timeout_s: float) -> None:
        self._connection = connection
        self._socket: socket.socket = open_sync(connection, timeout_s)
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)

    @property
    def is_stale(self) -> bool:
        """Whether the server has closed it, or said something that nobody asked for."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def ask(self, payload: bytes, count: int, deadline: float) -> list[Any]:
        """Send a request and read its replies.

        Raises:
            ConnectionLost: the connection broke or stayed silent; it must be closed.
        """
        try:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            self._socket.sendall(payload)
            replies: list[Any] = []
            while len(replies) < count:
                reply = self._reader.gets()
                if reply is _NOTHING:
                    self._receive(deadline)
                elif not isinstance(reply, hiredis.PushNotification):
                    replies.append(reply)
        except TimeoutError:
            raise ConnectionLost("no answer in time", silent=True) from None
        except (OSError, hiredis.ProtocolError) as error:
            raise ConnectionLost(f"connection lost ({error})") from None
        return replies

    def _receive(self, deadline: float) -> None:
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        data = self._socket.recv(_RECEIVE_SIZE)
        if not data:
            raise ConnectionLost("connection closed by the server")
        self._reader.feed(data)

    def close(self) -> None:
        """Close the socket."""
        self._connection.disconnect()


class RedisExecutor:
    """Carries out Calls on a server, from any number of threads.

    Args:
        address: where to connect to.
        timeout_s: time that a call may take, retries included.
    """

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._idle: list[Link] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._was_connected = False
        self._is_closed = False

    def execute(self, call: Call[Any]) -> list[Any]:
        """One reply per command of the Call."""
        attempts = Attempts(call, time.monotonic() + self._timeout_s)
        while True:
            try:
                if self._is_closed:
                    raise attempts.closed()
                link = self._take(call, attempts.deadline)
                form = attempts.form
                try:
                    replies = link.ask(pack(call, form), reply_count(call, form), attempts.deadline)
                except BaseException:
                    link.close()
                    raise
                self._give_back(link)
                return unpack(replies, form)
            except (ReplyRefused, ConnectionLost, ConnectFailed) as problem:
                delay_s = attempts.next_delay(problem, time.monotonic())
            if delay_s:
                time.sleep(delay_s)

    def close(self) -> None:
        """Close all connections; those in use when their call ends."""
        with self._lock:
            self._is_closed = True
            links, self._idle = self._idle, []
        for link in links:
            link.close()

    def _take(self, call: Call[Any], deadline: float) -> Link:
        if self._pid != os.getpid():
            # A forked child must not speak on its parent's sockets. Dropping them closes only
            # the child's copies.
            self._pid, self._lock, self._idle = os.getpid(), threading.Lock(), []
        while True:
            with self._lock:
                link = self._idle.pop() if self._idle else None
            if link is None:
                return self._connect(deadline)
            # What cannot be sent twice is not risked on a connection that died while idle.
            if call.idempotent or not link.is_stale:
                return link
            link.close()

    def _connect(self, deadline: float) -> Link:
        timeout_s = max(deadline - time.monotonic(), 0.001)
        try:
            link = Link(self._address.new_connection(), timeout_s)
        except ConnectFailed as error:
            # As for asyncio: a server that was never there is a wrong address.
            final = error.final or not self._was_connected
            raise ConnectFailed(str(error), final=final) from None
        self._was_connected = True
        return link

    def _give_back(self, link: Link) -> None:
        with self._lock:
            if not self._is_closed:
                self._idle.append(link)
                return
        link.close()
