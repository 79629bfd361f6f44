"""Pages of the log, lists of sessions and of users."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from support.events import NOON, numbered, numbers_of
from support.sessions import APP, IDS, KEY, OWNER, USER, create, read

from sessionstore import (
    BackendUnavailable,
    Event,
    EventPage,
    InvalidArgument,
    SessionKey,
    SessionNotFound,
)

ALL = list(range(25))
LATEST = 2**53  # the largest position


async def session_with_events(service: Any) -> None:
    await create(service)
    # Timestamps are equal, go backward and are in the future. Positions still grow.
    for number in ALL:
        offset = timedelta(days=(number % 3 - 1) * 10_000)
        await service.append_event(KEY, Event("user", number, timestamp=NOON + offset))


@pytest.mark.parametrize("limit", [1, 2, 7, 24, 25, 26])
async def test_pages_forward_cover_every_event_once(service: Any, limit: int) -> None:
    await session_with_events(service)
    seen: list[Any] = []
    page: EventPage = await service.get_events(KEY, limit=limit)
    while page.events:
        assert len(page.events) <= limit
        assert len(seen) < len(ALL), "a page repeats events or sessions"
        seen += numbers_of(page.events)
        page = await service.get_events(KEY, after=page.last, limit=limit)
    assert seen == ALL


@pytest.mark.parametrize("limit", [1, 2, 7, 24, 25, 26])
async def test_pages_backward_cover_every_event_once(service: Any, limit: int) -> None:
    await session_with_events(service)
    seen: list[Any] = []
    page: EventPage = await service.get_events(KEY, before=LATEST, limit=limit)
    while page.events:
        assert len(page.events) <= limit
        assert len(seen) < len(ALL), "a page repeats events or sessions"
        seen = numbers_of(page.events) + seen
        page = await service.get_events(KEY, before=page.first, limit=limit)
    assert seen == ALL


async def test_a_page_between_two_positions(service: Any) -> None:
    await session_with_events(service)
    first = await service.get_events(KEY, limit=5)
    last = await service.get_events(KEY, before=LATEST, limit=5)
    between = await service.get_events(KEY, after=first.last, before=last.first)
    assert numbers_of(between.events) == ALL[5:-5]
    from_the_oldest = await service.get_events(KEY, after=first.last, before=last.first, limit=3)
    assert numbers_of(from_the_oldest.events) == ALL[5:8]


async def test_going_forth_and_back_meets_at_the_same_events(service: Any) -> None:
    await session_with_events(service)
    first = await service.get_events(KEY, limit=10)
    second = await service.get_events(KEY, after=first.last, limit=10)
    assert await service.get_events(KEY, before=second.first, limit=10) == first


async def test_an_empty_page_keeps_its_cursor(service: Any) -> None:
    await create(service)
    assert await service.get_events(KEY) == EventPage([], None, None)
    await service.append_events(KEY, numbered(1, 2))
    page = await service.get_events(KEY)
    behind = await service.get_events(KEY, after=page.last)
    assert behind == EventPage([], page.last, page.last)
    before = await service.get_events(KEY, before=page.first)
    assert before == EventPage([], page.first, page.first)
    await service.append_event(KEY, Event("user", 3))
    assert numbers_of((await service.get_events(KEY, after=behind.last)).events) == [3]


async def test_a_page_of_nothing_asked_with_cursors_beyond(service: Any) -> None:
    await create(service)
    await service.append_events(KEY, numbered(1))
    for cursor in (0, LATEST):
        after = await service.get_events(KEY, after=cursor)
        assert numbers_of(after.events) == ([1] if cursor == 0 else [])
        before = await service.get_events(KEY, before=cursor)
        assert numbers_of(before.events) == ([] if cursor == 0 else [1])


async def test_the_newest_page_and_the_pages_before_it(service: Any) -> None:
    await session_with_events(service)
    page = await service.get_events(KEY, newest=True, limit=4)
    assert numbers_of(page.events) == ALL[-4:]
    assert page == await service.get_events(KEY, before=LATEST, limit=4)
    before = await service.get_events(KEY, newest=True, before=page.first, limit=3)
    assert numbers_of(before.events) == ALL[-7:-4]
    after = await service.get_events(KEY, newest=True, after=before.last, limit=2)
    assert numbers_of(after.events) == ALL[-2:]
    with pytest.raises(InvalidArgument, match="newest must be True or False"):
        await service.get_events(KEY, newest=1)


async def test_a_page_has_the_position_of_every_event(service: Any) -> None:
    await session_with_events(service)
    page = await service.get_events(KEY, limit=7)
    assert (page.first, page.last) == (page.positions[0], page.positions[-1])
    assert len(page.positions) == len(page.events) == 7
    assert page.positions == sorted(set(page.positions))
    for position, event in zip(page.positions, page.events, strict=True):
        [found] = (await service.get_events(KEY, after=position - 1, limit=1)).events
        assert found == event


async def test_the_number_of_events_is_that_of_the_store(make_service: Any) -> None:
    service = make_service(session_event_limit=5)
    session = await create(service)
    assert session.event_count == 0
    await service.append_event(session, Event("user", 1))
    await service.append_events(session, numbered(2, 3))
    assert session.event_count == 3
    filters: list[dict[str, Any]] = [
        {},
        {"event_num": 0},
        {"event_num": 2},
        {"event_time": NOON},
        {"event_num": 1, "event_time": NOON},
    ]
    for options in filters:
        assert (await read(service, KEY, **options)).event_count == 3
        found = await service.get_or_create_session(**IDS, **options)
        assert found.event_count == 3
    for event_num in (0, 2):
        [listed] = await service.list_sessions(**OWNER, event_num=event_num)
        assert listed.event_count == 3
    await service.append_events(session, numbered(4, 5, 6))
    assert session.event_count == 5, "the oldest was trimmed"
    await service.pop_event(session)
    assert session.event_count == 4
    again = Event("user", 7)
    await service.append_event(KEY, again)
    await service.append_event(session, again)  # a repeat, so the session is read again
    assert session.event_count == 5
    await service.clear_events(session)
    assert session.event_count == 0


async def test_a_poller_sees_every_event_once_while_the_log_is_trimmed(make_service: Any) -> None:
    service = make_service(session_event_limit=5)
    await create(service)
    seen: list[Any] = []
    cursor = None
    for number in ALL:
        await service.append_event(KEY, Event("user", number))
        if number % 3 == 0:
            page = await service.get_events(KEY, after=cursor)
            seen += numbers_of(page.events)
            cursor = page.last
    seen += numbers_of((await service.get_events(KEY, after=cursor)).events)
    assert seen == ALL


async def test_a_page_of_a_missing_session_raises_session_not_found(service: Any) -> None:
    with pytest.raises(SessionNotFound):
        await service.get_events(KEY)


# -- lists --------------------------------------------------------------------------------------


def key_of(name: str) -> SessionKey:
    return SessionKey(APP, USER, name)


async def listed(service: Any, **options: Any) -> list[str]:
    return [session.id for session in await service.list_sessions(**OWNER, **options)]


async def test_a_list_is_newest_first(service: Any) -> None:
    for name in ("a", "b", "c", "d"):
        await create(service, key_of(name))
    assert await listed(service) == ["d", "c", "b", "a"]
    await service.append_event(key_of("b"), Event("user", timestamp=NOON))
    assert await listed(service) == ["b", "d", "c", "a"]
    await service.update_session_state(key_of("a"), {"x": 1})
    assert await listed(service) == ["a", "b", "d", "c"]
    await service.delete_session_state(key_of("d"), "none")
    await service.pop_event(key_of("b"))
    assert await listed(service) == ["b", "d", "a", "c"]
    await service.clear_events(key_of("c"))
    assert await listed(service) == ["c", "b", "d", "a"]


async def test_reading_does_not_change_the_order_of_a_list(service: Any) -> None:
    for name in ("a", "b"):
        await create(service, key_of(name))
        await service.append_event(key_of(name), Event("user"))
    await read(service, key_of("a"))
    await service.get_events(key_of("a"))
    await service.get_or_create_session(**OWNER, session_id="a")
    await service.update_user_state(APP, USER, {"x": 1})
    assert await listed(service) == ["b", "a"]


async def test_a_list_goes_by_pages(service: Any) -> None:
    names = [f"s{number:02}" for number in range(23)]
    for name in names:
        await create(service, key_of(name))
    names.reverse()
    for limit in (1, 5, 23, 1000):
        seen: list[str] = []
        while page := await listed(service, limit=limit, offset=len(seen)):
            assert len(page) <= limit
            assert len(seen) < len(names), "a page repeats events or sessions"
            seen += page
        assert seen == names
    assert await listed(service, offset=20) == names[20:]
    assert await listed(service, offset=23) == []
    assert await listed(service, offset=10_000) == []


async def test_a_list_holds_a_hundred_by_default(service: Any) -> None:
    for number in range(105):
        await create(service, key_of(f"s{number}"))
    assert len(await service.list_sessions(**OWNER)) == 100
    assert len(await service.list_sessions(**OWNER, limit=1000)) == 105


async def test_a_list_shows_whole_sessions_with_as_many_events_as_asked_for(service: Any) -> None:
    await service.update_app_state(APP, {"x": 1})
    for name, count in (("a", 0), ("b", 1), ("c", 5)):
        await create(service, key_of(name), state={"name": name, "user:last": name})
        await service.append_events(key_of(name), numbered(*range(count)))
    for event_num in (0, 1, 3, 99):
        for found in await service.list_sessions(**OWNER, event_num=event_num):
            assert found == await read(service, key_of(found.id), event_num=event_num)
    assert [len(found.events) for found in await service.list_sessions(**OWNER)] == [0, 0, 0]
    numbers = await service.list_sessions(**OWNER, event_num=3)
    assert [numbers_of(found) for found in numbers] == [[2, 3, 4], [0], []]


async def test_a_list_shows_only_the_users_own(service: Any) -> None:
    for app, user in (("app", "user"), ("app", "other"), ("other", "user")):
        await create(service, SessionKey(app, user, f"of-{app}-{user}"))
    assert await listed(service) == ["of-app-user"]
    assert await service.list_sessions(app_name="none", user_id="user") == []


async def test_a_deleted_session_is_not_listed(service: Any) -> None:
    for name in ("a", "b", "c"):
        await create(service, key_of(name))
    await service.delete_session(**OWNER, session_id="b")
    assert await listed(service) == ["c", "a"]
    await create(service, key_of("b"))
    assert await listed(service) == ["b", "c", "a"]


# -- ping ---------------------------------------------------------------------------------------


async def test_a_ping_returns_the_time_and_the_role(service: Any) -> None:
    for _ in range(2):
        answer = await service.ping()
        assert timedelta(0) <= answer.round_trip < timedelta(seconds=10)
        assert answer.role == "primary"
    await service.aclose()
    with pytest.raises(BackendUnavailable):
        await service.ping()


# -- users --------------------------------------------------------------------------------------


STRANGE = ["a", "b:c", "*", "[a]", "{x}", "a}", "\\", "\u00e9\U0001f600", "100%", "a b"]


@pytest.mark.parametrize("options", [{}, {"key_prefix": "p:"}, {"key_prefix": "limit-*:"}])
async def test_the_users_of_an_application(
    make_service: Callable[..., Any], options: dict[str, Any]
) -> None:
    service = make_service(**options)
    other = make_service(key_prefix="limit-[:" if options else "p:")
    await create(other, SessionKey(APP, "elsewhere", "one"))
    for app in (APP, "ap", "app:", "app*", "*", "{app}"):
        assert await service.list_users(app) == []
        for user in STRANGE[: 3 if app != APP else None]:
            await create(service, SessionKey(app, user, f"of-{app}"))
            await create(service, SessionKey(app, user, "another"))
    assert await service.list_users(APP) == sorted(STRANGE)
    assert await service.list_users("*") == sorted(STRANGE[:3])
    assert await service.list_users("a") == []
    assert await other.list_users(APP) == ["elsewhere"]


async def test_a_user_is_listed_while_there_are_sessions_or_state(service: Any) -> None:
    for user in ("a", "b"):
        await create(service, SessionKey(APP, user, "one"), state={"user:name": user})
    await service.delete_session(app_name=APP, user_id="a", session_id="one")
    assert await service.list_users(APP) == ["a", "b"], "a has state"
    await service.delete_user_state(APP, "a", "name")
    assert await service.list_users(APP) == ["b"]
    await service.update_user_state(APP, "only:{state}*", {"x": 1})
    await service.update_app_state(APP, {"x": 1})
    assert await service.list_users(APP) == ["b", "only:{state}*"]


async def test_many_users_are_all_listed(service: Any) -> None:
    users = [f"user{number:04}" for number in range(2500)]
    for first in range(0, len(users), 100):
        await asyncio.gather(
            *(create(service, SessionKey(APP, user, "one")) for user in users[first : first + 100])
        )
    assert await service.list_users(APP) == users


async def test_the_name_of_the_application_is_checked(service: Any) -> None:
    with pytest.raises(InvalidArgument, match="app_name must not be empty"):
        await service.list_users("")


# -- event_num ----------------------------------------------------------------------------------


async def test_the_newest_events(service: Any) -> None:
    await create(service)
    await service.append_events(KEY, numbered(*range(5)))
    for event_num, expected in (
        (None, [0, 1, 2, 3, 4]),
        (0, []),
        (1, [4]),
        (4, [1, 2, 3, 4]),
        (5, [0, 1, 2, 3, 4]),
        (6, [0, 1, 2, 3, 4]),
        (10**9, [0, 1, 2, 3, 4]),
    ):
        assert numbers_of(await read(service, event_num=event_num)) == expected
        found = await service.get_or_create_session(**IDS, event_num=event_num)
        assert numbers_of(found) == expected


async def test_no_events_at_all(service: Any) -> None:
    await create(service)
    for filters in (
        {},
        {"event_num": 5},
        {"event_time": NOON},
        {"event_time": NOON, "event_num": 5},
    ):
        assert numbers_of(await read(service, **filters)) == []
