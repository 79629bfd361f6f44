"""The command line on clusters and behind Sentinels."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from support.inspector import Client, inspecting
from support.waiting import wait_until

from benchmarks.rigs.clusters import Cluster, SentinelGroup
from sessionstore import Event, SessionKey
from sessionstore.cli import command_line
from sessionstore.cli.doctor import server_checks
from sessionstore.sync import RedisSessionService

NUM_USERS = 30


def run(url: str, command: str, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    options = [command, "--url", url, "--json", *arguments]
    result = CliRunner().invoke(command_line(), options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("kind", ["cluster", "sentinel_group"])
def test_commands_see_the_data_of_all_primaries(request: pytest.FixtureRequest, kind: str) -> None:
    group: Cluster | SentinelGroup = request.getfixturevalue(kind)
    ttls: Any = dict.fromkeys(("session_ttl", "app_state_ttl", "user_state_ttl"), 3600)
    with RedisSessionService(group.url, **ttls) as service:
        for number in range(NUM_USERS):
            session = service.create_session(
                app_name="shop", user_id=f"u{number}", session_id="1", state={"app:x": 1}
            )
            service.append_event(session, Event("user", f"mug {number}"))
    assert run(group.url, "ls") == (0, [{"app": "shop", "users": NUM_USERS, "sessions": NUM_USERS}])
    assert len(run(group.url, "ls", "shop")[1]) == NUM_USERS
    [shown] = run(group.url, "show", "shop", "u7", "1")[1]
    assert shown["events"][0]["event"]["content"] == "mug 7"
    [found] = run(group.url, "search", "mug 29", "shop")[1]
    assert found["user_id"] == "u29"
    assert len(run(group.url, "tail", "shop", "u7", "--idle", "0.1")[1]) == 1
    assert len(run(group.url, "tail", "shop", "u7", "1", "--idle", "0.1")[1]) == 2
    _, [load, counted] = run(group.url, "stats", "--interval", "0.1")
    assert (counted["sessions"], load["script_calls_per_second"]) == (NUM_USERS, 0)
    _, findings = run(group.url, "doctor", "--full")
    assert not [each for each in findings if each["status"] == "error"]
    assert f"{NUM_USERS} sessions" in next(e["saw"] for e in findings if e["check"] == "sessions")
    exit_code, [erased] = run(group.url, "erase", "shop", "u7", "--yes")
    assert (exit_code, erased["left"], erased["sessions"]) == (0, [], 1)
    assert len(run(group.url, "ls", "shop")[1]) == NUM_USERS - 1


def problems_of(url: str) -> set[str]:
    """The checks of the doctor that found a problem."""
    _, findings = run(url, "doctor")
    return {each["check"] for each in findings if each["status"] in ("warning", "error")}


USUAL = {"memory", "persistence"}  # the servers of the tests have no limit and keep nothing


def test_the_doctor_names_slots_that_no_node_serves(cluster: Cluster) -> None:
    node = cluster.owner_of(100)
    assert problems_of(cluster.url) <= USUAL
    node.run("CLUSTER DELSLOTS", 100)
    try:
        assert "cluster" in problems_of(cluster.url) - USUAL
    finally:
        node.run("CLUSTER ADDSLOTS", 100)


def test_the_doctor_names_a_slot_that_has_most_of_the_data(cluster: Cluster) -> None:
    with RedisSessionService(cluster.url, session_ttl=3600) as service:
        for number in range(120):
            session = service.create_session(app_name="shop", user_id=f"u{number % 40}")
            service.append_event(session, Event("user", "x" * 100))
        assert "hot slot" not in problems_of(cluster.url)
        session = service.create_session(app_name="shop", user_id="busy")
        service.append_events(session, [Event("user", "x" * 10_000) for _ in range(20)])
    _, findings = run(cluster.url, "doctor")
    [found] = [each for each in findings if each["check"] == "hot slot"]
    assert (found["status"], "of shop / busy" in found["saw"]) == ("warning", True)


def test_the_doctor_names_a_replica_that_lags(
    sentinel_group: SentinelGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_checks, "_LAG_S", 1)
    assert problems_of(sentinel_group.url) <= USUAL
    master = sentinel_group.master()
    replica = next(each for each in sentinel_group.servers if each is not master)
    replica.stop()
    try:
        wait_until(lambda: "replication" in problems_of(sentinel_group.url), "it is named")
    finally:
        replica.cont()


@pytest.mark.parametrize("by_app", [False, True])
def test_a_store_is_copied_to_a_cluster_and_back(
    cluster: Cluster, sentinel_group: SentinelGroup, by_app: bool
) -> None:
    partition = "app" if by_app else "user"
    with RedisSessionService(sentinel_group.url, session_ttl=3600, codec="msgpack") as service:
        for number in range(10):
            session = service.create_session(
                app_name="shop", user_id=f"u{number}", state={"app:x": b"1", "user:y": [b"2"]}
            )
            service.append_event(session, Event("user", {1: b"mug"}, state_increments={"n": 1}))

    def copy(source: str, target: str, *options: str) -> list[str]:
        done = run(source, "copy", target, "--target-ttl", "3600", *options)
        assert done[0] == 0
        return [line["status"] for line in done[1]]

    there = ("--target-partition-by", partition, "--target-key-prefix", "c:")
    back = ("--partition-by", partition, "--key-prefix", "c:", "--target-key-prefix", "b:")
    assert copy(sentinel_group.url, cluster.url, *there) == ["written"] * 10
    assert copy(sentinel_group.url, cluster.url, *there) == ["unchanged"] * 10
    assert copy(cluster.url, sentinel_group.url, *back) == ["written"] * 10
    first = run(sentinel_group.url, "export")[1]
    assert run(sentinel_group.url, "export", "--key-prefix", "b:")[1] == first
    assert len(first) == 21  # the state of the application, and of ten users with a session each


@pytest.mark.parametrize("kind", ["cluster", "sentinel_group"])
def test_the_inspector_sees_the_data_of_all_primaries(
    request: pytest.FixtureRequest, kind: str
) -> None:
    group: Cluster | SentinelGroup = request.getfixturevalue(kind)
    ttls: Any = dict.fromkeys(("session_ttl", "app_state_ttl", "user_state_ttl"), 3600)
    with (
        RedisSessionService(group.url, **ttls) as service,
        inspecting(group.url, "--allow-delete") as inspector,
    ):
        for number in range(NUM_USERS):
            session = service.create_session(
                app_name="shop", user_id=f"u{number:02d}", session_id="1", state={"app:x": 1}
            )
            service.append_event(session, Event("user", f"mug {number}"))
        client = Client(inspector)

        def found() -> str:
            return client.get("/users?at=shop").text

        wait_until(lambda: f"{NUM_USERS} users, by a scan" in found(), "the scan")
        at = "at=shop/u07/1"
        assert "mug 7" in client.get(f"/session?{at}").text
        with client.following(f"/live?{at}") as messages:
            assert [next(messages)["kind"] for _ in range(2)] == ["ready", "event"]
            service.append_event(SessionKey("shop", "u07", "1"), Event("user", "another mug"))
            assert "another mug" in next(messages)["html"]
        form = client.get("/erase?at=shop/u07").text
        token = form.partition('name="form_token" value="')[2].partition('"')[0]
        erased = client.send("POST", "/erase?at=shop/u07", f"form_token={token}&id=u07").text
        assert "Deleted 1 session and 0 state keys. Redis keys left: 0" in erased
        assert f"{NUM_USERS - 1} users, by" in found()
        assert inspector.stop() == (0, "")
