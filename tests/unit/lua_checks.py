"""The rules for Lua files as checks. Each yields one line of text for each violation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from lua_code import (
    KEYLESS_COMMANDS,
    READ_COMMANDS,
    WRITE_COMMANDS,
    WRITE_LINE,
    Code,
    command_calls,
    declared_replies,
    fragment_replies,
    function_calls,
    function_line,
    read_code,
    replies,
    split_list,
    writing_fragments,
)
from lua_header import Header, Slot, parse_header

_fixed_slot = re.compile(r"\b(KEYS|ARGV)\[(\d+)\]")
_array_use = re.compile(r"\b(KEYS|ARGV)\b(?!\[\d+\])")


# -- scripts ------------------------------------------------------------------------------------


def check_script(name: str, text: str, fragments: Mapping[str, str]) -> list[str]:
    """All problems of a script of lua/."""
    header, problems = parse_header(name, text)
    code = read_code(text)
    problems += _check_bindings(header, code)
    problems += _check_slot_use(header, code)
    problems += _check_script_replies(header, code, fragments)
    problems += _check_commands(code, _key_names(code), may_compute="no-writes" in header.flags)
    problems += _check_write_line(header, code, fragments)
    problems += _check_includes(code, fragments)
    problems += _check_text(code)
    return problems


def _bindings(code: Code) -> Iterator[tuple[int, str, str, int]]:
    """(line, local, array, number) of each `local name = ARGV[number]`."""
    for (line, _), bare in zip(code.lines, code.bare, strict=True):
        binding = re.fullmatch(r"local ([\w, ]+?) = (.+)", bare)
        if binding:
            names = [part.strip() for part in binding[1].split(",")]
            values = split_list(binding[2] + ")", 0)
            for name, value in zip(names, values, strict=False):
                if slot := _fixed_slot.search(value):
                    yield line, name, slot[1], int(slot[2])


def _key_names(code: Code) -> set[str]:
    return {name for _, name, array, _ in _bindings(code) if array == "KEYS"}


def _check_bindings(header: Header, code: Code) -> Iterator[str]:
    """Every slot is bound to a local, and the local is used."""
    bound = {line for line, *_ in _bindings(code)}
    for number, line in code.lines:
        if _fixed_slot.search(line) and number not in bound:
            yield f"line {number}: a slot is not bound to a local: {line.strip()}"
    declared = {slot.number: slot.name for slot in header.slots["KEYS"]}
    for line_number, name, array, slot_number in _bindings(code):
        if len(re.findall(rf"\b{name}\b", code.bare_text)) < 2:
            yield f"line {line_number}: {name} is bound and never used"
        if array == "KEYS" and declared.get(slot_number, name) != name:
            yield f"line {line_number}: KEYS[{slot_number}] is declared under another name"


def _check_slot_use(header: Header, code: Code) -> Iterator[str]:
    """The slots that the code uses are those that the header declares."""
    used: dict[str, set[int]] = {"KEYS": set(), "ARGV": set()}
    for match in _fixed_slot.finditer(code.text):
        used[match[1]].add(int(match[2]))
    for array in ("KEYS", "ARGV"):
        fixed = {slot.number for slot in header.fixed(array)}
        for number in sorted(used[array] - fixed):
            yield f"{array}[{number}] is not declared"
        for number in sorted(fixed - used[array]):
            yield f"{array}[{number}] is never used"
        tail = header.tail(array)
        text = code.bare_text.replace("local KEYS, ARGV = KEYS, ARGV\n", "")
        as_a_whole = any(match[1] == array for match in _array_use.finditer(text))
        if as_a_whole and tail is None:
            yield f"{array} is used as a whole, but declares no tail"
        if tail is not None and not as_a_whole:
            yield f"{array}[{tail.number}...] is never used"
        if tail is not None and not _starts_at(array, tail, code):
            yield f"{array}: nothing starts at the tail's number {tail.number}"


def _starts_at(array: str, tail: Slot, code: Code) -> bool:
    if array == "KEYS":
        return bool(re.search(rf"= {tail.number}, #KEYS\b", code.bare_text))
    binding = re.search(r"^local tail = (\d+)", code.bare_text, re.MULTILINE)
    return bool(binding and int(binding[1]) == tail.number)


def _check_script_replies(
    header: Header, code: Code, fragments: Mapping[str, str]
) -> Iterator[str]:
    yield from _check_replies(code, header.replies)
    for reply in replies(code):
        if reply.word is None:
            yield f"line {reply.line}: a reply does not begin with a status word"
    inherited = fragment_replies(code, fragments)
    for word, fields in inherited.items():
        if header.replies.get(word) != fields:
            yield f"a fragment returns {word} {fields}, which the header does not declare"
    for word in header.replies.keys() - inherited.keys() - {each.word for each in replies(code)}:
        yield f"{word} is declared and never returned"
    if not code.lines or not code.lines[-1][1].startswith("return {"):
        yield "the script does not end in a reply"
    for message in re.findall(r"error_reply\(\s*(['\"][^'\"]*)", code.text):
        if not message[1:].startswith("BUG"):
            yield f"an error_reply does not start with BUG: {message}'"


def _check_replies(code: Code, declared: Mapping[str, list[str]]) -> Iterator[str]:
    """Every status word has a REPLY line, and only values that survive a reply follow it."""
    for reply in replies(code):
        if reply.word is None:
            continue
        fields = declared.get(reply.word)
        if fields is None:
            yield f"line {reply.line}: {reply.word} has no REPLY line"
        elif len(fields) != len(reply.fields):
            counts = f"{len(reply.fields)} fields, not {len(fields)}"
            yield f"line {reply.line}: {reply.word} is returned with {counts}"
        for part in reply.fields:
            if part in ("nil", "true", "false") or re.fullmatch(r"\d+\.\d*", part):
                yield f"line {reply.line}: {part} does not survive a reply"


def _check_write_line(header: Header, code: Code, fragments: Mapping[str, str]) -> Iterator[str]:
    writes = [
        (call.line, call.command) for call in command_calls(code) if call.command in WRITE_COMMANDS
    ]
    writes += function_calls(code, writing_fragments(fragments))
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


# -- fragments ----------------------------------------------------------------------------------


def check_fragment(name: str, text: str, fragments: Mapping[str, str]) -> list[str]:
    """All problems of a fragment of lua/lib."""
    code = read_code(text)
    problems: list[str] = []
    if not re.search(rf"^-- {re.escape(name)}: \S", text, re.MULTILINE):
        problems.append(f"no comment `-- {name}: what it does`")
    if name not in {match[1] for match in function_line.finditer(code.bare_text)}:
        problems.append(f"no function {name}")
    for line in function_line.sub("begin", code.bare_text).splitlines():
        if not line.startswith(" ") and line not in ("begin", "end"):
            problems.append(f"more than local functions: {line}")
    for array in ("KEYS", "ARGV"):
        if re.search(rf"\b{array}\b", code.bare_text):
            problems.append(f"{array} is read")
    if re.search(r"\bargs\[\d+\]", code.bare_text):
        problems.append("an argument is read by its number, which belongs in the header's script")
    if code.write_lines:
        problems.append(f"a line `{WRITE_LINE}` belongs in scripts")
    problems += _check_replies(code, declared_replies(text))
    problems += _check_commands(code, _parameters(code), may_compute=False)
    problems += _check_includes(code, fragments)
    problems += _check_text(code)
    return problems


def _parameters(code: Code) -> set[str]:
    return {
        part.strip()
        for match in function_line.finditer(code.bare_text)
        for part in match[2].split(",")
    }


# -- both ---------------------------------------------------------------------------------------


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
    for name in code.inlined:
        if name not in fragments:
            yield f"no fragment {name}, which a comment names as inlined"


def _check_text(code: Code) -> Iterator[str]:
    for (number, line), bare in zip(code.lines, code.bare, strict=True):
        # The parts of TIME are text.
        if re.search(r"(?<!\.)\.\.(?!\.)", bare.replace("time[1] .. time[2]", "")):
            yield f"line {number}: `..` writes large integers as 1.7e+15, and must not make keys"
        if re.search(r"\bredis\.p?call\b(?!\()", bare) and line != "local call = redis.call":
            yield f"line {number}: redis.call may have no other name than `call`"
        if re.search(r"\btostring\(", bare):
            yield f"line {number}: tostring() writes large integers as 1.7e+15"
        if re.match(r"(\w+ =|function )", bare):
            assigned = re.match(r"(\w+) =", bare)
            if not assigned or not _is_local(assigned[1], code):
                yield f"line {number}: a global is set: {line}"


def _is_local(name: str, code: Code) -> bool:
    return bool(re.search(rf"\blocal [\w, ]*\b{name}\b|\bfor [\w, ]*\b{name}\b", code.bare_text))
