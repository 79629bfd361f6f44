"""Watching while things fail: connections, rights, cancelled watchers, loops that end."""

from __future__ import annotations

import asyncio
import gc
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from faults_support import client_count
from support.events import numbered
from support.servers import Server, acl_user
from support.services import WITH_TTL, make_service
from support.sessions import KEY, create
from support.waiting import poll_until, wait_until
from support.watching import brief

from sessionstore import (
    BackendUnavailable,
    Event,
    InMemorySessionService,
    RedisSessionService,
    SessionKey,
    flows,
)
from sessionstore.calls import AsyncExecutor, Call
from sessionstore.model import Watched
from sessionstore.observe import wrap_executor
from sessionstore.replies import hash_items

CHANNEL = b"session:{app:user}:sid"


class Counter:
    """Counts the Calls of a service."""

    def __init__(self, inner: AsyncExecutor) -> None:
        self.inner = inner
        self.names: list[str] = []

    async def execute(self, call: Call[Any]) -> list[Any]:
        self.names.append(call.name)
        return await self.inner.execute(call)

    async def aclose(self) -> None:
        await self.inner.aclose()


@asynccontextmanager
async def watching(service: Any, count: int = 1, **options: Any) -> AsyncIterator[list[list[Any]]]:
    """Watchers of one session, and the contents that each of them got."""
    found: list[list[Any]] = [[] for _ in range(count)]

    async def collect(items: list[Any]) -> None:
        async with aclosing(service.watch_events(KEY, **options)) as watched:
            async for item in watched:
                items += brief([item])

    tasks = [asyncio.create_task(collect(items)) for items in found]
    try:
        yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def subscribers(server: Server, channel: bytes = CHANNEL) -> int:
    """How many connections have subscribed to a channel."""
    command: Any = server.raw.execute_command
    found = command("PUBSUB", "SHARDNUMSUB", channel)
    return int(found[1])


def lease_ms(server: Server) -> int:
    """Until when appends publish, 0 = they never did."""
    found: Any = server.raw.hget("session:{app:user}:sid", "listen_ms")
    return int(found or 0)


def pinged(server: Server) -> bool:
    """Whether an idle connection has asked for a sign of life."""
    stats: Any = server.raw.info("commandstats")
    return "cmdstat_sunsubscribe" in stats


async def is_listening(server: Server) -> None:
    """Wait until a watcher has set the lease, after it has subscribed."""
    await poll_until(lambda: subscribers(server) == 1 and lease_ms(server), "the lease")


async def test_a_thousand_watchers_cost_one_connection_and_one_read(server: Server) -> None:
    service = make_service("async", server.url)
    async with service:
        await create(service)
        await service.append_event(KEY, Event("user", 0))
        before = client_count(server)
        async with watching(service, 1000) as found:
            await is_listening(server)
            await poll_until(lambda: all(each == [0] for each in found), "the first event")
            assert client_count(server) <= before + 2  # messages, and large reads
            counter = Counter(service._executor)
            wrap_executor(service, lambda _: counter)
            other = make_service("async", server.url)
            for number in range(1, 6):
                await other.append_event(KEY, Event("user", number))
                expected = [*range(number + 1)]
                await poll_until(lambda e=expected: all(each == e for each in found), "the event")  # type: ignore[misc]
            await other.aclose()
            # A look at the header now and then, and one read for each message.
            assert counter.names.count("watch_events") < 30
        await poll_until(lambda: subscribers(server) == 0, "the end of the subscription")


@pytest.mark.parametrize("protocol", [2, 3])
async def test_events_arrive_at_once_after_connections_were_killed(
    server: Server, protocol: int
) -> None:
    command: Any = server.raw.execute_command
    options = {"extra_options": {"protocol": protocol}}
    watcher = make_service("async", server.url, **options)
    writer = make_service("async", server.url)
    async with watcher, writer:
        await create(writer)
        async with watching(watcher, 3) as found:
            for number in range(20):
                await is_listening(server)
                await writer.append_event(KEY, Event("user", number))
                if number % 5 == 4:
                    for kind in ("pubsub", "normal"):
                        command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
                expected = [*range(number + 1)]
                await poll_until(lambda e=expected: found == [e] * 3, "the events")  # type: ignore[misc]


async def test_fragments_arrive_once_although_connections_are_killed(server: Server) -> None:
    command: Any = server.raw.execute_command
    watcher = make_service("async", server.url)
    writer = make_service("async", server.url)
    async with watcher, writer:
        await create(writer)
        async with watching(watcher, 3, partial=True) as found:
            await is_listening(server)
            for number in range(60):
                await writer.append_event(KEY, Event("bot", number, partial=True))
                if number % 10 == 4:
                    for kind in ("pubsub", "normal"):
                        command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            await poll_until(lambda: all(len(each) == 60 for each in found), "the fragments")
            await writer.append_event(KEY, Event("bot", "done"))
            await poll_until(lambda: all(len(each) == 61 for each in found), "the event")
            assert found == [[*range(60), "done"]] * 3


async def test_watchers_of_fragments_share_their_reads(server: Server) -> None:
    service = make_service("async", server.url)
    async with service:
        await create(service)
        async with watching(service, 300, partial=True) as found:
            await is_listening(server)
            counter = Counter(service._executor)
            wrap_executor(service, lambda _: counter)
            async with make_service("async", server.url) as other:
                for number in range(5):
                    await other.append_event(KEY, Event("bot", number, partial=True))
                    expected = [*range(number + 1)]
                    await poll_until(
                        lambda e=expected: all(each == e for each in found),  # type: ignore[misc]
                        "the fragment",
                    )
            assert counter.names.count("watch_events") < 30


async def test_without_rights_to_channels_a_watcher_polls(server: Server) -> None:
    command: Any = server.raw.execute_command
    command("ACL", "SETUSER", *acl_user())
    url = server.url.replace("://", "://agent:password@")
    try:
        async with make_service("async", url) as service:
            await create(service)
            async with watching(service) as found:
                for number in range(5):
                    await service.append_event(KEY, Event("user", number))
                    expected = [[*range(number + 1)]]
                    await poll_until(lambda e=expected: found == e, "the event")  # type: ignore[misc]
                assert lease_ms(server) == 0
                assert subscribers(server) == 0
    finally:
        command("ACL", "DELUSER", "agent")


async def test_an_append_without_the_right_to_publish_succeeds(server: Server) -> None:
    command: Any = server.raw.execute_command
    command("ACL", "SETUSER", *acl_user())
    url = server.url.replace("://", "://agent:password@")
    try:
        async with make_service("async", url) as writer, make_service("async", server.url) as other:
            await create(writer)
            async with watching(other) as found:
                await is_listening(server)
                await writer.append_event(KEY, Event("user", 0))
                await writer.append_events(KEY, numbered(1, 2))
                await poll_until(lambda: found == [[0, 1, 2]], "the events")
                assert await writer.pop_event(KEY) is not None
    finally:
        command("ACL", "DELUSER", "agent")


async def test_the_rights_of_the_readme_are_enough_to_be_woken_up(server: Server) -> None:
    command: Any = server.raw.execute_command
    rights = ("spublish", "ssubscribe", "sunsubscribe")
    command("ACL", "LOG", "RESET")
    command("CONFIG", "RESETSTAT")
    command("ACL", "SETUSER", *acl_user(*rights), "&session:*")
    url = server.url.replace("://", "://agent:password@")
    try:
        async with make_service("async", url) as service:
            await create(service)
            async with watching(service) as found:
                await is_listening(server)
                await service.append_event(KEY, Event("user", 1))
                await poll_until(lambda: found == [[1]], "the event")
                await poll_until(lambda: pinged(server), "a sign of life")
            entries = (dict(hash_items(entry)) for entry in command("ACL", "LOG"))
            refused = {entry[b"object"] for entry in entries}
            assert refused <= {b"ping", b"client|setinfo"}  # redis-py sends these
    finally:
        command("ACL", "DELUSER", "agent")
        command("ACL", "LOG", "RESET")


async def test_a_slow_or_cancelled_watcher_does_not_affect_others(server: Server) -> None:
    async with make_service("async", server.url) as service:
        await create(service)
        go_on = asyncio.Event()
        slow: list[Any] = []

        async def dawdle() -> None:
            async for item in service.watch_events(KEY):
                slow.extend(brief([item]))
                if len(slow) == 1:
                    await go_on.wait()

        task = asyncio.create_task(dawdle())
        async with watching(service, 3) as found:
            cancelled = [asyncio.create_task(anext(service.watch_events(KEY))) for _ in range(5)]
            await is_listening(server)
            for each in cancelled:
                each.cancel()
            for number in range(1000):  # more than are kept for watchers that are behind
                await service.append_event(KEY, Event("user", number))
            await poll_until(lambda: all(len(each) == 1000 for each in found), "the events")
            assert slow == [0]
            go_on.set()
            await poll_until(lambda: len(slow) == 1000, "the slow watcher")
            assert slow == found[0] == [*range(1000)]
        task.cancel()
        await asyncio.wait([task, *cancelled])


@pytest.mark.parametrize("in_memory", [True, False])
async def test_nothing_is_left_of_watchers(server: Server, in_memory: bool) -> None:
    before = client_count(server)
    tasks = asyncio.all_tasks()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        service: Any
        service = InMemorySessionService() if in_memory else make_service("async", server.url)
        await create(service)
        await service.append_event(KEY, Event("user", 1))
        for _ in range(3):
            async for _ in service.watch_events(KEY):
                break  # the iterator is not closed
            gc.collect()
            await asyncio.sleep(0)
        async with watching(service, 3) as found:
            await poll_until(lambda: found == [[1]] * 3, "the event")
        task = asyncio.create_task(_collect(service))
        await asyncio.sleep(0)
        await service.aclose()
        await asyncio.wait([task])
        assert task.exception() is not None
        gc.collect()
        await poll_until(lambda: asyncio.all_tasks() == tasks, "the end of all tasks")
    await poll_until(lambda: client_count(server) == before, "the end of the connections")


async def _collect(service: Any, key: SessionKey = KEY) -> list[Watched]:
    return [item async for item in service.watch_events(key)]


@pytest.mark.parametrize("runs", ["asyncio.run", "a loop that is only closed"])
def test_loops_that_end_while_a_session_is_watched(server: Server, runs: str) -> None:
    before = client_count(server)
    service = RedisSessionService(server.url, **WITH_TTL)

    async def use() -> None:
        await service.get_or_create_session(
            app_name=KEY.app_name, user_id=KEY.user_id, session_id=KEY.session_id
        )
        await service.append_event(KEY, Event("user", 1))
        watched = service.watch_events(KEY, idle_timeout=5)
        assert brief([await anext(watched)]) == [1]
        task = asyncio.ensure_future(anext(watched))
        await is_listening(server)
        if runs != "asyncio.run":
            task.cancel()
            await asyncio.wait([task])
            await watched.aclose()

    for _ in range(5):
        if runs == "asyncio.run":
            asyncio.run(use())
        else:
            loop = asyncio.new_event_loop()
            loop.run_until_complete(use())
            loop.close()
        server.raw.delete("session:{app:user}:sid", "events:{app:user}:sid")
    asyncio.run(service.aclose())
    wait_until(lambda: client_count(server) == before, "the end of the connections")


async def test_a_read_that_fails_after_its_watcher_is_gone_is_not_reported(place: Any) -> None:
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    service: Any
    service = InMemorySessionService() if place is None else make_service("async", place.url)
    async with service:
        session = await create(service)
        key, start = flows.watching.start(service._ops, session, 5, partial=False)
        shared = service._watchers._join(key)
        fails = asyncio.Event()

        async def run(flow: Any) -> Any:
            flow.close()
            await fails.wait()
            raise BackendUnavailable("no connection")

        shared._run = run
        reading = asyncio.create_task(shared.read(start))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        [task] = shared._reads.values()
        fails.set()
        await asyncio.wait([task])
        del task, reading
        service._watchers._leave(key, shared)
        del shared
        await asyncio.sleep(0)
        gc.collect()
    assert reported == []


_WRITER = """
import asyncio, sys
from sessionstore import Event, RedisSessionService, RunContext, Runner

async def agent(context):
    for number in range(1_000_000):
        yield Event("agent", number)
        await asyncio.sleep(0.001)

async def main():
    async with RedisSessionService(sys.argv[1], session_ttl=600) as service:
        async for _ in Runner("app", agent, service, serialize_turns=True).run("user", "sid", "go"):
            pass

asyncio.run(main())
"""


async def test_a_process_that_is_killed_leaves_watchers_that_end_by_rule(server: Server) -> None:
    async with make_service("async", server.url) as service:
        await create(service)
        writer = await asyncio.create_subprocess_exec(sys.executable, "-c", _WRITER, server.url)
        found: list[Watched] = []

        async def collect() -> None:
            async for item in service.watch_events(KEY, idle_timeout=2):
                found.append(item)

        watching = asyncio.create_task(collect())
        try:
            await poll_until(lambda: len(found) > 20, "events")
        finally:
            writer.kill()
            await writer.wait()
        async with asyncio.timeout(20):
            await watching
        stored = await service.get_events(KEY, limit=10_000)
        assert brief(found) == [*(event.content for event in stored.events), "idle"]
