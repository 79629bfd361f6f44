"""Runs flows that write data of a user. With a key store, they encrypt it with the user's data key.

A flow starts again if the session has another data key. Without a key store a flow runs unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from ..calls import CallNeeded, Flow, OtherDataKey
from ..data_keys import DataKey, DataKeys, Owner
from ..errors import BackendError, CorruptData
from ..model import Session, SessionKey
from ..ops import Ops
from ..times import to_us
from .shared import prefix_message

P = ParamSpec("P")
T = TypeVar("T")

_ATTEMPTS = 8  # a data key only changes if a user is deleted and created again


def keyed(flow: Callable[Concatenate[Ops, P], Flow[T]]) -> Callable[Concatenate[Ops, P], Flow[T]]:
    """The flow of a write to a session, run with Ops that encrypt with the user's data key.

    Its first arguments after `ops` are a Session or a SessionKey, or an application and a user. A
    session that has no data key yet gets one.
    """
    return _decorated(flow, None)


def introducing(
    flow: Callable[Concatenate[Ops, P], Flow[T]],
) -> Callable[Concatenate[Ops, P], Flow[T]]:
    """The flow of a write that creates a session or writes to the user tier, run as `keyed` does.

    No header names a data key there yet, which the script could compare. So afterwards the flow
    checks that the data key is still stored.
    """
    return _decorated(flow, lambda _: True)


def introducing_if_new(
    flow: Callable[Concatenate[Ops, P], Flow[T]],
) -> Callable[Concatenate[Ops, P], Flow[T]]:
    """The same for a flow that returns a session, which may have existed already."""
    return _decorated(flow, _is_new)


def _decorated(
    flow: Callable[Concatenate[Ops, P], Flow[T]], introduces: Callable[[Any], bool] | None
) -> Callable[Concatenate[Ops, P], Flow[T]]:
    """`introduces`: whether a result needs the check afterwards. None = it never does."""

    @wraps(flow)
    def run(ops: Ops, /, *args: P.args, **kwargs: P.kwargs) -> Flow[T]:
        if introduces is not None:
            ops = ops.unbound
        keys = ops.data_keys
        owner = None if keys is None else _owner(args)
        if keys is None or owner is None:
            return flow(ops, *args, **kwargs)
        keyed_flow = _run(ops, keys, owner, flow, introduces, args, kwargs)
        keyed_flow.__name__ = flow.__name__  # type: ignore[attr-defined]  # it names the operation
        return keyed_flow

    return run


def _run(
    ops: Ops,
    keys: DataKeys,
    owner: Owner,
    flow: Callable[..., Flow[T]],
    introduces: Callable[[Any], bool] | None,
    args: Any,
    kwargs: Any,
) -> Flow[T]:
    args = [_Replayed(each) if isinstance(each, Iterator) else each for each in args]
    writes = not keys.ring.read_only
    for _ in range(_ATTEMPTS):
        data_key: DataKey | None = None
        if writes:
            data_key = keys.cached(owner)
            if data_key is None:
                data_key = yield (keys.find if introduces is None else keys.use)(owner)
            # If the key store has none, write with a new one: the script refuses it if the session
            # has another, and names that one.
            data_key = data_key or keys.make(owner)
        written: list[bytes] | None = None if introduces is None else []
        try:
            result = yield from flow(ops.bound_to(data_key, written), *args, **kwargs)
        except CallNeeded as needed:
            yield needed.call
            continue
        except OtherDataKey as error:
            writes = True
            if error.data_key:
                yield from _reload(keys, owner, error)
            else:
                yield from give_data_key(ops, keys, args[0].key)
            continue
        if data_key is None or introduces is None or not introduces(result):
            return result
        session = result if isinstance(result, Session) else None
        if (yield from _is_kept(ops, keys, data_key, session, written or [])):
            return result
    raise _keeps_changing(owner)


def give_data_key(ops: Ops, keys: DataKeys, key: SessionKey) -> Flow[None]:
    """Store the name of the user's data key in the header of a session that has none.

    Its values do not change: see `sessionstore rekey`.
    """
    old = ""
    owner = (key.app_name, key.user_id)
    for _ in range(_ATTEMPTS):
        data_key: DataKey = yield keys.use(owner)
        with suppress(OtherDataKey):  # another process was faster
            yield ops.set_data_key(key, data_key.name, old)
        still: DataKey = yield keys.use(owner)
        if still.name == data_key.name:
            return
        old = data_key.name
    raise _keeps_changing(owner)


def _reload(keys: DataKeys, owner: Owner, refused: OtherDataKey) -> Flow[None]:
    """Read the data key of a user again, because a session has another one."""
    data_key: DataKey | None = yield keys.find(owner)
    if data_key is None or data_key.name != refused.data_key:
        text = f"its data key {refused.data_key!r} is not in the key store"
        raise CorruptData(f"{refused.key}: {text}", key=refused.key) from None


def _is_kept(
    ops: Ops, keys: DataKeys, data_key: DataKey, session: Session | None, written: list[bytes]
) -> Flow[bool]:
    """Whether the data key that a flow wrote with is still stored. Then `delete_user` keeps it.

    If not, what was written with it is removed: a new session, keys and values of the user tier,
    also those that others have written through the session.
    """
    try:
        still: DataKey = yield keys.use(data_key.owner)
        if still.name != data_key.name:
            # The session first: as long as it is there, others may write to the user tier with it.
            if session is not None:
                yield ops.delete_session(session.key, data_key.name)
                written += yield from _written_through(ops, data_key, session, {*written[::2]})
            if written:
                yield ops.undo_data_key(*data_key.owner, written)
    except BackendError as error:
        prefix_message(error, "the data is written, its data key is not confirmed")
        error.maybe_applied = True
        raise
    return still.name == data_key.name


def _written_through(
    ops: Ops, data_key: DataKey, session: Session, own: set[bytes]
) -> Flow[list[bytes]]:
    """Keys and values of the user tier that others wrote with a data key through a new session.

    Those that were there when the session was created are left out: if the key store has lost the
    data key, a backup may bring it back.
    """
    older = {name.encode() for name in session.state}
    return [
        part
        for name, value in (yield ops.read_user_tier(*data_key.owner))
        if value.startswith(data_key.key.prefix) and (name in own or b"user:" + name not in older)
        for part in (name, value)
    ]


def _owner(args: tuple[Any, ...]) -> Owner | None:
    """The user of a flow; None if its arguments are not valid, for which the flow raises."""
    if args and isinstance(args[0], (Session, SessionKey)):
        return args[0].app_name, args[0].user_id
    if len(args) > 1 and isinstance(args[0], str) and isinstance(args[1], str):
        return args[0], args[1]
    return None


def _is_new(result: Any) -> bool:
    """Whether nobody has written to a session since its creation."""
    return bool(result.version == to_us(result.created_at))


def _keeps_changing(owner: Owner) -> CorruptData:
    app_name, user_id = owner
    where = f"user {user_id!r} of app {app_name!r}"
    return CorruptData(f"the data key of {where} changes with every attempt", key=where)


class _Replayed:
    """An iterator that can be read again."""

    def __init__(self, rest: Iterator[Any]) -> None:
        self._items: list[Any] = []
        self._rest = rest

    def __iter__(self) -> Iterator[Any]:
        yield from self._items
        for item in self._rest:
            self._items.append(item)
            yield item


@keyed
def run_keyed(ops: Ops, key: SessionKey, flow: Callable[[Ops], Flow[T]]) -> Flow[T]:  # noqa: ARG001  # `keyed` reads the key
    """Run a flow on a session, as `keyed` does."""
    return flow(ops)
