"""What is sent to the store, as data, and what its answers mean. No I/O here.

A Call is one atomic step: a script, plain commands, or a script followed by plain commands in one
transaction. Executors carry Calls out and hand back one reply per command; `Call.decode` turns
them into a result or raises.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from .errors import (
    BackendRejected,
    BackendUnavailable,
    ScriptContractError,
    SessionExists,
    SessionNotFound,
    SessionStoreError,
    StaleVersion,
    TurnLost,
    TurnTaken,
)
from .model import SessionKey
from .scripts import Script
from .times import from_us

R = TypeVar("R")

Argument = bytes | str | int
Command = tuple[Argument, ...]


class Call(msgspec.Struct, Generic[R], frozen=True, gc=False):
    """One atomic step.

    Attributes:
        name: the operation, for error messages and measurements.
        decode: the replies, one per command, the script's first -> result; raises what they mean.
        script: the script that goes first, or None.
        keys: the script's KEYS.
        args: the script's ARGV.
        commands: plain commands that follow in the same transaction.
        idempotent: running it twice within the call leaves what running it once, at the time of
            the second run, leaves (`version` may count both). Only such Calls are sent again
            after an unknown outcome.
        writes: it changes data, not only deadlines; so an unknown outcome matters.
        is_bulk: it may carry so much that small calls should not have to wait behind it.
        slot: where no key is named, a cluster slot of the server that is asked, or a key in it.
    """

    name: str
    decode: Callable[[list[Any]], R]
    script: Script | None = None
    keys: tuple[bytes, ...] = ()
    args: tuple[Argument, ...] = ()
    commands: tuple[Command, ...] = ()
    idempotent: bool = True
    writes: bool = True
    is_bulk: bool = False
    slot: int | bytes | None = None


Step = Call[Any] | tuple[Call[Any], ...]
"""What a flow yields: one Call, or several that are sent together."""

Flow = Generator[Step, Any, R]
"""An operation as a generator of Calls. drive.py runs it against an executor."""


class AsyncExecutor(Protocol):
    """Carries out Calls. Replies that are server errors are raised as `reply_error` says."""

    async def execute(self, call: Call[Any]) -> list[Any]:
        """One reply per command of the Call."""

    async def aclose(self) -> None:
        """Release everything; later calls fail with BackendUnavailable."""


class SyncExecutor(Protocol):
    """The same for threads."""

    def execute(self, call: Call[Any]) -> list[Any]:
        """One reply per command of the Call."""

    def close(self) -> None:
        """Release everything; later calls fail with BackendUnavailable."""


def status(reply: Any, key: SessionKey, if_version: int | None = None) -> bytes:
    """The status word of a script's reply, if it is one of success.

    Raises:
        SessionNotFound, SessionExists, StaleVersion, TurnTaken, TurnLost: what the word means.
        ScriptContractError: not a word that any script declares.
    """
    word = reply[0] if isinstance(reply, list) and reply else None
    if word == b"OK" or word in _GOOD_WORDS:
        return word  # type: ignore[no-any-return]  # compared with bytes above
    name = f"session {key.session_id!r} of user {key.user_id!r} in app {key.app_name!r}"
    if word == b"NOT_FOUND":
        raise SessionNotFound(f"{name} does not exist")
    if word == b"EXISTS":
        raise SessionExists(f"{name} exists already")
    if word == b"TAKEN":
        raise TurnTaken(f"another run has the turn of {name}", expires_at=from_us(reply[1]))
    if word == b"LOST":
        raise TurnLost(f"another run has taken the turn of {name}")
    if word == b"STALE":
        actual = int(reply[1])
        expected = if_version if if_version is not None else -1
        raise StaleVersion(
            f"{name} is at version {actual}, not {expected}", expected=expected, actual=actual
        )
    raise ScriptContractError(f"a script answered {word!r}")


_GOOD_WORDS = frozenset((b"CREATED", b"EMPTY"))

_MEANING = {
    "OOM": "the server is out of memory (maxmemory); nothing was written",
    "READONLY": "the server is a read-only replica",
    "WRONGTYPE": "a key holds another type than sessionstore stores there",
    "MISCONF": "the server cannot save its data to disk and refuses writes",
    "NOREPLICAS": "the server has too few replicas and refuses writes",
}


def reply_error(call: Call[Any], message: str) -> SessionStoreError:
    """The exception for an error reply of the server. Never quotes arguments."""
    code, _, rest = message.partition(" ")
    where = f"{call.name} was refused by the server"
    if code == "BUG" or (code == "ERR" and rest.startswith("BUG")):
        return ScriptContractError(f"{call.name}: {message}")
    if "Error compiling script" in message and "'#'" in message:
        return BackendRejected(
            f"{where}: it is too old to run `#!lua` scripts; "
            "Redis 7.0 or later or Valkey 7.2 or later is needed"
        )
    if code in ("NOAUTH", "WRONGPASS"):
        return BackendUnavailable(f"{where}: it wants a password, or another one ({code})")
    if code in ("MOVED", "ASK", "CROSSSLOT"):
        return BackendUnavailable(
            f"{where}: it is part of a cluster, use redis+cluster:// ({code})"
        )
    if code in _MEANING:
        key = (call.keys or (b"",))[0].decode()
        return BackendRejected(f"{where}: {_MEANING[code]} ({code}; {key})")
    text = message.partition(", with args")[0]
    return BackendRejected(f"{where}: {text}")
