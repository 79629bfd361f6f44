"""Sessions whose keys a server has evicted, or whose header is damaged."""

from __future__ import annotations

from typing import Any

import pytest
from support.events import numbered, numbers_of
from support.servers import Server
from support.services import make_service
from support.sessions import IDS, KEY, OWNER, create, read

from benchmarks.chaos import eviction
from sessionstore import (
    CorruptData,
    Event,
    EventsMissing,
    InvalidArgument,
    Session,
    SessionKey,
    SessionNotFound,
    Window,
)

EACH_EVENT = Window(starts_turn=lambda _: True)
SESSION, EVENTS = "session:{app:user}:sid", "events:{app:user}:sid"


@pytest.fixture
async def service(server: Server) -> Any:
    found = make_service("async", server.url)
    yield found
    await found.aclose()


READS: dict[str, Any] = {
    "get_session": lambda service: service.get_session(**IDS),
    "get_session event_num=0": lambda service: service.get_session(**IDS, event_num=0),
    "get_session event_num": lambda service: service.get_session(**IDS, event_num=1),
    "get_or_create_session": lambda service: service.get_or_create_session(**IDS),
    "get_events": lambda service: service.get_events(KEY),
    "list_sessions": lambda service: service.list_sessions(**OWNER, event_num=5),
    "pop_event": lambda service: service.pop_event(KEY),
}


@pytest.mark.parametrize("name", [name for name in READS if name != "get_session event_num=0"])
async def test_no_read_returns_fewer_events_than_there_were(
    server: Server, service: Any, name: str
) -> None:
    session = await create(service)
    await service.append_events(session, numbered(1, 2, 3))
    server.raw.delete(EVENTS)
    with pytest.raises(EventsMissing, match="0 of 3 events") as caught:
        await READS[name](service)
    assert (caught.value.expected, caught.value.actual, caught.value.key) == (3, 0, EVENTS)
    assert (await service.get_session(**IDS, event_num=0)).events == []
    assert [each.id for each in await service.list_sessions(**OWNER)] == ["sid"]
    repaired = await service.repair_session(KEY)
    assert repaired.events == []
    assert repaired.created_at == session.created_at
    await READS[name](service)


async def test_appends_go_on_and_the_events_stay_missing_until_the_limit_is_reached(
    server: Server,
) -> None:
    service = make_service("async", server.url, session_event_limit=5)
    session = await create(service)
    await service.append_events(session, numbered(1, 2, 3, 4))
    server.raw.delete(EVENTS)
    await service.append_event(KEY, Event("user", 5))
    assert server.raw.pexpiretime(EVENTS) == server.raw.pexpiretime(SESSION) > 0
    for number in (6, 7, 8):
        with pytest.raises(EventsMissing) as caught:
            await service.get_session(**IDS)
        assert (caught.value.expected, caught.value.actual) == (5, number - 5)
        await service.append_events(KEY, numbered(number))
    await service.append_event(KEY, Event("user", 9))
    # The limit would have removed the lost ones by now.
    assert numbers_of(await read(service)) == [5, 6, 7, 8, 9]
    await service.aclose()


async def compacted(service: Any, count: int, num_covered: int) -> Session:
    """A session with events, of which a summary covers some."""
    session = await create(service)
    await service.append_events(session, numbered(*range(count)))
    positions = (await service.get_events(KEY)).positions
    await service.compact_session(
        session, upto=positions[num_covered - 1], summary="s", window=EACH_EVENT
    )
    return session


async def test_events_that_are_missing_may_be_those_after_the_summary(
    server: Server, service: Any
) -> None:
    await compacted(service, 6, 4)
    server.raw.delete(EVENTS)
    for name, call in READS.items():
        if name != "get_session event_num=0":
            with pytest.raises(EventsMissing, match="0 of 6 events"):
                await call(service)
    await service.append_event(KEY, Event("user", "new"))
    upto = (await service.get_session(**IDS, event_num=0)).summary.upto
    with pytest.raises(EventsMissing, match="1 of 7 events"):
        await service.compact_session(KEY, upto=upto, summary="t", if_summary=upto)
    repaired = await service.repair_session(KEY)
    assert numbers_of(repaired) == ["new"]
    assert (repaired.summary.content, repaired.summary.num_events) == ("s", 0)
    with pytest.raises(InvalidArgument, match="to must be at least"):
        await service.rewind_session(KEY, to=0)


@pytest.mark.parametrize("size", [1, 2])
async def test_lost_events_that_a_summary_covers_leave_the_log_first(
    server: Server, size: int
) -> None:
    service = make_service("async", server.url, session_event_limit=6)
    await compacted(service, 6, 4)
    server.raw.delete(EVENTS)
    for number in range(0, 6, size):
        await service.append_events(KEY, numbered(*range(number, number + size)))
        found = await service.get_session(**IDS, event_num=0)
        assert found.summary.num_events == max(4 - number - size, 0)
        assert server.raw.hget(SESSION, "count") == b"6"
    assert numbers_of(await read(service)) == list(range(6))
    await service.aclose()


FIELDS = ("compacted_us", "covered", "summary_events", "summary_us", "summary")


@pytest.mark.parametrize("field", FIELDS)
async def test_a_damaged_summary_is_an_error_until_it_is_repaired(
    server: Server, service: Any, field: str
) -> None:
    for damage in ("lost", "x"):
        await compacted(service, 6, 4)
        server.raw.hset(SESSION, field, "x") if damage == "x" else server.raw.hdel(SESSION, field)
        if field == "summary_events":
            assert numbers_of(await read(service)) == [4, 5]
        else:
            with pytest.raises(CorruptData, match=r"session:\{app:user\}:sid"):
                await read(service)
        is_number = field != "summary"
        calls = [service.rewind_session(KEY, to=2**52), service.pop_event(KEY)] if is_number else []
        for call in calls:
            with pytest.raises(CorruptData, match=field):
                await call
        if (damage, field) == ("x", "summary"):
            await service.clear_events(KEY)
        elif field == "covered":
            assert numbers_of(await service.repair_session(KEY)) == [4, 5]
        else:
            repaired = await service.repair_session(KEY)
            assert (numbers_of(repaired), repaired.summary) == (list(range(6)), None)
        await service.append_event(KEY, Event("user", 6))
        await read(service)
        await service.delete_session(**IDS)


async def test_an_append_does_not_go_on_with_a_damaged_summary(
    server: Server, service: Any
) -> None:
    for value in ("x", "", "nan", "1" * 30, None):
        await compacted(service, 6, 4)
        if value is None:
            server.raw.hdel(SESSION, "covered")
        else:
            server.raw.hset(SESSION, "covered", value)
        for call in (
            service.append_event(KEY, Event("user", 1)),
            service.append_events(KEY, numbered(1, 2)),
        ):
            with pytest.raises(CorruptData):
                await call
        assert server.raw.zcard(EVENTS) == 6
        await service.repair_session(KEY)
        await service.append_event(KEY, Event("user", 6))
        assert numbers_of(await read(service)) == [4, 5, 6]
        await service.delete_session(**IDS)


async def test_a_lost_header_is_an_error_until_the_session_is_repaired_or_created(
    server: Server, service: Any
) -> None:
    old = await create(service, state={"n": 1})
    await service.append_events(old, numbered(1, 2))
    server.raw.delete(SESSION)
    names = ("get_session", "get_session event_num=0", "get_or_create_session", "get_events")
    for name in names:
        with pytest.raises(CorruptData, match="repair_session") as caught:
            await READS[name](service)
        assert caught.value.key.startswith(SESSION)
    assert numbers_of(await service.repair_session(KEY)) == [1, 2]
    repaired = await read(service)
    assert repaired.state == {}
    assert repaired.created_at > old.created_at
    assert server.raw.pexpiretime(EVENTS) == server.raw.pexpiretime(SESSION) > 0
    await service.append_event(repaired, Event("user", 3))
    assert numbers_of(await read(service)) == [1, 2, 3]
    with pytest.raises(SessionNotFound):
        await service.append_event(old, Event("user", 4))

    server.raw.delete(SESSION)
    new = await create(service)
    assert await read(service) == new
    assert new.events == []


async def test_a_list_leaves_out_a_session_whose_header_is_lost(
    server: Server, service: Any
) -> None:
    for name in ("a", "b", "c"):
        await create(service, SessionKey("app", "user", name))
        await service.append_events(SessionKey("app", "user", name), numbered(1))
    server.raw.delete("session:{app:user}:b")
    for event_num in (0, 2):
        listed = await service.list_sessions(**OWNER, event_num=event_num)
        assert [each.id for each in listed] == ["c", "a"]
    await service.repair_session(SessionKey("app", "user", "b"))
    assert [each.id for each in await service.list_sessions(**OWNER)] == ["b", "c", "a"]


async def test_a_list_counts_the_events_of_sessions_whose_header_does_not(
    server: Server, service: Any
) -> None:
    """Release 0.1.0 stored no count."""
    for number in range(5):
        key = SessionKey("app", "user", f"s{number}")
        await create(service, key)
        await service.append_events(key, numbered(*range(number)))
        if number % 2:
            server.raw.hdel(f"session:{{app:user}}:s{number}", "count", "event_limit")
    for event_num in (0, 2):
        listed = await service.list_sessions(**OWNER, event_num=event_num)
        assert [each.event_count for each in listed] == [4, 3, 2, 1, 0]


async def test_what_is_gone_as_a_whole_cannot_be_repaired(service: Any) -> None:
    with pytest.raises(SessionNotFound):
        await service.repair_session(KEY)


@pytest.mark.parametrize("field", ["version", "last_us", "deadline_ms", "count", "event_limit"])
@pytest.mark.parametrize("value", [b"x", b"", b"nan", b"inf", b"1" * 40])
async def test_a_damaged_header_is_named_and_nothing_is_written(
    server: Server, service: Any, field: str, value: bytes
) -> None:
    session = await create(service)
    await service.append_events(session, numbered(1, 2))
    server.raw.hset(SESSION, field, value)
    before = server.snapshot()
    writes: list[Any] = [
        lambda: service.append_event(KEY, Event("user", state_delta={"n": 1, "user:n": 1})),
        lambda: service.append_events(KEY, [Event("user", state_delta={"n": 1, "app:n": 1})]),
        lambda: service.pop_event(KEY),
        lambda: service.clear_events(KEY),
        lambda: service.update_session_state(KEY, {"n": 1}),
        lambda: service.acquire_turn(KEY),
        lambda: service.get_or_create_session(**IDS),
    ]
    for write in writes:
        with pytest.raises(CorruptData) as caught:
            await write()
        # append_event has no time to find the field.
        assert caught.value.key in (SESSION, f"{SESSION} field {field}")
        assert server.snapshot() == before
    assert numbers_of(await service.repair_session(KEY)) == [1, 2]
    for write in writes:
        await write()


@pytest.mark.parametrize("policy", eviction.POLICIES)
async def test_eviction_is_never_silent(server: Server, policy: str) -> None:
    """`python -m benchmarks.chaos.eviction` does the same for longer."""
    outcome = await eviction.run(server.url, server.raw, policy, seed=7, steps=800)
    assert (outcome.shortened, outcome.without_deadline) == (0, 0)
    assert min(outcome.evicted, outcome.refused.total()) > 10
    assert outcome.whole > 100
    assert len(outcome.calls) == 7, "an operation never succeeded"
