"""Whether calls that ran at the same time have together done what each of them announced.

A call that succeeded was applied once, at some moment between its start and its end. A call that
failed with `maybe_applied` was applied once, at any moment after its start, or not at all. Every
other error says that nothing was applied. `explain` searches for an order of the calls in which
each has its result, and which ends with what is stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

SEARCH_LIMIT = 200_000
"""How many situations `explain` looks at."""


class Unexplained(Exception):
    """No order of the calls explains their results."""


class SearchTooLong(Exception):
    """The calls have too many possible orders."""


class Stored(NamedTuple):
    """What a session holds.

    Attributes:
        log: the ids of its events, oldest first.
        state: its state, as sorted pairs.
        version: its version; if that is not known, the last one known before.
        is_version_known: every write gives the session a version that nobody knows until a read.
    """

    log: tuple[str, ...] = ()
    state: tuple[tuple[str, Any], ...] = ()
    version: int = 0
    is_version_known: bool = True


@dataclass(frozen=True)
class Change:
    """An event, and what it does to the state.

    Attributes:
        event_id: the id of the event.
        values: state to set.
        increments: integers to add.
    """

    event_id: str
    values: Mapping[str, Any] = field(default_factory=dict)
    increments: Mapping[str, int] = field(default_factory=dict)


Kind = Literal["append", "pop", "clear", "update", "increment", "read"]
Result = Literal["done", "maybe", "stale"]


@dataclass(frozen=True)
class Made:
    """A call and its result. A call that was not applied is left out of a history.

    Attributes:
        kind: the operation.
        began: when it was called.
        ended: when it returned or raised.
        result: "maybe" = the error has `maybe_applied`; "stale" = it raised StaleVersion.
        changes: the events of an append; for "update" and "increment" one without an event.
        if_version: its condition.
        version: of a read; for "stale" the version that the error names.
        found: what a read found, the id that a pop returned (None = the log was empty), or the new
            values of an increment.
    """

    kind: Kind
    began: float
    ended: float
    result: Result
    changes: tuple[Change, ...] = ()
    if_version: int | None = None
    version: int | None = None
    found: Any = None


def explain(start: Stored, calls: Sequence[Made], event_limit: int) -> Stored:
    """What is stored after the calls, the last of which is a read after the end of all others.

    Raises:
        Unexplained: no order of the calls explains their results.
        SearchTooLong: the search was given up.
    """
    ends = [math.inf if call.result == "maybe" else call.ended for call in calls]
    all_required = sum(1 << n for n, call in enumerate(calls) if call.result != "maybe")
    pending = [(0, start)]
    seen = {(0, start)}
    while pending:
        done, stored = pending.pop()
        if done & all_required == all_required:
            return stored
        left = [number for number in range(len(calls)) if not done >> number & 1]
        first_end = min(ends[number] for number in left)
        for number in left:
            call = calls[number]
            if call.began > first_end:
                continue  # another call had ended before this one began
            after = apply(call, stored, event_limit)
            if after is None or (call.result == "maybe" and after == stored):
                continue
            found = done | 1 << number, after
            if found not in seen:
                seen.add(found)
                pending.append(found)
        if len(seen) > SEARCH_LIMIT:
            raise SearchTooLong(f"{len(calls)} calls")
    raise Unexplained


def apply(call: Made, stored: Stored, event_limit: int) -> Stored | None:
    """What is stored after a call; None if the call cannot have its result at this moment."""
    if call.kind == "read":
        log, state = call.found
        seen = _with_version(stored, call.version)
        return seen if seen and log == stored.log and state == stored.state else None
    is_stored = call.kind == "append" and all(
        change.event_id in stored.log for change in call.changes
    )
    is_stale = call.if_version is not None and not is_stored and not _has(stored, call.if_version)
    if call.result == "stale":
        return _with_version(stored, call.version) if is_stale else None
    if is_stale:
        # A call of unknown outcome was not applied.
        return stored if call.result == "maybe" else None
    return _write(call, stored, event_limit)


def _write(call: Made, stored: Stored, event_limit: int) -> Stored | None:
    if call.kind == "pop":
        newest = stored.log[-1] if stored.log else None
        if call.result == "done" and newest != call.found:
            return None
        return _written(stored, log=stored.log[:-1]) if stored.log else stored
    if call.kind == "clear":
        return _written(stored, log=())
    log, state = list(stored.log), dict(stored.state)
    for change in call.changes:
        if change.event_id in log:
            continue
        if change.event_id:
            log.append(change.event_id)
        state |= change.values
        for key, amount in change.increments.items():
            state[key] = state.get(key, 0) + amount
    if call.kind == "increment" and call.result == "done":
        sums = {key: state[key] for change in call.changes for key in change.increments}
        if call.found != sums:
            return None
    if call.kind == "append" and log == list(stored.log):
        return stored  # all of its events were stored already
    return _written(stored, log=tuple(log[-event_limit:]), state=tuple(sorted(state.items())))


def _written(stored: Stored, **changes: Any) -> Stored:
    return stored._replace(is_version_known=False, **changes)


def _has(stored: Stored, version: int) -> bool:
    """Whether the session has this version, which some read has returned before."""
    return stored.is_version_known and stored.version == version


def _with_version(stored: Stored, version: int | None) -> Stored | None:
    """The same with the version that the store named; None if it cannot have that one."""
    assert version is not None
    if stored.is_version_known:
        return stored if stored.version == version else None
    if version <= stored.version:
        return None
    return stored._replace(version=version, is_version_known=True)


def shown(call: Made, zero: float) -> str:
    """A call in a report, with times in milliseconds since `zero`."""
    times = f"{(call.began - zero) * 1e3:9.3f} {(call.ended - zero) * 1e3:9.3f}"
    rest = replace(call, began=0, ended=0)
    details = {
        name: value
        for name, value in (
            ("changes", [(c.event_id, dict(c.values), dict(c.increments)) for c in rest.changes]),
            ("if_version", rest.if_version),
            ("version", rest.version),
            ("found", rest.found),
        )
        if value not in (None, [])
    }
    return f"{times}  {call.kind:9} {call.result:5} {details}"
