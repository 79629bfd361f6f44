"""The header of a Lua script as data, and its comparison with what Python sends."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from lua_code import parse_reply_line

from sessionstore.keys import Keys

FLAGS = {"allow-oom", "allow-stale", "no-cluster", "no-writes", "allow-cross-slot-keys"}
KINDS = {"KEYS": {"any", "hash", "zset"}, "ARGV": {"bool", "bytes", "int"}}
ANY_KEY = "*"

_spelled = Keys().session("app", "user", "sid")
KEY_PATTERNS = {
    "session": _spelled.session.decode(),
    "events": _spelled.events.decode(),
    "stream": _spelled.stream.decode(),
    "index": _spelled.session_index.decode(),
    "staged": Keys.staged(_spelled, "staged").decode(),
    "user": _spelled.user.decode(),
    "app": _spelled.app.decode(),
    "data_key": Keys().data_key("app", "user").decode(),
}
"""The pattern of each key as keys.py spells it, by the name that scripts use."""


@dataclass(frozen=True)
class Slot:
    """One declared slot of KEYS or ARGV, or with `is_tail` any number of slots."""

    number: int
    is_tail: bool
    name: str
    pattern: str  # of the key, or alternatives separated by |; "" in ARGV
    kind: str
    note: str

    @property
    def is_optional(self) -> bool:
        return self.note.startswith("optional")

    def accepts_key(self, key: bytes) -> bool:
        patterns = self.pattern.split("|")
        return any(_key_regex(pattern).fullmatch(key.decode()) for pattern in patterns)

    def accepts_argument(self, value: Any) -> bool:
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            return False
        if self.kind == "bytes":
            return True
        if self.kind == "bool":
            return value in ("0", "1")
        if value == "":
            return '"" =' in self.note
        return bool(re.fullmatch(r"-?\d+", str(value)))


@cache
def _key_regex(pattern: str) -> re.Pattern[str]:
    """Accepts a key with any ids, with either value of `partition_by`."""
    if pattern == ANY_KEY:
        return re.compile(".*", re.DOTALL)
    some = "[^:{}]+"
    regex = re.escape(pattern)
    regex = regex.replace(re.escape("{app:user}"), rf"(\{{{some}:{some}\}}|\{{{some}\}}:{some})")
    regex = regex.replace(re.escape("{app}"), rf"\{{{some}\}}")
    return re.compile(re.sub(":(sid|staged)(?=:|$)", f":{some}", regex))


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


# -- parsing ------------------------------------------------------------------------------------

_first_line = re.compile(r"#!lua(?: flags=([a-z,-]+))?").fullmatch
_SLOT_LINE = r"-- {}\[(\d+)(\.\.\.)?\] +(\S+){} +(\S+)(?: +(.*))?"
_slot_lines = {
    "KEYS": re.compile(_SLOT_LINE.format("KEYS", r" +(\S+)")).fullmatch,
    "ARGV": re.compile(_SLOT_LINE.format("ARGV", "()")).fullmatch,
}
_SECTIONS = ("KEYS", "ARGV", "REPLY", "COST")


def parse_header(name: str, text: str) -> tuple[Header, list[str]]:
    """What the header of a script declares, and the problems of the header alone."""
    header, problems = Header(), []
    lines = text.splitlines()
    first = _first_line(lines[0]) if lines else None
    if not first:
        problems.append("the first line is not #!lua with or without flags=")
    elif first[1]:
        header.flags = set(first[1].split(","))
        problems += [f"unknown flag {flag}" for flag in sorted(header.flags - FLAGS)]
    if len(lines) < 2 or not re.match(rf"-- {re.escape(name)}: \S", lines[1]):
        problems.append(f"the second line is not `-- {name}: what it does`")
    last = 0
    for line in _comment_block(lines[1:]):
        match = re.match(r"-- *(KEYS|ARGV|REPLY|COST)\b", line)
        if not match:
            continue
        if _SECTIONS.index(match[1]) < last:
            problems.append(f"out of the order KEYS, ARGV, REPLY, COST: {line}")
        last = max(last, _SECTIONS.index(match[1]))
        problems += _parse_line(header, match[1], line)
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


def _parse_line(header: Header, section: str, line: str) -> Iterator[str]:
    """Add what a line declares to the header; yields the problems of the line."""
    if section in _slot_lines and (match := _slot_lines[section](line)):
        number, dots, name, pattern, kind, note = match.groups()
        slot = Slot(int(number), bool(dots), name, pattern, kind, note or "")
        header.slots[section].append(slot)
        if kind not in KINDS[section]:
            yield f"{section}[{number}] has the unknown kind {kind}"
        if section == "KEYS":
            yield from _pattern_problems(slot)
    elif section == "REPLY" and (reply := parse_reply_line(line)):
        word, fields = reply
        if word in header.replies:
            yield f"REPLY {word} is declared twice"
        header.replies[word] = fields
    elif line.startswith("-- COST "):
        header.costs += 1
    else:
        yield f"a header line cannot be read: {line}"


def _pattern_problems(slot: Slot) -> Iterator[str]:
    expected = KEY_PATTERNS.get(slot.name, slot.pattern)
    if slot.pattern != expected:
        yield f"KEYS[{slot.number}] has the pattern {slot.pattern}; keys.py spells {expected}"
    for pattern in slot.pattern.split("|"):
        if pattern not in {*KEY_PATTERNS.values(), ANY_KEY}:
            yield f"KEYS[{slot.number}]: keys.py spells no key {pattern}"


def _slot_problems(array: str, slots: Sequence[Slot]) -> Iterator[str]:
    numbers = [slot.number for slot in slots]
    if numbers != list(range(1, len(slots) + 1)):
        yield f"{array} has gaps or is out of order: {numbers}"
    if any(slot.is_tail for slot in slots[:-1]):
        yield f"{array} has a tail that is not last"
    optional = [slot.is_optional for slot in slots]
    if optional != sorted(optional):
        yield f"{array} has a required slot after an optional one"


# -- what Python sends --------------------------------------------------------------------------

TailReader = Callable[[Sequence[bytes], Sequence[Any]], int]
"""Takes KEYS and the arguments of the tail; returns how many of these a script reads."""


def check_call(
    header: Header,
    keys: Sequence[bytes],
    args: Sequence[Any],
    read_tail: TailReader | None = None,
) -> list[str]:
    """Where the keys and arguments that Python sends differ from the header."""
    problems: list[str] = []
    fixed_keys, fixed_args = header.fixed("KEYS"), header.fixed("ARGV")
    fewest = len([slot for slot in fixed_keys if not slot.is_optional])
    if len(keys) < fewest or (len(keys) > len(fixed_keys) and not header.tail("KEYS")):
        problems.append(f"{len(keys)} keys are sent; {fewest} to {len(fixed_keys)} are declared")
    if len(args) < len(fixed_args) or (len(args) > len(fixed_args) and not header.tail("ARGV")):
        problems.append(f"{len(args)} arguments are sent; {len(fixed_args)} are declared")
    for number, key in enumerate(keys):
        slot = header.slots["KEYS"][min(number, len(header.slots["KEYS"]) - 1)]
        if not slot.accepts_key(key):
            problems.append(f"KEYS[{number + 1}] is declared as {slot.pattern}, but is {key!r}")
    for slot, value in zip(fixed_args, args, strict=False):
        if not slot.accepts_argument(value):
            problems.append(f"ARGV[{slot.number}] is declared as {slot.kind}, but is {value!r}")
    if header.tail("ARGV") and not problems:
        tail = args[len(fixed_args) :]
        if read_tail is None:
            problems.append("no TailReader for this script")
        elif (read := read_tail(keys, tail)) != len(tail):
            problems.append(f"{len(tail)} arguments form the tail; the script reads {read}")
    return problems
