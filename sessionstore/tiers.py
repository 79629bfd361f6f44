"""The three tiers of state: splitting what callers give, merging what is stored.

A delta is what goes to one tier: encoded keys and values to set, and keys to remove. Inside the
session's hash its state keys start with a dot, beside header fields that do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from .codec import Codec, corrupt, decode_value
from .errors import InvalidArgument, LimitExceeded

Tier = Literal["session", "user", "app"]

STATE_KEY_LIMIT = 1024
"""Largest state key, in bytes of UTF-8, without its tier prefix."""

STATE_KEYS_LIMIT = 10_000
"""Most state keys that one call may set or remove."""


class Delta(msgspec.Struct):
    """Changes of one tier, encoded."""

    pairs: list[bytes] = []  # key, value, key, value, ...
    removed: list[bytes] = []

    def __bool__(self) -> bool:
        return bool(self.pairs or self.removed)

    @classmethod
    def joined(cls, deltas: Iterable[Delta]) -> Delta:
        """One delta that does what several do in turn."""
        last: dict[bytes, bytes | None] = {}
        for delta in deltas:
            last.update(zip(delta.pairs[::2], delta.pairs[1::2], strict=True))
            last.update(dict.fromkeys(delta.removed))
        pairs = [part for key, value in last.items() if value is not None for part in (key, value)]
        return cls(pairs, [key for key, value in last.items() if value is None])

    def arguments(self) -> tuple[int | bytes, ...]:
        """The delta as the scripts read it."""
        return (len(self.pairs) // 2, *self.pairs, len(self.removed), *self.removed)


class Change(msgspec.Struct):
    """What one call does to state: a delta per tier, and the same for the caller's Session."""

    session: Delta
    user: Delta
    app: Delta
    copies: dict[str, Any]  # full key -> copy of the value, temp: included
    removed: list[str]  # full keys

    @property
    def is_stored(self) -> bool:
        """Whether anything goes to the store."""
        return bool(self.session or self.user or self.app)

    def apply(self, state: dict[str, Any]) -> None:
        """Do to a Session's merged state what the call did to the stored one."""
        state.update(self.copies)
        for key in self.removed:
            state.pop(key, None)

    def apply_temp(self, state: dict[str, Any]) -> None:
        """The part of `apply` that is never stored."""
        for key, value in self.copies.items():
            if key.startswith("temp:"):
                state[key] = value
        for key in self.removed:
            if key.startswith("temp:"):
                state.pop(key, None)


NO_CHANGE = Change(Delta(), Delta(), Delta(), {}, [])
"""What most events do to state. Shared, so never to be filled."""


def split(
    codec: Codec,
    state: Mapping[str, Any],
    removed: Iterable[str] = (),
    *,
    path: str,
    removed_path: str,
    tier: Tier = "session",
) -> Change:
    """Sort state into tiers by prefix, and encode it.

    Args:
        state: what to set. With `tier="session"` prefixes say where to; otherwise everything
            goes to that tier, with or without its prefix, and other prefixes are refused.
        removed: what to remove, likewise.
        path: what an error calls `state`.
        removed_path: what an error calls `removed`.

    Raises:
        InvalidArgument: a key or a value cannot be stored; names the path.
        LimitExceeded: too many keys, or one key or value too large.
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
    for key, value in state.items():
        target, stored, full = _place(key, f"{path} key", tier)
        if full in change.copies:
            raise InvalidArgument(f"{path} names {full!r} twice, with and without its prefix")
        data, copy = codec.encode_value(value, f"{path}[{key!r}]")
        if target != "temp":
            getattr(change, target).pairs += (stored, data)
        change.copies[full] = copy
    for key in removed:
        target, stored, full = _place(key, f"{removed_path} key", tier)
        if full in change.copies:
            raise InvalidArgument(f"{removed_path} and {path} both name {full!r}")
        if target != "temp":
            getattr(change, target).removed.append(stored)
        change.removed.append(full)
    return change


def _place(key: object, path: str, tier: Tier) -> tuple[str, bytes, str]:
    """Tier, stored form and full name of a state key."""
    if not isinstance(key, str):
        raise InvalidArgument(f"{path} must be a str, not {type(key).__name__}: {key!r}")
    prefix, colon, rest = key.partition(":")
    if not colon or prefix not in ("app", "user", "temp"):
        target, name = tier, key
    else:
        target, name = prefix, rest  # type: ignore[assignment]  # "temp" is told apart by callers
        if tier not in ("session", prefix):
            raise InvalidArgument(f"{path} {key!r} belongs to another tier than {tier}")
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


def read_tier(
    state: dict[str, Any],
    fields: Iterable[tuple[bytes, bytes]],
    key: bytes,
    *,
    prefix: str = "",
    skip: int = 0,
) -> None:
    """Add what is stored of one tier to `state`.

    Args:
        state: filled by this call.
        fields: names and encoded values.
        key: the Redis key they stand in, for error messages.
        prefix: put in front of every name.
        skip: leading bytes of every name to drop.

    Raises:
        CorruptData: a stored value does not decode.
    """
    for field, value in fields:
        try:
            state[prefix + field[skip:].decode()] = decode_value(value)
        except ValueError as error:
            raise corrupt(key, error, field) from None
