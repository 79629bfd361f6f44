"""The three tiers of state: sorts a caller's changes into tiers, merges what is stored.

A Delta changes one tier: encoded keys and values to set, and keys to remove. In the session's hash
state keys start with a dot and header fields do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec

from .codec import CALL_SIZE_LIMIT, Codec, corrupt
from .errors import InvalidArgument, LimitExceeded
from .transform import Owner

Tier = Literal["session", "user", "app"]

STATE_KEY_LIMIT = 1024
"""Maximum size of a state key, in bytes of UTF-8, without its tier prefix."""

STATE_KEYS_LIMIT = 10_000
"""Maximum number of state keys that one call sets and removes."""


INCREMENT_LIMIT = 2**53 - 1
"""Maximum absolute value of an increment and of its sum: Lua computes exactly up to here."""

_TIER_NUMBERS = {"session": 1, "user": 2, "app": 3}


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

    def arguments(self) -> tuple[bytes, ...]:
        """The delta as arguments of a script."""
        num_pairs, num_removed = b"%d" % (len(self.pairs) // 2), b"%d" % len(self.removed)
        return (num_pairs, *self.pairs, num_removed, *self.removed)


class Increment(NamedTuple):
    """An integer to add to one state value."""

    tier: int  # as scripts count the tiers of a call, from 1
    field: bytes
    name: str  # with its prefix
    amount: int

    def arguments(self) -> tuple[bytes, ...]:
        """The increment as arguments of a script."""
        return b"%d" % self.tier, self.field, b"%d" % self.amount


def check_call_size(path: str, size: int) -> None:
    """LimitExceeded if what a call writes is larger than CALL_SIZE_LIMIT. `path` is its name."""
    if size > CALL_SIZE_LIMIT:
        message = f"{path} has {size} bytes or more when encoded; at most {CALL_SIZE_LIMIT} are"
        raise LimitExceeded(f"{message} allowed in one call", limit=CALL_SIZE_LIMIT, actual=size)


class Change(msgspec.Struct):
    """What one call changes: a delta for each tier, and the same changes for a caller's Session.

    Increments are not part of the deltas: only the store knows their sums.
    """

    session: Delta
    user: Delta
    app: Delta
    # With their prefixes, `temp:` included.
    values: dict[str, Any]
    removed: list[str]
    increments: list[Increment] = []

    @property
    def is_stored(self) -> bool:
        """Whether the store has anything to change."""
        return bool(self.session or self.user or self.app or self.increments)

    @property
    def changes_user(self) -> bool:
        """Whether it changes the user tier."""
        return bool(self.user) or any(
            each.tier == _TIER_NUMBERS["user"] for each in self.increments
        )

    @property
    def changes_app(self) -> bool:
        """Whether it changes the app tier."""
        return bool(self.app) or any(each.tier == _TIER_NUMBERS["app"] for each in self.increments)

    def increment_arguments(self) -> tuple[bytes, ...]:
        """The increments as arguments of a script."""
        parts = (part for each in self.increments for part in each.arguments())
        return (b"%d" % len(self.increments), *parts)

    def apply_sums_to(self, state: dict[str, Any], sums: Sequence[int]) -> None:
        """Set the new values of the increments in the merged state of a Session."""
        names = (increment.name for increment in self.increments)
        state.update(zip(names, sums, strict=True))

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
"""Used for most events. All share it, so it must not be modified."""


def encode_change(
    codec: Codec,
    owner: Owner,
    state: Mapping[str, Any],
    removed: Iterable[str] = (),
    increments: Mapping[str, int] = MappingProxyType({}),
    *,
    path: str = "state",
    removed_path: str = "keys",
    increments_path: str = "increments",
    tier: Tier = "session",
) -> Change:
    """Encode changes of state, sorted into tiers by the prefixes of the keys.

    Args:
        codec: encodes the values.
        owner: whose state it is.
        state: what to set.
        removed: keys to remove.
        increments: integers to add, by key.
        path: the name of `state` in error messages.
        removed_path: the name of `removed` in error messages.
        increments_path: the name of `increments` in error messages.
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
    if not isinstance(increments, Mapping):
        raise InvalidArgument(f"{increments_path} must be a dict, not {type(increments).__name__}")
    removed = list(removed)
    if not state and not removed and not increments:
        return NO_CHANGE
    change = Change(Delta(), Delta(), Delta(), {}, [])
    count = len(state) + len(removed) + len(increments)
    if count > STATE_KEYS_LIMIT:
        where = path if state or removed else increments_path
        raise LimitExceeded(
            f"{where} changes {count} keys; at most {STATE_KEYS_LIMIT} are allowed in one call",
            limit=STATE_KEYS_LIMIT,
            actual=count,
        )
    size = 0
    for key, value in state.items():
        target, stored, full = _parse_key(key, f"{path} key", tier)
        if full in change.values:
            raise InvalidArgument(f"{path} names {full!r} twice, with and without its prefix")
        data, copy = codec.encode_value(value, f"{path}[{key!r}]", owner, full)
        size += len(stored) + len(data)
        check_call_size(path, size)
        if target != "temp":
            getattr(change, target).pairs += (stored, data)
        change.values[full] = copy
    for number, key in enumerate(removed):
        target, stored, full = _parse_key(key, f"{removed_path}[{number}]", tier)
        if full in change.values:
            raise InvalidArgument(f"{removed_path} and {path} both name {full!r}")
        if target != "temp":
            getattr(change, target).removed.append(stored)
        change.removed.append(full)
    if increments:
        change.increments = _encode_increments(increments, increments_path, tier, change)
    return change


def _encode_increments(
    increments: Mapping[str, int], path: str, tier: Tier, change: Change
) -> list[Increment]:
    """Increments, sorted into tiers. `change` has what else the call changes."""
    found: dict[str, Increment] = {}
    changed = change.values.keys() | change.removed
    for key, amount in increments.items():
        target, stored, full = _parse_key(key, f"{path} key", tier)
        if target == "temp":
            raise InvalidArgument(f"{path} names {full!r}, but temp: state is never stored")
        if full in found:
            raise InvalidArgument(f"{path} names {full!r} twice, with and without its prefix")
        if full in changed:
            raise InvalidArgument(f"{path} and another change both name {full!r}")
        if not isinstance(amount, int) or isinstance(amount, bool):
            kind = type(amount).__name__
            raise InvalidArgument(f"{path}[{key!r}] must be an int, not {kind}")
        if abs(amount) > INCREMENT_LIMIT:
            raise InvalidArgument(f"{path}[{key!r}] must be between -(2**53 - 1) and 2**53 - 1")
        number = 1 if target == tier else _TIER_NUMBERS[target]
        found[full] = Increment(number, stored, full, amount)
    return list(found.values())


def _parse_key(key: object, path: str, tier: Tier) -> tuple[str, bytes, str]:
    """A state key's tier or "temp", its name as stored, and its name with prefix."""
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
    codec: Codec,
    owner: Owner,
    state: dict[str, Any],
    fields: Iterable[tuple[bytes, bytes]],
    key: bytes,
    tier: Tier,
    *,
    with_prefix: bool = True,
) -> None:
    """Add the stored state of one tier to `state`.

    Args:
        codec: decodes the values.
        owner: whose state it is.
        state: the dict to add to.
        fields: names and encoded values.
        key: their Redis key, for error messages.
        tier: which tier it is.
        with_prefix: the names in `state` have the prefix of the tier.

    Raises:
        CorruptData: a stored value does not decode.
    """
    skip, prefix = (1, "") if tier == "session" else (0, f"{tier}:")
    decode = codec.decode_value
    for field, value in fields:
        try:
            name = field[skip:].decode()
            full = prefix + name
            state[full if with_prefix else name] = decode(value, owner, full)
        except ValueError as error:
            raise corrupt(key, error, field) from None
