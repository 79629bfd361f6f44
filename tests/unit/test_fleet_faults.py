"""A fleet on a store or a Runner that misbehaves: every planted fault is found and named."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from sessionstore import Event, InMemorySessionService, Run, Runner, Session, SessionKey
from sessionstore.cli import fleet as fleet_module
from sessionstore.cli.fleet import Fleet
from sessionstore.cli.workload import synthetic_conversations
from sessionstore.errors import BackendTimeout, BackendUnavailable, LimitExceeded


class NoProgress:
    def start(self, description: str, total: int) -> None:
        pass

    def advance(self) -> None:
        pass


class FaultyService(InMemorySessionService):
    """Misbehaves in one way, at one session, at its third append and in what is read after it."""

    VICTIM = "session-000001"

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.num_appends = 0

    def _strikes(self, session_id: str) -> bool:
        return session_id == self.VICTIM and self.num_appends >= 3

    async def create_session(self, *, session_id: str | None = None, **arguments: Any) -> Session:
        if session_id == self.VICTIM and self.fault == "may lose the session":
            raise BackendTimeout("planted", maybe_applied=True)
        session = await super().create_session(session_id=session_id, **arguments)
        if session_id == self.VICTIM and self.fault == "may keep the session":
            raise BackendTimeout("planted", maybe_applied=True)
        return session

    async def append_event(
        self, session: Session | SessionKey, event: Event, **conditions: Any
    ) -> Event:
        is_victim = session.key.session_id == self.VICTIM
        self.num_appends += is_victim
        if is_victim and self.num_appends == 3:
            if self.fault == "refuses":
                raise BackendTimeout("planted")
            if self.fault == "loses":
                return event
            if self.fault == "may lose":
                raise BackendTimeout("planted", maybe_applied=True)
            if self.fault == "may keep":
                await super().append_event(session, event, **conditions)
                raise BackendTimeout("planted", maybe_applied=True)
            if self.fault.startswith("finds too large"):
                raise LimitExceeded("planted", limit=1, actual=2)
        if is_victim and self.fault == "finds too large, then fails" and self.num_appends > 3:
            raise BackendTimeout("planted too")
        return await super().append_event(session, event, **conditions)

    async def get_or_create_session(
        self, *, session_id: str | None = None, **arguments: Any
    ) -> Session:
        if self.fault == "forgets the session" and self._strikes(session_id or ""):
            await self.delete_session(
                app_name=arguments["app_name"],
                user_id=arguments["user_id"],
                session_id=session_id or "",
            )
        session = await super().get_or_create_session(session_id=session_id, **arguments)
        return self._tampered(session)

    async def get_session(self, *, session_id: str, **arguments: Any) -> Session | None:
        if self.fault == "cannot be read in full" and arguments["event_num"] is None:
            raise BackendUnavailable("planted")
        session = await super().get_session(session_id=session_id, **arguments)
        return session and self._tampered(session)

    def _tampered(self, session: Session) -> Session:
        if not self._strikes(session.id):
            return session
        if self.fault == "duplicates":
            session.events.append(session.events[-1])
        if self.fault == "reorders":
            session.events[-2:] = reversed(session.events[-2:])
        if self.fault == "alters":
            session.events[-1] = msgspec.structs.replace(session.events[-1], content="other")
        if self.fault == "invents":
            session.events.append(Event("user", "strange"))
        if self.fault == "changes state":
            session.state["num_tool_results"] += 1
        if self.fault == "counts twice":
            session.version += 1
        if self.fault == "leaks state":
            session.state["user:last_session-999999"] = 1
        return session

    async def list_sessions(self, **arguments: Any) -> list[Session]:
        sessions = await super().list_sessions(**arguments)
        if self.fault == "forgets to list":
            return [session for session in sessions if session.id != self.VICTIM]
        if self.fault == "lists out of order" and self.VICTIM in [s.id for s in sessions]:
            return sessions[::-1]
        if self.fault == "lists twice":
            return sessions + [session for session in sessions if session.id == self.VICTIM]
        return sessions


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
async def fleet_after_run(fault: str) -> AsyncIterator[Fleet]:
    conversations = synthetic_conversations(4, num_turns=3, sessions_per_user=2, seed=1)
    async with FaultyService(fault) as service:
        fleet = Fleet(service, conversations, num_agents=4, event_limit=None, progress=NoProgress())
        await fleet.run_agents()
        await fleet.verify()
        yield fleet
        await fleet.clean_up()


class TestPlantedFaults:
    async def test_without_a_fault_nothing_is_found(self) -> None:
        async with fleet_after_run("none") as fleet:
            assert fleet.discrepancies.total == 0
            assert fleet.failures.num_failed == 0

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
            assert getattr(fleet.discrepancies, kind) > 0
            assert fleet.discrepancies.read_mismatches > 0

    async def test_a_wrong_version_is_found_at_the_end(self) -> None:
        """In between, the append of the message has told the version when the agent sees it."""
        async with fleet_after_run("counts twice") as fleet:
            assert fleet.discrepancies.version_mismatches == fleet.discrepancies.total == 1

    @pytest.mark.parametrize("fault", ["forgets to list", "lists twice", "lists out of order"])
    async def test_a_wrong_list_is_found(self, fault: str) -> None:
        async with fleet_after_run(fault) as fleet:
            assert fleet.discrepancies.list_mismatches == fleet.discrepancies.total > 0

    @pytest.mark.parametrize("fault", ["refuses", "may lose", "may keep"])
    async def test_a_failed_append_is_a_failure_and_not_a_loss(self, fault: str) -> None:
        async with fleet_after_run(fault) as fleet:
            assert fleet.discrepancies.total == 0
            assert fleet.failures.num_failed == 1
            assert fleet.failures.reasons == ["BackendTimeout: planted"]
            assert fleet.num_sessions == fleet.num_verified == 4

    @pytest.mark.parametrize("fault", ["may lose the session", "may keep the session"])
    async def test_a_session_of_unknown_outcome_is_accepted(self, fault: str) -> None:
        async with fleet_after_run(fault) as fleet:
            assert fleet.discrepancies.total == 0
            assert fleet.failures.num_failed == 1
            assert fleet.num_sessions == 3
            assert fleet.num_verified == 4

    @pytest.mark.parametrize(
        ("fault", "reasons"),
        [
            ("finds too large", ["LimitExceeded: planted"]),
            (
                "finds too large, then fails",
                ["LimitExceeded: planted", "BackendTimeout: planted too"],
            ),
        ],
    )
    async def test_an_event_that_cannot_be_stored_is_a_failure(
        self, fault: str, reasons: list[str]
    ) -> None:
        """The Runner stores the refusal where it can, and that event is expected."""
        async with fleet_after_run(fault) as fleet:
            assert fleet.discrepancies.total == 0
            assert fleet.failures.reasons == reasons
            assert fleet.num_sessions == fleet.num_verified == 4

    async def test_what_cannot_be_read_is_not_verified(self) -> None:
        async with fleet_after_run("cannot be read in full") as fleet:
            assert fleet.discrepancies.total == 0
            assert fleet.failures.num_failed == 1
            assert fleet.num_verified == 0


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
        monkeypatch.setattr(fleet_module, "Runner", FaultyRunner)
        async with fleet_after_run("none") as fleet:
            assert fleet.discrepancies.total == 0
        monkeypatch.setattr(FaultyRunner, "fault", fault)
        async with fleet_after_run("none") as fleet:
            assert getattr(fleet.discrepancies, kind) > 0
