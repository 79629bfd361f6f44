"""Sessions on Redis or Valkey."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import UNSET

from ..calls import AsyncExecutor
from ..codec import Format
from ..compression import Zstd
from ..data_keys import AsyncKeyedExecutor
from ..encryption import KeyRing
from ..instances import address_to_show
from ..keys import PartitionBy
from ..ops import Ops
from ..options import (
    Duration,
    EventLimit,
    ReadFrom,
    WaitReplicas,
    check_key_store,
    check_options,
    check_read_from,
    check_seconds,
    check_wait_replicas,
    naming,
)
from ..transport import connect_async
from .service import SessionService


class RedisSessionService(SessionService):
    """Sessions on Redis >= 7.0 or Valkey >= 7.2.

    It connects with the first call. One of `url`, `instance_name` and `client` is required. All
    durations are a timedelta or seconds.

    Args:
        url: `redis://`, `rediss://` or `unix://`, with database and credentials;
            `redis+cluster://host:port,...`; `redis+sentinel://host:port,.../master_name`. The last
            two use TLS with `rediss+` instead of `redis+`.
        instance_name: a name from `register_redis_instance`; `url` takes precedence.
        session_event_limit: how many of its newest events a session keeps, 1 or more; None = all.
            Not given = each session keeps its own limit, and new ones get 1,000. A limit that is
            given applies to every session from its next append on, and is stored there.
        session_ttl: idle time after which a session expires; None = never.
        app_state_ttl: the same for the app tier.
        user_state_ttl: the same for the user tier. None keeps the state of users forever, even of
            users whose sessions have expired.
        app_state_max_age: reads may return a copy of the app tier that is up to this old, which
            saves a call to a second server; None = no copies. It has an effect only in a cluster
            with partition_by="user": elsewhere the app tier is read together with the session.
            Reads see the writes of their own service at once.
        stream_ttl: how long fragments (events with `partial=True`) are kept for watchers; None =
            they are not kept.
        refresh_ttl_on_read: reads refresh the TTL, too; writes always do.
        key_prefix: text before every key, without braces, up to 256 bytes.
        codec: "json", or "msgpack", which can also store nested bytes, datetimes and int keys.
            Every service reads both.
        compression: a Zstd compresses what is written, and reads values that were compressed with
            its dictionaries; None = compress nothing. It needs the extra `zstd`.
        encryption: a KeyRing, which encrypts events, state and summaries before they are sent. Ids,
            state keys, integers, sizes and times stay visible, and which values are equal. It
            needs the extra `encryption`.
        key_store: the URL of another database or server, with a data key for each user, for
            `encryption`. Then `delete_user` makes copies and backups of the user's data unreadable.
        partition_by: what shares a cluster slot: the keys of a "user" or of an "app". With "user",
            in a cluster, creating a session and writing `app:` state take one or two round trips
            more.
        event_size_limit: maximum size of an encoded event, in bytes; at most 64 MiB.
        value_size_limit: maximum size of an encoded state value, in bytes, likewise.
        summary_size_limit: maximum size of an encoded summary, in bytes, likewise. Every read and
            list of a session carries its summary.
        call_timeout: maximum time of a call, including retries; then BackendTimeout is raised.
        wait_replicas: (n, timeout): a write waits until n replicas have it, or raises NotReplicated
            after the timeout, which is at most `call_timeout`.
        read_from: "replica" sends plain reads to replicas, which may miss the newest writes. It
            needs refresh_ttl_on_read=False and a cluster or Sentinel.
        extra_options: more options of redis-py's connections, by name.
        client: a `redis.asyncio.Redis` whose address and connection options are used instead of a
            URL. Its connections are not used.

    Raises:
        InvalidArgument: an option is not valid or unknown; names it.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        instance_name: str | None = None,
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
        call_timeout: Duration = 10.0,
        wait_replicas: WaitReplicas | None = None,
        read_from: ReadFrom = "primary",
        extra_options: Mapping[str, Any] | None = None,
        client: Any = None,
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
        timeout = check_seconds("call_timeout", call_timeout)
        data = connect_async(
            url,
            instance_name,
            extra_options,
            client,
            timeout,
            check_wait_replicas(wait_replicas, timeout),
            check_read_from(read_from, refreshes=refresh_ttl_on_read),
        )
        # With partition_by="app" the app tier shares the slot of its users.
        app_in_own_slot = data.is_cluster and partition_by == "user"
        executor: AsyncExecutor = data
        if key_store is not None:
            check_key_store(key_store, url)
            with naming("key_store"):
                keys = connect_async(key_store, None, None, None, timeout)
            executor = AsyncKeyedExecutor(data, keys)
        super().__init__(Ops(options, app_in_own_slot=app_in_own_slot), executor)
        self._address = address_to_show(url, instance_name, client)
