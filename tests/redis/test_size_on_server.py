"""`sessionstore size --measure` on a server; its prediction of a fleet; a simulated server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.servers import Server

from benchmarks.scale import published, simulation, sizing
from sessionstore.cli import command_line
from sessionstore.cli.sizing import measuring, meter
from sessionstore.cli.sizing.model import Constants, load_constants


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure so little that only memory and bytes are right."""
    for module, name, value in [
        (measuring, "_ROUNDS", 1),
        (measuring, "_SETTLE_S", 0.02),
        (measuring, "_SESSIONS_OF_A_MEMORY_STEP", 200),
        (measuring, "_LOGS_OF_A_MEMORY_STEP", 50),
        (meter, "BUSY_CALLS", 64),
        (meter, "ALONE_CALLS", 64),
        (meter, "ALONE_PER_SECOND", 10_000),
        (meter, "IDLE_S", 0.05),
    ]:
        monkeypatch.setattr(module, name, value)


def measured(server: Server, tmp_path: Path) -> tuple[Constants, str]:
    path = tmp_path / "constants.json"
    arguments = ["size", "--measure", "--url", server.url, "--output", str(path)]
    result = CliRunner().invoke(command_line(), arguments)
    assert result.exit_code == 0, result.output
    return load_constants(path), result.stderr


@pytest.mark.usefixtures("quick")
def test_measuring_leaves_nothing_and_finds_bytes(server: Server, tmp_path: Path) -> None:
    server.raw.set("someone-elses", 1, ex=600)
    constants, notes = measured(server, tmp_path)
    assert server.raw.keys("*") == [b"someone-elses"]
    assert server.raw.ping()
    parts = constants.parts
    # The event goes to the server once and is returned once.
    assert parts.append.in_bytes.per_byte == pytest.approx(1, abs=0.05)
    assert parts.read_event.out_bytes.per_byte == pytest.approx(1, abs=0.05)
    assert parts.append.busy_us.at(1000) > 0
    assert parts.append.replicated_bytes is None
    assert "no replica" in notes
    # So few logs that other memory of the server matters.
    assert 900 < constants.event_bytes.at(1000) < 2000
    assert constants.session_bytes[0][1] < constants.session_bytes[2][1]


@pytest.mark.usefixtures("quick")
def test_a_server_that_is_nearly_full_is_refused(server: Server, tmp_path: Path) -> None:
    used = int(server.raw.info("memory")["used_memory"])
    server.raw.config_set("maxmemory", used + (16 << 20))
    try:
        arguments = ["size", "--measure", "--url", server.url, "--output", str(tmp_path / "x")]
        result = CliRunner().invoke(command_line(), arguments)
    finally:
        server.raw.config_set("maxmemory", 0)
    assert result.exit_code == 2
    assert "MiB left below its maxmemory" in result.stderr
    assert server.raw.keys("*") == []


@pytest.mark.usefixtures("quick")
async def test_the_memory_of_a_fleet_is_predicted(server: Server) -> None:
    constants, [found] = await sizing.run(server.url, [(160, 3, 0.0)], seed=1, rounds=1)
    assert abs(found.error("memory")) < 0.5  # the bench asks for less, of a larger fleet
    assert found.measured["CPU"] > 0
    outcome = sizing.outcome_of(constants, [found])
    assert json.loads(outcome.as_json())["name"] == "sizing"
    assert server.raw.keys("*") == []


@pytest.mark.usefixtures("quick")
def test_the_simulated_server_is_compared_with_a_real_one() -> None:
    found = simulation.validate([200, 400], 0.3, seed=1, patience_s=0.0, rounds=1, tries=2)
    assert [each.calls_per_second for each in found] == [200, 400]
    # The lightest load calibrates.
    assert found[0].measured["p50"] == pytest.approx(found[0].modelled["p50"])
    assert all(each.measured["p99"] >= each.measured["p50"] > 0 for each in found)
    assert all(0 < each.measured["utilization"] < 1 for each in found)


@pytest.mark.parametrize("path", sorted(published.MEASURED.glob("*.json")), ids=lambda p: p.stem)
def test_the_page_shows_the_published_results(path: Path) -> None:
    page = published.README.read_text("utf-8")
    outcome = published.load(path.stem)
    assert f"<!-- {outcome.name} -->\n{outcome.as_markdown()}<!-- end -->\n" in page
