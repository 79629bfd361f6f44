"""A master behind Sentinels is found and followed; writes go to no other server."""

from __future__ import annotations

import asyncio
import time

import pytest
from support.events import make_event
from support.services import MODES, make_service
from support.sessions import create, read
from support.waiting import poll_until

from benchmarks.rigs.clusters import SentinelGroup
from sessionstore import BackendUnavailable, SessionKey

KEY = SessionKey("app", "user", "s")
_NOISE_S = 5.0


@pytest.mark.parametrize("mode", MODES)
async def test_the_master_is_found_by_any_sentinel(
    sentinel_group: SentinelGroup, mode: str
) -> None:
    group = sentinel_group
    dead = "127.0.0.1:1"
    last = f"127.0.0.1:{group.sentinels[2].port}"
    service = make_service(mode, f"redis+sentinel://{dead},{last}/agents")
    await create(service, KEY)
    assert group.master().client.dbsize() == 2
    await service.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_a_database_may_be_named(sentinel_group: SentinelGroup, mode: str) -> None:
    service = make_service(mode, f"{sentinel_group.url}/3")
    await create(service, KEY)
    master = sentinel_group.master()
    assert master.client.dbsize() == 0
    assert set(master.info("keyspace")) == {"db3"}
    await service.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_a_wrong_name_is_one_clear_error_at_once(
    sentinel_group: SentinelGroup, mode: str
) -> None:
    service = make_service(mode, sentinel_group.url.replace("/agents", "/others"))
    start = time.monotonic()
    with pytest.raises(BackendUnavailable, match="a master named 'others'") as caught:
        await create(service, KEY)
    assert time.monotonic() - start < 4.0
    assert not caught.value.maybe_applied
    await service.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_a_hand_over_is_followed_without_a_loss(
    sentinel_group: SentinelGroup, mode: str
) -> None:
    group = sentinel_group
    service = make_service(mode, group.url, session_event_limit=None)
    await create(service, KEY)
    is_over = False

    async def work() -> int:
        number = 0
        while not is_over:
            await service.append_event(KEY, make_event(number))
            number += 1
        return number

    task = asyncio.create_task(work())
    await asyncio.to_thread(group.hand_over)
    is_over = True
    count = await task
    found = await read(service, KEY)
    assert [event.content for event in found.events] == list(range(count))
    await service.aclose()


async def test_a_master_that_was_replaced_gets_no_more_writes(
    sentinel_group: SentinelGroup,
) -> None:
    """After SENTINEL FAILOVER the old master accepts writes for ten more seconds."""
    group = sentinel_group
    services = [make_service(mode, group.url) for mode in MODES]
    for number, service in enumerate(services):
        await create(service, SessionKey("app", "user", f"s{number}"))
    old = group.master()
    is_over = False

    async def work(number: int) -> None:
        event = 0
        while not is_over:
            await services[number].append_event(
                SessionKey("app", "user", f"s{number}"), make_event(event)
            )
            event += 1
            await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(work(number)) for number in range(len(services))]
    new = await asyncio.to_thread(group.fail_over)

    def writes(node: object) -> list[int]:
        return [
            int(node.client.zcard(f"events:{{app:user}}:s{number}"))  # type: ignore[attr-defined]
            for number in range(len(services))
        ]

    try:
        await asyncio.sleep(2.0)
        before_old, before_new = writes(old), writes(new)
        await asyncio.sleep(0.5)
        after_old, after_new = writes(old), writes(new)
    finally:
        is_over = True
        await asyncio.gather(*tasks, return_exceptions=True)
    role = old.info("replication")["role"]
    assert all(a > b for a, b in zip(after_new, before_new, strict=True))
    if role == "master":
        assert after_old == before_old
    for service in services:
        await service.aclose()


async def test_a_demoted_master_is_refused_and_left(sentinel_group: SentinelGroup) -> None:
    """It answers READONLY. Nothing is written until the Sentinels name a real master."""
    group = sentinel_group
    services = [make_service(mode, group.url) for mode in MODES]
    for number, service in enumerate(services):
        await create(service, SessionKey("app", "user", f"s{number}"))
    old = group.master()
    other = next(node for node in group.servers if node is not old)
    # Without the Sentinels, which would close the connections.
    old.run("REPLICAOF", "127.0.0.1", other.port)
    tasks = [
        asyncio.create_task(
            service.append_event(SessionKey("app", "user", f"s{number}"), make_event(1))
        )
        for number, service in enumerate(services)
    ]
    await asyncio.sleep(0.3)
    assert not any(task.done() for task in tasks)
    old.run("REPLICAOF", "NO", "ONE")
    await asyncio.wait_for(asyncio.gather(*tasks), 10.0)
    for service in services:
        await service.aclose()


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_calls_to_a_master_that_goes_are_answered_by_its_successor(
    sentinel_group: SentinelGroup, how: str
) -> None:
    group = sentinel_group
    services = {mode: make_service(mode, group.url, call_timeout=30) for mode in MODES}
    for mode, service in services.items():
        await create(service, SessionKey("app", "user", mode))
    old = group.master()

    async def append(mode: str, number: int) -> None:
        await services[mode].append_event(SessionKey("app", "user", mode), make_event(number))

    getattr(old, how)()
    tasks = [asyncio.create_task(append(mode, 1)) for mode in MODES]
    await asyncio.sleep(0.3)
    tasks += [asyncio.create_task(append(mode, 2)) for mode in MODES]
    new = await asyncio.to_thread(group.wait_for_other_master, old)
    await poll_until(lambda: new.info("replication")["role"] == "master", "the new master")
    await asyncio.wait_for(asyncio.gather(*tasks), _NOISE_S)
    for mode, service in services.items():
        found = await read(service, SessionKey("app", "user", mode))
        assert sorted(event.content for event in found.events) == [1, 2]
        await service.aclose()
