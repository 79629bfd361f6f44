"""What services do around Calls: check first, and update the Session only after success."""

from __future__ import annotations

import copy
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from support.events import NOON
from support.services import make_ops

from sessionstore import (
    BackendTimeout,
    Event,
    EventsMissing,
    InMemorySessionService,
    InvalidArgument,
    LimitExceeded,
    Session,
    SessionKey,
    SessionNotFound,
    SessionService,
    StaleVersion,
    Turn,
    flows,
)
from sessionstore.calls import AsyncExecutor, Call
from sessionstore.codec import CALL_SIZE_LIMIT, Codec
from sessionstore.observe import wrap_executor
from sessionstore.ops import EVENTS_PER_CALL_LIMIT
from sessionstore.tiers import STATE_KEY_LIMIT, STATE_KEYS_LIMIT
from sessionstore.transform import Owner

KEY = SessionKey("app", "user", "sid")
IDS: dict[str, Any] = {"app_name": "app", "user_id": "user", "session_id": "sid"}
USER: dict[str, Any] = {"app_name": "app", "user_id": "user"}

Write = Callable[[SessionService, Session], Awaitable[Any]]


class Recorder:
    """An executor that takes the place of a store and records the Calls it gets."""

    def __init__(self, error: Exception | None = None) -> None:
        self.sent: list[Call[Any]] = []
        self._error = error

    async def execute(self, call: Call[Any]) -> list[Any]:
        self.sent.append(call)
        if self._error is not None:
            raise self._error
        pytest.fail(f"{call.name} was sent")

    async def aclose(self) -> None:
        pass


def recording_service(
    error: Exception | None = None, **options: Any
) -> tuple[SessionService, Recorder]:
    recorder = Recorder(error)
    service = InMemorySessionService(**options)
    wrap_executor(service, lambda _: recorder)
    return service, recorder


def make_session() -> Session:
    return Session(
        app_name="app",
        user_id="user",
        id="sid",
        state={"a": {"b": [1]}, "user:c": 2, "app:d": 3, "temp:e": 4},
        events=[Event("user", {"text": "hello"}, id="e1", timestamp=NOON)],
        version=5,
        created_at=NOON,
        updated_at=NOON,
    )


# -- refused before anything is sent ------------------------------------------------------------

BAD_STATES: list[Any] = [
    {"a": {1, 2}},
    {"a": float("nan")},
    {"a": (1,)},
    {"a": "\ud800"},
    {"": 1},
    {"app:": 1},
    {"user:": 1},
    {"temp:": 1},
    {5: 1},
    {None: 1},
    {"\ud800": 1},
    {"x" * (STATE_KEY_LIMIT + 1): 1},
    {"temp:a": object()},
    {str(number): 0 for number in range(STATE_KEYS_LIMIT + 1)},
    ["a"],
    "a",
    5,
    [],
    "",
    0,
]
BAD_KEYS: list[Any] = ["", "app:", "user:", "temp:", 5, None, b"a", "\ud800", "x" * 1025]
BAD_EVENTS: list[Any] = [
    None,
    "text",
    {"author": "user"},
    Event("", "content"),
    Event("user", {1}),
    Event("user", id=""),
    Event("user", timestamp=datetime(2024, 5, 15)),
    Event("user", state_delta={"a": {1}}),
    Event("user", state_delta={"": 1}),
    Event("user", state_delta={5: 1}),  # type: ignore[dict-item]  # likewise below: no Event
    Event("user", state_delta=None),  # type: ignore[arg-type]
    Event("user", state_delta=[]),  # type: ignore[arg-type]
    Event("user", state_delta=["a"]),  # type: ignore[arg-type]
    Event("user", state_removed=None),  # type: ignore[arg-type]
    Event("user", state_removed=5),  # type: ignore[arg-type]
    Event("user", state_removed="a"),  # type: ignore[arg-type]
    Event("user", state_removed=("a",)),  # type: ignore[arg-type]
    Event("user", state_removed=[5]),  # type: ignore[list-item]
    Event("user", state_removed=[""]),
    Event("user", state_delta={"a": 1}, state_removed=["a"]),
    Event("user", state_delta={"user:a": 1}, state_removed=["user:a"]),
    Event("user", metadata={"a": object()}),
    Event("user", metadata=None),  # type: ignore[arg-type]
]
BAD_SESSIONS: list[Any] = [
    None,
    "sid",
    ("app", "user", "sid"),
    SessionKey("", "user", "sid"),
    SessionKey("app", "x" * 257, "sid"),
    SessionKey("app", "user", "\ud800"),
    SessionKey("app", "user", None),  # type: ignore[arg-type]  # likewise
]


@dataclass(frozen=True)
class Attempt:
    """A method of a service with the arguments to call it with."""

    method: str
    args: tuple[Any, ...]
    options: dict[str, Any]

    async def on(self, service: SessionService) -> Any:
        return await getattr(service, self.method)(*self.args, **self.options)


def attempt(method: str, *args: Any, **options: Any) -> Attempt:
    return Attempt(method, args, options)


def refused_attempts() -> Iterator[Attempt]:
    for state in BAD_STATES:
        yield attempt("create_session", **IDS, state=state)
        yield attempt("get_or_create_session", **IDS, state=state)
        yield attempt("update_session_state", KEY, state)
        yield attempt("update_user_state", "app", "user", state)
        yield attempt("update_app_state", "app", state)
    for key in BAD_KEYS:
        yield attempt("delete_session_state", KEY, "a", key)
        yield attempt("delete_user_state", "app", "user", key)
        yield attempt("delete_app_state", "app", "a", key)
    for event in BAD_EVENTS:
        yield attempt("append_event", KEY, event)
        yield attempt("append_events", KEY, [Event("user"), event, Event("user")])
    for session in BAD_SESSIONS:
        yield attempt("append_event", session, Event("user"))
        yield attempt("get_events", session)
        yield attempt("pop_event", session)
        yield attempt("clear_events", session)
        yield attempt("update_session_state", session, {"a": 1})
        yield attempt("delete_session_state", session, "a")
    for events in (None, 5, Event("user"), "text", {"a": 1}):
        yield attempt("append_events", KEY, events)
    for key in ("app:a", "temp:a"):
        yield attempt("update_user_state", "app", "user", {key: 1})
        yield attempt("delete_user_state", "app", "user", key)
    for key in ("user:a", "temp:a"):
        yield attempt("update_app_state", "app", {key: 1})
        yield attempt("delete_app_state", "app", key)
    for limit in (0, 1001, -1, True, "5", 5.0, None):
        yield attempt("list_sessions", **USER, limit=limit)
    for offset in (-1, True, "5", 5.0, None, 2**53 + 1):
        yield attempt("list_sessions", **USER, offset=offset)
    for after in ("", "down", "down:1:s:1", "left:1:s:1:s", "up:1:s:x:s", "up:1:s:1:%ff", 5, b"up"):
        yield attempt("list_sessions", **USER, after=after)
    yield attempt("list_sessions", **USER, after=f"up:1:s:{2**53 + 1}:s")
    yield attempt("list_sessions", **USER, after="up:1:s:1:s", offset=1)
    yield attempt("list_sessions", **USER, limit=0, offset=5)
    for event_num in (-1, True, "5", None):
        yield attempt("list_sessions", **USER, event_num=event_num)
    for no_id in ("", "x" * 257, "\ud800", None, 5):
        yield attempt("get_user_state", "app", no_id)
        yield attempt("get_app_state", no_id)
        yield attempt("update_app_state", no_id, {"a": 1})
        yield attempt("list_sessions", app_name="app", user_id=no_id)
        yield attempt("create_session", app_name="app", user_id=no_id)
        yield attempt("get_session", **USER, session_id=no_id)
        yield attempt("delete_session", **USER, session_id=no_id)
    for bad_id in ("x" * 257, "\ud800", 5, b"x"):
        yield attempt("create_session", **USER, session_id=bad_id)
        yield attempt("get_or_create_session", **USER, session_id=bad_id)


REFUSED = list(refused_attempts())


@pytest.mark.parametrize(
    "refused", REFUSED, ids=[f"{number}-{one.method}" for number, one in enumerate(REFUSED)]
)
async def test_what_is_refused_is_not_sent(refused: Attempt) -> None:
    service, recorder = recording_service()
    with pytest.raises(InvalidArgument):
        await refused.on(service)
    assert recorder.sent == []


async def test_a_key_to_remove_that_is_not_valid_is_named_by_its_index() -> None:
    service, _ = recording_service()
    with pytest.raises(InvalidArgument, match=r"^keys\[1\] must be a str, not int: 5"):
        await service.delete_session_state(KEY, "a", 5)  # type: ignore[arg-type]  # refused
    with pytest.raises(InvalidArgument, match=r"^event\.state_removed\[1\] must not be empty"):
        await service.append_event(KEY, Event("user", state_removed=["a", ""]))


async def test_too_many_events_are_not_sent() -> None:
    service, recorder = recording_service()
    events = [Event("user") for _ in range(EVENTS_PER_CALL_LIMIT + 1)]
    with pytest.raises(LimitExceeded):
        await service.append_events(KEY, events)
    assert recorder.sent == []


async def test_too_many_events_are_not_even_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    service, recorder = recording_service()
    num_encoded = num_read = 0

    def encode(self: Codec, event: Event, path: str, owner: Owner) -> Any:
        nonlocal num_encoded
        num_encoded += 1
        return encode_event(self, event, path, owner)

    def endless() -> Iterator[Event]:
        nonlocal num_read
        while True:
            num_read += 1
            yield Event("user")

    encode_event = Codec.encode_event
    monkeypatch.setattr(Codec, "encode_event", encode)
    events = [Event("user")] * 700 + [Event("agent", partial=True)] * 100
    for too_many, actual in ((events, 700), (endless(), 501)):
        with pytest.raises(LimitExceeded, match=r"^events\b") as caught:
            await service.append_events(KEY, too_many)
        assert (caught.value.limit, caught.value.actual) == (500, actual)
    assert (recorder.sent, num_encoded, num_read) == ([], 0, 501)
    partial = [Event("agent", partial=True)] * 700
    assert await service.append_events(KEY, partial) == partial


BAD_KEY = SessionKey("app", "user", "")
TURN = Turn(KEY, 3, NOON)
OTHER_TURN = Turn(SessionKey("app", "user", "other"), 3, NOON)
PARTIAL = Event("agent", partial=True)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (attempt("append_event", BAD_KEY, PARTIAL), "session_id"),
        (attempt("append_event", KEY, PARTIAL, if_version="x"), "if_version"),
        (attempt("append_event", KEY, PARTIAL, if_version=-1), "if_version"),
        (attempt("append_event", KEY, PARTIAL, turn=OTHER_TURN), "turn"),
        (attempt("append_event", KEY, PARTIAL, turn=5), "turn"),
        (attempt("append_events", BAD_KEY, []), "session_id"),
        (attempt("append_events", BAD_KEY, [PARTIAL]), "session_id"),
        (attempt("append_events", KEY, [], if_version=1.5), "if_version"),
        (attempt("append_events", KEY, [PARTIAL], turn=OTHER_TURN), "turn"),
        (attempt("append_events", KEY, [], if_version=1, turn=TURN), "if_version and turn"),
        (attempt("update_session_state", BAD_KEY, {}), "session_id"),
        (attempt("update_session_state", BAD_KEY, {"temp:a": 1}), "session_id"),
        (attempt("update_session_state", BAD_KEY, {}, if_absent=True), "session_id"),
        (attempt("delete_session_state", BAD_KEY), "session_id"),
        (attempt("increment_session_state", BAD_KEY, {}), "session_id"),
        (attempt("update_user_state", "app", "", {}), "user_id"),
        (attempt("delete_user_state", "app", ""), "user_id"),
        (attempt("increment_user_state", "app", "", {}), "user_id"),
        (attempt("update_app_state", "", {}), "app_name"),
        (attempt("delete_app_state", ""), "app_name"),
        (attempt("increment_app_state", "", {}), "app_name"),
    ],
    ids=lambda one: one.method if isinstance(one, Attempt) else None,
)
async def test_bad_arguments_of_a_call_that_changes_nothing_are_refused_alike(
    bad: Attempt, named: str
) -> None:
    service, recorder = recording_service()
    with pytest.raises(InvalidArgument, match=rf"^{named}\b"):
        await bad.on(service)
    assert recorder.sent == []


@pytest.mark.parametrize(
    "idle",
    [
        attempt("append_events", KEY, []),
        attempt("append_event", KEY, Event("agent", "fragment", partial=True)),
        attempt("append_events", KEY, [Event("agent", partial=True)] * 3),
        attempt("update_session_state", KEY, {}),
        attempt("update_session_state", KEY, {"temp:a": 1}),
        attempt("delete_session_state", KEY),
        attempt("delete_session_state", KEY, "temp:a"),
        attempt("update_user_state", "app", "user", {}),
        attempt("delete_user_state", "app", "user"),
        attempt("update_app_state", "app", {}),
        attempt("delete_app_state", "app"),
    ],
    ids=lambda one: one.method,
)
async def test_what_changes_nothing_is_not_sent(idle: Attempt) -> None:
    service, recorder = recording_service()
    await idle.on(service)
    assert recorder.sent == []


# -- the caller's Session -----------------------------------------------------------------------

WRITES: dict[str, Write] = {
    "append": lambda s, session: s.append_event(
        session, Event("user", state_delta={"a": 2, "temp:x": 1}, state_removed=["user:c"])
    ),
    "append_events": lambda s, session: s.append_events(
        session, [Event("user", state_delta={"a": 2}), Event("agent", partial=True)]
    ),
    "pop": lambda s, session: s.pop_event(session),
    "clear": lambda s, session: s.clear_events(session),
    "update": lambda s, session: s.update_session_state(session, {"a": 2, "temp:x": 1}),
    "delete": lambda s, session: s.delete_session_state(session, "a", "user:c", "temp:e"),
    "refused event": lambda s, session: s.append_event(
        session, Event("user", {1}, state_delta={"a": 2, "temp:x": 1})
    ),
    "refused batch": lambda s, session: s.append_events(
        session, [Event("user", state_delta={"a": 2}), Event("user", {1})]
    ),
    "refused update": lambda s, session: s.update_session_state(session, {"a": 2, "b": {1}}),
    "refused version": lambda s, session: s.append_event(session, Event("u"), if_version=-1),
}


@pytest.mark.parametrize("name", WRITES)
async def test_a_session_stays_as_it_is_when_a_write_fails(name: str) -> None:
    for maybe_applied in (False, True):
        error = BackendTimeout("no answer", maybe_applied=maybe_applied)
        service, _ = recording_service(error)
        session = make_session()
        before = copy.deepcopy(session)
        with pytest.raises((BackendTimeout, InvalidArgument)):
            await WRITES[name](service, session)
        assert session == before


@pytest.mark.parametrize("name", ["append", "append_events", "pop", "clear", "update", "delete"])
async def test_a_session_stays_as_it_is_when_it_is_missing(name: str) -> None:
    async with InMemorySessionService() as service:
        session = make_session()
        before = copy.deepcopy(session)
        with pytest.raises(SessionNotFound):
            await WRITES[name](service, session)
        assert session == before


async def test_a_session_stays_as_it_is_when_its_version_is_stale() -> None:
    attempts: list[Write] = [
        lambda s, x: s.append_event(x, Event("u", state_delta={"a": 2}), if_version=9),
        lambda s, x: s.append_events(x, [Event("u", state_delta={"temp:a": 2})], if_version=9),
        lambda s, x: s.pop_event(x, if_version=9),
        lambda s, x: s.clear_events(x, if_version=9),
        lambda s, x: s.update_session_state(x, {"a": 2, "temp:b": 1}, if_version=9),
        lambda s, x: s.update_session_state(x, {"temp:b": 1}, if_version=9),
        lambda s, x: s.delete_session_state(x, "a", if_version=9),
    ]
    async with InMemorySessionService() as service:
        session = await service.create_session(**IDS, state={"a": 1})
        await service.append_event(session, Event("user"))
        for write in attempts:
            before = copy.deepcopy(session)
            with pytest.raises(StaleVersion):
                await write(service, session)
            assert session == before


async def test_a_session_shows_what_was_written() -> None:
    async with InMemorySessionService() as service:
        session = await service.create_session(**IDS, state={"a": 1, "user:b": 2, "temp:c": 3})
        event = Event("u", state_delta={"d": 4, "app:e": 5, "temp:f": 6}, state_removed=["a"])
        stored = await service.append_event(session, event)
        assert session.state == {"user:b": 2, "temp:c": 3, "d": 4, "app:e": 5, "temp:f": 6}
        assert session.events == [stored]
        assert stored.state_delta == {"d": 4, "app:e": 5}
        await service.delete_session_state(session, "d", "user:b", "temp:f", "missing")
        assert session.state == {"temp:c": 3, "app:e": 5}
        fresh = await service.get_session(**IDS)
        assert fresh is not None
        assert (fresh.version, fresh.updated_at) == (session.version, session.updated_at)
        assert fresh.state | {"temp:c": 3} == session.state
        assert await service.pop_event(session) == stored
        assert session.events == []
        assert session.version > fresh.version


METHODS = [
    attempt("create_session", **IDS),
    attempt("get_or_create_session", **IDS),
    attempt("get_session", **IDS),
    attempt("list_sessions", **USER),
    attempt("delete_session", **IDS),
    attempt("append_event", KEY, Event("user")),
    attempt("append_events", KEY, [Event("user"), Event("user")]),
    attempt("get_events", KEY),
    attempt("pop_event", KEY),
    attempt("clear_events", KEY),
    attempt("update_session_state", KEY, {"a": 1, "user:b": 2, "app:c": 3}),
    attempt("delete_session_state", KEY, "a"),
    attempt("get_user_state", "app", "user"),
    attempt("update_user_state", "app", "user", {"a": 1}),
    attempt("delete_user_state", "app", "user", "a"),
    attempt("get_app_state", "app"),
    attempt("update_app_state", "app", {"a": 1}),
    attempt("delete_app_state", "app", "a"),
]


async def test_a_call_is_named_after_the_method() -> None:
    """Errors show this name. A removal of state is an update."""
    for method in METHODS:
        service, recorder = recording_service(BackendTimeout("no answer"))
        with pytest.raises(BackendTimeout):
            await method.on(service)
        name = re.sub(r"^delete_(.*)_state$", r"update_\1_state", method.method)
        assert [call.name for call in recorder.sent] in ([name], [method.method])


class Counter:
    """Passes Calls on to a store, and counts them."""

    def __init__(self, service: SessionService) -> None:
        self.count = 0
        wrap_executor(service, self._wrap)

    def _wrap(self, inner: AsyncExecutor) -> AsyncExecutor:
        self.inner = inner
        return self

    async def execute(self, call: Call[Any]) -> list[Any]:
        self.count += 1
        assert self.count < 100, "one operation sends Calls without end"
        found: list[Any] = await self.inner.execute(call)
        return found

    async def aclose(self) -> None:
        await self.inner.aclose()


async def test_all_operations_but_a_list_are_one_call() -> None:
    for method in METHODS:
        async with InMemorySessionService(session_ttl=60) as memory:
            if method.method != "create_session":
                await memory.create_session(**IDS)
            counter = Counter(memory)
            await method.on(memory)
            assert counter.count == (2 if method.method == "list_sessions" else 1)


@pytest.mark.parametrize("num_sessions", [0, 5])
@pytest.mark.parametrize("offset", [10, 10**9, 2**53])
async def test_an_offset_beyond_the_end_is_found_out_at_once(
    num_sessions: int, offset: int
) -> None:
    async with InMemorySessionService() as memory:
        for _ in range(num_sessions):
            await memory.create_session(**USER)
        counter = Counter(memory)
        assert await memory.list_sessions(**USER, offset=offset) == []
        assert counter.count <= 4


async def test_expired_sessions_count_for_no_offset() -> None:
    """Wherever they are in the index, and though pruning moves it during the search."""
    now = 1_000_000.0
    async with InMemorySessionService(session_ttl=100, clock=lambda: now) as service:
        names = [f"s{number:04}" for number in range(2500)]
        for name in reversed(names):
            now += 0.001
            await service.create_session(**USER, session_id=name)
        kept = [*names[500:1000], *names[1500:]]
        now += 60
        for name in kept:
            await service.get_session(**USER, session_id=name)
        now += 60
        listed = await service.list_sessions(**USER, limit=3, offset=1400)
        assert [found.id for found in listed] == kept[1400:1403]


LARGE_TEXT = "x" * ((8 << 20) - 2)
LARGE_STATE = {f"k{number}": LARGE_TEXT for number in range(8)}


@pytest.mark.parametrize(
    "write",
    [
        lambda s: s.create_session(**IDS, state=LARGE_STATE),
        lambda s: s.get_or_create_session(**IDS, state=LARGE_STATE),
        lambda s: s.update_session_state(KEY, LARGE_STATE),
        lambda s: s.update_user_state("app", "user", LARGE_STATE),
        lambda s: s.update_app_state("app", LARGE_STATE),
        lambda s: s.append_event(KEY, Event("user", state_delta=LARGE_STATE)),
        lambda s: s.append_events(KEY, [Event("user", LARGE_TEXT[:-1000])] * 9),
        lambda s: s.append_events(
            KEY, [Event("user", state_delta={"k": LARGE_TEXT[:-1000]}) for _ in range(5)]
        ),
    ],
)
async def test_the_bytes_of_one_call_are_bounded(
    write: Callable[[SessionService], Awaitable[Any]],
) -> None:
    service, recorder = recording_service()
    with pytest.raises(
        LimitExceeded, match=r"^(event.)?(state|events|state_delta) has .* in one call$"
    ) as caught:
        await write(service)
    assert caught.value.limit == CALL_SIZE_LIMIT == 64 << 20
    assert caught.value.limit < caught.value.actual < caught.value.limit + (17 << 20)
    assert recorder.sent == []


async def test_a_call_may_be_as_large_as_the_bound() -> None:
    service = InMemorySessionService()
    state = dict(list(LARGE_STATE.items())[1:])
    session = await service.create_session(**IDS, state=state)
    assert session.state == state


@pytest.mark.parametrize("app_in_own_slot", [False, True])
def test_what_a_replica_lacks_is_read_again_from_the_primary(app_in_own_slot: bool) -> None:
    ops = make_ops(app_in_own_slot=app_in_own_slot)
    key = SessionKey("app", "user", "sid")
    reads: list[Any] = [
        flows.get_session(ops, key, None, None),
        flows.get_events(ops, key, None, None, 5),
    ]
    for flow in reads:
        step = next(flow)
        first = step[0] if isinstance(step, tuple) else step
        assert not first.from_primary
        missing = EventsMissing("", expected=2, actual=1, key="")
        step = flow.throw(missing)
        again = step[0] if isinstance(step, tuple) else step
        assert (again.commands, again.from_primary) == (first.commands, True)
        with pytest.raises(EventsMissing):
            flow.throw(missing)
