"""The registry of operations: every public method of a service, in the cases that matter.

The suites that run with every operation read `OPERATIONS`: faults, wrong types, memory limits,
forgotten scripts, deadlines, commands and rights, slots that migrate, replicas, closed services,
headers of scripts. A test fails if a public method is missing here.

To add an operation, add one entry. `Operation` explains each field. The suites fail if a field is
wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from sessionstore import (
    Event,
    SessionExists,
    SessionKey,
    StaleVersion,
    Summary,
    TurnTaken,
    flows,
)
from sessionstore.calls import Flow
from sessionstore.ops import Ops

from .events import LONG_AGO, make_event
from .scene import E0_POSITION, E1, E2, E2_POSITION, Scene
from .watching import brief, watch_first

READ_COMMANDS = {"HGETALL", "HMGET", "ZCARD", "ZRANGE"}
"""The plain commands that operations send without a script."""

LOG = "session events index"
ALL = "session events index user app"


@dataclass(frozen=True)
class Operation:
    """One public method with arguments.

    Attributes:
        method: its name.
        run: calls it on a service, given the scene.
        keys: roles of the scene's keys that it reads or writes: of the "session", its "events",
            the "index" of the user's sessions, the state of "user" and "app", and the "stream" of
            fragments. If one of them has a
            wrong type, the call is refused; if any other key has, it succeeds.
        case: what is special about the arguments, if the method has several entries.
        kind: what it does to data. A server that is out of memory refuses only "write".
        refreshes: roles of the keys whose deadline it extends.
        calls: number of its Calls, each of them one round trip.
        reads_first: its first Call only reads.
        needs_turn: it needs the session's turn.
        needs_expired: it needs a session that has expired and is still in the index.
        new_key: it reads or writes a key that does not exist yet, so in a cluster it waits for the
            end of a migration.
        idempotent: all of its Calls may be sent again when their outcome is unknown.
        repeat: what the operation gives if it is repeated after a lost reply: the "same" result, an
            exception, or None for another result.
        counts_twice: such a repeat adds 1 to `version` again.
        marks: it reads the primary, and notes in the header that somebody reads.
        rights: commands that it needs beyond those of the ACL line of lua/README.md.
        is_internal: it is not a public method, but a flow that adapters or watchers use.
    """

    method: str
    run: Callable[[Any, Scene], Awaitable[Any]]
    keys: str
    case: str = ""
    kind: Literal["read", "write", "delete"] = "write"
    refreshes: str = ""
    calls: int = 1
    reads_first: bool = False
    needs_turn: bool = False
    needs_expired: bool = False
    new_key: bool = False
    idempotent: bool = True
    repeat: Literal["same"] | type[Exception] | None = "same"
    counts_twice: bool = False
    marks: bool = False
    rights: str = ""
    is_internal: bool = False

    @property
    def name(self) -> str:
        return f"{self.method} {self.case}".strip()

    def uses(self, role: str) -> bool:
        """Whether it reads or writes the key of a role."""
        return role in self.keys.split()


NEW_STATE = {"n": 1, "user:n": 2, "app:n": 3, "temp:n": 4}
PLAIN = make_event("new")
RICH = make_event("new", state_delta=NEW_STATE, state_removed=["k", "user:k", "app:k"])
PAIR = [make_event("x", state_removed=["k", "user:k"]), make_event("y", state_delta=NEW_STATE)]
COUNTING = make_event("count", state_increments={"k": 1, "user:k": 2, "user:n": 3})
LONG = [make_event(number) for number in range(501)]
FRAGMENTS = [Event("x", number, partial=True) for number in range(2)]
MANY = [make_event(f"b{number}", state_delta={"b": number}) for number in range(8)]


async def watch_contents(service: Any, key: SessionKey, count: int, **options: Any) -> list[Any]:
    """The contents of the first events that a watcher gets."""
    return brief(await watch_first(service, key, count, **options))


def _listen(ops: Ops, key: SessionKey) -> Flow[None]:
    yield ops.listen_session(key, lease_ms=1000)


OPERATIONS = (
    # -- sessions
    Operation(
        "create_session",
        lambda s, at: s.create_session(**at.new_ids, state=NEW_STATE),
        keys="index user app",
        refreshes="user app",
        new_key=True,
        repeat=SessionExists,
    ),
    Operation(
        "get_or_create_session",
        lambda s, at: s.get_or_create_session(**at.new_ids, state=NEW_STATE),
        keys="index user app",
        case="new",
        refreshes="user app",
        new_key=True,
    ),
    Operation(
        "get_or_create_session",
        lambda s, at: s.get_or_create_session(**at.ids),
        keys=ALL,
        case="existing",
        refreshes="session user app",
    ),
    Operation(
        "get_session",
        lambda s, at: s.get_session(**at.ids),
        keys="session events user app",
        kind="read",
        refreshes="session user app",
    ),
    Operation(
        "get_session",
        lambda s, at: s.get_session(**at.ids, event_num=2, event_time=LONG_AGO),
        keys="session events user app",
        case="event_num, event_time",
        kind="read",
        refreshes="session user app",
    ),
    Operation(
        "list_sessions",
        lambda s, at: s.list_sessions(**at.owner),
        keys="session index user app",
        kind="read",
        calls=2,
    ),
    Operation(
        "list_sessions",
        lambda s, at: s.list_sessions(**at.owner, event_num=2),
        keys=ALL,
        case="event_num",
        kind="read",
        calls=2,
    ),
    Operation(
        # Ids and sessions; the expired one is pruned.
        "list_sessions",
        lambda s, at: s.list_sessions(**at.owner, event_num=2),
        keys=ALL,
        case="expired",
        kind="read",
        calls=3,
        needs_expired=True,
    ),
    Operation("delete_session", lambda s, at: s.delete_session(**at.ids), keys=LOG, kind="delete"),
    Operation(
        "repair_session",
        lambda s, at: s.repair_session(at.session),
        keys=ALL,
        refreshes="session",
        counts_twice=True,
    ),
    # -- events
    Operation(
        "append_event",
        lambda s, at: s.append_event(at.session, PLAIN),
        keys=LOG,
        refreshes="session",
    ),
    Operation(
        "append_event",
        lambda s, at: s.append_event(at.session, make_event("new", state_delta={"user:k": 1})),
        keys=LOG + " user",
        case="user state",
        refreshes="session user",
    ),
    Operation(
        "append_event",
        lambda s, at: s.append_event(at.session, make_event("new", state_delta={"app:k": 1})),
        keys=ALL,
        case="app state",
        refreshes="session app",
    ),
    Operation(
        "append_event",
        lambda s, at: s.append_event(at.session, RICH),
        keys=ALL,
        case="all state",
        refreshes="session user app",
    ),
    Operation(
        "append_event",
        lambda s, at: s.append_event(at.session, COUNTING),
        keys=LOG + " user",
        case="increments",
        refreshes="session user",
    ),
    Operation(
        # A repeat. Others may have written since, so the Session is read again.
        "append_event",
        lambda s, at: s.append_event(at.session, E1),
        keys="session events user app",
        case="again",
        refreshes="session user app",
        calls=2,
    ),
    Operation(
        "append_event",
        lambda s, at: s.append_event(at.session, PLAIN, if_version=at.session.version),
        keys=LOG,
        case="if_version",
        refreshes="session",
    ),
    Operation(
        "append_event",
        lambda s, at: s.append_event(at.session, PLAIN, turn=at.turn),
        keys=LOG,
        case="turn",
        refreshes="session",
        needs_turn=True,
    ),
    Operation(
        "append_events",
        lambda s, at: s.append_events(at.session, MANY),
        keys=LOG,
        refreshes="session",
    ),
    Operation(
        "append_events",
        lambda s, at: s.append_events(at.session, PAIR),
        keys=ALL,
        case="all state",
        refreshes="session user app",
    ),
    Operation(
        "append_events",
        lambda s, at: s.append_events(at.session, [PLAIN, COUNTING]),
        keys=LOG + " user",
        case="increments",
        refreshes="session user",
    ),
    Operation(
        "append_event",
        lambda s, at: s.append_event(at.session, FRAGMENTS[0]),
        keys="session stream",
        case="partial",
        new_key=True,
    ),
    Operation(
        "append_events",
        lambda s, at: s.append_events(at.session, FRAGMENTS),
        keys="session stream",
        case="partial",
        new_key=True,
    ),
    Operation(
        "get_events",
        lambda s, at: s.get_events(at.session),
        keys="session events user app",
        kind="read",
        refreshes="session user app",
    ),
    Operation(
        "get_events",
        lambda s, at: s.get_events(at.key, limit=2),
        keys="session events user app",
        case="limit",
        kind="read",
        refreshes="session user app",
    ),
    Operation(
        "get_events",
        lambda s, at: s.get_events(at.key, limit=2, newest=True),
        keys="session events user app",
        case="newest",
        kind="read",
        refreshes="session user app",
    ),
    Operation(
        "pop_event",
        lambda s, at: s.pop_event(at.session),
        keys=LOG,
        kind="delete",
        refreshes="session",
        idempotent=False,
        repeat=None,
    ),
    Operation(
        "clear_events",
        lambda s, at: s.clear_events(at.session),
        keys=LOG,
        kind="delete",
        refreshes="session",
        idempotent=False,
        counts_twice=True,
    ),
    Operation(
        "clear_events",
        lambda s, at: s.clear_events(at.session, if_version=at.session.version),
        keys=LOG,
        case="if_version",
        kind="delete",
        refreshes="session",
        idempotent=False,
        repeat=StaleVersion,
    ),
    # -- history
    Operation(
        "compact_session",
        lambda s, at: s.compact_session(
            at.session, upto=E2_POSITION, summary="all", if_version=at.session.version
        ),
        keys=LOG,
        refreshes="session",
        calls=2,
        reads_first=True,
    ),
    Operation(
        "compact_session",
        lambda s, at: s.compact_session(
            at.key, upto=E2_POSITION, summary={"a": 1}, drop=True, if_version=at.session.version
        ),
        keys=LOG,
        case="drop",
        refreshes="session",
        calls=2,
        reads_first=True,
    ),
    Operation(
        "rewind_session",
        lambda s, at: s.rewind_session(at.key, to=E0_POSITION),
        keys=LOG,
        refreshes="session",
        idempotent=False,
        repeat=None,
    ),
    Operation(
        "rewind_session",
        lambda s, at: s.rewind_session(at.session, to=0, state={"k": 9}),
        keys=LOG,
        case="everything",
        refreshes="session",
        idempotent=False,
        repeat=None,
    ),
    Operation(
        "fork_session",
        lambda s, at: s.fork_session(at.session, session_id="new", upto=E0_POSITION),
        keys=ALL,
        new_key=True,
        repeat=SessionExists,
    ),
    Operation(
        "restore_session",
        lambda s, at: s.restore_session(
            **at.new_ids,
            events=PAIR,
            positions=[5, 9],
            state={"k": 9},
            updated_at=LONG_AGO,
            forked_from="x",
            summary=Summary("old", 5, LONG_AGO, 1),
        ),
        keys="index user app",
        new_key=True,
    ),
    Operation(
        # What is staged already; 500 events; the session with the last one.
        "restore_session",
        lambda s, at: s.restore_session(**at.new_ids, events=LONG, positions=range(1, 502)),
        keys="index user app",
        case="long",
        calls=3,
        reads_first=True,
        new_key=True,
    ),
    Operation(
        "replace_event",
        lambda s, at: s.replace_event(at.session, E2_POSITION, E2, make_event("redacted")),
        keys=LOG,
        refreshes="session",
        calls=2,
        reads_first=True,
        idempotent=False,
    ),
    Operation(
        "delete_event",
        lambda s, at: s.delete_event(at.session, E2_POSITION, E2),
        keys=LOG,
        refreshes="session",
        calls=2,
        reads_first=True,
        idempotent=False,
        repeat=None,
    ),
    Operation(
        "replace_newest",
        lambda s, at: s._run(
            flows.replace_newest(s._ops, at.key, at.session.version, 1, 2, [PLAIN])
        ),
        keys=LOG,
        refreshes="session",
        idempotent=False,
        repeat=StaleVersion,
        is_internal=True,
    ),
    # -- live
    Operation(
        # What is there already is one Call.
        "watch_events",
        lambda s, at: watch_contents(s, at.key, 1),
        keys="session events",
        kind="read",
        marks=True,
    ),
    Operation(
        "watch_events",
        lambda s, at: watch_contents(s, at.key, 1, partial=True),
        keys="session events stream",
        case="partial",
        kind="read",
        marks=True,
        new_key=True,
    ),
    Operation(
        "listen_session",
        lambda s, at: s._run(_listen(s._ops, at.key)),
        keys="session events",
        kind="read",
        marks=True,
        is_internal=True,
    ),
    # -- turns
    Operation(
        # If the reply is lost, the caller has the turn without its token, until the lease ends.
        "acquire_turn",
        lambda s, at: s.acquire_turn(at.session),
        keys=LOG,
        refreshes="session",
        repeat=TurnTaken,
    ),
    Operation(
        "renew_turn",
        lambda s, at: s.renew_turn(at.turn),
        keys=LOG,
        refreshes="session",
        needs_turn=True,
    ),
    Operation(
        "release_turn",
        lambda s, at: s.release_turn(at.turn),
        keys=LOG,
        refreshes="session",
        needs_turn=True,
    ),
    Operation(
        "free_turn",
        lambda s, at: s.free_turn(at.key),
        keys=LOG,
        refreshes="session",
        needs_turn=True,
    ),
    # -- state
    Operation(
        "update_session_state",
        lambda s, at: s.update_session_state(at.session, {"n": 1}),
        keys=LOG,
        refreshes="session",
        counts_twice=True,
    ),
    Operation(
        "update_session_state",
        lambda s, at: s.update_session_state(at.session, NEW_STATE),
        keys=ALL,
        case="all state",
        refreshes="session user app",
        counts_twice=True,
    ),
    Operation(
        "update_session_state",
        lambda s, at: s.update_session_state(at.session, {"n": 1}, if_version=at.session.version),
        keys=LOG,
        case="if_version",
        refreshes="session",
        idempotent=False,
        repeat=StaleVersion,
    ),
    Operation(
        "delete_session_state",
        lambda s, at: s.delete_session_state(at.session, "k", "missing"),
        keys=LOG,
        refreshes="session",
        counts_twice=True,
    ),
    Operation(
        "delete_session_state",
        lambda s, at: s.delete_session_state(at.session, "k", "user:k", "app:k"),
        keys=ALL,
        case="all state",
        refreshes="session user app",
        counts_twice=True,
    ),
    Operation(
        "update_session_state",
        lambda s, at: s.update_session_state(at.session, NEW_STATE, if_absent=True),
        keys=ALL,
        case="if_absent",
        refreshes="session user app",
        counts_twice=True,
    ),
    Operation(
        "increment_session_state",
        lambda s, at: s.increment_session_state(at.session, {"k": 1, "user:k": 2}),
        keys=LOG + " user",
        refreshes="session user",
        idempotent=False,
        repeat=None,
    ),
    Operation(
        "get_user_state",
        lambda s, at: s.get_user_state(**at.owner),
        keys="user",
        kind="read",
        refreshes="user",
    ),
    Operation(
        "update_user_state",
        lambda s, at: s.update_user_state(**at.owner, state={"n": 1}),
        keys="user",
        refreshes="user",
    ),
    Operation(
        "delete_user_state",
        lambda s, at: s.delete_user_state(*at.owner.values(), "k", "missing"),
        keys="user",
        refreshes="user",
    ),
    Operation(
        "update_user_state",
        lambda s, at: s.update_user_state(**at.owner, state={"n": 1, "k": 9}, if_absent=True),
        keys="user",
        case="if_absent",
        refreshes="user",
    ),
    Operation(
        "increment_user_state",
        lambda s, at: s.increment_user_state(**at.owner, increments={"k": 1, "n": 1}),
        keys="user",
        refreshes="user",
        idempotent=False,
        repeat=None,
    ),
    Operation(
        "get_app_state",
        lambda s, at: s.get_app_state(at.app),
        keys="app",
        kind="read",
        refreshes="app",
    ),
    Operation(
        "update_app_state",
        lambda s, at: s.update_app_state(at.app, {"n": 1}),
        keys="app",
        refreshes="app",
    ),
    Operation(
        "delete_app_state",
        lambda s, at: s.delete_app_state(at.app, "k", "missing"),
        keys="app",
        refreshes="app",
    ),
    Operation(
        "update_app_state",
        lambda s, at: s.update_app_state(at.app, {"n": 1, "k": 9}, if_absent=True),
        keys="app",
        case="if_absent",
        refreshes="app",
    ),
    Operation(
        "increment_app_state",
        lambda s, at: s.increment_app_state(at.app, {"k": 1, "n": 1}),
        keys="app",
        refreshes="app",
        idempotent=False,
        repeat=None,
    ),
    Operation(
        "count_sessions",
        lambda s, at: s.count_sessions(**at.owner),
        keys="index",
        kind="read",
        calls=2,
        needs_expired=True,
    ),
    # -- users
    Operation(
        # The time; ids; their sessions; the state.
        "delete_user",
        lambda s, at: s.delete_user(**at.owner),
        keys=LOG + " user",
        kind="delete",
        calls=4,
        new_key=True,
    ),
    Operation("ping", lambda s, _: s.ping(), keys="", kind="read", rights="HELLO"),
    Operation(
        "list_users",
        lambda s, at: s.list_users(at.app),
        keys="",
        kind="read",
        rights="SCAN",
    ),
)


def each_operation(operations: tuple[Operation, ...] = OPERATIONS) -> pytest.MarkDecorator:
    """Run a test with each operation, as its argument `operation`."""
    return pytest.mark.parametrize("operation", operations, ids=lambda operation: operation.name)
