"""What the cluster tests share: services of both kinds, users by slot, every operation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from conftest import WITH_TTL, Awaited
from redis.crc import key_slot

import sessionstore.sync
from benchmarks.rigs.clusters import Cluster, Node
from sessionstore import Event, RedisSessionService, Session, SessionKey, SessionStoreError

LONG_AGO = datetime(2001, 2, 3, tzinfo=UTC)
DEADLINE_S = 30.0  # for whatever a test waits for; far more than anything takes

MODES = ["async", "sync"]


def make_service(mode: str, url: str, **options: Any) -> Any:
    """A service with a TTL in every tier: "async", or "sync" with awaitable methods."""
    options = {**WITH_TTL, **options}
    if mode == "async":
        return RedisSessionService(url, **options)
    return Awaited(sessionstore.sync.RedisSessionService(url, **options))


def slot_of(key: SessionKey) -> int:
    """The slot of a user's keys with partition_by="user"."""
    slot: int = key_slot(f"{{{key.app_name}:{key.user_id}}}".encode())
    return slot


def key_on(cluster: Cluster, node: Node, app_name: str = "app") -> SessionKey:
    """A session whose keys a primary holds; the same one every time."""
    owners = cluster.owners()
    return next(
        key
        for number in range(10_000)
        if owners[slot_of(key := SessionKey(app_name, f"user-{number}", "s"))] is node
    )


def other_primary(cluster: Cluster, node: Node) -> Node:
    """A primary that is not this one."""
    return next(each for each in cluster.primaries() if each is not node)


def make_event(number: int, **fields: Any) -> Event:
    return Event("x", number, id=f"{number:04}", timestamp=LONG_AGO, **fields)


def ids_of(session: Session) -> dict[str, str]:
    return {"app_name": session.app_name, "user_id": session.user_id, "session_id": session.id}


async def create(service: Any, key: SessionKey, **options: Any) -> Session:
    session = await service.create_session(
        app_name=key.app_name, user_id=key.user_id, session_id=key.session_id, **options
    )
    assert isinstance(session, Session)
    return session


async def read(service: Any, key: SessionKey, **options: Any) -> Session:
    """A session that must be there."""
    found = await service.get_session(
        app_name=key.app_name, user_id=key.user_id, session_id=key.session_id, **options
    )
    assert isinstance(found, Session)
    return found


async def poll_until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition without blocking the event loop."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        await asyncio.sleep(0.005)


# -- every operation -----------------------------------------------------------------------------

OLD_EVENTS = 3
_DELTA = {"a": 9, "user:b": 9, "app:c": 9}
_ALL_STATE = ["a", "user:b", "app:c"]


async def fill(service: Any, key: SessionKey) -> None:
    """A session, with something under every key that a user has."""
    await create(service, key, state={"a": 1, "user:b": 2, "app:c": 3})
    await service.append_events(key, [make_event(number) for number in range(OLD_EVENTS)])


Operation = Callable[[Any, SessionKey], Awaitable[Any]]


def _owner(key: SessionKey) -> dict[str, Any]:
    return {"app_name": key.app_name, "user_id": key.user_id}


def _ids(key: SessionKey, name: str = "s") -> dict[str, Any]:
    return {**_owner(key), "session_id": name}


async def _pop_all(service: Any, key: SessionKey) -> list[Any]:
    return [await service.pop_event(key) for _ in range(OLD_EVENTS + 1)]


def _two() -> list[Event]:
    return [make_event(8), make_event(9, state_delta=_DELTA)]


def _removing_and_setting() -> list[Event]:
    return [make_event(8, state_removed=_ALL_STATE), make_event(9, state_delta=_DELTA)]


OPERATIONS: dict[str, Operation] = {
    "create": lambda s, k: s.create_session(**_ids(k, "new"), state=_DELTA),
    "create_existing": lambda s, k: s.create_session(**_ids(k)),
    "get_or_create_new": lambda s, k: s.get_or_create_session(**_ids(k, "new"), state=_DELTA),
    "get_or_create": lambda s, k: s.get_or_create_session(**_ids(k)),
    "get": lambda s, k: s.get_session(**_ids(k)),
    "get_some": lambda s, k: s.get_session(**_ids(k), event_num=2),
    "get_missing": lambda s, k: s.get_session(**_ids(k, "none")),
    "list": lambda s, k: s.list_sessions(**_owner(k), event_num=1),
    "delete": lambda s, k: s.delete_session(**_ids(k)),
    "append": lambda s, k: s.append_event(k, make_event(9, state_delta=_DELTA)),
    "append_again": lambda s, k: s.append_event(k, make_event(1)),
    "append_plain": lambda s, k: s.append_event(k, make_event(9)),
    "append_removing": lambda s, k: s.append_event(k, make_event(9, state_removed=_ALL_STATE)),
    "append_many": lambda s, k: s.append_events(k, _two()),
    "append_removing_and_setting": lambda s, k: s.append_events(k, _removing_and_setting()),
    "append_stale": lambda s, k: s.append_event(k, make_event(9), if_version=1),
    "page": lambda s, k: s.get_events(k, limit=2),
    "pop": lambda s, k: s.pop_event(k),
    "pop_all": _pop_all,
    "clear": lambda s, k: s.clear_events(k),
    "update": lambda s, k: s.update_session_state(k, _DELTA),
    "remove": lambda s, k: s.delete_session_state(k, *_ALL_STATE),
    "get_user_state": lambda s, k: s.get_user_state(k.app_name, k.user_id),
    "update_user_state": lambda s, k: s.update_user_state(k.app_name, k.user_id, {"b": 9}),
    "delete_user_state": lambda s, k: s.delete_user_state(k.app_name, k.user_id, "b"),
    "get_app_state": lambda s, k: s.get_app_state(k.app_name),
    "update_app_state": lambda s, k: s.update_app_state(k.app_name, {"c": 9}),
}
"""Every operation, on a user that `fill` prepared."""


def _shown(value: Any) -> Any:
    """A result without what differs from run to run."""
    if isinstance(value, Session):
        return (value.id, value.state, _shown(value.events), value.version)
    if isinstance(value, Event):
        return (value.id, value.content, value.state_delta)
    if isinstance(value, (list, tuple)):
        return [_shown(each) for each in value]
    if isinstance(value, BaseException):
        return type(value)
    return _shown(value.events) if hasattr(value, "events") else value


async def outcome_of(service: Any, name: str, key: SessionKey) -> Any:
    """What an operation answers or raises, comparable."""
    try:
        return _shown(await OPERATIONS[name](service, key))
    except SessionStoreError as error:
        return _shown(error)


async def stored(service: Any, key: SessionKey) -> Any:
    """All that a user and his application have, comparable."""
    sessions = await service.list_sessions(**_owner(key), event_num=100)
    found = sorted((_shown(each) for each in sessions), key=str)
    user_state = await service.get_user_state(key.app_name, key.user_id)
    return found, user_state, await service.get_app_state(key.app_name)


async def expected_of(name: str, key: SessionKey) -> Any:
    """What an operation answers, and what is stored behind it, with nothing in the way."""
    async with sessionstore.InMemorySessionService(**WITH_TTL) as twin:
        await fill(twin, key)
        return await outcome_of(twin, name, key), await stored(twin, key)
