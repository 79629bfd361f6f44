"""`import --from langgraph`: StoredCheckpointSaver reads what SqliteSaver has stored."""

from __future__ import annotations

import json
import operator
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from adapters_support import WITH_TTL, needs
from click.testing import CliRunner
from support.servers import Server

from sessionstore.cli import command_line
from sessionstore.sync import RedisSessionService

sqlite: Any = needs("langgraph.checkpoint.sqlite", "frameworks")
aio: Any = needs("langgraph.checkpoint.sqlite.aio", "frameworks")
graphs: Any = needs("langgraph.graph", "langgraph")
kinds: Any = needs("langgraph.types", "langgraph")
messages: Any = needs("langchain_core.messages", "langgraph")
adapter: Any = needs("sessionstore.adapters.langgraph", "langgraph")


@dataclass
class Order:
    """A class of the application."""

    name: str
    size: int


class State(TypedDict):
    said: Annotated[list[Any], operator.add]
    order: Order
    data: bytes


def graph(saver: Any) -> Any:
    """A graph with a subgraph, which asks a person before its last step."""

    def order(_: State) -> Any:
        return {"order": Order("mug", 2), "data": b"\x00\xff" * 40_000}

    def ask(_: State) -> Any:
        return {"said": [messages.AIMessage(kinds.interrupt("how many?"))]}

    inner = graphs.StateGraph(State)
    inner.add_node("ask", ask)
    inner.add_edge(graphs.START, "ask")
    outer = graphs.StateGraph(State)
    outer.add_node("order", order)
    outer.add_node("inner", inner.compile(checkpointer=True))
    outer.add_edge(graphs.START, "order")
    outer.add_edge("order", "inner")
    return outer.compile(checkpointer=saver)


def config(thread: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": thread}}


def fill(saver: Any) -> None:
    for thread in ("done", "waits", "a b:{x}"):
        compiled = graph(saver)
        compiled.invoke({"said": [messages.HumanMessage("mugs")]}, config(thread))
        if thread == "done":
            compiled.invoke(kinds.Command(resume="two"), config(thread))
            compiled.invoke({"said": [messages.HumanMessage("more")]}, config(thread))


@contextmanager
def saver_of(path: Path) -> Iterator[Any]:
    with closing(sqlite3.connect(path, check_same_thread=False)) as database:
        yield sqlite.SqliteSaver(database)


def everything(saver: Any) -> dict[str, list[Any]]:
    return {
        thread: [
            found._replace(config=found.config["configurable"])
            for found in saver.list(config(thread))
        ]
        for thread in ("done", "waits", "a b:{x}")
    }


def run(server: Server, path: Path, *more: str) -> tuple[int, list[dict[str, Any]], str]:
    options = ["--url", server.url, "--from", "langgraph", "--json", "--ttl", "600", *more]
    result = CliRunner().invoke(command_line(), ["import", str(path), *options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return result.exit_code, lines, result.stderr


def by_namespace(found: list[Any]) -> dict[str, list[Any]]:
    """Checkpoints in the order of the saver, which sorts each namespace."""
    spaces: dict[str, list[Any]] = {}
    for each in found:
        spaces.setdefault(each.config["checkpoint_ns"], []).append(each)
    return spaces


@pytest.mark.filterwarnings("ignore:Deserializing unregistered type")
def test_the_saver_reads_what_the_sqlite_saver_reads_and_goes_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoints.db"
    with saver_of(path) as theirs:
        fill(theirs)
        expected = everything(theirs)
    assert all(len(by_namespace(found)) == 2 for found in expected.values())
    assert any(found.pending_writes for found in expected["waits"])
    with monkeypatch.context() as without:
        without.delattr(sys.modules[__name__], "Order")  # the command does not have the class
        code, lines, _ = run(server, path, "--verify")
    assert (code, {line["status"] for line in lines}) == (0, {"written"})
    assert [line["session"] for line in lines] == ["done", "waits", "a b:{x}"]
    for line in lines:
        found = expected[line["session"]]
        assert line["checkpoints"] == len(found)
        assert line["writes"] == sum(len(each.pending_writes or ()) for each in found)
    with RedisSessionService(server.url, **WITH_TTL) as service:
        ours = adapter.StoredCheckpointSaver(service)
        for thread, found in everything(ours).items():
            assert by_namespace(found) == by_namespace(expected[thread])
        before = {key: server.raw.dump(key) for key in server.raw.keys("*")}
        code, again, text = run(server, path)
        assert {key: server.raw.dump(key) for key in server.raw.keys("*")} == before
        assert "0 sessions written, 3 already stored" in text
        assert [line["sha256"] for line in again] == [line["sha256"] for line in lines]
        graph(ours).invoke(kinds.Command(resume="two"), config("waits"))
        state = graph(ours).get_state(config("waits")).values
        assert [said.content for said in state["said"]] == ["mugs", "mugs", "two"]
        assert state["order"] == Order("mug", 2)
        assert run(server, path)[0] == 0  # what was imported is still there


@pytest.mark.filterwarnings("ignore:Deserializing unregistered type")
def test_an_interrupted_import_is_completed(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints.db"
    with saver_of(path) as theirs:
        fill(theirs)
        expected = everything(theirs)
    half = tmp_path / "half.db"
    half.write_bytes(path.read_bytes())
    with closing(sqlite3.connect(half)) as database:
        database.execute(
            "DELETE FROM checkpoints WHERE checkpoint_id > "
            "(SELECT checkpoint_id FROM checkpoints WHERE thread_id = 'waits' ORDER BY 1 LIMIT 1)"
        )
        database.execute("DELETE FROM writes WHERE idx > 0")
        database.commit()
    assert run(server, half)[0] == 0
    code, lines, _ = run(server, path)
    assert code == 0
    assert "written" in {line["status"] for line in lines}
    with RedisSessionService(server.url, **WITH_TTL) as service:
        for thread, found in everything(adapter.StoredCheckpointSaver(service)).items():
            assert by_namespace(found) == by_namespace(expected[thread])


@pytest.mark.filterwarnings("ignore:Deserializing unregistered type")
def test_threads_can_be_exported_and_imported(server: Server, tmp_path: Path) -> None:
    path, file = tmp_path / "checkpoints.db", tmp_path / "export"
    with saver_of(path) as theirs:
        fill(theirs)
        expected = everything(theirs)
    run(server, path)
    options = ["--url", server.url]
    CliRunner().invoke(command_line(), ["export", *options, "--output", str(file)])
    server.empty()
    options += ["--ttl", "600", "--verify"]
    result = CliRunner().invoke(command_line(), ["import", str(file), *options])
    assert result.exit_code == 0, result.output
    with RedisSessionService(server.url, **WITH_TTL) as service:
        for thread, found in everything(adapter.StoredCheckpointSaver(service)).items():
            assert by_namespace(found) == by_namespace(expected[thread])


async def test_a_file_of_the_asynchronous_saver_is_read(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints.db"
    made: Any = {**needs("langgraph.checkpoint.base", "langgraph").empty_checkpoint()}
    async with aio.AsyncSqliteSaver.from_conn_string(str(path)) as theirs:
        place = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        stored = await theirs.aput(place, made, {"step": 1, "who": "\u00fc"}, {})
        await theirs.aput_writes(stored, [("a", 1), ("__error__", "no"), ("b", None)], "task", "p")
        expected = await theirs.aget_tuple(stored)
    assert run(server, path, "--app", "shop", "--user", "ann")[0] == 0
    with RedisSessionService(server.url, **WITH_TTL) as service:
        ours = adapter.StoredCheckpointSaver(service, app_name="shop", user_id="ann")
        assert ours.get_tuple(stored) == expected


def test_a_file_that_is_not_of_the_saver_gives_one_sentence(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert "there is no such file" in run(server, path)[2]
    sqlite3.connect(path).close()
    code, _, text = run(server, path)
    assert (code, text.splitlines()[-1]) == (
        2,
        f"Error: {path}: this is not a database of LangGraph's SqliteSaver",
    )
