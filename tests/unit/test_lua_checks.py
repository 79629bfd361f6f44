"""The checks of Lua files find planted defects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from lua_checks import check_fragment, check_script
from lua_header import Header, check_call, parse_header

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
-- KEYS[1] session  session:{app:user}:sid  hash   must exist
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] user     userdata:{app:user}     hash   optional
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
    ("-- KEYS[3] user  ", "-- KEYS[4] user  ", "gaps"),
    ('-- ARGV[1] ttl_ms   int    duration; "0" = none\n', "", "gaps"),
    ("-- ARGV[4...] tail  bytes  whatever follows", "-- ARGV[4] tail", "cannot be read"),
    (":sid   zset", ":sid   list", "unknown kind"),
    ("hash   must exist", "hash   optional", "required slot after an optional one"),
    ("-- KEYS[2] events  ", "-- KEYS[2...] events  ", "not last"),
    ("events:{app:user}:sid   zset", "zset", "cannot be read"),
    ("userdata:{app:user}     hash   optional", "hash   optional", "keys.py spells userdata:{"),
    ("events:{app:user}:sid", "events:{app}:sid", "keys.py spells events:{app:user}:sid"),
    ("events   events:{", "log      logs:{", "keys.py spells no key logs:{"),
    ("-- REPLY OK version now_us       with a remark\n", "", "OK has no REPLY line"),
    ("-- REPLY NOT_FOUND\n", "-- REPLY NOT_FOUND\n-- REPLY STALE\n", "STALE is declared and never"),
    ("-- REPLY NOT_FOUND\n", "-- REPLY NOT_FOUND\n-- REPLY NOT_FOUND\n", "twice"),
    ("-- REPLY OK version now_us ", "-- REPLY OK version ", "2 fields, not 1"),
    ("-- COST O(1)\n", "", "0 COST lines"),
    ("-- COST O(1)\n", "-- COST O(1)\n-- COST O(2)\n", "2 COST lines"),
    ("-- COST O(1)\n", "-- COST O(1)\n-- REPLY LATE\n", "out of the order"),
    # slots
    ("-- KEYS[3] user", "-- user", "KEYS[3] is not declared"),
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
    ("local tail = 4", "local tail = 4\n-- Inlined: look, change. Fast.", None),
    ("local tail = 4", "local tail = 4\n-- Inlined: look, none. Fast.", "no fragment none"),
]


@pytest.mark.parametrize(("good", "bad", "found"), SCRIPT_DEFECTS)
def test_a_planted_defect_of_a_script_is_found(good: str, bad: str, found: str | None) -> None:
    assert GOOD_SCRIPT.count(good) == 1
    problems = check_script("sample", GOOD_SCRIPT.replace(good, bad), GOOD_FRAGMENTS)
    if found is None:
        assert problems == []
    else:
        assert any(found in problem for problem in problems), problems


def test_a_script_that_only_reads_has_the_flag() -> None:
    text = (
        "#!lua\n-- sample: reads.\n--\n-- KEYS[1] tier  appdata:{app}  hash\n--\n-- REPLY OK\n"
        "-- COST O(1)\nlocal tier = KEYS[1]\nredis.call('HLEN', tier)\nreturn {'OK'}\n"
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
        "closer": "--@include close\n-- closer: call close.\nlocal function closer(key)\n"
        "  close(key)\nend\n"
    }
    assert any("closer writes above" in line for line in check_script("sample", text, fragments))


def test_a_reply_of_a_fragment_is_declared_by_the_script() -> None:
    refuse = (
        "-- refuse: the reply that refuses a call.\n--\n-- REPLY STALE version\n"
        "local function refuse()\n  return {'STALE', 1}\nend\n"
    )
    through = (
        "--@include refuse\n-- through: call refuse.\nlocal function through()\n"
        "  return refuse()\nend\n"
    )
    fragments = GOOD_FRAGMENTS | {"refuse": refuse, "through": through}
    assert check_fragment("refuse", refuse, fragments) == []
    assert check_fragment("through", through, fragments) == []
    text = GOOD_SCRIPT.replace("local tail = 4", "local tail = 4\nlocal refusal = through()")
    text = text.replace("--@include look\n", "--@include look\n--@include through\n")
    [problem] = check_script("sample", text, fragments)
    assert "a fragment returns STALE" in problem
    declared = text.replace("-- COST", "-- REPLY STALE\n-- COST")
    [problem] = check_script("sample", declared, fragments)
    assert "a fragment returns STALE" in problem
    declared = text.replace("-- COST", "-- REPLY STALE version\n-- COST")
    assert check_script("sample", declared, fragments) == []


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
    ("return redis.call('HLEN', key)", "return {'OK'}", "OK has no REPLY line"),
    ("return redis", "-- Write.\n  return redis", "belongs in scripts"),
    ("return redis", "change(key, '1')\n  return redis", "called and not included"),
    ("-- look: read", "--@include change\n-- look: read", "included and never called"),
    ("return redis", "local name = key .. 'x'\n  return redis", "`..` writes"),
    ("return redis", "local name = args[2]\n  return redis", "an argument is read by its number"),
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


@pytest.mark.parametrize(
    "keys",
    [
        [SESSION, EVENTS],
        [SESSION, EVENTS, USER],
        [b"session:{a}:u:s", b"events:{a}:u:s", b"userdata:{a}:u"],
    ],
)
@pytest.mark.parametrize("args", [[5, "", "0"], ["0", 7, "1", b"a", b"b"]])
def test_a_good_call_passes(keys: list[bytes], args: list[Any]) -> None:
    assert check_call(sample_header(), keys, args, read_pairs) == []


@pytest.mark.parametrize(
    ("keys", "args", "found"),
    [
        ([SESSION], [5, "", "0"], "1 keys are sent; 2 to 3"),
        ([SESSION, EVENTS, USER, USER], [5, "", "0"], "4 keys are sent"),
        ([EVENTS, SESSION], [5, "", "0"], "KEYS[1] is declared as session:{app:user}:sid"),
        ([b"session:{a:u}", EVENTS], [5, "", "0"], "KEYS[1] is declared as session:"),
        ([SESSION, EVENTS, b"userdata:{a}"], [5, "", "0"], "KEYS[3] is declared as userdata:"),
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
        "no TailReader for this script"
    ]


def test_more_arguments_than_declared_are_found_where_there_is_no_tail() -> None:
    text = GOOD_SCRIPT.replace("-- ARGV[4...] tail  bytes  whatever follows\n", "")
    header = parse_header("sample", text)[0]
    assert check_call(header, [SESSION, EVENTS], [5, "", "1"]) == []
    assert check_call(header, [SESSION, EVENTS], [5, "", "1", "2"]) == [
        "4 arguments are sent; 3 are declared"
    ]
