"""Every Python block of sessionstore/adapters/README.md runs with its framework."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.readmes import ROOT, Block, blocks, run

from sessionstore.embedded import EmbeddedServer

README = ROOT / "sessionstore" / "adapters" / "README.md"
BLOCKS = list(blocks(README))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of a server that the blocks share."""
    with EmbeddedServer() as server:
        yield server.url


def test_every_adapter_has_a_block() -> None:
    adapters = (
        "adk",
        "claude_agent",
        "langchain",
        "langgraph",
        "mcp",
        "openai_agents",
        "pydantic_ai",
        "pydantic_conversations",
        "trpc_agent",
    )
    for name in adapters:
        assert any(f"sessionstore.adapters.{name} " in block.code for block in BLOCKS), name


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_a_block_runs(block: Block, url: str, tmp_path: Path) -> None:
    if block.missing_modules:
        pytest.skip(f"not installed: {', '.join(block.missing_modules)}")
    run(block, url, tmp_path)
