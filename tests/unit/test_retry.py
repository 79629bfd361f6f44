"""When a Call is sent again, to which node and in which form: no server, no socket."""

from __future__ import annotations

import logging
import time
from typing import Any

import hiredis
import pytest
from support.services import make_ops

from sessionstore import (
    BackendError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    NotReplicated,
    SessionKey,
)
from sessionstore.calls import Call
from sessionstore.scripts import SCRIPTS
from sessionstore.tiers import NO_CHANGE
from sessionstore.transport import retry
from sessionstore.transport.failures import (
    AttemptFailed,
    ConnectFailed,
    ConnectionLost,
    ErrorReply,
    NotSentInTime,
)
from sessionstore.transport.retry import (
    Attempts,
    ConnectHistory,
    Discover,
    Pause,
    Reconnect,
    Send,
    Step,
    run,
    run_async,
)
from sessionstore.transport.topology import (
    ONLY,
    SLOTS,
    ClusterTopology,
    Node,
    SingleTopology,
    Topology,
    slot_of,
)
from sessionstore.transport.wire import pack

A, B, C = Node("a", 1), Node("b", 2), Node("c", 3)
KEY = SessionKey("app", "user", "sid")
READ = make_ops().get_session(KEY, None, None)
TOUCHING_READ = make_ops(session_ttl=60).get_session(KEY, None, None)
WRITE = make_ops().delete_session(KEY)
POP = make_ops().pop_event(KEY, None)
CREATE = make_ops().create_session(KEY, "g", NO_CHANGE)
SLOT = slot_of(READ)
REPLIES = [b"the replies"]


class Tried:
    """The attempts at a Call in a cluster of one node; records the steps."""

    def __init__(
        self,
        call: Call[Any] = WRITE,
        *,
        topology: Topology | None = None,
        has_connected: bool = True,
        time_left: float = 1000.0,
    ) -> None:
        self.topology = topology or _cluster()
        history = ConnectHistory()
        history.has_connected = has_connected
        deadline = time.monotonic() + time_left
        self._steps = Attempts(call, deadline, self.topology, history).steps()
        self.step = next(self._steps)

    def fail(self, failure: Exception) -> Step:
        """Make the step fail, and return the next Send. Discoveries succeed, pauses end at once."""
        self.delay_s = 0.0
        step = self._steps.throw(failure)
        while not isinstance(step, Send):
            if isinstance(step, Pause):
                self.delay_s = step.seconds
            else:
                self.topology.is_known = True
            step = self._steps.send(None)
        self.step = step
        return step

    def succeed(self) -> Any:
        with pytest.raises(StopIteration) as ended:
            self._steps.send(REPLIES)
        return ended.value.value


def _cluster() -> ClusterTopology:
    topology = ClusterTopology([A])
    flow = topology.discover()
    next(flow)
    with pytest.raises(StopIteration):
        flow.send([[0, SLOTS - 1, [b"a", 1, b"id"]]])
    return topology


def moved(slot: int = SLOT) -> ErrorReply:
    return ErrorReply(f"MOVED {slot} b:2")


@pytest.fixture
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pause would end after the deadline."""
    monkeypatch.setattr(retry, "_FIRST_DELAY_S", 10_000.0)


def test_a_call_that_succeeds_is_sent_once() -> None:
    tried = Tried()
    assert tried.step == Send(A, "EVALSHA", is_asking=False)
    assert tried.succeed() == REPLIES


def test_an_unknown_topology_is_discovered_first() -> None:
    topology = ClusterTopology([A])
    steps = Attempts(WRITE, time.monotonic() + 10, topology, ConnectHistory()).steps()
    assert next(steps) == Discover()
    assert isinstance(steps.send(None), Send)


def test_a_failed_first_attempt_can_be_handed_over() -> None:
    steps = Attempts(WRITE, time.monotonic() + 10, SingleTopology(), ConnectHistory()).steps(
        ErrorReply("NOSCRIPT no matching script"), SingleTopology().node_for(WRITE)
    )
    step = next(steps)
    assert isinstance(step, Send)
    assert step.form == "EVAL"


def test_a_redirection_is_followed_at_once() -> None:
    tried = Tried()
    assert tried.fail(moved()) == Send(B, "EVALSHA", is_asking=False)
    assert tried.delay_s == 0
    assert tried.fail(ErrorReply(f"ASK {SLOT} c:3")) == Send(C, "EVALSHA", is_asking=True)
    assert tried.delay_s == 0
    assert tried.succeed() == REPLIES


def test_a_discovery_follows_a_redirection() -> None:
    steps = Attempts(WRITE, time.monotonic() + 10, _cluster(), ConnectHistory()).steps()
    next(steps)
    assert steps.throw(moved()) == Discover()
    assert steps.send(None) == Send(B, "EVALSHA", is_asking=False)


def test_asking_is_over_when_that_node_refuses_too() -> None:
    tried = Tried()
    tried.fail(ErrorReply(f"ASK {SLOT} c:3"))
    assert tried.fail(ErrorReply("TRYAGAIN Multiple keys")) == Send(A, "EVALSHA", False)


def test_nodes_that_redirect_to_each_other_are_asked_with_pauses() -> None:
    tried = Tried()
    delays = []
    for _ in range(8):
        tried.fail(moved())
        delays.append(tried.delay_s)
    assert [delay > 0 for delay in delays] == [False, False, False, True] * 2


@pytest.mark.parametrize("call", [READ, TOUCHING_READ, CREATE])
@pytest.mark.parametrize("reply", [f"ASK {SLOT} b:2", "TRYAGAIN Multiple keys"])
def test_no_transaction_is_sent_while_its_slot_moves(call: Call[Any], reply: str) -> None:
    step = Tried(call).fail(ErrorReply(reply))
    assert isinstance(step, Send)
    assert step.form == "WITHOUT_MULTI"


def test_a_script_that_the_importing_node_does_not_know_is_sent_there_in_full() -> None:
    tried = Tried()
    tried.fail(ErrorReply(f"ASK {SLOT} b:2"))
    assert tried.fail(ErrorReply("NOSCRIPT")) == Send(B, "EVAL", is_asking=True)
    assert tried.delay_s == 0


def test_a_read_that_is_refused_for_lack_of_memory_is_sent_without_multi() -> None:
    step = Tried(READ).fail(ErrorReply("OOM command not allowed"))
    assert isinstance(step, Send)
    assert step.form == "WITHOUT_MULTI"
    with pytest.raises(BackendRejected, match="OOM"):
        Tried(WRITE).fail(ErrorReply("OOM command not allowed"))


@pytest.mark.parametrize("code", ["TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY"])
@pytest.mark.parametrize("call", [WRITE, POP, READ])
def test_transient_errors_are_retried_with_growing_pauses(call: Call[Any], code: str) -> None:
    tried = Tried(call)
    delays = []
    for _ in range(12):
        tried.fail(ErrorReply(f"{code} why"))
        delays.append(tried.delay_s)
    assert 0.005 <= delays[0] <= 0.015
    assert 0.1 <= delays[-1] <= 0.3


@pytest.mark.usefixtures("no_time")
@pytest.mark.parametrize("code", ["TRYAGAIN", "LOADING", "READONLY"])
def test_a_transient_error_is_final_when_there_is_no_time_for_a_retry(code: str) -> None:
    with pytest.raises(BackendError, match=code) as caught:
        Tried().fail(ErrorReply(f"{code} why"))
    assert isinstance(caught.value, BackendUnavailable)
    assert not caught.value.maybe_applied


@pytest.mark.parametrize("code", ["MOVED", "ASK"])
def test_a_single_server_that_redirects_is_a_final_error(code: str) -> None:
    with pytest.raises(BackendUnavailable):
        Tried(topology=SingleTopology()).fail(ErrorReply(f"{code} 1 b:2"))


@pytest.mark.parametrize("topology", [SingleTopology(), None])
@pytest.mark.parametrize("code", ["READONLY", "MASTERDOWN"])
def test_older_connections_to_a_replica_are_dropped(topology: Topology | None, code: str) -> None:
    topology = topology or _cluster()
    before = time.monotonic()
    steps = Attempts(WRITE, before + 10, topology, ConnectHistory()).steps()
    node = next(steps).node  # type: ignore[union-attr]  # it is a Send
    step = steps.throw(ErrorReply(f"{code} why"))
    assert isinstance(step, Reconnect)
    assert step.node == node
    assert before <= step.opened_before <= time.monotonic()
    assert isinstance(steps.send(None), Pause)


@pytest.mark.usefixtures("no_time")
def test_a_single_server_that_stays_a_replica_refuses() -> None:
    with pytest.raises(BackendRejected, match="read-only replica") as caught:
        Tried(topology=SingleTopology()).fail(ErrorReply("READONLY why"))
    assert not caught.value.maybe_applied


# -- the age of a repeat -------------------------------------------------------------------------

AGED = Call("aged", list, SCRIPTS["clear_events"], keys=(b"k",), args=(b"a", b""), age_argument=1)


def _age_us(step: Step) -> int:
    assert isinstance(step, Send)
    reader = hiredis.Reader()
    reader.feed(pack(AGED, step.form, began_at=step.began_at))
    *_, first, age = reader.gets()
    assert first == b"a"
    return int(age or 0)


def test_a_repeat_after_an_unknown_outcome_carries_its_age() -> None:
    tried = Tried(AGED)
    assert _age_us(tried.step) == 0
    assert _age_us(tried.fail(ErrorReply("NOSCRIPT"))) == 0
    assert _age_us(tried.fail(ErrorReply("LOADING"))) == 0
    assert _age_us(tried.fail(ConnectFailed("refused", final=False))) == 0
    assert _age_us(tried.fail(ConnectionLost("gone"))) > 1_000_000
    # From now on each attempt may be a repeat.
    assert _age_us(tried.fail(moved())) > 1_000_000
    assert _age_us(tried.fail(ConnectFailed("refused", final=False))) > 1_000_000


def test_the_age_counts_from_the_beginning_of_the_call_to_its_deadline() -> None:
    """The server may get the repeat at any time until then."""
    attempts = Attempts(AGED, time.monotonic() + 10, SingleTopology(), ConnectHistory())
    steps = attempts.steps(ConnectionLost("gone"), ONLY, time.monotonic() - 5)
    step = next(steps)
    while not isinstance(step, Send):
        step = steps.send(None)
    assert 15_000_000 <= _age_us(step) <= 17_000_000


def test_other_calls_do_not_change_when_they_are_repeated() -> None:
    assert pack(CREATE, "EVALSHA", began_at=1.0) == pack(CREATE, "EVALSHA")


def test_maybe_applied_stays_true_through_redirections() -> None:
    tried = Tried()
    tried.fail(ConnectionLost("gone"))
    tried.fail(moved())
    with pytest.raises(BackendError) as caught:
        tried.fail(ErrorReply("OOM command not allowed"))
    assert caught.value.maybe_applied


def test_a_call_that_is_not_idempotent_is_redirected_but_not_sent_again_after_a_loss() -> None:
    tried = Tried(POP)
    assert isinstance(tried.fail(moved()), Send)
    with pytest.raises(BackendUnavailable) as caught:
        tried.fail(ConnectionLost("gone"))
    assert caught.value.maybe_applied


def test_a_failed_connect_is_retried_if_a_server_was_ever_reached() -> None:
    refused = ConnectFailed("refused", final=False)
    assert isinstance(Tried().fail(refused), Send)
    with pytest.raises(BackendUnavailable, match="delete_session: refused"):
        Tried(has_connected=False).fail(refused)
    with pytest.raises(BackendUnavailable, match="wrong password"):
        Tried().fail(ConnectFailed("wrong password", final=True))


@pytest.mark.usefixtures("no_time")
@pytest.mark.parametrize("call", [WRITE, READ])
def test_the_error_says_whether_the_deadline_passed(call: Call[Any]) -> None:
    with pytest.raises(BackendTimeout, match="could not be sent within call_timeout") as caught:
        Tried(call).fail(NotSentInTime())
    assert not caught.value.maybe_applied
    with pytest.raises(BackendTimeout, match="no answer in time") as caught:
        Tried(call).fail(ConnectionLost("no answer in time", timed_out=True))
    assert caught.value.maybe_applied == call.writes
    with pytest.raises(BackendTimeout, match="no connection in time"):
        Tried(call, time_left=0).fail(ConnectFailed("no connection in time", final=False))
    with pytest.raises(BackendUnavailable, match="gone"):
        Tried(call).fail(ConnectionLost("gone"))


def test_other_exceptions_pass_through() -> None:
    with pytest.raises(NotReplicated):
        Tried().fail(NotReplicated("one", confirmed=0, replies=[]))


def test_retries_are_logged_without_the_text_of_replies(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "sessionstore")
    tried = Tried()
    tried.fail(ErrorReply("TRYAGAIN session:{app:user}:sid secret"))
    tried.fail(ConnectionLost("gone"))
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("delete_session: attempt 1 failed (TRYAGAIN); retry in 0.0")
    assert second.startswith("delete_session: attempt 2 failed (ConnectionLost); retry in 0.0")
    assert {record.levelname for record in caplog.records} == {"DEBUG"}


# -- the drivers ---------------------------------------------------------------------------------


class Script:
    """Performs steps with scripted outcomes."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.steps: list[Step] = []

    def perform(self, step: Step) -> Any:
        self.steps.append(step)
        if not isinstance(step, Send):
            return None
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def perform_async(self, step: Step) -> Any:
        return self.perform(step)


async def _run(mode: str, script: Script) -> list[Any]:
    attempts = Attempts(WRITE, time.monotonic() + 10, SingleTopology(), ConnectHistory())
    if mode == "async":
        return await run_async(attempts.steps(), script.perform_async)
    return run(attempts.steps(), script.perform)


@pytest.mark.parametrize("mode", ["async", "sync"])
async def test_the_drivers_perform_steps_until_one_gives_replies(mode: str) -> None:
    script = Script(ErrorReply("LOADING"), ErrorReply("NOSCRIPT"), REPLIES)
    assert await _run(mode, script) == REPLIES
    assert [type(step) for step in script.steps] == [Send, Pause, Send, Send]
    assert script.steps[-1] == Send(ONLY, "EVAL", is_asking=False)


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("error", [ErrorReply("ERR no"), RuntimeError("a bug")])
async def test_the_drivers_raise_what_ends_the_attempts(mode: str, error: Exception) -> None:
    expected = BackendRejected if isinstance(error, AttemptFailed) else RuntimeError
    with pytest.raises(expected):
        await _run(mode, Script(error))


@pytest.mark.parametrize("mode", ["async", "sync"])
async def test_the_key_of_a_wrong_type_is_searched_for(mode: str) -> None:
    script = Script(ErrorReply("WRONGTYPE"), [3], ErrorReply("WRONGTYPE"))
    session, events, _ = WRITE.keys
    with pytest.raises(BackendRejected) as caught:
        await _run(mode, script)
    assert f"(WRONGTYPE; key: {events.decode()})" in str(caught.value)
    checks = [step.call for step in script.steps if isinstance(step, Send) and step.call]
    assert [check.commands for check in checks] == [(("HLEN", session),), (("ZCARD", events),)]


@pytest.mark.parametrize("mode", ["async", "sync"])
async def test_a_key_of_a_wrong_type_that_is_not_found_is_not_named(mode: str) -> None:
    for outcomes in ([[0]] * 3, [[0], ErrorReply("NOPERM")], [ConnectionLost("gone")]):
        with pytest.raises(BackendRejected, match="WRONGTYPE; first key: session:"):
            await _run(mode, Script(ErrorReply("WRONGTYPE"), *outcomes))
