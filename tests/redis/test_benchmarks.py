"""Every bench runs in its small setting and returns its groups and targets."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_adapters, copy_under_load
from benchmarks.__main__ import BENCHES
from benchmarks.harness import Harness, Variant, VariantFailedError
from benchmarks.peers import registry
from benchmarks.peers.link import CannotRunError, Link
from benchmarks.results import Group, Result, Row, Sample, Target, target_table, time_of

PEERS = [*registry.ON_REDIS, *registry.IN_MEMORY]

with warnings.catch_warnings(action="ignore"):  # warnings of frameworks
    FRAMEWORKS = bench_adapters.installed()

ROOT = Path(__file__).resolve().parent.parent.parent

# Number of targets and groups of each bench in the small setting.
EXPECTED = {
    "bench_overview": (0, 6),
    "bench_append": (7, 7),
    "bench_read": (2, 3),
    "bench_list": (1, 1),
    "bench_fleet_turn": (0, 2),
    "bench_history": (7, 6),
    "bench_memory": (1, 0),
    "bench_compression": (3, 2),
    "bench_encryption": (2, 2),
    "bench_scripts": (0, 9),
    "bench_bytes": (0, 0),
    "bench_in_memory": (1, 4),
    "bench_many_agents": (2, 0),
    "bench_routing": (2, 3),
    "bench_processes": (0, 1),
    "bench_watching": (1, 2),
    "bench_command_line": (2, 0),
    "bench_telemetry": (2, 1),
    "bench_adapters": (2 * len(FRAMEWORKS), 2 * len(FRAMEWORKS)),
    "bench_peers": (0, 1),
}


@pytest.fixture
def without_peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "DIRECTORY", tmp_path)


def test_every_bench_is_run_by_the_report() -> None:
    modules = {path.stem for path in (ROOT / "benchmarks").glob("bench_*.py")}
    assert modules == set(BENCHES) == set(EXPECTED)


@pytest.mark.usefixtures("without_peers")
@pytest.mark.parametrize("name", BENCHES)
def test_small(name: str) -> None:
    with Harness(small=True) as harness:
        result: Result = import_module(f"benchmarks.{name}").run(harness)
    targets, groups = EXPECTED[name]
    assert len(result.targets) == targets
    assert len(result.groups) == groups
    assert all(target.figure > 0 for target in result.targets)
    assert all(figure.value >= 0 for figure in result.figures)
    for group in result.groups:
        assert group.rows
        assert all(row.us > 0 for row in group.rows)
    assert {"Python", "sessionstore", "redis-py", "hiredis", "msgspec"} <= result.versions.keys()
    again: dict[str, Any] = json.loads(result.as_json())
    assert again["bench"] == name
    assert result.question in result.as_markdown()


def test_many_agents_lose_nothing() -> None:
    with Harness(small=True) as harness:
        result: Result = import_module("benchmarks.bench_many_agents").run(harness)
    assert result.targets[0].is_reached


@pytest.mark.parametrize("peer", PEERS, ids=[peer.name for peer in PEERS])
def test_peer(peer: registry.Peer) -> None:
    if not peer.python.exists():
        pytest.skip("its venv is not installed")
    with Harness(small=True) as harness:
        link = Link(peer, harness.start_server().url)
        harness.at_end(link.close)
        link.make("some", 2, 3)
        assert link.append("some", 2).seconds > 0
        assert link.read("some", 3, 1).seconds > 0
        with pytest.raises(CannotRunError, match=r"TimeoutError: [\d,]+ of 1,000,000 events"):
            link.make("large", 1, 1_000_000, limit_seconds=0.05)
        assert link.events(3).seconds > 0


@pytest.mark.usefixtures("without_peers")
def test_peers_that_are_not_installed_are_listed() -> None:
    peer = registry.ON_REDIS[0]
    with pytest.raises(CannotRunError, match=f"benchmarks.peers.install {peer.venv}"):
        Link(peer, "redis://localhost")


def test_a_peer_that_fails_and_one_that_runs() -> None:
    with Harness(small=True) as harness:
        url = harness.start_server().url
        with pytest.raises(CannotRunError, match="no_such_adapter"):
            Link(registry.Peer("none", "", "", "no_such_adapter", "sessionstore"), url)
        link = Link(registry.OURS, url)
        harness.at_end(link.close)
        with pytest.raises(CannotRunError, match="KeyError"):
            link.append("never made", 1)
        link.make("made", 1, 0)
        link.append("made", 1)


def test_a_variant_that_fails_leaves_the_others() -> None:
    def fail() -> None:
        raise VariantFailedError("it is broken")

    with Harness(small=True) as harness:
        variants = [Variant("good", 1, lambda: None), Variant("bad", 1, fail)]
        group = harness.measure(None, "some", "call", variants)
    assert [row.name for row in group.rows] == ["good"]
    assert harness.failures == ["bad failed in 'some': it is broken"]


def test_ratios_are_medians_of_pairs() -> None:
    ours = [Sample(1, seconds, 0.0) for seconds in (1.0, 2.0, 30.0)]
    theirs = [Sample(1, seconds, 0.0) for seconds in (2.0, 6.0, 30.0)]
    group = Group("some", "call", [Row("ours", ours), Row("theirs", theirs)])
    assert group.ratio("theirs", "ours", time_of) == 2.0


@pytest.mark.parametrize(
    ("target", "is_reached"),
    [
        (Target("a", 5.0, ">=", 5), True),
        (Target("a", 4.9, ">=", 5), False),
        (Target("a", 0.5, "<=", 0.6), True),
        (Target("a", 0.7, "<=", 0.6), False),
    ],
)
def test_targets(target: Target, is_reached: bool) -> None:
    assert target.is_reached is is_reached
    assert ("| yes" if is_reached else "| NO") in target_table([target])


def test_report(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--small", "--only", "bench_list"]
    outcome = subprocess.run(
        [*command, "--output", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    written = json.loads((tmp_path / "report.json").read_bytes())
    assert [result["bench"] for result in written] == ["bench_list"]
    assert written[0]["groups"][0]["rows"][0]["median"]["us"] > 0
    assert "## Targets: " in (tmp_path / "report.md").read_text("utf-8")
    assert "sessionstore" in (tmp_path / "bench_list.svg").read_text("utf-8")


def test_a_copy_while_agents_write_loses_and_duplicates_nothing() -> None:
    [outcome] = copy_under_load.run(10, 3, 0.05, ["another server"])
    assert outcome.sessions == 10
    assert outcome.events > 60
    assert (outcome.lost, outcome.duplicated, outcome.different) == (0, 0, 0)
