"""Restoring sessions: with given positions and times, whole or not at all, and repeatable."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec import UNSET
from msgspec.structs import replace
from support.events import LONG_AGO, NOON, make_event, numbered, numbers_of
from support.services import ServiceFactory
from support.sessions import IDS, KEY, OWNER, append_many, create, read

from sessionstore import (
    BackendRejected,
    Event,
    InvalidArgument,
    LimitExceeded,
    Session,
    SessionExists,
    SessionKey,
    SessionNotFound,
    Summary,
    flows,
)
from sessionstore.calls import Call, Flow

NEW = SessionKey(**OWNER, session_id="new")
NEW_IDS: dict[str, Any] = {**OWNER, "session_id": "new"}


async def exported(service: Any, key: SessionKey = KEY) -> dict[str, Any]:
    """The arguments that restore a session."""
    session, page = await read(service, key), await service.get_events(key, limit=10_000)
    return {
        "events": page.events,
        "positions": page.positions,
        "state": {name: value for name, value in session.state.items() if ":" not in name},
        "created_at": session.created_at,
        "updated_at": session.updated_at,
        "event_limit": session.event_limit,
        "forked_from": session.forked_from,
        "summary": session.summary,
    }


def first_steps(flow: Flow[Session], num_calls: int) -> Flow[None]:
    """The first Calls of a flow, as if the process died then."""
    step = next(flow)
    for _ in range(num_calls):
        step = flow.send((yield step))


async def interrupt(service: Any, num_calls: int, **arguments: Any) -> None:
    """Only the first calls of restore_session for the session "new"."""
    rest = dict.fromkeys(("positions", "state", "created_at", "updated_at", "forked_from"))
    given: dict[str, Any] = {**rest, "event_limit": UNSET, **arguments}
    flow = flows.restore_session(service._ops, NEW, **given)
    await service._run(first_steps(flow, num_calls))


async def test_a_restored_session_equals_the_one_that_was_exported(service: Any) -> None:
    events = [make_event("late", state_delta={"a": 0}), *numbered(1, 2, 3)]
    session = await create(service, state={"a": {"b": [None]}, "c": b"\0raw", "user:d": 1})
    await service.append_events(session, events)
    await service.pop_event(session)
    copy = await service.fork_session(session, session_id="copy")
    for key in (session.key, copy.key):
        arguments = await exported(service, key)
        before = await read(service, key)
        await service.delete_session(**OWNER, session_id=key.session_id)
        restored = await service.restore_session(**OWNER, session_id=key.session_id, **arguments)
        after = await read(service, key)
        assert restored.version == after.version > before.version
        assert restored.events == []
        after.version = before.version
        assert after == before
        assert await exported(service, key) == arguments


async def test_a_summary_is_restored(service: Any) -> None:
    session = await create(service)
    turns = [Event("user", number, invocation_id=f"i{number}") for number in range(6)]
    await service.append_events(session, turns)
    positions = (await service.get_events(KEY)).positions
    await service.compact_session(session, upto=positions[2], summary={"a": [1]})
    arguments = await exported(service)
    restored = await service.restore_session(**NEW_IDS, **arguments)
    assert restored.summary == session.summary
    assert restored.event_count == 6
    after = await read(service, NEW)
    assert (numbers_of(after), after.summary) == ([3, 4, 5], session.summary)
    assert await exported(service, NEW) == arguments
    assert await service.restore_session(**NEW_IDS, **arguments) == restored
    # What the summary covers may have been whole, or not: it stays.
    with pytest.raises(InvalidArgument):
        await service.rewind_session(NEW, to=positions[1])
    assert await service.rewind_session(NEW, to=positions[3]) == 2
    await service.append_event(NEW, Event("user", 7, invocation_id="i7"))
    upto = (await service.get_events(NEW)).positions[3]
    again = await service.compact_session(
        NEW, upto=upto, summary="more", if_summary=positions[2], drop=True
    )
    assert again.num_events == 0
    assert numbers_of(await read(service, NEW)) == [7]


async def test_a_summary_of_events_that_are_gone_is_restored(service: Any) -> None:
    summary = Summary("all of it", 10**15, NOON, 7)
    restored = await service.restore_session(**NEW_IDS, summary=summary)
    assert restored.summary == replace(summary, num_events=0)
    await service.append_event(restored, make_event("new"))  # of 2001
    assert (await service.get_events(NEW)).positions == [10**15 + 1]
    assert numbers_of(await read(service, NEW)) == ["new"]
    with pytest.raises(SessionExists):
        await service.restore_session(**NEW_IDS, summary=replace(summary, content="other"))


async def test_appends_continue_after_the_restored_events(service: Any) -> None:
    restored = await service.restore_session(
        **IDS, events=numbered(1, 2), positions=[5, 2**51], state={"a": 1}
    )
    assert restored.event_count == 2
    await service.append_event(restored, Event("user", 3, state_delta={"b": 2}))
    page = await service.get_events(KEY)
    assert numbers_of(page.events) == [1, 2, 3]
    assert page.positions == [5, 2**51, 2**51 + 1]
    assert await service.rewind_session(KEY, to=5) == 2
    turn = await service.acquire_turn(KEY)
    await service.append_event(KEY, Event("user", 4), turn=turn)
    assert (await read(service)).state == {"a": 1, "b": 2}


async def test_a_session_has_its_old_place_in_the_list(service: Any) -> None:
    await create(service, SessionKey(**OWNER, session_id="first"))
    for name, days in (("older", 1), ("newer", 2)):
        await service.restore_session(
            **OWNER, session_id=name, updated_at=NOON + timedelta(days=days)
        )
    sessions = await service.list_sessions(**OWNER)
    assert [session.id for session in sessions] == ["first", "newer", "older"]
    assert sessions[1].created_at == sessions[1].updated_at == NOON + timedelta(days=2)
    assert sessions[1].event_count == 0
    created = await service.restore_session(**OWNER, session_id="now", created_at=NOON)
    assert created.created_at == NOON
    assert timedelta(0) <= datetime.now(UTC) - created.updated_at < timedelta(minutes=5)


async def test_positions_come_from_timestamps(service: Any) -> None:
    times = [NOON, LONG_AGO, NOON + timedelta(seconds=1), datetime(1969, 1, 1, tzinfo=UTC)]
    events = [Event("user", number, timestamp=at) for number, at in enumerate(times)]
    await service.restore_session(**IDS, events=iter(events))
    page = await service.get_events(KEY)
    assert numbers_of(page.events) == [0, 1, 2, 3]
    noon_us = 1_715_774_400_123_456
    later = noon_us + 1_000_000
    assert page.positions == [noon_us, noon_us + 1, later, later + 1]
    await service.restore_session(**NEW_IDS, events=events[3:])
    assert (await service.get_events(NEW)).positions == [1]


async def test_a_long_log_is_visible_only_when_it_is_complete(make_service: ServiceFactory) -> None:
    service = make_service(session_event_limit=None)
    await create(service)
    await append_many(service, KEY, numbered(*range(1700)))
    arguments = await exported(service)
    for num_calls in (1, 2, 2, 2):  # what is staged; then the next part
        await interrupt(service, num_calls, **arguments)
        assert await service.get_session(**NEW_IDS) is None
        with pytest.raises(SessionNotFound):
            await service.get_events(NEW)
        assert await service.count_sessions(**OWNER) == 1
    restored = await service.restore_session(**NEW_IDS, **arguments)
    assert (restored.event_count, restored.event_limit) == (1700, None)
    assert await exported(service, NEW) == arguments
    await service.append_event(restored, Event("user", "next"))
    assert (await read(service, NEW)).event_count == 1701


async def test_a_repeat_sends_only_what_is_missing(make_service: ServiceFactory) -> None:
    service = make_service(encryption=None, key_store=None)
    events = numbered(*range(1200))
    await interrupt(service, 2, events=events)  # what is staged; 500 events
    ops = service._ops
    names: list[str] = []

    def counted(flow: Flow[Session]) -> Flow[Session]:
        step = next(flow)
        while True:
            assert isinstance(step, Call)
            names.append(step.script.name if step.script else "")
            try:
                step = flow.send((yield step))
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # a Session

    flow = flows.restore_session(ops, NEW, events, None, None, None, None, UNSET, None)
    await service._run(counted(flow))
    assert names[:3] == ["", "stage_events", "restore_session"]
    assert numbers_of(await read(service, NEW)) == list(range(1200))
    assert (await read(service, NEW)).event_limit == 1200


@pytest.mark.parametrize("count", [0, 3, 501])
async def test_a_repeat_changes_nothing(service: Any, count: int) -> None:
    events = numbered(*range(count))
    arguments = {"events": events, "state": {"a": 1, "b": 2}, "updated_at": NOON}
    first = await service.restore_session(**NEW_IDS, **arguments)
    assert await service.restore_session(**NEW_IDS, **arguments) == first
    arguments["state"] = {"b": 2, "a": 1}
    assert await service.restore_session(**NEW_IDS, **arguments) == first
    await service.append_event(NEW, Event("user", "later", state_delta={"a": 3}))
    before = await read(service, NEW)
    again = await service.restore_session(**NEW_IDS, **arguments)
    assert (again.state, again.event_count) == ({"a": 3, "b": 2}, count + 1)
    assert await read(service, NEW) == before


async def test_another_session_is_never_touched(service: Any) -> None:
    await create(service, state={"mine": True})
    before = await read(service)
    for events in ([], numbered(*range(501))):
        with pytest.raises(SessionExists, match="'sid'"):
            await service.restore_session(**IDS, events=events)
    assert await read(service) == before
    one = make_event("one")
    await service.restore_session(**NEW_IDS, events=[one], positions=[7], state={"a": 1})
    for changed in (
        {"events": [make_event("two")], "positions": [7], "state": {"a": 1}},
        {"events": [one], "positions": [8], "state": {"a": 1}},
        {"events": [one], "positions": [7], "state": {"a": 2}},
        {"events": [one], "positions": [7], "state": {"a": 1}, "event_limit": 7},
        {"events": [one], "positions": [7], "state": {"a": 1}, "created_at": NOON},
        {"events": [one], "positions": [7], "state": {"a": 1}, "forked_from": "x"},
    ):
        with pytest.raises(SessionExists):
            await service.restore_session(**NEW_IDS, **changed)


async def test_a_session_that_is_created_meanwhile_wins(service: Any) -> None:
    events = numbered(*range(501))
    await interrupt(service, 2, events=events)
    await create(service, NEW)
    with pytest.raises(SessionExists):
        await service.restore_session(**NEW_IDS, events=events)
    assert (await read(service, NEW)).events == []
    await service.delete_session(**NEW_IDS)
    await service.restore_session(**NEW_IDS, events=events)
    assert (await read(service, NEW)).event_count == 501


async def test_what_is_staged_expires(
    make_service: ServiceFactory, advance_time: Callable[[float], None]
) -> None:
    service = make_service(session_ttl=None)
    events = numbered(*range(501))
    await interrupt(service, 2, events=events)
    advance_time(3700)
    flow = flows.restore_session(service._ops, NEW, events, None, None, None, None, UNSET, None)
    calls = [next(flow), flow.send(0), flow.send(None)]
    with pytest.raises(BackendRejected, match="nothing was restored"):
        await service._run(first_steps(iter_flow(calls[2]), 1))
    assert await service.get_session(**NEW_IDS) is None
    await service.restore_session(**NEW_IDS, events=events)
    advance_time(36_000)
    assert (await read(service, NEW)).event_count == 501
    await service.delete_session(**NEW_IDS)


def iter_flow(call: Any) -> Flow[Any]:
    return (yield call)


async def test_a_restored_session_expires_like_any_other(
    make_service: ServiceFactory, advance_time: Callable[[float], None]
) -> None:
    service = make_service(session_ttl=60)
    await service.restore_session(**IDS, events=numbered(*range(501)), updated_at=LONG_AGO)
    advance_time(40)
    assert (await read(service)).event_count == 501
    advance_time(70)
    assert await service.get_session(**IDS) is None
    assert await service.list_sessions(**OWNER) == []


async def test_limits_of_events(make_service: ServiceFactory) -> None:
    service = make_service(session_event_limit=UNSET)
    events = numbered(*range(1300))
    for name, limit, stored in (("a", UNSET, 1300), ("b", None, None), ("c", 10, 10)):
        restored = await service.restore_session(
            **OWNER, session_id=name, events=events, event_limit=limit
        )
        assert (restored.event_count, restored.event_limit) == (1300, stored)
        await service.append_event(restored, Event("user", "next"))
        # An append removes at most 1,000 events.
        counts = {1300: 1300, None: 1301, 10: 301}
        found = await read(service, restored.key, event_num=1)
        assert (found.event_count, numbers_of(found)) == (counts[stored], ["next"])
    small = await service.restore_session(**OWNER, session_id="d", events=events[:1])
    assert small.event_limit == 1000


async def test_a_service_with_a_limit_gives_it_to_the_session(
    make_service: ServiceFactory,
) -> None:
    service = make_service(session_event_limit=5)
    restored = await service.restore_session(**IDS, events=numbered(*range(7)))
    assert (restored.event_count, restored.event_limit) == (7, 5)


async def test_large_events_and_states_are_sent_in_parts(service: Any) -> None:
    events = [Event("user", str(number) * 400_000) for number in range(7)]
    state = {f"k{number}": number for number in range(10_000)}
    restored = await service.restore_session(**IDS, events=events, state=state)
    assert restored.state == state
    assert (await read(service)).events == events


async def test_temp_state_is_not_stored(service: Any) -> None:
    event = Event("user", state_delta={"temp:a": 1, "b": 2}, state_removed=["temp:c", "d"])
    await service.restore_session(**IDS, events=[event])
    session = await read(service)
    [stored] = session.events
    assert (stored.state_delta, stored.state_removed) == ({"b": 2}, ["d"])
    assert session.state == {}, "the changes of events are not applied"


async def test_a_session_that_is_restored_while_its_user_is_deleted_stays(service: Any) -> None:
    await create(service, state={"user:a": 1})
    flow = flows.delete_user(service._ops, OWNER["app_name"], OWNER["user_id"])

    def restored_meanwhile() -> Flow[Any]:
        step = flow.send((yield next(flow)))
        yield from flows.restore_session(
            service._ops, NEW, [make_event("a")], None, None, LONG_AGO, LONG_AGO, UNSET, None
        )
        while True:
            try:
                step = flow.send((yield step))
            except StopIteration as end:
                return end.value

    deleted = await service._run(restored_meanwhile())
    assert (deleted.num_sessions, deleted.created) == (1, ["new"])
    assert (await read(service, NEW)).state == {"user:a": 1}


async def test_a_session_object_still_writes_to_the_session(service: Any) -> None:
    session = await create(service)
    arguments = await exported(service)
    await service.delete_session(**IDS)
    await service.restore_session(**IDS, **arguments)
    await service.append_event(session, Event("user", 1))
    assert numbers_of(await read(service)) == [1]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"session_id": ""}, "session_id must not be empty"),
    ({"session_id": None}, "session_id must be a str"),
    ({"events": Event("user")}, "events must be a list of Events"),
    ({"events": 5}, "events must be a list of Events"),
    ({"events": ["x"]}, r"events\[0\] must be an Event"),
    ({"events": [Event("user", partial=True)]}, r"events\[0\] must not be partial"),
    ({"events": [Event("user", {1})]}, r"events\[0\]\.content is a set"),
    ({"events": [make_event(1), make_event(2), make_event(1)]}, r"events\[2\] is the same"),
    ({"events": [make_event(1)], "positions": []}, "one position for each event: 1, not 0"),
    ({"positions": [1]}, "one position for each event: 0, not 1"),
    ({"positions": 5}, "positions must be a list of ints"),
    ({"events": [make_event(1)], "positions": [0]}, r"positions\[0\] must be at least 1"),
    ({"events": [make_event(1)], "positions": [1.0]}, r"positions\[0\] must be an int"),
    ({"events": [make_event(1)], "positions": [2**52 + 1]}, r"positions\[0\] must be at most"),
    ({"events": numbered(1, 2), "positions": [2, 2]}, r"positions\[1\] must be above .*, 2"),
    (
        {"events": [Event("user", timestamp=datetime(2200, 1, 1, tzinfo=UTC))]},
        r"events\[0\]\.timestamp must be before 2112",
    ),
    ({"state": {"user:a": 1}}, r"state\['user:a'\] does not belong to the session"),
    ({"state": {"temp:a": 1}}, r"state\['temp:a'\] does not belong"),
    ({"state": []}, "state must be a dict"),
    ({"created_at": "now"}, "created_at must be a datetime"),
    ({"created_at": datetime(2020, 1, 1)}, "created_at must be timezone-aware"),
    ({"updated_at": datetime(1969, 1, 1, tzinfo=UTC)}, "updated_at must be after"),
    ({"created_at": NOON, "updated_at": LONG_AGO}, "updated_at must not be before created_at"),
    ({"event_limit": 0}, "event_limit must be at least 1"),
    ({"event_limit": "5"}, "event_limit must be an int"),
    ({"forked_from": ""}, "forked_from must not be empty"),
    ({"summary": "text"}, "summary must be a Summary, not str"),
    ({"summary": Summary(" ", 5, NOON, 0)}, "summary.content must not be empty"),
    ({"summary": Summary({1}, 5, NOON, 0)}, "summary.content is a set"),
    ({"summary": Summary("x" * 20_000, 5, NOON, 0)}, "summary.content is 20002 bytes"),
    ({"summary": Summary("x", 0, NOON, 0)}, "summary.upto must be at least 1"),
    ({"summary": Summary("x", 5, LONG_AGO.replace(year=1960), 0)}, "summary.created_at must be"),
]


async def test_arguments_are_checked(service: Any) -> None:
    for changed, message in BAD:
        with pytest.raises(InvalidArgument, match=message):
            await service.restore_session(**{**IDS, **changed})


async def test_a_bad_event_far_behind_is_found_before_anything_is_sent(service: Any) -> None:
    await create(service)  # another session of the user: the list would show the new one
    events = [*numbered(*range(900)), Event("user", "x" * (9 << 20))]
    with pytest.raises(LimitExceeded, match=r"events\[900\] is"):
        await service.restore_session(**NEW_IDS, events=events)
    assert await service.count_sessions(**OWNER) == 1
