"""Commands on the wire: only those of the ACL line, in the documented number of round trips."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from support.events import make_event
from support.operations import OPERATIONS, READ_COMMANDS, Operation, each_operation
from support.scene import prepare
from support.servers import Server, acl_user
from support.services import make_service

from sessionstore import BackendRejected, RedisSessionService

# The commands that a user of sessionstore needs, once connected.
ALLOWED = {rule[1:].upper() for rule in acl_user() if rule.startswith("+")}
AROUND_SCRIPTS = {"MULTI", "EXEC", "EVALSHA", "EVAL"}
ON_THE_WIRE = AROUND_SCRIPTS | READ_COMMANDS
IN_SCRIPTS = ALLOWED - AROUND_SCRIPTS
# Commands of redis-py when it connects.
ON_CONNECT = {"HELLO", "CLIENT", "SELECT", "AUTH", "PING"}

Seen = list[tuple[str, bool]]  # name of a command, and whether a script called it


class CommandRecorder:
    """Records every command that a server receives."""

    def __init__(self, server: Server) -> None:
        self._raw = server.raw
        self._monitor = server.raw.monitor()  # type: ignore[no-untyped-call]  # redis-py has no types

    def __enter__(self) -> CommandRecorder:
        self._monitor.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._monitor.__exit__(*error)

    def commands(self) -> Seen:
        """The commands since the last call, without those of the test's own client."""
        marker = uuid4().hex
        self._raw.echo(marker)
        seen: Seen = []
        while True:
            entry = self._monitor.next_command()
            name = entry["command"].split(" ")[0].upper()
            if marker in entry["command"]:
                return seen
            seen.append((name, entry["client_type"] == "lua"))


@pytest.fixture(params=["async", "sync"])
async def service(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Any]:
    found = make_service(request.param, server.url)
    yield found
    await found.aclose()


@each_operation()
async def test_commands_and_round_trips(server: Server, service: Any, operation: Operation) -> None:
    scene = await prepare(service, server, operation)
    await operation.run(service, scene)  # opens the connections and sends the scripts
    scene = await prepare(service, server, operation)
    with CommandRecorder(server) as recorder:
        recorder.commands()
        await operation.run(service, scene)
        seen = recorder.commands()
    sent = [name for name, is_lua in seen if not is_lua]
    assert set(sent) <= ON_THE_WIRE - {"EVAL"} | set(operation.rights.split())
    assert {name for name, is_lua in seen if is_lua} <= IN_SCRIPTS
    # A transaction is one round trip, and so is a command outside of one.
    trips, is_open = 0, False
    for name in sent:
        if name == "MULTI":
            assert not is_open
            is_open = True
        elif name == "EXEC":
            is_open = False
        if not is_open:
            trips += 1
    assert not is_open
    assert trips == operation.calls


async def test_a_list_without_expired_sessions_takes_two_round_trips(
    server: Server, service: Any
) -> None:
    for number in range(3):
        await service.create_session(app_name="a", user_id="u", session_id=f"s{number}")
    await service.list_sessions(app_name="a", user_id="u")
    with CommandRecorder(server) as recorder:
        recorder.commands()
        await service.list_sessions(app_name="a", user_id="u", event_num=5)
        sent = [name for name, _ in recorder.commands()]
    assert sent[0] == "ZRANGE"
    assert sent[1] == "MULTI"
    assert sent[-1] == "EXEC"
    assert sent.count("EXEC") == 1


async def test_commands_from_the_first_connect_on(server: Server, service: Any) -> None:
    """Nothing is looked up, registered or configured before the first call."""
    server.raw.script_flush()
    with CommandRecorder(server) as recorder:
        recorder.commands()
        await service.create_session(app_name="a", user_id="u", session_id="s")
        await service.get_session(app_name="a", user_id="u", session_id="s")
        seen = recorder.commands()
    sent = {name for name, is_lua in seen if not is_lua}
    assert sent <= ON_THE_WIRE | ON_CONNECT
    assert "EVAL" in sent


async def test_nothing_is_allowed_that_is_not_used(server: Server, service: Any) -> None:
    """The least privilege: every command of the ACL line is used."""
    used = set()
    for operation in OPERATIONS:
        scene = await prepare(service, server, operation)
        server.raw.script_flush()
        with CommandRecorder(server) as recorder:
            recorder.commands()
            await operation.run(service, scene)
            used |= {name for name, _ in recorder.commands()}
    used |= await _used_otherwise(server)
    server.raw.flushall()
    assert ALLOWED - used == set()


async def test_users_are_listed_only_with_the_right_to_scan(server: Server) -> None:
    command: Any = server.raw.execute_command
    command("ACL", "SETUSER", *acl_user())
    url = server.url.replace("unix://", "unix://agent:password@")
    async with RedisSessionService(url) as service:
        with pytest.raises(BackendRejected, match="list_users was refused by the server: NOPERM"):
            await service.list_users("a")
        command("ACL", "SETUSER", "agent", "+scan")
        assert await service.list_users("a") == []
    command("ACL", "DELUSER", "agent")


async def _used_otherwise(server: Server) -> set[str]:
    """Commands for a session without a TTL, and for one whose log is full."""
    service = RedisSessionService(server.url, session_event_limit=1)
    with CommandRecorder(server) as recorder:
        recorder.commands()
        ids: dict[str, Any] = {"app_name": "a", "user_id": "eternal", "session_id": "t"}
        session = await service.create_session(**ids)
        for name in ("e1", "e2"):
            await service.append_event(session, make_event(name))
        used = {name for name, _ in recorder.commands()}
    await service.aclose()
    return used
