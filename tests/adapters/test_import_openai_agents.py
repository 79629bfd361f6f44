"""`import --from openai-agents`: what SQLiteSession has written, StoredSession reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapters_support import needs
from click.testing import CliRunner
from support.servers import Server

from sessionstore import RedisSessionService
from sessionstore.cli import command_line

agents: Any = needs("agents", "openai-agents")

ITEMS: dict[str, list[Any]] = {
    "first": [
        {"role": "user", "content": "two mugs, \u00fc"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"n": 2}'},
        {"type": "function_call_output", "call_id": "c1", "output": "half of \ud83d"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "done"}], "p": 0.5},
    ],
    "not finite": [{"role": "user", "content": "x", "score": float("inf")}],
    "empty": [],
}


def run(server: Server, path: Path, *more: str) -> tuple[int, str]:
    options = ["--from", "openai-agents", "--app", "shop", "--user", "ann", "--ttl", "3600"]
    result = CliRunner().invoke(
        command_line(), ["import", str(path), "--url", server.url, *options, *more]
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr.splitlines(keepends=True)[-1]


async def test_stored_session_reads_what_was_imported(server: Server, tmp_path: Path) -> None:
    from sessionstore.adapters.openai_agents import StoredSession

    path = tmp_path / "sessions.db"
    for name, items in ITEMS.items():
        written = agents.SQLiteSession(name, path)
        await written.add_items(items)
        written.close()
    assert run(server, path, "--verify") == (
        0,
        "2 sessions written, 0 already stored.\n",  # without items there is no session
    )
    assert run(server, path) == (0, "0 sessions written, 2 already stored.\n")
    async with RedisSessionService(server.url, session_ttl=3600) as service:
        for name, items in ITEMS.items():
            written = agents.SQLiteSession(name, path)
            stored = StoredSession(name, service, app_name="shop", user_id="ann")
            assert await stored.get_items() == await written.get_items() == items
            written.close()
        stored = StoredSession("first", service, app_name="shop", user_id="ann")
        await stored.add_items([{"role": "user", "content": "one more"}])
        newest: Any = (await stored.get_items())[-1]
        assert newest["content"] == "one more"


def test_a_file_that_is_not_of_the_sdk_is_one_sentence(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert run(server, path) == (2, f"Error: {path}: there is no such file\n")
    path.write_text("no database")
    assert run(server, path) == (2, f"Error: {path}: file is not a database\n")
