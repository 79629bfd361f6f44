"""Long use of Pydantic AI, in short: restarts, killed workers, trimming."""

from __future__ import annotations

from typing import Any

import pytest
from adapters_support import needs
from long_use_support import run

needs("pydantic_ai.conversation_store", "pydantic-ai")
cases: Any = needs("long_use_pydantic_ai", "pydantic-ai")


@pytest.mark.parametrize("name", ["history", "conversations"])
async def test_long_use_in_short(server: Any, name: str) -> None:
    """24 turns; long_use_pydantic_ai.py takes 2,000."""
    sizes = await run(
        cases.__file__,
        name,
        cases.CASES[name],
        server.url,
        turns=24,
        restart_every=6,
        kill_every=24,
        limit=30,
        begins_with_turn=name == "history",
        options={"session_event_limit": 30, "session_ttl": 600},
    )
    assert sizes[-1] < 1.2 * sizes[1]  # no more once the limit is reached
