"""Stored bytes: keys, types, fields and scores. Old bytes stay readable."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from redis.crc import key_slot
from redis_support import IDS, USER
from support.events import LONG_AGO, NOON, ids_of, make_event
from support.scene import KEY
from support.servers import Server
from support.services import WITH_TTL

from sessionstore import Event, RedisSessionService, SessionKey


async def store_something(service: RedisSessionService, **ids: str) -> None:
    session = await service.create_session(
        **ids, state={"k": 1, "raw": b"\x00", "user:k": [2], "app:k": "3", "temp:k": 4}
    )
    await service.append_event(session, make_event("e1", state_delta={"k": None}))
    await service.acquire_turn(session)


async def test_keys_and_types(server: Server) -> None:
    async with RedisSessionService(server.url, **WITH_TTL) as service:
        await store_something(service, **IDS)
    assert {key: server.raw.type(key) for key in server.all_keys()} == {
        b"appdata:{a}": b"hash",
        b"userdata:{a:u}": b"hash",
        b"sessions:{a:u}": b"zset",
        b"session:{a:u}:s": b"hash",
        b"events:{a:u}:s": b"zset",
    }


async def test_hashes(server: Server) -> None:
    async with RedisSessionService(server.url, **WITH_TTL) as service:
        await store_something(service, **IDS)
        found = await service.get_session(**IDS)
    assert found
    assert server.raw.hgetall("appdata:{a}") == {b"k": b'"3"'}
    assert server.raw.hgetall("userdata:{a:u}") == {b"k": b"[2]"}
    session: Any = server.raw.hgetall("session:{a:u}:s")
    assert set(session) == {
        b"version",
        b"created_us",
        b"updated_us",
        b"last_us",
        b"deadline_ms",
        b"count",
        b"event_limit",
        b"flags",
        b"generation",
        b"turn_token",
        b"turn_until_us",
        b"turn_ms",
        b"turn_holder",
        b".k",
        b".raw",
    }
    assert session[b".k"] == b"null"
    assert session[b".raw"] == b"\x00\x00"
    assert len(session[b"generation"]) == 32
    # Whole microseconds in digits, never 1.7e+15.
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for field, moment in ((b"created_us", found.created_at), (b"updated_us", found.updated_at)):
        assert session[field] == b"%d" % ((moment - epoch) // timedelta(microseconds=1))
    for field in (b"version", b"last_us", b"deadline_ms", b"turn_token", b"turn_until_us"):
        assert session[field].isdigit()
    assert int(session[b"deadline_ms"]) == server.raw.pexpiretime("session:{a:u}:s")


async def test_the_log_and_the_index(server: Server) -> None:
    async with RedisSessionService(server.url, **WITH_TTL) as service:
        await service.create_session(**IDS)
        times = [NOON, NOON, NOON - timedelta(days=1), LONG_AGO, NOON + timedelta(microseconds=2)]
        events = [Event("x", id=f"e{number}", timestamp=each) for number, each in enumerate(times)]
        for event in events[:2]:
            await service.append_event(KEY, event)
        await service.append_events(KEY, events[2:])
        await service.append_event(
            KEY, Event("x", id="future", timestamp=datetime(2200, 1, 1, tzinfo=UTC))
        )
        await service.append_event(KEY, Event("x", id="last", timestamp=LONG_AGO))
        found = await service.get_session(**IDS)
    assert found
    noon_us = 1_715_774_400_123_456
    log: Any = server.raw.zrange("events:{a:u}:s", 0, -1, withscores=True)
    assert [json.loads(member)["id"] for member, _ in log] == ids_of(found.events)
    scores = [score for _, score in log]
    assert scores[:5] == [noon_us + number for number in range(5)]
    # At most the time of the append; the next position is one higher.
    assert noon_us < scores[5] <= server.raw.time()[0] * 1_000_000 + 1_000_000
    assert scores[6] == scores[5] + 1
    assert all(score == int(score) for score in scores)
    assert json.loads(log[0][0]) == {
        "author": "x",
        "id": "e0",
        "timestamp": "2024-05-15T12:00:00.123456Z",
    }
    updated_us = int(server.raw.hget("session:{a:u}:s", "updated_us") or 0)
    assert server.raw.zrange("sessions:{a:u}", 0, -1, withscores=True) == [(b"s", updated_us)]


async def test_hostile_ids(server: Server) -> None:
    app, user, name = "a:b", "{x}:\n*", "ü s/%?[^]\\"
    async with RedisSessionService(server.url, **WITH_TTL) as service:
        await store_something(service, app_name=app, user_id=user, session_id=name)
        tag = b"{a%3Ab:%7Bx%7D%3A%0A%2A}"
        sid = b"%C3%BC%20s%2F%25%3F%5B%5E%5D%5C"
        assert set(server.all_keys()) == {
            b"appdata:{a%3Ab}",
            b"userdata:" + tag,
            b"sessions:" + tag,
            b"session:" + tag + b":" + sid,
            b"events:" + tag + b":" + sid,
        }
        # The index holds the id as it is, without encoding.
        assert server.raw.zrange((b"sessions:" + tag).decode(), 0, -1) == [name.encode()]
        [found] = await service.list_sessions(app_name=app, user_id=user)
        assert found.key == SessionKey(app, user, name)


async def test_key_prefix_and_partition_by_app(server: Server) -> None:
    options: dict[str, Any] = {"key_prefix": "team:1/", "partition_by": "app", **WITH_TTL}
    async with RedisSessionService(server.url, **options) as service:
        await store_something(service, **IDS)
        await service.create_session(**USER, session_id="t")
        assert [found.id for found in await service.list_sessions(**USER)] == ["t", "s"]
    assert set(server.all_keys()) == {
        b"team:1/appdata:{a}",
        b"team:1/userdata:{a}:u",
        b"team:1/sessions:{a}:u",
        b"team:1/session:{a}:u:s",
        b"team:1/events:{a}:u:s",
        b"team:1/session:{a}:u:t",
    }
    assert len({key_slot(key) for key in server.all_keys()}) == 1


async def test_prefixes_and_layouts_do_not_see_each_other(server: Server) -> None:
    options: tuple[dict[str, Any], ...] = (
        {},
        {"key_prefix": "x:"},
        {"key_prefix": "y:"},
        {"key_prefix": "z:", "partition_by": "app"},
    )
    services = [RedisSessionService(server.url, **each, **WITH_TTL) for each in options]
    for number, service in enumerate(services):
        assert await service.get_session(**IDS) is None
        await service.create_session(**IDS, state={"n": number, "app:n": number})
    for number, service in enumerate(services):
        found = await service.get_session(**IDS)
        assert found
        assert found.state == {"n": number, "app:n": number}
        await service.aclose()


async def test_all_keys_of_a_user_share_a_slot(server: Server) -> None:
    async with RedisSessionService(server.url, **WITH_TTL) as service:
        for number in range(20):
            for name in ("s", "t{x}"):
                await store_something(
                    service, app_name="a{b}", user_id=f"u{number}", session_id=name
                )
    slots: dict[str, set[int]] = {}
    for key in server.all_keys():
        tag = key.decode().partition("{")[2].partition("}")[0]
        slots.setdefault(tag, set()).add(key_slot(key))
    assert len(slots) == 21  # twenty users and their application
    assert all(len(found) == 1 for found in slots.values())
    # Users spread over the cluster.
    assert len(set.union(*slots.values())) > 15
