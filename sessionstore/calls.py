"""Calls: what is sent to the store, as data, and what its replies mean. No I/O here.

A Call is one atomic step: a script, plain commands, or a script and plain commands in one
transaction. An executor runs a Call and returns one reply per command. `Call.decode` turns the
replies into a result or an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Generic, Literal, Protocol, TypeVar

import msgspec

from .errors import (
    BackendRejected,
    BackendUnavailable,
    CorruptData,
    EventsMissing,
    InvalidArgument,
    LimitExceeded,
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

Word = bytes | str | int
Command = tuple[Word, ...]


class Call(msgspec.Struct, Generic[R], frozen=True, gc=False):
    """One atomic step.

    Attributes:
        name: the operation, for error messages and measurements.
        decode: turns the replies, the script's first, into a result, or raises.
        script: the script that runs first, or None.
        keys: the script's KEYS.
        args: the script's ARGV. Numbers are decimal text.
        commands: plain commands that run after the script, in the same transaction.
        idempotent: running it twice stores the same data as running it once, at the time of the
            second run; only `version` may differ. Only idempotent Calls are sent again when the
            outcome of the first attempt is unknown.
        writes: it changes data, not only deadlines, so that an unknown outcome matters.
        from_primary: a plain read that must not go to a replica.
        is_bulk: its data may be large. It uses a connection of its own, so that small Calls do not
            wait behind it.
        age_argument: the index in `args` of the argument to which the age of a repeat is appended,
            after a space, in microseconds, once the outcome of an attempt is unknown. It is the
            time from the first attempt to the call's deadline, plus a second.
        slot: routes a Call without keys in a cluster: a slot, or a key in that slot.
        for_key_store: it goes to the key store.
        must_be_confirmed: if too few replicas confirm it, NotReplicated is raised inside the flow.
    """

    name: str
    decode: Callable[[list[Any]], R]
    script: Script | None = None
    keys: tuple[bytes, ...] = ()
    args: tuple[bytes, ...] = ()
    commands: tuple[Command, ...] = ()
    idempotent: bool = True
    writes: bool = True
    from_primary: bool = False
    is_bulk: bool = False
    slot: int | bytes | None = None
    age_argument: int | None = None
    for_key_store: bool = False
    must_be_confirmed: bool = False


def decode_replies(call: Call[R], replies: list[Any]) -> R:
    """The result of a Call.

    Raises:
        ScriptContractError: a reply has a type or a form that no script and no command declares.
        SessionStoreError: what `decode` raises otherwise.
    """
    try:
        return call.decode(replies)
    except SessionStoreError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ScriptContractError(f"{call.name}: a reply has a wrong type or form") from error


class CallNeeded(Exception):
    """Replies can be decoded only after another Call. Drivers send it and decode again.

    Attributes:
        call: the Call to send. Its `decode` stores what is needed; its result is not used.
    """

    def __init__(self, call: Call[Any]) -> None:
        super().__init__(call.name)
        self.call = call


class OtherDataKey(CorruptData):
    """A session has another data key than the values of a write. Nothing was written.

    Attributes:
        data_key: the name of the session's data key; "" = it has none.
    """

    def __init__(self, message: str, *, key: str, data_key: str) -> None:
        super().__init__(message, key=key)
        self.data_key = data_key


Step = Call[Any] | tuple[Call[Any], ...]
"""What a flow yields: one Call, or several that are sent together."""

Flow = Generator[Step, Any, R]
"""An operation as a generator of Calls. drive.py runs it against an executor."""


class Observer(Protocol):
    """Sees the steps of one flow."""

    def ended(self, step: Step, result: Any) -> None:
        """A step has ended with this result, or with this exception. Returns at once."""


class AsyncExecutor(Protocol):
    """Runs Calls. For an error reply it raises the exception that `reply_error` returns."""

    async def execute(self, call: Call[Any]) -> list[Any]:
        """One reply per command of the Call."""

    async def aclose(self) -> None:
        """Release everything; later calls fail with BackendUnavailable."""


class SyncExecutor(Protocol):
    """Runs Calls for threads."""

    def execute(self, call: Call[Any]) -> list[Any]:
        """One reply per command of the Call."""

    def close(self) -> None:
        """Release everything; later calls fail with BackendUnavailable."""


Signal = Literal["listening", "message", "released", "lost", "refused"]
"""What a listener reports about a channel.

"listening": messages are received from now on; those that were published before may be lost.
"message": the log of the session has changed. "released": its turn is free. "lost": the connection
is gone; "listening" will follow. "refused": the server does not allow it.
"""

Listen = Callable[[bytes, Callable[[Signal], None]], Callable[[], None]]
"""Receives what scripts publish on a channel: `stop = listen(channel, notify)`.

Executors that can do it have it as their method `listen`. `notify` returns at once.
"""


def signal_of(message: bytes) -> Signal:
    """What a message means."""
    return "released" if message == b"turn" else "message"


def status(reply: Any, key: SessionKey, if_version: int | None = None) -> bytes:
    """The status word of a script's reply, if it means success.

    Raises:
        SessionNotFound, SessionExists, StaleVersion, TurnTaken, TurnLost, CorruptData,
            EventsMissing: the status word says so.
        InvalidArgument, LimitExceeded: the session does not allow the call.
        BackendUnavailable: the outcome of an earlier attempt is unknown.
        BackendRejected: a state value cannot be incremented.
        ScriptContractError: no script declares this reply.
    """
    word = reply[0] if isinstance(reply, list) and reply else None
    if word == b"OK" or word in _SUCCESS_WORDS:
        return word  # type: ignore[no-any-return]  # compared with bytes above
    name = describe(key)
    if word == b"NOT_FOUND":
        raise SessionNotFound(f"{name} does not exist")
    if word == b"EXISTS":
        raise SessionExists(f"{name} already exists")
    if word == b"TAKEN":
        raise TurnTaken(f"another run holds the turn of {name}", expires_at=from_us(reply[1]))
    if word == b"UNKNOWN":
        raise BackendUnavailable(
            f"the connection was lost during a write to {name}; the write may be done, and the "
            "session has changed since, so the write was not repeated",
            maybe_applied=True,
        )
    if word == b"CORRUPT":
        raise header_damage(reply[1], reply[2])
    if word == b"MISSING":
        raise events_missing(reply[1], reply[2], reply[3])
    if word == b"DUPLICATE":
        raise InvalidArgument(f"the new event is stored already in {name}")
    if word == b"TOO_LONG":
        actual, limit = reply[1:]
        message = f"{name} has {actual} events; at most {limit} can be copied"
        raise LimitExceeded(message, limit=limit, actual=actual)
    if word == b"INCOMPLETE":
        message = (
            f"events of {name} that were sent before are gone; nothing was restored, try again"
        )
        raise BackendRejected(message)
    if word == b"COVERED":
        raise InvalidArgument(
            f"to must be at least {reply[1]}: the summary of {name} covers events up to there, and "
            "some of them are no longer stored"
        )
    if word == b"LOST":
        raise TurnLost(f"the turn of {name} is lost: another run acquired it, or free_turn took it")
    if word == b"STALE":
        actual = int(reply[1])
        expected = if_version if if_version is not None else -1
        raise StaleVersion(
            f"{name} is at version {actual}, not {expected}", expected=expected, actual=actual
        )
    if word == b"SUPERSEDED":
        expected, actual = reply[1:]
        message = f"the summary of {name} ends at {actual}, not at {expected} (0 = no summary)"
        raise StaleVersion(message, expected=expected, actual=actual)
    if word == b"OTHER_KEY":
        data_key = reply[1].decode()
        text = (
            f"{name} is encrypted with a data key of its user: encryption and key_store are needed"
        )
        raise OtherDataKey(text, key=name, data_key=data_key)
    check_increments(reply)
    raise ScriptContractError(f"a script replied {word!r}")


def checked_reply(reply: Any, size: int) -> list[Any]:
    """The reply of a script that has only one status word, OK."""
    if not isinstance(reply, list) or len(reply) != size or reply[0] != b"OK":
        raise ScriptContractError(f"a script replied {reply!r:.40}")
    return reply


def describe(key: SessionKey) -> str:
    """A session in an error message."""
    return f"session {key.session_id!r} of user {key.user_id!r} in app {key.app_name!r}"


def check_increments(reply: Any) -> None:
    """BackendRejected if a script's reply refuses an increment."""
    if not isinstance(reply, list) or not reply or reply[0] not in _REFUSED_INCREMENTS:
        return
    key, field = (str(part, "utf-8", "replace") for part in map(bytes, reply[1:3]))
    fault = _REFUSED_INCREMENTS[reply[0]]
    raise BackendRejected(f"{key} field {field} {fault}; nothing was written")


def header_damage(key: bytes, field: bytes = b"") -> CorruptData:
    """The exception for a header that is lost while events are there, or that is not valid."""
    where = key.decode("utf-8", "replace")
    if field:
        where += f" field {field.decode('utf-8', 'replace')}"
    message = f"{where}: the header is lost or not valid; repair_session rebuilds it"
    return CorruptData(message, key=where)


def events_missing(key: bytes, expected: int, actual: int) -> EventsMissing:
    """The exception for a log that holds fewer events than it should."""
    where = key.decode("utf-8", "replace")
    return EventsMissing(
        f"{where} holds {actual} of {expected} events: the server has lost the others "
        "(maxmemory-policy noeviction prevents that); repair_session accepts what is left",
        expected=expected,
        actual=actual,
        key=where,
    )


_SUCCESS_WORDS = frozenset((b"ABSENT", b"ADDED", b"CREATED", b"EMPTY"))

_REFUSED_INCREMENTS = {
    b"NOT_INTEGER": "is not an integer and cannot be incremented",
    b"OUT_OF_RANGE": "cannot be incremented beyond 2**53",
}

_REFUSALS = {
    "OOM": "the server is out of memory (maxmemory); nothing was written",
    "READONLY": "the server is a read-only replica",
    "WRONGTYPE": "a key has a type that sessionstore does not store there",
    "MISCONF": "the server cannot save its data to disk and refuses writes",
    "NOREPLICAS": "the server has too few replicas and refuses writes",
}


def reply_error(call: Call[Any], message: str, wrong_key: bytes | None = None) -> SessionStoreError:
    """The exception for an error reply of the server. Its message contains no arguments.

    `wrong_key` is the key that has a wrong type, if it is known.
    """
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
        return BackendUnavailable(f"{where}: the password is missing or wrong ({code})")
    if code in ("MOVED", "ASK", "CROSSSLOT"):
        return BackendUnavailable(
            f"{where}: it is part of a cluster, use redis+cluster:// ({code})"
        )
    if "attempt to perform arithmetic" in message:
        return header_damage(call.keys[0])  # append_event does not look for the field
    if code in _REFUSALS:
        near = f"; first key: {call.keys[0].decode()}" if call.keys else ""
        if wrong_key is not None:
            near = f"; key: {wrong_key.decode()}"
        return BackendRejected(f"{where}: {_REFUSALS[code]} ({code}{near})")
    text = message.partition(", with args")[0]
    return BackendRejected(f"{where}: {text}")
