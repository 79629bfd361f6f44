"""The three tiers of state: sorts a caller's changes into tiers, merges what is stored.

A Delta changes one tier: encoded keys and values to set, and keys to remove. In the session's hash
state keys start with a dot and header fields do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from .codec import CALL_SIZE_LIMIT, Codec, corrupt, decode_value
from .errors import InvalidArgument, LimitExceeded

Tier = Literal["session", "user", "app"]

STATE_KEY_LIMIT = 1024
"""Maximum size of a state key, in bytes of UTF-8, without its tier prefix."""

STATE_KEYS_LIMIT = 10_000
"""Maximum number of state keys that one call sets and removes."""


class Delta(msgspec.Struct):
    """The changes to one tier, encoded."""

    pairs: list[bytes] = []  # key, value, key, value, ...
    removed: list[bytes] = []

    def __bool__(self) -> bool:
        return bool(self.pairs or self.removed)

    @classmethod
    def merged(cls, deltas: Iterable[Delta]) -> Delta:
        """One delta with the effect of several in order."""
        last: dict[bytes, bytes | None] = {}
        for delta in deltas:
            last.update(zip(delta.pairs[::2], delta.pairs[1::2], strict=True))
            last.update(dict.fromkeys(delta.removed))
        pairs = [part for key, value in last.items() if value is not None for part in (key, value)]
        return cls(pairs, [key for key, value in last.items() if value is None])

    def arguments(self) -> tuple[int | bytes, ...]:
        """The delta as arguments of a script."""
        return (len(self.pairs) // 2, *self.pairs, len(self.removed), *self.removed)


def check_call_size(path: str, size: int) -> None:
    """LimitExceeded if what a call writes is larger than CALL_SIZE_LIMIT. `path` is its name."""
    if size > CALL_SIZE_LIMIT:
        message = f"{path} has {size} bytes or more when encoded; at most {CALL_SIZE_LIMIT} are"
        raise LimitExceeded(f"{message} allowed in one call", limit=CALL_SIZE_LIMIT, actual=size)


class Change(msgspec.Struct):
    """What one call changes: a delta for each tier, and the same changes for a caller's Session."""

    session: Delta
    user: Delta
    app: Delta
    # With their prefixes, `temp:` included.
    values: dict[str, Any]
    removed: list[str]

    @property
    def is_stored(self) -> bool:
        """Whether the store has anything to change."""
        return bool(self.session or self.user or self.app)

    @property
    def size(self) -> int:
        """Number of bytes of the encoded keys and values to set."""
        deltas = (self.session, self.user, self.app)
        return sum(len(part) for delta in deltas for part in delta.pairs)

    def apply_to(self, state: dict[str, Any], *, only_temp: bool = False) -> None:
        """Change the merged state of a Session like the stored state.

        Args:
            state: what to change.
            only_temp: apply only the changes of `temp:` keys, which are never stored.
        """
        prefix = "temp:" if only_temp else ""
        for key, value in self.values.items():
            if key.startswith(prefix):
                state[key] = value
        for key in self.removed:
            if key.startswith(prefix):
                state.pop(key, None)


NO_CHANGE = Change(Delta(), Delta(), Delta(), {}, [])
"""The change of most events. Shared: must not be changed."""


def encode_change(
    codec: Codec,
    state: Mapping[str, Any],
    removed: Iterable[str] = (),
    *,
    path: str = "state",
    removed_path: str = "keys",
    tier: Tier = "session",
) -> Change:
    """Encode changes of state, sorted into tiers by the prefixes of the keys.

    Args:
        codec: encodes the values.
        state: what to set.
        removed: keys to remove.
        path: the name of `state` in error messages.
        removed_path: the name of `removed` in error messages.
        tier: "session" takes keys of all tiers; "user" and "app" take only keys of that tier, with
            or without its prefix.

    Raises:
        InvalidArgument: a key or a value cannot be stored; names the path.
        LimitExceeded: there are too many keys, or a key, a value or all together are too large.
    """
    if not isinstance(state, Mapping):
        raise InvalidArgument(f"{path} must be a dict, not {type(state).__name__}")
    if isinstance(removed, str) or not isinstance(removed, Iterable):
        kind = type(removed).__name__
        raise InvalidArgument(f"{removed_path} must be a list of keys, not {kind}")
    removed = list(removed)
    if not state and not removed:
        return NO_CHANGE
    change = Change(Delta(), Delta(), Delta(), {}, [])
    if len(state) + len(removed) > STATE_KEYS_LIMIT:
        count = len(state) + len(removed)
        raise LimitExceeded(
            f"{path} changes {count} keys; at most {STATE_KEYS_LIMIT} are allowed in one call",
            limit=STATE_KEYS_LIMIT,
            actual=count,
        )
    size = 0
    for key, value in state.items():
        target, stored, full = _parse_key(key, f"{path} key", tier)
        if full in change.values:
            raise InvalidArgument(f"{path} names {full!r} twice, with and without its prefix")
        data, copy = codec.encode_value(value, f"{path}[{key!r}]")
        size += len(stored) + len(data)
        check_call_size(path, size)
        if target != "temp":
            getattr(change, target).pairs += (stored, data)
        change.values[full] = copy
    for key in removed:
        target, stored, full = _parse_key(key, f"{removed_path} key", tier)
        if full in change.values:
            raise InvalidArgument(f"{removed_path} and {path} both name {full!r}")
        if target != "temp":
            getattr(change, target).removed.append(stored)
        change.removed.append(full)
    return change


def _parse_key(key: object, path: str, tier: Tier) -> tuple[str, bytes, str]:
    """Tier, encoded name, and name with prefix of a state key."""
    if not isinstance(key, str):
        raise InvalidArgument(f"{path} must be a str, not {type(key).__name__}: {key!r}")
    prefix, colon, rest = key.partition(":")
    target: str
    if not colon or prefix not in ("app", "user", "temp"):
        target, name = tier, key
    else:
        target, name = prefix, rest
        if tier not in ("session", prefix):
            raise InvalidArgument(f"{path} {key!r} does not belong to the {tier} tier")
    if not name:
        raise InvalidArgument(f"{path} must not be empty: {key!r}")
    try:
        stored = name.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{path} is not valid Unicode: {key!r}") from None
    if len(stored) > STATE_KEY_LIMIT:
        raise LimitExceeded(
            f"{path} is {len(stored)} bytes long; at most {STATE_KEY_LIMIT} are allowed",
            limit=STATE_KEY_LIMIT,
            actual=len(stored),
        )
    if target == "session":
        return target, b"." + stored, name
    return target, stored, f"{target}:{name}"


def decode_tier(
    state: dict[str, Any],
    fields: Iterable[tuple[bytes, bytes]],
    key: bytes,
    *,
    prefix: str = "",
    skip: int = 0,
) -> None:
    """Add the stored state of one tier to `state`.

    Args:
        state: the dict to add to.
        fields: names and encoded values.
        key: their Redis key, for error messages.
        prefix: the prefix of the names in `state`.
        skip: number of leading bytes of every stored name to drop.

    Raises:
        CorruptData: a stored value does not decode.
    """
    for field, value in fields:
        try:
            state[prefix + field[skip:].decode()] = decode_value(value)
        except ValueError as error:
            raise corrupt(key, error, field) from None
