"""Turns of sessions that were deleted or expired and then created again."""

from __future__ import annotations

import pytest
from redis_support import IDS
from support.events import ids_of, make_event
from support.scene import KEY
from support.servers import Server
from support.services import WITH_TTL

from sessionstore import RedisSessionService, TurnLost, TurnTaken


@pytest.mark.parametrize("how", ["deleted", "expired"])
async def test_a_turn_of_an_earlier_session_is_lost(server: Server, how: str) -> None:
    async with RedisSessionService(server.url, **WITH_TTL) as service:
        await service.create_session(**IDS)
        old = await service.acquire_turn(KEY)
        if how == "deleted":
            await service.delete_session(**IDS)
        else:
            server.raw.delete("session:{a:u}:s", "events:{a:u}:s")
        await service.create_session(**IDS)
        new = await service.acquire_turn(KEY)
        assert new.token > old.token
        with pytest.raises(TurnLost):
            await service.append_event(KEY, make_event("old"), turn=old)
        with pytest.raises(TurnLost):
            await service.renew_turn(old)
        await service.release_turn(old)  # does not free the turn of the new session
        await service.append_event(KEY, make_event("new"), turn=new)
        await service.renew_turn(new)
        found = await service.get_session(**IDS)
        assert found
        assert ids_of(found.events) == ["new"]


async def test_a_turn_of_an_earlier_release_has_no_length(server: Server) -> None:
    """It is taken until its end, and an operator can free it."""
    async with RedisSessionService(server.url, **WITH_TTL) as service:
        await service.create_session(**IDS)
        await service.acquire_turn(KEY)
        server.raw.hdel("session:{a:u}:s", "turn_ms")
        server.raw.hincrby("session:{a:u}:s", "turn_until_us", 365 * 86_400 * 1_000_000)
        with pytest.raises(TurnTaken):
            await service.acquire_turn(KEY)
        await service.free_turn(KEY)
        await service.acquire_turn(KEY)
