"""Expired data is gone at once, everywhere, and for good."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from support.events import numbered
from support.services import ServiceFactory
from support.sessions import APP, IDS, KEY, OWNER, USER, create, read
from support.waiting import poll_until

from sessionstore import Event, SessionKey, SessionNotFound

TTL = 100
OVER = 1.1 * TTL  # a deadline is at most a 64th of the TTL late

AdvanceTime = Callable[[float], None]


async def listed(service: Any, **options: Any) -> list[str]:
    return [session.id for session in await service.list_sessions(**OWNER, **options)]


@pytest.mark.parametrize("ttl", [0.05, timedelta(milliseconds=50), 0.3])
async def test_a_session_lives_for_its_ttl_and_not_much_longer(
    make_service: ServiceFactory, ttl: Any
) -> None:
    """This test waits in real time. The others move time."""
    service = make_service(session_ttl=ttl)
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    before = time.monotonic()
    await create(service, state={"a": 1})

    async def is_gone() -> bool:  # listing refreshes nothing
        return await listed(service) == []

    await poll_until(is_gone, "the end of the session")
    assert time.monotonic() - before >= seconds
    assert await service.get_session(**IDS) is None
    with pytest.raises(SessionNotFound):
        await service.append_event(KEY, Event("user"))


async def test_a_session_created_again_after_expiry_shows_nothing_old(
    make_service: ServiceFactory, advance_time: AdvanceTime
) -> None:
    service = make_service(session_ttl=TTL)
    old = await create(service, state={"a": 1, "user:kept": 1})
    await service.append_events(KEY, numbered(1, 2, 3))
    advance_time(OVER)
    new = await create(service, state={"b": 2})
    assert (new.state, new.events) == ({"b": 2, "user:kept": 1}, [])
    assert new.created_at > old.created_at
    assert new.version > old.version
    assert await read(service) == new
    assert (await service.get_events(KEY)).events == []


async def test_get_or_create_after_expiry_creates(
    make_service: ServiceFactory, advance_time: AdvanceTime
) -> None:
    service = make_service(session_ttl=TTL)
    old = await create(service, state={"a": 1})
    await service.append_event(old, Event("user", state_delta={"b": 1}))
    advance_time(OVER)
    new = await service.get_or_create_session(**IDS, state={"c": 3})
    assert (new.state, new.events) == ({"c": 3}, [])
    assert new.version > old.version


async def test_a_write_through_an_expired_session_raises_session_not_found(
    make_service: ServiceFactory, advance_time: AdvanceTime
) -> None:
    service = make_service(session_ttl=TTL)
    session = await create(service)
    advance_time(OVER)
    with pytest.raises(SessionNotFound):
        await service.append_event(session, Event("user"))
    with pytest.raises(SessionNotFound):
        await service.update_session_state(session, {"a": 1})
    with pytest.raises(SessionNotFound):
        await service.get_events(session)


@pytest.mark.parametrize("expired_first", [False, True])
async def test_expired_sessions_vanish_from_the_list_and_others_stay(
    make_service: ServiceFactory, advance_time: AdvanceTime, expired_first: bool
) -> None:
    """They count neither for a page nor for its offset, though two of them come first."""
    service = make_service(session_ttl=TTL)
    for number in range(6):
        await create(service, SessionKey(APP, USER, f"s{number}"))
    advance_time(0.6 * TTL)
    for name in ("s1", "s3"):
        if expired_first:  # a read keeps a session and its place in the list
            await read(service, SessionKey(APP, USER, name))
        else:  # a write moves it to the front
            await service.update_session_state(SessionKey(APP, USER, name), {"a": 1})
    advance_time(0.6 * TTL)
    assert await listed(service, limit=1, offset=1) == ["s1"]
    assert await listed(service, limit=2) == ["s3", "s1"]
    assert await listed(service, offset=2) == []


async def test_expired_sessions_hide_none_that_lives(
    make_service: ServiceFactory, advance_time: AdvanceTime
) -> None:
    """A read keeps a session alive, but does not move it to the front of the list."""
    service = make_service(session_ttl=TTL)
    await create(service)
    for number in range(6):
        await create(service, SessionKey(APP, USER, f"unread-{number}"))
    for _ in range(2):
        advance_time(0.6 * TTL)
        await read(service)
    assert await listed(service, limit=2) == ["sid"]


async def test_expired_sessions_do_not_count(
    make_service: ServiceFactory, advance_time: AdvanceTime
) -> None:
    """In the index, expired sessions come before one that only reads keep alive."""
    service = make_service(session_ttl=TTL)
    assert await service.count_sessions(APP, USER) == 0
    await create(service)
    for number in range(3):
        await create(service, SessionKey(APP, USER, f"unread-{number}"))
    await create(service, SessionKey(APP, "another user", "sid"))
    assert await service.count_sessions(APP, USER) == 4
    for _ in range(2):
        advance_time(0.6 * TTL)
        await read(service)
    assert await service.count_sessions(APP, USER) == 1
    await service.delete_session(**IDS)
    assert await service.count_sessions(app_name=APP, user_id=USER) == 0


@pytest.mark.parametrize("action", ["append", "update", "read", "page", "get or create"])
async def test_use_keeps_a_session(
    make_service: ServiceFactory, advance_time: AdvanceTime, action: str
) -> None:
    service = make_service(session_ttl=TTL)
    await create(service, SessionKey(APP, USER, "unused"))
    await create(service, state={"a": 1})
    await service.append_event(KEY, Event("user", 1))
    for _ in range(3):
        advance_time(0.6 * TTL)
        if action == "append":
            await service.append_event(KEY, Event("user", 2))
        elif action == "update":
            await service.update_session_state(KEY, {"b": 1})
        elif action == "read":
            assert await service.get_session(**IDS, event_num=1) is not None
        elif action == "page":
            await service.get_events(KEY, limit=1)
        else:
            await service.get_or_create_session(**IDS, event_num=1)
    assert await listed(service) == ["sid"]
    used = await read(service)
    assert used.events[0].content == 1
    assert used.state["a"] == 1


async def test_reads_do_not_refresh_with_refresh_ttl_on_read_false(
    make_service: ServiceFactory, advance_time: AdvanceTime
) -> None:
    service = make_service(session_ttl=TTL, refresh_ttl_on_read=False)
    await create(service)
    advance_time(0.6 * TTL)
    await read(service)
    advance_time(0.6 * TTL)
    assert await service.get_session(**IDS) is None


async def test_expired_tiers_never_come_back(
    make_service: ServiceFactory, advance_time: AdvanceTime
) -> None:
    service = make_service(user_state_ttl=TTL, app_state_ttl=TTL)
    await create(service, state={"a": 1, "user:b": 2, "app:c": 3})
    advance_time(OVER)
    assert (await read(service)).state == {"a": 1}
    assert await service.get_user_state(APP, USER) == {}
    assert await service.get_app_state(APP) == {}
    await service.update_user_state(APP, USER, {"x": 1})
    await service.update_app_state(APP, {"y": 1})
    await service.append_event(KEY, Event("user"))
    assert (await read(service)).state == {"a": 1, "user:x": 1, "app:y": 1}


async def test_tiers_and_sessions_expire_by_themselves(
    make_service: ServiceFactory, advance_time: AdvanceTime
) -> None:
    service = make_service(session_ttl=TTL)
    await create(service, state={"a": 1, "user:b": 2, "app:c": 3})
    advance_time(OVER)
    assert await listed(service) == []
    assert await service.get_user_state(APP, USER) == {"b": 2}
    assert await service.get_app_state(APP) == {"c": 3}


@pytest.mark.without_ttl
async def test_without_a_ttl_nothing_expires_with_what_does(
    make_service: ServiceFactory, advance_time: AdvanceTime
) -> None:
    """The index outlives its longest session."""
    service = make_service(session_ttl=None, user_state_ttl=TTL, app_state_ttl=None)
    await create(service, state={"a": 1, "user:b": 2, "app:c": 3})
    await service.append_event(KEY, Event("user", 1))
    advance_time(OVER)
    [found] = await service.list_sessions(**OWNER)
    assert found.state == {"a": 1, "app:c": 3}
    assert len((await read(service)).events) == 1


# -- tiers in use -------------------------------------------------------------------------------

SHARED = {"user:k": 1, "app:k": 1}

Write = Callable[[Any, int], Awaitable[Any]]
WRITES: dict[str, Write] = {
    "append_event": lambda s, number: s.append_event(KEY, Event("x", number)),
    "append_events": lambda s, number: s.append_events(KEY, numbered(number, number + 100)),
    "update": lambda s, number: s.update_session_state(KEY, {"n": number}),
    "increment": lambda s, _: s.increment_session_state(KEY, {"n": 1}),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("session_ttl", [10 * TTL, None])
@pytest.mark.parametrize("refresh_ttl_on_read", [True, False])
@pytest.mark.without_ttl
async def test_writes_keep_the_tiers_of_their_session_alive(
    make_service: ServiceFactory,
    advance_time: AdvanceTime,
    backend: tuple[str, Any],
    write: Write,
    session_ttl: float | None,
    refresh_ttl_on_read: bool,
) -> None:
    options = {"session_ttl": session_ttl, "refresh_ttl_on_read": refresh_ttl_on_read}
    service = make_service(**options, user_state_ttl=TTL, app_state_ttl=2 * TTL)
    await create(service, state=SHARED)
    for number in range(6):
        advance_time(0.9 * TTL)
        if backend[1] is not None:  # time passes on the server alone
            service = make_service(**options, user_state_ttl=TTL, app_state_ttl=2 * TTL)
        await write(service, number)
    state = (await read(service)).state
    assert {key: state[key] for key in SHARED if key in state} == SHARED


async def test_appends_in_real_time_keep_the_tiers_alive(make_service: ServiceFactory) -> None:
    """With one service, which remembers what it has refreshed."""
    ttl = 0.3
    service = make_service(user_state_ttl=ttl, app_state_ttl=ttl)
    await create(service, state=SHARED)
    begin = time.monotonic()
    while time.monotonic() - begin < 3 * ttl:
        await service.append_event(KEY, Event("x"))
    assert (await read(service)).state == SHARED
