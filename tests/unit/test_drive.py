"""Where replies are decoded: large ones in a thread, so that other tasks go on."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any

import pytest

from sessionstore.calls import Call
from sessionstore.drive import drive_async
from sessionstore.errors import CorruptData

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
    ],
)
async def test_only_large_replies_are_decoded_in_a_thread(
    reply: Any, takes_long: bool, is_bulk: bool, times: int
) -> None:
    call = Call("read", lambda _: threading.get_ident(), commands=READ, is_bulk=is_bulk)
    found = await drive_async(flow(call, times), Replying(reply))
    threads = {found} if times == 1 else set(found)
    assert (threads == {threading.get_ident()}) == (not takes_long)


async def test_errors_of_a_thread_reach_the_flow() -> None:
    def fail(_: Any) -> Any:
        raise CorruptData("corrupt", key="k")

    with pytest.raises(CorruptData, match="corrupt"):
        await drive_async(flow(Call("read", fail, commands=READ), 1), Replying([LARGE] * 30))
