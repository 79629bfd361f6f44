"""Shared by the unit tests: checked options, exact comparison."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings

from sessionstore.ops import Ops
from sessionstore.options import Options, check_options

# For properties: how fast an example is depends on what else the machine does.
unhurried = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])

NOON = datetime(2024, 5, 15, 12, 0, 0, 123456, tzinfo=UTC)


def make_options(**changes: Any) -> Options:
    """The options of a service that was given these and no others."""
    arguments: dict[str, Any] = {
        "session_event_limit": 1000,
        "session_ttl": None,
        "app_state_ttl": None,
        "user_state_ttl": None,
        "refresh_ttl_on_read": True,
        "key_prefix": "",
        "codec": "json",
        "partition_by": "user",
        "event_size_limit": 1 << 20,
        "value_size_limit": 1 << 20,
    }
    return check_options(**{**arguments, **changes})


def make_ops(*, app_in_own_slot: bool = False, **changes: Any) -> Ops:
    return Ops(make_options(**changes), app_in_own_slot=app_in_own_slot)


def is_same(left: Any, right: Any) -> bool:
    """Equal, of the same types at every level, and with the same sign of zero."""
    if isinstance(left, datetime) and isinstance(right, datetime):
        return left == right
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return len(left) == len(right) and all(
            is_same(key, other_key) and is_same(value, other)
            for (key, value), (other_key, other) in zip(left.items(), right.items(), strict=True)
        )
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(is_same, left, right))
    if isinstance(left, float):
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    if isinstance(left, msgspec.Struct):
        return is_same(msgspec.structs.astuple(left), msgspec.structs.astuple(right))
    return bool(left == right)
