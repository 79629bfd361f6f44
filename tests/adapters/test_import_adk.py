"""`import --from adk`: AdkSessionService reads what services of ADK have stored in a database."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from adapters_support import WITH_TTL, needs
from click.testing import CliRunner
from support.servers import Server

from sessionstore import RedisSessionService
from sessionstore.cli import command_line

needs("google.adk", "adk")

from adk_support import said  # noqa: E402
from google.adk.events.event import Event  # noqa: E402
from google.adk.events.event_actions import EventActions  # noqa: E402
from google.adk.sessions.database_session_service import DatabaseSessionService  # noqa: E402
from google.adk.sessions.schemas import v0  # noqa: E402
from google.adk.sessions.sqlite_session_service import SqliteSessionService  # noqa: E402
from google.genai import types  # noqa: E402
from sqlalchemy.ext.asyncio import create_async_engine  # noqa: E402

from sessionstore.adapters.adk import AdkSessionService  # noqa: E402

KINDS = ["JSON", "pickled", "SqliteSessionService"]
STATE = {"n": 1, "big": 2**70, "$": {"$": "int"}, "nested": [{"a": None}], "app:plan": "pro"}


@asynccontextmanager
async def written_by(kind: str, path: Path) -> AsyncIterator[Any]:
    """ADK's service on a file."""
    if kind == "SqliteSessionService":
        yield SqliteSessionService(str(path))
        return
    url = f"sqlite+aiosqlite:///{path}"
    if kind == "pickled":  # ADK keeps a schema that it finds
        engine = create_async_engine(url)
        async with engine.begin() as connection:
            await connection.run_sync(v0.Base.metadata.create_all)
        await engine.dispose()
    service = DatabaseSessionService(url)
    yield service
    await service.close()


def events() -> list[Event]:
    """Events of every kind: a call and its result, state of all tiers, metadata, an error."""
    call = types.FunctionCall(id="c1", name="f", args={"x": [1, 2.5, None, "\u00fc"]})
    answer = types.FunctionResponse(id="c1", name="f", response={"ok": True})
    delta = {"n": 2, "user:lang": "en", "app:plan": "free", "$": {"$": 1}, "list": [1, {}]}
    return [
        said("two mugs", timestamp=1_700_000_000.123456),
        Event(
            author="agent",
            invocation_id="run",
            branch="a.b",
            timestamp=1_700_000_001.5,
            content=types.Content(role="model", parts=[types.Part(function_call=call)]),
            long_running_tool_ids={"c3", "c1", "c2"},
            usage_metadata=types.GenerateContentResponseUsageMetadata(total_token_count=7),
        ),
        Event(
            author="agent",
            invocation_id="run",
            timestamp=1_700_000_002.0,
            content=types.Content(role="user", parts=[types.Part(function_response=answer)]),
            actions=EventActions(state_delta=delta, artifact_delta={"file": 3}),
        ),
        Event(
            author="agent",
            invocation_id="run 2",
            timestamp=1_700_000_002.000001,
            custom_metadata={"k": [1]},
            error_code="E",
            error_message="failed",
        ),
    ]


async def fill(service: Any) -> None:
    for app_name, user_id, session_id in (
        ("shop", "ann", "1"),
        ("shop", "ann", "empty"),
        ("shop", "b/ob:{x}", "1"),
        ("other", "ann", "1"),
    ):
        session = await service.create_session(
            app_name=app_name, user_id=user_id, session_id=session_id, state=STATE
        )
        for event in [] if session_id == "empty" else events():
            await service.append_event(session, event)


def run(server: Server, source: str, *more: str) -> tuple[int, list[dict[str, Any]], str]:
    options = ["--url", server.url, "--from", "adk", "--json", "--ttl", "600", *more]
    result = CliRunner().invoke(command_line(), ["import", source, *options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    for client in server.clients():
        for key in server.without_deadline():
            client.expire(key.decode(), 600)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return result.exit_code, lines, result.stderr


async def sessions_of(service: Any) -> dict[tuple[str, str, str], Any]:
    """All sessions, whole, as a service reads them."""
    found = {}
    for app_name in ("shop", "other"):
        for listed in (await service.list_sessions(app_name=app_name)).sessions:
            ids = {"app_name": app_name, "user_id": listed.user_id, "session_id": listed.id}
            session = await service.get_session(**ids)
            session.last_update_time = round(session.last_update_time, 6)  # microseconds
            found[app_name, listed.user_id, listed.id] = session.model_dump(mode="json")
    return found


@pytest.mark.parametrize("as_url", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_adapter_reads_what_adk_reads(
    server: Server, tmp_path: Path, kind: str, as_url: bool
) -> None:
    path = tmp_path / "adk.db"
    async with written_by(kind, path) as theirs:
        await fill(theirs)
        expected = await sessions_of(theirs)
    assert len(expected) == 4
    source = f"sqlite+aiosqlite:///{path}" if as_url else str(path)
    # In a thread, because the command may run an event loop of its own.
    code, lines, _ = await asyncio.to_thread(run, server, source, "--verify")
    assert code == 0
    assert [(line["status"], line["events"]) for line in lines] == [
        ("written", count) for count in (4, 4, 0, 4)
    ]
    async with RedisSessionService(server.url, **WITH_TTL) as service:
        ours = AdkSessionService(service)
        assert await sessions_of(ours) == expected
        await service.delete_session(app_name="shop", user_id="ann", session_id="1")
        code, again, _ = await asyncio.to_thread(run, server, source)
        assert await sessions_of(ours) == expected
    assert [line["status"] for line in again] == ["unchanged", "written", "unchanged", "unchanged"]
    assert [line["sha256"] for line in again] == [line["sha256"] for line in lines]


async def test_values_that_are_not_valid_json_are_read_as_the_adapter_would_store_them(
    server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "adk.db"
    async with written_by("JSON", path) as theirs:
        await fill(theirs)
    with sqlite3.connect(path) as database:
        database.execute("""UPDATE user_states SET state = '{"x": NaN, "y": "\\ud83d"}'""")
    database.close()
    assert (await asyncio.to_thread(run, server, str(path)))[0] == 0
    async with RedisSessionService(server.url, **WITH_TTL) as service:
        state = await service.get_user_state(app_name="shop", user_id="ann")
    assert state == {"x": None, "y": "\ufffd"}


def test_a_source_that_cannot_be_read_gives_one_sentence(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for source, expected in (
        (str(path), f"Error: {path}: there is no such file\n"),
        ("postgresql+nothing://u:secret@h/db", "the database cannot be opened: "),
    ):
        code, _, text = run(server, source)
        assert code == 2
        assert expected in text
        assert "secret" not in text
    sqlite3.connect(path).execute("CREATE TABLE events (id TEXT, actions BLOB)").connection.close()
    text = run(server, str(path))[2]
    assert text.splitlines()[-1].startswith("Error: the database cannot be read: ")
    path.write_text("no database")
    assert "file is not a database" in run(server, str(path))[2]
    sqlite3.connect(tmp_path / "empty").close()
    text = run(server, str(tmp_path / "empty"))[2]
    assert "this is not a database of ADK's session services" in text
