"""The index of a user's sessions stays small and expires, even if nobody lists the sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.services import ServiceFactory
from support.sessions import APP, OWNER, USER, create, read

from sessionstore import Event, SessionKey, flows
from sessionstore.calls import Flow
from sessionstore.keys import Keys
from sessionstore.ops import Ops
from sessionstore.replies import Place

AdvanceTime = Callable[[float], None]
INDEX = Keys().user(APP, USER).session_index


def key_of(name: str) -> SessionKey:
    return SessionKey(APP, USER, name)


def places(ops: Ops) -> Flow[list[Place]]:
    found: list[Place] = yield ops.list_places(APP, USER, 10_000)
    return found


async def ids_in_index(service: Any) -> list[str]:
    """Expired sessions included, last updated first."""
    return [place.session_id for place in await service._run(places(service._ops))]


async def test_ids_of_expired_sessions_do_not_pile_up(
    make_service: ServiceFactory, advance_time: AdvanceTime
) -> None:
    service = make_service(session_ttl=60)
    for number in range(400):
        if number % 40 == 0:
            advance_time(30)
        await create(service, key_of(f"s{number}"))
    found = await ids_in_index(service)
    assert len(found) < 200
    assert found[:80] == [f"s{number}" for number in range(399, 319, -1)]


async def test_sessions_that_only_reads_keep_alive_stay_in_the_index(
    make_service: ServiceFactory, advance_time: AdvanceTime
) -> None:
    """They hold the oldest places, more than one look takes."""
    service = make_service(session_ttl=60)
    kept = [f"kept-{number}" for number in range(270)]
    for name in kept:
        await create(service, key_of(name))
    longest = 0
    for number in range(1400):
        if number % 350 == 0:
            advance_time(35)
            for name in kept:
                await read(service, key_of(name), event_num=0)
        await service.get_or_create_session(**OWNER, session_id=f"s{number}")
        if number % 64 == 0:
            longest = max(longest, len(await ids_in_index(service)))
    found = await ids_in_index(service)
    assert [name for name in reversed(found) if name in set(kept)] == kept
    assert len(set(found) - set(kept)) >= 700
    assert longest < 1600


@pytest.mark.parametrize("way", ["delete", "expire"])
async def test_an_index_without_deadline_gets_one_again(
    make_service: ServiceFactory,
    advance_time: AdvanceTime,
    backend: Any,
    way: str,
) -> None:
    service, forever = make_service(session_ttl=60), make_service(session_ttl=None)
    if backend[1] is None:
        pytest.skip("services in memory share nothing: tests/twin compares them")
    await create(service, key_of("first"))
    await create(forever, key_of("forever"))
    await create(service, key_of("second"))
    assert backend[1].without_deadline()
    if way == "delete":
        await service.delete_session(**OWNER, session_id="forever")
    else:
        await read(service, key_of("forever"))  # now it expires
    await create(service, key_of("third"))
    assert not backend[1].without_deadline()
    names = ["third", "second", "first"]
    if way == "expire":
        names.insert(2, "forever")
    assert sorted(await ids_in_index(service)) == sorted(names)
    for name in names:
        await service.append_event(key_of(name), Event("user"))
    advance_time(50)
    await read(service, key_of("second"))
    advance_time(50)
    assert [session.id for session in await service.list_sessions(**OWNER)] == ["second"]
    advance_time(100)
    assert await ids_in_index(service) == []


@pytest.mark.without_ttl
async def test_an_index_keeps_a_session_that_never_expires(
    make_service: ServiceFactory, advance_time: AdvanceTime, backend: Any
) -> None:
    if backend[1] is None:
        pytest.skip("services in memory share nothing: tests/twin compares them")
    service, forever = make_service(session_ttl=60), make_service(session_ttl=None)
    await create(forever, key_of("forever"))
    for number in range(5):
        await create(service, key_of(f"s{number}"))
        await service.count_sessions(**OWNER)
    advance_time(1000)
    assert [session.id for session in await service.list_sessions(**OWNER)] == ["forever"]
    assert await service.count_sessions(**OWNER) == 1


async def test_a_create_of_a_small_index_is_one_call(make_service: ServiceFactory) -> None:
    service = make_service(session_ttl=60, encryption=None, key_store=None)
    names: list[str] = []

    def noting(flow: Flow[Any]) -> Flow[Any]:
        step: Any = next(flow)
        while True:
            names.append(step.name)
            try:
                step = flow.send((yield step))
            except StopIteration as end:
                return end.value

    async def create_noting(name: str) -> None:
        await service._run(noting(flows.create_session(service._ops, APP, USER, name, None)))

    for number in range(63):
        await create_noting(f"s{number}")
    assert set(names) <= {"create_session", "get_app_state"}
    await create_noting("s63")
    assert names[-2:] == ["create_session", "prune_index"]
