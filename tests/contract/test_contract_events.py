"""Events: in order, exactly once, all or nothing, up to a limit."""

from __future__ import annotations

import base64
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from contract_support import MICROSECOND
from support.events import NOON, numbered, numbers_of
from support.services import ServiceFactory
from support.sessions import IDS, KEY, append_many, create, read

from sessionstore import (
    Event,
    InvalidArgument,
    LimitExceeded,
    Session,
    SessionKey,
    SessionNotFound,
    StaleVersion,
)

# -- what is appended is read -------------------------------------------------------------------


async def test_an_event_is_read_as_it_was_appended(service: Any) -> None:
    await create(service)
    event = Event(
        "agent",
        {"role": "assistant", "parts": [{"text": "é😀"}]},
        invocation_id="run",
        branch="root.child",
        timestamp=datetime(2024, 5, 15, 14, 0, 0, 1, tzinfo=UTC),
        state_delta={"a": 1, "user:b": [2], "app:c": None},
        state_removed=["x", "user:y", "app:z"],
        metadata={"tokens": 5},
    )
    assert await service.append_event(KEY, event) == event
    assert (await read(service)).events == [event]
    assert (await service.get_events(KEY)).events == [event]
    [listed] = await service.list_sessions(app_name="app", user_id="user", event_num=5)
    assert listed.events == [event]


async def test_nine_thousand_events_are_read_back(make_service: ServiceFactory) -> None:
    service = make_service(session_event_limit=None)
    await create(service)
    events = [Event("user", {"n": number, "text": "x" * 20}) for number in range(9000)]
    await append_many(service, KEY, events)
    assert (await read(service)).events == events
    assert (await read(service, event_num=200)).events == events[-200:]
    page = await service.get_events(KEY, limit=10_000)
    assert page.events == events


async def test_append_events_gives_back_what_is_stored_in_order(service: Any) -> None:
    await create(service)
    events = numbered(1, 2, 3)
    assert await service.append_events(KEY, events) == events
    assert numbers_of(await service.append_events(KEY, iter(numbered(4)))) == [4]
    assert numbers_of(await read(service)) == [1, 2, 3, 4]


async def test_a_batch_of_500_is_taken_and_one_of_501_is_not(service: Any) -> None:
    await create(service)
    await service.append_events(KEY, numbered(*range(500)))
    with pytest.raises(LimitExceeded) as caught:
        await service.append_events(KEY, numbered(*range(501)))
    assert (caught.value.limit, caught.value.actual) == (500, 501)
    assert numbers_of(await read(service)) == list(range(500))


async def test_the_callers_session_follows_its_own_writes(service: Any) -> None:
    session = await create(service)
    await service.append_event(session, Event("user", 1, state_delta={"a": 1}))
    await service.append_events(session, numbered(2, 3))
    stored = await read(service)
    assert session == stored
    await service.pop_event(session)
    assert session == await read(service)
    await service.clear_events(session)
    assert session == await read(service)
    await service.update_session_state(session, {"b": 2})
    await service.delete_session_state(session, "a")
    assert session == await read(service)


# -- partial events -----------------------------------------------------------------------------


async def test_partial_events_are_handed_back_and_not_stored(service: Any) -> None:
    session = await create(service)
    partial = Event("agent", "frag", partial=True, state_delta={"a": 1})
    assert await service.append_event(session, partial) is partial
    whole = Event("agent", "fragment")
    assert await service.append_events(session, [partial, whole, partial]) == [
        partial,
        whole,
        partial,
    ]
    assert session.events == [whole]
    stored = await read(service)
    assert stored.events == [whole]
    assert stored.state == {}
    assert stored.version == session.version


# -- order --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [False, True], ids=["one by one", "in a batch"])
@pytest.mark.parametrize("direction", ["equal", "backward", "future", "mixed"])
async def test_events_stay_in_the_order_of_their_append(
    service: Any, direction: str, batch: bool
) -> None:
    await create(service)
    now = datetime.now(UTC)
    offsets = {
        "equal": [timedelta(0)] * 10,
        "backward": [-timedelta(hours=number) for number in range(10)],
        "future": [timedelta(days=400 - number) for number in range(10)],
        "mixed": [timedelta(days=(-1) ** number * number) for number in range(10)],
    }[direction]
    # Contents in descending order, because the store sorts equal positions by the bytes of events.
    events = [
        Event("user", 9 - number, timestamp=now + offset) for number, offset in enumerate(offsets)
    ]
    if batch:
        await service.append_events(KEY, events)
    else:
        for event in events:
            await service.append_event(KEY, event)
    assert (await read(service)).events == events
    assert (await service.get_events(KEY)).events == events
    assert (await read(service, event_num=3)).events == events[-3:]


async def test_a_clock_ahead_does_not_hold_back_later_events(service: Any) -> None:
    """A position is never later than the store's clock, so filters by time keep working."""
    await create(service)
    far = datetime(2200, 1, 1, tzinfo=UTC)
    await service.append_event(KEY, Event("user", 1, timestamp=far))
    await service.append_event(KEY, Event("user", 2))
    later = datetime.now(UTC) + timedelta(hours=1)
    assert numbers_of(await read(service, event_time=later)) == []
    assert numbers_of(await read(service)) == [1, 2]


@pytest.mark.parametrize(
    "timestamp",
    [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, tzinfo=UTC),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ],
    ids=str,
)
async def test_any_timestamp_is_kept(service: Any, timestamp: datetime) -> None:
    await create(service)
    events = [Event("user", number, timestamp=timestamp) for number in range(3)]
    await service.append_events(KEY, events)
    assert (await read(service)).events == events
    page = await service.get_events(KEY)
    assert 0 < page.first < page.last


async def test_positions_go_on_after_events_are_removed(service: Any) -> None:
    await create(service)
    await service.append_events(KEY, numbered(1, 2, timestamp=NOON))
    before = (await service.get_events(KEY)).last
    await service.pop_event(KEY)
    await service.clear_events(KEY)
    await service.append_event(KEY, Event("user", 3, timestamp=NOON - timedelta(days=1)))
    page = await service.get_events(KEY, after=before)
    assert numbers_of(page.events) == [3]


# -- the same event again -----------------------------------------------------------------------


async def test_the_same_event_again_changes_nothing(service: Any) -> None:
    session = await create(service)
    event = Event("user", 1, state_delta={"count": 1})
    await service.append_event(session, event)
    before = await read(service)
    assert await service.append_event(session, event) == event
    assert await read(service) == before
    assert session == before


async def test_the_same_event_again_does_not_undo_a_later_delta(service: Any) -> None:
    session = await create(service)
    first = Event("user", 1, state_delta={"count": 1, "user:who": "first", "app:who": "first"})
    await service.append_event(session, first)
    second = Event(
        "user", 2, state_delta={"count": 2, "user:who": "second"}, state_removed=["app:who"]
    )
    await service.append_event(session, second)
    before = await read(service)
    await service.append_event(session, first)
    after = await read(service)
    assert after == before
    assert after.state == {"count": 2, "user:who": "second"}
    assert session == before


async def test_the_same_event_again_through_a_stale_session_brings_it_up_to_date(
    service: Any,
) -> None:
    stale = await create(service)
    event = Event("user", 1, state_delta={"count": 1})
    await service.append_event(KEY, event)
    await service.update_session_state(KEY, {"count": 5, "other": True})
    await service.append_event(stale, event)
    assert stale == await read(service)
    assert stale.state == {"count": 5, "other": True}
    assert stale.events == [event]


async def test_temp_state_of_a_repeat_reaches_the_session_again(service: Any) -> None:
    session = await create(service)
    event = Event("user", 1, state_delta={"temp:x": 1, "a": 1})
    await service.append_event(session, event)
    session.state["temp:kept"] = True
    del session.state["temp:x"]
    await service.append_event(session, event)
    assert session.state == {"temp:x": 1, "temp:kept": True, "a": 1}
    assert (await read(service)).state == {"a": 1}


async def test_an_event_read_back_and_appended_is_a_repeat(service: Any) -> None:
    await create(service)
    await service.append_event(
        KEY,
        Event("user", {"b": 1, "a": [1.5, None]}, state_delta={"x": 1, "temp:y": 2}),
    )
    before = await read(service)
    await service.append_events(KEY, before.events)
    assert await read(service) == before


async def test_a_batch_that_is_stored_in_part_is_completed(service: Any) -> None:
    await create(service)
    events = [Event("user", number, state_delta={f"key-{number}": 1}) for number in range(4)]
    await service.append_events(KEY, events[:2])
    between = Event("user", "between", state_delta={"key-0": 2})
    await service.append_event(KEY, between)
    assert await service.append_events(KEY, events) == events
    stored = await read(service)
    assert stored.events == [*events[:2], between, *events[2:]]
    assert stored.state == {"key-0": 2, "key-1": 1, "key-2": 1, "key-3": 1}


async def test_a_repeat_puts_the_session_in_order(service: Any) -> None:
    """Its events get the order of the log, whatever events it had before."""
    session = await create(service)
    events = numbered(0, 1, 2, 3)
    await service.append_events(session, events[:1])
    await service.append_events(KEY, events[1:3])
    await service.append_events(session, events[3:])
    await service.append_events(session, events)
    assert numbers_of(session) == [0, 1, 2, 3]
    assert session == await read(service)


async def test_the_same_event_twice_in_a_batch_is_stored_once(service: Any) -> None:
    session = await create(service)
    event = Event("user", 1, state_delta={"a": 1})
    await service.append_events(session, [event, event, *numbered(2), event])
    assert numbers_of(await read(service)) == [1, 2]
    assert session == await read(service)


async def test_two_events_with_equal_content_are_two(service: Any) -> None:
    await create(service)
    for _ in range(2):
        await service.append_event(KEY, Event("user", "same", timestamp=NOON))
    assert numbers_of(await read(service)) == ["same", "same"]


async def test_an_event_of_one_session_is_no_repeat_in_another(service: Any) -> None:
    other = SessionKey("app", "user", "other")
    event = Event("user", 1, state_delta={"a": 1})
    for key in (KEY, other):
        await create(service, key)
        await service.append_event(key, event)
        assert (await read(service, key)).events == [event]
        assert (await read(service, key)).state == {"a": 1}


# -- all or nothing -----------------------------------------------------------------------------

BAD_EVENTS = [
    Event("user", {1, 2}),
    Event("user", state_delta={"a": float("nan")}),
    Event("user", state_delta={"app:": 1}),
    Event("", "x"),
    Event("user", "x" * (8 << 20)),
    "not an event",
]


@pytest.mark.parametrize("bad", BAD_EVENTS, ids=range(len(BAD_EVENTS)))
async def test_one_bad_event_in_a_batch_and_nothing_is_written(service: Any, bad: Any) -> None:
    session = await create(service, state={"a": 0})
    before = await read(service)
    good = [Event("user", n, state_delta={"a": n, "user:b": n, "app:c": n}) for n in (1, 2)]
    with pytest.raises(InvalidArgument, match=r"^events\[1\]"):
        await service.append_events(session, [good[0], bad, good[1]])
    assert await read(service) == before == session
    assert await service.get_app_state("app") == {}
    assert await service.get_user_state("app", "user") == {}


async def test_a_stale_batch_writes_nothing(service: Any) -> None:
    session = await create(service)
    await service.append_event(KEY, Event("user", 0))
    before = await read(service)
    events = [Event("user", n, state_delta={"user:a": n, "app:a": n}) for n in (1, 2)]
    with pytest.raises(StaleVersion):
        await service.append_events(session, events, if_version=1)
    assert await read(service) == before
    assert await service.get_app_state("app") == {}


# -- the limit on events ------------------------------------------------------------------------


async def test_the_limit_is_enforced_in_the_store(make_service: ServiceFactory) -> None:
    service = make_service(session_event_limit=20)
    session = await create(service, state={"start": True})
    for number in range(200):
        event = Event("user", number, state_delta={"last": number, f"key-{number % 50}": number})
        await service.append_event(session, event)
    stored = await read(service)
    assert numbers_of(stored) == list(range(180, 200))
    assert stored.state == {
        "start": True,
        "last": 199,
        **{f"key-{number}": 150 + number for number in range(50)},
    }
    assert numbers_of((await service.get_events(KEY, limit=10_000)).events) == numbers_of(stored)
    assert session == stored


async def test_the_limit_holds_after_every_append(make_service: ServiceFactory) -> None:
    service = make_service(session_event_limit=3)
    session = await create(service)
    for number in range(6):
        await service.append_event(session, Event("user", number))
        expected = list(range(max(0, number - 2), number + 1))
        assert numbers_of(await read(service)) == expected
        assert numbers_of(session) == expected


async def test_a_limit_of_one(make_service: ServiceFactory) -> None:
    service = make_service(session_event_limit=1)
    session = await create(service)
    for number in range(3):
        await service.append_event(session, Event("user", number, state_delta={"n": number}))
        assert session == await read(service)
    await service.append_events(session, numbered(3, 4, 5))
    assert numbers_of(await read(service)) == [5]
    assert session == await read(service)
    assert (await service.pop_event(session)).content == 5
    assert await service.pop_event(session) is None
    assert (await read(service)).state == {"n": 2}


@pytest.mark.parametrize("limit", [1, 3, 7, 10])
async def test_a_batch_beyond_the_limit_keeps_its_end_and_all_its_state(
    make_service: ServiceFactory, limit: int
) -> None:
    service = make_service(session_event_limit=limit)
    session = await create(service)
    await service.append_events(session, numbered(-2, -1))
    events = [Event("user", n, state_delta={f"key-{n}": n, "last": n}) for n in range(10)]
    await service.append_events(session, events)
    stored = await read(service)
    assert stored.events == events[-limit:]
    assert stored.state == {"last": 9, **{f"key-{n}": n for n in range(10)}}
    assert session == stored


async def test_a_new_event_before_the_oldest_one_is_stored(make_service: ServiceFactory) -> None:
    service = make_service(session_event_limit=3)
    session = await create(service)
    old = numbered(1, 2, 3)
    await service.append_events(session, old)
    new = Event("user", "new", state_delta={"n": 1})
    await service.append_events(session, [new, old[0]])
    stored = await read(service)
    assert "new" in numbers_of(stored)
    assert stored.state == {"n": 1}
    assert stored == session


async def test_lowering_the_limit_trims_at_the_next_append(
    backend: tuple[str, Any], make_service: ServiceFactory
) -> None:
    if backend[1] is None:
        pytest.skip("services in memory share nothing")
    service = make_service(session_event_limit=None)
    await create(service)
    await service.append_events(KEY, numbered(*range(10)))
    lower = make_service(session_event_limit=4)
    assert numbers_of(await read(lower)) == list(range(10))
    await lower.append_event(KEY, Event("user", 10))
    assert numbers_of(await read(lower)) == [7, 8, 9, 10]


# -- pop and clear ------------------------------------------------------------------------------


async def test_pop_gives_the_newest_until_there_is_none(service: Any) -> None:
    session = await create(service, state={"a": 1})
    events = numbered(1, 2, 3)
    await service.append_events(session, events)
    for event in reversed(events):
        assert await service.pop_event(session) == event
        assert session == await read(service)
    version = session.version
    for _ in range(2):
        assert await service.pop_event(session) is None
    stored = await read(service)
    assert (stored.events, stored.state, stored.version) == ([], {"a": 1}, version)


async def test_pop_leaves_the_state_of_the_event(service: Any) -> None:
    await create(service)
    await service.append_event(KEY, Event("user", 1, state_delta={"a": 1}))
    await service.pop_event(KEY)
    assert (await read(service)).state == {"a": 1}


async def test_a_popped_event_can_be_appended_again(service: Any) -> None:
    await create(service)
    event = Event("user", 1, state_delta={"a": 1})
    await service.append_event(KEY, event)
    await service.pop_event(KEY)
    await service.append_event(KEY, event)
    assert (await read(service)).events == [event]


async def test_pop_follows_the_order_of_the_append_and_not_of_time(service: Any) -> None:
    await create(service)
    await service.append_event(KEY, Event("user", "new", timestamp=NOON))
    await service.append_event(KEY, Event("user", "old", timestamp=NOON - timedelta(days=1)))
    assert (await service.pop_event(KEY)).content == "old"
    assert (await service.pop_event(KEY)).content == "new"


async def test_clear_removes_all_events_and_no_state(service: Any) -> None:
    session = await create(service, state={"a": 1, "user:b": 2})
    await service.append_events(session, numbered(*range(100)))
    await service.clear_events(session)
    stored = await read(service)
    assert (stored.events, stored.state) == ([], {"a": 1, "user:b": 2})
    assert session == stored
    assert (await service.get_events(KEY)).events == []
    await service.clear_events(session)
    await service.append_event(session, Event("user", "next"))
    assert numbers_of(await read(service)) == ["next"]


# -- sizes --------------------------------------------------------------------------------------


async def test_what_is_too_large_is_refused_with_limit_and_size(
    make_service: ServiceFactory,
) -> None:
    service = make_service(event_size_limit=1000, value_size_limit=100)
    session = await create(service)
    with pytest.raises(LimitExceeded, match=r"^event\b") as caught:
        await service.append_event(session, Event("user", "x" * 1000))
    assert caught.value.limit == 1000 < caught.value.actual < 1300
    large = {"a": "x" * 99}
    attempts: list[Callable[[], Awaitable[Any]]] = [
        lambda: service.append_event(session, Event("user", state_delta=large)),
        lambda: service.update_session_state(session, large),
        lambda: service.update_user_state("app", "user", large),
        lambda: service.update_app_state("app", large),
        lambda: service.create_session(app_name="a", user_id="u", state=large),
    ]
    for attempt in attempts:
        with pytest.raises(LimitExceeded, match=r"state.*'a'") as caught:
            await attempt()
        assert (caught.value.limit, caught.value.actual) == (100, 101)
    await service.update_session_state(session, {"a": "x" * 98})
    assert (await read(service)).state == {"a": "x" * 98}


async def test_an_image_fits_in_an_event_and_in_a_value(service: Any) -> None:
    image = base64.b64encode(os.urandom(900_000)).decode()
    session = await create(service, state={"image": image})
    event = Event("user", {"type": "image", "data": image}, state_delta={"user:image": image})
    await service.append_event(session, event)
    stored = await read(service)
    assert stored.events == [event]
    assert stored.state == {"image": image, "user:image": image}


async def test_a_session_key_serves_wherever_a_session_does(service: Any) -> None:
    session = await create(service)
    for target in (KEY, session, session.key):
        await service.append_event(target, Event("user", 1))
        await service.append_events(target, numbered(2))
        await service.update_session_state(target, {"a": 1})
        await service.delete_session_state(target, "a")
        assert numbers_of((await service.get_events(target)).events) == [1, 2]
        assert (await service.pop_event(target)).content == 2
        await service.clear_events(target)
        assert numbers_of(await read(service)) == []


async def test_every_write_to_a_missing_session_raises_session_not_found(service: Any) -> None:
    gone = await create(service)
    await service.delete_session(**IDS)
    event = Event("user", state_delta={"user:a": 1, "app:b": 2})
    attempts: list[Callable[[Any], Awaitable[Any]]] = [
        lambda target: service.append_event(target, Event("user")),
        lambda target: service.append_event(target, event),
        lambda target: service.append_event(target, event, if_version=1),
        lambda target: service.append_events(target, [event, *numbered(1)]),
        lambda target: service.pop_event(target),
        lambda target: service.pop_event(target, if_version=1),
        lambda target: service.clear_events(target),
        lambda target: service.update_session_state(target, {"app:a": 1}),
        lambda target: service.update_session_state(target, {}, if_version=1),
        lambda target: service.delete_session_state(target, "a"),
        lambda target: service.get_events(target),
    ]
    for target in (SessionKey("app", "user", "never"), gone):
        for attempt in attempts:
            with pytest.raises(SessionNotFound, match=target.key.session_id):
                await attempt(target)
    assert await service.get_session(**IDS) is None
    assert await service.get_user_state("app", "user") == {}
    assert await service.get_app_state("app") == {}
    assert await service.list_sessions(app_name="app", user_id="user") == []


# -- history ------------------------------------------------------------------------------------


async def test_imported_history_is_found_by_its_own_time(service: Any) -> None:
    await create(service)
    times = [datetime(2020, month, 1, tzinfo=UTC) for month in range(1, 13)]
    history = [Event("user", time.month, timestamp=time) for time in times]
    await service.append_events(KEY, history)
    await service.append_event(KEY, Event("user", "today"))
    july = times[6]
    assert numbers_of(await read(service, event_time=july)) == [7, 8, 9, 10, 11, 12, "today"]
    assert numbers_of(await read(service, event_time=july, event_num=2)) == [12, "today"]
    assert numbers_of(await read(service, event_time=times[0])) == [*range(1, 13), "today"]
    page = await service.get_events(KEY, limit=1)
    assert page.first == page.last == int(times[0].timestamp()) * 1_000_000


async def test_a_filter_by_time_is_inclusive_to_the_microsecond(service: Any) -> None:
    await create(service)
    events = [Event("user", n, timestamp=NOON + n * MICROSECOND) for n in range(5)]
    await service.append_events(KEY, events)
    for number in range(5):
        since = NOON + number * MICROSECOND
        found = await read(service, event_time=since)
        assert numbers_of(found) == list(range(number, 5))
    assert numbers_of(await read(service, event_time=NOON + 5 * MICROSECOND)) == []
    elsewhere = NOON.astimezone(tz=None) + 2 * MICROSECOND
    assert numbers_of(await read(service, event_time=elsewhere)) == [2, 3, 4]


async def test_a_filter_by_time_combines_with_one_by_number(service: Any) -> None:
    await create(service)
    events = [Event("user", n, timestamp=NOON + n * MICROSECOND) for n in range(6)]
    await service.append_events(KEY, events)
    since = NOON + 2 * MICROSECOND
    for event_num, expected in (
        (None, [2, 3, 4, 5]),
        (0, []),
        (1, [5]),
        (3, [3, 4, 5]),
        (4, [2, 3, 4, 5]),
        (9, [2, 3, 4, 5]),
    ):
        filters: dict[str, Any] = {"event_time": since, "event_num": event_num}
        assert numbers_of(await read(service, **filters)) == expected
        found = await service.get_or_create_session(**IDS, **filters)
        assert numbers_of(found) == expected


@pytest.mark.parametrize(
    "event_time", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)], ids=str
)
async def test_a_filter_by_any_time_works(service: Any, event_time: datetime) -> None:
    await create(service)
    await service.append_events(KEY, numbered(1, 2))
    expected = [1, 2] if event_time.year == 1 else []
    assert numbers_of(await read(service, event_time=event_time)) == expected


async def test_reading_some_events_reads_all_of_the_state(service: Any) -> None:
    await create(service)
    await service.append_event(KEY, Event("user", 1, state_delta={"a": 1}))
    for event_num in (0, 1, 5, None):
        found: Session = await read(service, event_num=event_num)
        assert found.state == {"a": 1}
        assert len(found.events) == (0 if event_num == 0 else 1)
