"""How `sessionstore size` computes: from constants that are made up, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from sessionstore.cli import command_line
from sessionstore.cli.sizing import encode_constants
from sessionstore.cli.sizing.model import (
    SHIPPED,
    Constants,
    Line,
    Part,
    Parts,
    Servers,
    Workload,
    estimate,
    interpolate,
    load_constants,
)

NOTHING = Part(Line(0), Line(0), Line(0), Line(0), Line(0))
APPEND = Part(Line(100, 0.01), Line(10, 0.01), Line(300, 1), Line(50), Line(200, 1))
NO_PARTS = Parts(**dict.fromkeys(Parts.__struct_fields__, NOTHING))
CONSTANTS = Constants(
    server="Some 1.0",
    machine="a machine",
    measured_at="2026-01-01",
    idle_cores=0.0,
    startup_bytes=1_000_000,
    parts=msgspec.structs.replace(NO_PARTS, append=APPEND),
    session_bytes=[(0, 300), (200, 900), (2000, 4500)],
    user_bytes=400,
    log_bytes=800,
    event_bytes=Line(80, 1),
)
WORKLOAD = Workload(
    agents=3600,
    turns_per_hour=1,
    events_per_turn=4,
    event_bytes=1000,
    read_events=20,
    state_bytes=0,
    user_state_bytes=0,
    app_state_bytes=0,
    state_changes=0,
    turns_per_session=10,
    event_limit=1000,
    session_ttl_hours=0,
    sessions_per_user=4,
)
SERVERS = Servers(
    replicas=1, memory_bytes=2**30, max_memory=0.5, max_cpu=0.5, network_bytes=125_000_000
)
replace = msgspec.structs.replace


def size(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(command_line(), ["size", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == exit_code, result.output
    return result


def test_rates_and_bytes_of_a_small_fleet() -> None:
    found = estimate(WORKLOAD, SERVERS, CONSTANTS)
    # One turn a second: a read, four appends, a tenth of a create.
    assert found.calls == pytest.approx(5.1)
    assert found.in_bytes == pytest.approx(4 * 1300)
    assert found.out_bytes == pytest.approx(4 * 50)
    assert found.replicated_bytes == found.aof_bytes == pytest.approx(4 * 1200)
    assert (found.primaries, found.replicas) == (1, 1)
    # Nearly all calls find the server idle: 110 µs each.
    assert found.cpu_cores == pytest.approx(4 * 110e-6, rel=0.01)
    # 3,600 sessions of 40 events, 900 users.
    assert found.sessions == 3600
    assert found.events == 3600 * 40
    assert found.memory_bytes == 3600 * (300 + 800 + 40 * 1080) + 900 * 400 + 1_000_000


def test_sessions_are_kept_for_their_ttl() -> None:
    # A session lasts 10 hours and is kept for 30 more.
    found = estimate(replace(WORKLOAD, session_ttl_hours=30), SERVERS, CONSTANTS)
    assert found.sessions == 3600 * 4
    assert estimate(replace(WORKLOAD, sessions=7), SERVERS, CONSTANTS).sessions == 7


def test_a_busy_server_needs_less_for_a_call() -> None:
    cores = []
    for agents in (36_000, 3_600_000, 36_000_000):
        servers = replace(SERVERS, max_cpu=1, memory_bytes=1e15, network_bytes=1e15)
        workload = replace(WORKLOAD, agents=agents)
        found = estimate(workload, servers, CONSTANTS)
        cores.append(found.cpu_cores / found.calls)
    assert cores == sorted(cores, reverse=True)
    assert cores[0] > 4 * cores[-1]


def test_no_primary_is_busier_than_allowed() -> None:
    for agents in (10_000, 1_000_000, 20_000_000):
        for limit in (0.1, 0.5, 0.9):
            servers = replace(SERVERS, max_cpu=limit, memory_bytes=1e15, network_bytes=1e15)
            found = estimate(replace(WORKLOAD, agents=agents), servers, CONSTANTS)
            assert found.busiest_cpu <= limit
            if found.primaries > 1:
                assert found.limit == "CPU"


def test_memory_limits_and_network_limits() -> None:
    found = estimate(replace(WORKLOAD, sessions=100_000), SERVERS, CONSTANTS)
    assert found.limit == "memory"
    assert found.primaries == -(-(found.memory_bytes - found.primaries * 1e6) // (2**29 - 1e6))
    assert found.busiest_memory <= 0.5
    servers = replace(SERVERS, network_bytes=1000)
    found = estimate(WORKLOAD, servers, CONSTANTS)
    assert (found.limit, found.primaries) == ("network", 6)


def test_the_event_limit_bounds_memory_and_adds_trims() -> None:
    parts = replace(CONSTANTS.parts, trim=replace(NOTHING, in_bytes=Line(1000)))
    found = estimate(replace(WORKLOAD, event_limit=10), SERVERS, replace(CONSTANTS, parts=parts))
    assert found.events == 3600 * 10
    # 30 of the 40 events of a session remove another one.
    assert found.in_bytes == pytest.approx(4 * 1300 + 3 * 1000)


def test_reads_of_the_app_tier_go_to_one_primary() -> None:
    parts = replace(CONSTANTS.parts, read_app=replace(NOTHING, busy_us=Line(5), alone_us=Line(5)))
    constants = replace(CONSTANTS, parts=parts)
    servers = replace(SERVERS, memory_bytes=1e15, network_bytes=1e15)
    workload = replace(WORKLOAD, agents=3600 * 40_000)
    cached = estimate(replace(workload, is_app_state_cached=True), servers, constants)
    assert cached.note == ""
    read = estimate(workload, servers, constants)
    assert read.primaries > cached.primaries
    assert "--app-state-cached" in read.note
    assert read.busiest_cpu <= 0.5
    # 200,000 reads a second are a whole core.
    overloaded = estimate(replace(workload, agents=3600 * 200_000), servers, constants)
    assert overloaded.note.startswith("More primaries do not help.")


def test_lines_through_points() -> None:
    points = [(0.0, 300.0), (200.0, 900.0), (2000.0, 4500.0)]
    for at, expected in [(0, 300), (100, 600), (200, 900), (1100, 2700), (4000, 8500)]:
        assert interpolate(points, at) == expected


def test_constants_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "constants.json"
    path.write_bytes(encode_constants(CONSTANTS))
    assert load_constants(path) == CONSTANTS


def test_the_shipped_constants_answer() -> None:
    shipped = load_constants(SHIPPED)
    assert shipped.parts.append.replicated_bytes is not None
    found: dict[str, Any] = json.loads(
        size("--agents", "1000", "--turns-per-hour", "20", "--json").stdout
    )
    assert found["constants"].startswith(shipped.server)
    assert found["primaries"] == 1
    assert 0 < found["cpu_cores"] < 0.1
    assert found["limit"] == "memory"


def test_the_text_names_need_limit_and_constants(tmp_path: Path) -> None:
    path = tmp_path / "constants.json"
    path.write_bytes(encode_constants(CONSTANTS))
    arguments = ("--agents", "100000", "--turns-per-hour", "6", "--constants", str(path))
    lines = size(*arguments).stdout.splitlines()
    assert lines[0].startswith("Load ")
    assert lines[1].split() == ["Servers", "5", "primaries,", "5", "replicas"]
    assert lines[2] == "Limit      memory decides the number of servers"
    assert any(line.startswith("processor") for line in lines)
    assert "Some 1.0, a machine, 2026-01-01" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Pass --agents and --turns-per-hour, or --measure."),
        (("--agents", "0"), "--agents"),
        (("--agents", "1", "--turns-per-hour", "0"), "--turns-per-hour"),
        (("--agents", "1", "--turns-per-hour", "1", "--url", "redis://x"), "--url needs --measure"),
        (("--measure", "--replicas", "2"), "--replicas has no effect together with --measure"),
        (("--measure", "--url", "memory://"), "memory:// is not a server"),
        (("--measure", "--url", "redis://127.0.0.1:1"), "cannot use redis://127.0.0.1:1"),
        (
            ("--agents", "1", "--turns-per-hour", "1", "--memory-per-server", "0.001"),
            "leave no memory for data",
        ),
        (("--agents", "1", "--turns-per-hour", "1", "--max-cpu", "0"), "--max-cpu"),
    ],
)
def test_bad_options_get_one_sentence(arguments: tuple[str, ...], message: str) -> None:
    result = size(*arguments, exit_code=2)
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_file_with_other_content_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"server": "x"}')
    result = size("--agents", "1", "--turns-per-hour", "1", "--constants", str(path), exit_code=2)
    assert str(path) in result.stderr
    assert "machine" in result.stderr
    path.write_bytes(encode_constants(replace(CONSTANTS, session_bytes=[(0.0, 400.0)])))
    result = size("--agents", "1", "--turns-per-hour", "1", "--constants", str(path), exit_code=2)
    assert "session_bytes" in result.stderr
