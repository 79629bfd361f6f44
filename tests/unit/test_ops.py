"""Calls are pure data: equal arguments give equal Calls, and bad ones are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from typing import Any

import hiredis
import pytest
from support.calls import calls_of
from support.events import NOON
from support.operations import OPERATIONS, READ_COMMANDS, Operation, each_operation
from support.services import make_ops

from sessionstore import Event, InvalidArgument, SessionKey, Turn
from sessionstore.calls import Call, reply_error
from sessionstore.errors import (
    BackendRejected,
    BackendUnavailable,
    ScriptContractError,
    SessionExists,
    SessionNotFound,
    StaleVersion,
)
from sessionstore.ops import Ops
from sessionstore.replies import WriteResult
from sessionstore.tiers import Change, encode_change
from sessionstore.transport import wire

KEY = SessionKey("app", "user", "sid")
TURN = Turn(KEY, 3, NOON)


def change_of(ops: Ops, **state: Any) -> Change:
    return encode_change(ops.options.codec, KEY, state)


def prepared(ops: Ops, count: int) -> list[tuple[bytes, datetime, Change]]:
    data, _ = ops.options.codec.encode_event(Event("user", id="e", timestamp=NOON), "event", KEY)
    return [(data, NOON, change_of(ops))] * count


OPTIONS: list[dict[str, Any]] = [{}, {"session_ttl": 60, "app_state_ttl": 5, "user_state_ttl": 5}]
each_options = pytest.mark.parametrize("options", OPTIONS, ids=["without_ttl", "with_ttl"])


@each_options
@each_operation()
async def test_the_same_call_is_built_every_time(
    monkeypatch: pytest.MonkeyPatch, operation: Operation, options: dict[str, Any]
) -> None:
    """Given the same random ids."""
    monkeypatch.setattr(os, "urandom", bytes)  # what uuid4() reads
    first, second = [await calls_of(operation, **options) for _ in range(2)]
    assert len(first) == operation.calls
    for call, other in zip(first, second, strict=True):
        assert (call.name, call.script, call.keys, call.args, call.commands) == (
            other.name,
            other.script,
            other.keys,
            other.args,
            other.commands,
        )


@each_options
@each_operation()
async def test_a_call_is_data_that_does_not_change(
    operation: Operation, options: dict[str, Any]
) -> None:
    for call in await calls_of(operation, **options):
        assert isinstance(call.keys, tuple)
        assert isinstance(call.args, tuple)
        assert all(type(part) is bytes for part in (*call.keys, *call.args))
        assert all(type(arg) in (bytes, str, int) for command in call.commands for arg in command)
        with pytest.raises(AttributeError):
            call.keys = ()  # type: ignore[misc]  # it cannot be set


@each_options
@each_operation()
async def test_calls_declare_whether_they_write_and_may_be_repeated(
    operation: Operation, options: dict[str, Any]
) -> None:
    calls = await calls_of(operation, **options)
    assert all(call.idempotent for call in calls) == operation.idempotent
    # A list prunes expired sessions from the index. That is a write.
    writes = {call.name for call in calls if call.writes} - {"prune_index"}
    assert bool(writes) == (operation.kind != "read")


@each_options
@each_operation()
async def test_no_plain_command_writes(operation: Operation, options: dict[str, Any]) -> None:
    for call in await calls_of(operation, **options):
        names = {str(command[0]) for command in call.commands}
        assert names <= READ_COMMANDS | set(operation.rights.split())


@each_operation(tuple(each for each in OPERATIONS if each.kind == "read" and not each.marks))
async def test_a_read_that_refreshes_nothing_needs_no_script(operation: Operation) -> None:
    several: list[dict[str, Any]] = [{}, {"session_ttl": 60, "refresh_ttl_on_read": False}]
    for options in several:
        calls = [call for call in await calls_of(operation, **options) if not call.writes]
        assert [call.script for call in calls] == [None] * len(calls)
    calls = await calls_of(operation, session_ttl=60, user_state_ttl=60, app_state_ttl=60)
    [*_, call] = [call for call in calls if not call.writes]
    assert (call.script is not None) == bool(operation.refreshes)


def test_an_append_names_only_the_tiers_that_it_changes() -> None:
    ops = make_ops()
    for state, count in (({}, 3), ({"a": 1}, 3), ({"user:a": 1}, 4), ({"app:a": 1}, 5)):
        [(data, timestamp, _)] = prepared(ops, 1)
        change = change_of(ops, **state)
        assert len(ops.append_event(KEY, data, timestamp, change, None, None).keys) == count
        rows = [(data, timestamp, change), *prepared(ops, 2)]
        assert len(ops.append_events(KEY, rows, None, None).keys) == count


@each_options
@each_operation(tuple(each for each in OPERATIONS if each.keys))
async def test_no_call_names_an_app_tier_in_its_own_slot_beside_other_keys(
    operation: Operation, options: dict[str, Any]
) -> None:
    for call in await calls_of(operation, app_in_own_slot=True, **options):
        named = {*call.keys, *(command[1] for command in call.commands)}
        if b"appdata:{a}" in named:
            assert named == {b"appdata:{a}"}
            assert operation.uses("app")


@each_options
@each_operation()
async def test_a_call_of_several_commands_is_one_transaction(
    operation: Operation, options: dict[str, Any]
) -> None:
    for call in await calls_of(operation, **options):
        for form in ("EVALSHA", "EVAL"):
            reader = hiredis.Reader()
            reader.feed(wire.pack(call, form))
            names = []
            while (command := reader.gets()) is not False:
                names.append(command[0].decode())
            expected = [str(command[0]) for command in call.commands]
            if call.script is not None:
                expected.insert(0, "EVALSHA" if form == "EVALSHA" else "EVAL")
            if len(expected) > 1:
                expected = ["MULTI", *expected, "EXEC"]
            assert names == expected
            assert wire.reply_count(call, form) == len(names)


# -- refusals -----------------------------------------------------------------------------------

NO_COUNTS: list[Any] = [-1, True, "5", 5.0, None]
TOO_LARGE = 2**53 + 1  # scripts count in doubles


@pytest.mark.parametrize("value", [*NO_COUNTS[:-1], TOO_LARGE])
def test_a_bad_event_num_is_refused_by_name(value: Any) -> None:
    ops = make_ops()
    for build in (
        lambda: ops.get_session(KEY, value, None),
        lambda: ops.get_session(KEY, value, NOON),
        lambda: ops.get_or_create_session(KEY, "g", change_of(ops), value, None),
        lambda: ops.list_sessions("app", "user", ["sid"], value),
    ):
        with pytest.raises(InvalidArgument, match=r"^event_num\b"):
            build()


@pytest.mark.parametrize("value", [0, *NO_COUNTS, 10_001])
def test_a_bad_page_limit_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^limit\b"):
        make_ops().get_events(KEY, None, None, value)


@pytest.mark.parametrize("value", [*NO_COUNTS[:-1], TOO_LARGE])
def test_a_bad_cursor_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^after\b"):
        make_ops().get_events(KEY, value, None, 10)
    with pytest.raises(InvalidArgument, match=r"^before\b"):
        make_ops().get_events(KEY, None, value, 10)


@pytest.mark.parametrize("value", [*NO_COUNTS[:-1], TOO_LARGE])
def test_a_bad_version_is_refused_by_name(value: Any) -> None:
    ops = make_ops()
    for build in (
        lambda: ops.append_event(KEY, *prepared(ops, 1)[0], value, None),
        lambda: ops.append_events(KEY, prepared(ops, 1), value, None),
        lambda: ops.pop_event(KEY, value),
        lambda: ops.clear_events(KEY, value),
        lambda: ops.update_session_state(KEY, change_of(ops), value),
    ):
        with pytest.raises(InvalidArgument, match=r"^if_version\b"):
            build()


@pytest.mark.parametrize("value", ["", "x" * 257, "\ud800", None, 5, b"x", ["x"]])
def test_a_bad_id_is_refused_by_name(value: Any) -> None:
    ops = make_ops()
    for name, key in (
        ("app_name", SessionKey(value, "u", "s")),
        ("user_id", SessionKey("a", value, "s")),
        ("session_id", SessionKey("a", "u", value)),
    ):
        for build in (
            lambda key=key: ops.get_session(key, None, None),
            lambda key=key: ops.delete_session(key),
            lambda key=key: ops.append_events(key, prepared(ops, 1), None, None),
        ):
            with pytest.raises(InvalidArgument, match=rf"^{name}\b"):
                build()


def test_a_turn_goes_with_no_version_and_no_other_session() -> None:
    ops = make_ops()
    builders: list[Callable[[SessionKey, int | None], Call[Any]]] = [
        lambda key, version: ops.append_event(key, *prepared(ops, 1)[0], version, TURN),
        lambda key, version: ops.append_events(key, prepared(ops, 1), version, TURN),
    ]
    for build in builders:
        with pytest.raises(InvalidArgument, match=r"if_version and turn"):
            build(KEY, 5)
        with pytest.raises(InvalidArgument, match=r"^turn\b"):
            build(SessionKey("app", "user", "other"), None)


# -- replies ------------------------------------------------------------------------------------


def test_status_words_become_results_and_exceptions() -> None:
    ops = make_ops()
    append = ops.append_events(KEY, prepared(ops, 2), 3, None)
    written = append.decode([[b"OK", 4, 1_715_774_400_000_000, 1]])
    assert written == WriteResult(4, 1_715_774_400_000_000, 1)
    with pytest.raises(SessionNotFound, match=r"'sid'.*'user'.*'app'"):
        append.decode([[b"NOT_FOUND"]])
    with pytest.raises(StaleVersion) as caught:
        append.decode([[b"STALE", 7]])
    assert (caught.value.expected, caught.value.actual) == (3, 7)
    with pytest.raises(SessionExists):
        ops.create_session(KEY, "g", change_of(ops)).decode([[b"EXISTS"], {}, {}, {}])
    assert ops.pop_event(KEY, None).decode([[b"EMPTY"]]) is None
    assert ops.get_session(KEY, None, None).decode([{}, {}, {}, 0, []]) is None


def test_a_reply_that_no_header_declares_is_a_bug_of_ours() -> None:
    ops = make_ops()
    for call in (
        ops.append_events(KEY, prepared(ops, 2), None, None),
        ops.pop_event(KEY, None),
        ops.clear_events(KEY, None),
        ops.delete_session(KEY),
        ops.prune_index("app", "user", ["sid"]),
    ):
        for reply in ([b"WHAT"], [], [b"CREATED"] if call.name != "pop_event" else [b"X"], None):
            with pytest.raises(ScriptContractError):
                call.decode([reply])


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", BackendRejected),
        ("READONLY You can't write against a read only replica.", BackendRejected),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", BackendRejected),
        ("NOPERM User x has no permissions to run the 'evalsha' command", BackendRejected),
        ("MISCONF Redis is configured to save RDB snapshots", BackendRejected),
        ("NOREPLICAS Not enough good replicas to write.", BackendRejected),
        ("ERR value is not an integer or out of range", BackendRejected),
        ("NOAUTH Authentication required.", BackendUnavailable),
        ("WRONGPASS invalid username-password pair", BackendUnavailable),
        ("BUG that cannot happen", ScriptContractError),
        ("ERR BUG that cannot happen", ScriptContractError),
    ],
)
def test_an_error_reply_becomes_the_right_exception(message: str, kind: type[Exception]) -> None:
    call = make_ops().delete_session(KEY)
    error = reply_error(call, message)
    assert type(error) is kind
    assert "delete_session" in str(error)


def test_a_servers_error_names_the_first_key_of_a_script() -> None:
    ops = make_ops()
    assert "(OOM; first key: session:{app:user}:sid)" in str(
        reply_error(ops.delete_session(KEY), "OOM")
    )
    plain_read = ops.list_places("app", "user", 1, None)
    assert str(reply_error(plain_read, "WRONGTYPE")).endswith("(WRONGTYPE)")


def test_a_servers_error_does_not_quote_arguments() -> None:
    message = "ERR unknown command 'EVALSHA', with args beginning with: 'secret' 'secret'"
    call = make_ops().delete_session(KEY)
    assert "secret" not in str(reply_error(call, message))
