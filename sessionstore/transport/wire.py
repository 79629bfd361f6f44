"""Calls as bytes, and replies as results. Sans I/O: both transports use it."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import hiredis

from ..calls import Argument, Call, Command
from ..scripts import SCRIPTS

# hiredis declares a tuple of one; it takes any number.
_pack_command: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]

MULTI = _pack_command(("MULTI",))
EXEC = _pack_command(("EXEC",))

# Error replies that say "not now": nothing was done, so any call may be sent again.
_TRANSIENT = ("LOADING", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN")


class Form(Enum):
    """How a Call is put on the wire."""

    BRIEF = 1  # scripts by their hash
    WHOLE = 2  # scripts with their text, for a server that does not know them
    UNQUEUED = 3  # reads in a script rather than a transaction, for a server out of memory


class ReplyRefused(Exception):
    """An error reply of the server; the message is the server's own."""

    def better_form(self, call: Call[Any], form: Form) -> Form | None:
        """Another form that this server will take. Nothing was done in the one it refused."""
        text = str(self)
        if text.startswith("NOSCRIPT") and form is Form.BRIEF:
            return Form.WHOLE
        # Only reads: what a write does is refused for a reason.
        if text.startswith("OOM") and not call.writes and form is not Form.UNQUEUED:
            return Form.UNQUEUED
        return None

    @property
    def is_transient(self) -> bool:
        """The server will answer later. Nothing was done."""
        return str(self).startswith(_TRANSIENT)


def pack(call: Call[Any], form: Form) -> bytes:
    """A Call in RESP, as one contiguous transaction if it has several commands.

    Args:
        call: what to send.
        form: how to put it.
    """
    if form is Form.UNQUEUED:
        return b"".join(map(_pack_command, _unqueued(call)))
    script = call.script
    if script is None:
        commands = call.then
    else:
        name, body = ("EVAL", script.text) if form is Form.WHOLE else ("EVALSHA", script.sha)
        command = (name, body, len(call.keys), *call.keys, *call.args)
        if not call.then:
            return _pack_command(command)
        commands = (command, *call.then)
    if len(commands) == 1:
        return _pack_command(commands[0])
    return b"".join((MULTI, *map(_pack_command, commands), EXEC))


def reply_count(call: Call[Any], form: Form) -> int:
    """Number of replies that the server gives to `pack(call, form)`."""
    if form is Form.UNQUEUED:
        return 1 + (call.script is not None)
    commands = len(call.then) + (call.script is not None)
    return 1 if commands == 1 else commands + 2


def unpack(replies: list[Any], form: Form) -> list[Any]:
    """One reply per command of a Call.

    Args:
        replies: all that the server gave to `pack(call, form)`.
        form: how the Call was put.

    Raises:
        ReplyRefused: the first error among them.
    """
    results = replies
    if form is Form.UNQUEUED:
        *touched, reads = replies
        results = [*touched, *reads[1]] if isinstance(reads, list) else replies
    elif len(replies) > 1 and isinstance(replies[-1], list):
        # Otherwise a command was refused when it was queued, and that reply says why.
        results = replies[-1]
    for reply in results:
        if isinstance(reply, hiredis.ReplyError):
            raise ReplyRefused(str(reply))
    return results


def _unqueued(call: Call[Any]) -> list[Command]:
    """A read as one or two scripts, each with its text: this form is rare."""
    commands: list[Command] = []
    if call.script is not None:
        commands.append(("EVAL", call.script.text, len(call.keys), *call.keys, *call.args))
    keys = [command[1] for command in call.then]
    args: list[Argument] = []
    for name, _, *rest in call.then:
        args += (len(rest), name, *rest)
    commands.append(("EVAL", SCRIPTS["run_reads"].text, len(keys), *keys, *args))
    return commands
