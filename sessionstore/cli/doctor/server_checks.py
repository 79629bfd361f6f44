"""Checks of a server: its settings, its health, and how far away it is. One function per check."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress

from ...errors import BackendRejected
from ...scripts import SCRIPTS
from ..keyspace import Node
from ..opened import counted
from ..store import parse_info
from .finding import Finding, error, ok, unknown, warning

_OLDEST_VERSION = 7
_SLOW_PING_S = 0.01
_CLOCK_OFFSET_S = 1.0
_LAG_S = 10
_FULL = 0.9  # of maxmemory or maxclients
_MUCH_FOR_LIBC = 1 << 30  # bytes

RIGHTS = {
    "": "copy eval evalsha multi exec exists hdel hexists hget hgetall hkeys hlen hmget hset"
    " persist pexpireat pexpiretime rename time unlink zadd zcard zcount zrange zrem"
    " zremrangebyrank zremrangebyscore zscore",
    "wait_replicas": "wait",
    "list_users": "scan",
    "watch_events without delay": "spublish ssubscribe sunsubscribe",
    "the command line": "config|get info memory|usage scan slowlog|get zscan",
}
"""The commands that a user needs, by feature. "" = every service."""

_CLUSTER_RIGHTS = {"clusters": "asking cluster|slots", 'read_from="replica"': "readonly"}


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
    if int(node.info.get("redis_version", "0").split(".")[0]) < _OLDEST_VERSION:
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
            "Sessions have lost events, or no longer exist.",
            "Set the policy noeviction, add memory, and run this command with --full.",
        )
    if not limit:
        yield warning(
            "memory",
            f"{used:,} bytes are used, and maxmemory is not set",
            "When the machine has no memory left, the system kills the server.",
            "CONFIG SET maxmemory below the machine's memory; then writes are refused in time.",
        )
    elif used > limit * _FULL:
        yield error(
            "memory",
            f"{used:,} of {limit:,} bytes are used",
            "When memory is full, all writes are refused.",
            "Raise maxmemory, set a session_ttl, or lower session_event_limit.",
        )
    else:
        yield ok("memory", f"{used:,} of {limit:,} bytes are used")
    allocator = node.info.get("mem_allocator", "unknown")
    if allocator == "libc" and used > _MUCH_FOR_LIBC:
        yield warning(
            "allocator",
            f"the server uses libc's malloc for {used:,} bytes",
            "When many sessions expire at once it may stop for seconds, and it keeps the memory.",
            "Run a server that is built with jemalloc, as most packages and images are.",
        )
    else:
        yield ok("allocator", allocator)


def _persistence(node: Node) -> Iterator[Finding]:
    try:
        saves, syncs = bool(node.setting("save")), node.setting("appendfsync")
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
        elif has_file and syncs == "no":
            yield warning(
                "persistence",
                "appendfsync is no: the system decides when the file is written",
                "If the machine fails, the writes of about 30 seconds are lost.",
                "CONFIG SET appendfsync everysec",
            )
        else:
            yield ok("persistence", f"append-only file, {syncs}" if has_file else "snapshots")
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
    if not replicas:
        return ok("replication", "no replicas: wait_replicas cannot be used")
    return ok("replication", f"{counted(len(replicas), 'connected replica')}")


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
            "Soon new processes will not be able to connect.",
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
            "If a reply is larger, the server closes the connection.",
            'CONFIG SET client-output-buffer-limit "normal 0 0 0"',
        )


def _clock(node: Node) -> Finding:
    offsets = []
    for _ in range(3):
        before = time.time()
        try:
            seconds, micros = node.ask("TIME")
        except BackendRejected:
            return unknown("clock", "TIME")
        after = time.time()
        offsets.append(int(seconds) + int(micros) / 1e6 - (before + after) / 2)
    offset = min(offsets, key=abs)
    saw = f"the server's clock differs from the clock here by {offset:+.3f} s"
    if abs(offset) > _CLOCK_OFFSET_S:
        return warning(
            "clock",
            saw,
            "Positions and TTLs use the server's clock, so they differ from event times.",
            "Synchronize the clocks with NTP.",
        )
    return ok("clock", saw)


def _latency(node: Node) -> Finding:
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        try:
            node.ask("ECHO", "x")
        except BackendRejected:
            return unknown("latency", "ECHO")
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
            "Other calls wait meanwhile.",
            "Look for very large events, state or batches, and for a server without CPU time.",
        )
    return ok("slow scripts", "none in the slow log")


def _rights(node: Node) -> Finding:
    """What the user of the doctor may do. A service that has another user needs the same rights."""
    features = dict(RIGHTS)
    if node.info.get("cluster_enabled") == "1":
        features |= _CLUSTER_RIGHTS
    try:
        user = node.ask("ACL", "WHOAMI").decode()
        missing = {
            feature: [each for each in words.split() if not _may(node, user, each)]
            for feature, words in features.items()
        }
        keys = [key for key in node.example_keys if not _may(node, user, "hlen", key)]
    except BackendRejected:
        return unknown("rights", "ACL DRYRUN")
    if commands := missing.pop(""):
        return error(
            "rights",
            f"user {user} may not run: {' '.join(commands)}",
            "Calls fail.",
            f"ACL SETUSER {user} +{' +'.join(commands)}",
        )
    if keys:
        patterns = [f"{key.partition(b'{')[0].decode()}*" for key in keys]
        return error(
            "rights",
            f"user {user} may not use the keys {' '.join(patterns)}",
            "Calls fail.",
            f"ACL SETUSER {user} ~{' ~'.join(patterns)}",
        )
    rest = "; ".join(f"{feature}: {' '.join(names)}" for feature, names in missing.items() if names)
    return ok("rights", f"user {user}" + (f"; not usable without: {rest}" if rest else ""))


def _may(node: Node, user: str, command: str, key: bytes | None = None) -> bool:
    """Whether a user may run a command; with a key: whether it may use the key."""
    words = _WITHOUT_KEY.get(command)
    if words is None:
        example = key or node.example_keys[0]
        words = (example, *(example if each == _KEY else each for each in _AFTER_KEY[command]))
    name, *sub = command.split("|")
    try:
        reply = node.ask("ACL", "DRYRUN", user, name, *sub, *words)
    except BackendRejected as problem:
        if "not found" in str(problem):  # an old server, or one that has renamed it
            return False
        raise
    is_channel = command in ("spublish", "ssubscribe", "sunsubscribe")
    return reply == b"OK" if key or is_channel else b"no permissions to run" not in reply


_KEY = "key"
_WITHOUT_KEY: Mapping[str, tuple[str | bytes, ...]] = {
    "multi": (),
    "exec": (),
    "time": (),
    "asking": (),
    "readonly": (),
    "cluster|slots": (),
    "info": (),
    "config|get": ("save",),
    "slowlog|get": (),
    "eval": ("return 1", "0"),
    "evalsha": ("0" * 40, "0"),
    "scan": ("0",),
    "wait": ("0", "0"),
}

_AFTER_KEY: Mapping[str, tuple[str | bytes, ...]] = defaultdict(tuple) | {
    "copy": (_KEY,),
    "rename": (_KEY,),
    "spublish": ("x",),
    "hdel": ("f",),
    "hexists": ("f",),
    "hget": ("f",),
    "hmget": ("f",),
    "hset": ("f", "v"),
    "pexpireat": ("1",),
    "zadd": ("1", "m"),
    "zcount": ("0", "1"),
    "zrange": ("0", "1"),
    "zrem": ("m",),
    "zremrangebyrank": ("0", "1"),
    "zremrangebyscore": ("0", "1"),
    "zscan": ("0",),
    "zscore": ("m",),
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
