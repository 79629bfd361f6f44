"""Restoring a long session on a server: what is staged, and what a failure leaves."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from msgspec import UNSET
from redis_support import EVENTS, IDS, INDEX, SESSION
from support.events import make_event
from support.servers import Server, acl_user
from support.services import make_ops

from sessionstore import BackendRejected, RedisSessionService, Session, SessionKey, flows
from sessionstore.calls import Flow

LONG = [make_event(number) for number in range(1200)]


def restoring() -> Flow[Session]:
    arguments = (LONG, None, None, None, None, UNSET, None)
    return flows.restore_session(make_ops(session_ttl=600), SessionKey(**IDS), *arguments)


def overtaken() -> Flow[None]:
    """A restore during which another process restores the same session."""
    mine = restoring()
    result = yield next(mine)  # nothing is there
    yield from restoring()
    with suppress(StopIteration):
        while True:
            result = yield mine.send(result)


async def test_nothing_staged_is_left_if_another_process_was_faster(server: Server) -> None:
    service = RedisSessionService(server.url)
    await service._run(overtaken())
    assert sorted(server.all_keys()) == sorted([SESSION, EVENTS, INDEX])
    await service.aclose()


async def test_nothing_staged_is_left_after_many_at_once(server: Server) -> None:
    """Processes that import the same session. Each of them gets it."""
    service = RedisSessionService(server.url, session_ttl=600)
    calls = [service.restore_session(**IDS, events=LONG, state={"n": 1}) for _ in range(8)]
    sessions = await asyncio.gather(*calls)
    assert [session.version for session in sessions] == [sessions[0].version] * 8
    assert sorted(server.all_keys()) == sorted([SESSION, EVENTS, INDEX])
    found = await service.get_session(**IDS)
    assert found is not None
    assert found.events == LONG
    await service.aclose()


async def test_without_the_right_to_rename_nothing_is_half_restored(server: Server) -> None:
    """A user whose rights are those of an earlier release."""
    command: Any = server.raw.execute_command
    command("ACL", "SETUSER", *acl_user(), "-rename")
    url = server.url.replace("unix://", "unix://agent:password@")
    async with RedisSessionService(url, session_ttl=600) as service:
        with pytest.raises(BackendRejected, match=r"rename|can't run this command"):
            await service.restore_session(**IDS, events=LONG)
        assert await service.get_session(**IDS) is None
        command("ACL", "SETUSER", "agent", "+rename")
        await service.restore_session(**IDS, events=LONG)
        found = await service.get_session(**IDS)
        assert found is not None
        assert found.events == LONG
    command("ACL", "DELUSER", "agent")
