"""Processes compact one session while tasks append to it."""

from __future__ import annotations

from support.servers import Server

from benchmarks.chaos import compaction


async def test_summaries_form_one_chain(server: Server) -> None:
    """`python -m benchmarks.chaos.compaction` does the same for longer."""
    outcome = await compaction.run(server.url, seed=7, seconds=1.5, appenders=16, compactors=2)
    assert outcome.problems == []
    assert outcome.appended > 100
    assert outcome.chain == outcome.compacted > 5
    assert outcome.reads > 5
