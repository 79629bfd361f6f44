"""LangGraph's saver on services that encrypt."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from adapters_support import WITH_TTL, needs
from click.testing import CliRunner
from langgraph_support import chat
from support.servers import Server

from sessionstore import CorruptData, KeyRing, RedisSessionService
from sessionstore.cli import command_line

langgraph: Any = needs("sessionstore.adapters.langgraph", "langgraph")

ONE, TWO = bytes(range(64)), bytes(range(1, 65))
TEXT = "please book a seat by the window"
THREAD: Any = {"configurable": {"thread_id": "t1"}}


@pytest.mark.parametrize("with_key_store", [False, True])
async def test_rekey_encrypts_each_entry_of_a_thread(
    server: Server, tmp_path: Path, with_key_store: bool
) -> None:
    key_store = f"{server.url}?db=1" if with_key_store else None
    options: Any = {"key_store": key_store, **WITH_TTL}
    async with RedisSessionService(
        server.url, encryption=KeyRing({"one": ONE}), **WITH_TTL
    ) as service:
        for _ in range(3):
            await chat(langgraph.StoredCheckpointSaver(service)).ainvoke({"log": [TEXT]}, THREAD)
    (tmp_path / "keys").write_text(
        f"two:{b64encode(TWO).decode()}\none:{b64encode(ONE).decode()}\n"
    )
    arguments = ["rekey", "--url", server.url, "--key-ring", str(tmp_path / "keys")]
    arguments += ["--key-store", key_store] if key_store else []
    assert CliRunner().invoke(command_line(), arguments).exit_code == 0
    found: Any = server.raw.hgetall(b"session:{langgraph:threads}:t1")
    assert not [field for field, value in found.items() if b"\x03\x03one" in value]
    async with RedisSessionService(
        server.url, encryption=KeyRing({"two": TWO}), **options
    ) as service:
        saver = langgraph.StoredCheckpointSaver(service)
        await chat(saver).ainvoke({"log": [TEXT]}, THREAD)
        snapshot = await chat(saver).aget_state(THREAD)
        assert snapshot.values["log"].count(TEXT) == 4
        assert len([each async for each in saver.alist(THREAD)]) > 8
        await saver.acopy_thread("t1", "t2")
    async with RedisSessionService(server.url, **WITH_TTL) as service:
        with pytest.raises(CorruptData, match="encrypt"):
            await langgraph.StoredCheckpointSaver(service).aget_tuple(THREAD)
