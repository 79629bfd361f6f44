"""Every operation with its first, second, ... call failing, up to its last one.

A failure comes before the call is sent, or after it was carried out with the answer lost.
"""

from __future__ import annotations

import copy
import itertools
from datetime import timedelta
from typing import Any, Literal

import pytest
from support.events import ids_of, make_event
from support.operations import Operation, each_operation
from support.scene import KEY, prepare, shown, stored
from support.servers import Server
from support.services import both_modes, make_service
from support.sessions import read

from sessionstore import BackendUnavailable, Session, SessionStoreError
from sessionstore.calls import AsyncExecutor, Call, SyncExecutor
from sessionstore.observe import wrap_executor

When = Literal["before", "after"]

EVENT_LIMIT = 8  # fewer than the registry appends to a session, and as many as in one call


class Fault:
    """Says which call fails, and when."""

    def __init__(self) -> None:
        self.at = 0
        self.when: When = "before"
        self.count = 0

    def arm(self, at: int, when: When) -> None:
        """Make the `at`th call from now fail; 0 = no call."""
        self.at, self.when, self.count = at, when, 0

    def comes(self, when: When) -> bool:
        return self.count == self.at and when == self.when

    def error(self, call: Call[Any]) -> BackendUnavailable:
        is_sent = self.when == "after"
        return BackendUnavailable("injected", maybe_applied=is_sent and call.writes)


class FaultyAsync:
    """Carries out Calls with another executor, and fails at the call that `fault` names."""

    def __init__(self, inner: AsyncExecutor, fault: Fault) -> None:
        self._inner = inner
        self._fault = fault

    async def execute(self, call: Call[Any]) -> list[Any]:
        self._fault.count += 1
        if self._fault.comes("before"):
            raise self._fault.error(call)
        replies = await self._inner.execute(call)
        if self._fault.comes("after"):
            raise self._fault.error(call)
        return replies

    async def aclose(self) -> None:
        await self._inner.aclose()


class FaultySync:
    """The same for threads."""

    def __init__(self, inner: SyncExecutor, fault: Fault) -> None:
        self._inner = inner
        self._fault = fault

    def execute(self, call: Call[Any]) -> list[Any]:
        self._fault.count += 1
        if self._fault.comes("before"):
            raise self._fault.error(call)
        replies = self._inner.execute(call)
        if self._fault.comes("after"):
            raise self._fault.error(call)
        return replies

    def close(self) -> None:
        self._inner.close()


def make_faulty(mode: str, url: str, fault: Fault) -> Any:
    service = make_service(mode, url, session_event_limit=EVENT_LIMIT)
    if mode == "async":
        wrap_executor(service, lambda inner: FaultyAsync(inner, fault))
    else:
        wrap_executor(service.service, lambda inner: FaultySync(inner, fault))
    return service


# -- the test ---------------------------------------------------------------------------------


async def look(service: Any) -> Any:
    """All stored data, without versions and times."""
    return await stored(service, KEY)


@both_modes
@pytest.mark.parametrize("when", ["before", "after"])
@each_operation()
async def test_operation_with_its_nth_call_failing(
    server: Server, mode: str, when: When, operation: Operation
) -> None:
    fault = Fault()
    service = make_faulty(mode, server.url, fault)

    # The expected result, from a run without a fault.
    await prepare(service, server, operation)
    untouched = await look(service)
    scene = await prepare(service, server, operation)
    fault.arm(0, when)
    result = shown(await operation.run(service, scene))
    assert fault.count == operation.calls
    should_be = await look(service)

    for at in itertools.count(1):
        fault.arm(0, when)
        scene = await prepare(service, server, operation)
        session = scene.session
        before = copy.deepcopy(session)
        fault.arm(at, when)
        try:
            await operation.run(service, scene)
        except BackendUnavailable as error:
            caught = error
        else:
            assert at == operation.calls + 1
            break
        fault.arm(0, when)
        assert str(caught) == "injected"
        assert session == before
        first = await service.get_session(**scene.ids)

        if when == "before" and at == 1:
            assert not caught.maybe_applied
            assert await look(service) == untouched
        is_written = when == "after" and not (operation.reads_first and at == 1)
        if not is_written or operation.repeat == "same":
            assert shown(await operation.run(service, scene)) == result
            found = await service.get_session(**scene.ids)
            if found:
                check_callers_session(operation, session, found)
                if first and is_written:
                    assert (found.version > first.version) == operation.counts_twice
        elif operation.repeat is not None:
            with pytest.raises(operation.repeat) as refusal:
                await operation.run(service, scene)
            assert isinstance(refusal.value, SessionStoreError)
            assert session == before
        assert await look(service) == should_be
    await service.aclose()


def check_callers_session(operation: Operation, session: Session, found: Session) -> None:
    """The caller's Session shows what is stored, if the operation changes it at all."""
    if session.version == found.version:
        assert session.events == found.events
        assert session.updated_at == found.updated_at
    state = {key: value for key, value in session.state.items() if not key.startswith("temp:")}
    if operation.method.startswith(("append", "update_session", "delete_session_state")):
        assert session.version == found.version
        assert state == found.state


async def test_an_event_appended_by_two_callers_is_seen_by_both(server: Server) -> None:
    # The answer to the first append is lost. Another caller writes before it is repeated.
    fault = Fault()
    service = make_faulty("async", server.url, fault)
    mine = (await prepare(service, server)).session
    other = await read(service, KEY)
    event = make_event("new", state_delta={"n": 1, "temp:n": 4})
    fault.arm(1, "after")
    with pytest.raises(BackendUnavailable):
        await service.append_event(mine, event)
    fault.arm(0, "after")
    later = make_event("later", state_delta={"n": "later"})
    await service.append_event(other, later)
    await service.append_event(mine, event)
    found = await read(service, KEY)
    # The repeat restores the older value neither in the store nor in the caller's Session.
    assert found.state["n"] == "later"
    assert mine.state["n"] == "later"
    assert mine.state["temp:n"] == 4
    assert mine.version == found.version
    assert ids_of(found) == ["e0", "e1", "e2", "new", "later"]
    assert found.updated_at - found.created_at < timedelta(minutes=1)
    await service.aclose()
