"""What the tests on real servers share: services of both kinds, and every public operation."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from conftest import WITH_TTL, Awaited, Server

import sessionstore.sync
from sessionstore import Event, RedisSessionService, SessionKey
from sessionstore.keys import Keys

DEADLINE_S = 20.0  # for whatever a test waits for; far more than anything takes

KEY = SessionKey("a", "u", "s")
NEW = SessionKey("a", "u", "new")
HELD = SessionKey("a", "u", "held")
GONE = SessionKey("a", "u", "gone")
USER: dict[str, Any] = {"app_name": "a", "user_id": "u"}
IDS: dict[str, Any] = {**USER, "session_id": "s"}
NEW_IDS: dict[str, Any] = {**USER, "session_id": "new"}
STATE = {"k": 1, "user:k": 2, "app:k": 3}
LONG_AGO = datetime(2001, 2, 3, tzinfo=UTC)

SESSION, EVENTS, INDEX, USER_TIER, APP_TIER = Keys().session("a", "u", "s")
SLOTS = {
    "session": (SESSION, b"hash"),
    "events": (EVENTS, b"zset"),
    "index": (INDEX, b"zset"),
    "user": (USER_TIER, b"hash"),
    "app": (APP_TIER, b"hash"),
}


def make_service(mode: str, url: str | None, **options: Any) -> Any:
    """A service with a TTL in every tier: "async", or "sync" with awaitable methods."""
    options = {**WITH_TTL, **options}
    if mode == "async":
        return RedisSessionService(url, **options)
    return Awaited(sessionstore.sync.RedisSessionService(url, **options))


def make_event(name: str, **fields: Any) -> Event:
    return Event("x", name, id=name, timestamp=LONG_AGO, **fields)


def ids_of(events: list[Event]) -> list[str]:
    return [event.id for event in events]


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.002)


async def prepare(service: Any, server: Server) -> None:
    """A session with a log and all tiers; one whose turn is held; one that has expired."""
    server.raw.flushall()
    await service.create_session(**IDS, state=STATE)
    await service.append_events(KEY, [make_event(f"e{number}") for number in range(3)])
    await service.create_session(**USER, session_id="held")
    TURNS[0] = await service.acquire_turn(HELD)
    await service.create_session(**USER, session_id="gone")
    server.raw.delete(Keys().session("a", "u", "gone").session)


TURNS: list[Any] = [None]  # the turn that `prepare` has taken


@dataclass(frozen=True)
class Operation:
    """One operation with arguments, on what `prepare` makes.

    Attributes:
        name: the method, and what is special about the arguments.
        run: calls it.
        slots: keys of `SLOTS` that it needs, so that a wrong type in one of them is an error.
        trips: round trips that it takes.
        is_write: it stores something, so a server that is out of memory refuses it.
        fresh: of these it refreshes the deadline, if they exist then.
    """

    name: str
    run: Callable[[Any], Awaitable[Any]]
    slots: str
    trips: int = 1
    is_write: bool = True
    fresh: str = ""

    def uses(self, slot: str) -> bool:
        return slot in self.slots.split()


ALL = "session events index user app"
LOG = "session events index"

OPERATIONS = (
    Operation(
        "create_session",
        lambda s: s.create_session(**NEW_IDS, state={"n": 1, "user:n": 2, "app:n": 3}),
        "index user app",
        fresh="user app",
    ),
    Operation(
        "get_or_create_session new",
        lambda s: s.get_or_create_session(**NEW_IDS, state={"n": 1}),
        "index user app",
        fresh="user app",
    ),
    Operation(
        "get_or_create_session old",
        lambda s: s.get_or_create_session(**IDS),
        ALL,
        is_write=False,
        fresh="session user app",
    ),
    Operation(
        "get_session",
        lambda s: s.get_session(**IDS),
        "session events user app",
        is_write=False,
        fresh="session user app",
    ),
    Operation(
        "get_session event_time",
        lambda s: s.get_session(**IDS, event_num=2, event_time=LONG_AGO),
        "session events user app",
        is_write=False,
        fresh="session user app",
    ),
    # Ids, sessions; one that has expired is pruned; ids and sessions.
    Operation("list_sessions", lambda s: s.list_sessions(**USER, event_num=2), ALL, 5, False),
    Operation(
        "list_sessions again", lambda s: s.list_sessions(**USER), "session index user app", 5, False
    ),
    Operation("delete_session", lambda s: s.delete_session(**IDS), LOG, is_write=False),
    Operation(
        "append_event", lambda s: s.append_event(KEY, make_event("new")), LOG, fresh="session"
    ),
    Operation(
        "append_event user",
        lambda s: s.append_event(KEY, make_event("new", state_delta={"user:k": 1})),
        LOG + " user",
        fresh="session user",
    ),
    Operation(
        "append_event app",
        lambda s: s.append_event(KEY, make_event("new", state_delta={"app:k": 1, "k": 1})),
        LOG + " app",
        fresh="session app",
    ),
    Operation(
        "append_events",
        lambda s: s.append_events(KEY, [make_event("x"), make_event("y", state_removed=["k"])]),
        LOG,
        fresh="session",
    ),
    Operation(
        "append_events app",
        lambda s: s.append_events(
            KEY, [make_event("x"), make_event("y", state_delta={"app:k": 1, "user:k": 2})]
        ),
        ALL,
        fresh="session user app",
    ),
    Operation(
        "get_events",
        lambda s: s.get_events(KEY),
        "session events",
        is_write=False,
        fresh="session user app",
    ),
    Operation("pop_event", lambda s: s.pop_event(KEY), LOG, is_write=False, fresh="session"),
    Operation("clear_events", lambda s: s.clear_events(KEY), LOG, is_write=False, fresh="session"),
    Operation("acquire_turn", lambda s: s.acquire_turn(KEY), "session"),
    Operation("renew_turn", lambda s: s.renew_turn(TURNS[0]), ""),
    Operation("release_turn", lambda s: s.release_turn(TURNS[0]), ""),
    Operation(
        "update_session_state",
        lambda s: s.update_session_state(KEY, {"k": 1}),
        LOG,
        fresh="session",
    ),
    Operation(
        "update_session_state app",
        lambda s: s.update_session_state(KEY, {"k": 1, "app:k": 2, "user:k": 3}),
        ALL,
        fresh="session user app",
    ),
    Operation(
        "delete_session_state",
        lambda s: s.delete_session_state(KEY, "k", "missing"),
        LOG,
        fresh="session",
    ),
    Operation(
        "get_user_state",
        lambda s: s.get_user_state("a", "u"),
        "user",
        is_write=False,
        fresh="user",
    ),
    Operation(
        "update_user_state",
        lambda s: s.update_user_state("a", "u", {"n": 1}),
        "user",
        fresh="user",
    ),
    Operation(
        "delete_user_state",
        lambda s: s.delete_user_state("a", "u", "missing"),
        "user",
        fresh="user",
    ),
    Operation("get_app_state", lambda s: s.get_app_state("a"), "app", is_write=False, fresh="app"),
    Operation("update_app_state", lambda s: s.update_app_state("a", {"n": 1}), "app", fresh="app"),
    Operation("delete_app_state", lambda s: s.delete_app_state("a", "missing"), "app", fresh="app"),
)


def operation_name(operation: Operation) -> str:
    return operation.name
