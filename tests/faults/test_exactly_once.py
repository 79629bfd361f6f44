"""Calls do what they announce while connections are cut. `benchmarks.chaos.exactly_once` is longer.

`tests/unit/test_history.py` shows what the search for violations finds.
"""

from __future__ import annotations

import asyncio

import pytest
from support.servers import Server

from benchmarks.chaos import exactly_once

_OPERATIONS = 2000


@pytest.mark.timeout(90)  # several times the usual time
@pytest.mark.parametrize("stored_as", ["plain", "compressed", "compressed and encrypted"])
async def test_every_call_does_what_it_announces(server: Server, stored_as: str) -> None:
    outcome = await exactly_once.run(
        server.embedded.executable,
        seed=7,
        operations=_OPERATIONS,
        agents=120,
        compression="compressed" in stored_as,
        encryption="encrypted" in stored_as,
    )
    assert outcome.violations == []
    assert outcome.too_long == 0
    assert outcome.calls.total() >= _OPERATIONS
    assert set(outcome.calls) == {"append", "pop", "clear", "update", "increment", "read"}
    assert min(outcome.cuts, outcome.retries, outcome.maybe_applied) > 10
    assert "violations" in exactly_once.as_text(outcome)
    # Nothing but the test's own tasks is left.
    assert len(asyncio.all_tasks()) == 1
