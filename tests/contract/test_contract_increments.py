"""Increments add up in the store, exactly once in an event; `if_absent` sets only missing keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.services import ServiceFactory
from support.sessions import APP, IDS, KEY, OWNER, USER, create, read

from sessionstore import (
    BackendRejected,
    Event,
    InvalidArgument,
    SessionNotFound,
    StaleVersion,
)

MOST = 2**53 - 1

Attempt = Callable[[], Awaitable[Any]]


def counting(amount: int = 1, **fields: Any) -> Event:
    return Event("agent", state_increments={"turns": amount, "user:tokens": 10 * amount}, **fields)


# -- in an event --------------------------------------------------------------------------------


async def test_an_event_adds_to_each_tier(service: Any, app_in_own_slot: bool) -> None:
    session = await service.create_session(**IDS, state={"turns": 5, "other": "x"})
    increments = {"turns": 1, "user:tokens": -812} | ({} if app_in_own_slot else {"app:calls": 3})
    event = Event("agent", state_delta={"k": 1}, state_increments=increments)
    stored = await service.append_event(session, event)
    assert stored == event
    expected = {"turns": 6, "user:tokens": -812, "other": "x", "k": 1}
    expected |= {} if app_in_own_slot else {"app:calls": 3}
    assert session.state == expected
    assert await read(service) == session
    assert session.events[0].state_increments == increments


async def test_the_same_event_again_adds_nothing(service: Any) -> None:
    session = await create(service)
    event = counting()
    await service.append_event(session, event)
    await service.append_event(session, event)
    await service.append_events(session, [event, counting(), event])
    assert (await read(service)).state == {"turns": 2, "user:tokens": 20} == session.state


async def test_a_repeat_is_accepted_even_if_the_increment_would_be_refused_now(
    service: Any,
) -> None:
    session = await create(service)
    event = counting()
    await service.append_event(session, event)
    await service.update_session_state(KEY, {"turns": "many"})
    await service.append_event(session, event)
    await service.append_events(session, [event])
    assert session.state["turns"] == "many"
    assert len((await read(service)).events) == 1


async def test_events_of_a_batch_add_and_set_in_order(service: Any) -> None:
    session = await create(service, state={"a": 1, "b": 1, "c": 1, "d": 1})
    events = [
        Event("x", state_increments={"a": 1, "b": 1, "c": 1, "user:n": 5}, state_removed=["d"]),
        Event("x", state_delta={"a": 10, "temp:t": 1}, state_removed=["b"]),
        Event("x"),
        Event("x", state_increments={"a": 1, "b": 7, "d": 3, "user:n": -1}),
        Event("x", state_removed=["c"]),
    ]
    await service.append_events(session, events)
    assert session.state == {"a": 11, "b": 7, "d": 3, "user:n": 4, "temp:t": 1}
    assert (await read(service)).state == {"a": 11, "b": 7, "d": 3, "user:n": 4}


async def test_only_new_events_of_a_batch_add(service: Any) -> None:
    session = await create(service)
    first, second = counting(), counting(100)
    await service.append_event(session, first)
    await service.append_events(session, [first, second, second, first])
    assert session.state == {"turns": 101, "user:tokens": 1010}
    assert await read(service) == session


async def test_fifty_tasks_add_up(service: Any) -> None:
    await create(service)

    async def run(number: int) -> None:
        if number % 3 == 0:
            await service.append_event(KEY, counting())
        elif number % 3 == 1:
            await service.append_events(KEY, [counting()])
        else:
            await service.increment_session_state(KEY, {"turns": 1, "user:tokens": 10})

    await asyncio.gather(*map(run, range(50)))
    assert (await read(service)).state == {"turns": 50, "user:tokens": 500}


async def test_appends_with_a_condition_add(service: Any) -> None:
    session = await create(service)
    await service.append_event(session, counting(), if_version=session.version)
    turn = await service.acquire_turn(session)
    await service.append_event(session, counting(), turn=turn)
    with pytest.raises(StaleVersion):
        await service.append_event(session, counting(), if_version=1)
    assert (await read(service)).state == {"turns": 2, "user:tokens": 20}


# -- without an event ---------------------------------------------------------------------------


async def test_increment_session_state_returns_the_new_values(
    service: Any, app_in_own_slot: bool
) -> None:
    session = await service.create_session(**IDS, state={"turns": 5, "temp:t": 1})
    increments = {"user:tokens": 7, "turns": -6} | ({} if app_in_own_slot else {"app:calls": 1})
    found = await service.increment_session_state(session, increments)
    assert found == {**increments, "turns": -1}
    assert list(found) == list(increments)
    assert session.state == {**found, "temp:t": 1}
    stored = await read(service)
    assert stored.state == found
    assert (stored.version, stored.updated_at) == (session.version, session.updated_at)
    assert await service.increment_session_state(KEY, {"turns": 1}) == {"turns": 0}
    assert await service.increment_session_state(KEY, {}) == {}


async def test_increments_of_the_tiers_themselves(service: Any) -> None:
    await create(service)
    assert await service.increment_user_state(APP, USER, {"n": 2}) == {"n": 2}
    found = await service.increment_user_state(APP, USER, {"user:n": 3, "m": -1})
    assert found == {"user:n": 5, "m": -1}
    assert await service.increment_app_state(APP, {"app:n": 1, "x": 0}) == {"app:n": 1, "x": 0}
    assert await service.increment_app_state(APP, {"n": 1}) == {"n": 2}
    assert await service.get_user_state(APP, USER) == {"n": 5, "m": -1}
    assert await service.get_app_state(APP) == {"n": 2, "x": 0}
    assert await service.increment_user_state(APP, USER, {}) == {}
    assert await service.increment_app_state(APP, {}) == {}


async def test_increments_need_a_session(service: Any) -> None:
    with pytest.raises(SessionNotFound):
        await service.increment_session_state(KEY, {"turns": 1})
    with pytest.raises(SessionNotFound):
        await service.append_event(KEY, counting())
    assert await service.get_user_state(APP, USER) == {}


async def test_many_increments_at_once(service: Any) -> None:
    session = await create(service)
    increments = {f"key-{number}": number for number in range(5000)}
    assert await service.increment_session_state(session, increments) == increments
    doubled = {key: 2 * value for key, value in increments.items()}
    await service.append_event(session, Event("x", state_increments=increments))
    assert session.state == doubled == (await read(service)).state


async def test_integers_of_every_codec_can_be_incremented(make_service: ServiceFactory) -> None:
    service = make_service(codec="msgpack")
    session = await create(service, state={"turns": 5})
    await service.append_event(session, counting())
    assert await service.increment_session_state(session, {"turns": 1}) == {"turns": 7}
    assert (await read(service)).state == {"turns": 7, "user:tokens": 10} == session.state


@pytest.mark.parametrize("start", [MOST - 1, 1 - MOST, 0])
async def test_sums_are_exact_up_to_the_limit(service: Any, start: int) -> None:
    sign = -1 if start < 0 else 1
    session = await create(service, state={"n": start})
    step = MOST - abs(start)
    assert await service.increment_session_state(session, {"n": sign * step}) == {"n": sign * MOST}
    with pytest.raises(BackendRejected, match=r"\.n.*2\*\*53"):
        await service.increment_session_state(session, {"n": sign})
    assert await service.increment_session_state(session, {"n": -sign}) == {"n": sign * (MOST - 1)}


# -- refused by the store -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["5", "x", 1.5, 5.0, True, None, [], {}, b"5", 2**53, -(2**53), 2**60 + 1]
)
@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_what_is_not_an_integer_is_refused_and_nothing_is_written(
    make_service: ServiceFactory, value: Any, codec: str
) -> None:
    service = make_service(codec=codec)
    session = await create(service, state={"good": 1, "user:bad": value})
    before = await read(service)
    increments = {"good": 1, "user:bad": 1, "user:new": 1}
    attempts: list[Attempt] = [
        lambda: service.increment_session_state(session, increments),
        lambda: service.append_event(session, Event("x", state_increments=increments)),
        lambda: service.append_events(
            session, [counting(), Event("x", state_increments=increments), Event("y")]
        ),
        lambda: service.increment_user_state(APP, USER, {"new": 1, "bad": 1}),
    ]
    for attempt in attempts:
        with pytest.raises(BackendRejected, match=r"userdata:.* field bad .*nothing was written"):
            await attempt()
        assert await read(service) == before == session


async def test_a_refusal_is_no_unknown_outcome_and_shows_no_value(service: Any) -> None:
    session = await create(service, state={"name": "secret"})
    with pytest.raises(BackendRejected) as caught:
        await service.increment_session_state(session, {"name": 1})
    assert not caught.value.maybe_applied
    assert "secret" not in str(caught.value)


# -- refused before anything is sent ------------------------------------------------------------


@pytest.mark.parametrize(
    "increments",
    [
        {"a": "1"},
        {"a": 1.0},
        {"a": True},
        {"a": None},
        {"a": 2**53},
        {"a": -(2**53)},
        {"": 1},
        {"user:": 1},
        {"temp:a": 1},
        {5: 1},
        {"\ud800": 1},
        {"x" * 1025: 1},
        {str(number): 1 for number in range(10_001)},
        ["a"],
        None,
        5,
    ],
    ids=lambda value: repr(value)[:20],
)
async def test_increments_that_are_not_valid(service: Any, increments: Any) -> None:
    await create(service)
    with pytest.raises(InvalidArgument, match="increments"):
        await service.increment_session_state(KEY, increments)
    with pytest.raises(InvalidArgument, match=r"^event\.state_increments"):
        await service.append_event(KEY, Event("x", state_increments=increments))
    with pytest.raises(InvalidArgument, match="increments"):
        await service.increment_user_state(APP, USER, increments)
    with pytest.raises(InvalidArgument, match="increments"):
        await service.increment_app_state(APP, increments)
    assert (await read(service)).events == []


async def test_a_key_is_changed_in_one_way(service: Any) -> None:
    await create(service)
    for fields in (
        {"state_delta": {"user:a": 1}, "state_increments": {"user:a": 1}},
        {"state_removed": ["a"], "state_increments": {"a": 1}},
    ):
        with pytest.raises(InvalidArgument, match=r"state_increments and .* both name"):
            await service.append_event(KEY, Event("x", **fields))
    with pytest.raises(InvalidArgument, match="twice"):
        await service.increment_user_state(APP, USER, {"a": 1, "user:a": 1})
    with pytest.raises(InvalidArgument, match="tier"):
        await service.increment_user_state(APP, USER, {"app:a": 1})
    with pytest.raises(InvalidArgument, match="tier"):
        await service.increment_app_state(APP, {"user:a": 1})


async def test_app_increments_of_a_session_need_the_app_tier_in_its_slot(
    service: Any, app_in_own_slot: bool
) -> None:
    """They could be added twice where the app tier has a slot of its own."""
    session = await create(service)
    event = Event("x", state_increments={"app:n": 1})
    if not app_in_own_slot:
        await service.append_event(session, event)
        assert session.state == {"app:n": 1}
        return
    attempts: list[Attempt] = [
        lambda: service.append_event(session, event),
        lambda: service.append_events(session, [Event("y"), event]),
        lambda: service.increment_session_state(session, {"app:n": 1}),
    ]
    for attempt in attempts:
        with pytest.raises(InvalidArgument, match="increment_app_state"):
            await attempt()
    assert await service.increment_app_state(APP, {"n": 1}) == {"n": 1}
    assert (await read(service)).events == []


# -- if_absent ----------------------------------------------------------------------------------


async def test_if_absent_sets_only_missing_keys(service: Any) -> None:
    session = await create(service, state={"a": None, "user:b": 2, "app:c": 3})
    state = {"a": 9, "x": 9, "user:b": 9, "user:y": [9], "app:c": 9, "app:z": 9, "temp:t": 9}
    await service.update_session_state(session, state, if_absent=True)
    stored = {"a": None, "x": 9, "user:b": 2, "user:y": [9], "app:c": 3, "app:z": 9}
    found = await read(service)
    assert found.state == stored
    assert session.state == {**stored, "temp:t": 9}
    assert session.version == found.version
    await service.update_session_state(KEY, {"a": 5, "new": 5}, if_absent=True)
    assert (await read(service)).state == {**stored, "new": 5}


async def test_if_absent_in_the_tiers_themselves(service: Any) -> None:
    await service.update_user_state(APP, USER, {"a": 1})
    await service.update_user_state(APP, USER, {"a": 2, "user:b": 2}, if_absent=True)
    assert await service.get_user_state(APP, USER) == {"a": 1, "b": 2}
    await service.update_app_state(APP, {"a": b"\x00"}, if_absent=True)
    await service.update_app_state(APP, {"app:a": 2}, if_absent=True)
    assert await service.get_app_state(APP) == {"a": b"\x00"}


async def test_the_first_of_many_writers_wins(service: Any) -> None:
    sessions = [await create(service)] + [await read(service) for _ in range(19)]
    await asyncio.gather(
        *(
            service.update_session_state(session, {"owner": number}, if_absent=True)
            for number, session in enumerate(sessions)
        )
    )
    winner = (await read(service)).state["owner"]
    assert {session.state["owner"] for session in sessions} == {winner}


async def test_if_absent_temp_state_of_the_session_itself(service: Any) -> None:
    session = await service.create_session(**IDS, state={"temp:a": 1})
    await service.update_session_state(session, {"temp:a": 2, "temp:b": 2}, if_absent=True)
    assert session.state == {"temp:a": 1, "temp:b": 2}


async def test_if_absent_with_a_version(service: Any) -> None:
    session = await create(service, state={"a": 1})
    version = session.version
    await service.update_session_state(
        session, {"a": 2, "b": 2}, if_version=version, if_absent=True
    )
    assert session.state == {"a": 1, "b": 2}
    with pytest.raises(StaleVersion):
        await service.update_session_state(KEY, {"c": 2}, if_version=version, if_absent=True)
    assert (await service.list_sessions(**OWNER))[0].state == {"a": 1, "b": 2}


@pytest.mark.parametrize("value", [None, 1, "yes"])
async def test_if_absent_must_be_a_bool(service: Any, value: Any) -> None:
    await create(service)
    with pytest.raises(InvalidArgument, match="if_absent"):
        await service.update_session_state(KEY, {"a": 1}, if_absent=value)
    with pytest.raises(InvalidArgument, match="if_absent"):
        await service.update_user_state(APP, USER, {"a": 1}, if_absent=value)
    with pytest.raises(InvalidArgument, match="if_absent"):
        await service.update_app_state(APP, {"a": 1}, if_absent=value)
