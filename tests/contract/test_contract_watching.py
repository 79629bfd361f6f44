"""Watching a session: entries, changes, ends, cursors."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.events import numbered, numbers_of
from support.services import ServiceFactory
from support.sessions import IDS, KEY, append_many, create, read
from support.waiting import poll_until
from support.watching import View, brief, running, until, watch, watch_all, watch_first

from sessionstore import (
    BackendUnavailable,
    Event,
    EventsMissing,
    InvalidArgument,
    Session,
    SessionNotFound,
    WatchChange,
    WatchEnd,
    WatchEntry,
)
from sessionstore.model import Watched

IDLE_S = 0.2  # then a watcher in a thread notices that nobody waits for it


async def filled(service: Any, count: int = 5) -> tuple[Session, list[int]]:
    """A session with the events 0, 1, ... and the positions of these."""
    session = await create(service)
    await append_many(service, session, numbered(*range(count)))
    return session, (await service.get_events(KEY, limit=1000)).positions


@asynccontextmanager
async def watching(service: Any, **options: Any) -> AsyncIterator[list[Watched]]:
    """What a watcher gets during the block; the list grows."""
    items: list[Watched] = []

    async def collect() -> None:
        cursor: str | None = None
        while True:
            async for item in watch(service, KEY, after=cursor, idle_timeout=IDLE_S, **options):
                if not isinstance(item, WatchEnd):
                    cursor = item.cursor
                elif item.reason == "idle":
                    break
                items.append(item)
            else:
                return

    async with running(collect()):
        yield items


# -- entries --------------------------------------------------------------------------------------


async def test_first_comes_the_log_then_what_is_appended(service: Any) -> None:
    session, _ = await filled(service, 2)
    async with watching(service) as items:
        await until(items, [0, 1])
        for number in range(2, 5):
            await service.append_event(session, Event("user", number))
            await until(items, [*range(number + 1)])
        await service.append_events(session, numbered(5, 6))
        await until(items, [*range(7)])
    page = await service.get_events(KEY)
    entries = [item for item in items if isinstance(item, WatchEntry)]
    assert [entry.event for entry in entries] == page.events
    assert [entry.position for entry in entries] == page.positions
    cursors = [entry.cursor for entry in entries]
    assert sorted(cursors) == cursors
    assert all(cursor.isascii() and cursor.replace("-", "").isdigit() for cursor in cursors)


async def test_every_cursor_continues_after_its_entry(service: Any) -> None:
    session, positions = await filled(service, 4)
    entries = await watch_first(service, session, 4)
    for number, entry in enumerate(entries):
        assert isinstance(entry, WatchEntry)
        rest = [*range(number + 1, 4), "idle"]
        assert brief(await watch_all(service, KEY, after=entry.cursor)) == rest
        assert brief(await watch_all(service, KEY, after=positions[number])) == rest
    assert brief(await watch_all(service, KEY, after=0)) == [0, 1, 2, 3, "idle"]


async def test_a_log_of_several_pages_is_read_whole(service: Any) -> None:
    await filled(service, 250)
    assert brief(await watch_all(service, KEY)) == [*range(250), "idle"]


async def test_a_session_without_events_can_be_watched(service: Any) -> None:
    await create(service)
    async with watching(service) as items:
        await service.append_event(KEY, Event("user", 1))
        await until(items, [1])
        await service.update_session_state(KEY, {"a": 1})
        await service.append_event(KEY, Event("user", 2))
        await until(items, [1, 2])


async def test_a_repeated_append_comes_once(service: Any) -> None:
    await create(service)
    event = Event("user", 1)
    async with watching(service) as items:
        for _ in range(3):
            await service.append_event(KEY, event)
        await service.append_event(KEY, Event("user", 2))
        await until(items, [1, 2])


# -- ends -----------------------------------------------------------------------------------------


async def test_it_ends_after_a_time_without_news(service: Any) -> None:
    await filled(service, 1)
    assert brief(await watch_all(service, KEY, idle_timeout=0.01)) == [0, "idle"]


async def test_it_ends_when_the_session_is_deleted(service: Any) -> None:
    session, _ = await filled(service, 1)
    async with watching(service) as items:
        await until(items, [0])
        await service.delete_session(**IDS)
        await until(items, [0, "deleted"])
    [entry, _] = items
    assert isinstance(entry, WatchEntry)
    assert brief(await watch_all(service, KEY, after=entry.cursor)) == ["deleted"]
    assert brief(await watch_all(service, session)) == ["deleted"]


async def test_it_ends_when_the_session_expires(
    make_service: ServiceFactory, advance_time: Callable[[float], None]
) -> None:
    service = make_service(session_ttl=60)
    await filled(service, 1)
    async with watching(service) as items:
        await until(items, [0])
        advance_time(70)
        await until(items, [0, "deleted"])


async def test_it_ends_when_another_session_has_the_id(service: Any) -> None:
    session, _ = await filled(service, 1)
    async with watching(service) as items:
        await until(items, [0])
        await service.delete_session(**IDS)
        await create(service)
        await service.append_event(KEY, Event("user", "other"))
        await poll_until(lambda: len(items) == 2, "the end")
        assert brief(items)[1] in ("deleted", "recreated")
    [entry, _] = items
    assert isinstance(entry, WatchEntry)
    assert brief(await watch_all(service, KEY, after=entry.cursor)) == ["recreated"]
    assert brief(await watch_all(service, session)) == ["recreated"]
    assert brief(await watch_all(service, KEY)) == ["other", "idle"]


async def test_a_session_that_does_not_exist_is_an_error(service: Any) -> None:
    with pytest.raises(SessionNotFound):
        await watch_all(service, KEY)
    with pytest.raises(SessionNotFound):
        await watch_all(service, KEY, after=5)


async def test_a_service_that_is_closed_ends_its_watchers(make_service: ServiceFactory) -> None:
    service = make_service()
    await filled(service, 1)
    started = asyncio.Event()

    async def follow() -> None:
        async for _ in watch(service, KEY):
            started.set()

    task = asyncio.create_task(follow())
    await started.wait()
    await service.aclose()
    with pytest.raises(BackendUnavailable, match="closed"):
        await task
    with pytest.raises(BackendUnavailable, match="closed"):
        await watch_all(service, KEY)


# -- changes --------------------------------------------------------------------------------------


async def change(service: Any, session: Session, positions: list[int], how: str) -> list[int]:
    """Change a log of five events in some way; returns what it then holds."""
    events = (await read(service)).events
    if how == "rewind":
        await service.rewind_session(KEY, to=positions[2])
        return [0, 1, 2]
    if how == "pop":
        await service.pop_event(session)
        return [0, 1, 2, 3]
    if how == "clear":
        await service.clear_events(KEY)
        return []
    if how == "delete":
        await service.delete_event(KEY, positions[1], events[1])
        return [0, 2, 3, 4]
    await service.replace_event(KEY, positions[3], events[3], Event("user", 33))
    return [0, 1, 2, 33, 4]


CHANGED: dict[str, Any] = {
    "rewind": ("changed", []),
    "pop": ("changed", []),
    "clear": ("changed", []),
    "delete": ("changed", []),
    "replace": ("changed", [33]),
}


async def test_a_watcher_is_shown_each_kind_of_change(service: Any) -> None:
    for how in CHANGED:
        session, positions = await filled(service)
        view = View()
        async with watching(service) as items:
            await until(items, [0, 1, 2, 3, 4])
            left = await change(service, session, positions, how)
            await service.append_event(KEY, Event("user", 5))
            await until(items, [0, 1, 2, 3, 4, CHANGED[how], 5])
        for item in items:
            view.show(item)
        assert isinstance(items[5], WatchChange)
        assert items[5].last <= positions[4]
        assert view.contents() == [*left, 5], how
        # Whoever was away gets the same.
        assert isinstance(items[4], WatchEntry)
        away = View()
        for item in items[:5]:
            away.show(item)
        for item in await watch_all(service, KEY, after=items[4].cursor):
            away.show(item)
        assert away.contents() == [*left, 5], how
        assert brief(await watch_all(service, KEY, after=items[5].cursor)) == [5, "idle"]
        await service.delete_session(**IDS)


async def test_a_change_of_events_that_were_not_shown_is_no_item(service: Any) -> None:
    for how in CHANGED:
        session, positions = await filled(service)
        [first] = await watch_first(service, KEY, 1)
        left = await change(service, session, positions, how)
        assert isinstance(first, WatchEntry)
        found = await watch_all(service, KEY, after=first.cursor)
        if how == "clear":
            assert brief(found) == [("changed", []), "idle"]
        else:
            assert brief(found) == [*left[1:], "idle"], how
        await service.delete_session(**IDS)


async def test_many_changes_while_a_watcher_is_away_show_the_whole_log(service: Any) -> None:
    _, positions = await filled(service, 30)
    shown = await watch_first(service, KEY, 30)
    for number in range(0, 24, 2):
        events = (await read(service)).events
        old = next(event for event in events if event.content == number)
        await service.replace_event(KEY, positions[number], old, Event("user", -number))
    view = View()
    for item in shown:
        view.show(item)
    assert view.cursor is not None
    for item in await watch_all(service, KEY, after=view.cursor):
        view.show(item)
    assert view.contents() == numbers_of((await read(service)).events)


async def test_a_change_of_a_long_part_is_several_items(service: Any) -> None:
    _, positions = await filled(service, 250)
    shown = await watch_first(service, KEY, 250)
    events = (await read(service)).events
    for number in range(10):  # more than the header remembers
        await service.replace_event(KEY, positions[number], events[number], Event("user", "new"))
    view = View()
    for item in shown:
        view.show(item)
    found = await watch_all(service, KEY, after=view.cursor)
    assert [type(item) for item in found] == [WatchChange] * 3 + [WatchEnd]
    for item in found:
        view.show(item)
    assert view.contents() == ["new"] * 10 + [*range(10, 250)]


# -- trimmed --------------------------------------------------------------------------------------


async def test_a_cursor_whose_next_events_were_trimmed_raises(make_service: ServiceFactory) -> None:
    service = make_service(session_event_limit=3)
    await filled(service, 2)
    [first, second] = await watch_first(service, KEY, 2)
    assert isinstance(first, WatchEntry)
    assert isinstance(second, WatchEntry)
    await service.append_events(KEY, numbered(2, 3))  # 0 is trimmed
    assert brief(await watch_all(service, KEY, after=second.cursor)) == [2, 3, "idle"]
    await service.append_events(KEY, numbered(4, 5, 6))
    for after in (first.cursor, second.cursor, first.position):
        with pytest.raises(EventsMissing, match="trimmed"):
            await watch_all(service, KEY, after=after)
    assert brief(await watch_all(service, KEY)) == [4, 5, 6, "idle"]


async def test_a_position_whose_next_events_were_trimmed_before_a_removal_raises(
    make_service: ServiceFactory,
) -> None:
    service = make_service(session_event_limit=3)
    _, [first, _] = await filled(service, 2)
    await service.append_events(KEY, numbered(2, 3, 4))
    await service.pop_event(KEY)
    with pytest.raises(EventsMissing, match="trimmed"):
        await watch_all(service, KEY, after=first)
    assert brief(await watch_all(service, KEY)) == [2, 3, "idle"]


async def test_events_that_a_summary_replaces_count_as_trimmed(service: Any) -> None:
    session, positions = await filled(service)
    entries = await watch_first(service, KEY, 5)
    await service.compact_session(session, upto=positions[2], summary="short", drop=True)
    for number, entry in enumerate(entries):
        assert isinstance(entry, WatchEntry)
        if number < 2:
            with pytest.raises(EventsMissing, match="trimmed"):
                await watch_all(service, KEY, after=entry.cursor)
        else:
            expected = [*range(number + 1, 5), "idle"]
            assert brief(await watch_all(service, KEY, after=entry.cursor)) == expected


async def test_dropped_events_are_missed_also_if_nobody_watched_before(service: Any) -> None:
    session, positions = await filled(service)
    await service.compact_session(session, upto=positions[2], summary="short", drop=True)
    copy = await service.fork_session(session)
    for key in (KEY, copy.key):
        for after in positions[:2]:
            with pytest.raises(EventsMissing, match="trimmed"):
                await watch_all(service, key, after=after)
        for number in range(2, 5):
            expected = [*range(number + 1, 5), "idle"]
            assert brief(await watch_all(service, key, after=positions[number])) == expected
    whole = await service.fork_session(copy)
    await service.rewind_session(whole, to=positions[2])
    with pytest.raises(EventsMissing, match="trimmed"):
        await watch_all(service, whole.key, after=positions[0])


async def test_clearing_a_log_does_not_count_as_trimming(make_service: ServiceFactory) -> None:
    service = make_service(session_event_limit=3)
    await filled(service, 3)
    *_, last = await watch_first(service, KEY, 3)
    assert isinstance(last, WatchEntry)
    await service.rewind_session(KEY, to=0)
    await service.append_events(KEY, numbered(7, 8))
    expected = [("changed", []), 7, 8, "idle"]
    assert brief(await watch_all(service, KEY, after=last.cursor)) == expected
    await service.append_events(KEY, numbered(9, 10))  # 7 is trimmed
    with pytest.raises(EventsMissing, match="trimmed"):
        await watch_all(service, KEY, after=last.cursor)


async def test_a_session_that_keeps_one_event_can_be_followed(make_service: ServiceFactory) -> None:
    service = make_service(session_event_limit=1)
    await filled(service, 3)
    async with watching(service) as items:
        for number in range(2, 6):
            await until(items, [*range(2, number + 1)])
            await service.append_event(KEY, Event("user", number + 1))


async def test_events_removed_before_a_watcher_saw_them_do_not_count_as_trimmed(
    service: Any,
) -> None:
    await create(service)
    async with watching(service) as items:
        await service.append_event(KEY, Event("user", "unsaid"))
        await service.pop_event(KEY)
        await service.append_event(KEY, Event("user", 1))
        await poll_until(lambda: brief(items)[-1:] == [1], "the event")


# -- arguments ------------------------------------------------------------------------------------


async def test_bad_arguments_are_refused_when_it_is_called(service: Any) -> None:
    await create(service)
    for after in ("", "x", "1-2-3", "0" * 50, -1, True, 1.5, b"1"):
        with pytest.raises(InvalidArgument, match="after"):
            await watch_all(service, KEY, after=after)
    for idle in (0, -1, "1", float("nan")):
        with pytest.raises(InvalidArgument, match="idle_timeout"):
            await watch_all(service, KEY, idle_timeout=idle)  # type: ignore[arg-type]  # wrong
    with pytest.raises(InvalidArgument, match="session"):
        await watch_all(service, "sid")  # type: ignore[arg-type]  # wrong
    with pytest.raises(InvalidArgument, match="user_id"):
        await watch_all(service, type(KEY)("a", "", "s"))


# -- any order of everything ----------------------------------------------------------------------


async def test_watchers_that_reconnect_at_random_see_every_event_once(service: Any) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    await create(service)
    stop = asyncio.Event()
    views = [View() for _ in range(3)]

    async def follow(view: View, chance: random.Random) -> None:
        while not (stop.is_set() and view.contents() == numbers_of(await _events(service))):
            count = chance.randint(1, 8)
            options = {"idle_timeout": chance.choice([0.01, 0.05]), "after": view.cursor}
            try:
                for item in await watch_first(service, KEY, count, **options):
                    view.show(item)
            except SessionNotFound:
                await asyncio.sleep(0.005)
            if view.end in ("deleted", "recreated"):
                view.__init__()  # type: ignore[misc]  # it starts again

    async def write() -> None:
        for number in range(60):
            await _write_something(service, chance, number)
            await asyncio.sleep(chance.choice([0, 0, 0.003, 0.02]))
        stop.set()

    followers = [follow(view, random.Random(chance.random())) for view in views]
    async with asyncio.timeout(60):
        await asyncio.gather(write(), *followers)
    for view in views:
        assert view.contents() == numbers_of(await _events(service))


async def _events(service: Any) -> list[Event]:
    found = await service.get_session(**IDS)
    return [] if found is None else list(found.events)


async def _write_something(service: Any, chance: random.Random, number: int) -> None:
    page = await service.get_events(KEY)
    at = chance.randrange(len(page.events)) if page.events else None
    what = chance.choices(
        ["append", "batch", "pop", "rewind", "clear", "replace", "delete", "recreate"],
        [40, 15, 8, 8, 2, 8, 8, 2],
    )[0]
    if what == "batch":
        await service.append_events(KEY, numbered(number, number + 1000))
    elif what == "pop":
        await service.pop_event(KEY)
    elif what == "clear":
        await service.clear_events(KEY)
    elif what == "recreate":
        await service.delete_session(**IDS)
        await service.create_session(**IDS)
    elif what == "append" or at is None:
        await service.append_event(KEY, Event("user", number))
    elif what == "rewind":
        await service.rewind_session(KEY, to=page.positions[at])
    elif what == "replace":
        await service.replace_event(KEY, page.positions[at], page.events[at], Event("u", -number))
    else:
        await service.delete_event(KEY, page.positions[at], page.events[at])
