"""Runs Calls in memory: scripts through their twins, plain commands on the keyspace."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from ..calls import Call, Command, Signal, reply_error, signal_of
from ..errors import BackendUnavailable
from ..options import Duration, Options, check_clock, check_seconds
from .fragments import Refused
from .keyspace import Entry, Keyspace, WrongType
from .scripts import TWINS

_DEFAULT_CLEANUP_S = 300.0
_SET_BACK_US = 1_000_000  # a clock that goes back by more than this was set


class MemoryExecutor:
    """An executor with a keyspace of its own instead of a server. Thread-safe.

    Calls for the key store have another keyspace.

    Args:
        cleanup_s: seconds between sweeps that remove expired keys; None = never.
        clock: returns seconds since 1970.
    """

    def __init__(
        self, cleanup_s: float | None = None, clock: Callable[[], float] | None = None
    ) -> None:
        self.keyspace = Keyspace()
        self.key_store = Keyspace()
        self._clock = clock or time.time
        self._cleanup_s = cleanup_s
        self._swept_at = self._clock()
        self._lock = threading.Lock()
        self._closed = False
        self._listeners: dict[bytes, list[Callable[[Signal], None]]] = {}

    @classmethod
    def of(
        cls,
        options: Options,
        cleanup_interval: Duration | None,
        clock: Callable[[], float] | None,
    ) -> Self:
        """An executor for a service with these options.

        Raises:
            InvalidArgument: `cleanup_interval` is out of range, or `clock` is not callable.
        """
        cleanup_s = _DEFAULT_CLEANUP_S if options.any_ttl or options.stream_ttl_ms else None
        if cleanup_interval is not None:
            cleanup_s = check_seconds("cleanup_interval", cleanup_interval)
        return cls(cleanup_s, None if clock is None else check_clock(clock))

    def execute(self, call: Call[Any]) -> list[Any]:
        """One reply per command. The Call is atomic."""
        replies = self._execute(call)
        if self.keyspace.published:
            self._deliver()
        return replies

    def _execute(self, call: Call[Any]) -> list[Any]:
        with self._lock:
            if self._closed:
                raise BackendUnavailable("the session service is closed")
            now = self._clock()
            now_us = int(now * 1_000_000)
            # As on a server, no two Calls see the same microsecond. A clock may stand still, or go
            # back a little; one that is set back further is followed.
            if self.keyspace.now_us - _SET_BACK_US <= now_us <= self.keyspace.now_us:
                now_us = self.keyspace.now_us + 1
            self.keyspace.now_us = now_us
            keyspace = self.key_store if call.for_key_store else self.keyspace
            if self._cleanup_s is not None and now - self._swept_at >= self._cleanup_s:
                self._swept_at = now
                self.keyspace.sweep()
            try:
                replies = []
                if call.script is not None:
                    twin = TWINS[call.script.name]
                    try:
                        replies.append(twin(keyspace, call.keys, call.args))
                    except Refused as refused:
                        replies.append(refused.reply)
                replies += [self._run_command(keyspace, command) for command in call.commands]
            except WrongType as error:
                raise reply_error(call, "WRONGTYPE", error.key) from None
            return replies

    def listen(self, channel: bytes, notify: Callable[[Signal], None]) -> Callable[[], None]:
        """Call `notify` after each Call that publishes on a channel, in the thread of that Call."""
        with self._lock:
            self._listeners.setdefault(channel, []).append(notify)

        def stop() -> None:
            with self._lock:
                listeners = self._listeners.get(channel, [])
                if notify in listeners:
                    listeners.remove(notify)
                if not listeners:
                    self._listeners.pop(channel, None)

        notify("listening")
        return stop

    def _deliver(self) -> None:
        """Tell listeners about the messages that were published."""
        with self._lock:
            published, self.keyspace.published = self.keyspace.published, []
            called = [
                (notify, signal_of(message))
                for channel, message in published
                for notify in self._listeners.get(channel, ())
            ]
        for notify, signal in called:
            notify(signal)

    def close(self) -> None:
        """Drop all data; later calls fail with BackendUnavailable."""
        with self._lock:
            self._closed = True
            self.keyspace, self.key_store = Keyspace(), Keyspace()
            self._listeners = {}

    def _run_command(self, keyspace: Keyspace, command: Command) -> Any:
        if command == ("HELLO",):
            return {b"role": b"master"}
        name, key, *rest = command
        if name == "SCAN":
            return self._scan(str(rest[1]))
        assert isinstance(key, bytes)
        if name == "HGETALL":
            return keyspace.hgetall(key)
        if name == "HMGET":
            fields = (f if isinstance(f, bytes) else str(f).encode() for f in rest)
            return keyspace.hmget(key, *fields)
        if name == "ZCARD":
            return keyspace.zcard(key)
        if name == "ZRANGE":
            return self._zrange(key, *rest)
        raise AssertionError(f"the twin does not know the command {name!r}")

    def _scan(self, glob: str) -> list[Any]:
        """All keys that match a pattern, in one go."""
        matches = re.compile(_glob_regex(glob), re.DOTALL).fullmatch
        keys = self.keyspace.keys()
        return [b"0", [key for key in keys if matches(key.decode())]]

    def _zrange(self, key: bytes, start: Any, stop: Any, *options: Any) -> list[Any]:
        rev = "REV" in options
        entries: list[Entry]
        if "BYSCORE" in options:
            low, high = (stop, start) if rev else (start, stop)
            # sessionstore always sends LIMIT 0 count: no offset.
            limit = options[options.index("LIMIT") + 2] if "LIMIT" in options else None
            entries = self.keyspace.zrange_by_score(
                key, _parse_bound(low), _parse_bound(high), rev=rev, limit=limit
            )
        else:
            entries = self.keyspace.zrange_by_rank(key, start, stop, rev=rev)
        if "WITHSCORES" in options:
            return [[member, float(score)] for score, member in entries]
        return [member for _, member in entries]


class AsyncMemoryExecutor:
    """MemoryExecutor for asyncio. It awaits nothing: a Call returns at once.

    Args:
        memory: runs the Calls and holds the data.
    """

    def __init__(self, memory: MemoryExecutor) -> None:
        self._memory = memory

    async def execute(self, call: Call[Any]) -> list[Any]:
        """One reply per command. The Call is atomic."""
        return self._memory.execute(call)

    def listen(self, channel: bytes, notify: Callable[[Signal], None]) -> Callable[[], None]:
        """Call `notify` on the running loop after each Call that publishes on a channel."""
        loop = asyncio.get_running_loop()

        def notify_on_loop(signal: Signal) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(notify, signal)

        return self._memory.listen(channel, notify_on_loop)

    async def aclose(self) -> None:
        """Drop all data; later calls fail with BackendUnavailable."""
        self._memory.close()


def _parse_bound(bound: str | bytes | int) -> tuple[float, bool]:
    """The score of a bound, and whether the score itself is excluded."""
    if isinstance(bound, int):
        return bound, False
    text = bound.decode() if isinstance(bound, bytes) else bound
    if text.startswith("("):
        return int(text[1:]), True
    return float(text), False


def _glob_regex(glob: str) -> str:
    """A pattern for SCAN as a regular expression. Knows `*`, sets of characters, and escapes."""
    parts = re.findall(r"\\.|\*|\[[^]]*\]|.", glob, re.DOTALL)
    regex = ""
    for part in parts:
        if part == "*":
            regex += ".*"
        elif part[0] == "[" and len(part) > 1:
            regex += part
        else:
            regex += re.escape(part[-1])
    return regex
