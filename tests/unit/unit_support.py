"""Shared by the unit tests: settings of properties, exact comparison."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings

# For property tests, without a deadline: an example takes longer on a busy machine.
unhurried = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])


def is_same(left: Any, right: Any) -> bool:
    """Whether two values are equal, of the same types at every level, zeros of the same sign."""
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
