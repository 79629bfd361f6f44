"""Migrating slots: every operation before, during and after the move of its keys."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cluster_support import key_on, other_primary, slot_of
from support.events import ids_of, make_event
from support.operations import ALL, LOG, OPERATIONS, Operation
from support.scene import Scene, set_scene, shown, stored
from support.services import MODES, WITH_TTL, make_service
from support.sessions import create, read

import sessionstore
from benchmarks.rigs.clusters import Cluster, Node
from sessionstore import BackendUnavailable, SessionKey, SessionStoreError

STAGES = ["open", "half moved", "all moved", "done"]


async def _pop_all(service: Any, scene: Scene) -> list[Any]:
    found = []
    while (event := await service.pop_event(scene.key)) is not None:
        found.append(event)
    return found


# Cases that matter for migrating slots alone.
_POP_ALL = Operation("pop_event", _pop_all, keys=LOG, case="until the log is gone", new_key=True)
_MORE = (
    Operation(
        "create_session",
        lambda s, at: s.create_session(**at.ids),
        keys=ALL,
        case="existing",
    ),
    Operation(
        "get_session",
        lambda s, at: s.get_session(**at.new_ids),
        keys="user app",
        case="missing",
        new_key=True,
    ),
    Operation(
        "append_event",
        lambda s, at: s.append_event(at.key, make_event("new"), if_version=1),
        keys=LOG,
        case="stale",
    ),
    _POP_ALL,
)
CASES = {each.name: each for each in (*OPERATIONS, *_MORE) if not each.needs_expired}


def _waits(operation: Operation, stage: str) -> bool:
    """Whether an operation waits for the end of the migration.

    A migrating slot serves a call on several keys only while all of them are on one node. The app
    tier has a slot of its own, which does not move.
    """
    keys_in_slot = set(operation.keys.split()) - {"app"}
    if stage == "done" or not keys_in_slot:
        return False
    is_split = len(keys_in_slot) > 1 and not keys_in_slot <= {"session", "events"}
    return operation.new_key or (stage == "half moved" and is_split)


class Move:
    """The migration of a session's slot to another primary, step by step."""

    def __init__(self, cluster: Cluster, key: SessionKey) -> None:
        self.slot = slot_of(key)
        self._cluster = cluster
        source = cluster.owner_of(self.slot)
        self.source: Node = source
        self.target = other_primary(cluster, source)

    def to(self, stage: str) -> None:
        """Migrate as far as a stage."""
        if self._cluster.owner_of(self.slot) is self.target:
            return
        if stage == "open":
            self._cluster.begin_migration(self.slot, self.target)
        if stage == "half moved":
            keys = sorted(self.source.run("CLUSTER GETKEYSINSLOT", self.slot, 100))
            moved = [key for key in keys if key.startswith(("session:", "events:"))]
            assert 0 < len(moved) < len(keys)
            self._cluster.move_keys(self.slot, self.source, self.target, moved)
        if stage in ("all moved", "done"):
            self._cluster.move_keys(self.slot, self.source, self.target)
        if stage == "done":
            self._cluster.end_migration(self.slot, self.source, self.target)


async def _outcome(service: Any, operation: Operation, scene: Scene) -> Any:
    """The result of an operation, or the class of its exception, comparable."""
    try:
        return shown(await operation.run(service, scene))
    except SessionStoreError as error:
        return type(error)


async def _expected(operation: Operation, key: SessionKey) -> Any:
    """The outcome of an operation in memory, and what is stored then."""
    async with sessionstore.InMemorySessionService(**WITH_TTL) as twin:
        scene = await set_scene(twin, operation, key)
        return await _outcome(twin, operation, scene), await stored(twin, key)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("mode", MODES)
async def test_every_operation_on_a_migrating_slot(cluster: Cluster, mode: str, stage: str) -> None:
    """All operations at once, each on a slot of its own."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(len(CASES)))
    service = make_service(mode, cluster.url)
    keys = {name: SessionKey(name.replace(" ", "-"), "user", "s") for name in CASES}
    moves = {name: Move(cluster, key) for name, key in keys.items()}
    assert len({move.slot for move in moves.values()}) == len(CASES)
    try:
        scenes = {name: await set_scene(service, CASES[name], key) for name, key in keys.items()}
        for move in moves.values():
            for each in STAGES[: STAGES.index(stage) + 1]:
                move.to(each)
        tasks = {
            name: asyncio.create_task(_outcome(service, operation, scenes[name]))
            for name, operation in CASES.items()
        }
        should_wait = {name for name, operation in CASES.items() if _waits(operation, stage)}
        ready = [task for name, task in tasks.items() if name not in should_wait]
        await asyncio.wait_for(asyncio.gather(*ready), 5.0)
        await asyncio.sleep(0.05)
        waiting = {name for name, task in tasks.items() if not task.done()}
        for move in moves.values():
            move.to("done")
        found = {name: (await tasks[name], await stored(service, keys[name])) for name in CASES}
    finally:
        await service.aclose()
    # This operation waits only after the last event, when the key of the log is gone.
    assert waiting | {_POP_ALL.name} == should_wait | {_POP_ALL.name}
    for name, operation in CASES.items():
        assert found[name] == await _expected(operation, keys[name]), name


@pytest.mark.parametrize("mode", MODES)
async def test_a_slot_that_stays_on_its_way_is_one_clear_error(cluster: Cluster, mode: str) -> None:
    service = make_service(mode, cluster.url, call_timeout=0.3)
    key = SessionKey("app", "user", "s")
    await set_scene(service, key=key)
    move = Move(cluster, key)
    move.to("open")
    move.to("half moved")
    with pytest.raises(BackendUnavailable, match="append_event: TRYAGAIN") as caught:
        await service.append_event(key, make_event(9))
    assert not caught.value.maybe_applied
    move.to("done")
    await service.append_event(key, make_event(9))
    assert ids_of(await read(service, key)) == ["e0", "e1", "e2", "0009"]
    await service.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_a_move_that_is_given_up_is_followed_back(cluster: Cluster, mode: str) -> None:
    service = make_service(mode, cluster.url)
    key = SessionKey("app", "user", "s")
    await set_scene(service, key=key)
    move = Move(cluster, key)
    move.to("open")
    move.to("all moved")
    await service.append_event(key, make_event(3))  # goes to the node that has the keys now
    move.source.run("CLUSTER SETSLOT", move.slot, "STABLE")
    cluster.move_keys(move.slot, move.target, move.source)
    move.target.run("CLUSTER SETSLOT", move.slot, "STABLE")
    await service.append_event(key, make_event(4))
    assert ids_of(await read(service, key)) == ["e0", "e1", "e2", "0003", "0004"]
    await service.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_agents_go_on_while_their_slots_go_back_and_forth(
    cluster: Cluster, mode: str
) -> None:
    """No call fails, and no event is lost or stored twice."""
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
        await set_scene(service, key=key)
        move = Move(cluster, key)
        move.to("open")
        move.to("all moved")
        move.target.run("SCRIPT FLUSH")
        await service.append_event(key, make_event(3))
        move.target.run("SCRIPT FLUSH")
        assert len((await read(service, key)).events) == 4
        move.to("done")
