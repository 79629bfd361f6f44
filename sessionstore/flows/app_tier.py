"""Writes to a session and to an app tier that has a cluster slot of its own.

No script may use both. So such a write is three steps: check that the session accepts the write,
write the app state, write the session. The session comes last, so a session that shows the write
has its app state, and repeating a call that failed half done completes it. With `wait_replicas` the
session is written only after enough replicas have the app state. Otherwise a repeat would find the
session written, and leave out app state that a failover has lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from ..calls import Call, Flow, R
from ..errors import (
    BackendError,
    BackendUnavailable,
    InvalidArgument,
    NotReplicated,
    SessionStoreError,
)
from ..model import Session, SessionKey, Turn
from ..ops import Ops
from ..replies import decode_state
from ..tiers import NO_CHANGE, Change, Delta
from ..transform import TierOwner
from .shared import prefix_message


def is_apart(ops: Ops, changes: Iterable[Change]) -> bool:
    """Whether a write with these changes needs a step of its own for the app tier."""
    return ops.app_in_own_slot and any(change.app for change in changes)


def write_apart(
    ops: Ops,
    write: Call[R],
    key: SessionKey,
    changes: Sequence[Change],
    events: Sequence[bytes] = (),
    if_version: int | None = None,
    turn: Turn | None = None,
    created_us: bytes = b"",
    *,
    if_absent: bool = False,
    read_app: bool = False,
) -> Flow[tuple[R, dict[str, Any]]]:
    """The result of a write to a session whose app tier has a slot of its own, and the app state.

    Args:
        ops: builds Calls.
        write: the write to the session.
        key: the session.
        changes: the change of each event, or the one change of the call.
        events: the encoded events that the write appends.
        if_version: the condition of the write.
        turn: likewise.
        created_us: when the session was created, as in `write`.
        if_absent: set only keys that are not there.
        read_app: read the app state after it was written. Otherwise it is empty.
    """
    app_state: dict[str, Any] = {}
    if is_apart(ops, changes):
        stored: list[bool] = yield ops.check_session(key, if_version, turn, events, created_us)
        if stored:
            # A stored event has set its app state, which may have changed since.
            pairs = zip(changes, stored, strict=True)
            changes = [change for change, is_stored in pairs if not is_stored]
    result: R
    if is_apart(ops, changes):
        yield from write_app_state(ops, key.app_name, changes, if_absent=if_absent)
        with app_state_written():
            # The session comes last: when it is written, nothing is left that may fail.
            if read_app:
                app_state = yield ops.get_app_state(key.app_name, touch=False)
            result = yield write
    else:
        result = yield write
    touch = ops.touch_app_tier(key.app_name)
    if touch is not None:
        with suppress(BackendError):  # the write is done
            yield touch
    return result, app_state


def write_app_state(
    ops: Ops, app_name: str, changes: Iterable[Change], *, if_absent: bool = False
) -> Flow[None]:
    """Write the app state: the first of the two steps that write."""
    deltas = [change.app for change in changes if change is not NO_CHANGE and change.app]
    change = Change(Delta(), Delta(), Delta.merged(deltas), {}, [])
    write = ops.update_app_state(app_name, change, if_absent=if_absent)
    try:
        yield from run_app_write(
            ops, app_name, msgspec.structs.replace(write, must_be_confirmed=True)
        )
    except NotReplicated as error:
        # Not NotReplicated: it means that the whole call is done.
        raise BackendUnavailable(
            f"the app state is written, the session is not: {error}", maybe_applied=True
        ) from error
    except BackendError as error:
        if error.maybe_applied:
            prefix_message(error, "the app state may be written, the session is not")
        raise


def run_app_write(ops: Ops, app_name: str, write: Call[R]) -> Flow[R]:
    """The result of a write to the app tier. Later reads of this service show it."""
    tier = ops.options.keys.app(app_name)
    ops.app_copies.forget(tier)
    try:
        result: R = yield write
    finally:
        ops.app_copies.forget(tier)
    return result


def read_app_state(ops: Ops, app_name: str) -> Flow[dict[str, Any]]:
    """The app tier, from a copy if the service has one."""
    state = copied_app_state(ops, app_name)
    if state is None:
        state = yield ops.get_app_state(app_name)
    return state


def copied_app_state(ops: Ops, app_name: str) -> dict[str, Any] | None:
    """The app tier from a copy; None if there is no copy."""
    if not ops.app_copies:
        return None
    tier = ops.options.keys.app(app_name)
    reply = ops.app_copies.get(tier)
    if reply is None:
        return None
    return decode_state(ops.options.codec, TierOwner(app_name), reply, tier, "app")


@contextmanager
def app_state_written() -> Iterator[None]:
    """Within the context, error messages say that the app state is written already."""
    try:
        yield
    except SessionStoreError as error:
        is_unknown = isinstance(error, BackendError) and error.maybe_applied
        session = "may be" if is_unknown else "is not"
        prefix_message(error, f"the app state is written, the session {session}")
        if isinstance(error, BackendError):
            error.maybe_applied = True
        raise


def refuse_app_increments(ops: Ops, change: Change, path: str) -> None:
    """Refuse increments of an app tier in its own slot: a repeated step would add twice."""
    if not ops.app_in_own_slot:
        return
    for increment in change.increments:
        if increment.name.startswith("app:"):
            raise InvalidArgument(
                f"{path} names {increment.name!r}, but the app tier has a cluster slot of its own: "
                "use increment_app_state"
            )


def add_app_state(session: Session, app_state: dict[str, Any]) -> None:
    """Add the app tier to the state of a Session that was read without it."""
    session.state.update((f"app:{name}", value) for name, value in app_state.items())
