"""A key with the wrong type: the call is refused as a whole, and nothing changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from redis_support import SLOTS
from support.clock import pass_time
from support.operations import Operation, each_operation
from support.scene import KEY, prepare
from support.servers import Server
from support.services import WITH_TTL, make_service

from sessionstore import BackendRejected, CorruptData

# One value of every type.
POISONS = ("string", "hash", "zset", "list", "set")
TTL_S = WITH_TTL["session_ttl"]


def plant(server: Server, key: bytes, poison: str) -> None:
    server.raw.delete(key)
    if poison == "string":
        server.raw.set(key, "poison")
    elif poison == "hash":
        server.raw.hset(key, mapping={"poison": "1", "version": "1"})
    elif poison == "zset":
        server.raw.zadd(key, {"poison": 1})
    elif poison == "list":
        server.raw.rpush(key, "poison")
    else:
        server.raw.sadd(key, "poison")
    server.raw.expire(key, TTL_S)


def age(server: Server, keys: Iterable[bytes] = ()) -> None:
    """Let time pass until a refresh of every deadline is due."""
    pass_time(server, TTL_S * 900, keys)


@pytest.fixture
async def service(server: Server) -> AsyncIterator[Any]:
    found = make_service("async", server.url)
    yield found
    await found.aclose()


@pytest.mark.parametrize("slot", SLOTS)
@each_operation()
async def test_a_wrong_type_is_refused_whole(
    server: Server, service: Any, operation: Operation, slot: str
) -> None:
    key, kind = SLOTS[slot]
    for poison in POISONS:
        if poison == kind.decode():
            continue
        for aged in ("none", "all", "tiers"):  # the keys whose deadlines are due
            scene = await prepare(service, server, operation)
            plant(server, key, poison)
            if aged == "all":
                age(server)
            elif aged == "tiers":
                age(server, [SLOTS["user"][0], SLOTS["app"][0]])
            before = server.snapshot()
            outcome: Any
            [outcome] = await asyncio.gather(operation.run(service, scene), return_exceptions=True)
            # The registry must name all keys, except those that only a refresh uses.
            is_refresh = aged != "none" and bool(operation.refreshes)
            is_refused = isinstance(outcome, BaseException)
            assert is_refused == operation.uses(slot) or (is_refused and is_refresh), outcome
            if is_refused:
                assert type(outcome) is BackendRejected
                assert f"(WRONGTYPE; key: {key.decode()})" in str(outcome)
                assert not outcome.maybe_applied
                # A watcher marks the session before it reads fragments.
                is_marked = operation.marks and slot == "stream"
                assert is_marked or server.snapshot() == before
            else:
                assert server.snapshot()[key] == before[key] or aged != "none"


@pytest.mark.parametrize(
    ("slot", "poison"),
    [("session", "string"), ("session", "zset"), ("events", "string"), ("events", "hash")],
)
async def test_creating_over_a_wrong_type(
    server: Server, service: Any, slot: str, poison: str
) -> None:
    """A create deletes what an earlier session left behind, but no other data."""
    key, _ = SLOTS[slot]
    for create in (service.create_session, service.get_or_create_session):
        server.raw.flushall()
        await service.update_user_state("a", "u", {"k": 1})
        plant(server, key, poison)
        before = server.snapshot()
        with pytest.raises(BackendRejected, match="WRONGTYPE"):
            await create(app_name="a", user_id="u", session_id="s", state={"user:k": 2, "app:k": 3})
        assert server.snapshot() == before


async def test_the_message_names_the_key_and_no_payload(server: Server, service: Any) -> None:
    await prepare(service, server)
    plant(server, SLOTS["events"][0], "string")
    with pytest.raises(BackendRejected) as caught:
        await service.update_session_state(KEY, {"secret": "do not quote me"})
    assert "{a:u}:s" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "quote" not in str(caught.value)


async def test_popping_an_event_that_does_not_decode_says_that_it_is_removed(
    server: Server, service: Any
) -> None:
    """So that a log with such an event can be read again."""
    scene = await prepare(service, server)
    server.raw.zadd(SLOTS["events"][0], {b'{"do not quote me': 2**52})
    server.raw.hincrby(SLOTS["session"][0], "count", 1)
    with pytest.raises(CorruptData):
        await service.get_session(**scene.ids)
    with pytest.raises(CorruptData, match=r"; the event was removed$") as caught:
        await service.pop_event(KEY)
    assert "quote" not in str(caught.value)
    assert len((await service.get_session(**scene.ids)).events) == 3


@pytest.mark.parametrize(
    ("slot", "field"),
    [("session", ".k"), ("session", "version"), ("user", "k"), ("app", "k")],
)
async def test_bytes_that_do_not_decode_are_reported(
    server: Server, service: Any, slot: str, field: str
) -> None:
    await prepare(service, server)
    key, _ = SLOTS[slot]
    server.raw.hset(key, field, b"\x07do not quote me")
    before = server.snapshot()
    with pytest.raises(CorruptData) as caught:
        await service.get_session(app_name="a", user_id="u", session_id="s")
    assert key.decode() in caught.value.key
    assert "quote" not in str(caught.value)
    assert server.snapshot() == before
