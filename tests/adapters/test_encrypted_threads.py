"""LangGraph's saver on services that encrypt: continued after rekey, gone after delete_user."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from adapters_support import WITH_TTL, needs
from click.testing import CliRunner
from langgraph_support import chat
from support.servers import Server

from sessionstore import KeyRing, RedisSessionService
from sessionstore.cli import command_line

langgraph: Any = needs("sessionstore.adapters.langgraph", "langgraph")

ONE, TWO = bytes(64), bytes(range(64))
TEXT = "please book a seat by the window " * 20
CONFIG: Any = {"configurable": {"thread_id": "t1"}}


@pytest.mark.parametrize("with_key_store", [False, True])
async def test_a_thread_is_encrypted_and_continued_after_rekey(
    server: Server, tmp_path: Path, with_key_store: bool
) -> None:
    key_store = f"{server.url}?db=1" if with_key_store else None
    rings = [KeyRing({"one": ONE}), KeyRing({"two": TWO})]
    async with RedisSessionService(server.url, encryption=rings[0], **WITH_TTL) as old:
        saver = langgraph.StoredCheckpointSaver(old)
        for _ in range(3):
            await chat(saver).ainvoke({"log": [TEXT]}, CONFIG)
    lines = [f"{name}:{b64encode(key).decode()}" for name, key in (("two", TWO), ("one", ONE))]
    (tmp_path / "keys").write_text("\n".join(lines))
    arguments = ["rekey", "--url", server.url, "--key-ring", str(tmp_path / "keys")]
    arguments += [] if key_store is None else ["--key-store", key_store]
    assert CliRunner().invoke(command_line(), arguments).exit_code == 0
    options: Any = {"encryption": rings[1], "key_store": key_store, **WITH_TTL}
    async with RedisSessionService(server.url, **options) as new:
        saver = langgraph.StoredCheckpointSaver(new, keep_checkpoints=4)
        for _ in range(2):
            await chat(saver).ainvoke({"log": [TEXT]}, CONFIG)
        snapshot = await chat(saver).aget_state(CONFIG)
        assert snapshot.values["log"].count(TEXT) == 5
        stored: Any = server.raw.hgetall(b"session:{langgraph:threads}:t1")
        assert not any(TEXT[:20].encode() in value for value in stored.values())
        assert not any(b"\x03\x03one" in value for value in stored.values())
        await new.delete_user(app_name="langgraph", user_id="threads")
        assert await saver.aget_tuple(CONFIG) is None
        await chat(saver).ainvoke({"log": [TEXT]}, CONFIG)
