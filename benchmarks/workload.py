"""The work that benches share: events, filled sessions, and recorded Calls.

`new_event` and the services do what an application does. For comparison, benches record the Calls
that a service makes and send them by other means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import hiredis
import msgspec

from sessionstore import Event, RedisSessionService, Session, SessionKey, SessionService
from sessionstore.calls import Call
from sessionstore.keys import Keys, SessionKeys
from sessionstore.observe import wrap_executor

from .bare import Request
from .payload import TEXT, TTL_SECONDS

EVENT_LIMIT = 200

STATE = {"topic": "travel", "turns": 3, "user:name": "Ada", "app:model": "large"}

_BATCH = 100
_KEYS_WITHOUT_TIERS = 3
_WRITTEN = [b"OK", 1, 1, 0]  # the reply to an append

_pack_command: Any = hiredis.pack_command

Command = tuple[bytes | str | int, ...]


def new_event(text: str = TEXT) -> Event:
    """A new event, as an agent makes it."""
    return Event("agent", text)


def options(event_limit: int | None = EVENT_LIMIT) -> dict[str, Any]:
    """Options of the measured services: TTLs in all tiers."""
    return {
        "session_event_limit": event_limit,
        "session_ttl": TTL_SECONDS,
        "stream_ttl": TTL_SECONDS,
        "user_state_ttl": TTL_SECONDS,
        "app_state_ttl": TTL_SECONDS,
    }


def service_of(url: str, event_limit: int | None = EVENT_LIMIT) -> RedisSessionService:
    """The measured service."""
    return RedisSessionService(url, **options(event_limit))


async def make_sessions(
    service: SessionService, app: str, count: int, stored: int = 0, text: str = TEXT
) -> list[Session]:
    """New sessions, one for each user, with stored events and state in every tier."""
    sessions = [
        await service.create_session(app_name=app, user_id=f"user{number:05}", state=STATE)
        for number in range(count)
    ]
    await asyncio.gather(*(fill(service, session.key, stored, text) for session in sessions))
    return sessions


async def fill(service: SessionService, key: SessionKey, stored: int, text: str = TEXT) -> None:
    """Append events in batches."""
    for first in range(0, stored, _BATCH):
        batch = [new_event(text) for _ in range(min(_BATCH, stored - first))]
        await service.append_events(key, batch)


async def read(service: SessionService, key: SessionKey, event_num: int | None) -> Session | None:
    """`get_session` by key."""
    return await service.get_session(
        app_name=key.app_name, user_id=key.user_id, session_id=key.session_id, event_num=event_num
    )


def split(count: int, agents: int) -> int:
    """Operations of each agent, at least one, so that all agents together make about `count`."""
    return max(count // agents, 1)


# -- recorded Calls ------------------------------------------------------------------------------


class _RecordedError(Exception):
    """Stops an operation at its first Call, and carries the Call."""

    def __init__(self, call: Call[Any]) -> None:
        self.call = call


class _RecordingExecutor:
    """Records Calls and sends nothing."""

    async def execute(self, call: Call[Any]) -> list[Any]:
        raise _RecordedError(call)

    async def aclose(self) -> None:
        pass


class Recorder:
    """Gives the Calls that a service would send.

    Args:
        event_limit: the same as that of the measured service.

    Attributes:
        service: a service that sends nothing. For `call_of`.
    """

    def __init__(self, event_limit: int | None = EVENT_LIMIT) -> None:
        self.service = RedisSessionService("redis://localhost", **options(event_limit))
        wrap_executor(self.service, lambda _: _RecordingExecutor())

    async def call_of(self, operation: Awaitable[Any]) -> Call[Any]:
        """The first Call of an operation of `service`."""
        try:
            await operation
        except _RecordedError as recorded:
            if recorded.call.name in ("append_event", "append_events"):
                # The service notes that the tiers are refreshed. Its next appends leave them out.
                recorded.call.decode([_WRITTEN])
            return recorded.call
        raise AssertionError("the operation sent nothing")

    async def append(self, key: SessionKey, event: Event) -> Call[Any]:
        """The Call that appends an event. As most appends, it refreshes no tiers."""
        call = await self.call_of(self.service.append_event(key, event))
        if len(call.keys) > _KEYS_WITHOUT_TIERS:
            call = await self.call_of(self.service.append_event(key, event))
        return call

    async def appends(self, key: SessionKey, count: int) -> list[Call[Any]]:
        """The Calls that append new events one by one."""
        return [await self.append(key, new_event()) for _ in range(count)]

    async def read(self, key: SessionKey, event_num: int | None) -> Call[Any]:
        """The Call that reads a session."""
        return await self.call_of(read(self.service, key, event_num))


def request_of(call: Call[Any]) -> Request:
    """The bytes of a Call. Several commands become a transaction."""
    commands: list[Command] = list(call.commands)
    if call.script is not None:
        commands.insert(0, ("EVALSHA", *evalsha(call)))
    return transaction(*commands) if len(commands) > 1 else (pack(*commands), 1)


def evalsha(call: Call[Any]) -> tuple[Any, ...]:
    """The arguments of redis-py's `evalsha` for a Call."""
    assert call.script is not None
    return (call.script.sha.decode(), len(call.keys), *call.keys, *call.args)


def by_hand(call: Call[Any]) -> Callable[[], Sequence[Any]]:
    """A function that returns the same arguments with a new event each time."""
    arguments = list(evalsha(call))
    at = max(range(len(arguments)), key=lambda place: _size(arguments[place]))

    def make() -> Sequence[Any]:
        arguments[at] = msgspec.json.encode(new_event())
        return arguments

    return make


def _size(argument: Any) -> int:
    return len(argument) if isinstance(argument, bytes) else 0


def keys_of(key: SessionKey) -> SessionKeys:
    """The Redis keys of a session."""
    return Keys().session(key.app_name, key.user_id, key.session_id)


def pack(*commands: Command) -> bytes:
    """Commands in RESP, one after the other."""
    return b"".join(_pack_command(command) for command in commands)


def transaction(*commands: Command) -> Request:
    """Commands in MULTI and EXEC."""
    return pack(("MULTI",), *commands, ("EXEC",)), len(commands) + 2


def raw_append(key: SessionKey, event: Event, version: int) -> list[Command]:
    """The writes of an append as plain commands, without a script and without checks.

    A caller could send them in a transaction if it already knew position and version.
    """
    keys = keys_of(key)
    ttl_ms = TTL_SECONDS * 1000
    now = int(event.timestamp.timestamp() * 1e6)
    return [
        ("ZADD", keys.events, "NX", now, msgspec.json.encode(event)),
        ("ZREMRANGEBYRANK", keys.events, 0, -EVENT_LIMIT - 1),
        ("HSET", keys.session, "version", version, "updated_us", now, "last_us", now),
        ("ZADD", keys.session_index, now, key.session_id),
        ("PEXPIRE", keys.session, ttl_ms),
        ("PEXPIRE", keys.events, ttl_ms),
        ("PEXPIRE", keys.session_index, ttl_ms),
    ]
