"""The options of a service, checked when it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from .codec import CALL_SIZE_LIMIT, SUMMARY_SIZE_LIMIT, Codec, Format
from .compression import Zstd
from .data_keys import DataKeys, UserEncryption
from .encryption import KeyRing
from .errors import InvalidArgument
from .keys import Keys, PartitionBy
from .transform import Transform

Duration = timedelta | float
"""A timedelta, or seconds."""

EventLimit = int | UnsetType | None
"""How many of its newest events a session keeps; None = all; UNSET = the session's own limit."""

WaitReplicas = tuple[int, Duration]
"""How many replicas must confirm a write, 1 or more, and how long to wait for them."""

ReadFrom = Literal["primary", "replica"]
"""Which servers answer plain reads."""

_HIGHEST = 2**53  # Lua's numbers are exact up to here
_LONGEST_S = 100 * 365 * 86_400.0  # 100 years


class Options(msgspec.Struct, frozen=True):
    """Checked options, in the units that the scripts use.

    Attributes:
        keys: spells the keys.
        codec: encodes and decodes.
        session_event_limit: how many of the newest events are kept; 0 = all; None = the session's
            own limit, and the scripts' default for new sessions.
        session_ttl_ms: TTL of sessions in milliseconds; 0 = never.
        app_state_ttl_ms: TTL of the app tier, likewise.
        app_state_max_age_ms: how old a copy of the app tier may be; 0 = no copies.
        user_state_ttl_ms: TTL of the user tier, likewise.
        stream_ttl_ms: how long fragments are kept; 0 = they are not kept.
        refresh_ttl_on_read: reads refresh TTLs too.
        summary_size_limit: maximum size of an encoded summary, in bytes.
        data_keys: with a key store, the data keys of users.
    """

    keys: Keys
    codec: Codec
    session_event_limit: int | None
    session_ttl_ms: int
    app_state_ttl_ms: int
    user_state_ttl_ms: int
    refresh_ttl_on_read: bool
    summary_size_limit: int = SUMMARY_SIZE_LIMIT
    stream_ttl_ms: int = 0
    data_keys: DataKeys | None = None
    app_state_max_age_ms: int = 0

    @property
    def any_ttl(self) -> bool:
        """Whether anything expires."""
        return bool(self.session_ttl_ms or self.app_state_ttl_ms or self.user_state_ttl_ms)


def check_options(
    *,
    session_event_limit: EventLimit,
    session_ttl: Duration | None,
    app_state_ttl: Duration | None,
    user_state_ttl: Duration | None,
    refresh_ttl_on_read: bool,
    key_prefix: str,
    codec: Format,
    partition_by: PartitionBy,
    event_size_limit: int,
    value_size_limit: int,
    summary_size_limit: int,
    stream_ttl: Duration | None = None,
    app_state_max_age: Duration | None = None,
    compression: Zstd | None = None,
    encryption: Transform | None = None,
    has_key_store: bool = False,
) -> Options:
    """The options of a service, checked. InvalidArgument names the option that is not valid."""
    keys = Keys(key_prefix, partition_by)
    data_keys = _check_encryption(encryption, keys, has_key_store)
    return Options(
        keys=keys,
        codec=Codec(
            codec,
            check_int("event_size_limit", event_size_limit, low=1, high=CALL_SIZE_LIMIT),
            check_int("value_size_limit", value_size_limit, low=1, high=CALL_SIZE_LIMIT),
            _check_compression(compression),
            encryption if data_keys is None else UserEncryption(data_keys),
        ),
        session_event_limit=check_event_limit("session_event_limit", session_event_limit),
        session_ttl_ms=_check_ttl("session_ttl", session_ttl),
        app_state_ttl_ms=_check_ttl("app_state_ttl", app_state_ttl),
        user_state_ttl_ms=_check_ttl("user_state_ttl", user_state_ttl),
        refresh_ttl_on_read=check_bool("refresh_ttl_on_read", refresh_ttl_on_read),
        summary_size_limit=check_int(
            "summary_size_limit", summary_size_limit, low=1, high=CALL_SIZE_LIMIT
        ),
        stream_ttl_ms=_check_ttl("stream_ttl", stream_ttl),
        data_keys=data_keys,
        app_state_max_age_ms=_check_ttl("app_state_max_age", app_state_max_age),
    )


def _check_encryption(ring: object, keys: Keys, has_key_store: bool) -> DataKeys | None:
    """The data keys of a service with a key store."""
    if ring is not None and not all(hasattr(ring, name) for name in ("wrap", "unwrap")):
        raise InvalidArgument(f"encryption must be a KeyRing, not {type(ring).__name__}")
    if not has_key_store:
        return None
    if not isinstance(ring, KeyRing):
        raise InvalidArgument("key_store needs encryption, a KeyRing")
    return DataKeys(ring, keys)


# Each function below returns the value if it is valid and raises InvalidArgument otherwise. `name`
# is the argument that the error message names.


def check_bool(name: str, value: object) -> bool:
    """A bool."""
    if not isinstance(value, bool):
        raise InvalidArgument(f"{name} must be True or False, not {type(value).__name__}")
    return value


def check_int(name: str, value: object, *, low: int, high: int = _HIGHEST) -> int:
    """An int from `low` to `high`, both included."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument(f"{name} must be an int, not {type(value).__name__}")
    if not low <= value <= high:
        bounds = f"at least {low}" if value < low else f"at most {high}"
        shown = f", not {value}" if value.bit_length() <= 64 else ""  # str() refuses huge integers
        raise InvalidArgument(f"{name} must be {bounds}{shown}")
    return value


def check_event_limit(name: str, value: EventLimit) -> int | None:
    """How many events a session keeps; 0 = all, None = not given."""
    if value is UNSET:
        return None
    return 0 if value is None else check_int(name, value, low=1)


def check_instant(name: str, value: object) -> datetime:
    """A timezone-aware datetime."""
    if not isinstance(value, datetime):
        raise InvalidArgument(f"{name} must be a datetime, not {type(value).__name__}")
    if value.utcoffset() is None:
        raise InvalidArgument(f"{name} must be timezone-aware")
    return value


def check_seconds(name: str, value: object) -> float:
    """A positive duration of up to 100 years, in seconds."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        kind = type(value).__name__
        raise InvalidArgument(f"{name} must be a timedelta or seconds, not {kind}")
    if not 0 < value <= _LONGEST_S:  # also refuses NaN
        shown = "" if value > _LONGEST_S else f", not {value}"
        raise InvalidArgument(f"{name} must be above 0 and at most 100 years{shown}")
    return float(value)


def check_milliseconds(name: str, value: object) -> int:
    """A duration of at least a millisecond, in milliseconds."""
    milliseconds = round(check_seconds(name, value) * 1000)
    if milliseconds < 1:
        raise InvalidArgument(f"{name} must be at least a millisecond, not {value}")
    return milliseconds


def _check_ttl(name: str, value: Any) -> int:
    return 0 if value is None else check_milliseconds(name, value)


def _check_compression(value: object) -> Zstd | None:
    if value is not None and not isinstance(value, Zstd):
        raise InvalidArgument(f"compression must be a Zstd, not {type(value).__name__}")
    return value


def check_wait_replicas(value: object, call_timeout_s: float) -> tuple[int, float] | None:
    """Number of replicas that must confirm a write, and seconds to wait; None = do not wait."""
    if value is None:
        return None
    if not isinstance(value, tuple) or len(value) != 2:
        raise InvalidArgument("wait_replicas must be None or a tuple (replicas, timeout)")
    replicas = check_int("wait_replicas: the number of replicas", value[0], low=1, high=1000)
    timeout_s = check_milliseconds("wait_replicas: the timeout", value[1]) / 1000
    if timeout_s > call_timeout_s:
        limit = f"call_timeout, {call_timeout_s:g} s"
        raise InvalidArgument(f"wait_replicas: the timeout must be at most {limit}")
    return replicas, timeout_s


def check_read_from(value: object, *, refreshes: object) -> ReadFrom:
    """Which servers answer plain reads. Replicas cannot, if reads refresh TTLs."""
    if value not in ("primary", "replica"):
        raise InvalidArgument(f"read_from must be 'primary' or 'replica', not {value!r}")
    if value == "replica" and refreshes:
        raise InvalidArgument(
            "read_from='replica' needs refresh_ttl_on_read=False: a replica cannot refresh a TTL"
        )
    return "replica" if value == "replica" else "primary"


def check_key_store(value: object, url: str | None) -> None:
    """The URL of a key store, which must not be that of the data."""
    if not isinstance(value, str):
        raise InvalidArgument(f"key_store must be a URL, not {type(value).__name__}")
    if value == url:
        raise InvalidArgument(
            "key_store must not be the URL of the data: name another server or database"
        )


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Within the context, error messages about an option begin with its name."""
    try:
        yield
    except InvalidArgument as error:
        raise InvalidArgument(f"{name}: {error}") from None


def check_memory_key_store(value: object) -> None:
    """The key store of a service in memory."""
    if value not in (None, "memory://"):
        raise InvalidArgument('key_store must be "memory://" or None in memory')


def check_clock(value: object) -> Callable[[], float]:
    """A function that returns the time."""
    if not callable(value):
        raise InvalidArgument(f"clock must be a function, not {type(value).__name__}")
    return value
