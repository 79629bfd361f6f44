"""A small keyspace: hashes, sorted sets and deadlines that behave like those of Redis.

It has the commands and options that sessionstore uses, as methods of the same names. Scores are
integers. Time stands still during a Call, as it does during a script.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable

Score = int
Entry = tuple[Score, bytes]
Hash = dict[bytes, bytes]


class WrongType(Exception):
    """The key holds a value of another type."""

    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        self.key = key


class SortedSet:
    """Members with scores, sorted by score, then by member."""

    __slots__ = ("entries", "scores")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.scores: dict[bytes, Score] = {}

    def add(self, score: Score, member: bytes) -> bool:
        """Set a member's score; True if it is new."""
        old = self.scores.get(member)
        if old == score:
            return False
        if old is not None:
            del self.entries[bisect_left(self.entries, (old, member))]
        self.scores[member] = score
        entry = (score, member)
        if not self.entries or self.entries[-1] < entry:
            self.entries.append(entry)
        else:
            insort(self.entries, entry)
        return old is None

    def remove(self, member: bytes) -> bool:
        """Remove a member; True if it was there."""
        score = self.scores.pop(member, None)
        if score is None:
            return False
        del self.entries[bisect_left(self.entries, (score, member))]
        return True

    def copy(self) -> SortedSet:
        """A copy that shares nothing that changes."""
        other = SortedSet()
        other.entries, other.scores = self.entries.copy(), self.scores.copy()
        return other

    def remove_range(self, first: int, end: int) -> int:
        """Remove the entries [first, end) and return their number."""
        removed = self.entries[first:end]
        del self.entries[first:end]
        for _, member in removed:
            del self.scores[member]
        return len(removed)


class Keyspace:
    """Keys with their values and deadlines. Not thread-safe: the executor holds a lock.

    Attributes:
        now_us: the time of the current Call, in microseconds since 1970.
        published: channels and messages that the current Call has published.
    """

    def __init__(self) -> None:
        self.now_us = 0
        self._values: dict[bytes, Hash | SortedSet] = {}
        self._deadlines: dict[bytes, int] = {}
        self.published: list[tuple[bytes, bytes]] = []

    # -- keys ----------------------------------------------------------------------------------

    def keys(self) -> list[bytes]:
        """KEYS *."""
        return [key for key in list(self._values) if self._is_live(key)]

    def sweep(self) -> None:
        """Remove expired keys, to free their memory."""
        now_ms = self.now_us // 1000
        for key in [key for key, deadline in self._deadlines.items() if deadline < now_ms]:
            self._drop(key)

    def kind(self, key: bytes) -> bytes:
        """TYPE: b"hash", b"zset" or b"none"."""
        if not self._is_live(key):
            return b"none"
        return b"hash" if isinstance(self._values[key], dict) else b"zset"

    def exists(self, key: bytes) -> int:
        """EXISTS of one key."""
        return int(self._is_live(key))

    def spublish(self, channel: bytes, message: bytes) -> None:
        """SPUBLISH."""
        self.published.append((channel, message))

    def unlink(self, *keys: bytes) -> int:
        """UNLINK."""
        found = [key for key in keys if self._is_live(key)]
        for key in found:
            self._drop(key)
        return len(found)

    def pexpiretime(self, key: bytes) -> int:
        """PEXPIRETIME: -1 = the key has no deadline, -2 = there is no key."""
        return self._deadlines.get(key, -1) if self._is_live(key) else -2

    def pexpireat(self, key: bytes, deadline_ms: int, *, gt: bool = False) -> int:
        """PEXPIREAT. With GT only a later deadline is set; a missing one counts as infinite."""
        if not self._is_live(key):
            return 0
        if gt and deadline_ms <= self._deadlines.get(key, deadline_ms):
            return 0
        self._deadlines[key] = deadline_ms
        if deadline_ms <= self.now_us // 1000:
            self._drop(key)
        return 1

    def persist(self, key: bytes) -> int:
        """PERSIST."""
        return int(self._is_live(key) and self._deadlines.pop(key, None) is not None)

    def copy(self, source: bytes, destination: bytes) -> None:
        """COPY to a key that does not exist."""
        if not self._is_live(source):
            return
        value = self._values[source]
        self._values[destination] = value.copy()
        if source in self._deadlines:
            self._deadlines[destination] = self._deadlines[source]

    def rename(self, source: bytes, destination: bytes) -> None:
        """RENAME of a key that exists."""
        value, deadline_ms = self._values[source], self._deadlines.get(source)
        self._drop(source)
        self._drop(destination)
        self._values[destination] = value
        if deadline_ms is not None:
            self._deadlines[destination] = deadline_ms

    # -- hashes --------------------------------------------------------------------------------

    def hget(self, key: bytes, field: bytes) -> bytes | None:
        """HGET."""
        return self._hash(key).get(field)

    def hmget(self, key: bytes, *fields: bytes) -> list[bytes | None]:
        """HMGET."""
        stored = self._hash(key)
        return [stored.get(field) for field in fields]

    def hgetall(self, key: bytes) -> Hash:
        """HGETALL, in the shape of RESP3."""
        return self._hash(key).copy()

    def hexists(self, key: bytes, field: bytes) -> int:
        """HEXISTS."""
        return int(field in self._hash(key))

    def hlen(self, key: bytes) -> int:
        """HLEN."""
        return len(self._hash(key))

    def hset(self, key: bytes, pairs: Iterable[bytes]) -> None:
        """HSET of field, value, field, value, ..."""
        flat = iter(pairs)
        fields = dict(zip(flat, flat, strict=True))
        if fields:
            stored = self._hash(key)
            stored.update(fields)
            self._values[key] = stored

    def hdel(self, key: bytes, fields: Iterable[bytes]) -> None:
        """HDEL."""
        stored = self._hash(key)
        for field in fields:
            stored.pop(field, None)
        if not stored:
            self._drop(key)

    # -- sorted sets ---------------------------------------------------------------------------

    def zadd(self, key: bytes, score: Score, member: bytes, *, nx: bool = False) -> int:
        """ZADD of one member."""
        stored = self._zset(key)
        if nx and member in stored.scores:
            return 0
        self._values[key] = stored
        return int(stored.add(score, member))

    def zscore(self, key: bytes, member: bytes) -> Score | None:
        """ZSCORE."""
        return self._zset(key).scores.get(member)

    def zcard(self, key: bytes) -> int:
        """ZCARD."""
        return len(self._zset(key).entries)

    def zcount(self, key: bytes, low: float, high: float) -> int:
        """ZCOUNT, both ends inclusive."""
        entries = self._zset(key).entries
        first = bisect_left(entries, low, key=_score)
        return max(bisect_right(entries, high, key=_score) - first, 0)

    def zrem(self, key: bytes, member: bytes) -> int:
        """ZREM of one member."""
        stored = self._zset(key)
        found = stored.remove(member)
        self._drop_if_empty(key, stored)
        return int(found)

    def zremrangebyrank(self, key: bytes, first: int, last: int) -> int:
        """ZREMRANGEBYRANK, both ends inclusive and not negative."""
        stored = self._zset(key)
        count = stored.remove_range(first, last + 1)
        self._drop_if_empty(key, stored)
        return count

    def zremrangebyscore(self, key: bytes, low: float, high: float) -> int:
        """ZREMRANGEBYSCORE, both ends inclusive."""
        stored = self._zset(key)
        first = bisect_left(stored.entries, low, key=_score)
        count = stored.remove_range(first, bisect_right(stored.entries, high, key=_score))
        self._drop_if_empty(key, stored)
        return count

    def zrange_by_rank(self, key: bytes, first: int, last: int, *, rev: bool) -> list[Entry]:
        """ZRANGE by rank, both ends inclusive; negative ranks count from the end."""
        entries = self._zset(key).entries
        size = len(entries)
        low = first if first >= 0 else max(size + first, 0)
        high = last if last >= 0 else size + last
        if rev:
            found = entries[max(size - 1 - high, 0) : max(size - low, 0)]
            found.reverse()
            return found if low <= high else []
        return entries[low : high + 1] if low <= high else []

    def zrange_by_score(
        self,
        key: bytes,
        low: tuple[float, bool],
        high: tuple[float, bool],
        *,
        rev: bool,
        limit: int | None,
    ) -> list[Entry]:
        """ZRANGE BYSCORE. A bound is a score, and whether the score itself is excluded."""
        entries = self._zset(key).entries
        first = _find_bound(entries, low, is_end=False)
        end = _find_bound(entries, high, is_end=True)
        if limit is not None:
            first, end = (max(first, end - limit), end) if rev else (first, min(end, first + limit))
        found = entries[first:end]
        if rev:
            found.reverse()
        return found

    # -- private -------------------------------------------------------------------------------

    def _is_live(self, key: bytes) -> bool:
        """Whether the key exists. Removes it if it has expired."""
        deadline = self._deadlines.get(key)
        if deadline is not None and self.now_us // 1000 > deadline:
            self._drop(key)
            return False
        return key in self._values

    def _drop(self, key: bytes) -> None:
        self._values.pop(key, None)
        self._deadlines.pop(key, None)

    def _drop_if_empty(self, key: bytes, stored: SortedSet) -> None:
        if not stored.entries:
            self._drop(key)

    def _hash(self, key: bytes) -> Hash:
        """The hash of a key, or a new one that is not stored yet."""
        value = self._values[key] if self._is_live(key) else {}
        if not isinstance(value, dict):
            raise WrongType(key)
        return value

    def _zset(self, key: bytes) -> SortedSet:
        """The sorted set of a key, or a new one that is not stored yet."""
        value = self._values[key] if self._is_live(key) else SortedSet()
        if not isinstance(value, SortedSet):
            raise WrongType(key)
        return value


def _find_bound(entries: list[Entry], bound: tuple[float, bool], *, is_end: bool) -> int:
    """Index of the first entry of a range, or with `is_end` of the first entry after it."""
    score, is_exclusive = bound
    if is_end != is_exclusive:
        return bisect_right(entries, score, key=_score)
    return bisect_left(entries, score, key=_score)


def _score(entry: Entry) -> Score:
    return entry[0]
