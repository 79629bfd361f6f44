"""Where replies are decoded: large ones in a thread, so that other tasks go on."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any

import pytest

from sessionstore.calls import Call
from sessionstore.drive import drive, drive_async
from sessionstore.errors import CorruptData, NotReplicated

READ = (("ZRANGE", b"events", 0, -1),)
LARGE = b"x" * 100_000


class Replying:
    """An executor that has one reply."""

    def __init__(self, reply: Any) -> None:
        self.reply = reply

    async def execute(self, call: Call[Any]) -> list[Any]:  # noqa: ARG002  # the same for all
        return [[], self.reply]

    async def aclose(self) -> None:
        """Nothing to close."""


def flow(call: Call[int], times: int) -> Generator[Any, Any, Any]:
    return (yield call if times == 1 else (call,) * times)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("is_bulk", [False, True])
@pytest.mark.parametrize(
    ("reply", "takes_long"),
    [
        ([], False),
        (None, False),
        (7, False),
        ([LARGE] * 20, False),
        ([LARGE] * 21, True),
        ([[LARGE, 1.5]] * 21, True),
        ([[LARGE, 1.5]] * 20, False),
        ([1, 2, 3], False),
        ([b"OK", 1, None], False),
        ([b"\x02" + LARGE] * 6, True),  # compressed
        ([b"\x03" + LARGE] * 6, True),  # encrypted
        ([[b"\x02" + LARGE, 1.5]] * 6, True),
        ([b"version", b"7", b".state", b"\x03" + LARGE * 6], True),
        ([b"\x02" + LARGE] * 5, False),
    ],
)
async def test_only_large_replies_are_decoded_in_a_thread(
    reply: Any, takes_long: bool, is_bulk: bool, times: int
) -> None:
    call = Call("read", lambda _: threading.get_ident(), commands=READ, is_bulk=is_bulk)
    found = await drive_async(flow(call, times), Replying(reply))
    threads = {found} if times == 1 else set(found)
    assert (threads == {threading.get_ident()}) == (not takes_long)


class NotConfirming:
    """Executors whose replicas confirm nothing."""

    def execute(self, call: Call[Any]) -> list[Any]:
        raise NotReplicated(call.name, confirmed=0, replies=[call.name])

    def close(self) -> None:
        """Nothing to close."""


class NotConfirmingAsync(NotConfirming):
    async def execute(self, call: Call[Any]) -> list[Any]:  # type: ignore[override]  # as async
        return super().execute(call)

    async def aclose(self) -> None:
        """Nothing to close."""


async def raised(one: Generator[Any, Any, Any], is_async: bool) -> NotReplicated:
    try:
        if is_async:
            await drive_async(one, NotConfirmingAsync())
        else:
            drive(one, NotConfirming())
    except NotReplicated as error:
        return error
    pytest.fail("nothing was raised")


@pytest.mark.parametrize("is_async", [False, True])
async def test_calls_that_were_not_replicated_have_their_results(is_async: bool) -> None:
    """The flow ends, whether its calls were sent one by one or together."""

    def names(step: Any) -> Generator[Any, Any, Any]:
        return [(yield step), (yield together)]

    def named(name: str) -> Call[str]:
        return Call(name, lambda replies: str(replies[0]))

    together = (named("b"), named("c"))
    for step, result in ((named("a"), "a"), (together, ["b", "c"])):
        error = await raised(names(step), is_async)
        assert str(error) == result[0]
        assert error.result == [result, ["b", "c"]]


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_call_that_must_be_confirmed_fails_inside_the_flow(is_async: bool) -> None:
    def stops(step: Any) -> Generator[Any, Any, Any]:
        with pytest.raises(NotReplicated, match="a"):
            yield step
        raise CorruptData("stopped", key="k")

    call = Call("a", lambda _: None, must_be_confirmed=True)
    for step in (call, (call,)):
        with pytest.raises(CorruptData, match="stopped"):
            await raised(stops(step), is_async)


async def test_errors_of_a_thread_reach_the_flow() -> None:
    def fail(_: Any) -> Any:
        raise CorruptData("corrupt", key="k")

    with pytest.raises(CorruptData, match="corrupt"):
        await drive_async(flow(Call("read", fail, commands=READ), 1), Replying([LARGE] * 30))
