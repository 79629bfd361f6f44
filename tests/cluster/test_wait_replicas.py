"""`wait_replicas`: a write succeeds when replicas have it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from cluster_support import key_on, other_primary
from redis.crc import key_slot
from support.events import make_event
from support.services import MODES, make_service
from support.sessions import create, read

from benchmarks.rigs.clusters import Cluster, Node, SentinelGroup
from sessionstore import BackendUnavailable, Event, NotReplicated, SessionKey

KEY = SessionKey("app", "user", "s")


def _stopped_replica(cluster: Cluster) -> tuple[SessionKey, Node]:
    """A session, and the only replica of its primary, stopped."""
    primary = cluster.primaries()[0]
    [replica] = cluster.replicas_of(primary)
    replica.stop()
    return key_on(cluster, primary), replica


@pytest.mark.parametrize("mode", MODES)
async def test_writes_succeed_where_replicas_are(replicated_cluster: Cluster, mode: str) -> None:
    """The replica has the write when the call returns."""
    cluster = replicated_cluster
    primary = cluster.primaries()[0]
    [replica] = cluster.replicas_of(primary)
    key = key_on(cluster, primary)
    service = make_service(mode, cluster.url, wait_replicas=(1, 5))
    replica.run("READONLY")
    name = f"events:{{{key.app_name}:{key.user_id}}}:{key.session_id}"
    await create(service, key, state={"a": 1, "app:b": 2})
    for number in range(50):
        await service.append_event(key, make_event(number))
        assert replica.run("ZCARD", name) == number + 1
    await service.append_events(key, [make_event(number) for number in range(50, 60)])
    assert replica.run("ZCARD", name) == 60
    await service.aclose()


async def test_many_agents_share_a_wait(replicated_cluster: Cluster) -> None:
    cluster = replicated_cluster
    service = make_service("async", cluster.url, wait_replicas=(1, 5))
    primary = cluster.primaries()[0]
    key = key_on(cluster, primary)
    await create(service, key)
    before = primary.info("commandstats").get("cmdstat_wait", {"calls": 0})["calls"]
    await asyncio.gather(*(service.append_event(key, make_event(n)) for n in range(500)))
    calls = primary.info("commandstats")["cmdstat_wait"]["calls"] - before
    assert 1 <= calls <= 50
    assert len((await read(service, key)).events) == 500
    await service.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_a_write_that_is_not_confirmed_is_done_and_raises(
    replicated_cluster: Cluster, mode: str
) -> None:
    cluster = replicated_cluster
    patient = make_service(mode, cluster.url)
    key, replica = _stopped_replica(cluster)
    session = await create(patient, key)
    service = make_service(mode, cluster.url, wait_replicas=(1, 0.05))
    event = make_event(1, state_delta={"a": 1, "app:b": 2})
    with pytest.raises(
        NotReplicated, match="append_event: the write is done, but 0 of 1"
    ) as caught:
        await service.append_event(session, event)
    assert (caught.value.confirmed, caught.value.maybe_applied) == (0, True)
    assert isinstance(caught.value.result, Event)
    assert caught.value.result.content == 1
    assert session.events == [event]
    assert session.state["a"] == 1
    stored = await read(patient, key)  # the app tier in its own slot, too
    assert (stored.events, stored.state) == ([event], {"a": 1, "app:b": 2})

    with pytest.raises(NotReplicated) as caught:  # a repeat waits again
        await service.append_event(session, event)
    replica.cont()
    await service.append_event(session, event)
    assert [each.content for each in (await read(service, key)).events] == [1]
    await service.aclose()
    await patient.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_a_session_is_written_once_replicas_have_its_app_state(
    replicated_cluster: Cluster, mode: str
) -> None:
    cluster = replicated_cluster
    primary = cluster.owners()[key_slot(b"appdata:{app}")]
    [replica] = cluster.replicas_of(primary)
    patient = make_service(mode, cluster.url, wait_replicas=(1, 5))
    key = key_on(cluster, other_primary(cluster, primary))
    session = await create(patient, key)
    replica.stop()
    service = make_service(mode, cluster.url, wait_replicas=(1, 0.05))
    event = make_event(1, state_delta={"a": 1, "app:b": 2}, state_increments={"user:n": 1})
    text = "the session is not: update_app_state: the write is done, but 0 of 1 replicas"
    with pytest.raises(BackendUnavailable, match=text):
        await service.append_event(session, event)
    assert session.events == (await read(patient, key)).events == []
    replica.cont()
    await patient.append_event(session, event)
    replica.run("READONLY")
    assert replica.run("HGETALL", "appdata:{app}") == {"b": "2"}
    await patient.append_event(session, event)
    assert session == await read(patient, key)
    assert session.state == {"a": 1, "app:b": 2, "user:n": 1}
    await service.aclose()
    await patient.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_a_repeat_on_a_new_connection_waits_too(
    replicated_cluster: Cluster, mode: str
) -> None:
    """The repeat writes nothing new, and WAIT covers only writes of its own connection."""
    cluster = replicated_cluster
    patient = make_service(mode, cluster.url)
    key, _ = _stopped_replica(cluster)
    session = await create(patient, key)
    event = make_event(1)
    for each in ([event], [event, make_event(2)]):
        await patient.append_events(key, each)
        service = make_service(mode, cluster.url, wait_replicas=(1, 0.05))
        with pytest.raises(NotReplicated):
            await service.append_events(session, each)
        await service.aclose()
    await patient.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_a_popped_event_is_not_lost_with_the_confirmation(
    replicated_cluster: Cluster, mode: str
) -> None:
    cluster = replicated_cluster
    patient = make_service(mode, cluster.url)
    key, _ = _stopped_replica(cluster)
    await create(patient, key)
    await patient.append_event(key, make_event(1))
    service = make_service(mode, cluster.url, wait_replicas=(1, 0.05))
    with pytest.raises(NotReplicated) as caught:
        await service.pop_event(key)
    assert caught.value.result.content == 1
    with pytest.raises(NotReplicated) as caught:
        await service.delete_session(app_name="app", user_id=key.user_id, session_id="s")
    assert caught.value.result is None
    await service.aclose()
    await patient.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_reads_do_not_wait(replicated_cluster: Cluster, mode: str) -> None:
    """They wait neither for replicas nor for writes that wait."""
    cluster = replicated_cluster
    patient = make_service(mode, cluster.url)
    key, _ = _stopped_replica(cluster)
    await create(patient, key)
    service = make_service(mode, cluster.url, wait_replicas=(1, 8))
    await read(service, key)
    write = asyncio.create_task(service.append_event(key, make_event(1)))
    for _ in range(20):
        await asyncio.wait_for(read(service, key), 2.0)
    assert not write.done()
    cluster.revive()
    await write
    await service.aclose()
    await patient.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_more_replicas_than_there_are(sentinel_group: SentinelGroup, mode: str) -> None:
    url = sentinel_group.url
    service = make_service(mode, url, wait_replicas=(2, 5))
    await create(service, KEY)
    greedy = make_service(mode, url, wait_replicas=(3, 0.05))
    with pytest.raises(NotReplicated, match="2 of 3 replicas") as caught:
        await greedy.append_event(KEY, make_event(1))
    assert caught.value.confirmed == 2
    await service.aclose()
    await greedy.aclose()


async def test_cancelled_callers_do_not_affect_others(replicated_cluster: Cluster) -> None:
    cluster = replicated_cluster
    service = make_service("async", cluster.url, wait_replicas=(1, 5))
    key = key_on(cluster, cluster.primaries()[0])
    await create(service, key)
    stay: list[Any] = []
    for number in range(200):
        task = asyncio.create_task(service.append_event(key, make_event(number)))
        if number % 2:
            stay.append(task)
        else:
            asyncio.get_running_loop().call_later(0.0002 * number, task.cancel)
    await asyncio.gather(*stay)
    await service.aclose()
