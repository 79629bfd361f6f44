"""Many calls at once on one session: nothing is lost or torn, and one of many wins."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import Any

from contract_support import results_of, run_all
from support.events import numbers_of
from support.services import ServiceFactory
from support.sessions import APP, IDS, KEY, OWNER, USER, create, read

from sessionstore import Event, Session, SessionExists, SessionNotFound, StaleVersion


async def test_writers_with_stale_sessions_lose_nothing(service: Any) -> None:
    """20 writers make 50 appends each, and none reads the appends of the others."""
    writers, appends = 20, 50
    await create(service)
    handles = [await read(service) for _ in range(writers)]

    async def write(writer: int) -> None:
        for number in range(appends):
            delta = {
                f"{writer}-{number}": number,
                f"last-{writer}": number,
                f"user:{writer}": number,
            }
            event = Event(f"writer {writer}", [writer, number], state_delta=delta)
            await service.append_event(handles[writer], event)

    results_of(await run_all(write(writer) for writer in range(writers)))
    found = await read(service)
    assert len(found.events) == writers * appends
    assert found.version == max(handle.version for handle in handles)
    assert len({handle.version for handle in handles}) == writers
    for writer in range(writers):
        own = [number for one, number in numbers_of(found) if one == writer]
        assert own == list(range(appends))
        assert numbers_of(handles[writer]) == [[writer, number] for number in range(appends)]
    expected = {f"{writer}-{n}": n for writer in range(writers) for n in range(appends)}
    expected |= {f"last-{writer}": appends - 1 for writer in range(writers)}
    expected |= {f"user:{writer}": appends - 1 for writer in range(writers)}
    assert found.state == expected


async def test_of_many_get_or_creates_one_creates(service: Any) -> None:
    attempts = [
        service.get_or_create_session(**IDS, state={"winner": number, f"of-{number}": True})
        for number in range(50)
    ]
    sessions: list[Session] = results_of(await run_all(attempts))
    winner = sessions[0].state["winner"]
    for session in sessions:
        assert session == sessions[0]
    assert sessions[0].state == {"winner": winner, f"of-{winner}": True}
    assert await read(service) == sessions[0]
    assert len(await service.list_sessions(**OWNER)) == 1


async def test_of_many_creates_one_succeeds_and_the_others_raise(service: Any) -> None:
    outcomes = await run_all(
        service.create_session(**IDS, state={"winner": number, f"user:{number}": True})
        for number in range(30)
    )
    winners = [outcome for outcome in outcomes if isinstance(outcome, Session)]
    assert len(winners) == 1
    assert sum(isinstance(outcome, SessionExists) for outcome in outcomes) == 29
    assert await read(service) == winners[0]
    assert len(winners[0].state) == 2


async def test_of_many_writes_for_one_version_one_wins(service: Any) -> None:
    await create(service)
    for round_number in range(5):
        version = (await read(service)).version
        outcomes = await run_all(
            service.append_event(
                KEY,
                Event("user", [round_number, number], state_delta={"winner": number}),
                if_version=version,
            )
            for number in range(20)
        )
        winners = [outcome for outcome in outcomes if isinstance(outcome, Event)]
        stale = [outcome for outcome in outcomes if isinstance(outcome, StaleVersion)]
        assert (len(winners), len(stale)) == (1, 19)
        found = await read(service)
        assert found.version > version
        assert {(error.expected, error.actual) for error in stale} == {(version, found.version)}
        assert found.events[-1] == winners[0]
        assert found.state["winner"] == winners[0].content[1]
    assert len((await read(service)).events) == 5


async def test_a_counter_by_version_counts_every_step(service: Any) -> None:
    await create(service, state={"count": 0})

    async def add_one() -> None:
        while True:
            session = await read(service, event_num=0)
            count = {"count": session.state["count"] + 1}
            try:
                await service.update_session_state(session, count, if_version=session.version)
            except StaleVersion:
                continue
            return

    results_of(await run_all(add_one() for _ in range(20)))
    found = await read(service)
    assert found.state == {"count": 20}


async def test_a_read_is_a_snapshot(make_service: ServiceFactory, app_in_own_slot: bool) -> None:
    """A writer appends event n with delta n. No reader sees one without the other."""
    service = make_service(session_event_limit=10)
    names = ["n", "user:n"] if app_in_own_slot else ["n", "user:n", "app:n"]
    await create(service, state=dict.fromkeys(names, -1))
    total = 150
    done = asyncio.Event()

    async def write() -> None:
        try:
            for number in range(total):
                delta = dict.fromkeys(names, number)
                await service.append_event(KEY, Event("user", number, state_delta=delta))
                await asyncio.sleep(0)
        finally:
            done.set()

    async def check(read_one: Any) -> int:
        reads = 0
        while not done.is_set():
            found = await read_one()
            newest = found.events[-1].content if found.events else -1
            assert found.state == dict.fromkeys(names, newest)
            assert numbers_of(found) == list(range(newest + 1))[-len(found.events) :]
            reads += 1
            await asyncio.sleep(0)
        return reads

    async def get() -> Session:
        return await read(service)

    async def get_newest() -> Session:
        return await read(service, event_num=3)

    async def get_or_create() -> Session:
        found: Session = await service.get_or_create_session(**IDS, event_num=2)
        return found

    async def from_list() -> Session:
        [found] = await service.list_sessions(**OWNER, event_num=2)
        assert isinstance(found, Session)
        return found

    readers = [check(one) for one in (get, get_newest, get_or_create, from_list)]
    _, *reads = results_of(await run_all([write(), *readers]))
    assert 0 not in reads
    assert (await read(service)).state["n"] == total - 1


async def test_a_batch_is_seen_whole_or_not_at_all(service: Any) -> None:
    await create(service)
    done = asyncio.Event()

    async def write() -> None:
        try:
            for number in range(40):
                batch = [Event("user", number, state_delta={f"part-{i}": number}) for i in range(5)]
                await service.append_events(KEY, batch)
                await asyncio.sleep(0)
        finally:
            done.set()

    async def check() -> int:
        reads = 0
        while not done.is_set():
            found = await read(service)
            assert set(Counter(numbers_of(found)).values()) <= {5}
            assert len(set(found.state.values())) <= 1
            page = await service.get_events(KEY, limit=10_000)
            assert set(Counter(numbers_of(page.events)).values()) <= {5}
            reads += 1
            await asyncio.sleep(0)
        return reads

    _, *reads = results_of(await run_all([write(), check(), check()]))
    assert 0 not in reads
    assert len((await read(service)).events) == 200


async def test_poppers_and_writers_take_and_leave_every_event_once(service: Any) -> None:
    await create(service)
    popped: list[Any] = []

    async def write(writer: int) -> None:
        for number in range(25):
            await service.append_event(KEY, Event("user", (writer * 25 + number)))

    async def pop() -> None:
        for _ in range(25):
            event = await service.pop_event(KEY)
            if event is not None:
                popped.append(event.content)

    work: list[Awaitable[None]] = [write(number) for number in range(4)]
    results_of(await run_all([*work, *(pop() for _ in range(3))]))
    left = numbers_of(await read(service))
    assert sorted(popped + left) == list(range(100))


async def test_deltas_of_many_sessions_meet_in_the_shared_tiers(service: Any) -> None:
    sessions = [await service.create_session(**OWNER) for _ in range(10)]

    async def write(number: int) -> None:
        for step in range(10):
            delta = {f"user:{number}-{step}": step, f"app:{number}-{step}": step, "own": step}
            await service.append_event(sessions[number], Event("user", state_delta=delta))

    results_of(await run_all(write(number) for number in range(10)))
    expected = {f"{number}-{step}": step for number in range(10) for step in range(10)}
    assert await service.get_user_state(APP, USER) == expected
    assert await service.get_app_state(APP) == expected


async def test_deleting_while_others_write_leaves_nothing_or_a_new_session(service: Any) -> None:
    """A write is done before the deletion, or refused. It never restores a part of the session."""
    done = asyncio.Event()

    async def write() -> None:
        number = 0
        while not done.is_set():
            try:
                await service.append_event(KEY, Event("user", number, state_delta={"n": number}))
            except SessionNotFound:
                await service.get_or_create_session(**IDS, state={"n": None})
            number += 1
            await asyncio.sleep(0)  # in memory nothing else lets the others run

    async def delete() -> None:
        try:
            checked = 0
            while checked < 15:
                found = await service.get_session(**IDS)
                await asyncio.sleep(0)
                if found is not None:
                    newest = found.events[-1].content if found.events else None
                    assert found.state["n"] == newest
                    checked += 1
                    await service.delete_session(**IDS)
        finally:
            done.set()

    results_of(await run_all([write(), delete(), write()]))
    await service.delete_session(**IDS)
    assert await service.get_session(**IDS) is None
    assert await service.list_sessions(**OWNER) == []


async def test_the_same_event_from_many_at_once_is_stored_once(service: Any) -> None:
    await create(service, state={"n": 0})
    event = Event("user", "once", state_delta={"n": 1})
    results_of(await run_all(service.append_event(KEY, event) for _ in range(30)))
    found = await read(service)
    assert found.events == [event]
    assert found.state == {"n": 1}
