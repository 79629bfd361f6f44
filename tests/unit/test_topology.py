"""Which node a Call goes to, and when it is sent again: no server, no socket."""

from __future__ import annotations

from typing import Any

import pytest
from support.services import make_ops

from sessionstore import SessionKey
from sessionstore.calls import Call
from sessionstore.drive import drive
from sessionstore.tiers import NO_CHANGE
from sessionstore.transport.failures import (
    AttemptFailed,
    ConnectFailed,
    ConnectionLost,
    ErrorReply,
    NotSentInTime,
)
from sessionstore.transport.topology import (
    SLOTS,
    ClusterTopology,
    Node,
    Probe,
    SentinelTopology,
    SingleTopology,
    Topology,
    redirection,
    slot_of,
)
from sessionstore.transport.wire import Form, pack, reply_count, unpack

A, B, C = Node("a", 1), Node("b", 2), Node("c", 3)
S1, S2, S3 = (Node("s", number, is_sentinel=True) for number in (1, 2, 3))
KEY = SessionKey("app", "user", "sid")
READ = make_ops().get_session(KEY, None, None)
TOUCHING_READ = make_ops(session_ttl=60).get_session(KEY, None, None)
WRITE = make_ops().clear_events(KEY, None)
POP = make_ops().pop_event(KEY, None)
CREATE = make_ops().create_session(KEY, "g", NO_CHANGE)
SLOT = slot_of(READ)


class Asked:
    """Executes the Probes of a discovery with scripted answers; records each node and command."""

    def __init__(self, topology: Topology, answers: dict[Node, Any]) -> None:
        self.asked: list[tuple[Node, str]] = []
        self._answers = answers
        drive(topology.discover(), self)

    def execute(self, call: Call[Any]) -> list[Any]:
        assert isinstance(call, Probe)
        self.asked.append((call.node, " ".join(map(str, call.commands[0]))))
        answer = self._answers[call.node]
        if isinstance(answer, dict):
            answer = answer[call.commands[0][0]]
        if isinstance(answer, Exception):
            raise answer
        return [answer]

    def close(self) -> None:
        pass

    @property
    def nodes(self) -> list[Node]:
        return [node for node, _ in self.asked]


def primary(node: Node) -> list[Any]:
    return [node.host.encode(), node.port, b"id"]


WHOLE = [[0, 5460, primary(A), primary(C)], [5461, SLOTS - 1, primary(B)]]


# -- one server ----------------------------------------------------------------------------------


def test_a_single_server_is_always_known() -> None:
    topology = SingleTopology()
    node = topology.node_for(READ)
    topology.report_failure(ConnectionLost("gone"), node)
    assert topology.is_known
    assert not topology.is_routed
    assert Asked(topology, {}).asked == []


# -- a cluster -----------------------------------------------------------------------------------


def test_a_cluster_is_asked_for_its_map_once() -> None:
    topology = ClusterTopology([A])
    assert not topology.is_known
    assert Asked(topology, {A: WHOLE}).asked == [(A, "CLUSTER SLOTS")]
    assert topology.is_known
    assert topology.node_for(READ) == (A if SLOT <= 5460 else B)


def test_all_slots_have_their_node() -> None:
    topology = ClusterTopology([A])
    Asked(topology, {A: WHOLE})
    for number in range(200):
        call = make_ops().get_session(SessionKey("app", f"user-{number}", "s"), None, None)
        assert topology.node_for(call) == (A if slot_of(call) <= 5460 else B)


def test_the_next_node_is_asked_when_one_does_not_answer() -> None:
    topology = ClusterTopology([A, B, C])
    lost = ConnectionLost("gone")
    found = Asked(topology, {A: lost, B: ConnectFailed("refused", final=False), C: WHOLE})
    assert found.nodes == [A, B, C]
    assert topology.is_known


def test_known_nodes_are_asked_first_then_those_of_the_url_then_the_lost_ones() -> None:
    """A lost node may be stopped and not dead; then asking it takes until the timeout."""
    for _ in range(20):
        topology = ClusterTopology([C])
        Asked(topology, {C: WHOLE})
        topology.report_failure(ConnectionLost("gone", timed_out=True), A)
        assert not topology.is_known
        lost = ConnectionLost("gone")
        assert Asked(topology, {B: lost, C: lost, A: WHOLE}).nodes == [B, C, A]
        topology.report_failure(ConnectionLost("gone"), B)
        assert Asked(topology, {A: WHOLE}).nodes == [A]


def test_a_cluster_without_a_node_that_answers_raises_with_the_reasons() -> None:
    topology = ClusterTopology([A, B])
    with pytest.raises(ConnectFailed, match=r"no node of the cluster answers.*refused") as caught:
        Asked(topology, dict.fromkeys((A, B), ConnectFailed("refused", final=False)))
    assert not caught.value.final
    with pytest.raises(ConnectFailed, match=r"no node of the cluster answers.*in time"):
        Asked(topology, dict.fromkeys((A, B), NotSentInTime()))


@pytest.mark.parametrize(
    "reply",
    [
        "ERR This instance has cluster support disabled",
        "ERR unknown command 'CLUSTER', with args beginning with: 'SLOTS' ",
    ],
)
def test_a_server_outside_of_a_cluster_is_a_final_error(reply: str) -> None:
    with pytest.raises(ConnectFailed, match="not part of a cluster") as caught:
        Asked(ClusterTopology([A]), {A: ErrorReply(reply)})
    assert caught.value.final


def test_refused_credentials_are_a_final_error_for_all_nodes() -> None:
    refused = ConnectFailed("the server refused the credentials", final=True)
    with pytest.raises(ConnectFailed, match="credentials") as caught:
        Asked(ClusterTopology([A, B]), {A: refused, B: refused})
    assert caught.value.final


@pytest.mark.parametrize("host", [None, b"", b"?"])
def test_a_node_that_does_not_know_its_own_name_is_where_it_was_asked(host: Any) -> None:
    topology = ClusterTopology([A])
    Asked(topology, {A: [[0, SLOTS - 1, [host, 7, b"id"]]]})
    assert topology.node_for(READ) == Node("a", 7)


def test_a_node_may_come_with_metadata() -> None:
    topology = ClusterTopology([A])
    Asked(topology, {A: [[0, SLOTS - 1, [b"10.0.0.1", 7, b"id", [b"hostname", b"x"]]]]})
    assert topology.node_for(READ) == Node("10.0.0.1", 7)


def test_a_slot_without_a_node_goes_to_any() -> None:
    topology = ClusterTopology([A, B])
    Asked(topology, {A: []})
    assert {topology.node_for(READ) for _ in range(50)} == {A, B}


def test_a_failover_is_logged_although_a_map_names_no_successor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "sessionstore")
    topology = ClusterTopology([B])
    after = [[0, 5460, primary(C)], [5461, SLOTS - 1, primary(B)]]
    for answer in (WHOLE, WHOLE[1:], WHOLE[1:], after, after):
        Asked(topology, {A: answer, B: answer, C: answer})
    assert caplog.messages == ["followed a failover: c:3 has replaced a:1"]


def test_a_primary_that_is_back_was_not_replaced(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sessionstore")
    topology = ClusterTopology([B])
    for answer in (WHOLE, WHOLE[1:], WHOLE):
        Asked(topology, {A: answer, B: answer})
    assert caplog.messages == []


def test_moved_corrects_one_slot_and_calls_for_a_new_map() -> None:
    topology = ClusterTopology([A])
    Asked(topology, {A: [[0, SLOTS - 1, primary(A)]]})
    topology.report_failure(ErrorReply(f"MOVED {SLOT} c:3"), A)
    assert topology.node_for(READ) == C
    assert not topology.is_known
    other = next(
        call
        for number in range(100)
        if slot_of(call := make_ops().get_session(SessionKey("a", str(number), "s"), 0, None))
        != SLOT
    )
    assert topology.node_for(other) == A


@pytest.mark.parametrize(
    ("failure", "is_still_known"),
    [
        (ErrorReply(f"ASK {SLOT} c:3"), True),
        (ErrorReply("TRYAGAIN Multiple keys request during rehashing of slot"), True),
        (ErrorReply("LOADING"), True),
        (ErrorReply("OOM command not allowed"), True),
        (ErrorReply("NOSCRIPT"), True),
        (ErrorReply("CLUSTERDOWN Hash slot not served"), False),
        (ErrorReply("READONLY You can't write"), False),
        (ErrorReply("MASTERDOWN Link with MASTER is down"), False),
        (ConnectionLost("gone"), False),
        (ConnectFailed("refused", final=False), False),
    ],
)
def test_what_calls_for_a_new_map(failure: AttemptFailed, is_still_known: bool) -> None:
    topology = ClusterTopology([A])
    Asked(topology, {A: WHOLE})
    topology.report_failure(failure, A)
    assert topology.is_known == is_still_known


@pytest.mark.parametrize(
    ("reply", "slot", "node"),
    [
        ("MOVED 3999 127.0.0.1:6381", 3999, Node("127.0.0.1", 6381)),
        ("ASK 0 host.example:1", 0, Node("host.example", 1)),
        ("MOVED 16383 ::1:7000", 16383, Node("::1", 7000)),
        ("MOVED 1 :6381", 1, Node("a", 6381)),
        ("MOVED 1 ?:6381", 1, Node("a", 6381)),
    ],
)
def test_a_redirection_names_slot_and_node(reply: str, slot: int, node: Node) -> None:
    assert redirection(ErrorReply(reply), A) == (slot, node)


def test_a_call_without_a_script_has_the_slot_of_its_first_command() -> None:
    assert READ.script is None
    assert TOUCHING_READ.script is not None
    assert slot_of(READ) == slot_of(TOUCHING_READ) == slot_of(WRITE)


# -- a master behind Sentinels -------------------------------------------------------------------

MASTER_A = [b"a", b"1"]
IS_MASTER = [b"master", 0, []]
IS_REPLICA = [b"slave", b"b", 2, b"connected", 0]


def test_a_sentinel_is_asked_for_the_master_and_the_master_whether_it_is_one() -> None:
    topology = SentinelTopology([S1, S2], "m")
    found = Asked(topology, {S1: MASTER_A, A: IS_MASTER})
    assert found.asked == [(S1, "SENTINEL GET-MASTER-ADDR-BY-NAME m"), (A, "ROLE")]
    assert topology.is_known
    assert topology.node_for(READ) == A


def test_the_next_sentinel_is_asked_if_one_fails_or_does_not_know_the_name() -> None:
    topology = SentinelTopology([S1, S2, S3], "m")
    answers = {S1: ConnectFailed("refused", final=False), S2: None, S3: MASTER_A, A: IS_MASTER}
    assert Asked(topology, answers).nodes == [S1, S2, S3, A]
    # From then on, the Sentinel that knew the master is asked first.
    topology.report_failure(ConnectionLost("gone"), A)
    assert Asked(topology, answers).nodes == [S3, A]


def test_the_next_sentinel_is_asked_when_one_names_a_demoted_or_dead_master() -> None:
    topology = SentinelTopology([S1, S2, S3], "m")
    answers = {
        S1: MASTER_A,
        A: IS_REPLICA,
        S2: [b"b", b"2"],
        B: ConnectFailed("refused", final=False),
        S3: [b"c", b"3"],
        C: IS_MASTER,
    }
    assert Asked(topology, answers).nodes == [S1, A, S2, B, S3, C]
    assert topology.node_for(READ) == C


def test_a_wrong_service_name_is_a_final_error_that_names_it() -> None:
    for other in (None, ConnectFailed("refused", final=False)):
        with pytest.raises(ConnectFailed, match="a master named 'm'") as caught:
            Asked(SentinelTopology([S1, S2], "m"), {S1: other, S2: None})
        assert caught.value.final


def test_a_name_that_was_known_once_is_looked_for_again() -> None:
    topology = SentinelTopology([S1], "m")
    Asked(topology, {S1: MASTER_A, A: IS_MASTER})
    topology.report_failure(ConnectionLost("gone"), A)
    with pytest.raises(ConnectFailed, match="a master named 'm'") as caught:
        Asked(topology, {S1: None})
    assert not caught.value.final


def test_a_demoted_master_with_no_other_is_no_master() -> None:
    with pytest.raises(ConnectFailed, match="not a master") as caught:
        Asked(SentinelTopology([S1], "m"), {S1: MASTER_A, A: IS_REPLICA})
    assert not caught.value.final


def test_a_server_that_is_no_sentinel_is_a_final_error() -> None:
    reply = ErrorReply("ERR unknown command 'SENTINEL', with args beginning with: 'GET-MAST")
    with pytest.raises(ConnectFailed, match="not a Sentinel") as caught:
        Asked(SentinelTopology([S1], "m"), {S1: reply})
    assert caught.value.final


def test_sentinels_that_do_not_answer_raise() -> None:
    with pytest.raises(ConnectFailed, match="in time"):
        Asked(SentinelTopology([S1, S2], "m"), dict.fromkeys((S1, S2), NotSentInTime()))


@pytest.mark.parametrize(
    ("failure", "is_still_known"),
    [
        (ErrorReply("READONLY You can't write against a read only replica."), False),
        (ErrorReply("MASTERDOWN Link with MASTER is down"), False),
        (ConnectionLost("gone"), False),
        (ConnectFailed("refused", final=False), False),
        (ErrorReply("LOADING"), True),
        (ErrorReply("OOM command not allowed"), True),
        (ErrorReply("WRONGTYPE"), True),
    ],
)
def test_what_makes_the_sentinels_be_asked_again(
    failure: AttemptFailed, is_still_known: bool
) -> None:
    topology = SentinelTopology([S1], "m")
    Asked(topology, {S1: MASTER_A, A: IS_MASTER})
    topology.report_failure(failure, A)
    assert topology.is_known == is_still_known


# -- the wire ------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [WRITE, READ, TOUCHING_READ, CREATE])
def test_asking_stands_before_every_command_and_its_replies_are_dropped(call: Call[Any]) -> None:
    form: Form = "EVALSHA" if call is WRITE else "WITHOUT_MULTI"
    sent = pack(call, form, asking=True)
    asked = sent.count(b"\r\n$6\r\nASKING\r\n")
    assert asked == bool(call.commands) + (call.script is not None)
    assert b"MULTI" not in sent
    assert reply_count(call, form, asking=True) == 2 * asked
    replies: list[Any] = []
    if call.script is not None:
        replies += [b"OK", [b"OK"]]
    if call.commands:
        replies += [b"OK", [b"OK", list(range(len(call.commands)))]]
    results = unpack(replies, form, asking=True)
    expected: list[Any] = [[b"OK"]] if call.script is not None else []
    assert results == expected + list(range(len(call.commands)))
