"""What has expired is gone at once, everywhere, and never comes back."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from contract_support import until_listed
from support.events import numbered
from support.services import ServiceFactory
from support.sessions import APP, IDS, KEY, OWNER, USER, create, read
from support.waiting import poll_until

from sessionstore import Event, SessionKey, SessionNotFound

SHORT = 0.3


@pytest.mark.parametrize("ttl", [0.05, timedelta(milliseconds=50), SHORT])
async def test_a_session_lives_for_its_ttl_and_not_much_longer(
    make_service: ServiceFactory, ttl: Any
) -> None:
    service = make_service(session_ttl=ttl)
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    before = time.monotonic()
    await create(service, state={"a": 1})
    await until_listed(service, [])
    assert time.monotonic() - before >= seconds
    assert await service.get_session(**IDS) is None
    with pytest.raises(SessionNotFound):
        await service.append_event(KEY, Event("user"))


async def test_a_session_created_again_after_expiry_shows_nothing_old(
    make_service: ServiceFactory,
) -> None:
    service = make_service(session_ttl=SHORT)
    old = await create(service, state={"a": 1, "user:kept": 1})
    await service.append_events(KEY, numbered(1, 2, 3))
    await until_listed(service, [])
    new = await create(service, state={"b": 2})
    assert (new.state, new.events, new.version) == ({"b": 2, "user:kept": 1}, [], 1)
    assert new.created_at > old.created_at
    assert await read(service) == new
    assert (await service.get_events(KEY)).events == []


async def test_get_or_create_after_expiry_creates(make_service: ServiceFactory) -> None:
    service = make_service(session_ttl=SHORT)
    await create(service, state={"a": 1})
    await service.append_event(KEY, Event("user", state_delta={"b": 1}))
    await until_listed(service, [])
    new = await service.get_or_create_session(**IDS, state={"c": 3})
    assert (new.state, new.events, new.version) == ({"c": 3}, [], 1)


async def test_a_write_through_a_session_that_expired_is_told(make_service: ServiceFactory) -> None:
    service = make_service(session_ttl=SHORT)
    session = await create(service)
    await until_listed(service, [])
    with pytest.raises(SessionNotFound):
        await service.append_event(session, Event("user"))
    with pytest.raises(SessionNotFound):
        await service.update_session_state(session, {"a": 1})
    with pytest.raises(SessionNotFound):
        await service.get_events(session)


async def test_expired_sessions_vanish_from_the_list_and_others_stay(
    make_service: ServiceFactory,
) -> None:
    """Whatever the page: what has expired takes no place on it."""
    service = make_service(session_ttl=SHORT, key_prefix="p:")
    names = [f"s{number}" for number in range(6)]
    for name in names:
        await create(service, SessionKey(APP, USER, name))

    async def only_the_kept_are_listed() -> bool:
        # Writing to two of them keeps them.
        for name in ("s1", "s4"):
            await service.update_session_state(SessionKey(APP, USER, name), {"a": 1})
        listed = [found.id for found in await service.list_sessions(**OWNER, limit=2)]
        return listed == ["s4", "s1"]

    await poll_until(only_the_kept_are_listed, "only s4 and s1 are listed")
    assert [found.id for found in await service.list_sessions(**OWNER, limit=1, offset=1)] == ["s1"]


async def test_expired_sessions_hide_none_that_lives(make_service: ServiceFactory) -> None:
    """Reading keeps a session, but does not move it to the front of the list."""
    service = make_service(session_ttl=SHORT)
    await create(service)
    for number in range(6):
        await create(service, SessionKey(APP, USER, f"unread-{number}"))

    async def only_the_read_one_is_listed() -> bool:
        assert await service.get_session(**IDS) is not None
        listed = await service.list_sessions(**OWNER, limit=2)
        return [found.id for found in listed] == ["sid"]

    await poll_until(only_the_read_one_is_listed, "the session that is read is the only one listed")


@pytest.mark.parametrize("action", ["append", "update", "read", "page", "get or create"])
async def test_use_keeps_a_session(make_service: ServiceFactory, action: str) -> None:
    service = make_service(session_ttl=SHORT)
    await create(service, SessionKey(APP, USER, "unused"))
    await create(service, state={"a": 1})
    await service.append_event(KEY, Event("user", 1))

    async def use_until_the_unused_is_gone() -> bool:
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
        return [found.id for found in await service.list_sessions(**OWNER)] == ["sid"]

    await poll_until(use_until_the_unused_is_gone, "the unused session is gone")
    used = await read(service)
    assert used.events[0].content == 1
    assert used.state["a"] == 1


async def test_reading_does_not_keep_a_session_when_told_so(make_service: ServiceFactory) -> None:
    service = make_service(session_ttl=SHORT, refresh_ttl_on_read=False)
    await create(service)

    async def is_gone() -> bool:
        return await service.get_session(**IDS) is None

    await poll_until(is_gone, "the session that is read all the time is gone")


async def test_expired_tiers_never_come_back(make_service: ServiceFactory) -> None:
    service = make_service(user_state_ttl=SHORT, app_state_ttl=SHORT, refresh_ttl_on_read=False)
    await create(service, state={"a": 1, "user:b": 2, "app:c": 3})

    async def are_gone() -> bool:
        return (await read(service)).state == {"a": 1}

    await poll_until(are_gone, "user and app state are gone")
    assert await service.get_user_state(APP, USER) == {}
    assert await service.get_app_state(APP) == {}
    await service.update_user_state(APP, USER, {"x": 1})
    await service.update_app_state(APP, {"y": 1})
    await service.append_event(KEY, Event("user"))
    assert (await read(service)).state == {"a": 1, "user:x": 1, "app:y": 1}


async def test_tiers_and_sessions_expire_by_themselves(make_service: ServiceFactory) -> None:
    service = make_service(session_ttl=SHORT, refresh_ttl_on_read=False)
    await create(service, state={"a": 1, "user:b": 2, "app:c": 3})
    await until_listed(service, [])
    assert await service.get_user_state(APP, USER) == {"b": 2}
    assert await service.get_app_state(APP) == {"c": 3}


@pytest.mark.without_ttl
async def test_without_a_ttl_nothing_expires_with_what_does(make_service: ServiceFactory) -> None:
    """The index outlives its longest session."""
    service = make_service(session_ttl=None, user_state_ttl=SHORT, app_state_ttl=None)
    await create(service, state={"a": 1, "user:b": 2, "app:c": 3})
    await service.append_event(KEY, Event("user", 1))

    async def is_gone() -> bool:
        listed = await service.list_sessions(**OWNER)
        return [found.state for found in listed] == [{"a": 1, "app:c": 3}]

    await poll_until(is_gone, "the user tier is gone")
    assert len((await read(service)).events) == 1
