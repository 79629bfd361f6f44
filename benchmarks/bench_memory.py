"""How much memory does the server need for an event, beyond the event itself?

Events of 600 and of 1,140 encoded bytes are stored in sessions of 200 and of 1,000 events. The
overhead is the growth of `used_memory`, less the encoded bytes. Sessions without events are
measured too. Memory is read after all clients have disconnected, so their buffers do not count.
"""

from __future__ import annotations

import time

import msgspec

from .harness import Harness, Server, main
from .results import Figure, Result, Target
from .workload import STATE, fill, make_sessions, new_event, service_of

_EVENT_BYTES = 600


def text_for(encoded_bytes: int) -> str:
    """A text that makes an encoded event of about this size. Its timestamp varies a little."""
    return "x" * (encoded_bytes - len(msgspec.json.encode(new_event(""))))


def used_memory(server: Server) -> int:
    """The server's memory, read when it has dropped all other clients."""
    while server.client.info("clients")["connected_clients"] > 1:
        time.sleep(0.01)
    return server.read().used_memory_bytes


async def store(url: str, sessions: int, events: int, text: str) -> None:
    """Fill sessions, then disconnect."""
    async with service_of(url, event_limit=None) as service:
        for session in await make_sessions(service, "memory", sessions):
            await fill(service, session.key, events, text)


async def create(url: str, sessions: int) -> None:
    """Make sessions without events, then disconnect."""
    async with service_of(url) as service:
        await make_sessions(service, "memory", sessions)


def overhead(harness: Harness, server: Server, sessions: int, events: int, text: str) -> float:
    """Bytes per event beyond the encoded event."""
    server.client.flushall()
    harness.run(create(server.url, sessions))
    before = used_memory(server)
    server.client.flushall()
    harness.run(store(server.url, sessions, events, text))
    payload = sum(
        len(member)
        for key in server.client.keys("events:*")
        for member in server.client.zrange(key, 0, -1)
    )
    return (used_memory(server) - before - payload) / (sessions * events)


def run(harness: Harness) -> Result:
    """Measure."""
    server = harness.start_server()
    harness.run(create(server.url, 1))  # loads the scripts, which FLUSHALL keeps
    server.client.flushall()
    empty = used_memory(server)
    count = harness.pick(1000, 20)
    harness.run(create(server.url, count))
    per_session = (used_memory(server) - empty) / count
    figures = [
        Figure(f"one session of its own user, no events, state {STATE}", per_session, "bytes")
    ]
    found = {}
    for size in (_EVENT_BYTES, 1140):
        for events in (200, 1000):
            sessions = harness.pick(20_000, 1000) // events
            text = text_for(size)
            found[size, events] = overhead(harness, server, sessions, events, text)
            name = f"an event of {size} bytes beyond its payload, {events} in a session"
            figures.append(Figure(name, found[size, events], "bytes"))
    target = Target(
        "memory per stored 600-byte event beyond its payload, 1,000 in a session",
        found[_EVENT_BYTES, 1000],
        "<=",
        160,
        "bytes",
    )
    return harness.result(
        "bench_memory",
        "How much memory does the server need for an event, beyond the event itself?",
        figures=figures,
        targets=[target],
    )


if __name__ == "__main__":
    main(run)
