"""Copies of app tiers: their age and number, and reads that overlap with writes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.clock import Clock
from support.operations import OPERATIONS, Operation
from support.scene import set_scene, shown, stored
from support.services import make_ops
from support.sessions import APP, IDS, KEY, OWNER, create, read

from sessionstore import (
    BackendUnavailable,
    Event,
    InMemorySessionService,
    SessionKey,
    SessionService,
)
from sessionstore.app_copies import APPS_LIMIT, BYTES_LIMIT, AppCopies
from sessionstore.calls import Call
from sessionstore.observe import wrap_executor
from sessionstore.twin import AsyncMemoryExecutor, MemoryExecutor

WITH_APP_STATE = [operation for operation in OPERATIONS if operation.uses("app")]

REPLY = [b"k", b"1"]
A, B = b"appdata:{a}", b"appdata:{b}"


def put(copies: AppCopies, tier: bytes, reply: Any = REPLY, size: int = 2) -> None:
    copies.put(tier, copies.begin(), reply, size)


@pytest.fixture
def now() -> list[float]:
    return [100.0]


@pytest.fixture
def copies(now: list[float]) -> AppCopies:
    return AppCopies(5.0, lambda: now[0])


def test_a_copy_is_as_old_as_the_start_of_its_read(copies: AppCopies, now: list[float]) -> None:
    begun = copies.begin()
    now[0] += 3
    copies.put(A, begun, REPLY, 2)
    now[0] += 1.9
    assert copies.get(A) == REPLY
    now[0] += 0.2
    assert copies.get(A) is None


def test_a_read_from_before_a_write_is_not_kept(copies: AppCopies) -> None:
    put(copies, A)
    before = copies.begin()
    copies.forget(A)
    assert copies.get(A) is None
    during = copies.begin()
    copies.forget(A)
    for overtaken in (before, during):
        copies.put(A, overtaken, REPLY, 2)
        assert copies.get(A) is None
    copies.put(B, before, REPLY, 2)  # of another application
    assert copies.get(B) == REPLY
    put(copies, A)
    assert copies.get(A) == REPLY


def test_copies_are_bounded_in_number_and_size(copies: AppCopies) -> None:
    for number in range(APPS_LIMIT + 1):
        put(copies, b"%d" % number)
    assert copies.get(b"0") is None
    assert copies.get(b"1") == REPLY
    put(copies, A, size=BYTES_LIMIT)
    assert copies.get(A) == REPLY
    assert copies.get(b"%d" % APPS_LIMIT) is None
    put(copies, B, size=BYTES_LIMIT + 1)
    assert copies.get(B) is None
    assert copies.get(A) == REPLY
    put(copies, B, size=1)
    assert copies.get(A) is None  # 16 MiB are full


def test_many_writes_are_not_remembered_and_still_refuse_older_reads(copies: AppCopies) -> None:
    before = copies.begin()
    for number in range(10_001):
        copies.forget(b"%d" % number)
    copies.put(A, before, REPLY, 2)
    copies.put(b"3", before, REPLY, 2)
    assert copies.get(A) is None
    assert copies.get(b"3") is None
    put(copies, b"3")
    assert copies.get(b"3") == REPLY


# -- in a service ---------------------------------------------------------------------------------


class Recording:
    """Records Calls. `held`: the next reply to this Call waits until `release` is set."""

    def __init__(self, memory: MemoryExecutor) -> None:
        self.names: list[str] = []
        self.held = ""
        self.fails = ""
        self.has_reply, self.release = asyncio.Event(), asyncio.Event()
        self._memory = memory

    async def execute(self, call: Call[Any]) -> list[Any]:
        self.names.append(call.name)
        replies = self._memory.execute(call)
        if call.name == self.held:
            self.held = ""
            self.has_reply.set()
            await self.release.wait()
        if call.name == self.fails:
            raise BackendUnavailable("the reply is lost", maybe_applied=True)
        return replies

    async def aclose(self) -> None:
        pass


class Place:
    """A service whose app tier has a slot of its own, in memory, and a clock."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.memory = MemoryExecutor(clock=self.clock)
        ops = make_ops(app_in_own_slot=True, clock=self.clock, **options)
        self.sent = Recording(self.memory)
        self.service = SessionService(ops, AsyncMemoryExecutor(self.memory))
        wrap_executor(self.service, lambda _: self.sent)
        self.other = SessionService(
            make_ops(app_in_own_slot=True), AsyncMemoryExecutor(self.memory)
        )

    def expire(self, key: SessionKey) -> None:
        names = self.service._ops.options.keys.session(key.app_name, key.user_id, key.session_id)
        self.memory.keyspace.unlink(names.session, names.events)

    def take(self) -> list[str]:
        """The names of the Calls since the last call of `take`."""
        names, self.sent.names = self.sent.names, []
        return names


@pytest.fixture
def place() -> Place:
    return Place(app_state_max_age=60)


async def test_reads_ask_one_server_while_the_copy_is_young(place: Place) -> None:
    service = place.service
    await service.update_app_state(APP, {"plan": "pro"})
    await create(service)
    place.take()
    for _ in range(3):
        assert (await read(service)).state == {"app:plan": "pro"}
    await service.get_session(**IDS, event_num=0)
    [listed] = await service.list_sessions(**OWNER)
    assert listed.state == {"app:plan": "pro"}
    assert await service.get_app_state(APP) == {"plan": "pro"}
    assert (await service.repair_session(KEY)).state == {"app:plan": "pro"}
    await service.fork_session(KEY)
    assert "get_app_state" not in place.take()
    await place.other.update_app_state(APP, {"plan": "free"})
    assert (await read(service)).state == {"app:plan": "pro"}
    place.clock.advance(61)
    assert (await read(service)).state == {"app:plan": "free"}
    assert place.take() == ["get_session", "get_session", "get_app_state"]


async def test_a_list_makes_a_copy_too(place: Place) -> None:
    await create(place.service)
    place.clock.advance(61)
    place.take()
    await place.service.list_sessions(**OWNER)
    await read(place.service)
    assert place.take() == [*["list_sessions"] * 3, "get_session"]


async def test_own_writes_are_visible_at_once(place: Place) -> None:
    service = place.service
    session = await create(service, state={"app:a": 1})

    async def check(**state: Any) -> None:
        expected = {f"app:{name}": value for name, value in state.items()}
        for _ in range(2):
            assert (await read(service)).state == expected
            assert (await service.list_sessions(**OWNER))[0].state == expected
            assert await service.get_app_state(APP) == state

    await check(a=1)
    await service.append_event(session, Event("user", "x", state_delta={"app:b": [2]}))
    await check(a=1, b=[2])
    await service.append_events(KEY, [Event("user", "x", state_removed=["app:a"])])
    await check(b=[2])
    await service.increment_app_state(APP, {"n": 3})
    await check(b=[2], n=3)
    await service.update_session_state(KEY, {"app:n": 4})
    await check(b=[2], n=4)
    await service.delete_app_state(APP, "n")
    await check(b=[2])
    (await read(service)).state["app:b"].append(3)  # no caller shares a value
    (await service.get_app_state(APP))["b"].append(3)
    await check(b=[2])


@pytest.mark.parametrize("operation", WITH_APP_STATE, ids=lambda operation: operation.name)
async def test_every_operation_gives_the_same_with_copies(operation: Operation) -> None:
    results = []
    for options in ({}, {"app_state_max_age": 600}):
        place = Place(**options)
        service = place.service
        scene = await set_scene(service, operation, expire=place.expire)
        await service.get_app_state(scene.key.app_name)  # makes a copy
        result = shown(await operation.run(service, scene))
        after = [shown(await read(service, scene.key)) if operation.kind != "delete" else None]
        after += [await stored(service, scene.key), await stored(place.other, scene.key)]
        results.append((result, *after))
    assert results[0] == results[1]


async def test_a_read_that_a_write_overtakes_does_not_bring_back_the_old_value(
    place: Place,
) -> None:
    service, sent = place.service, place.sent
    await service.update_app_state(APP, {"n": 1})
    sent.held = "get_app_state"
    reading = asyncio.create_task(service.get_app_state(APP))
    await sent.has_reply.wait()
    await service.update_app_state(APP, {"n": 2})
    sent.release.set()
    assert await reading == {"n": 1}
    assert await service.get_app_state(APP) == {"n": 2}
    assert await service.get_app_state(APP) == {"n": 2}


async def test_a_read_during_a_write_is_not_kept_also_if_the_write_fails_or_is_cancelled(
    place: Place,
) -> None:
    service, sent = place.service, place.sent
    for end in ("done", "lost", "cancelled"):
        sent.has_reply, sent.release = asyncio.Event(), asyncio.Event()
        sent.held = "update_app_state"
        sent.fails = "update_app_state" if end == "lost" else ""
        writing = asyncio.create_task(service.update_app_state(APP, {"n": end}))
        await sent.has_reply.wait()
        await service.get_app_state(APP)
        if end == "cancelled":
            writing.cancel()
        sent.release.set()
        await asyncio.wait([writing])
        assert writing.cancelled() or (writing.exception() is None) == (end == "done")
        place.take()
        assert await service.get_app_state(APP) == {"n": end}
        assert place.take() == ["get_app_state"]


async def test_reads_from_copies_still_refresh_the_ttl() -> None:
    place = Place(app_state_max_age=3600, app_state_ttl=64, session_ttl=3600)
    service = place.service
    await service.update_app_state(APP, {"n": 1})
    await create(service)
    place.take()
    for _ in range(300):
        place.clock.advance(0.5)
        await service.list_sessions(**OWNER)
        assert (await read(service)).state == {"app:n": 1}
    names = place.take()
    assert 100 <= names.count("get_app_state") <= 200  # a 64th of the TTL is a second


def test_a_copy_is_read_from_the_primary() -> None:
    ops = make_ops(app_in_own_slot=True, app_state_max_age=1, refresh_ttl_on_read=False)
    assert ops.get_app_state(APP).from_primary
    assert ops.list_app_state(APP).from_primary
    ops = make_ops(app_in_own_slot=True, refresh_ttl_on_read=False)
    assert not ops.get_app_state(APP).from_primary


async def test_in_memory_the_option_has_no_effect() -> None:
    service = InMemorySessionService(app_state_max_age=60)
    await create(service, state={"app:n": 1})
    assert not service._ops.app_copies
    assert (await read(service)).state == {"app:n": 1}
