"""With `app_state_max_age` a read in a cluster asks one server, without it two."""

from __future__ import annotations

from support.services import both_modes, make_service

from benchmarks.rigs.clusters import Cluster
from sessionstore import SessionKey


def reads_by_node(cluster: Cluster) -> list[int]:
    """How many HGETALL each node has run."""
    found = []
    for node in cluster.nodes:
        stats = node.client.info("commandstats").get("cmdstat_hgetall", {"calls": 0})
        found.append(stats["calls"])
    return found


@both_modes
async def test_a_read_asks_one_server(cluster: Cluster, mode: str) -> None:
    plain = make_service(mode, cluster.url)
    copying = make_service(mode, cluster.url, app_state_max_age=600)

    async def nodes_asked(service: object, key: SessionKey, times: int) -> list[int]:
        before = reads_by_node(cluster)
        for _ in range(times):
            session = await service.get_session(  # type: ignore[attr-defined]  # of either kind
                app_name=key.app_name, user_id=key.user_id, session_id=key.session_id
            )
            assert session.state == {"app:plan": "pro"}
        pairs = zip(reads_by_node(cluster), before, strict=True)
        return sorted(after - earlier for after, earlier in pairs if after > earlier)

    num_apart = 0
    for number in range(8):
        key = SessionKey("a", f"user-{number}", "s")
        await plain.create_session(
            app_name="a", user_id=key.user_id, session_id="s", state={"app:plan": "pro"}
        )
        await nodes_asked(copying, key, 1)
        assert await nodes_asked(copying, key, 3) == [6]  # the session and the user tier
        num_apart += await nodes_asked(plain, key, 3) == [3, 6]
    assert num_apart > 0  # the slot of the app tier is on another node than some users
    await plain.aclose()
    await copying.aclose()
