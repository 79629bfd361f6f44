"""Turns: one holder at a time, growing tokens, and appends that only the holder may make."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from contract_support import results_of, run_all
from support.events import numbered, numbers_of
from support.services import ServiceFactory
from support.sessions import APP, IDS, KEY, OWNER, USER, create, read
from support.waiting import poll_until

from sessionstore import (
    Event,
    InvalidArgument,
    SessionKey,
    SessionNotFound,
    Turn,
    TurnLost,
    TurnTaken,
)

AdvanceTime = Callable[[float], None]

SHORT = 0.03  # a lease whose end tests wait for
LONG = 600


async def end_of(turn: Turn) -> None:
    """Wait for the end of a lease. The test servers share our clock."""

    async def is_past() -> bool:
        return datetime.now(UTC) > turn.expires_at

    await poll_until(is_past, "the end of the lease")


async def take_over(service: Any, key: SessionKey = KEY) -> Turn:
    """The turn, as soon as the lease of its holder has ended."""
    taken: list[Turn] = []

    async def is_taken() -> bool:
        try:
            taken.append(await service.acquire_turn(key, lease=LONG))
        except TurnTaken:
            return False
        return True

    await poll_until(is_taken, "the turn is free")
    return taken[0]


async def lose_turn(service: Any, key: SessionKey = KEY) -> tuple[Turn, Turn]:
    """A turn that was lost, and the turn of its new holder."""
    lost = await service.acquire_turn(key, lease=SHORT)
    return lost, await take_over(service, key)


class TestAcquire:
    async def test_the_first_one_gets_it(self, service: Any) -> None:
        await create(service)
        before = datetime.now(UTC)
        turn = await service.acquire_turn(KEY, lease=timedelta(minutes=1))
        assert isinstance(turn, Turn)
        assert turn.key == KEY
        assert turn.token > 0
        slack = timedelta(seconds=5)
        assert before - slack < turn.expires_at - timedelta(minutes=1)
        assert turn.expires_at - timedelta(minutes=1) < datetime.now(UTC) + slack
        assert turn.expires_at.utcoffset() == timedelta(0)

    async def test_no_other_holder_gets_it_meanwhile(self, service: Any) -> None:
        session = await create(service)
        turn = await service.acquire_turn(session, lease=LONG)
        for holder in (session, KEY):
            with pytest.raises(TurnTaken, match="another run holds the turn") as raised:
                await service.acquire_turn(holder)
            assert raised.value.expires_at == turn.expires_at

    async def test_of_many_one_gets_it(self, service: Any) -> None:
        await create(service)
        outcomes = await run_all(service.acquire_turn(KEY, lease=LONG) for _ in range(30))
        [turn] = [outcome for outcome in outcomes if isinstance(outcome, Turn)]
        taken = [outcome for outcome in outcomes if isinstance(outcome, TurnTaken)]
        assert len(taken) == 29
        assert {error.expires_at for error in taken} == {turn.expires_at}

    async def test_every_session_has_a_turn_of_its_own(self, service: Any) -> None:
        keys = [KEY, SessionKey(APP, USER, "other"), SessionKey(APP, "other", "sid")]
        for key in keys:
            await create(service, key)
        turns = [await service.acquire_turn(key) for key in keys]
        assert [turn.key for turn in turns] == keys

    async def test_it_is_free_once_the_lease_has_ended(self, service: Any) -> None:
        await create(service)
        first = await service.acquire_turn(KEY, lease=SHORT)
        second = await take_over(service)
        assert second.token > first.token
        assert second.expires_at > first.expires_at

    async def test_tokens_grow_also_when_the_turn_was_given_back(self, service: Any) -> None:
        await create(service)
        tokens = []
        for _ in range(5):
            turn = await service.acquire_turn(KEY)
            await service.release_turn(turn)
            tokens.append(turn.token)
        assert tokens == sorted(set(tokens))

    async def test_a_turn_does_not_outlive_its_session(self, service: Any) -> None:
        await create(service)
        old = await service.acquire_turn(KEY, lease=LONG)
        await service.delete_session(**IDS)
        await create(service)
        new = await service.acquire_turn(KEY, lease=LONG)
        assert new.token > old.token
        with pytest.raises(TurnLost):
            await service.append_event(KEY, Event("user"), turn=old)
        with pytest.raises(TurnLost):
            await service.renew_turn(old)
        await service.release_turn(old)
        await service.append_event(KEY, Event("user"), turn=new)

    async def test_a_missing_session_has_none(self, service: Any) -> None:
        with pytest.raises(SessionNotFound):
            await service.acquire_turn(KEY)
        await create(service)
        turn = await service.acquire_turn(KEY)
        await service.delete_session(**IDS)
        with pytest.raises(SessionNotFound):
            await service.acquire_turn(KEY)
        with pytest.raises(SessionNotFound):
            await service.renew_turn(turn)
        with pytest.raises(SessionNotFound):
            await service.append_event(KEY, Event("user"), turn=turn)
        await service.release_turn(turn)
        assert await service.get_session(**IDS) is None


class TestRenew:
    async def test_it_moves_the_end_of_the_lease(self, service: Any) -> None:
        await create(service)
        turn = await service.acquire_turn(KEY, lease=10)
        renewed = await service.renew_turn(turn, lease=LONG)
        assert (renewed.key, renewed.token) == (turn.key, turn.token)
        assert renewed.expires_at > turn.expires_at + timedelta(seconds=500)
        with pytest.raises(TurnTaken) as raised:
            await service.acquire_turn(KEY)
        assert raised.value.expires_at == renewed.expires_at
        sooner = await service.renew_turn(renewed, lease=1)
        assert sooner.expires_at < turn.expires_at

    async def test_a_turn_that_is_renewed_does_not_end(self, service: Any) -> None:
        await create(service)
        turn = await service.acquire_turn(KEY, lease=SHORT)
        await service.renew_turn(turn, lease=LONG)
        await end_of(turn)
        with pytest.raises(TurnTaken):
            await service.acquire_turn(KEY)

    async def test_one_that_has_ended_lasts_until_somebody_takes_it(self, service: Any) -> None:
        await create(service)
        turn = await service.acquire_turn(KEY, lease=SHORT)
        await end_of(turn)
        await service.append_event(KEY, Event("user", 1), turn=turn)
        await service.renew_turn(turn, lease=LONG)
        with pytest.raises(TurnTaken):
            await service.acquire_turn(KEY)
        await service.append_event(KEY, Event("user", 2), turn=turn)
        assert numbers_of(await read(service)) == [1, 2]

    async def test_one_that_was_lost_stays_lost(self, service: Any) -> None:
        await create(service)
        lost, now = await lose_turn(service)
        with pytest.raises(TurnLost, match="another run acquired it"):
            await service.renew_turn(lost)
        with pytest.raises(TurnTaken) as raised:
            await service.acquire_turn(KEY)
        assert raised.value.expires_at == now.expires_at
        await service.release_turn(now)
        with pytest.raises(TurnLost):
            await service.renew_turn(lost)


class TestRelease:
    async def test_it_is_free_at_once(self, service: Any) -> None:
        await create(service)
        turn = await service.acquire_turn(KEY, lease=LONG)
        assert await service.release_turn(turn) is None
        await service.acquire_turn(KEY, lease=LONG)

    async def test_again_or_renewed_it_is_the_same_turn(self, service: Any) -> None:
        await create(service)
        turn = await service.acquire_turn(KEY)
        renewed = await service.renew_turn(turn)
        await service.release_turn(turn)
        await service.release_turn(renewed)
        await service.acquire_turn(KEY)

    async def test_it_cannot_be_renewed(self, service: Any) -> None:
        await create(service)
        turn = await service.acquire_turn(KEY)
        await service.release_turn(turn)
        with pytest.raises(TurnLost):
            await service.renew_turn(turn)
        other = await service.acquire_turn(KEY)
        with pytest.raises(TurnLost):
            await service.renew_turn(turn)
        await service.renew_turn(other)

    async def test_one_that_was_lost_is_not_taken_from_its_holder(self, service: Any) -> None:
        await create(service)
        lost, now = await lose_turn(service)
        await service.release_turn(lost)
        with pytest.raises(TurnTaken):
            await service.acquire_turn(KEY)
        await service.append_event(KEY, Event("user", 1), turn=now)


class TestAppend:
    async def test_the_holder_may_append(self, service: Any) -> None:
        session = await create(service)
        turn = await service.acquire_turn(session)
        stored = await service.append_event(session, Event("user", 1), turn=turn)
        assert stored.content == 1
        renewed = await service.renew_turn(turn)
        await service.append_events(session, numbered(2, 3), turn=turn)
        await service.append_event(KEY, Event("user", 4, state_delta={"n": 4}), turn=renewed)
        found = await read(service)
        assert numbers_of(found) == [1, 2, 3, 4]
        assert found.state == {"n": 4}
        assert numbers_of(session) == [1, 2, 3]
        assert found.version > session.version

    async def test_who_lost_the_turn_may_not(self, service: Any) -> None:
        session = await create(service)
        lost, now = await lose_turn(service)
        before = await read(service)
        event = Event("user", 1, state_delta={"n": 1, "user:n": 1, "app:n": 1})
        with pytest.raises(TurnLost, match="another run acquired it"):
            await service.append_event(session, event, turn=lost)
        with pytest.raises(TurnLost):
            await service.append_events(session, [event, Event("user", 2)], turn=lost)
        assert await read(service) == before
        assert session == before
        await service.append_event(session, event, turn=now)
        assert (await read(service)).state == {"n": 1, "user:n": 1, "app:n": 1}

    async def test_also_after_the_other_has_given_it_back(self, service: Any) -> None:
        await create(service)
        lost, now = await lose_turn(service)
        await service.release_turn(now)
        with pytest.raises(TurnLost):
            await service.append_event(KEY, Event("user", 1), turn=lost)

    async def test_who_has_given_it_back_may_until_somebody_takes_it(self, service: Any) -> None:
        await create(service)
        turn = await service.acquire_turn(KEY)
        await service.release_turn(turn)
        await service.append_event(KEY, Event("user", 1), turn=turn)
        await service.acquire_turn(KEY)
        with pytest.raises(TurnLost):
            await service.append_event(KEY, Event("user", 2), turn=turn)
        assert numbers_of(await read(service)) == [1]

    async def test_who_has_none_is_not_hindered(self, service: Any) -> None:
        await create(service)
        turn = await service.acquire_turn(KEY)
        await service.append_event(KEY, Event("user", 1))
        await service.append_events(KEY, numbered(2, 3))
        version = (await read(service)).version
        await service.append_event(KEY, Event("user", 4), if_version=version)
        await service.append_event(KEY, Event("user", 5), turn=turn)
        assert numbers_of(await read(service)) == [1, 2, 3, 4, 5]

    async def test_what_was_stored_with_the_turn_may_be_repeated_without_it(
        self, service: Any
    ) -> None:
        session = await create(service)
        lost = await service.acquire_turn(KEY, lease=SHORT)
        event = Event("user", 1, state_delta={"n": 1})
        batch = numbered(2, 3)
        await service.append_event(KEY, event, turn=lost)
        await service.append_events(KEY, batch, turn=lost)
        now = await take_over(service)
        await service.append_event(KEY, Event("user", 4, state_delta={"n": 4}), turn=now)

        assert await service.append_event(session, event, turn=lost) == event
        assert await service.append_events(session, batch, turn=lost) == batch
        found = await read(service)
        assert numbers_of(found) == [1, 2, 3, 4]
        assert found.state == {"n": 4} == session.state
        assert found.version == session.version
        with pytest.raises(TurnLost):  # one of these events is new
            await service.append_events(KEY, [*batch, Event("user", 5)], turn=lost)
        assert numbers_of(await read(service)) == [1, 2, 3, 4]

    async def test_partial_events_that_are_not_kept_need_no_turn(
        self, make_service: ServiceFactory
    ) -> None:
        service = make_service(stream_ttl=None)
        session = await create(service)
        lost, _ = await lose_turn(service)
        event = Event("user", "Hel", partial=True)
        assert await service.append_event(KEY, event, turn=lost) == event
        assert await service.append_events(KEY, [event], turn=lost) == [event]
        assert await read(service) == session

    async def test_holders_in_a_row_lose_nothing_and_never_mix(self, service: Any) -> None:
        await create(service, state={"count": 0})

        async def write(writer: int) -> None:
            turn = await take_over(service)
            current = await read(service, event_num=0)
            for step in range(4):
                await service.append_event(KEY, Event("user", [writer, step]), turn=turn)
            count = {"count": current.state["count"] + 1}
            last = Event("user", [writer, 4], state_delta=count)
            await service.append_event(KEY, last, turn=turn)
            await service.release_turn(turn)

        results_of(await run_all(write(writer) for writer in range(8)))
        found = await read(service)
        contents = numbers_of(found)
        order = [writer for writer, _ in contents[::5]]
        assert sorted(order) == list(range(8))
        assert contents == [[writer, step] for writer in order for step in range(5)]
        assert found.state == {"count": 8}


class TestClockJumps:
    @pytest.mark.parametrize("renewed", [False, True])
    async def test_a_turn_taken_while_the_clock_was_ahead_is_free_when_it_is_right_again(
        self, make_service: ServiceFactory, advance_time: AdvanceTime, renewed: bool
    ) -> None:
        service = make_service()
        await create(service)
        turn = await service.acquire_turn(KEY, lease=2 * LONG if renewed else LONG)
        if renewed:
            turn = await service.renew_turn(turn, lease=LONG)
        advance_time(-2 * LONG)
        new = await service.acquire_turn(KEY, lease=LONG)
        assert new.token > turn.token
        with pytest.raises(TurnLost):
            await service.append_event(KEY, Event("user"), turn=turn)
        await service.append_event(KEY, Event("user"), turn=new)
        with pytest.raises(TurnTaken):
            await service.acquire_turn(KEY)

    async def test_clocks_of_two_servers_may_differ_a_little(
        self, make_service: ServiceFactory, advance_time: AdvanceTime
    ) -> None:
        service = make_service()
        await create(service)
        turn = await service.acquire_turn(KEY, lease=LONG)
        advance_time(-0.5)
        with pytest.raises(TurnTaken):
            await service.acquire_turn(KEY)
        await service.append_event(KEY, Event("user"), turn=turn)


class TestFree:
    async def test_the_holder_loses_the_turn_and_others_get_it(self, service: Any) -> None:
        session = await create(service)
        old = await service.acquire_turn(KEY, lease=LONG)
        await service.free_turn(session)
        with pytest.raises(TurnLost):
            await service.append_event(KEY, Event("user"), turn=old)
        with pytest.raises(TurnLost):
            await service.renew_turn(old)
        await service.free_turn(KEY)  # a free turn is fine
        new = await service.acquire_turn(KEY, lease=LONG)
        assert new.token > old.token
        await service.release_turn(old)
        with pytest.raises(TurnTaken):
            await service.acquire_turn(KEY)
        await service.append_event(KEY, Event("user", 1), turn=new)
        assert numbers_of(await read(service)) == [1]

    async def test_a_missing_session_and_bad_arguments(self, service: Any) -> None:
        with pytest.raises(SessionNotFound):
            await service.free_turn(KEY)
        with pytest.raises(InvalidArgument, match="session must be a Session or a SessionKey"):
            await service.free_turn("sid")


class TestSideEffects:
    async def test_a_turn_is_no_write_of_the_session(self, service: Any) -> None:
        await create(service, state={"n": 1})
        other = SessionKey(APP, USER, "other")
        await create(service, other)
        before = await read(service)
        turn = await service.acquire_turn(KEY)
        turn = await service.renew_turn(turn)
        assert await read(service) == before
        assert [session.id for session in await service.list_sessions(**OWNER)] == ["other", "sid"]
        await service.append_event(KEY, Event("user", 1), if_version=before.version)
        written = await read(service)
        await service.release_turn(turn)
        assert await read(service) == written

    async def test_it_survives_whatever_is_done_to_the_session(self, service: Any) -> None:
        await create(service, state={"n": 1})
        turn = await service.acquire_turn(KEY, lease=LONG)
        await service.append_events(KEY, numbered(1, 2))
        await service.pop_event(KEY)
        await service.clear_events(KEY)
        await service.update_session_state(KEY, {"turn_token": "mine", "turn_until_us": 0})
        await service.delete_session_state(KEY, "n")
        await service.get_or_create_session(**IDS)
        with pytest.raises(TurnTaken) as raised:
            await service.acquire_turn(KEY)
        assert raised.value.expires_at == turn.expires_at
        await service.append_event(KEY, Event("user", 3), turn=turn)
        found = await read(service)
        assert found.state == {"turn_token": "mine", "turn_until_us": 0}


class TestArguments:
    @pytest.mark.parametrize(
        ("lease", "complaint"),
        [
            (0, "lease must be above 0"),
            (-1, "lease must be above 0"),
            (0.0004, "lease must be at least a millisecond"),
            (float("nan"), "lease must be above 0"),
            (float("inf"), "lease must be above 0 and at most 100 years"),
            ("30", "lease must be a timedelta or seconds"),
            (None, "lease must be a timedelta or seconds"),
            (True, "lease must be a timedelta or seconds"),
        ],
    )
    async def test_a_bad_lease_is_refused(self, service: Any, lease: Any, complaint: str) -> None:
        await create(service)
        with pytest.raises(InvalidArgument, match=complaint):
            await service.acquire_turn(KEY, lease=lease)
        turn = await service.acquire_turn(KEY, lease=0.001)
        with pytest.raises(InvalidArgument, match=complaint):
            await service.renew_turn(turn, lease=lease)

    async def test_what_is_no_turn_or_no_session_is_refused(self, service: Any) -> None:
        await create(service)
        turn = await service.acquire_turn(KEY)
        for wrong in (None, KEY, turn.token, "turn"):
            with pytest.raises(InvalidArgument, match="turn must be a Turn"):
                await service.renew_turn(wrong)
            with pytest.raises(InvalidArgument, match="turn must be a Turn"):
                await service.release_turn(wrong)
        for wrong in (KEY, turn.token):
            with pytest.raises(InvalidArgument, match="turn must be a Turn"):
                await service.append_event(KEY, Event("user"), turn=wrong)
            with pytest.raises(InvalidArgument, match="turn must be a Turn"):
                await service.append_events(KEY, [Event("user")], turn=wrong)
        with pytest.raises(InvalidArgument, match="session must be a Session or a SessionKey"):
            await service.acquire_turn("sid")

    async def test_the_turn_of_another_session_is_refused(self, service: Any) -> None:
        other = SessionKey(APP, USER, "other")
        session = await create(service)
        await create(service, other)
        turn = await service.acquire_turn(other)
        same = msgspec.structs.replace(turn, key=KEY)
        with pytest.raises(InvalidArgument, match="turn belongs to another session"):
            await service.append_event(KEY, Event("user"), turn=turn)
        with pytest.raises(InvalidArgument, match="turn belongs to another session"):
            await service.append_events(KEY, [Event("user")], turn=turn)
        with pytest.raises(TurnLost):  # nobody has the turn here
            await service.append_event(KEY, Event("user"), turn=same)
        assert await read(service) == session

    async def test_a_turn_and_a_version_together_are_refused(self, service: Any) -> None:
        session = await create(service)
        turn = await service.acquire_turn(session)
        message = "if_version and turn cannot be given together"
        with pytest.raises(InvalidArgument, match=message):
            await service.append_event(session, Event("user"), if_version=1, turn=turn)
        with pytest.raises(InvalidArgument, match=message):
            await service.append_events(session, [Event("user")], if_version=1, turn=turn)
        assert await read(service) == session
