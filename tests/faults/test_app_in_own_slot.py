"""Writes of two steps, where the app tier has a cluster slot of its own: the app state comes first.

Each step fails once, before it is sent or after it was carried out. Repeating the call completes
it, and the error says which part is done.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import pytest
from support.events import make_event
from support.services import MODES, make_ops, make_service
from support.sessions import IDS, KEY, create, read
from test_fail_at_n import Fault, FaultyAsync, FaultySync, When

from benchmarks.rigs.clusters import Cluster
from sessionstore import (
    BackendRejected,
    BackendUnavailable,
    NotReplicated,
    SessionExists,
    SessionNotFound,
    SessionService,
    SessionStoreError,
    StaleVersion,
    TurnLost,
)
from sessionstore.calls import AsyncExecutor, Call
from sessionstore.observe import wrap_executor
from sessionstore.twin import AsyncMemoryExecutor, MemoryExecutor

pytestmark = pytest.mark.without_ttl

BOTH = {"app:plan": "pro", "x": 1}
EVENT = make_event("e", state_delta=BOTH)
BATCH = [make_event("f"), make_event("g", state_delta={"x": 0}), EVENT]

Write = Callable[[Any, Any], Awaitable[Any]]

CREATES: dict[str, Write] = {
    "create_session": lambda s, _: s.create_session(**IDS, state=BOTH),
    "get_or_create_session": lambda s, _: s.get_or_create_session(**IDS, state=BOTH),
}
WRITES: dict[str, Write] = {
    "append_event": lambda s, x: s.append_event(x, EVENT),
    "append_event if_version": lambda s, x: s.append_event(x, EVENT, if_version=x.version),
    "append_events": lambda s, x: s.append_events(x, BATCH),
    "update": lambda s, x: s.update_session_state(x, BOTH),
    "update if_version": lambda s, x: s.update_session_state(x, BOTH, if_version=x.version),
    "update if_absent": lambda s, x: s.update_session_state(x, BOTH, if_absent=True),
}


class Places:
    """Services whose app tier has a slot of its own, in memory or on a cluster, with faults."""

    def __init__(self, wrap: Callable[[AsyncExecutor], AsyncExecutor]) -> None:
        self.memory = MemoryExecutor()
        self.service = SessionService(
            make_ops(app_in_own_slot=True), AsyncMemoryExecutor(self.memory)
        )
        wrap_executor(self.service, wrap)


def in_memory(fault: Fault) -> SessionService:
    return Places(lambda inner: FaultyAsync(inner, fault)).service


async def check_repeats(make: Callable[[Fault], Any], write: Write, when: When) -> None:
    """Fail each call of a write once; repeat the write."""
    num_failures = 0
    for at in range(1, 7):  # more than any write has calls
        fault = Fault()
        service = make(fault)
        is_create = write in CREATES.values()
        session = None if is_create else await create(service)
        fault.arm(at, when)
        try:
            await write(service, session)
        except BackendUnavailable as caught:
            error = caught
        else:
            # Of two calls that are sent together, the first may not fail after it was carried out.
            continue
        num_failures += 1
        fault.arm(0, when)
        app_state = await service.get_app_state(KEY.app_name)
        found = await service.get_session(**IDS)
        is_written = found is not None and found.state.get("x") == 1
        # Never the session without the app state.
        assert app_state or not is_written
        if app_state or is_written:
            assert error.maybe_applied
        if app_state and is_written:
            assert "the app state is written, the session may be" in str(error)
        elif app_state and when == "before":
            assert "the app state is written, the session is not" in str(error)
        elif app_state:
            assert re.search("the app state (may be|is) written, the session is not", str(error))
        try:
            await write(service, session)
        except (SessionExists, StaleVersion):
            assert is_written
        found = await read(service)
        assert found.state == BOTH
        if session is not None and not is_written:
            assert session.state == BOTH
            assert session.version == found.version
    assert num_failures >= 3


each_write = pytest.mark.parametrize("name", [*CREATES, *WRITES])
each_when = pytest.mark.parametrize("when", ["before", "after"])


@each_write
@each_when
async def test_repeating_completes(name: str, when: When) -> None:
    await check_repeats(in_memory, {**CREATES, **WRITES}[name], when)


@pytest.mark.parametrize("mode", MODES)
@each_write
@each_when
async def test_repeating_completes_on_a_cluster(
    cluster: Cluster, mode: str, name: str, when: When
) -> None:
    services = []

    def make(fault: Fault) -> Any:
        cluster.flush()
        service = make_service(mode, cluster.url)
        services.append(service)
        if mode == "async":
            wrap_executor(service, lambda inner: FaultyAsync(inner, fault))
        else:
            wrap_executor(service.service, lambda inner: FaultySync(inner, fault))
        return service

    try:
        await check_repeats(make, {**CREATES, **WRITES}[name], when)
    finally:
        for service in services:
            await service.aclose()


# -- the library's own retry --------------------------------------------------------------------


class Twice:
    """Runs each idempotent Call twice, as after a lost reply."""

    def __init__(self, inner: AsyncExecutor) -> None:
        self._inner = inner

    async def execute(self, call: Call[Any]) -> list[Any]:
        replies = await self._inner.execute(call)
        return await self._inner.execute(call) if call.idempotent else replies

    async def aclose(self) -> None:
        await self._inner.aclose()


@pytest.mark.parametrize("name", [name for name in WRITES if "if_version" not in name])
async def test_a_call_that_is_sent_again_completes(name: str) -> None:
    service = Places(Twice).service
    session = await create(service)
    await WRITES[name](service, session)
    assert (await read(service)).state == BOTH


async def test_a_create_whose_reply_is_lost_writes_the_app_state() -> None:
    service = Places(Twice).service
    assert (await service.get_or_create_session(**IDS, state=BOTH)).state == BOTH
    assert (await read(service)).state == BOTH


# -- not replicated -----------------------------------------------------------------------------


class Failover:
    """While it is on, no replica confirms a write, and app state is lost."""

    def __init__(self, inner: AsyncExecutor) -> None:
        self._inner = inner
        self.is_on = False

    async def execute(self, call: Call[Any]) -> list[Any]:
        if not self.is_on or not call.writes:
            return await self._inner.execute(call)
        is_lost = call.name == "update_app_state"
        replies = [[b"OK"]] if is_lost else await self._inner.execute(call)
        raise NotReplicated(f"{call.name}: 0 of 1", confirmed=0, replies=replies)

    async def aclose(self) -> None:
        await self._inner.aclose()


@each_write
async def test_a_repeat_writes_app_state_that_a_failover_has_lost(name: str) -> None:
    write = {**CREATES, **WRITES}[name]
    service = Places(Failover).service
    failover: Any = service._executor
    session = None if name in CREATES else await create(service)
    failover.is_on = True
    text = "the app state is written, the session is not: update_app_state: 0 of 1"
    with pytest.raises(BackendUnavailable, match=text) as caught:
        await write(service, session)
    assert caught.value.maybe_applied
    assert await service.get_session(**IDS) == session
    failover.is_on = False
    await write(service, session)
    assert (await read(service)).state == BOTH


async def test_a_repeat_counts_once() -> None:
    service = Places(Failover).service
    failover: Any = service._executor
    session = await create(service)
    event = make_event("e", state_delta=BOTH, state_increments={"n": 1, "user:n": 1})
    for is_on in (True, False, False):
        failover.is_on = is_on
        with pytest.raises(BackendUnavailable) if is_on else nullcontext():
            await service.append_event(session, event)
    failover.is_on = True
    with pytest.raises(NotReplicated):
        await service.append_event(session, event)
    assert session.state == {**BOTH, "n": 1, "user:n": 1}
    assert session == await read(service)


# -- refused ------------------------------------------------------------------------------------


class FullApp:
    """A server that refuses to write app state."""

    def __init__(self, inner: AsyncExecutor) -> None:
        self._inner = inner

    async def execute(self, call: Call[Any]) -> list[Any]:
        if call.name == "update_app_state":
            raise BackendRejected("out of memory; nothing was written")
        return await self._inner.execute(call)

    async def aclose(self) -> None:
        await self._inner.aclose()


@each_write
async def test_where_the_app_state_is_refused_nothing_is_written(name: str) -> None:
    service = Places(FullApp).service
    session = None if name in CREATES else await create(service)
    with pytest.raises(BackendRejected) as caught:
        await {**CREATES, **WRITES}[name](service, session)
    assert not caught.value.maybe_applied
    assert await service.get_session(**IDS) == session
    assert await service.get_app_state(KEY.app_name) == {}


async def test_what_the_session_refuses_writes_no_app_state() -> None:
    service = in_memory(Fault())
    refused: list[tuple[type[SessionStoreError], Callable[[], Awaitable[Any]]]] = [
        (SessionNotFound, lambda: service.append_event(KEY, EVENT)),
        (SessionNotFound, lambda: service.append_events(KEY, BATCH)),
        (SessionNotFound, lambda: service.update_session_state(KEY, BOTH)),
    ]
    for kind, attempt in refused:
        with pytest.raises(kind):
            await attempt()
    session = await create(service)
    old = await service.acquire_turn(session)
    await service.release_turn(old)
    await service.acquire_turn(session)
    refused = [
        (SessionExists, lambda: service.create_session(**IDS, state=BOTH)),
        (StaleVersion, lambda: service.append_event(KEY, EVENT, if_version=9)),
        (StaleVersion, lambda: service.append_events(KEY, BATCH, if_version=9)),
        (StaleVersion, lambda: service.update_session_state(KEY, BOTH, if_version=9)),
        (TurnLost, lambda: service.append_event(KEY, EVENT, turn=old)),
        (TurnLost, lambda: service.append_events(KEY, BATCH, turn=old)),
    ]
    for kind, attempt in refused:
        with pytest.raises(kind):
            await attempt()
    found = await service.get_or_create_session(**IDS, state=BOTH)
    assert found == session
    assert await service.get_app_state(KEY.app_name) == {}


async def test_the_same_event_again_does_not_set_app_state_again() -> None:
    service = in_memory(Fault())
    session = await create(service)
    await service.append_event(session, EVENT)
    await service.update_app_state(KEY.app_name, {"plan": "free"})
    await service.append_event(session, EVENT, if_version=1)
    late = make_event("late", state_delta={"app:late": 1})
    await service.append_events(session, [EVENT, late, late])
    assert session.state == {"app:plan": "free", "x": 1, "app:late": 1}
    assert await read(service) == session


async def test_state_of_the_app_tier_reaches_the_session_of_the_caller() -> None:
    service = in_memory(Fault())
    await service.update_app_state(KEY.app_name, {"there": 1})
    session = await service.create_session(**IDS, state=BOTH)
    assert session.state == {**BOTH, "app:there": 1}
    absent = {"app:plan": "free", "app:new": 2}
    await service.update_session_state(session, absent, if_absent=True)
    assert session.state == {**BOTH, "app:there": 1, "app:new": 2}
    assert (await read(service)).state == session.state
