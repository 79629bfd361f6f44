"""Random calls on the twin, on every real server, and on a plain model of what is promised.

After every call the three are compared: results, error classes, and for twin and server every key
with its content and deadline.
"""

from __future__ import annotations

import itertools
import math
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, get_args

import msgspec
import pytest
from dumps import Dump, dump_server, dump_twin
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import UNSET, structs
from session_model import TOLERANCE_MS, Model, Refused, Settings, Stored, microseconds
from support.clock import pass_time
from support.compression import COMPRESSION, READING, plain
from support.servers import Server
from support.watching import fragments

from sessionstore import (
    Event,
    EventPage,
    Session,
    SessionKey,
    SessionNotFound,
    SessionStoreError,
    StaleVersion,
    Summary,
    Turn,
    TurnTaken,
    Window,
    flows,
)
from sessionstore.calls import Call, Flow, Step
from sessionstore.codec import decode_event, decode_value
from sessionstore.flows import restore
from sessionstore.keys import Keys
from sessionstore.ops import LeaseName, Ops
from sessionstore.ops.history import Compacted
from sessionstore.options import check_options
from sessionstore.replies import WriteResult
from sessionstore.tiers import NO_CHANGE, Delta
from sessionstore.transport import connect_sync
from sessionstore.transport.threads import RedisExecutor
from sessionstore.twin import MemoryExecutor

DAY_MS = 86_400_000
NUM_EVENTS = 10

# Services that share what they store. The second compresses, the third does not refresh on reads.
SERVICES = (
    Settings(3, DAY_MS, 2 * DAY_MS, 3 * DAY_MS, True, "json"),
    Settings(0, 0, 0, 0, True, "msgpack"),
    Settings(5, 4 * DAY_MS, 0, DAY_MS, False, "json"),
)

KEYS = (
    SessionKey("a", "u", "s"),
    SessionKey("a", "u", "t"),
    SessionKey("a", "u}:s", "*"),
    SessionKey("a:u", "s{1}", "ü\n%00 ?"),
    SessionKey("a", "u:s", "t"),
)
APPS = sorted({key.app_name for key in KEYS})
NAMES = sorted({key.session_id for key in KEYS})
USERS = sorted({(key.app_name, key.user_id) for key in KEYS})

LONG_AGO = datetime(2001, 2, 3, tzinfo=UTC)
TIMES = (
    LONG_AGO,
    LONG_AGO + timedelta(microseconds=1),
    datetime(1969, 7, 20, tzinfo=UTC),
    LONG_AGO + timedelta(days=1),
    datetime(2100, 1, 1, tzinfo=UTC),
)

STATE_KEYS = ("k", "version", ".", "user:k", "user:", "app:k", "ü{}", "user:x")
# What the events of a number add; most add nothing, and one is refused unless `user:x` is missing.
INCREMENTS: tuple[dict[str, int], ...] = (
    {},
    {},
    {"n": 1, "user:n": -2},
    {"n": 10, "app:n": 5},
    {"user:x": 1},
)
CHANGES: tuple[tuple[dict[str, Any], list[str]], ...] = (
    ({}, []),
    ({}, []),
    ({"k": 1, "version": [None, 1.5, "ü"]}, []),
    ({"user:k": {"a": True}}, ["k"]),
    ({"app:k": b"\x00raw", ".": ""}, []),
    ({"user:k": 2, "app:x": None, "k": "two"}, ["version"]),
    ({}, ["user:k", "app:k", "k", "missing", "n"]),
    ({"n": 2**53 - 2, "user:n": 7}, []),
    ({"user:x": "ü" * 50}, ["app:x"]),
)


SUMMARY_FIELDS = (b"compacted_us", b"covered", b"summary_events", b"summary_us")
RULES = Window(starts_turn=lambda event: "3" not in event.id)
SESSION_STATES: tuple[dict[str, Any], ...] = ({}, {"k": 3, "version": "v"}, {"new": [None]})


def make_event(number: int) -> Event:
    """The event of a number: always the same, so that numbers drawn again are duplicates."""
    state, removed = CHANGES[number % len(CHANGES)]
    return Event(
        "x",
        {"number": number, "text": "ü" * number},
        id=f"e{number}",
        timestamp=TIMES[number % len(TIMES)],
        # The JSON codec carries bytes only as the whole value of a state key.
        state_delta={key: value for key, value in state.items() if not isinstance(value, bytes)},
        state_removed=removed,
        state_increments={
            key: amount
            for key, amount in INCREMENTS[number % len(INCREMENTS)].items()
            if key not in state and key not in removed
        },
    )


EVENTS = [make_event(number) for number in range(NUM_EVENTS)]
FRAGMENTS = [
    Event("xy"[number % 2], "ü" * number, id=f"f{number}", timestamp=LONG_AGO, partial=True)
    for number in range(NUM_EVENTS)
]
STREAM_TTL_MS = 2 * DAY_MS

services = st.integers(0, len(SERVICES) - 1)
keys = st.sampled_from(KEYS)
users = st.sampled_from(USERS)
apps = st.sampled_from(APPS)
event_nums = st.none() | st.integers(0, 7)
event_times = st.none() | st.sampled_from(TIMES)
numbers = st.integers(0, NUM_EVENTS - 1)
changes = st.sampled_from(CHANGES)
holders = st.sampled_from(("h1", "h2"))
leases = st.sampled_from((60_000, 5 * DAY_MS))
lease_names = st.sampled_from(get_args(LeaseName))
version_steps = st.sampled_from((None, None, None, 0, 0, -1, 1))


def make_ops(chosen: Settings) -> Ops:
    def seconds(milliseconds: int) -> float | None:
        return milliseconds / 1000 or None

    return Ops(
        # A refresh of the tiers is always due.
        clock=itertools.count(step=DAY_MS).__next__,
        options=check_options(
            session_event_limit=chosen.event_limit or None,
            session_ttl=seconds(chosen.session_ttl),
            app_state_ttl=seconds(chosen.app_ttl),
            user_state_ttl=seconds(chosen.user_ttl),
            stream_ttl=seconds(STREAM_TTL_MS),
            refresh_ttl_on_read=chosen.refresh_on_read,
            key_prefix="",
            codec="json" if chosen.codec == "json" else "msgpack",
            compression=READING if chosen.codec == "json" else COMPRESSION,
            partition_by="user",
            event_size_limit=1 << 20,
            value_size_limit=1 << 20,
            summary_size_limit=1 << 20,
        ),
    )


OPS = [make_ops(chosen) for chosen in SERVICES]
READER = make_ops(Settings(0, 0, 0, 0, False, "json"))  # refreshes nothing


class Outcome:
    """A result, or an exception."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.error: Exception | None = None
        self.result: Any = None
        try:
            self.result = run()
        except (SessionStoreError, Refused) as error:
            self.error = error

    def value(self) -> Any:
        """The result; raises what was raised."""
        if self.error is not None:
            raise self.error
        return self.result

    def comparable(self) -> Any:
        """The part that is compared with another outcome."""
        if isinstance(self.error, StaleVersion):
            return StaleVersion, self.error.actual
        if isinstance(self.error, TurnTaken):
            return TurnTaken, microseconds(self.error.expires_at)
        if isinstance(self.error, Refused):
            kind, actual = self.error.kind, self.error.actual
            return kind if actual is None else (kind, actual)
        return self.result if self.error is None else type(self.error)


class TwinMachine(RuleBasedStateMachine):
    """One sequence of calls. `server` and `executors` are set by the test."""

    server: ClassVar[Server]
    executors: ClassVar[tuple[RedisExecutor, ...]]

    def __init__(self) -> None:
        super().__init__()
        self.server.raw.flushall()
        self.clock_us = self._server_us()
        self.twin = MemoryExecutor(clock=lambda: (self.clock_us + 0.5) / 1e6)
        self.model = Model()
        self.turns: list[Turn] = []
        self.stored: Dump = {}  # by the server, after the last call
        self.executor = self.executors[0]

    @initialize(number=st.integers(0, 1))
    def choose_protocol(self, number: int) -> None:
        self.executor = self.executors[number]

    def teardown(self) -> None:
        self.server.raw.flushall()

    # -- sessions ------------------------------------------------------------------------------

    @rule(service=services, key=keys, change=changes)
    def create_session(self, service: int, key: SessionKey, change: Any) -> None:
        flow = flows.create_session(OPS[service], *_parts(key), change[0])
        outcome = self._drive(flow)
        if key in self.model.sessions:
            assert outcome.comparable().__name__ == "SessionExists"
        else:
            self._expect(outcome, lambda: self.model.create(SERVICES[service], key, change[0]))
        self._check()

    @rule(
        service=services,
        key=keys,
        change=changes,
        event_num=event_nums,
        event_time=event_times,
    )
    def get_or_create_session(
        self,
        service: int,
        key: SessionKey,
        change: Any,
        event_num: int | None,
        event_time: datetime | None,
    ) -> None:
        flow = flows.get_or_create_session(
            OPS[service], *_parts(key), change[0], event_num, event_time
        )
        outcome = self._drive(flow)
        chosen = SERVICES[service]

        def expected() -> Session | None:
            if key not in self.model.sessions:
                return self.model.create(chosen, key, change[0])
            return self.model.get(chosen, key, event_num, event_time)

        self._expect(outcome, expected)
        self._check()

    @rule(service=services, key=keys, event_num=event_nums, event_time=event_times)
    def get_session(
        self,
        service: int,
        key: SessionKey,
        event_num: int | None,
        event_time: datetime | None,
    ) -> None:
        outcome = self._drive(flows.get_session(OPS[service], key, event_num, event_time))
        self._expect(outcome, lambda: self.model.get(SERVICES[service], key, event_num, event_time))
        self._check()

    @rule(
        service=services,
        user=users,
        limit=st.integers(1, 4),
        offset=st.integers(0, 2),
        event_num=st.integers(0, 4),
    )
    def list_sessions(
        self, service: int, user: tuple[str, str], limit: int, offset: int, event_num: int
    ) -> None:
        outcome = self._drive(flows.list_sessions(OPS[service], *user, limit, offset, event_num))

        def expected() -> list[Session]:
            listed = self.model.listed(user)[offset : offset + limit]
            return [self.model.view(key, event_num) for key in listed]

        self._expect(outcome, expected)
        self._check()

    @rule(service=services, user=users, limit=st.integers(1, 4))
    def list_all_sessions(self, service: int, user: tuple[str, str], limit: int) -> None:
        """Page by page, while nobody writes."""
        listed: list[Session] = []
        cursor = None
        while cursor is not None or not listed:
            flow = flows.list_sessions(OPS[service], *user, limit, 0, 0, cursor)
            page = self._drive(flow).value()
            cursor = page.cursor
            assert len(page) == limit or cursor is None
            listed += page
            if cursor is None:
                break
        expected = [self.model.view(key, 0) for key in self.model.listed(user)]
        assert listed == expected
        self.model.begin(self.clock_us)
        self._check()

    @rule(key=keys)
    def delete_session(self, key: SessionKey) -> None:
        self._expect(self._run(OPS[0].delete_session(key)), lambda: self.model.delete(key))
        self._check()

    @rule(user=users)
    def delete_user(self, user: tuple[str, str]) -> None:
        outcome = self._drive(flows.delete_user(OPS[0], *user))
        self._expect(outcome, lambda: self.model.delete_user(user))
        self._check()

    @rule(user=users, names=st.lists(st.sampled_from(NAMES), max_size=3, unique=True))
    def prune_index(self, user: tuple[str, str], names: list[str]) -> None:
        self._run(OPS[0].prune_index(*user, names))  # the model keeps no index to prune
        self._check()

    # -- events --------------------------------------------------------------------------------

    @rule(service=services, key=keys, number=numbers, step=version_steps)
    def append_event(self, service: int, key: SessionKey, number: int, step: int | None) -> None:
        if_version = self._version(key, step)
        event = EVENTS[number]
        outcome = self._drive(flows.append_event(OPS[service], key, event, if_version))

        def expected() -> Event:
            self.model.append(SERVICES[service], key, [event], if_version)
            return event

        self._expect(outcome, expected)
        self._check()

    @rule(
        service=services,
        key=keys,
        batch=st.lists(numbers, max_size=8),
        step=version_steps,
    )
    def append_events(
        self, service: int, key: SessionKey, batch: list[int], step: int | None
    ) -> None:
        if_version = self._version(key, step)
        events = [EVENTS[number] for number in batch]
        outcome = self._drive(flows.append_events(OPS[service], key, events, if_version))

        def expected() -> list[Event]:
            if events:
                self.model.append(SERVICES[service], key, events, if_version)
            return events

        self._expect(outcome, expected)
        self._check()

    @rule(
        service=services,
        key=keys,
        batch=st.lists(numbers, min_size=1, max_size=4),
        step=version_steps,
    )
    def append_fragments(
        self, service: int, key: SessionKey, batch: list[int], step: int | None
    ) -> None:
        if_version = self._version(key, step)
        events = [FRAGMENTS[number] for number in batch]
        outcome = self._drive(flows.append_events(OPS[service], key, events, if_version))
        chosen = SERVICES[service]

        def expected() -> list[Event]:
            self.model.append_fragments(chosen, key, events, if_version, STREAM_TTL_MS)
            return events

        self._expect(outcome, expected)
        self._check()

    @rule(key=keys)
    def read_fragments(self, key: SessionKey) -> None:
        """Which fragments are obsolete is tested in tests/contract/test_contract_stream.py."""
        outcome = self._drive(fragments(READER, key))
        if key not in self.model.sessions:
            assert outcome.comparable() is SessionNotFound
        else:
            assert outcome.error is None
        self.model.begin(self.clock_us)
        self._check()

    @rule(
        service=services,
        key=keys,
        after=st.none() | st.integers(-1, 5),
        before=st.none() | st.integers(-1, 5),
        limit=st.integers(1, 6),
        newest=st.booleans(),
    )
    def get_events(
        self,
        service: int,
        key: SessionKey,
        after: int | None,
        before: int | None,
        limit: int,
        newest: bool,
    ) -> None:
        low, high = self._cursor(key, after), self._cursor(key, before)
        outcome = self._run(OPS[service].get_events(key, low, high, limit, newest))
        chosen = SERVICES[service]

        def expected() -> EventPage:
            page = self.model.page(chosen, key, low, high, limit, newest)
            cursor = low if low is not None else high
            return EventPage(
                [entry.event for entry in page],
                page[0].position if page else cursor,
                page[-1].position if page else cursor,
                [entry.position for entry in page],
            )

        self._expect(outcome, expected)
        self._check()

    @rule(service=services, key=keys, step=version_steps)
    def pop_event(self, service: int, key: SessionKey, step: int | None) -> None:
        if_version = self._version(key, step)
        outcome = self._drive(flows.pop_event(OPS[service], key, if_version))
        self._expect(outcome, lambda: self.model.pop(SERVICES[service], key, if_version))
        self._check()

    @rule(service=services, key=keys, step=version_steps)
    def clear_events(self, service: int, key: SessionKey, step: int | None) -> None:
        if_version = self._version(key, step)
        outcome = self._drive(flows.clear_events(OPS[service], key, if_version))
        self._expect(outcome, lambda: self.model.clear(SERVICES[service], key, if_version))
        self._check()

    # -- history -------------------------------------------------------------------------------

    @rule(
        service=services,
        key=keys,
        number=st.integers(-1, 5),
        base=st.sampled_from((None, 0, 0, 0, 1)),
        summary=st.sampled_from(("s", {"ü": [1]})),
        drop=st.booleans(),
        step=version_steps,
        has_lease=st.booleans(),
    )
    def compact_session(
        self,
        service: int,
        key: SessionKey,
        number: int,
        base: int | None,
        summary: Any,
        drop: bool,
        step: int | None,
        has_lease: bool,
    ) -> None:
        """`base`: None = no summary is expected; otherwise that of the session, moved by it."""
        leases = [turn for turn in self.turns if turn.key == key]
        lease = leases[-1] if leases and has_lease else None
        if_version = None if lease else self._version(key, step)
        stored = self.model.sessions.get(key)
        old = stored.summary if stored else None
        if_summary = None if base is None or old is None else old.upto + base
        upto = self._cursor(key, number) or 0
        flow = flows.compact_session(
            *(OPS[service], key, upto, summary, if_summary, drop, if_version, lease, RULES),
            lease_name="compactor",
        )
        outcome = self._drive(flow)

        def expected() -> Any:
            assert RULES.starts_turn is not None
            args = (key, upto, summary, if_summary, drop, if_version, lease, RULES.starts_turn)
            return self.model.compact(SERVICES[service], *args)

        self._expect(outcome, expected)
        self._check()

    @rule(
        service=services,
        key=keys,
        number=st.integers(-1, 5),
        state=st.none() | st.sampled_from(SESSION_STATES),
        step=version_steps,
    )
    def rewind_session(
        self,
        service: int,
        key: SessionKey,
        number: int,
        state: dict[str, Any] | None,
        step: int | None,
    ) -> None:
        if_version = self._version(key, step)
        position = self._cursor(key, number) or 0
        chosen = SERVICES[service]
        flow = flows.rewind_session(OPS[service], key, position, state, if_version, None)
        outcome = self._drive(flow)
        self._expect(outcome, lambda: self.model.rewind(chosen, key, position, state, if_version))
        self._check()

    @rule(service=services, key=keys, place=st.integers(0, 5), number=numbers, step=version_steps)
    def replace_event(
        self, service: int, key: SessionKey, place: int, number: int, step: int | None
    ) -> None:
        entry = self._entry(key, place)
        if_version = self._version(key, step)
        if entry is None:
            return
        new, chosen = EVENTS[number], SERVICES[service]
        flow = flows.replace_event(
            OPS[service], key, entry.position, entry.event, new, if_version, None
        )
        outcome = self._drive(flow)

        def expected() -> Event:
            identity = (chosen.codec, new.id)
            self.model.replace(chosen, key, entry, (identity, new), if_version)
            return new

        self._expect(outcome, expected)
        self._check()

    @rule(service=services, key=keys, place=st.integers(0, 5), step=version_steps)
    def delete_event(self, service: int, key: SessionKey, place: int, step: int | None) -> None:
        entry = self._entry(key, place)
        if_version = self._version(key, step)
        if entry is None:
            return
        flow = flows.delete_event(OPS[service], key, entry.position, entry.event, if_version, None)
        outcome = self._drive(flow)

        def expected() -> bool:
            self.model.replace(SERVICES[service], key, entry, None, if_version)
            return True

        self._expect(outcome, expected)
        self._check()

    @rule(
        service=services,
        names=st.permutations(KEYS[:2]),
        number=st.none() | st.integers(-1, 5),
        state=st.none() | st.sampled_from(SESSION_STATES),
        step=version_steps,
    )
    def fork_session(
        self,
        service: int,
        names: list[SessionKey],
        number: int | None,
        state: dict[str, Any] | None,
        step: int | None,
    ) -> None:
        key, copy = names
        if_version = self._version(key, step)
        upto, chosen = self._cursor(key, number), SERVICES[service]
        flow = flows.fork_session(OPS[service], key, copy.session_id, upto, state, if_version, None)
        outcome = self._drive(flow)
        self._expect(outcome, lambda: self.model.fork(chosen, key, copy, upto, state, if_version))
        self._check()

    @rule(
        service=services,
        key=keys,
        chosen=st.lists(numbers, max_size=7, unique=True),
        state=st.sampled_from(SESSION_STATES),
        times=st.sampled_from([(None, None), (None, TIMES[1]), (TIMES[0], TIMES[3])]),
        upto=st.none() | st.sampled_from((3, 7, 20, 10**15)),
        interrupt=st.none() | st.integers(1, 3),
    )
    def restore_session(
        self,
        service: int,
        key: SessionKey,
        chosen: list[int],
        state: dict[str, Any],
        times: tuple[datetime | None, datetime | None],
        upto: int | None,
        interrupt: int | None,
    ) -> None:
        """Restore a session, or only stage some of its events. A call takes two events."""
        settings, events = SERVICES[service], [EVENTS[number] for number in chosen]
        positions = [10 * number + 7 for number in range(len(events))]
        summary = None if upto is None else Summary("s", upto, LONG_AGO, 0)
        flow = flows.restore_session(
            OPS[service], key, events, positions, state, *times, UNSET, None, summary
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(restore, "EVENTS_PER_CALL_LIMIT", 2)
            outcome = self._drive(flow if interrupt is None else staging_only(flow, interrupt))
        created_us, updated_us = [None if each is None else microseconds(each) for each in times]
        restored = repr((key, settings.codec, settings.event_limit, chosen, state, times, upto))
        log = [
            Stored(position, (settings.codec, event.id), event)
            for position, event in zip(positions, events, strict=True)
        ]

        def expected() -> Session | None:
            if interrupt is not None:
                self.model.stage(key, restored, interrupt, math.ceil(len(events) / 2) - 1)
                return None
            return self.model.restore(
                settings, key, restored, log, state, created_us, updated_us, upto
            )

        self._expect(outcome, expected)
        self._check()

    @rule(
        service=services,
        key=keys,
        step=version_steps,
        first_kept=st.integers(0, 3),
        end_kept=st.integers(0, 4),
        batch=st.lists(numbers, max_size=4),
    )
    def replace_newest(
        self,
        service: int,
        key: SessionKey,
        step: int | None,
        first_kept: int,
        end_kept: int,
        batch: list[int],
    ) -> None:
        version = self._version(key, step or 0) or 0
        events = [Event("user", one, id=f"plain {one}", timestamp=TIMES[0]) for one in batch]
        args = (key, version, first_kept, end_kept, events)
        outcome = self._drive(flows.replace_newest(OPS[service], *args))
        self._expect(outcome, lambda: self.model.replace_newest(SERVICES[service], *args))
        self._check()

    # -- turns ---------------------------------------------------------------------------------

    @rule(days=st.sampled_from((1, 400)), key=keys)
    def jump_back(self, days: int, key: SessionKey) -> None:
        """As if the leases had been taken while the clock was ahead."""
        name = Keys().session(*_parts(key)).session
        stored = self.model.sessions.get(key)
        for lease_name, lease in stored.leases.items() if stored else ():
            if lease.until_us:
                lease.until_us += days * DAY_MS * 1000
                pair = (b"%s_until_us" % lease_name.encode(), b"%d" % lease.until_us)
                self.server.raw.hset(name, *pair)
                self.twin.keyspace.hset(name, pair)
        self.dump()
        self.model.begin(self.clock_us)
        self._check()

    @rule(service=services, key=keys, holder=holders, lease_ms=leases, name=lease_names)
    def acquire_turn(
        self, service: int, key: SessionKey, holder: str, lease_ms: int, name: LeaseName
    ) -> None:
        outcome = self._run(OPS[service].acquire_turn(key, holder, lease_ms, name=name), lease_ms)
        token = 0
        if isinstance(outcome.result, Turn):
            self.turns.append(outcome.result)
            token = outcome.result.token
        args = (SERVICES[service], key, holder, lease_ms, token, name)
        self._expect(outcome, lambda: self.model.acquire_turn(*args))
        self._check()

    @precondition(lambda self: self.turns)
    @rule(
        service=services,
        number=st.integers(0, 5),
        lease_ms=leases | st.just(0),
        name=lease_names,
    )
    def renew_turn(self, service: int, number: int, lease_ms: int, name: LeaseName) -> None:
        turn = self.turns[-1 - number % len(self.turns)]
        outcome = self._run(OPS[service].renew_turn(turn, lease_ms, name=name), lease_ms)
        chosen = SERVICES[service]
        self._expect(outcome, lambda: self.model.renew_turn(chosen, turn, lease_ms, name))
        self._check()

    @rule(service=services, key=keys)
    def free_turn(self, service: int, key: SessionKey) -> None:
        before_us = self._server_us()
        outcome = self._run(OPS[service].free_turn(key))
        name = Keys().session(*_parts(key)).session
        token = 0
        if name in self.stored:  # its time is known only by what it stored
            token = int(self.stored[name][2][b"turn_token"])
            if token >= before_us:
                self.twin.keyspace.hset(name, (b"turn_token", b"%d" % token))
        chosen = SERVICES[service]
        self._expect(outcome, lambda: self.model.free_turn(chosen, key, token))
        self._check()

    @rule(service=services, key=keys, lease_ms=st.sampled_from([0, 1, 1000, 100_000]))
    def listen_session(self, service: int, key: SessionKey, lease_ms: int) -> None:
        name = Keys().session(*_parts(key)).session
        head = self._run(OPS[service].listen_session(key, lease_ms)).value()
        assert (head is not None) == (name in self.stored)
        if lease_ms and head is not None:
            # The twin's clock differs a little.
            listen_ms = self.stored[name][2][b"listen_ms"]
            self.twin.keyspace.hset(name, (b"listen_ms", listen_ms))
        self._check()

    @precondition(lambda self: self.turns)
    @rule(service=services, number=st.integers(0, 5), batch=st.lists(numbers, max_size=4))
    def append_with_turn(self, service: int, number: int, batch: list[int]) -> None:
        turn = self.turns[-1 - number % len(self.turns)]
        events = [EVENTS[number] for number in batch]
        ops, key, chosen = OPS[service], turn.key, SERVICES[service]
        if len(events) == 1:
            outcome = self._drive(flows.append_event(ops, key, events[0], None, turn))
        else:
            outcome = self._drive(flows.append_events(ops, key, events, None, turn))

        def expected() -> Any:
            if events:
                self.model.append(chosen, key, events, None, turn)
            return events[0] if len(events) == 1 else events

        self._expect(outcome, expected)
        self._check()

    # -- state ---------------------------------------------------------------------------------

    @rule(service=services, key=keys, change=changes, step=version_steps)
    def update_session_state(
        self, service: int, key: SessionKey, change: Any, step: int | None
    ) -> None:
        state, removed = change
        if_version = self._version(key, step)
        flow = flows.update_session_state(OPS[service], key, state, removed, if_version)
        outcome = self._drive(flow)

        def expected() -> None:
            if state or removed or if_version is not None:
                self.model.update(SERVICES[service], key, state, removed, if_version)

        self._expect(outcome, expected)
        self._check()

    @rule(service=services, key=keys, change=changes)
    def set_absent_session_state(self, service: int, key: SessionKey, change: Any) -> None:
        state = change[0]
        flow = flows.update_session_state(OPS[service], key, state, (), None, True)
        outcome = self._drive(flow)

        def expected() -> None:
            if state:
                self.model.set_absent(SERVICES[service], key, state)

        self._expect(outcome, expected)
        self._check()

    @rule(service=services, key=keys, increments=st.sampled_from(INCREMENTS[2:]))
    def increment_session_state(
        self, service: int, key: SessionKey, increments: dict[str, int]
    ) -> None:
        flow = flows.increment_session_state(OPS[service], key, increments)
        outcome = self._drive(flow)
        chosen = SERVICES[service]
        self._expect(outcome, lambda: self.model.increment(chosen, key, increments))
        self._check()

    @rule(service=services, user=users, amount=st.sampled_from((1, -2, 2**53 - 1)))
    def increment_user_state(self, service: int, user: tuple[str, str], amount: int) -> None:
        increments = {"n": amount, "x": 1}
        outcome = self._drive(flows.increment_user_state(OPS[service], *user, increments))
        chosen = SERVICES[service]
        self._expect(outcome, lambda: self.model.increment_user(chosen, user, increments))
        self._check()

    @rule(
        service=services,
        user=users,
        change=st.sampled_from([({"k": 1}, []), ({}, ["k"]), ({"k": 2, "n": 0}, [], True)]),
    )
    def update_user_state(self, service: int, user: tuple[str, str], change: Any) -> None:
        outcome = self._drive(flows.update_user_state(OPS[service], *user, *change))
        chosen = SERVICES[service]
        self._expect(outcome, lambda: self.model.update_user(chosen, user, *change))
        self._check()

    @rule(
        service=services,
        app=apps,
        change=st.sampled_from([({"k": 1}, []), ({}, ["k", "x"]), ({"k": 2, "y": 2}, [], True)]),
    )
    def update_app_state(self, service: int, app: str, change: Any) -> None:
        outcome = self._drive(flows.update_app_state(OPS[service], app, *change))
        chosen = SERVICES[service]
        self._expect(outcome, lambda: self.model.update_app(chosen, app, *change))
        self._check()

    @rule(service=services, user=users)
    def get_user_state(self, service: int, user: tuple[str, str]) -> None:
        outcome = self._run(OPS[service].get_user_state(*user))
        chosen = SERVICES[service]

        def expected() -> dict[str, Any]:
            if user not in self.model.users:
                return {}
            if chosen.refresh_on_read:
                self.model.refreshed[user] = chosen.user_ttl
            return self.model.users[user].state

        self._expect(outcome, expected)
        self._check()

    @rule(service=services, app=apps)
    def get_app_state(self, service: int, app: str) -> None:
        outcome = self._run(OPS[service].get_app_state(app))
        chosen = SERVICES[service]

        def expected() -> dict[str, Any]:
            if app not in self.model.apps:
                return {}
            if chosen.refresh_on_read:
                self.model.refreshed[app] = chosen.app_ttl
            return self.model.apps[app].state

        self._expect(outcome, expected)
        self._check()

    # -- time ----------------------------------------------------------------------------------

    @precondition(lambda self: self.model.sessions)
    @rule(days=st.sampled_from((1 / 100, 1 / 50, 0.3, 0.9, 1.5, 3.5, 5.0)))
    def pass_time(self, days: float) -> None:
        """As if time had passed: move all deadlines closer. Some keys expire."""
        milliseconds = int(days * DAY_MS)
        pass_time(self.server, milliseconds)
        self.dump()
        self.clock_us = self._server_us()
        self.model.begin(self.clock_us)
        keyspace = self.twin.keyspace
        keyspace.now_us = self.clock_us
        for key in keyspace.keys():  # noqa: SIM118  # a Keyspace is not a dict
            deadline_ms = keyspace.pexpiretime(key)
            if keyspace.kind(key) == b"hash":
                noted = int(keyspace.hget(key, b"deadline_ms") or 0)
                if noted > 0:
                    keyspace.hset(key, (b"deadline_ms", b"%d" % (noted - milliseconds)))
                for field in (b"turn_until_us", b"compactor_until_us"):
                    until_us = int(keyspace.hget(key, field) or 0)
                    if until_us > 0:
                        until_us -= milliseconds * 1000
                        keyspace.hset(key, (field, b"%d" % until_us))
            if deadline_ms > 0:
                keyspace.pexpireat(key, deadline_ms - milliseconds)
        self.model.pass_time(milliseconds)
        self._check()

    # -- inside --------------------------------------------------------------------------------

    def dump(self) -> Dump:
        """What the server stores now."""
        self.stored = dump_server(self.server)
        return self.stored

    def _server_us(self) -> int:
        seconds, rest = self.server.raw.time()
        return seconds * 1_000_000 + rest

    def _version(self, key: SessionKey, step: int | None) -> int | None:
        """None, or the current version plus `step`."""
        if step is None:
            return None
        stored = self.model.sessions.get(key)
        return max((stored.version if stored else 1) + step, 0)

    def _entry(self, key: SessionKey, place: int) -> Stored | None:
        """An event of the log, with its position; None without one."""
        stored = self.model.sessions.get(key)
        return stored.log[place % len(stored.log)] if stored and stored.log else None

    def _cursor(self, key: SessionKey, number: int | None) -> int | None:
        """A position in the log, near one, or outside of it."""
        if number is None:
            return None
        stored = self.model.sessions.get(key)
        positions = [entry.position for entry in stored.log] if stored else []
        if number < 0 or not positions:
            return 5
        return positions[number % len(positions)] + (number >= len(positions))

    def _run(self, call: Call[Any], lease_ms: int = 0) -> Outcome:
        """Send a call to server and twin, compare the outcomes, and return the server's."""
        before_us, earlier_us = self._server_us(), self.clock_us
        real = Outcome(lambda: call.decode(self.executor.execute(call)))
        after_us = self._server_us()
        # The index and the reply contain the exact time of the call.
        stamps = [
            score
            for key, (_, _, content) in self.dump().items()
            if key.startswith(b"sessions:")
            for _, score in content
        ]
        if isinstance(real.result, (WriteResult, Compacted)):
            stamps.append(real.result.updated_us)
        if isinstance(real.result, Turn):
            stamps.append(microseconds(real.result.expires_at) - lease_ms * 1000)
        if call.script and call.script.name == "delete_sessions" and real.result:
            stamps.append(real.result[0])
        if call.script and call.script.name == "restore_session" and real.result:
            stamps.append(real.result[0].version)
        if call.name == "append_fragments" and real.result:
            stamps.append(real.result - int(call.args[3]) + 1)
        exact = [stamp for stamp in stamps if before_us <= stamp <= after_us]
        self.clock_us = exact[0] if exact else after_us
        twin = Outcome(lambda: call.decode(self.twin.execute(call)))
        assert twin.comparable() == real.comparable()
        if call.name == "prune_index":  # it stores no time; what the flow stored before counts
            self.clock_us = earlier_us
        return real

    def _drive(self, flow: Flow[Any]) -> Outcome:
        def drive() -> Any:
            try:
                step = next(flow)
                while True:
                    calls = step if isinstance(step, tuple) else (step,)
                    results = [self._run(call).value() for call in calls]
                    step = flow.send(tuple(results) if isinstance(step, tuple) else results[0])
            except StopIteration as end:
                return end.value

        return Outcome(drive)

    def _expect(self, outcome: Outcome, expected: Callable[[], Any]) -> None:
        """Compare an outcome with the model's."""
        self.model.begin(self.clock_us)
        assert outcome.comparable() == Outcome(expected).comparable()

    def _check(self) -> None:
        """Check that twin, server and model store the same."""
        self._check_model(self.check_twin())

    def check_twin(self) -> Dump:
        """Check that twin and server store the same."""
        real, twin = self.stored, dump_twin(self.twin.keyspace)
        assert sorted(twin) == sorted(real)
        for key, (kind, deadline_ms, content) in real.items():
            twin_kind, twin_deadline_ms, twin_content = twin[key]
            assert twin_kind == kind
            assert _is_near(twin_deadline_ms, deadline_ms), key
            if key.startswith(b"session:"):
                noted = content.get(b"deadline_ms", b"")
                twin_noted = twin_content.pop(b"deadline_ms", b"")
                assert noted.isdigit() == twin_noted.isdigit()
                if noted.isdigit() and len(noted) < 17:  # otherwise it is damaged
                    assert int(noted) in (0, deadline_ms)
                    assert _is_near(int(twin_noted), int(noted))
                content = {name: content[name] for name in content if name != b"deadline_ms"}
            assert twin_content == content
        return real

    def _check_model(self, real: Dump) -> None:
        spelled = Keys()
        expected_keys = set()
        for key, stored in self.model.sessions.items():
            names = spelled.session(*_parts(key))
            expected_keys.add(names.session)
            self.model.check_deadline(key, _deadline(real, names.session))
            if stored.log:
                expected_keys.add(names.events)
                assert real[names.events][1] == real[names.session][1]
            index = real[names.session_index]
            assert dict(index[2])[key.session_id.encode()] == stored.updated_us
            # The index lives at least as long as every session in it.
            assert index[1] == -1 or index[1] >= (stored.deadline or math.inf)
            header = real[names.session][2]
            assert int(header[b"version"]) == stored.version
            assert int(header[b"updated_us"]) == stored.updated_us
            assert int(header[b"created_us"]) == stored.created_us
            state = {name[1:]: value for name, value in header.items() if name[:1] == b"."}
            assert _decoded(state) == stored.state
            assert int(header.get(b"count", -1)) == len(stored.log)
            summary = stored.summary
            numbers = [header.get(name, b"") for name in SUMMARY_FIELDS]
            assert (
                numbers == [b""] * 4
                if summary is None
                else [
                    b"%d" % number
                    for number in (summary.upto, stored.covered, summary.total, summary.created_us)
                ]
            )
            assert (b"c" in header.get(b"flags", b"")) == (summary is not None)
            positions = [(entry.position, entry.event) for entry in stored.log]
            log = real[names.events][2] if stored.log else []
            assert [(score, decode_event(plain(member))) for member, score in log] == positions
        for user, tier in self.model.users.items():
            name = spelled.user(*user).user
            expected_keys.add(name)
            assert _decoded(real[name][2]) == tier.state
            self.model.check_deadline(user, _deadline(real, name))
        for app, tier in self.model.apps.items():
            name = spelled.app(app)
            expected_keys.add(name)
            assert _decoded(real[name][2]) == tier.state
            self.model.check_deadline(app, _deadline(real, name))
        for key, kept in self.model.streams.items():
            name = spelled.session(*_parts(key)).stream
            expected_keys.add(name)
            _, deadline_ms, members = real[name]
            assert kept.deadline is not None
            assert _is_near(deadline_ms, kept.deadline)
            found = [
                [
                    decode_event(plain(data))
                    for data in msgspec.msgpack.decode(member.split(b" ", 4)[4])
                ]
                for member, _ in members
                if member[:1] != b"\0"
            ]
            assert found == list(kept.calls.values())
            assert len(members) == 2 * len(found)
        indexes = {name for name in real if name.startswith(b"sessions:")}
        staged = {name for name in real if re.fullmatch(rb"events:.+}:[^:]+:[0-9a-f]{32}", name)}
        assert set(real) - indexes - staged == expected_keys
        parts = [math.ceil(len(real[name][2]) / 2) for name in staged]
        assert sorted(parts) == sorted(parts for parts, _ in self.model.staged.values())


def staging_only(flow: Flow[Any], num_calls: int) -> Flow[None]:
    """The first steps of restore_session, up to a number of calls of stage_events."""
    step = next(flow)
    while num_calls:
        assert isinstance(step, Call)
        name = step.script and step.script.name
        if name == "restore_session":
            return
        num_calls -= name == "stage_events"
        step = flow.send((yield step))


def _parts(key: SessionKey) -> tuple[str, str, str]:
    return key.app_name, key.user_id, key.session_id


def _decoded(fields: dict[bytes, bytes]) -> dict[str, Any]:
    return {name.decode(): decode_value(plain(value)) for name, value in fields.items()}


def _is_near(left: int, right: int) -> bool:
    if min(left, right) <= 0:
        return left == right
    return abs(left - right) <= TOLERANCE_MS


def _deadline(real: Dump, name: bytes) -> int | None:
    deadline_ms = real[name][1]
    return None if deadline_ms < 0 else deadline_ms


@pytest.fixture
def executors(server: Server) -> Iterator[tuple[RedisExecutor, ...]]:
    """The executor for threads, over RESP2 and over RESP3."""
    found = tuple(
        connect_sync(server.url, None, {"protocol": protocol}, None, 10.0) for protocol in (2, 3)
    )
    yield found
    for executor in found:
        executor.close()


def test_twin_server_and_model_agree(server: Server, executors: tuple[RedisExecutor, ...]) -> None:
    machine = type("Machine", (TwinMachine,), {"server": server, "executors": executors})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=120,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            # Phase.shrink shortens a failing sequence, but takes minutes. Add it if needed.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.without_ttl
@pytest.mark.parametrize("seed", range(8))
def test_twin_and_server_agree_on_damage_and_on_calls_that_are_sent_again(
    server: Server, executors: tuple[RedisExecutor, ...], seed: int
) -> None:
    """Keys are lost, header fields are damaged or missing, Calls come with an age."""
    chance = random.Random(seed)
    kind = type("Machine", (TwinMachine,), {"server": server, "executors": executors})
    machine = kind()
    key = KEYS[0]
    session, events, index = Keys().session(*_parts(key))[:3]
    kept = Keys().session(*_parts(key)).stream
    garbage = (None, b"", b"x", b"nan", b"-1", b"1" * 30)
    fields = [b"version", b"last_us", b"deadline_ms", b"count", b"event_limit", b"removed_us"]
    fields += [*SUMMARY_FIELDS, b"summary", b"flags", b"listen_ms", b"changes", b"created_us"]
    garbage_flags = (None, b"", b"x", b"cx", b"xc", b"c", b"f", b"fc")

    def damage() -> None:
        lost = chance.choice((session, events, index, kept, b""))
        field = chance.choice(fields)
        value = chance.choice(garbage_flags if field == b"flags" else garbage)
        keyspace = machine.twin.keyspace
        if lost:
            server.raw.delete(lost)
            keyspace.unlink(lost)
        elif chance.random() < 0.1:
            member = chance.choice((b"", b"x", b"\0", b"1 2 x 1 ", b"1 2 5 1"))
            server.raw.zadd(kept, {member: 5})
            keyspace.zadd(kept, 5, member)
        elif value is None:
            server.raw.hdel(session, field)
            keyspace.hdel(session, [field])
        elif server.raw.exists(session):
            server.raw.hset(session, field, value)
            keyspace.hset(session, (field, value))

    def some_rows() -> list[Any]:
        found = []
        for event in chance.choices(EVENTS, k=chance.randint(1, 5)):
            data, copy = OPS[0].options.codec.encode_event(event, "event", KEYS[0])
            found.append((data, copy.timestamp, NO_CHANGE))
        return found

    def position() -> int:
        found: Any = server.raw.zrange(events, 0, -1, withscores=True)
        return int(chance.choice(found)[1]) if found else 5

    def version() -> int:
        found: Any = server.raw.hget(session, "version")
        return int(found) if found and found.isdigit() and len(found) < 17 else 7

    def compact(ops: Ops) -> Call[Any]:
        upto: Any = server.raw.hget(session, "compacted_us")
        base = int(upto) if upto and upto.isdigit() and len(upto) < 17 else None
        base = chance.choice((base, base, base, None, 5))
        summary, drop = chance.choice((b'"s"', b'"t"')), chance.random() < 0.3
        return ops.compact_session(key, position(), summary, base, drop, None, None, b"", "turn")

    errors = Counter[str]()
    for _ in range(250):
        ops = OPS[chance.randrange(len(OPS))]
        rows = some_rows()
        data, at, _ = rows[0]
        stored: Any = server.raw.hget(session, "created_us")
        created_us = chance.choice((b"", b"", stored, b"5")) if stored else b""
        calls: list[Call[Any]] = [
            ops.create_session(key, "creation", NO_CHANGE),
            ops.get_or_create_session(key, "creation", NO_CHANGE, None, None),
            ops.get_session(key, None, None),
            ops.get_events(key, None, None, 3),
            ops.append_event(key, data, at, NO_CHANGE, None, None, created_us),
            ops.append_event(key, data, at, NO_CHANGE, 7, None, created_us),
            ops.append_events(key, rows, None, None, created_us),
            ops.append_events(key, rows, 7, None, created_us),
            ops.append_fragments(key, [data], None, None, created_us),
            ops.append_fragments(key, [data, data], 7, None, created_us),
            ops.read_log(key, 0, sequence=0),
            ops.pop_event(key, None, created_us),
            ops.clear_events(key, None, created_us),
            ops.update_session_state(key, NO_CHANGE, None, created_us),
            ops.acquire_turn(key, "holder", 60_000, created_us),
            ops.delete_session(key),
            ops.change_fields(key, [], [(b".list", b"entry")], NO_CHANGE.session),
            compact(ops),
            ops.rewind_session(key, position(), None, None, None, created_us),
            ops.replace_newest(key, version(), chance.randint(0, 2), chance.randint(0, 4), []),
            ops.fork_session(key, KEYS[1], "copy", position(), None, None, None, created_us),
        ]
        weights = [3, 3, 3, 3, 9, 1, 9, 1, 6, 3, 1, 3, 1, 1, 1, 1, 3, 9, 2, 2, 2]
        call = chance.choices(calls, weights)[0]
        if call.age_argument is not None and chance.random() < 0.5:
            args = list(call.args)
            args[call.age_argument] += chance.choice((b" 1", b" 10000000"))
            call = structs.replace(call, args=tuple(args))
        if chance.random() < 0.2:
            damage()
        if chance.random() < 0.1:
            call = ops.repair_session(key)
        outcome = machine._run(call, 60_000 if call.name == "acquire_turn" else 0)
        errors[type(outcome.error).__name__] += 1
        machine.check_twin()
    assert errors["NoneType"] > 30
    assert {"CorruptData", "EventsMissing", "BackendUnavailable"} & set(errors)


@pytest.mark.without_ttl
def test_both_look_at_the_same_ids_of_an_index(
    server: Server, executors: tuple[RedisExecutor, ...]
) -> None:
    """A create of a session names them. Some indexes have a deadline, some sessions expire."""
    machine = type("Machine", (TwinMachine,), {"server": server, "executors": executors})()
    key, keyspace = KEYS[0], machine.twin.keyspace
    index = Keys().session(*_parts(key)).session_index
    num_checked = Counter[int]()
    for size in (0, 1, 2, 6, 10, 63, 64, 127, 255, 256, 300, 319, 383, 383, 1023):
        machine.server.raw.flushall()
        keyspace.unlink(*keyspace.keys())
        names = [f"{number:04}" for number in range(size)]
        for name in names:
            keyspace.zadd(index, int(name), name.encode())
        if names:
            server.raw.zadd(index, {name: int(name) for name in names})
        if names and size % 3 == 0:
            at_ms = machine._server_us() // 1000 + DAY_MS
            server.raw.pexpireat(index, at_ms)
            keyspace.pexpireat(index, at_ms)
        flow = flows.create_session(OPS[size % 2], *_parts(key), None)
        _, to_check = machine._run(next(flow)).value()
        num_checked[len(to_check)] += 1
        some = [name.decode() for name in to_check]
        pruned = machine._run(OPS[0].prune_index(key.app_name, key.user_id, some)).value()
        assert pruned == len(set(some) - {key.session_id})
        machine.check_twin()
    assert {0, 3, 11, 64, 256} <= set(num_checked)


@pytest.mark.parametrize(
    ("num_calls", "size", "num_left"), [(5000, 10, 5000), (20, 1 << 19, 16), (3, 1, 4)]
)
def test_both_remove_the_oldest_fragments(
    server: Server,
    executors: tuple[RedisExecutor, ...],
    num_calls: int,
    size: int,
    num_left: int,
) -> None:
    """At most 5,000 calls and 8 MiB are kept."""
    machine = type("Machine", (TwinMachine,), {"server": server, "executors": executors})()
    key, ops = KEYS[0], OPS[0]
    machine._drive(flows.create_session(ops, *_parts(key), None))
    name = Keys().session(*_parts(key)).stream
    now_us, num_bytes = machine._server_us(), 0
    members: dict[bytes, int] = {}
    for number in range(num_calls):
        entry = b"1 0 %d 1 %b" % (num_bytes, b"x" * size)
        num_bytes += len(entry)
        members |= dict.fromkeys((b"\0 %d" % number, entry), now_us - num_calls + number)
    server.raw.zadd(name, members)
    for member, score in members.items():
        machine.twin.keyspace.zadd(name, score, member)
    machine._run(ops.append_fragments(key, [b"{}"], None, None, b""))
    machine.check_twin()
    assert server.raw.zcard(name) == 2 * num_left
    machine._run(ops.append_fragments(key, [b"x" * (8_000_000)], None, None, b""))
    machine.check_twin()
    entries: Any = server.raw.zrange(name, 0, -1)
    assert sum(map(len, entries[1::2])) <= 8 << 20


@pytest.mark.without_ttl
@pytest.mark.parametrize("seed", range(3))
def test_both_change_fields_alike(
    server: Server, executors: tuple[RedisExecutor, ...], seed: int
) -> None:
    chance = random.Random(seed)
    kind = type("Machine", (TwinMachine,), {"server": server, "executors": executors})
    machine = kind()
    key = KEYS[0]
    names = [b".a", b".b", b".list"]
    values: list[Any] = [None, b"1", b"\0x", b"\0xy", b"\0yx", b"\0" * 900]
    results = Counter[str]()
    for _ in range(120):
        ops = OPS[chance.randrange(len(OPS))]
        compared = [(name, chance.choice(values)) for name in chance.sample(names, 1)]
        entries = [(b".list", chance.choice([b"x", b"y", b"%", b"xy"]))]
        pairs = [
            part for name in chance.sample(names, 2) for part in (name, chance.choice(values[1:]))
        ]
        delta = Delta(pairs, chance.sample(names, chance.randrange(3)))
        calls: list[Call[Any]] = [
            ops.create_session(key, "creation", NO_CHANGE),
            ops.delete_session(key),
            ops.read_fields(key, names),
            ops.read_all_fields(key),
            ops.change_fields(key, compared, chance.choice([[], entries]), Delta()),
            ops.change_fields(
                key, [], chance.choice([[], entries]), chance.choice([delta, Delta()])
            ),
        ]
        outcome = machine._run(chance.choices(calls, [3, 1, 5, 2, 9, 9])[0])
        results[type(outcome.error).__name__] += 1
        machine.check_twin()
    assert results["NoneType"] > 30
    assert results["StaleVersion"] > 5


def test_both_let_keys_expire(server: Server, executors: tuple[RedisExecutor, ...]) -> None:
    ops = make_ops(Settings(3, 200, 100, 150, True, "json"))
    clock = [time.time()]
    twin = MemoryExecutor(clock=lambda: clock[0])
    key = KEYS[3]

    def run(step: Step) -> tuple[Any, Any]:
        assert isinstance(step, Call)
        clock[0] = time.time()
        return step.decode(executors[0].execute(step)), step.decode(twin.execute(step))

    run(next(flows.create_session(ops, *_parts(key), {"k": 1, "user:k": 2, "app:k": 3})))
    run(next(flows.append_event(ops, key, EVENTS[0], None)))
    assert len(dump_twin(twin.keyspace)) == len(dump_server(server)) == 5
    reader = READER.get_session(key, None, None)
    limit = time.monotonic() + 5
    while server.raw.dbsize() and time.monotonic() < limit:
        real, twins = run(reader)
        if real and twins:
            # Server and twin were read at slightly different times.
            assert set(real.state) - set(twins.state) <= {"user:k", "app:k"}
        time.sleep(0.005)
    clock[0] = time.time()
    assert run(reader) == (None, None)
    assert dump_server(server) == dump_twin(twin.keyspace) == {}
    # A new session with the same name has no expired data.
    (real, _), (twins, _) = run(next(flows.create_session(ops, *_parts(key), None)))
    assert real.state == twins.state == {}
    assert real.events == twins.events == []
