"""What does it cost to list the 100 sessions of a user with merged state?

One agent calls `await service.list_sessions(..., limit=100)`. Each session has four state keys, and
the user and app tiers have two each. For comparison, one pipeline sends an HGETALL for each of the
100 sessions: with redis-py, without the index and without decoding; with redis-py, index, tiers
and decoding, as a user would write it; and as bare bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec
import redis.asyncio

from .harness import Harness, Variant, main
from .results import Group, Result, Target, bars_of, time_of
from .workload import keys_of, pack, service_of

OURS = "sessionstore"
PLAIN = "redis-py asyncio: 100 HGETALL in a pipeline"
BY_HAND = "redis-py asyncio: index, tiers, 100 HGETALL, decoded by hand"
CEILING = "ceiling: 100 HGETALL, bare hiredis"

_OWN_STATE = {"topic": "travel", "turns": 3, "plan": ["book", "pack", "go"], "done": False}
_SHARED_STATE = {"user:name": "Ada", "user:city": "Paris", "app:model": "large", "app:limit": 20}

_decode = msgspec.json.Decoder().decode


def measure(harness: Harness) -> Group:
    """The same list in several ways."""
    server = harness.start_server()
    service = service_of(server.url)
    bare = harness.connect_bare(server)
    client: Any = redis.asyncio.Redis.from_url(server.url, single_connection_client=True)
    harness.at_end(service.aclose)
    harness.at_end(client.aclose)
    count, sessions = harness.pick(100, 5), harness.pick(100, 10)

    async def create() -> list[Any]:
        state = _OWN_STATE | _SHARED_STATE
        return [
            await service.create_session(app_name="list", user_id="ada", state=state)
            for _ in range(sessions)
        ]

    keys = [keys_of(session.key) for session in harness.run(create())]
    request = pack(*(("HGETALL", each.session) for each in keys))

    async def ours() -> None:
        for _ in range(count):
            found = await service.list_sessions(app_name="list", user_id="ada", limit=sessions)
            assert len(found) == sessions

    async def plain() -> None:
        for _ in range(count):
            pipeline = client.pipeline(transaction=False)
            for each in keys:
                pipeline.hgetall(each.session)
            assert len(await pipeline.execute()) == sessions

    async def by_hand() -> None:
        for _ in range(count):
            ids = await client.zrange(keys[0].session_index, 0, sessions - 1, desc=True)
            pipeline = client.pipeline(transaction=False)
            pipeline.hgetall(keys[0].user)
            pipeline.hgetall(keys[0].app)
            stem = keys[0].session.rpartition(b":")[0] + b":"
            for name in ids:
                pipeline.hgetall(stem + name)
            user, app, *found = await pipeline.execute()
            states = [_merge(own, user, app) for own in found]
            assert len(states) == sessions

    async def ceiling() -> None:
        for _ in range(count):
            await bare.ask(request, sessions)

    variants = [
        Variant(OURS, count, ours),
        Variant(PLAIN, count, plain),
        Variant(BY_HAND, count, by_hand),
        Variant(CEILING, count, ceiling),
    ]
    return harness.measure(server, f"list {sessions} sessions", "list", variants)


def _merge(
    own: dict[bytes, bytes], user: dict[bytes, bytes], app: dict[bytes, bytes]
) -> dict[str, Any]:
    state = {name[1:].decode(): _decode(own[name]) for name in own if name[:1] == b"."}
    state |= {f"user:{name.decode()}": _decode(user[name]) for name in user}
    state |= {f"app:{name.decode()}": _decode(app[name]) for name in app}
    return state


def run(harness: Harness) -> Result:
    """Measure."""
    group = measure(harness)
    target = Target(
        "list 100 sessions with merged state, time, against 100 HGETALL in a pipeline of redis-py",
        group.ratio(OURS, PLAIN, time_of),
        "<=",
        2,
    )
    return harness.result(
        "bench_list",
        "What does it cost to list 100 sessions?",
        groups=[group],
        targets=[target],
        panels=[bars_of(group)],
        reading_hint="Time per list. Less is better.",
    )


if __name__ == "__main__":
    main(run)
