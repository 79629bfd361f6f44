"""Watching while slots move, nodes fail and Sentinels promote: every event once, in order."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any, Self

import pytest
from cluster_support import key_on, other_primary, slot_of
from support.services import make_service
from support.sessions import create
from support.waiting import poll_until
from support.watching import View

from benchmarks.rigs.clusters import Cluster, SentinelGroup
from sessionstore import Event, SessionKey

NUM_WATCHERS = 3


class Traffic:
    """Appends to a session, and watchers in another service, during the block."""

    def __init__(self, url: str, key: SessionKey) -> None:
        self._key = key
        self._watcher, self._writer = make_service("async", url), make_service("async", url)
        self._views = [View() for _ in range(NUM_WATCHERS)]
        self._num_appended = 0
        self._is_waiting = False
        self._may_write = asyncio.Event()
        self._may_write.set()

    async def __aenter__(self) -> Self:
        await create(self._writer, self._key)
        self._watching = [asyncio.create_task(self._watch(view)) for view in self._views]
        self._writing = asyncio.create_task(self._write())
        await self.go_on()
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                await self.go_on()
                await self.pause()
                for view in self._views:
                    assert view.contents() == [*range(self._num_appended)]
                assert not any(task.done() for task in self._watching), "a watcher has ended"
        finally:
            tasks = (self._writing, *self._watching)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._watcher.aclose()
            await self._writer.aclose()

    async def _watch(self, view: View) -> None:
        async with aclosing(self._watcher.watch_events(self._key)) as watched:
            async for item in watched:
                view.show(item)

    async def _write(self) -> None:
        while True:
            self._is_waiting = True
            await self._may_write.wait()
            self._is_waiting = False
            await self._writer.append_event(self._key, Event("user", self._num_appended))
            self._num_appended += 1
            await asyncio.sleep(0.005)

    async def pause(self) -> None:
        """Append no more, and wait until the watchers have seen everything."""
        self._may_write.clear()
        await poll_until(lambda: self._is_waiting, "the end of the last append")
        await poll_until(
            lambda: all(len(view.events) == self._num_appended for view in self._views),
            "the watchers",
        )

    async def go_on(self) -> None:
        """Wait until there are more appends, and the watchers have seen them."""
        self._may_write.set()
        count = self._num_appended
        await poll_until(lambda: self._num_appended >= count + 10, "more appends")
        await poll_until(
            lambda: all(len(view.events) >= count + 10 for view in self._views), "the watchers"
        )


async def is_subscribed(key: SessionKey, node: Any) -> None:
    """Wait until a watcher is subscribed at a node."""
    channel = f"session:{{{key.app_name}:{key.user_id}}}:{key.session_id}"
    await poll_until(
        lambda: node.run("PUBSUB", "SHARDNUMSUB", channel)[1] == 1, "the subscription at the node"
    )


async def test_a_slot_that_moves(cluster: Cluster) -> None:
    source = cluster.primaries()[0]
    key = key_on(cluster, source)
    slot, target = slot_of(key), other_primary(cluster, source)
    async with Traffic(cluster.url, key) as traffic:
        await is_subscribed(key, source)
        for node, other in ((source, target), (target, source)):
            await asyncio.to_thread(cluster.begin_migration, slot, other)
            await traffic.go_on()
            await asyncio.to_thread(cluster.move_keys, slot, node, other)
            await traffic.go_on()
            await asyncio.to_thread(cluster.end_migration, slot, node, other)
            await traffic.go_on()
            await is_subscribed(key, other)


@pytest.mark.parametrize("how", ["graceful", "kill", "stop"])
async def test_a_primary_that_fails(replicated_cluster: Cluster, how: str) -> None:
    cluster = replicated_cluster
    primary = cluster.primaries()[0]
    [replica] = cluster.replicas_of(primary)
    key = key_on(cluster, primary)
    async with Traffic(cluster.url, key) as traffic:
        await is_subscribed(key, primary)
        if how == "graceful":
            await asyncio.to_thread(cluster.fail_over, replica)
        else:
            # Otherwise events are lost that the watchers have seen.
            await traffic.pause()
            await poll_until(lambda: _has_all(primary, replica), "the replica has everything")
            primary.kill() if how == "kill" else primary.stop()
            await poll_until(
                lambda: replica.info("replication")["role"] == "master", "the replica takes over"
            )
        await traffic.go_on()
        await is_subscribed(key, replica)


def _has_all(primary: Any, replica: Any) -> bool:
    offset = primary.info("replication")["master_repl_offset"]
    return bool(replica.info("replication")["slave_repl_offset"] >= offset)


async def test_a_master_that_is_replaced(sentinel_group: SentinelGroup) -> None:
    group = sentinel_group
    key = SessionKey("app", "user", "s")
    old = group.master()
    async with Traffic(group.url, key) as traffic:
        await is_subscribed(key, old)
        new = await asyncio.to_thread(group.hand_over)
        assert new is not old
        await traffic.go_on()
        await is_subscribed(key, new)
