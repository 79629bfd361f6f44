"""Runs flows: the only loops that send a flow's Calls to an executor.

A flow yields a Call and receives its decoded result, or yields several Calls, which are sent
together, and receives a list of results. An error is raised inside the flow, at its `yield`, so
that the flow can handle it.

NotReplicated is different: the write is done, so the flow receives the result and continues, unless
the Call must be confirmed. When the flow ends, the first NotReplicated is raised, with the flow's
return value as its `result`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .calls import (
    AsyncExecutor,
    Call,
    CallNeeded,
    Flow,
    Observer,
    R,
    SyncExecutor,
    decode_replies,
)
from .errors import BackendError, NotReplicated
from .transform import COMPRESSED, ENCRYPTED

# Decoding more than this takes over 10 ms. A thread does it, so that other tasks run meanwhile.
_LONG_DECODE_BYTES = 2 << 20
_LONG_UNWRAP_BYTES = _LONG_DECODE_BYTES // 4  # of values that are compressed or encrypted


async def drive_async(
    flow: Flow[R], executor: AsyncExecutor, observer: Observer | None = None
) -> R:
    """The return value of a flow, run over asyncio.

    Raises:
        Exception: what the flow raises, errors of its Calls included.
        NotReplicated: the flow has ended, but too few replicas confirmed one of its writes.
    """
    not_replicated: list[NotReplicated] = []
    try:
        step = next(flow)
        while True:
            try:
                if isinstance(step, tuple):
                    results = (_result(call, executor, not_replicated) for call in step)
                    result: Any = await asyncio.gather(*results)
                else:
                    result = await _result(step, executor, not_replicated)
            except BaseException as error:
                if observer is not None:
                    observer.ended(step, error)
                if not isinstance(error, Exception):  # cancelled
                    flow.close()
                    raise
                step = flow.throw(error)
            else:
                if observer is not None:
                    observer.ended(step, result)
                step = flow.send(result)
    except StopIteration as end:
        value: R = end.value
        return _checked(value, not_replicated)


def drive(flow: Flow[R], executor: SyncExecutor, observer: Observer | None = None) -> R:
    """The return value of a flow, run in this thread. Raises what `drive_async` raises."""
    not_replicated: list[NotReplicated] = []

    def result_of(call: Call[Any]) -> Any:
        try:
            replies = executor.execute(call)
        except NotReplicated as error:
            replies = _accepted(call, error, not_replicated)
        while True:
            try:
                return decode_replies(call, replies)
            except CallNeeded as needed:
                with _after_a_write(call):
                    decode_replies(needed.call, executor.execute(needed.call))

    try:
        step = next(flow)
        while True:
            try:
                result: Any = (
                    list(map(result_of, step)) if isinstance(step, tuple) else result_of(step)
                )
            except BaseException as error:
                if observer is not None:
                    observer.ended(step, error)
                if not isinstance(error, Exception):  # cancelled
                    flow.close()
                    raise
                step = flow.throw(error)
            else:
                if observer is not None:
                    observer.ended(step, result)
                step = flow.send(result)
    except StopIteration as end:
        value: R = end.value
        return _checked(value, not_replicated)


async def _result(call: Call[R], executor: AsyncExecutor, not_replicated: list[NotReplicated]) -> R:
    """The result of one Call. A NotReplicated is noted, unless the Call must be confirmed."""
    try:
        replies = await executor.execute(call)
    except NotReplicated as error:
        replies = _accepted(call, error, not_replicated)
    while True:
        try:
            if call.commands and _takes_long(call, replies):
                return await asyncio.to_thread(decode_replies, call, replies)
            return decode_replies(call, replies)
        except CallNeeded as needed:
            with _after_a_write(call):
                found = await executor.execute(needed.call)
            decode_replies(needed.call, found)


def _accepted(
    call: Call[Any], error: NotReplicated, not_replicated: list[NotReplicated]
) -> list[Any]:
    """The replies of a write that too few replicas confirmed."""
    if call.must_be_confirmed:
        raise error
    not_replicated.append(error)
    return error.replies


@contextmanager
def _after_a_write(call: Call[Any]) -> Iterator[None]:
    """Within the context, errors say that a write may be applied: only its reply is not decoded."""
    try:
        yield
    except BackendError as error:
        error.maybe_applied = error.maybe_applied or call.writes
        raise


def _checked(value: R, not_replicated: list[NotReplicated]) -> R:
    """The return value of a flow. Raises the first NotReplicated of its Calls, if any."""
    if not_replicated:
        not_replicated[0].result = value
        raise not_replicated[0]
    return value


def _takes_long(call: Call[Any], replies: list[Any]) -> bool:
    """Whether decoding would delay other tasks noticeably."""
    # The last reply has the events. In bulk reads other replies can be large too.
    parts = replies if call.is_bulk else replies[-1:]
    size = sum(map(_size, parts))
    if size <= _LONG_UNWRAP_BYTES:
        return False
    return size > _LONG_DECODE_BYTES or any(map(_is_wrapped, parts))


def _is_wrapped(reply: Any) -> bool:
    """Whether the first or the last part of a reply is compressed or encrypted."""
    if not isinstance(reply, list):
        return isinstance(reply, bytes) and reply.startswith((COMPRESSED, ENCRYPTED))
    return bool(reply) and (_is_wrapped(reply[0]) or _is_wrapped(reply[-1]))


def _size(reply: Any) -> int:
    """Bytes of the parts of a reply."""
    if not isinstance(reply, list) or not reply:
        return 0
    if isinstance(reply[0], list):  # with scores, in RESP3
        reply = [part[0] for part in reply]
    try:
        return sum(map(len, reply))
    except TypeError:  # not all are bytes
        return sum(len(part) for part in reply if type(part) is bytes)
