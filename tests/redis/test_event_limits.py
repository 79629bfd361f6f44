"""The limit of events belongs to the session, whichever services append to it."""

from __future__ import annotations

from typing import Any

import pytest
from support.events import numbered, numbers_of
from support.servers import Server
from support.services import both_modes, make_service
from support.sessions import KEY, append_many, create, read

from sessionstore import Event, RedisSessionService, Window

SESSION, EVENTS = "session:{app:user}:sid", "events:{app:user}:sid"
TTL: dict[str, Any] = {"session_ttl": 600}


@both_modes
async def test_a_service_without_a_limit_keeps_what_the_session_keeps(
    server: Server, mode: str
) -> None:
    all_events = make_service(mode, server.url, session_event_limit=None)
    default = make_service(mode, server.url)
    session = await create(all_events)
    await append_many(all_events, session, numbered(*range(1200)))
    again = await read(default)
    await default.append_event(again, Event("user", 1200))
    await default.append_events(again, numbered(1201, 1202))
    assert numbers_of(await read(default)) == numbers_of(again) == list(range(1203))
    await all_events.aclose()
    await default.aclose()


@both_modes
@pytest.mark.parametrize("in_batches", [False, True])
@pytest.mark.parametrize("limit", [100, None])
async def test_a_log_with_a_raised_limit_may_have_been_trimmed_before(
    server: Server, mode: str, limit: int | None, in_batches: bool
) -> None:
    """It begins within a turn, which windows leave out."""
    small = make_service(mode, server.url, session_event_limit=3)
    large = make_service(mode, server.url, session_event_limit=limit)
    session = await create(small)
    turns = [
        Event("agent" if number % 4 else "user", number, invocation_id=str(number // 4))
        for number in range(9)
    ]
    await small.append_events(session, turns[:6])
    for event in turns[6:]:
        if in_batches:
            await large.append_events(session, [event])
        else:
            await large.append_event(session, event)
    assert (session.was_full, session.event_limit, session.event_count) == (True, limit, 6)
    assert session == await read(large)
    assert numbers_of(await read(large)) == [3, 4, 5, 6, 7, 8]
    assert numbers_of(await read(large, window=Window())) == [4, 5, 6, 7, 8]
    await small.aclose()
    await large.aclose()


async def test_a_log_with_room_costs_no_flag(server: Server) -> None:
    """The limit is raised before the log is full."""
    for limit in (3, 100):
        async with RedisSessionService(server.url, session_event_limit=limit, **TTL) as service:
            session = await service.get_or_create_session(
                app_name="app", user_id="user", session_id="sid"
            )
            await service.append_event(session, Event("agent", limit))
    assert server.raw.hget(SESSION, "flags") == b""
    assert not session.was_full
    async with RedisSessionService(server.url, **TTL) as service:
        assert numbers_of(await read(service, window=Window())) == [3, 100]


async def test_new_sessions_keep_1000(server: Server) -> None:
    async with RedisSessionService(server.url, **TTL) as service:
        for create_it in (service.create_session, service.get_or_create_session):
            server.raw.flushall()
            session = await create_it(app_name="app", user_id="user", session_id="sid")
            await append_many(service, session, numbered(*range(1001)))
            assert numbers_of(await read(service)) == list(range(1, 1001))
            assert session == await read(service)


@pytest.mark.parametrize("num_events", [0, 3, 1500])
async def test_a_session_of_an_earlier_release_keeps_what_it_has(
    server: Server, num_events: int
) -> None:
    async with RedisSessionService(server.url, session_event_limit=None, **TTL) as service:
        session = await create(service)
        await append_many(service, session, numbered(*range(num_events)))
    server.raw.hdel(SESSION, "count", "event_limit")
    async with RedisSessionService(server.url, **TTL) as service:
        assert len((await read(service)).events) == num_events
        await service.append_event(KEY, Event("user", "new"))
        limit = max(1000, num_events)
        assert server.raw.hmget(SESSION, "count", "event_limit") == [
            b"%d" % min(num_events + 1, limit),
            b"%d" % limit,
        ]
        expected = [*range(num_events), "new"][-limit:]
        assert numbers_of(await read(service)) == expected


@pytest.mark.parametrize("as_batch", [False, True])
async def test_a_lowered_limit_trims_in_bounded_steps_and_is_stored(
    server: Server, as_batch: bool
) -> None:
    async with RedisSessionService(server.url, session_event_limit=None, **TTL) as service:
        session = await create(service)
        await append_many(service, session, numbered(*range(2500)))
    async with RedisSessionService(server.url, session_event_limit=10, **TTL) as lower:
        for number, left in ((2500, 1501), (2501, 502), (2502, 10), (2503, 10)):
            event = Event("user", number)
            if as_batch:
                await lower.append_events(session, [event])
            else:
                await lower.append_event(session, event)
            assert server.raw.zcard(EVENTS) == left
            assert len(session.events) == 10
    assert server.raw.hget(SESSION, "event_limit") == b"10"
    async with RedisSessionService(server.url, **TTL) as default:
        await default.append_event(KEY, Event("user", 2504))
        assert numbers_of(await read(default)) == list(range(2495, 2505))


async def test_a_session_without_a_limit_loses_nothing(server: Server) -> None:
    """Its count is 0 at first, as is the limit that means none."""
    async with RedisSessionService(server.url, session_event_limit=None, **TTL) as service:
        session = await create(service)
        for number in range(5):
            await service.append_event(session, Event("user", number))
            assert numbers_of(await read(service)) == list(range(number + 1))


@pytest.mark.parametrize("stored_count", [b"1000", b"999", b"50000", None])
async def test_no_call_trims_more_than_1000_events(
    server: Server, stored_count: bytes | None
) -> None:
    """Also if another release appended and did not count: the log is larger than it looks."""
    async with RedisSessionService(server.url, session_event_limit=None, **TTL) as service:
        await create(service)
        await service.append_event(KEY, Event("user", "first"))
    members = {f"{{}} {number}": 1_000_000 + number for number in range(50_000)}
    server.raw.zadd(EVENTS, members)
    server.raw.hset(SESSION, "event_limit", "1000")
    server.raw.hdel(SESSION, "count")
    async with RedisSessionService(server.url, session_event_limit=1000, **TTL) as service:
        num_events = 50_001
        for number in range(4):
            if stored_count is not None:
                server.raw.hset(SESSION, "count", stored_count)
            if number % 2:
                await service.append_events(KEY, numbered(1, 2))
                num_events += 2
            else:
                await service.append_event(KEY, Event("user"))
                num_events += 1
            num_events -= 1000
            assert server.raw.zcard(EVENTS) == num_events
            assert int(server.raw.hget(SESSION, "count") or 0) == num_events
