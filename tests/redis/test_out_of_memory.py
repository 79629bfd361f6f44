"""A server at its memory limit refuses every write as a whole. Reads and deletes still work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from redis_support import IDS, USER
from support.events import ids_of, make_event
from support.operations import OPERATIONS, Operation, each_operation
from support.scene import KEY, STATE, prepare, shown
from support.servers import Server
from support.services import both_modes, make_service

from sessionstore import BackendRejected

WRITES = tuple(each for each in OPERATIONS if each.kind == "write")
OTHERS = tuple(each for each in OPERATIONS if each.kind != "write")


@contextmanager
def memory_full(server: Server) -> Iterator[None]:
    """Put the server at its memory limit, without eviction."""
    server.raw.config_set("maxmemory-policy", "noeviction")
    server.raw.config_set("maxmemory", 1)
    try:
        yield
    finally:
        server.raw.config_set("maxmemory", 0)


@both_modes
@each_operation(WRITES)
async def test_a_write_is_refused_whole(server: Server, mode: str, operation: Operation) -> None:
    service = make_service(mode, server.url)
    scene = await prepare(service, server, operation)
    await operation.run(service, scene)
    for is_known in (True, False):  # whether the server knows the script
        scene = await prepare(service, server, operation)
        if not is_known:
            server.raw.script_flush()
        before = server.snapshot()
        with memory_full(server):
            with pytest.raises(BackendRejected, match="out of memory") as caught:
                await operation.run(service, scene)
            assert not caught.value.maybe_applied
            assert server.snapshot() == before
        await operation.run(service, scene)
    await service.aclose()


@both_modes
@each_operation(OTHERS)
async def test_a_read_or_a_delete_goes_on(server: Server, mode: str, operation: Operation) -> None:
    service = make_service(mode, server.url)
    scene = await prepare(service, server, operation)
    expected = shown(await operation.run(service, scene))
    for is_known in (True, False):
        scene = await prepare(service, server, operation)
        if not is_known:
            server.raw.script_flush()
        with memory_full(server):
            assert shown(await operation.run(service, scene)) == expected
    await service.aclose()


@both_modes
async def test_the_callers_session_does_not_change(server: Server, mode: str) -> None:
    service = make_service(mode, server.url)
    await prepare(service, server)
    session = await service.get_session(**IDS)
    before = await service.get_session(**IDS)
    with memory_full(server):
        with pytest.raises(BackendRejected):
            await service.append_event(session, make_event("new", state_delta={"k": 2}))
        with pytest.raises(BackendRejected):
            await service.update_session_state(session, {"k": 2})
        assert session == before
    await service.append_event(session, make_event("new", state_delta={"k": 2}))
    assert ids_of(session.events) == ["e0", "e1", "e2", "new"]
    assert session.state["k"] == 2
    await service.aclose()


@both_modes
@pytest.mark.parametrize("refresh_ttl_on_read", [True, False])
async def test_reads_and_deletes_go_on(
    server: Server, mode: str, refresh_ttl_on_read: bool
) -> None:
    service = make_service(mode, server.url, refresh_ttl_on_read=refresh_ttl_on_read)
    for is_known in (True, False):
        await prepare(service, server)
        if not is_known:
            server.raw.script_flush()
        with memory_full(server):
            found = await service.get_session(**IDS)
            assert found.state == STATE
            assert ids_of(found.events) == ["e0", "e1", "e2"]
            found = await service.get_session(**IDS, event_num=1)
            assert ids_of(found.events) == ["e2"]
            page = await service.get_events(KEY, limit=2)
            assert ids_of(page.events) == ["e0", "e1"]
            page = await service.get_events(KEY, after=page.last)
            assert ids_of(page.events) == ["e2"]
            listed = await service.list_sessions(**USER, event_num=1)
            assert sorted(each.id for each in listed) == ["other", "s"]
            assert await service.get_user_state("a", "u") == {"k": 2, "kept": 3}
            assert await service.get_app_state("a") == {"k": 4, "kept": 5}
            assert (await service.get_session(**USER, session_id="missing")) is None
            # Calls that free memory.
            assert (await service.pop_event(KEY)).id == "e2"
            await service.clear_events(KEY)
            found = await service.get_session(**IDS)
            assert found.events == []
            await service.delete_session(**IDS)
            await service.delete_session(**USER, session_id="other")
            assert await service.list_sessions(**USER) == []
            assert sorted(server.snapshot()) == [b"appdata:{a}", b"userdata:{a:u}"]
    await service.aclose()
