"""Calls as bytes, and replies as results. Sans I/O: both transports use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hiredis

from ..calls import Call, Command

# hiredis declares a tuple of one; it takes any number.
_pack_command: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]

MULTI = _pack_command(("MULTI",))
EXEC = _pack_command(("EXEC",))

# Error replies that say "not now": nothing was done, so any call may be sent again.
_TRANSIENT = ("LOADING", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN")


class ReplyRefused(Exception):
    """An error reply of the server; the message is the server's own."""

    @property
    def is_noscript(self) -> bool:
        """The server does not know the script: it must be sent whole. Nothing was done."""
        return str(self).startswith("NOSCRIPT")

    @property
    def is_transient(self) -> bool:
        """The server will answer later. Nothing was done."""
        return str(self).startswith(_TRANSIENT)


def pack(call: Call[Any], *, whole: bool) -> bytes:
    """A Call in RESP, as one contiguous transaction if it has several commands.

    Args:
        call: what to send.
        whole: send the script's text rather than its hash.
    """
    commands: list[Command] = list(call.then)
    if call.script is not None:
        name, script = ("EVAL", call.script.text) if whole else ("EVALSHA", call.script.sha)
        commands.insert(0, (name, script, len(call.keys), *call.keys, *call.args))
    if len(commands) == 1:
        return _pack_command(commands[0])
    return b"".join((MULTI, *map(_pack_command, commands), EXEC))


def reply_count(call: Call[Any]) -> int:
    """Number of replies that the server gives to `pack(call)`."""
    commands = len(call.then) + (call.script is not None)
    return 1 if commands == 1 else commands + 2


def unpack(replies: list[Any]) -> list[Any]:
    """One reply per command of a Call.

    Args:
        replies: all that the server gave to `pack(call)`.

    Raises:
        ReplyRefused: the first error among them.
    """
    if len(replies) == 1:
        results = replies
    else:
        results = replies[-1]
        if not isinstance(results, list):
            # The transaction was refused when a command was queued: that error says why.
            results = replies
    for reply in results:
        if isinstance(reply, hiredis.ReplyError):
            raise ReplyRefused(str(reply))
    return results
