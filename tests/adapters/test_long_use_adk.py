"""A short form of long_use_adk.py: restarts, a killed process, a log that is trimmed."""

from __future__ import annotations

import pytest
from adapters_support import needs

FRAMEWORKS = {"adk": "google.adk", "trpc_agent": "trpc_agent_sdk"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_nothing_is_lost_in_long_use(framework: str) -> None:
    needs(FRAMEWORKS[framework], framework)
    from long_use_adk import main

    rows = await main(framework, 24, 8, session_event_limit=25, session_ttl=600)
    (_, full), *_, (_, last) = rows
    assert last < 1.2 * full
