"""Watching an event while it is written: fragments so far, then live ones, then the event."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.services import ServiceFactory
from support.sessions import IDS, KEY, create
from support.watching import brief, running, until, watch, watch_all, watch_first

from sessionstore import Event, InvalidArgument, WatchEnd, WatchEntry
from sessionstore.model import Watched

IDLE_S = 0.2  # then a watcher in a thread notices that nobody waits for it


def fragment(content: Any, author: str = "bot", **fields: Any) -> Event:
    return Event(author, content, partial=True, invocation_id="run", **fields)


def complete(content: Any, author: str = "bot", **fields: Any) -> Event:
    return Event(author, content, invocation_id="run", **fields)


def cursor_of(item: Watched) -> str:
    assert not isinstance(item, WatchEnd)
    return item.cursor


@asynccontextmanager
async def watching(service: Any, **options: Any) -> AsyncIterator[list[Watched]]:
    """What a watcher gets during the block, who reconnects now and then; the list grows."""
    items: list[Watched] = []
    options = {"partial": True, "idle_timeout": IDLE_S, **options}

    async def collect() -> None:
        cursor = None
        while True:
            async for item in watch(service, KEY, after=cursor, **options):
                if isinstance(item, WatchEnd):
                    break
                items.append(item)
                cursor = item.cursor

    async with running(collect()):
        yield items


async def test_first_come_the_fragments_so_far_then_live_ones_then_the_event(
    service: Any,
) -> None:
    session = await create(service)
    await service.append_event(session, complete("Hi", "user"))
    await service.append_events(session, [fragment("Hel"), fragment("lo")])
    async with watching(service) as items:
        await until(items, ["Hi", "Hel", "lo"])
        await service.append_event(session, fragment(", Ann"))
        await until(items, ["Hi", "Hel", "lo", ", Ann"])
        await service.append_event(session, complete("Hello, Ann"))
        await until(items, ["Hi", "Hel", "lo", ", Ann", "Hello, Ann"])
    entries = [item for item in items if isinstance(item, WatchEntry)]
    assert [entry.event.partial for entry in entries] == [False, True, True, True, False]
    positions = [entry.position for entry in entries]
    assert positions == [positions[0]] * 4 + [positions[4]]
    cursors = [entry.cursor for entry in entries]
    assert cursors == sorted(set(cursors))


async def test_a_watcher_that_comes_later_gets_no_obsolete_fragments(service: Any) -> None:
    session = await create(service)
    for number in range(3):
        await service.append_event(session, fragment(f"old {number}"))
        await service.append_event(session, complete(number))
    await service.append_event(session, fragment("new"))
    assert brief(await watch_all(service, KEY, partial=True)) == [0, 1, 2, "new", "idle"]


async def test_a_watcher_continues_after_any_entry(service: Any) -> None:
    session = await create(service)
    await service.append_event(session, complete("Hi", "user"))
    await service.append_event(session, fragment("a"))
    await service.append_events(session, [fragment("b"), fragment("c"), fragment("d")])
    await service.append_event(session, complete("x", "cook"))
    await service.append_event(session, fragment("e"))
    items = await watch_all(service, KEY, partial=True)
    expected = ["Hi", "x", "a", "b", "c", "d", "e", "idle"]
    assert brief(items) == expected
    for number, item in enumerate(items[:-1]):
        later = await watch_all(service, KEY, partial=True, after=cursor_of(item))
        assert brief(later) == expected[number + 1 :]
        assert [cursor_of(each) for each in later[:-1]] == [
            cursor_of(each) for each in items[number + 1 : -1]
        ]
    await service.append_event(session, complete("abcde"))
    for item in items[1:-1]:  # the rest is obsolete now
        later = await watch_all(service, KEY, partial=True, after=cursor_of(item))
        assert brief(later) == ["abcde", "idle"]


async def test_a_cursor_behind_the_complete_event_shows_no_fragments(service: Any) -> None:
    """The complete event is before the cursor: it has to be looked for."""
    session = await create(service)
    await service.append_events(session, [fragment("a"), fragment("b")])
    await service.append_event(session, complete("ab"))
    for number in range(120):
        await service.append_event(session, complete(number, "cook"))
    last = (await service.get_events(KEY, newest=True, limit=1)).last
    await service.append_event(session, fragment("c"))
    for after in (last, cursor_of((await watch_all(service, KEY, after=last - 1))[0])):
        found = await watch_all(service, KEY, partial=True, after=after)
        assert brief(found) == ["c", "idle"]


async def test_only_those_who_ask_get_fragments(service: Any) -> None:
    session = await create(service)
    await service.append_event(session, fragment("a"))
    async with watching(service) as with_them, watching(service, partial=False) as without:
        await until(with_them, ["a"])
        await service.append_event(session, fragment("b"))
        await until(with_them, ["a", "b"])
        await service.append_event(session, complete("ab"))
        await until(with_them, ["a", "b", "ab"])
        await until(without, ["ab"])
        await service.append_event(session, fragment("c"))
        await service.append_event(session, complete("c"))
        await until(without, ["ab", "c"])
    items = await watch_all(service, KEY, partial=True)
    for item in items[:-1]:  # a cursor of the other kind is accepted
        assert brief(await watch_all(service, KEY, after=cursor_of(item)))[-1] == "idle"


async def test_a_watcher_joins_one_that_wants_no_fragments(service: Any) -> None:
    session = await create(service)
    async with watching(service, partial=False) as without:
        await service.append_event(session, complete(1))
        await until(without, [1])
        async with watching(service) as with_them:
            await until(with_them, [1])
            shown: list[Any] = [1]
            for number in range(2, 5):
                await service.append_event(session, fragment(str(number)))
                await until(with_them, shown := [*shown, str(number)])
                await service.append_event(session, complete(number))
                await until(with_them, shown := [*shown, number])
        assert brief(with_them) == [1, "2", 2, "3", 3, "4", 4]
        await until(without, [1, 2, 3, 4])


async def test_a_session_that_is_created_again_shows_no_old_fragments(service: Any) -> None:
    session = await create(service)
    await service.append_event(session, fragment("old"))
    [item] = await watch_first(service, KEY, 1, partial=True)
    await service.delete_session(**IDS)
    await create(service)
    assert brief(await watch_all(service, KEY, partial=True)) == ["idle"]
    after = cursor_of(item)
    assert brief(await watch_all(service, KEY, partial=True, after=after)) == ["recreated"]


async def test_fragments_of_a_removed_event_do_not_come_back(service: Any) -> None:
    session = await create(service)
    await service.append_event(session, fragment("secret"))
    await service.append_event(session, complete("secret"))
    await service.pop_event(KEY)
    await service.append_event(session, fragment("again"))
    assert brief(await watch_all(service, KEY, partial=True)) == ["again", "idle"]


async def test_after_their_ttl_there_are_no_fragments(
    make_service: ServiceFactory, advance_time: Callable[[float], None]
) -> None:
    service = make_service(stream_ttl=60)
    session = await create(service)
    await service.append_event(session, fragment("a"))
    advance_time(61)
    assert brief(await watch_all(service, KEY, partial=True)) == ["idle"]


async def test_arguments_are_checked(service: Any) -> None:
    await create(service)
    with pytest.raises(InvalidArgument, match="partial must be True or False"):
        await watch_all(service, KEY, partial=1)
    with pytest.raises(InvalidArgument, match="after must be a cursor"):
        await watch_all(service, KEY, partial=True, after="1" * 16)


async def test_watchers_who_reconnect_read_the_text_of_every_answer(service: Any) -> None:
    """Two writers stream; watchers come, go and continue at random."""
    session = await create(service)
    chance = random.Random(5)
    num_answers, authors = 4, ("bot", "cook")

    async def write(author: str) -> None:
        for number in range(num_answers):
            parts = [f"{author}{number}:{part} " for part in range(chance.randint(1, 9))]
            while parts:
                count = chance.randint(1, 3)
                await service.append_events(
                    session.key, [fragment(part, author) for part in parts[:count]]
                )
                del parts[:count]
                await asyncio.sleep(0.002)
            text = f"{author}{number}"
            await service.append_event(session.key, complete(text, author))

    async def follow() -> None:
        cursor: str | None = None
        shown: dict[str, list[str]] = {author: [] for author in authors}
        done: dict[str, list[str]] = {author: [] for author in authors}
        while any(len(texts) < num_answers for texts in done.values()):
            left = chance.randint(1, 6)
            async for item in watch(service, KEY, after=cursor, partial=True, idle_timeout=IDLE_S):
                if isinstance(item, WatchEnd):
                    break
                assert isinstance(item, WatchEntry)
                assert cursor is None or item.cursor > cursor
                cursor = item.cursor
                author = item.event.author
                if item.event.partial:
                    shown[author].append(item.event.content)
                else:
                    done[author].append(item.event.content)
                    shown[author] = []
                numbers = [int(part.partition(":")[2]) for part in shown[author]]
                assert numbers == list(range(len(numbers))), shown
                assert all(
                    part.startswith(f"{author}{len(done[author])}:") for part in shown[author]
                )
                left -= 1
                if not left:
                    break
        assert done == {a: [f"{a}{number}" for number in range(num_answers)] for a in authors}

    await asyncio.gather(*(write(author) for author in authors), *(follow() for _ in range(3)))
