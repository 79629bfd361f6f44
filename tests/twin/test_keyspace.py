"""Every method of the twin's keyspace against the command of the same name, in random order."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import redis
from dumps import dump_server, dump_twin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.servers import Server

from sessionstore.twin.keyspace import Keyspace, WrongType

Step = tuple[str, tuple[Any, ...]]
Bound = tuple[float, bool]

KEYS = (b"one", b"two", b"{three}")
MEMBERS = (b"a", b"b", b"c", b"\x00\xff", b"", b"ab")
SCORES = (0, 1, 2, 3, -1, 10**15, 10**15 + 1, 2**53 - 1)
FAR_MS = 4_000_000_000_000  # beyond any test run
DEADLINES = (1, FAR_MS, FAR_MS + 1, FAR_MS + 2)

keys = st.sampled_from(KEYS)
members = st.sampled_from(MEMBERS)
scores = st.sampled_from(SCORES)
ranks = st.integers(-8, 8)
bounds = st.tuples(scores, st.booleans()) | st.sampled_from(
    ((float("-inf"), False), (float("inf"), False))
)
pairs = st.lists(st.tuples(members, members), min_size=1, max_size=4).map(
    lambda found: [text for pair in found for text in pair]
)
fields = st.lists(members, min_size=1, max_size=4)


NAMES: list[str] = []  # of all methods that are tested


def step(name: str, *parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    NAMES.append(name)
    return st.tuples(st.just(name), st.tuples(*parts))


STEPS = (
    step("zadd", keys, scores, members, st.booleans()),
    step("zadd", keys, scores, members, st.just(False)),
    step("zscore", keys, members),
    step("zcard", keys),
    step("zrem", keys, members),
    step("zremrangebyrank", keys, st.integers(0, 5), st.integers(0, 5)),
    step("zremrangebyscore", keys, scores, st.just(math.inf)),
    step("zremrangebyscore", keys, st.just(-math.inf), scores),
    step("zcount", keys, st.just(-math.inf), scores),
    step("zcount", keys, scores, scores),
    step("zrange_by_rank", keys, ranks, ranks, st.booleans()),
    step("zrange_by_score", keys, bounds, bounds, st.booleans(), st.none() | st.integers(1, 4)),
    step("hset", keys, pairs),
    step("hdel", keys, fields),
    step("hget", keys, members),
    step("hmget", keys, fields),
    step("hgetall", keys),
    step("hexists", keys, members),
    step("hlen", keys),
    step("unlink", keys),
    step("unlink", st.just(KEYS[0]), st.just(KEYS[1])),
    step("exists", keys),
    step("kind", keys),
    step("pexpiretime", keys),
    step("pexpireat", keys, st.sampled_from(DEADLINES), st.booleans()),
    step("pexpireat", keys, st.sampled_from(DEADLINES[1:]), st.booleans()),
    step("persist", keys),
    step("copy", st.just(KEYS[0]), st.just(KEYS[1])),
    step("rename", st.just(KEYS[0]), st.just(KEYS[1])),
)


def as_command(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The command that a method is named after."""
    key, *rest = args
    if name == "zadd":
        score, member, nx = rest
        return ("ZADD", key, *(["NX"] if nx else []), score, member)
    if name == "zrange_by_rank":
        first, last, rev = rest
        return ("ZRANGE", key, first, last, *(["REV"] if rev else []), "WITHSCORES")
    if name == "zrange_by_score":
        low, high, rev, limit = rest
        ends = (_bound(high), _bound(low)) if rev else (_bound(low), _bound(high))
        options = [*(["REV"] if rev else []), *(["LIMIT", 0, limit] if limit else [])]
        return ("ZRANGE", key, *ends, "BYSCORE", *options, "WITHSCORES")
    if name == "zremrangebyscore":
        return ("ZREMRANGEBYSCORE", key, *rest)
    if name == "pexpireat":
        deadline_ms, gt = rest
        return ("PEXPIREAT", key, deadline_ms, *(["GT"] if gt else []))
    if name in ("hset", "hdel", "hmget"):
        return (name.upper(), key, *rest[0])
    return ("TYPE" if name == "kind" else name.upper(), *args)


def _bound(bound: Bound) -> str:
    score, exclusive = bound
    text = str(score) if score in (float("-inf"), float("inf")) else str(int(score))
    return f"({text}" if exclusive else text


def on_twin(keyspace: Keyspace, name: str, args: tuple[Any, ...]) -> Any:
    method: Callable[..., Any] = getattr(keyspace, name)
    if name == "zadd":
        *first, nx = args
        return method(*first, nx=nx)
    if name == "zrange_by_rank":
        *first, rev = args
        return method(*first, rev=rev)
    if name == "zrange_by_score":
        *first, rev, limit = args
        return method(*first, rev=rev, limit=limit)
    if name == "pexpireat":
        *first, gt = args
        return method(*first, gt=gt)
    if name == "hmget":
        return method(args[0], *args[1])
    return method(*args)


def on_server(raw: redis.Redis, name: str, args: tuple[Any, ...]) -> Any:
    """The reply, in the form that the twin gives it."""
    reply: Any = raw.execute_command(*as_command(name, args))  # type: ignore[no-untyped-call]  # redis-py has no types for it
    if name in ("zrange_by_rank", "zrange_by_score"):
        return [(int(score), member) for member, score in reply]
    if name == "zscore":
        return None if reply is None else int(reply)
    return reply


def outcome(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except WrongType:
        return "WRONGTYPE"
    except redis.ResponseError as error:
        return str(error).partition(" ")[0]


def test_every_method_is_tried() -> None:
    public = {name for name, value in vars(Keyspace).items() if callable(value)}
    public = {name for name in public if not name.startswith("_")}
    assert public - set(NAMES) == {"keys", "spublish", "sweep"}


def test_keyspace_behaves_as_the_server(server: Server) -> None:
    raw = server.raw

    @settings(
        max_examples=150,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.one_of(STEPS), max_size=50))
    def compare(steps: list[Step]) -> None:
        raw.flushall()
        keyspace = Keyspace()
        keyspace.now_us = time.time_ns() // 1000
        for name, args in steps:
            if name == "copy":  # scripts copy to keys that do not exist
                raw.unlink(args[1])
                keyspace.unlink(args[1])
            if name == "rename" and not keyspace.exists(args[0]):
                continue  # scripts rename keys that exist
            real = outcome(partial(on_server, raw, name, args))
            twin = outcome(partial(on_twin, keyspace, name, args))
            if name in ("hset", "hdel", "copy", "rename") and real != "WRONGTYPE":
                real = None  # no script uses these replies
            assert twin == real, (name, args)
        assert dump_twin(keyspace) == dump_server(server)
        raw.flushall()

    compare()


def test_a_range_from_behind_the_end_is_empty() -> None:
    keyspace = Keyspace()
    for score in range(3):
        keyspace.zadd(b"key", score, b"%d" % score)
    for rev in (False, True):
        for first in range(3, 9):
            assert keyspace.zrange_by_rank(b"key", first, first + 9, rev=rev) == []


def test_an_expired_key_is_gone_for_every_command(server: Server) -> None:
    now_ms = time.time_ns() // 1_000_000
    for gone in (False, True):
        server.raw.flushall()
        keyspace = Keyspace()
        keyspace.now_us = now_ms * 1000
        for key in KEYS:
            server.raw.zadd(key, {b"a": 1})
            keyspace.zadd(key, 1, b"a")
        # On the server the key expires at once, in the twin when its clock is moved.
        deadline_ms = now_ms + 1000 if gone else FAR_MS
        for key in KEYS[:2]:
            keyspace.pexpireat(key, deadline_ms)
            server.raw.pexpireat(key, 1 if gone else FAR_MS)
        keyspace.now_us = (now_ms + 1001) * 1000
        assert dump_twin(keyspace) == dump_server(server)
        assert keyspace.exists(KEYS[0]) == (not gone)
        assert keyspace.hlen(KEYS[0]) == 0 if gone else True
        keyspace.sweep()
        assert set(keyspace.keys()) == set(KEYS[2:] if gone else KEYS)
    server.raw.flushall()
