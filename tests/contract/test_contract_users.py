"""Users as a whole: delete_user."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from support.events import numbered
from support.services import ServiceFactory
from support.sessions import APP, IDS, KEY, OWNER, USER, create, read

from sessionstore import (
    DeletedUser,
    Event,
    InvalidArgument,
    SessionExists,
    SessionKey,
    SessionNotFound,
)

AdvanceTime = Callable[[float], None]


async def test_nothing_is_left_of_a_user_and_others_stay(service: Any) -> None:
    other = SessionKey(APP, "other", "sid")
    for key in (KEY, SessionKey(APP, USER, "ü:{x}%"), other):
        await create(service, key, state={"a": 1, "user:b": 2, "user:c": 3, "app:d": 4})
        await service.append_events(key, numbered(1, 2))
    turn = await service.acquire_turn(KEY)
    expected = await read(service, other)
    assert await service.delete_user(**OWNER) == DeletedUser(2, 2, [])
    assert await service.get_session(**IDS) is None
    assert await service.list_sessions(**OWNER) == []
    assert await service.get_user_state(APP, USER) == {}
    with pytest.raises(SessionNotFound):
        await service.append_event(KEY, Event("user"), turn=turn)
    assert await service.list_users(APP) == ["other"]
    assert await read(service, other) == expected
    assert await service.delete_user(**OWNER) == DeletedUser(0, 0, [])
    new = await create(service)
    assert (new.state, new.events, new.event_count) == ({"app:d": 4}, [], 0)


async def test_more_sessions_than_one_step_removes(service: Any) -> None:
    keys = [SessionKey(APP, USER, f"s{number}") for number in range(250)]
    for first in range(0, len(keys), 50):
        await asyncio.gather(*(create(service, key) for key in keys[first : first + 50]))
    await service.append_event(keys[120], Event("user"))
    assert await service.delete_user(**OWNER) == DeletedUser(250, 0, [])
    assert await service.count_sessions(APP, USER) == 0
    assert await service.get_session(**OWNER, session_id="s120") is None


async def test_a_user_with_only_state(service: Any) -> None:
    await service.update_user_state(APP, USER, {"a": 1})
    assert await service.delete_user(**OWNER) == DeletedUser(0, 1, [])
    assert await service.list_users(APP) == []


async def test_expired_sessions_are_not_counted(
    make_service: ServiceFactory, advance_time: AdvanceTime
) -> None:
    service = make_service(session_ttl=60)
    await create(service, SessionKey(APP, USER, "gone"), state={"user:a": 1})
    await create(service)
    for _ in range(2):
        advance_time(40)
        await read(service)
    assert await service.delete_user(**OWNER) == DeletedUser(1, 1, [])


async def test_sessions_that_are_created_meanwhile_stay_with_the_state(service: Any) -> None:
    """A writer creates sessions, old ids included. What was there at the start goes."""
    old = [SessionKey(APP, USER, f"old{number}") for number in range(150)]
    for key in old:
        await create(service, key, state={"user:a": 1})
    is_done = False
    created: dict[str, Any] = {}

    async def write() -> None:
        number = 0
        while not is_done:
            number += 1
            name = f"old{number % 150}" if number % 2 else f"new{number}"
            with suppress(SessionExists):
                created[name] = await create(service, SessionKey(APP, USER, name))
            await asyncio.sleep(0)

    writer = asyncio.create_task(write())
    await asyncio.sleep(0)
    result = await service.delete_user(**OWNER)
    is_done = True
    await writer
    assert result.num_sessions >= 150 - len(created)
    left = {session.id: session for session in await service.list_sessions(**OWNER, limit=1000)}
    assert set(result.created) <= set(left) <= set(created)
    assert all(session.created_at == created[name].created_at for name, session in left.items())
    again = await service.delete_user(**OWNER)
    assert (again.num_sessions, again.created) == (len(left), [])
    assert await service.list_users(APP) == []


async def test_ids_are_checked(service: Any) -> None:
    with pytest.raises(InvalidArgument, match="user_id must not be empty"):
        await service.delete_user(app_name=APP, user_id="")
