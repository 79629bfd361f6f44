"""Parses what the checks need of a Lua file: comments, commands, function calls, replies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

READ_COMMANDS = {
    *("EXISTS", "PEXPIRETIME", "PTTL", "TIME", "TTL", "TYPE"),
    *("HEXISTS", "HGET", "HGETALL", "HKEYS", "HLEN", "HMGET"),
    *("ZCARD", "ZCOUNT", "ZRANGE", "ZRANK", "ZREVRANK", "ZSCORE", "ZMSCORE"),
}
WRITE_COMMANDS = {
    *("COPY", "DEL", "EXPIRE", "EXPIREAT", "PERSIST", "PEXPIRE", "PEXPIREAT", "RENAME", "UNLINK"),
    *("HDEL", "HINCRBY", "HSET", "HSETNX", "SET", "SPUBLISH"),
    *("ZADD", "ZINCRBY", "ZPOPMAX", "ZPOPMIN", "ZREM", "ZREMRANGEBYRANK", "ZREMRANGEBYSCORE"),
}
KEYLESS_COMMANDS = {"TIME"}
MANY_KEY_COMMANDS = {"COPY", "DEL", "EXISTS", "UNLINK"}

WRITE_LINE = "-- Write."

_include_line = re.compile(r"--@include (\S+)").fullmatch
_inlined_line = re.compile(r" *-- Inlined: (\w+(?:, \w+)*)\.(?: .*)?").fullmatch
_reply_line = re.compile(r"-- REPLY ([A-Z_]+)((?: [a-z_]+)*)(?: {2,}.*)?").fullmatch
_call_start = re.compile(r"(?<![\w.:])(?:redis\.p?call|call)\(")
function_line = re.compile(r"local function (\w+)\(([^)]*)\)")


@dataclass(frozen=True)
class Code:
    """A Lua file without comments and blank lines."""

    lines: list[tuple[int, str]]  # line number in the file, code
    bare: list[str]  # the same lines with the content of strings removed
    includes: list[str]
    inlined: list[str]  # fragments that `-- Inlined:` comments name
    write_lines: list[int]

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)

    @property
    def bare_text(self) -> str:
        return "\n".join(self.bare)

    def line_at(self, position: int) -> int:
        """The line number in the file of a position in `text`."""
        return self.lines[self.text.count("\n", 0, position)][0]


def read_code(text: str) -> Code:
    code = Code([], [], [], [], [])
    for number, line in enumerate(text.splitlines(), 1):
        if number == 1 and line.startswith("#!"):
            continue
        if include := _include_line(line):
            code.includes.append(include[1])
        elif inlined := _inlined_line(line):
            code.inlined.extend(inlined[1].split(", "))
        elif line.strip() == WRITE_LINE:
            code.write_lines.append(number)
        statement = _without_comment(line).rstrip()
        if statement:
            code.lines.append((number, statement))
            code.bare.append(re.sub(r"'[^']*'|\"[^\"]*\"", "''", statement))
    return code


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


def split_list(text: str, start: int) -> list[str]:
    """The parts of a comma-separated list from `start` to the bracket that closes it."""
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
    """A redis.call() and its line in the file."""

    line: int
    command: str | None  # None = computed
    keys: list[str]


def command_calls(code: Code) -> list[CommandCall]:
    calls = []
    for match in _call_start.finditer(code.text):
        name, *rest = split_list(code.text, match.end())
        literal = re.fullmatch(r"'([A-Z]+)'", name)
        command = literal[1] if literal else None
        keys = [] if command in KEYLESS_COMMANDS else rest[:1]
        if command in MANY_KEY_COMMANDS:
            keys = rest
        calls.append(CommandCall(code.line_at(match.start()), command, keys))
    return calls


def function_calls(code: Code, names: set[str]) -> Iterator[tuple[int, str]]:
    """Line and name of every call of these functions; their definitions are not calls."""
    for (number, _), bare in zip(code.lines, code.bare, strict=True):
        for match in re.finditer(r"(?<![\w.:])(\w+)\(", bare):
            if match[1] in names and not bare[: match.start()].endswith("function "):
                yield number, match[1]


def writing_fragments(fragments: Mapping[str, str]) -> set[str]:
    """The fragments that write, directly or through other fragments."""
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


# -- replies ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """A table that begins with a status word or follows `return`, and its line in the file."""

    line: int
    word: str | None  # None = the table does not begin with a status word
    fields: list[str]


def replies(code: Code) -> Iterator[Reply]:
    for match in re.finditer(r"(\breturn )?\{", code.text):
        first, *fields = split_list(code.text, match.end()) or [""]
        word = re.fullmatch(r"'([A-Z_]+)'", first)
        if word or match[1]:
            yield Reply(code.line_at(match.start()), word[1] if word else None, fields)


def parse_reply_line(line: str) -> tuple[str, list[str]] | None:
    """Status word and fields of a `-- REPLY` line."""
    match = _reply_line(line)
    return (match[1], match[2].split()) if match else None


def fragment_replies(code: Code, fragments: Mapping[str, str]) -> dict[str, list[str]]:
    """The replies that the included fragments declare, directly or through other fragments."""
    found: dict[str, list[str]] = {}
    for name in code.includes:
        text = fragments.get(name, "")
        found |= declared_replies(text) | fragment_replies(read_code(text), fragments)
    return found


def declared_replies(text: str) -> dict[str, list[str]]:
    return dict(filter(None, map(parse_reply_line, text.splitlines())))
