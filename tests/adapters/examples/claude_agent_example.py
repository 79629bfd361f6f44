"""Claude Agent SDK: a session that goes on elsewhere, with a script in place of Claude Code.

python claude_agent_example.py [redis://localhost:6379]
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from claude_agent_sdk import ClaudeAgentOptions, ResultMessage, list_sessions_from_store, query

from sessionstore import InMemorySessionService, RedisSessionService
from sessionstore.adapters.claude_agent import ClaudeSessionStore

SCRIPT = Path(__file__).with_name("scripted_claude.py")


async def ask(store: ClaudeSessionStore, question: str, session_id: str | None) -> ResultMessage:
    """One run, as if on a machine of its own: its disk is empty, and only the store is shared."""
    with tempfile.TemporaryDirectory() as disk:
        options = ClaudeAgentOptions(
            session_store=store,
            resume=session_id,
            cwd=SCRIPT.parent,
            cli_path=SCRIPT,
            env={"CLAUDE_CONFIG_DIR": disk},
        )
        messages = [message async for message in query(prompt=question, options=options)]
    [result] = [message for message in messages if isinstance(message, ResultMessage)]
    return result


async def main(url: str | None) -> None:
    """Two runs of one session."""
    service = RedisSessionService(url, session_ttl=3600) if url else InMemorySessionService()
    async with service:
        store = ClaudeSessionStore(service, app_name="shop")
        session_id = None
        for question in ("Do you remember me?", "And now?"):
            result = await ask(store, question, session_id)
            session_id = result.session_id
            print(f"{question} {result.result}")
        [info] = await list_sessions_from_store(store, directory=str(SCRIPT.parent))
        print(f"The store has one session: {info.summary}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
