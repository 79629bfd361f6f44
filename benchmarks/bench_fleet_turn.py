"""How fast are whole turns of a fleet of agents, with reads and writes?

A turn is what an agent does with one message: `get_session(event_num=20)`, then three
`append_event` with the returned Session, one with a state delta in two tiers. For comparison:
the same Calls sent by redis-py, so that only the transport differs, and the same bytes sent without
sessionstore.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import redis.asyncio

from sessionstore import Event, SessionKey, SessionService
from sessionstore.calls import Call
from sessionstore.observe import wrap_executor

from .bare import Request
from .harness import Harness, Server, Variant, main
from .payload import TEXT
from .results import Group, Result, bars_of
from .workload import (
    EVENT_LIMIT,
    Recorder,
    evalsha,
    make_sessions,
    new_event,
    read,
    request_of,
    service_of,
    split,
)

OURS = "sessionstore"
OVER_REDIS_PY = "the same Calls, sent by redis-py"
CEILING = "ceiling: same bytes, bare hiredis"

_DELTA = {"turns": 4, "user:mood": "curious"}


class _RedisPyExecutor:
    """Sends each Call as one call of redis-py."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def execute(self, call: Call[Any]) -> list[Any]:
        if call.script is not None and not call.commands:
            return [await self._client.evalsha(*evalsha(call))]
        pipeline = self._client.pipeline(transaction=True)
        if call.script is not None:
            pipeline.evalsha(*evalsha(call))
        for command in call.commands:
            pipeline.execute_command(*command)
        replies: list[Any] = await pipeline.execute()
        return replies

    async def aclose(self) -> None:
        pass


def _events() -> list[Event]:
    return [new_event(), Event("tool", TEXT, state_delta=_DELTA), new_event()]


async def turn(service: SessionService, key: SessionKey) -> None:
    """One turn of one agent."""
    session = await read(service, key, 20)
    assert session is not None
    for event in _events():
        await service.append_event(session, event)


async def recorded_turn(recorder: Recorder, key: SessionKey) -> list[Request]:
    """The requests of a turn."""
    calls = [await recorder.read(key, 20)]
    calls += [await recorder.append(key, event) for event in _events()]
    return [request_of(call) for call in calls]


def measure(harness: Harness, server: Server, agents: int) -> Group:
    """The turns of a fleet."""
    service = service_of(server.url)
    client: Any = redis.asyncio.Redis.from_url(server.url, single_connection_client=agents == 1)
    over_redis_py = service_of(server.url)
    wrap_executor(over_redis_py, lambda _: _RedisPyExecutor(client))
    bare = harness.connect_bare(server)
    harness.at_end(service.aclose)
    harness.at_end(client.aclose)
    stored = harness.pick(EVENT_LIMIT, 20)
    keys: dict[str, list[SessionKey]] = {}
    for number, name in enumerate((OURS, OVER_REDIS_PY, CEILING)):
        sessions = harness.run(make_sessions(service, f"turn{number}-{agents}", agents, stored))
        keys[name] = [session.key for session in sessions]
    each = split(harness.pick(1024 if agents > 1 else 400, agents), agents)
    recorder = Recorder()
    requests: list[list[Request]] = []

    async def agent(of: SessionService, key: SessionKey) -> None:
        for _ in range(each):
            await turn(of, key)

    async def fleet(of: SessionService, fleet_keys: Sequence[SessionKey]) -> None:
        await asyncio.gather(*(agent(of, key) for key in fleet_keys))

    async def prepare() -> None:
        requests.clear()
        for key in keys[CEILING]:
            turns = [await recorded_turn(recorder, key) for _ in range(each)]
            requests.append([request for one in turns for request in one])

    async def ceiling() -> None:
        await bare.run_agents(requests)

    count = each * agents
    variants = [
        Variant(OURS, count, lambda: fleet(service, keys[OURS])),
        Variant(OVER_REDIS_PY, count, lambda: fleet(over_redis_py, keys[OVER_REDIS_PY])),
        Variant(CEILING, count, ceiling, prepare),
    ]
    name = "1 agent" if agents == 1 else f"{agents} agents"
    return harness.measure(server, name, "turn", variants)


def run(harness: Harness) -> Result:
    """Measure."""
    server = harness.start_server()
    groups = [measure(harness, server, agents) for agents in (1, 64)]
    return harness.result(
        "bench_fleet_turn",
        "How fast are whole turns: one read of 20 events, three appends, one with a state delta?",
        groups=groups,
        panels=[bars_of(group) for group in groups],
        reading_hint="Time per turn. Less is better.",
    )


if __name__ == "__main__":
    main(run)
