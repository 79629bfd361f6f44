"""Flows that read and change state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..calls import Flow
from ..model import Session, SessionKey
from ..ops import Ops
from ..options import check_bool
from ..replies import WriteResult
from ..tiers import encode_change
from ..transform import TierOwner
from .app_tier import read_app_state, refuse_app_increments, run_app_write, write_apart
from .data_keys import introducing, keyed
from .shared import created_us_of, session_key, set_version


@keyed
def update_session_state(
    ops: Ops,
    session: Session | SessionKey,
    state: Mapping[str, Any],
    removed: Iterable[str],
    if_version: int | None,
    if_absent: bool = False,
) -> Flow[None]:
    """Set and remove state in all tiers. Nothing is sent if nothing would change."""
    key = session_key(session)
    check_bool("if_absent", if_absent)
    change = encode_change(ops.options.codec, key, state, removed)
    handle = session if isinstance(session, Session) else None
    current: dict[str, Any] = {}
    created_us = created_us_of(session)
    if change.is_stored or if_version is not None:
        read_back = if_absent and handle is not None
        call = ops.update_session_state(
            key, change, if_version, created_us, if_absent=if_absent, read_back=read_back
        )
        written: WriteResult
        if ops.app_in_own_slot:
            written, app_state = yield from write_apart(
                ops,
                call,
                key,
                [change],
                if_version=if_version,
                created_us=created_us,
                if_absent=if_absent,
                read_app=read_back,
            )
            current = {f"app:{name}": value for name, value in app_state.items()}
        else:
            written = yield call
        current |= written.read_back or {}
        if handle is not None:
            set_version(handle, written)
    else:
        ops.check_session(key, if_version, None, (), created_us)  # only checks the arguments
    if handle is not None and if_absent:
        for name, value in change.values.items():
            if name in current:
                handle.state[name] = current[name]
            elif name.startswith("temp:"):
                handle.state.setdefault(name, value)
    elif handle is not None:
        change.apply_to(handle.state)


def delete_session_state(
    ops: Ops, session: Session | SessionKey, keys: Iterable[str], if_version: int | None
) -> Flow[None]:
    """Remove state of all tiers."""
    yield from update_session_state(ops, session, {}, keys, if_version)


@keyed
def increment_session_state(
    ops: Ops, session: Session | SessionKey, increments: Mapping[str, int]
) -> Flow[dict[str, int]]:
    """Add integers to state in all tiers. Returns the new values. Never sent twice."""
    key = session_key(session)
    change = encode_change(ops.options.codec, key, {}, (), increments)
    refuse_app_increments(ops, change, "increments")
    created_us = created_us_of(session)
    call = ops.update_session_state(key, change, None, created_us)  # checks the ids in any case
    if not change.increments:
        return {}
    written: WriteResult
    if ops.app_in_own_slot:
        written, _ = yield from write_apart(ops, call, key, [change], created_us=created_us)
    else:
        written = yield call
    if isinstance(session, Session):
        change.apply_sums_to(session.state, written.sums)
        set_version(session, written)
    return dict(zip(increments, written.sums, strict=True))


def get_user_state(ops: Ops, app_name: str, user_id: str) -> Flow[dict[str, Any]]:
    """Read the user tier."""
    state: dict[str, Any] = yield ops.get_user_state(app_name, user_id)
    return state


def get_app_state(ops: Ops, app_name: str) -> Flow[dict[str, Any]]:
    """Read the app tier."""
    return (yield from read_app_state(ops, app_name))


def update_user_state(
    ops: Ops,
    app_name: str,
    user_id: str,
    state: Mapping[str, Any],
    removed: Iterable[str],
    if_absent: bool = False,
) -> Flow[None]:
    """Set and remove state of the user tier. Nothing is sent if nothing would change."""
    change = _set_user_state if state else _change_user_state  # removing needs no data key
    yield from change(ops, app_name, user_id, state, removed, if_absent)


def _change_user_state(
    ops: Ops,
    app_name: str,
    user_id: str,
    state: Mapping[str, Any],
    removed: Iterable[str],
    if_absent: bool,
) -> Flow[None]:
    check_bool("if_absent", if_absent)
    owner = TierOwner(app_name, user_id)
    change = encode_change(ops.options.codec, owner, state, removed, tier="user")
    # Checks the ids in any case.
    call = ops.update_user_state(app_name, user_id, change, if_absent=if_absent)
    if change.is_stored:
        yield call


_set_user_state = introducing(_change_user_state)


def update_app_state(
    ops: Ops,
    app_name: str,
    state: Mapping[str, Any],
    removed: Iterable[str],
    if_absent: bool = False,
) -> Flow[None]:
    """Set and remove state of the app tier. Nothing is sent if nothing would change."""
    check_bool("if_absent", if_absent)
    owner = TierOwner(app_name)
    change = encode_change(ops.options.codec, owner, state, removed, tier="app")
    call = ops.update_app_state(app_name, change, if_absent=if_absent)  # checks the name, too
    if change.is_stored:
        yield from run_app_write(ops, app_name, call)


def delete_user_state(ops: Ops, app_name: str, user_id: str, keys: Iterable[str]) -> Flow[None]:
    """Remove state of the user tier."""
    yield from update_user_state(ops, app_name, user_id, {}, keys)


def delete_app_state(ops: Ops, app_name: str, keys: Iterable[str]) -> Flow[None]:
    """Remove state of the app tier."""
    yield from update_app_state(ops, app_name, {}, keys)


def increment_user_state(
    ops: Ops, app_name: str, user_id: str, increments: Mapping[str, int]
) -> Flow[dict[str, int]]:
    """Add integers to state of the user tier. Returns the new values. Never sent twice."""
    owner = TierOwner(app_name, user_id)
    change = encode_change(ops.options.codec, owner, {}, (), increments, tier="user")
    call = ops.update_user_state(app_name, user_id, change)  # checks the ids, too
    if not increments:
        return {}
    sums: list[int] = yield call
    return dict(zip(increments, sums, strict=True))


def increment_app_state(
    ops: Ops, app_name: str, increments: Mapping[str, int]
) -> Flow[dict[str, int]]:
    """Add integers to state of the app tier. Returns the new values. Never sent twice."""
    owner = TierOwner(app_name)
    change = encode_change(ops.options.codec, owner, {}, (), increments, tier="app")
    call = ops.update_app_state(app_name, change)  # checks the name, too
    if not increments:
        return {}
    sums = yield from run_app_write(ops, app_name, call)
    return dict(zip(increments, sums, strict=True))
