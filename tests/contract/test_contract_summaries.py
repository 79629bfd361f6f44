"""Summaries: compaction of the oldest events of a session, and what it means for all else."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest
from support.events import LONG_AGO, numbers_of
from support.services import ServiceFactory
from support.sessions import IDS, KEY, OWNER, append_many, create, read

from sessionstore import (
    Event,
    InvalidArgument,
    LimitExceeded,
    Session,
    SessionKey,
    SessionNotFound,
    StaleVersion,
    Summary,
    TurnLost,
    Window,
)
from sessionstore.times import from_us


def turns(first: int, end: int, size: int = 2) -> list[Event]:
    """Events of turns of this size; the content of an event is its number.

    Their timestamps are the same, so their positions differ by a microsecond.
    """
    return [
        Event(
            "agent" if number % size else "user",
            number,
            invocation_id=f"i{number // size}",
            timestamp=LONG_AGO,
        )
        for number in range(first, end)
    ]


async def filled(service: Any, count: int = 10) -> tuple[Session, list[int]]:
    """A session of turns of two events, and their positions."""
    session = await create(service)
    await append_many(service, session, turns(0, count))
    return session, (await service.get_events(KEY, limit=10_000)).positions


async def whole_log(service: Any, key: SessionKey = KEY) -> list[Any]:
    return numbers_of((await service.get_events(key, limit=10_000)).events)


# -- what a summary shows -------------------------------------------------------------------------


async def test_a_summary_stands_for_what_it_covers(service: Any) -> None:
    session, positions = await filled(service)
    version = session.version
    before = datetime.now(UTC)
    summary = await service.compact_session(session, upto=positions[5], summary={"a": [1]})
    assert summary == Summary({"a": [1]}, positions[5], summary.created_at, 6)
    assert abs((summary.created_at - before).total_seconds()) < 60
    assert session.summary == summary
    assert session.version > version
    assert (numbers_of(session), session.event_count) == ([6, 7, 8, 9], 10)
    assert session == await read(service)
    assert await whole_log(service) == list(range(10))
    page = await service.get_events(KEY, newest=True, limit=8)
    assert page.positions == positions[2:]


async def test_every_way_to_read_leaves_out_what_is_covered(make_service: ServiceFactory) -> None:
    for refresh in (True, False):
        service = make_service(refresh_ttl_on_read=refresh)
        _, positions = await filled(service)
        await service.compact_session(KEY, upto=positions[5], summary="s")
        for service_of_reader in (service, make_service()):
            if await service_of_reader.get_session(**IDS) is None:
                continue  # services in memory share nothing
            for filters, expected in (
                ({}, [6, 7, 8, 9]),
                ({"event_num": 0}, []),
                ({"event_num": 3}, [7, 8, 9]),
                ({"event_num": 4}, [6, 7, 8, 9]),
                ({"event_num": 9}, [6, 7, 8, 9]),
                ({"event_time": datetime(2001, 1, 1, tzinfo=UTC)}, [6, 7, 8, 9]),
                ({"event_time": datetime(2001, 1, 1, tzinfo=UTC), "event_num": 2}, [8, 9]),
                ({"event_time": from_us(positions[8])}, [8, 9]),
                ({"window": Window(max_turns=1)}, [8, 9]),
                ({"window": Window(max_events=3)}, [8, 9]),
                ({"window": Window()}, [6, 7, 8, 9]),
            ):
                for method in (
                    service_of_reader.get_session,
                    service_of_reader.get_or_create_session,
                ):
                    found = await method(**IDS, **filters)
                    assert numbers_of(found) == expected, filters
                    assert (found.summary.content, found.event_count) == ("s", 10)
            for event_num, expected in ((0, []), (2, [8, 9]), (9, [6, 7, 8, 9])):
                [found] = await service_of_reader.list_sessions(**OWNER, event_num=event_num)
                assert numbers_of(found) == expected
                assert (found.summary.content, found.event_count) == ("s", 10)
        await service.delete_session(**IDS)
        assert (await create(service)).summary is None
        await service.delete_session(**IDS)


async def test_a_summary_of_everything(service: Any) -> None:
    session, positions = await filled(service)
    with pytest.raises(InvalidArgument, match="pass if_version or turn"):
        await service.compact_session(session, upto=positions[-1], summary="s")
    await service.compact_session(
        session, upto=positions[-1], summary="s", if_version=session.version
    )
    assert session == await read(service)
    assert session.events == []
    await service.append_event(session, Event("user", "next"))
    assert session == await read(service)
    assert numbers_of(session) == ["next"]
    turn = await service.acquire_turn(KEY)
    upto = (await service.get_events(KEY, newest=True, limit=1)).last
    await service.compact_session(KEY, upto=upto, summary="t", if_summary=positions[-1], turn=turn)
    assert (await read(service)).events == []


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_a_summary_is_any_value(make_service: ServiceFactory, codec: str) -> None:
    service = make_service(codec=codec)
    _, positions = await filled(service)
    base = None
    values: tuple[Any, ...] = ("ü", 0, False, -1.5, b"\x00raw", ["a", None], {"a": {"b": []}})
    for value in values:
        kept = await service.compact_session(KEY, upto=positions[1], summary=value, if_summary=base)
        base = positions[1]
        assert kept.content == value
        assert (await read(service)).summary == kept
        [listed] = await service.list_sessions(**OWNER)
        assert listed.summary == kept


async def test_events_after_a_summary_are_appended_as_usual(service: Any) -> None:
    session, positions = await filled(service)
    await service.compact_session(session, upto=positions[5], summary="s")
    again = session.events[0]
    covered = (await service.get_events(KEY, limit=1)).events[0]
    await service.append_event(KEY, again)
    await service.append_event(session, covered)  # deduplication sees it
    assert session == await read(service)
    await service.append_events(session, [covered, *turns(10, 12)])
    assert session == await read(service)
    assert numbers_of(session) == [6, 7, 8, 9, 10, 11]
    assert await whole_log(service) == list(range(12))


async def test_a_service_notices_another_summary(service: Any) -> None:
    """It remembers where summaries end."""
    _, positions = await filled(service)
    await service.compact_session(KEY, upto=positions[5], summary="s")
    assert numbers_of(await read(service)) == [6, 7, 8, 9]
    await service.rewind_session(KEY, to=positions[3])
    for window in (None, Window()):
        assert numbers_of(await service.get_or_create_session(**IDS, window=window)) == [0, 1, 2, 3]
    await service.compact_session(KEY, upto=positions[1], summary="t")
    await service.rewind_session(KEY, to=positions[0])
    assert numbers_of(await read(service, window=Window())) == [0]
    await service.append_events(KEY, turns(2, 4))
    await service.compact_session(KEY, upto=positions[0], summary="t")
    await service.clear_events(KEY)
    await service.append_events(KEY, turns(4, 6))
    assert numbers_of(await read(service, event_num=9)) == [4, 5]


# -- which summaries are allowed ------------------------------------------------------------------


async def test_of_two_summaries_one_wins(service: Any) -> None:
    session, positions = await filled(service)
    first = await service.compact_session(session, upto=positions[1], summary="first")
    with pytest.raises(StaleVersion, match="0 = no summary") as caught:
        await service.compact_session(KEY, upto=positions[3], summary="other")
    assert (caught.value.expected, caught.value.actual) == (0, positions[1])
    with pytest.raises(StaleVersion) as caught:
        await service.compact_session(
            KEY, upto=positions[5], summary="other", if_summary=positions[3]
        )
    assert (caught.value.expected, caught.value.actual) == (positions[3], positions[1])
    assert (await read(service)).summary == first
    second = await service.compact_session(
        session, upto=positions[5], summary="second", if_summary=positions[1]
    )
    assert second.num_events == 6
    assert session == await read(service)
    third = await service.compact_session(
        session, upto=positions[5], summary="third", if_summary=positions[5]
    )
    assert third.content == "third"
    assert session == await read(service)
    with pytest.raises(InvalidArgument, match="upto must not be before if_summary"):
        await service.compact_session(
            KEY, upto=positions[1], summary="back", if_summary=positions[5]
        )


async def test_a_repeat_finds_its_own_summary(service: Any) -> None:
    session, positions = await filled(service)
    version = session.version
    first = await service.compact_session(
        KEY, upto=positions[1], summary="s", drop=True, if_version=version
    )
    again = await service.compact_session(
        KEY, upto=positions[1], summary="s", drop=True, if_version=version
    )
    assert again == first
    assert (await read(service)).event_count == 8


async def test_a_summary_ends_where_a_turn_ends(service: Any) -> None:
    session, positions = await filled(service)
    for number in (0, 2, 8):
        with pytest.raises(InvalidArgument, match=f"no turn ends at position {positions[number]}"):
            await service.compact_session(KEY, upto=positions[number], summary="s")
    for upto in (5, positions[0] - 1, positions[9] + 1, 2**53 - 1):
        with pytest.raises(InvalidArgument, match=f"there is no event at position {upto}"):
            await service.compact_session(KEY, upto=upto, summary="s")
    assert (await read(service)).version == session.version
    each = Window(starts_turn=lambda event: event.content == 3)
    with pytest.raises(InvalidArgument, match="no turn ends"):
        await service.compact_session(KEY, upto=positions[2], summary="s", window=each)
    await service.append_events(
        KEY, [Event("user", "a"), Event("agent", "b"), Event("user", "c"), Event("agent", "d")]
    )
    *_, first, second, third, _ = (await service.get_events(KEY)).positions
    for upto in (first, third):
        with pytest.raises(InvalidArgument, match="no turn ends"):
            await service.compact_session(KEY, upto=upto, summary="s")
    await service.compact_session(KEY, upto=second, summary="s")


async def test_a_summary_does_not_end_inside_an_overlapping_turn(service: Any) -> None:
    await create(service)
    names = ["a", "b", "a", "b", "c", ""]
    await service.append_events(KEY, [Event("user", n, invocation_id=n) for n in names])
    positions = (await service.get_events(KEY)).positions
    for number in range(3):
        with pytest.raises(InvalidArgument, match="no turn ends"):
            await service.compact_session(KEY, upto=positions[number], summary="s")
    await service.compact_session(KEY, upto=positions[3], summary="s")


async def test_a_summary_does_not_end_between_a_call_and_its_result(service: Any) -> None:
    def calls(event: Event) -> tuple[Iterable[str], Iterable[str]]:
        return event.metadata.get("opens", ()), event.metadata.get("closes", ())

    await create(service)
    events = [
        Event("user", 0, invocation_id="a", metadata={"opens": ["x"]}),
        Event("user", 1, invocation_id="b"),
        Event("tool", 2, invocation_id="c", metadata={"closes": ["x"]}),
        Event("user", 3, invocation_id="d"),
    ]
    await service.append_events(KEY, events)
    positions = (await service.get_events(KEY)).positions
    window = Window(calls=calls)
    for number in range(2):
        with pytest.raises(InvalidArgument, match="no turn ends"):
            await service.compact_session(KEY, upto=positions[number], summary="s", window=window)
    await service.compact_session(KEY, upto=positions[2], summary="s", window=window)


@pytest.mark.parametrize("summary", [None, "", " \n", b"", [], {}])
async def test_a_summary_is_not_empty(service: Any, summary: Any) -> None:
    _, positions = await filled(service)
    with pytest.raises(InvalidArgument, match="summary must not be empty"):
        await service.compact_session(KEY, upto=positions[1], summary=summary)


async def test_a_summary_has_a_limit(make_service: ServiceFactory) -> None:
    service = make_service()
    _, positions = await filled(service)
    with pytest.raises(LimitExceeded) as caught:
        await service.compact_session(KEY, upto=positions[1], summary="x" * (16 << 10))
    assert (caught.value.limit, caught.value.actual) == (16 << 10, (16 << 10) + 2)
    await service.compact_session(KEY, upto=positions[1], summary="x" * ((16 << 10) - 2))
    small = make_service(summary_size_limit=4)
    _, positions = await filled(small) if await small.get_session(**IDS) is None else (0, positions)
    with pytest.raises(LimitExceeded, match="summary is 5 bytes"):
        await small.compact_session(KEY, upto=positions[1], summary="xyz")


async def test_other_arguments_of_a_summary_are_checked(service: Any) -> None:
    session, positions = await filled(service)
    upto = positions[1]
    turn = await service.acquire_turn(KEY)
    for arguments, message in (
        ({"upto": -1}, "upto must be at least 0"),
        ({"upto": "1"}, "upto must be an int"),
        ({"if_summary": -1}, "if_summary must be"),
        ({"if_summary": 1.5}, "if_summary must be an int"),
        ({"drop": 1}, "drop must be True or False"),
        ({"window": 3}, "window must be a Window"),
        ({"turn": "t"}, "turn must be a Turn"),
        ({"turn": turn, "if_version": 1}, "if_version and turn"),
        ({"summary": {1, 2}}, "summary is a set"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            await service.compact_session(KEY, **{"upto": upto, "summary": "s", **arguments})
    with pytest.raises(InvalidArgument, match="session must be a Session"):
        await service.compact_session("sid", upto=upto, summary="s")
    with pytest.raises(SessionNotFound):
        await service.compact_session(SessionKey("app", "user", "-"), upto=upto, summary="s")
    with pytest.raises(StaleVersion):
        await service.compact_session(KEY, upto=upto, summary="s", if_version=1)
    await service.release_turn(turn)
    await service.acquire_turn(KEY)
    with pytest.raises(TurnLost):
        await service.compact_session(KEY, upto=upto, summary="s", turn=turn)
    await service.delete_session(**IDS)
    _, positions = await filled(service)
    with pytest.raises(SessionNotFound):
        await service.compact_session(session, upto=positions[1], summary="s")
    assert (await read(service)).summary is None


# -- the limit of events --------------------------------------------------------------------------


async def test_covered_events_are_trimmed_first(make_service: ServiceFactory) -> None:
    service = make_service(session_event_limit=10)
    session, positions = await filled(service)
    await service.compact_session(session, upto=positions[5], summary="s")
    expected = list(range(6, 10))
    for number in range(10, 15):  # one at a time, and several
        [event] = turns(number, number + 1)
        await service.append_event(session, event)
        expected.append(number)
        assert session == await read(service)
        assert numbers_of(session) == expected
        assert session.summary is not None
        assert session.summary.num_events == 15 - number
    await service.append_events(session, turns(15, 18))
    expected += range(15, 18)
    assert session == await read(service)
    assert session.summary is not None
    assert session.summary.num_events == 0
    assert numbers_of(session) == expected[2:]
    assert session.summary.content == "s"
    assert await whole_log(service) == expected[2:]


async def test_a_batch_larger_than_the_limit(make_service: ServiceFactory) -> None:
    service = make_service(session_event_limit=10)
    session, positions = await filled(service)
    await service.compact_session(session, upto=positions[5], summary="s")
    await service.append_events(session, turns(10, 30))
    assert session == await read(service)
    assert session.summary is not None
    assert session.summary.num_events == 0


async def test_a_window_begins_after_the_summary_though_the_log_is_full(
    make_service: ServiceFactory,
) -> None:
    service = make_service(session_event_limit=10)
    await create(service)
    # Turns that begin with the agent: a log that was trimmed may not begin with one.
    events = [Event("agent", n, invocation_id=f"i{n // 2}") for n in range(10)]
    await service.append_events(KEY, events)
    await service.append_event(KEY, Event("agent", 10, invocation_id="i5"))
    positions = (await service.get_events(KEY)).positions
    assert numbers_of(await read(service, window=Window())) == list(range(2, 11))
    await service.compact_session(KEY, upto=positions[4], summary="s")
    assert numbers_of(await read(service, window=Window())) == list(range(6, 11))
    assert numbers_of(await read(service, window=Window(max_turns=2))) == [8, 9, 10]


async def test_a_window_of_a_long_session_reads_only_what_is_after_the_summary(
    make_service: ServiceFactory,
) -> None:
    service = make_service(session_event_limit=None)
    _, positions = await filled(service, 400)
    await service.compact_session(KEY, upto=positions[199], summary="s")
    assert numbers_of(await read(service, window=Window())) == list(range(200, 400))
    assert numbers_of(await read(service, window=Window(max_turns=60))) == list(range(280, 400))
    assert numbers_of(await read(service, window=Window(max_turns=200))) == list(range(200, 400))


# -- drop -----------------------------------------------------------------------------------------


async def test_covered_events_can_be_dropped(service: Any) -> None:
    session, positions = await filled(service)
    summary = await service.compact_session(session, upto=positions[5], summary="s", drop=True)
    assert summary.num_events == 0
    assert (session.event_count, numbers_of(session)) == (4, [6, 7, 8, 9])
    assert session == await read(service)
    assert await whole_log(service) == [6, 7, 8, 9]
    assert numbers_of(await read(service, window=Window())) == [6, 7, 8, 9]
    await service.append_events(session, turns(10, 12))
    assert session == await read(service)
    second = await service.compact_session(
        session, upto=positions[7], summary="t", if_summary=positions[5]
    )
    assert second.num_events == 2
    assert session == await read(service)
    # The text of a summary can be replaced, though the event at its end is gone.
    await service.compact_session(
        KEY, upto=positions[7], summary="t", if_summary=positions[7], drop=True
    )
    third = await service.compact_session(
        KEY, upto=positions[7], summary="redacted", if_summary=positions[7]
    )
    assert (third.num_events, third.content) == (0, "redacted")


async def test_a_whole_log_can_be_dropped(service: Any) -> None:
    session, positions = await filled(service)
    await service.compact_session(
        session, upto=positions[9], summary="s", drop=True, if_version=session.version
    )
    assert (session.event_count, session.events) == (0, [])
    assert session == await read(service)
    assert await service.pop_event(session) is None
    await service.append_event(session, Event("user", "next"))
    assert session == await read(service)
    assert (await service.get_events(KEY)).positions[0] > positions[9]


async def test_many_events_are_dropped_at_once(make_service: ServiceFactory) -> None:
    service = make_service(session_event_limit=None)
    session, positions = await filled(service, 10_050)
    positions += (await service.get_events(KEY, after=positions[-1])).positions
    await service.compact_session(session, upto=positions[9_999], summary="s", drop=True)
    found = await read(service)
    assert numbers_of(found) == list(range(10_000, 10_050))
    assert found == session


# -- what removes or keeps a summary --------------------------------------------------------------


async def test_clearing_removes_the_summary(service: Any) -> None:
    session, positions = await filled(service)
    await service.compact_session(session, upto=positions[5], summary="s")
    await service.clear_events(session)
    assert session.summary is None
    assert session == await read(service)
    await service.append_events(session, turns(10, 12))
    assert session == await read(service)


async def test_popping_stops_at_the_summary(service: Any) -> None:
    session, positions = await filled(service)
    await service.compact_session(session, upto=positions[7], summary="s")
    popped = [await service.pop_event(session) for _ in range(3)]
    assert [event and event.content for event in popped] == [9, 8, None]
    assert session == await read(service)
    assert session.event_count == 8
    assert await whole_log(service) == list(range(8))


async def test_a_rewind_behind_the_summary_removes_it(service: Any) -> None:
    session, positions = await filled(service)
    await service.compact_session(session, upto=positions[5], summary="s")
    assert await service.rewind_session(session, to=positions[7]) == 2
    assert session == await read(service)
    assert numbers_of(session) == [6, 7]
    assert await service.rewind_session(session, to=positions[5]) == 2
    assert session == await read(service)
    assert (session.events, session.summary is None) == ([], False)
    assert await service.rewind_session(session, to=positions[3]) == 2
    assert session == await read(service)
    assert (numbers_of(session), session.summary) == ([0, 1, 2, 3], None)


@pytest.mark.parametrize("how", ["dropped", "trimmed", "dropped before"])
async def test_a_rewind_behind_the_summary_is_refused_if_covered_events_are_gone(
    make_service: ServiceFactory, how: str
) -> None:
    service = make_service(session_event_limit=10)
    session, positions = await filled(service)
    is_dropped = how != "trimmed"
    await service.compact_session(session, upto=positions[3], summary="s", drop=is_dropped)
    if how == "dropped before":
        await service.compact_session(
            session, upto=positions[5], summary="t", if_summary=positions[3]
        )
        assert session.summary is not None
        assert session.summary.num_events == 2
    elif how == "trimmed":
        await service.append_event(session, Event("user", 10))
    upto = positions[5] if how == "dropped before" else positions[3]
    with pytest.raises(InvalidArgument, match=f"to must be at least {upto}"):
        await service.rewind_session(session, to=upto - 1)
    assert session == await read(service)
    await service.rewind_session(session, to=upto)
    assert session == await read(service)
    assert session.events == []
    assert session.summary is not None


async def test_changing_a_covered_event_removes_the_summary(service: Any) -> None:
    session, positions = await filled(service)
    log = list(session.events)
    await service.compact_session(session, upto=positions[5], summary="s")
    # After the summary nothing happens to it.
    new = Event("user", "new", invocation_id="i3")
    await service.replace_event(session, positions[6], log[6], new)
    assert await service.delete_event(session, positions[7], log[7])
    assert session == await read(service)
    assert session.summary is not None
    assert numbers_of(session) == ["new", 8, 9]
    redacted = Event("user", "redacted")
    await service.replace_event(session, positions[5], log[5], redacted)
    assert session == await read(service)
    assert session.summary is None
    assert numbers_of(session) == [0, 1, 2, 3, 4, "redacted", "new", 8, 9]
    await service.compact_session(session, upto=positions[1], summary="t")
    assert await service.delete_event(session, positions[0], log[0])
    assert session == await read(service)
    assert session.summary is None
    assert numbers_of(session) == [1, 2, 3, 4, "redacted", "new", 8, 9]


async def test_a_fork_has_the_summary_only_with_all_that_it_covers(service: Any) -> None:
    session, positions = await filled(service)
    await service.compact_session(session, upto=positions[5], summary="s")
    for upto, shown, log in (
        (None, [6, 7, 8, 9], 10),
        (positions[7], [6, 7], 8),
        (positions[5], [], 6),
        (positions[4], [0, 1, 2, 3, 4], 5),
    ):
        copy = await service.fork_session(session, upto=upto)
        has_summary = log > 5
        assert (copy.summary == session.summary) is has_summary
        assert copy.event_count == log
        found = await read(service, copy.key)
        assert numbers_of(found) == shown
        assert found.summary == copy.summary
        assert await whole_log(service, copy.key) == list(range(log))
    copy = await service.fork_session(session)
    await service.compact_session(
        copy, upto=positions[7], summary="t", if_summary=positions[5], drop=True
    )
    assert session == await read(service)
    other = await service.fork_session(copy)
    assert (other.event_count, other.summary.content) == (2, "t")


async def test_what_follows_in_a_fork_is_never_covered(service: Any) -> None:
    session, positions = await filled(service)
    await service.compact_session(session, upto=positions[5], summary="s", drop=True)
    copy = await service.fork_session(session, upto=positions[5])
    assert (copy.event_count, copy.summary) == (0, session.summary)
    await service.append_event(copy.key, Event("user", 77, timestamp=LONG_AGO))
    for _ in range(2):  # the second read leaves out what is covered
        assert numbers_of(await read(service, copy.key)) == [77]


async def test_a_summary_stays_whatever_else_is_written(service: Any) -> None:
    session, positions = await filled(service)
    await service.compact_session(session, upto=positions[5], summary="s")
    await service.update_session_state(session, {"a": 1, "user:b": 2})
    await service.increment_session_state(session, {"n": 1})
    await service.delete_session_state(session, "a")
    turn = await service.acquire_turn(session)
    await service.append_event(session, turns(10, 11)[0], turn=turn)
    await service.release_turn(turn)
    assert session == await read(service)
    repaired = await service.repair_session(session)
    assert (repaired.summary, repaired.events) == (session.summary, session.events)
    session = await read(service)
    assert session.state == {"user:b": 2, "n": 1}


async def test_a_session_that_others_changed_is_read_again(service: Any) -> None:
    session, positions = await filled(service)
    await service.append_events(KEY, turns(10, 12))
    await service.compact_session(session, upto=positions[5], summary="s")
    assert session == await read(service)
    assert numbers_of(session) == list(range(6, 12))
    old = await read(service)
    await service.append_events(KEY, turns(12, 14))
    await service.rewind_session(old, to=positions[1])
    assert old == await read(service)
    assert numbers_of(old) == [0, 1]
