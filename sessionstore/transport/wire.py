"""Calls as bytes, and replies as results. Does no I/O."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import hiredis
import msgspec

from ..calls import Call, Command, Word
from ..scripts import SCRIPTS
from .failures import ErrorReply

# hiredis declares a tuple of one; it takes any number.
_pack_bytes: Callable[[tuple[bytes, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]

# Added to the age of a Call that is sent again: time until the server runs it.
_TRANSIT_S = 1.0


def pack_command(command: Command) -> bytes:
    """Encode a command in RESP.

    hiredis gets only bytes. It crashes if a signal handler raises while it converts a number.
    """
    return _pack_bytes(tuple([_as_bytes(part) for part in command]))


# Cached: an agent reads the same session again and again.
_pack_read = lru_cache(maxsize=4096)(pack_command)


def _as_bytes(part: Word) -> bytes:
    if isinstance(part, bytes):
        return part
    return part.encode() if isinstance(part, str) else b"%d" % part


MULTI = pack_command(("MULTI",))
EXEC = pack_command(("EXEC",))


Form = Literal["EVALSHA", "EVAL", "WITHOUT_MULTI"]
"""How a Call is encoded.

"EVALSHA" sends scripts by their hash. "EVAL" sends their text, for a server that does not know the
hash. "WITHOUT_MULTI" sends reads in a script instead of a transaction, for a server that refuses to
queue commands: it is out of memory, or the slot is being moved to another node.
"""


def pack(
    call: Call[Any], form: Form, *, asking: bool = False, began_at: float | None = None
) -> bytes:
    """A Call in RESP. Several commands make one contiguous transaction.

    `asking` puts ASKING before every command, for a node that is importing the slot. Then a Call of
    several commands must be WITHOUT_MULTI.

    `began_at` is when the call began, if the outcome of an earlier attempt is unknown.
    """
    if began_at is not None and call.age_argument is not None:
        age_us = round((time.monotonic() - began_at + _TRANSIT_S) * 1_000_000)
        aged = [*call.args]
        aged[call.age_argument] += b" %d" % age_us
        call = msgspec.structs.replace(call, args=tuple(aged))
    script = call.script
    if script is not None and not call.commands and form == "EVALSHA" and not asking:
        # Fast path: most Calls are one script.
        keys = call.keys
        return _pack_bytes((b"EVALSHA", script.sha, b"%d" % len(keys), *keys, *call.args))
    commands = _commands(call, form)
    if asking:
        commands = [part for command in commands for part in (("ASKING",), command)]
    elif len(commands) == 1:
        return pack_command(commands[0])
    elif form != "WITHOUT_MULTI":
        first = (pack_command(commands[0]),) if script is not None else ()
        return b"".join((MULTI, *first, *map(_pack_read, call.commands), EXEC))
    return b"".join(map(pack_command, commands))


def reply_count(call: Call[Any], form: Form, *, asking: bool = False) -> int:
    """Number of replies to `pack(call, form, asking=asking)`."""
    if form == "WITHOUT_MULTI":
        commands = bool(call.commands) + (call.script is not None)
    else:
        commands = len(call.commands) + (call.script is not None)
        if commands > 1:
            return commands + 2
    return commands * 2 if asking else commands


def unpack(replies: list[Any], form: Form, *, asking: bool = False) -> list[Any]:
    """One reply per command of a Call, from all replies to `pack(call, form, asking=asking)`.

    Raises:
        ErrorReply: the first error among the replies.
    """
    if asking:
        replies = replies[1::2]
    results = replies
    if form == "WITHOUT_MULTI":
        *first, last = replies
        if isinstance(last, list) and len(last) == 2 and isinstance(last[1], list):
            results = [*first, *last[1]]
    elif len(replies) > 1 and isinstance(replies[-1], list):
        # EXEC worked. If it failed, one of the earlier replies says why.
        results = replies[-1]
    for reply in results:
        if isinstance(reply, hiredis.ReplyError):
            raise ErrorReply(str(reply))
    return results


def _commands(call: Call[Any], form: Form) -> list[Command]:
    commands: list[Command] = []
    script = call.script
    if script is not None:
        by_hash = form == "EVALSHA"
        name, body = ("EVALSHA", script.sha) if by_hash else ("EVAL", script.text)
        commands.append((name, body, len(call.keys), *call.keys, *call.args))
    if form == "WITHOUT_MULTI" and call.commands:
        commands.append(_reads_in_a_script(call))
    else:
        commands += call.commands
    return commands


def _reads_in_a_script(call: Call[Any]) -> Command:
    keys = [command[1] for command in call.commands]
    args: list[Word] = []
    for name, _, *rest in call.commands:
        args += (len(rest), name, *rest)
    return ("EVAL", SCRIPTS["run_reads"].text, len(keys), *keys, *args)
