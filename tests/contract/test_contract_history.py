"""Changing history: rewind, fork, replace and delete."""

from __future__ import annotations

from typing import Any

import pytest
from support.events import make_event, numbered, numbers_of
from support.services import ServiceFactory
from support.sessions import IDS, KEY, OWNER, create, read

from sessionstore import (
    Event,
    InvalidArgument,
    LimitExceeded,
    Session,
    SessionExists,
    SessionKey,
    SessionNotFound,
    StaleVersion,
    TurnLost,
)


async def filled(service: Any, count: int = 5) -> tuple[Session, list[int]]:
    """A session with the events 0, 1, ... and the positions of these."""
    session = await create(service, state={"a": 1, "b": 2, "user:c": 3})
    await service.append_events(session, numbered(*range(count)))
    return session, (await service.get_events(KEY)).positions


# -- rewind ---------------------------------------------------------------------------------------


async def test_a_rewind_removes_what_is_newer(service: Any) -> None:
    session, positions = await filled(service)
    before = session.version
    assert await service.rewind_session(session, to=positions[2]) == 2
    assert numbers_of(session) == [0, 1, 2]
    assert session.version > before
    assert session == await read(service)
    await service.append_events(session, numbered(8, 9))
    page = await service.get_events(KEY)
    assert numbers_of(page.events) == [0, 1, 2, 8, 9]
    assert page.positions[3] > positions[-1], "positions are never used twice"
    assert session == await read(service)
    assert await service.rewind_session(KEY, to=0) == 5
    assert (await read(service)).events == []
    assert await service.rewind_session(KEY, to=2**53 - 1) == 0
    await service.append_event(KEY, Event("user", "again"))
    assert (await read(service)).event_count == 1


async def test_a_rewind_replaces_the_state_of_the_session_alone(service: Any) -> None:
    session, positions = await filled(service)
    session.state["temp:x"] = 1
    await service.rewind_session(session, to=positions[0], state={"b": 7, "d": [None]})
    assert session.state == {"b": 7, "d": [None], "user:c": 3, "temp:x": 1}
    assert (await read(service)).state == {"b": 7, "d": [None], "user:c": 3}
    await service.rewind_session(session, to=0, state={})
    assert (await read(service)).state == {"user:c": 3}


async def test_a_rewind_asks_for_version_or_turn(service: Any) -> None:
    _, positions = await filled(service)
    with pytest.raises(StaleVersion):
        await service.rewind_session(KEY, to=0, if_version=1)
    turn = await service.acquire_turn(KEY)
    await service.release_turn(turn)
    await service.acquire_turn(KEY)
    with pytest.raises(TurnLost):
        await service.rewind_session(KEY, to=0, turn=turn)
    assert (await read(service)).event_count == 5
    version = (await read(service)).version
    assert await service.rewind_session(KEY, to=positions[3], if_version=version) == 1
    with pytest.raises(InvalidArgument, match="if_version and turn"):
        await service.rewind_session(KEY, to=0, if_version=1, turn=turn)


async def test_a_handle_of_a_deleted_session_rewinds_nothing(service: Any) -> None:
    old, positions = await filled(service)
    await service.delete_session(**IDS)
    with pytest.raises(SessionNotFound):
        await service.rewind_session(KEY, to=0)
    _, positions = await filled(service)
    for call in (
        service.rewind_session(old, to=0),
        service.fork_session(old),
        service.delete_event(old, positions[0], (await read(service)).events[0]),
    ):
        with pytest.raises(SessionNotFound):
            await call
    assert (await read(service)).event_count == 5


async def test_events_that_were_rewound_may_come_back(service: Any) -> None:
    await create(service)
    events = [make_event(number) for number in range(3)]
    await service.append_events(KEY, events)
    await service.rewind_session(KEY, to=0)
    await service.append_events(KEY, events)
    assert (await read(service)).events == events


async def test_a_long_log_and_large_state_are_replaced(make_service: ServiceFactory) -> None:
    service = make_service(session_event_limit=None)
    await create(service, state={f"k{number}": number for number in range(2500)})
    for _ in range(6):
        await service.append_events(KEY, numbered(*range(500)))
    state = {f"k{number}": -number for number in range(2000, 4000)}
    assert await service.rewind_session(KEY, to=0, state=state) == 3000
    assert (await read(service)).state == state


# -- fork -----------------------------------------------------------------------------------------


async def test_a_fork_is_a_session_of_its_own(service: Any) -> None:
    session, positions = await filled(service)
    copy = await service.fork_session(session, session_id="copy", upto=positions[2])
    assert copy.forked_from == session.id
    assert copy.created_at > session.created_at
    assert (copy.state, copy.events, copy.event_count) == (session.state, [], 3)
    page = await service.get_events(copy)
    assert (numbers_of(page.events), page.positions) == ([0, 1, 2], positions[:3])
    await service.append_event(copy, Event("user", "copy", state_delta={"a": 9}))
    await service.append_event(session, Event("user", "session"))
    assert numbers_of(await read(service)) == [0, 1, 2, 3, 4, "session"]
    assert numbers_of(await service.get_session(**OWNER, session_id="copy")) == [0, 1, 2, "copy"]
    assert (await read(service)).state == {"a": 1, "b": 2, "user:c": 3}
    listed = await service.list_sessions(**OWNER)
    assert {found.id for found in listed} == {"sid", "copy"}
    assert await service.count_sessions(**OWNER) == 2
    await service.delete_session(**IDS)
    assert numbers_of(await service.get_session(**OWNER, session_id="copy")) == [0, 1, 2, "copy"]


async def test_a_fork_of_everything_and_of_nothing(service: Any) -> None:
    session, _ = await filled(service)
    whole = await service.fork_session(KEY)
    assert len(whole.id) == 36
    assert whole.event_count == 5
    await service.append_event(whole, Event("user", "next"))
    empty = await service.fork_session(session, upto=0, state={"z": 1})
    assert (empty.event_count, empty.state) == (0, {"z": 1, "user:c": 3})
    await service.append_event(empty, Event("user", "first"))
    assert (await service.get_session(**OWNER, session_id=empty.id)).event_count == 1


async def test_a_turn_is_not_copied(service: Any) -> None:
    session, _ = await filled(service)
    turn = await service.acquire_turn(session)
    copy = await service.fork_session(session, turn=turn)
    await service.acquire_turn(copy)
    await service.append_event(session, Event("user", "held"), turn=turn)


async def test_a_fork_needs_a_new_id(service: Any) -> None:
    session, _ = await filled(service)
    await service.fork_session(session, session_id="copy")
    with pytest.raises(SessionExists, match="'copy'"):
        await service.fork_session(session, session_id="copy")
    with pytest.raises(InvalidArgument, match="session_id"):
        await service.fork_session(session, session_id=session.id)
    with pytest.raises(SessionNotFound):
        await service.fork_session(SessionKey("app", "user", "missing"))


async def test_a_fork_has_a_limit(make_service: ServiceFactory) -> None:
    service = make_service(session_event_limit=None)
    await create(service)
    for first in range(0, 20_000, 500):
        await service.append_events(KEY, numbered(*range(first, first + 500)))
    copy = await service.fork_session(KEY)
    assert copy.event_count == 20_000
    await service.append_event(KEY, Event("user", "one more"))
    with pytest.raises(LimitExceeded, match="has 20001 events; at most 20000") as caught:
        await service.fork_session(KEY, session_id="other")
    assert (caught.value.limit, caught.value.actual) == (20_000, 20_001)
    assert await service.get_session(**OWNER, session_id="other") is None


# -- replace and delete ---------------------------------------------------------------------------


async def test_an_event_is_replaced_where_it_stands(service: Any) -> None:
    session, positions = await filled(service)
    old = session.events[2]
    redacted = Event("user", "redacted", id=old.id, timestamp=old.timestamp)
    assert await service.replace_event(session, positions[2], old, redacted) == redacted
    assert session == await read(service)
    page = await service.get_events(KEY)
    assert (numbers_of(page.events), page.positions) == ([0, 1, "redacted", 3, 4], positions)
    version = (await read(service)).version
    # A repeat finds it there.
    assert await service.replace_event(KEY, positions[2], old, redacted) == redacted
    assert (await read(service)).version == version


async def test_an_event_is_deleted(service: Any) -> None:
    session, positions = await filled(service, 2)
    first, second = session.events
    assert await service.delete_event(session, positions[0], first) is True
    assert session == await read(service)
    assert await service.delete_event(KEY, positions[0], first) is False
    assert await service.delete_event(session, positions[1], second) is True
    assert session == await read(service)
    assert session.events == []
    await service.append_event(session, Event("user", "next"))
    assert (await read(service)).event_count == 1


async def test_only_the_event_that_was_named_is_touched(service: Any) -> None:
    session, positions = await filled(service)
    first, second = session.events[:2]
    new = Event("user", "new")
    with pytest.raises(InvalidArgument, match="is not `event`"):
        await service.replace_event(KEY, positions[0], second, new)
    with pytest.raises(InvalidArgument, match="is not `event`"):
        await service.delete_event(KEY, positions[0], second)
    with pytest.raises(InvalidArgument, match="there is no event at position 5"):
        await service.replace_event(KEY, 5, first, new)
    with pytest.raises(InvalidArgument, match="is stored already"):
        await service.replace_event(KEY, positions[0], first, second)
    with pytest.raises(StaleVersion):
        await service.delete_event(KEY, positions[0], first, if_version=1)
    with pytest.raises(SessionNotFound):
        await service.delete_event(SessionKey("app", "user", "missing"), 5, first)
    assert numbers_of(await read(service)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("position", [-1, 2**53 + 1, 1.5, "1", None, True])
async def test_positions_are_checked(service: Any, position: Any) -> None:
    session, _ = await filled(service, 1)
    [event] = session.events
    for call in (
        service.rewind_session(KEY, to=position),
        service.replace_event(KEY, position, event, event),
        service.delete_event(KEY, position, event),
    ):
        with pytest.raises(InvalidArgument, match=r"^(to|position) must be"):
            await call
    if position is not None:
        with pytest.raises(InvalidArgument, match=r"^upto must be"):
            await service.fork_session(KEY, upto=position)


async def test_other_arguments_are_checked(service: Any) -> None:
    session, [position] = await filled(service, 1)
    [event] = session.events
    for state, message in (
        ({"user:a": 1}, r"state\['user:a'\] does not belong to the session"),
        ({"app:a": 1}, r"state\['app:a'\]"),
        ({"temp:a": 1}, r"state\['temp:a'\]"),
        ([], "state must be a dict"),
        ({"a": object()}, r"state\['a'\] is a object"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            await service.rewind_session(KEY, to=0, state=state)
        with pytest.raises(InvalidArgument, match=message):
            await service.fork_session(KEY, state=state)
    with pytest.raises(InvalidArgument, match="event must be an Event"):
        await service.delete_event(KEY, position, event.id)
    with pytest.raises(InvalidArgument, match="new must be an Event"):
        await service.replace_event(KEY, position, event, {})
    with pytest.raises(InvalidArgument, match="new must not be partial"):
        await service.replace_event(KEY, position, event, Event("user", 1, partial=True))
    calls: list[tuple[Any, dict[str, Any]]] = [
        (service.rewind_session, {"to": 0}),
        (service.fork_session, {}),
    ]
    for method, arguments in calls:
        with pytest.raises(InvalidArgument, match="turn must be a Turn"):
            await method(KEY, **arguments, turn="t")
        with pytest.raises(InvalidArgument, match="session must be a Session"):
            await method("sid", **arguments)
