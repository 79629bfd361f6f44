"""Creating, reading and deleting sessions, and their versions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from support.events import numbered, numbers_of
from support.servers import Server
from support.services import ServiceFactory
from support.sessions import APP, IDS, KEY, OWNER, USER, create, read

import sessionstore
from sessionstore import (
    BackendUnavailable,
    Event,
    Session,
    SessionExists,
    SessionKey,
    StaleVersion,
)

Attempt = Callable[[], Awaitable[Any]]
Write = Callable[[int | None], Awaitable[Any]]

# -- create -------------------------------------------------------------------------------------


async def test_a_new_session_is_empty_but_for_its_state(service: Any) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    session = await service.create_session(**IDS, state={"a": 1})
    assert session == Session(
        app_name=APP,
        user_id=USER,
        id="sid",
        state={"a": 1},
        events=[],
        version=session.version,
        created_at=session.created_at,
        updated_at=session.created_at,
        event_limit=1000,
    )
    assert session.key == KEY
    assert before < session.created_at < datetime.now(UTC) + timedelta(seconds=5)
    assert session.created_at.utcoffset() == timedelta(0)
    assert await read(service) == session


@pytest.mark.parametrize("session_id", [None, ""])
async def test_without_an_id_a_session_gets_a_new_one(service: Any, session_id: str | None) -> None:
    sessions = [
        await service.create_session(**OWNER, session_id=session_id),
        await service.create_session(**OWNER, session_id=session_id),
        await service.get_or_create_session(**OWNER, session_id=session_id),
        await service.create_session(**OWNER),
        await service.get_or_create_session(**OWNER),
    ]
    names = [session.id for session in sessions]
    assert len({UUID(name) for name in names}) == len(names)
    assert {found.id for found in await service.list_sessions(**OWNER)} == set(names)


async def test_creating_a_session_that_exists_raises_and_changes_nothing(service: Any) -> None:
    await service.create_session(**IDS, state={"a": 1})
    await service.append_event(KEY, Event("user", 1))
    before = await read(service)
    with pytest.raises(SessionExists, match=r"'sid'.*'user'.*'app'"):
        await service.create_session(**IDS, state={"a": 2, "user:b": 2, "app:c": 2})
    assert await read(service) == before
    assert await service.get_user_state(APP, USER) == {}
    assert await service.get_app_state(APP) == {}


async def test_a_new_session_shows_what_the_shared_tiers_hold(service: Any) -> None:
    await service.update_app_state(APP, {"a": 1, "b": 1})
    await service.update_user_state(APP, USER, {"c": 1})
    session = await service.create_session(**IDS, state={"app:b": 2, "d": 3, "temp:e": 4})
    shared = {"app:a": 1, "app:b": 2, "user:c": 1, "d": 3}
    assert session.state == {**shared, "temp:e": 4}
    assert (await read(service)).state == shared


async def test_a_missing_session_is_none(service: Any) -> None:
    assert await service.get_session(**IDS) is None
    await service.update_app_state(APP, {"a": 1})
    await create(service, SessionKey(APP, USER, "other"))
    assert await service.get_session(**IDS) is None
    assert await service.get_session(**IDS, event_num=0) is None


# -- get or create ------------------------------------------------------------------------------


async def test_get_or_create_creates_once(service: Any) -> None:
    first = await service.get_or_create_session(**IDS, state={"a": 1, "user:b": 1})
    assert (first.state, first.events) == ({"a": 1, "user:b": 1}, [])
    await service.append_events(KEY, numbered(1, 2, 3))
    second = await service.get_or_create_session(
        **IDS, state={"a": 2, "user:b": 2, "app:c": 2, "temp:d": 2}
    )
    assert second.state == {"a": 1, "user:b": 1, "temp:d": 2}
    assert second.created_at == first.created_at
    assert second.version > first.version
    assert numbers_of(second) == [1, 2, 3]
    assert await service.get_app_state(APP) == {}


async def test_get_or_create_reads_as_many_events_as_asked_for(service: Any) -> None:
    created = await service.get_or_create_session(**IDS, event_num=2)
    assert created.events == []
    await service.append_events(KEY, numbered(1, 2, 3))
    for event_num, expected in ((0, []), (2, [2, 3]), (None, [1, 2, 3])):
        found = await service.get_or_create_session(**IDS, event_num=event_num)
        assert numbers_of(found) == expected


async def test_get_or_create_and_create_make_the_same(service: Any) -> None:
    state = {"a": [1], "user:b": None, "app:c": b"raw"}
    one = await service.create_session(**OWNER, session_id="one", state=state)
    two = await service.get_or_create_session(**OWNER, session_id="two", state=state)
    assert (one.state, one.events) == (two.state, two.events)
    assert await read(service, one.key) == one
    assert await read(service, two.key) == two


# -- delete -------------------------------------------------------------------------------------


async def test_a_deleted_session_is_gone_and_a_missing_one_is_fine(service: Any) -> None:
    await service.create_session(**IDS, state={"a": 1})
    await service.append_event(KEY, Event("user", 1))
    for _ in range(2):
        await service.delete_session(**IDS)
        assert await service.get_session(**IDS) is None
        assert await service.list_sessions(**OWNER) == []


async def test_deleting_one_session_leaves_the_others(service: Any) -> None:
    keys = [SessionKey(APP, USER, name) for name in ("a", "b", "c")]
    for key in keys:
        await create(service, key, state={"name": key.session_id, "user:last": key.session_id})
        await service.append_event(key, Event("user", key.session_id))
    before = [await read(service, key) for key in (keys[0], keys[2])]
    await service.delete_session(**OWNER, session_id="b")
    assert [await read(service, key) for key in (keys[0], keys[2])] == before


async def test_a_session_created_again_shows_nothing_old(service: Any) -> None:
    first = await service.create_session(**IDS, state={"a": 1, "user:kept": 1})
    await service.append_events(first, numbered(1, 2))
    await service.delete_session(**IDS)
    second = await service.create_session(**IDS, state={"b": 2})
    assert second.state == {"b": 2, "user:kept": 1}
    assert second.events == []
    assert second.created_at > first.created_at
    assert await read(service) == second
    await service.append_event(second, Event("user", 3))
    assert numbers_of(await read(service)) == [3]


def stored_keys(service: Any, server: Server | None) -> set[bytes]:
    """Every key, on a server or in memory."""
    if server is not None:
        return set(server.snapshot())
    executor = getattr(service, "service", service)._executor
    return set(getattr(executor, "_memory", executor).keyspace.keys())


async def test_deleting_the_last_session_leaves_only_shared_state(
    backend: tuple[str, Server | None], service: Any
) -> None:
    for name in ("a", "b"):
        key = SessionKey(APP, USER, name)
        await create(service, key, state={"x": 1, "user:y": 2, "app:z": 3})
        await service.append_events(key, numbered(1, 2))
    for name in ("a", "b"):
        await service.delete_session(**OWNER, session_id=name)
    assert {name.split(b":")[0] for name in stored_keys(service, backend[1])} == {
        b"userdata",
        b"appdata",
    }
    await service.delete_user_state(APP, USER, "y")
    await service.delete_app_state(APP, "z")
    assert stored_keys(service, backend[1]) == set()


async def test_reading_what_is_not_there_stores_nothing(
    backend: tuple[str, Server | None], service: Any
) -> None:
    await service.get_session(**IDS)
    await service.list_sessions(**OWNER)
    await service.get_app_state(APP)
    await service.get_user_state(APP, USER)
    await service.delete_session(**IDS)
    await service.delete_user_state(APP, USER, "a")
    await service.delete_app_state(APP, "a")
    with pytest.raises(sessionstore.SessionNotFound):
        await service.append_event(KEY, Event("user", state_delta={"user:a": 1}))
    assert stored_keys(service, backend[1]) == set()


# -- versions -----------------------------------------------------------------------------------


async def test_a_version_grows_with_every_write(service: Any) -> None:
    session = await service.create_session(**IDS, state={"a": 1})
    event = Event("user", 1)
    steps: list[tuple[Attempt, bool]] = [
        (lambda: service.append_event(session, event), True),
        (lambda: service.append_event(session, event), False),  # a repeat
        (lambda: service.append_events(session, numbered(2, 3)), True),
        (lambda: service.append_event(session, Event("user", partial=True)), False),
        (lambda: service.update_session_state(session, {"a": 2}), True),
        (lambda: service.update_session_state(session, {"temp:a": 2}), False),
        (lambda: service.delete_session_state(session, "a"), True),
        (lambda: service.pop_event(session), True),
        (lambda: service.clear_events(session), True),
        (lambda: service.pop_event(session), False),
        (lambda: service.get_events(session), False),
        (lambda: service.update_app_state(APP, {"x": 1}), False),
        (lambda: service.update_user_state(APP, USER, {"x": 1}), False),
        (lambda: service.get_or_create_session(**IDS, state={"a": 1}), False),
    ]
    for number, (step, is_write) in enumerate(steps):
        before = session.version
        await step()
        assert (session.version > before) == is_write, number
        assert session.version >= before, number
        assert (await read(service)).version == session.version, number


@pytest.mark.parametrize("num_writes", [0, 1, 20])
async def test_a_version_never_matches_a_session_that_was_created_again(
    service: Any, num_writes: int
) -> None:
    session = await service.create_session(**IDS)
    versions = [session.version]
    for number in range(num_writes):
        await service.append_event(session, Event("user", number))
        versions.append(session.version)
    await service.delete_session(**IDS)
    again = await service.create_session(**IDS, state={"n": 0})
    for version in versions:
        assert again.version > version
        for name, write in versioned_writes(service).items():
            with pytest.raises(StaleVersion):
                await write(version)
            assert await read(service) == again, name


async def test_a_write_sets_the_time_of_the_last_update(service: Any) -> None:
    session = await create(service)
    created = session.created_at
    steps: list[Attempt] = [
        lambda: service.append_event(session, Event("user", timestamp=created)),
        lambda: service.update_session_state(session, {"a": 1}),
        lambda: service.pop_event(session),
        lambda: service.clear_events(session),
    ]
    for step in steps:
        before = session.updated_at
        await step()
        stored = await read(service)
        assert stored.updated_at == session.updated_at > before
        assert stored.created_at == session.created_at == created


def versioned_writes(service: Any) -> dict[str, Write]:
    return {
        "append_event": lambda version: service.append_event(
            KEY, Event("user", state_delta={"n": 1, "app:n": 1}), if_version=version
        ),
        "append_events": lambda version: service.append_events(
            KEY, numbered(1, 2), if_version=version
        ),
        "pop_event": lambda version: service.pop_event(KEY, if_version=version),
        "clear_events": lambda version: service.clear_events(KEY, if_version=version),
        "update_session_state": lambda version: service.update_session_state(
            KEY, {"n": 1, "user:n": 1}, if_version=version
        ),
        "delete_session_state": lambda version: service.delete_session_state(
            KEY, "n", if_version=version
        ),
        "update of temp only": lambda version: service.update_session_state(
            KEY, {"temp:n": 1}, if_version=version
        ),
    }


@pytest.mark.parametrize("name", versioned_writes(None))
async def test_a_write_asks_for_a_version(service: Any, name: str) -> None:
    await service.create_session(**IDS, state={"n": 0})
    await service.append_event(KEY, Event("user", 0))
    before = await read(service)
    version = before.version
    for wrong in (0, version - 1, version + 1, 2**53):
        with pytest.raises(StaleVersion, match=rf"version {version}, not {wrong}") as caught:
            await versioned_writes(service)[name](wrong)
        assert (caught.value.expected, caught.value.actual) == (wrong, version)
        assert await read(service) == before
    assert await service.get_app_state(APP) == {}
    await versioned_writes(service)[name](version)
    assert (await read(service)).version > version


async def test_writes_in_a_row_go_by_the_sessions_own_version(service: Any) -> None:
    session = await create(service)
    for number in range(5):
        await service.append_event(session, Event("user", number), if_version=session.version)
        await service.update_session_state(session, {"n": number}, if_version=session.version)
    assert session == await read(service)


async def test_an_append_that_was_accepted_may_be_sent_again_with_its_version(
    service: Any,
) -> None:
    session = await create(service)
    event = Event("user", 1, state_delta={"a": 1})
    version = session.version
    await service.append_event(session, event, if_version=version)
    before = await read(service)
    await service.append_event(session, event, if_version=version)
    assert await read(service) == before == session
    with pytest.raises(StaleVersion):
        await service.append_event(session, Event("user", 2), if_version=version)


async def test_a_batch_that_was_accepted_may_be_sent_again_with_its_version(
    make_service: ServiceFactory,
) -> None:
    for limit in (None, 4, 5):  # all of the batch is kept
        service = make_service(session_event_limit=limit, key_prefix=f"limit-{limit}:")
        version = (await create(service)).version
        events = [Event("user", n, state_delta={"n": n}) for n in range(4)]
        await service.append_events(KEY, events, if_version=version)
        await service.update_session_state(KEY, {"n": "later"})
        before = await read(service)
        await service.append_events(KEY, events, if_version=version)
        assert await read(service) == before
        with pytest.raises(StaleVersion):
            await service.append_events(KEY, [*events, *numbered(5)], if_version=version)
        assert await read(service) == before


async def test_a_pop_of_nothing_still_asks_for_the_version(service: Any) -> None:
    version = (await create(service)).version
    assert await service.pop_event(KEY, if_version=version) is None
    with pytest.raises(StaleVersion):
        await service.pop_event(KEY, if_version=version - 1)


# -- the end ------------------------------------------------------------------------------------


async def test_a_service_is_a_context_manager(backend: tuple[str, Server | None]) -> None:
    mode, server = backend
    if mode == "async":
        asynchronous = (
            sessionstore.RedisSessionService(server.url, session_ttl=60)
            if server
            else sessionstore.InMemorySessionService()
        )
        async with asynchronous as entered:
            assert entered is asynchronous
            await entered.create_session(**IDS)
        with pytest.raises(BackendUnavailable):
            await asynchronous.get_session(**IDS)
    else:
        threaded = (
            sessionstore.sync.RedisSessionService(server.url, session_ttl=60)
            if server
            else sessionstore.sync.InMemorySessionService()
        )
        with threaded as also_entered:
            assert also_entered is threaded
            also_entered.create_session(**IDS)
        with pytest.raises(BackendUnavailable):
            threaded.get_session(**IDS)


async def test_services_with_different_prefixes_share_nothing(
    backend: tuple[str, Server | None], make_service: ServiceFactory
) -> None:
    if backend[1] is None:
        pytest.skip("services in memory share nothing")
    one, two = make_service(key_prefix="one:"), make_service(key_prefix="two:")
    await create(one, state={"a": 1, "app:b": 2})
    assert await two.get_session(**IDS) is None
    assert await two.get_app_state(APP) == {}
    assert await two.list_sessions(**OWNER) == []


@pytest.mark.parametrize("partition_by", ["user", "app"])
async def test_the_partition_changes_nothing_but_keys(
    make_service: ServiceFactory, partition_by: str
) -> None:
    service = make_service(partition_by=partition_by, key_prefix="p:")
    session = await create(service, state={"a": 1, "user:b": 2, "app:c": 3})
    await service.append_events(session, numbered(1, 2))
    assert session == await read(service)
    assert [found.id for found in await service.list_sessions(**OWNER)] == ["sid"]
