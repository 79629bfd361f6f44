"""Long conversations in short: many restarts, a worker that is killed, a log that is trimmed."""

from __future__ import annotations

from typing import Any

import pytest
from adapters_support import needs


@pytest.mark.parametrize("framework", ["openai-agents", "langchain"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_nothing_is_lost_or_doubled(server: Any, framework: str) -> None:
    needs({"openai-agents": "agents", "langchain": "langchain_core"}[framework], framework)
    from long_use_histories import converse

    lines: list[str] = []
    await converse(framework, server.url, turns=30, restart=10, limit=37, report=lines.append)
    assert len(lines) == 3
