"""One service on many event loops, one after the other: nothing is left of those that ended."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Callable, Iterator

import pytest
from faults_support import KEY, client_count, make_event
from support.leaks import Use, check_leaks, run, run_without_shutdown
from support.servers import Server
from support.services import make_service
from support.waiting import wait_until


@pytest.fixture
def _warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        gc.collect()


@pytest.mark.usefixtures("_warnings_are_errors")
@pytest.mark.parametrize("run_once", [run, run_without_shutdown])
def test_loops_that_end_leave_nothing(server: Server, run_once: Callable[[Use], None]) -> None:
    before = client_count(server)
    service = make_service("async", server.url)
    check_leaks(service, run_once)
    asyncio.run(service.aclose())
    wait_until(lambda: client_count(server) == before, "the end of the connections")


def test_loops_at_the_same_time_keep_their_connections(server: Server) -> None:
    service = make_service("async", server.url)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()

    async def append(number: int) -> None:
        await service.get_or_create_session(app_name="a", user_id="u", session_id="s")
        await service.append_event(KEY, make_event(number))

    for number in range(3):
        first.run_until_complete(append(number))
        second.run_until_complete(append(number + 10))
        assert client_count(server) >= 5  # two for each loop, and the test's own
        run_without_shutdown(lambda number=number: append(number + 20))  # type: ignore[misc]
    for loop in (first, second):
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
    asyncio.run(service.aclose())
