"""What the adapters of OpenAI Agents, LangChain and Claude store, and what 0.1.0 stored."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from adapters_support import needs

import sessionstore

HERE = Path(__file__).parent
MODULES = {
    "openai-agents": "agents",
    "langchain": "langchain_core",
    "claude-agent": "claude_agent_sdk",
}


@pytest.mark.parametrize("framework", MODULES)
def test_bytes_depend_on_the_event_alone(framework: str) -> None:
    needs(MODULES[framework], framework)
    command = [sys.executable, "-W", "ignore", str(HERE / "bytes_of_histories.py"), framework]
    path = str(Path(sessionstore.__file__).parents[1])
    printed = {
        subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            timeout=120,
        ).stdout
        for hash_seed in ("0", "1", "2", "random")
    }
    assert len(printed) == 1
    assert len(printed.pop().splitlines()) >= 3


def restore(server: Any, name: str, codec: str) -> None:
    """Write the keys that release 0.1.0 left on a server."""
    golden = msgspec.json.decode((HERE / "golden" / f"{name}.json").read_bytes())
    for key, value in golden[codec].items():
        if isinstance(value, dict):
            pairs = {
                field.encode("latin-1"): text.encode("latin-1") for field, text in value.items()
            }
            server.raw.hset(key, mapping=pairs)
        else:
            server.raw.zadd(key, {member.encode("latin-1"): score for member, score in value})


@pytest.mark.without_ttl
@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_items_of_0_1_0_are_read(server: Any, codec: str) -> None:
    needs("agents", "openai-agents")
    adapter = needs("sessionstore.adapters.openai_agents", "openai-agents")
    restore(server, "openai_agents", codec)
    async with sessionstore.RedisSessionService(server.url) as service:
        session = adapter.StoredSession("one", service, app_name="shop", user_id="ann")
        items = await session.get_items()
        await session.add_items([{"role": "user", "content": "And now?"}])
        assert await session.get_items() == [*items, {"role": "user", "content": "And now?"}]
    kinds = [item.get("type") for item in items]
    assert kinds == [None, "reasoning", "function_call", "function_call_output", "message"]
    assert items[0] == {"role": "user", "content": "Two mugs \u2615"}
    assert items[3]["output"] == [1, 2.5, None]


@pytest.mark.without_ttl
@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_messages_of_0_1_0_are_read(server: Any, codec: str) -> None:
    messages: Any = needs("langchain_core.messages", "langchain")
    adapter = needs("sessionstore.adapters.langchain", "langchain")
    restore(server, "langchain", codec)
    call = {"name": "add", "args": {"n": 2}, "id": "call_1"}
    artifact = {
        "png": b"\xff\x00",
        "at": datetime(2024, 5, 15, 12, tzinfo=UTC),
        "pair": (1, 2),
        "big": 1 << 70,
        "keys": {1: "a"},
    }
    expected = [
        messages.HumanMessage("Two mugs \u2615"),
        messages.AIMessage("", tool_calls=[call], id="run-1"),
        messages.ToolMessage("done", tool_call_id="call_1", artifact=artifact),
        messages.AIMessage("Added."),
    ]
    async with sessionstore.RedisSessionService(server.url) as service:
        history = adapter.StoredChatMessageHistory("one", service, app_name="shop", user_id="ann")
        assert await history.aget_messages() == expected
        await history.aadd_messages(expected[:2])
        assert await history.aget_messages() == expected + expected[:2]
