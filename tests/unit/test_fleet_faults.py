"""A fleet on a store or a Runner that misbehaves: every planted fault is found and named."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import msgspec
import pytest
from rich.progress import Progress

from sessionstore import Event, InMemorySessionService, Run, Runner, Session, Summary
from sessionstore.calls import AsyncExecutor, Call
from sessionstore.cli.fleet import agents as agents_module
from sessionstore.cli.fleet.agents import Fleet
from sessionstore.cli.fleet.synthetic import synthetic_conversations
from sessionstore.cli.fleet.verification import summarize
from sessionstore.errors import BackendTimeout, BackendUnavailable, LimitExceeded
from sessionstore.observe import wrap_executor
from sessionstore.replies import hash_items

VICTIM = "session-000001"


class FaultyExecutor:
    """Misbehaves in one way, at one session: at its third append and at later reads."""

    def __init__(self, executor: AsyncExecutor, service: InMemorySessionService, fault: str):
        self._executor = executor
        self._service = service
        self._fault = fault
        self._num_appends = 0

    async def execute(self, call: Call[Any]) -> list[Any]:
        names = [*call.keys, *(command[1] for command in call.commands)]
        is_victim = any(VICTIM in str(name) for name in names)
        if call.name == "create_session" and is_victim:
            return await self._create(call)
        if call.name == "append_event" and is_victim:
            self._num_appends += 1
            return await self._append(call)
        if call.name == "list_sessions" and len(call.commands) == 1:
            return [self._list(*await self._executor.execute(call))]
        if call.name in ("get_session", "get_or_create_session"):
            return await self._read(call, is_victim=is_victim)
        return await self._executor.execute(call)

    async def aclose(self) -> None:
        await self._executor.aclose()

    async def _create(self, call: Call[Any]) -> list[Any]:
        if self._fault == "may lose the session":
            raise BackendTimeout("planted", maybe_applied=True)
        replies = await self._executor.execute(call)
        if self._fault == "may keep the session":
            raise BackendTimeout("planted", maybe_applied=True)
        return replies

    async def _append(self, call: Call[Any]) -> list[Any]:
        if self._num_appends == 3:
            if self._fault == "refuses":
                raise BackendTimeout("planted")
            if self._fault == "loses":
                return [[b"OK", 5, 1, 0]]
            if self._fault == "may lose":
                raise BackendTimeout("planted", maybe_applied=True)
            if self._fault == "may keep":
                await self._executor.execute(call)
                raise BackendTimeout("planted", maybe_applied=True)
            if self._fault.startswith("finds too large"):
                raise LimitExceeded("planted", limit=1, actual=2)
        if self._num_appends > 3 and self._fault == "finds too large, then fails":
            raise BackendTimeout("planted too")
        return await self._executor.execute(call)

    def _list(self, places: list[Any]) -> list[Any]:
        if self._fault == "forgets to list":
            return [place for place in places if place[0] != VICTIM.encode()]
        if self._fault == "lists out of order" and VICTIM.encode() in dict(places):
            return places[::-1]
        return places

    async def _read(self, call: Call[Any], *, is_victim: bool) -> list[Any]:
        is_whole = call.commands[-1][2:] == (0, -1)
        if self._fault == "cannot be read in full" and is_whole:
            raise BackendUnavailable("planted")
        if not is_victim or self._num_appends < 3:
            return await self._executor.execute(call)
        if self._fault == "forgets the session" and call.script is not None:
            await self._service.delete_session(
                app_name="fleet", user_id="user-000000", session_id=VICTIM
            )
        replies = await self._executor.execute(call)
        *rest, events = replies
        count = [rest.pop()] if isinstance(rest[-1], int) else []
        *status, session, user, app = rest
        if self._fault == "forgets the session":
            return [*status, session, user, app, *count, events]
        session, user = dict(hash_items(session)), dict(hash_items(user))
        if self._fault == "duplicates":
            events.append(events[-1])
        if self._fault == "reorders":
            events[-2:] = reversed(events[-2:])
        if self._fault == "alters":
            last = msgspec.json.decode(events[-1], type=Event)
            events[-1] = msgspec.json.encode(msgspec.structs.replace(last, content="other"))
        if self._fault == "invents":
            events.append(msgspec.json.encode(Event("user", "strange")))
        if self._fault == "changes state":
            session[b".num_tool_results"] = b"99"
        if self._fault == "counts twice":
            session[b"version"] = b"%d" % (int(session[b"version"]) + 1)
        if self._fault == "leaks state":
            user[b"last_session-999999"] = b"1"
        return [*status, session, user, app, *count, events]


class FaultyRunner(Runner):
    """Misbehaves in one way, at the first event of an agent in each run."""

    fault = "none"

    def run(self, *arguments: Any, **options: Any) -> Run:
        self.num_appends = 0
        run = super().run(*arguments, **options)
        return Run(run.key, run.invocation_id, self._tampered(run))

    async def _tampered(self, run: Run) -> AsyncGenerator[Event, None]:
        number = 0
        async for event in run:
            number += 1
            if self.fault == "stops early" and number == 1:
                await run.aclose()
            if not (self.fault == "swallows" and number == 1):
                yield event
            if self.fault == "repeats" and number == 1:
                yield event

    async def _append(self, session: Session, held: Any, event: Event) -> Event:
        self.num_appends += 1
        if self.num_appends != 2:
            return await super()._append(session, held, event)
        if self.fault == "does not store":
            return event
        if self.fault == "alters":
            event = msgspec.structs.replace(event, metadata={"other": True})
        if self.fault == "leaves state out":
            event = msgspec.structs.replace(event, state_delta={})
        if self.fault == "stores twice":
            await super()._append(session, held, msgspec.structs.replace(event, metadata={"a": 1}))
        return await super()._append(session, held, event)


@asynccontextmanager
async def fleet_after_run(
    fault: str, *, fault_in_flat_out: str = "", num_turns: int = 3, **options: Any
) -> AsyncIterator[Fleet]:
    conversations = synthetic_conversations(4, num_turns=num_turns, sessions_per_user=2, seed=1)
    async with InMemorySessionService(session_event_limit=None) as service:
        wrap_executor(service, lambda executor: FaultyExecutor(executor, service, fault))
        fleet = Fleet(
            service=service,
            conversations=conversations,
            num_agents=4,
            think_seconds=0,
            event_limit=None,
            progress=Progress(disable=True),
            **options,
        )
        await fleet.run_agents()
        if fault_in_flat_out:
            wrap_executor(
                service, lambda executor: FaultyExecutor(executor, service, fault_in_flat_out)
            )
            assert await fleet.run_flat_out(0.01)
        await fleet.verify()
        yield fleet
        await fleet.clean_up()


def num_sessions(fleet: Fleet) -> int:
    return sum(ledger.is_created for ledger in fleet.ledgers)


class TestPlantedFaults:
    async def test_without_a_fault_nothing_is_found(self) -> None:
        async with fleet_after_run("none") as fleet:
            assert fleet.differences.total() == 0
            assert fleet.failures.total() == 0

    @pytest.mark.parametrize(
        ("fault", "kind"),
        [
            ("loses", "lost"),
            ("forgets the session", "lost"),
            ("duplicates", "duplicated"),
            ("reorders", "out_of_order"),
            ("alters", "altered"),
            ("invents", "unexpected"),
            ("changes state", "state_mismatches"),
            ("leaks state", "state_mismatches"),
        ],
    )
    async def test_a_fault_is_found_at_the_end_and_in_between(self, fault: str, kind: str) -> None:
        async with fleet_after_run(fault) as fleet:
            assert fleet.differences[kind] > 0
            assert fleet.differences["read_mismatches"] > 0

    async def test_a_wrong_version_is_found_at_the_end(self) -> None:
        """During the run, the append of the message corrects the version that the agent sees."""
        async with fleet_after_run("counts twice") as fleet:
            assert fleet.differences["version_mismatches"] == fleet.differences.total() == 1

    @pytest.mark.parametrize("fault", ["forgets to list", "lists out of order"])
    async def test_a_wrong_list_is_found(self, fault: str) -> None:
        async with fleet_after_run(fault) as fleet:
            assert fleet.differences["list_mismatches"] == fleet.differences.total() > 0

    @pytest.mark.parametrize("fault", ["refuses", "may lose", "may keep"])
    async def test_a_failed_append_is_a_failure_and_not_a_loss(self, fault: str) -> None:
        async with fleet_after_run(fault) as fleet:
            assert fleet.differences.total() == 0
            assert fleet.failures.total() == 1
            assert list(fleet.failures) == ["BackendTimeout: planted"]
            assert num_sessions(fleet) == fleet.num_verified == 4

    @pytest.mark.parametrize("fault", ["may lose the session", "may keep the session"])
    async def test_a_session_of_unknown_outcome_is_accepted(self, fault: str) -> None:
        async with fleet_after_run(fault) as fleet:
            assert fleet.differences.total() == 0
            assert fleet.failures.total() == 1
            assert num_sessions(fleet) == 3
            assert fleet.num_verified == 4

    @pytest.mark.parametrize(
        ("fault", "reasons"),
        [
            ("finds too large", ["LimitExceeded: planted"]),
            (
                "finds too large, then fails",
                [
                    "LimitExceeded: planted; the last event of the run could not be stored:"
                    " BackendTimeout: planted too"
                ],
            ),
        ],
    )
    async def test_an_event_that_cannot_be_stored_is_a_failure(
        self, fault: str, reasons: list[str]
    ) -> None:
        """The Runner stores the refusal as an event if it can. The check expects that event."""
        async with fleet_after_run(fault) as fleet:
            assert fleet.differences.total() == 0
            assert list(fleet.failures) == reasons
            assert num_sessions(fleet) == fleet.num_verified == 4

    async def test_what_cannot_be_read_is_not_verified(self) -> None:
        async with fleet_after_run("cannot be read in full") as fleet:
            assert fleet.differences.total() == 0
            assert fleet.failures.total() == 1
            assert fleet.num_verified == 0


class TestFlatOut:
    """The first phase runs without a fault. The fault strikes in the flat-out phase."""

    @pytest.mark.parametrize(
        ("fault", "num_lost", "num_failed"),
        [
            ("none", 0, 0),
            ("loses", 1, 0),
            ("refuses", 0, 1),
            ("may lose", 0, 1),
            ("may keep", 0, 1),
        ],
    )
    async def test_appends_are_verified_too(
        self, fault: str, num_lost: int, num_failed: int
    ) -> None:
        async with fleet_after_run("none", fault_in_flat_out=fault) as fleet:
            assert fleet.num_events() > 4 * 3 * 4
            assert fleet.differences["lost"] == num_lost
            assert fleet.differences.total() == num_lost  # versions are not known in this phase
            assert fleet.failures.total() == num_failed
            assert fleet.num_verified == 4


class TestPlantedFaultsOfTheRunner:
    @pytest.mark.parametrize(
        ("fault", "kind"),
        [
            ("does not store", "lost"),
            ("alters", "altered"),
            ("leaves state out", "altered"),
            ("stores twice", "duplicated"),
            ("stops early", "read_mismatches"),
            ("swallows", "read_mismatches"),
            ("repeats", "read_mismatches"),
        ],
    )
    async def test_a_fault_is_found(
        self, fault: str, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(agents_module, "Runner", FaultyRunner)
        async with fleet_after_run("none") as fleet:
            assert fleet.differences.total() == 0
        monkeypatch.setattr(FaultyRunner, "fault", fault)
        async with fleet_after_run("none") as fleet:
            assert fleet.differences[kind] > 0


class TestPlantedFaultsOfHistory:
    """Of compactions and rewinds."""

    HISTORY: ClassVar[dict[str, Any]] = {"num_turns": 8, "compacts": True, "rewinds": True}

    async def test_without_a_fault_nothing_is_found(self) -> None:
        async with fleet_after_run("none", **self.HISTORY) as fleet:
            assert fleet.differences.total() == fleet.failures.total() == 0
            assert fleet.num_covered > sum(ledger.num_dropped for ledger in fleet.ledgers) > 0
            assert fleet.num_rewound > 0

    async def test_a_summary_that_leaves_an_event_out_is_found(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def forgetful(previous: Summary | None, events: list[Event]) -> dict[str, Any]:
            content = await summarize(previous, events[1:])
            return {**content, "num_events": content["num_events"] + 1}

        monkeypatch.setattr(agents_module, "summarize", forgetful)
        async with fleet_after_run("none", **self.HISTORY) as fleet:
            assert fleet.differences["summary_mismatches"] > 0

    @pytest.mark.parametrize(
        ("shift", "kind"), [(10**12, "unexpected"), (-1, "lost"), (1, "unexpected")]
    )
    async def test_a_rewind_to_another_place_is_found(
        self, shift: int, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rewind_session = InMemorySessionService.rewind_session

        async def elsewhere(self: Any, session: Any, *, to: int, **fields: Any) -> int:
            if shift == -1:
                page = await self.get_events(session.key, before=to + 1, limit=1)
                to = page.positions[0] - 1
            return await rewind_session(self, session, to=to + max(shift, 0), **fields)

        monkeypatch.setattr(InMemorySessionService, "rewind_session", elsewhere)
        async with fleet_after_run("none", **self.HISTORY) as fleet:
            assert fleet.differences[kind] > 0
            assert fleet.differences["read_mismatches"] > 0
