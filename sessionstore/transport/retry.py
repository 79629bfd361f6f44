"""Retrying: what to send next, to which node, in which form, and when. Does no I/O.

`Attempts.steps` is a generator of steps. `run_async` and `run` carry the steps out with a function
of the transport and throw failures back into the generator, which then decides what to do.

Deadlines are absolute, in seconds of time.monotonic(). asyncio's loop.time() reads the same clock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any, NamedTuple

import msgspec

from ..calls import Call, reply_error
from ..errors import BackendError, BackendTimeout, BackendUnavailable
from ..keys import type_check
from .failures import AttemptFailed, ConnectFailed, ConnectionLost, ErrorReply, NotSentInTime
from .log import logger
from .topology import Node, Topology, redirection
from .wire import Form

_FIRST_DELAY_S = 0.01
_LONGEST_DELAY_S = 0.5
_LONGEST_DELAY_ROUTED_S = 0.2  # shorter: another server may just have taken over
_REDIRECTIONS_PER_DELAY = 4  # two nodes may disagree and redirect to each other
# A server closes the connection instead of sending a reply that exceeds its buffer limit. After so
# many times, a large read gets a connection of its own; then it fails.
_CUTS_UNTIL_ALONE = 2
_CUT_READS_LIMIT = 4
_CUT_READS = (
    f"the server closed the connection {_CUT_READS_LIMIT} times instead of replying; "
    "the reply may be larger than its client-output-buffer-limit for normal clients allows"
)


class Pause(NamedTuple):
    """Wait before the next attempt."""

    seconds: float


class Discover(NamedTuple):
    """Ask the servers where the data is."""


class Send(msgspec.Struct, frozen=True):
    """Send the Call and return its replies."""

    node: Node
    form: Form = "EVALSHA"
    is_asking: bool = False  # with ASKING: the node is importing the slot
    # If the call may have been executed before: when it began, less the time that is left, because
    # this attempt may arrive at any time until the deadline.
    began_at: float | None = None
    is_alone: bool = False  # on a connection of its own, which the server may close
    call: Call[Any] | None = None  # instead of the Call of the attempts


class Reconnect(NamedTuple):
    """Drop older connections to a node: its name may resolve to another server now."""

    node: Node
    opened_before: float


Step = Pause | Discover | Reconnect | Send
Steps = Generator[Step, Any, list[Any]]


class ConnectHistory:
    """What has happened on the connections of a deployment, counted for telemetry.

    Threads may share it: a race costs a count at most.

    Attributes:
        has_connected: any server was ever reached.
        opened: connections that were opened.
        lost: connections that ended unexpectedly.
        sent: bytes that were sent, without those of handshakes.
        received: bytes that were received, likewise.
        retries: attempts that were repeated, by the reason.
    """

    def __init__(self) -> None:
        self.has_connected = False
        self.opened = 0
        self.lost = 0
        self.sent = 0
        self.received = 0
        self.retries: dict[str, int] = {}

    def count_retry(self, reason: str) -> None:
        """Count an attempt that is repeated."""
        self.retries[reason] = self.retries.get(reason, 0) + 1


class Traffic(NamedTuple):
    """What an executor's connections have done, and how many are open.

    Attributes:
        history: since the service was made.
        num_used: connections on which calls wait for replies.
        num_idle: the other open ones.
        server: host and port, or the path of a socket and None; None if there are several servers.
        database: its number.
    """

    history: ConnectHistory
    num_used: int
    num_idle: int
    server: tuple[str, int | None] | None
    database: int


class Attempts:
    """All attempts at one Call, until its deadline. The topology learns from failures."""

    def __init__(
        self, call: Call[Any], deadline: float, topology: Topology, history: ConnectHistory
    ) -> None:
        self._call = call
        self._deadline = deadline
        self._topology = topology
        self._history = history
        self._form: Form = "EVALSHA"
        self._asking_node: Node | None = None  # where an ASK reply sends the next attempt
        self._num_failures = 0
        self._num_redirections = 0
        self._num_cut_reads = 0
        self._delay_s = _FIRST_DELAY_S
        self._maybe_applied = False
        self._refusal: ErrorReply | None = None  # the last transient one
        self._wrong_key: bytes | None = None  # of a wrong type

    def steps(
        self,
        failure: AttemptFailed | None = None,
        node: Node | None = None,
        began_at: float | None = None,
    ) -> Steps:
        """Attempt the Call until it succeeds; the generator's return value is the replies.

        If a first attempt was made already: `node` is where, `failure` why it failed, `began_at`
        when it began. The generator raises a SessionStoreError when it gives up.
        """
        began_at = attempt_at = time.monotonic() if began_at is None else began_at
        is_asking = False
        while True:
            if failure is not None:
                if node is not None and failure.kind == "WRONGTYPE":
                    self._wrong_key = yield from self._find_wrong_key(node, is_asking)
                delay_s = self._next_delay(failure, node)
                self._history.count_retry(failure.kind)
                text = "%s: attempt %d failed (%s); retry in %.3f s"
                logger.debug(text, self._call.name, self._num_failures, failure.kind, delay_s)
                must_reconnect = isinstance(failure, ErrorReply) and failure.needs_new_connection
                if node is not None and must_reconnect:
                    yield Reconnect(node, attempt_at)
                if delay_s:
                    yield Pause(delay_s)
            node = self._asking_node
            is_asking = node is not None
            try:
                if node is None:
                    if not self._topology.is_known:
                        yield Discover()
                    node = self._topology.node_for(self._call)
                attempt_at = time.monotonic()
                left_s = max(self._deadline - attempt_at, 0.0)
                since = began_at - left_s if self._maybe_applied else None
                is_alone = self._num_cut_reads >= _CUTS_UNTIL_ALONE
                replies: list[Any] = yield Send(node, self._form, is_asking, since, is_alone)
            except AttemptFailed as error:
                failure = error
            else:
                return replies

    def _find_wrong_key(self, node: Node, is_asking: bool) -> Generator[Step, Any, bytes | None]:
        """The key whose type the server has refused. Its reply does not name it."""
        read = (command[1] for command in self._call.commands)
        for key in dict.fromkeys((*self._call.keys, *read)):
            assert isinstance(key, bytes)  # commands without a key are never refused so
            check = Call("type_check", list, commands=(type_check(key),), writes=False)
            try:
                yield Send(node, is_asking=is_asking, call=check)
            except AttemptFailed as failure:
                return key if failure.kind == "WRONGTYPE" else None
        return None

    def _next_delay(self, failure: AttemptFailed, node: Node | None) -> float:
        """Seconds to wait before the next attempt; raises the final error if there is none."""
        self._num_failures += 1
        is_final = isinstance(failure, NotSentInTime)
        if node is not None and not is_final:
            self._topology.report_failure(failure, node)
        asking_node, self._asking_node = self._asking_node, None
        if isinstance(failure, ErrorReply):
            form = self._other_form(failure)
            if form is not None:
                self._form, self._asking_node = form, asking_node
                return 0.0
            is_routed = self._topology.is_routed
            if node is not None and is_routed and self._can_follow_redirection(failure, node):
                return 0.0
            is_final = not failure.is_transient and not (is_routed and failure.is_redirection)
            self._refusal = failure
        elif isinstance(failure, ConnectFailed):
            # No server was ever reached: most likely the address is wrong, so fail at once.
            was_reached = self._history.has_connected or failure.was_reached
            is_final = failure.final or not was_reached
            if node is not None and node.is_replica:  # the primary can answer instead
                is_final = False
        elif isinstance(failure, ConnectionLost):
            self._maybe_applied |= self._call.writes
            is_final = not self._call.idempotent
            if self._call.is_bulk and not self._call.writes and not failure.timed_out:
                self._num_cut_reads += 1
                if self._num_cut_reads == _CUT_READS_LIMIT:
                    is_final, failure = True, ConnectionLost(_CUT_READS)
        delay_s = self._delay_s * random.uniform(0.5, 1.5)
        if is_final or time.monotonic() + delay_s >= self._deadline:
            raise self._error(failure, is_final=is_final) from None
        longest_s = _LONGEST_DELAY_ROUTED_S if self._topology.is_routed else _LONGEST_DELAY_S
        self._delay_s = min(self._delay_s * 2, longest_s)
        return delay_s

    def _other_form(self, failure: ErrorReply) -> Form | None:
        """Another form that this server accepts. It did nothing with the one that it refused."""
        if failure.kind == "NOSCRIPT" and self._form == "EVALSHA":
            return "EVAL"
        # A server that is out of memory refuses to queue commands. Reads work without MULTI.
        is_read = not self._call.writes
        if failure.kind == "OOM" and is_read and self._form != "WITHOUT_MULTI":
            return "WITHOUT_MULTI"
        return None

    def _can_follow_redirection(self, failure: ErrorReply, node: Node) -> bool:
        """Whether to follow a redirection at once, without a delay."""
        num_commands = len(self._call.commands) + (self._call.script is not None)
        if num_commands > 1 and failure.is_slot_moving:
            # A transaction fails while its slot is moving. A script works once its keys are moved.
            self._form = "WITHOUT_MULTI"
        if failure.kind not in ("MOVED", "ASK"):
            return False
        if failure.kind == "ASK":
            self._asking_node = redirection(failure, node)[1]
        self._num_redirections += 1
        return self._num_redirections % _REDIRECTIONS_PER_DELAY != 0

    def _error(self, failure: AttemptFailed, *, is_final: bool) -> Exception:
        """What the caller gets. Any earlier attempt may have been executed."""
        if isinstance(failure, NotSentInTime) and self._refusal is not None:
            failure, is_final = self._refusal, False  # the more useful message
        is_replica = not self._topology.is_routed and failure.kind == "READONLY"
        if isinstance(failure, ErrorReply) and (is_final or is_replica):
            error = reply_error(self._call, str(failure), self._wrong_key)
            if isinstance(error, BackendError):
                error.maybe_applied = self._maybe_applied
            return error
        timed_out = isinstance(failure, NotSentInTime) or (
            isinstance(failure, ConnectionLost) and failure.timed_out
        )
        is_over = time.monotonic() >= self._deadline
        kind = BackendTimeout if timed_out or is_over else BackendUnavailable
        return kind(f"{self._call.name}: {failure}", maybe_applied=self._maybe_applied)


async def run_async(steps: Steps, perform: Callable[[Step], Awaitable[Any]]) -> list[Any]:
    """The replies to a Call, over asyncio.

    `perform` carries out one step. It raises AttemptFailed; other exceptions end the attempts.
    """
    try:
        step = next(steps)
        while True:
            try:
                result = await perform(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # StopIteration.value is untyped


def run(steps: Steps, perform: Callable[[Step], Any]) -> list[Any]:
    """The replies to a Call, in this thread. The same as `run_async` otherwise."""
    try:
        step = next(steps)
        while True:
            try:
                result = perform(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # StopIteration.value is untyped
