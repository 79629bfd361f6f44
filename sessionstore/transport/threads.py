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
from functools import partial
from typing import Any, TypeVar

import hiredis

from ..calls import Call
from ..drive import drive
from .address import Deployment
from .durability import Durability
from .failures import CLOSED_BY_SERVER, AttemptFailed, ConnectFailed, ConnectionLost
from .redis_py import open_sync
from .retry import CLOSED, Attempts, Discover, Pause, Step, not_sent_in_time, run
from .topology import DISCOVERY_TIMEOUT_S, PROBE_TIMEOUT_S, SILENCE_S, Node, Probe
from .wire import Form, pack, reply_count, unpack

A = TypeVar("A")
R = TypeVar("R")

_RECEIVE_SIZE = 1 << 16

_NOTHING = object()  # returned by the reader if it has no complete reply


class BlockingConnection:
    """An open connection, used by one thread at a time.

    Args:
        connection: redis-py's connection, not yet connected.
        deadline: when connecting and the handshake must be done.

    Raises:
        ConnectFailed: no connection.
    """

    def __init__(self, connection: Any, deadline: float) -> None:
        self._connection = connection
        self._socket: socket.socket = open_sync(connection, deadline)
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
        self,
        payload: bytes,
        count: int,
        deadline: float,
        is_replaced: Callable[[], bool] | None = None,
    ) -> list[Any]:
        """Send a request and read its replies.

        Args:
            payload: the request.
            count: number of replies.
            deadline: when the last reply must be there.
            is_replaced: called now and then while the server is silent; True = give up.

        Raises:
            TimeoutError: the deadline passed before anything was sent.
            ConnectionLost: the connection broke, or no reply came in time; it must be closed.
        """
        gets = self._reader.gets
        sent = 0
        try:
            while sent < len(payload):
                sent += self._retry(self._socket.send, payload[sent:], deadline, is_replaced)
            replies: list[Any] = []
            while len(replies) < count:
                reply = gets()
                if reply is _NOTHING:
                    data = self._retry(self._socket.recv, _RECEIVE_SIZE, deadline, is_replaced)
                    if not data:
                        raise ConnectionLost(CLOSED_BY_SERVER)
                    self._reader.feed(data)
                elif not isinstance(reply, hiredis.PushNotification):
                    replies.append(reply)
        except TimeoutError:
            if not sent:
                raise
            raise ConnectionLost("no answer in time", timed_out=True) from None
        except hiredis.ProtocolError:
            raise ConnectionLost("the server's answer is not RESP") from None
        except OSError as error:
            raise ConnectionLost(f"connection lost ({error})") from None
        return replies

    def _retry(
        self,
        operation: Callable[[A], R],
        argument: A,
        deadline: float,
        is_replaced: Callable[[], bool] | None,
    ) -> R:
        """The result of a send or receive; TimeoutError if the deadline passes first."""
        while True:
            self._set_wait(deadline)
            try:
                return operation(argument)
            except (TimeoutError, BlockingIOError):
                if is_replaced is not None and is_replaced():
                    raise ConnectionLost("the node has been replaced", timed_out=True) from None

    def _set_wait(self, deadline: float) -> None:
        """Let a send or receive return after SILENCE_S at most, and by the deadline.

        Raises:
            TimeoutError: the deadline has passed.
        """
        wait_s = deadline - time.monotonic()
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

    Args:
        deployment: the servers.
        timeout_s: how long a call may take, retries included. Name resolution may take longer:
            nothing can interrupt it.
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
        self._open: dict[Node, set[BlockingConnection]] = {}
        self._idle: dict[Node, list[BlockingConnection]] = {}
        self._discovery = threading.Lock()
        self._poll_at = 0.0 if self._topology.is_polled else math.inf
        self._pid = os.getpid()
        self._is_closed = False

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
                # Half of the time, so that the call succeeds even if nobody answers this.
                self._discover_again(now + self._timeout_s / 2)
            node = self._topology.node_for(call)
            try:
                return self._send(call, node, Form.EVALSHA, deadline)
            except TimeoutError:
                raise not_sent_in_time(call) from None
            except AttemptFailed as error:
                failure = error
        attempts = Attempts(call, deadline, self._topology, self._deployment.history)
        return run(attempts.steps(failure, node), partial(self._perform, call, deadline))

    def _perform(self, call: Call[Any], deadline: float, step: Step) -> Any:
        """Carry out one step of the attempts at a Call."""
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        if self._is_closed:
            raise ConnectFailed(CLOSED, final=True)
        if isinstance(step, Discover):
            return self._discover(deadline)
        return self._send(call, step.node, step.form, deadline, asking=step.is_asking)

    def _send(
        self,
        call: Call[Any],
        node: Node,
        form: Form,
        deadline: float,
        *,
        asking: bool = False,
        is_probe: bool = False,
    ) -> list[Any]:
        """Send a Call once; returns one reply per command.

        Raises:
            TimeoutError: the deadline passed before it was sent.
            AttemptFailed: it did not succeed.
            NotReplicated: it succeeded, but too few replicas confirmed it.
        """
        connection = self._take(call, node, deadline)
        durability = self._durability if call.writes else None
        answer: Any = 0
        try:
            payload = pack(call, form, asking=asking)
            count = reply_count(call, form, asking=asking)
            is_replaced = None
            if self._topology.is_routed and not is_probe:
                is_replaced = partial(self._is_replaced, node, deadline)
            replies = connection.request(payload, count, deadline, is_replaced)
            if durability is not None:
                if _has_error(replies):
                    durability = None
                else:
                    answer = _wait_for_replicas(connection, durability, deadline, is_replaced)
        except BaseException as error:
            if isinstance(error, ConnectionLost):
                num_calls = len(self._open[node]) - len(self._idle[node])
                self._deployment.address_of(node).log.lost(str(error), num_calls)
                # Idle connections to the same node are probably lost too.
                self._close_idle(node)
            self._close(connection, node)
            raise
        if answer is None:
            self._close(connection, node)  # the reply to WAIT is still to come
        else:
            self._idle[node].append(connection)
            if self._is_closed:
                self.close()  # it may have missed this connection
        results = unpack(replies, form, asking=asking)
        if durability is not None:
            durability.check_confirmed(call, results, answer)
        return results

    # -- discovery -----------------------------------------------------------------------------

    def _discover(self, deadline: float) -> None:
        """Make the topology known. If many threads need it at once, one of them asks."""
        if not self._discovery.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise TimeoutError
        try:
            if not self._topology.is_known:
                self._run_discovery(deadline)
        finally:
            self._discovery.release()

    def _discover_again(self, deadline: float) -> None:
        """Check where the data is, unless another thread does. If that fails, nothing changes."""
        if self._discovery.acquire(blocking=False):
            try:
                self._run_discovery(deadline)
            except ConnectFailed:
                pass
            finally:
                self._discovery.release()

    def _run_discovery(self, deadline: float) -> None:
        deadline = min(deadline, time.monotonic() + DISCOVERY_TIMEOUT_S)
        drive(self._topology.discover(), _ProbeExecutor(self, deadline))

    def probe(self, call: Probe, deadline: float) -> list[Any]:
        """Send a question about the topology; raises AttemptFailed or TimeoutError."""
        deadline = min(deadline, time.monotonic() + PROBE_TIMEOUT_S)
        return self._send(call, call.node, Form.EVALSHA, deadline, is_probe=True)

    def _is_replaced(self, node: Node, deadline: float) -> bool:
        """Whether calls to a silent node should go to another one."""
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
            self._deployment.address_of(node).log.lost(CLOSED_BY_SERVER, num_calls=1)
            self._close(connection, node)
        return self._connect(node, deadline)

    def _connect(self, node: Node, deadline: float) -> BlockingConnection:
        address = self._deployment.address_of(node)
        now = time.monotonic()
        if now >= deadline:
            raise TimeoutError
        connect_by = deadline
        if self._topology.is_routed:
            # A slower node is probably gone. Then its successor may be known soon.
            connect_by = min(deadline, now + PROBE_TIMEOUT_S)
        try:
            connection = BlockingConnection(address.new_connection(), connect_by)
        except ConnectFailed as failure:
            address.report_not_connected(failure, num_calls=1)
            raise
        if address.first_request:
            try:
                [reply] = connection.request(address.first_request, 1, connect_by)
                address.check_first_reply(reply)
            except BaseException:
                connection.close()
                raise
        address.report_connected()
        self._open.setdefault(node, set()).add(connection)
        self._idle.setdefault(node, [])
        return connection

    def _pop_idle(self, node: Node) -> BlockingConnection | None:
        try:
            return self._idle[node].pop()  # atomic
        except LookupError:
            return None

    def _close(self, connection: BlockingConnection, node: Node) -> None:
        self._open[node].discard(connection)
        connection.close()

    def _close_idle(self, node: Node) -> None:
        while (connection := self._pop_idle(node)) is not None:
            self._close(connection, node)

    def close(self) -> None:
        """Close all connections; those in use are closed when their call ends."""
        self._is_closed = True
        for node in list(self._idle):
            self._close_idle(node)


class _ProbeExecutor:
    """Runs a discovery: sends every Probe to its node, until a deadline."""

    def __init__(self, executor: RedisExecutor, deadline: float) -> None:
        self._executor = executor
        self._deadline = deadline

    def execute(self, call: Call[Any]) -> list[Any]:
        assert isinstance(call, Probe)
        return self._executor.probe(call, self._deadline)

    def close(self) -> None:
        """Nothing to close."""


def _has_error(replies: list[Any]) -> bool:
    return any(isinstance(reply, hiredis.ReplyError) for reply in replies)


def _wait_for_replicas(
    connection: BlockingConnection,
    durability: Durability,
    deadline: float,
    is_replaced: Callable[[], bool] | None,
) -> Any:
    """The reply to a WAIT that is sent after the write; None if none comes in time."""
    answer_by = min(deadline, time.monotonic() + durability.timeout_s)
    try:
        [answer] = connection.request(durability.request, 1, answer_by, is_replaced)
    except (TimeoutError, ConnectionLost):
        if time.monotonic() < deadline:
            raise
        return None
    return answer
