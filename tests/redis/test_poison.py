"""A key that holds what sessionstore never puts there: refused whole, and nothing changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conftest import Server
from redis_support import KEY, OPERATIONS, SLOTS, Operation, make_service, operation_name, prepare

import sessionstore.service
from sessionstore import BackendRejected, CorruptData

# Of every type that a key may have, one.
POISONS = ("string", "hash", "zset", "list", "set")

# Moves every deadline, and what the header of a session repeats of it, so near that a refresh of
# any TTL is due.
AGE = """
for _, key in ipairs(KEYS) do
  if redis.call('TYPE', key).ok == 'hash' then
    local noted = tonumber(redis.call('HGET', key, 'deadline_ms') or 0)
    if noted > 0 then redis.call('HSET', key, 'deadline_ms', ARGV[1]) end
  end
  redis.call('PEXPIREAT', key, ARGV[1])
end
"""


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
    server.raw.pexpireat(key, 4_000_000_000_000)


def age(server: Server, keys: list[Any]) -> None:
    seconds, _ = server.raw.time()
    server.raw.eval(AGE, len(keys), *keys, (seconds + 100) * 1000)


@pytest.fixture
async def service(server: Server) -> AsyncIterator[Any]:
    found = make_service("async", server.url)
    yield found
    await found.aclose()


def test_every_public_operation_is_here() -> None:
    named = {operation.name.split()[0] for operation in OPERATIONS}
    public = {
        name
        for name in vars(sessionstore.service.SessionService)
        if not name.startswith("_") and name != "aclose"
    }
    assert named | {"list_users"} == public  # which looks at names only


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("operation", OPERATIONS, ids=operation_name)
async def test_a_wrong_type_is_refused_whole(
    server: Server, service: Any, operation: Operation, slot: str
) -> None:
    key, kind = SLOTS[slot]
    for poison in POISONS:
        if poison == kind.decode():
            continue
        # Deadlines that have to be moved, and such that have not; of all keys, or of the tiers.
        for aged in ("none", "all", "tiers"):
            await prepare(service, server)
            plant(server, key, poison)
            if aged == "all":
                age(server, list(server.snapshot()))
            elif aged == "tiers":
                age(server, [SLOTS["user"][0], SLOTS["app"][0]])
            before = server.snapshot()
            outcome: Any
            [outcome] = await asyncio.gather(operation.run(service), return_exceptions=True)
            if isinstance(outcome, BaseException):
                assert type(outcome) is BackendRejected
                assert "WRONGTYPE" in str(outcome)
                assert not outcome.maybe_applied
                assert server.snapshot() == before
            else:
                assert not operation.uses(slot)
                assert server.snapshot()[key] == before[key] or aged != "none"


@pytest.mark.parametrize(
    ("slot", "poison"),
    [("session", "string"), ("session", "zset"), ("events", "string"), ("events", "hash")],
)
async def test_creating_over_a_wrong_type(
    server: Server, service: Any, slot: str, poison: str
) -> None:
    """A create unlinks what an earlier session left behind, but no other data."""
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
