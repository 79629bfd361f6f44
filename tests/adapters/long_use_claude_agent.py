"""Long use of the Claude Agent SDK's store: python tests/adapters/long_use_claude_agent.py."""

from __future__ import annotations

import json
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from long_use_support import MakeCase, main

from sessionstore import RedisSessionService
from sessionstore.adapters.claude_agent import ClaudeSessionStore

MAIN: Any = {"project_key": "-home-ann-shop", "session_id": str(UUID(int=1))}
SUB: Any = {**MAIN, "subpath": "subagents/agent-1"}


class Transcripts:
    """A main transcript, and that of a subagent, which works in each fourth turn."""

    def __init__(self, service: RedisSessionService) -> None:
        self._store = ClaudeSessionStore(service, app_name="shop")

    async def make(self, number: int) -> str:
        """The entries of a turn, as Claude Code writes them."""
        call = f"toolu_{number}"
        parent = _uuid(number - 1, 3) if number else None
        messages: list[tuple[str, Any]] = [
            ("user", f"prompt {number}"),
            ("assistant", [{"type": "tool_use", "id": call, "name": "look", "input": {}}]),
            ("user", [{"type": "tool_result", "tool_use_id": call, "content": "x" * 200}]),
            ("assistant", [{"type": "text", "text": f"answer {number} \ud83d"}]),
        ]
        entries: list[Any] = []
        for place, (role, content) in enumerate(messages):
            entry = {"type": role, "uuid": _uuid(number, place), "parentUuid": parent}
            entries.append({**entry, "message": {"role": role, "content": content}})
            parent = entry["uuid"]
        return json.dumps(entries)

    async def store(self, turn: str) -> None:
        """Append it, as the SDK does."""
        entries = json.loads(turn)
        number = int(entries[0]["message"]["content"].split()[1])
        await self._store.append(MAIN, entries)
        if number % 4 == 0:
            await self._store.append(SUB, entries)
        summaries = await self._store.list_session_summaries(MAIN["project_key"])
        assert summaries[0]["data"]["first_prompt"] == "prompt 0"

    async def found(self) -> list[str]:
        """The uuids of all entries. Those of the subagent are a part of them."""
        found = await self._store.load(MAIN) or []
        sub = await self._store.load(SUB) or []
        uuids = [entry["uuid"] for entry in found]
        of_sub = [entry["uuid"] for entry in sub]
        assert len(set(of_sub)) == len(of_sub)
        return uuids

    def expected(self, turn: str) -> list[str]:
        """The uuids of its entries."""
        return [entry["uuid"] for entry in json.loads(turn)]


def _uuid(number: int, place: int) -> str:
    return str(uuid5(NAMESPACE_URL, f"{number} {place}"))


CASES: dict[str, MakeCase] = {"transcripts": Transcripts}

if __name__ == "__main__":
    main(__file__, CASES)
