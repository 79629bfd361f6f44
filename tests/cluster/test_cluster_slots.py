"""Slots on their way: every operation before, amid and behind the move of its keys."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cluster_support import (
    MODES,
    OPERATIONS,
    create,
    expected_of,
    fill,
    key_on,
    make_event,
    make_service,
    other_primary,
    outcome_of,
    read,
    slot_of,
    stored,
)

from benchmarks.rigs.clusters import Cluster, Node
from sessionstore import BackendUnavailable, SessionKey

STAGES = ["open", "half moved", "all moved", "done"]

# What needs no key that is not there is served all the way but for the middle, where nothing but
# calls on one key are. The others wait for the end of the move.
_NEED_MORE = {"create", "get_or_create_new", "get_missing"}
_ON_ONE_KEY = {"get_user_state", "update_user_state", "delete_user_state"}
_ON_THE_APP = {"get_app_state", "update_app_state"}


def _waits(name: str, stage: str) -> bool:
    if name in _ON_THE_APP or stage == "done":
        return False
    if name == "pop_all":
        return True  # once the key of the events is gone
    return name not in _ON_ONE_KEY if stage == "half moved" else name in _NEED_MORE


class Move:
    """The move of a session's slot to another primary, step by step."""

    def __init__(self, cluster: Cluster, key: SessionKey) -> None:
        self.slot = slot_of(key)
        self._cluster = cluster
        source = cluster.owner_of(self.slot)
        self.source: Node = source
        self.target = other_primary(cluster, source)

    def to(self, stage: str) -> None:
        """Go as far as a stage."""
        if self._cluster.owner_of(self.slot) is self.target:
            return
        if stage == "open":
            self._cluster.begin_migration(self.slot, self.target)
        if stage == "half moved":
            keys = sorted(self.source.run("CLUSTER GETKEYSINSLOT", self.slot, 100))
            assert len(keys) == 4
            self._cluster.move_keys(self.slot, self.source, self.target, keys[:2])
        if stage in ("all moved", "done"):
            self._cluster.move_keys(self.slot, self.source, self.target)
        if stage == "done":
            self._cluster.end_migration(self.slot, self.source, self.target)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("mode", MODES)
async def test_every_operation_on_a_slot_on_its_way(
    cluster: Cluster, mode: str, stage: str
) -> None:
    """All of them at once, each with a slot of its own."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(len(OPERATIONS)))
    service = make_service(mode, cluster.url)
    keys = {name: SessionKey(f"app-{name}", "user", "s") for name in OPERATIONS}
    moves = {name: Move(cluster, key) for name, key in keys.items()}
    try:
        for key in keys.values():
            await fill(service, key)
        for move in moves.values():
            for each in STAGES[: STAGES.index(stage) + 1]:
                move.to(each)
        tasks = {
            name: asyncio.create_task(outcome_of(service, name, key)) for name, key in keys.items()
        }
        ready = [task for name, task in tasks.items() if not _waits(name, stage)]
        await asyncio.wait_for(asyncio.gather(*ready), 5.0)
        await asyncio.sleep(0.05)
        waiting = {name for name, task in tasks.items() if not task.done()}
        for move in moves.values():
            move.to("done")
        found: dict[str, Any] = {}
        for name, key in keys.items():
            found[name] = await tasks[name], await stored(service, key)
    finally:
        await service.aclose()
    assert waiting | {"pop_all"} == {n for n in OPERATIONS if _waits(n, stage)} | {"pop_all"}
    expected = {name: await expected_of(name, key) for name, key in keys.items()}
    assert found == expected


@pytest.mark.parametrize("mode", MODES)
async def test_a_slot_that_stays_on_its_way_is_one_clear_error(cluster: Cluster, mode: str) -> None:
    service = make_service(mode, cluster.url, call_timeout=0.3)
    key = SessionKey("app", "user", "s")
    await fill(service, key)
    move = Move(cluster, key)
    move.to("open")
    move.to("half moved")
    with pytest.raises(BackendUnavailable, match="append_event: TRYAGAIN") as caught:
        await service.append_event(key, make_event(9))
    assert not caught.value.maybe_applied
    move.to("done")
    await service.append_event(key, make_event(9))
    assert [event.content for event in (await read(service, key)).events] == [0, 1, 2, 9]
    await service.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_a_move_that_is_given_up_is_followed_back(cluster: Cluster, mode: str) -> None:
    service = make_service(mode, cluster.url)
    key = SessionKey("app", "user", "s")
    await fill(service, key)
    move = Move(cluster, key)
    move.to("open")
    move.to("all moved")
    await service.append_event(key, make_event(3))  # which goes to where the keys are now
    move.source.run("CLUSTER SETSLOT", move.slot, "STABLE")
    cluster.move_keys(move.slot, move.target, move.source)
    move.target.run("CLUSTER SETSLOT", move.slot, "STABLE")
    await service.append_event(key, make_event(4))
    assert [event.content for event in (await read(service, key)).events] == [0, 1, 2, 3, 4]
    await service.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_agents_go_on_while_their_slots_go_back_and_forth(
    cluster: Cluster, mode: str
) -> None:
    """Nothing fails, nothing is lost, nothing stands twice."""
    service = make_service(mode, cluster.url, session_event_limit=None)
    first, second, _ = cluster.primaries()
    keys = [SessionKey("app", f"user-{number}", "s") for number in range(10)]
    for key in keys:
        await create(service, key)
    is_moving = True

    async def work(key: SessionKey) -> int:
        number = 0
        while is_moving or number < 20:
            delta = {"n": number, "user:n": number}
            await service.append_event(key, make_event(number, state_delta=delta))
            found = await read(service, key, event_num=2)
            assert found.events[-1].content == found.state["n"] == found.state["user:n"] == number
            number += 1
        return number

    tasks = [asyncio.create_task(work(key)) for key in keys]
    slots = {slot_of(key) for key in keys}
    for _ in range(2):
        for slot in slots:
            target = second if cluster.owner_of(slot) is first else first
            await asyncio.to_thread(cluster.migrate, slot, target)
    is_moving = False
    counts = await asyncio.gather(*tasks)
    for key, count in zip(keys, counts, strict=True):
        found = await read(service, key)
        assert [event.content for event in found.events] == list(range(count))
    await service.aclose()


async def test_a_script_unknown_to_the_new_node_is_sent_whole(cluster: Cluster) -> None:
    async with make_service("async", cluster.url) as service:
        key = key_on(cluster, cluster.primaries()[0])
        await fill(service, key)
        move = Move(cluster, key)
        move.to("open")
        move.to("all moved")
        move.target.run("SCRIPT FLUSH")
        await service.append_event(key, make_event(3))
        move.target.run("SCRIPT FLUSH")
        assert len((await read(service, key)).events) == 4
        move.to("done")
