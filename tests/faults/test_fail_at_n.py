"""Every operation with its first, second, ... call failing, until none is left to fail.

A failure comes before the call is sent, or after it was carried out with the answer lost.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Literal

import msgspec
import pytest
from conftest import WITH_TTL, Awaited, Server
from faults_support import LONG_AGO, ids_of

import sessionstore.service
import sessionstore.sync
from sessionstore import (
    BackendUnavailable,
    Event,
    RedisSessionService,
    Session,
    SessionExists,
    SessionKey,
    SessionStoreError,
    StaleVersion,
    Turn,
    TurnTaken,
)
from sessionstore.calls import AsyncExecutor, Call, SyncExecutor
from sessionstore.observe import wrap_executor

When = Literal["before", "after"]

IDS: dict[str, Any] = {"app_name": "a", "user_id": "u", "session_id": "s"}


class Fault:
    """Says which call fails, and when."""

    def __init__(self) -> None:
        self.at = 0
        self.when: When = "before"
        self.count = 0

    def arm(self, at: int, when: When) -> None:
        """Let the `at`th call from now fail; 0 = none."""
        self.at, self.when, self.count = at, when, 0

    def comes(self, when: When) -> bool:
        return self.count == self.at and when == self.when

    def error(self, call: Call[Any]) -> BackendUnavailable:
        is_sent = self.when == "after"
        return BackendUnavailable("injected", maybe_applied=is_sent and call.writes)


class FaultyAsync:
    """Carries out Calls with another executor, and fails as it is told."""

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
    if mode == "async":
        service = RedisSessionService(url, session_event_limit=6, **WITH_TTL)
        wrap_executor(service, lambda inner: FaultyAsync(inner, fault))
        return service
    blocking = sessionstore.sync.RedisSessionService(url, session_event_limit=6, **WITH_TTL)
    wrap_executor(blocking, lambda inner: FaultySync(inner, fault))
    return Awaited(blocking)


# -- operations -------------------------------------------------------------------------------


class Operation(msgspec.Struct):
    """One operation, with arguments.

    Attributes:
        name: the method, and what is special about the arguments.
        run: calls it.
        calls: calls to the store that it takes.
        repeat: what the caller gets who repeats it after the answer was lost: "same" result,
            or an exception.
        counts_twice: `version` counts the repeat too.
    """

    name: str
    run: Callable[[Any, Session], Awaitable[Any]]
    calls: int = 1
    repeat: Literal["same"] | type[Exception] | None = "same"
    counts_twice: bool = False


def event(name: str, **fields: Any) -> Event:
    return Event("x", name, id=name, timestamp=LONG_AGO, **fields)


STORED = event("e1", state_delta={"e1": True})
NEW = event("new", state_delta={"n": 1, "user:n": 2, "app:n": 3, "temp:n": 4}, state_removed=["k"])
BATCH = [event(f"b{number}", state_delta={"b": number}) for number in range(8)]


async def create_another(service: Any, _: Session) -> Any:
    return await service.create_session(
        app_name="a", user_id="u", session_id="new", state={"x": 1, "user:x": 2, "temp:x": 3}
    )


async def get_or_create_another(service: Any, _: Session) -> Any:
    return await service.get_or_create_session(
        app_name="a", user_id="u", session_id="new", state={"x": 1, "app:x": 2}
    )


PREPARED: dict[str, Turn] = {}  # the turn that `prepare` has taken


OPERATIONS = (
    Operation("create_session", create_another, repeat=SessionExists),
    Operation("get_or_create_session new", get_or_create_another),
    Operation("get_or_create_session old", lambda s, _: s.get_or_create_session(**IDS)),
    Operation("get_session", lambda s, _: s.get_session(**IDS)),
    # Ids, sessions, one that is gone is pruned, ids and sessions again.
    Operation("list_sessions", lambda s, _: s.list_sessions(app_name="a", user_id="u"), calls=5),
    Operation("delete_session", lambda s, _: s.delete_session(**IDS)),
    Operation("append_event", lambda s, session: s.append_event(session, NEW)),
    # One that is stored already: the caller's state is read again.
    Operation("append_event again", lambda s, session: s.append_event(session, STORED), calls=2),
    Operation(
        "append_event if_version",
        lambda s, session: s.append_event(session, NEW, if_version=session.version),
    ),
    # More than stay: the limit is 6.
    Operation("append_events", lambda s, session: s.append_events(session, BATCH)),
    Operation("get_events", lambda s, session: s.get_events(session)),
    Operation("pop_event", lambda s, session: s.pop_event(session), repeat=None),
    Operation("clear_events", lambda s, session: s.clear_events(session), counts_twice=True),
    Operation(
        "clear_events if_version",
        lambda s, session: s.clear_events(session, if_version=session.version),
        repeat=StaleVersion,
    ),
    # Whose answer is lost has the turn and does not know it: it is free when the lease ends.
    Operation("acquire_turn", lambda s, session: s.acquire_turn(session), repeat=TurnTaken),
    Operation("renew_turn", lambda s, _: s.renew_turn(PREPARED["turn"])),
    Operation("release_turn", lambda s, _: s.release_turn(PREPARED["turn"])),
    Operation(
        "update_session_state",
        lambda s, session: s.update_session_state(
            session, {"n": 1, "user:n": 2, "app:n": 3, "temp:n": 4}
        ),
        counts_twice=True,
    ),
    Operation(
        "update_session_state if_version",
        lambda s, session: s.update_session_state(session, {"n": 1}, if_version=session.version),
        repeat=StaleVersion,
    ),
    Operation(
        "delete_session_state",
        lambda s, session: s.delete_session_state(session, "k", "user:k", "app:k"),
        counts_twice=True,
    ),
    Operation("list_users", lambda s, _: s.list_users("a")),
    Operation("get_user_state", lambda s, _: s.get_user_state("a", "u")),
    Operation("update_user_state", lambda s, _: s.update_user_state("a", "u", {"n": 1})),
    Operation("delete_user_state", lambda s, _: s.delete_user_state("a", "u", "k")),
    Operation("get_app_state", lambda s, _: s.get_app_state("a")),
    Operation("update_app_state", lambda s, _: s.update_app_state("a", {"n": 1})),
    Operation("delete_app_state", lambda s, _: s.delete_app_state("a", "k")),
)


def test_every_public_operation_is_here() -> None:
    named = {operation.name.split()[0] for operation in OPERATIONS}
    public = {
        name
        for name in vars(sessionstore.service.SessionService)
        if not name.startswith("_") and name != "aclose"
    }
    assert named == public


# -- the test ---------------------------------------------------------------------------------


async def prepare(service: Any, server: Server) -> Session:
    server.raw.flushall()
    state = {"k": 1, "user:k": 2, "app:k": 3, "temp:k": 4}
    session: Session = await service.create_session(**IDS, state=state)
    for number in range(3):
        name = f"e{number}"
        await service.append_event(session, event(name, state_delta={name: True}))
    await service.create_session(app_name="a", user_id="u", session_id="gone")
    server.raw.delete("session:{a:u}:gone")
    await service.create_session(app_name="a", user_id="u", session_id="held")
    PREPARED["turn"] = await service.acquire_turn(SessionKey("a", "u", "held"))
    return session


async def look(service: Any) -> dict[str, Any]:
    """All that can be seen from outside, but for versions and times."""
    sessions = await service.list_sessions(app_name="a", user_id="u", event_num=100)
    seen = {found.id: (found.state, ids_of(found.events)) for found in sessions}
    return seen | {
        "user": await service.get_user_state("a", "u"),
        "app": await service.get_app_state("a"),
    }


def comparable(result: Any) -> Any:
    """A result without what differs between two runs."""
    if isinstance(result, Session):
        return result.id, result.state, ids_of(result.events)
    if isinstance(result, Event):
        return result.id
    if isinstance(result, Turn):
        return result.key
    if isinstance(result, list):
        return [comparable(each) for each in result]
    if hasattr(result, "events"):
        return ids_of(result.events)
    return result


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_operation_with_its_nth_call_failing(
    server: Server, mode: str, when: When, operation: Operation
) -> None:
    fault = Fault()
    service = make_faulty(mode, server.url, fault)

    # Without a fault: what it should come to.
    session = await prepare(service, server)
    untouched = await look(service)
    session = await prepare(service, server)
    fault.arm(0, when)
    result = comparable(await operation.run(service, session))
    assert fault.count == operation.calls
    should_be, version = await look(service), session.version

    for at in itertools.count(1):
        fault.arm(0, when)
        session = await prepare(service, server)
        before = copy.deepcopy(session)
        fault.arm(at, when)
        try:
            await operation.run(service, session)
        except BackendUnavailable as error:
            caught = error
        else:
            assert at == operation.calls + 1
            break
        fault.arm(0, when)
        assert str(caught) == "injected"
        assert session == before

        if when == "before" and at == 1:
            assert not caught.maybe_applied
            assert await look(service) == untouched
        if when == "before" or operation.repeat == "same":
            assert comparable(await operation.run(service, session)) == result
            stored = await service.get_session(**IDS)
            if stored and "session" not in operation.name.split("_")[0]:
                await check_callers_session(operation, when, session, stored, version)
        elif operation.repeat is not None:
            with pytest.raises(operation.repeat) as refusal:
                await operation.run(service, session)
            assert isinstance(refusal.value, SessionStoreError)
            assert session == before
        assert await look(service) == should_be
    await service.aclose()


async def check_callers_session(
    operation: Operation, when: When, session: Session, stored: Session, version: int
) -> None:
    """The caller's Session shows what is stored, if the operation changes it at all."""
    assert stored.version == version + (operation.counts_twice and when == "after")
    if session.version == stored.version:
        assert session.events == stored.events
        assert session.updated_at == stored.updated_at
    state = {key: value for key, value in session.state.items() if not key.startswith("temp:")}
    if operation.name.startswith(("append", "update_session", "delete_session_state")):
        assert session.version == stored.version
        assert state == stored.state


async def test_an_event_appended_by_two_callers_is_seen_by_both(server: Server) -> None:
    # The answer to the first append is lost; somebody else writes before it is repeated.
    fault = Fault()
    service = make_faulty("async", server.url, fault)
    mine = await prepare(service, server)
    other = await service.get_session(**IDS)
    fault.arm(1, "after")
    with pytest.raises(BackendUnavailable):
        await service.append_event(mine, NEW)
    fault.arm(0, "after")
    later = event("later", state_delta={"n": "later"})
    await service.append_event(other, later)
    await service.append_event(mine, NEW)
    stored = await service.get_session(**IDS)
    # The repeat does not put the older value back, neither in the store nor with the caller.
    assert stored.state["n"] == "later"
    assert mine.state["n"] == "later"
    assert mine.state["temp:n"] == 4
    assert mine.version == stored.version
    assert ids_of(stored.events) == ["e0", "e1", "e2", "new", "later"]
    assert stored.updated_at - stored.created_at < timedelta(minutes=1)
    await service.aclose()
