"""A process that is killed at each write of an operation: the state is that before or after it.

What it leaves can be completed by another process, and its leases free themselves.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killed_process import KEY, OPERATIONS, OWNER, POSITIONS
from support.servers import Server
from support.services import make_service
from support.waiting import poll_until

from sessionstore import Event, SessionExists

PROGRAM = Path(__file__).with_name("killed_process.py")
EVENTS = [
    Event("user" if number % 2 else "agent", number, id=f"e{number}", invocation_id=f"i{turn}")
    for number, turn in enumerate("001122", 1)
]


class Processes:
    """Runs operations in other processes."""

    def __init__(self) -> None:
        paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
        self._program = subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **paths},
        )

    def run(self, url: str, name: str, number: int, when: str) -> str:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(f"{url} {name} {number} {when}\n")
        self._program.stdin.flush()
        return self._program.stdout.readline().strip()

    def close(self) -> None:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.close()
        self._program.wait(30)
        self._program.stdout.close()


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    found = Processes()
    yield found
    found.close()


async def set_scene(service: Any, server: Server) -> None:
    """Two sessions, one of them with three turns, and state of the user."""
    server.empty()
    await service.update_user_state(**OWNER, state={"k": 3})
    await service.create_session(**OWNER, session_id="other", state={"k": 2})
    await service.restore_session(
        **OWNER, session_id="sid", events=EVENTS, positions=POSITIONS, state={"k": 1}
    )


async def look(service: Any) -> dict[str, Any]:
    """All that readers see of the user. A session that is not whole raises EventsMissing."""
    found: dict[str, Any] = {"user": await service.get_user_state(*OWNER.values())}
    for listed in await service.list_sessions(**OWNER):
        session = await service.get_session(**OWNER, session_id=listed.id)
        page = await service.get_events(session, limit=1000)
        summary = session.summary and (session.summary.content, session.summary.upto)
        events = [event.id for event in session.events]
        found[listed.id] = (session.state, events, page.positions, summary, session.forked_from)
    return found


async def complete(service: Any, name: str) -> None:
    """Run an operation again, in this process. The killed one may have done it."""
    if name == "compactor":  # it waits for the lease of the process that was killed
        await poll_until(lambda: is_compacted(service), "the end of the lease")
        return
    try:
        await OPERATIONS[name](service)
    except SessionExists:
        assert name == "fork_session"


async def is_compacted(service: Any) -> bool:
    await OPERATIONS["compactor"](service)
    session = await service.get_session(**OWNER, session_id=KEY.session_id)
    return session.summary is not None


@pytest.mark.parametrize("when", ["before", "sent"])
@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_killed_process_leaves_the_state_before_or_after(
    server: Server, processes: Processes, name: str, when: str
) -> None:
    service = make_service("async", server.url)
    await set_scene(service, server)
    before = await look(service)
    await OPERATIONS[name](service)
    after = await look(service)
    assert after != before
    for number in itertools.count(1):
        await set_scene(service, server)
        outcome = processes.run(server.url, name, number, when)
        found = await look(service)
        if outcome == "done":
            assert found == after
            assert number > 1
            break
        assert outcome == "killed"
        if name == "delete_user" and found != after:  # several steps: what is left is whole
            assert found == {key: before[key] for key in found}
        else:
            assert found in (before, after)
        await complete(service, name)
        assert await look(service) == after
    await service.aclose()
