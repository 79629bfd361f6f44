"""Every Python block of every README runs, and prints what its comments say.

The blocks about frameworks run in tests/adapters, where the frameworks are installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.readmes import Block, blocks, readmes, run

from sessionstore.embedded import EmbeddedServer

BLOCKS = [
    block for readme in readmes() if readme.parent.name != "adapters" for block in blocks(readme)
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of a server that the blocks share."""
    with EmbeddedServer() as server:
        yield server.url


def test_the_blocks_are_found() -> None:
    assert len(BLOCKS) >= 5


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_a_block_runs(block: Block, url: str, tmp_path: Path) -> None:
    if block.missing_modules:
        pytest.skip(f"not installed: {', '.join(block.missing_modules)}")
    assert run(block, url, tmp_path) == ""
