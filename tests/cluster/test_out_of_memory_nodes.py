"""A cluster node that is out of memory, while a write needs the app state and a session.

They are on different nodes. The app state is written first, so repeating a call that was refused
completes it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cluster_support import key_on, other_primary
from redis.crc import key_slot
from support.events import make_event
from support.services import MODES, make_service
from support.sessions import create, read

from benchmarks.rigs.clusters import Cluster, Node
from sessionstore import BackendRejected, Session, SessionKey

BOTH = {"app:plan": "pro", "x": 1}
EVENT = make_event("e", state_delta=BOTH)
BATCH = [make_event("f"), make_event("g", state_delta={"x": 0}), EVENT]

Write = Callable[[Any, SessionKey, Session | None], Awaitable[Any]]


def ids_of(key: SessionKey) -> dict[str, str]:
    return {"app_name": key.app_name, "user_id": key.user_id, "session_id": key.session_id}


CREATES: dict[str, Write] = {
    "create_session": lambda s, key, _: s.create_session(**ids_of(key), state=BOTH),
    "get_or_create_session": lambda s, key, _: s.get_or_create_session(**ids_of(key), state=BOTH),
}
WRITES: dict[str, Write] = CREATES | {
    "append_event": lambda s, _, x: s.append_event(x, EVENT),
    "append_event if_version": lambda s, _, x: s.append_event(x, EVENT, if_version=x.version),
    "append_events": lambda s, _, x: s.append_events(x, BATCH),
    "update if_version": lambda s, _, x: s.update_session_state(x, BOTH, if_version=x.version),
    "update if_absent": lambda s, _, x: s.update_session_state(x, BOTH, if_absent=True),
}


@contextmanager
def out_of_memory(node: Node) -> Iterator[None]:
    """The node refuses whatever needs memory."""
    node.run("CONFIG SET", "maxmemory", 1)
    try:
        yield
    finally:
        node.run("CONFIG SET", "maxmemory", 0)


def nodes_and_key(cluster: Cluster) -> tuple[Node, Node, SessionKey]:
    """The node of the app state, the node of a session, and the session."""
    app_node = cluster.owner_of(key_slot(b"{app}"))
    session_node = other_primary(cluster, app_node)
    return app_node, session_node, key_on(cluster, session_node)


async def _check_repeat(service: Any, write: Write, key: SessionKey, old: Session | None) -> None:
    """Repeating the write completes it."""
    await write(service, key, old)
    assert await service.get_app_state(key.app_name) == {"plan": "pro"}
    found = await read(service, key)
    assert found.state == BOTH
    if old is not None:
        assert (old.state, old.version, old.events) == (BOTH, found.version, found.events)


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("mode", MODES)
async def test_the_node_of_the_app_state(cluster: Cluster, mode: str, name: str) -> None:
    app_node, _, key = nodes_and_key(cluster)
    service = make_service(mode, cluster.url)
    old = None if name in CREATES else await create(service, key)
    before = await service.get_session(**ids_of(key))
    with out_of_memory(app_node):
        with pytest.raises(BackendRejected, match="nothing was written") as caught:
            await WRITES[name](service, key, old)
        assert "update_app_state was refused" in str(caught.value)
        assert not caught.value.maybe_applied
        assert await service.get_app_state(key.app_name) == {}
        assert await service.get_session(**ids_of(key)) == before
    await _check_repeat(service, WRITES[name], key, old)
    await service.aclose()


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("mode", MODES)
async def test_the_node_of_the_session(cluster: Cluster, mode: str, name: str) -> None:
    _, session_node, key = nodes_and_key(cluster)
    service = make_service(mode, cluster.url)
    old = None if name in CREATES else await create(service, key)
    before = await service.get_session(**ids_of(key))
    with out_of_memory(session_node):
        text = "^the app state is written, the session is not: .* out of memory"
        with pytest.raises(BackendRejected, match=text) as caught:
            await WRITES[name](service, key, old)
        assert caught.value.maybe_applied, "a part of it is done"
        assert await service.get_app_state(key.app_name) == {"plan": "pro"}
        found = await service.get_session(**ids_of(key))
        assert (found is None) == (before is None)
        if found is not None:
            assert (found.version, found.events) == (before.version, before.events)
            assert found.state == {"app:plan": "pro"}
    await _check_repeat(service, WRITES[name], key, old)
    await service.aclose()
