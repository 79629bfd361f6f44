"""What a check of the doctor found."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["ok", "unknown", "warning", "error"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one check.

    Attributes:
        check: the name of the check.
        status: "unknown": the check could not be made.
        saw: what was seen.
        why: why it matters; empty if all is well.
        fix: what to do; empty if all is well.
    """

    check: str
    status: Status
    saw: str
    why: str = ""
    fix: str = ""


def ok(check: str, saw: str) -> Finding:
    """Nothing to do."""
    return Finding(check=check, status="ok", saw=saw)


def unknown(check: str, right: str) -> Finding:
    """A check that needs a right which the user does not have."""
    return Finding(
        check=check,
        status="unknown",
        saw=f"the user may not run {right}",
        why="The check was not made.",
        fix=f"Give the user of the doctor the right to run {right}.",
    )


def warning(check: str, saw: str, why: str, fix: str) -> Finding:
    """Something that will hurt later."""
    return Finding(check=check, status="warning", saw=saw, why=why, fix=fix)


def error(check: str, saw: str, why: str, fix: str) -> Finding:
    """Something that loses data or breaks calls."""
    return Finding(check=check, status="error", saw=saw, why=why, fix=fix)
