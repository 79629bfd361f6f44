"""Windows: reading the newest whole turns of a session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Any

import pytest
from support.events import NOON, numbers_of
from support.services import ServiceFactory
from support.sessions import IDS, KEY, create, read

from sessionstore import Event, EventPage, InvalidArgument, Session, Window


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


REMOVALS: dict[str, Callable[[Any, Session, EventPage], Awaitable[Any]]] = {
    "pop_event": lambda s, session, _: s.pop_event(session),
    "rewind_session": lambda s, session, page: s.rewind_session(session, to=page.positions[-2]),
    "delete_event": lambda s, session, page: s.delete_event(
        session, page.positions[-1], page.events[-1]
    ),
}


@pytest.mark.parametrize("name", REMOVALS)
async def test_a_trimmed_log_begins_with_a_whole_turn_after_a_removal(
    make_service: ServiceFactory, name: str
) -> None:
    service = make_service(session_event_limit=10)
    session = await create(service)
    await service.append_events(session, turns(4, 4))
    page = await service.get_events(session)
    await REMOVALS[name](service, session, page)
    assert session.was_full
    assert await windows_of(service, Window()) == list(range(8, 15))
    await service.append_event(session, Event("agent", 15, invocation_id="3"))
    assert await windows_of(service, Window()) == list(range(8, 16))
    assert session == await read(service)
    copy = await service.fork_session(session, session_id="copy", upto=page.positions[-3])
    copied = await service.get_session(**{**IDS, "session_id": "copy"}, window=Window())
    assert (copy.was_full, numbers_of(copied)) == (True, list(range(8, 14)))


async def test_a_log_that_begins_anew_begins_with_a_turn(make_service: ServiceFactory) -> None:
    service = make_service(session_event_limit=6)
    session = await create(service)
    events = [Event("agent", number, invocation_id=str(number // 4)) for number in range(8)]
    await service.append_events(session, events)
    page = await service.get_events(session)
    await service.pop_event(session)
    assert (session.was_full, await windows_of(service, Window())) == (True, [4, 5, 6])
    await service.compact_session(session, upto=page.positions[1], summary="s", drop=True)
    assert (session.was_full, await windows_of(service, Window())) == (False, [4, 5, 6])
    assert session == await read(service)
    removals: list[Callable[[], Awaitable[Any]]] = [
        lambda: service.clear_events(session),
        lambda: service.rewind_session(session, to=0),
    ]
    for removal in removals:
        await service.append_events(session, events)
        await service.pop_event(session)
        assert session.was_full
        await removal()
        assert session == await read(service)
        await service.append_events(session, turns(1, 2)[1:])
        assert await windows_of(service, Window()) == [1]
        assert not session.was_full
        await service.clear_events(session)


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
