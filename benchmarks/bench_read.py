"""What do reads cost, compared with the same plain commands?

One agent reads a session with 1,000 events of 1 KB and state in every tier:
`await service.get_session(..., event_num=20)`, 200, or all. For comparison: one pipeline of HGETALL
for the three tiers and ZRANGE over a bare hiredis connection, and one ZRANGE whose events are
decoded with msgspec.
"""

from __future__ import annotations

from typing import Any

import msgspec
import redis.asyncio

from sessionstore import Event, SessionKey

from .harness import Harness, Server, Variant, main
from .results import Group, Result, Target, bars_of, server_cpu_of, time_of
from .workload import Recorder, keys_of, make_sessions, pack, read, request_of, service_of

OURS = "sessionstore"
RAW = "raw 3 HGETALL + ZRANGE, bare hiredis"
SAME_BYTES = "ceiling: same bytes, bare hiredis"
DECODED = "raw ZRANGE + msgspec decode, bare hiredis"
PLAIN = "redis-py asyncio: pipeline of the same + msgspec decode"

_decode = msgspec.json.Decoder(Event).decode


class _Reads:
    """All ways to read one session."""

    def __init__(self, harness: Harness, server: Server, key: SessionKey) -> None:
        self.harness = harness
        self.server = server
        self.key = key
        self.service = service_of(server.url, event_limit=1000)
        self.recorder = Recorder(event_limit=1000)
        self.bare = harness.connect_bare(server)
        self.client: Any = redis.asyncio.Redis.from_url(server.url, single_connection_client=True)
        harness.at_end(self.service.aclose)
        harness.at_end(self.client.aclose)

    def measure(self, num: int | None, stored: int, count: int) -> Group:
        """Read the newest `num` events, `count` times a round."""
        keys = keys_of(self.key)
        expected = num or stored
        hashes = [("HGETALL", name) for name in (keys.session, keys.user, keys.app)]
        zrange = ("ZRANGE", keys.events, -num if num else 0, -1)
        raw, one = pack(*hashes, zrange), pack(zrange)
        call = self.harness.run(self.recorder.read(self.key, num))
        same, replies = request_of(call)

        async def ours() -> None:
            for _ in range(count):
                session = await read(self.service, self.key, num)
                assert session is not None
                assert len(session.events) == expected

        async def undecoded(request: bytes, replies: int) -> None:
            for _ in range(count):
                await self.bare.ask(request, replies)

        async def decoded() -> None:
            for _ in range(count):
                [members] = await self.bare.ask(one)
                assert len([_decode(member) for member in members]) == expected

        async def plain() -> None:
            for _ in range(count):
                pipeline = self.client.pipeline(transaction=True)
                for name in (keys.session, keys.user, keys.app):
                    pipeline.hgetall(name)
                pipeline.zrange(keys.events, -num if num else 0, -1)
                members = (await pipeline.execute())[-1]
                assert len([_decode(member) for member in members]) == expected

        variants = [
            Variant(OURS, count, ours),
            Variant(RAW, count, lambda: undecoded(raw, 4)),
            Variant(SAME_BYTES, count, lambda: undecoded(same, replies)),
            Variant(DECODED, count, decoded),
            Variant(PLAIN, count, plain),
        ]
        which = f"the newest {num}" if num else "all"
        return self.harness.measure(self.server, f"read {which} of {stored:,}", "read", variants)


def run(harness: Harness) -> Result:
    """Measure."""
    server = harness.start_server()
    stored = harness.pick(1000, 40)
    service = service_of(server.url, event_limit=1000)
    harness.at_end(service.aclose)
    [session] = harness.run(make_sessions(service, "read", 1, stored))
    reads = _Reads(harness, server, session.key)
    last_20 = reads.measure(20, stored, harness.pick(2000, 10))
    last_200 = reads.measure(harness.pick(200, 30), stored, harness.pick(400, 10))
    everything = reads.measure(None, stored, harness.pick(100, 10))
    targets = [
        Target(
            f"read the newest 20 of {stored:,}, server CPU, against 3 HGETALL + ZRANGE",
            last_20.ratio(OURS, RAW, server_cpu_of),
            "<=",
            1.5,
        ),
        Target(
            f"read all {stored:,}, decoded, time, against ZRANGE + msgspec decode",
            everything.ratio(OURS, DECODED, time_of),
            "<=",
            1.25,
        ),
    ]
    return harness.result(
        "bench_read",
        "What do reads cost?",
        groups=[last_20, last_200, everything],
        targets=targets,
        notes=["The bare variants send requests made before, and parse the replies."],
        panels=[bars_of(group, (OURS, DECODED, PLAIN)) for group in (last_20, everything)],
        reading_hint="Time per read. Less is better.",
    )


if __name__ == "__main__":
    main(run)
