"""Windows: reading the newest whole turns of a session."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest
from support.events import NOON, numbers_of
from support.services import ServiceFactory
from support.sessions import IDS, KEY, create, read

from sessionstore import Event, InvalidArgument, Window


def turns(num_turns: int, size: int) -> list[Event]:
    """Turns of this size; the content of an event is its number."""
    return [
        Event("agent" if number % size else "user", number, invocation_id=str(number // size))
        for number in range(num_turns * size)
    ]


async def windows_of(service: Any, window: Window) -> list[Any]:
    """The numbers that a window shows, which both reading methods agree on."""
    found = await service.get_session(**IDS, window=window)
    again = await service.get_or_create_session(**IDS, window=window)
    assert again.events == found.events
    return numbers_of(found.events)


async def test_a_window_has_whole_turns(service: Any) -> None:
    await create(service)
    await service.append_events(KEY, turns(50, 4))
    assert await windows_of(service, Window(max_turns=2)) == list(range(192, 200))
    assert await windows_of(service, Window(max_events=11)) == list(range(192, 200))
    assert await windows_of(service, Window(max_turns=40)) == list(range(40, 200))
    assert await windows_of(service, Window(max_turns=51)) == list(range(200))
    assert await windows_of(service, Window()) == list(range(200))
    session = await service.get_session(**IDS, window=Window(max_turns=1))
    assert (session.event_count, session.event_limit) == (200, 1000)


async def test_a_turn_that_is_longer_than_a_page_is_whole(service: Any) -> None:
    await create(service)
    await service.append_events(KEY, turns(2, 150))
    assert await windows_of(service, Window(max_turns=1)) == list(range(150, 300))
    assert await windows_of(service, Window(max_events=10)) == list(range(150, 300))


async def test_a_window_of_nothing(service: Any) -> None:
    window = Window(max_turns=3)
    assert await service.get_session(**IDS, window=window) is None
    session = await service.get_or_create_session(**IDS, state={"a": 1}, window=window)
    assert (session.events, session.state) == ([], {"a": 1})
    assert await windows_of(service, window) == []


async def test_a_trimmed_log_begins_with_a_whole_turn(make_service: ServiceFactory) -> None:
    service = make_service(session_event_limit=10)
    await create(service)
    await service.append_events(KEY, turns(4, 4))
    assert len((await read(service)).events) == 10
    assert await windows_of(service, Window()) == list(range(8, 16))
    await service.append_events(KEY, turns(5, 4)[16:])
    assert await windows_of(service, Window(max_turns=9)) == list(range(12, 20))


async def test_a_rule_keeps_calls_with_their_results(service: Any) -> None:
    def calls(event: Event) -> tuple[Iterable[str], Iterable[str]]:
        return event.metadata.get("opens", ()), event.metadata.get("closes", ())

    await create(service)
    events = [
        Event("user", 0, invocation_id="a"),
        Event("agent", 1, invocation_id="a", metadata={"opens": ["x"]}),
        Event("user", 2, invocation_id="b"),
        Event("tool", 3, invocation_id="b", metadata={"closes": ["x"]}),
        Event("user", 4, invocation_id="c"),
    ]
    await service.append_events(KEY, events)
    assert await windows_of(service, Window(max_turns=2, calls=calls)) == [0, 1, 2, 3, 4]
    assert await windows_of(service, Window(max_turns=2)) == [2, 3, 4]


async def test_a_window_stands_alone(service: Any) -> None:
    await create(service)
    window = Window(max_turns=1)
    for more in ({"event_num": 3}, {"event_time": NOON - timedelta(days=1)}):
        for read_one in (service.get_session, service.get_or_create_session):
            with pytest.raises(InvalidArgument, match="window cannot be combined"):
                await read_one(**IDS, **more, window=window)
            with pytest.raises(InvalidArgument, match="window must be a Window, not int"):
                await read_one(**IDS, window=3)
