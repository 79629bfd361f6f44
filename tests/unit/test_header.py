"""The headers of the Lua files match their bodies and what Python sends."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, get_args

import hiredis
import pytest
from lua_checks import check_fragment, check_script
from lua_header import KEY_PATTERNS, TailReader, check_call, parse_header
from support.calls import calls_of, sent_by
from support.events import NOON
from support.operations import OPERATIONS
from support.services import make_ops

from sessionstore import calls
from sessionstore.calls import Call, decode_replies
from sessionstore.encryption import KeyRing
from sessionstore.errors import ScriptContractError, SessionStoreError
from sessionstore.model import Event, SessionKey, Turn
from sessionstore.ops import LeaseName, Ops
from sessionstore.scripts import SCRIPTS, lua_directory
from sessionstore.tiers import Change, encode_change
from sessionstore.transport import wire

LUA = lua_directory()
TEXTS = {path.stem: path.read_text("utf-8") for path in LUA.glob("*.lua")}
FRAGMENTS = {path.stem: path.read_text("utf-8") for path in (LUA / "lib").glob("*.lua")}
HEADERS = {name: parse_header(name, text)[0] for name, text in TEXTS.items()}

KEY = SessionKey("app", "user", "sid")

# -- the files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_script(name: str) -> None:
    assert check_script(name, TEXTS[name], FRAGMENTS) == []


@pytest.mark.parametrize("name", sorted(FRAGMENTS))
def test_fragment(name: str) -> None:
    assert check_fragment(name, FRAGMENTS[name], FRAGMENTS) == []


def test_every_file_is_a_script_or_a_fragment_that_a_script_includes() -> None:
    assert set(TEXTS) == set(SCRIPTS)
    assert not list(LUA.glob("lib/*/*"))
    for name in FRAGMENTS:
        needle = f"local function {name}(".encode()
        assert any(needle in script.text for script in SCRIPTS.values())


def test_scripts_stay_small() -> None:
    for name, text in (TEXTS | FRAGMENTS).items():
        limit = 218 if name == "append_event" else 140  # append_event inlines its fragments
        assert len(text.splitlines()) <= limit, name


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_every_declared_word_is_understood(name: str) -> None:
    for word, fields in HEADERS[name].replies.items():
        try:
            values = [b"x" if field in ("key", "field", "data_key") else 1 for field in fields]
            calls.status([word.encode(), *values], KEY)
        except ScriptContractError:
            pytest.fail(f"{word} is not understood")
        except SessionStoreError:
            pass


def test_an_undeclared_word_is_an_error() -> None:
    for reply in ([b"WHAT"], [], b"OK", None, [None], [5]):
        with pytest.raises(ScriptContractError):
            calls.status(reply, KEY)


WRONG: list[Any] = [None, b"x", b"\xff", 10**30, -(10**30), [], [None], {}, 1.5]


async def test_replies_of_wrong_types_raise_errors_of_ours() -> None:
    """As a server behind a faulty proxy might send, or another release."""
    num_tried = 0
    for name, call in await built_calls({"session_ttl": 60}):
        if call.script is None:
            continue
        for word, fields in HEADERS[call.script.name].replies.items():
            right: list[Any] = [
                b"x" if field in ("key", "field", "data_key") else 1 for field in fields
            ]
            wrong = [right[:-1], [*right, 1]] if right else []
            for at in range(len(right)):
                wrong += [[*right[:at], value, *right[at + 1 :]] for value in WRONG]
            for values in wrong:
                num_tried += 1
                try:
                    decode_replies(call, [[word.encode(), *values], *[()] * len(call.commands)])
                except SessionStoreError:
                    pass
                except Exception as error:
                    pytest.fail(f"{name}: {word} {values} raised {error!r}")
    assert num_tried > 1000


def test_every_assembled_script_begins_with_its_only_shebang() -> None:
    for script in SCRIPTS.values():
        assert script.text.startswith(b"#!lua")
        assert script.text.count(b"#!lua") == 1


# -- what Python sends --------------------------------------------------------------------------


def read_delta(args: Sequence[Any], at: int) -> int:
    """Index after a delta, as write_delta reads it."""
    removed = at + 1 + 2 * int(args[at])
    return removed + 1 + int(args[removed])


def read_tiers(keys: Sequence[bytes], args: Sequence[Any], at: int = 0) -> int:
    """Index after a state change, as write_tiers reads it."""
    at = read_delta(args, at)
    for _ in keys[3:]:
        assert int(args[at]) >= 0  # a TTL
        at = read_delta(args, at + 1)
    return at


def read_increments(args: Sequence[Any], at: int) -> int:
    """Index after the increments of a change, as fold_changes reads them."""
    after = at + 1 + 3 * int(args[at])
    assert all(int(tier) in (1, 2, 3) for tier in args[at + 1 : after : 3])
    return after


def read_change(keys: Sequence[bytes], args: Sequence[Any], at: int = 0) -> int:
    """Index after a state change, as fold_changes reads it."""
    return read_tiers(keys, args, read_increments(args, at))


def read_events(keys: Sequence[bytes], args: Sequence[Any]) -> int:
    at = 0
    while at < len(args):
        data, timestamp_us, size = args[at : at + 3]
        assert data[:1] >= b"\x20" or data[:1] in (b"\x01", b"\x03")
        assert int(timestamp_us) > 0
        behind = at + 3 + int(size)
        if int(size):
            assert read_change(keys, args, at + 3) == behind
        at = behind
    return at


def read_members(keys: Sequence[bytes], _: Sequence[Any]) -> int:
    return len(keys) - 1


def read_commands(keys: Sequence[bytes], args: Sequence[Any]) -> int:
    at = 0
    for _ in keys:
        at += 2 + int(args[at])
    return at


def read_state(_: Sequence[bytes], args: Sequence[Any]) -> int:
    return 1 + 2 * int(args[0]) if args else 0


def read_fields(_: Sequence[bytes], args: Sequence[Any]) -> int:
    """Index after what change_fields reads."""
    at = 1 + 2 * int(args[0])
    return read_delta(args, at + 1 + 2 * int(args[at]))


def read_restored(_: Sequence[bytes], args: Sequence[Any]) -> int:
    """Index after what restore_session reads."""
    at = read_delta(args, 0)
    positions = [int(position) for position in args[at::2]]
    assert positions == sorted(set(positions))
    return at + 2 * len(positions)


def read_resealed(_: Sequence[bytes], args: Sequence[Any]) -> int:
    """Index after what reseal_values reads."""
    return len(args) // 3 * 3


TAILS: dict[str, TailReader] = {
    "append_event": lambda keys, args: read_change(keys, args) if args else 0,
    "append_events": read_events,
    "change_fields": read_fields,
    "check_session": lambda _, args: len(args),
    "replace_newest": lambda _, args: len(args) // 2 * 2,
    "create_session": read_tiers,
    "reseal_values": read_resealed,
    "undo_data_key": lambda _, args: len(args) // 2 * 2,
    "delete_sessions": lambda keys, _: (len(keys) - 2) // 2,
    "fork_session": read_state,
    "get_or_create_session": read_tiers,
    "prune_index": read_members,
    "restore_session": read_restored,
    "rewind_session": read_state,
    "run_reads": read_commands,
    "stage_events": lambda _, args: len(args) // 2 * 2,
    "update_session_state": read_change,
    "update_tier_state": lambda _, args: read_delta(args, read_increments(args, 0)),
}

STATES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"a": 1}, []),
    ({}, ["a"]),
    ({"temp:a": 1}, []),
    ({"a": 1, "b": b"raw", "user:c": [1]}, ["d", "user:e"]),
    ({"app:a": 1}, ["x"]),
    ({"user:a": 1, "app:b": 2, "c": 3, "temp:d": 4}, ["e", "user:f", "app:g", "temp:h"]),
]


def changes(ops: Ops, tier: Any = "session") -> Iterator[Change]:
    for state, removed in STATES:
        if tier != "session":
            prefixes = ("app:", "user:", "temp:")
            state = {key: state[key] for key in state if not key.startswith(prefixes)}
            removed = [key for key in removed if not key.startswith(prefixes)]
        yield encode_change(ops.options.codec, KEY, state, removed, tier=tier)


def prepared(ops: Ops, *numbers: int) -> list[tuple[bytes, datetime, Change]]:
    found = list(changes(ops))
    return [
        (ops.options.codec.encode_event(Event("a", number), "event", KEY)[0], NOON, found[number])
        for number in numbers
    ]


CONDITIONS: list[tuple[int | None, Turn | None]] = [
    (None, None),
    (7, None),
    (None, Turn(KEY, 3, NOON)),
]

# Shapes of arguments that the registry of operations lacks, and builders that it does not use.
SHAPES: dict[str, Callable[[Ops], list[Call[Any]]]] = {
    "create_session": lambda ops: [ops.create_session(KEY, "g", one) for one in changes(ops)],
    "get_or_create_session": lambda ops: [
        ops.get_or_create_session(KEY, "g", one, event_num, event_time)
        for one in changes(ops)
        for event_num in (None, 0, 5)
        for event_time in (None, NOON)
    ],
    "check_session": lambda ops: [
        ops.check_session(KEY, *condition, events)
        for condition in CONDITIONS
        for events in ([], [b"e"], [b"e", b"f"])
    ],
    "get_session": lambda ops: [
        ops.get_session(KEY, event_num, event_time)
        for event_num in (None, 0, 5)
        for event_time in (None, NOON)
    ],
    "get_events": lambda ops: [
        ops.get_events(KEY, after, before, 10) for after in (None, 5) for before in (None, 9)
    ],
    "list_sessions": lambda ops: [
        ops.list_sessions("app", "user", ["a", "b"], event_num) for event_num in (0, 5)
    ],
    "list_primaries": lambda ops: [ops.list_primaries()],
    "list_users": lambda ops: [ops.list_users("app", None, 0), ops.list_users("app", 7, 42)],
    "prune_index": lambda ops: [ops.prune_index("app", "user", ["a", "b"])],
    "append_event": lambda ops: [
        ops.append_event(KEY, *row, *condition)
        for row in prepared(ops, *range(len(STATES)))
        for condition in CONDITIONS
    ],
    "append_events": lambda ops: [
        ops.append_events(KEY, prepared(ops, *numbers), *condition)
        for numbers in ([0], [1], [4], [5], [6], [0, 1, 2, 3, 4, 5, 6], [0] * 500)
        for condition in CONDITIONS
    ],
    "pop_event": lambda ops: [ops.pop_event(KEY, None), ops.pop_event(KEY, 7)],
    "replace_newest": lambda ops: [
        ops.replace_newest(KEY, 7, 1, 3, [row[:2] for row in prepared(ops, *numbers)])
        for numbers in ([], [0], [0] * 500)
    ],
    "clear_events": lambda ops: [ops.clear_events(KEY, None), ops.clear_events(KEY, 7)],
    "update_session_state": lambda ops: [
        ops.update_session_state(KEY, one, if_version)
        for one in changes(ops)
        for if_version in (None, 7)
    ],
    "change_fields": lambda ops: [
        ops.change_fields(KEY, compared, extended, one.session)
        for compared in ([], [(b".a", None), (b".b", b"value")])
        for extended in ([], [(b".c", b"entry")])
        for one in changes(ops)
    ],
    "read_fields": lambda ops: [ops.read_fields(KEY, [b".a", b".b"])],
    "read_all_fields": lambda ops: [ops.read_all_fields(KEY)],
    "read_head": lambda ops: [ops.read_head(KEY)],
    "read_range": lambda ops: [ops.read_range(KEY, 1, 9)],
    "acquire_turn": lambda ops: [ops.acquire_turn(KEY, "holder", 30_000, name="compactor")],
    "renew_turn": lambda ops: [
        ops.renew_turn(Turn(KEY, 3, NOON), lease_ms, name=name)
        for lease_ms in (0, 30_000)
        for name in get_args(LeaseName)
    ],
    "get_app_state": lambda ops: [
        ops.get_app_state("app"),
        ops.get_app_state("app", touch=False),
    ],
    "count_events": lambda ops: [ops.count_events("app", "user", ["a", "b"])],
    "list_app_state": lambda ops: [ops.list_app_state("app")],
    "touch_app_tier": lambda ops: [call for call in [ops.touch_app_tier("app")] if call],
    "update_user_state": lambda ops: [
        ops.update_user_state("app", "user", one) for one in changes(ops, "user")
    ],
    "reseal_values": lambda ops: [
        ops.reseal_values(b"session:{app:user}:sid", b"events:{app:user}:sid", fields, events)
        for fields in ([], [(b".a", b"old", b"new")])
        for events in ([], [(5, b"old", b"new")])
    ],
    "set_data_key": lambda ops: [ops.set_data_key(KEY, "~new", old) for old in ("", "~old")],
    "undo_data_key": lambda ops: [ops.undo_data_key("app", "user", [b"a", b"value"])],
    "update_app_state": lambda ops: [
        ops.update_app_state("app", one) for one in changes(ops, "app")
    ],
}

OPTIONS: list[dict[str, Any]] = [
    {},
    {"encryption": KeyRing({"a": bytes(64)}), "has_key_store": True},
    {"session_ttl": 60},
    {"user_state_ttl": timedelta(days=1)},
    {"session_ttl": 0.5, "user_state_ttl": 2, "app_state_ttl": 3},
    {"session_ttl": 60, "refresh_ttl_on_read": False},
    {"session_event_limit": None},
    {"partition_by": "app", "session_event_limit": 1},
    {"app_in_own_slot": True, "session_ttl": 60, "user_state_ttl": 60, "app_state_ttl": 60},
    {"app_in_own_slot": True},
]


async def built_calls(options: dict[str, Any]) -> list[tuple[str, Call[Any]]]:
    """Calls of all operations and shapes, each with the name of its operation or builder."""
    found = [
        (operation.name, call)
        for operation in OPERATIONS
        # In memory there are no primaries, which `list_users` scans in a cluster.
        if operation.keys or not options.get("app_in_own_slot")
        for call in await calls_of(operation, **options)
    ]
    ops, owner = make_ops(**options), ("app", "user")
    if (keys := ops.data_keys) is not None:
        calls: list[Call[Any]] = [
            keys.use(owner),
            keys.find(owner),
            keys.retire(owner, "t"),
            keys.delete(owner, "t"),
        ]
        found += [(call.name, call) for call in calls]
        ops = ops.bound_to(keys.make(owner))
    return found + [(name, call) for name, build in SHAPES.items() for call in build(ops)]


async def test_every_builder_is_tried() -> None:
    public = {name for name, _ in inspect.getmembers(Ops, inspect.isfunction) if name[0] != "_"}
    tried = {name for operation in OPERATIONS for name in (await sent_by(operation)).builders}
    assert public == tried | set(SHAPES) | {"bound_to"}


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
async def test_builders_send_what_the_headers_declare(options: dict[str, Any]) -> None:
    for name, call in await built_calls(options):
        if call.script is None:
            assert (call.keys, call.args) == ((), ())
            assert call.commands
            continue
        header = HEADERS[call.script.name]
        problems = check_call(header, call.keys, call.args, TAILS.get(call.script.name))
        assert problems == [], (name, call.args)


def commands_on_the_wire(payload: bytes) -> Iterator[list[bytes]]:
    reader = hiredis.Reader()
    reader.feed(payload)
    while (command := reader.gets()) is not False:
        yield command


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
async def test_the_wire_carries_what_the_headers_declare(options: dict[str, Any]) -> None:
    """Transports build the commands of a Call in several forms, and send scripts of their own."""
    by_source = {script.text: name for name, script in SCRIPTS.items()}
    by_source |= {script.sha: name for name, script in SCRIPTS.items()}
    for _, call in await built_calls(options):
        for form in get_args(wire.Form):
            if form == "WITHOUT_MULTI" and (call.writes or call.slot is not None):
                continue
            for command, *rest in commands_on_the_wire(wire.pack(call, form)):
                if command not in (b"EVAL", b"EVALSHA"):
                    continue
                source, num_keys, *arguments = rest
                name = by_source[source]
                keys, args = arguments[: int(num_keys)], arguments[int(num_keys) :]
                read_tail = read_events_on_wire if name == "append_events" else TAILS.get(name)
                assert check_call(HEADERS[name], keys, args, read_tail) == []


def read_events_on_wire(_: Sequence[bytes], args: Sequence[Any]) -> int:
    at = 0
    while at < len(args):
        at += 3 + int(args[at + 2])
    return at


async def test_every_script_is_sent_by_something() -> None:
    sent = {
        call.script.name
        for options in OPTIONS
        for _, call in await built_calls(options)
        if call.script is not None
    }
    assert sent | {"run_reads"} == set(SCRIPTS)


def test_scripts_take_the_keys_of_a_session_in_one_order() -> None:
    for header in HEADERS.values():
        names = [slot.name for slot in header.fixed("KEYS") if slot.name in KEY_PATTERNS]
        assert names == sorted(names, key=list(KEY_PATTERNS).index)
