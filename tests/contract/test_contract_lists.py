"""Pages of a list: full while there are more, and complete while others write."""

from __future__ import annotations

import asyncio
import copy
import pickle
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support.services import ServiceFactory, make_ops
from support.sessions import APP, OWNER, USER, create, read

from sessionstore import (
    Event,
    InMemorySessionService,
    InvalidArgument,
    SessionKey,
    SessionPage,
    SessionService,
    codec,
)
from sessionstore.keys import Keys
from sessionstore.twin import AsyncMemoryExecutor, MemoryExecutor

AdvanceTime = Callable[[float], None]


def key_of(name: str) -> SessionKey:
    return SessionKey(APP, USER, name)


def ids_of(page: list[Any]) -> list[str]:
    return [session.id for session in page]


async def create_many(service: Any, names: list[str]) -> None:
    for name in names:
        await create(service, key_of(name))


async def pages(service: Any, **options: Any) -> AsyncIterator[SessionPage]:
    """All pages of a list."""
    cursor = None
    while True:
        page = await service.list_sessions(**OWNER, after=cursor, **options)
        yield page
        cursor = page.cursor
        if cursor is None:
            return


# -- full pages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_a_page_is_full_while_live_sessions_follow_expired_ones(
    make_service: ServiceFactory, advance_time: AdvanceTime, limit: int
) -> None:
    """Two sessions that only reads keep alive stand behind 101 expired ones."""
    service = make_service(session_ttl=60)
    await create_many(service, ["oldest", "kept"])
    for number in range(101):
        await create(service, key_of(f"gone-{number}"))
    for _ in range(4):
        advance_time(30)
        await read(service, key_of("kept"))
        await read(service, key_of("oldest"))
    for offset in (0, 1):
        page = await service.list_sessions(**OWNER, limit=limit, offset=offset)
        assert ids_of(page) == ["kept", "oldest"][offset:][:limit]
        assert page.cursor is None or len(page) == limit
    assert [ids_of(page) async for page in pages(service, limit=2)] == [["kept", "oldest"]]


async def test_ten_thousand_expired_ids_hide_no_session() -> None:
    """With default options, in memory. tests/redis/test_ttl.py does the same on servers."""
    now = [1e9]
    service = InMemorySessionService(session_ttl=60, clock=lambda: now[0])
    await create(service, key_of("kept"))
    for number in range(10_050):
        now[0] += 1e-3
        await create(service, key_of(f"gone-{number}"))
    for _ in range(3):
        now[0] += 30
        await read(service, key_of("kept"))
    assert ids_of(await service.list_sessions(**OWNER)) == ["kept"]


# -- cursors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7])
async def test_pages_without_writers_have_every_session_once(service: Any, limit: int) -> None:
    names = [f"s{number}" for number in range(6)]
    await create_many(service, names)
    found = [ids_of(page) async for page in pages(service, limit=limit)]
    assert [name for page in found for name in page] == names[::-1]
    assert all(len(page) == limit for page in found[:-1])
    only = await service.list_sessions(**OWNER)
    assert (ids_of(only), only.cursor) == (names[::-1], None)
    page = await service.list_sessions(**OWNER, limit=6)
    assert page.cursor is None, "all sessions are on the page"


async def test_a_session_that_moves_to_the_top_unseen_is_found_later(service: Any) -> None:
    names = [f"s{number}" for number in range(6)]
    await create_many(service, names)
    first = await service.list_sessions(**OWNER, limit=3)
    assert ids_of(first) == ["s5", "s4", "s3"]
    await service.append_event(key_of("s0"), Event("user"))
    with_offset = await service.list_sessions(**OWNER, limit=3, offset=3)
    assert ids_of(with_offset) == ["s3", "s2", "s1"], "an offset repeats s3 and misses s0"
    second = await service.list_sessions(**OWNER, limit=3, after=first.cursor)
    assert ids_of(second) == ["s2", "s1", "s0"]
    if second.cursor:
        assert await service.list_sessions(**OWNER, limit=3, after=second.cursor) == []


async def test_only_what_moved_is_repeated(service: Any) -> None:
    names = [f"s{number}" for number in range(6)]
    await create_many(service, names)
    first = await service.list_sessions(**OWNER, limit=2)
    await service.append_event(key_of("s5"), Event("user"))  # seen
    await service.append_event(key_of("s1"), Event("user"))  # not seen
    await create(service, key_of("new"))
    found = ids_of(first)
    cursor = first.cursor
    while cursor:
        page = await service.list_sessions(**OWNER, limit=2, after=cursor)
        found += ids_of(page)
        cursor = page.cursor
    assert found == ["s5", "s4", "s3", "s2", "s0", "s5", "s1", "new"]


@pytest.mark.parametrize("seed", range(5))
async def test_no_session_is_missed_while_others_write(service: Any, seed: int) -> None:
    chance = random.Random(seed)
    names = [f"s{number}" for number in range(12)]
    await create_many(service, names)
    found: list[str] = []
    moved: list[str] = []
    num_writes = 12
    async for page in pages(service, limit=chance.randint(1, 4)):
        found += ids_of(page)
        for _ in range(min(chance.randint(0, 3), num_writes)):
            num_writes -= 1
            moved.append(chance.choice(names))
            await service.append_event(key_of(moved[-1]), Event("user"))
        if chance.random() < 0.3 and num_writes:
            await create(service, key_of(f"new-{len(found)}"))
    assert set(names) <= set(found)
    repeated = {name for name in found if found.count(name) > 1}
    assert repeated <= set(moved)


async def test_a_page_after_an_offset_goes_on_with_its_cursor(service: Any) -> None:
    names = [f"s{number}" for number in range(6)]
    await create_many(service, names)
    page = await service.list_sessions(**OWNER, limit=2, offset=1)
    await service.append_event(key_of("s0"), Event("user"))
    after = await service.list_sessions(**OWNER, limit=9, after=page.cursor)
    assert ids_of(page) + ids_of(after) == ["s4", "s3", "s2", "s1", "s0"]
    assert after.cursor is None


@pytest.mark.parametrize("limit", [1, 3, 4])
async def test_sessions_of_the_same_time_are_ordered_by_id(limit: int) -> None:
    """No two writes have the same time, so the index is given equal times here."""
    memory = MemoryExecutor()
    service = SessionService(make_ops(), AsyncMemoryExecutor(memory))
    names = ["ü:%", "b", "a", "B", "\U0001f600", "ab"]
    await create_many(service, names)
    index = Keys().session(APP, USER, "a").session_index
    for name in names:
        memory.keyspace.zadd(index, 1_000_000, name.encode())
    found = [name async for page in pages(service, limit=limit) for name in ids_of(page)]
    assert found == sorted(names, key=str.encode, reverse=True)


async def test_a_cursor_survives_its_session(service: Any) -> None:
    await create_many(service, ["a", "b:%/ü", "c"])
    page = await service.list_sessions(**OWNER, limit=2)
    assert ids_of(page) == ["c", "b:%/ü"]
    for name in ids_of(page):
        await service.delete_session(**OWNER, session_id=name)
    after = await service.list_sessions(**OWNER, limit=2, after=page.cursor)
    assert (ids_of(after), after.cursor) == (["a"], None)


async def test_expired_sessions_take_no_place_on_pages(
    make_service: ServiceFactory, advance_time: AdvanceTime
) -> None:
    service = make_service(session_ttl=60)
    await create_many(service, ["a", "gone-1", "b", "gone-2", "gone-3", "c", "d", "gone-4"])
    for _ in range(3):
        advance_time(30)
        for name in "abcd":
            await read(service, key_of(name))
    found = [ids_of(page) async for page in pages(service, limit=2)]
    assert found[:2] == [["d", "c"], ["b", "a"]]
    assert found[2:] in ([], [[]])


async def test_a_page_is_a_list(service: Any) -> None:
    await create_many(service, ["a", "b"])
    page: SessionPage = await service.list_sessions(**OWNER, limit=1)
    assert isinstance(page, list)
    assert page == [await read(service, key_of("b"))]
    assert page.cursor
    same: Any
    for same in (copy.deepcopy(page), copy.copy(page), pickle.loads(pickle.dumps(page))):
        assert (same, same.cursor) == (page, page.cursor)
    assert "cursor=" in repr(page)


async def test_a_cursor_does_not_go_with_an_offset(service: Any) -> None:
    await create_many(service, ["a", "b"])
    page = await service.list_sessions(**OWNER, limit=1)
    with pytest.raises(InvalidArgument, match="after and offset cannot be given together"):
        await service.list_sessions(**OWNER, after=page.cursor, offset=1)
    with pytest.raises(InvalidArgument, match="after must be the cursor of a page"):
        await service.list_sessions(**OWNER, after="b")


async def test_pages_read_at_once_do_not_disturb_each_other(service: Any) -> None:
    await create_many(service, [f"s{number}" for number in range(9)])

    async def read_all() -> list[str]:
        return [name async for page in pages(service, limit=2) for name in ids_of(page)]

    results = await asyncio.gather(*(read_all() for _ in range(5)))
    assert results == [results[0]] * 5


# -- shared state -------------------------------------------------------------------------------


async def test_more_sessions_than_one_call_reads_have_their_merged_state(service: Any) -> None:
    shared = {"n": 1, "list": [1, {"a": 2}], "text": "ü", "none": None}
    await service.update_app_state(APP, shared)
    await service.update_user_state(APP, USER, shared)
    names = [f"s{number:03}" for number in range(230)]
    for first in range(0, 230, 46):
        some = names[first : first + 46]
        await asyncio.gather(
            *(create(service, key_of(name), state={"name": name}) for name in some)
        )
    page = await service.list_sessions(**OWNER, limit=1000, event_num=1)
    assert sorted(ids_of(page)) == names
    expected = {f"{tier}:{name}": shared[name] for tier in ("app", "user") for name in shared}
    for session in page:
        assert session.state == {**expected, "name": session.id}
    page[0].state["app:list"][1]["a"] = page[0].state["user:list"][0] = "changed"
    page[0].state["app:n"] = "changed"
    for session in page[1:]:
        assert session.state == {**expected, "name": session.id}


async def test_state_that_sessions_share_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    service = InMemorySessionService()
    await service.update_app_state(APP, {f"k{number}": number for number in range(1000)})
    await create_many(service, [f"s{number}" for number in range(300)])
    num_decoded = 0

    def count(data: bytes, *args: Any, **kwargs: Any) -> Any:
        nonlocal num_decoded
        num_decoded += 1
        return decode(data, *args, **kwargs)

    decode = codec._decode
    monkeypatch.setattr(codec, "_decode", count)
    page = await service.list_sessions(**OWNER, limit=300)
    assert [len(session.state) for session in page] == [1000] * 300
    assert num_decoded == 1000
