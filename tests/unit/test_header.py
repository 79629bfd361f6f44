"""The headers of the Lua files tell the truth: of their bodies, and of what Python sends."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import hiredis
import pytest
from lua_header import (
    Header,
    TailReader,
    check_call,
    check_fragment,
    check_script,
    parse_header,
)
from support.calls import calls_of, sent_by
from support.events import NOON
from support.operations import OPERATIONS
from support.services import make_ops

from sessionstore import calls
from sessionstore.calls import Call
from sessionstore.errors import ScriptContractError, SessionStoreError
from sessionstore.model import Event, SessionKey, Turn
from sessionstore.ops import Ops
from sessionstore.scripts import SCRIPTS, lua_directory
from sessionstore.tiers import Change, split
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


def test_every_file_is_a_script_or_a_fragment_that_some_script_pulls_in() -> None:
    assert set(TEXTS) == set(SCRIPTS)
    assert not list(LUA.glob("lib/*/*"))
    for name in FRAGMENTS:
        needle = f"local function {name}(".encode()
        assert any(needle in script.text for script in SCRIPTS.values())


def test_scripts_stay_small() -> None:
    for name, text in (TEXTS | FRAGMENTS).items():
        assert len(text.splitlines()) <= 120, name


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_every_declared_word_is_understood(name: str) -> None:
    for word, fields in HEADERS[name].replies.items():
        try:
            calls.status([word.encode(), *[1] * len(fields)], KEY)
        except ScriptContractError:
            pytest.fail(f"{word} is not understood")
        except SessionStoreError:
            pass


def test_an_undeclared_word_is_told() -> None:
    for reply in ([b"WHAT"], [], b"OK", None, [None], [5]):
        with pytest.raises(ScriptContractError):
            calls.status(reply, KEY)


def test_the_shebang_is_the_first_thing_that_a_server_sees() -> None:
    for script in SCRIPTS.values():
        assert script.text.startswith(b"#!lua")
        assert script.text.count(b"#!lua") == 1


# -- what Python sends --------------------------------------------------------------------------


def read_delta(args: Sequence[Any], at: int) -> int:
    """Index behind a delta, as write_delta reads it."""
    removed = at + 1 + 2 * int(args[at])
    return removed + 1 + int(args[removed])


def read_tiers(keys: Sequence[bytes], args: Sequence[Any], at: int = 0) -> int:
    """Index behind a change, as write_tiers reads it."""
    at = read_delta(args, at)
    for _ in keys[3:]:
        assert int(args[at]) >= 0  # a TTL
        at = read_delta(args, at + 1)
    return at


def read_events(keys: Sequence[bytes], args: Sequence[Any]) -> int:
    at = 0
    while at < len(args):
        data, timestamp_us, size = args[at : at + 3]
        assert isinstance(data, bytes)
        assert isinstance(timestamp_us, int)
        behind = at + 3 + int(size)
        if int(size):
            assert read_tiers(keys, args, at + 3) == behind
        at = behind
    return at


def read_members(keys: Sequence[bytes], _: Sequence[Any]) -> int:
    return len(keys) - 1


def read_commands(keys: Sequence[bytes], args: Sequence[Any]) -> int:
    at = 0
    for _ in keys:
        at += 2 + int(args[at])
    return at


TAILS: dict[str, TailReader] = {
    "append_event": lambda keys, args: read_tiers(keys, args) if args else 0,
    "append_events": read_events,
    "create_session": read_tiers,
    "get_or_create_session": read_tiers,
    "prune_index": read_members,
    "run_reads": read_commands,
    "update_session_state": read_tiers,
    "update_tier_state": lambda _, args: read_delta(args, 0),
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
        yield split(ops.options.codec, state, removed, path="state", removed_path="keys", tier=tier)


def prepared(ops: Ops, *numbers: int) -> list[tuple[bytes, datetime, Change]]:
    found = list(changes(ops))
    return [
        (ops.options.codec.encode_event(Event("a", number), "event")[0], NOON, found[number])
        for number in numbers
    ]


CONDITIONS: list[tuple[int | None, Turn | None]] = [
    (None, None),
    (7, None),
    (None, Turn(KEY, 3, NOON)),
]

# Shapes of arguments that the registry of operations lacks, and builders that only a cluster needs.
SHAPES: dict[str, Callable[[Ops], list[Call[Any]]]] = {
    "create_session": lambda ops: [ops.create_session(KEY, "g", one) for one in changes(ops)],
    "get_or_create_session": lambda ops: [
        ops.get_or_create_session(KEY, "g", one, event_num, event_time)
        for one in changes(ops)
        for event_num in (None, 0, 5)
        for event_time in (None, NOON)
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
    "clear_events": lambda ops: [ops.clear_events(KEY, None), ops.clear_events(KEY, 7)],
    "update_session_state": lambda ops: [
        ops.update_session_state(KEY, one, if_version)
        for one in changes(ops)
        for if_version in (None, 7)
    ],
    "renew_turn": lambda ops: [
        ops.renew_turn(Turn(KEY, 3, NOON), lease_ms) for lease_ms in (0, 30_000)
    ],
    "get_app_state": lambda ops: [
        ops.get_app_state("app"),
        ops.get_app_state("app", touch=False),
    ],
    "update_user_state": lambda ops: [
        ops.update_user_state("app", "user", one.user) for one in changes(ops, "user")
    ],
    "update_app_state": lambda ops: [
        ops.update_app_state("app", one.app) for one in changes(ops, "app")
    ],
}

OPTIONS: list[dict[str, Any]] = [
    {},
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
    """Calls of all operations and shapes, each with the operation or builder that it is of."""
    found = [
        (operation.name, call)
        for operation in OPERATIONS
        # Memory has no primaries to walk over, as `list_users` does in a cluster.
        if operation.keys or not options.get("app_in_own_slot")
        for call in await calls_of(operation, **options)
    ]
    ops = make_ops(**options)
    return found + [(name, call) for name, build in SHAPES.items() for call in build(ops)]


async def test_every_builder_is_tried() -> None:
    public = {name for name, _ in inspect.getmembers(Ops, inspect.isfunction) if name[0] != "_"}
    tried = {name for operation in OPERATIONS for name in (await sent_by(operation)).builders}
    assert public == tried | set(SHAPES)


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
    """In every form: transports build commands around a Call, and scripts of their own."""
    by_source = {script.text: name for name, script in SCRIPTS.items()}
    by_source |= {script.sha: name for name, script in SCRIPTS.items()}
    for _, call in await built_calls(options):
        for form in wire.Form:
            if form is wire.Form.WITHOUT_MULTI and call.writes:
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


def test_scripts_take_the_first_keys_of_a_session_in_one_order() -> None:
    for header in HEADERS.values():
        names = [slot.name for slot in header.fixed("KEYS")]
        if len(names) > 1:
            assert names == ["session", "events", "index", "user", "app"][: len(names)]


# -- the checks find what is wrong --------------------------------------------------------------

GOOD_FRAGMENTS = {
    "look": "-- look: read something.\nlocal function look(key)\n"
    "  return redis.call('HLEN', key)\nend\n",
    "change": "-- change: write something.\nlocal function change(key, value)\n"
    "  redis.call('HSET', key, 'field', value)\nend\n",
    "close": "--@include change\n-- close: write something through another.\n"
    "local function close(key)\n  change(key, '1')\nend\n",
}
GOOD_SCRIPT = """\
#!lua flags=allow-oom
-- sample: does what a sample does,
-- on two lines.
--
-- KEYS[1] session  hash   must exist
-- KEYS[2] events   zset
-- KEYS[3] user     hash   optional
--
-- ARGV[1] ttl_ms   int    duration; "0" = none
-- ARGV[2] version  int    "" = any
-- ARGV[3] refresh  bool   whether to refresh
-- ARGV[4...] tail  bytes  whatever follows
--
-- REPLY OK version now_us       with a remark
-- REPLY NOT_FOUND
-- COST O(1)
--@include close
--@include look
local session, events, user = KEYS[1], KEYS[2], KEYS[3]
local ttl_ms, version, refresh = tonumber(ARGV[1]), ARGV[2], ARGV[3] == '1'
local tail = 4

-- A comment with KEYS[9], ARGV[9], 'return {' and `..` in it.
if look(session) == 0 then
  return {'NOT_FOUND'}
end

-- Write.
close(session)
if user and refresh then
  redis.call('PEXPIREAT', user, ttl_ms)
end
for at = tail, #ARGV do
  redis.call('ZADD', events, at, ARGV[at])
end
return {'OK', version, 5}
"""


def test_a_good_script_passes() -> None:
    assert check_script("sample", GOOD_SCRIPT, GOOD_FRAGMENTS) == []


SCRIPT_DEFECTS = [
    # in the header
    ("#!lua flags=allow-oom\n", "", "first line"),
    ("#!lua flags=allow-oom", "#!lua flags=allow-all", "unknown flag"),
    ("-- sample: does", "-- simple: does", "second line"),
    ("-- KEYS[3] user     hash   optional\n", "-- KEYS[4] user     hash   optional\n", "gaps"),
    ('-- ARGV[1] ttl_ms   int    duration; "0" = none\n', "", "gaps"),
    ("-- ARGV[4...] tail  bytes  whatever follows", "-- ARGV[4] tail", "cannot be read"),
    ("-- KEYS[2] events   zset", "-- KEYS[2] events   list", "unknown kind"),
    (
        "-- KEYS[1] session  hash   must exist",
        "-- KEYS[1] session  hash   optional",
        "not optional",
    ),
    ("-- KEYS[2] events   zset", "-- KEYS[2...] events   zset", "not last"),
    ("-- REPLY OK version now_us       with a remark\n", "", "OK has no REPLY line"),
    ("-- REPLY NOT_FOUND\n", "-- REPLY NOT_FOUND\n-- REPLY STALE\n", "STALE is declared and never"),
    ("-- REPLY NOT_FOUND\n", "-- REPLY NOT_FOUND\n-- REPLY NOT_FOUND\n", "twice"),
    ("-- REPLY OK version now_us ", "-- REPLY OK version ", "2 fields, not 1"),
    ("-- COST O(1)\n", "", "0 COST lines"),
    ("-- COST O(1)\n", "-- COST O(1)\n-- COST O(2)\n", "2 COST lines"),
    ("-- COST O(1)\n", "-- COST O(1)\n-- REPLY LATE\n", "out of the order"),
    # slots
    ("-- KEYS[3] user     hash   optional\n", "", "KEYS[3] is not declared"),
    ("-- ARGV[4...] tail  bytes  whatever follows\n", "", "ARGV is used as a whole"),
    (", ARGV[3] == '1'", ", '1'", "ARGV[3] is never used"),
    ("if user and refresh then", "if user then", "refresh is bound and never used"),
    ("local tail = 4", "local tail = 5", "nothing starts at the tail"),
    ("-- Write.\nclose(session)", "-- Write.\nclose(KEYS[1])", "not bound to a local"),
    ("local session, events, user =", "local session, user, events =", "under another name"),
    ("for at = tail, #ARGV do", "for at = tail, 5 do", None),
    ("'PEXPIREAT', user, ttl_ms", "'PEXPIREAT', user, ARGV[5]", "ARGV[5] is not declared"),
    # replies
    ("{'NOT_FOUND'}", "{'MISSING'}", "MISSING has no REPLY line"),
    ("local tail = 4", "local tail = 4\nlocal refusal = {'LATE'}", "LATE has no REPLY line"),
    ("local tail = 4", "local tail = 4\nlocal empty, numbers = {}, {1, 2}", None),
    ("{'NOT_FOUND'}", "{0}", "does not begin with a status word"),
    ("{'OK', version, 5}", "{'OK', version, nil}", "nil does not survive"),
    ("{'OK', version, 5}", "{'OK', version, 0.5}", "0.5 does not survive"),
    ("{'OK', version, 5}", "{'OK', version}", "1 fields, not 2"),
    ("return {'OK', version, 5}\n", "", "does not end in a reply"),
    ("  return {'NOT_FOUND'}", "  return redis.error_reply('oops')", "start with BUG"),
    # commands and keys
    ("'ZADD', events,", "'ZADD', 'events',", "'events' does not come from KEYS"),
    ("'ZADD', events,", "'ZADD', session .. ':log',", "does not come from KEYS"),
    ("'ZADD', events,", "'ZADD', tail,", "tail does not come from KEYS"),
    ("'ZADD', events,", "'zadd', events,", "not a literal in capitals"),
    ("'ZADD', events,", "command, events,", "not a literal in capitals"),
    ("redis.call('ZADD', events,", "do_it('ZADD', events,", None),
    ("local tail = 4", "local tail = 4\nlocal do_it = redis.call", "no other name than `call`"),
    ("local tail = 4", "local tail = 4\nlocal call = redis.call", None),
    (
        "local tail = 4",
        "local tail = 4\nlocal call = redis.call\ncall('HSET', session, 'a', 'b')",
        "HSET writes above",
    ),
    ("redis.call('ZADD', events,", "redis.pcall('ZADD', 'events',", "does not come from KEYS"),
    ("'ZADD', events,", "'BITOP', events,", "do not know whether BITOP writes"),
    ("local tail = 4", "local tail = 4\nlocal name = 'a' .. tail", "`..` writes"),
    ("local tail = 4", "local tail = 4\nlocal name = tostring(tail)", "tostring()"),
    ("local tail = 4", "local tail = 4\nname = tail", "a global is set"),
    # the line below which nothing may fail
    ("-- Write.\n", "", "0 lines `-- Write.`"),
    ("-- Write.\n", "-- Write.\n-- Write.\n", "2 lines `-- Write.`"),
    (
        "local tail = 4",
        "local tail = 4\nredis.call('HSET', session, 'a', 'b')",
        "HSET writes above",
    ),
    ("local tail = 4", "local tail = 4\nclose(session)", "close writes above"),
    ("flags=allow-oom", "flags=no-writes", "writes and has flags=no-writes"),
    # fragments
    ("--@include close\n", "", "close is called and not included"),
    ("--@include look\n", "--@include look\n--@include change\n", "change is included and never"),
    ("--@include look\n", "--@include look\n--@include none\n", "no fragment none"),
    ("--@include close\n--@include look\n", "--@include look\n--@include close\n", "not sorted"),
]


@pytest.mark.parametrize(("good", "bad", "found"), SCRIPT_DEFECTS)
def test_a_planted_defect_of_a_script_is_found(good: str, bad: str, found: str | None) -> None:
    assert GOOD_SCRIPT.count(good) == 1
    problems = check_script("sample", GOOD_SCRIPT.replace(good, bad), GOOD_FRAGMENTS)
    if found is None:
        assert problems == []
    else:
        assert any(found in problem for problem in problems), problems


def test_a_script_that_only_reads_says_so() -> None:
    text = (
        "#!lua\n-- sample: reads.\n--\n-- KEYS[1] tier  hash\n--\n-- REPLY OK\n-- COST O(1)\n"
        "local tier = KEYS[1]\nredis.call('HLEN', tier)\nreturn {'OK'}\n"
    )
    assert check_script("sample", text, {}) == [
        "the script does not write and lacks flags=no-writes"
    ]
    declared = text.replace("#!lua", "#!lua flags=no-writes")
    assert check_script("sample", declared, {}) == []
    superfluous = declared.replace("return", "-- Write.\nreturn")
    assert any("does not write" in line for line in check_script("sample", superfluous, {}))


def test_a_write_through_two_fragments_is_found() -> None:
    text = GOOD_SCRIPT.replace("local tail = 4", "local tail = 4\ncloser(session)").replace(
        "--@include close\n", "--@include close\n--@include closer\n"
    )
    fragments = GOOD_FRAGMENTS | {
        "closer": "--@include close\n-- closer: likewise.\nlocal function closer(key)\n"
        "  close(key)\nend\n"
    }
    assert any("closer writes above" in line for line in check_script("sample", text, fragments))


FRAGMENT_DEFECTS = [
    ("-- look: read something.\n", "", "no comment"),
    ("local function look(key)", "local function glance(key)", "no function look"),
    ("local function look(key)", "function look(key)", "more than local functions"),
    ("end\n", "end\nlocal count = 0\n", "more than local functions"),
    ("end\n", "end\nredis.call('TIME')\n", "more than local functions"),
    ("'HLEN', key", "'HLEN', KEYS[1]", "KEYS is read"),
    ("'HLEN', key", "'HGET', key, ARGV[1]", "ARGV is read"),
    ("'HLEN', key", "'HLEN', 'key'", "does not come from KEYS"),
    ("'HLEN', key", "'hlen', key", "not a literal in capitals"),
    ("return redis.call('HLEN', key)", "return {'OK'}", "status word"),
    ("return redis", "-- Write.\n  return redis", "belongs in scripts"),
    ("return redis", "change(key, '1')\n  return redis", "called and not included"),
    ("-- look: read", "--@include change\n-- look: read", "included and never called"),
    ("return redis", "local name = key .. 'x'\n  return redis", "`..` writes"),
    ("return redis", "local name = args[2]\n  return redis", "an argument by its number"),
]


@pytest.mark.parametrize("name", GOOD_FRAGMENTS)
def test_a_good_fragment_passes(name: str) -> None:
    assert check_fragment(name, GOOD_FRAGMENTS[name], GOOD_FRAGMENTS) == []


@pytest.mark.parametrize(("good", "bad", "found"), FRAGMENT_DEFECTS)
def test_a_planted_defect_of_a_fragment_is_found(good: str, bad: str, found: str) -> None:
    text = GOOD_FRAGMENTS["look"]
    assert text.count(good) == 1
    problems = check_fragment("look", text.replace(good, bad), GOOD_FRAGMENTS)
    assert any(found in problem for problem in problems), problems


SESSION, EVENTS, USER = b"session:{a:u}:s", b"events:{a:u}:s", b"userdata:{a:u}"


def sample_header() -> Header:
    return parse_header("sample", GOOD_SCRIPT)[0]


def read_pairs(_: Sequence[bytes], args: Sequence[Any]) -> int:
    return len(args) - len(args) % 2


@pytest.mark.parametrize("keys", [[SESSION, EVENTS], [SESSION, EVENTS, USER]])
@pytest.mark.parametrize("args", [[5, "", "0"], ["0", 7, "1", b"a", b"b"]])
def test_a_good_call_passes(keys: list[bytes], args: list[Any]) -> None:
    assert check_call(sample_header(), keys, args, read_pairs) == []


@pytest.mark.parametrize(
    ("keys", "args", "found"),
    [
        ([SESSION], [5, "", "0"], "1 keys are sent; 2 to 3"),
        ([SESSION, EVENTS, USER, USER], [5, "", "0"], "4 keys are sent"),
        ([EVENTS, SESSION], [5, "", "0"], "KEYS[1] is declared as session"),
        ([SESSION, EVENTS], [5, ""], "2 arguments are sent; 3"),
        ([SESSION, EVENTS], ["", "", "0"], "ARGV[1] is declared as int"),
        ([SESSION, EVENTS], ["1.5", "", "0"], "ARGV[1] is declared as int"),
        ([SESSION, EVENTS], [True, "", "0"], "ARGV[1] is declared as int"),
        ([SESSION, EVENTS], [5, None, "0"], "ARGV[2] is declared as int"),
        ([SESSION, EVENTS], [5, "", "true"], "ARGV[3] is declared as bool"),
        ([SESSION, EVENTS], [5, "", "1", b"a"], "1 arguments form the tail; the script reads 0"),
    ],
)
def test_a_planted_defect_of_a_call_is_found(
    keys: list[bytes], args: list[Any], found: str
) -> None:
    problems = check_call(sample_header(), keys, args, read_pairs)
    assert any(found in problem for problem in problems), problems


def test_a_tail_without_a_reader_is_found() -> None:
    assert check_call(sample_header(), [SESSION, EVENTS], [5, "", "1"]) == [
        "nothing knows how to read this tail"
    ]


def test_more_arguments_than_declared_are_found_where_there_is_no_tail() -> None:
    header = HEADERS["delete_session"]
    keys = [SESSION, EVENTS, b"sessions:{a:u}"]
    assert check_call(header, keys, ["s"]) == []
    assert check_call(header, keys, ["s", "t"]) == ["2 arguments are sent; 1 are declared"]
