"""`app_state_max_age`: app state that may be a little old, and own writes that are not."""

from __future__ import annotations

import asyncio
from typing import Any

from support.services import ServiceFactory
from support.sessions import APP, IDS, OWNER, create, read

from sessionstore import Event


async def test_own_writes_are_visible_at_once(make_service: ServiceFactory) -> None:
    service = make_service(app_state_max_age=600)
    session = await create(service, state={"app:a": 1})
    for number in range(5):
        event = Event("user", number, state_delta={"app:a": number, "n": number})
        await service.append_event(session, event)
        found = (await read(service)).state
        assert (found["app:a"], found["n"]) == (number, number)
        await service.update_app_state(APP, {"b": number})
        assert await service.get_app_state(APP) == {"a": number, "b": number}
        [listed] = await service.list_sessions(**OWNER)
        assert listed.state["app:b"] == number
    assert await service.increment_app_state(APP, {"b": 1}) == {"b": 5}
    assert (await service.get_or_create_session(**IDS)).state["app:b"] == 5
    await service.delete_app_state(APP, "a", "b")
    assert (await read(service)).state == {"n": 4}


async def test_concurrent_writers_and_readers_end_with_the_last_write(
    make_service: ServiceFactory,
) -> None:
    service = make_service(app_state_max_age=600)
    await create(service)

    async def write(name: str) -> None:
        for number in range(10):
            await service.update_app_state(APP, {name: number})
            assert (await service.get_app_state(APP))[name] == number

    async def look() -> None:
        for _ in range(20):
            await read(service)

    await asyncio.gather(write("a"), write("b"), look(), look())
    assert (await read(service)).state == {"app:a": 9, "app:b": 9}


async def test_writes_of_other_services_are_visible_after_the_maximum_age(
    make_service: ServiceFactory, backend: tuple[str, Any]
) -> None:
    service = make_service(app_state_max_age=0.2)
    writer = service if backend[1] is None else make_service()
    await create(service, state={"app:n": 1})
    await read(service)
    await writer.update_app_state(APP, {"n": 2})
    async with asyncio.timeout(20):
        while (await read(service)).state != {"app:n": 2}:
            pass
