"""The bench of a million sessions, with a few."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from benchmarks.rigs.nodes import bundled_server
from benchmarks.scale import million, simulation
from benchmarks.scale.filling import event_of, messages

needs_server = pytest.mark.skipif(bundled_server() is None, reason="no server is installed")


@needs_server
def test_a_small_fill_has_every_figure() -> None:
    settings = million.Settings(
        sessions=1000,
        events=20,
        event_bytes=400,
        compression=True,
        processes=1,
        calls=20,
        expiry_seconds=1.0,
    )
    found = million.run(settings)
    assert [each["sessions"] for each in found["fills"]] == [8, 100, 1000]
    for each in found["fills"]:
        assert set(each["calls"]) == {"create", "append", "read 20", "list"}
    memory = found["memory"]
    # 20 events of about 400 bytes, which compression makes smaller. The sampled parts explain
    # nearly all of the memory.
    assert 2000 < memory["events: content"] < 4000
    assert memory["other: tables of keys and deadlines"] < 0.1 * memory["together"]
    assert found["expired in the index"]["wrong lists"] == 0
    assert found["expired in the index"]["entries left in the index, of each user"] == 2
    # Two keys of each session, two of each user; some have expired before.
    num_keys = 2 * 1000 + 2 * 250 - 2 * 2 * 62
    assert found["restart"]["keys"] > 0.9 * num_keys
    assert found["failover"]["keys"] > 0.9 * num_keys
    expiry = found["expiry"]
    # The server counts one less at times. The keys that are left, below, are exact.
    assert expiry["expired keys"] > 0.9 * num_keys
    assert expiry["keys left at the end"] <= 4 * 200 + 10
    assert expiry["used memory after, bytes"] < expiry["used memory before, bytes"] / 2
    outcome = million.outcome_of({"plain": found, "zstd": found})
    assert json.loads(outcome.as_json())["name"] == "million"
    assert [each.head[-1] for each in outcome.tables if len(each.head) == 3] == ["zstd"] * 6


@pytest.mark.parametrize(
    ("bench", "name", "value"),
    [
        (million, "--sessions", "399"),
        (million, "--calls", "0"),
        (million, "--expiry-seconds", "nan"),
        (simulation, "--agents", "0"),
        (simulation, "--seconds", "0"),
    ],
)
def test_a_number_that_is_too_small_is_refused_before_a_server_starts(
    bench: Any,
    name: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", name, value])
    with pytest.raises(SystemExit):
        bench.main()
    assert f"{name} must be at least" in capsys.readouterr().err


def test_messages_have_the_size_that_is_asked_for() -> None:
    for size in (300, 400, 500):
        contents = messages(size)
        sizes = {len(msgspec.json.encode(event_of(each))) for each in contents}
        assert len(sizes) > 50
        assert messages(size) == contents
    means = [
        sum(len(str(each["content"])) for each in messages(size)) / len(messages(size))
        for size in (300, 400, 500)
    ]
    assert means == sorted(means)
