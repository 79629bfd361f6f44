"""Checks of a server: its settings, its health, and how far away it is. One function per check."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from ...errors import BackendRejected
from ...scripts import SCRIPTS
from ..keyspace import Node
from ..store import parse_info
from .finding import Finding, error, ok, unknown, warning

_SLOW_PING_S = 0.01
_CLOCK_OFFSET_S = 1.0
_LAG_S = 10
_FULL = 0.9  # of maxmemory or maxclients

RIGHTS = {
    "": "copy eval evalsha multi exec exists hdel hexists hget hgetall hkeys hlen hmget hset"
    " persist pexpireat pexpiretime rename time unlink zadd zcard zcount zrange zrem"
    " zremrangebyrank zremrangebyscore zscore",
    "wait_replicas": "wait",
    "list_users": "scan",
}
"""The commands that a user needs, by feature. "" = every service."""


def check_server(node: Node) -> Iterator[Finding]:
    """All checks of one primary."""
    yield _version(node)
    yield _role(node)
    yield from _memory(node)
    yield from _persistence(node)
    yield _replication(node)
    yield from _connections(node)
    yield _clock(node)
    yield _latency(node)
    yield _slow_scripts(node)
    yield _rights(node)
    if node.info.get("cluster_enabled") == "1":
        yield _cluster(node)


def _version(node: Node) -> Finding:
    name = node.info.get("server_name", "redis")
    version = node.info.get("valkey_version") or node.info.get("redis_version", "0")
    saw = f"{name} {version}"
    if int(node.info.get("redis_version", "0").split(".")[0]) < 7:
        return error(
            "version", saw, "Scripts need commands of Redis 7.0.", "Update to Redis 7.0 or later."
        )
    return ok("version", saw)


def _role(node: Node) -> Finding:
    role = node.info.get("role", "unknown")
    if role != "master":
        return error(
            "role",
            f"the server is a {role}",
            "Every write is refused.",
            "Connect to the primary: by its address, by Sentinels or as a cluster.",
        )
    return ok("role", "primary")


def _memory(node: Node) -> Iterator[Finding]:
    limit, used = node.number("maxmemory"), node.number("used_memory")
    policy = node.info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield error(
            "eviction policy",
            f"maxmemory-policy is {policy}",
            "When memory is full, the server removes events, sessions and state.",
            "CONFIG SET maxmemory-policy noeviction",
        )
    else:
        yield ok("eviction policy", policy)
    if evicted := node.number("evicted_keys"):
        yield error(
            "evicted keys",
            f"{evicted:,} keys were evicted since the server started",
            "Sessions lack events, or are gone.",
            "Set the policy noeviction, add memory, and run this command with --full.",
        )
    if limit and used > limit * _FULL:
        yield error(
            "memory",
            f"{used:,} of {limit:,} bytes are used",
            "When memory is full, all writes are refused.",
            "Raise maxmemory, set a session_ttl, or lower session_event_limit.",
        )
    else:
        yield ok(
            "memory",
            f"{used:,} bytes are used, " + (f"of {limit:,}" if limit else "without a limit"),
        )


def _persistence(node: Node) -> Iterator[Finding]:
    try:
        saves = bool(node.setting("save"))
    except BackendRejected:
        yield unknown("persistence", "CONFIG GET")
    else:
        has_file = node.info.get("aof_enabled") == "1"
        if not saves and not has_file:
            yield warning(
                "persistence",
                "neither an append-only file nor snapshots are written",
                "A restart loses every session.",
                "CONFIG SET appendonly yes",
            )
        else:
            yield ok("persistence", "append-only file" if has_file else "snapshots")
    for field, what in (
        ("rdb_last_bgsave_status", "the last snapshot"),
        ("aof_last_bgrewrite_status", "the last rewrite of the append-only file"),
        ("aof_last_write_status", "the last write to the append-only file"),
    ):
        if node.info.get(field, "ok") != "ok":
            yield error(
                "persistence",
                f"{what} failed",
                "The server may refuse writes, and a restart loses data.",
                "Look at the server's log; usually the disk is full or not writable.",
            )


def _replication(node: Node) -> Finding:
    replicas = [
        dict(part.split("=", 1) for part in value.split(","))
        for name, value in node.info.items()
        if name.startswith("slave") and "state=" in value
    ]
    behind = [
        replica
        for replica in replicas
        if replica["state"] != "online" or int(replica.get("lag", "0")) > _LAG_S
    ]
    with suppress(BackendRejected):
        wanted = int(node.setting("min-replicas-to-write") or 0)
        if wanted > len(replicas) - len(behind):
            return error(
                "replication",
                f"{len(replicas) - len(behind)} of {wanted} required replicas are connected",
                "The server refuses writes: min-replicas-to-write.",
                "Start the replicas, or lower min-replicas-to-write.",
            )
    if behind:
        places = ", ".join(f"{replica['ip']}:{replica['port']}" for replica in behind)
        return warning(
            "replication",
            f"replicas lag or are not connected: {places}",
            "A failover to one of them loses writes, and WAIT times out.",
            "Look at the log and the network of these replicas.",
        )
    return ok("replication", f"{len(replicas)} connected replicas")


def _connections(node: Node) -> Iterator[Finding]:
    if rejected := node.number("rejected_connections"):
        yield warning(
            "connections",
            f"{rejected:,} connections were rejected since the server started",
            "Processes could not connect.",
            "Raise maxclients; sessionstore needs two connections per process and node.",
        )
    used, limit = node.number("connected_clients"), node.number("maxclients")
    if limit and used > limit * _FULL:
        yield warning(
            "connections",
            f"{used:,} of {limit:,} connections are used",
            "Soon new processes cannot connect.",
            "Raise maxclients, or look for clients that do not close connections.",
        )
    try:
        buffers = (node.setting("client-output-buffer-limit") or "").split()
    except BackendRejected:
        yield unknown("output buffers", "CONFIG GET")
        return
    normal = buffers[buffers.index("normal") + 1] if "normal" in buffers else "0"
    if normal != "0":
        yield warning(
            "output buffers",
            f"client-output-buffer-limit of normal clients is {normal} bytes",
            "The server cuts the connection in a read that is larger.",
            'CONFIG SET client-output-buffer-limit "normal 0 0 0"',
        )


def _clock(node: Node) -> Finding:
    offsets = []
    for _ in range(3):
        before = time.time()
        seconds, micros = node.ask("TIME")
        after = time.time()
        offsets.append(int(seconds) + int(micros) / 1e6 - (before + after) / 2)
    offset = min(offsets, key=abs)
    saw = f"the server's clock differs from the clock here by {offset:+.3f} s"
    if abs(offset) > _CLOCK_OFFSET_S:
        return warning(
            "clock",
            saw,
            "Positions and TTLs follow the server's clock; a jump separates them from event times.",
            "Synchronize the clocks by NTP.",
        )
    return ok("clock", saw)


def _latency(node: Node) -> Finding:
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        node.ask("ECHO", "x")
        times.append(time.perf_counter() - begin)
    median = statistics.median(times)
    saw = f"a round trip takes {median * 1000:.2f} ms"
    if median > _SLOW_PING_S:
        return warning(
            "latency",
            saw,
            "Every append and every read takes at least as long.",
            "Run agents near the server; look for a busy server or network.",
        )
    return ok("latency", saw)


def _slow_scripts(node: Node) -> Finding:
    names = {script.sha: script.name for script in SCRIPTS.values()}
    try:
        entries = node.ask("SLOWLOG", "GET", "128")
    except BackendRejected:
        return unknown("slow scripts", "SLOWLOG GET")
    found: Counter[str] = Counter()
    longest_us = 0
    for _, _, duration_us, words, *_ in entries:
        sha = words[1] if len(words) > 1 else b""
        name = names.get(sha if isinstance(sha, bytes) else b"")
        if name is not None:
            found[name] += 1
            longest_us = max(longest_us, int(duration_us))
    if found:
        counts = ", ".join(f"{name}: {count}" for name, count in found.most_common())
        return warning(
            "slow scripts",
            f"{counts}; the longest took {longest_us / 1000:.1f} ms",
            "The server answers nobody else meanwhile.",
            "Look for very large events, state or batches, and for a server without CPU time.",
        )
    return ok("slow scripts", "none in the slow log")


def _rights(node: Node) -> Finding:
    try:
        user = node.ask("ACL", "WHOAMI").decode()
        missing: dict[str, list[str]] = {}
        for feature, commands in RIGHTS.items():
            for command in commands.split():
                reply = node.ask("ACL", "DRYRUN", user, command, *_ARGUMENTS.get(command, ("k",)))
                if b"no permissions to run" in reply:
                    missing.setdefault(feature, []).append(command)
    except BackendRejected:
        return unknown("rights", "ACL DRYRUN")
    if missing.get(""):
        return error(
            "rights",
            f"user {user} may not run: {' '.join(missing[''])}",
            "Calls fail.",
            f"ACL SETUSER {user} +{' +'.join(missing[''])}",
        )
    rest = "; ".join(f"{feature}: {' '.join(names)}" for feature, names in missing.items())
    return ok("rights", f"user {user}" + (f"; not usable without: {rest}" if rest else ""))


_ARGUMENTS = {
    "multi": (),
    "exec": (),
    "time": (),
    "eval": ("return 1", "0"),
    "evalsha": ("0" * 40, "0"),
    "copy": ("k", "l"),
    "rename": ("k", "l"),
    "hdel": ("k", "f"),
    "hexists": ("k", "f"),
    "hget": ("k", "f"),
    "hmget": ("k", "f"),
    "hset": ("k", "f", "v"),
    "pexpireat": ("k", "1"),
    "scan": ("0",),
    "wait": ("0", "0"),
    "zadd": ("k", "1", "m"),
    "zcount": ("k", "0", "1"),
    "zrange": ("k", "0", "1"),
    "zrem": ("k", "m"),
    "zremrangebyrank": ("k", "0", "1"),
    "zremrangebyscore": ("k", "0", "1"),
    "zscore": ("k", "m"),
}


def _cluster(node: Node) -> Finding:
    info = parse_info(node.ask("CLUSTER", "INFO"))
    if info.get("cluster_state") != "ok" or info.get("cluster_slots_assigned") != "16384":
        return error(
            "cluster",
            f"state {info.get('cluster_state')}, {info.get('cluster_slots_assigned')} slots served",
            "Calls on users of missing slots fail.",
            "Bring the missing nodes back, or run redis-cli --cluster fix.",
        )
    return ok("cluster", f"{info.get('cluster_size')} primaries serve all slots")
