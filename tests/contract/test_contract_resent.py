"""Calls that are sent again after a lost reply: nothing is lost, doubled or brought back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from support.events import numbered, numbers_of
from support.services import Awaited, ServiceFactory
from support.sessions import IDS, KEY, create, read

from sessionstore import BackendUnavailable, Event, SessionNotFound
from sessionstore.calls import Call
from sessionstore.observe import wrap_executor

AGE_US = 2_000_000  # how long ago the first attempt was sent, at most
LONG_AGO = datetime(2001, 2, 3, tzinfo=UTC)


def resent(call: Call[Any]) -> Call[Any]:
    """The Call as it is sent again after an attempt of unknown outcome."""
    if call.age_argument is None:
        return call
    args = list(call.args)
    args[call.age_argument] += b" %d" % AGE_US
    return msgspec.structs.replace(call, args=tuple(args))


class ResendingAsync:
    """Sends Calls again. `between` sees to what happens meanwhile, if the first attempt arrives."""

    def __init__(self, inner: Any, arrives: bool, between: Callable[[], Any] | None) -> None:
        self._inner, self._arrives, self._between = inner, arrives, between

    async def execute(self, call: Call[Any]) -> list[Any]:
        if call.age_argument is not None:
            if self._arrives:
                await self._inner.execute(call)
            if self._between is not None:
                await self._between()
        return await self._inner.execute(resent(call))  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        await self._inner.aclose()


def resending(service: Any, *, arrives: bool, between: Callable[[], Any] | None = None) -> Any:
    """A service whose calls are sent twice, and whose first attempts arrive, or do not."""
    found = copy.copy(service)
    wrap_executor(found, lambda inner: ResendingAsync(inner, arrives, between))
    return found


@pytest.fixture
def limited(make_service: ServiceFactory) -> Any:
    service = make_service(session_event_limit=3)
    if isinstance(service, Awaited):
        pytest.skip("both kinds of services send the same Calls")
    return service


@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("num_before", [0, 2, 3])
async def test_an_ordinary_append_is_stored_once(
    limited: Any, arrives: bool, num_before: int
) -> None:
    session = await create(limited)
    old = [Event("user", number, timestamp=LONG_AGO) for number in range(num_before)]
    await limited.append_events(session, old) if old else None
    event = Event("user", "new", state_delta={"n": 1})
    await resending(limited, arrives=arrives).append_event(session, event)
    stored = await read(limited)
    assert numbers_of(stored) == [*range(num_before), "new"][-3:]
    assert stored == session


@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
async def test_a_batch_is_stored_once(limited: Any, arrives: bool, size: int) -> None:
    session = await create(limited)
    batch = [Event("user", number, state_delta={"n": number}) for number in range(size)]
    append = resending(limited, arrives=arrives).append_events(session, batch)
    if arrives and size > 3:  # its first events were trimmed: it may have been another call
        with pytest.raises(BackendUnavailable) as caught:
            await append
        assert caught.value.maybe_applied
    else:
        await append
        assert session.version == (await read(limited)).version
    stored = await read(limited)
    assert numbers_of(stored) == list(range(size))[-3:]
    assert stored.state == {"n": size - 1}


@pytest.mark.parametrize("num_repeated", [1, 2, 3])
@pytest.mark.parametrize("are_recent", [False, True])
async def test_a_batch_that_was_not_stored_is_not_taken_for_one_that_was(
    limited: Any, num_repeated: int, are_recent: bool
) -> None:
    """Its other events were stored by an earlier call, and fill the log."""
    session = await create(limited)
    timestamp = datetime.now(UTC) if are_recent else LONG_AGO
    old = [Event("user", number, timestamp=timestamp) for number in range(3)]
    await limited.append_events(session, old)
    new = Event("user", "new", timestamp=timestamp, state_delta={"n": 1})
    service = resending(limited, arrives=False)
    append = service.append_events(session, [new, *old[:num_repeated]])
    if are_recent:  # the new one may have been stored and trimmed
        with pytest.raises(BackendUnavailable) as caught:
            await append
        assert caught.value.maybe_applied
    else:
        await append
    stored = await read(limited)
    assert ("new" in numbers_of(stored)) != are_recent
    assert stored.state == ({} if are_recent else {"n": 1})


REMOVALS: dict[str, Callable[[Any], Any]] = {
    "pop_event": lambda service: service.pop_event(KEY),
    "clear_events": lambda service: service.clear_events(KEY),
    "trim": lambda service: service.append_events(KEY, numbered(1, 2, 3)),
    "drop": lambda service: compact(service, "s", drop=True),
}


async def compact(service: Any, summary: str, **options: Any) -> Any:
    """Compact all events."""
    session = await read(service)
    upto = (await service.get_events(KEY)).last
    base = session.summary.upto if session.summary else None
    return await service.compact_session(
        KEY, upto=upto, summary=summary, if_summary=base, if_version=session.version, **options
    )


@pytest.mark.parametrize("name", REMOVALS)
@pytest.mark.parametrize("as_batch", [False, True])
async def test_an_event_that_was_removed_meanwhile_is_not_brought_back(
    limited: Any, name: str, as_batch: bool
) -> None:
    session = await create(limited)
    event = Event("user", "removed", state_delta={"n": 1})
    service = resending(limited, arrives=True, between=lambda: REMOVALS[name](limited))
    before = copy.deepcopy(session)
    append = service.append_events(session, [event]) if as_batch else None
    with pytest.raises(BackendUnavailable) as caught:
        await (append or service.append_event(session, event))
    assert caught.value.maybe_applied
    assert session == before
    assert "removed" not in numbers_of(await read(limited))


@pytest.mark.parametrize("arrives", [True, False])
async def test_a_condition_that_fails_on_a_repeat_leaves_the_outcome_open(
    limited: Any, arrives: bool
) -> None:
    session = await create(limited)
    turn = await limited.acquire_turn(session, lease=timedelta(milliseconds=1))
    version = session.version

    async def others_write() -> None:
        await limited.append_events(KEY, numbered(1, 2, 3))
        while True:
            try:
                await limited.acquire_turn(KEY)
            except Exception:
                continue
            return

    for condition in ({"if_version": version}, {"turn": turn}):
        service = resending(limited, arrives=arrives, between=others_write)
        with pytest.raises(BackendUnavailable) as caught:
            await service.append_event(session, Event("user", "mine"), **condition)
        assert caught.value.maybe_applied
        assert "mine" not in numbers_of(await read(limited))
        await limited.delete_session(**IDS)
        session = await create(limited)
        turn = await limited.acquire_turn(session, lease=timedelta(milliseconds=1))
        version = session.version


async def test_a_delete_spares_a_session_that_was_created_meanwhile(limited: Any) -> None:
    await create(limited)
    service = resending(limited, arrives=True, between=lambda: create(limited, state={"n": 2}))
    with pytest.raises(BackendUnavailable) as caught:
        await service.delete_session(**IDS)
    assert caught.value.maybe_applied
    assert (await read(limited)).state == {"n": 2}


async def test_a_delete_spares_a_session_that_was_restored_meanwhile(limited: Any) -> None:
    """Its creation time is that of long ago."""
    await create(limited)
    service = resending(
        limited,
        arrives=True,
        between=lambda: limited.restore_session(**IDS, created_at=LONG_AGO, state={"n": 2}),
    )
    with pytest.raises(BackendUnavailable) as caught:
        await service.delete_session(**IDS)
    assert caught.value.maybe_applied
    assert (await read(limited)).state == {"n": 2}


async def test_a_repeated_delete_finds_nothing(limited: Any) -> None:
    await create(limited)
    await resending(limited, arrives=True).delete_session(**IDS)
    assert await limited.get_session(**IDS) is None


@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("drop", [True, False])
async def test_a_repeated_compaction_is_done_once(limited: Any, arrives: bool, drop: bool) -> None:
    session = await create(limited)
    await limited.append_events(session, numbered(1, 2, 3))
    upto = (await limited.get_events(KEY)).last
    summary = await resending(limited, arrives=arrives).compact_session(
        session, upto=upto, summary="s", if_version=session.version, drop=drop
    )
    assert (summary.content, summary.num_events) == ("s", 0 if drop else 3)
    assert session == await read(limited)
    assert session.summary == summary


async def others_compact(service: Any) -> None:
    await service.append_events(KEY, numbered(4))
    await compact(service, "of others")


async def others_redact(service: Any) -> None:
    page = await service.get_events(KEY, limit=1)
    await service.delete_event(KEY, page.first, page.events[0])


@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("meanwhile", [others_compact, others_redact])
async def test_a_repeated_compaction_does_not_undo_what_others_did(
    limited: Any, meanwhile: Callable[[Any], Any], arrives: bool
) -> None:
    """If its first attempt arrived, its summary was replaced, or removed with a covered event."""
    session = await create(limited)
    await limited.append_events(session, numbered(1, 2, 3))
    upto = (await limited.get_events(KEY)).last
    service = resending(limited, arrives=arrives, between=lambda: meanwhile(limited))
    turn = await limited.acquire_turn(session)
    with pytest.raises(BackendUnavailable) as caught:
        await service.compact_session(KEY, upto=upto, summary="s", turn=turn)
    assert caught.value.maybe_applied
    found = await read(limited)
    expected = "of others" if meanwhile is others_compact else None
    assert (found.summary.content if found.summary else None) == expected


# -- handles ------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Any, Any], Any]] = {
    "append_event": lambda service, session: service.append_event(session, Event("user", 1)),
    "append_events": lambda service, session: service.append_events(session, numbered(1, 2)),
    "pop_event": lambda service, session: service.pop_event(session),
    "clear_events": lambda service, session: service.clear_events(session),
    "update_session_state": lambda service, session: service.update_session_state(
        session, {"n": 1}
    ),
    "delete_session_state": lambda service, session: service.delete_session_state(session, "n"),
    "acquire_turn": lambda service, session: service.acquire_turn(session),
}


@pytest.mark.parametrize("name", WRITES)
async def test_a_handle_writes_only_to_the_session_that_it_was_read_from(
    service: Any, name: str
) -> None:
    old = await create(service, state={"n": 0})
    await service.delete_session(**IDS)
    new = await create(service, state={"n": 5})
    await service.append_event(new, Event("user", "kept"))
    before = copy.deepcopy(old)
    with pytest.raises(SessionNotFound):
        await WRITES[name](service, old)
    assert old == before
    assert await read(service) == new
    await WRITES[name](service, await read(service))
