"""The executor for threads. Every call uses a connection of its own, which is kept for later calls.

Idle connections are kept on a stack, so there are as many as there were calls at the same time.
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
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

import hiredis

from ..calls import Call
from ..drive import drive
from .address import Address, Deployment
from .durability import Durability
from .failures import (
    CLOSED,
    CLOSED_BY_SERVER,
    AttemptFailed,
    ConnectFailed,
    ConnectionLost,
    ErrorReply,
    NotSentInTime,
)
from .redis_py import open_sync
from .retry import Attempts, Discover, Pause, Reconnect, Send, Step, Traffic, run
from .topology import DISCOVERY_TIMEOUT_S, PROBE_TIMEOUT_S, SILENCE_S, Node, Probe
from .wire import pack, reply_count, unpack

A = TypeVar("A")
R = TypeVar("R")

_RECEIVE_SIZE = 1 << 16

_NOTHING = object()  # returned by the reader if it has no complete reply


class BlockingConnection:
    """An open connection, used by one thread at a time. The constructor connects by a deadline."""

    def __init__(self, address: Address, deadline: float) -> None:
        self.created_at = time.monotonic()
        self._history = address.history
        self._connection = address.new_connection()
        self._socket = open_sync(self._connection, deadline, address.greeting)
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._wait_s = 0.0
        # Python's own timeouts cost a poll() before every send and receive; the kernel's do not.
        # TLS does not work with the kernel's.
        self._uses_kernel_timeout = not isinstance(self._socket, ssl.SSLSocket)
        if self._uses_kernel_timeout:
            self._socket.setblocking(True)

    @property
    def is_stale(self) -> bool:
        """Whether the server has closed it, or sent something without a request."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def request(
        self, payload: bytes, count: int, deadline: float, is_replaced: Callable[[], bool] | None
    ) -> list[Any]:
        """Send a request and read its `count` replies by the deadline.

        `is_replaced` is called every SILENCE_S while the server is silent. If it returns True, the
        request fails with ConnectionLost.

        Raises:
            NotSentInTime: the deadline passed.
            ConnectionLost: the connection broke, or no reply came in time; it must be closed.
        """
        self._deadline, self._is_replaced = deadline, is_replaced
        gets = self._reader.gets
        sent = 0
        try:
            while sent < len(payload):
                self._set_wait()
                sent += self._retry(self._socket.send, payload[sent:])
            self._history.sent += sent
            replies: list[Any] = []
            is_wait_set = True
            while len(replies) < count:
                reply = gets()
                if reply is _NOTHING:
                    if not is_wait_set:
                        self._set_wait()
                    is_wait_set = False
                    data = self._retry(self._socket.recv, _RECEIVE_SIZE)
                    if not data:
                        raise ConnectionLost(CLOSED_BY_SERVER)
                    self._history.received += len(data)
                    self._reader.feed(data)
                elif not isinstance(reply, hiredis.PushNotification):
                    replies.append(reply)
        except TimeoutError:
            if not sent:
                raise NotSentInTime from None
            raise ConnectionLost("no answer in time", timed_out=True) from None
        except hiredis.ProtocolError:
            raise ConnectionLost("the server's answer is not RESP") from None
        except OSError as error:
            raise ConnectionLost(f"connection lost ({error})") from None
        return replies

    def _retry(self, operation: Callable[[A], R], argument: A) -> R:
        """The result of a send or receive; TimeoutError if the deadline passes first."""
        while True:
            try:
                return operation(argument)
            except (TimeoutError, BlockingIOError):
                if self._is_replaced is not None and self._is_replaced():
                    raise ConnectionLost("the node has been replaced", timed_out=True) from None
                self._set_wait()

    def _set_wait(self) -> None:
        """Let a send or receive return after SILENCE_S at most, and by the deadline."""
        wait_s = self._deadline - time.monotonic()
        if wait_s > SILENCE_S:
            wait_s = SILENCE_S  # always the same, so that the socket is rarely changed
        elif wait_s <= 0:
            raise TimeoutError
        if wait_s == self._wait_s:
            return
        self._wait_s = wait_s
        if self._uses_kernel_timeout:
            timeval = struct.pack("ll", *divmod(max(int(wait_s * 1_000_000), 1), 1_000_000))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        else:
            self._socket.settimeout(wait_s)

    def close(self) -> None:
        """Close the socket."""
        self._connection.disconnect()


class RedisExecutor:
    """Executes Calls from any number of threads.

    A call takes `timeout_s` at most, retries included. Only name resolution may take longer:
    nothing can interrupt it. Writes wait for `durability`.
    """

    def __init__(
        self, deployment: Deployment, timeout_s: float, durability: Durability | None
    ) -> None:
        self.is_cluster = deployment.is_cluster
        self._deployment = deployment
        self._timeout_s = timeout_s
        self._durability = durability
        self._topology = deployment.new_topology()
        self._open: dict[Node, set[BlockingConnection]] = {}
        self._idle: dict[Node, list[BlockingConnection]] = {}
        self._discovery = threading.Lock()
        self._poll_at = 0.0 if self._topology.is_polled else math.inf
        self._pid = os.getpid()
        self._is_closed = False

    def traffic(self) -> Traffic:
        """What the connections have done, and how many are open now."""
        num_open = sum(len(each) for each in list(self._open.values()))
        num_idle = sum(len(each) for each in list(self._idle.values()))
        return self._deployment.traffic(num_open - num_idle, num_idle)

    def execute(self, call: Call[Any]) -> list[Any]:
        """One reply per command of the Call."""
        now = time.monotonic()
        deadline = now + self._timeout_s
        failure: AttemptFailed | None = None
        node: Node | None = None
        if self._topology.is_known:
            # Fast path: the topology is known and the call succeeds at once.
            if now >= self._poll_at:
                self._poll_at = now + SILENCE_S
                # At most half of the time, so that the call succeeds even if no server answers.
                self._discover_again(now + self._timeout_s / 2)
            node = self._topology.node_for(call)
            try:
                return self._send(call, Send(node), deadline)
            except AttemptFailed as error:
                failure = error
        attempts = Attempts(call, deadline, self._topology, self._deployment.history)
        return run(attempts.steps(failure, node, now), partial(self._perform, call, deadline))

    def _perform(self, call: Call[Any], deadline: float, step: Step) -> Any:
        """Carry out one step of the attempts at a Call."""
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        if isinstance(step, Reconnect):
            return self._close_idle(step.node, step.opened_before)
        if self._is_closed:
            raise ConnectFailed(CLOSED, final=True)
        if isinstance(step, Discover):
            return self._discover(deadline)
        return self._send(step.call or call, step, deadline)

    def _send(self, call: Call[Any], attempt: Send, deadline: float) -> list[Any]:
        """Send a Call once; returns one reply per command.

        Raises:
            AttemptFailed: it did not succeed.
            NotReplicated: it succeeded, but too few replicas confirmed it.
        """
        node, form, asking = attempt.node, attempt.form, attempt.is_asking
        connection = self._take(call, node, deadline)
        durability = self._durability if call.writes else None
        answer: Any = 0
        is_replaced = None
        if self._topology.is_routed and not isinstance(call, Probe):
            is_replaced = partial(self._is_replaced, node, deadline)
        try:
            payload = pack(call, form, asking=asking, began_at=attempt.began_at)
            count = reply_count(call, form, asking=asking)
            replies = connection.request(payload, count, deadline, is_replaced)
            results = unpack(replies, form, asking=asking)
            if durability is not None:
                answer_by = min(deadline, time.monotonic() + durability.timeout_s)
                try:
                    [answer] = connection.request(durability.request, 1, answer_by, is_replaced)
                except AttemptFailed:
                    if time.monotonic() < deadline:
                        raise
                    answer = None  # the reply may still come: do not reuse the connection
                    self._close(connection, node)
        except ErrorReply:
            self._give_back(connection, node)
            raise
        except BaseException as error:
            if isinstance(error, ConnectionLost):
                num_calls = len(self._open[node]) - len(self._idle[node])
                self._deployment.address_of(node).report_lost(str(error), num_calls)
                # Idle connections to the same node are probably lost too.
                self._close_idle(node)
            self._close(connection, node)
            raise
        if answer is not None:
            self._give_back(connection, node)
        if durability is not None:
            durability.check_confirmed(call, results, answer)
        return results

    # -- discovery -----------------------------------------------------------------------------

    def _discover(self, deadline: float) -> None:
        """Make the topology known. If many threads need it at once, one of them asks."""
        if not self._discovery.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise NotSentInTime
        try:
            if not self._topology.is_known:
                self._run_discovery(deadline)
        finally:
            self._discovery.release()

    def _discover_again(self, deadline: float) -> None:
        """Discover again, unless another thread does. A failure leaves the topology as it is."""
        if self._discovery.acquire(blocking=False):
            try:
                with suppress(AttemptFailed):
                    self._run_discovery(deadline)
            finally:
                self._discovery.release()

    def _run_discovery(self, deadline: float) -> None:
        deadline = min(deadline, time.monotonic() + DISCOVERY_TIMEOUT_S)
        executor: Any = SimpleNamespace(execute=partial(self._send_probe, deadline))
        drive(self._topology.discover(), executor)

    def _send_probe(self, deadline: float, call: Probe) -> list[Any]:
        deadline = min(deadline, time.monotonic() + PROBE_TIMEOUT_S)
        return self._send(call, Send(call.node), deadline)

    def _is_replaced(self, node: Node, deadline: float) -> bool:
        """Whether Calls to a silent node should go to another one."""
        self._topology.report_silence(node)
        self._discover_again(deadline)
        return node.is_replica or node not in self._topology.nodes

    # -- connections ---------------------------------------------------------------------------

    def _take(self, call: Call[Any], node: Node, deadline: float) -> BlockingConnection:
        """An idle connection, or a new one."""
        if self._is_closed:
            raise ConnectFailed(CLOSED, final=True)
        if self._pid != os.getpid():
            # A forked child must not use its parent's sockets. Dropping them closes only the
            # child's copies.
            self._pid, self._discovery = os.getpid(), threading.Lock()
            self._open, self._idle = {}, {}
        while (connection := self._pop_idle(node)) is not None:
            # The server may have closed it. A Call that is not idempotent could not be sent again.
            if call.idempotent or not connection.is_stale:
                return connection
            self._deployment.address_of(node).report_lost(CLOSED_BY_SERVER, num_calls=1)
            self._close(connection, node)
        return self._connect(node, deadline)

    def _connect(self, node: Node, deadline: float) -> BlockingConnection:
        address = self._deployment.address_of(node)
        now = time.monotonic()
        if now >= deadline:
            raise NotSentInTime
        if self._topology.is_routed:
            # A slower node is probably down. Its successor may be known soon.
            deadline = min(deadline, now + PROBE_TIMEOUT_S)
        try:
            connection = BlockingConnection(address, deadline)
        except ConnectFailed as failure:
            address.report_not_connected(failure, num_calls=1)
            raise
        address.report_connected()
        self._open.setdefault(node, set()).add(connection)
        self._idle.setdefault(node, [])
        return connection

    def _give_back(self, connection: BlockingConnection, node: Node) -> None:
        self._idle[node].append(connection)
        if self._is_closed:
            self.close()  # an earlier close() may have run while this connection was in use

    def _pop_idle(self, node: Node) -> BlockingConnection | None:
        try:
            return self._idle[node].pop()  # atomic
        except LookupError:
            return None

    def _close(self, connection: BlockingConnection, node: Node) -> None:
        self._open[node].discard(connection)
        connection.close()

    def _close_idle(self, node: Node, opened_before: float = math.inf) -> None:
        newer = []
        while (connection := self._pop_idle(node)) is not None:
            if connection.created_at < opened_before:
                self._close(connection, node)
            else:
                newer.append(connection)
        for connection in newer:
            self._give_back(connection, node)

    def close(self) -> None:
        """Close all connections; those in use are closed when their call ends."""
        self._is_closed = True
        for node in list(self._idle):
            self._close_idle(node)
