"""`import --from trpc-go`: samples of both layouts of trpc-agent-go are read as it reads them."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.servers import Server

from sessionstore import Event, SessionKey
from sessionstore.cli import command_line
from sessionstore.sync import RedisSessionService

SAMPLES = Path(__file__).parents[2] / "../shared/data/trpc"
TTLS: Any = dict.fromkeys(("session_ttl", "app_state_ttl", "user_state_ttl"), 3600)

pytestmark = pytest.mark.skipif(not SAMPLES.exists(), reason="the samples are not here")


@pytest.fixture
def service(server: Server) -> Iterator[RedisSessionService]:
    with RedisSessionService(server.url, key_prefix="p:", codec="msgpack", **TTLS) as found:
        yield found


def load(server: Server, layout: str) -> None:
    for line in (SAMPLES / f"{layout}.redis").read_text("utf-8").split("\n"):
        if line:
            words = [
                b64decode(word["b64"]) if isinstance(word, dict) else word
                for word in json.loads(line)
            ]
            command: Any = server.raw.execute_command
            command(*words)


def run(server: Server) -> list[dict[str, Any]]:
    options = ["--from", "trpc-go", "--codec", "msgpack", "--ttl", "3600", "--verify", "--json"]
    result = CliRunner().invoke(
        command_line(),
        ["import", server.url, "--url", server.url, "--key-prefix", "p:", *options],
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    for client in server.clients():
        for key in server.without_deadline():
            client.expire(key.decode(), 3600)
    return [json.loads(line) for line in result.stdout.splitlines()]


def value(expected: Any) -> Any:
    """A state value as expected.json has it."""
    if expected is None:
        return None
    return expected["utf8"] if "utf8" in expected else b64decode(expected["b64"])


def sides(event: Event) -> Iterator[dict[str, Any]]:
    for choice in event.content["choices"]:
        for side in ("message", "delta"):
            yield choice.get(side) or {}


def shown(event: Event) -> dict[str, Any]:
    calls = [call for side in sides(event) for call in side.get("tool_calls") or []]
    first = next((each for each in sides(event) if each.get("content") or each["role"]), {})
    return {
        "id": event.id,
        "invocation_id": event.invocation_id,
        "author": event.author,
        "branch": event.branch,
        "timestamp_us": round(event.timestamp.timestamp() * 1e6),
        "text": first.get("content") or "",
        "arguments": [call["function"].get("arguments", "") for call in calls],
        "choices": len(event.content["choices"]),
    }


def wanted(expected: dict[str, Any]) -> dict[str, Any]:
    names = ("id", "invocation_id", "author", "branch", "timestamp_us", "text", "choices")
    calls = expected["tool_calls"]
    return {name: expected[name] for name in names} | {
        "arguments": [call["arguments"] for call in calls]
    }


def test_an_event_that_is_not_json_is_skipped(server: Server, service: RedisSessionService) -> None:
    load(server, "zset")
    raw: Any = server.raw
    [log] = [name for name in raw.keys("event:*") if name.endswith(b":G/01")]
    raw.zadd(log, {"{": 1})
    assert {each["status"] for each in run(server)} == {"written"}
    key = SessionKey("greenhouse", "顾客-零三", "G/01")
    assert len(service.get_events(key).events) == 7


@pytest.mark.parametrize("layouts", [("zset",), ("hashidx",), ("zset", "hashidx")])
def test_the_samples_are_imported_as_trpc_agent_go_reads_them(
    server: Server, service: RedisSessionService, layouts: tuple[str, ...]
) -> None:
    expected = json.loads((SAMPLES / "expected.json").read_text("utf-8"))
    for layout in layouts:
        load(server, layout)
    reported = run(server)
    sessions = [each for layout in layouts for each in expected[layout]["sessions"]]
    assert {each["status"] for each in reported} == {"written"}
    assert len(reported) == len(sessions)
    for session in sessions:
        key = SessionKey(session["app"], session["user"], session["id"])
        found = service.get_session(
            app_name=key.app_name, user_id=key.user_id, session_id=key.session_id, event_num=0
        )
        assert found is not None
        assert round(found.created_at.timestamp() * 1e6) == session["created_at_us"]
        assert round(found.updated_at.timestamp() * 1e6) == session["last_activity_us"]
        own = {
            name: each
            for name, each in found.state.items()
            if not name.startswith(("user:", "app:", "trpc:"))
        }
        assert own == {
            name: value(each)
            for name, each in session["state"].items()
            if not name.startswith(("user:", "app:", "temp:"))
        }
        page = service.get_events(key)
        assert list(map(shown, page.events)) == list(map(wanted, session["events"]))
        assert set(found.state.get("trpc:tracks", {})) == set(session["tracks"])
        for name, entries in session["tracks"].items():
            tracks = found.state["trpc:tracks"][name]
            assert [each.get("payload") for each in tracks] == [each["payload"] for each in entries]
        summaries = found.state.get("trpc:summaries", {})
        assert {name: each["summary"] for name, each in summaries.items()} == {
            name: each["summary"] for name, each in session["summaries"].items()
        }
        if found.summary is not None:
            assert found.summary.content == session["summaries"][""]["summary"]
    if len(layouts) == 1:
        for app_name, app in expected[layouts[0]]["apps"].items():
            stored = service.get_app_state(app_name)
            assert stored == {name: value(each) for name, each in app["state"].items()}
    for user in expected[layouts[-1]]["users"]:
        stored = service.get_user_state(user["app"], user["user"])
        if user["state_source"] is not None and len(layouts) == 1:
            assert stored == {name: value(each) for name, each in user["state"].items()}
    assert {each["status"] for each in run(server)} == {"unchanged"}
