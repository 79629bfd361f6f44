"""The command `sessionstore fleet` on a cluster and on a master behind Sentinels."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner

from benchmarks.rigs.clusters import Cluster, SentinelGroup
from sessionstore.cli import command_line


def report_of(url: str) -> dict[str, Any]:
    """The report of a small run, in which nothing was lost."""
    size = ("--agents", "8", "--turns", "6", "--think", "0", "--flat-out", "0.1")
    options = (*size, "--compact", "--rewind")
    result = CliRunner().invoke(command_line(), ["fleet", "--url", url, *options, "--json", "-"])
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    assert set(report["verification"].values()) == {0}
    assert report["num_verified"] == report["num_sessions"] == 8
    assert report["flat_out"]["num_appends"] > 0
    assert min(report["num_covered"], report["num_dropped"], report["num_rewound"]) > 0
    assert report["place"] == url
    return report


def test_on_a_cluster(cluster: Cluster) -> None:
    report = report_of(cluster.url)
    assert report["server"].endswith("a cluster of 3 primaries")
    assert report["server_cpu_us_per_operation"] > 0
    assert [node.run("DBSIZE") for node in cluster.primaries()] == [0, 0, 0]


def test_behind_sentinels(sentinel_group: SentinelGroup) -> None:
    report = report_of(sentinel_group.url)
    assert report["server"].startswith("Valkey ")
    assert report["server_cpu_us_per_operation"] > 0
    assert sentinel_group.master().run("DBSIZE") == 0
