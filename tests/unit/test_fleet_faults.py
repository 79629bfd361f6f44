"""A fleet on a store that misbehaves: every planted fault is found, and named for what it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from sessionstore import Event, InMemorySessionService, Session, SessionKey
from sessionstore.cli.fleet import Fleet
from sessionstore.cli.workload import synthetic_conversations
from sessionstore.errors import BackendTimeout, BackendUnavailable


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
        self, session: Session | SessionKey, event: Event, *, if_version: int | None = None
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
                await super().append_event(session, event, if_version=if_version)
                raise BackendTimeout("planted", maybe_applied=True)
        return await super().append_event(session, event, if_version=if_version)

    async def get_session(self, *, session_id: str, **arguments: Any) -> Session | None:
        if self.fault == "cannot be read in full" and arguments["event_num"] is None:
            raise BackendUnavailable("planted")
        session = await super().get_session(session_id=session_id, **arguments)
        if session is None or not self._strikes(session_id):
            return session
        if self.fault == "forgets the session":
            return None
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
            ("counts twice", "version_mismatches"),
        ],
    )
    async def test_a_fault_is_found_at_the_end_and_in_between(self, fault: str, kind: str) -> None:
        async with fleet_after_run(fault) as fleet:
            assert getattr(fleet.discrepancies, kind) > 0
            assert fleet.discrepancies.read_mismatches > 0

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

    async def test_what_cannot_be_read_is_not_verified(self) -> None:
        async with fleet_after_run("cannot be read in full") as fleet:
            assert fleet.discrepancies.total == 0
            assert fleet.failures.num_failed == 1
            assert fleet.num_verified == 0
