"""Changes to a caller's objects reach neither the store nor other readers."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
from support.sessions import APP, IDS, KEY, OWNER, USER, create, read

from sessionstore import Event, Session


def deep_state() -> dict[str, Any]:
    return {"a": {"list": [1, {"x": [2]}]}, "user:b": [[1]], "app:c": {"y": [3]}, "temp:d": [4]}


def spoil(value: Any) -> None:
    """Change every mutable part of a value."""
    if isinstance(value, dict):
        for item in value.values():
            spoil(item)
        value["spoiled"] = True
    elif isinstance(value, list):
        for item in value:
            spoil(item)
        value.append("spoiled")
    elif isinstance(value, Event):
        for part in (value.content, value.state_delta, value.state_removed, value.metadata):
            spoil(part)
    elif isinstance(value, Session):
        spoil(value.state)
        spoil(value.events)


def make_event() -> Event:
    return Event(
        "user",
        {"parts": [{"text": ["hello"]}]},
        state_delta={"e": [[1]], "user:f": {"g": [2]}, "temp:h": [[3]]},
        state_removed=["z"],
        metadata={"m": {"n": [5]}},
    )


async def test_spoiling_what_was_given_changes_nothing(service: Any) -> None:
    state = deep_state()
    session = await service.create_session(**IDS, state=state)
    event, batch = make_event(), [make_event(), make_event()]
    update, app_state, user_state = {"u": [[1]]}, {"v": [[1]]}, {"w": [[1]]}
    await service.append_event(session, event)
    await service.append_events(session, batch)
    await service.update_session_state(session, update)
    await service.update_app_state(APP, app_state)
    await service.update_user_state(APP, USER, user_state)
    stored, own = await read(service), copy.deepcopy(session)
    for given in (state, event, batch, update, app_state, user_state):
        spoil(given)
    assert await read(service) == stored
    assert session == own
    assert "spoiled" not in repr(msgspec.structs.asdict(stored))


async def test_spoiling_what_was_returned_changes_nothing_stored(service: Any) -> None:
    session = await service.create_session(**IDS, state=deep_state())
    returned: list[Any] = [
        session,
        await service.append_event(session, make_event()),
        await service.append_events(session, [make_event(), make_event()]),
        await service.append_event(KEY, make_event()),
        await service.pop_event(session),
    ]
    stored = await read(service)
    listed = await service.list_sessions(**OWNER, event_num=9)
    app_state, user_state = (
        await service.get_app_state(APP),
        await service.get_user_state(APP, USER),
    )
    page = await service.get_events(KEY)
    same = copy.deepcopy((stored, listed, app_state, user_state, page))
    returned += [
        await read(service),
        await service.get_or_create_session(**IDS),
        await service.list_sessions(**OWNER, event_num=9),
        await service.get_app_state(APP),
        await service.get_user_state(APP, USER),
        (await service.get_events(KEY)).events,
    ]
    for value in returned:
        spoil(value)
    assert (stored, listed, app_state, user_state, page) == same
    assert await read(service) == stored
    assert await service.list_sessions(**OWNER, event_num=9) == listed
    assert await service.get_app_state(APP) == app_state
    assert await service.get_user_state(APP, USER) == user_state
    assert await service.get_events(KEY) == page


async def test_two_sessions_of_one_read_share_nothing(service: Any) -> None:
    for name in ("one", "two"):
        await service.create_session(**OWNER, session_id=name, state={"user:a": [1], "app:b": [2]})
    first, second = await service.list_sessions(**OWNER)
    spoil(first)
    assert second.state == {"user:a": [1], "app:b": [2]}


async def test_a_value_that_stands_twice_is_two_values(service: Any) -> None:
    shared = [1]
    session = await service.create_session(**IDS, state={"a": shared, "b": {"c": shared}})
    session.state["a"].append(2)
    assert session.state == {"a": [1, 2], "b": {"c": [1]}}
    assert (await read(service)).state == {"a": [1], "b": {"c": [1]}}


async def test_the_session_and_the_event_share_no_state(service: Any) -> None:
    session = await create(service)
    stored = await service.append_event(session, make_event())
    session.state["e"].append("spoiled")
    assert stored.state_delta["e"] == [[1]]
    assert session.events[0].state_delta["e"] == [[1]]
    assert (await read(service)).state["e"] == [[1]]
