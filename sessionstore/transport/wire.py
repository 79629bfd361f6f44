"""Calls as bytes, and replies as results. Sans I/O: both transports use it."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import hiredis

from ..calls import Argument, Call, Command
from ..scripts import SCRIPTS

# hiredis declares a tuple of one; it takes any number.
pack_command: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]
"""A command in RESP."""

MULTI = pack_command(("MULTI",))
EXEC = pack_command(("EXEC",))

# Error replies that say "not now": nothing was done, so any call may be sent again.
_TRANSIENT = ("LOADING", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN")


class Form(Enum):
    """How a Call is put on the wire."""

    EVALSHA = 1  # scripts by their hash
    EVAL = 2  # scripts with their text, for a server that does not know them
    # Reads in a script rather than a transaction, for a server that queues none: it is out of
    # memory, or the slot is on its way to another node.
    WITHOUT_MULTI = 3


class ReplyRefused(Exception):
    """An error reply of the server; the message is the server's own."""

    @property
    def code(self) -> str:
        """The first word, which says what kind of error it is."""
        return str(self).partition(" ")[0]

    def accepted_form(self, call: Call[Any], form: Form) -> Form | None:
        """Another form that this server will take. Nothing was done in the one it refused."""
        if self.code == "NOSCRIPT" and form is Form.EVALSHA:
            return Form.EVAL
        # Only reads: what a write does is refused for a reason.
        if self.code == "OOM" and not call.writes and form is not Form.WITHOUT_MULTI:
            return Form.WITHOUT_MULTI
        return None

    @property
    def is_migration(self) -> bool:
        """The slot is on its way to another node."""
        return self.code in ("ASK", "TRYAGAIN")

    @property
    def is_misplaced(self) -> bool:
        """The node is not, or not any more, the one for this call. Nothing was done."""
        return self.code in ("MOVED", "ASK", "READONLY")

    @property
    def is_transient(self) -> bool:
        """The server will answer later. Nothing was done."""
        return self.code in _TRANSIENT


def pack(call: Call[Any], form: Form, *, asking: bool = False) -> bytes:
    """A Call in RESP, as one contiguous transaction if it has several commands.

    Args:
        call: what to send.
        form: how to put it.
        asking: put ASKING before every command, for a node that is being given the slot. Then
            a Call of several commands must be WITHOUT_MULTI.
    """
    script = call.script
    if script is not None and not call.commands and form is Form.EVALSHA and not asking:
        # What most calls are.
        return pack_command(("EVALSHA", script.sha, len(call.keys), *call.keys, *call.args))
    commands = _commands(call, form)
    if asking:
        commands = [part for command in commands for part in (("ASKING",), command)]
    elif len(commands) == 1:
        return pack_command(commands[0])
    elif form is not Form.WITHOUT_MULTI:
        return b"".join((MULTI, *map(pack_command, commands), EXEC))
    return b"".join(map(pack_command, commands))


def reply_count(call: Call[Any], form: Form, *, asking: bool = False) -> int:
    """Number of replies that the server gives to `pack(call, form, asking=asking)`."""
    if form is Form.WITHOUT_MULTI:
        commands = bool(call.commands) + (call.script is not None)
    else:
        commands = len(call.commands) + (call.script is not None)
        if commands > 1:
            return commands + 2
    return commands * 2 if asking else commands


def unpack(replies: list[Any], form: Form, *, asking: bool = False) -> list[Any]:
    """One reply per command of a Call.

    Args:
        replies: all that the server gave to `pack(call, form, asking=asking)`.
        form: how the Call was put.
        asking: likewise.

    Raises:
        ReplyRefused: the first error among them.
    """
    if asking:
        replies = replies[1::2]
    results = replies
    if form is Form.WITHOUT_MULTI:
        *first, last = replies
        if isinstance(last, list) and len(last) == 2 and isinstance(last[1], list):
            results = [*first, *last[1]]
    elif len(replies) > 1 and isinstance(replies[-1], list):
        # Otherwise a command was refused when it was queued, and that reply says why.
        results = replies[-1]
    for reply in results:
        if isinstance(reply, hiredis.ReplyError):
            raise ReplyRefused(str(reply))
    return results


def _commands(call: Call[Any], form: Form) -> list[Command]:
    commands: list[Command] = []
    script = call.script
    if script is not None:
        brief = form is Form.EVALSHA
        name, body = ("EVALSHA", script.sha) if brief else ("EVAL", script.text)
        commands.append((name, body, len(call.keys), *call.keys, *call.args))
    if form is Form.WITHOUT_MULTI and call.commands:
        commands.append(_reads_in_a_script(call))
    else:
        commands += call.commands
    return commands


def _reads_in_a_script(call: Call[Any]) -> Command:
    keys = [command[1] for command in call.commands]
    args: list[Argument] = []
    for name, _, *rest in call.commands:
        args += (len(rest), name, *rest)
    return ("EVAL", SCRIPTS["run_reads"].text, len(keys), *keys, *args)
