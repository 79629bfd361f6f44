"""Calls from threads: one connection per call at a time, kept for the next one.

A connection is taken from a stack, the last one used first, so that there are as many as calls at
the same time and no more.
"""

from __future__ import annotations

import math
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import hiredis

from ..calls import Call
from ..errors import BackendUnavailable
from .address import Deployment
from .durability import Durability
from .redis_py import open_sync
from .retry import Attempts, ConnectFailed, ConnectionLost, check_greeting
from .shared_connection import SILENCE_S
from .topology import ANSWER_TIMEOUT_S, DISCOVERY_TIMEOUT_S, Node, redirection
from .wire import Form, ReplyRefused, pack, reply_count, unpack

_RECEIVE_SIZE = 1 << 16

_NOTHING = object()  # what the reader gives when it has no whole reply


class BlockingConnection:
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
        self._bounds_s = (0.0, 0.0)
        # The kernel's own time-outs spare a poll() before every send and receive.
        self._is_plain = not isinstance(self._socket, ssl.SSLSocket)
        if self._is_plain:
            self._socket.setblocking(True)

    @property
    def is_stale(self) -> bool:
        """Whether the server has closed it, or said something that nobody asked for."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def ask(
        self,
        payload: bytes,
        count: int,
        timeout_s: float,
        is_replaced: Callable[[], bool] | None = None,
    ) -> list[Any]:
        """Send a request and read its replies.

        Args:
            payload: the request.
            count: its replies.
            timeout_s: time that all of it may take.
            is_replaced: asked again and again while the server says nothing; True = give up.

        Raises:
            ConnectionLost: the connection broke or stayed silent; it must be closed.
        """
        gets = self._reader.gets
        deadline = 0.0
        patience_s = timeout_s if is_replaced is None else min(timeout_s, SILENCE_S)
        try:
            self._bound(timeout_s, patience_s)
            self._socket.sendall(payload)
            replies: list[Any] = []
            while len(replies) < count:
                reply = gets()
                if reply is _NOTHING:
                    if deadline:  # not the first receive
                        patience_s = min(patience_s, deadline - time.monotonic())
                        self._bound(timeout_s, patience_s)
                    else:
                        deadline = time.monotonic() + timeout_s
                    data = self._receive(deadline, is_replaced)
                    if not data:
                        raise ConnectionLost("connection closed by the server")
                    self._reader.feed(data)
                elif not isinstance(reply, hiredis.PushNotification):
                    replies.append(reply)
        except (TimeoutError, BlockingIOError):
            raise ConnectionLost("no answer in time", silent=True) from None
        except (OSError, hiredis.ProtocolError) as error:
            raise ConnectionLost(f"connection lost ({error})") from None
        return replies

    def _receive(self, deadline: float, is_replaced: Callable[[], bool] | None) -> bytes:
        send_s, receive_s = self._bounds_s
        if not self._is_plain and send_s != receive_s:
            self._socket.settimeout(receive_s)
        while True:
            try:
                return self._socket.recv(_RECEIVE_SIZE)
            except (TimeoutError, BlockingIOError):
                if is_replaced is None or time.monotonic() >= deadline:
                    raise
                if is_replaced():
                    raise ConnectionLost("the node has been replaced", silent=True) from None

    def _bound(self, send_s: float, receive_s: float) -> None:
        """Set the time that a send and a receive may take."""
        is_set = (send_s, receive_s) == self._bounds_s
        if is_set and (self._is_plain or send_s == receive_s):
            return
        if receive_s <= 0:
            raise TimeoutError
        self._bounds_s = (send_s, receive_s)
        if self._is_plain:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(send_s))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(receive_s))
        else:
            self._socket.settimeout(send_s)  # and receive_s before a receive

    def close(self) -> None:
        """Close the socket."""
        self._connection.disconnect()


def _has_error(replies: list[Any]) -> bool:
    return any(isinstance(reply, hiredis.ReplyError) for reply in replies)


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", *divmod(max(int(seconds * 1_000_000), 1), 1_000_000))


class RedisExecutor:
    """Carries out Calls, from any number of threads.

    Args:
        deployment: the servers.
        timeout_s: time that a call may take, retries included.
        durability: what writes wait for; None = nothing.
    """

    def __init__(
        self, deployment: Deployment, timeout_s: float, durability: Durability | None = None
    ) -> None:
        self.is_cluster = deployment.is_cluster
        self._deployment = deployment
        self._timeout_s = timeout_s
        self._durability = durability
        self._topology = deployment.new_topology()
        self._idle: dict[Node, list[BlockingConnection]] = {}
        self._discovery = threading.Lock()
        self._poll_at = 0.0 if self._topology.is_polled else math.inf
        self._pid = os.getpid()
        self._is_closed = False

    def execute(self, call: Call[Any]) -> list[Any]:
        """One reply per command of the Call."""
        deadline = time.monotonic() + self._timeout_s
        attempts: Attempts | None = None
        problem: Exception
        node: Node | None = None
        while True:
            try:
                form = attempts.form if attempts else Form.EVALSHA
                ask_at = attempts.ask_at if attempts else None
                if ask_at is not None and node is not None:
                    node = redirection(ReplyRefused(ask_at), node)[1]
                else:
                    if not self._topology.is_known:
                        self._discover(deadline)
                    elif deadline > self._poll_at:
                        self._poll_at = deadline + SILENCE_S
                        self._ask_around()
                    node = self._topology.node_for(call)
                timeout_s = self._timeout_s if attempts is None else deadline - time.monotonic()
                return self._ask(node, call, form, timeout_s, asking=ask_at is not None)
            except (ReplyRefused, ConnectionLost, ConnectFailed) as error:
                if isinstance(error, ConnectFailed) and not self._deployment.has_connected:
                    error.final = True  # as for asyncio: a wrong address
                if node is not None:
                    self._topology.notice(error, node)
                problem = error
            if attempts is None:
                attempts = Attempts(call, deadline, is_routed=self._topology.is_routed)
            delay_s = attempts.next_delay(problem, time.monotonic())
            if delay_s:
                time.sleep(delay_s)
            if self._is_closed:
                raise attempts.closed()

    def _ask(
        self,
        node: Node,
        call: Call[Any],
        form: Form,
        timeout_s: float,
        *,
        asking: bool = False,
        is_watched: bool = True,
    ) -> list[Any]:
        """One attempt at a call: one reply per command."""
        timeout_s = max(timeout_s, 0.001)
        link = self._take(node, call, timeout_s)
        try:
            payload = pack(call, form, asking=asking)
            is_replaced = None
            if is_watched and self._topology.is_routed:
                is_replaced = partial(self._is_replaced, node)
            count = reply_count(call, form, asking=asking)
            replies = link.ask(payload, count, timeout_s, is_replaced)
            durability = self._durability if call.writes else None
            if durability is not None and not _has_error(replies):
                [answer] = link.ask(durability.request, 1, durability.timeout_s, is_replaced)
        except BaseException as error:
            link.close()
            if isinstance(error, ConnectionLost):
                # The others that lie idle are lost too, or will find out soon.
                while (idle := self._pop_idle(node)) is not None:
                    idle.close()
            raise
        self._idle[node].append(link)
        if self._is_closed:
            self.close()  # which may have missed it
        replies = unpack(replies, form, asking=asking)
        if durability is not None:
            durability.judge(call, replies, answer)
        return replies

    def _discover(self, deadline: float) -> None:
        """Let the topology be known; of many threads that need it, one asks."""
        if not self._discovery.acquire(timeout=max(deadline - time.monotonic(), 0.001)):
            raise ConnectFailed("no connection in time", final=False)
        try:
            if not self._topology.is_known:
                self._run_discovery()
        finally:
            self._discovery.release()

    def _ask_around(self) -> None:
        """Ask again where the data is, unless another thread does; what was known stays so."""
        if self._discovery.acquire(blocking=False):
            try:
                self._run_discovery()
            except ConnectFailed:
                pass  # nobody knows better
            finally:
                self._discovery.release()

    def _run_discovery(self) -> None:
        flow = self._topology.discover()
        end = time.monotonic() + DISCOVERY_TIMEOUT_S
        outcome: Any = None
        while True:
            try:
                node, call = flow.send(outcome)
            except StopIteration:
                return
            timeout_s = min(self._timeout_s, ANSWER_TIMEOUT_S, end - time.monotonic())
            try:
                outcome = self._ask(node, call, Form.EVALSHA, timeout_s, is_watched=False)
            except (ReplyRefused, ConnectionLost, ConnectFailed) as error:
                outcome = error

    def _is_replaced(self, node: Node) -> bool:
        """Whether a node that says nothing is not the one to ask any more."""
        self._topology.suspect(node)
        self._ask_around()
        return node.is_replica or node not in self._topology.nodes

    def close(self) -> None:
        """Close all connections; those in use when their call ends."""
        self._is_closed = True
        for node in list(self._idle):
            while (link := self._pop_idle(node)) is not None:
                link.close()

    def _pop_idle(self, node: Node) -> BlockingConnection | None:
        try:
            return self._idle[node].pop()  # one step, whatever other threads do
        except LookupError:
            return None

    def _take(self, node: Node, call: Call[Any], timeout_s: float) -> BlockingConnection:
        if self._is_closed:
            raise BackendUnavailable("the session service is closed")
        if self._pid != os.getpid():
            # A forked child must not speak on its parent's sockets. Dropping them closes only
            # the child's copies.
            self._pid, self._idle, self._discovery = os.getpid(), {}, threading.Lock()
        while (link := self._pop_idle(node)) is not None:
            # What cannot be sent twice is not risked on a connection that died while idle.
            if call.idempotent or not link.is_stale:
                return link
            link.close()
        address = self._deployment.address_of(node)
        if self._topology.is_routed:
            # One that is slower may be gone, and its successor be known meanwhile.
            timeout_s = min(timeout_s, ANSWER_TIMEOUT_S)
        link = BlockingConnection(address.new_connection(), timeout_s)
        if address.greeting:
            try:
                check_greeting(link.ask(address.greeting, 1, timeout_s))
            except BaseException:
                link.close()
                raise
        address.history.has_connected = True
        self._idle.setdefault(node, [])
        return link
