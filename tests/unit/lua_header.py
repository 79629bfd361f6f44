"""The rules for Lua files, as checks. Each gives one line of text per breach it finds.

The header of a script is data: what it declares is held against its body (`check_script`) and
against what Python sends (`check_call`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KNOWN_FLAGS = {"allow-oom", "allow-stale", "no-cluster", "no-writes", "allow-cross-slot-keys"}

READ_COMMANDS = {
    *("EXISTS", "PEXPIRETIME", "PTTL", "TIME", "TTL", "TYPE"),
    *("HEXISTS", "HGET", "HGETALL", "HLEN", "HMGET"),
    *("ZCARD", "ZCOUNT", "ZRANGE", "ZRANK", "ZREVRANK", "ZSCORE", "ZMSCORE"),
}
WRITE_COMMANDS = {
    *("DEL", "EXPIRE", "EXPIREAT", "PERSIST", "PEXPIRE", "PEXPIREAT", "RENAME", "UNLINK"),
    *("HDEL", "HINCRBY", "HSET", "HSETNX", "SET"),
    *("ZADD", "ZINCRBY", "ZPOPMAX", "ZPOPMIN", "ZREM", "ZREMRANGEBYRANK", "ZREMRANGEBYSCORE"),
}
KEYLESS_COMMANDS = {"TIME"}
MANY_KEY_COMMANDS = {"DEL", "EXISTS", "UNLINK"}

KINDS = {"KEYS": {"any", "hash", "zset"}, "ARGV": {"bool", "bytes", "int"}}

WRITE_LINE = "-- Write."


@dataclass(frozen=True)
class Slot:
    """One declared slot of KEYS or ARGV; with `is_tail` it stands for any number of them."""

    number: int
    name: str
    kind: str
    note: str
    is_tail: bool

    @property
    def is_optional(self) -> bool:
        return self.note.startswith("optional")


@dataclass
class Header:
    """What the comment above a script declares."""

    flags: set[str] = field(default_factory=set)
    slots: dict[str, list[Slot]] = field(default_factory=lambda: {"KEYS": [], "ARGV": []})
    replies: dict[str, list[str]] = field(default_factory=dict)
    costs: int = 0

    def fixed(self, array: str) -> list[Slot]:
        return [slot for slot in self.slots[array] if not slot.is_tail]

    def tail(self, array: str) -> Slot | None:
        return next((slot for slot in self.slots[array] if slot.is_tail), None)


# -- reading ------------------------------------------------------------------------------------

_first_line = re.compile(r"#!lua(?: flags=([a-z,-]+))?").fullmatch
_slot_line = re.compile(r"-- (KEYS|ARGV)\[(\d+)(\.\.\.)?\] +(\S+) +(\S+)(?: +(.*))?").fullmatch
_reply_line = re.compile(r"-- REPLY ([A-Z_]+)((?: [a-z_]+)*)(?: {2,}.*)?").fullmatch
_include_line = re.compile(r"--@include (\S+)").fullmatch
_fixed_slot = re.compile(r"\b(KEYS|ARGV)\[(\d+)\]")
_array_use = re.compile(r"\b(KEYS|ARGV)\b(?!\[\d+\])")
_call_start = re.compile(r"(?<![\w.:])(?:redis\.p?call|call)\(")
_function_line = re.compile(r"local function (\w+)\(([^)]*)\)")


def parse_header(name: str, text: str) -> tuple[Header, list[str]]:
    """What a script's header declares, and what is wrong with the header alone."""
    header, problems = Header(), []
    lines = text.splitlines()
    first = _first_line(lines[0]) if lines else None
    if not first:
        problems.append("the first line is not #!lua with or without flags=")
    elif first[1]:
        header.flags = set(first[1].split(","))
        problems += [f"unknown flag {flag}" for flag in sorted(header.flags - KNOWN_FLAGS)]
    if len(lines) < 2 or not re.match(rf"-- {re.escape(name)}: \S", lines[1]):
        problems.append(f"the second line is not `-- {name}: what it does`")
    section = 0
    for line in _comment_block(lines[1:]):
        slot, reply = _slot_line(line), _reply_line(line)
        here = section
        if slot:
            array, number, dots, slot_name, kind, note = slot.groups()
            here = 1 if array == "KEYS" else 2
            found = Slot(int(number), slot_name, kind, note or "", bool(dots))
            header.slots[array].append(found)
            if kind not in KINDS[array]:
                problems.append(f"{array}[{number}] has the unknown kind {kind}")
        elif reply:
            here = 3
            if reply[1] in header.replies:
                problems.append(f"REPLY {reply[1]} is declared twice")
            header.replies[reply[1]] = reply[2].split()
        elif line.startswith("-- COST "):
            here = 4
            header.costs += 1
        elif re.match(r"-- *(KEYS|ARGV|REPLY|COST)\b", line):
            problems.append(f"a header line cannot be read: {line}")
        if here < section:
            problems.append(f"out of the order KEYS, ARGV, REPLY, COST: {line}")
        section = max(section, here)
    for array, slots in header.slots.items():
        problems += _slot_problems(array, slots)
    if not header.slots["KEYS"]:
        problems.append("no KEYS")
    if not header.replies:
        problems.append("no REPLY line")
    if header.costs != 1:
        problems.append(f"{header.costs} COST lines")
    return header, problems


def _comment_block(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith("--") or line.startswith("--@"):
            return
        yield line


def _slot_problems(array: str, slots: Sequence[Slot]) -> Iterator[str]:
    numbers = [slot.number for slot in slots]
    if numbers != list(range(1, len(slots) + 1)):
        yield f"{array} has gaps or is out of order: {numbers}"
    if any(slot.is_tail for slot in slots[:-1]):
        yield f"{array} has a tail that is not last"
    optional = [slot.is_optional for slot in slots]
    if optional != sorted(optional):
        yield f"{array} has a slot behind an optional one that is not optional"


@dataclass(frozen=True)
class Code:
    """The lines below a header: without comments, and with the content of strings taken out."""

    lines: list[tuple[int, str]]  # line number in the file, text without comments
    bare: list[str]  # the same with empty strings
    includes: list[str]
    write_lines: list[int]

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)

    @property
    def bare_text(self) -> str:
        return "\n".join(self.bare)


def read_code(text: str) -> Code:
    lines, bare, includes, write_lines = [], [], [], []
    for number, line in enumerate(text.splitlines(), 1):
        if number == 1 and line.startswith("#!"):
            continue
        include = _include_line(line)
        if include:
            includes.append(include[1])
        if line.strip() == WRITE_LINE:
            write_lines.append(number)
        code = _without_comment(line)
        if code.strip():
            lines.append((number, code.rstrip()))
            bare.append(re.sub(r"'[^']*'|\"[^\"]*\"", "''", code))
    return Code(lines, bare, includes, write_lines)


def _without_comment(line: str) -> str:
    quote = ""
    for at, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif line.startswith("--", at):
            return line[:at]
    return line


def _arguments(text: str, start: int) -> list[str]:
    """The arguments of a call whose parenthesis or brace has just been opened before `start`."""
    found, depth, quote, begin = [], 0, "", start
    for at in range(start, len(text)):
        character = text[at]
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "({[":
            depth += 1
        elif character in ")}]":
            if depth == 0:
                found.append(text[begin:at].strip())
                return [part for part in found if part]
            depth -= 1
        elif character == "," and depth == 0:
            found.append(text[begin:at].strip())
            begin = at + 1
    return found


@dataclass(frozen=True)
class CommandCall:
    """A redis.call() with its place in the file."""

    line: int
    command: str | None  # None: computed
    keys: list[str]


def command_calls(code: Code) -> list[CommandCall]:
    calls = []
    text, numbers = code.text, [number for number, _ in code.lines]
    for match in _call_start.finditer(text):
        line = numbers[text.count("\n", 0, match.start())]
        name, *rest = _arguments(text, match.end())
        literal = re.fullmatch(r"'([A-Z]+)'", name)
        command = literal[1] if literal else None
        keys = [] if command in KEYLESS_COMMANDS else rest[:1]
        if command in MANY_KEY_COMMANDS:
            keys = rest
        calls.append(CommandCall(line, command, keys))
    return calls


def function_calls(code: Code, names: set[str]) -> Iterator[tuple[int, str]]:
    """Where a function of one of these names is called, but not where it is defined."""
    for (number, _), bare in zip(code.lines, code.bare, strict=True):
        for match in re.finditer(r"(?<![\w.:])(\w+)\(", bare):
            if match[1] in names and not bare[: match.start()].endswith("function "):
                yield number, match[1]


def writing_fragments(fragments: Mapping[str, str]) -> set[str]:
    """The fragments that write, themselves or through others."""
    codes = {name: read_code(text) for name, text in fragments.items()}
    writing = {
        name
        for name, code in codes.items()
        if any(call.command in WRITE_COMMANDS for call in command_calls(code))
    }
    while True:
        more = {
            name
            for name, code in codes.items()
            if name not in writing and any(function_calls(code, writing))
        }
        if not more:
            return writing
        writing |= more


# -- scripts ------------------------------------------------------------------------------------


def check_script(name: str, text: str, fragments: Mapping[str, str]) -> list[str]:
    """Everything that is wrong with a script of lua/."""
    header, problems = parse_header(name, text)
    code = read_code(text)
    bound, slot_problems = _check_slots(header, code)
    problems += slot_problems
    problems += _check_replies(header, code)
    problems += _check_commands(code, bound, may_compute="no-writes" in header.flags)
    problems += _check_write_line(header, code, fragments)
    problems += _check_includes(code, fragments)
    problems += _check_text(code)
    return problems


def _check_slots(header: Header, code: Code) -> tuple[set[str], list[str]]:
    """The names that stand for keys, and what is wrong with the use of slots."""
    problems: list[str] = []
    used: dict[str, set[int]] = {"KEYS": set(), "ARGV": set()}
    keys = set()
    for (number, line), bare in zip(code.lines, code.bare, strict=True):
        slots = list(_fixed_slot.finditer(line))
        for match in slots:
            used[match[1]].add(int(match[2]))
        if not slots:
            continue
        binding = re.fullmatch(r"local ([\w, ]+?) = (.+)", bare)
        if not binding:
            problems.append(f"line {number}: a slot is not bound to a local: {line.strip()}")
            continue
        names = [part.strip() for part in binding[1].split(",")]
        for local, value in zip(names, _arguments(binding[2] + ")", 0), strict=False):
            match_of_value = _fixed_slot.search(value)
            if not match_of_value:
                continue
            if len(re.findall(rf"\b{local}\b", code.bare_text)) < 2:
                problems.append(f"line {number}: {local} is bound and never used")
            if match_of_value[1] == "KEYS":
                keys.add(local)
                declared = {slot.number: slot.name for slot in header.slots["KEYS"]}
                if declared.get(int(match_of_value[2]), local) != local:
                    problems.append(f"line {number}: {value} is declared under another name")
    for array in ("KEYS", "ARGV"):
        fixed = {slot.number for slot in header.fixed(array)}
        problems += [f"{array}[{n}] is not declared" for n in sorted(used[array] - fixed)]
        problems += [f"{array}[{n}] is never used" for n in sorted(fixed - used[array])]
        tail = header.tail(array)
        as_a_whole = any(match[1] == array for match in _array_use.finditer(code.bare_text))
        if as_a_whole and tail is None:
            problems.append(f"{array} is used as a whole, but declares no tail")
        if tail is not None and not as_a_whole:
            problems.append(f"{array}[{tail.number}...] is never used")
        if tail is not None and not _starts_at(array, tail, code):
            problems.append(f"{array}: nothing starts at the tail's number {tail.number}")
    return keys, problems


def _starts_at(array: str, tail: Slot, code: Code) -> bool:
    if array == "KEYS":
        return bool(re.search(rf"= {tail.number}, #KEYS\b", code.bare_text))
    binding = re.search(r"^local (tail(?:, \w+)*) = (\d+)", code.bare_text, re.MULTILINE)
    return bool(binding and int(binding[2]) == tail.number)


def _check_replies(header: Header, code: Code) -> Iterator[str]:
    returned: set[str] = set()
    text, numbers = code.text, [number for number, _ in code.lines]
    # Every table that begins with a word is a reply, returned at once or later.
    for match in re.finditer(r"(\breturn )?\{", text):
        line = numbers[text.count("\n", 0, match.start())]
        first, *rest = _arguments(text, match.end()) or [""]
        word = re.fullmatch(r"'([A-Z_]+)'", first)
        if not word:
            if match[1]:
                yield f"line {line}: a reply does not begin with a status word"
            continue
        returned.add(word[1])
        declared = header.replies.get(word[1])
        if declared is None:
            yield f"line {line}: {word[1]} has no REPLY line"
        elif len(declared) != len(rest):
            yield f"line {line}: {word[1]} is returned with {len(rest)} fields, not {len(declared)}"
        for part in rest:
            if part in ("nil", "true", "false") or re.fullmatch(r"\d+\.\d*", part):
                yield f"line {line}: {part} does not survive a reply"
    for word_declared in header.replies:
        if word_declared not in returned:
            yield f"{word_declared} is declared and never returned"
    if not code.lines or not code.lines[-1][1].startswith("return {"):
        yield "the script does not end in a reply"
    for message in re.findall(r"error_reply\(\s*(['\"][^'\"]*)", text):
        if not message[1:].startswith("BUG"):
            yield f"an error_reply does not start with BUG: {message}'"


def _check_commands(code: Code, keys: set[str], *, may_compute: bool) -> Iterator[str]:
    for call in command_calls(code):
        if call.command is None:
            if not may_compute:
                yield f"line {call.line}: the command is not a literal in capitals"
        elif call.command not in READ_COMMANDS | WRITE_COMMANDS:
            yield f"line {call.line}: the checks do not know whether {call.command} writes"
        elif not call.keys and call.command not in KEYLESS_COMMANDS:
            yield f"line {call.line}: {call.command} has no key"
        for key in call.keys:
            if key not in keys and not re.fullmatch(r"KEYS\[\w+\]", key):
                yield f"line {call.line}: {key} does not come from KEYS"


def _check_write_line(header: Header, code: Code, fragments: Mapping[str, str]) -> Iterator[str]:
    writing = writing_fragments(fragments)
    writes = [
        (call.line, call.command) for call in command_calls(code) if call.command in WRITE_COMMANDS
    ]
    writes += function_calls(code, writing)
    if writes and len(code.write_lines) != 1:
        yield f"{len(code.write_lines)} lines `{WRITE_LINE}` in a script that writes"
    if not writes and code.write_lines:
        yield f"a line `{WRITE_LINE}` in a script that does not write"
    for line, what in writes:
        if code.write_lines and line < code.write_lines[0]:
            yield f"line {line}: {what} writes above `{WRITE_LINE}`"
    if writes and "no-writes" in header.flags:
        yield "the script writes and has flags=no-writes"
    if not writes and "no-writes" not in header.flags:
        yield "the script does not write and lacks flags=no-writes"


def _check_includes(code: Code, fragments: Mapping[str, str]) -> Iterator[str]:
    called = {name for _, name in function_calls(code, set(fragments))}
    for name in code.includes:
        if name not in fragments:
            yield f"no fragment {name}"
        elif name not in called:
            yield f"the fragment {name} is included and never called"
    for name in sorted(called - set(code.includes)):
        yield f"the fragment {name} is called and not included"
    if code.includes != sorted(set(code.includes)):
        yield "the includes are not sorted, each once"


def _check_text(code: Code) -> Iterator[str]:
    for (number, line), bare in zip(code.lines, code.bare, strict=True):
        if re.search(r"(?<!\.)\.\.(?!\.)", bare):
            yield f"line {number}: `..` writes large integers as 1.7e+15, and must not make keys"
        if re.search(r"\bredis\.p?call\b(?!\()", bare) and line != "local call = redis.call":
            yield f"line {number}: redis.call may go by no other name than `call`"
        if re.search(r"\btostring\(", bare):
            yield f"line {number}: tostring() writes large integers as 1.7e+15"
        if re.match(r"(\w+ =|function )", bare):
            assigned = re.match(r"(\w+) =", bare)
            if not assigned or not _is_local(assigned[1], code):
                yield f"line {number}: a global is set: {line}"


def _is_local(name: str, code: Code) -> bool:
    return bool(re.search(rf"\blocal [\w, ]*\b{name}\b|\bfor [\w, ]*\b{name}\b", code.bare_text))


# -- fragments ----------------------------------------------------------------------------------


def check_fragment(name: str, text: str, fragments: Mapping[str, str]) -> list[str]:
    """Everything that is wrong with a fragment of lua/lib."""
    code = read_code(text)
    problems: list[str] = []
    if not re.search(rf"^-- {re.escape(name)}: \S", text, re.MULTILINE):
        problems.append(f"no comment `-- {name}: what it does`")
    defined = [match[1] for match in _function_line.finditer(code.bare_text)]
    if name not in defined:
        problems.append(f"no function {name}")
    for number, line in code.lines:
        if not line.startswith(" ") and line != "end" and not _function_line.fullmatch(line):
            problems.append(f"line {number}: more than local functions: {line}")
    for array in ("KEYS", "ARGV"):
        if re.search(rf"\b{array}\b", code.bare_text):
            problems.append(f"{array} is read")
    if re.search(r"\bargs\[\d+\]", code.bare_text):
        problems.append("a fragment reads an argument by its number, past the header")
    if re.search(r"return \{\s*'[A-Z_]+'", code.text):
        problems.append("a status word is returned, which no header can declare")
    if code.write_lines:
        problems.append(f"a line `{WRITE_LINE}` belongs in scripts")
    problems += _check_commands(code, _parameters(code), may_compute=False)
    problems += _check_includes(code, fragments)
    problems += _check_text(code)
    return problems


def _parameters(code: Code) -> set[str]:
    found: set[str] = set()
    for match in _function_line.finditer(code.bare_text):
        found |= {part.strip() for part in match[2].split(",")}
    return found


# -- calls --------------------------------------------------------------------------------------

KEY_OF = {
    "session": (b"session:{",),
    "events": (b"events:{",),
    "index": (b"sessions:{",),
    "user": (b"userdata:{",),
    "app": (b"appdata:{",),
    "tier": (b"userdata:{", b"appdata:{"),
    "sessions": (b"session:{",),
}

TailReader = Callable[[Sequence[bytes], Sequence[Any]], int]
"""Given KEYS and the arguments of the tail, how many of these a script would read."""


def check_call(
    header: Header,
    keys: Sequence[bytes],
    args: Sequence[Any],
    read_tail: TailReader | None = None,
) -> list[str]:
    """What a header says against the keys and arguments that Python sends."""
    problems: list[str] = []
    fixed_keys, fixed_args = header.fixed("KEYS"), header.fixed("ARGV")
    fewest = len([slot for slot in fixed_keys if not slot.is_optional])
    if len(keys) < fewest or (len(keys) > len(fixed_keys) and not header.tail("KEYS")):
        problems.append(f"{len(keys)} keys are sent; {fewest} to {len(fixed_keys)} are declared")
    if len(args) < len(fixed_args) or (len(args) > len(fixed_args) and not header.tail("ARGV")):
        problems.append(f"{len(args)} arguments are sent; {len(fixed_args)} are declared")
    for number, key in enumerate(keys):
        slot = header.slots["KEYS"][min(number, len(header.slots["KEYS"]) - 1)]
        if slot.name in KEY_OF and not key.startswith(KEY_OF[slot.name]):
            problems.append(f"KEYS[{number + 1}] is declared as {slot.name}, but is {key!r}")
    for slot, value in zip(fixed_args, args, strict=False):
        if not _is_of_kind(slot, value):
            problems.append(f"ARGV[{slot.number}] is declared as {slot.kind}, but is {value!r}")
    if header.tail("ARGV") and not problems:
        if read_tail is None:
            problems.append("nothing knows how to read this tail")
        else:
            tail = args[len(fixed_args) :]
            read = read_tail(keys, tail)
            if read != len(tail):
                problems.append(f"{len(tail)} arguments form the tail; the script reads {read}")
    return problems


def _is_of_kind(slot: Slot, value: Any) -> bool:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return False
    if slot.kind == "bytes":
        return True
    if slot.kind == "bool":
        return value in ("0", "1")
    if value == "":
        return '"" =' in slot.note
    return bool(re.fullmatch(r"-?\d+", str(value)))
