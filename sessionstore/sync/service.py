# Generated from sessionstore/service.py by tests/support/generate_sync.py. Do not edit.
"""The public services for threads: one line per method, no logic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from .. import flows
from ..calls import Flow, R, SyncExecutor
from ..codec import Format
from ..drive import drive
from ..instances import address_to_show
from ..keys import PartitionBy
from ..model import Event, EventPage, Session, SessionKey, Turn
from ..ops import Ops
from ..options import (
    Duration,
    ReadFrom,
    WaitReplicas,
    check_options,
    check_read_from,
    check_seconds,
    check_wait_replicas,
)
from ..transport import connect_sync
from ..twin import MemoryExecutor


class SessionService:
    """Everything that can be done with sessions, whatever stores them.

    Made by its subclasses; may be used by any number of threads at once.
    """

    _address = ""  # shown by repr

    def __init__(self, ops: Ops, executor: SyncExecutor) -> None:
        self._ops = ops
        self._executor = executor

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address})"

    # -- sessions ------------------------------------------------------------------------------

    def create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Session:
        """A new session.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            session_id: likewise; "" or None makes a new UUID.
            state: initial state; `app:`, `user:` and `temp:` keys go to their tier.

        Returns:
            The session, its state merged with what the app and user tier hold already.

        Raises:
            InvalidArgument: an id or a value cannot be stored.
            SessionExists: there is a session of this id.
            BackendError: the store did not carry it out, or did not say so.

        lua/create_session.lua; one round trip, O(1).
        """
        return self._run(flows.create_session(self._ops, app_name, user_id, session_id, state))

    def get_or_create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str | None = None,
        state: Mapping[str, Any] | None = None,
        event_num: int | None = None,
        event_time: datetime | None = None,
    ) -> Session:
        """The session of this id, created if there is none. Of many at once, one creates it.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            session_id: likewise; "" or None makes a new UUID.
            state: initial state, ignored (but for `temp:` keys) if the session exists.
            event_num: newest events to read; None = all, 0 = none.
            event_time: read only events at or after this instant, timezone-aware.

        Returns:
            The session with merged state and the events asked for.

        Raises:
            InvalidArgument: an argument is out of range or cannot be stored.
            CorruptData: stored bytes do not decode.
            BackendError: the store did not carry it out, or did not say so.

        lua/get_or_create_session.lua; one round trip, O(events read).
        """
        return self._run(
            flows.get_or_create_session(
                self._ops, app_name, user_id, session_id, state, event_num, event_time
            )
        )

    def get_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        event_num: int | None = None,
        event_time: datetime | None = None,
    ) -> Session | None:
        """A session as it is now, read in one atomic step; None if there is none.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            session_id: likewise.
            event_num: newest events to read; None = all, 0 = none.
            event_time: read only events at or after this instant, timezone-aware, inclusive.
                With both, the newest `event_num` of those.

        Returns:
            The session with merged state and the events asked for, oldest first.

        Raises:
            InvalidArgument: an argument is out of range.
            CorruptData: stored bytes do not decode.
            BackendError: the store could not be read. Never reported as None.

        lua/touch_session.lua and plain reads; one round trip, O(events read).
        """
        key = SessionKey(app_name, user_id, session_id)
        return self._run(flows.get_session(self._ops, key, event_num, event_time))

    def list_sessions(
        self,
        *,
        app_name: str,
        user_id: str,
        limit: int = 100,
        offset: int = 0,
        event_num: int = 0,
    ) -> list[Session]:
        """A page of a user's sessions, last updated first. Does not keep them from expiring.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            limit: most sessions to return, 1 to 1,000.
            offset: sessions to skip, 0 or more.
            event_num: newest events to read of each; 0 = none.

        Returns:
            Sessions with merged state; empty if the user has none.

        Raises:
            InvalidArgument: an argument is out of range.
            CorruptData: stored bytes do not decode.
            BackendError: the store could not be read.

        Plain reads, lua/prune_index.lua where sessions have expired; two round trips, with an
        offset four; O(offset + sessions and events read).
        """
        return self._run(
            flows.list_sessions(self._ops, app_name, user_id, limit, offset, event_num)
        )

    def list_users(self, app_name: str) -> list[str]:
        """The users of an application that have sessions, in alphabetical order.

        For administration, not for requests: it walks over all keys of all servers. A user whose
        first session is created meanwhile, or whose slot moves, may be missing.

        Args:
            app_name: 1 to 256 bytes of UTF-8.

        Raises:
            InvalidArgument: the name is none.
            BackendError: the store could not be read.

        Plain SCAN; a round trip for every thousand keys, O(all keys).
        """
        return self._run(flows.list_users(self._ops, app_name))

    def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Remove a session with its events and its state; a missing one is fine.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            session_id: likewise.

        Raises:
            InvalidArgument: an id is none.
            BackendError: the store did not carry it out, or did not say so.

        lua/delete_session.lua; one round trip, O(1).
        """
        self._run(flows.delete_session(self._ops, app_name, user_id, session_id))

    # -- events --------------------------------------------------------------------------------

    def append_event(
        self,
        session: Session | SessionKey,
        event: Event,
        *,
        if_version: int | None = None,
        turn: Turn | None = None,
    ) -> Event:
        """Append an event and apply its state delta, in one atomic step, exactly once.

        An event that is stored already changes nothing. One with `partial=True` is handed back
        and not stored. A Session given here has the event and the delta afterwards.

        Args:
            session: the session, or its key.
            event: what to append.
            if_version: append only if the session is at this version.
            turn: append only while nobody else has taken this turn.

        Returns:
            The event as stored: a copy, without `temp:` state.

        Raises:
            InvalidArgument: a field cannot be stored; names it. LimitExceeded if too large.
            SessionNotFound: there is no such session.
            StaleVersion: the session is not at `if_version`.
            TurnLost: somebody else has the turn.
            BackendError: the store did not carry it out, or (maybe_applied) did not say so;
                appending the same event again is safe.

        lua/append_event.lua; one round trip, O(log N).
        """
        return self._run(flows.append_event(self._ops, session, event, if_version, turn))

    def append_events(
        self,
        session: Session | SessionKey,
        events: Iterable[Event],
        *,
        if_version: int | None = None,
        turn: Turn | None = None,
    ) -> list[Event]:
        """Append events in order, all or nothing, as `append_event` does one.

        Args:
            session: the session, or its key.
            events: up to 500; partial ones are handed back and not stored.
            if_version: append only if the session is at this version.
            turn: append only while nobody else has taken this turn.

        Returns:
            The events as stored, in the order given.

        Raises:
            InvalidArgument: a field cannot be stored; names it. LimitExceeded if too large or
                too many.
            SessionNotFound: there is no such session.
            StaleVersion: the session is not at `if_version`.
            TurnLost: somebody else has the turn.
            BackendError: as for `append_event`.

        lua/append_events.lua; one round trip, O(log N) an event.
        """
        return self._run(flows.append_events(self._ops, session, events, if_version, turn))

    def get_events(
        self,
        session: Session | SessionKey,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> EventPage:
        """A page of a session's log, oldest first.

        Args:
            session: the session, or its key.
            after: read on behind this position (`page.last`); None = from the oldest.
            before: read back from this position (`page.first`). With both, what lies between,
                from the oldest.
            limit: most events to return, 1 to 10,000.

        Returns:
            The events with the positions of the first and last, in microseconds.

        Raises:
            InvalidArgument: an argument is out of range.
            SessionNotFound: there is no such session.
            CorruptData: stored bytes do not decode.
            BackendError: the store could not be read.

        lua/touch_session.lua and plain reads; one round trip, O(log N + events read).
        """
        return self._run(flows.get_events(self._ops, session, after, before, limit))

    def pop_event(
        self, session: Session | SessionKey, *, if_version: int | None = None
    ) -> Event | None:
        """Remove the newest event and return it; None if there is none. State stays as it is.

        Args:
            session: the session, or its key. A Session loses the event too.
            if_version: pop only if the session is at this version.

        Raises:
            InvalidArgument: an argument is of the wrong type.
            SessionNotFound: there is no such session.
            StaleVersion: the session is not at `if_version`.
            BackendError: the store did not carry it out, or (maybe_applied) did not say so.
                Never sent twice.

        lua/pop_event.lua; one round trip, O(log N).
        """
        return self._run(flows.pop_event(self._ops, session, if_version))

    def clear_events(self, session: Session | SessionKey, *, if_version: int | None = None) -> None:
        """Remove all events of a session. State stays as it is.

        Args:
            session: the session, or its key. A Session loses the events too.
            if_version: clear only if the session is at this version.

        Raises:
            InvalidArgument: an argument is of the wrong type.
            SessionNotFound: there is no such session.
            StaleVersion: the session is not at `if_version`.
            BackendError: the store did not carry it out, or did not say so.

        lua/clear_events.lua; one round trip, O(1).
        """
        self._run(flows.clear_events(self._ops, session, if_version))

    # -- turns ---------------------------------------------------------------------------------

    def acquire_turn(self, session: Session | SessionKey, *, lease: Duration = 30.0) -> Turn:
        """The turn of a session: while it is held, nobody else gets it. Does not wait.

        Only appends that carry the turn are protected by it: see `append_event(turn=...)`.

        Args:
            session: the session, or its key.
            lease: time after which the turn is free again unless it is renewed, from 1 ms.

        Raises:
            InvalidArgument: an argument is out of range or of the wrong type.
            SessionNotFound: there is no such session.
            TurnTaken: somebody else has it.
            BackendError: the store did not carry it out, or did not say so.

        lua/acquire_turn.lua; one round trip, O(1).
        """
        return self._run(flows.acquire_turn(self._ops, session, lease))

    def renew_turn(self, turn: Turn, *, lease: Duration = 30.0) -> Turn:
        """The same turn with a new end.

        Args:
            turn: as `acquire_turn` or `renew_turn` gave it.
            lease: time from now.

        Raises:
            InvalidArgument: an argument is out of range or of the wrong type.
            SessionNotFound: the session is gone.
            TurnLost: the lease had ended and somebody else has the turn.
            BackendError: the store did not carry it out, or did not say so.

        lua/renew_turn.lua; one round trip, O(1).
        """
        return self._run(flows.renew_turn(self._ops, turn, lease))

    def release_turn(self, turn: Turn) -> None:
        """Give a turn back. One that was lost, or whose session is gone, is fine.

        Args:
            turn: as `acquire_turn` or `renew_turn` gave it.

        Raises:
            InvalidArgument: it is no Turn.
            BackendError: the store did not carry it out, or did not say so.

        lua/renew_turn.lua; one round trip, O(1).
        """
        self._run(flows.release_turn(self._ops, turn))

    # -- state ---------------------------------------------------------------------------------

    def update_session_state(
        self,
        session: Session | SessionKey,
        state: Mapping[str, Any],
        *,
        if_version: int | None = None,
    ) -> None:
        """Set state of a session without an event.

        Args:
            session: the session, or its key. A Session shows the new state afterwards.
            state: values to set; `app:`, `user:` and `temp:` keys go to their tier.
            if_version: write only if the session is at this version.

        Raises:
            InvalidArgument: a key or a value cannot be stored; names it.
            SessionNotFound: there is no such session.
            StaleVersion: the session is not at `if_version`.
            BackendError: the store did not carry it out, or did not say so.

        lua/update_session_state.lua; one round trip, O(keys).
        """
        self._run(flows.update_session_state(self._ops, session, state, (), if_version))

    def delete_session_state(
        self, session: Session | SessionKey, *keys: str, if_version: int | None = None
    ) -> None:
        """Remove state of a session; missing keys are fine.

        Args:
            session: the session, or its key. A Session loses the keys too.
            *keys: as `session.state` shows them: bare, or with `app:` or `user:`.
            if_version: write only if the session is at this version.

        Raises:
            InvalidArgument: a key is none.
            SessionNotFound: there is no such session.
            StaleVersion: the session is not at `if_version`.
            BackendError: the store did not carry it out, or did not say so.

        lua/update_session_state.lua; one round trip, O(keys).
        """
        self._run(flows.update_session_state(self._ops, session, {}, keys, if_version))

    def get_user_state(self, app_name: str, user_id: str) -> dict[str, Any]:
        """The state that all sessions of a user share; keys without prefix.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.

        Raises:
            InvalidArgument: an id is none.
            CorruptData: stored bytes do not decode.
            BackendError: the store could not be read.

        lua/touch_tier.lua and a plain read; one round trip, O(keys).
        """
        return self._run(flows.get_user_state(self._ops, app_name, user_id))

    def update_user_state(self, app_name: str, user_id: str, state: Mapping[str, Any]) -> None:
        """Set state that all sessions of a user share.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            state: values to set; keys with or without `user:`, no other prefix.

        Raises:
            InvalidArgument: a key or a value cannot be stored; names it.
            BackendError: the store did not carry it out, or did not say so.

        lua/update_tier_state.lua; one round trip, O(keys).
        """
        self._run(flows.update_user_state(self._ops, app_name, user_id, state, ()))

    def delete_user_state(self, app_name: str, user_id: str, *keys: str) -> None:
        """Remove state that all sessions of a user share; missing keys are fine.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            user_id: likewise.
            *keys: with or without `user:`, no other prefix.

        Raises:
            InvalidArgument: a key is none.
            BackendError: the store did not carry it out, or did not say so.

        lua/update_tier_state.lua; one round trip, O(keys).
        """
        self._run(flows.update_user_state(self._ops, app_name, user_id, {}, keys))

    def get_app_state(self, app_name: str) -> dict[str, Any]:
        """The state that all users of an application share; keys without prefix.

        Args:
            app_name: 1 to 256 bytes of UTF-8.

        Raises:
            InvalidArgument: the name is none.
            CorruptData: stored bytes do not decode.
            BackendError: the store could not be read.

        lua/touch_tier.lua and a plain read; one round trip, O(keys).
        """
        return self._run(flows.get_app_state(self._ops, app_name))

    def update_app_state(self, app_name: str, state: Mapping[str, Any]) -> None:
        """Set state that all users of an application share.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            state: values to set; keys with or without `app:`, no other prefix.

        Raises:
            InvalidArgument: a key or a value cannot be stored; names it.
            BackendError: the store did not carry it out, or did not say so.

        lua/update_tier_state.lua; one round trip, O(keys).
        """
        self._run(flows.update_app_state(self._ops, app_name, state, ()))

    def delete_app_state(self, app_name: str, *keys: str) -> None:
        """Remove state that all users of an application share; missing keys are fine.

        Args:
            app_name: 1 to 256 bytes of UTF-8.
            *keys: with or without `app:`, no other prefix.

        Raises:
            InvalidArgument: a key is none.
            BackendError: the store did not carry it out, or did not say so.

        lua/update_tier_state.lua; one round trip, O(keys).
        """
        self._run(flows.update_app_state(self._ops, app_name, {}, keys))

    # -- life ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Release connections or memory; later calls raise BackendUnavailable. May be repeated."""
        self._executor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, flow: Flow[R]) -> R:
        return drive(flow, self._executor)


class RedisSessionService(SessionService):
    """Sessions on Redis >= 7.0 or Valkey >= 7.2.

    Nothing is sent before the first call. See "Options" in README for every default.

    Args:
        url: `redis://`, `rediss://` or `unix://`, with database and credentials;
            `redis+cluster://host:port,...`; `redis+sentinel://host:port,.../master_name`; or these
            two with `rediss+`.
        instance_name: a name given to `register_redis_instance`; the URL wins over it.
        session_event_limit: newest events that a session keeps, 1 or more; None = all.
        session_ttl: idle time after which a session expires; None = never.
        app_state_ttl: the same for the app tier.
        user_state_ttl: the same for the user tier.
        refresh_ttl_on_read: reading a session counts as use.
        key_prefix: text in front of every key, without braces, up to 256 bytes.
        codec: "json", or "msgpack", which also carries nested bytes, datetimes and int keys.
            Every service reads both.
        partition_by: what shares a cluster slot: "user" or "app".
        event_size_limit: largest encoded event, in bytes.
        value_size_limit: largest encoded state value, in bytes.
        call_timeout: time that a call may take, retries included, before BackendTimeout.
        wait_replicas: (n, timeout): a write succeeds once n replicas have it; if they do not
            within the timeout, NotReplicated. The timeout is at most `call_timeout`.
        read_from: "replica" lets replicas answer plain reads, which may miss the newest writes.
            Needs refresh_ttl_on_read=False and a cluster or Sentinel.
        extra_options: further options of redis-py's connections, by name.
        client: a `redis.Redis` to take address and connection options from, in place of
            a URL; its own connections are not used.

    Raises:
        InvalidArgument: an option is out of range, of the wrong type or unknown.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        instance_name: str | None = None,
        session_event_limit: int | None = 1000,
        session_ttl: Duration | None = None,
        app_state_ttl: Duration | None = None,
        user_state_ttl: Duration | None = None,
        refresh_ttl_on_read: bool = True,
        key_prefix: str = "",
        codec: Format = "json",
        partition_by: PartitionBy = "user",
        event_size_limit: int = 1 << 20,
        value_size_limit: int = 1 << 20,
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
            refresh_ttl_on_read=refresh_ttl_on_read,
            key_prefix=key_prefix,
            codec=codec,
            partition_by=partition_by,
            event_size_limit=event_size_limit,
            value_size_limit=value_size_limit,
        )
        timeout = check_seconds("call_timeout", call_timeout)
        executor = connect_sync(
            url,
            instance_name,
            extra_options,
            client,
            timeout,
            check_wait_replicas(wait_replicas, timeout),
            check_read_from(read_from, refreshes=refresh_ttl_on_read),
        )
        # In a cluster, but for partition_by="app", the app tier has a slot of its own.
        app_in_own_slot = executor.is_cluster and partition_by == "user"
        super().__init__(Ops(options, app_in_own_slot=app_in_own_slot), executor)
        self._address = address_to_show(url, instance_name, client)


class InMemorySessionService(SessionService):
    """Sessions in this process, with the behaviour of `RedisSessionService` to the letter.

    For development, tests and small applications. Safe for threads and event loops.

    Args:
        session_event_limit: newest events that a session keeps, 1 or more; None = all.
        session_ttl: idle time after which a session expires; None = never.
        app_state_ttl: the same for the app tier.
        user_state_ttl: the same for the user tier.
        refresh_ttl_on_read: reading a session counts as use.
        key_prefix: text in front of every key, without braces, up to 256 bytes.
        codec: "json", or "msgpack", which also carries nested bytes, datetimes and int keys.
        partition_by: no effect but on the names of keys: "user" or "app".
        event_size_limit: largest encoded event, in bytes.
        value_size_limit: largest encoded state value, in bytes.
        cleanup_interval: time between sweeps that free what has expired; a call that finds one
            due carries it out. None = 5 minutes if any TTL is set, else never.
        clock: seconds since 1970, for tests; None = the system's clock.

    Raises:
        InvalidArgument: an option is out of range or of the wrong type.
    """

    def __init__(
        self,
        *,
        session_event_limit: int | None = 1000,
        session_ttl: Duration | None = None,
        app_state_ttl: Duration | None = None,
        user_state_ttl: Duration | None = None,
        refresh_ttl_on_read: bool = True,
        key_prefix: str = "",
        codec: Format = "json",
        partition_by: PartitionBy = "user",
        event_size_limit: int = 1 << 20,
        value_size_limit: int = 1 << 20,
        cleanup_interval: Duration | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        options = check_options(
            session_event_limit=session_event_limit,
            session_ttl=session_ttl,
            app_state_ttl=app_state_ttl,
            user_state_ttl=user_state_ttl,
            refresh_ttl_on_read=refresh_ttl_on_read,
            key_prefix=key_prefix,
            codec=codec,
            partition_by=partition_by,
            event_size_limit=event_size_limit,
            value_size_limit=value_size_limit,
        )
        memory = MemoryExecutor.of(options, cleanup_interval, clock)
        super().__init__(Ops(options), memory)
