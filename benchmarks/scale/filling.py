"""Fills a server with sessions, from several processes, through the library.

Events are messages of synthetic conversations, so they compress as conversations do. The first
session of each user is created and its events are appended in one batch. The others are forks of
it: the server copies all keys, so they take as much memory.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from typing import Any

import msgspec

from sessionstore import Event, RedisSessionService, Zstd
from sessionstore.cli.fleet.synthetic import synthetic_conversations
from sessionstore.compression import train_dictionary

APP = "million"
SESSIONS_PER_USER = 4
STATE = {"topic": "travel", "turns": 3, "user:name": "Ada"}
TTL_S = 86_400

_ROLES = ("user", "assistant")
_POOL = 5000  # different events
_TASKS = 32


def user_of(number: int) -> str:
    """The user of a session."""
    return f"user-{number // SESSIONS_PER_USER:06d}"


def session_of(number: int) -> str:
    """The id of a session."""
    return f"session-{number:07d}"


def connect(url: str, compression: bool, **options: Any) -> RedisSessionService:
    """The measured service: TTL in all tiers, no event limit."""
    if compression:
        options["compression"] = trained()
    ttls: Any = dict.fromkeys(("session_ttl", "user_state_ttl", "app_state_ttl"), TTL_S)
    return RedisSessionService(url, session_event_limit=None, **{**ttls, **options})


@cache
def messages(mean_bytes: int, seed: int = 1) -> list[Any]:
    """Contents of events whose stored size is about `mean_bytes` on average.

    Messages of users and agents are taken as they are, up to the size that gives this mean.
    """
    conversations = synthetic_conversations(500, num_turns=8, sessions_per_user=4, seed=seed)
    found = [
        message
        for each in conversations
        for message in each.messages()
        if message["role"] in _ROLES
    ]
    found.sort(key=lambda message: len(msgspec.json.encode(message)))
    while len(found) > 1 and _mean_size(found) > mean_bytes:
        del found[-max(1, len(found) // 50) :]
    # In an order that does not depend on the size.
    found.sort(key=lambda message: str(message["content"]))
    return list(islice(found, _POOL))


def _mean_size(contents: Sequence[Any]) -> float:
    sizes = [len(msgspec.json.encode(event_of(each))) for each in contents[::20]]
    return sum(sizes) / len(sizes)


def event_of(content: Any, **fields: Any) -> Event:
    """A new event."""
    return Event(content["role"], content, invocation_id="turn-1", **fields)


@cache
def trained() -> Zstd:
    """Compression with a dictionary of other conversations than the stored ones.

    Every process trains the same one.
    """
    rng = random.Random(99)
    samples = []
    for content in messages(10_000, seed=99):
        moment = datetime.fromtimestamp(rng.randrange(1_700_000_000, 1_800_000_000), UTC)
        event = event_of(content, id=f"{rng.getrandbits(128):032x}", timestamp=moment)
        samples.append(msgspec.json.encode(event))
    return Zstd(dictionaries=[train_dictionary(samples)])


async def fill(
    url: str, first: int, count: int, events: int, mean_bytes: int, compression: bool
) -> None:
    """Create sessions with events."""
    pool = messages(mean_bytes)
    users = iter(range(first, first + count, SESSIONS_PER_USER))
    new_id = random.Random(first).getrandbits  # faster than the ids that events get by default

    async def work(service: RedisSessionService) -> None:
        for number in users:
            session = await service.create_session(
                app_name=APP,
                user_id=user_of(number),
                session_id=session_of(number),
                state=STATE,
            )
            batch = [
                event_of(pool[each % len(pool)], id=f"{new_id(128):032x}")
                for each in range(number * events, (number + 1) * events)
            ]
            await service.append_events(session.key, batch)
            for other in range(number + 1, min(number + SESSIONS_PER_USER, first + count)):
                await service.fork_session(session.key, session_id=session_of(other))

    async with connect(url, compression) as service:
        await asyncio.gather(*(work(service) for _ in range(_TASKS)))


def _fill_in_process(*arguments: Any) -> None:
    gc.set_threshold(50_000, 20, 20)
    asyncio.run(fill(*arguments))


def fill_with_processes(
    url: str,
    first: int,
    count: int,
    events: int,
    mean_bytes: int,
    compression: bool,
    processes: int,
) -> float:
    """Create sessions from several processes. Returns the seconds that it took."""
    start = time.perf_counter()
    if processes == 1:
        _fill_in_process(url, first, count, events, mean_bytes, compression)
        return time.perf_counter() - start
    # Each process gets whole users.
    share = -(-count // processes // SESSIONS_PER_USER) * SESSIONS_PER_USER
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting = [
            pool.submit(
                _fill_in_process,
                url,
                first + begin,
                min(share, count - begin),
                events,
                mean_bytes,
                compression,
            )
            for begin in range(0, count, share)
        ]
        for each in waiting:
            each.result()
    return time.perf_counter() - start
