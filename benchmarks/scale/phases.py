"""What the bench of a million sessions measures on a filled server: one function for each."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import redis

from sessionstore import RedisSessionService, SessionKey

from ..rigs.nodes import HOST, Node, Unsettled
from .filling import (
    APP,
    SESSIONS_PER_USER,
    STATE,
    connect,
    event_of,
    messages,
    session_of,
    user_of,
)

LONG_TIMEOUT_S = 900.0

_KEYS_SAMPLED = 2000
_POLL_S = 0.02
_BATCH = 2000
_PROBE_SESSIONS = 200
_PROBE_PAUSE_S = 0.002


def client_of(node: Node) -> Any:
    """A client that waits as long as a save or a load may take."""
    return redis.Redis(host=HOST, port=node.port, socket_timeout=LONG_TIMEOUT_S)


def cpu_us(client: Any) -> float:
    """Processor time of the server so far."""
    info = client.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"]) * 1e6


def quantiles(times_s: list[float]) -> dict[str, float]:
    """The percentiles p50, p99 and p99.9 in milliseconds, and the longest time."""
    ordered, last = sorted(times_s), len(times_s) - 1
    at = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    found = {name: ordered[min(int((last + 1) * part), last)] for name, part in at.items()}
    return {name: round(1000 * value, 3) for name, value in (*found.items(), ("max", ordered[-1]))}


# -- memory --------------------------------------------------------------------------------------


def memory(client: Any, sessions: int, events: int) -> dict[str, float]:
    """Bytes per session, by part. The parts are sampled; `other` is the rest of the memory."""
    info = client.info("memory")
    rng = random.Random(1)
    numbers = [rng.randrange(sessions) for _ in range(_KEYS_SAMPLED)]
    tag = [f"{{{APP}:{user_of(number)}}}" for number in numbers]
    parts = {
        "header and state": [
            f"session:{t}:{session_of(n)}" for t, n in zip(tag, numbers, strict=True)
        ],
        "events": [f"events:{t}:{session_of(n)}" for t, n in zip(tag, numbers, strict=True)],
        "index": [f"sessions:{t}" for t in tag],
        "user state": [f"userdata:{t}" for t in tag],
    }
    found: dict[str, float] = {}
    for name, keys in parts.items():
        shared_by = 1 if name in ("header and state", "events") else SESSIONS_PER_USER
        sizes = _usage(client, keys)
        found[name] = sum(sizes) / len(sizes) / shared_by
    payload = _payload(client, parts["events"][:200])
    found["events: content"] = payload
    found["events: overhead"] = found.pop("events") - payload
    total = (info["used_memory"] - info["used_memory_startup"]) / sessions
    found["other: tables of keys and deadlines"] = total - sum(found.values())
    found["together"] = total
    found["event, content"] = payload / events
    found["resident"] = info["used_memory_rss"] / sessions
    return {name: round(value, 1) for name, value in found.items()}


def _usage(client: Any, keys: list[str]) -> list[int]:
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.memory_usage(key, samples=0)
    return [size for size in pipe.execute() if size]


def _payload(client: Any, keys: list[str]) -> float:
    members = [client.zrange(key, 0, -1) for key in keys]
    return sum(len(member) for each in members for member in each) / len(members)


# -- latency -------------------------------------------------------------------------------------


async def latency(
    service: RedisSessionService, client: Any, sessions: int, calls: int, mean_bytes: int
) -> dict[str, dict[str, float]]:
    """Time and server CPU of calls, one at a time, on random sessions."""
    rng = random.Random(2)
    pool, new = messages(mean_bytes), count()

    def at() -> tuple[str, str]:
        number = rng.randrange(sessions)
        return user_of(number), session_of(number)

    async def create() -> None:
        user_id = f"new-{next(new) // SESSIONS_PER_USER}"
        await service.create_session(app_name=f"{APP}-new", user_id=user_id, state=STATE)

    async def append() -> None:
        await service.append_event(SessionKey(APP, *at()), event_of(rng.choice(pool)))

    async def read() -> None:
        user_id, session_id = at()
        session = await service.get_session(
            app_name=APP, user_id=user_id, session_id=session_id, event_num=20
        )
        assert session is not None
        assert session.events

    async def list_sessions() -> None:
        user_id, _ = at()
        page = await service.list_sessions(app_name=APP, user_id=user_id)
        assert len(page) == SESSIONS_PER_USER

    found = {}
    operations: dict[str, Callable[[], Awaitable[None]]] = {
        "create": create,
        "append": append,
        "read 20": read,
        "list": list_sessions,
    }
    for name, operation in operations.items():
        times: list[float] = []
        before = cpu_us(client)
        for _ in range(calls):
            start = time.perf_counter()
            await operation()
            times.append(time.perf_counter() - start)
        used = (cpu_us(client) - before) / calls
        found[name] = {**quantiles(times), "server_cpu_us": round(used, 1)}
    for number in range(calls // SESSIONS_PER_USER + 1):
        await service.delete_user(app_name=f"{APP}-new", user_id=f"new-{number}")
    return found


# -- expiry --------------------------------------------------------------------------------------


async def expire_all(
    service: RedisSessionService, client: Any, sessions: int, seconds: float, mean_bytes: int
) -> dict[str, Any]:
    """Let all sessions expire within some seconds, while others are in use.

    The deadlines of all keys are set with plain commands, spread evenly. The calls of other
    sessions are timed before and meanwhile.
    """
    pool = messages(mean_bytes)
    keys = [
        (
            await service.create_session(
                app_name=f"{APP}-probe", user_id=f"probe-{number}", state=STATE
            )
        ).key
        for number in range(_PROBE_SESSIONS)
    ]
    rng = random.Random(3)

    async def probe(until: Callable[[], bool]) -> dict[str, float]:
        times: list[float] = []
        while not until():
            key = rng.choice(keys)
            start = time.perf_counter()
            await service.append_event(key, event_of(rng.choice(pool)))
            times.append(time.perf_counter() - start)
            await asyncio.sleep(_PROBE_PAUSE_S)
        return {**quantiles(times), "calls": len(times)}

    ending = time.monotonic() + min(seconds, 5.0)
    calm = await probe(lambda: time.monotonic() > ending)
    before = client.info("memory")
    keys_before = client.dbsize()
    expired_before = client.info("stats")["expired_keys"]
    setting = time.time()
    margin = sessions / 12_000 + 0.5  # the commands take time
    begin_ms = int((setting + margin) * 1000)
    await asyncio.to_thread(_set_deadlines, client, sessions, begin_ms, seconds)
    late = time.time() - begin_ms / 1000
    await asyncio.sleep(max(0.0, -late))
    # Keys are gone some time after their deadlines. Wait until no more go.
    left: list[int] = []
    end = begin_ms / 1000 + seconds

    def has_ended() -> bool:
        now = time.time()
        if now >= end + len(left) * 0.5:
            left.append(client.dbsize())
        return bool(left) and (left[-1] <= 4 * _PROBE_SESSIONS + 10 or now > end + 120)

    cpu_before, start = cpu_us(client), time.time()
    meanwhile = await probe(has_ended)
    gone_after = time.time() - end
    cpu = (cpu_us(client) - cpu_before) / 1e6 / (time.time() - start)
    client.execute_command("MEMORY", "PURGE")
    await asyncio.sleep(1.0)
    after = client.info("memory")
    return {
        "deadlines set after the first was due": round(max(late, 0.0), 1),
        "appends before": calm,
        "appends meanwhile": meanwhile,
        "keys before": keys_before,
        "keys left at the last deadline": left[0],
        "keys left at the end": left[-1],
        "last keys gone, seconds after the last deadline": round(gone_after, 1),
        "expired keys": client.info("stats")["expired_keys"] - expired_before,
        "server cores": round(cpu, 2),
        "used memory before, bytes": before["used_memory"],
        "used memory after, bytes": after["used_memory"],
        "resident before, bytes": before["used_memory_rss"],
        "resident after, bytes": after["used_memory_rss"],
    }


def _set_deadlines(client: Any, sessions: int, begin_ms: int, seconds: float) -> None:
    for first in range(0, sessions, _BATCH):
        pipe = client.pipeline(transaction=False)
        for number in range(first, min(first + _BATCH, sessions)):
            at_ms = begin_ms + int(1000 * seconds * number / sessions)
            tag = f"{{{APP}:{user_of(number)}}}"
            pipe.pexpireat(f"session:{tag}:{session_of(number)}", at_ms)
            pipe.pexpireat(f"events:{tag}:{session_of(number)}", at_ms)
            if number % SESSIONS_PER_USER == SESSIONS_PER_USER - 1 or number == sessions - 1:
                pipe.pexpireat(f"sessions:{tag}", at_ms)
                pipe.pexpireat(f"userdata:{tag}", at_ms)
        pipe.execute()


async def lists_with_expired(
    service: RedisSessionService, client: Any, sessions: int, users: int
) -> dict[str, float]:
    """List users whose index still has all sessions, although half of them have expired."""
    rng = random.Random(4)
    numbers = rng.sample(range(sessions // SESSIONS_PER_USER), users)
    expired = []
    for user in numbers:
        for number in range(user * SESSIONS_PER_USER, user * SESSIONS_PER_USER + 2):
            tag = f"{{{APP}:{user_of(number)}}}"
            for role in ("session", "events"):
                expired.append(f"{role}:{tag}:{session_of(number)}")
                client.pexpire(expired[-1], 1)
    await asyncio.sleep(0.1)
    times: list[float] = []
    again: list[float] = []
    wrong = entries = 0
    for these in (times, again):
        for user in numbers:
            start = time.perf_counter()
            page = await service.list_sessions(
                app_name=APP, user_id=user_of(user * SESSIONS_PER_USER)
            )
            these.append(time.perf_counter() - start)
            wrong += len(page) != SESSIONS_PER_USER - 2
    for key in expired:  # the server removes it now, so that it does not count later
        client.exists(key)
    for user in numbers:
        entries += client.zcard(f"sessions:{{{APP}:{user_of(user * SESSIONS_PER_USER)}}}")
    return {
        "users": users,
        "first list, p50 ms": quantiles(times)["p50"],
        "second list, p50 ms": quantiles(again)["p50"],
        "wrong lists": wrong,
        "entries left in the index, of each user": round(entries / users, 2),
    }


# -- restart and failover ------------------------------------------------------------------------


def wait_for(condition: Callable[[], Any], limit_s: float = LONG_TIMEOUT_S) -> float:
    """Poll until a condition is true. Returns the seconds that it took.

    Raises:
        Unsettled: not within the limit.
    """
    start = time.perf_counter()
    while time.perf_counter() - start < limit_s:
        try:
            if condition():
                return time.perf_counter() - start
        except (redis.RedisError, OSError):
            pass
        time.sleep(_POLL_S)
    raise Unsettled(f"not within {limit_s:g} s")


def restart(node: Node, client: Any) -> float:
    """Kill the server and start it again. Returns the seconds until it answers, with its data."""
    keys = client.dbsize()
    node.kill()
    node.restart()
    seconds = wait_for(client.ping)
    if client.dbsize() < keys:
        raise Unsettled(f"{keys - client.dbsize():,} of {keys:,} keys are gone")
    return seconds


def save(client: Any) -> float:
    """Write a snapshot in the background. Returns the seconds."""
    client.bgsave()
    return wait_for(lambda: not client.info("persistence")["rdb_bgsave_in_progress"])


def rewrite_aof(client: Any) -> float:
    """Turn on the append-only file, which begins with a snapshot. Returns the seconds."""
    client.config_set("appendonly", "yes")

    def is_done() -> bool:
        state = client.info("persistence")
        return bool(
            state["aof_enabled"]
            and not state["aof_rewrite_in_progress"]
            and not state["aof_rewrite_scheduled"]
        )

    return wait_for(is_done)


async def fail_over(
    primary: Node, replica: Node, compression: bool, sessions: int, mean_bytes: int
) -> dict[str, float]:
    """Synchronize a replica, kill the primary, and let the replica take over.

    These figures leave out the time that an operator or Sentinel needs to notice the failure.
    """
    client = client_of(replica)
    replica.run("REPLICAOF", HOST, primary.port)

    def is_synced() -> bool:
        state = client.info("replication")
        return bool(state["master_link_status"] == "up")

    sync = await asyncio.to_thread(wait_for, is_synced)
    wanted = client_of(primary).info("replication")["master_repl_offset"]
    await asyncio.to_thread(
        wait_for, lambda: client.info("replication")["slave_repl_offset"] >= wanted
    )
    keys = client.dbsize()
    primary.kill()
    start = time.perf_counter()
    client.replicaof("NO", "ONE")
    url = f"redis://{HOST}:{replica.port}"
    rng = random.Random(5)
    async with connect(url, compression) as service:
        number = rng.randrange(sessions)
        session = await service.get_session(
            app_name=APP, user_id=user_of(number), session_id=session_of(number), event_num=0
        )
        assert session is not None
        await service.append_event(session.key, event_of(messages(mean_bytes)[0]))
        takeover = time.perf_counter() - start
    return {
        "keys": keys,
        "full synchronization of a replica, s": round(sync, 1),
        "from the kill to the first append on the replica, s": round(takeover, 3),
    }
