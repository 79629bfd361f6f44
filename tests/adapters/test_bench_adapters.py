"""bench_adapters compares fairly, and runs with any set of installed frameworks."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from benchmarks import bench_adapters
from benchmarks.frameworks import FRAMEWORKS
from benchmarks.harness import Harness

with warnings.catch_warnings(action="ignore"):  # warnings of frameworks
    INSTALLED = bench_adapters.installed()


@pytest.mark.parametrize("kind", FRAMEWORKS, ids=lambda kind: kind.__name__)
def test_engine_and_adapter_send_the_same_bytes(kind: Any) -> None:
    found = [framework for framework in INSTALLED if type(framework) is kind]
    if not found:
        pytest.skip(f"needs the extra {kind.extra}")
    with Harness(small=True) as harness:
        group = bench_adapters.measure(harness, harness.start_server(), found[0], 4)
    if not kind.stores_events:
        pytest.skip("it stores no events")
    engine, adapter = group.row(bench_adapters.ENGINE), group.row(found[0].adapter)
    assert engine.sent_bytes
    assert adapter.sent_bytes
    assert adapter.sent_bytes / engine.sent_bytes == pytest.approx(1, abs=0.02)


def test_a_framework_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        name, extra = "no-such-framework", "none"

        def __init__(self) -> None:
            raise ImportError

    monkeypatch.setattr(bench_adapters, "FRAMEWORKS", [Missing])
    with Harness(small=True) as harness:
        result = bench_adapters.run(harness)
    assert result.groups == []
    assert "no-such-framework is not installed, so it is left out: pip install" in result.notes[-1]


def test_a_storage_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    if not INSTALLED:
        pytest.skip("needs an agent framework")

    async def fail(_: Any) -> None:
        raise OSError("it is broken")

    framework = INSTALLED[0]
    monkeypatch.setattr(framework, "own", lambda *_: {"broken": lambda _: fail})
    monkeypatch.setattr(framework, "own_on_redis", lambda *_: {})
    with Harness(small=True) as harness:
        group = bench_adapters.measure(harness, harness.start_server(), framework, 4)
    assert "broken" not in {row.name for row in group.rows}
    assert len(group.rows) == 4
    assert "OSError: it is broken" in harness.failures[0]
