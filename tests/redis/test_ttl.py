"""Deadlines: one for all keys of a session, never early, at most a 64th of the TTL late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest
from redis_support import (
    APP_TIER,
    EVENTS,
    IDS,
    INDEX,
    SESSION,
    SLOTS,
    STATE,
    USER,
    USER_TIER,
)
from support.clock import pass_time
from support.events import ids_of, make_event
from support.operations import OPERATIONS, Operation, each_operation
from support.scene import KEY, prepare
from support.servers import Server

from sessionstore import RedisSessionService, SessionKey
from sessionstore.keys import Keys

TTL_MS = 6_400_000
RESERVE_MS = TTL_MS // 64
NO_TTL: dict[str, Any] = {"session_ttl": None, "user_state_ttl": None, "app_state_ttl": None}
ALL_TTL: dict[str, Any] = {
    "session_ttl": TTL_MS / 1000,
    "user_state_ttl": TTL_MS / 1000,
    "app_state_ttl": TTL_MS / 1000,
}

READS = tuple(
    each
    for each in OPERATIONS
    if each.kind == "read" or each.name == "get_or_create_session existing"
)

NEW_SESSIONS = ("create_session", "get_or_create_session new", "restore_session")

Make = Callable[..., RedisSessionService]


@pytest.fixture
async def make(server: Server) -> AsyncIterator[Make]:
    """Makes services with options, and no TTL unless one is given."""
    async with AsyncExitStack() as stack:

        def made(**options: Any) -> RedisSessionService:
            service = RedisSessionService(server.url, **options)
            stack.push_async_callback(service.aclose)
            return service

        yield made


def now_ms(server: Server) -> int:
    seconds, rest = server.raw.time()
    return seconds * 1000 + rest // 1000


def deadline(server: Server, key: bytes) -> int:
    """A deadline in milliseconds since 1970. -1 = never expires, -2 = the key does not exist."""
    found = server.raw.pexpiretime(key.decode())
    assert isinstance(found, int)
    return found


def check_fresh(server: Server, key: bytes, before_ms: int, ttl_ms: int = TTL_MS) -> None:
    """Check that a deadline is as late as if it was set between `before_ms` and now."""
    found = deadline(server, key)
    assert before_ms + ttl_ms <= found <= now_ms(server) + ttl_ms + ttl_ms // 64, key


def check_session(server: Server, key: SessionKey = KEY) -> None:
    """Check that all keys of a session have one deadline, and that the index outlives it."""
    names = Keys().session(key.app_name, key.user_id, key.session_id)
    found = deadline(server, names.session)
    assert deadline(server, names.events) in (found, -2)
    index = deadline(server, names.session_index)
    assert index == -1 or (found != -1 and index >= found)


# -- every operation --------------------------------------------------------------------------


@pytest.mark.parametrize("aged_ms", [0, RESERVE_MS * 2 // 3, RESERVE_MS + 2000, TTL_MS // 2])
@each_operation()
async def test_every_operation_keeps_deadlines_within_the_promise(
    server: Server, make: Make, operation: Operation, aged_ms: int
) -> None:
    service = make(**ALL_TTL)
    scene = await prepare(service, server, operation)
    pass_time(server, aged_ms)
    before = {name: deadline(server, key) for name, (key, _) in SLOTS.items()}
    started_ms = now_ms(server)
    await operation.run(service, scene)
    if operation.name not in ("delete_session", "delete_user"):
        check_session(server)
        for slot in ("session", "user", "app"):
            key = SLOTS[slot][0]
            if slot in operation.refreshes.split():
                check_fresh(server, key, started_ms)
            elif deadline(server, key) != before[slot]:
                # It may refresh other keys, too.
                check_fresh(server, key, started_ms)
    for key in server.all_keys():
        assert deadline(server, key) > 0
    if operation.name.startswith(NEW_SESSIONS):
        check_session(server, SessionKey("a", "u", "new"))
        check_fresh(server, b"session:{a:u}:new", started_ms)


@each_operation()
async def test_a_service_without_ttl_leaves_deadlines_alone(
    server: Server, make: Make, operation: Operation
) -> None:
    scene = await prepare(make(**ALL_TTL), server, operation)
    before = {name: deadline(server, key) for name, (key, _) in SLOTS.items()}
    await operation.run(make(**NO_TTL), scene)
    for slot, (key, _) in SLOTS.items():
        if slot == "index" and operation.name.startswith(NEW_SESSIONS):
            assert deadline(server, key) == -1  # it holds a session that never expires
        else:
            assert deadline(server, key) in (before[slot], -2)
    server.raw.flushall()


@each_operation(READS)
async def test_reads_without_refreshing_leave_deadlines_alone(
    server: Server, make: Make, operation: Operation
) -> None:
    service = make(**ALL_TTL, refresh_ttl_on_read=False)
    scene = await prepare(service, server, operation)
    pass_time(server, TTL_MS // 2)
    before = {key: deadline(server, key) for key in server.all_keys()}
    await operation.run(service, scene)
    for key in server.all_keys():
        assert deadline(server, key) == before[key]


async def test_refreshes_are_rare(server: Server, make: Make) -> None:
    """A deadline moves only when its reserve is used up."""
    service = make(**ALL_TTL)
    await service.create_session(**IDS, state=STATE)
    await service.append_event(KEY, make_event("e0"))
    first = {key: deadline(server, key) for key in (SESSION, EVENTS, USER_TIER, APP_TIER)}
    for number in range(20):
        await service.append_event(KEY, make_event(f"x{number}", state_delta=dict(STATE)))
        await service.get_session(**IDS)
    assert {key: deadline(server, key) for key in first} == first


# -- the log ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [ALL_TTL, NO_TTL])
async def test_a_log_that_was_emptied_gets_the_sessions_deadline_again(
    server: Server, make: Make, options: dict[str, Any]
) -> None:
    first, later = make(**ALL_TTL), make(**options)
    await first.create_session(**IDS)
    for empty in (later.pop_event, later.clear_events, first.pop_event, first.clear_events):
        for append in (later, first):
            await append.append_event(KEY, make_event("e1"))
            assert deadline(server, EVENTS) == deadline(server, SESSION) > 0
            await empty(KEY)
            assert deadline(server, EVENTS) == -2
            await append.append_events(KEY, [make_event("e1"), make_event("e2")])
            assert deadline(server, EVENTS) == deadline(server, SESSION) > 0
            await append.clear_events(KEY)
            await append.get_session(**IDS)
            await append.update_session_state(KEY, {"k": 1})
            await append.append_event(KEY, make_event("e3"))
            assert deadline(server, EVENTS) == deadline(server, SESSION) > 0
            await append.clear_events(KEY)


async def test_the_first_event_of_a_session_with_a_foreign_ttl(server: Server, make: Make) -> None:
    await make(**ALL_TTL).create_session(**IDS)
    expected = deadline(server, SESSION)
    await make(**NO_TTL).append_event(KEY, make_event("e1"))
    assert deadline(server, EVENTS) == deadline(server, SESSION) == expected


async def test_a_ttl_that_is_switched_on_reaches_old_sessions(server: Server, make: Make) -> None:
    await make(**NO_TTL).create_session(**IDS, state=STATE)
    await make(**NO_TTL).append_event(KEY, make_event("e1"))
    assert {deadline(server, key) for key in server.all_keys()} == {-1}
    started_ms = now_ms(server)
    await make(**ALL_TTL).get_session(**IDS)
    for key in (SESSION, EVENTS, USER_TIER, APP_TIER):
        check_fresh(server, key, started_ms)
    check_session(server)
    server.raw.flushall()


# -- the index --------------------------------------------------------------------------------


async def test_the_index_lives_as_long_as_its_longest_session(server: Server, make: Make) -> None:
    short, long = make(session_ttl=100), make(session_ttl=100_000)
    started_ms = now_ms(server)
    await short.create_session(**USER, session_id="short")
    check_fresh(server, INDEX, started_ms, 100_000)
    await long.create_session(**USER, session_id="long")
    check_fresh(server, INDEX, started_ms, 100_000_000)
    longest = deadline(server, INDEX)
    await short.create_session(**USER, session_id="another")
    await short.append_event(SessionKey("a", "u", "short"), make_event("e1"))
    await short.get_session(**USER, session_id="short")
    await short.list_sessions(**USER)
    assert deadline(server, INDEX) == longest
    # A session that never expires keeps the index for ever.
    await make(**NO_TTL).create_session(**USER, session_id="forever")
    assert deadline(server, INDEX) == -1
    await long.append_event(SessionKey("a", "u", "long"), make_event("e1"))
    await short.create_session(**USER, session_id="last")
    assert deadline(server, INDEX) == -1
    server.raw.flushall()


async def test_an_index_of_expired_sessions_does_not_stay(server: Server, make: Make) -> None:
    service = make(session_ttl=100)
    await service.create_session(**IDS)
    await service.append_event(KEY, make_event("e1"))
    pass_time(server, 102_000)
    assert server.all_keys() == []


async def test_an_index_that_was_lost_comes_back(server: Server, make: Make) -> None:
    service = make(**ALL_TTL)
    await service.create_session(**IDS)
    server.raw.delete(INDEX)
    await service.append_event(KEY, make_event("e1"))
    check_session(server)
    assert [found.id for found in await service.list_sessions(**USER)] == ["s"]
    server.raw.delete(INDEX)
    await make(**NO_TTL).update_session_state(KEY, {"k": 1})
    check_session(server)
    assert deadline(server, INDEX) > 0


async def test_expired_sessions_vanish_from_lists_and_from_the_index(
    server: Server, make: Make
) -> None:
    short, long = make(session_ttl=100), make(session_ttl=100_000)
    for number in range(12):
        service = long if number % 4 == 0 else short
        await service.create_session(**USER, session_id=f"s{number:02}")
    pass_time(server, 102_000)
    assert server.raw.zcard(INDEX) == 12
    for limit in (2, 100):
        listed = await short.list_sessions(**USER, limit=limit)
        assert [found.id for found in listed] == ["s08", "s04", "s00"][:limit]
    assert server.raw.zrange(INDEX, 0, -1) == [b"s00", b"s04", b"s08"]
    pass_time(server, 102_000_000)
    assert await long.list_sessions(**USER) == []
    assert server.all_keys() == []


async def test_ten_thousand_expired_ids_hide_no_session(server: Server, make: Make) -> None:
    service = make(session_ttl=100)
    await service.create_session(**IDS)
    score: Any = server.raw.zscore(INDEX, "s")
    server.raw.zadd(INDEX, {f"gone-{number}": score + number for number in range(10_050)})
    listed = await service.list_sessions(**USER)
    assert [found.id for found in listed] == ["s"]
    assert server.raw.zrange(INDEX, 0, -1) == [b"s"]


async def test_expired_sessions_do_not_count_for_offset(server: Server, make: Make) -> None:
    short, long = make(session_ttl=100), make(session_ttl=100_000)
    for offset, expected in ((0, ["new"]), (1, ["old"]), (2, [])):
        await long.create_session(**USER, session_id="old")
        await long.create_session(**USER, session_id="new")
        # Newer than both, so they come first in the index. With only one of them, a wrong offset
        # that counts it would still give the right page.
        for number in range(3):
            await short.create_session(**USER, session_id=f"gone-{number}")
        pass_time(server, 102_000)
        listed = await long.list_sessions(**USER, limit=1, offset=offset)
        assert [found.id for found in listed] == expected
        server.empty()


async def test_deleting_the_last_session_leaves_only_state(server: Server, make: Make) -> None:
    service = make(**ALL_TTL)
    for name in ("s", "t"):
        await service.create_session(**USER, session_id=name, state=STATE)
        await service.append_event(SessionKey("a", "u", name), make_event("e1"))
    await service.delete_session(**IDS)
    assert server.raw.zrange(INDEX, 0, -1) == [b"t"]
    await service.delete_session(**USER, session_id="t")
    assert sorted(server.all_keys()) == [APP_TIER, USER_TIER]
    await service.delete_session(**USER, session_id="never was")
    await service.delete_user_state("a", "u", "k")
    await service.delete_app_state("a", "k")
    assert server.all_keys() == []


# -- expiry -----------------------------------------------------------------------------------


async def test_expired_state_never_comes_back(server: Server, make: Make) -> None:
    service = make(session_ttl=100_000, user_state_ttl=100, app_state_ttl=200)
    session = await service.create_session(**IDS, state=STATE)
    pass_time(server, 102_000)
    # The caller's copy still has the state, but only the delta is written.
    assert session.state == STATE
    await service.append_event(session, make_event("e1", state_delta={"k": 5, "app:n": 1}))
    found = await service.get_session(**IDS)
    assert found
    assert found.state == {"k": 5, "app:k": 3, "app:n": 1}
    pass_time(server, 210_000)
    await service.update_session_state(session, {"user:n": 1})
    found = await service.get_session(**IDS)
    assert found
    assert found.state == {"k": 5, "user:n": 1}
    assert await service.get_app_state("a") == {}
    assert await service.get_user_state("a", "u") == {"n": 1}


async def test_an_expired_session_starts_empty_when_it_is_created_again(
    server: Server, make: Make
) -> None:
    service = make(session_ttl=100, user_state_ttl=100_000)
    await service.create_session(**IDS, state=STATE)
    await service.append_event(KEY, make_event("e1"))
    pass_time(server, 102_000)
    assert await service.get_session(**IDS) is None
    for create in (service.create_session, service.get_or_create_session):
        found = await create(**IDS)
        assert found.state == {"user:k": 2, "app:k": 3}
        assert found.events == []
        await service.append_event(KEY, make_event("e1"))
        pass_time(server, 102_000)
    server.raw.flushall()


@pytest.mark.parametrize("options", [ALL_TTL, NO_TTL])
async def test_a_session_starts_empty_whatever_was_left_behind(
    server: Server, make: Make, options: dict[str, Any]
) -> None:
    service = make(**ALL_TTL)
    await service.create_session(**IDS, state=STATE)
    await service.append_event(KEY, make_event("old"))
    # The same effect as eviction of the key.
    server.raw.delete("session:{a:u}:s")
    found = await make(**options).create_session(**IDS, state={"n": 1})
    assert found.state == {"n": 1, "user:k": 2, "app:k": 3}
    assert found.events == []
    assert deadline(server, EVENTS) == -2
    await make(**options).append_event(KEY, make_event("new"))
    again = await service.get_session(**IDS)
    assert again
    assert ids_of(again.events) == ["new"]
    check_session(server)
    server.raw.flushall()


async def test_a_sub_second_ttl(server: Server, make: Make) -> None:
    service = make(session_ttl=timedelta(milliseconds=300), user_state_ttl=0.2, app_state_ttl=0.25)
    started = time.monotonic()
    await service.create_session(**IDS, state=STATE)
    await service.append_event(KEY, make_event("e1"))
    gone: dict[bytes, float] = {}  # when a key was first missing
    while len(gone) < 5:
        # Not through the service: a read would refresh.
        keys = server.all_keys()
        elapsed = time.monotonic() - started
        for key in (SESSION, EVENTS, INDEX, USER_TIER, APP_TIER):
            if key not in keys:
                gone.setdefault(key, elapsed)
        assert elapsed < 10
        await asyncio.sleep(0.001)
    assert gone[USER_TIER] >= 0.2
    assert gone[APP_TIER] >= 0.25
    assert min(gone[SESSION], gone[EVENTS], gone[INDEX]) >= 0.3
    assert await service.get_session(**IDS) is None


async def test_reading_keeps_a_session_alive_and_not_reading_does_not(
    server: Server, make: Make
) -> None:
    ttl_s = 0.4
    service = make(session_ttl=ttl_s)
    for _ in range(10):
        await service.create_session(**IDS)
        await service.append_event(KEY, make_event("e1"))
        started = read = time.monotonic()
        while read - started < 2.5 * ttl_s:
            found = await service.get_session(**IDS)
            if found is None:
                # Allowed only if the machine was too busy to read in time.
                assert time.monotonic() - read >= ttl_s
                break
            assert ids_of(found.events) == ["e1"]
            read = time.monotonic()
            await asyncio.sleep(0.01)
        else:
            break
    limit = time.monotonic() + 10
    while server.all_keys():
        assert time.monotonic() < limit
        await asyncio.sleep(0.005)
    assert await service.get_session(**IDS) is None
    assert await service.list_sessions(**USER) == []


async def test_renewing_a_turn_keeps_the_session_alive(server: Server, make: Make) -> None:
    service = make(**ALL_TTL)
    await service.create_session(**IDS)
    pass_time(server, TTL_MS // 2)
    started_ms = now_ms(server)
    turn = await service.acquire_turn(KEY)
    check_fresh(server, SESSION, started_ms)
    pass_time(server, TTL_MS // 2)
    started_ms = now_ms(server)
    await service.renew_turn(turn)
    check_fresh(server, SESSION, started_ms)
    check_session(server)
