"""Fragments: what is kept, in which order, for how long, and when it is obsolete."""

from __future__ import annotations

import random
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.events import LONG_AGO
from support.services import ServiceFactory
from support.sessions import IDS, KEY, OWNER, create, read
from support.waiting import poll_until
from support.watching import fragments

from sessionstore import (
    Event,
    InvalidArgument,
    LimitExceeded,
    SessionKey,
    SessionNotFound,
    StaleVersion,
    TurnLost,
)
from sessionstore.ops.stream import Fragment

KIND: dict[str, Any] = {"invocation_id": "run", "branch": "root.sub"}


def fragment(content: Any, author: str = "bot", **fields: Any) -> Event:
    return Event(author, content, partial=True, **{**KIND, **fields})


def complete(content: Any, author: str = "bot", **fields: Any) -> Event:
    return Event(author, content, **{**KIND, **fields})


async def kept(service: Any, key: SessionKey = KEY, after: int = 0) -> list[Fragment]:
    found: list[Fragment] = await service._run(fragments(service._ops, key, after))
    return found


async def contents(service: Any, key: SessionKey = KEY) -> list[Any]:
    return [each.event.content for each in await kept(service, key)]


# -- what is kept ----------------------------------------------------------------------------------


async def test_fragments_are_kept_in_order(service: Any) -> None:
    session = await create(service)
    events = [fragment(number) for number in range(7)]
    await service.append_event(session, events[0])
    await service.append_events(session, events[1:4])
    await service.append_event(KEY, events[4])
    await service.append_events(KEY, events[5:])
    found = await kept(service)
    assert [each.event for each in found] == events
    sequences = [each.sequence for each in found]
    assert sequences == sorted(set(sequences))
    for number, sequence in enumerate(sequences):
        assert await kept(service, after=sequence) == found[number + 1 :]


async def test_fragments_change_nothing_else(service: Any) -> None:
    session = await create(service)
    other = await create(service, SessionKey(**OWNER, session_id="other"))
    await service.append_event(KEY, fragment(1, state_delta={"k": 1}, state_increments={"n": 1}))
    await service.append_events(session, [fragment(2), fragment(3)])
    assert await read(service) == session
    listed = await service.list_sessions(**OWNER)
    assert [each.id for each in listed] == [other.id, session.id]
    assert len(await kept(service)) == 3


async def test_fragments_of_several_sessions_do_not_mix(service: Any) -> None:
    keys = [KEY, SessionKey(**OWNER, session_id="other"), SessionKey("app", "else", "sid")]
    for key in keys:
        await create(service, key)
        await service.append_event(key, fragment(list(key.key.session_id)))
    for key in keys:
        assert await contents(service, key) == [list(key.session_id)]


async def test_without_stream_ttl_nothing_is_kept(make_service: ServiceFactory) -> None:
    service = make_service(stream_ttl=None)
    session = await create(service)
    not_json: Any = object()  # not even encoded
    await service.append_event(session, fragment(not_json))
    await service.append_events(session, [fragment(not_json)] * 501)
    assert await kept(service) == []


async def test_append_events_does_not_keep_partial_events(service: Any) -> None:
    session = await create(service)
    await service.append_events(session, [fragment(1), complete(2), fragment(3)])
    assert await kept(service) == []
    assert [event.content for event in (await read(service)).events] == [2]


async def test_a_fragment_is_kept_as_it_is_but_for_temporary_state(service: Any) -> None:
    await create(service)
    event = fragment(
        {"text": "ü\u2028", "n": [1.5, None]},
        state_delta={"k": 1, "temp:t": 2},
        state_removed=["temp:gone", "user:x"],
        metadata={"m": True},
    )
    await service.append_event(KEY, event)
    [found] = await kept(service)
    assert found.event == Event(
        "bot",
        event.content,
        id=event.id,
        timestamp=event.timestamp,
        partial=True,
        state_delta={"k": 1},
        state_removed=["user:x"],
        metadata={"m": True},
        **KIND,
    )


async def test_services_of_every_codec_read_each_others_fragments(
    make_service: ServiceFactory, backend: Any
) -> None:
    json = make_service()
    msgpack = json if backend[1] is None else make_service(codec="msgpack")
    await create(json)
    await json.append_event(KEY, fragment({"a": 1}))
    await msgpack.append_event(KEY, fragment({"b": 2}))
    for service in (json, msgpack):
        assert await contents(service) == [{"a": 1}, {"b": 2}]


# -- obsolete --------------------------------------------------------------------------------------


async def test_a_complete_event_makes_its_fragments_obsolete(service: Any) -> None:
    session = await create(service)
    await service.append_events(session, [fragment("Hel"), fragment("lo")])
    await service.append_event(session, complete("Hello"))
    assert await contents(service) == []


@pytest.mark.parametrize(
    "other", [{"author": "cook"}, {"branch": ""}, {"invocation_id": "another"}], ids=str
)
async def test_other_events_do_not(service: Any, other: dict[str, Any]) -> None:
    session = await create(service)
    await service.append_event(session, fragment("Hel"))
    await service.append_event(session, complete("x", **other))
    await service.append_event(session, fragment("lo"))
    assert await contents(service) == ["Hel", "lo"]


@pytest.mark.parametrize(
    "timestamp", [LONG_AGO, datetime(2100, 1, 1, tzinfo=UTC), None], ids=["old", "future", "now"]
)
async def test_fragments_of_the_next_event_are_not_obsolete(
    service: Any, timestamp: datetime | None
) -> None:
    session = await create(service)
    at: dict[str, Any] = {} if timestamp is None else {"timestamp": timestamp}
    for number in range(3):
        await service.append_event(session, fragment(f"{number} a", **at))
        await service.append_event(session, fragment(f"{number} b", **at))
        assert await contents(service) == [f"{number} a", f"{number} b"]
        await service.append_event(session, complete(number, **at))
        assert await contents(service) == []


async def test_a_complete_event_is_found_behind_many_others(service: Any) -> None:
    session = await create(service)
    await service.append_event(session, fragment("old"))
    await service.append_event(session, fragment("stays", author="cook"))
    await service.append_events(
        session, [complete("old"), *(Event("x", number) for number in range(260))]
    )
    await service.append_event(session, fragment("new"))
    assert await contents(service) == ["stays", "new"]


@pytest.mark.parametrize(
    "remove",
    [
        lambda service, *_: service.pop_event(KEY),
        lambda service, *_: service.clear_events(KEY),
        lambda service, *_: service.rewind_session(KEY, to=0),
        lambda service, at, event: service.delete_event(KEY, at, event),
        lambda service, at, event: service.replace_event(KEY, at, event, complete("*", "cook")),
    ],
    ids=["pop", "clear", "rewind", "delete", "replace"],
)
async def test_fragments_do_not_come_back_when_their_event_is_removed(
    service: Any, remove: Callable[[Any, int, Event], Any]
) -> None:
    await create(service)
    await service.append_event(KEY, fragment("secret"))
    event = await service.append_event(KEY, complete("secret"))
    await remove(service, (await service.get_events(KEY)).last, event)
    assert await contents(service) == []
    await service.append_event(KEY, fragment("again"))
    assert await contents(service) == ["again"]
    await service.append_event(KEY, complete("again"))
    assert await contents(service) == []


async def test_fragments_do_not_come_back_when_their_event_is_trimmed(
    make_service: ServiceFactory,
) -> None:
    service = make_service(session_event_limit=3)
    session = await create(service)
    await service.append_event(session, fragment("old"))
    await service.append_event(session, complete("old"))
    for number in range(2):
        await service.append_event(session, complete(number, "cook"))
    await service.append_event(session, fragment("new"))
    await service.append_event(session, complete(2, "cook"))
    assert [event.content for event in (await read(service)).events] == [0, 1, 2]
    assert await contents(service) == ["new"]


# -- repeats ---------------------------------------------------------------------------------------


async def test_a_repeated_append_is_found(service: Any) -> None:
    session = await create(service)
    one, two, three = fragment(1), fragment(2), fragment(3)
    await service.append_event(session, one)
    await service.append_events(session, [two, three])
    before = await kept(service)
    await service.append_event(session, Event("x"))  # the log ends elsewhere now
    await service.append_event(session, one)
    await service.append_events(KEY, [two, three])
    assert await kept(service) == before
    assert len(before) == 3


async def test_a_repeat_is_found_even_if_its_condition_fails(service: Any) -> None:
    session = await create(service)
    version = session.version
    await service.append_event(KEY, fragment(1, id="a", timestamp=LONG_AGO), if_version=version)
    await service.append_event(session, Event("x"))
    await service.append_event(KEY, fragment(1, id="a", timestamp=LONG_AGO), if_version=version)
    with pytest.raises(StaleVersion):
        await service.append_event(KEY, fragment(2), if_version=version)
    assert await contents(service) == [1]


async def test_a_run_that_lost_its_turn_keeps_no_fragments(service: Any) -> None:
    session = await create(service)
    turn = await service.acquire_turn(session)
    await service.append_event(session, fragment(1), turn=turn)
    await service.free_turn(KEY)
    with pytest.raises(TurnLost):
        await service.append_event(session, fragment(2), turn=turn)
    with pytest.raises(TurnLost):
        await service.append_events(KEY, [fragment(3)], turn=turn)
    assert await contents(service) == [1]


# -- the session goes ------------------------------------------------------------------------------


async def test_a_session_that_is_created_again_shows_no_old_fragments(service: Any) -> None:
    old = await create(service)
    event = fragment("old")
    await service.append_event(old, event)
    await service.delete_session(**IDS)
    with pytest.raises(SessionNotFound):
        await kept(service)
    for target in (old, KEY):
        with pytest.raises(SessionNotFound):
            await service.append_event(target, fragment("late"))
    new = await create(service)
    assert await contents(service) == []
    with pytest.raises(SessionNotFound):
        await service.append_event(old, fragment("late"))
    await service.append_event(new, event)  # the same bytes, in another session
    assert await contents(service) == ["old"]


async def test_a_fork_has_no_fragments(service: Any) -> None:
    session = await create(service)
    await service.append_event(session, fragment(1))
    copy = await service.fork_session(session, session_id="copy")
    assert await contents(service, copy.key) == []
    assert await contents(service) == [1]


async def test_fragments_are_gone_after_their_ttl(
    make_service: ServiceFactory, advance_time: Callable[[float], None]
) -> None:
    service = make_service(stream_ttl=timedelta(minutes=1))
    await create(service)
    await service.append_event(KEY, fragment(1))
    advance_time(50)
    assert await contents(service) == [1]
    advance_time(11)
    assert await contents(service) == []
    await service.append_event(KEY, fragment(2))
    assert await contents(service) == [2]


async def test_each_fragment_has_its_own_ttl(make_service: ServiceFactory) -> None:
    """This test waits in real time."""
    service = make_service(stream_ttl=0.2)
    await create(service)
    await service.append_event(KEY, fragment("first"))

    async def is_gone() -> bool:
        await service.append_event(KEY, fragment("more"))
        found = await contents(service)
        assert found[-1] == "more"
        return "first" not in found

    await poll_until(is_gone, "the end of the first fragment")


# -- limits ----------------------------------------------------------------------------------------


def noise(length: int) -> str:
    """A text that compresses to three quarters at best."""
    return b64encode(random.Random(length).randbytes(length * 3 // 4)).decode()


async def test_the_oldest_fragments_go_first_when_they_are_too_large(service: Any) -> None:
    session = await create(service)
    for number in range(6):
        text = f"{number}{noise(3_800_000)}"
        await service.append_event(session, fragment(text))
    assert [text[0] for text in await contents(service)] == ["4", "5"]
    await service.append_event(session, fragment("6"))
    assert [text[0] for text in await contents(service)] == ["4", "5", "6"]


async def test_what_is_too_much_for_one_call_is_refused(make_service: ServiceFactory) -> None:
    service = make_service(event_size_limit=1 << 20)
    session = await create(service)
    with pytest.raises(LimitExceeded, match="more than 500 partial events") as caught:
        await service.append_events(session, [fragment(1)] * 501)
    assert (caught.value.limit, caught.value.actual) == (500, 501)
    large = fragment(noise(1_000_000))
    with pytest.raises(LimitExceeded, match="8388608") as caught:
        await service.append_events(session, [large] * 12)
    assert caught.value.limit == 8 << 20
    with pytest.raises(LimitExceeded, match="event is"):
        await service.append_event(session, fragment("x" * (1 << 20)))
    assert await kept(service) == []


async def test_a_fragment_that_would_change_is_refused(service: Any) -> None:
    session = await create(service)
    with pytest.raises(InvalidArgument, match=r"events\[1\].content"):
        await service.append_events(session, [fragment(1), fragment({"a": (1, 2)})])
    with pytest.raises(InvalidArgument, match=r"event.state_delta"):
        await service.append_event(session, fragment(1, state_delta={"a": {1, 2}}))
    assert await kept(service) == []
