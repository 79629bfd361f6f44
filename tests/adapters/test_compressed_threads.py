"""LangGraph's saver and LangChain's history on services that compress."""

from __future__ import annotations

from typing import Any

import pytest
from adapters_support import WITH_TTL, needs
from langgraph_support import chat, check_no_orphans
from support.compression import COMPRESSION, FIRST, NEWER, SECOND
from support.servers import Server

from sessionstore import CorruptData, RedisSessionService, Zstd
from sessionstore.sync import RedisSessionService as ServiceForThreads

langgraph: Any = needs("sessionstore.adapters.langgraph", "langgraph")
langchain: Any = needs("sessionstore.adapters.langchain", "langchain")
messages: Any = needs("langchain_core.messages", "langchain")

PREPARED = Zstd(dictionaries=[FIRST, SECOND], min_bytes=0)
TEXT = "please book a seat by the window " * 20


def config(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id}}


async def texts(saver: Any, thread_id: str) -> int:
    snapshot = await chat(saver).aget_state(config(thread_id))
    return int(snapshot.values["log"].count(TEXT))


async def test_a_thread_is_stored_compressed_and_continued_with_a_newer_dictionary(
    server: Server,
) -> None:
    async with (
        RedisSessionService(server.url, compression=PREPARED, **WITH_TTL) as old,
        RedisSessionService(server.url, compression=NEWER, **WITH_TTL) as new,
        RedisSessionService(server.url, **WITH_TTL) as without,
    ):
        savers = [langgraph.StoredCheckpointSaver(each) for each in (old, new)]
        for number in range(6):
            await chat(savers[number // 2 % 2]).ainvoke({"log": [TEXT]}, config("t1"))
        assert [await texts(saver, "t1") for saver in savers] == [6, 6]
        found: Any = server.raw.hgetall(b"session:{langgraph:threads}:t1")
        kinds = {field.split(b"/")[0]: value for field, value in found.items()}
        assert kinds[b".point"][:1] == kinds[b".data"][:1] == b"\x02"
        # Scripts add entries to these, so each entry is compressed alone.
        assert kinds[b".writes"][:1] == kinds[b".ids"][:1] == b"\0"
        assert b"\x02" in {found[each][5:6] for each in found if each.startswith(b".writes")}
        assert not any(TEXT[:40].encode() in value for value in found.values())
        few = langgraph.StoredCheckpointSaver(new, keep_checkpoints=2)
        await chat(few).ainvoke({"log": [TEXT]}, config("t1"))
        await few.acopy_thread("t1", "t2")
        assert [await texts(saver, "t2") for saver in savers] == [7, 7]
        await check_no_orphans(new)
        await check_no_orphans(new, session_id="t2")
        with pytest.raises(CorruptData, match="needs the zstd dictionary"):
            await texts(langgraph.StoredCheckpointSaver(without), "t2")


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_messages_are_stored_compressed(server: Server, codec: Any) -> None:
    options: Any = {"codec": codec, "compression": COMPRESSION, **WITH_TTL}
    with ServiceForThreads(server.url, **options) as service:
        history = langchain.StoredChatMessageHistory("s", service, app_name="app", user_id="u")
        written = [messages.HumanMessage(TEXT), messages.AIMessage(TEXT)]
        history.add_messages(written)
        assert history.messages == written
    stored: Any = server.raw.zrange(b"events:{app:u}:s", 0, -1)
    assert [member[:1] for member in stored] == [b"\x02"] * 2
    assert [COMPRESSION.unwrap(member)[:1] for member in stored] == [b"{"] * 2
