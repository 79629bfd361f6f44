"""Sessions in memory."""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec import UNSET

from ..codec import Format
from ..compression import Zstd
from ..encryption import KeyRing
from ..keys import PartitionBy
from ..ops import Ops
from ..options import Duration, EventLimit, check_memory_key_store, check_options
from ..twin import AsyncMemoryExecutor, MemoryExecutor
from .service import SessionService


class InMemorySessionService(SessionService):
    """Sessions in this process, with exactly the behaviour of `RedisSessionService`.

    For development, tests and small applications. Any threads and event loops may share it. All
    durations are a timedelta or seconds.

    Args:
        session_event_limit: how many of its newest events a session keeps, 1 or more; None = all.
            Not given = each session keeps its own limit, and new ones get 1,000. A limit that is
            given applies to every session from its next append on, and is stored there.
        session_ttl: idle time after which a session expires; None = never.
        app_state_ttl: the same for the app tier.
        user_state_ttl: the same for the user tier. None keeps the state of users forever, even of
            users whose sessions have expired.
        app_state_max_age: accepted as by `RedisSessionService`; in memory it has no effect.
        stream_ttl: how long fragments (events with `partial=True`) are kept for watchers; None =
            they are not kept.
        refresh_ttl_on_read: reads refresh the TTL, too; writes always do.
        key_prefix: text before every key, without braces, up to 256 bytes.
        codec: "json", or "msgpack", which can also store nested bytes, datetimes and int keys.
        compression: a Zstd compresses what is written; None = compress nothing.
        encryption: a KeyRing, which encrypts what is stored, as on a server.
        key_store: "memory://" gives each user a data key, as a key store would.
        partition_by: "user" or "app"; only affects the names of keys.
        event_size_limit: maximum size of an encoded event, in bytes; at most 64 MiB.
        value_size_limit: maximum size of an encoded state value, in bytes, likewise.
        summary_size_limit: maximum size of an encoded summary, in bytes, likewise. Every read and
            list of a session carries its summary.
        cleanup_interval: time between sweeps that free expired data; a sweep is part of the next
            call. None = 5 minutes if any TTL is set, otherwise never.
        clock: a function that returns seconds since 1970, for tests; None = the system's clock.

    Raises:
        InvalidArgument: an option is not valid; names it.
    """

    def __init__(
        self,
        *,
        session_event_limit: EventLimit = UNSET,
        session_ttl: Duration | None = None,
        app_state_ttl: Duration | None = None,
        user_state_ttl: Duration | None = None,
        app_state_max_age: Duration | None = None,
        stream_ttl: Duration | None = None,
        refresh_ttl_on_read: bool = True,
        key_prefix: str = "",
        codec: Format = "json",
        compression: Zstd | None = None,
        encryption: KeyRing | None = None,
        key_store: str | None = None,
        partition_by: PartitionBy = "user",
        event_size_limit: int = 8 << 20,
        value_size_limit: int = 8 << 20,
        summary_size_limit: int = 16 << 10,
        cleanup_interval: Duration | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        options = check_options(
            session_event_limit=session_event_limit,
            session_ttl=session_ttl,
            app_state_ttl=app_state_ttl,
            user_state_ttl=user_state_ttl,
            app_state_max_age=app_state_max_age,
            stream_ttl=stream_ttl,
            refresh_ttl_on_read=refresh_ttl_on_read,
            key_prefix=key_prefix,
            codec=codec,
            compression=compression,
            partition_by=partition_by,
            event_size_limit=event_size_limit,
            value_size_limit=value_size_limit,
            summary_size_limit=summary_size_limit,
            encryption=encryption,
            has_key_store=key_store is not None,
        )
        check_memory_key_store(key_store)
        memory = MemoryExecutor.of(options, cleanup_interval, clock)
        super().__init__(Ops(options, clock=clock or time.monotonic), AsyncMemoryExecutor(memory))
