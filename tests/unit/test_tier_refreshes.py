"""Appends name the tiers of their session when a refresh is due, and only then."""

from __future__ import annotations

from typing import Any

import pytest
from support.events import NOON
from support.services import make_options

from sessionstore import Event, InMemorySessionService, SessionKey, SessionNotFound
from sessionstore.calls import Call
from sessionstore.ops import Ops
from sessionstore.tier_refreshes import TIERS_LIMIT, TierRefreshes
from sessionstore.tiers import NO_CHANGE, encode_change

KEY = SessionKey("app", "user", "sid")
TTL = 640  # a 64th is 10 seconds
WRITTEN: list[Any] = [[b"OK", 2, 5, 0]]
REPEATED: list[Any] = [[b"OK", 2, 5, 1]]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock, **options: Any) -> Ops:
    in_own_slot = options.pop("app_in_own_slot", False)
    return Ops(make_options(**options), app_in_own_slot=in_own_slot, clock=clock)


def append(ops: Ops, key: SessionKey = KEY) -> Call[Any]:
    return ops.append_event(key, b"{}", NOON, NO_CHANGE, None, None)


def append_two(ops: Ops, key: SessionKey = KEY) -> Call[Any]:
    return ops.append_events(key, [(b"{}", NOON, NO_CHANGE), (b"[]", NOON, NO_CHANGE)], None, None)


def update(ops: Ops, key: SessionKey = KEY) -> Call[Any]:
    return ops.update_session_state(key, encode_change(ops.options.codec, KEY, {"a": 1}), None)


each_write = pytest.mark.parametrize("write", [append, append_two, update])


@each_write
@pytest.mark.parametrize("options", [{}, {"session_ttl": TTL}])
def test_without_a_ttl_of_a_tier_no_tier_is_named(write: Any, options: dict[str, Any]) -> None:
    ops = make(Clock(), **options)
    assert len(write(ops).keys) == 3


@each_write
@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"user_state_ttl": TTL}, 4),
        ({"app_state_ttl": TTL}, 5),
        ({"user_state_ttl": TTL, "app_state_ttl": TTL}, 5),
        ({"user_state_ttl": TTL, "app_state_ttl": TTL, "app_in_own_slot": True}, 4),
        ({"app_state_ttl": TTL, "app_in_own_slot": True}, 3),
    ],
)
def test_a_tier_is_named_once_in_a_64th_of_its_ttl(
    write: Any, options: dict[str, Any], count: int
) -> None:
    clock = Clock()
    ops = make(clock, **options)
    for _ in range(3):
        call = write(ops)
        assert len(call.keys) == count
        assert len(write(ops).keys) == count  # until the reply is there
        call.decode(WRITTEN)
        clock.now += 9.9
        assert len(write(ops).keys) == 3
        assert len(write(ops, SessionKey("app", "user", "other")).keys) == 3
        if count > 3:
            assert len(write(ops, SessionKey("app", "another", "sid")).keys) == count
        clock.now += 0.2


def test_a_call_that_was_refused_or_a_repeat_refreshed_nothing() -> None:
    ops = make(Clock(), user_state_ttl=TTL)
    for write in (append, append_two):
        write(ops).decode([[b"OK", 2, 5, 2]])
        with pytest.raises(SessionNotFound):
            write(ops).decode([[b"NOT_FOUND"]])
        assert len(write(ops).keys) == 4
    append(ops).decode(REPEATED)
    assert len(append(ops).keys) == 4
    append_two(ops).decode(WRITTEN)
    assert len(append(ops).keys) == 3


def test_a_change_of_a_tier_refreshes_it_too() -> None:
    ops = make(Clock(), user_state_ttl=TTL)
    change = encode_change(ops.options.codec, KEY, {"user:a": 1})
    ops.append_event(KEY, b"{}", NOON, change, None, None).decode(WRITTEN)
    assert len(append(ops).keys) == 3


def test_an_app_tier_in_its_own_slot_is_touched_once_in_a_64th() -> None:
    clock = Clock()
    ops = make(clock, app_state_ttl=TTL, app_in_own_slot=True)
    for _ in range(3):
        call = ops.touch_app_tier("app")
        assert call is not None
        assert (call.writes, call.args) == (False, (b"%d" % (TTL * 1000),))
        assert ops.touch_app_tier("app") is None  # also if the call fails: no append waits again
        clock.now += 10.1
    assert make(clock, app_state_ttl=TTL).touch_app_tier("app") is None
    assert make(clock, app_in_own_slot=True).touch_app_tier("app") is None


def test_a_clock_that_is_set_back_makes_a_refresh_due() -> None:
    clock = Clock()
    tiers = TierRefreshes((TTL * 1000, 0), clock)
    tiers.note("t")
    assert not tiers.is_due("t")
    clock.now -= 500
    assert tiers.is_due("t")


def test_memory_is_bounded() -> None:
    tiers = TierRefreshes((TTL * 1000, 0), Clock())
    for number in range(3 * TIERS_LIMIT):
        tiers.note(number)
        assert len(tiers._refreshed_at) <= TIERS_LIMIT
    assert not tiers.is_due(3 * TIERS_LIMIT - 1)


async def test_the_clock_of_memory_is_the_injected_one() -> None:
    clock = Clock()
    service = InMemorySessionService(user_state_ttl=TTL, app_state_ttl=TTL, clock=clock)
    session = await service.create_session(
        app_name="a", user_id="u", state={"user:k": 1, "app:k": 1}
    )
    for number in range(20):
        clock.now += TTL / 4
        await service.append_event(session, Event("x", number))
    assert await service.get_user_state("a", "u") == {"k": 1}
    assert await service.get_app_state("a") == {"k": 1}
