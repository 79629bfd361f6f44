"""Instants: aware datetimes outside, integer microseconds since 1970 inside."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_us(instant: datetime) -> int:
    """Microseconds since 1970 of an aware datetime, exactly."""
    return (instant - _EPOCH) // _MICROSECOND


def from_us(microseconds: int) -> datetime:
    """The datetime, in UTC, of microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=microseconds)


def utc_now() -> datetime:
    """Now, by this machine's clock."""
    return datetime.now(UTC)
