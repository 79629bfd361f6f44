"""What release 0.1.0 stored is read, continued, listed, counted, expired and deleted."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.clock import pass_time
from support.compression import COMPRESSION
from support.events import NOON, ids_of, make_event
from support.servers import Server

from sessionstore import (
    BackendRejected,
    Event,
    RedisSessionService,
    SessionKey,
    SessionNotFound,
    StaleVersion,
    TurnTaken,
    Window,
)
from sessionstore.keys import Keys

GOLDEN = Path(__file__).parent / "golden_keyspace"
NAMES = ["json_by_user", "msgpack_by_app"]
USER: dict[str, Any] = {"app_name": "support bot", "user_id": "anna:{1}"}
KEY = SessionKey(**USER, session_id="chat/1 ü")
IDS: dict[str, Any] = {**USER, "session_id": KEY.session_id}
EMPTY = SessionKey(**USER, session_id="empty")
STATE = {
    "n": 4,
    "raw": b"\x00\xff",
    "user:lang": "en",
    "user:flags": {"beta": True},
    "app:motd": ["hi", None, 1.5],
}


class Old:
    """A server with a stored keyspace, and a service of today with its options."""

    def __init__(self, server: Server, name: str, codec: Any = "json", **options: Any) -> None:
        golden = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
        for command in golden["commands"]:
            server.raw.execute_command(*map(_raw_value, command))  # type: ignore[no-untyped-call]  # redis-py has no types for it
        self.options = golden["options"]
        self.service = RedisSessionService(server.url, codec=codec, **self.options, **options)
        self.keys = Keys(self.options["key_prefix"], self.options["partition_by"]).session(**IDS)
        self.is_msgpack = name.startswith("msgpack")
        self.events = [
            Event("user", {"text": "Grüß Gott"}, id="e1", timestamp=NOON - timedelta(days=1)),
            Event(
                "agent",
                {"text": "Hello", "tools": [{"name": "lookup", "args": {"id": 7}}]},
                id="e2",
                timestamp=NOON,
                invocation_id="run-1",
                branch="main.sub",
                metadata={"model": "m", "tokens": 12},
            ),
            Event(
                "tool",
                [1, 2.5, None, True, ""],
                id="e3",
                timestamp=NOON + timedelta(days=9),
                state_delta={"n": 4, "user:lang": "en"},
                state_removed=["topic"],
            ),
        ]
        if self.is_msgpack:
            native = {"blob": b"\x00\x01", "when": NOON, 1: "int key"}
            timestamp = NOON + timedelta(days=9)
            self.events.append(Event("tool", native, id="e4", timestamp=timestamp))

    async def ids(self) -> list[str]:
        found = await self.service.get_session(**IDS)
        assert found
        return ids_of(found)


def _raw_value(value: Any) -> bytes:
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"])
    return str(value).encode()


@pytest.fixture(params=NAMES)
async def old(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Old]:
    found = Old(server, request.param, request.param.partition("_")[0])
    yield found
    await found.service.aclose()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options", [{}, {"codec": "msgpack"}, {"compression": COMPRESSION}], ids=repr
)
async def test_a_stored_keyspace_stays_readable(
    server: Server, name: str, options: dict[str, Any]
) -> None:
    """A service reads every format, whichever it writes."""
    old = Old(server, name, **options)
    before = server.snapshot()
    async with old.service as service:
        found = await service.get_session(**IDS)
        assert found
        assert found.state == STATE
        assert found.events == old.events
        assert found.event_count == len(old.events)
        assert found.version == len(old.events) + 3
        assert found.created_at == NOON
        assert found.updated_at == NOON + timedelta(seconds=len(old.events) + 1)
        page = await service.get_events(KEY, limit=2)
        assert page.events == old.events[:2]
        assert (page.first, page.last) == (1715688000123456, 1715774400123456)
        assert page.positions == [1715688000123456, 1715774400123456]
        newest = await service.get_events(KEY, newest=True, limit=1)
        assert newest.events == old.events[-1:]
        assert server.snapshot() == before
        # The session can be continued.
        await service.append_event(found, make_event("new", state_delta={"n": 5}))
        assert (await service.pop_event(found)) == make_event("new", state_delta={"n": 5})
        again = await service.get_session(**IDS)
        assert again
        assert again.state == STATE | {"n": 5}
        assert again.events == old.events
        assert again.version == found.version > len(old.events) + 5
        await service.append_event(EMPTY, make_event("first"))


async def test_sessions_are_listed_and_counted(server: Server, old: Old) -> None:
    before = server.snapshot()
    listed = await old.service.list_sessions(**USER, event_num=9)
    assert [each.id for each in listed] == ["empty", KEY.session_id]
    assert listed[1].state == STATE
    assert [each.events for each in listed] == [[], old.events]
    assert [each.event_count for each in listed] == [0, len(old.events)]
    by_offset = [await old.service.list_sessions(**USER, limit=1, offset=n) for n in range(3)]
    assert [[each.id for each in page] for page in by_offset] == [["empty"], [KEY.session_id], []]
    cursor, by_cursor = None, []
    for _ in range(9):
        page = await old.service.list_sessions(**USER, limit=1, after=cursor)
        by_cursor += [each.id for each in page]
        cursor = page.cursor
        if cursor is None:
            break
    assert by_cursor == ["empty", KEY.session_id]
    assert await old.service.count_sessions(**USER) == 2
    assert await old.service.list_users(app_name=USER["app_name"]) == [USER["user_id"]]
    assert server.snapshot() == before


async def test_the_default_limit_keeps_what_is_there(server: Server, old: Old) -> None:
    num_events = len(old.events)
    await old.service.append_event(KEY, make_event("new"))
    await old.service.append_events(EMPTY, [make_event("new")])
    empty_key = old.keys.session.replace(b"chat%2F1%20%C3%BC", b"empty")
    fields = ("count", "event_limit")
    assert server.raw.hmget(old.keys.session, *fields) == [b"%d" % (num_events + 1), b"1000"]
    assert server.raw.hmget(empty_key, *fields) == [b"1", b"1000"]

    # A log that 0.1.0 kept with `session_event_limit=None`.
    server.raw.hdel(old.keys.session, *fields)
    first = int(server.raw.hget(old.keys.session, "last_us") or 0) + 1
    member = b'{"author":"x","id":"%d","timestamp":"2024-05-30T12:00:00Z"}'
    events: Any = {member % number: first + number for number in range(1500)}
    server.raw.zadd(old.keys.events, events)
    server.raw.hset(old.keys.session, "last_us", str(first + 1499))
    num_events += 1 + 1500
    assert len(await old.ids()) == num_events
    for number in range(3):
        await old.service.append_event(KEY, make_event(f"later {number}"))
    assert server.raw.hmget(old.keys.session, *fields) == [b"%d" % num_events] * 2
    ids = await old.ids()
    assert len(ids) == num_events
    assert ids[-4:] == ["1499", "later 0", "later 1", "later 2"]


async def test_an_explicit_limit_trims(server: Server, old: Old) -> None:
    async with RedisSessionService(server.url, session_event_limit=2, **old.options) as limited:
        await limited.append_event(KEY, make_event("new"))
        assert await old.ids() == [old.events[-1].id, "new"]
    assert server.raw.hmget(old.keys.session, "count", "event_limit") == [b"2", b"2"]


async def test_an_event_that_is_stored_already_is_recognized(server: Server, old: Old) -> None:
    before = server.snapshot()
    await old.service.append_event(KEY, old.events[1])
    await old.service.append_events(KEY, old.events)
    assert server.snapshot() == before


async def test_events_are_popped_cleared_and_repaired(server: Server, old: Old) -> None:
    ids = ids_of(old.events)
    repaired = await old.service.repair_session(KEY)
    assert ids_of(repaired) == ids
    server.raw.hdel(old.keys.session, "count")
    popped = [await old.service.pop_event(KEY) for _ in ids]
    assert popped == old.events[::-1]
    assert await old.service.pop_event(KEY) is None
    assert await old.ids() == []
    await old.service.append_events(KEY, old.events)
    await old.service.clear_events(KEY)
    assert await old.ids() == []
    found = await old.service.get_session(**IDS)
    assert found
    assert found.state == STATE


async def test_versions_and_state(old: Old) -> None:
    session = await old.service.get_session(**IDS)
    assert session
    first = session.version
    await old.service.update_session_state(session, {"n": 5, "user:lang": "de"}, if_version=first)
    assert session.version > 1_700_000_000_000_000
    with pytest.raises(StaleVersion):
        await old.service.append_event(KEY, Event("user"), if_version=first)
    assert await old.service.increment_session_state(KEY, {"n": 2, "user:n": 3}) == {
        "n": 7,
        "user:n": 3,
    }
    again = await old.service.get_session(**IDS)
    assert again
    assert again.state == STATE | {"n": 7, "user:n": 3, "user:lang": "de"}


@pytest.mark.parametrize("drop", [False, True])
async def test_a_session_is_compacted(old: Old, drop: bool) -> None:
    log = await old.service.get_events(KEY)
    window = Window(starts_turn=lambda _: True)
    summary = await old.service.compact_session(
        KEY, upto=log.positions[1], summary="s", window=window, drop=drop
    )
    assert summary.num_events == (0 if drop else 2)
    await old.service.append_event(KEY, make_event("new"))
    found = await old.service.get_session(**IDS)
    assert found
    assert ids_of(found) == [event.id for event in log.events[2:]] + ["new"]
    assert found.summary == summary
    assert found.event_count == len(found.events) + summary.num_events


async def test_an_integer_of_the_msgpack_codec_is_not_incremented(server: Server, old: Old) -> None:
    before = server.snapshot()
    increment = old.service.increment_session_state(KEY, {"n": 1})
    if old.is_msgpack:
        with pytest.raises(BackendRejected, match="is not an integer"):
            await increment
        assert server.snapshot() == before
    else:
        assert await increment == {"n": 5}


async def test_a_lease_without_length(server: Server, old: Old) -> None:
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    until_us = f"{until.timestamp():.0f}000000"
    lease: Any = {"turn_token": "7", "turn_until_us": until_us, "turn_holder": ""}
    server.raw.hset(old.keys.session, mapping=lease)
    with pytest.raises(TurnTaken) as caught:
        await old.service.acquire_turn(KEY)
    assert caught.value.expires_at == until
    await old.service.free_turn(KEY)
    turn = await old.service.acquire_turn(KEY)
    await old.service.append_event(KEY, make_event("new"), turn=turn)


# -- the end ------------------------------------------------------------------------------------


async def test_a_refresh_sets_one_deadline(server: Server, old: Old) -> None:
    now_ms = time.time() * 1000
    async with RedisSessionService(
        server.url, session_ttl=600, user_state_ttl=700, app_state_ttl=800, **old.options
    ) as service:
        await service.append_event(KEY, make_event("new"))
    deadlines = [server.raw.pexpiretime(key.decode()) - now_ms for key in old.keys]
    session, events, index, user, app = deadlines
    assert session == events
    assert 600_000 <= session < 630_000
    assert 700_000 <= user < 730_000
    assert 800_000 <= app < 830_000
    assert index > 630_000, "the other session lives longer"


async def test_sessions_expire(server: Server, old: Old) -> None:
    """Alone first, so that the index still has them; then with all other keys."""
    left_ms = max(server.raw.pexpiretime(key.decode()) for key in old.keys) - time.time() * 1000
    pass_time(server, left_ms + 1000, [old.keys.session, old.keys.events])
    assert await old.service.get_session(**IDS) is None
    assert [each.id for each in await old.service.list_sessions(**USER)] == ["empty"]
    assert await old.service.count_sessions(**USER) == 1
    with pytest.raises(SessionNotFound):
        await old.service.append_event(KEY, make_event("new"))
    pass_time(server, left_ms + 1000)
    assert await old.service.list_sessions(**USER) == []
    assert await old.service.count_sessions(**USER) == 0
    assert server.all_keys() == []


async def test_a_session_is_deleted(server: Server, old: Old) -> None:
    await old.service.delete_session(**IDS)
    assert await old.service.get_session(**IDS) is None
    assert [each.id for each in await old.service.list_sessions(**USER)] == ["empty"]
    assert server.raw.exists(old.keys.session, old.keys.events) == 0
    assert server.raw.zrange(old.keys.session_index, 0, -1) == [b"empty"]


async def test_a_user_is_deleted(server: Server, old: Old) -> None:
    deleted = await old.service.delete_user(**USER)
    assert (deleted.num_sessions, deleted.num_state_keys) == (2, 2)
    assert server.all_keys() == [old.keys.app]
